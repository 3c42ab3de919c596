"""Pages: how many documents to read at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import models

__all__ = ["PAGE", "Page"]

PAGE = 1_000
"""Documents without vectors that one request reads."""

# With vectors: the first page, the largest one, and the numbers that a page is to have, some megabytes of them.
_FIRST, _MOST, _FLOATS = 16, 256, 2**20


class Page:
    """The size of the next page; with vectors it is learned from the documents that came.

    Args:
        vector: Name of the vector that is read. None: documents without vectors.
    """

    def __init__(self, vector: str | None) -> None:
        self._vector = vector
        self.size = PAGE if vector is None else _FIRST

    def saw(self, records: Sequence[models.Record]) -> None:
        """Learn from a page how large documents are."""
        if self._vector is not None and records:
            floats = sum(map(self._floats, records))
            self.size = max(1, min(_MOST, _FLOATS * len(records) // max(1, floats)))

    def _floats(self, record: models.Record) -> int:
        matrix: Any = record.vector.get(self._vector or "") if isinstance(record.vector, dict) else None
        return len(matrix) * len(matrix[0]) if matrix else 0
