"""Explanations: their sum is the score, and their spans are the characters that matched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import checkpoints
from colbert_integrations import ColBERT

TEXT = "  The quick Red fox,\n jumps over Paris; the lazy dog!"
NAMES = [pytest.param(name, marks=checkpoints.marks(name)) for name in checkpoints.LAYOUTS]


def load(path: Path) -> ColBERT:
    return ColBERT(path, device="cpu", allow_unprojected=path.name == "plain")


@pytest.mark.parametrize("name", NAMES)
def test_the_similarities_add_up_to_the_score(name: str, checkpoint: Callable[[str], Path]) -> None:
    model = load(checkpoint(name))
    explanation = model.explain("a fox in Paris", TEXT)
    score = model.rank("a fox in Paris", [TEXT])[0].score
    assert explanation.score == pytest.approx(score, abs=1e-5)
    assert sum(match.similarity for match in explanation.matches) == pytest.approx(score, abs=1e-5)
    assert [match.query_index for match in explanation.matches] == list(range(len(explanation.matches)))


def test_matches_are_the_best_of_each_query_token(tiny: ColBERT) -> None:
    similarities = tiny.encode_query("a fox")[0] @ tiny.encode_document(TEXT)[0].T
    for match in tiny.explain("a fox", TEXT).matches:
        assert match.document_index == similarities[match.query_index].argmax().item()
        assert match.similarity == pytest.approx(similarities[match.query_index].max().item(), abs=1e-6)


@pytest.mark.parametrize("name", ["stanford", "pylate_prompts", "pylate_layers", "native", "plain"])
def test_spans_are_the_characters_of_the_token(name: str, checkpoint: Callable[[str], Path]) -> None:
    # Each word of the document, asked for alone, must point back at itself.
    model = load(checkpoint(name))
    document = [match.document_token for word in TEXT.split() for match in model.explain(word, TEXT).matches]
    spans = [(token.text, TEXT[token.start : token.stop]) for token in document if token.start is not None]
    assert spans
    for token, characters in spans:
        assert token.replace("##", "").strip("ĠĊ").lower() == characters.strip().lower()


def test_special_tokens_markers_and_expansion_have_no_span(tiny: ColBERT) -> None:
    tokens = [match.query_token for match in tiny.explain("fox", TEXT).matches]
    assert [token.text for token in tokens[:4]] == ["[CLS]", "[unused0]", "fox", "[SEP]"]
    assert [token.start for token in tokens[:4]] == [None, None, 0, None]
    assert all(token.text == "[MASK]" and token.start is None for token in tokens[4:])


def test_windows_keep_their_place_in_the_text(tiny: ColBERT) -> None:
    text = "the dog runs " * 30 + "and paris is a capital"
    found = tiny.explain("paris", text).matches[2].document_token
    places = [match.document_token for match in tiny.explain("and paris is a capital", text).matches]
    late = [token for token in places if token.start is not None and token.start >= 390]
    assert late
    for token in [*late, found]:
        if token.start is not None:
            assert text[token.start : token.stop] == token.text


def test_lower_casing_that_lengthens_a_character_shifts_no_span(checkpoint: Callable[[str], Path]) -> None:
    text = "İİİ fox"  # each "İ" is two characters in lower case
    model = load(checkpoint("pylate_layers"))
    encoder = model._ready()
    tokens = encoder.tokenizer.tokens([text], "document", with_spans=True)[0]
    characters = [text[start:stop] for start, stop in tokens.spans]
    assert tokens.spans[-1][1] == len(text)
    assert "".join(characters).replace("İİ", "İ").endswith(" fox")


def test_words_lists_the_strongest_first(tiny: ColBERT) -> None:
    words = tiny.explain("a fox in paris", TEXT).words(limit=2)
    assert len(words) == 2
    assert words[0][2] >= words[1][2]
    assert all(query in "a fox in paris" and document in TEXT for query, document, _ in words)


def test_words_are_whole_and_punctuation_is_none(tiny: ColBERT) -> None:
    # "planes" is two pieces here, and the only other token of the document is a mark.
    words = tiny.explain("planes", "planes!").words()
    assert words
    assert {word for match in words for word in match[:2]} == {"planes"}
    assert tiny.explain("!", "planes!").words() == []


def test_a_document_without_vectors_explains_nothing(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("pylate_nobos"), device="cpu", query_marker="", document_marker="")
    explanation = model.explain("a cat", "")
    assert (explanation.score, explanation.matches) == (float("-inf"), ())
