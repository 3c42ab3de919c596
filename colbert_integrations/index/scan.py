"""Scanning: score the documents of many views block by block, and keep the best."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby
from typing import cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..embeddings import TokenEmbeddings
from ..progress import progress_bar
from ..scoring.blocks import ranges
from .centroids import Centroids
from .layout import Columns, Layout, ReadyQueries
from .rows import GATHERED_ROWS, Block, PackedRows, gather
from .segment import View

__all__ = ["Finder", "make_lists", "starts"]

Scorer = Callable[[Columns, torch.Tensor], torch.Tensor]

# Scores that are sorted together: 16 MiB. On a GPU many small sorts would take longer than the scores.
_MOST_WAITING = 2**22


class Best:
    """The highest scores so far of each query, and which documents they belong to.

    Args:
        queries: Number of queries.
        width: How many are kept for each.
        device: Where scores come from.
    """

    def __init__(self, queries: int, width: int, device: torch.device) -> None:
        self.width = width
        # Both (queries, up to width), the scores descending.
        self.scores = torch.empty(queries, 0, dtype=torch.float32, device=device)
        self.places = torch.empty(queries, 0, dtype=torch.int64, device=device)

    def add(self, scores: torch.Tensor, places: torch.Tensor) -> None:
        """Take in documents.

        Args:
            scores: ``(queries, documents)`` float32.
            places: What they are known by, ``(documents,)`` int64.
        """
        joined = torch.cat([self.scores, scores], dim=1)
        chosen = joined.topk(min(self.width, joined.shape[1]), dim=1)
        known = torch.cat([self.places, places.expand(len(scores), -1)], dim=1)
        self.scores, self.places = chosen.values, known.gather(1, chosen.indices)

    def edge_is_tied(self, k: int) -> bool:
        """Whether documents beyond the width could score as high as the k-th."""
        full = self.scores.shape[1] == self.width > k
        return full and bool((self.scores[:, k - 1] == self.scores[:, -1]).any())


def scan(
    views: Sequence[View],
    wanted: Sequence[torch.Tensor],
    queries: ReadyQueries,
    best: Best,
    *,
    codes: bool = False,
) -> None:
    """Score every wanted document.

    Args:
        views: What there is.
        wanted: For each view, which of its documents, ``(documents,)`` bool on the CPU.
        queries: The queries, ready for the layout of what is scanned.
        best: Takes the scores; a document is known by its position in the concatenation of all views.
        codes: Whether codes are scored rather than the best vectors that are kept.
    """
    score, waiting = queries.screen if codes else queries.score, _Waiting(best)
    for view, mask, start in zip(views, wanted, starts(views), strict=True):
        if mask.any():
            _scan_view(view.segment.blocks(mask, queries.block_rows), mask, score, waiting, start)
    waiting.settle()


def starts(views: Sequence[View]) -> list[int]:
    """Position of each view's first document in the concatenation of all, ``len(views)`` of them."""
    return list(accumulate(map(len, views), initial=0))[:-1]


class _Waiting:
    """Scores that wait to be sorted together: one top-k a block costs more than scoring the block."""

    def __init__(self, best: Best) -> None:
        self.best, self.device = best, best.scores.device
        self._found: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._count = 0

    def add(self, scores: torch.Tensor, places: torch.Tensor) -> None:
        """Take in what ``Best.add`` takes."""
        self._found.append((scores, places))
        self._count += scores.numel()
        if self._count >= _MOST_WAITING:
            self.settle()

    def settle(self) -> None:
        """Hand on what waits."""
        if self._found:
            scores, places = zip(*self._found, strict=True)
            self.best.add(torch.cat(scores, dim=1), torch.cat(places))
        self._found, self._count = [], 0


def _scan_view(blocks: Iterator[Block], wanted: torch.Tensor, score: Scorer, waiting: _Waiting, start: int) -> None:
    mask = None if wanted.all() else _sent(~wanted, waiting.device)
    for block in (_on(block, waiting.device) for block in blocks):
        found = score(block.columns, block.lengths)
        if mask is not None:
            found.masked_fill_(mask[block.positions], float("-inf"))
        waiting.add(found, block.positions + start)


def _on(block: Block, device: torch.device) -> Block:
    """The block where it is scored; to CUDA it travels without holding up the host, which only pinned memory can."""
    columns = {name: _sent(tensor, device) for name, tensor in block.columns.items()}
    return Block(_sent(block.positions, device), columns, _sent(block.lengths, device))


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return tensor.to(device)  # waits: MPS may read the host's memory after it was given back
    return (tensor if tensor.is_cuda else tensor.pin_memory()).to(device, non_blocking=True)  # itself, if it is pinned


def look_up(
    views: Sequence[View], wanted: Sequence[torch.Tensor], centroids: Centroids, queries: TokenEmbeddings, width: int
) -> list[list[int]]:
    """Find candidates by the lists of centroids.

    Args:
        views: What there is.
        wanted: For each view, which of its documents, ``(documents,)`` bool on the CPU.
        centroids: Those of the store, on the queries' device.
        queries: The queries, float32.
        width: How many candidates each query gets, if so many are wanted.

    Returns:
        For each query, positions in the concatenation of all views, ascending.
    """
    unwanted = ~torch.cat([*wanted])
    searched = [
        (view.segment.lists(centroids, len(view)), start, len(view))
        for view, mask, start in zip(views, wanted, starts(views), strict=True)
        if mask.any()
    ]
    candidates = list[list[int]]()
    for probes in centroids.probe(queries):
        estimates = np.zeros(len(unwanted), np.float32)
        for lists, start, documents in searched:
            estimates[start : start + documents] = lists.score(probes)[:documents]  # a segment may have grown since
        kept = torch.from_numpy(estimates).masked_fill_(unwanted, float("-inf"))
        candidates.append(_scored(*kept.topk(min(width, len(kept)), sorted=False)))
    return candidates


