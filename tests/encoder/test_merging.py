"""Calls at once share batches: each gets its own vectors, in fair order, and none harms another."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
from colbert_integrations import ColBERT, observed
from colbert_integrations.cancellation import cancellable, current_cancellation
from colbert_integrations.encoder import merging
from colbert_integrations.encoder.batching import batches_by_tokens
from colbert_integrations.encoder.merging import Merger
from colbert_integrations.encoder.tokens import TokenSequence
from colbert_integrations.errors import InputError

PATIENCE_S = 30
POISON = 666


def sequence(*ids: int) -> TokenSequence:
    return TokenSequence(list(ids), len(ids), list(range(len(ids))), list(range(len(ids))))


def texts(number: int, tokens: int, name: int = 1) -> list[TokenSequence]:
    return [sequence(*[name] * tokens) for _ in range(number)]


def vectors(ids: Sequence[int]) -> list[list[float]]:
    return [[7.0 * token + place, float(len(ids))] for place, token in enumerate(ids)]


class Recorder:
    """Runs a batch by a plain function of the ids, and remembers it."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []

    def __call__(self, sequences: list[TokenSequence]) -> list[torch.Tensor]:
        self.batches.append([row.ids for row in sequences])
        if any(POISON in row.ids for row in sequences):
            raise ValueError("poison")
        return [torch.tensor(vectors(row.ids)).reshape(-1, 2) for row in sequences]

    def tokens_of(self, name: int) -> list[int]:
        """How many tokens of a kind each batch had."""
        return [sum(Counter(ids)[name] for ids in batch) for batch in self.batches]


