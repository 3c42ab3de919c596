"""The packed forward pass against transformers' own, padded one; and attention against its formula in float64."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel, ModernBertConfig, ModernBertModel

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations import kernel as compiled
from colbert_integrations.devices import cpu
from colbert_integrations.encoder.forward import TorchForward
from colbert_integrations.encoder.packed.compiled_product import CompiledProduct
from colbert_integrations.encoder.packed.forward import PackedForward, can_pack, choose_layers
from colbert_integrations.encoder.packed.layers import Layers, Rotary
from colbert_integrations.encoder.packed.linear import (
    Activation,
    CompiledLinear,
    Int8Linear,
    Linear,
    PrepackedLinear,
    TorchLinear,
    WidenedLinear,
    _has_onednn,
    linear_maker,
)
from colbert_integrations.encoder.packed.runs import Run, Runs
from colbert_integrations.encoder.tokens import TokenSequence
from colbert_integrations.errors import InputError
from colbert_integrations.kernel import Kernel

Build = Callable[[str], Path]
CPU = torch.device("cpu")
VOCABULARY = 90
# Tokens that are not attended to. With more than half a window of them the last ones see nothing in local attention,
# and what transformers then gives has another meaning before 5.1.
HIDDEN = 20 if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 1) else 8


KERNEL = compiled.load()
INSTRUCTION_SETS = ["compiled"] if KERNEL is None else KERNEL.instruction_sets


def _compiled(instruction_set: str) -> Kernel:
    if KERNEL is None:
        pytest.skip("needs the compiled kernel: pip install ./kernel")
    return KERNEL.with_instruction_set(instruction_set)


@pytest.fixture(scope="module", params=INSTRUCTION_SETS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """The compiled kernel in each instruction set that this CPU runs."""
    return _compiled(request.param)


# These two only say what is asked for: patched for a whole module, it would be so for tests that don't ask too.
@pytest.fixture(scope="module", params=["torch", *INSTRUCTION_SETS])
def implementation(request: pytest.FixtureRequest) -> str:
    """All by torch, and by the compiled kernel in each instruction set that this CPU runs."""
    return request.param


@pytest.fixture(scope="module", params=[True, False], ids=["integers", "floats"])
def fast_int8(request: pytest.FixtureRequest) -> bool:
    """Whether torch multiplies int8 as such, or the same numbers in float32."""
    return request.param


@pytest.fixture(autouse=True)
def _as_asked_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "implementation" in request.fixturenames:
        name = request.getfixturevalue("implementation")
        chosen = None if name == "torch" else _compiled(name)
        monkeypatch.setattr(compiled, "load", lambda: chosen)
    if "fast_int8" in request.fixturenames:
        fast = request.getfixturevalue("fast_int8")
        monkeypatch.setattr(cpu, "multiplies", lambda dtype: fast or dtype == torch.float32)


@pytest.fixture(scope="module", params=[*checkpoints.PACKED, "modernbert_biased"])
def backbone(request: pytest.FixtureRequest) -> Any:
    """A small model with sharp attention; ModernBERT's sees 8 tokens to either side in two layers of three.

    The padding id of XLM-RoBERTa's is one that occurs within sequences, which changes their positions.
    """
    torch.manual_seed(3)
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_attention_heads": 4}
    if not request.param.startswith("modernbert"):
        config = AutoConfig.for_model(
            request.param, num_hidden_layers=2, intermediate_size=80, pad_token_id=5, type_vocab_size=1, **small
        )
        model: Any = AutoModel.from_config(config)
    else:
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
        biased = request.param.endswith("biased")
        bias = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias"), biased)
        config = ModernBertConfig(
            num_hidden_layers=4, intermediate_size=40, local_attention=16, pad_token_id=0, **special, **bias, **small
        )
        model = ModernBertModel(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embeddings" not in name or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def sequence(length: int, attended: int, seed: int) -> TokenSequence:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()
    return TokenSequence(ids, attended, list(range(length)), [None] * length)


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=6), seed=st.integers(0, 9))
@pytest.mark.usefixtures("implementation")
def test_equals_the_padded_pass(backbone: Any, lengths: list[tuple[int, bool]], seed: int) -> None:
    sequences = [sequence(n, max(1, n - HIDDEN) if cut else n, seed + i) for i, (n, cut) in enumerate(lengths)]
    exact = TorchForward(copy.deepcopy(backbone).double(), nn.Identity(), CPU)(sequences)
    # What float32 errs here is what the padded pass errs; layers amplify it, so no number would say it.
    bound = 8 * (TorchForward(backbone, nn.Identity(), CPU)(sequences) - exact).abs().max().item() + 1e-6
    packed, plain = (PackedForward(backbone, nn.Identity(), torch.float32) for _ in range(2))
    plain._model = type(plain._model)(backbone, Layers(TorchLinear))
    for forward in (packed, plain):
        torch.testing.assert_close(forward(sequences).double(), exact, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["roberta", "camembert"])
def test_equals_the_padded_pass_for_all_of_robertas_kind(kind: str) -> None:
    torch.manual_seed(0)
    small = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 80}
    model = AutoModel.from_config(AutoConfig.for_model(kind, num_hidden_layers=2, **small)).eval()
    sequences = [sequence(20, 20, 0), sequence(7, 7, 1)]
    exact = TorchForward(copy.deepcopy(model).double(), nn.Identity(), CPU)(sequences)
    bound = 8 * (TorchForward(model, nn.Identity(), CPU)(sequences) - exact).abs().max().item() + 1e-6
    assert can_pack(model, None)
    packed = PackedForward(model, nn.Identity(), torch.float32)(sequences)
    torch.testing.assert_close(packed.double(), exact, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("tokens", "size"), [(1, 8), (8, 8), (9, 16), (250, 256), (257, 272), (1025, 1088), (1985, 2048), (2048, 2048)]
)
def test_a_batch_is_filled_up_to_a_size(backbone: Any, tokens: int, size: int) -> None:
    assert sizes_run(backbone, [tokens]) == [size]


def test_few_sizes_occur_and_filling_up_to_them_adds_little(backbone: Any) -> None:
    tokens = range(1, 2049, 3)
    sizes = sizes_run(backbone, tokens)
    assert len(set(sizes)) <= 80
    assert all(number <= size <= max(number + 7, number * 17 / 16) for number, size in zip(tokens, sizes, strict=True))
    assert sum(sizes) < 1.03 * sum(tokens)


def test_a_batch_is_not_filled_up_for_layers_that_take_any_size(backbone: Any) -> None:
    assert sizes_run(backbone, [1, 9, 250], few_sizes=False) == [1, 9, 250]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.usefixtures("implementation")
def test_the_kernels_linear_layers_take_any_size(dtype: torch.dtype) -> None:
    layers = choose_layers(CPU, dtype)
    assert not layers.few_sizes
    made = layers.linear(torch.ones(8, 8, dtype=torch.float32 if dtype == torch.int8 else dtype), None, "none")
    by_kernel = isinstance(vars(vars(made).get("_wide", made)).get("_rounded"), CompiledProduct)
    by_kernel = by_kernel or isinstance(vars(made).get("_wide", made), CompiledLinear)
    assert layers.few_sizes is not by_kernel


def sizes_run(backbone: Any, tokens: Iterable[int], *, few_sizes: bool = True) -> list[int]:
    """How many rows a model's layers see of batches of so many tokens."""
    forward, seen = PackedForward(backbone, nn.Identity(), torch.float32), list[int]()
    forward._few_sizes = few_sizes

    def model(ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        assert len(ids) == len(positions) == runs.bounds[-1]
        seen.append(len(ids))
        return torch.zeros(len(ids), 1)

    forward._model = model
    for number in tokens:
        batch = [sequence(length, length, 0) for length in (number // 3, number - number // 3) if length]
        assert forward(batch).shape == (number, 1)
    return seen


def attend(mixed: torch.Tensor, runs: Runs, window: int | None = None, turns: Rotary | None = None) -> torch.Tensor:
    return choose_layers(CPU, torch.float32).attend(mixed.clone(), runs, window, turns)


def turned(x: torch.Tensor, turns: Rotary) -> torch.Tensor:
    """Queries or keys, ``(tokens, heads, head_dim)``, as complex numbers of coordinates half a row apart."""
    left, right = x.double().chunk(2, dim=-1)
    cosines, sines = (side[:, 0].double() for side in turns)
    product = torch.complex(left, right) * torch.complex(cosines, sines)
    return torch.cat([product.real, product.imag], dim=-1)


@settings(deadline=None, max_examples=30)
@given(
    runs=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 140), st.sampled_from([0, 9, 70])), min_size=1, max_size=4
    ),
    head_dim=st.sampled_from([2, 12, 32, 64, 96]),
    window=st.sampled_from([None, 0, 3, 40]),
    turning=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
@example(runs=[(2, 80, 9)], head_dim=64, window=3, turning=True, dtype=torch.float32, seed=0)
@example(runs=[(2, 80, 9)], head_dim=64, window=3, turning=True, dtype=torch.bfloat16, seed=0)
@example(runs=[(1, 90, 70)], head_dim=32, window=3, turning=False, dtype=torch.bfloat16, seed=0)
def test_attention_is_its_formula(
    implementation: str,
    runs: list[tuple[int, int, int]],
    head_dim: int,
    window: int | None,
    turning: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    shapes, first = list[Run](), 0
    for sequences, length, hidden in runs:
        shapes.append(Run(first, sequences, length, max(1, length - hidden)))
        first += sequences * length
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(first, 3, 3, head_dim, generator=generator).to(dtype)
    angles = 6.3 * torch.rand(first, 1, 1, head_dim // 2, generator=generator)
    turns = (angles.cos(), angles.sin()) if turning else None
    query, key, value = mixed.double().unbind(1)
    if turns is not None:
        query, key = turned(query, turns), turned(key, turns)
    expected = torch.empty(first, 3, head_dim, dtype=torch.float64)
    for run in shapes:
        for start in range(run.first, run.first + run.sequences * run.length, run.length):
            rows, seen = slice(start, start + run.length), slice(start, start + run.attended)
            scores = torch.einsum("ihd,jhd->hij", query[rows], key[seen]) / head_dim**0.5
            if window is not None:
                far = (torch.arange(run.length)[:, None] - torch.arange(run.attended)[None]).abs() > window
                scores = scores.masked_fill(far, float("-inf"))
            # A row that sees nothing is zero, as torch has it.
            expected[rows] = torch.einsum("hij,jhd->ihd", scores.softmax(-1).nan_to_num(0.0), value[seen])
    actual = attend(mixed, Runs(shapes), window, turns)
    # bfloat16 keeps 8 bits of what comes out, about 1 to 4; torch's own kernel also of the weights, and all but vectors
    # of what was turned.
    exact = dtype == torch.float32 or (implementation != "torch" and not turning)
    rounding = 0 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(actual.double(), expected.flatten(1), rtol=rounding, atol=1e-5 if exact else 4 * 2**-7)


@pytest.mark.usefixtures("implementation")
def test_attention_takes_tokens_that_lie_anywhere() -> None:
    mixed = torch.randn(20, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    runs = Runs([Run(0, 1, 20, 20)])
    apart = mixed.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not apart.is_contiguous()
    expected = attend(mixed, runs)
    torch.testing.assert_close(choose_layers(CPU, torch.float32).attend(apart, runs), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("implementation")
def test_attention_does_not_overflow_and_does_not_hide_nan(dtype: torch.dtype) -> None:
    value = torch.eye(16, 32, dtype=dtype)[:, None, :]
    query = torch.full((16, 1, 32), 60.0, dtype=dtype)
    key = torch.zeros(16, 1, 32, dtype=dtype)
    key[3] = 60.0  # a score of 20,365 against 0
    runs = Runs([Run(0, 1, 16, 16)])
    assert attend(torch.stack([query, key, value], 1), runs)[:, 3].tolist() == [1.0] * 16
    value[5] = float("nan")
    assert attend(torch.stack([query, key, value], 1), runs).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 5, 39])
@pytest.mark.usefixtures("implementation")
def test_attention_does_not_hide_a_key_that_is_not_a_number(place: int, dtype: torch.dtype) -> None:
    mixed = torch.ones(40, 3, 1, 32, dtype=dtype)
    mixed[place, 1] = float("nan")
    if dtype == torch.float32:
        mixed[place, 1] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # what CUDA makes
    assert attend(mixed, Runs([Run(0, 1, 40, 40)])).isnan().all()


class Given(Linear):
    """A linear layer that gives what it is given."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


@settings(deadline=None, max_examples=40)
@given(
    rows=st.sampled_from([0, 1, 3, 70]),
    width=st.sampled_from([1, 2, 31, 32, 48, 130, 384, 1000]),
    biased=st.booleans(),
    level=st.sampled_from([0.0, 1.0, 3000.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
@pytest.mark.usefixtures("implementation")
def test_norms_are_their_formula(
    rows: int, width: int, biased: bool, level: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(rows, width, generator=generator) for _ in range(2))
    left, right = left.to(dtype), right + level
    module = nn.LayerNorm(width, eps=1e-5, bias=biased).requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(generator=generator)
    norm, added = choose_layers(CPU, torch.float32).norm(module, dtype), (left.float() + right).double()
    exact = copy.deepcopy(module).double()(added)
    # Some roundings of a row's largest number, in the sum as in the mean, as the norm enlarges them.
    variance = (added - added.mean(1, keepdim=True)).square().mean(1, keepdim=True)
    share = (variance + module.eps).rsqrt() * module.weight.abs().max()
    bound = 8 * 2**-24 * (added.abs().amax(1, keepdim=True) * share + 1)
    total, normed = norm.pre_norm(Given(), left, right)
    torch.testing.assert_close(total, left.float() + right, rtol=0, atol=0)
    stream, read = norm.post_norm(Given(), left, right)
    assert (normed.dtype, stream.dtype, read.dtype) == (dtype, torch.float32, dtype)
    assert ((stream.double() - exact).abs() <= bound).all()
    for rounded in (normed, read):
        torch.testing.assert_close(rounded, stream.to(dtype), rtol=0, atol=0)
    stream, read = norm.of_embeddings(left, torch.arange(rows), right, torch.arange(rows))
    assert ((stream.double() - exact).abs() <= bound).all()
    torch.testing.assert_close(read, stream.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("implementation")
def test_norms_keep_nan_in_its_row_and_take_rows_of_one_number(dtype: torch.dtype) -> None:
    module = nn.LayerNorm(40).requires_grad_(False)
    module.bias.fill_(0.5)
    left, right = torch.full((4, 40), 7.0, dtype=dtype), torch.zeros(4, 40)
    left[2, 39] = float("nan")
    for normed in choose_layers(CPU, torch.float32).norm(module, dtype).post_norm(Given(), left, right):
        assert normed[2].isnan().all()
        assert normed[[0, 1, 3]].tolist() == [[0.5] * 40] * 3


@pytest.mark.parametrize("make", [PrepackedLinear, WidenedLinear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh", "relu"])
def test_linear_layers_agree(make: type[Linear], dtype: torch.dtype, activation: Any) -> None:
    if make is PrepackedLinear and not (_has_onednn() and cpu.multiplies(dtype)):
        pytest.skip("needs torch's oneDNN operators, in bfloat16 on a CPU that has it")
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((24, 40), (24,), (7, 40)))
    other = torch.randn(7, 24, generator=generator).to(dtype)
    plain = TorchLinear(weight.float(), bias.float(), activation)
    packed = make(weight, bias, activation)
    # One rounding of values up to 30 to 8 bits, and the sum once more.
    bound = 1e-4 if dtype == torch.float32 else 30 * 2**-7
    torch.testing.assert_close(packed(x).float(), plain(x.float()), rtol=0, atol=bound)
    if activation == "none":
        torch.testing.assert_close(packed.plus(x, other).float(), plain.plus(x.float(), other), rtol=0, atol=bound)
        both = plain.times(x.float(), other.float())
        torch.testing.assert_close(packed.times(x, other).float(), both, rtol=2**-6, atol=2 * bound)
    bare = make(weight, None, activation)(x).float()
    torch.testing.assert_close(bare, TorchLinear(weight.float(), None, activation)(x.float()), rtol=0, atol=bound)


ACTIVATIONS: list[Activation] = ["none", "gelu", "gelu_tanh", "relu"]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.sampled_from([0, 1, 5, 6, 7, 12, 95, 96, 97, 101, 230]),
    inputs=st.sampled_from([1, 3, 40, 191, 192, 193, 384, 385, 800]),
    outputs=st.sampled_from([1, 15, 16, 17, 31, 32, 33, 80]),
    activation=st.sampled_from(ACTIVATIONS),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layers_of_the_kernel_are_their_formula(
    kernel: Kernel, rows: int, inputs: int, outputs: int, activation: Activation, biased: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = (outputs, inputs), (outputs,), (rows, inputs), (rows, outputs)
    weight, bias, x, factors = (torch.randn(*shape, generator=generator) for shape in shapes)
    offset = bias if biased else None
    layer = CompiledLinear(kernel, weight, offset, activation)
    exact = TorchLinear(weight.double(), bias.double() if biased else None, activation)(x.double())
    sizes = x.abs().double() @ weight.abs().double().T + (bias.abs() if biased else 0)
    # Sums of random numbers err by the root of their number (Higham & Mary 2019, SIAM J. Sci. Comput. 41), which an
    # activation enlarges by 1.13 at most; and what the activation errs.
    bound = 1.13 * 2**-24 * (inputs**0.5 + 2) * sizes + 2**-23 * exact.abs() + 2**-24
    assert ((layer(x).double() - exact).abs() <= bound).all()
    assert ((layer.times(x, factors).double() - exact * factors).abs() <= 1.01 * bound * factors.abs()).all()
    added = bound + 2**-23 * (exact.abs() + factors.abs())
    assert ((layer.plus(x, factors).double() - exact - factors).abs() <= added).all()


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 230), seed=st.integers(0, 99))
def test_what_comes_of_a_token_does_not_depend_on_its_batch(kernel: Kernel, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = CompiledLinear(kernel, torch.randn(50, 500, generator=generator), None, "gelu")
    x = torch.randn(count, 500, generator=generator)
    alone = torch.cat([layer(row[None]) for row in x])
    assert torch.equal(layer(x), alone)


@pytest.mark.parametrize(("activation", "infinite"), [("gelu", "nan"), ("gelu_tanh", "nan"), ("relu", "0.0")])
def test_activations_of_the_kernel_err_by_roundings(kernel: Kernel, activation: Activation, infinite: str) -> None:
    x = torch.linspace(-14, 14, 4001)[:, None]
    exact = TorchLinear(torch.ones(1, 1).double(), None, activation)(x.double())
    if activation == "gelu":  # by erfc: torch's 1 + erf has no digits left where x is negative
        exact = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2
    act = CompiledProduct(kernel, torch.ones(40, 1), None, activation)  # 40: whole vectors and single numbers
    assert ((act(x).double() - exact).abs() <= 2**-23 * exact.abs() + 2**-24).all()
    rest = act(torch.tensor([[0.0], [-0.0], [1e30], [-1e30], [float("inf")], [float("-inf")], [float("nan")]]))
    for column in rest.T.tolist():
        assert column[:4] == [0.0, 0.0, pytest.approx(1e30), 0.0]
        assert [str(abs(number)) for number in column[4:]] == ["inf", infinite, "nan"]  # as torch's


def test_the_kernel_multiplies_float32_where_it_was_measured_to_be_faster(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "load", lambda: kernel)
    made = linear_maker(torch.float32)(torch.ones(2, 3), None, "none")
    assert isinstance(made, CompiledLinear) == (kernel.instruction_set == "avx2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ARM64"])
def test_on_arm_linear_layers_are_torchs_own(dtype: torch.dtype, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu, "multiplies", lambda dtype: True)
    monkeypatch.setattr(compiled, "load", lambda: None)
    assert linear_maker(dtype) is TorchLinear


def test_a_cpu_without_bfloat16_multiplies_it_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "multiplies", lambda dtype: dtype == torch.float32)
    assert linear_maker(torch.bfloat16) is WidenedLinear
    assert linear_maker(torch.float32) is not WidenedLinear


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 230),
    inputs=st.sampled_from([2, 4, 7, 33, 384]),
    outputs=st.sampled_from([1, 31, 32, 80]),
    activation=st.sampled_from(ACTIVATIONS),
)
@pytest.mark.usefixtures("implementation", "fast_int8")
def test_int8_layers_round_each_token_and_each_output_once(
    tokens: int, inputs: int, outputs: int, activation: Activation
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    shapes = (outputs, inputs), (outputs,), (tokens, inputs)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in shapes)
    x[0] *= 1000  # an outlier that is no other token's concern
    for offset in (bias, None):
        actual, exact = Int8Linear(weight, offset, activation)(x), TorchLinear(weight, offset, activation)(x)
        row_steps, column_steps = x.abs().amax(1, keepdim=True) / 127, weight.abs().amax(1) / 127
        # Half a step of one side for each product, by the largest of the other side, and what float32 rounds; no
        # activation is steeper than 1.13.
        steps = row_steps / 2 * 128 * column_steps + column_steps / 2 * 127 * row_steps
        bound = 1.13 * inputs * steps + exact.abs() * 1e-6
        assert ((actual - exact).abs() <= bound + 1e-6).all()
        if tokens * outputs > 50 and inputs > 4:
            assert (actual != exact).any()


@pytest.mark.usefixtures("implementation", "fast_int8")
@pytest.mark.parametrize("inputs", [16, 20])
def test_int8_layers_do_not_hide_nan_and_take_zeros(inputs: int) -> None:
    x = torch.ones(14, inputs)
    x[3], x[5, -1], x[7, 0], x[9, -1] = 0.0, float("nan"), float("inf"), float("-inf")
    out = Int8Linear(torch.ones(6, inputs), torch.full((6,), 2.0))(x)
    assert out[3].tolist() == [2.0] * 6
    assert out[0].tolist() == pytest.approx([inputs + 2.0] * 6, rel=1e-6)
    assert out.isnan().any(1).nonzero().tolist() == [[5], [7], [9]]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(("dtype", "least_cosine"), [("float32", 1 - 1e-6), ("bfloat16", 0.9998), ("int8", 0.99)])
def test_real_text_is_encoded_like_by_the_padded_pass(dtype: str, least_cosine: float) -> None:
    texts = [
        "The lift of a wing comes from the air that it pushes down.",
        "Heat flows from what is warm to what is cold, " * 12,
        "Wings.",
        "Ein Flügel lenkt die Luft nach unten ab – 12 % mehr bei α = 4°.",
    ]
    model = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu", dtype=dtype)
    assert isinstance(model._ready()._forward, PackedForward)
    backbone = AutoModel.from_pretrained(str(model._weights.folder)).eval()
    padded = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu", forward=TorchForward(backbone, nn.Identity(), CPU))
    ours, theirs = model.encode_document(texts), padded.encode_document(texts)
    assert ours.lengths == theirs.lengths
    assert ours.values.dtype == torch.float32
    assert (ours.values * theirs.values).sum(-1).min() > least_cosine
    if dtype == "float32":
        torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "layout", ["stanford", "stanford_xlmr", pytest.param("jina", marks=checkpoints.marks("jina")), "bge", "pylate"]
)
def test_packs_what_it_knows(checkpoint: Build, layout: str) -> None:
    assert isinstance(ColBERT(checkpoint(layout), device="cpu")._ready()._forward, PackedForward)


@pytest.mark.parametrize("layout", ["stanford_deberta", "xmod"])
def test_keeps_the_general_path_for_all_else(checkpoint: Build, layout: str) -> None:
    assert isinstance(ColBERT(checkpoint(layout), device="cpu")._ready()._forward, TorchForward)
    with pytest.raises(InputError, match="'int8' is for BERT, RoBERTa and ModernBERT on a CPU"):
        ColBERT(checkpoint(layout), device="cpu", dtype="int8")


@pytest.mark.parametrize(
    ("dtype", "fast", "told"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0)]
)
def test_the_general_path_tells_of_a_dtype_that_is_slow(
    dtype: str,
    fast: bool,
    told: int,
    checkpoint: Build,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cpu, "multiplies", lambda asked: fast or asked == torch.float32)
    ColBERT(checkpoint("stanford_deberta"), device="cpu", dtype=dtype).encode_query("wing")
    assert [record.getMessage().count("torch.bfloat16 on a CPU") for record in caplog.records] == [1] * told


def test_keeps_the_general_path_where_an_attention_is_asked_for(checkpoint: Build) -> None:
    asked = ColBERT(checkpoint("stanford"), device="cpu", attn_implementation="eager")
    assert isinstance(asked._ready()._forward, TorchForward)


def test_does_not_pack_what_it_would_compute_wrongly(backbone: Any) -> None:
    assert can_pack(backbone, None)
    name = "hidden_activation" if backbone.config.model_type == "modernbert" else "hidden_act"
    before = getattr(backbone.config, name)
    setattr(backbone.config, name, "silu")
    try:
        assert not can_pack(backbone, None)
    finally:
        setattr(backbone.config, name, before)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("bert", {"is_decoder": True}),
        ("xlm-roberta", {"is_decoder": True}),
        pytest.param(
            "jina_embeddings_v3",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            marks=checkpoints.needs_jina,
        ),
    ],
)
def test_does_not_pack_another_kind_of_attention_or_positions(kind: str, changed: dict[str, Any]) -> None:
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_attention_heads": 4}
    for more, packs in (({}, True), (changed, False)):
        config = AutoConfig.for_model(kind, num_hidden_layers=1, intermediate_size=8, **small, **more)
        assert can_pack(AutoModel.from_config(config), None) == packs


def test_does_not_pack_where_positions_cannot_be_counted() -> None:
    config = AutoConfig.for_model("roberta", vocab_size=VOCABULARY, num_hidden_layers=1, hidden_size=48)
    model = AutoModel.from_config(config)
    assert can_pack(model, None)
    model.embeddings.padding_idx = None
    assert not can_pack(model, None)


def test_int8_is_for_cpus() -> None:
    with pytest.raises(InputError, match="'int8' is for CPUs"):
        ColBERT("bundled/all-MiniLM-L6-v2", device="meta", dtype="int8")
