"""Explanations made by hand, or by hypothesis of any text: no model is needed to show one."""

from __future__ import annotations

from hypothesis import strategies as st

from colbert_integrations import Explanation
from colbert_integrations.explain import Token, TokenMatch

# Any text that can be written as UTF-8.
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@st.composite
def tokens(draw: st.DrawFn, text: str) -> Token:
    """A token of a text, with a place in it or without."""
    spelt = draw(TEXT)
    if not text or draw(st.booleans()):
        return Token(spelt)
    start = draw(st.integers(0, len(text) - 1))
    return Token(spelt, start, draw(st.integers(start + 1, min(len(text), start + 8))))


@st.composite
def explanations(draw: st.DrawFn) -> Explanation:
    """An explanation whose tokens lie anywhere, over each other too."""
    query, document = draw(TEXT), draw(TEXT | st.text(st.sampled_from("ab <.\n&\"'"), min_size=700, max_size=720))
    similarities = draw(st.lists(st.floats(-1, 1, width=32), max_size=8))
    matches = tuple(
        TokenMatch(draw(tokens(query)), draw(tokens(document)), similarity, place, draw(st.integers(0, 20)))
        for place, similarity in enumerate(similarities)
    )
    cut = draw(st.none() | st.integers(0, len(document)))
    score = sum(similarities) if similarities else float("-inf")
    return Explanation(query, document, score, matches, draw(st.booleans()), None, cut)


def won_by(document: str, *shares: tuple[str, float]) -> Explanation:
    """An explanation in which words of a document have the shares that are named."""
    matches, start = [], 0
    for place, (word, share) in enumerate(shares):
        start = document.index(word, start)
        token = Token(word, start, start + len(word))
        matches.append(TokenMatch(Token("q", 0, 1), token, share, place, place))
        start += len(word)
    return Explanation("q", document, sum(share for _, share in shares), tuple(matches))
