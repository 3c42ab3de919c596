"""What a call did and how long its parts took: right by hand, apart for each request, and nothing where nobody asks."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoints
from colbert_integrations import CallStats, ColBERT, ColBERTIndex, MemoryStore, TruncationWarning, observed, observing
from colbert_integrations import model as model_module
from colbert_integrations.encoder import encoder as encoder_module
from colbert_integrations.encoder import load as load_module
from colbert_integrations.encoder.tokens import Tokenizer, TokenSequence

PATIENCE_S = 30
# Of the tiny checkpoint: a query is filled up to this, a document has three tokens beside its words.
QUERY, MARKS = 16, 3
DOCUMENTS = ["a red fox", "lions", "the sea", "lions"]


class Clock:
    """Shows the time it is told."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def east(sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """A forward pass that gives every token the same vector."""
    return torch.eye(checkpoints.DIM)[0].repeat(sum(len(sequence.ids) for sequence in sequences), 1)


def refuse(*given: Any, **named: Any) -> Any:
    raise AssertionError("nobody asked")


def failing(sequences: Sequence[TokenSequence]) -> torch.Tensor:
    raise RuntimeError("no device")


@pytest.fixture
def model(checkpoint: Callable[[str], Path]) -> ColBERT:
    return ColBERT(checkpoint("stanford"), device="cpu", forward=east)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time passes while texts are tokenised (1 s a call) and scored (100 s), and when a test says so."""
    clock, tokens, maxsim = Clock(), Tokenizer.tokens, model_module.maxsim

    def slow_tokens(*given: Any, **named: Any) -> Any:
        clock.now += 1
        return tokens(*given, **named)

    def slow_maxsim(*given: Any) -> torch.Tensor:
        clock.now += 100
        return maxsim(*given)

    for module in (observing, encoder_module, model_module):
        monkeypatch.setattr(module, "perf_counter", clock)
    monkeypatch.setattr(Tokenizer, "tokens", slow_tokens)
    monkeypatch.setattr(model_module, "maxsim", slow_maxsim)
    return clock


def slowly(clock: Clock) -> Callable[[Sequence[TokenSequence]], torch.Tensor]:
    def forward(sequences: Sequence[TokenSequence]) -> torch.Tensor:
        clock.now += 10
        return east(sequences)

    return forward


def counts(stats: CallStats) -> dict[str, int]:
    """What is not 0, but for seconds."""
    shown = {item.name: getattr(stats, item.name) for item in fields(stats) if not item.name.endswith("_s")}
    return {name: value for name, value in shown.items() if value}


def seconds(stats: CallStats) -> tuple[float, ...]:
    return stats.load_s, stats.tokenize_s, stats.encode_s, stats.score_s


# ------------------------------------------------------------------------------------------------------------- seconds


def test_each_part_of_a_rank_has_its_own_seconds(clock: Clock, checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=slowly(clock), batch_size=2)
    with observed() as first:
        model.rank("paris", DOCUMENTS)
    # The query and the documents are tokenised apart; four sequences are two batches.
    assert seconds(first.stats) == (0, 2, 20, 100)


def test_loading_is_counted_for_the_call_that_waited(
    clock: Clock, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ColBERT._load

    def slow_load(self: ColBERT) -> Any:
        clock.now += 1000
        return load(self)

    monkeypatch.setattr(ColBERT, "_load", slow_load)
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=slowly(clock))
    model.close()
    with observed() as first:
        model.rank("paris", DOCUMENTS)
    with observed() as second:
        model.rank("paris", DOCUMENTS)
    assert seconds(first.stats) == (1000, 2, 10, 100)
    assert seconds(second.stats) == (0, 2, 10, 100)


class Elsewhere:
    """Servers that leave each sequence to the weights here."""

    batch_tokens, concurrency = 2048, 1

    def connect(self, *given: Any) -> Elsewhere:
        return self

    def takes(self, sequence: TokenSequence) -> bool:
        return False

    def close(self) -> None:
        """Nothing is open."""


