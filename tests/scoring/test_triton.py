"""TritonQueries against the definition in float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interpreted
from colbert_integrations import TokenEmbeddings
from colbert_integrations.errors import InputError, ShapeError
from colbert_integrations.scoring import triton as triton_scoring
from colbert_integrations.scoring.reference import reference_maxsim
from colbert_integrations.scoring.triton import TritonQueries
from colbert_integrations.scoring.triton_or_torch import TritonOrTorchQueries
from test_maxsim import float32_bound, unit_matrices

DEVICE = str(interpreted.DEVICE)

# A document without tokens is -inf times a weight of 0 before it is set right; NumPy says so, a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    from colbert_integrations.scoring import triton_kernels

    with interpreted.interpreted(triton_kernels):
        yield


def packed(matrices: list[torch.Tensor]) -> TokenEmbeddings:
    return TokenEmbeddings.from_list(matrices).to(DEVICE)


def scored(queries: list[torch.Tensor], documents: list[torch.Tensor], steps: torch.Tensor | None = None):
    rows = packed(documents)
    return TritonQueries(packed(queries), rows.dtype).score(rows.values, rows.offsets, steps).cpu().double()


def codes(sizes: list[int], dim: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-127, 128, (size, dim), generator=generator).to(torch.int8) for size in sizes]


RAGGED = {
    "query_sizes": st.lists(st.integers(1, 40), min_size=1, max_size=6),
    "document_sizes": st.lists(st.integers(0, 70), min_size=1, max_size=6),
    "dim": st.sampled_from([16, 48, 96, 128]),
    "seed": st.integers(0, 99),
}


@settings(deadline=None, max_examples=40)
@given(**RAGGED, dtype=st.sampled_from(FLOATS))
def test_equals_the_definition(query_sizes, document_sizes, dim, seed, dtype) -> None:
    queries, documents = (unit_matrices(sizes, dim, seed, dtype) for sizes in (query_sizes, document_sizes))
    expected = reference_maxsim(queries, documents)
    torch.testing.assert_close(scored(queries, documents), expected, rtol=0, atol=float32_bound(queries, dim))


@settings(deadline=None, max_examples=20)
@given(**RAGGED)
def test_int8_products_are_exact_integers(query_sizes, document_sizes, dim, seed) -> None:
    queries, documents = codes(query_sizes, dim, seed), codes(document_sizes, dim, seed + 1)
    for code in queries:
        code[:, 0] = 127  # so that one step of each token is worth 1
    steps = 2.0 ** torch.arange(-2, len(documents) - 2)
    expected = reference_maxsim(queries, documents) * steps
    assert torch.equal(scored([query.float() for query in queries], documents, steps.to(DEVICE)), expected)


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Have kernels count as working, also in the interpreter; the devices for which that was asked."""
    asked = list[torch.device]()
    monkeypatch.setattr(triton_scoring, "is_available", lambda device: asked.append(device) or True)
    return asked


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [24, 48])
def test_what_the_kernel_does_not_take_is_torch_s(dim: int, dtype: torch.dtype, available: list[torch.device]) -> None:
    queries, documents = unit_matrices([5, 3], dim, 1, dtype), unit_matrices([7, 0, 20, 1], dim, 2, dtype)
    rows, stack, scales = (
        packed(documents),
        TritonOrTorchQueries(packed(queries).to(dtype=torch.float32)),
        torch.linspace(1, 2, 28),
    )
    lengths, bound = rows.offsets.diff(), float32_bound(queries, dim)
    expected = reference_maxsim(queries, documents)
    for form in (rows.values, list(rows)):
        torch.testing.assert_close(stack.score(form, lengths).cpu().double(), expected, rtol=0, atol=bound)
    scaled = reference_maxsim(queries, torch.split(rows.values.cpu().double() * scales[:, None], rows.lengths))
    actual = stack.score(rows.values, lengths, scales.to(DEVICE)).cpu().double()
    torch.testing.assert_close(actual, scaled, rtol=0, atol=2 * bound)
    by_kernel = dim == 48 and dtype != torch.float32
    assert (stack.block_rows(dtype) == 2**20) == by_kernel
    assert list(stack._triton) == [dtype] * by_kernel
    assert bool(available) == by_kernel  # what it would not score is no reason to compile and try it


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("dim", [24, 48])
def test_codes_are_scored_in_integers_by_the_kernel_or_torch(dim: int) -> None:
    queries, documents = codes([5, 3], dim, 1), codes([7, 0, 20, 1], dim, 2)
    for code in queries:
        code[:, 0] = 127  # so that one step of each token is worth 1
    rows, steps = packed(documents), torch.tensor([0.5, 1.0, 2.0, 4.0])
    stack = TritonOrTorchQueries(packed([query.float() for query in queries]))
    scores = stack.score_int8(rows.values, rows.offsets.diff(), steps.to(DEVICE)).cpu().double()
    assert torch.equal(scores, reference_maxsim(queries, documents) * steps)
    assert list(stack._triton) == [torch.int8] * (dim == 48)