class Gate(Recorder):
    """Holds each batch until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.leave = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, sequences: list[TokenSequence]) -> list[torch.Tensor]:
        self.entered.release()
        assert self.leave.acquire(timeout=PATIENCE_S)
        return super().__call__(sequences)

    def wait(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S)

    def open(self) -> None:
        self.leave.release(10_000)


def encode(merger: Merger, sequences: list[TokenSequence]) -> list[list[list[float]]]:
    found: dict[int, list[list[float]]] = {}
    merger(sequences, lambda position, matrix: found.__setitem__(position, matrix.tolist()))
    return [found[position] for position in range(len(sequences))]


def expected(sequences: list[TokenSequence]) -> list[list[list[float]]]:
    return [vectors(row.ids) for row in sequences]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as executor:
        yield executor


class Crowd:
    """A merger whose first batch is held, so that others gather behind it."""

    def __init__(self, pool: ThreadPoolExecutor, **options) -> None:
        self.pool = pool
        self.gate = Gate()
        self.merger = Merger(self.gate, **{"batch_tokens": 20, "packed": True, **options})
        self.first = self.start(texts(1, 1, name=99))
        self.gate.wait()

    def start(self, sequences: list[TokenSequence]) -> Future:
        """Begin a call, and wait until it stands in the queue or at the door."""
        before = self.present()
        future = self.pool.submit(encode, self.merger, sequences)
        until(lambda: self.present() > before)
        return future

    def present(self) -> int:
        with self.merger._lock:
            running = self.merger._leader is not None and self.merger._leader.number not in self.merger._waiting
            return len(self.merger._waiting) + len(self.merger._line) + running


# -------------------------------------------------------------------------------------------------------------- batches


@settings(deadline=None)
@given(st.lists(st.integers(0, 30)), st.integers(1, 90), st.none() | st.integers(1, 5), st.booleans())
def test_a_lone_callers_batches_are_those_of_the_budget(
    lengths: list[int], budget: int, size: int | None, packed: bool
) -> None:
    run = Recorder()
    sequences = [sequence(*[place] * length) for place, length in enumerate(lengths)]
    assert encode(Merger(run, budget, size, packed=packed), sequences) == expected(sequences)
    wanted = batches_by_tokens(lengths, budget, size, packed=packed)
    assert run.batches == [[sequences[place].ids for place in batch] for batch in wanted]


def test_calls_that_wait_share_a_batch(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    requests = [texts(2, 2, name) for name in range(1, 6)]
    futures = [crowd.start(request) for request in requests]
    crowd.gate.open()
    assert [future.result() for future in futures] == [expected(request) for request in requests]
    assert crowd.gate.batches == [[[99]], [row.ids for request in requests for row in request]]


@pytest.mark.parametrize("packed", [False, True])
def test_shared_batches_keep_to_the_budget(packed: bool, pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool, batch_tokens=30, batch_size=6, packed=packed)
    requests = [[sequence(*[name] * (1 + (name * place) % 11)) for place in range(12)] for name in range(1, 8)]
    futures = [crowd.start(request) for request in requests]
    crowd.gate.open()
    assert [future.result() for future in futures] == [expected(request) for request in requests]
    lengths = [[len(ids) for ids in batch] for batch in crowd.gate.batches]
    assert all((sum(batch) if packed else max(batch) * len(batch)) <= 30 and len(batch) <= 6 for batch in lengths)
    assert all(batch == sorted(batch, reverse=True) for batch in lengths)
    assert len(lengths) < sum(1 + len(request) for request in requests) / 2


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_WAIT_S", 2 * PATIENCE_S), ("_WAIT_SHARE", 1e9), ("_LATELY_S", 1e9)):
        monkeypatch.setattr(merging, name, value)


@pytest.mark.usefixtures("patient")
def test_who_had_company_lately_waits_for_it_a_moment(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    second = crowd.start(texts(1, 1, name=2))
    crowd.gate.open()
    assert crowd.first.result(PATIENCE_S)
    until(lambda: crowd.merger._leader is not None)
    third = pool.submit(encode, crowd.merger, texts(1, 1, name=3))
    assert [second.result(PATIENCE_S), third.result(PATIENCE_S)] == [[vectors([2])], [vectors([3])]]
    assert crowd.gate.batches == [[[99]], [[2], [3]]]


@pytest.mark.usefixtures("patient")
def test_a_lone_caller_waits_for_nobody(pool: ThreadPoolExecutor) -> None:
    merger = Merger(Recorder(), 20)
    for _ in range(3):
        assert pool.submit(encode, merger, texts(1, 1)).result(PATIENCE_S)


@pytest.mark.usefixtures("patient")
def test_company_of_long_ago_is_not_waited_for(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    merger = Merger(Recorder(), 20)
    assert encode(merger, texts(1, 1))
    merger._company, merger._took = 2, PATIENCE_S
    monkeypatch.setattr(merging, "_LATELY_S", -1.0)  # however short the time since
    assert pool.submit(encode, merger, texts(1, 1)).result(PATIENCE_S)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_each_call_gets_its_own_vectors_in_any_crowd(data: st.DataObject) -> None:
    ids = st.lists(st.integers(0, 40), max_size=6)
    requests = data.draw(st.lists(st.lists(ids.map(lambda row: sequence(*row)), max_size=5), max_size=16))
    options = data.draw(
        st.fixed_dictionaries(
            {
                "batch_tokens": st.integers(1, 25),
                "batch_size": st.none() | st.integers(1, 6),
                "packed": st.booleans(),
                "most_waiting": st.integers(0, 60),
            }
        )
    )
    merger = Merger(Recorder(), **options)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda request: encode(merger, request), requests))
    assert found == [expected(request) for request in requests]
    assert (merger._waiting, list(merger._line), merger._leader) == ({}, [], None)


# ------------------------------------------------------------------------------------------------------------- fairness


def test_a_query_does_not_wait_for_a_corpus(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    corpus = crowd.start(texts(50, 10, name=1))
    query = crowd.start(texts(1, 5, name=2))
    crowd.gate.leave.release(2)
    assert query.result(PATIENCE_S) == [vectors([2] * 5)]
    assert not corpus.done()
    assert crowd.gate.tokens_of(2) == [0, 5]
    crowd.gate.open()
    assert corpus.result(PATIENCE_S) == [vectors([1] * 10)] * 50


def test_a_query_does_not_wait_for_many_larger_calls_that_came_before(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    calls = [crowd.start(texts(4, 5, name=1)) for _ in range(8)]
    crowd.gate.leave.release()
    crowd.gate.wait()  # the second batch is drawn
    query = crowd.start(texts(1, 5, name=2))
    crowd.gate.open()
    assert all(future.result(PATIENCE_S) for future in (*calls, query))
    assert crowd.gate.tokens_of(2)[:3] == [0, 0, 5]


def test_requests_that_come_later_get_equal_shares_and_no_more(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    early = crowd.start(texts(400, 5, name=1))
    crowd.gate.leave.release(5)
    until(lambda: len(crowd.gate.batches) == 5)
    for _ in range(5):
        crowd.gate.wait()  # the sixth batch is drawn
    late = crowd.start(texts(240, 5, name=2))
    crowd.gate.open()
    assert early.result(PATIENCE_S)
    assert late.result(PATIENCE_S)
    assert crowd.gate.tokens_of(1)[:6] == [0, *[20] * 5]
    assert_even(crowd.gate, start=6, stop=126, within=20)


def assert_even(gate: Gate, start: int, stop: int, within: int) -> None:
    """In none of the batches does one of two requests get ahead of the other by more than so many tokens."""
    ahead = accumulate(a - b for a, b in zip(gate.tokens_of(1)[start:], gate.tokens_of(2)[start:stop], strict=False))
    assert all(abs(tokens) <= within for tokens in ahead)


def test_a_call_begins_in_a_batch_that_is_half_full_only_if_it_fits(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    lengths = {1: 9, 2: 12, 3: 3, 4: 4, 5: 2}  # of 20
    futures = [crowd.start(texts(tokens, 1, name)) for name, tokens in lengths.items()]
    crowd.gate.open()
    assert all(future.result(PATIENCE_S) for future in futures)
    drawn = [Counter(ids[0] for ids in batch) for batch in crowd.gate.batches[1:]]
    # The shortest are due first: 2 and 3 and 4 and 9 fit; 12 does not.
    assert drawn == [{5: 2, 3: 3, 4: 4, 1: 9}, {2: 12}]


def test_a_batch_that_is_less_than_half_full_is_filled_up(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    futures = [crowd.start(texts(9, 1, name=1)), crowd.start(texts(12, 1, name=2))]
    crowd.gate.open()
    assert all(future.result(PATIENCE_S) for future in futures)
    assert (crowd.gate.tokens_of(1), crowd.gate.tokens_of(2)) == ([0, 9, 0], [0, 11, 1])


@pytest.mark.parametrize("batches", [1, 2, 16])
def test_equal_requests_are_done_in_order_of_arrival(batches: int, pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    futures = [crowd.start(texts(4 * batches, 5, name)) for name in range(1, 6)]
    crowd.gate.open()
    assert all(future.result(PATIENCE_S) for future in futures)
    assert crowd.gate.batches == [[[99]], *[[[name] * 5] * 4 for name in range(1, 6) for _ in range(batches)]]


def test_a_corpus_does_not_wait_for_a_stream_of_reranks(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    corpus = crowd.start(texts(400, 5, name=1))
    reranks = [crowd.start(texts(8, 5, name=2)) for _ in range(15)]
    crowd.gate.open()
    assert all(future.result(PATIENCE_S) for future in (corpus, *reranks))
    served = crowd.gate.tokens_of(1)[1:31]
    assert 0 < sum(served) < 600, "a share while the others are there, and not all of it"


# Of 20 tokens at a time: the last of them are in the middle of a text of 11.
@pytest.mark.parametrize(("length", "within"), [(5, 20), (11, 22)])
def test_shares_are_of_tokens_not_of_texts(length: int, within: int, pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    futures = [crowd.start(texts(1760 // length, length, name=1)), crowd.start(texts(1760, 1, name=2))]
    crowd.gate.open()
    assert all(future.result(PATIENCE_S) for future in futures)
    assert_even(crowd.gate, start=1, stop=161, within=within)


# --------------------------------------------------------------------------------------------------------- cancellation


def cancellable_encode(merger: Merger, sequences: list[TokenSequence], leave: Future) -> None:
    """Encode in a thread of one's own, for a caller who goes away when told to."""
    with ThreadPoolExecutor(1) as thread:
        try:
            with cancellable():
                work = thread.submit(contextvars.copy_context().run, encode, merger, sequences)
                leave.result(PATIENCE_S)
                raise asyncio.CancelledError
        except asyncio.CancelledError:
            work.result(PATIENCE_S)


