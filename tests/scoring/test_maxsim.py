"""MaxSim against its definition in float64, and the cases that other implementations get wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_integrations import TokenEmbeddings, maxsim
from colbert_integrations.errors import InputError, ShapeError
from colbert_integrations.scoring import compiled, onednn, ragged, torch_alone
from colbert_integrations.scoring.reference import reference_maxsim

pytestmark = pytest.mark.usefixtures("implementation")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def unit_matrices(sizes: list[int], dim: int, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(size, dim, generator=generator) for size in sizes]
    return [torch.nn.functional.normalize(matrix, dim=-1).to(dtype) for matrix in drawn]


def float32_bound(queries: list[torch.Tensor], dim: int) -> float:
    """What summing in float32 can err: dim products of unit vectors, then one sum over the query's tokens."""
    longest = max((len(query) for query in queries), default=0)
    return torch.finfo(torch.float32).eps * (dim + longest) * max(1, longest)


def test_hand_computed() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = [torch.tensor([[0.5, 0.25], [0.125, 0.75]]), torch.tensor([[-1.0, -2.0]])]
    # 0.5 + 0.75; -1 + -2
    assert maxsim([query], documents).tolist() == [[1.25, -3.0]]


def test_reference_agrees_with_the_hand_computed_values() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = [torch.tensor([[0.5, 0.25], [0.125, 0.75]]), torch.tensor([[-1.0, -2.0]]), torch.zeros(0, 2)]
    assert reference_maxsim([query], documents).tolist() == [[1.25, -3.0, float("-inf")]]


@settings(deadline=None, max_examples=60)
@given(
    query_sizes=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    document_sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    dim=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_equals_the_definition(query_sizes, document_sizes, dim, dtype, seed) -> None:
    queries = unit_matrices(query_sizes, dim, seed, dtype)
    documents = unit_matrices(document_sizes, dim, seed + 100, dtype)
    # The oracle sees the same rounded inputs, so what is left is the error of the sums alone, in any dtype.
    expected = reference_maxsim(queries, documents)
    actual = maxsim(queries, documents)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=float32_bound(queries, dim))


@settings(deadline=None, max_examples=25)
@given(budget=st.sampled_from([1, 7, 64, 2**10]), seed=st.integers(0, 20))
def test_chunking_does_not_matter(budget: int, seed: int) -> None:
    queries = unit_matrices([3, 1, 5], 8, seed)
    documents = unit_matrices([4, 0, 9, 1, 2], 8, seed + 50)
    whole = maxsim(queries, documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "QUERY_TOKENS", budget)
        for engine in (torch_alone, onednn):
            patch.setattr(engine, "_FEWEST_ROWS", budget)
            patch.setattr(engine, "_MOST_ROWS", budget)
        patch.setattr(compiled, "_MOST_ROWS", budget)
        patch.setattr(onednn, "_MAXIMA", 1)
        torch.testing.assert_close(maxsim(queries, documents), whole, rtol=0, atol=float32_bound(queries, 8))


def test_order_of_documents_does_not_matter() -> None:
    queries, documents = unit_matrices([4], 8, 1), unit_matrices([3, 7, 1, 5], 8, 2)
    backwards = maxsim(queries, documents[::-1]).flip(1)
    torch.testing.assert_close(backwards, maxsim(queries, documents), rtol=0, atol=float32_bound(queries, 8))


def test_a_negative_maximum_survives_beside_a_longer_document() -> None:
    # The fault of implementations that pad with zeros or multiply by a mask: -0.5 would come out as 0.
    query = torch.tensor([[1.0]])
    assert maxsim([query], [torch.tensor([[-0.5]]), torch.tensor([[-0.25], [-0.75], [-1.0]])]).tolist() == [
        [-0.5, -0.25]
    ]


def test_a_document_without_vectors_scores_minus_infinity() -> None:
    scores = maxsim([torch.ones(2, 3), torch.ones(0, 3)], [torch.zeros(0, 3), torch.ones(1, 3)])
    assert scores.tolist() == [[float("-inf"), 6.0], [float("-inf"), 0.0]]


