"""The portable MaxSim on ragged batches: plain torch, any device, no padding and no mask."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from ..embeddings import TokenEmbeddings
from .stacked import StackedQueries

__all__ = ["ragged_maxsim"]

# Most tokens of queries that are stacked.
_QUERY_TOKENS = 4096


def ragged_maxsim(queries: TokenEmbeddings, documents: TokenEmbeddings) -> torch.Tensor:
    """Score packed batches, chunk by chunk.

    ``scores[i, j] = sum_s max_t <queries[i][s], documents[j][t]>``

    Args:
        queries: At least one query, on the documents' device.
        documents: At least one document, of the same ``dim``.

    Returns:
        ``(len(queries), len(documents))`` float32 on the documents' device; ``-inf`` for a document without tokens.
        A NaN in a vector makes its scores NaN.
    """
    double = torch.float64 in (queries.dtype, documents.dtype)
    scores = torch.empty(len(queries), len(documents), dtype=torch.float32, device=documents.device)
    for first, last in _chunks(queries.lengths, _QUERY_TOKENS):
        stacked = StackedQueries(queries[first:last], torch.float64 if double else torch.float32)
        for start, stop in _chunks(documents.lengths, stacked.block_rows):
            some = documents[start:stop]
            scores[first:last, start:stop] = stacked.score(some.values, some.offsets.diff())
    return scores


def _chunks(lengths: list[int], budget: int) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours whose lengths sum up to the budget; one longer than the budget stands alone."""
    cuts, total = [0], 0
    for position, length in enumerate(lengths):
        if total and total + length > budget:
            cuts.append(position)
            total = 0
        total += length
    return pairwise([*cuts, len(lengths)])
