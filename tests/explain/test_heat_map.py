"""The heat map: made of the similarities, labelled with the tokens, silent about any script."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot

from colbert_integrations import ColBERT, Explanation
from colbert_integrations.errors import InputError, MissingExtraError
from colbert_integrations.explain import Token, TokenMatch, TokenSimilarities
from made import won_by
from texts import SENTENCES

QUERY, DOCUMENT = "how do planes fly", "The wings of a plane lift it."


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    mpl.use("Agg")
    yield
    pyplot.close("all")


def image(axes) -> bytes:
    """The picture; drawing it is where matplotlib warns, and a warning is an error here."""
    file = io.BytesIO()
    axes.figure.savefig(file, format="png")
    return file.getvalue()


def names(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def values(axes) -> np.ndarray:
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def test_it_shows_all_similarities_of_a_short_document(bundled: ColBERT) -> None:
    axes = bundled.explain(QUERY, DOCUMENT).plot()
    assert image(axes).startswith(b"\x89PNG")
    expected = bundled.encode_query(QUERY)[0] @ bundled.encode_document(DOCUMENT)[0].T
    assert values(axes) == pytest.approx(expected.numpy(), abs=1e-5)
    assert names(axes.yaxis) == QUERY.split()
    assert names(axes.xaxis) == ["The", "wings", "of", "a", "plane", "lift", "it", "."]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("document tokens", "query tokens")
    assert axes.get_title().startswith("Score ")


def test_it_shows_all_of_a_document_that_is_not_long(bundled: ColBERT) -> None:
    assert (
        names(bundled.explain("a fox", "the fox and a dog " * 10).plot().xaxis)
        == ["the", "fox", "and", "a", "dog"] * 10
    )


@pytest.mark.parametrize(("second", "shown"), [(30, 60), (31, 30)])
def test_a_document_of_sixty_tokens_is_drawn_whole(second: int, shown: int) -> None:
    words = ["a"] * 30 + ["B"] * second  # of two sentences; the first one won everything
    starts = [2 * place + (place >= 30) for place in range(len(words))]
    tokens = tuple(Token(word, start, start + 1) for word, start in zip(words, starts, strict=True))
    every = TokenSimilarities(tokens, np.zeros((1, len(tokens)), np.float32))
    explanation = Explanation(
        "q",
        f"{' '.join(words[:30])}. {' '.join(words[30:])}",
        0.5,
        (TokenMatch(Token("q", 0, 1), tokens[0], 0.5, 0, 0),),
    )
    assert names(replace(explanation, similarities=every).plot().xaxis) == words[:shown]


def test_long_names_are_cut() -> None:
    for word, shown in (("x" * 24, "x" * 24), ("x" * 25, "x" * 23 + "…")):
        assert names(won_by(word, (word, 0.5)).plot().xaxis) == [shown]


def test_the_figure_is_not_larger_than_two_feet() -> None:
    explanation = won_by("a plane " * 500, *[("plane", 0.5)] * 500)
    assert explanation.plot().figure.get_size_inches().tolist() == [24.0, 24.0]


def test_tokens_without_a_place_are_columns_too(tiny: ColBERT) -> None:
    assert names(tiny.explain("a fox", "a dog").plot().xaxis) == ["[CLS]", "[unused1]", "a", "dog", "[SEP]"]


def test_the_best_of_each_row_is_framed(bundled: ColBERT) -> None:
    explanation = bundled.explain(QUERY, DOCUMENT)
    frames = [(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in explanation.plot().patches]
    assert frames == [(match.document_index, match.query_index) for match in explanation.matches]


def test_of_a_long_document_it_shows_the_best_passage_and_what_matched_elsewhere(tiny: ColBERT) -> None:
    text = "the sea and the sky " * 40 + "a plane flies over paris. " + "the sea and the sky " * 40
    explanation = tiny.explain("a plane flies", text)
    axes = explanation.plot()
    image(axes)
    shown = values(axes)
    elsewhere = {match.document_index for match in explanation.matches if match.document_token.span is None}
    assert 20 < shown.shape[1] <= 60 + len(elsewhere)
    assert "over paris" in " ".join(names(axes.xaxis))
    for match in explanation.matches:  # each row has its best, though the token lies in other windows too
        assert shown[match.query_index].max() == pytest.approx(match.similarity, abs=1e-5)


def test_without_all_similarities_it_shows_the_matches(bundled: ColBERT) -> None:
    explanation = Explanation.from_dict(bundled.explain(QUERY, DOCUMENT).as_dict())
    shown = values(explanation.plot())
    assert np.isfinite(shown).sum() == len(explanation.matches)
    assert np.nanmax(shown, axis=1) == pytest.approx([match.similarity for match in explanation.matches])
    image(pyplot.gca())


def test_of_short_words_it_shows_a_passage_that_is_shorter() -> None:
    words = ["x", *"a" * 49, "b", *"a" * 90, "y"]  # from x to y they are 283 characters, from x to b 101
    tokens = tuple(Token(word, 2 * place, 2 * place + 1) for place, word in enumerate(words))
    won = zip((0, 50, 141), (0.5, 0.5, 0.25), strict=True)
    matches = tuple(TokenMatch(Token("q", 0, 1), tokens[j], share, i, j) for i, (j, share) in enumerate(won))
    every = TokenSimilarities(tokens, np.zeros((3, len(tokens)), np.float32))
    explanation = replace(Explanation("q", " ".join(words), 1.25, matches), similarities=every)
    assert names(explanation.plot().xaxis) == [*words[:51], "y"]


def test_columns_stand_as_the_document_has_them() -> None:
    asked, bird, plane = Token("q", 0, 1), Token("bird", 14, 18), Token("plane", 2, 7)
    matches = (TokenMatch(asked, bird, 0.5, 0, 4), TokenMatch(asked, plane, 0.25, 1, 1))
    axes = Explanation("q", "a plane and a bird", 0.75, matches).plot()
    assert names(axes.xaxis) == ["plane", "bird"]
    assert np.array_equal(values(axes), [[np.nan, 0.5], [0.25, np.nan]], equal_nan=True)


@pytest.mark.parametrize("text", [*SENTENCES[5::9], "a" * 300])
def test_it_is_silent_about_any_text(model: ColBERT, text: str) -> None:
    [explanation] = model.explain_pairs([(text[:30], text)])
    assert image(explanation.plot())


def test_dollars_are_no_formula() -> None:
    token = Token(r"$\bad$", 0, 6)
    axes = Explanation(r"$\bad$ money", r"$\bad$ money", 0.5, (TokenMatch(token, token, 0.5, 0, 0),)).plot()
    assert image(axes)
    assert names(axes.xaxis) == names(axes.yaxis) == [r"$\bad$"]


def test_characters_that_the_font_lacks_are_boxes(bundled: ColBERT) -> None:
    assert names(bundled.explain("東", "a 京").plot().yaxis) == ["□"]


def test_it_draws_where_it_is_told(bundled: ColBERT) -> None:
    _, (left, right) = pyplot.subplots(1, 2)
    assert bundled.explain(QUERY, DOCUMENT).plot(ax=right) is right
    assert not left.images
    image(right)


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(InputError, match="no vectors"):
        won_by("a plane").plot()


def test_without_matplotlib_there_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"colbert-integrations\[explain\]"):
        won_by("a plane", ("plane", 0.5)).plot()
