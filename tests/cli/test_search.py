"""search: the library's own hits, with the passages that answer; one query or many."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli.running import Run
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore

QUERY = "how does a plane fly?"
LONG = "the river runs into the sea. " * 20 + "the wings lift a plane into the sky. " + "bread and flour. " * 20
DOCUMENTS: list[dict[str, Any]] = [
    {"id": "wings", "text": "the wings lift a plane into the sky", "year": 2003},
    {"id": "bread", "text": "bread and flour", "year": 1998},
    {"id": "long", "text": LONG, "year": 2021, "tags": ["a", "ü"]},
    {"id": "fox", "text": "the quick red fox jumps", "year": 2010},
]


@pytest.fixture
def index(run: Run, model: ColBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ColBERTIndex:
    """An index in the folder ``kept`` of the current one."""
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(map(json.dumps, DOCUMENTS))
    assert run("index", "-", "--store", "kept", stdin=lines).code == 0
    return ColBERTIndex.load("kept", model)


def test_json_is_what_the_library_finds(run: Run, index: ColBERTIndex) -> None:
    data = run("search", QUERY, "--store", "kept", "-k", 3, "--json").data
    hits = index.search(QUERY, k=3, explain=True)
    assert data == {
        "query": QUERY,
        "hits": [
            {
                "rank": rank,
                "score": hit.score,
                "id": hit.id,
                "text": hit.text,
                "metadata": hit.metadata,
                "passage": vars(hit.explanation.passage),  # type: ignore[union-attr]
            }
            for rank, hit in enumerate(hits, 1)
        ],
    }
    for entry in data["hits"]:
        passage = entry["passage"]
        assert entry["text"][passage["start"] : passage["stop"]] == passage["text"]


def test_options_are_those_of_search(run: Run, index: ColBERTIndex) -> None:
    condition = {"year": {"$gte": 2003}}
    every = index.search(QUERY, filter=condition, normalize_scores=True)
    done = run(
        *("search", QUERY, "--store", "kept", "--json", "--normalize"),
        *("--filter", json.dumps(condition), "--threshold", every[1].score),
    )
    assert [(hit["id"], hit["score"]) for hit in done.data["hits"]] == [(hit.id, hit.score) for hit in every[:2]]


@pytest.mark.parametrize("mode", [None, "exact", "centroids"])
def test_a_search_goes_the_way_that_is_named(
    mode: str | None, run: Run, index: ColBERTIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = list[object]()
    real = MemoryStore.search

    def spy(store: MemoryStore, *args: Any, **options: Any) -> Any:
        modes.append(options["search"])
        return real(store, *args, **options)

    monkeypatch.setattr(MemoryStore, "search", spy)
    done = run("search", QUERY, "--store", "kept", "--json", *(() if mode is None else ("--search", mode)))
    assert len(done.data["hits"]) == len(index)
    assert modes == [mode]


def test_explanations_come_when_asked_for_and_passages_unless_not(run: Run, index: ColBERTIndex) -> None:
    explained = run("search", QUERY, "--store", "kept", "--json", "--explain").data["hits"]
    expected = [hit.explanation.as_dict() for hit in index.search(QUERY, explain=True)]  # type: ignore[union-attr]
    assert [hit["explanation"] for hit in explained] == json.loads(json.dumps(expected))
    bare = run("search", QUERY, "--store", "kept", "--json", "--no-passages").data["hits"]
    assert [hit["passage"] for hit in bare] == [None] * 4
    assert [hit["score"] for hit in bare] == [hit["score"] for hit in explained]
    assert run("search", QUERY, "--store", "kept", "--json", "--explain", "--no-passages").data["hits"] == explained


def test_many_queries_give_a_line_each_in_order(run: Run, index: ColBERTIndex, tmp_path: Path) -> None:
    queries = [f"{word} {number}" for number in range(40) for word in ("plane", "bread")]  # more than go at once
    text = "\n\n".join(queries)
    done = run("search", "--queries", "-", "--store", "kept", "--json", "--no-passages", stdin=text)
    assert [entry["query"] for entry in done.lines] == queries
    assert [[hit["id"] for hit in entry["hits"]] for entry in done.lines] == [
        [hit.id for hit in hits] for hits in index.search(queries)
    ]
    (tmp_path / "queries.txt").write_text(text)
    again = run("search", "--queries", "queries.txt", "--store", "kept", "--json", "--no-passages")
    assert again.out == done.out


def test_queries_of_json_lines_are_their_texts(run: Run, index: ColBERTIndex) -> None:
    lines = [{"_id": "1", "text": "how does a plane fly?\nand why", "metadata": {}}, {"_id": "2", "text": "bread"}]
    Path("queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = run("search", "--queries", "queries.jsonl", "--store", "kept", "--json")
    assert [(entry["id"], entry["query"]) for entry in done.lines] == [(line["_id"], line["text"]) for line in lines]
    piped = run("search", "--queries", "-", "--store", "kept", "--json", stdin='{"text": 1}')
    assert (piped.data["id"], piped.data["query"]) == (
        None,
        '{"text": 1}',
    )  # the lines of a pipe are queries as they are


def test_readable_output_has_the_passage_and_the_metadata(run: Run, index: ColBERTIndex) -> None:
    hits = index.search(QUERY, explain=True)
    shown = run("search", QUERY, "--store", "kept").out
    expected = [f"{rank:>3}. {hit.score:6.2f}  {hit.id}" for rank, hit in enumerate(hits, 1)]
    assert [line for line in shown.splitlines() if not line.startswith("     ")] == expected
    assert '\n     {"year": 2021, "tags": ["a", "ü"]}\n' in shown
    passages = [hit.explanation.passage for hit in hits if hit.explanation is not None]
    assert len(passages) == 4
    assert all(f"\n     {passage.text[:60]}" in shown for passage in passages if passage is not None)
    assert "→" not in shown
    assert "→" in run("search", QUERY, "--store", "kept", "--explain").out
    beginnings = run("search", QUERY, "--store", "kept", "--no-passages").out
    assert f"\n     {LONG[:60]}" in beginnings
    assert "…\n" in beginnings


def test_a_query_commands_no_terminal(run: Run, index: ColBERTIndex) -> None:
    shown = run("search", "--queries", "-", "--store", "kept", "-k", 1, stdin="\x1b]0;title\x07 plane").out
    assert shown.splitlines()[0] == "\ufffd]0;title\ufffd plane"


def test_a_hit_without_a_text_is_its_name(run: Run, model: ColBERT, index: ColBERTIndex) -> None:
    bare = MemoryStore()
    bare.upsert(["a"], model.encode_document("a plane"))
    bare.save("bare")
    score = ColBERTIndex(model, bare).search(QUERY)[0].score
    for options in ([], ["--explain"]):
        done = run("search", QUERY, "--store", "bare", "--model", model.settings.model, *options)
        assert (done.code, done.out) == (0, f"  1. {score:6.2f}  a\n")


def test_metadata_command_no_terminal(run: Run, tmp_path: Path) -> None:
    line = json.dumps({"id": "a\x9b", "text": "the plane", "by": "\x9b31m\x1b[0m ü"})
    run("index", "-", "--store", tmp_path / "kept", stdin=line)
    shown = run("search", QUERY, "--store", tmp_path / "kept").out
    assert "ü" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)


def test_several_queries_are_headed(run: Run, index: ColBERTIndex) -> None:
    shown = run("search", "--queries", "-", "--store", "kept", "-k", 1, stdin="plane\nbread").out.splitlines()
    assert (shown[0], shown[4]) == ("plane", "bread")


def test_nothing_found_is_said(run: Run, index: ColBERTIndex) -> None:
    done = run("search", QUERY, "--store", "kept", "--filter", '{"year": 1900}')
    assert (done.code, done.out, done.err) == (0, "", "nothing found\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plane", "--store", "missing"], "no index in missing: it has no manifest.json"),
        (["plane", "--store", "empty"], "empty holds no index, or one that does not say which model it was made with"),
        (
            ["plane", "--store", "missing", "--filter", '{"year": {"$near": 3}}'],
            "unknown operator '$near' for 'year': use one of $eq",
        ),
        (["plane", "--store", "kept", "--search", "codes"], "search='codes' needs codes"),
        (["plane", "--store", "kept", "--search", "first_stage"], "a MemoryStore has no search='first_stage'"),
        (["--store", "kept", "--queries", "missing.txt"], "missing.txt: can't be read: No such file or directory"),
        (["--store", "kept", "--queries", "binary.txt"], "binary.txt:1: is not UTF-8 text: byte 0xff at 0"),
        (["--store", "kept", "--queries", "bad.jsonl"], 'bad.jsonl:1: is not a JSON object with a "text"'),
    ],
)
def test_errors_are_one_line(arguments: list[str], said: str, run: Run, index: ColBERTIndex) -> None:
    MemoryStore().save("empty")
    Path("binary.txt").write_bytes(b"\xff\n")
    Path("bad.jsonl").write_text('{"query": "plane"}\n')
    done = run("search", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"colbert-integrations: {said}")
    assert done.err.count("\n") == 1


def test_damage_is_an_error(run: Run, index: ColBERTIndex, tmp_path: Path) -> None:
    file = next((tmp_path / "kept").glob("*.jsonl"))
    file.write_bytes(file.read_bytes().replace(b"plane", b"plans"))
    done = run("search", QUERY, "--store", "kept")
    assert done.code == 2
    assert "its checksum differs" in done.err


def test_an_index_that_names_no_model_takes_one(run: Run, model: ColBERT, index: ColBERTIndex) -> None:
    anonymous = MemoryStore()
    documents = list(index.store.iter_documents())
    from colbert_integrations import TokenEmbeddings

    anonymous.upsert(
        [document.id for document in documents],
        TokenEmbeddings.from_list([document.embeddings for document in documents]),  # type: ignore[misc]
        [document.text for document in documents],
    )
    anonymous.save("anonymous")
    assert "name the model by --model" in run("search", QUERY, "--store", "anonymous").err
    found = run("search", QUERY, "--store", "anonymous", "--json", "--model", model.settings.model).data["hits"]
    assert [hit["id"] for hit in found] == [hit.id for hit in index.search(QUERY)]
