"""StackedQueries: the oneDNN product against torch's own, and int8 against exact integers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_integrations import TokenEmbeddings
from colbert_integrations.devices import cpu
from colbert_integrations.scoring import StackedQueries, engine_for, onednn, stack_queries
from colbert_integrations.scoring.reference import reference_maxsim
from colbert_integrations.scoring.torch_alone import TorchQueries
from test_maxsim import float32_bound, unit_matrices

pytestmark = pytest.mark.usefixtures("implementation")


def stacks(queries: list[torch.Tensor]) -> list[StackedQueries]:
    """Queries as they are scored here, and where torch has no oneDNN."""
    packed = TokenEmbeddings.from_list(queries)
    return [stack_queries(packed), TorchQueries(packed)]


@pytest.mark.skipif(not onednn.is_available(), reason="needs torch's oneDNN operators on x86")
@settings(deadline=None, max_examples=40)
@given(
    query_sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    document_sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    dim=st.sampled_from([1, 3, 17, 48, 96, 128]),
    seed=st.integers(0, 99),
)
def test_both_products_agree_with_float64(
    query_sizes: list[int], document_sizes: list[int], dim: int, seed: int
) -> None:
    queries, documents = unit_matrices(query_sizes, dim, seed), unit_matrices(document_sizes, dim, seed + 1)
    packed = TokenEmbeddings.from_list(documents)
    expected = reference_maxsim(queries, documents)
    for stack in stacks(queries):
        actual = stack.score(packed.values, packed.offsets.diff()).double()
        torch.testing.assert_close(actual, expected, rtol=0, atol=float32_bound(queries, dim))


def test_what_scores_is_named(implementation: str) -> None:
    named = engine_for(torch.device("cpu"), 128)
    if implementation != "torch":
        assert named == f"compiled kernel ({implementation})"
    else:
        assert named == ("oneDNN" if onednn.is_available() else "torch")
    assert engine_for(torch.device("meta"), 128) == "torch"


# Around what a tile and a chunk of any instruction set hold, and dims that fill tiles of rows in different ways.
LENGTHS = (3, 17, 1, 0, 31, 32, 33, 97, 205)
DIMS = [1, 2, 5, 8, 16, 32, 48, 96, 128]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("query_sizes", [(5,), (33, 1, 60)])
@pytest.mark.parametrize("fast", [True, False])
def test_int8_products_are_exact_integers(
    fast: bool, dim: int, query_sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torch would take ages over them, and they are made of the same numbers in float32."""
    monkeypatch.setattr(cpu, "multiplies", lambda dtype: fast)
    generator = torch.Generator().manual_seed(dim)
    codes = [torch.randint(-127, 128, (length, dim), generator=generator).to(torch.int8) for length in LENGTHS]
    queries = [torch.randint(-127, 128, (size, dim), generator=generator).float() for size in query_sizes]
    for code, query in itertools.product(codes, queries):
        code[:1] = 127  # the largest sums there can be
        query[:, 0] = 127  # so that one step of each token is worth 1
    steps = torch.tensor([0.5, 2.0, 1.0, 4.0, 1.0, 0.25, 2.0, 1.0, 8.0])
    packed = TokenEmbeddings.from_list(codes)
    expected = reference_maxsim(queries, [code.float() * step for code, step in zip(codes, steps, strict=True)])
    for stack in stacks(queries):
        scores = stack.score_int8(packed.values, packed.offsets.diff(), steps)
        assert scores.double().tolist() == expected.tolist()


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("query_sizes", [(5,), (33, 1, 60)])
def test_bfloat16_products_of_small_integers_are_exact(dim: int, query_sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(dim)
    documents = [torch.randint(-9, 10, (length, dim), generator=generator).bfloat16() for length in LENGTHS]
    queries = [torch.randint(-9, 10, (size, dim), generator=generator).float() for size in query_sizes]
    packed = TokenEmbeddings.from_list(documents)
    scores = stack_queries(TokenEmbeddings.from_list(queries)).score(packed.values, packed.offsets.diff())
    assert scores.double().tolist() == reference_maxsim(queries, documents).tolist()


@dataclass(frozen=True)
class Whole:
    """A form in few bits, whose levels are whole numbers, so that products are exact."""

    nbits: int
    dim: int

    @property
    def levels(self) -> torch.Tensor:
        return 7.0 * torch.arange(2**self.nbits) % 2**self.nbits - 5  # each once, in no order

    def pack(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Rows of bytes, bit by bit."""
        rows = []
        for row, scale in zip(codes.tolist(), scales.half(), strict=True):
            word = sum(code << place * self.nbits for place, code in enumerate(row))
            rows.append([*word.to_bytes(-(-self.dim * self.nbits // 8), "little"), *scale.numpy().tobytes()])
        return torch.tensor(rows, dtype=torch.uint8)

    def unpack(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        words = [int.from_bytes(row[:-2], "little") for row in packed.tolist()]
        codes = [[word >> place * self.nbits & 2**self.nbits - 1 for place in range(self.dim)] for word in words]
        return self.levels[torch.tensor(codes)], packed[:, -2:].clone().view(torch.float16)[:, 0].float()


@pytest.mark.parametrize("dim", [*DIMS, 15, 17, 31, 63])
@pytest.mark.parametrize("query_sizes", [(5,), (33, 1, 60)])
@pytest.mark.parametrize("nbits", [4, 2])
def test_few_bits_are_read_where_they_lie(nbits: int, dim: int, query_sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(dim)
    codes = [torch.randint(0, 2**nbits, (length, dim), generator=generator) for length in LENGTHS]
    scales = [2.0 ** torch.randint(-1, 2, (length,), generator=generator) for length in LENGTHS]
    queries = [torch.randint(-9, 10, (size, dim), generator=generator).float() for size in query_sizes]
    form = Whole(nbits, dim)
    expected = reference_maxsim(
        queries, [form.levels[code] * scale[:, None] for code, scale in zip(codes, scales, strict=True)]
    )
    packed = form.pack(torch.cat(codes), torch.cat(scales))
    for stack in stacks(queries):
        scores = stack.score_few_bits(packed, torch.tensor(LENGTHS), form)
        assert scores.double().tolist() == expected.tolist()


def test_a_scale_of_few_bits_may_be_any_half() -> None:
    """Of each exponent, subnormal and zero too; a NaN shows in the score."""
    form, halves = Whole(4, 8), torch.arange(0, 2**15, 97, dtype=torch.int16).view(torch.float16)
    halves = halves[halves.isfinite()]
    packed = form.pack(torch.full((len(halves), 8), 2), halves)  # the level of 2 is 9
    for stack in stacks([torch.ones(1, 8)]):
        scores = stack.score_few_bits(packed, torch.ones(len(halves), dtype=torch.int64), form)
        assert torch.equal(scores[0], 72 * halves.float())
        none = form.pack(torch.zeros(1, 8, dtype=torch.int64), torch.tensor([float("nan")]))
        assert stack.score_few_bits(none, torch.tensor([1]), form).isnan().all()


def test_products_of_torch_and_ours_take_turns() -> None:
    # Both may tell the CPU what its tiles are (AMX); neither may rely on what it told it before.
    halves = torch.randint(-9, 10, (64, 64), generator=torch.Generator().manual_seed(1)).bfloat16()
    packed = TokenEmbeddings.from_list([halves])
    before = halves @ halves.T, stack_queries(packed).score(halves, torch.tensor([64]))
    for _ in range(3):
        assert torch.equal(halves @ halves.T, before[0])
        assert torch.equal(stack_queries(packed).score(halves, torch.tensor([64])), before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_can_be_scaled(dtype: torch.dtype) -> None:
    queries, documents = unit_matrices([4, 2], 8, 1), unit_matrices([3, 5], 8, 2)
    packed = TokenEmbeddings.from_list(documents).to(dtype=dtype)
    scales = torch.tensor([1.0, 2.0, 0.5, 0.25, 4.0, 1.0, 2.0, 8.0])
    expected = reference_maxsim(queries, torch.split(packed.values.float() * scales[:, None], [3, 5]))
    for stack in stacks(queries):
        scores = stack.score(packed.values, packed.offsets.diff(), scales)
        torch.testing.assert_close(scores.double(), expected, rtol=0, atol=8 * float32_bound(queries, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_torch_alone_goes_through_many_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_FEWEST_ROWS", 16)
    monkeypatch.setattr(onednn, "_MOST_ROWS", 16)
    queries, documents = unit_matrices([4, 2], 8, 1), unit_matrices([9, 5, 0, 30, 5, 1, 12], 8, 2)
    packed = TokenEmbeddings.from_list(documents).to(dtype=dtype)
    lengths, scales = packed.offsets.diff(), torch.linspace(0.5, 2, len(packed.values))
    exact = reference_maxsim(queries, [matrix.float() for matrix in packed])
    scaled = reference_maxsim(queries, torch.split(packed.values.float() * scales[:, None], packed.lengths))
    for stack in stacks(queries):
        for actual, expected in (
            (stack.score(list(packed), lengths), exact),
            (stack.score(packed.values, lengths), exact),
            (stack.score(packed.values, lengths, scales), scaled),
        ):
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2 * float32_bound(queries, 8))


def test_no_flag_of_the_process_is_changed() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled, torch.get_num_threads()
    rows = torch.ones(4, 8)
    stack_queries(TokenEmbeddings.from_list([rows])).score(rows, torch.tensor([4]))
    assert (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled, torch.get_num_threads()) == before