def test_a_strided_view_scores_like_its_copy() -> None:
    wide = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    query, document = wide[::2, ::2], wide.T[:4, :4]
    assert not query.is_contiguous()
    torch.testing.assert_close(maxsim([query], [document]), maxsim([query.clone()], [document.contiguous()]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_and_listed_inputs_score_alike(dtype: torch.dtype) -> None:
    queries, documents = unit_matrices([2, 3], 4, 0), unit_matrices([5, 0, 1, 40], 4, 1, dtype)
    packed = maxsim(TokenEmbeddings.from_list(queries), TokenEmbeddings.from_list(documents))
    assert torch.equal(packed, maxsim(queries, documents))


def test_listed_documents_may_be_views_of_anything() -> None:
    wide = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    documents = [wide[3:9, :6], wide[::3, 6:], wide.T[:6, :6]]
    queries = unit_matrices([4], 6, 1)
    expected = reference_maxsim(queries, documents)
    torch.testing.assert_close(
        maxsim(queries, documents).double(), expected, rtol=0, atol=20 * float32_bound(queries, 6)
    )


def test_documents_of_two_dtypes_score_like_floats() -> None:
    queries, documents = unit_matrices([4], 6, 1), [*unit_matrices([3], 6, 2), *unit_matrices([5], 6, 3, torch.float16)]
    expected = reference_maxsim(queries, documents)
    torch.testing.assert_close(maxsim(queries, documents).double(), expected, rtol=0, atol=float32_bound(queries, 6))


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 210), min_size=1, max_size=4), dim=st.sampled_from([1, 2, 3, 48, 96, 128]))
def test_documents_longer_than_any_tile_or_chunk(lengths: list[int], dim: int) -> None:
    queries, documents = unit_matrices([33, 5], dim, 1), unit_matrices(lengths, dim, 2)
    expected = reference_maxsim(queries, documents)
    torch.testing.assert_close(maxsim(queries, documents).double(), expected, rtol=0, atol=float32_bound(queries, dim))


def test_bfloat16_documents_score_within_their_own_rounding() -> None:
    # A query in float32 may be rounded to the documents' dtype: half a unit in the last of 8 places, a token.
    queries, documents = unit_matrices([32], 128, 1), unit_matrices([150, 7], 128, 2, torch.bfloat16)
    expected = reference_maxsim(queries, documents)
    bound = 32 * 2**-9 + float32_bound(queries, 128)
    torch.testing.assert_close(maxsim(queries, documents).double(), expected, rtol=0, atol=bound)


def test_half_precision_sums_in_float32() -> None:
    # 4,096 ones: a float16 sum stops rising at 2,048, a bfloat16 one at 256.
    for dtype in (torch.float16, torch.bfloat16):
        ones = torch.ones(4096, 1, dtype=dtype)
        assert maxsim([ones], [ones[:1]]).item() == 4096.0


