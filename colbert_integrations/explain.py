"""Why a document scored as it did: for each query token, the document token it matched, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from .encoder import Encoder, Side

__all__ = ["Explanation", "TokenMatch", "explain_pair"]


@dataclass(frozen=True)
class Token:
    """A token whose vector counts.

    Attributes:
        text: The token as the vocabulary spells it, such as ``##ing`` or ``[MASK]``.
        start: Where it begins in the text as it was given, in characters; None for special tokens, markers and
            expansion, and where the tokenizer can't tell.
        stop: Where it ends, likewise.
    """

    text: str
    start: int | None = None
    stop: int | None = None


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
class Explanation:
    """How a score came about.

    Attributes:
        query: The query.
        document: The document.
        score: The raw MaxSim score, the sum of all similarities.
        matches: One for each query vector, in order.
    """

    query: str
    document: str
    score: float
    matches: tuple[TokenMatch, ...]

    def words(self, limit: int | None = None) -> list[tuple[str, str, float]]:
        """The words that matched, strongest first.

        Args:
            limit: Most matches to return. None: all.

        Returns:
            ``(word of the query, word of the document, similarity)``, each the whole word that a token is a piece of;
            tokens that stand for no text or for punctuation are left out.
        """
        found = [
            (_word(self.query, match.query_token), _word(self.document, match.document_token), match.similarity)
            for match in self.matches
        ]
        named = [match for match in found if match[0] and match[1]]
        return sorted(named, key=lambda match: -match[2])[:limit]


def _word(text: str, token: Token) -> str:
    """The word that a token lies in; empty for punctuation and for tokens that stand for no text."""
    if token.start is None or token.stop is None or not any(map(str.isalnum, text[token.start : token.stop])):
        return ""
    start, stop = token.start, token.stop
    while start > 0 and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while stop < len(text) and text[stop].isalnum() and text[stop - 1].isalnum():
        stop += 1
    return text[start:stop].strip()


def explain_pair(encoder: Encoder, query: str, document: str) -> Explanation:
    """Match the tokens of one query and one document.

    ``score = sum_s max_t <q_s, d_t>``; the match of ``s`` is the ``t`` of the maximum, the first where several tie.

    Args:
        encoder: Encodes both, with windows as for scoring; token pooling is not applied.
        query: The query.
        document: The document.

    Returns:
        The score and one match for each query vector; no match where the document has no vectors, and a score of
        ``-inf``.
    """
    query_tokens = _kept_tokens(encoder, query, "query")
    document_tokens = _kept_tokens(encoder, document, "document")
    similarities = encoder.encode([query], "query")[0] @ encoder.encode([document], "document")[0].T
    if not similarities.shape[1]:
        return Explanation(query, document, float("-inf"), ())
    best = similarities.max(dim=1)  # (query vectors,)
    matches = tuple(
        TokenMatch(query_tokens[s], document_tokens[t], similarity, s, t)
        for s, (similarity, t) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
    )
    return Explanation(query, document, float(best.values.sum()), matches)


def _kept_tokens(encoder: Encoder, text: str, side: Side) -> list[Token]:
    """The tokens of the vectors that ``encoder`` gives for a text, in their order."""
    tokens = encoder.tokenizer.tokens([text], side, with_spans=True)[0]
    spans = tokens.spans or [None] * len(tokens.ids)
    found = []
    for sequence in encoder.sequences(tokens, side):
        for position in sequence.kept:
            origin = sequence.origins[position]
            span = None if origin is None else spans[origin]
            found.append(Token(encoder.tokenizer.text_of(sequence.ids[position]), *(span or (None, None))))
    return found
