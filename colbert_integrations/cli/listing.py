"""Results in lines to read: rank, score and name, and below that what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..explain import Explanation, Passage
from ..explain.terminal import coloured_passage
from ..explain.wording import short, visible
from .output import Output

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["show_result"]

_INDENT = 5
_MOST_WORDS = 6
_PASSAGE_LENGTH, _WORD_LENGTH = 300, 60


def show_result(
    output: Output,
    rank: int,
    score: float,
    name: str,
    text: str | None,
    explanation: Explanation | None,
    *,
    metadata: Mapping[str, Any] | None = None,
    words: bool,
) -> None:
    """Show a result.

    Args:
        output: Where.
        rank: Its place, from 1.
        score: Its score.
        name: What it is called.
        text: Its text. None: it is not known.
        explanation: How its score came about. None: its text is shown from the beginning.
        metadata: What else is known of it.
        words: Whether the words that matched are shown.
    """
    output.line(f"{rank:>3}. ", (f"{score:6.2f}", "bold green"), "  ", (visible(name), "bold"))
    if explanation is not None and (passage := explanation.passage) is not None:
        coloured = output.console is not None
        output.paragraph(_in_one(explanation, passage) if coloured else visible(passage.text), _INDENT)
    elif text is not None:
        output.paragraph(short(visible(text), _PASSAGE_LENGTH), _INDENT)
    if metadata:
        output.line(" " * _INDENT, (visible(json.dumps(metadata, ensure_ascii=False)), "dim"))
    if words and explanation is not None and (met := _words(explanation)):
        output.line(" " * _INDENT, (met, "cyan"))


def _in_one(explanation: Explanation, passage: Passage) -> Text:
    """A passage in colour as one paragraph."""
    from rich.text import Text

    lines = coloured_passage(explanation, passage).split()
    return Text(" ").join(line for line in lines if line.plain.strip())


def _words(explanation: Explanation) -> str:
    """The pairs of words that matched best, each once."""
    pairs = {(asked, met): share for asked, met, share in reversed(explanation.words())}
    best = sorted(pairs.items(), key=lambda pair: -pair[1])[:_MOST_WORDS]
    return ", ".join(f"{_word(asked)} → {_word(met)} {share:.2f}" for (asked, met), share in best)


def _word(word: str) -> str:
    return short(visible(word), _WORD_LENGTH)
