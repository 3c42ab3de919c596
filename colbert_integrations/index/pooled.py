"""The pooled candidate stage's vectors: a quarter as many for each document, in int8."""

from __future__ import annotations

import torch

from ..embeddings import TokenEmbeddings, offsets_of
from .kmeans import pool_by_kmeans
from .layout import Layout, part
from .rows import PackedRows

__all__ = ["empty_pooled", "extend_pooled", "with_room"]

# 1 vector in so many is left.
_FACTOR = 4
# Documents that are pooled at once; long ones in pieces of so many tokens, a multiple of the factor, since work and
# memory grow with the square of the longest piece.
_DOCUMENTS = 256
_TOKENS = 512


def empty_pooled(source: PackedRows, rows: int) -> PackedRows:
    """Room for pooled vectors, in the same kind of memory as those that they are made of."""
    layout = Layout(source.layout.dim, nbits=8)
    return PackedRows(layout, layout.empty(rows, source.device, pin=source.is_pinned))


def with_room(pooled: PackedRows | None, source: PackedRows, documents: int) -> PackedRows:
    """Find room for the pooled vectors of documents.

    Args:
        pooled: Those that were made. None: none.
        source: The vectors that they are made of.
        documents: Of how many of the first documents.

    Returns:
        ``pooled``, or larger memory with what it holds; whoever reads the old one may go on.
    """
    done, used = (0, 0) if pooled is None else (len(pooled), pooled.bounds[-1])
    needed = used + sum(-(-length // _FACTOR) for length in source.lengths[done:documents])
    if pooled is not None and needed <= pooled.capacity:
        return pooled
    wider = empty_pooled(source, min(source.capacity, max(needed, 2 * used)))
    if pooled is not None:
        wider.write(part(pooled.columns, slice(done), slice(used)), pooled.lengths)
    return wider


def extend_pooled(pooled: PackedRows, source: PackedRows, documents: int) -> None:
    """Pool the vectors of documents that were not pooled yet.

    Args:
        pooled: Those that were made, with room for the others.
        source: The vectors that they are made of.
        documents: How many of the first documents are to be there.
    """
    start = len(pooled)
    for stop in range(start + _DOCUMENTS, documents + _DOCUMENTS, _DOCUMENTS):
        block = source.block(start, min(stop, documents))
        values = source.layout.decode(block.columns, block.lengths).float()
        merged = _merged(values, block.lengths)
        pooled.write(pooled.layout.encode(merged), merged.lengths)
        start = stop


def _merged(values: torch.Tensor, lengths: torch.Tensor) -> TokenEmbeddings:
    """Vectors of documents, 1 in ``_FACTOR`` of them left; long documents are merged piece by piece."""
    counts = [min(_TOKENS, n - at) for n in lengths.tolist() for at in range(0, n, _TOKENS)]
    pieces = torch.tensor(counts, dtype=torch.int64, device=lengths.device)
    merged = pool_by_kmeans(TokenEmbeddings(values, offsets_of(pieces)), _FACTOR)
    return TokenEmbeddings(merged.values, offsets_of(-(-lengths // _FACTOR)))
