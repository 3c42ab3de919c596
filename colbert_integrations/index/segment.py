"""Segment: some documents, packed, that only ever grows at its end; and the views that searches see of it."""

from __future__ import annotations

import os
import threading
import uuid
from dataclasses import dataclass
from typing import Any

import torch

from .centroids import Centroids, InvertedLists
from .layout import Columns, Layout, part
from .rows import PackedRows

__all__ = ["Batch", "Segment", "View"]


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


class Segment(PackedRows):
    """Documents one after another in preallocated memory, with their texts and metadata.

    Args:
        layout: Form of the vectors.
        columns: The memory: as many rows as the segment can ever hold.
        name: A unique one. None: a new one.
    """

    def __init__(self, layout: Layout, columns: Columns, name: str | None = None) -> None:
        super().__init__(layout, columns)
        self.name = name or uuid.uuid4().hex
        self.ids: list[str] = []
        self.texts: list[str | None] = []
        self.metadatas: list[dict[str, Any]] = []
        self.sealed = False
        self._process = os.getpid()
        # By the name of their centroids: those that searches use and, while others are made, these.
        self._lists: dict[str, InvertedLists] = {}
        self._lists_lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

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
        del self.texts[len(self) :], self.metadatas[len(self) :]  # what an interrupted call left
        self.write(batch.columns, batch.lengths)
        self._note_documents(batch)

    def register(self, batch: Batch) -> None:
        """Take note of documents whose vectors are in place."""
        self.note(batch.lengths)
        self._note_documents(batch)

    def _note_documents(self, batch: Batch) -> None:
        self.texts += batch.texts
        self.metadatas += batch.metadatas
        self.ids += batch.ids  # last: its length is how many documents there are

    def lists(self, centroids: Centroids, documents: int) -> InvertedLists:
        """The lists of the centroid candidate stage; made when first asked for.

        Args:
            centroids: What they belong to.
            documents: How many of the first documents are needed.

        Returns:
            Those of at least so many documents.
        """
        with self._lists_lock:
            lists = self._lists.get(centroids.name)
            if lists is None or lists.documents < documents:
                lists = InvertedLists.of(centroids, self, documents, lists)
                others = [(name, known) for name, known in self._lists.items() if name != centroids.name]
                self._lists = dict([*others[-1:], (centroids.name, lists)])
            return lists

    def lists_if_made(self, centroids: Centroids, documents: int) -> InvertedLists | None:
        """The lists, if they were made for at least so many documents."""
        lists = self._lists.get(centroids.name)
        return lists if lists is not None and lists.documents >= documents else None

    def adopt_lists(self, centroids: Centroids, lists: InvertedLists) -> None:
        """Take lists that were saved."""
        self._lists = {centroids.name: lists}


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
        return self.segment.free if len(self) == len(self.segment) else 0

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
        alive = self.alive.clone()
        alive[torch.tensor(positions, dtype=torch.int64, device="cpu")] = False
        gone = sum(map(self.segment.length_of, positions))
        return View(self.segment, alive, self.deleted_rows + gone)
