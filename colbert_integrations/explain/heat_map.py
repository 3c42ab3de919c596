"""An explanation as a heat map: query tokens by document tokens, each query token's best match framed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError, MissingExtraError
from .wording import label, short

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from .explanation import Explanation, Token

__all__ = ["draw"]

# A document of more tokens is drawn by those of its best passage, the longest of these with no more.
_MOST_COLUMNS = 60
_PASSAGE_LENGTHS = (300, 150, 75, 40)
_MOST_LETTERS = 24  # of a token
_MOST_INCHES = 24.0
_FRAME = "#1971c2"
_BOX = "\N{WHITE SQUARE}"  # which the fonts that matplotlib brings have

Place = tuple[int, int] | int
"""Where a token lies in the document; of one that stands for no characters, its number."""


def draw(explanation: Explanation, ax: Axes | None) -> Axes:
    """Draw an explanation.

    Args:
        explanation: The explanation.
        ax: Where to draw. None: in a new figure.

    Returns:
        The axes that were drawn in.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        InputError: If there is nothing to draw.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise MissingExtraError("A heat map", "explain") from error
    if not explanation.matches:
        raise InputError("query or document has no vectors, so there is no heat map to draw")
    tokens, values, best = _columns(explanation)
    columns = _names(explanation.document, tokens)
    lines = _names(explanation.query, [match.query_token for match in explanation.matches])
    if ax is None:
        _, ax = pyplot.subplots(figsize=_size(columns, lines), layout="constrained")
    image = ax.imshow(values, cmap="YlOrBr", aspect="auto", interpolation="nearest")
    for row, column in enumerate(best):
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=_FRAME, linewidth=1.5))
    ax.set_xticks(range(len(columns)), columns, rotation=90, parse_math=False)  # a dollar sign is one
    ax.set_yticks(range(len(lines)), lines, parse_math=False)
    ax.set(xlabel="document tokens", ylabel="query tokens", title=f"Score {explanation.score:.2f}")
    ax.figure.colorbar(image, ax=ax, label="similarity", pad=0.02)
    return ax


def _columns(explanation: Explanation) -> tuple[list[Token], np.ndarray, list[int]]:
    """The document tokens to draw, their similarities ``(query tokens, drawn tokens)``, and the best of each row."""
    import numpy as np

    won = [match.document_token.span or match.document_index for match in explanation.matches]
    every = explanation.similarities
    if every is None:
        tokens = {match.document_index: match.document_token for match in explanation.matches}
    else:
        tokens = dict(enumerate(every.document_tokens))
    # A token that lies in two windows is one column, as are the parts of a character: the best of them counts.
    columns: dict[Place, list[int]] = {}
    for index, token in sorted(tokens.items()):
        columns.setdefault(token.span or index, []).append(index)
    wanted = {*won, *_shown(explanation, list(columns))}
    drawn = [key for key in columns if key in wanted]
    best = [drawn.index(key) for key in won]
    if every is None:
        values = np.full((len(won), len(drawn)), np.nan)
        values[range(len(won)), best] = [match.similarity for match in explanation.matches]
    else:
        values = np.stack([every.values[:, columns[key]].max(axis=1) for key in drawn], axis=1)
    return [tokens[columns[key][0]] for key in drawn], values, best


def _shown(explanation: Explanation, places: list[Place]) -> list[Place]:
    """Which tokens are drawn though they matched nothing: all of a short document, else those of the best passage."""
    if len(places) <= _MOST_COLUMNS:
        return places
    for length in _PASSAGE_LENGTHS:
        passage = explanation.best_passage(length)
        if passage is not None:
            spans = (place for place in places if isinstance(place, tuple))
            within: list[Place] = [span for span in spans if passage.start <= span[0] and span[1] <= passage.stop]
            if len(within) <= _MOST_COLUMNS:
                return within
    return []


def _size(columns: list[str], lines: list[str]) -> tuple[float, float]:
    """Inches that the cells and their names need."""
    from matplotlib import rcParams

    letter = 0.012 * rcParams["font.size"]
    width = 2.2 + 2.2 * letter * len(columns) + letter * max(map(len, lines))
    height = 1.2 + 2.0 * letter * len(lines) + letter * max(map(len, columns))
    return min(_MOST_INCHES, width), min(_MOST_INCHES, height)


def _names(text: str, tokens: list[Token]) -> list[str]:
    """What to write at the ticks: short, and with a box for each character that the fonts don't have."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[name]))) for name in FontProperties().get_family()]
    known = {code for font in fonts for code in font.get_charmap()}
    named = [short(label(text, token), _MOST_LETTERS) for token in tokens]
    return ["".join(letter if ord(letter) in known else _BOX for letter in name) for name in named]
