"""State: all documents of a store at one moment, and what is read from it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ..devices import no_autocast
from .filters import is_yes, matches, parse_filter
from .layout import Layout
from .metadata import clone
from .scan import starts
from .segment import Batch, Segment, View
from .store import Filter, Hit, StoredDocument

__all__ = [
    "State",
    "all_documents",
    "copy_of",
    "document_at",
    "filtered",
    "hits_of",
    "last_of_each",
    "only",
    "sample_of",
    "test_of",
    "without",
]


@dataclass(frozen=True)
class State:
    """Everything a reader needs; replaced, never changed."""

    views: tuple[View, ...] = ()
    count: int = 0


def document_at(segment: Segment, position: int, embeddings: bool) -> StoredDocument:
    """A document of a segment, as a copy."""
    vectors = None
    if embeddings:
        block = segment.block(position, position + 1)
        # A copy: the caller may do with it what they like, and must not keep a whole segment alive.
        with no_autocast(segment.device):
            vectors = segment.layout.decode(block.columns, block.lengths).clone()
    metadata = clone(segment.metadatas[position])
    return StoredDocument(segment.ids[position], segment.texts[position], metadata, vectors)


def all_documents(state: State) -> Iterator[StoredDocument]:
    """All documents, with their vectors."""
    for view in state.views:
        for position in view.alive.nonzero()[:, 0].tolist():
            yield document_at(view.segment, position, True)


def sample_of(state: State, rows: int) -> torch.Tensor:
    """About so many vectors, of documents at even distances, or all of them, ``(vectors, dim)`` float32 on the CPU."""
    step, parts, before = max(1, sum(view.rows for view in state.views) // rows), list[torch.Tensor](), 0
    for view in state.views:
        alive = view.alive.nonzero()[:, 0].tolist()
        if positions := alive[-before % step :: step]:
            block = view.segment.gather(positions)
            parts.append(view.segment.layout.decode(block.columns, block.lengths).to("cpu", torch.float32))
        before += len(alive)
    return torch.cat(parts)


def hits_of(state: State, scores: list[float], places: list[int], k: int) -> list[Hit]:
    """The k best of one query, from scores and positions in the concatenation of all views."""
    begins, hits = starts(state.views), []
    for score, place in zip(scores, places, strict=True):
        if score > float("-inf"):
            number = bisect_right(begins, place) - 1
            segment, position = state.views[number].segment, place - begins[number]
            hits.append((-score, segment.ids[position], segment, position))
    hits.sort(key=lambda hit: hit[:2])
    return [
        Hit(name, -negative, segment.texts[position], clone(segment.metadatas[position]))
        for negative, name, segment, position in hits[:k]
    ]


def only(view: View, positions: list[int]) -> torch.Tensor:
    """Which documents of a view are among these and not deleted, ``(documents,)`` bool."""
    mask = torch.zeros(len(view), dtype=torch.bool, device="cpu")
    mask[positions] = True
    return mask & view.alive


def test_of(filter: Filter) -> Callable[[Segment, int], bool]:
    """The test of a filter, for documents by their segment and their position there."""
    if callable(filter):
        return lambda segment, position: is_yes(filter(document_at(segment, position, False)))
    conditions = parse_filter(filter)
    return lambda segment, position: matches(segment.metadatas[position], conditions)


def filtered(view: View, wanted: torch.Tensor, passes: Callable[[Segment, int], bool]) -> torch.Tensor:
    """Which of the wanted documents of a view pass a test, ``(documents,)`` bool."""
    mask = torch.zeros(len(view), dtype=torch.bool, device="cpu")
    mask[[position for position in wanted.nonzero()[:, 0].tolist() if passes(view.segment, position)]] = True
    return mask


def without(state: State, gone: Mapping[Segment, list[int]]) -> State:
    """The state after documents, given by their positions in segments, are deleted."""
    views = [view.without(gone[view.segment]) if view.segment in gone else view for view in state.views]
    return State(tuple(views), state.count - sum(map(len, gone.values())))


def copy_of(segment: Segment, positions: list[int]) -> Batch:
    """Documents of a segment as a batch, their vectors in the form they are kept in."""
    block = segment.gather(positions)
    return Batch(
        [segment.ids[position] for position in positions],
        [segment.texts[position] for position in positions],
        [segment.metadatas[position] for position in positions],
        block.lengths.tolist(),
        block.columns,
    )


def last_of_each(batch: Batch) -> Batch:
    """The batch with the last document of each id only."""
    last = {name: position for position, name in enumerate(batch.ids)}
    if len(last) == len(batch.ids):
        return batch
    whole = Segment(Layout(0), batch.columns)
    whole.register(batch)
    return copy_of(whole, sorted(last.values()))