def test_a_cancelled_call_that_waits_is_not_run(pool: ThreadPoolExecutor) -> None:
    crowd, leave = Crowd(pool), Future[None]()
    gone = pool.submit(cancellable_encode, crowd.merger, texts(9, 5, name=1), leave)
    until(lambda: crowd.present() == 2)
    other = crowd.start(texts(1, 1, name=2))
    leave.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        gone.result(PATIENCE_S)
    crowd.gate.open()
    assert other.result(PATIENCE_S) == [vectors([2])]
    assert sum(crowd.gate.tokens_of(1)) == 0


def test_a_cancelled_call_that_leads_ends_after_its_batch_and_another_leads(pool: ThreadPoolExecutor) -> None:
    gate, leave = Gate(), Future[None]()
    merger = Merger(gate, 20, packed=True)
    gone = pool.submit(cancellable_encode, merger, texts(9, 20, name=1), leave)
    gate.wait()
    other = pool.submit(encode, merger, texts(1, 1, name=2))
    until(lambda: len(merger._waiting) == 2)
    leave.set_result(None)
    until(lambda: next(iter(merger._waiting.values())).cancellation.cancelled)
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        gone.result(PATIENCE_S)
    assert other.result(PATIENCE_S) == [vectors([2])]
    assert gate.tokens_of(1) == [20, 0]


