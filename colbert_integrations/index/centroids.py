"""Centroids of a store's vectors, and for each the documents near it: candidates without a look at every document.

Vectors are grouped around centroids. ``InvertedLists`` name, for each centroid, the documents of a segment that have a
vector near it. A query token looks into the lists of the few centroids most similar to it: what it finds there counts
as the centroid's similarity, what it does not find as that of the best centroid that it did not look into, and the sum
over query tokens ranks the candidates.

Source: the lists are those of PLAID (Santhanam et al. 2022), what stands in for similarities that are not known is that
of XTR (Lee et al. 2023) and WARP (Scheerer et al. 2025).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch.nn.functional import normalize

from ..embeddings import TokenEmbeddings, offsets_of
from ..scoring.blocks import ranges
from .rows import PackedRows

__all__ = ["Centroids", "InvertedLists", "Probes", "sample_rows", "train"]

# Many short lists are quick to read, and tell documents apart; the query is compared with each centroid, though.
_PER_ROOT, _MOST = 3, 2**15
# Vectors that centroids are made of, at least so many for each, and so many numbers in all: 128 MiB.
_SAMPLE_EACH, _SAMPLE_NUMBERS = 8, 2**25
_ROUNDS = 4
# Lists that each query token looks into.
_PROBES = 32
# A store that has grown by this factor gets new centroids.
_OUTGROWN = 4
# Numbers of a table that is made at once: 32 MiB. On a GPU 128 MiB, since each part costs it hundreds of launches.
_CELLS, _CELLS_ON_GPU = 2**23, 2**25


def sample_rows(dim: int) -> int:
    """How many vectors to make centroids of."""
    return max(1, _SAMPLE_NUMBERS // dim)


@dataclass(frozen=True, eq=False)
class Centroids:
    """Centroids in two levels: a vector is compared with all groups, then with the centroids of one.

    To compare it with all of them would take fifty times as long, for which more lists can be read.

    Attributes:
        means: Mean of the vectors around each centroid, ``(centroids, dim)`` float32; those of a group are neighbours.
        groups: Directions of the groups, ``(groups, dim)`` float32.
        sizes: Number of centroids of each group.
        rows: How many vectors the store had.
        name: A unique one.
    """

    means: torch.Tensor
    groups: torch.Tensor
    sizes: tuple[int, ...]
    rows: int
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __len__(self) -> int:
        return len(self.means)

    @cached_property
    def _filled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The groups that have centroids, by number, and their directions: no vector of a sample chose the others."""
        numbers = torch.tensor(self.sizes, device=self.groups.device).nonzero()[:, 0]
        return numbers, self.groups[numbers]

    @cached_property
    def _directions(self) -> tuple[torch.Tensor, ...]:
        return torch.split(normalize(self.means, dim=-1), list(self.sizes))

    def on(self, device: torch.device) -> Centroids:
        """The same on a device."""
        if self.means.device == device:
            return self
        return Centroids(self.means.to(device), self.groups.to(device), self.sizes, self.rows, self.name)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds."""
        return {"means": self.means, "groups": self.groups}

    def outgrown(self, rows: int) -> bool:
        """Whether a store of so many vectors should have new ones."""
        return rows > _OUTGROWN * self.rows

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """The centroid of each vector, by cosine.

        Args:
            values: ``(rows, dim)`` float32.

        Returns:
            ``(rows,)`` int64.
        """
        numbers, directions = self._filled
        group = numbers[(values @ directions.T).argmax(1)]
        order = group.argsort(stable=True)
        parts = torch.split(values[order], group.bincount(minlength=len(self.sizes)).tolist())
        firsts = accumulate(self.sizes, initial=0)
        triples = zip(parts, self._directions, firsts, strict=False)  # the last sum is the number of centroids
        found = torch.cat([(part @ each.T).argmax(1) + first for part, each, first in triples if len(part)])
        return torch.empty_like(found).index_copy_(0, order, found)

    @torch.no_grad()
    def probe(self, queries: TokenEmbeddings) -> list[Probes]:
        """Choose the lists that queries look into.

        Args:
            queries: The queries, float32.

        Returns:
            The lists of each query.
        """
        # The last one is not looked into: what is in no list may be in that one.
        count = min(_PROBES + 1, len(self))
        parts = torch.split(queries.values, max(1, _CELLS // len(self)))
        best = [(part @ self.means.T).topk(count, dim=1) for part in parts]
        similarities, lists = torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])
        gains = (similarities - similarities[:, -1:])[:, :_PROBES].flip(1).cpu()
        splits = (torch.split(part, queries.lengths) for part in (lists[:, :_PROBES].flip(1).cpu(), gains))
        return [Probes(each.numpy(), gain.numpy()) for each, gain in zip(*splits, strict=True)]


@dataclass(frozen=True, eq=False)
class Probes:
    """Lists that a query looks into.

    Attributes:
        lists: Centroids of the lists of each token, the most similar one last, ``(tokens, lists)`` int64.
        gains: What a document in a list has over one that is in none, ``(tokens, lists)`` float32, not negative.
    """

    lists: np.ndarray
    gains: np.ndarray


@torch.no_grad()
def train(sample: torch.Tensor, rows: int) -> Centroids:
    """Make centroids by two levels of spherical k-means.

    Args:
        sample: Some of the vectors of a store, ``(sample, dim)`` float32, at least one.
        rows: How many it has.

    Returns:
        The centroids, about three times the root of ``rows``; the same of the same sample.
    """
    count = max(1, min(round(_PER_ROOT * rows**0.5), _MOST, len(sample) // _SAMPLE_EACH))
    groups = normalize(_means(sample, max(1, round(count**0.5))), dim=-1)
    group = _nearest(sample, groups)
    members = torch.split(sample[group.argsort(stable=True)], group.bincount(minlength=len(groups)).tolist())
    means = [_means(part, -(-count * len(part) // len(sample))) for part in members]
    return Centroids(torch.cat(means), groups, tuple(map(len, means)), rows)


def _means(values: torch.Tensor, count: int) -> torch.Tensor:
    """Means of the vectors around centroids, ``(count, dim)``, which begin as vectors at even distances."""
    if not count:
        return values[:0]
    means = values[:: len(values) // count][:count]
    for _ in range(_ROUNDS):
        labels = _nearest(values, normalize(means, dim=-1))
        counts = labels.bincount(minlength=count)[:, None]
        sums = torch.zeros_like(means).index_add_(0, labels, values)
        means = torch.where(counts > 0, sums / counts.clamp_min(1), means)
    return means


def _nearest(values: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    parts = torch.split(values, max(1, _CELLS // len(directions)))
    return torch.cat([(part @ directions.T).argmax(1) for part in parts])


class InvertedLists:
    """For each centroid, the first documents of a segment that have a vector near it; in the host's memory.

    Args:
        documents: How many of the first documents.
        members: Positions of the documents, list after list, ``(entries,)`` int32.
        bounds: Where each list begins, and where the last one ends, ``(centroids + 1,)`` int32.
    """

    def __init__(self, documents: int, members: torch.Tensor, bounds: torch.Tensor) -> None:
        self.documents, self.members, self.bounds = documents, members, bounds

    @classmethod
    @torch.no_grad()
    def of(
        cls, centroids: Centroids, rows: PackedRows, documents: int, known: InvertedLists | None = None
    ) -> InvertedLists:
        """Make the lists of documents.

        Args:
            centroids: Those that the lists belong to.
            rows: The documents' vectors.
            documents: How many of the first documents.
            known: Lists of fewer of them, which are not made again. None: there are none.

        Returns:
            The lists.
        """
        near = centroids.on(rows.device)
        start = 0 if known is None else known.documents
        # A number for each pair of centroid and document: sorted, they are the lists.
        keys = [] if known is None else [(known._lists() * documents + known.members).to(rows.device)]
        cells = _CELLS_ON_GPU if rows.device.type == "cuda" else _CELLS
        for first, stop in ranges(rows.bounds[start : documents + 1], max(1, cells // rows.layout.dim)):
            block = rows.block(start + first, start + stop)
            nearest = near.nearest(rows.layout.decode(block.columns, block.lengths).float())
            keys.append(torch.unique(nearest * documents + block.positions.repeat_interleave(block.lengths)))
        every = torch.cat(keys).sort().values
        bounds = offsets_of((every // documents).bincount(minlength=len(near)))
        return cls(documents, (every % documents).int().cpu(), bounds.int().cpu())

    def _lists(self) -> torch.Tensor:
        """The centroid of each entry, ``(entries,)`` int64."""
        return torch.repeat_interleave(self.bounds.diff().long())

    def is_sound(self, centroids: int) -> bool:
        """Whether these can be the lists of so many centroids: a damaged file may hold anything."""
        if len(self.bounds) != centroids + 1 or self.bounds[[0, -1]].tolist() != [0, len(self.members)]:
            return False
        within = (self.members >= 0) & (self.members < self.documents)
        return bool(within.all()) and bool((self.bounds.diff() >= 0).all())

    def score(self, probes: Probes) -> np.ndarray:
        """Estimate scores.

        Args:
            probes: The lists that a query looks into.

        Returns:
            What each document has over one that is in none of the lists, ``(documents,)`` float32.
        """
        scores = np.zeros(self.documents, np.float32)
        step = max(1, _CELLS // max(1, self.documents))
        for start in range(0, len(probes.lists), step):
            some = slice(start, start + step)
            scores += self._best(probes.lists[some], probes.gains[some]).sum(0)
        return scores

    def _best(self, lists: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """The highest gain of each document for each query token, ``(tokens, documents)``; 0 where no list has it."""
        # NumPy: some thousand entries a segment, for which torch takes six times as long, most of it to begin.
        bounds, flat = self.bounds.numpy(), lists.ravel()
        begins, ends = bounds[flat], bounds[flat + 1]
        which = np.repeat(np.arange(len(flat)), ends - begins)  # of the lists, for each of their entries
        before = np.cumsum(ends - begins) - ends
        entries = np.arange(len(which)) - before[which]
        firsts = np.repeat(np.arange(len(lists)) * self.documents, lists.shape[1])
        best = np.zeros(len(lists) * self.documents, np.float32)
        # Of a document in several lists the last one counts, which is the most similar.
        best[firsts[which] + self.members.numpy()[entries]] = gains.ravel()[which]
        return best.reshape(len(lists), self.documents)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds."""
        return {"members": self.members, "bounds": self.bounds}
