"""The best passage: the neighbouring sentences of a document that hold most of a score."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import fsum

from .characters import sentences, word_around

__all__ = ["Passage", "find_passage"]

# Sums of the same similarities in another order differ in the last digits, and must not decide.
_DIGITS = 9

Placed = tuple[int, int, float]
"""Start and stop in the text, and share of the score."""


@dataclass(frozen=True)
class Passage:
    """A stretch of a document.

    Attributes:
        start: Where it begins in the document, in characters.
        stop: Where it ends.
        text: The characters.
        share: The share of the score that its tokens have: the sum of the similarities of the query tokens they won.
    """

    start: int
    stop: int
    text: str
    share: float


def find_passage(text: str, shares: Sequence[Placed], length: int) -> Passage | None:
    """Find the stretch that holds most of the score.

    Of all runs of neighbouring sentences of at most ``length`` characters, the one whose tokens have the greatest
    share; where several are equal the shortest, then the first. Of a sentence that is longer than that, only its own
    best stretch is taken, from one token that won something to another, with the words whole if they fit.

    Args:
        text: The document.
        shares: The tokens that won something.
        length: Maximum number of characters of the passage; a single token may be longer.

    Returns:
        The passage; None if no token is given.
    """
    if not shares:
        return None
    start, stop = _densest(list(_sentences_with_shares(text, sorted(shares), length)), length)
    return Passage(start, stop, text[start:stop], _share_within(shares, start, stop))


def _sentences_with_shares(text: str, shares: list[Placed], length: int) -> Iterator[Placed]:
    """The sentences in which tokens won something, or the best stretches of long ones."""
    bounds = sentences(text)
    starts = [start for start, _ in bounds]
    for number, group in groupby(shares, key=lambda share: bisect_right(starts, share[0]) - 1):
        won = list(group)
        start, stop = bounds[number]
        stop = max(stop, *(end for _, end, _ in won))
        if stop - start > length:
            tokens = _densest(won, length)
            words = word_around(text, *tokens)
            start, stop = words if words[1] - words[0] <= length else tokens
        yield start, stop, _share_within(won, start, stop)


def _densest(placed: list[Placed], length: int) -> tuple[int, int]:
    """The one of ``_stretches`` with the greatest share; where several are equal the shortest, then the first."""
    start, stop, _ = min(
        _stretches(placed, length), key=lambda found: (-round(found[2], _DIGITS), found[1] - found[0], found[0])
    )
    return start, stop


def _stretches(placed: list[Placed], length: int) -> Iterator[Placed]:
    """All stretches from the start of one to the stop of another, not longer than ``length`` but for a single one."""
    for first, (start, end, _) in enumerate(placed):
        total = 0.0
        for stop, share in sorted((stop, share) for _, stop, share in placed[first:]):
            if stop - start > max(length, end - start):
                break
            total += share
            yield start, stop, total


def _share_within(shares: Sequence[Placed], start: int, stop: int) -> float:
    return fsum(share for begin, end, share in shares if start <= begin and end <= stop)
