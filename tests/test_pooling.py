"""Token pooling against sentence-transformers' own on the same vectors, and its simple promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_integrations import TokenEmbeddings
from colbert_integrations.errors import InputError
from colbert_integrations.pooling import pool_tokens


def unit(sizes: list[int], seed: int = 0) -> TokenEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.nn.functional.normalize(torch.randn(size, 8, generator=generator), dim=-1) for size in sizes]
    return TokenEmbeddings.from_list(drawn, 8)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.sampled_from([1, 1.5, 2, 3]), st.booleans())
def test_equals_the_peers_output(sizes: list[int], factor: float, normalize: bool) -> None:
    peer = pytest.importorskip(
        "sentence_transformers.multi_vector_encoder.modules.token_pooling",
        reason="needs the extra [conformance]: sentence-transformers 6",
    )
    embeddings = unit(sizes)
    theirs = peer.HierarchicalTokenPooling(factor, normalize_embeddings=normalize)
    ours = pool_tokens(embeddings, factor, normalize=normalize)
    for mine, matrix in zip(ours, embeddings, strict=True):
        expected = theirs.pool_one(matrix) if factor > 1 or normalize else matrix
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)


def test_twins_are_merged_by_hand() -> None:
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    first, almost = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])
    # The first row is protected; of the other four two pairs of neighbours become their means.
    embeddings = TokenEmbeddings.from_list([torch.stack([first, east, north, almost, north])])
    pooled = pool_tokens(embeddings, 2)[0]
    assert pooled[0].tolist() == first.tolist()
    means = sorted(row.tolist() for row in pooled[1:])
    assert means == [[0.0, 1.0], pytest.approx([0.9, 0.3])]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_text_that_is_not_finite_is_left_as_it_is_and_takes_no_other_with_it(value: float) -> None:
    embeddings = unit([9, 9])
    spoilt = TokenEmbeddings(embeddings.values.clone(), embeddings.offsets)
    spoilt.values[4, 3] = value
    pooled = pool_tokens(spoilt, 2)
    torch.testing.assert_close(pooled[0], spoilt[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(pooled[1], pool_tokens(embeddings, 2)[1])


def test_short_texts_are_left_alone() -> None:
    embeddings = unit([0, 1, 2])
    assert torch.equal(pool_tokens(embeddings, 5).values, embeddings.values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_pooled_and_stays_half_precision(dtype: torch.dtype) -> None:
    halves = unit([9, 4]).to(dtype=dtype)
    pooled, exact = pool_tokens(halves, 2), pool_tokens(halves.to(dtype=torch.float32), 2)
    assert (pooled.dtype, pooled.lengths) == (dtype, exact.lengths)
    # Sums and means of at most 9 numbers below 1, each rounded.
    torch.testing.assert_close(pooled.values.float(), exact.values, rtol=0, atol=10 * torch.finfo(dtype).eps)


def test_a_text_of_fewer_vectors_than_the_factor_becomes_one_beside_those_protected() -> None:
    (matrix,) = embeddings = unit([4])
    pooled = pool_tokens(embeddings, 5)[0]
    torch.testing.assert_close(pooled, torch.stack([matrix[0], matrix[1:].mean(0)]), rtol=0, atol=1e-6)


def test_very_long_texts_are_pooled_in_equal_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they would be by hand, one stretch after another, so that memory has a limit."""
    (matrix,) = embeddings = unit([22])
    stretches = [TokenEmbeddings.from_list([matrix[first : first + 7]]) for first in (1, 8, 15)]
    expected = [matrix[:1], *(pool_tokens(stretch, 2, num_protected_tokens=0)[0] for stretch in stretches)]
    monkeypatch.setattr("colbert_integrations.pooling._MOST_ROWS", 10)
    assert torch.equal(pool_tokens(embeddings, 2)[0], torch.cat(expected))


def test_vectors_that_are_being_trained_are_pooled() -> None:
    (trained,) = unit([9])
    pooled = pool_tokens(TokenEmbeddings.from_list([trained.clone().requires_grad_()]), 2)
    assert torch.equal(pooled.values.detach(), pool_tokens(TokenEmbeddings.from_list([trained]), 2).values)


def test_nothing_pools_to_nothing() -> None:
    assert len(pool_tokens(TokenEmbeddings.from_list([], 8), 2)) == 0


def test_impossible_arguments_are_refused() -> None:
    for impossible in (0.9, float("nan"), float("inf")):
        with pytest.raises(InputError, match="pool_factor must be at least 1"):
            pool_tokens(unit([3]), impossible)
    for unusable in (-1, "1", 1.0, None, True):
        with pytest.raises(InputError, match=f"num_protected_tokens must be a whole number from 0, not {unusable!r}"):
            pool_tokens(unit([3]), 2, num_protected_tokens=unusable)


def test_vectors_of_any_length_are_clustered_by_their_directions() -> None:
    embeddings = unit([40])
    longer = TokenEmbeddings(embeddings.values * torch.linspace(2, 30, 40)[:, None], embeddings.offsets)
    pooled = pool_tokens(longer, 2, normalized=False)[0]
    assert len(pooled) == len(pool_tokens(embeddings, 2)[0]) == 1 + 39 // 2
    turned = pool_tokens(TokenEmbeddings(3 * embeddings.values, embeddings.offsets), 2, normalized=False)[0]
    torch.testing.assert_close(turned, 3 * pool_tokens(embeddings, 2)[0], rtol=0, atol=1e-6)
