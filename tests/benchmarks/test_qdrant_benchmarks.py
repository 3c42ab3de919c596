"""The benchmarks on Qdrant: they find the same as in memory, and their rows have the named columns."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ir_measures", reason="needs the extra [benchmark]")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import corpus_load  # noqa: E402
import cranfield  # noqa: E402
import qdrant_cranfield  # noqa: E402
import qdrant_engine  # noqa: E402
import qdrant_first_stage  # noqa: E402
import qdrant_load  # noqa: E402
import synthetic  # noqa: E402

from colbert_integrations import TokenEmbeddings  # noqa: E402
from colbert_integrations.qdrant import QdrantStore  # noqa: E402


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_cranfield_is_measured_in_memory_and_on_the_server(tmp_path: Path) -> None:
    everything = cranfield.load()
    documents = {name: everything.documents[name][:300] for name in list(everything.documents)[:30]}
    queries = {name: everything.queries[name] for name in ("1", "2")}
    collection = cranfield.Collection(documents, queries, everything.judgements)
    cases = [qdrant_cranfield.Case("LangChain", "float32"), qdrant_cranfield.Case("LlamaIndex", "float32")]
    qdrant_cranfield.run(tmp_path / "rows.csv", collection, cases)
    measured = rows(tmp_path / "rows.csv")
    assert [row["case"] for row in measured] == [
        "LangChain, float32, in memory",
        "LangChain, float32, on Qdrant",
        "LlamaIndex, float32, in memory",
        "LlamaIndex, float32, on Qdrant",
    ]
    assert {row["same top 10"] for row in measured} == {"2 of 2"}
    assert {row["nDCG@10"] for row in measured} == {measured[0]["nDCG@10"]} != {"0.0"}
    assert all(float(row["largest score difference"]) < 1e-4 for row in measured)
    assert qdrant_cranfield.table(tmp_path / "rows.csv").startswith("| case | nDCG@10 |")


def test_a_server_that_finds_something_else_would_show() -> None:
    collection = cranfield.Collection({}, {"1": "x"}, [cranfield.ir_measures.Qrel("1", "a", 1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(qdrant_cranfield.FRAMEWORKS, "LangChain", lambda index: lambda query: [("b", 1.0), ("a", 0.5)])
        patch.setattr(qdrant_cranfield, "ColBERTIndex", lambda *_: None)
        case = qdrant_cranfield.Case("LangChain", "float16")
        expected = [[("a", 1.25), ("b", 0.5)]]
        row, _ = qdrant_cranfield.measure(None, None, case, collection, expected)  # type: ignore[arg-type]
    assert (row["same top 10"], row["largest score difference"]) == ("0 of 1", "2.5e-01")


def test_first_stages_are_measured_against_exact_search(tmp_path: Path) -> None:
    everything = cranfield.load()
    documents = {name: everything.documents[name][:200] for name in list(everything.documents)[:30]}
    collection = cranfield.Collection(documents, {"1": everything.queries["1"]}, everything.judgements)
    qdrant_first_stage.run(tmp_path / "rows.csv", collection, [10, 30])
    measured = {row["case"]: float(row["recall@10"]) for row in rows(tmp_path / "rows.csv")}
    assert list(measured) == ["exact", *(f"{n}, {c} candidates" for n in ("mean", "dense model") for c in (10, 30))]
    assert measured["mean, 30 candidates"] == measured["dense model, 30 candidates"] == 1.0
    assert measured["mean, 10 candidates"] < 1.0
    assert qdrant_first_stage.table(tmp_path / "rows.csv").startswith("| case | nDCG@10 |")


def test_loading_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "CHUNK", 100)
    monkeypatch.setattr(qdrant_load, "_alone", qdrant_load.load)  # no process of its own
    synthetic.source(tmp_path / "source", abstracts=20)
    qdrant_load.run(tmp_path / "rows.csv", 60, ("float16",), tmp_path / "source")
    (row,) = rows(tmp_path / "rows.csv")
    assert (row["case"], row["documents"]) == ("60 passages, float16", "60")
    for column in ("documents per second", "documents per CPU second of the loader", "exact search ms"):
        assert float(row[column]) > 0
    assert qdrant_load.table(tmp_path / "rows.csv").startswith("| case | documents per second |")


PEAKS = """
import qdrant_engine, qdrant_load
before = qdrant_load._forget_peak()
block = bytearray(2**26)
block[:: 2**12] = b"x" * len(block[:: 2**12])
del block
print(qdrant_engine.peak_bytes() - before)
qdrant_load._forget_peak()
print(qdrant_engine.peak_bytes() - before)
"""


def test_a_peak_of_memory_is_seen_and_forgotten() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc")
    # In a new process: of one that is large and old the system may take memory back between two looks.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PEAKS], env=environment, capture_output=True, text=True, check=True)
    peak, afterwards = map(int, done.stdout.split())
    assert afterwards < 2**25 < peak


def test_passages_of_a_corpus_are_sentences_and_runs_of_them_each_once() -> None:
    some = list(corpus_load.passages(10**6))
    texts = [passage["text"] for passage in some]
    assert len(set(texts)) == len(texts) > 18_000
    assert [passage["id"] for passage in some] == sorted(passage["id"] for passage in some)
    assert f"{texts[0]} . {texts[1]}" in texts


def test_what_was_lost_or_changed_while_loading_is_seen() -> None:
    with qdrant_engine.running_server() as server:
        corpus_load.load(server.url, 40)
        assert corpus_load.look(server.url, 40) == {"lost": 0, "doubled": 0, "wrong": 0}
        with QdrantStore(server.url, "corpus") as store:
            second = store.get(["000001"], embeddings=True)[0]
            assert second.embeddings is not None
            store.upsert(["000001"], TokenEmbeddings.from_list([-second.embeddings]), [second.text])
            store.upsert(["000002"], TokenEmbeddings.from_list([second.embeddings]), ["another text"])
            store.delete(["000000"])
        # One is gone, one has other vectors, one has another text and so other vectors too.
        assert corpus_load.look(server.url, 40) == {"lost": 1, "doubled": 0, "wrong": 3}
