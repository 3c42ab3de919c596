"""Attention on a GPU against its formula in float64: on one where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interpreted
from colbert_integrations.encoder.packed import triton_attention
from colbert_integrations.encoder.packed.runs import Run, Runs

DEVICE = interpreted.DEVICE
DTYPES = [torch.float16, torch.bfloat16] + [torch.float32] * (DEVICE.type == "cpu")


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    from colbert_integrations.encoder.packed import triton_kernels

    with interpreted.interpreted(triton_kernels):
        yield


def formula(mixed: torch.Tensor, lengths: list[int], attended: list[int], window: int | None) -> torch.Tensor:
    """Each sequence by itself, ``(tokens, heads * head_dim)`` float64."""
    out, first = torch.empty(mixed.shape[0], *mixed.shape[2:], dtype=torch.float64), 0
    for length, count in zip(lengths, attended, strict=True):
        query, key, value = mixed[first : first + length].double().unbind(1)
        scores = torch.einsum("ihd,jhd->hij", query, key[:count]) / mixed.shape[-1] ** 0.5
        if window is not None:
            far = (torch.arange(length)[:, None] - torch.arange(count)[None]).abs() > window
            scores = scores.masked_fill(far, float("-inf"))
        out[first : first + length] = torch.einsum("hij,jhd->ihd", scores.softmax(-1).nan_to_num(0.0), value[:count])
        first += length
    return out.flatten(1)


def attended_to(mixed: torch.Tensor, lengths: list[int], attended: list[int], window: int | None) -> torch.Tensor:
    bounds, device = torch.tensor([0, *lengths]).cumsum(0), mixed.device
    blocks = triton_attention.divide(bounds, torch.tensor(attended), device)
    return triton_attention.attend(*mixed.unbind(1), blocks, window)


def bound(mixed: torch.Tensor) -> float:
    """Weights, values and what comes out are rounded; scores err by that much before they become exponents."""
    largest, eps = float(mixed.abs().max()), torch.finfo(mixed.dtype).eps
    scores = 2 * torch.finfo(torch.float32).eps * mixed.shape[-1] ** 0.5 * largest**2
    return largest * (eps + 2 * scores + 2 * torch.finfo(torch.float32).eps)


@settings(deadline=None, max_examples=60)
@given(
    sequences=st.lists(st.tuples(st.integers(1, 150), st.integers(0, 90)), min_size=1, max_size=4),
    window=st.sampled_from([None, 0, 3, 40, 64, 500]),
    heads=st.sampled_from([(1, 16), (3, 32), (2, 64)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_is_the_formula(
    sequences: list[tuple[int, int]], window: int | None, heads: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    lengths = [length for length, _ in sequences]
    attended = [max(1, length - hidden) for length, hidden in sequences]
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(sum(lengths), 3, *heads, generator=generator).to(dtype)
    actual = attended_to(mixed.to(DEVICE), lengths, attended, window)
    assert actual.dtype == dtype
    expected = formula(mixed, lengths, attended, window)
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=0, atol=bound(mixed))


def test_a_nan_stays_within_its_sequence() -> None:
    mixed = torch.randn(80, 3, 2, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.float16)
    mixed[70, 1, 1, 3] = float("nan")
    found = attended_to(mixed, [70, 10], [70, 10], None).isnan()
    assert not found[:70].any()
    assert found[70:, 16:].all()
    assert not found[70:, :16].any()


def test_large_scores_neither_overflow_nor_vanish() -> None:
    mixed = 40 * torch.randn(90, 3, 1, 32, generator=torch.Generator().manual_seed(0)).half()
    actual = attended_to(mixed.to(DEVICE), [90], [90], None)
    torch.testing.assert_close(actual.cpu().double(), formula(mixed, [90], [90], None), rtol=0, atol=bound(mixed))


def test_a_batch_is_dealt_out_once() -> None:
    runs = Runs([Run(0, 2, 64, 64), Run(128, 1, 65, 5)])
    blocks = runs.blocks(torch.device("cpu"))
    assert runs.blocks(torch.device("cpu")) is blocks
    assert [part.tolist() for part in blocks] == [[0, 64, 128, 193], [64, 64, 5], [[0, 0], [1, 0], [2, 0], [2, 64]]]
    assert all(part.dtype == torch.int32 for part in blocks)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim"),
    [("cpu", torch.bfloat16, 64), ("cuda", torch.float32, 64), ("cuda", torch.float16, 48), ("cuda", torch.half, 256)],
)
def test_is_not_for_everything(device: str, dtype: torch.dtype, head_dim: int) -> None:
    assert not triton_attention.is_available(torch.device(device), dtype, head_dim)


def test_is_for_where_a_trial_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_attention._try(DEVICE)
    for runs in (True, False):
        monkeypatch.setattr(triton_attention, "_runs", lambda device, runs=runs: runs)
        assert triton_attention.is_available(torch.device("cuda"), torch.bfloat16, 64) == runs


def test_the_trial_runs_whatever_the_default_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[torch.Tensor] = []
    attend = triton_attention.attend
    monkeypatch.setattr(triton_attention, "attend", lambda *given: found.append(attend(*given)))
    with torch.device("meta"):
        triton_attention._try(DEVICE)
    assert found[0].tolist() == [[0.0] * 16]
