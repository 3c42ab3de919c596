"""TokenEmbeddings: packing, slicing, moving, and refusing what is not a ragged batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colbert_integrations import TokenEmbeddings
from colbert_integrations.errors import InputError, ShapeError

lengths = st.lists(st.integers(0, 5), max_size=6)


def matrices(sizes: list[int], dim: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return [torch.randn(size, dim, generator=generator) for size in sizes]


@given(lengths)
def test_packs_and_gives_back_each_matrix(sizes: list[int]) -> None:
    parts = matrices(sizes)
    packed = TokenEmbeddings.from_list(parts, dim=3)
    assert len(packed) == len(parts)
    assert packed.lengths == sizes
    assert packed.offsets.tolist() == np.cumsum([0, *sizes]).tolist()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(packed, parts, strict=True))


@given(lengths, st.slices(6))
def test_slices_like_a_list(sizes: list[int], cut: slice) -> None:
    parts = matrices(sizes)
    sliced = TokenEmbeddings.from_list(parts, dim=3)[cut]
    assert [matrix.tolist() for matrix in sliced] == [matrix.tolist() for matrix in parts[cut]]


@given(lengths, lengths)
def test_concat_is_list_addition(first: list[int], second: list[int]) -> None:
    parts = matrices(first) + matrices(second)
    joined = TokenEmbeddings.concat(
        [TokenEmbeddings.from_list(matrices(first), 3), TokenEmbeddings.from_list(matrices(second), 3)]
    )
    assert [matrix.tolist() for matrix in joined] == [matrix.tolist() for matrix in parts]


def test_packs_what_generators_give() -> None:
    parts = matrices([2, 1])
    packed = TokenEmbeddings.from_list(matrix for matrix in parts)
    assert [matrix.tolist() for matrix in packed] == [matrix.tolist() for matrix in parts]
    assert TokenEmbeddings.concat(packed for _ in range(2)).lengths == [2, 1, 2, 1]
    with pytest.raises(ShapeError, match="dim="):
        TokenEmbeddings.from_list(matrix for matrix in ())
    with pytest.raises(InputError, match="at least one"):
        TokenEmbeddings.concat(batch for batch in ())


def test_a_stack_of_matrices_is_one_text_each() -> None:
    stack = torch.arange(24.0).reshape(2, 3, 4)
    packed = TokenEmbeddings.from_list(stack)
    assert packed.lengths == [3, 3]
    assert torch.equal(packed.values, stack.reshape(6, 4))


def test_negative_index_counts_from_the_end_and_a_wrong_one_raises() -> None:
    packed = TokenEmbeddings.from_list(matrices([1, 2]))
    assert torch.equal(packed[-1], packed[1])
    for index in (2, -3):
        with pytest.raises(IndexError):
            packed[index]


def test_makes_values_contiguous() -> None:
    values = torch.arange(6.0).reshape(2, 3).T
    packed = TokenEmbeddings(values, torch.tensor([0, 3]))
    assert packed.values.is_contiguous()
    assert torch.equal(packed[0], values)


def test_to_changes_values_only() -> None:
    moved = TokenEmbeddings.from_list(matrices([2, 1])).to("cpu", torch.bfloat16)
    assert moved.dtype == torch.bfloat16
    assert moved.offsets.dtype == torch.int64
    assert moved.lengths == [2, 1]


def test_nothing_is_copied_where_nothing_changes() -> None:
    packed = TokenEmbeddings.from_list(matrices([2, 1]))
    assert packed.to("cpu", packed.dtype) is packed
    assert packed[:] is packed


@pytest.mark.parametrize(
    ("values", "offsets"),
    [
        (torch.zeros(3), [0, 3]),
        (torch.zeros(3, 2, 2), [0, 3]),
        (torch.zeros(3, 2), [0, 2]),
        (torch.zeros(3, 2), [1, 3]),
        (torch.zeros(3, 2), [0, 4, 3]),
        (torch.zeros(3, 2), []),
        (torch.zeros(3, 2), [[0, 3]]),
    ],
)
def test_refuses_what_is_no_ragged_batch(values: torch.Tensor, offsets: list) -> None:
    with pytest.raises(ShapeError):
        TokenEmbeddings(values, torch.tensor(offsets, dtype=torch.int64))


def test_refuses_offsets_that_are_no_int64() -> None:
    with pytest.raises(ShapeError, match="int64"):
        TokenEmbeddings(torch.zeros(3, 2), torch.tensor([0.0, 3.0]))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TokenEmbeddings(np.zeros((3, 2)), torch.tensor([0, 3])), "values must be a tensor, not ndarray"),
        (lambda: TokenEmbeddings(torch.zeros(3, 2), [0, 3]), "offsets must be a tensor, not list"),
        (lambda: TokenEmbeddings.from_list([[[1.0, 2.0]]]), "matrix 0 must be a tensor, not list"),
        (lambda: TokenEmbeddings.from_list([torch.zeros(1, 2), [[1.0]]]), "matrix 1 must be a tensor, not list"),
        (
            lambda: TokenEmbeddings.from_list([np.array([["a"]])]),
            "matrix 0 must be an array of real numbers, not of <U1",
        ),
        (
            lambda: TokenEmbeddings.from_list([np.ones((1, 1), np.longdouble)]),
            "matrix 0 must be .* not of (longd|float)",
        ),
        (lambda: TokenEmbeddings.from_list([np.ones((1, 1), np.complex64)]), "matrix 0 must be .* real .*complex64"),
        (lambda: TokenEmbeddings.from_list([torch.ones(1, 2) * 1j]), "matrix 0 must be .* real numbers.*complex64"),
        (lambda: TokenEmbeddings.from_list([torch.ones(1, 2).to_sparse()]), "matrix 0 must be a dense tensor.*sparse"),
        (lambda: TokenEmbeddings.from_list({torch.ones(1, 2)}), "matrices must be a list, not set"),
        (lambda: TokenEmbeddings.from_list(5), "matrices must be a list, not int"),
        (lambda: TokenEmbeddings.concat(5), "batches must be a list, not int"),
        (lambda: TokenEmbeddings.concat([torch.ones(1, 2)]), r"batches\[0\] must be TokenEmbeddings, not Tensor"),
        (lambda: TokenEmbeddings(torch.ones(3, 2, device="meta"), torch.tensor([0, 3])), "values must be .* on meta"),
    ],
)
def test_refuses_what_is_no_tensor(make: Callable[[], TokenEmbeddings], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make()


def test_refuses_matrices_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"matrix 0 must have shape \(num_tokens, dim\)"):
        TokenEmbeddings.from_list([torch.tensor(1.0)])
    with pytest.raises(ShapeError, match="matrix 1"):
        TokenEmbeddings.from_list([torch.zeros(1, 2), torch.zeros(1, 3)])
    with pytest.raises(ShapeError, match="dim="):
        TokenEmbeddings.from_list([])
    with pytest.raises(ShapeError, match=r"\[2, 3\]"):
        TokenEmbeddings.concat([TokenEmbeddings.from_list([torch.zeros(1, dim)]) for dim in (2, 3)])
    with pytest.raises(InputError, match="at least one"):
        TokenEmbeddings.concat([])


def test_lengths_are_the_callers_own() -> None:
    batch = TokenEmbeddings.from_list([torch.ones(n, 2) for n in (3, 1)])
    batch.lengths.sort()
    assert batch.lengths == [3, 1]


@pytest.mark.parametrize("turn", [lambda a: a[::-1], lambda a: a.astype(">f4"), lambda a: a[:, ::2]])
def test_arrays_of_any_strides_and_byte_order_are_taken(turn: Callable[[np.ndarray], np.ndarray]) -> None:
    array = turn(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert TokenEmbeddings.from_list([array]).values.tolist() == array.tolist()


def test_a_slice_of_nothing_is_of_the_same_kind() -> None:
    batch = TokenEmbeddings(torch.zeros(3, 2, dtype=torch.float16), torch.tensor([0, 1, 3]))
    for nothing in (batch[1:1], batch[2:], batch[1:1:2], batch[0:1:-1]):
        assert (len(nothing), nothing.dim, nothing.dtype) == (0, 2, torch.float16)
