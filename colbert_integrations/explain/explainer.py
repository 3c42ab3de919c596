"""Explanations made of a model: texts encoded once more, with the tokens that their vectors stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch

from ..devices import no_autocast
from ..encoder import Encoder, Side, TextTokens
from .characters import whole_characters
from .explanation import Explanation, Token, TokenMatch, TokenSimilarities

__all__ = ["explain_pairs"]

# How SentencePiece and byte-level vocabularies spell the space before a word.
_SPACES = "▁Ġ"


@dataclass(frozen=True)
class _Encoded:
    """A text's vectors ``(num_tokens, dim)``, the token of each, and where the text was cut."""

    vectors: torch.Tensor
    tokens: list[Token]
    cut: int | None


def explain_pairs(encoder: Encoder, pairs: Sequence[tuple[str, str]], *, tell_of_cuts: bool) -> list[Explanation]:
    """Match the tokens of queries and documents.

    ``score = sum_s max_t <q_s, d_t>``; the match of ``s`` is the ``t`` of the maximum, the first where several tie.

    Args:
        encoder: Encodes both, with windows as for scoring; token pooling is not applied.
        pairs: Queries and documents; each text is encoded once, all together.
        tell_of_cuts: Whether texts that are too long are counted and warned of; not where that was done before.

    Returns:
        An explanation of each pair, in order; no match where a text has no vectors: a score of 0 if that is the query,
        of ``-inf`` if it is the document.
    """
    queries = _encoded(encoder, [query for query, _ in pairs], "query", tell_of_cuts)
    documents = _encoded(encoder, [document for _, document in pairs], "document", tell_of_cuts)
    pooled = encoder.spec.pooling is not None
    made = {pair: _explanation(pair, queries[pair[0]], documents[pair[1]], pooled) for pair in dict.fromkeys(pairs)}
    return [made[pair] for pair in pairs]


def _explanation(pair: tuple[str, str], query: _Encoded, document: _Encoded, pooled: bool) -> Explanation:
    with no_autocast(query.vectors.device):
        similarities = (query.vectors @ document.vectors.T).cpu().numpy()  # (query vectors, document vectors)
    best = similarities.argmax(axis=1).tolist() if document.tokens else []
    matches = tuple(
        TokenMatch(query.tokens[s], document.tokens[t], float(similarities[s, t]), s, t) for s, t in enumerate(best)
    )
    score = sum((match.similarity for match in matches), 0.0) if document.tokens else -inf
    every = TokenSimilarities(tuple(document.tokens), similarities)
    return Explanation(*pair, score, matches, pooled, query.cut, document.cut, every)


def _encoded(encoder: Encoder, texts: list[str], side: Side, tell_of_cuts: bool) -> dict[str, _Encoded]:
    unique = list(dict.fromkeys(texts))
    vectors = encoder.encode(unique, side, tell_of_cuts=tell_of_cuts)
    tokens = encoder.tokenizer.tokens(unique, side, with_spans=True)
    return {
        text: _Encoded(matrix, *_named(encoder, text, found, side))
        for text, matrix, found in zip(unique, vectors, tokens, strict=True)
    }


def _named(encoder: Encoder, text: str, found: TextTokens, side: Side) -> tuple[list[Token], int | None]:
    """The tokens of the vectors that a text gives, in their order; and where it was cut."""
    spans = found.spans or [None] * len(found.ids)
    whole = whole_characters(text)
    tokens, read = list[Token](), 0
    for sequence in encoder.sequences(found, side):
        read = max(read, *(origin + 1 for origin in sequence.origins if origin is not None), 0)
        for position in sequence.kept:
            origin, spelt = sequence.origins[position], encoder.tokenizer.text_of(sequence.ids[position])
            span = None if origin is None else _visible_span(text, spelt, spans[origin])
            tokens.append(Token(spelt) if span is None else Token(spelt, *whole(*span)))
    if not any(spans[read:]):
        return tokens, None
    return tokens, max((whole(*span)[1] for span in spans[:read] if span is not None), default=0)


def _visible_span(text: str, spelt: str, span: tuple[int, int] | None) -> tuple[int, int] | None:
    """The stretch of a token without the white space around it, as far as it has other characters."""
    if span is None:
        return None
    start, stop = span
    characters = text[start:stop]
    if not spelt.strip(_SPACES) and characters.strip(_SPACES).strip():
        return None  # a space that the tokenizer put there, and counted as the character after it
    if not characters.strip():
        return span
    return stop - len(characters.lstrip()), start + len(characters.rstrip())
