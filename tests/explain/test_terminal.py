"""In a terminal: readable as plain text, in colour with rich, and never a command to the terminal."""

from __future__ import annotations

import io
import re
import sys
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from colbert_integrations import ColBERT, Explanation
from colbert_integrations.errors import MissingExtraError
from colbert_integrations.explain import Token, TokenMatch
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
    line = re.search(rf"^  \[MASK\] × {len(masks)} +{sum(masks):.2f}  (.*)", str(explanation), re.MULTILINE)
    assert len(line[1].split(", ")) == len(set(line[1].split(", ")))
    assert "[CLS]  " in str(explanation)  # not so many times one


@pytest.mark.parametrize(("count", "met"), [(4, "four, three, two, one"), (5, "five, four, three, two, …")])
def test_a_line_names_the_four_that_matched_best(count: int, met: str) -> None:
    shares = [("one", 0.125), ("two", 0.25), ("three", 0.5), ("four", 1.0), ("five", 2.0)]
    words = won_by("one two three four five", *shares[:count])
    matches = tuple(replace(match, query_token=Token("[MASK]")) for match in words.matches)
    explanation = replace(words, matches=matches)
    line = rf"\[MASK\] × {count} +{words.score:.2f} .*{met}$"
    assert re.search(f"^  {line}", str(explanation), re.MULTILINE)
    assert re.search(f"^{line}", re.sub(" +\n", "\n", without_colour(printed(explanation))), re.MULTILINE)


@pytest.mark.parametrize(
    ("shares", "drawn"), [((0.5, 0.25), 30), ((0.5, -0.5), 20), ((0.0, 0.0), 0), ((-0.5, -0.25), 0)]
)
def test_bars_are_as_long_as_shares_are_large(shares: tuple[float, float], drawn: int) -> None:
    explanation = won_by("a plane flies", *zip(("plane", "flies"), shares, strict=True))
    matches = tuple(replace(match, query_token=Token(str(place))) for place, match in enumerate(explanation.matches))
    # Without colours rich draws what is full of a bar of 20 columns, and nothing of what is empty.
    assert printed(replace(explanation, matches=matches), no_color=True).count("━") == drawn


def test_parts_of_a_character_are_one_line(byte_level: ColBERT) -> None:
    lines = str(byte_level.explain("👨‍👩‍👧‍👦", "a dog")).splitlines()
    assert sum("👨‍👩‍👧‍👦" in line for line in lines) == 1
    assert not any("×" in line for line in lines if "👨‍👩‍👧‍👦" in line)


def test_columns_line_up_under_wide_characters(bundled: ColBERT) -> None:
    lines = str(bundled.explain("東京 or paris", "a city")).splitlines()[2:6]
    wide = [line.index(".") + sum(unicodedata.east_asian_width(letter) in "WF" for letter in line) for line in lines]
    assert len(set(wide)) == 1


@pytest.mark.parametrize("word", ["cafe\u0301", "ＡＢＣ", "zero\u200bwidth", "京"])
def test_columns_line_up_under_any_character(word: str) -> None:
    query = f"{word} or paris"
    asked = [Token(part, query.index(part), query.index(part) + len(part)) for part in query.split()]
    matches = tuple(TokenMatch(token, Token("q", 0, 1), 0.5, place, 0) for place, token in enumerate(asked))
    lines = str(Explanation(query, "q", 1.5, matches)).splitlines()[2:5]
    assert len({cell_len(line[: line.index(".")]) for line in lines}) == 1


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


@pytest.mark.parametrize("cost", [-0.5, -1.0])
def test_of_a_score_that_is_not_above_0_there_is_no_part(cost: float) -> None:
    text = str(won_by("A plane flies. A bird", ("plane", 0.5), ("bird", cost)))
    assert text.startswith(f"Score {0.5 + cost:.2f}: 2 query tokens, ")
    assert "Best passage, characters 0 to 14:\n" in text


def test_both_say_what_was_not_read() -> None:
    explanation = replace(won_by("a plane", ("plane", 0.5)), query_cut=0, document_cut=7)
    for text in (str(explanation), without_colour(printed(explanation))):
        assert "The query was read up to character 0 only." in text
        assert "The document was read up to character 7 only." in text


def test_the_greater_share_is_the_stronger_colour() -> None:
    shown = printed(won_by("a plane and a bird or a cat", ("plane", 0.5), ("bird", 0.25), ("cat", -0.125)))
    strong, pale = "48;2;255;176;59m", "48;2;255;244;214m"
    colours = [re.search(rf"(48;2;255;[\d;]+m){word}", shown.split("Best passage")[1])[1] for word in ("bird", "cat")]
    assert f"{strong}plane" in shown
    assert (colours[0] not in (strong, pale), colours[1]) == (True, pale)


def test_the_best_passage_in_colour_is_no_more_than_that() -> None:
    explanation = won_by("Nothing here. " * 60 + "A plane flies. " + "Nothing there. " * 60, ("plane", 0.5))
    shown = without_colour(printed(explanation))
    assert "A plane flies." in shown
    assert "Nothing" not in shown


def test_line_ends_of_windows_are_line_ends() -> None:
    shown = without_colour(printed(won_by("a plane\r\nflies", ("plane", 0.5), ("flies", 0.5))))
    assert re.search(r"a plane +.\n. flies", shown)


def test_rich_takes_a_text_as_it_is() -> None:
    shown = without_colour(printed(won_by("[bold]a plane[/bold] [/nothing]", ("plane", 0.5))))
    assert "[bold]a plane[/bold] [/nothing]" in shown
    query, document = Token("[red]", 0, 5), Token("[/nothing]", 2, 12)
    made = Explanation("[red] a", "a [/nothing]", 0.5, (TokenMatch(query, document, 0.5, 0, 0),))
    assert re.search(r"^\[red\] +0\.50 .* \[/nothing\] *$", without_colour(printed(made)), re.MULTILINE)


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
