"""The best passage: most of the score in few characters, borders that read well, and always the same one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_integrations import Explanation
from colbert_integrations.explain.characters import sentences, whole_characters, word_around
from made import explanations, won_by

DOCUMENT = "Bread is flour and water. Wings push air down. That lifts the plane! A jet pulls it. The end"


def passage(explanation: Explanation, length: int = 300) -> tuple[str, float]:
    found = explanation.best_passage(length)
    assert found.text == explanation.document[found.start : found.stop]
    return found.text, found.share


def test_it_is_whole_sentences() -> None:
    made = won_by(DOCUMENT, ("push", 0.5), ("plane", 0.75))
    assert passage(made) == ("Wings push air down. That lifts the plane!", 1.25)
    assert made.passage == made.best_passage(300)


def test_it_is_not_longer_than_was_asked_for() -> None:
    made = won_by(DOCUMENT, ("Bread", 0.25), ("push", 0.5), ("plane", 0.75))
    assert passage(made, 60) == ("Wings push air down. That lifts the plane!", 1.25)
    assert passage(made, 25) == ("That lifts the plane!", 0.75)


def test_of_a_long_sentence_it_is_whole_words() -> None:
    made = won_by("one two three four five six seven eight", ("wo", 0.5), ("fou", 0.5), ("eight", 0.75))
    assert passage(made, 20) == ("two three four", 1.0)
    assert passage(made, 10) == ("eight", 0.75)
    assert passage(made, 14) == ("two three four", 1.0)
    # Where the words do not fit, the tokens.
    assert passage(made, 13) == ("wo three fou", 1.0)
    assert passage(made, 2) == ("eight", 0.75)
    assert passage(won_by("unbelievable", ("bel", 0.5)), 5) == ("bel", 0.5)


def test_of_equal_ones_it_is_the_shortest_and_then_the_first() -> None:
    assert passage(won_by(DOCUMENT, ("Bread", 0.5), ("end", 0.5)), 30) == ("The end", 0.5)
    assert passage(won_by("A cat. A dog. A cow.", ("cat", 0.5), ("cow", 0.5)), 6) == ("A cat.", 0.5)


def test_the_last_digits_of_a_sum_do_not_decide() -> None:
    text = "A one. A two. A six. A nil. A nil. A nil. A new. A bar. A red."
    shares = [("one", 0.3), ("two", 0.2), ("six", 0.1), ("new", 0.1), ("bar", 0.2), ("red", 0.3)]
    assert 0.3 + 0.2 + 0.1 < 0.1 + 0.2 + 0.3  # as Python adds
    assert passage(won_by(text, *shares), 20) == ("A one. A two. A six.", pytest.approx(0.6))


def test_what_costs_is_left_out() -> None:
    made = won_by(DOCUMENT, ("Bread", -0.5), ("push", 0.5))
    assert passage(made) == ("Wings push air down.", 0.5)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        (" \n ", []),
        ("One.  Two?\nThree", ["One.", "Two?", "Three"]),
        ('He said "no." Then he left (at 3.15 p.m.). So', ['He said "no."', "Then he left (at 3.15 p.m.).", "So"]),
        ("An abbreviation, e.g. this one.", ["An abbreviation, e.g. this one."]),
        ("a line that\nwas wrapped\n\n* A point", ["a line that\nwas wrapped", "* A point"]),
        ("東京は首都です。「はい。」北京も。", ["東京は首都です。", "「はい。」", "北京も。"]),
        ("यह घर है। वह नदी है।", ["यह घर है।", "वह नदी है।"]),
        ("यह घर है॥ वह नदी है।", ["यह घर है॥", "वह नदी है।"]),
        ("元気？はい。", ["元気？", "はい。"]),
        ("أين البيت؟ هنا.", ["أين البيت؟", "هنا."]),
        ("  A title\nThen a text", ["A title", "Then a text"]),
    ],
)
def test_sentences_end_where_readers_expect_it(text: str, wanted: list[str]) -> None:
    assert [text[start:stop] for start, stop in sentences(text)] == wanted


@pytest.mark.parametrize(
    ("text", "part", "word"),
    [
        ("two planes!", "plan", "planes"),
        ("two planes!", "!", "!"),
        ("two (planes)", "(", "("),
        ("a B747s", "4", "B747s"),
        ("که می‌دانم", "دان", "می‌دانم"),  # with a joiner inside
        ("カタカナ", "タカ", "タカ"),
        ("กรุงเทพ", "เท", "เท"),
        ("東京", "京", "京"),
    ],
)
def test_a_word_is_whole_where_words_can_be_told_apart(text: str, part: str, word: str) -> None:
    start, stop = word_around(text, text.index(part), text.index(part) + len(part))
    assert text[start:stop] == word


@pytest.mark.parametrize(
    ("text", "part", "whole"), [("a\r\nb", "\r", "\r\n"), ("ü e\u0301", "e", "e\u0301"), ("ab", "b", "b")]
)
def test_a_character_is_whole(text: str, part: str, whole: str) -> None:
    start, stop = whole_characters(text)(text.index(part), text.index(part) + 1)
    assert text[start:stop] == whole


@settings(deadline=None)
@given(explanations(), st.integers(1, 100))
def test_it_holds_what_it_says(made: Explanation, length: int) -> None:
    found = made.best_passage(length)
    placed = [share for share in made.shares if share.token.span is not None]
    if found is None:
        return
    assert made.document[found.start : found.stop] == found.text
    longest = max(stop - start for start, stop in (share.token.span for share in placed))
    assert len(found.text) <= max(length, longest)
    inside = [share.share for share in placed if found.start <= share.token.start and share.token.stop <= found.stop]
    blank = [share.share for share in placed if made.document[slice(*share.token.span)].isspace()]
    assert sum(inside) - found.share <= sum(map(abs, blank)) + 1e-9
    assert found == made.best_passage(length)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1, width=16)), min_size=1, max_size=12), st.integers(3, 80))
def test_no_run_of_sentences_holds_more(won: list[tuple[int, float]], length: int) -> None:
    document = "".join(f"S{place:02}x. " for place in range(31))  # six characters each, and a space
    shares = {place: share for place, share in sorted(won)}
    made = won_by(document, *((f"S{place:02}x", share) for place, share in shares.items()))
    runs = [
        sum(share for place, share in shares.items() if first <= place <= last)
        for first in range(31)
        for last in range(first, 31)
        if 6 * (last - first) + 5 <= length
    ]
    best = max(runs, default=max(shares.values()))
    assert made.best_passage(length).share == pytest.approx(best)


def test_without_evidence_in_the_text_there_is_none() -> None:
    assert won_by("").passage is None
    assert won_by("a   b", ("  ", 0.5)).passage is None
