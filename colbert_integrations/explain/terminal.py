"""An explanation in a terminal: plain text, and with rich in colour."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import MissingExtraError
from .characters import Piece, pieces
from .passage import Passage
from .wording import harmless, place, rows, summary, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from .explanation import Explanation, TokenShare

__all__ = ["coloured_passage", "plain_text", "rich_parts"]

_WIDTH = 100
_MOST_MET = 4
# Dark letters on amber, from pale to strong: to be read on light and on dark terminals.
_PALE, _STRONG = (255, 244, 214), (255, 176, 59)


def plain_text(explanation: Explanation) -> str:
    """Write an explanation in lines.

    Args:
        explanation: The explanation.

    Returns:
        The score, a line for each stretch of the query with its share and what it met, and the best passage.
    """
    lines = [textwrap.fill(said, _WIDTH) for said in summary(explanation)]
    listed = rows(explanation)
    width = max((_columns(row.query) for row in listed), default=0)
    lines += [""] * bool(listed)
    lines += [
        f"  {row.query}{' ' * (width - _columns(row.query))}  {row.share:6.2f}  {_met(row.document)}" for row in listed
    ]
    passage = explanation.passage
    if passage is not None:
        wrapped = textwrap.wrap(visible(passage.text), _WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines += ["", f"Best passage, {place(explanation, passage)}:", *wrapped]
    return "\n".join(lines)


def rich_parts(explanation: Explanation) -> Iterator[RenderableType]:
    """Make what rich prints.

    Args:
        explanation: The explanation.

    Yields:
        The score, a table, and the best passage with its tokens in colour.

    Raises:
        MissingExtraError: If rich is not installed.
    """
    try:
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise MissingExtraError("An explanation in colour", "explain") from error
    score, *notes = summary(explanation)
    yield Text(score, style="bold")
    yield from (Text(note, style="italic") for note in notes)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("query", "share", "", "document"):
        table.add_column(Text(name, style="dim"), justify="right" if name == "share" else "left")
    listed = rows(explanation)
    most = max((match.similarity for match in explanation.matches), default=0.0)
    for row in listed:
        bar = ProgressBar(total=max(most, 1e-9), completed=max(0.0, row.share), width=20)
        table.add_row(Text(row.query), f"{row.share:.2f}", bar, Text(_met(row.document)))
    if listed:
        yield table
    if explanation.passage is not None:
        title = Text(f"Best passage, {place(explanation, explanation.passage)}")
        yield Panel(coloured_passage(explanation, explanation.passage), title=title, title_align="left")


def coloured_passage(explanation: Explanation, passage: Passage) -> Text:
    """Colour the tokens of a passage for rich, the stronger the greater their share of the score.

    Args:
        explanation: The explanation.
        passage: A passage of its document.

    Returns:
        The passage, with nothing in it that commands a terminal.
    """
    from rich.text import Text

    won = [(*share.token.span, share) for share in explanation.shares if share.token.span is not None]
    most = max(share.share for _, _, share in won)
    text = Text()
    for piece in pieces(len(explanation.document), won):
        start, stop = max(piece.start, passage.start), min(piece.stop, passage.stop)
        if start < stop:
            text.append(harmless(explanation.document[start:stop]), _style(piece, most))
    return text


def _style(piece: Piece[TokenShare], most: float) -> str:
    if not piece.over:
        return ""
    strength = max(0.0, sum(share.share for share in piece.over)) / most if most > 0 else 0.0
    red, green, blue = (
        round(pale + min(1.0, strength) * (strong - pale)) for pale, strong in zip(_PALE, _STRONG, strict=True)
    )
    return f"black on rgb({red},{green},{blue})"


def _met(document: tuple[str, ...]) -> str:
    return ", ".join(document[:_MOST_MET]) + ", …" * (len(document) > _MOST_MET)


def _columns(text: str) -> int:
    """Columns that a text takes in a terminal: two for the wide characters of East Asia, none for marks and joiners."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    marks = sum(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)
    return len(text) + wide - marks
