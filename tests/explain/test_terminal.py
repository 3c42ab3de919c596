"""In a terminal: readable as plain text, in colour with rich, and never a command to the terminal."""

from __future__ import annotations

import io
import re
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from rich.console import Console
from rich.text import Text

from colbert_integrations import ColBERT, Explanation
from colbert_integrations.errors import MissingExtraError
from made import explanations, won_by
from texts import SENTENCES


def printed(explanation: Explanation, **options: object) -> str:
    """What rich writes to a terminal."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor", **options)
    console.print(explanation)
    return console.file.getvalue()


def without_colour(text: str) -> str:
    return Text.from_ansi(text).plain


def test_plain_text_lists_every_match_and_the_passage(bundled: ColBERT) -> None:
    explanation = bundled.explain("how do planes fly", "Bread is flour. " * 30 + "The wings of a plane lift it.")
    text = str(explanation)
    for match in explanation.matches:
        query = explanation.query[slice(*match.query_token.span)]
        document = explanation.document[slice(*match.document_token.span)]
        assert re.search(rf"^  {query} +{match.similarity:.2f}  {document}$", text, re.MULTILINE)
    assert text.startswith(f"Score {explanation.score:.2f}: 4 query tokens, {explanation.score / 4:.2f} on average.\n")
    start, stop = explanation.passage.start, explanation.passage.stop
    assert f"Best passage, characters {start} to {stop}" in text
    assert "The wings of a plane lift it." in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_piece_of_a_word_is_shown_as_one(tiny: ColBERT) -> None:
    pieces = re.findall(r"^  (\S+)", str(tiny.explain("planes", "a dog")), re.MULTILINE)
    assert "plane…" in pieces
    assert "…s" in pieces


def test_a_token_that_is_very_long_is_cut_where_it_is_named(bundled: ColBERT) -> None:
    picture = "iVBORw0KGgo" * 2000  # to this tokenizer one unknown word
    explanation = bundled.explain("what does it show", picture)
    named, _, passage = str(explanation).rpartition("Best passage")
    assert named.count("iVBORw0KGgo" * 5 + "iVBO…") == 4
    assert "".join(passage.split()).endswith(picture)
    assert explanation._repr_html_().count(picture) == 2  # of the best passage and of the whole document


def test_expansion_is_one_line(tiny: ColBERT) -> None:
    explanation = tiny.explain("a fox", "a dog")
    masks = [match.similarity for match in explanation.matches if match.query_token.text == "[MASK]"]
    assert len(masks) > 1
    assert re.search(rf"^  \[MASK\] × {len(masks)} +{sum(masks):.2f}  ", str(explanation), re.MULTILINE)


def test_parts_of_a_character_are_one_line(byte_level: ColBERT) -> None:
    lines = str(byte_level.explain("👨‍👩‍👧‍👦", "a dog")).splitlines()
    assert sum("👨‍👩‍👧‍👦" in line for line in lines) == 1


def test_columns_line_up_under_wide_characters(bundled: ColBERT) -> None:
    lines = str(bundled.explain("東京 or paris", "a city")).splitlines()[2:6]
    wide = [line.index(".") + sum(unicodedata.east_asian_width(letter) in "WF" for letter in line) for line in lines]
    assert len(set(wide)) == 1


@settings(deadline=None)
@given(explanations())
def test_no_text_commands_the_terminal(made: Explanation) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", str(made))
    rich = re.sub(r"\x1b\[[\d;]*m", "", printed(made))  # colours are all that rich may say
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", rich)


def test_rich_shows_it_in_colour(bundled: ColBERT) -> None:
    explanation = bundled.explain("how do planes fly", "The wings of a plane lift it.")
    shown = printed(explanation)
    # The strongest token has the full colour.
    strongest = explanation.shares[0].token
    assert f"48;2;255;176;59m{explanation.document[slice(*strongest.span)]}" in shown
    assert "The wings of a plane lift it." in without_colour(shown)
    assert without_colour(shown).startswith(f"Score {explanation.score:.2f}")


def test_rich_takes_a_text_as_it_is() -> None:
    shown = without_colour(printed(won_by("[bold]a plane[/bold] [/nothing]", ("plane", 0.5))))
    assert "[bold]a plane[/bold] [/nothing]" in shown


@pytest.mark.parametrize("text", ["", *SENTENCES[::5]])
def test_both_show_any_script(model: ColBERT, text: str) -> None:
    [explanation] = model.explain_pairs([("東京 naïve fox", text)])
    assert str(explanation)
    assert printed(explanation)


def test_without_rich_there_is_plain_text_and_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    explanation = won_by("a plane", ("plane", 0.5))
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "plane" in str(explanation)
    with pytest.raises(MissingExtraError, match=r"colbert-integrations\[explain\]"):
        list(explanation.__rich_console__(None, None))
