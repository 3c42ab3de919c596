"""The examples, run as on a fresh machine without a network: what they print, and that nothing complains."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import offline

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs an example in an interpreter of its own, in an empty home, and gives what it printed."""
    home = tmp_path_factory.mktemp("home")
    environment = offline.environment(home)

    def run(name):
        command = [sys.executable, "-W", "error", EXAMPLES / name]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, encoding="utf-8")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture(scope="module")
def demo(run):
    return run("demo.py")


@pytest.fixture(scope="module")
def blocks(demo):
    """The table under each heading of the demo."""
    parts = re.split(r'^"(.+)" in (\w+)$', demo, flags=re.MULTILINE)
    return {
        (question, framework): table
        for question, framework, table in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


@pytest.mark.parametrize("name", ["langchain_rerank.py", "llama_index_rerank.py"])
def test_example_brings_the_answer_from_far_down_to_the_top(run, name):
    printed = run(name).splitlines()
    assert "Default parameter values are evaluated" in printed[1]
    scores = [float(line.split()[0]) for line in printed[1:4]]
    assert 1 >= scores[0] > scores[1] > scores[2] > 0
    assert int(re.fullmatch(r"The answer was at place (\d+), and is at 1 now.", printed[-1])[1]) > 3


@pytest.mark.parametrize("name", ["langchain_retriever.py", "llama_index_retriever.py"])
def test_example_finds_the_answer_among_all_passages(run, name):
    printed = run(name).splitlines()  # the script itself asserts what it shows
    scores = [float(line.split()[0]) for line in printed[1:4]]
    assert 1 >= scores[0] > scores[1] > scores[2] > 0
    assert re.search(r"give the same answer\.$|^Found among \d+ passages\.$", printed[-1])


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


def test_explain_shows_which_words_matched(run):
    printed = run("explain.py")
    assert re.search(r"default +0\.\d\d .*Default", printed)
    assert "Best passage" in printed
    assert re.search(r"first three of \d+ passages", printed)