def test_loading_weights_beside_servers_is_counted_as_loading_too(
    clock: Clock, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = load_module.load_backbone

    def slow_load(*given: Any) -> Any:
        clock.now += 1000
        return load(*given)

    monkeypatch.setattr(load_module, "load_backbone", slow_load)
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=Elsewhere())
    with observed() as first:
        model.rank("paris", DOCUMENTS)
    with observed() as second:
        model.rank("paris", DOCUMENTS)
    assert seconds(first.stats) == (1000, 2, 1000, 100)
    assert seconds(second.stats) == (0, 2, 0, 100)


def test_tokenising_ahead_in_another_thread_is_counted(
    clock: Clock, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "_TEXTS_AT_ONCE", 2)
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=east)
    with observed() as observation:
        model.encode_document(["a", "cat", "dog", "fox", "sea"])
    assert observation.stats.tokenize_s >= 3  # a second each, and what passed meanwhile in the other thread
    assert counts(observation.stats) == {"documents_encoded": 5, "tokens_encoded": 5 + 5 * MARKS, "batches": 3}


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_a_search_is_timed_at_the_store(clock: Clock, model: ColBERT, how: str) -> None:
    class Slow(MemoryStore):
        def search(self, *given: Any, **named: Any) -> Any:
            clock.now += 7
            return super().search(*given, **named)

    index = ColBERTIndex(model, Slow("float32"))
    index.add(DOCUMENTS)
    with observed() as observation:
        hits = index.search("paris", k=2) if how == "sync" else await index.asearch("paris", k=2)
    assert len(hits) == 2
    assert seconds(observation.stats) == (0, 1, 0, 7)
    assert counts(observation.stats) == {"queries_encoded": 1, "tokens_encoded": QUERY, "batches": 1}


# -------------------------------------------------------------------------------------------------------------- counts


def test_a_rank_counts_what_went_through_the_model(model: ColBERT) -> None:
    with observed() as observation:
        model.rank("paris", DOCUMENTS)
    assert counts(observation.stats) == {
        "queries_encoded": 1,
        "documents_encoded": 3,
        "tokens_encoded": QUERY + (3 + 1 + 2) + 3 * MARKS,
        "batches": 1,
        "documents_ranked": 4,
    }


def test_an_observation_shows_its_figures(model: ColBERT) -> None:
    with observed() as observation:
        assert repr(observation) == "Observation(nothing to do)"
        model.rank("a", DOCUMENTS)
    assert repr(observation) == f"Observation({observation.stats})"
    assert "documents_ranked=4" in repr(observation)


def test_vectors_that_are_there_are_counted_by_where_they_were(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=east, cache_bytes=1 << 20)
    known = {"the sea": model.encode_document("the sea")[0], "never asked for": torch.ones(1, checkpoints.DIM)}
    model.rank("paris", ["lions"])
    with observed() as observation:
        model.rank("paris", DOCUMENTS, known=known)
    assert counts(observation.stats) == {
        "queries_encoded": 1,
        "documents_encoded": 1,
        "tokens_encoded": QUERY + 3 + MARKS,
        "batches": 1,
        "documents_ranked": 4,
        "documents_cached": 1,
        "documents_known": 1,
    }


def test_what_an_index_holds_is_known(model: ColBERT) -> None:
    index = ColBERTIndex(model, MemoryStore("float32"))
    index.add(["lions", "the sea"], ids=["l", "s"])
    with observed() as observation:
        index.rank("paris", DOCUMENTS, [None, "l", "s", "l"])
    stats = observation.stats
    assert (stats.documents_ranked, stats.documents_known, stats.documents_encoded) == (4, 2, 1)


