"""MaxSim on ragged batches, block by block: no padding, no mask, and no more memory than a block needs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from ..embeddings import TokenEmbeddings
from .blocks import QUERY_TOKENS, Documents, ranges
from .engines import stack_queries

__all__ = ["ragged_maxsim"]


def ragged_maxsim(queries: TokenEmbeddings, documents: TokenEmbeddings | Sequence[torch.Tensor]) -> torch.Tensor:
    """Score batches, block by block.

    ``scores[i, j] = sum_s max_t <queries[i][s], documents[j][t]>``

    Args:
        queries: At least one query, on the documents' device.
        documents: At least one document, packed or one matrix each, of the same ``dim``. Matrices are joined block by
            block or not at all: joining all of them costs more than scoring them.

    Returns:
        ``(len(queries), len(documents))`` float32 on the documents' device; ``-inf`` for a document without tokens.
        A NaN in a vector makes its scores NaN.
    """
    if isinstance(documents, TokenEmbeddings):
        vectors, lengths = documents.values, documents.lengths
    else:
        vectors, lengths = documents[0], list(map(len, documents))
    device, dtype = vectors.device, vectors.dtype
    computed_in = torch.float64 if torch.float64 in (queries.dtype, dtype) else torch.float32
    on_device = torch.tensor(lengths, dtype=torch.int64, device=device)
    bounds = [0, *accumulate(lengths)]
    scores = torch.empty(len(queries), len(documents), dtype=torch.float32, device=device)
    for first, last in ranges([0, *accumulate(queries.lengths)], QUERY_TOKENS):
        stacked = stack_queries(queries[first:last], computed_in)
        for start, stop in ranges(bounds, stacked.block_rows(dtype)):
            block = _block(documents, bounds, start, stop)
            scores[first:last, start:stop] = stacked.score(block, on_device[start:stop])
    return scores


def _block(documents: TokenEmbeddings | Sequence[torch.Tensor], bounds: list[int], start: int, stop: int) -> Documents:
    if isinstance(documents, TokenEmbeddings):
        return documents.values[bounds[start] : bounds[stop]]
    return documents[start:stop]
