"""Offsets: what they cut out of a text is what its tokens say, judged by the vocabularies' own spelling."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import regex

from colbert_integrations import ColBERT
from texts import SENTENCES, TEXTS

# How byte-level vocabularies spell bytes: GPT-2's rule, that printable ones of Latin-1 are themselves and all others
# follow from U+0100 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(OTHERS)}


def as_bytes(text: str) -> bytes:
    return text.encode()


def spelt_bytes(token: str) -> bytes:
    return bytes(BYTE[letter] for letter in token)


def bert_form(text: str) -> str:
    """Lower case, without accents and without what BERT drops."""
    letters = unicodedata.normalize("NFD", text.lower())
    return "".join(letter for letter in letters if unicodedata.category(letter)[0] != "C" and category(letter) != "Mn")


def category(letter: str) -> str:
    return unicodedata.category(letter)


def compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def is_all_of(cut: str, wanted: str | bytes, form: Callable) -> bool:
    """Whether ``wanted`` lies in what was cut out, and the characters at both ends of that have a part in it."""
    characters = [form(character) for character in regex.findall(r"\X", cut)]
    whole = form("").join(characters)
    first, last = max(1, len(characters[0])), max(1, len(characters[-1]))
    places = (place for place in range(len(whole)) if whole.startswith(wanted, place))
    return any(place < first and place + len(wanted) > len(whole) - last for place in places)


def cuts(model: ColBERT) -> list[tuple[str, str]]:
    """What tokens cut out of the texts, and how they are spelt: every token whose vector counts, matched or not."""
    documents = model.explain_pairs([("what", text) for text in TEXTS])
    queries = model.explain_pairs([(text[:40], "a") for text in SENTENCES])
    tokens = [(said.document, token) for said in documents for token in said.similarities.document_tokens]
    tokens += [(said.query, match.query_token) for said in queries for match in said.matches]
    assert len(TEXTS) > 200
    return [(text[slice(*token.span)], token.text) for text, token in tokens if token.span is not None]


# --------------------------------------------------------------------------------------------------------- real texts


def test_word_pieces_are_what_they_cut_out(bundled: ColBERT) -> None:
    found = cuts(bundled)
    assert len(found) > 10_000
    for cut, spelt in found:
        if spelt == "[UNK]":  # a word, whole
            assert cut == "".join(cut.split()) != ""
        else:
            assert is_all_of(cut, spelt.removeprefix("##"), bert_form), (cut, spelt)


def test_byte_level_tokens_are_what_they_cut_out(byte_level: ColBERT) -> None:
    found = cuts(byte_level)
    assert len(found) > 20_000
    shared = 0
    for cut, spelt in found:
        wanted = spelt_bytes(spelt)
        shared += b"\x7f" < wanted[:1] < b"\xc0"  # begins within a character
        if wanted.isspace():
            assert wanted in as_bytes(cut)
        else:
            assert is_all_of(cut, wanted.strip(), as_bytes), (cut, spelt)
    assert shared > 100


def test_byte_level_tokens_leave_nothing_out(byte_level: ColBERT) -> None:
    for said in byte_level.explain_pairs([("what", text) for text in SENTENCES]):
        spans = [token.span for token in said.similarities.document_tokens if token.span is not None]
        covered = {place for span in spans for place in range(*span)}
        assert {said.document[place] for place in set(range(len(said.document))) - covered} <= set(" ")


def test_sentence_pieces_are_what_they_cut_out(sentence_pieces: ColBERT) -> None:
    found = cuts(sentence_pieces)
    assert len(found) > 10_000
    for cut, spelt in found:
        wanted = spelt.replace("▁", " ")
        if spelt == "<unk>":
            assert cut.isspace() or cut == cut.strip() != ""
        elif wanted.isspace():
            assert compatible(cut).isspace(), (cut, spelt)
        else:
            assert is_all_of(cut, wanted.strip(), compatible), (cut, spelt)


def test_no_character_is_cut_in_two(model: ColBERT) -> None:
    for said in model.explain_pairs([("what", text) for text in SENTENCES]):
        edges = {0, *(found.end() for found in regex.finditer(r"\X", said.document))}
        for token in said.similarities.document_tokens:
            assert token.span is None or set(token.span) <= edges
        passage = said.passage
        assert passage is None or {passage.start, passage.stop} <= edges


# ------------------------------------------------------------------------------------------------------- chosen cases


def spans_in(model: ColBERT, text: str) -> list[tuple[str, str | None]]:
    """Spelling and cut of each token of a document."""
    [said] = model.explain("a", [text])
    tokens = said.similarities.document_tokens
    return [(token.text, None if token.span is None else text[slice(*token.span)]) for token in tokens]


def test_every_token_of_an_emoji_shows_it_whole(byte_level: ColBERT) -> None:
    text = "go 👨‍👩‍👧‍👦 go"
    cut = {cut for spelt, cut in spans_in(byte_level, text) if cut and not cut.isascii()}
    assert cut == {"👨‍👩‍👧‍👦"}


def test_vowel_signs_stay_with_their_letters(byte_level: ColBERT, bundled: ColBERT) -> None:
    assert {cut for _, cut in spans_in(byte_level, "कि")} == {None, "कि"}
    assert [cut for _, cut in spans_in(bundled, "कि")] == ["कि", "कि"]


def test_an_accent_of_its_own_stays_with_its_letter(bundled: ColBERT) -> None:
    assert spans_in(bundled, "cafe\u0301 x") == [("cafe", "cafe\u0301"), ("x", "x")]


def test_a_token_that_holds_the_space_before_it_shows_none(byte_level: ColBERT) -> None:
    found = dict(spans_in(byte_level, "we go and go"))
    assert found["Ġand"] == "and"


def test_a_space_that_the_tokenizer_made_up_shows_nothing(sentence_pieces: ColBERT) -> None:
    # No piece holds this letter and the space that is put before every text.
    for query, wanted in (("東", [None, "東"]), ("a 東", ["a", " ", "東"])):
        tokens = [match.query_token for match in sentence_pieces.explain(query, "a").matches]
        spans = [token.span for token in tokens if token.text not in ("<s>", "[QueryMarker]", "</s>", "<mask>")]
        assert [None if span is None else query[slice(*span)] for span in spans] == wanted


def test_one_character_that_is_read_as_several_is_shown_for_each(sentence_pieces: ColBERT) -> None:
    assert spans_in(sentence_pieces, "㍍a")[2:-1] == [*((letter, "㍍") for letter in "メートル"), ("a", "a")]


def test_white_space_around_a_text_shifts_nothing(byte_level: ColBERT, bundled: ColBERT) -> None:
    for model in (byte_level, bundled):
        cut = [cut for _, cut in spans_in(model, " \n\t the cat \n") if cut is not None]
        assert "".join(cut) == "thecat"