def test_windows_and_cuts_are_counted(checkpoint: Callable[[str], Path]) -> None:
    # 40 tokens less 3 hold 37 words; windows of 80 begin at 0, 19, 38 and 43.
    long, options = "sea " * 80, {"device": "cpu", "forward": east}
    model = ColBERT(checkpoint("stanford"), **options)
    with observed() as observation:
        model.encode_document([long, "lions"])
    assert counts(observation.stats) == {
        "documents_encoded": 2,
        "tokens_encoded": 4 * 40 + 1 + MARKS,
        "batches": 1,
        "windows": 4,
    }
    model = ColBERT(checkpoint("stanford"), long_documents="truncate", **options)
    with observed() as observation, pytest.warns(TruncationWarning):
        model.rank("fox " * 30, [long, "lions", long + "a"])
    assert counts(observation.stats) == {
        "queries_encoded": 1,
        "documents_encoded": 3,
        "tokens_encoded": QUERY + 2 * 40 + 1 + MARKS,
        "batches": 1,
        "queries_cut": 1,
        "documents_cut": 2,
        "documents_ranked": 3,
    }


@pytest.mark.filterwarnings("error")
def test_cuts_are_counted_also_where_the_warning_is_an_error(model: ColBERT) -> None:
    with observed() as observation, pytest.raises(TruncationWarning):
        model.encode_query("fox " * 30)
    assert observation.stats.queries_cut == 1


def test_nothing_is_nothing(model: ColBERT) -> None:
    with observed() as observation:
        assert model.rank("paris", []) == []
        model.encode_document([])
    assert counts(observation.stats) == {}
    assert CallStats().as_metadata().keys() == {f"colbert.{item.name}" for item in fields(CallStats)}
    assert str(CallStats()) == "nothing to do"
    assert str(CallStats(encode_s=0.5, tokens_encoded=12_345_678)) == "encode_s=0.5 tokens_encoded=12345678"


# ---------------------------------------------------------------------------------------------------------- who sees it


def test_an_observation_within_another_counts_in_both(model: ColBERT) -> None:
    with observed() as outer:
        model.encode_query("paris")
        with observed() as inner:
            model.encode_query(["paris", "rome"])
    assert (outer.stats.queries_encoded, inner.stats.queries_encoded) == (3, 2)
    model.encode_query("paris")
    assert (outer.stats.queries_encoded, inner.stats.queries_encoded) == (3, 2)


