"""The Cranfield benchmark: its data is whole, its measures are right, its committed results are the expected ones."""

from __future__ import annotations

import csv
import math
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("ir_measures", reason="needs the extra [benchmark]")

from colbert_integrations import ColBERT

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cranfield  # noqa: E402
import records  # noqa: E402


@pytest.fixture(scope="module")
def collection():
    return cranfield.load()


@pytest.fixture
def tiny_collection():
    """Query 1 has two relevant documents, query 2 one."""
    judged = [("1", "a", 3), ("1", "b", 1), ("2", "c", 1)]
    texts = {"a": "bread recipes", "b": "the lift of a wing", "c": "boundary layers"}
    return cranfield.Collection(
        texts, {"1": "how do planes fly", "2": "flow"}, [cranfield.ir_measures.Qrel(*row) for row in judged]
    )


def test_collection_is_whole(collection):
    grades = Counter(judgement.relevance for judgement in collection.judgements)
    assert (len(collection.documents), len(collection.queries), sum(grades.values())) == (1400, 225, 1612)
    assert set(grades) == {1, 2, 3, 4}
    assert {judgement.doc_id for judgement in collection.judgements} <= collection.documents.keys()
    assert {judgement.query_id for judgement in collection.judgements} == collection.queries.keys()


def test_document_is_title_and_text(collection):
    assert collection.documents["1"].startswith("experimental investigation of the aerodynamics of a wing")
    assert "an experimental study of a wing in a propeller slipstream" in collection.documents["1"]


def test_data_files_are_small_and_carry_no_date():
    files = list(cranfield.DATA.glob("*.gz"))
    assert len(files) == 2
    for file in files:
        assert file.stat().st_size < 1_000_000
        assert file.read_bytes()[4:8] == bytes(4)  # the modification time in a gzip header


def test_quality_is_what_the_formulas_say(tiny_collection):
    rankings = {"1": [("c", 3.0), ("a", 2.0), ("b", 1.0)], "2": [("a", 2.0), ("b", 1.0)]}
    gained = 3 / math.log2(3) + 1 / math.log2(4)
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    found = cranfield.quality(rankings, tiny_collection)
    assert found == {"nDCG@10": round(gained / ideal / 2, 4), "RR@10": 0.25, "R@100": 0.5}


def test_quality_goes_by_scores_not_by_places(tiny_collection):
    found = cranfield.quality({"1": [("c", 1.0), ("a", 3.0), ("b", 2.0)], "2": [("c", 1.0)]}, tiny_collection)
    assert found == {"nDCG@10": 1.0, "RR@10": 1.0, "R@100": 1.0}


def test_bm25_is_as_good_as_expected(collection):
    row, rankings = cranfield.evaluate("BM25", lambda: cranfield.bm25(collection), collection)
    assert row["nDCG@10"] == pytest.approx(0.316, abs=0.002)
    assert {len(ranking) for ranking in rankings.values()} == {100}


def test_rerank_gives_the_models_own_ranking(tiny_collection):
    search = cranfield.colbert(tiny_collection, {"1": [("a", 9.0), ("b", 8.0), ("c", 7.0)]})
    texts = list(tiny_collection.documents.values())
    query = tiny_collection.queries["1"]
    ranked = ColBERT.shared(cranfield.MODEL, device=cranfield.DEVICE).rank(query, texts, normalize_scores=True)
    assert [name for name, _ in search("1", query)] == ["abc"[entry.index] for entry in ranked]
    assert [score for _, score in search("1", query)] == pytest.approx([entry.score for entry in ranked], abs=1e-6)
    assert ranked[0].index == 1


def test_dense_ranks_the_related_document_first(tiny_collection, monkeypatch):
    monkeypatch.setattr(cranfield, "DEPTH", 3)
    search = cranfield.dense(tiny_collection)
    assert search("1", "how do planes fly")[0][0] == "b"
    assert dict(search("", "bread recipes"))["a"] == pytest.approx(1, abs=1e-5)


def test_committed_results_are_the_expected_ones():
    results = records.newest(cranfield.RESULTS, "system")
    assert [float(row["nDCG@10"]) for row in results] == pytest.approx([0.316, 0.369, 0.376], abs=0.01)


def test_rows_are_appended_below_one_header(tmp_path):
    path = tmp_path / "new" / "results.csv"
    records.append(path, [{"system": "A", "nDCG@10": 0.5}])
    records.append(path, [{"system": "B, with a comma", "nDCG@10": 0.25}])
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["system", "nDCG@10"], ["A", "0.5"], ["B, with a comma", "0.25"]]


def test_rows_of_other_columns_are_refused(tmp_path):
    path = tmp_path / "results.csv"
    records.append(path, [{"system": "A", "nDCG@10": 0.5}])
    with pytest.raises(ValueError, match=r"columns.*system, RR@10"):
        records.append(path, [{"system": "A", "RR@10": 0.5}])


def test_table_shows_the_newest_row_of_each_system(tmp_path):
    path = tmp_path / "results.csv"
    records.append(path, [{"system": name, "nDCG@10": value} for name, value in [("A", 0.1), ("B", 0.2), ("A", 0.3)]])
    table = records.markdown(records.newest(path, "system"), ["system", "nDCG@10"])
    assert table == "| system | nDCG@10 |\n| --- | ---: |\n| A | 0.3 |\n| B | 0.2 |"


def test_rows_of_another_cpu_can_be_left_out(tmp_path):
    path = tmp_path / "results.csv"
    rows = [("A", "EPYC 9", 1), ("B", "EPYC 9", 2), ("A", "Xeon", 3), ("A", "Xeon", 4)]
    records.append(path, [{"case": case, "cpu": cpu, "ms": ms} for case, cpu, ms in rows])
    shown = {cpu: [row["ms"] for row in records.newest(path, "case", cpu)] for cpu in ("", "EPYC", None, "M4")}
    assert shown == {"": ["4", "2"], "EPYC": ["1", "2"], None: ["4"], "M4": []}


def test_a_gpu_has_a_csv_of_its_own():
    assert records.on_device(Path("results/rank.csv"), "cpu") == Path("results/rank.csv")
    assert records.on_device(Path("results/rank.csv"), "cuda") == Path("results/rank_cuda.csv")


def test_circumstances_name_the_machine_and_the_versions():
    found = records.circumstances("torch")
    assert found["torch"].startswith("2.")
    assert found["threads"] >= 1
    assert found["cpu"]


def test_a_copy_that_is_no_checkout_can_say_its_commit(monkeypatch):
    monkeypatch.setenv(records.COMMIT, "abc1234")
    assert records.circumstances("torch")["commit"] == "abc1234"
