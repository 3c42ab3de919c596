"""Characters, words and sentences of a text, and the text cut where something begins or ends.

A reader's character may be several of Python's, an emoji of a family or a letter with its vowel sign; nothing here cuts
one in two. Positions are Python's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import regex

__all__ = ["Piece", "pieces", "sentences", "whole_characters", "word_around"]

T = TypeVar("T")
Span = tuple[int, int]

# Letters, marks, digits and the joiners between them; scripts that put no space between words are no help here, and
# their tokens are as long as their words anyway.
_UNSPACED = "".join(rf"\p{{{name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar"))
_IN_WORD = regex.compile(rf"[[\p{{L}}\p{{M}}\p{{N}}\u200c\u200d]--[{_UNSPACED}]]", regex.VERSION1)
# What ends a sentence, with closing marks behind it; in Chinese and Japanese no space need follow. Or a line's end.
# Before a small letter it is neither: an abbreviation, or a sentence that was wrapped.
_SENTENCE_END = regex.compile(r"""(?:[.!?…؟۔।॥]["'”’»)\]]*\s|[。！？．]["'”’»)\]」』】]*|\n)\s*+(?!\p{Ll})""")


def whole_characters(text: str) -> Callable[[int, int], Span]:
    """Make a function that widens a stretch of a text to whole characters, as a reader sees them.

    Args:
        text: The text.

    Returns:
        From start and stop of a stretch that is not empty to start and stop of one that cuts no character in two.
    """
    if text.isascii() and "\r\n" not in text:
        return lambda start, stop: (start, stop)
    first, last = [0] * len(text), [0] * len(text)
    for character in regex.finditer(r"\X", text):
        start, stop = character.span()
        first[start:stop] = [start] * (stop - start)
        last[start:stop] = [stop] * (stop - start)
    return lambda start, stop: (first[start], last[stop - 1])


def word_around(text: str, start: int, stop: int) -> Span:
    """The word that a stretch of a text lies in.

    Args:
        text: The text.
        start: Where the stretch begins.
        stop: Where it ends.

    Returns:
        Start and stop of the word: the stretch itself where it does not begin or end within one.
    """
    while 0 < start < len(text) and _IN_WORD.match(text, start - 1) and _IN_WORD.match(text, start):
        start -= 1
    while 0 < stop < len(text) and _IN_WORD.match(text, stop) and _IN_WORD.match(text, stop - 1):
        stop += 1
    return start, stop


def sentences(text: str) -> list[Span]:
    """The sentences of a text, by punctuation and line ends.

    Args:
        text: The text.

    Returns:
        Start and stop of each, in order, without the white space between them; none of a text that is only that.
    """
    edges = [0, *(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]
    return [
        (stop - len(text[start:stop].lstrip()), start + len(text[start:stop].rstrip()))
        for start, stop in pairwise(edges)
        if text[start:stop].strip()
    ]


@dataclass(frozen=True, slots=True)
class Piece(Generic[T]):
    """A stretch of a text over which the same things lie.

    Attributes:
        start: Where it begins.
        stop: Where it ends.
        over: What lies over it, in the order given.
    """

    start: int
    stop: int
    over: tuple[T, ...]


def pieces(length: int, marks: Iterable[tuple[int, int, T]]) -> Iterator[Piece[T]]:
    """Cut a text wherever a mark begins or ends.

    Args:
        length: Of the text.
        marks: Start, stop and what it is; they may overlap.

    Yields:
        The pieces, in order; together they are the text.
    """
    given = [mark for mark in marks if mark[0] < mark[1]]
    edges = sorted({0, length, *(start for start, _, _ in given), *(stop for _, stop, _ in given)})
    begins: dict[int, list[int]] = {}
    for number, (start, _, _) in enumerate(given):
        begins.setdefault(start, []).append(number)
    open_marks: list[int] = []
    for start, stop in pairwise(edges):
        open_marks = sorted([number for number in open_marks if given[number][1] > start] + begins.get(start, []))
        yield Piece(start, stop, tuple(given[number][2] for number in open_marks))
