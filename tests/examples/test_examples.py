"""The examples, run as on a fresh machine without a network: what they print, and that nothing complains."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import offline
from colbert_integrations import MemoryStore

EXAMPLES = Path(__file__).parents[2] / "examples"


NAMES = ["demo", "explain", "langchain_rerank", "langchain_retriever", "llama_index_rerank", "llama_index_retriever"]

# One interpreter for all of them: importing torch and the frameworks for each took half of the time.
_PRINT_ALL = """
import contextlib, io, json, runpy, sys
folder, *names = sys.argv[1:]
sys.path.insert(0, folder)  # as Python does for a script
printed = {}
for name in names:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        runpy.run_path(f"{folder}/{name}.py", run_name="__main__")
    printed[name] = shown.getvalue()
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What each example prints, in an empty home."""
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-W", "error", "-c", _PRINT_ALL, str(EXAMPLES), *NAMES]
    environment = offline.environment(home)
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def demo(printed):
    return printed["demo"]


@pytest.fixture(scope="module")
def blocks(demo):
    """The table under each heading of the demo."""
    parts = re.split(r'^"(.+)" in (\w+)$', demo, flags=re.MULTILINE)
    return {
        (question, framework): table
        for question, framework, table in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


@pytest.mark.parametrize("name", ["langchain_rerank", "llama_index_rerank"])
def test_example_brings_the_answer_from_far_down_to_the_top(printed, name):
    lines = printed[name].splitlines()
    assert "Default parameter values are evaluated" in lines[1]
    scores = [float(line.split()[0]) for line in lines[1:4]]
    assert 1 >= scores[0] > scores[1] > scores[2] > 0
    assert int(re.fullmatch(r"The answer was at place (\d+), and is at 1 now.", lines[-1])[1]) > 3


@pytest.mark.parametrize("name", ["langchain_retriever", "llama_index_retriever"])
def test_example_finds_the_answer_among_all_passages(printed, name):
    lines = printed[name].splitlines()  # the script itself asserts what it shows
    scores = [float(line.split()[0]) for line in lines[1:4]]
    assert 1 >= scores[0] > scores[1] > scores[2] > 0
    assert re.search(r"give the same answer\.$|^Found among \d+ passages\.$", lines[-1])


def test_demo_searches_everything_with_colbert_alone(blocks):
    for table in blocks.values():
        assert len(re.findall(r"[:;]\s+0\.\d\d\s", table.partition("ColBERT over everything")[2])) == 3


def test_demo_asks_both_frameworks_the_same(blocks):
    asked = {framework: {question for question, other in blocks if other == framework} for _, framework in blocks}
    assert set(asked) == {"LangChain", "LlamaIndex"}
    assert asked["LangChain"] == asked["LlamaIndex"]
    assert len(asked["LangChain"]) >= 3
    assert all(blocks[question, "LangChain"].strip() for question in asked["LangChain"])


def test_demo_gets_the_same_rankings_from_both_frameworks(blocks):
    for question, _ in blocks:
        assert blocks[question, "LangChain"].rstrip() == blocks[question, "LlamaIndex"].rstrip()


def test_demo_fits_into_a_terminal_of_100_columns(demo):
    assert max(map(len, demo.splitlines())) <= 100


def test_demo_shows_both_rankings_side_by_side_with_scores(blocks):
    for table in blocks.values():
        assert re.match(r"\s+BM25\s+ColBERT on BM25's \d+\n", table)
        hits = re.findall(r"^  (\d)\. (\d+\.\d\d) .+  \1\. (\d\.\d\d) .+$", table, flags=re.MULTILINE)
        assert [place for place, *_ in hits] == ["1", "2", "3"]
        for scores in zip(*[map(float, scores) for _, *scores in hits], strict=True):
            assert list(scores) == sorted(scores, reverse=True)


def test_demo_brings_something_up_that_bm25_did_not_show(blocks):
    for table in blocks.values():
        assert any(int(was) > 3 for was in re.findall(r"\(was (\d+)\)", table))


def test_demo_shows_the_words_that_matched(blocks):
    for (question, _), table in blocks.items():
        notes = re.findall(r"(\w+)~\S+,?\s+(\d\.\d\d)", table)
        assert len(notes) >= 3
        assert {word for word, _ in notes} <= set(question.split())
        assert all(0 < float(similarity) <= 1 for _, similarity in notes)


def test_demo_answers_each_question(blocks):
    answers = {
        "why does my default argument keep its value between calls": "Default parameter values",
        "how do I make an object usable in a with statement": "With Statement Context Managers",
        "remove spaces around text": "str.strip(",
    }
    for (question, _), table in blocks.items():
        assert answers[question] in table


def test_explain_shows_which_words_matched(printed):
    assert re.search(r"default +0\.\d\d .*Default", printed["explain"])
    assert "Best passage" in printed["explain"]
    assert re.search(r"first three of \d+ passages", printed["explain"])


def test_a_line_that_the_ray_recipe_cannot_read_takes_no_other_with_it(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))  # which is not needed before the cluster is
    indexer = object.__new__(runpy.run_path(str(EXAMPLES / "ray_data.py"))["Indexer"])
    indexer.model, indexer.store = tiny, MemoryStore()
    rows = [{"id": "a", "text": "lions"}, {"id": "b", "text": "a fox"}, {"id": "b", "text": "a dog"}, {"text": None}]
    done = indexer({"text": [*map(json.dumps, rows[:2]), '{"text": "cut off', *map(json.dumps, rows[2:])]})
    assert [done[name] for name in ("encoded", "unchanged", "replaced", "failed")] == [[2], [0], [1], [2]]
    assert done["why"][0].splitlines()[0].startswith('{"text": "cut off: no JSON (Unterminated string')
    assert [(document.id, document.text) for document in indexer.store.get(["a", "b"])] == [
        ("a", "lions"),
        ("b", "a dog"),
    ]
