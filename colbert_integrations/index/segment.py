"""Segment: some documents, packed, that only ever grows at its end; and the views that searches see of it."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..devices import send
from ..embeddings import TokenEmbeddings, offsets_of
from ..scoring.blocks import ranges
from .kmeans import pool_by_kmeans
from .layout import PER_DOCUMENT, Columns, Layout, part

__all__ = ["Batch", "Block", "Segment", "View", "gather"]

# For the pooled candidate stage: 1 in how many vectors is left, of how many documents at once, and of how many tokens,
# a multiple of the factor, since work and memory grow with the square of the longest.
_POOL_FACTOR = 4
_POOL_DOCUMENTS = 256
_POOL_TOKENS = 512
# Most rows that are copied together; blocks without a copy may be larger.
_GATHERED_ROWS = 2**15
# Where no more than one document in so many is not wanted, all are scored in large blocks.
_MOSTLY = 8


@dataclass
class Batch:
    """Documents on their way into a segment.

    Attributes:
        ids: Their ids.
        texts: Their texts.
        metadatas: Their metadata.
        lengths: Tokens of each.
        columns: Their vectors, in a store's layout.
    """

    ids: list[str]
    texts: list[str | None]
    metadatas: list[dict[str, Any]]
    lengths: list[int]
    columns: Columns

    def split(self, rows: int) -> tuple[Batch, Batch]:
        """Cut after as many documents as fit into some rows; what is left may be all, or none."""
        documents, used = 0, 0
        for length in self.lengths:
            if used + length > rows:
                break
            documents, used = documents + 1, used + length
        return self._part(slice(0, documents), slice(0, used)), self._part(slice(documents, None), slice(used, None))

    def _part(self, documents: slice, rows: slice) -> Batch:
        columns = part(self.columns, documents, rows)
        return Batch(
            self.ids[documents], self.texts[documents], self.metadatas[documents], self.lengths[documents], columns
        )


@dataclass(frozen=True)
class Block:
    """Documents of a segment that are scored together: neighbours, without a copy, or gathered from anywhere.

    Attributes:
        positions: Places in the segment of the documents whose vectors these are, ``(documents,)`` int64.
        columns: Their vectors.
        lengths: Tokens of each, ``(documents,)`` int64.
    """

    positions: torch.Tensor
    columns: Columns
    lengths: torch.Tensor


class Segment:
    """Documents one after another in preallocated memory.

    What was appended never changes, so readers need no lock: a reader that knows how many documents there were sees
    these whole, whatever is appended behind them.

    Args:
        layout: Form of the vectors.
        columns: The memory: as many rows as the segment can ever hold.
        name: A unique one. None: a new one.
    """

    def __init__(self, layout: Layout, columns: Columns, name: str | None = None) -> None:
        self.layout = layout
        self.columns = columns
        self.name = name or uuid.uuid4().hex
        self.ids: list[str] = []
        self.texts: list[str | None] = []
        self.metadatas: list[dict[str, Any]] = []
        self.bounds = [0]  # where documents begin, in rows; the last entry is the number of rows in use
        self.sealed = False
        self._process = os.getpid()
        self._lengths = torch.empty(0, dtype=torch.int64, device="cpu")
        self._pooled: Segment | None = None
        self._pool_lock = threading.Lock()

    @property
    def capacity(self) -> int:
        """Rows that fit."""
        return len(next(tensor for name, tensor in self.columns.items() if name not in PER_DOCUMENT))

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return next(iter(self.columns.values())).device

    @property
    def free(self) -> int:
        """Rows that still fit; none if it is sealed, or of the process that this one was forked off.

        Both would fill its end, with other documents under the same name.
        """
        return 0 if self.sealed or self._process != os.getpid() else self.capacity - self.bounds[-1]

    def append(self, batch: Batch) -> None:
        """Add documents that fit; one writer at a time.

        Args:
            batch: The documents.
        """
        document = len(self.ids)
        # What an interrupted call left behind the documents that there are.
        del self.texts[document:], self.metadatas[document:], self.bounds[document + 1 :]
        first = self.bounds[-1]
        for name, tensor in batch.columns.items():
            start = document if name in PER_DOCUMENT else first
            self.columns[name][start : start + len(tensor)].copy_(tensor)
        self.register(batch.ids, batch.texts, batch.metadatas, batch.lengths)

    def register(
        self, ids: list[str], texts: list[str | None], metadatas: list[dict[str, Any]], lengths: list[int]
    ) -> None:
        """Take note of documents whose vectors are in place."""
        self.texts += texts
        self.metadatas += metadatas
        for length in lengths:
            self.bounds.append(self.bounds[-1] + length)
        self.ids += ids  # last: its length is how many documents there are

    def pooled(self, documents: int) -> Segment:
        """The same documents with fewer vectors, for a candidate stage; made when first asked for.

        Args:
            documents: How many of the first are needed.

        Returns:
            A segment with at least so many documents, in the same places, in int8.
        """
        with self._pool_lock:
            pooled = self._pooled
            if pooled is None or len(pooled.ids) < documents:
                pooled = self._pooled = self._with_room(pooled, documents)
                self._extend_pooled(pooled, documents)
            return pooled

    def pooled_if_made(self, documents: int) -> Segment | None:
        """The pooled twin, if it was made for at least so many documents."""
        with self._pool_lock:
            made = self._pooled is not None and len(self._pooled.ids) >= documents
            return self._pooled if made else None

    def empty_twin(self, rows: int) -> Segment:
        """A segment for pooled vectors, in the same kind of memory."""
        small, pinned = Layout(self.layout.dim, nbits=8), next(iter(self.columns.values())).is_pinned()
        return Segment(small, small.empty(rows, self.device, pin=pinned))

    def adopt_pooled(self, pooled: Segment) -> None:
        """Take pooled vectors that were saved."""
        self._pooled = pooled

    def _with_room(self, pooled: Segment | None, documents: int) -> Segment:
        """The pooled twin, or a larger one with what it holds; who reads it may go on to."""
        done, used = (0, 0) if pooled is None else (len(pooled.ids), pooled.bounds[-1])
        # Each document may end with a group that is not full.
        added = pairwise(self.bounds[done : documents + 1])
        needed = used + sum(-(-(stop - start) // _POOL_FACTOR) for start, stop in added)
        if pooled is not None and needed <= pooled.capacity:
            return pooled
        rows = min(self.capacity, max(needed, 2 * used))
        wider = self.empty_twin(rows)
        if pooled is not None:
            for name, tensor in part(pooled.columns, slice(done), slice(used)).items():
                wider.columns[name][: len(tensor)].copy_(tensor)
            lengths = [stop - start for start, stop in pairwise(pooled.bounds[: done + 1])]
            wider.register(pooled.ids[:done], pooled.texts[:done], pooled.metadatas[:done], lengths)
        return wider

    def _extend_pooled(self, pooled: Segment, documents: int) -> None:
        start = len(pooled.ids)
        for stop in range(start + _POOL_DOCUMENTS, documents + _POOL_DOCUMENTS, _POOL_DOCUMENTS):
            block = self.block(start, min(stop, documents))
            values = self.layout.decode(block.columns, block.lengths).float()
            merged = _merged(values, block.lengths)
            count = len(merged)
            pooled.append(
                Batch([""] * count, [None] * count, [{}] * count, merged.lengths, pooled.layout.encode(merged))
            )
            start = stop

    def block(self, start: int, stop: int) -> Block:
        """Neighbouring documents, without a copy."""
        rows, documents = slice(self.bounds[start], self.bounds[stop]), slice(start, stop)
        columns = part(self.columns, documents, rows)
        return Block(torch.arange(start, stop, device=self.device), columns, self._lengths_of(stop)[start:stop])

    def _lengths_of(self, documents: int) -> torch.Tensor:
        """Tokens of at least the first documents, ``(documents or more,)`` int64."""
        lengths = self._lengths
        if len(lengths) < documents:  # made anew when it has grown: a list, block by block, cost as much as scoring
            bounds = self.bounds[: len(self.ids) + 1]
            lengths = self._lengths = torch.tensor(bounds, device=self.device).diff()
        return lengths


@dataclass(frozen=True, eq=False)
class View:
    """What a reader sees of a segment.

    Attributes:
        segment: The segment, which may have grown since.
        alive: Which of its documents are there, ``(documents,)`` bool on the CPU.
        deleted_rows: Rows of those that are not.
    """

    segment: Segment
    alive: torch.Tensor
    deleted_rows: int = 0

    def __len__(self) -> int:
        return len(self.alive)

    @property
    def free(self) -> int:
        """Rows that still fit behind this view; none if something lies there that it does not see."""
        return self.segment.free if len(self) == len(self.segment.ids) else 0

    @property
    def rows(self) -> int:
        """Rows in use, those of deleted documents included."""
        return self.segment.bounds[len(self)]

    def grown(self, documents: int) -> View:
        """A view of more documents at the end."""
        return View(
            self.segment,
            torch.cat([self.alive, torch.ones(documents, dtype=torch.bool, device="cpu")]),
            self.deleted_rows,
        )

    def without(self, positions: list[int]) -> View:
        """A view in which documents are deleted."""
        alive, bounds = self.alive.clone(), self.segment.bounds
        alive[positions] = False
        gone = sum(bounds[position + 1] - bounds[position] for position in positions)
        return View(self.segment, alive, self.deleted_rows + gone)

    def blocks(self, segment: Segment, wanted: torch.Tensor, rows: int) -> Iterator[Block]:
        """The wanted documents, in blocks of a bounded size.

        Args:
            segment: The view's segment, or its pooled twin.
            wanted: Which documents, ``(documents,)`` bool on the CPU.
            rows: Maximum number of rows of a block; a document with more stands alone.

        Yields:
            Blocks; some of their documents may not be wanted, where leaving them out would cost more than it saves.
        """
        bounds, rest, rest_rows, everything = segment.bounds, list[int](), 0, bool(wanted.all())
        rows = rows if _MOSTLY * int(wanted.sum()) >= len(wanted) * (_MOSTLY - 1) else min(rows, _GATHERED_ROWS)
        for start, stop in ranges(bounds, rows, len(self)):
            if everything or 2 * int(wanted[start:stop].sum()) >= stop - start:
                yield segment.block(start, stop)
                continue
            chosen = (wanted[start:stop].nonzero()[:, 0] + start).tolist()
            rest += chosen
            rest_rows += sum(bounds[position + 1] - bounds[position] for position in chosen)
            if rest_rows >= rows:
                yield gather(segment, rest)
                rest, rest_rows = [], 0
        if rest:
            yield gather(segment, rest)


def gather(segment: Segment, positions: list[int]) -> Block:
    """Documents from anywhere in a segment, copied together.

    Args:
        segment: The segment.
        positions: Places of at least one document.

    Returns:
        Their vectors, in the order of ``positions``.
    """
    bounds = segment.bounds
    spans = [slice(bounds[position], bounds[position + 1]) for position in positions]
    places = send(np.array(positions, np.int64), segment.device)
    columns = {
        name: tensor[places] if name in PER_DOCUMENT else torch.cat([tensor[rows] for rows in spans])
        for name, tensor in segment.columns.items()
    }
    lengths = send(np.array([rows.stop - rows.start for rows in spans], np.int64), segment.device)
    return Block(places, columns, lengths)


def _merged(values: torch.Tensor, lengths: torch.Tensor) -> TokenEmbeddings:
    """Vectors of documents, 1 in ``_POOL_FACTOR`` of them left; of long ones piece by piece."""
    counts = [min(_POOL_TOKENS, n - at) for n in lengths.tolist() for at in range(0, n, _POOL_TOKENS)]
    pieces = torch.tensor(counts, dtype=torch.int64, device=lengths.device)
    merged = pool_by_kmeans(TokenEmbeddings(values, offsets_of(pieces)), _POOL_FACTOR)
    return TokenEmbeddings(merged.values, offsets_of(-(-lengths // _POOL_FACTOR)))
