"""Spherical k-means within each of many documents at once: fewer vectors for the pooled candidate stage."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from ..embeddings import TokenEmbeddings, offsets_of

__all__ = ["pool_by_kmeans"]

_ROUNDS = 2


@torch.no_grad()
def pool_by_kmeans(embeddings: TokenEmbeddings, factor: int) -> TokenEmbeddings:
    """Merge similar vectors of each document into their mean.

    ``clusters = ceil(tokens / factor)``; they start as runs of neighbouring tokens, then two rounds of k-means.

    Not ``pool_tokens``: its Ward linkage merges better, but takes one document at a time and scipy, and here the
    merged vectors only choose what is scored by the full ones.

    Args:
        embeddings: The vectors, float32, at least one for each document.
        factor: About 1 in so many vectors is left.

    Returns:
        As many documents, float32; means keep the length that averaging leaves them, which tells tight groups from
        loose ones.
    """
    lengths = embeddings.offsets.diff()
    counts = -(-lengths // factor)
    firsts = offsets_of(counts)  # of each document's clusters
    places = _places(lengths)  # of each token in its document
    owner = torch.repeat_interleave(lengths)
    padded = embeddings.values.new_zeros(len(lengths), int(lengths.max()), embeddings.dim)
    padded[owner, places] = embeddings.values  # (documents, most tokens, dim)
    labels = firsts[owner] + places // factor
    means = _means(embeddings.values, labels, int(firsts[-1]), None)
    cluster_owner = torch.repeat_interleave(counts)
    cluster_places = _places(counts)
    for _ in range(_ROUNDS):
        centres = padded.new_zeros(len(counts), int(counts.max()), embeddings.dim)
        centres[cluster_owner, cluster_places] = normalize(means, dim=-1)
        nearest = _nearest(padded, centres, counts)[owner, places]
        means = _means(embeddings.values, firsts[owner] + nearest, int(firsts[-1]), means)
    return TokenEmbeddings(means, firsts)


def _places(lengths: torch.Tensor) -> torch.Tensor:
    """``0 .. length - 1`` for each length, one after another."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum()), device=lengths.device) - starts.repeat_interleave(lengths)


def _nearest(padded: torch.Tensor, centres: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The cluster of each token, ``(documents, most tokens)`` int64; padding tokens get any."""
    similarities = padded @ centres.transpose(1, 2)  # (documents, most tokens, most clusters)
    absent = torch.arange(centres.shape[1], device=counts.device) >= counts[:, None]
    return similarities.masked_fill_(absent[:, None], float("-inf")).argmax(-1)


def _means(values: torch.Tensor, labels: torch.Tensor, clusters: int, otherwise: torch.Tensor | None) -> torch.Tensor:
    """Mean of the vectors with each label, ``(clusters, dim)``; a cluster that lost all keeps what it was."""
    counts = labels.bincount(minlength=clusters)[:, None]
    sums = values.new_zeros(clusters, values.shape[1]).index_add_(0, labels, values)
    means = sums / counts.clamp_min(1)
    return means if otherwise is None else torch.where(counts > 0, means, otherwise)