def _scored(scores: torch.Tensor, places: torch.Tensor) -> list[int]:
    """Places that have a score, ascending."""
    return cast(list[int], places[scores > float("-inf")].sort().values.tolist())


def rescore(
    views: Sequence[View], queries: Sequence[ReadyQueries], candidates: Sequence[Sequence[int]], best: Best
) -> None:
    """Score the candidates of each query by the best vectors that are kept.

    Args:
        views: What there is.
        queries: Each query by itself.
        candidates: For each query, positions in the concatenation of all views, ascending.
        best: Takes the scores.
    """
    parts, device = list[torch.Tensor](), best.scores.device
    for query, places in zip(queries, candidates, strict=True):
        parts += _scores_of(views, query, places, device)
    # All of them at once: a GPU is waited for with each answer.
    flat = torch.cat(parts).cpu() if parts else torch.empty(0, device="cpu")
    scores = pad_sequence([*torch.split(flat, [*map(len, candidates)])], batch_first=True, padding_value=float("-inf"))
    every = pad_sequence(
        [torch.tensor(places, dtype=torch.int64, device="cpu") for places in candidates], batch_first=True
    )
    order = scores.topk(min(best.width, scores.shape[1]), dim=1)
    best.scores, best.places = order.values, every.gather(1, order.indices)


def _scores_of(
    views: Sequence[View], query: ReadyQueries, places: Sequence[int], device: torch.device
) -> list[torch.Tensor]:
    """Scores of documents, given by ascending places, in parts."""
    rows = min(query.block_rows, GATHERED_ROWS)
    blocks = (_on(gather(part), device) for part in _together(views, places, rows))
    return [query.score(block.columns, block.lengths)[0] for block in blocks]


def _together(views: Sequence[View], places: Sequence[int], rows: int) -> Iterator[list[tuple[PackedRows, int]]]:
    """Documents, given by ascending places, at most so many rows at once: each of many segments has few to score."""
    chosen = [
        (view.segment, place - begin)
        for view, begin in zip(views, starts(views), strict=True)
        for place in places[bisect_left(places, begin) : bisect_left(places, begin + len(view))]
    ]
    bounds = [0, *accumulate(segment.length_of(position) for segment, position in chosen)]
    for start, stop in ranges(bounds, rows):
        for _, part in groupby(chosen[start:stop], lambda pair: pair[0].device):
            yield list(part)


class Finder:
    """A search for some queries, which scores everything or finds candidates first."""

    def __init__(
        self, views: Sequence[View], wanted: Sequence[torch.Tensor], layout: Layout, queries: TokenEmbeddings
    ) -> None:
        self._views, self._wanted, self._layout, self._queries = views, wanted, layout, queries
        self._ready = layout.ready(queries)

    def _best(self, width: int) -> Best:
        return Best(len(self._queries), width, self._queries.device)

    def exact(self, k: int) -> Best:
        """Score everything by the best vectors that are kept."""
        width = k + 16
        while True:
            best = self._best(width)
            scan(self._views, self._wanted, self._ready, best)
            if not best.edge_is_tied(k):
                return best
            width *= 8  # equal scores are ordered by id, so all of them must be there

    def approximate(self, candidates: int, centroids: Centroids | None = None) -> Best:
        """Find candidates, by centroids or else by codes, then score those by the best vectors that are kept."""
        best = self._best(candidates)
        each = [self._layout.ready(self._queries[i : i + 1]) for i in range(len(self._queries))]
        rescore(self._views, each, self._candidates(candidates, centroids), best)
        return best

    def _candidates(self, count: int, centroids: Centroids | None) -> list[list[int]]:
        if centroids is not None:
            make_lists(self._searched(), centroids)
            return look_up(self._views, self._wanted, centroids, self._queries, count)
        found = self._best(count)
        scan(self._views, self._wanted, self._ready, found, codes=True)
        return [_scored(*row) for row in zip(found.scores.cpu(), found.places.cpu(), strict=True)]

    def _searched(self) -> list[View]:
        return [view for view, mask in zip(self._views, self._wanted, strict=True) if mask.any()]


def make_lists(views: Sequence[View], centroids: Centroids, show_progress: bool | None = None) -> None:
    """Make the lists of centroids that are not made yet, with a bar as above."""
    missing = [view for view in views if view.segment.lists_if_made(centroids, len(view)) is None]
    _with_bar("Listing vectors", show_progress, missing, lambda view: view.segment.lists(centroids, len(view)))


def _with_bar(label: str, show_progress: bool | None, views: Sequence[View], make: Callable[[View], object]) -> None:
    if views:
        with progress_bar(sum(map(len, views)), show_progress, label) as bar:
            for view in views:
                make(view)
                bar.update(len(view))
