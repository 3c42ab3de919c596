"""Attention by flash attention's variable-length calls: what they are asked for, and what comes of it on a GPU."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from colbert_integrations.encoder import varlen
from colbert_integrations.encoder.attention import Run, Runs
from colbert_integrations.encoder.forward import TorchForward
from colbert_integrations.encoder.packed import PackedForward, can_pack
from colbert_integrations.encoder.tokens import TokenSequence

CPU = torch.device("cpu")


def flash_by_its_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """What flash attention documents, in float64: windows are laid from the last key of the last query."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q >= cu_seq_q.diff().max()
    assert max_k >= cu_seq_k.diff().max()
    out = torch.full(query.shape, float("nan"), dtype=torch.float64)
    left, right = (side if side >= 0 else len(key) + len(query) for side in window_size)
    for number in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[number] : cu_seq_q[number + 1]].double()
        k, v = (side[cu_seq_k[number] : cu_seq_k[number + 1]].double() for side in (key, value))
        places = torch.arange(len(q))[:, None] + len(k) - len(q)
        seen = torch.arange(len(k))[None]
        scores = torch.einsum("ihd,jhd->hij", q, k) / query.shape[-1] ** 0.5
        scores = scores.masked_fill((seen < places - left) | (seen > places + right), float("-inf"))
        rows = torch.einsum("hij,jhd->ihd", scores.softmax(-1).nan_to_num(0.0), v)
        out[cu_seq_q[number] : cu_seq_q[number + 1]] = rows
    return out.to(query.dtype)


@settings(deadline=None, max_examples=100)
@given(
    sequences=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), min_size=1, max_size=5),
    window=st.sampled_from([None, 0, 3, 8, 40]),
    seed=st.integers(0, 99),
)
def test_the_calls_together_are_the_formula(
    sequences: list[tuple[int, int]], window: int | None, seed: int, monkeypatch_module: pytest.MonkeyPatch
) -> None:
    lengths = [length for length, _ in sequences]
    attended = [max(1, length - hidden) for length, hidden in sequences]
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(sum(lengths), 2, 8, generator=generator).double() for _ in range(3))
    expected, first = torch.empty_like(query), 0
    for length, count in zip(lengths, attended, strict=True):
        q, (k, v) = query[first : first + length], (side[first : first + count] for side in (key, value))
        scores = torch.einsum("ihd,jhd->hij", q, k) / 8**0.5
        if window is not None:
            far = (torch.arange(length)[:, None] - torch.arange(count)[None]).abs() > window
            scores = scores.masked_fill(far, float("-inf"))
        expected[first : first + length] = torch.einsum("hij,jhd->ihd", scores.softmax(-1).nan_to_num(0.0), v)
        first += length
    actual = varlen.varlen_attention(query, key, value, varlen.parts(lengths, attended, window, CPU))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    module = pytest.importorskip("torch.nn.attention.varlen", reason="needs torch 2.10")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "varlen_attn", flash_by_its_definition)
        yield patch


def test_tokens_that_are_all_seen_are_neither_copied_nor_divided() -> None:
    (only,) = varlen.parts([3, 5], [3, 5], 2, CPU)
    assert only.queries is only.keys is None
    assert (only.query_bounds.tolist(), only.longest_query, only.window) == ([0, 3, 8], 5, (2, 2))


def test_runs_divide_a_batch_once_for_each_window() -> None:
    runs = Runs([Run(0, 2, 4, 4), Run(8, 1, 6, 5)])
    assert runs.parts(None, CPU) is runs.parts(None, CPU)
    assert runs.parts(None, CPU) is not runs.parts(1, CPU)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim"),
    [("cpu", torch.bfloat16, 64), ("cuda", torch.float32, 64), ("cuda", torch.float16, 20), ("cuda", torch.half, 264)],
)
def test_is_not_for_everything(device: str, dtype: torch.dtype, head_dim: int) -> None:
    assert not varlen.is_available(torch.device(device), dtype, head_dim)


def test_asks_for_a_torch_that_knows_windows_and_a_card_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = torch.device("cuda"), torch.bfloat16, 64
    for capability, there in (((8, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert varlen.is_available(*asked) == there
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    module = importlib.import_module("torch.nn.attention.varlen")
    monkeypatch.setattr(module, "varlen_attn", lambda query, key, value, is_causal: None)
    assert not varlen.is_available(*asked)


# ---------------------------------------------------------------------------------------------------------- on a GPU


def models() -> list[Any]:
    small: dict[str, Any] = {"vocab_size": 90, "hidden_size": 128, "num_attention_heads": 4}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    modern = ModernBertConfig(
        num_hidden_layers=4, intermediate_size=96, local_attention=16, pad_token_id=0, **special, **small
    )
    return [BertModel(BertConfig(num_hidden_layers=3, intermediate_size=160, **small)), ModernBertModel(modern)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [0, 1])
def test_errs_no_more_than_the_padded_pass(kind: int, dtype: torch.dtype) -> None:
    torch.manual_seed(kind)
    model = models()[kind].eval().requires_grad_(False)
    shapes = [(70, 70), (32, 11), (5, 5), (200, 200), (32, 30), (1, 1)]
    sequences = [
        TokenSequence(torch.randint(2, 90, (length,)).tolist(), attended, list(range(length)), [None] * length)
        for length, attended in shapes
    ]
    exact = TorchForward(model.double(), nn.Identity(), CPU)(sequences)
    on_gpu = model.to("cuda", dtype)
    assert can_pack(on_gpu, None)
    padded = TorchForward(on_gpu, nn.Identity(), torch.device("cuda"))(sequences).double().cpu()
    packed = PackedForward(on_gpu, nn.Identity(), dtype)(sequences).double().cpu()
    assert (packed - exact).abs().max() <= 1.5 * (padded - exact).abs().max()
