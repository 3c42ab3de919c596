"""What is said of an explanation, however it is shown: the matches in lines to read, names of tokens, notes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import fsum, inf
from typing import TYPE_CHECKING

from .characters import word_around

if TYPE_CHECKING:
    from .explanation import Explanation, Token, TokenMatch
    from .passage import Passage

__all__ = ["Row", "harmless", "label", "place", "rows", "short", "summary", "visible"]

_ELLIPSIS = "…"
# Of a token: one that a tokenizer does not know may be as long as the picture that is written into a text.
_MOST_LETTERS = 60
# All that a terminal obeys, but tabs and line feeds.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Row:
    """Neighbouring query tokens that stand for the same characters, or for none and are spelt alike.

    Attributes:
        query: What the query tokens are called.
        document: What the tokens that they met are called, each once, strongest first.
        matches: Their matches, at least one.
    """

    query: str
    document: tuple[str, ...]
    matches: tuple[TokenMatch, ...]

    @property
    def share(self) -> float:
        """Their share of the score."""
        return fsum(match.similarity for match in self.matches)


def rows(explanation: Explanation) -> list[Row]:
    """The matches in lines.

    Args:
        explanation: The explanation.

    Returns:
        The lines, in the query's order; those of parts of one character, and of the expansion, are one.
    """
    groups = groupby(explanation.matches, key=lambda match: match.query_token.span or match.query_token.text)
    return [_row(explanation, tuple(matches)) for _, matches in groups]


def _row(explanation: Explanation, matches: tuple[TokenMatch, ...]) -> Row:
    first = matches[0].query_token
    times = f" × {len(matches)}" if len(matches) > 1 and first.span is None else ""
    met = [
        label(explanation.document, match.document_token)
        for match in sorted(matches, key=lambda match: -match.similarity)
    ]
    return Row(label(explanation.query, first) + times, tuple(dict.fromkeys(met)), matches)


def label(text: str, token: Token) -> str:
    """What a token is called for a reader.

    Args:
        text: The text that it is a token of.
        token: The token.

    Returns:
        Its characters, the first 60, with dots where the word goes on; of a token that stands for none, its spelling.
    """
    if token.span is None:
        return visible(token.text) or "·"
    start, stop = token.span
    first, last = word_around(text, start, stop)
    shown = short(visible(text[start:stop]), _MOST_LETTERS)
    return (_ELLIPSIS * (first < start) + shown + _ELLIPSIS * (stop < last)) or "␣"


def short(text: str, most: int) -> str:
    """A text, or its beginning.

    Args:
        text: The text.
        most: Maximum number of characters.

    Returns:
        The text; with dots in the place of its end if it is longer.
    """
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}{_ELLIPSIS}"


def visible(text: str) -> str:
    """A text in one line.

    Args:
        text: The text.

    Returns:
        The text; white space is one space, and none around; no characters that would command a terminal.
    """
    return harmless(" ".join(text.split()))


def harmless(text: str) -> str:
    """A text without characters that would command a terminal.

    Args:
        text: The text.

    Returns:
        The text with a replacement character for each control character; lines stay lines.
    """
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n"))


def summary(explanation: Explanation) -> list[str]:
    """The score, and what has to be said of it.

    Args:
        explanation: The explanation.

    Returns:
        Sentences: first the score, then notes, if there are any.
    """
    count = len(explanation.matches)
    if explanation.score == -inf:
        return ["The document has no vectors, so that nothing matches and it scores below every other."]
    if not count:
        return ["The query has no vectors, so that nothing matches and every document scores 0."]
    said = [
        f"Score {explanation.score:.2f}: {_count(count, 'query token')}, {explanation.score / count:.2f} on average."
    ]
    if explanation.pooled:
        said.append(
            "The model merges similar vectors before it scores; here tokens are compared one by one, "
            "so its own score is another."
        )
    cut: Sequence[tuple[str, int | None]] = (("query", explanation.query_cut), ("document", explanation.document_cut))
    said += [f"The {name} was read up to character {end} only." for name, end in cut if end is not None]
    return said


def place(explanation: Explanation, passage: Passage) -> str:
    """Where a passage lies.

    Args:
        explanation: The explanation.
        passage: A passage of its document.

    Returns:
        Its characters, and if the score is above 0, the part of the score that it holds.
    """
    part = f", {passage.share / explanation.score:.0%} of the score" if explanation.score > 0 else ""
    return f"characters {passage.start:,} to {passage.stop:,}{part}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
