"""Encoding on a CUDA device: against transformers, recorded and not, from threads, and without waiting."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, ModernBertConfig

import checkpoints
from colbert_integrations.devices.cuda_graphs import CudaRecorder
from colbert_integrations.encoder.forward import TorchForward
from colbert_integrations.encoder.packed.forward import PackedForward, can_pack
from colbert_integrations.encoder.tokens import TokenSequence

pytestmark = pytest.mark.gpu

NoWaiting = Callable[[], AbstractContextManager[None]]

HALVES = [torch.float16, torch.bfloat16]
CUDA = torch.device("cuda")


def backbone(kind: str, **changed: Any) -> Any:
    """A small model on the device, float32."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 90, "hidden_size": 192, "num_attention_heads": 6, "num_hidden_layers": 4}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    if kind == "modernbert":
        config = ModernBertConfig(**{"intermediate_size": 136, **special, **small, **changed})
    else:
        # A padding id that occurs within sequences, which changes the positions of XLM-RoBERTa.
        config = AutoConfig.for_model(kind, **{"intermediate_size": 320, "pad_token_id": 5, **small, **changed})
    model = AutoModel.from_config(config)
    return model.eval().requires_grad_(False).to(CUDA)


def packed(model: Any, dtype: torch.dtype) -> PackedForward:
    half = copy.deepcopy(model).to(dtype)
    if not can_pack(half, None):
        pytest.skip("needs triton and a CUDA device of compute capability 8.0")
    return PackedForward(half, nn.Identity(), dtype)


def plain(forward: PackedForward, sequence: TokenSequence) -> torch.Tensor:
    """One sequence, not recorded."""
    short, forward._short = forward._short, None
    try:
        return forward([sequence])
    finally:
        forward._short = short


def sequences(*shapes: tuple[int, int]) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(1)
    return [
        TokenSequence(torch.randint(2, 90, (n,), generator=generator).tolist(), seen, [*range(n)], [None] * n)
        for n, seen in shapes
    ]


RAGGED = [(200, 200), (150, 150), (64, 64), (33, 33), (32, 11), (5, 5), (1, 1)]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", checkpoints.PACKED)
def test_vectors_are_those_of_the_padded_pass(kind: str, dtype: torch.dtype) -> None:
    model, batch = backbone(kind), sequences(*RAGGED)
    exact = nn.functional.normalize(TorchForward(model, nn.Identity(), CUDA)(batch).double(), dim=1)
    forward = packed(model, dtype)
    alone = torch.cat([forward([sequence]) for sequence in batch])
    for vectors in (forward(batch), alone):
        assert vectors.dtype == torch.float32
        errors = (nn.functional.normalize(vectors.double(), dim=1) - exact).norm(dim=1)
        # Each layer rounds some eight times, of which each moves a vector by half a unit in the last place at most, and
        # independently of the others.
        assert errors.max() <= 4 * (8 * 4) ** 0.5 * torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", checkpoints.PACKED)
@pytest.mark.parametrize("length", [16, 32, 48, 64])
def test_a_recording_gives_the_very_same_bits(length: int, kind: str, dtype: torch.dtype) -> None:
    forward = packed(backbone(kind), dtype)
    for attended in (length, length - 5):
        (sequence,) = sequences((length, attended))
        assert torch.equal(forward([sequence]), plain(forward, sequence))
    assert forward._short is not None
    assert forward._short(sequence) is not None


@pytest.mark.parametrize("kind", checkpoints.PACKED)
def test_what_lies_behind_a_short_sequence_reaches_no_vector(kind: str) -> None:
    forward = packed(backbone(kind), torch.bfloat16)
    (long, *queries) = sequences((64, 64), (33, 33), (50, 20), (63, 1))
    forward([long])
    found = [forward([query]) for query in queries]
    for query, vectors in zip(queries, found, strict=True):
        forward([long])
        assert torch.equal(forward([query]), vectors)
        errors = (vectors - plain(forward, query)).norm(dim=1) / vectors.norm(dim=1)
        assert errors.max() <= 4 * (8 * 4) ** 0.5 * torch.finfo(torch.bfloat16).eps / 2


