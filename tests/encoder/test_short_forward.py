"""Short sequences by recordings: padded in, cut out, one at a time. What is recorded here runs in Python again."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel, ModernBertConfig

import checkpoints
from colbert_integrations import kernel as compiled
from colbert_integrations.encoder.packed import forward as packed
from colbert_integrations.encoder.packed import layers
from colbert_integrations.encoder.packed.forward import PackedForward
from colbert_integrations.encoder.packed.runs import Run, Runs
from colbert_integrations.encoder.packed.short_forward import ShortForward
from colbert_integrations.encoder.tokens import TokenSequence

CPU = torch.device("cpu")


class Again:
    """Records by remembering what to do."""

    def __init__(self) -> None:
        self.recorded, self.turn = 0, threading.Lock()

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        self.recorded += 1
        out = work()
        return lambda: out.copy_(work()), out

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        with self.turn:
            yield


def told(ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
    """Id, position and the sum of all ids that may be seen, for each token; not a number behind the end."""
    blocks = runs.blocks(CPU)
    (_, length), (attended,) = blocks.bounds.tolist(), blocks.attended.tolist()
    assert blocks.places.tolist() == [[0, 0]]
    out = torch.stack([ids, positions, ids[:attended].sum().expand(len(ids))], 1).double()
    out[length:] = float("nan")
    return out


def sequence(ids: list[int], attended: int | None = None) -> TokenSequence:
    length = len(ids)
    return TokenSequence(ids, length if attended is None else attended, [*range(length)], [None] * length)


@settings(deadline=None)
@given(queries=st.lists(st.tuples(st.integers(1, 64), st.integers(0, 63)), max_size=9))
def test_each_sequence_gets_its_own(queries: list[tuple[int, int]]) -> None:
    recorder = Again()
    short = ShortForward(told, CPU, recorder, 512)
    for number, (length, hidden) in enumerate(queries):
        attended = max(1, length - hidden)
        ids = [number * 100 + position for position in range(length)]
        expected = [[token, position, sum(ids[:attended])] for position, token in enumerate(ids)]
        found = short(sequence(ids, attended))
        assert found is not None
        assert found.tolist() == expected
    assert recorder.recorded == 4


def test_takes_what_is_short() -> None:
    short = ShortForward(told, CPU, Again(), 512)
    lengths = [0, 1, 16, 17, 64, 65, 300]
    assert [length for length in lengths if short(sequence([5] * length)) is not None] == [1, 16, 17, 64]


def test_records_nothing_that_the_model_has_no_positions_for() -> None:
    recorder = Again()
    short = ShortForward(told, CPU, recorder, 40)
    assert [length for length in (16, 32, 33) if short(sequence([5] * length)) is not None] == [16, 32]
    assert recorder.recorded == 2


def test_what_a_recording_reads_lives_as_long() -> None:
    class Graph(Again):
        def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
            return lambda: None, work()  # keeps addresses, and nothing alive

    def seen(ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        read.extend(map(weakref.ref, (ids, positions, *runs.blocks(CPU))))
        return told(ids, positions, runs)

    read = list[weakref.ref[torch.Tensor]]()
    short = ShortForward(seen, CPU, Graph(), 512)
    short(sequence([1, 2, 3]))
    gc.collect()
    assert [reference() is not None for reference in read] == [True] * 4 * 5
    del short
    gc.collect()
    assert [reference() is None for reference in read] == [True] * 4 * 5


def test_what_came_out_is_not_overwritten() -> None:
    short = ShortForward(told, CPU, Again(), 512)
    first, second = short(sequence([1, 2])), short(sequence([3, 4]))
    assert first is not None
    assert second is not None
    assert first[:, 0].tolist() == [1, 2]


def test_serves_outside_of_inference_mode_what_was_loaded_in_it() -> None:
    with torch.inference_mode():
        short = ShortForward(told, CPU, Again(), 512)
    for ids in ([1, 2], [3, 4]):
        found = short(sequence(ids))
        assert found is not None
        assert found[:, 0].tolist() == ids


def test_a_callers_autocast_is_not_recorded() -> None:
    def product(ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        return torch.ones(len(ids), 2) @ torch.ones(2, 3)

    with torch.autocast("cpu", torch.bfloat16):
        short = ShortForward(product, CPU, Again(), 512)
    assert [recorded._out.dtype for recorded in short._recorded] == [torch.float32] * 4


def test_without_recordings_all_goes_on_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Again):
        def record(self, work: Any) -> Any:
            self.recorded += 1
            raise RuntimeError("no graphs here")

    recorder = Fails()
    with caplog.at_level(logging.WARNING):
        short = ShortForward(told, CPU, recorder, 512)
        assert [short(sequence([1] * length)) for length in (3, 3, 40)] == [None] * 3
    assert recorder.recorded == 1
    assert [record.message for record in caplog.records] == [
        "short texts are encoded without CUDA graphs, which can't be recorded: no graphs here"
    ]


def test_threads_take_turns() -> None:
    def slowly(*args: Any) -> torch.Tensor:
        time.sleep(0.002)
        return told(*args)

    short, start = ShortForward(slowly, CPU, Again(), 512), threading.Barrier(8)

    def ask(number: int) -> list[float]:
        start.wait()
        found = [short(sequence([number] * (number + 1))) for _ in range(5)]
        return [float(vectors[0, 2]) for vectors in found if vectors is not None]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert answers == [[number * (number + 1)] * 5 for number in range(8)]


def attend_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention reads its ranges from the blocks; what it does not write is not a number."""

    def attention(query: Any, key: Any, value: Any, runs: Runs, window: int | None = None) -> torch.Tensor:
        (_, length), (attended,) = runs.blocks(CPU).bounds.tolist(), runs.blocks(CPU).attended.tolist()
        alone = Runs([Run(0, 1, length, attended)])
        out = torch.full_like(query, float("nan")).flatten(1)
        out[:length] = layers_attention(query[:length], key[:length], value[:length], alone, window)
        return out

    layers_attention = layers.attention
    monkeypatch.setattr(layers, "attention", attention)


@pytest.mark.parametrize("kind", checkpoints.PACKED)
def test_padding_reaches_no_vector(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "load", lambda: None)
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 90, "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    if kind == "modernbert":
        config: Any = ModernBertConfig(intermediate_size=40, **special, **small)
    else:
        # Where a recording is longer than a query stands this id, which XLM-RoBERTa does not count.
        config = AutoConfig.for_model(kind, intermediate_size=80, pad_token_id=0, **small)
    model = AutoModel.from_config(config)
    forward = PackedForward(model.eval().requires_grad_(False), nn.Identity(), torch.float32)
    queries = [sequence(torch.randint(2, 90, (n,)).tolist(), k) for n, k in [(64, 64), (30, 30), (40, 9), (1, 1)]]
    plain = [forward([query]) for query in queries]
    attend_as_on_a_gpu(monkeypatch)
    run = partial(packed._run, forward._model, forward._projection)
    forward._short = ShortForward(run, CPU, Again(), 512)
    for query, expected in zip(queries, plain, strict=True):
        # Rounded apart: products of another shape are summed in another order.
        torch.testing.assert_close(forward([query]), expected, rtol=0, atol=64 * torch.finfo(torch.float32).eps)
    assert all(forward._short(query) is not None for query in queries)