def test_a_cancelled_call_at_the_door_lets_the_next_one_in(pool: ThreadPoolExecutor) -> None:
    crowd, leave = Crowd(pool, most_waiting=22), Future[None]()
    queued = [crowd.start(texts(1, 5, name=1)) for _ in range(4)]
    gone = pool.submit(cancellable_encode, crowd.merger, texts(1, 5, name=2), leave)
    until(lambda: len(crowd.merger._line) == 1)
    last = crowd.start(texts(1, 2, name=3))
    assert len(crowd.merger._line) == 2
    leave.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        gone.result(PATIENCE_S)
    until(lambda: len(crowd.merger._waiting) == 5)
    crowd.gate.open()
    assert [future.result(PATIENCE_S) for future in (*queued, last)]
    assert sum(crowd.gate.tokens_of(2)) == 0


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_who_waits_takes_its_work_out(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool)
    other = crowd.start(texts(1, 1, name=2))
    caught = threading.Event()

    def interrupt() -> None:
        until(lambda: crowd.present() == 3)
        for _ in range(5):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            # One that comes just before the thread goes to sleep is seen when it wakes up, so send another.
            if caught.wait(2):
                return

    killer = pool.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        encode(crowd.merger, texts(4, 5, name=1))
    caught.set()
    killer.result(PATIENCE_S)
    crowd.gate.open()
    assert other.result(PATIENCE_S) == [vectors([2])]
    assert sum(crowd.gate.tokens_of(1)) == 0


