"""Explanation: for each query token the document token that it matched, as plain data that can be read and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum, inf
from typing import TYPE_CHECKING, Any

from ..checks import check_whole_number
from ..errors import InputError
from .characters import word_around
from .passage import Passage, find_passage

if TYPE_CHECKING:  # what draws an explanation is loaded when it is drawn
    import numpy as np
    from matplotlib.axes import Axes
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Explanation", "Token", "TokenMatch", "TokenShare", "TokenSimilarities"]

_PASSAGE_LENGTH = 300


@dataclass(frozen=True)
class Token:
    """A token whose vector counts.

    Attributes:
        text: The token as the vocabulary spells it, such as ``##ing`` or ``[MASK]``.
        start: Where it begins in the text as it was given, in characters. Always whole characters as a reader sees
            them, without white space around, also where a token is a part of a character; so the stretches of
            neighbours may overlap. None for special tokens, markers and expansion, and where the tokenizer can't tell.
        stop: Where it ends, likewise.
    """

    text: str
    start: int | None = None
    stop: int | None = None

    @property
    def span(self) -> tuple[int, int] | None:
        """Start and stop; None where there are none."""
        return None if self.start is None or self.stop is None else (self.start, self.stop)


@dataclass(frozen=True)
class TokenMatch:
    """A query token and the document token that it matched best.

    Attributes:
        query_token: The query's token.
        document_token: The document's token with the highest similarity to it.
        similarity: Their dot product, this query token's share of the score.
        query_index: Position among the query's vectors.
        document_index: Position among the document's vectors, windows one after another.
    """

    query_token: Token
    document_token: Token
    similarity: float
    query_index: int
    document_index: int


@dataclass(frozen=True)
class TokenShare:
    """A document token's share of the score.

    Attributes:
        token: The document's token. One that lies in two windows has two vectors and is one token here, as are parts of
            the same character; special tokens count by their vectors.
        share: The sum of the similarities of the query tokens that it won.
        query_indices: Positions of these among the query's vectors.
    """

    token: Token
    share: float
    query_indices: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TokenSimilarities:
    """Every query token compared with every document token.

    Attributes:
        document_tokens: The document's tokens, windows one after another.
        values: Their similarities, ``(query vectors, document vectors)`` float32.
    """

    document_tokens: tuple[Token, ...]
    values: np.ndarray


@dataclass(frozen=True, repr=False)
class Explanation:
    """How a score came about.

    Print it, show it in a notebook, or draw it with ``plot``. ``as_dict`` makes plain JSON of it.

    Attributes:
        query: The query.
        document: The document, as it was scored.
        score: The raw MaxSim score, the sum of all similarities.
        matches: One for each query vector, in order; none where query or document has no vectors.
        pooled: Whether the model itself scores by merged vectors. Here tokens are compared one by one all the
            same, so the score differs from the model's.
        query_cut: Index of the first character that was not read, the query being too long. None: it was read whole or
            but for its beginning, or the tokenizer can't tell.
        document_cut: The same for the document.
        similarities: All similarities, for the heat map. None: they were left out.

    Example:
        >>> from colbert_integrations import ColBERT
        >>> model = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu")
        >>> explanation = model.explain("how do planes fly", "Why the wings of a plane lift it")
        >>> explanation.words(limit=1)[0][:2]
        ('planes', 'plane')
        >>> Explanation.from_dict(explanation.as_dict()) == explanation
        True
    """

    query: str
    document: str
    score: float
    matches: tuple[TokenMatch, ...]
    pooled: bool = False
    query_cut: int | None = None
    document_cut: int | None = None
    similarities: TokenSimilarities | None = field(default=None, compare=False)

    # ------------------------------------------------------------------------------------------------------- reading

    def words(self, limit: int | None = None) -> list[tuple[str, str, float]]:
        """The words that matched, strongest first.

        Args:
            limit: Maximum number of matches to return. None: all.

        Returns:
            ``(word of the query, word of the document, similarity)``, each the whole word that a token is a piece of;
            tokens that stand for no text or for punctuation are left out.

        Raises:
            InputError: If ``limit`` is no whole number from 0.
        """
        if limit is not None:
            check_whole_number("limit", limit, least=0)
        found = [
            (_word(self.query, match.query_token), _word(self.document, match.document_token), match.similarity)
            for match in self.matches
        ]
        named = [match for match in found if match[0] and match[1]]
        return sorted(named, key=lambda match: -match[2])[:limit]

    @cached_property
    def shares(self) -> tuple[TokenShare, ...]:
        """The shares of all document tokens that won something, largest first; together they are the score."""
        won: dict[tuple[int, int] | int, list[TokenMatch]] = {}
        for match in self.matches:
            won.setdefault(match.document_token.span or match.document_index, []).append(match)
        shares = [
            TokenShare(
                matches[0].document_token,
                fsum(match.similarity for match in matches),
                tuple(match.query_index for match in matches),
            )
            for matches in won.values()
        ]
        # Equal ones as they stand in the text, those without a place last.
        return tuple(sorted(shares, key=lambda share: (-share.share, share.token.span or (inf, inf))))

    @cached_property
    def passage(self) -> Passage | None:
        """The best passage of at most 300 characters; see ``best_passage``."""
        return self.best_passage()

    def best_passage(self, length: int = _PASSAGE_LENGTH) -> Passage | None:
        """Find the stretch of the document that holds most of the score.

        Of all runs of neighbouring sentences of at most ``length`` characters, the one whose tokens have the greatest
        share; where several are equal the shortest, then the first. Of a sentence that is longer than that, only its
        own best stretch is taken, from one token that won something to another, with the words whole if they fit.

        Args:
            length: Maximum number of characters; a single token may be longer.

        Returns:
            The passage; None where no token that stands for text won anything.

        Raises:
            InputError: If ``length`` is no whole number from 1.
        """
        check_whole_number("length", length)
        read = self.document[: self.document_cut]
        spans = [(share.token.span, share.share) for share in self.shares if share.token.span is not None]
        placed = [(*span, share) for span, share in spans if span[1] <= len(read) and not read[slice(*span)].isspace()]
        return find_passage(read, placed, length)

    # ------------------------------------------------------------------------------------------------------ plain data

    def as_dict(self, *, similarities: bool = False) -> dict[str, Any]:
        """Make plain data of it, for JSON or msgpack.

        Args:
            similarities: Whether all similarities are written too, a number for each pair of tokens, which ``plot``
                draws.

        Returns:
            Strings, numbers, None, lists and dicts: the fields by their names, and for readers in other languages
            ``shares`` and ``passage``. The score of a document without vectors is None, since JSON has no infinity.
        """
        said: dict[str, Any] = {
            "query": self.query,
            "document": self.document,
            "score": None if self.score == -inf else self.score,
            "matches": [
                {
                    "query_token": _token_dict(match.query_token),
                    "document_token": _token_dict(match.document_token),
                    "similarity": match.similarity,
                    "query_index": match.query_index,
                    "document_index": match.document_index,
                }
                for match in self.matches
            ],
            "pooled": self.pooled,
            "query_cut": self.query_cut,
            "document_cut": self.document_cut,
            "shares": [
                {
                    "token": _token_dict(share.token),
                    "share": share.share,
                    "query_indices": list(share.query_indices),
                }
                for share in self.shares
            ],
            "passage": None if self.passage is None else dict(vars(self.passage)),
        }
        if similarities and self.similarities is not None:
            said["similarities"] = {
                "document_tokens": [_token_dict(token) for token in self.similarities.document_tokens],
                "values": self.similarities.values.tolist(),
            }
        return said

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Explanation:
        """Make an explanation of what ``as_dict`` wrote.

        Args:
            said: The dict, also after JSON or msgpack.

        Returns:
            The explanation, equal to the one that was written.

        Raises:
            InputError: If it is something else.
        """
        try:
            query, document = said["query"], said["document"]
            matches = tuple(
                TokenMatch(
                    _token_of(match["query_token"], query),
                    _token_of(match["document_token"], document),
                    match["similarity"],
                    match["query_index"],
                    match["document_index"],
                )
                for match in said["matches"]
            )
            made = cls(
                query,
                document,
                -inf if said["score"] is None else said["score"],
                matches,
                said["pooled"],
                said["query_cut"],
                said["document_cut"],
                _similarities_of(said.get("similarities"), document),
            )
            _check_types(made)
            _check_tokens(made)
            return made
        except KeyError as error:
            raise InputError(f"not the output of Explanation.as_dict(): {error} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not the output of Explanation.as_dict(): {error}") from error

    # --------------------------------------------------------------------------------------------------------- drawing

    def __repr__(self) -> str:
        return f"Explanation(query={self.query!r}, score={self.score:.4g}, matches={len(self.matches)})"

    def __str__(self) -> str:
        from .terminal import plain_text

        return plain_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from .terminal import rich_parts

        yield from rich_parts(self)

    def to_html(self) -> str:
        """Write it as an element for a page: with its style, without scripts, for light and dark pages.

        Returns:
            A ``<div>``; everything of query and document is escaped.
        """
        from .html import to_html

        return to_html(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw a heat map: query tokens by document tokens, each query token's best match framed.

        Of a long document, the tokens of the best passage and those that matched elsewhere. Without ``similarities``,
        as after ``as_dict()``, the best matches alone are coloured. Characters that the font does not have are drawn as
        a box; set matplotlib's ``font.family`` to one that has them.

        Args:
            ax: Where to draw. None: in a new figure.

        Returns:
            The axes that were drawn in.

        Raises:
            MissingExtraError: If matplotlib is not installed.
            InputError: If there is nothing to draw, since query or document has no vectors.
        """
        from .heat_map import draw

        return draw(self, ax)


