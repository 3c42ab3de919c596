"""An explanation as HTML for a notebook: one element with its style, without scripts, on light and dark pages.

Colours are transparent ones over the page's own, since notebooks do not tell their theme; text keeps the page's colour.
Pointing at a token shows what it matched: its title says it, and the style outlines it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from .characters import Piece, pieces
from .wording import label, place, rows, summary, visible

if TYPE_CHECKING:
    from .explanation import Explanation, Token, TokenMatch

__all__ = ["to_html"]

# A longer document is folded away below its best passage.
_LONG = 700
# Opacity of the colour behind a token, from no share of the score to the greatest.
_WEAKEST, _STRONGEST = 0.08, 0.6

_LEGEND = "The stronger the colour, the greater the share of the score. Point at a token to see what it matched."

_STYLE = """
.colbert-explanation{color:inherit;font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;\
font-size:14px;line-height:1.65;max-width:54em;border:1px solid rgba(128,128,128,.35);border-radius:8px;\
padding:.9em 1.2em 1em;--ce:245,158,11}
.colbert-explanation p{margin:0}
.colbert-explanation .ce-note{font-style:italic}
.colbert-explanation .ce-title,.colbert-explanation summary,.colbert-explanation thead th{font-size:.85em;opacity:.75}
.colbert-explanation .ce-title{margin:.8em 0 .1em}
.colbert-explanation .ce-text{white-space:pre-wrap;overflow-wrap:anywhere}
.colbert-explanation mark{color:inherit;border-radius:3px;padding:.1em 0;background:rgba(var(--ce),var(--ce-a))}
.colbert-explanation .ce-passage{text-decoration:underline 1px rgba(var(--ce),.9);text-underline-offset:.35em}
.colbert-explanation .ce-cut{opacity:.45}
.colbert-explanation .ce-chip{display:inline-block;font-size:.85em;line-height:1.5;padding:0 .6em;\
margin:.35em .4em 0 0;border:1px dashed rgba(128,128,128,.7);border-radius:1em}
.colbert-explanation details{margin-top:.8em}
.colbert-explanation summary{cursor:pointer}
.colbert-explanation table{border-collapse:collapse;margin:.3em 0 0;background:none;font-size:1em}
.colbert-explanation tr,.colbert-explanation th,.colbert-explanation td{border:0;background:none;color:inherit;\
font-weight:normal;text-align:left;vertical-align:baseline;padding:.05em 1.2em .05em 0;overflow-wrap:anywhere}
.colbert-explanation td.ce-number{text-align:right;font-variant-numeric:tabular-nums}
.colbert-explanation .ce-bar{display:inline-block;height:.6em;border-radius:2px;background:rgba(var(--ce),.8)}
"""


def to_html(explanation: Explanation) -> str:
    """Write an explanation as HTML.

    Args:
        explanation: The explanation.

    Returns:
        A ``div``, with nothing in it that is loaded or run; everything of query and document is escaped.
    """
    score, *notes = summary(explanation)
    parts = [
        f'<div class="colbert-explanation" role="group" aria-label="{escape(score)}">',
        f"<style>{_STYLE}{_links(len(explanation.matches))}</style>",
        f"<p><strong>{escape(score)}</strong></p>",
        *(f'<p class="ce-note">{escape(note)}</p>' for note in notes),
        *_query(explanation),
        *_document(explanation),
        *_table(explanation),
        f'<p class="ce-title">{_LEGEND}</p></div>',
    ]
    return "".join(parts)


def _links(count: int) -> str:
    """A rule by which pointing at a query token outlines the document token that it matched, and the other way."""
    selectors = ",".join(
        f".colbert-explanation:has(.ce-{one}{index}:is(:hover,:focus)) .ce-{other}{index}"
        for index in range(count)
        for one, other in ("qd", "dq")
    )
    return f"{selectors}{{outline:2px solid rgb(var(--ce));outline-offset:1px}}" if count else ""


# ----------------------------------------------------------------------------------------------------------- the parts


def _query(explanation: Explanation) -> Iterator[str]:
    def told(matches: Sequence[TokenMatch]) -> str:
        met = (f"“{label(explanation.document, match.document_token)}” {match.similarity:.2f}" for match in matches)
        return f"matches {', '.join(met)}"

    side = _Side("q", explanation.query, explanation.matches, lambda match: match.query_token, told)
    whole = len(explanation.query)
    yield from side.part("Query", 0, whole, _stretch("ce-cut", explanation.query_cut, whole))
    yield from side.chips(
        (row.query, row.matches) for row in rows(explanation) if row.matches[0].query_token.span is None
    )


def _document(explanation: Explanation) -> Iterator[str]:
    def told(matches: Sequence[TokenMatch]) -> str:
        won = (f"“{label(explanation.query, match.query_token)}” {match.similarity:.2f}" for match in matches)
        return f"{_share(matches):.2f} of the score: {', '.join(won)}"

    side = _Side("d", explanation.document, explanation.matches, lambda match: match.document_token, told)
    passage, whole = explanation.passage, len(explanation.document)
    lines = _stretch("ce-cut", explanation.document_cut, whole)
    if passage is None:
        yield from side.part("Document", 0, whole, lines)
    else:
        lines += _stretch("ce-passage", passage.start, passage.stop)
        where = place(explanation, passage)
        if whole > _LONG:
            yield from side.part(f"Best passage: {where}", passage.start, passage.stop)
            yield f"<details><summary>Whole document, {whole:,} characters</summary>"
            yield from side.part(None, 0, whole, lines)
            yield "</details>"
        else:
            yield from side.part(f"Document; underlined is the best passage: {where}", 0, whole, lines)
    yield from side.chips(
        (visible(share.token.text), [explanation.matches[index] for index in share.query_indices])
        for share in explanation.shares
        if share.token.span is None
    )


def _table(explanation: Explanation) -> Iterator[str]:
    listed = rows(explanation)
    if not listed:
        return
    most = max(match.similarity for match in explanation.matches)
    yield "<details><summary>All matches</summary><table><thead><tr>"
    yield from (f'<th scope="col">{name}</th>' for name in ("query", "share", "", "document"))
    yield "</tr></thead><tbody>"
    for row in listed:
        bar = f'<span class="ce-bar" style="width:{_strength(row.share, most) * 8:.2f}em"></span>'
        yield f'<tr><th scope="row">{_bidi(row.query)}</th><td class="ce-number">{row.share:.2f}</td><td>{bar}</td>'
        yield f"<td>{', '.join(map(_bidi, row.document))}</td></tr>"
    yield "</tbody></table></details>"


# ------------------------------------------------------------------------------------------------------- the two sides

_Line = tuple[int, int, str]


@dataclass(frozen=True)
class _Side:
    """The query or the document.

    Attributes:
        letter: What the classes of its tokens begin with.
        text: Its characters.
        matches: All matches.
        token: Of a match, the token that lies here.
        told: What is told of a place by the matches there.
    """

    letter: str
    text: str
    matches: tuple[TokenMatch, ...]
    token: Callable[[TokenMatch], Token]
    told: Callable[[Sequence[TokenMatch]], str]

    def part(self, title: str | None, start: int, stop: int, lines: Sequence[_Line] = ()) -> Iterator[str]:
        """A stretch of the text with its tokens marked, and under a title; ``lines`` get classes of their own."""
        if title is not None:
            yield f'<p class="ce-title">{escape(title)}</p>'
        placed = [(match, self.token(match).span) for match in self.matches]
        marks: list[tuple[int, int, TokenMatch | str]] = [(*span, match) for match, span in placed if span is not None]
        every = list(pieces(len(self.text), [*marks, *lines]))
        most = max((_share(_matches(piece)) for piece in every), default=0.0)
        yield f'<p class="ce-text ce-{self.letter}" dir="auto">'
        for piece in every:
            text = self.text[max(start, piece.start) : min(stop, piece.stop)]
            if text:
                yield self._piece(text, piece, most)
        yield "</p>"

    def _piece(self, text: str, piece: Piece[TokenMatch | str], most: float) -> str:
        # A browser reads a bare carriage return as a line feed.
        matches, shown = _matches(piece), escape(text).replace("\r", "&#13;")
        if matches:
            opacity = _WEAKEST + _strength(_share(matches), most) * (_STRONGEST - _WEAKEST)
            shown = f'<mark{self._attributes("", matches)} style="--ce-a:{opacity:.2f}">{shown}</mark>'
        for name in piece.over:
            if isinstance(name, str):
                shown = f'<span class="{name}">{shown}</span>'
        return shown

    def chips(self, listed: Iterable[tuple[str, Sequence[TokenMatch]]]) -> Iterator[str]:
        """Tokens that stand for no characters, below the text."""
        shown = [
            f"<span{self._attributes('ce-chip', matches)}>{escape(name)}: {_share(matches):.2f}</span>"
            for name, matches in listed
        ]
        if shown:
            yield f"<p>{''.join(shown)}</p>"

    def _attributes(self, name: str, matches: Sequence[TokenMatch]) -> str:
        names = " ".join([name, *(f"ce-{self.letter}{match.query_index}" for match in matches)]).strip()
        return f' class="{names}" title="{escape(self.told(matches))}" tabindex="0"'


def _matches(piece: Piece[TokenMatch | str]) -> list[TokenMatch]:
    return [over for over in piece.over if not isinstance(over, str)]


def _share(matches: Sequence[TokenMatch]) -> float:
    return sum(match.similarity for match in matches)


def _strength(share: float, most: float) -> float:
    return min(1.0, max(0.0, share / most)) if most > 0 else 0.0


def _stretch(name: str, start: int | None, stop: int) -> list[_Line]:
    return [] if start is None else [(start, stop, name)]


def _bidi(text: str) -> str:
    return f"<bdi>{escape(text)}</bdi>"