class Gate:
    """A forward pass that holds its first batch until told."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def __call__(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        self.batches.append(len(sequences))
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        return east(sequences)


def observed_encode(model: ColBERT, texts: list[str]) -> CallStats:
    with observed() as observation:
        model.encode_document(texts)
    return observation.stats


def test_requests_that_share_a_batch_keep_their_figures_apart(checkpoint: Callable[[str], Path]) -> None:
    gate = Gate()
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=gate)
    merger = model._ready()._merge
    requests = [["a"], ["a red fox", "the sea"], ["lions"] * 3]
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(observed_encode, model, requests[0])]
        assert gate.entered.wait(PATIENCE_S)
        futures += [pool.submit(observed_encode, model, texts) for texts in requests[1:]]
        deadline = time.monotonic() + PATIENCE_S
        while len(merger._waiting) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        gate.open.set()
        found = [counts(future.result(PATIENCE_S)) for future in futures]
    assert gate.batches == [1, 5]
    assert found == [
        {"documents_encoded": len(texts), "tokens_encoded": words + MARKS * len(texts), "batches": 1}
        for texts, words in zip(requests, (1, 5, 3), strict=True)
    ]


async def test_async_requests_keep_their_figures_apart(model: ColBERT) -> None:
    async def ranked(number: int) -> CallStats:
        with observed() as observation:
            await model.arank("paris", ["a"] + [checkpoints.WORDS[place] for place in range(1, number)])
        return observation.stats

    with observed() as all_of_them:
        each = await asyncio.gather(*(ranked(number) for number in range(1, 20)))
    assert [stats.documents_ranked for stats in each] == list(range(1, 20))
    assert [stats.tokens_encoded for stats in each] == [QUERY + n * (1 + MARKS) for n in range(1, 20)]
    assert all_of_them.stats.documents_ranked == sum(range(1, 20))


async def test_other_threads_count_where_they_were_given_the_context(model: ColBERT) -> None:
    with observed() as observation:
        await asyncio.to_thread(model.encode_query, "paris")
        plain = threading.Thread(target=model.encode_query, args=("paris",))
        plain.start()
        plain.join()
    assert observation.stats.queries_encoded == 1


def test_an_error_ends_the_observation_and_leaves_what_was_done(
    clock: Clock, checkpoint: Callable[[str], Path]
) -> None:
    def broken(sequences: Sequence[TokenSequence]) -> torch.Tensor:
        clock.now += 10
        raise RuntimeError("no device")

    model = ColBERT(checkpoint("stanford"), device="cpu", forward=broken)
    with pytest.raises(RuntimeError, match="no device"), observed() as observation:
        model.rank("paris", DOCUMENTS)
    assert seconds(observation.stats) == (0, 2, 10, 0)
    assert counts(observation.stats) == {"documents_ranked": 4}
    assert observing._CURRENT.get() is None


def test_an_error_leaves_what_was_encoded_before_it(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(sequences: Sequence[TokenSequence]) -> torch.Tensor:
        if any(len(sequence.ids) == 1 + MARKS for sequence in sequences):
            raise RuntimeError("no device")
        return east(sequences)

    monkeypatch.setattr(encoder_module, "_TEXTS_AT_ONCE", 2)
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=broken, long_documents="truncate")
    with pytest.raises(RuntimeError, match="no device"), observed() as observation:
        model.rank("paris", ["sea " * 80, "the red fox", "the red sea", "the sea", "lions"])
    assert counts(observation.stats) == {
        "queries_encoded": 1,
        "documents_encoded": 4,
        "documents_cut": 1,
        "tokens_encoded": QUERY + 40 + 3 + 3 + 2 + 3 * MARKS,
        "batches": 2,
        "documents_ranked": 5,
    }


async def test_cancelling_ends_the_observation(checkpoint: Callable[[str], Path]) -> None:
    gate = Gate()
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=gate)

    async def ranked() -> None:
        with observed():
            await model.arank("paris", DOCUMENTS)

    task = asyncio.create_task(ranked())
    assert await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open.set()
    assert observing._CURRENT.get() is None
    assert observed_encode(model, ["a"]).documents_encoded == 1


def test_nothing_is_added_up_where_nobody_asks(model: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing.Observation, "__init__", refuse)
    index = ColBERTIndex(model, MemoryStore("float32"))
    index.add(DOCUMENTS)
    assert index.search("paris")
    assert model.rank("paris", DOCUMENTS)


def test_settings_pickle_and_figures_too_while_observed(tiny: ColBERT) -> None:
    written = pickle.dumps(tiny)
    with observed() as observation:
        tiny.rank("paris", DOCUMENTS)
        assert pickle.dumps(tiny) == written
    assert pickle.loads(pickle.dumps(observation.stats)) == observation.stats


# ----------------------------------------------------------------------------------------------------------------- logs


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="colbert_integrations")
    return caplog


def attributes(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name.startswith("colbert.")}


def test_loading_is_logged_once(log: pytest.LogCaptureFixture, clock: Clock, checkpoint: Callable[[str], Path]) -> None:
    name = str(checkpoint("stanford"))
    model = ColBERT(name, device="cpu", dtype="float32", token="hf_secret")
    model.spec.dim  # noqa: B018
    [record] = log.records
    assert (record.name, record.levelname) == ("colbert_integrations.model", "INFO")
    assert record.getMessage() == f"loaded {name} in 0 s: layout=stanford device=cpu dtype=float32"
    assert attributes(record) == {
        "colbert.call": "load",
        "colbert.total_s": 0,
        "colbert.layout": "stanford",
        "colbert.model": name,
        "colbert.device": "cpu",
        "colbert.dtype": "float32",
    }
    assert "hf_secret" not in str(vars(record))


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_each_call_is_logged_with_its_figures(
    log: pytest.LogCaptureFixture, clock: Clock, checkpoint: Callable[[str], Path], how: str
) -> None:
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=slowly(clock))
    index = ColBERTIndex(model, MemoryStore("float32"))
    log.clear()
    if how == "sync":
        index.add(["lions"])
        index.search("paris")
        model.rank("paris", DOCUMENTS)
    else:
        await index.aadd(["lions"])
        await index.asearch("paris")
        await model.arank("paris", DOCUMENTS)
    assert [(record.name.rpartition(".")[2], attributes(record)["colbert.call"]) for record in log.records] == [
        ("model", "encode"),
        ("model", "encode"),
        ("colbert_index", "search"),
        ("model", "rank"),
    ]
    assert {record.levelname for record in log.records} == {"DEBUG"}
    assert log.records[-1].getMessage() == (
        "rank took 112 s: tokenize_s=2 encode_s=10 score_s=100 queries_encoded=1 documents_encoded=3 tokens_encoded=31 "
        "batches=1 documents_ranked=4"
    )
    stats = CallStats(0, 2, 10, 100, 1, 3, 31, 1, documents_ranked=4)
    about = {"colbert.model": str(checkpoint("stanford")), "colbert.device": "cpu", "colbert.dtype": "float32"}
    assert attributes(log.records[-1]) == {
        "colbert.call": "rank",
        "colbert.total_s": 112,
        **about,
        **stats.as_metadata(),
    }


def test_a_logged_call_still_counts_for_who_observes(log: pytest.LogCaptureFixture, model: ColBERT) -> None:
    with observed() as observation:
        model.rank("paris", DOCUMENTS)
    assert observation.stats.documents_ranked == 4
    assert attributes(log.records[-1])["colbert.documents_ranked"] == 4


def test_texts_are_never_logged(log: pytest.LogCaptureFixture, checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("stanford"), device="cpu", long_documents="truncate", cache_bytes=1 << 20)
    index = ColBERTIndex(model)
    with pytest.warns(TruncationWarning):
        model.rank("zanzibar " * 20, ["xylophone " * 90, "quixotic"])
    index.add(["xylophone"], ids=["quixotic"], metadatas=[{"who": "zanzibar"}])
    index.search("zanzibar", filter={"who": "zanzibar"})
    said = " ".join(str(vars(record)) for record in log.records)
    assert len(log.records) >= 4
    assert not any(word in said for word in ("zanzibar", "xylophone", "quixotic"))


def test_a_cut_is_a_warning_of_python_and_no_second_one_in_the_log(
    log: pytest.LogCaptureFixture, model: ColBERT
) -> None:
    with pytest.warns(TruncationWarning) as caught:
        model.encode_query("fox " * 30)
    assert len(caught) == 1
    assert max(record.levelno for record in log.records) < logging.WARNING
    assert attributes(log.records[-1])["colbert.queries_cut"] == 1


def test_a_call_that_fails_is_not_logged(log: pytest.LogCaptureFixture, checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=failing)
    log.clear()
    with pytest.raises(RuntimeError, match="no device"):
        model.rank("paris", DOCUMENTS)
    assert log.records == []
    assert observing._CURRENT.get() is None


def test_the_logger_leaves_it_to_the_program_what_is_shown() -> None:
    logger = logging.getLogger("colbert_integrations")
    assert [type(handler) for handler in logger.handlers] == [logging.NullHandler]
    assert (logger.level, logger.propagate) == (logging.NOTSET, True)


def test_the_page_defines_every_figure() -> None:
    page = (Path(__file__).parent.parent / "docs" / "observability.md").read_text(encoding="utf-8")
    assert [item.name for item in fields(CallStats) if f"| `{item.name}` |" not in page] == []
