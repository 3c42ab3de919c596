"""TritonLayers against their formulas in float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel, ModernBertConfig

import checkpoints
import interpreted
from colbert_integrations.encoder.forward import TorchForward
from colbert_integrations.encoder.packed import triton_layers
from colbert_integrations.encoder.packed.forward import PackedForward
from colbert_integrations.encoder.packed.linear import TorchLinear
from colbert_integrations.encoder.packed.triton_layers import TritonLayers
from colbert_integrations.encoder.tokens import TokenSequence

DEVICE = str(interpreted.DEVICE)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [48, 64, 384]


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    from colbert_integrations.encoder.packed import triton_kernels

    with interpreted.interpreted(triton_kernels):
        yield


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def layer_norm(x: torch.Tensor, module: nn.LayerNorm) -> torch.Tensor:
    x = x - x.mean(1, keepdim=True)
    y = x / (x.square().mean(1, keepdim=True) + module.eps).sqrt() * module.weight.double()
    return y if module.bias is None else y + module.bias.double()


def unchanging(width: int, dtype: torch.dtype, bias: bool) -> TorchLinear:
    """A linear layer that does nothing, before a norm."""
    zero = torch.zeros(width, dtype=dtype, device=DEVICE) if bias else None
    return TorchLinear(torch.eye(width, dtype=dtype, device=DEVICE), zero)


def norm_module(width: int, bias: bool) -> nn.LayerNorm:
    module = nn.LayerNorm(width, bias=bias, device=DEVICE).requires_grad_(False)
    module.weight.copy_(normal(width, seed=8))
    if bias:
        module.bias.copy_(normal(width, seed=9))
    return module


def assert_rounds(actual: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, relative: float = 0.0) -> None:
    """It is of a dtype, and no further from what is exact than rounding to it once, and float32 on the way."""
    assert actual.dtype == dtype
    working, truncates = torch.finfo(torch.float32).eps, DEVICE == "cpu" and dtype == torch.bfloat16  # the interpreter
    rounding = torch.finfo(dtype).eps / (1 if truncates else 2)
    torch.testing.assert_close(actual.double(), exact, rtol=rounding + 16 * working + relative, atol=64 * working)


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(0, 9),
    width=st.sampled_from(WIDTHS),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_norms_of_sums_are_their_formula(tokens, width, dtype, bias, seed) -> None:
    module, out = norm_module(width, bias), normal(tokens, width, seed=seed, dtype=dtype)
    residual = normal(tokens, width, seed=seed + 1, dtype=dtype)
    total, norm = out.double() + residual.double(), TritonLayers().norm(module, dtype)
    kept, normed = norm.post_norm(unchanging(width, dtype, bias), out, residual)
    assert kept is normed
    assert_rounds(normed, layer_norm(total, module), dtype)
    summed, normed = norm.pre_norm(unchanging(width, dtype, bias), out, residual)
    assert_rounds(summed, total, dtype)
    # Where cuBLAS adds, what is normalised has been rounded.
    assert_rounds(normed, layer_norm(total if bias else summed.double(), module), dtype)


@settings(deadline=None, max_examples=20)
@given(tokens=st.integers(0, 9), width=st.sampled_from(WIDTHS), dtype=st.sampled_from(DTYPES), placed=st.booleans())
def test_embeddings_are_gathered_added_and_normalised(tokens, width, dtype, placed) -> None:
    module, words = norm_module(width, bias=True), normal(20, width, seed=1, dtype=dtype)
    ids, positions = torch.arange(tokens, device=DEVICE) * 2, torch.arange(tokens, device=DEVICE).flip(0)
    places = normal(20, width, seed=2)
    exact = words.double()[ids] + (places.double()[positions] if placed else 0)
    more = (places, positions) if placed else ()
    kept, normed = TritonLayers().norm(module, dtype).of_embeddings(words, ids, *more)
    assert kept is normed
    assert_rounds(normed, layer_norm(exact, module), dtype)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.special.ndtr(x)


@settings(deadline=None, max_examples=20)
@given(tokens=st.integers(0, 17), width=st.sampled_from([40, 128, 136]), dtype=st.sampled_from(DTYPES))
def test_the_gate_is_gelu_by_the_error_function(tokens, width, dtype) -> None:
    both = normal(tokens, 2 * width, seed=tokens, dtype=dtype) * 3
    left, right = both.double().chunk(2, 1)
    identity = torch.eye(2 * width, dtype=dtype, device=DEVICE)
    gated = TritonLayers().gated(identity, None, "gelu")(both)
    assert_rounds(gated, gelu(left) * right, dtype, relative=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    tokens=st.sampled_from([1, 127, 128, 130]),
    inputs=st.sampled_from([64, 192]),
    outputs=st.sampled_from([128, 256]),
    biased=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_products_and_gelu_in_one_are_their_formula(tokens, inputs, outputs, biased, dtype) -> None:
    x, weight = normal(tokens, inputs, seed=1, dtype=dtype), normal(outputs, inputs, seed=2, dtype=dtype) / inputs**0.5
    bias = normal(outputs, seed=3, dtype=dtype) if biased else None
    exact = gelu(x.double() @ weight.double().T + (0 if bias is None else bias.double()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_layers, "_FEWEST_TOKENS", 1)
        assert_rounds(TritonLayers().linear(weight, bias, "gelu")(x), exact, dtype, relative=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_hides_no_nan_and_ends_as_it_should(dtype: torch.dtype) -> None:
    left = torch.tensor([float("nan"), float("inf"), 500.0, -500.0, 0.0], dtype=dtype, device=DEVICE)
    nan, *values = triton_layers._gate(torch.stack([left, torch.ones_like(left)], 1).view(1, -1))[0].tolist()
    assert nan != nan
    assert values == [float("inf"), 500.0, pytest.approx(0, abs=1e-10), 0.0]


@settings(deadline=None, max_examples=20)
@given(
    tokens=st.integers(0, 5),
    heads=st.sampled_from([1, 3, 12]),
    half=st.sampled_from([4, 12, 32]),
    dtype=st.sampled_from(DTYPES),
)
def test_queries_and_keys_turn_in_place_and_values_stay(tokens, heads, half, dtype) -> None:
    mixed = normal(tokens, 3, heads, 2 * half, seed=tokens, dtype=dtype)
    angles = normal(tokens, 1, 1, half, seed=1) * 100
    pairs = torch.complex(*(side.contiguous() for side in mixed[:, :2].double().chunk(2, -1)))
    turned = pairs * torch.polar(torch.ones_like(angles.double()), angles.double())
    before = mixed.clone()
    rotated = TritonLayers().rotate(mixed[:, :2], (angles.cos(), angles.sin()))
    assert_rounds(rotated, torch.cat([turned.real, turned.imag], -1), dtype)
    assert rotated.data_ptr() == mixed.data_ptr()
    assert torch.equal(mixed[:, 2], before[:, 2])


def test_rows_lie_beyond_2_to_the_31() -> None:
    if DEVICE == "cpu":
        pytest.skip("needs a CUDA device: the interpreter would copy gigabytes")
    width, tokens = 8192, 2**18 + 1
    module = nn.LayerNorm(width, device=DEVICE).requires_grad_(False)
    out = torch.zeros(tokens, width, dtype=torch.bfloat16, device=DEVICE)
    out[-1] = normal(width, seed=1)
    linear: Any = lambda x: x  # noqa: E731  # a matrix product would take minutes
    _, normed = TritonLayers().norm(module, torch.bfloat16).post_norm(linear, out, torch.zeros_like(out))
    assert_rounds(normed[-1:], layer_norm(out[-1:].double(), module), torch.bfloat16)


def small_model(kind: str) -> Any:
    small: dict[str, Any] = {"vocab_size": 90, "hidden_size": 48, "num_attention_heads": 3}
    if kind == "modernbert":
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
        biased = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias"), True)
        config: Any = ModernBertConfig(
            num_hidden_layers=4, intermediate_size=40, local_attention=16, pad_token_id=0, **special, **biased, **small
        )
    else:
        config = AutoConfig.for_model(kind, num_hidden_layers=2, intermediate_size=80, pad_token_id=5, **small)
    return AutoModel.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", checkpoints.PACKED)
@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU attention takes no float32; see tests/gpu")
def test_models_of_fused_layers_equal_the_padded_pass(kind: str) -> None:
    torch.manual_seed(0)
    model = small_model(kind)
    sequences = [
        TokenSequence(torch.randint(2, 90, (length,)).tolist(), attended, list(range(length)), [None] * length)
        for length, attended in [(30, 30), (12, 9), (1, 1)]
    ]
    forward = PackedForward(model, nn.Identity(), torch.float32)
    forward._model = type(forward._model)(model, TritonLayers())
    padded = TorchForward(model, nn.Identity(), torch.device("cpu"))(sequences)
    exact = TorchForward(copy.deepcopy(model).double(), nn.Identity(), torch.device("cpu"))(sequences)
    # What float32 errs here is what the padded pass errs; layers amplify it, so no number would say it.
    bound = 4 * (padded - exact).abs().max().item() + 1e-6
    torch.testing.assert_close(forward(sequences).double(), exact, rtol=0, atol=bound)


def test_other_activations_are_gated_by_torch() -> None:
    weight = normal(8, 4, seed=0)
    gated = TritonLayers().gated(weight, None, "relu")
    x = normal(3, 4, seed=1)
    expected = torch.relu(TorchLinear(weight[:4], None)(x)) * TorchLinear(weight[4:], None)(x)
    torch.testing.assert_close(gated(x), expected)