def test_a_window_narrower_than_a_recording_ends_where_it_should() -> None:
    model = backbone("modernbert", local_attention=16)
    (query,) = sequences((50, 41))
    forward = packed(model, torch.bfloat16)
    errors = (forward([query]) - plain(forward, query)).norm(dim=1) / plain(forward, query).norm(dim=1)
    assert errors.max() <= 4 * (8 * 4) ** 0.5 * torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize("kind", checkpoints.PACKED)
def test_threads_with_streams_of_their_own_get_their_own_vectors(kind: str) -> None:
    forward = packed(backbone(kind), torch.bfloat16)
    queries = sequences(*[(n, n) for n in range(9, 65)])
    expected = [forward([query]) for query in queries]
    torch.cuda.synchronize()

    def ask(number: int) -> bool:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            order = [*range(number, len(queries)), *range(number)]
            found = [(torch.equal(forward([queries[place]]), expected[place])) for place in order]
        return all(found)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_recording_does_not_mind_other_threads() -> None:
    batch, (query,) = sequences(*RAGGED), sequences((32, 32))
    model, busy = backbone("bert"), packed(backbone("modernbert"), torch.bfloat16)
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(busy, batch) for _ in range(40)]
        made = [pool.submit(packed, model, torch.bfloat16) for _ in range(6)]
        first = busy(batch)
        assert all(torch.equal(other.result(), first) for other in others)
    forwards = [forward.result() for forward in made]
    assert all(torch.equal(forward([query]), plain(forwards[0], query)) for forward in forwards)
    assert all(forward._short is not None and forward._short(query) is not None for forward in forwards)


@pytest.mark.parametrize("kind", checkpoints.PACKED)
@pytest.mark.parametrize("shapes", [RAGGED, RAGGED[:4], [(32, 32)]])
def test_a_forward_pass_never_waits_for_the_device(
    kind: str, shapes: list[tuple[int, int]], no_waiting: NoWaiting
) -> None:
    forward, batch = packed(backbone(kind), torch.bfloat16), sequences(*shapes)
    warm = forward(batch)
    with no_waiting():
        again = forward(batch)
    assert torch.equal(warm, again)


@pytest.mark.parametrize("kind", checkpoints.PACKED)
def test_a_new_batch_compiles_nothing_new(kind: str) -> None:
    pytest.importorskip("triton", reason="needs triton")
    from colbert_integrations.encoder.packed import triton_kernels

    forward, counts = packed(backbone(kind), torch.bfloat16), []
    kernels = [getattr(triton_kernels, name) for name in triton_kernels.__all__]
    for lengths in ([1], [16], [17, 3], [300] * 9, [77, 64, 5]):
        forward(sequences(*[(n, n) for n in lengths]))
        counts.append([len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels])
    assert all(count == counts[0] for count in counts)


def test_a_model_loaded_in_inference_mode_serves_outside_of_it() -> None:
    model, queries = backbone("bert"), sequences((32, 32), (20, 20))
    with torch.inference_mode():
        forward = packed(model, torch.bfloat16)
    assert all(torch.equal(forward([query]), forward([query])) for query in queries)
    assert forward._short is not None
    assert forward._short(queries[0]) is not None


def test_a_recording_that_another_thread_broke_is_made_again() -> None:
    recorder, calls = CudaRecorder.of(torch.device("cuda", torch.cuda.current_device())), list[bool]()
    before, ones = torch.cuda.current_stream(), torch.ones(8, device=CUDA)

    def wait() -> None:
        with contextlib.suppress(RuntimeError):  # not permitted while another thread records
            torch.cuda.synchronize()

    def work() -> torch.Tensor:
        calls.append(torch.cuda.is_current_stream_capturing())
        if calls == [False, True]:
            thread = threading.Thread(target=wait)
            thread.start()
            thread.join()
        return ones + 1

    again, out = recorder.record(work, alone=True)
    assert calls == [False, True, False, True]
    assert torch.cuda.current_stream() == before
    again()
    assert out.tolist() == [2.0] * 8
    # The allocator does not take it that a recording goes on, and random numbers can be drawn.
    assert torch.rand(3, device=CUDA).shape == (3,)
