"""VLLMScorer: the server's scores, in our order; on the double, and on a real vLLM."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpoints
from colbert_integrations.errors import (
    InputError,
    NonFiniteError,
    RemoteMismatchError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from colbert_integrations.vllm import VLLMScorer
from layouts import LAYOUTS
from vllm_double import Double, Fault
from waiting import until, until_async

QUERY = "how does a plane fly"
DOCUMENTS = [
    "bread and flour",
    "the wings lift a plane into the sky",
    "",
    "a fox, runs!",
    "the wings lift a plane into the sky",
]
# What vLLM leaves out of a model; what is left is what it computes.
BARE = {"query_expansion": False, "skiplist_words": [], "long_documents": "truncate"}


@pytest.fixture
def scorer(served, folder) -> Iterator:
    """Makes scorers on the server of a layout."""
    made = []

    def make(layout: str, *, spelled: bool = True, **options) -> VLLMScorer:
        server = served[LAYOUTS[layout][0]]
        made.append(VLLMScorer(server.url, folder(layout) if spelled else None, api_key=server.key, **options))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


# ------------------------------------------------------------------------------------------------- what the scores are


@pytest.mark.filterwarnings("ignore:1 of 2 documents cut")
@pytest.mark.parametrize("layout", ["pylate", "pylate_prompts"])
def test_scores_are_those_of_the_model_without_expansion_and_skiplist(layout: str, scorer, local) -> None:
    wanted = {entry.index: entry.score for entry in local(layout, **BARE).rank(QUERY, DOCUMENTS)}
    made = scorer(layout)
    assert made.markers == ("[Q] ", "[D] ")
    assert made.score(QUERY, DOCUMENTS) == pytest.approx([wanted[index] for index in range(5)], abs=1e-4)
    assert {entry.index: entry.score for entry in made.rank(QUERY, DOCUMENTS)} == pytest.approx(wanted, abs=1e-4)
    # Cut where the model cuts.
    long = ["the quick red fox " * 40, "bread"]
    wanted = {entry.index: entry.score for entry in local(layout, **BARE).rank(QUERY, long)}
    assert {entry.index: entry.score for entry in made.rank(QUERY, long)} == pytest.approx(wanted, abs=1e-4)


@pytest.mark.filterwarnings("ignore:1 of 1 queries cut")
def test_queries_are_cut_where_the_model_cuts_them(scorer, local) -> None:
    query = " ".join(checkpoints.WORDS[:50])
    wanted = {entry.index: entry.score for entry in local("pylate", **BARE).rank(query, DOCUMENTS)}
    found = {entry.index: entry.score for entry in scorer("pylate").rank(query, DOCUMENTS)}
    assert found == pytest.approx(wanted, abs=1e-4)


def test_markers_that_are_no_tokens_of_their_own_are_left_out(scorer, local) -> None:
    bare = local("stanford", query_marker="", document_marker="", **BARE)
    wanted = {entry.index: entry.score for entry in bare.rank(QUERY, DOCUMENTS)}
    made = scorer("stanford")
    assert made.markers == ("", "")
    assert {entry.index: entry.score for entry in made.rank(QUERY, DOCUMENTS)} == pytest.approx(wanted, abs=1e-4)


def test_they_are_not_the_models(scorer, local) -> None:
    model = local("stanford").rank(QUERY, DOCUMENTS)
    assert {entry.index: entry.score for entry in scorer("stanford").rank(QUERY, DOCUMENTS)} != pytest.approx(
        {entry.index: entry.score for entry in model}, abs=0.1
    )


def test_without_a_checkpoint_texts_go_as_they_are(served, scorer) -> None:
    made = scorer("pylate", spelled=False)
    assert made.markers == ("", "")
    assert made.score(QUERY, DOCUMENTS) != pytest.approx(scorer("pylate").score(QUERY, DOCUMENTS), abs=1e-3)
    with pytest.raises(RemoteRefusedError, match="maximum context length is 512 tokens"):
        made.rank(QUERY, ["fox " * 600])


# ---------------------------------------------------------------------------------------------------- order and number


def test_ranks_by_score_and_equal_texts_as_they_came(served, scorer) -> None:
    made = scorer("stanford")
    ranked = made.rank(QUERY, DOCUMENTS)
    scores = [entry.score for entry in ranked]
    assert scores == sorted(scores, reverse=True)
    twins = [entry for entry in ranked if entry.index in (1, 4)]
    assert [entry.index for entry in twins] == [1, 4]
    assert twins[0].score == twins[1].score
    if isinstance(served["bert"], Double):
        assert served["bert"].asked[0][1]["documents"] == DOCUMENTS[:4]  # each text once
    assert made.rank(QUERY, DOCUMENTS, 2) == ranked[:2]
    assert made.rank(QUERY, DOCUMENTS, top_n=99) == ranked


def test_long_lists_go_in_parts(served, scorer) -> None:
    documents = [" ".join(checkpoints.WORDS[(7 * i + k) % 50] for k in range(1 + i % 12)) for i in range(300)]
    made = scorer("stanford")
    ranked = made.rank(QUERY, documents)
    assert sorted(entry.index for entry in ranked) == [*range(300)]
    if isinstance(served["bert"], Double):
        parts = [len(body["documents"]) for path, body in served["bert"].asked if path == "/score"]
        assert (max(parts), sum(parts)) == (64, len(set(documents)))
    scores = {entry.index: entry.score for entry in ranked}
    for index in (0, 63, 64, 299):
        assert made.score(QUERY, [documents[index]]) == pytest.approx([scores[index]], abs=1e-4)


async def test_async_does_the_same(scorer) -> None:
    made = scorer("stanford")
    ranked, scores = await asyncio.gather(made.arank(QUERY, DOCUMENTS, 3), made.ascore(QUERY, DOCUMENTS))
    assert ranked == made.rank(QUERY, DOCUMENTS, 3)
    assert scores == pytest.approx(made.score(QUERY, DOCUMENTS), abs=1e-6)


# ------------------------------------------------------------------------------------------------------ the double only


@pytest.fixture
def made(double: Double) -> Iterator[VLLMScorer]:
    scorer = VLLMScorer(double.url)
    yield scorer
    scorer.close()


async def test_nothing_to_rank_asks_nobody(double: Double, made: VLLMScorer) -> None:
    assert made.rank(QUERY, []) == await made.arank(QUERY, []) == made.score(QUERY, []) == []
    assert double.asked == []


@pytest.mark.parametrize(
    ("query", "documents", "top_n", "message"),
    [
        (None, ["a"], None, "query must be a string, not NoneType"),
        ("a", "text", None, "documents must be a list of strings, not str"),
        ("a", {"a"}, None, "documents must be a list of strings, not set"),
        ("a", ["a", 3], None, r"documents\[1\] must be a string, not int"),
        ("\ud800", ["a"], None, "query is not valid Unicode: .* where it is read"),
        ("a", ["a", "a \udfff"], None, r"documents\[1\] is not valid Unicode: .* where it is read"),
        ("a", ["a"], 0, "top_n must be a whole number from 1"),
        ("a", ["a"], True, "not True"),
    ],
)
async def test_impossible_arguments_are_refused(query, documents, top_n, message, double, made) -> None:
    with pytest.raises(InputError, match=message):
        made.rank(query, documents, top_n)
    with pytest.raises(InputError, match=message):
        await made.arank(query, documents, top_n)
    assert double.asked == []


@pytest.mark.parametrize("given", ["", 5, b"org/name", ["org/name"]])
def test_a_checkpoint_is_a_name_or_a_path(given) -> None:
    with pytest.raises(InputError, match="checkpoint must be the name or path of a checkpoint, not"):
        VLLMScorer("http://a", given)


def test_failures_are_asked_again_and_refusals_are_not(double: Double, made: VLLMScorer) -> None:
    double.faults += [Fault(503, path="/score"), Fault(hang_up=True, path="/score")]
    assert len(made.rank(QUERY, DOCUMENTS)) == 5
    double.asked.clear()
    double.faults.append(Fault(400, {"error": {"type": "BadRequestError", "message": "no"}}, path="/score"))
    with pytest.raises(RemoteRefusedError, match="/score: 400 BadRequestError: no"):
        made.rank(QUERY, DOCUMENTS)
    assert double.count("/score") == 1
    double.faults += [Fault(500, path="/score")] * 4
    with pytest.raises(RemoteUnavailableError, match="attempt 4 of 4"):
        made.score(QUERY, DOCUMENTS)


def test_a_name_that_is_not_served(double: Double) -> None:
    with pytest.raises(RemoteRefusedError, match="The model `another` does not exist") as caught:
        VLLMScorer(double.url, model="another").rank(QUERY, DOCUMENTS)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({"data": []}, RemoteMismatchError, "gave an answer that is not vLLM's"),
        ({"data": [{"index": 0, "score": "high"}]}, RemoteMismatchError, "an answer that is not vLLM's"),
        ('{"data": [{"index": 0, "score": NaN}]}', NonFiniteError, "document 0 scores nan"),
    ],
)
def test_answers_that_can_not_be(body, error, message, double: Double, made: VLLMScorer) -> None:
    double.faults.append(Fault(200, body, path="/score"))
    with pytest.raises(error, match=message):
        made.rank(QUERY, ["a"])


async def test_a_cancelled_call_calls_its_requests_off(double: Double, made: VLLMScorer) -> None:
    double.faults += [Fault(hold=threading.Event(), path="/score")] * 3
    task = asyncio.create_task(made.arank(QUERY, [f"{i}" for i in range(150)]))
    await until_async(lambda: double.under_way == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_async(lambda: double.under_way == 0)
    assert double.given_up == 3


def test_an_error_calls_the_other_requests_off(double: Double, made: VLLMScorer) -> None:
    hold = threading.Event()
    double.faults += [Fault(hold=hold, path="/score"), Fault(400, {"error": "no"}, path="/score")]
    with pytest.raises(RemoteRefusedError, match="400 no"):
        made.score(QUERY, [f"{i}" for i in range(100)])
    until(lambda: double.under_way == 0)
    assert double.given_up == 1


def test_pickles_and_copies_carry_settings(double: Double, folder) -> None:
    scorer = VLLMScorer(double.url, folder("stanford"), api_key="a-secret", retries=1)
    stored = pickle.dumps(scorer)
    assert b"a-secret" not in stored
    again = pickle.loads(stored)
    assert again.rank(QUERY, DOCUMENTS) == scorer.rank(QUERY, DOCUMENTS)
    assert (again.settings, again.checkpoint) == (scorer.settings, scorer.checkpoint)
    assert copy.copy(scorer) is copy.deepcopy(scorer) is scorer
    assert "a-secret" not in repr(scorer)
    assert "markers=('', '')" in repr(scorer)
    scorer.close()
    again.close()


def test_markers_that_are_special_tokens_are_sent(tmp_path: Path) -> None:
    checkpoints.stanford_xlmr(tmp_path)
    assert VLLMScorer("http://a", tmp_path).markers == ("[QueryMarker]", "[DocumentMarker]")


def test_markers_do_not_survive_a_server_that_lower_cases_texts(tmp_path: Path) -> None:
    checkpoints.pylate(tmp_path, lower=True)
    scorer = VLLMScorer("http://a", tmp_path)
    assert scorer.markers == ("", "")
    assert scorer._document("The Fox") == "the fox"