def test_an_interrupt_of_who_leads_harms_nobody_else(pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    interrupts = [None, KeyboardInterrupt(), None, None]

    def run(sequences: list[TokenSequence]) -> list[torch.Tensor]:
        matrices = gate(sequences)
        if error := interrupts.pop(0):
            raise error
        return matrices

    merger = Merger(run, 20, packed=True)
    leads = pool.submit(encode, merger, texts(3, 10, name=1))
    gate.wait()
    other = pool.submit(encode, merger, [*texts(1, 6, name=2), *texts(1, 4, name=3)])
    until(lambda: len(merger._waiting) == 2)
    gate.open()
    with pytest.raises(KeyboardInterrupt):
        leads.result(PATIENCE_S)
    assert other.result(PATIENCE_S) == [vectors([2] * 6), vectors([3] * 4)]
    assert gate.tokens_of(2)[1:] == [6, 6]  # once in the batch that was interrupted, once again


# ------------------------------------------------------------------------------------------------------- back-pressure


def test_callers_beyond_the_bound_are_held_up(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool, most_waiting=20)
    futures = [crowd.start(texts(1, 5, name)) for name in range(1, 8)]
    assert (len(crowd.merger._waiting), len(crowd.merger._line)) == (4, 3)
    crowd.gate.leave.release()
    crowd.gate.wait()
    until(lambda: len(crowd.merger._waiting) == 3)  # the batch that is drawn now made room for all
    crowd.gate.open()
    assert [future.result(PATIENCE_S) for future in futures] == [[vectors([name] * 5)] for name in range(1, 8)]
    served = [ids[0] for batch in crowd.gate.batches for ids in batch]
    assert served[1:5] == [1, 2, 3, 4]
    assert sorted(served[5:]) == [5, 6, 7]


def test_a_small_call_gets_past_a_large_one(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool, most_waiting=20)
    large, small = crowd.start(texts(100, 10, name=1)), crowd.start(texts(1, 3, name=2))
    assert (len(crowd.merger._waiting), len(crowd.merger._line)) == (2, 0)
    crowd.gate.open()
    assert small.result(PATIENCE_S)
    assert large.result(PATIENCE_S)


# --------------------------------------------------------------------------------------------------------------- errors


def test_an_error_reaches_only_the_call_that_it_belongs_to(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool, batch_tokens=40)
    requests = [texts(2, 3, name) for name in (1, POISON, 2, POISON, 3)]
    futures = [crowd.start(request) for request in requests]
    crowd.gate.open()
    for request, future in zip(requests, futures, strict=True):
        if request[0].ids[0] == POISON:
            with pytest.raises(ValueError, match="poison"):
                future.result(PATIENCE_S)
        else:
            assert future.result(PATIENCE_S) == expected(request)


def test_work_goes_on_after_an_error() -> None:
    merger = Merger(Recorder(), 5)
    for _ in range(2):
        with pytest.raises(ValueError, match="poison"):
            encode(merger, texts(4, 3, POISON))
        assert encode(merger, texts(4, 3)) == expected(texts(4, 3))


def test_a_call_that_failed_keeps_nothing() -> None:
    class Sequences(list[TokenSequence]):
        """A list that can be referred to weakly."""

    sequences = Sequences([sequence(POISON)])
    kept = weakref.ref(sequences)
    gc.disable()
    try:
        with suppress(ValueError):
            encode(Merger(Recorder(), 100), sequences)
        del sequences
        assert kept() is None  # without a collection, which may be long in coming
    finally:
        gc.enable()


def test_an_error_drops_what_is_left_of_its_call(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool, batch_tokens=6)
    bad, good = crowd.start([sequence(POISON), *texts(9, 6, name=1)]), crowd.start(texts(4, 6, name=2))
    bad_first = crowd.start(texts(9, 6, POISON))
    crowd.gate.open()
    for future in (bad, bad_first):
        with pytest.raises(ValueError, match="poison"):
            future.result(PATIENCE_S)
    assert good.result(PATIENCE_S) == expected(texts(4, 6, name=2))
    assert crowd.gate.tokens_of(POISON).count(6) == 1


# ----------------------------------------------------------------------------------------------------- tokenising ahead


def test_the_next_texts_are_tokenised_while_a_batch_runs(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_integrations.encoder.encoder._TEXTS_AT_ONCE", 2)
    ahead, seen = threading.Event(), list[int]()

    def forward(sequences):
        assert ahead.wait(PATIENCE_S)
        return torch.ones(sum(len(row.ids) for row in sequences), checkpoints.DIM)

    model = ColBERT(tiny.settings.model, device="cpu", forward=forward)
    tokenizer = model._ready().tokenizer
    tokens = tokenizer.tokens

    def watched(texts, side):
        seen.append(len(texts))
        if len(seen) == 2:
            ahead.set()
        return tokens(texts, side)

    monkeypatch.setattr(tokenizer, "tokens", watched)
    assert len(model.encode_document(["a", "fox", "runs", "fast", "in"])) == 5
    assert seen == [2, 2, 1]


def test_a_text_that_is_refused_further_on_is_named(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_integrations.encoder.encoder._TEXTS_AT_ONCE", 2)
    with pytest.raises(InputError, match="not valid Unicode"):
        tiny.encode_document(["a", "fox", "runs", "\ud800", "in"])


@pytest.mark.parametrize("ids", [[1, 2], [POISON]])
def test_a_call_that_is_done_stays_with_nobody(ids: list[int]) -> None:
    """Its caller may make many more, and would wake all of them when cancelled, and keep their texts until then."""
    with cancellable():
        with suppress(ValueError):
            encode(Merger(Recorder(), 100), [sequence(*ids)])
        assert not current_cancellation().wakers


@pytest.mark.parametrize("inside", [True, False])
def test_an_interrupt_at_the_door_leaves_no_dead_request_behind(inside: bool) -> None:
    class Interrupted(deque):
        def append(self, request: object) -> None:
            if inside:
                super().append(request)
            raise KeyboardInterrupt

    merger = Merger(Recorder(), 100)
    merger._line = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        encode(merger, texts(1, 3))
    assert not merger._line


def test_an_interrupt_of_who_has_just_got_the_lead_leaves_it_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(merger: Merger) -> None:
        raise KeyboardInterrupt

    merger = Merger(Recorder(), 100)
    with monkeypatch.context() as patch:
        patch.setattr(Merger, "_lead", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode(merger, texts(1, 3))
    assert merger._leader is None  # or the next call would wait for good
    assert encode(merger, texts(1, 3)) == expected(texts(1, 3))


def test_an_interrupt_while_a_sequence_is_drawn_loses_none() -> None:
    class Interrupted(list):
        def pop(self, *place: Any) -> Any:
            raise KeyboardInterrupt

    request = merging._Request(0, [*texts(1, 3), *texts(1, 4)], 100, threading.Lock())
    request.set_due(0)
    tokens, quantum, waiting = request.tokens, request.quantum, list(request.waiting)
    request.waiting = Interrupted(request.waiting)
    with pytest.raises(KeyboardInterrupt):
        request.take()
    request.give_back()
    assert (request.tokens, request.quantum, list(request.waiting)) == (tokens, quantum, waiting)


def test_what_was_handed_out_just_before_an_interrupt_is_not_run_again() -> None:
    request = merging._Request(0, texts(2, 3), 100, threading.Lock())
    request.take()
    request.take()
    request.done.append((0, torch.zeros(3, 2)))
    request.give_back()
    assert (request.waiting, request.tokens) == ([1], 3)


def test_what_was_drawn_of_a_call_that_has_gone_does_not_wait_again() -> None:
    merger = Merger(Recorder(), 100)
    request = merging._Request(0, texts(2, 3), 100, merger._lock)
    request.take()
    merger._withdraw(request)
    merger._give_back([(request, 0)])  # by a leader who is interrupted
    assert not merger._waiting


def test_a_lost_wake_up_holds_nobody_for_long(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_LOST_S", 0.05)
    monkeypatch.setattr(Merger, "_wake_leader", lambda self: None)
    merger = Merger(Recorder(), 6)
    rows = [texts(5, 3, name=name) for name in range(4)]
    found = [pool.submit(encode, merger, some) for some in rows]
    assert [one.result(PATIENCE_S) for one in found] == [expected(some) for some in rows]


def test_a_forked_child_waits_for_nobody_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    merger = Merger(Recorder(), 100)
    merger._leader = merging._Request(0, texts(1, 3), 100, merger._lock)  # a thread that stays behind
    with ThreadPoolExecutor(1) as other:
        other.submit(merger._lock.acquire).result()
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a child
    assert encode(merger, texts(1, 3)) == expected(texts(1, 3))


def test_threads_of_a_forked_child_begin_together(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    merger, begin, begun = Merger(Recorder(), 100), Merger._begin, list[Merger]()

    def slowly(self: Merger) -> None:
        begun.append(self)
        time.sleep(0.05)
        begin(self)

    monkeypatch.setattr(Merger, "_begin", slowly)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    rows = [texts(1, 3, name=name) for name in range(6)]
    found = [pool.submit(encode, merger, some) for some in rows]
    assert [one.result(PATIENCE_S) for one in found] == [expected(some) for some in rows]
    assert begun == [merger]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_releases_nobody_elses_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_LOST_S", 0.02)
    merger = Merger(Recorder(), 100)
    request = merging._Request(0, texts(1, 3), 100, merger._lock)

    def hold() -> None:
        with merger._lock:  # free while the main thread waits
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)  # now it wants the lock again
            time.sleep(0.2)

    def wait(other: ThreadPoolExecutor) -> None:
        with merger._lock:
            held.append(other.submit(hold))
            request.pause()

    held = list[Future[None]]()
    with ThreadPoolExecutor(1) as other:
        with pytest.raises(KeyboardInterrupt):
            wait(other)
        held[0].result(PATIENCE_S)
    assert encode(merger, texts(1, 3)) == expected(texts(1, 3))


def test_a_coroutine_that_is_destroyed_elsewhere_ends_without_a_word() -> None:
    class Never:
        def __await__(self) -> Iterator[None]:
            yield

    async def waits() -> None:
        with cancellable(), observed():
            await Never()

    coroutine = waits()
    contextvars.copy_context().run(coroutine.send, None)
    coroutine.close()
    assert coroutine.cr_frame is None  # it has ended
