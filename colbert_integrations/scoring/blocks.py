"""Documents in the forms in which they are scored, how many are scored at once, and steps that several ways share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch

__all__ = ["QUERY_TOKENS", "Documents", "as_int8", "dtype_of", "ranges", "take_maxima"]

QUERY_TOKENS = 4096
"""Maximum number of query tokens that are scored together: similarities take memory for each of them."""

Documents: TypeAlias = torch.Tensor | Sequence[torch.Tensor]
"""Vectors of documents, packed into one matrix or one matrix each."""


def dtype_of(documents: Documents) -> torch.dtype:
    """The dtype of vectors; of the first of several matrices, which are alike."""
    return documents.dtype if isinstance(documents, torch.Tensor) else documents[0].dtype


def ranges(bounds: Sequence[int], budget: int, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours with at most ``budget`` rows; one that alone has more stands alone.

    Args:
        bounds: Where the rows of each begin, and those of the last end.
        budget: Maximum number of rows.
        end: How many there are, where ``bounds`` may have more. None: as ``bounds`` says.

    Yields:
        The first of a range, and the one behind its last.

    Example:
        >>> list(ranges([0, 3, 4, 9, 10], 5))
        [(0, 2), (2, 3), (3, 4)]
    """
    start, end = 0, len(bounds) - 1 if end is None else end
    while start < end:
        stop = max(start + 1, bisect_right(bounds, bounds[start] + budget, start, end + 1) - 1)
        yield start, stop
        start = stop


def as_int8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors rounded to int8, ``(tokens, dim)``, and what one step of each is worth, ``(tokens,)``."""
    steps = values.abs().amax(1).clamp_min(1e-12) / 127  # NaN where the vector has one, which the codes can't say
    return (values / steps[:, None]).round_().to(torch.int8), steps


def take_maxima(best: torch.Tensor, owner: torch.Tensor, similarities: torch.Tensor) -> None:
    """Raise ``best``, ``(documents, query_tokens)``, to the similarities of rows; ``owner`` is each row's document."""
    # segment_reduce would say the same in fewer words, but costs 8 times as much on a CPU (152 us against 19 us for
    # 2,048 x 32 similarities) and does not exist on MPS.
    best.scatter_reduce_(0, owner[:, None].expand_as(similarities), similarities, "amax")