@pytest.mark.parametrize(("ours", "theirs"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_a_side_in_float64_is_summed_in_float64(ours: torch.dtype, theirs: torch.dtype) -> None:
    # 2**30 + 1 - 2**30; in float32 the one is lost when 1 + 2**-30 is rounded.
    fine, large = torch.tensor([[1 + 2.0**-30, 1.0]], dtype=torch.float64), torch.tensor([[2.0**30, -(2.0**30)]])
    query, document = (fine, large) if ours == torch.float64 else (large, fine)
    assert (query.dtype, document.dtype) == (ours, theirs)
    assert maxsim([query], [document]).item() == 1.0


def test_one_tensor_of_matrices_of_one_size_is_a_list_of_them() -> None:
    queries, documents = (torch.stack(unit_matrices([3, 3], 4, seed)) for seed in (0, 1))
    assert torch.equal(maxsim(queries, documents), maxsim(list(queries), list(documents)))


def test_nan_is_not_hidden() -> None:
    document = torch.tensor([[0.0], [float("nan")]])
    assert maxsim([torch.ones(1, 1)], [document, torch.ones(1, 1)]).isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("dim", [2, 32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 11, 12, 30, 99])
def test_nan_is_not_hidden_by_what_comes_after(dtype: torch.dtype, place: int, dim: int) -> None:
    document = torch.ones(100, dim, dtype=dtype)
    document[place, 1] = float("nan")
    scores = maxsim([torch.ones(3, dim)], [document, torch.ones(100, dim, dtype=dtype)])
    assert scores.isnan().tolist() == [[True, False]]


def test_every_number_in_half_precision_is_itself() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[:, None]
        documents = TokenEmbeddings(numbers, torch.arange(2**16 + 1))  # one number each
        scores = maxsim([torch.ones(1, 1)], documents)[0]
        torch.testing.assert_close(scores.numpy(), numbers[:, 0].float().numpy(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_are_numbers(dtype: torch.dtype) -> None:
    document = torch.tensor([[float("inf"), 0.0], [-1.0, 1.0]], dtype=dtype)
    query = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    assert maxsim([query], [document]).item() == float("inf")  # inf + max(-inf, 2)


@pytest.mark.parametrize(("queries", "documents"), [([], []), ([], [torch.ones(1, 2)]), ([torch.ones(1, 2)], [])])
def test_nothing_scores_to_an_empty_matrix(queries, documents) -> None:
    assert maxsim(queries, documents).shape == (len(queries), len(documents))


def test_inputs_are_not_touched() -> None:
    queries, documents = unit_matrices([2], 3, 0), unit_matrices([2, 4], 3, 1)
    before = [matrix.clone() for matrix in queries + documents]
    maxsim(queries, documents)
    assert all(torch.equal(a, b) for a, b in zip(before, queries + documents, strict=True))


def test_no_global_flag_is_changed() -> None:
    before = (torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.is_grad_enabled())
    maxsim(unit_matrices([2], 3, 0), unit_matrices([2], 3, 0))
    assert before == (torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.is_grad_enabled())


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match="dim 2, documents have dim 3"):
        maxsim([torch.ones(1, 2)], [torch.ones(1, 3)])
    with pytest.raises(ShapeError, match="queries"):
        maxsim(torch.ones(2, 3), [torch.ones(1, 3)])
    with pytest.raises(InputError, match="documents"):
        maxsim([torch.ones(1, 3)], [[[1.0, 2.0, 3.0]]])
    with pytest.raises(InputError, match="queries must be .* not NoneType"):
        maxsim(None, [torch.ones(1, 3)])
    with pytest.raises(InputError, match="documents must be .* not int"):
        maxsim([torch.ones(1, 3)], 3)
    with pytest.raises(InputError, match=r"queries\[1\] must be a 2-D tensor or array, not list"):
        maxsim([torch.ones(1, 3), [[1.0, 2.0, 3.0]]], [torch.ones(1, 3)])  # type: ignore[list-item]


def test_arrays_are_scored_as_the_same_tensors() -> None:
    queries, documents = ([torch.randn(n, 16) for n in lengths] for lengths in ((3, 5), (4, 0, 7)))
    arrays = [matrix.numpy() for matrix in documents]
    arrays[0].flags.writeable = False  # as of a file that is mapped
    expected = maxsim(queries, documents)
    assert torch.equal(maxsim([matrix.numpy() for matrix in queries], arrays), expected)
    assert torch.equal(maxsim(queries, [arrays[0], *documents[1:]]), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda matrix: matrix * 1j,
        torch.Tensor.to_sparse,
        lambda matrix: torch.quantize_per_tensor(matrix, 0.1, 0, torch.qint8),
        lambda matrix: matrix.to("meta"),
    ],
    ids=["complex", "sparse", "quantised", "without data"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_refuses_what_are_no_plain_numbers(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    plain, other = torch.ones(1, 3), make(torch.ones(1, 3))
    for queries, documents in (([other], [plain]), ([plain], [other]), ([plain], [other, other]), ([other], [other])):
        with pytest.raises(InputError, match="must be a dense tensor of real numbers, not one of"):
            maxsim(queries, documents)


@pytest.mark.gpu
def test_the_gpu_scores_like_the_cpu() -> None:
    queries, documents = unit_matrices([32, 5], 128, 0), unit_matrices([200, 1, 0, 77], 128, 1)
    on_gpu = maxsim([query.cuda() for query in queries], [document.cuda() for document in documents])
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), maxsim(queries, documents), rtol=0, atol=float32_bound(queries, 128))