@settings(deadline=None, max_examples=15)
@given(**RAGGED)
def test_float8_documents_lose_nothing_more(query_sizes, document_sizes, dim, seed) -> None:
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a CUDA device with float8: compute capability 8.9")
    queries = unit_matrices(query_sizes, dim, seed, torch.float16)
    documents = [document.to(torch.float8_e4m3fn) for document in unit_matrices(document_sizes, dim, seed + 1)]
    steps = 2.0 ** torch.arange(-2, len(documents) - 2)
    expected = reference_maxsim(queries, documents) * steps
    actual = scored(queries, documents, steps.to(DEVICE))
    torch.testing.assert_close(actual, expected, rtol=0, atol=8 * float32_bound(queries, dim))


def test_negative_maxima_survive() -> None:
    queries, documents = unit_matrices([5], 16, 0), unit_matrices([1, 3, 64, 65], 16, 1)
    queries, documents = [queries[0].abs()], [-document.abs() for document in documents]
    expected = reference_maxsim(queries, documents)
    assert (expected < 0).all()
    torch.testing.assert_close(scored(queries, documents), expected, rtol=0, atol=float32_bound(queries, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_nothing_scores_minus_infinity_as_a_document_and_zero_as_a_query(dtype: torch.dtype) -> None:
    queries, documents = [torch.ones(2, 16), torch.ones(0, 16)], [torch.zeros(0, 16), torch.ones(1, 16)]
    scores = scored(queries, [document.to(dtype) for document in documents])
    torch.testing.assert_close(scores, torch.tensor([[float("-inf"), 32], [float("-inf"), 0]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_shows_in_its_own_scores_alone(dtype: torch.dtype) -> None:
    queries, documents = (unit_matrices(sizes, 16, 3, dtype) for sizes in ([3, 2], [70, 2, 1]))
    queries[1][0, 5] = documents[0][66, 7] = float("nan")
    assert scored(queries, documents).isnan().tolist() == [[True, False, False], [True, True, True]]


def test_a_nan_shows_without_the_interpreters_repairs_too() -> None:
    with interpreted.reduced_one_by_one():  # hence one small document
        document = torch.ones(2, 16)
        document[0, 3] = float("nan")
        scores = scored([torch.ones(2, 16)], [document, torch.ones(2, 16)])
    assert scores.isnan().tolist() == [[True, False]]
    assert scores[0, 1] == 32


def test_a_nan_in_a_query_is_not_lost_in_int8() -> None:
    queries = [torch.ones(2, 32), torch.ones(2, 32)]
    queries[1][1, 4] = float("nan")
    assert scored(queries, codes([3], 32, 0)).isnan().tolist() == [[False], [True]]


@pytest.mark.parametrize("sizes", [[300, 3, 0], [32] * 9, [33, 1, 256], [1] * 40])
def test_queries_longer_than_a_stack_and_many_of_them(sizes: list[int]) -> None:
    queries, documents = unit_matrices(sizes, 16, 1), unit_matrices([5, 0, 66], 16, 2)
    expected = reference_maxsim(queries, documents)
    torch.testing.assert_close(scored(queries, documents), expected, rtol=0, atol=float32_bound(queries, 16))


@pytest.mark.parametrize("dim", [256, 272, 512])
def test_wide_rows_are_cut_into_chunks(dim: int) -> None:
    queries, documents = unit_matrices([20, 3], dim, 1), unit_matrices([5, 40], dim, 2)
    expected = reference_maxsim(queries, documents)
    torch.testing.assert_close(scored(queries, documents), expected, rtol=0, atol=float32_bound(queries, dim))


@pytest.mark.parametrize("programs", [1, 7, 10**6])
def test_how_documents_are_dealt_out_does_not_matter(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = unit_matrices([3], 16, 1), unit_matrices([*range(35), 0, 0], 16, 2)
    monkeypatch.setattr(triton_scoring, "_FEWEST_PROGRAMS", programs)
    steps = torch.linspace(0.5, 1, len(documents))
    expected = reference_maxsim(queries, documents) * steps
    actual = scored(queries, documents, steps.to(DEVICE))
    torch.testing.assert_close(actual, expected, rtol=0, atol=float32_bound(queries, 16))


def test_a_part_of_a_packed_batch_can_be_scored_in_place() -> None:
    queries, rows = TritonQueries(packed(unit_matrices([4], 16, 1)), torch.float32), packed(codes([4, 5, 0, 7], 16, 1))
    values = rows.values.float()
    whole = queries.score(values, rows.offsets)
    assert torch.equal(queries.score(values, rows.offsets[1:4]), whole[:, 1:3])


def test_addresses_go_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        from triton.runtime import interpreter

        # It would copy all tensors onto themselves, and so make 4 GiB out of pages that nothing else touches.
        monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    # Below the rows as much again, so that an offset that wrapped around would find wrong numbers instead of none.
    rows = torch.empty(2**32 + 2**10, dtype=torch.int8, device=DEVICE)[2**31 :].view(-1, 128)
    ends = torch.tensor([len(rows) - 3, len(rows) - 1, len(rows)], device=DEVICE)
    rows[-3:-1], rows[-1] = 2, 3
    queries = TritonQueries(packed([torch.ones(1, 128)]), torch.int8)
    assert queries.score(rows, ends).round().tolist() == [[256, 384]]


@pytest.mark.parametrize("held", [1, 10, 10**6])
def test_top_k_in_blocks_equals_sorting_all(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_scoring, "_SCORES", held)
    rows = packed(codes([3, 0, 5, 1, 9, 2, 4], 32, 1))
    steps = torch.linspace(0.5, 2, 7).to(DEVICE)
    queries = TritonQueries(packed(unit_matrices([4, 3], 32, 2)), torch.int8)
    everything = queries.score(rows.values, rows.offsets, steps)
    scores, positions = queries.top_k(rows.values, rows.offsets, 3, steps)
    expected, order = everything.sort(dim=1, descending=True)
    assert torch.equal(scores, expected[:, :3])
    assert torch.equal(positions, order[:, :3])
    scores, positions = queries.top_k(rows.values, rows.offsets, 99, steps)
    assert scores.tolist()[0][-1] == float("-inf")
    assert sorted(positions.tolist()[0]) == list(range(7))


@pytest.mark.parametrize(("documents", "k"), [(1, 1), (7, 3), (50, 40), (1024, 64), (1025, 10)])
def test_the_best_of_few_are_those_of_a_stable_sort(documents: int, k: int) -> None:
    scores = torch.randn(3, documents, generator=torch.Generator().manual_seed(documents))
    scores[1] = scores[1].round()  # many are equal, 0 and -0 too
    scores[0, documents // 2], scores[2, -1], scores[2, 0] = float("nan"), -float("nan"), float("-inf")
    best, positions = triton_scoring._top_k(scores.to(DEVICE), k)
    expected, order = scores.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(best.cpu(), expected[:, :k], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(positions.cpu(), order[:, :k])


def test_no_documents_give_no_scores() -> None:
    queries, none = TritonQueries(packed([torch.ones(1, 16)]), torch.float32), torch.zeros(1, dtype=torch.int64)
    assert queries.score(torch.ones(0, 16, device=DEVICE), none.to(DEVICE)).shape == (1, 0)
    assert queries.top_k(torch.ones(0, 16, device=DEVICE), none.to(DEVICE), 3)[0].shape == (1, 0)


def test_queries_can_be_replaced() -> None:
    first, second = unit_matrices([4, 2], 16, 1), unit_matrices([4, 2], 16, 2)
    rows = packed(unit_matrices([3, 7], 16, 3))
    queries = TritonQueries(packed(first), torch.float32)
    queries.replace(packed(second))
    expected = TritonQueries(packed(second), torch.float32).score(rows.values, rows.offsets)
    assert torch.equal(queries.score(rows.values, rows.offsets), expected)
    with pytest.raises(ShapeError, match=r"expected queries of \[4, 2\] tokens"):
        queries.replace(packed(second[::-1]))


def test_refuses_what_does_not_fit() -> None:
    queries = TritonQueries(packed([torch.ones(1, 16)]), torch.float32)
    offsets = torch.tensor([0, 4], device=DEVICE)
    for rows in (torch.ones(4, 32), torch.ones(4, 16).half(), torch.ones(16, 4).T):
        with pytest.raises(ShapeError, match="rows must be contiguous"):
            queries.score(rows.to(DEVICE), offsets)
    for dim, dtype in ((24, torch.float32), (2048, torch.float16), (16, torch.float64)):
        with pytest.raises(InputError, match=f"dim {dim}"):
            TritonQueries(packed([torch.ones(1, dim)]), dtype)


def test_plain_torch_serves_other_devices() -> None:
    assert not triton_scoring.supports(128, torch.float16, torch.device("cpu"))
    assert not triton_scoring.supports(128, torch.float16, torch.device("mps"))


@pytest.mark.usefixtures("available")
def test_plain_torch_serves_other_forms() -> None:
    taken = [dim for dim in (0, 16, 24, 128, 1024, 1040) if triton_scoring.supports(dim, torch.float16, DEVICE)]
    assert taken == [16, 128, 1024]
    dtypes = (torch.float64, torch.float32, torch.int8)
    assert [dtype for dtype in dtypes if triton_scoring.supports(128, dtype, DEVICE)] == [torch.float32, torch.int8]


def test_the_trial_launches_both_kernels_whatever_the_default_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    top_k = triton_scoring._top_k
    monkeypatch.setattr(triton_scoring, "_top_k", lambda *given: found.append(top_k(*given)) or found[-1])
    with torch.device("meta"):
        triton_scoring._try(interpreted.DEVICE)
    ((scores, positions),) = found
    assert (scores.tolist(), positions.tolist()) == ([[0.0]], [[0]])
