"""What a reranker returns, the same in both frameworks, sync and async."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import AliasChoices, Field, ValidationError, model_validator

import checkpoints
from adapters.drivers import QUERY, TEXTS, LangChain, LlamaIndex
from colbert_integrations import ColBERT, ColBERTError, TruncationWarning, maxsim
from colbert_integrations.errors import InputError, NonFiniteError
from colbert_integrations.scoring.reference import reference_maxsim

Driver = LangChain | LlamaIndex

FILLER = "rain " * 100
ANSWER = "paris is the capital of france"


def expected(model: ColBERT, query: str, texts: Sequence[str]) -> list[float]:
    """Sums by the definition, in float64."""
    return reference_maxsim(model.encode_query(query), model.encode_document(texts))[0].tolist()


# ------------------------------------------------------------------------------------------------- how many come back


def test_nothing_gives_nothing_and_loads_no_model(driver: Driver, missing: dict[str, Any]):
    reranker = driver.Reranker(**missing)
    assert driver.rerank(reranker, [], QUERY) == []
    assert asyncio.run(driver.arerank(reranker, [], QUERY)) == []
    with pytest.raises(ColBERTError):  # so that the two above would have failed
        driver.rerank(reranker, driver.items(["a"]), QUERY)


@pytest.mark.parametrize(("top_n", "count"), [(None, 6), (1, 1), (3, 3), (6, 6), (100, 6)])
def test_top_n_limits_what_comes_back(rank: Callable, top_n: int | None, count: int):
    assert [r.id for r in rank(QUERY, TEXTS, top_n=top_n)] == [r.id for r in rank(QUERY, TEXTS)][:count]
    assert len(rank(QUERY, TEXTS, top_n=top_n)) == count


@pytest.mark.parametrize("top_n", [0, -1, 1.5, "many"])
def test_impossible_top_n_is_refused(driver: Driver, top_n: object):
    with pytest.raises(ValidationError, match="top_n"):
        driver.Reranker(top_n=top_n)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"top_k": 3}, r"has no field 'top_k' \(is it top_n\?\)"),
        (
            {"model_name": "x", "score_treshold": 0.5},
            r"'model_name' \(is it model\?\); 'score_treshold' \(is it score_thresh",
        ),
        ({"doc_maxlen": 300}, r"'doc_maxlen' \(is it document_length\?\)"),
        ({"trust_remote_code": True}, r"'trust_remote_code', an .* colbert_options=\{'trust_remote_code': \.\.\.\}"),
        ({"token": "hf_secret"}, "'token': log in to the hub, or pass a ColBERT"),
        ({"nothing": 1}, "has no field 'nothing' "),
    ],
)
def test_an_unknown_field_is_refused_with_the_one_that_it_may_be(driver: Driver, fields: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=f"{driver.Reranker.__name__} .*{said}") as refused:
        driver.Reranker(**fields)
    assert "hf_secret" not in str(refused.value)


def test_a_subclass_may_take_other_fields(driver: Driver):
    class Open(driver.Reranker, extra="allow"):
        more: int = 0

    assert (Open(more=1).more, Open(top_k=3).top_k) == (1, 3)


def test_a_subclass_may_take_other_names(driver: Driver):
    class Renamed(driver.Reranker):
        more: int = Field(default=0, validation_alias=AliasChoices("more", "plus"))

        @model_validator(mode="before")
        @classmethod
        def _rename(cls, data: Any) -> Any:
            return {"top_n" if name == "top_k" else name: value for name, value in data.items()}

    made = Renamed(top_k=3, plus=2)
    assert (made.top_n, made.more) == (3, 2)


def test_a_field_whose_name_is_no_string_is_a_validation_error(driver: Driver):
    with pytest.raises(ValidationError):
        driver.Reranker.model_validate({1: 2})


def test_duplicates_all_come_back(driver: Driver, stanford: dict[str, Any]):
    reranker = driver.Reranker(**stanford, top_n=None)
    first, second = driver.items(["lions", "bread"])
    output = driver.read(driver.rerank(reranker, [first, second, first, first], QUERY))
    assert sorted(ranked.id for ranked in output) == ["id-0", "id-0", "id-0", "id-1"]


# ------------------------------------------------------------------------------------------------------ scores, order


def test_scores_are_maxsim_by_its_definition(rank: Callable, tiny: ColBERT):
    scores = {r.id: r.score for r in rank(QUERY, TEXTS, normalize_scores=False)}
    # Ten roundings of float32 for each of 16 query vectors.
    assert [scores[f"id-{i}"] for i in range(len(TEXTS))] == pytest.approx(expected(tiny, QUERY, TEXTS), abs=1e-5)


def test_normalised_scores_are_means_over_the_query_vectors(rank: Callable, tiny: ColBERT):
    means = [score / tiny.encode_query(QUERY).lengths[0] for score in expected(tiny, QUERY, TEXTS)]
    scores = {r.id: r.score for r in rank(QUERY, TEXTS)}
    assert [scores[f"id-{i}"] for i in range(len(TEXTS))] == pytest.approx(means, abs=1e-5)
    assert all(0 <= score <= 1 for score in scores.values())


def test_best_comes_first_and_equal_ones_in_the_order_given(rank: Callable, tiny: ColBERT):
    output = rank(QUERY, TEXTS)
    sums = expected(tiny, QUERY, TEXTS)
    order = sorted(range(len(TEXTS)), key=lambda i: (-round(sums[i], 4), i))
    assert order != sorted(order)  # the input was not in order already
    assert [r.id for r in output] == [f"id-{i}" for i in order]
    assert [r.text for r in output] == [TEXTS[i] for i in order]


def test_many_equal_ones_keep_the_order_given(rank: Callable):
    assert [r.id for r in rank(QUERY, ["lions"] * 40)] == [f"id-{i}" for i in range(40)]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
def test_a_score_does_not_depend_on_the_other_documents(rank: Callable, batch_size: int | None):
    texts = list(dict.fromkeys([*TEXTS, *checkpoints.SENTENCES]))
    alone = {text: rank(QUERY, [text])[0].score for text in texts}
    for order in (texts, texts[::-1], texts[3:] + texts[:3]):
        assert {r.text: r.score for r in rank(QUERY, order, batch_size=batch_size)} == pytest.approx(alone, abs=1e-5)


def test_self_match_is_one_and_rounding_does_not_carry_it_beyond(
    driver: Driver, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    # Neither markers nor expansion: query and document have the same vectors.
    reranker = driver.Reranker(model=str(checkpoint("bge")), device="cpu", top_n=None)
    for text in [*TEXTS, "a"]:
        [itself] = driver.read(driver.rerank(reranker, driver.items([text]), text))
        assert 1 - 1e-5 < itself.score <= 1
    monkeypatch.setattr("colbert_integrations.model.maxsim", lambda q, d: maxsim(q, d) * 1.001)
    [itself] = driver.read(driver.rerank(reranker, driver.items([QUERY]), QUERY))
    assert itself.score == 1


def test_opposite_vectors_score_zero_normalised_and_their_sum_raw(driver: Driver, checkpoint: Callable[[str], Path]):
    def opposite(sequences):  # id 2 is the document marker
        return torch.cat([torch.full((len(s.ids), checkpoints.DIM), -1.0 if 2 in s.ids else 1.0) for s in sequences])

    model = ColBERT(checkpoint("stanford"), device="cpu", forward=opposite)
    for fields, score in (({}, 0.0), ({"normalize_scores": False}, -16.0)):
        reranker = driver.Reranker(model=model, **fields)
        [only] = driver.read(driver.rerank(reranker, driver.items(["lions"]), QUERY))
        assert only.score == pytest.approx(score, abs=1e-5)


def test_a_score_is_a_plain_float(rank: Callable):
    for ranked in rank(QUERY, TEXTS):
        assert type(ranked.score) is float
        assert json.loads(json.dumps(ranked.score)) == ranked.score


# ---------------------------------------------------------------------------------------------------------- threshold


@pytest.mark.parametrize("normalize_scores", [True, False])
def test_threshold_keeps_what_reaches_it_on_the_scale_of_the_scores(rank: Callable, normalize_scores: bool):
    every = rank(QUERY, TEXTS, normalize_scores=normalize_scores)
    third = every[2].score
    assert every[3].score < third < every[1].score
    kept = rank(QUERY, TEXTS, normalize_scores=normalize_scores, score_threshold=third)
    assert [r.id for r in kept] == [r.id for r in every[:3]]
    above = math.nextafter(every[0].score, math.inf)
    assert rank(QUERY, TEXTS, normalize_scores=normalize_scores, score_threshold=above) == []


# ------------------------------------------------------------------------------------------------- inputs and outputs


@pytest.mark.parametrize("extra", [{}, {"keep_retrieval_score": True}])
def test_inputs_stay_as_they_are(driver: Driver, stanford: dict[str, Any], extra: dict[str, Any]):
    if extra and isinstance(driver, LangChain):
        extra = {"score_key": "source"}
    metadata = {"source": "a", "nested": {"list": [1]}, "relevance_score": "mine"}
    items = driver.items(TEXTS, metadata)
    before, given = copy.deepcopy(items), list(items)
    reranker = driver.Reranker(**stanford, **extra)
    driver.rerank(reranker, items, QUERY)
    asyncio.run(driver.arerank(reranker, items, QUERY))
    assert all(now is then for now, then in zip(items, given, strict=True))
    assert [item.model_dump() for item in items] == [item.model_dump() for item in before]
    assert metadata == {"source": "a", "nested": {"list": [1]}, "relevance_score": "mine"}


@pytest.mark.parametrize("extra", ["explain", "keep_retrieval_score"])
def test_copies_have_metadata_of_their_own(driver: Driver, stanford: dict[str, Any], extra: str):
    if isinstance(driver, LangChain) and extra != "explain":
        pytest.skip("an option of the other framework")
    lock = threading.Lock()  # as an open file or a connection: it can't be copied
    metadata = {"nested": {"list": [1]}, "lock": lock, "about": {"lock": lock}}
    items = driver.items(TEXTS, metadata)
    for output in driver.read(driver.rerank(driver.Reranker(**stanford, **{extra: True}), items, QUERY)):
        assert output.metadata["lock"] is output.metadata["about"]["lock"] is lock
        output.metadata["nested"]["list"].append(2)
        output.metadata["about"]["more"] = 3
    assert metadata == {"nested": {"list": [1]}, "lock": lock, "about": {"lock": lock}}


def test_scoring_one_output_leaves_the_others_that_shared_its_metadata(driver: Driver, stanford: dict[str, Any]):
    items = driver.items(["lions", "paris"], {"source": "a"})
    output = driver.read(driver.rerank(driver.Reranker(**stanford), items, QUERY))
    assert output[0].score != output[1].score


def test_id_class_and_metadata_survive(driver: Driver, stanford: dict[str, Any]):
    items = driver.items(TEXTS, {"source": "a", "pages": [1, 2]})
    for ranked in driver.read(driver.rerank(driver.Reranker(**stanford), items, QUERY)):
        assert type(ranked.item) is driver.Item
        assert ranked.metadata == {"source": "a", "pages": [1, 2]}
        assert ranked.id == f"id-{ranked.item.number}"
        assert ranked.text == TEXTS[ranked.item.number]


# --------------------------------------------------------------------------------------------------- any text at all

WEIRD = ["", " ", "\n\t  \n", "?!.,;", "🙂🦁", "日本語", "\x00\x07", "a", "paris " * 10_000]


@pytest.mark.parametrize("layout", ["stanford", "plain", "pylate"])
@pytest.mark.filterwarnings("ignore::colbert_integrations.TruncationWarning")  # of the 10,000 words as a query
def test_any_text_gets_a_finite_score(driver: Driver, checkpoint: Callable[[str], Path], layout: str):
    options = {"allow_unprojected": True} if layout == "plain" else {}
    reranker = driver.Reranker(model=str(checkpoint(layout)), device="cpu", top_n=None, colbert_options=options)
    for query in [*WEIRD, QUERY]:
        documents = ["lions"] if len(query) > 100 else WEIRD[:-1]
        output = driver.read(driver.rerank(reranker, driver.items(documents), query))
        assert len(output) == len(documents)
        assert all(0 <= ranked.score <= 1 for ranked in output)
    [long] = driver.read(driver.rerank(reranker, driver.items(WEIRD[-1:]), QUERY))
    assert 0 <= long.score <= 1


def test_white_space_around_a_query_does_not_count(rank: Callable, checkpoint: Callable[[str], Path]):
    # A layout whose tokenizer counts it.
    model = str(checkpoint("native"))
    plain = [(r.id, r.score) for r in rank("paris", TEXTS, model=model)]
    assert [(r.id, r.score) for r in rank("\n paris\n\n", TEXTS, model=model)] == plain


def test_long_query_is_cut_with_a_warning(rank: Callable):
    with pytest.warns(TruncationWarning, match="1 of 1 queries cut at query_length=16") as caught:
        output = rank("capital " * 40, TEXTS)
    assert len(caught) == 1
    assert len(output) == len(TEXTS)


def test_windows_find_an_answer_in_the_tail_that_truncation_misses(rank: Callable):
    texts = [FILLER, FILLER + ANSWER]
    windowed = rank(ANSWER, texts)
    assert [r.id for r in windowed] == ["id-1", "id-0"]
    assert windowed[0].score > windowed[1].score + 0.01
    with pytest.warns(TruncationWarning):
        truncated = rank(ANSWER, texts, long_documents="truncate")
    assert [r.id for r in truncated] == ["id-0", "id-1"]
    assert truncated[0].score == pytest.approx(truncated[1].score, abs=1e-6)
    windows = {r.id: r.score for r in windowed}
    assert all(windows[r.id] >= r.score - 1e-6 for r in truncated)


def test_truncation_warns_once_with_the_number_of_documents(rank: Callable):
    with pytest.warns(TruncationWarning, match="2 of 3 documents cut at document_length=40") as caught:
        rank(QUERY, [FILLER, "lions", FILLER + ANSWER], long_documents="truncate")
    assert len(caught) == 1


def test_windows_cut_nothing_so_nothing_is_said(rank: Callable):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rank(QUERY, [FILLER, "lions"])
    assert [warning.message for warning in caught if warning.category is TruncationWarning] == []


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("normalize_scores", [True, False])
def test_vectors_that_are_not_numbers_are_an_error(
    driver: Driver, checkpoint: Callable[[str], Path], value: float, normalize_scores: bool
):
    def poisoned(sequences):  # the document of four words
        bad = [sum(origin is not None for origin in s.origins) == 4 for s in sequences]
        return torch.cat(
            [
                torch.full((len(s.ids), checkpoints.DIM), value if b else 1.0)
                for s, b in zip(sequences, bad, strict=True)
            ]
        )

    model = ColBERT(checkpoint("stanford"), device="cpu", forward=poisoned)
    reranker = driver.Reranker(model=model, normalize_scores=normalize_scores)
    items = driver.items(["lions", "quick red fox jumps", "bread"])
    with pytest.raises(NonFiniteError, match="document 1"):
        driver.rerank(reranker, items, "capital of france")
    with pytest.raises(NonFiniteError, match="document 1"):
        asyncio.run(driver.arerank(reranker, items, "capital of france"))
    assert len(driver.rerank(reranker, items[:1], "capital of france")) == 1


@pytest.mark.parametrize("query", [None, 3, b"bytes", ["a", "list"]])
def test_a_query_that_is_no_text_is_refused_before_any_work(driver: Driver, missing: dict[str, Any], query: object):
    reranker = driver.Reranker(**missing)
    with pytest.raises(InputError, match="query"):
        driver.rerank(reranker, driver.items(TEXTS), query)
    with pytest.raises(InputError, match="query"):
        asyncio.run(driver.arerank(reranker, driver.items(TEXTS), query))


@pytest.mark.parametrize("item", [None, 3, "text", {"text": "a"}])
def test_an_item_of_another_type_is_refused_before_any_work(driver: Driver, missing: dict[str, Any], item: object):
    reranker = driver.Reranker(**missing)
    items = [*driver.items(["a"]), item]
    with pytest.raises(InputError, match=r"\[1\]"):
        driver.rerank(reranker, items, QUERY)
    with pytest.raises(InputError, match=r"\[1\]"):
        asyncio.run(driver.arerank(reranker, items, QUERY))


@pytest.mark.parametrize("items", [None, 3, "one text", iter([])])
def test_items_that_are_no_list_are_refused(driver: Driver, missing: dict[str, Any], items: object):
    reranker = driver.Reranker(**missing)
    with pytest.raises(InputError, match="must be a list"):
        driver.rerank(reranker, items, QUERY)
    with pytest.raises(InputError, match="must be a list"):
        asyncio.run(driver.arerank(reranker, items, QUERY))
