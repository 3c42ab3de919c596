"""Documents in the forms in which they are scored, and how many are scored at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch

__all__ = ["Documents", "ranges"]

Documents: TypeAlias = torch.Tensor | Sequence[torch.Tensor]
"""Vectors of documents, packed into one matrix or one matrix each."""


def ranges(bounds: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours with at most so many rows; one with more stands alone.

    Args:
        bounds: Where the rows of each begin, and those of the last end.
        budget: Maximum number of rows.

    Yields:
        The first of a range, and the one behind its last.

    Example:
        >>> list(ranges([0, 3, 4, 9, 10], 5))
        [(0, 2), (2, 3), (3, 4)]
    """
    start, end = 0, len(bounds) - 1
    while start < end:
        stop = max(start + 1, bisect_right(bounds, bounds[start] + budget) - 1)
        yield start, stop
        start = stop