def _word(text: str, token: Token) -> str:
    """The word that a token lies in; empty for punctuation and for tokens that stand for no text."""
    span = token.span
    if span is None or not any(map(str.isalnum, text[slice(*span)])):
        return ""
    return text[slice(*word_around(text, *span))]


def _token_dict(token: Token) -> dict[str, Any]:
    return {"text": token.text, "start": token.start, "stop": token.stop}


def _token_of(said: Mapping[str, Any], text: str) -> Token:
    token = Token(**said)
    if token.span is not None and not 0 <= token.span[0] < token.span[1] <= len(text):
        raise ValueError(f"the token {token} lies outside of its text, which has {len(text)} characters")
    return token


def _check_types(made: Explanation) -> None:
    """Refuse what would be shown as it is, such as markup in the place of a number."""
    tokens = [token for match in made.matches for token in (match.query_token, match.document_token)]
    tokens += [] if made.similarities is None else made.similarities.document_tokens
    numbers = [made.score, *(match.similarity for match in made.matches)]
    places = [place for match in made.matches for place in (match.query_index, match.document_index)]
    cuts = [cut for cut in (made.query_cut, made.document_cut) if cut is not None]
    for values, kind in (
        ([made.query, made.document, *(token.text for token in tokens)], str),
        (numbers, (int, float)),
        ([*places, *cuts, *(place for token in tokens for place in token.span or ())], int),
        ([made.pooled], bool),
    ):
        for value in values:
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise TypeError(f"{value!r} is in the place of another type")
    if any(place < 0 for place in [*places, *cuts]):
        raise ValueError("a place is negative")


def _check_tokens(made: Explanation) -> None:
    """Refuse matches of other tokens than there are."""
    if [match.query_index for match in made.matches] != [*range(len(made.matches))]:
        raise ValueError("the matches are not one for each query token, in order")
    every = made.similarities
    if every is None or not made.matches:
        return
    named = dict(enumerate(every.document_tokens))
    if every.values.shape != (len(made.matches), len(named)) or any(
        named.get(match.document_index) != match.document_token for match in made.matches
    ):
        raise ValueError("the similarities are those of other tokens than the matches")


def _similarities_of(said: Mapping[str, Sequence[Any]] | None, document: str) -> TokenSimilarities | None:
    if said is None:
        return None
    import numpy as np

    tokens = tuple(_token_of(token, document) for token in said["document_tokens"])
    return TokenSimilarities(tokens, np.array(said["values"], dtype=np.float32))
