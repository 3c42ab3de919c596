"""Explanations: their sum is the score, and their spans are the characters that matched."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
from colbert_integrations import ColBERT, ColBERTIndex, Explanation, MemoryStore, TruncationWarning, observed
from colbert_integrations.errors import InputError, NonFiniteError
from colbert_integrations.explain import Token, TokenMatch, TokenShare
from texts import SENTENCES

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
    assert sum(share.share for share in explanation.shares) == pytest.approx(score, abs=1e-5)
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


def test_a_query_without_vectors_explains_nothing_either(checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint("pylate_nobos")
    model = ColBERT(path, device="cpu", query_marker="", document_marker="", query_expansion=False)
    explanation = model.explain("", "a cat")
    assert (explanation.score, explanation.matches) == (model.rank("", ["a cat"])[0].score, ()) == (0.0, ())
    assert Explanation.from_dict(json.loads(json.dumps(explanation.as_dict(), allow_nan=False))) == explanation
    assert "The query has no vectors" in str(explanation)
    assert "The query has no vectors" in explanation._repr_html_()
    assert model.explain("", "").score == float("-inf")


# ------------------------------------------------------------------------------------------------------------- shares


def test_a_share_is_what_the_query_tokens_bring_that_a_token_won(tiny: ColBERT) -> None:
    explanation = tiny.explain("a fox in Paris", TEXT)
    every = (tiny.encode_query("a fox in Paris")[0] @ tiny.encode_document(TEXT)[0].T).tolist()
    won: dict[int, list[int]] = {}
    for row, similarities in enumerate(every):
        won.setdefault(similarities.index(max(similarities)), []).append(row)
    found = {explanation.matches[share.query_indices[0]].document_index: share for share in explanation.shares}
    assert found.keys() == won.keys()
    for column, rows in won.items():
        assert found[column].query_indices == tuple(rows)
        assert found[column].share == pytest.approx(sum(every[row][column] for row in rows), abs=1e-5)
    shares = [share.share for share in explanation.shares]
    assert shares == sorted(shares, reverse=True)


def test_a_token_that_won_in_two_windows_is_one_token() -> None:
    fox, mark = Token("fox", 2, 5), Token("[SEP]")
    won = [(fox, 3, 0.5), (fox, 9, 0.25), (mark, 7, 0.5), (mark, 14, 0.125)]
    matches = tuple(TokenMatch(Token("q", 0, 1), token, share, i, j) for i, (token, j, share) in enumerate(won))
    shares = Explanation("q", "a fox runs", 1.375, matches).shares
    assert shares == (TokenShare(fox, 0.75, (0, 1)), TokenShare(mark, 0.5, (2,)), TokenShare(mark, 0.125, (3,)))


def test_windows_have_no_token_twice(tiny: ColBERT) -> None:
    text = "the dog runs to a river and a cat jumps over one red fox in the city of paris " * 4
    explanation = tiny.explain("paris is the capital of france and a cat jumps", text)
    spans = [token.span for token in explanation.similarities.document_tokens if token.span is not None]
    assert len(spans) > len(set(spans))  # windows overlap
    won = [share.token.span for share in explanation.shares if share.token.span is not None]
    assert len(won) == len(set(won))


# ------------------------------------------------------------------------------------------------------------- several


def same(one: Explanation, other: Explanation) -> None:
    assert [match.document_index for match in one.matches] == [match.document_index for match in other.matches]
    assert [match.document_token for match in one.matches] == [match.document_token for match in other.matches]
    assert one.score == pytest.approx(other.score, abs=1e-5)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(6)))
def test_several_documents_are_explained_as_each_alone_in_any_order(bundled: ColBERT, order: list[int]) -> None:
    texts = [SENTENCES[place] for place in order]
    for explanation, text in zip(bundled.explain("why do planes fly", texts), texts, strict=True):
        assert explanation.document == text
        same(explanation, bundled.explain("why do planes fly", text))


def test_equal_documents_are_explained_equally(tiny: ColBERT) -> None:
    first, other, again = tiny.explain("a fox", [TEXT, "a dog", TEXT])
    assert first == again
    assert first != other


def test_several_documents_are_encoded_together(checkpoint: Callable[[str], Path]) -> None:
    batches: list[int] = []

    def forward(sequences):
        batches.append(len(sequences))
        return torch.ones(sum(len(sequence.ids) for sequence in sequences), checkpoints.DIM)

    model = ColBERT(checkpoint("stanford"), device="cpu", forward=forward)
    model.explain("a fox", ["a dog", "a cat", "the sea", "a dog"])
    assert sorted(batches) == [1, 3]
    assert model.explain("a fox", []) == []


# ------------------------------------------------------------------------------------------------- inside rank, search


def test_ranked_documents_are_explained_where_that_is_asked_for(tiny: ColBERT) -> None:
    texts = [TEXT, "a dog", "the sea", "a dog"]
    plain, explained = tiny.rank("a fox", texts), tiny.rank("a fox", texts, explain=True)
    assert [(entry.index, entry.score) for entry in plain] == [(entry.index, entry.score) for entry in explained]
    assert all(entry.explanation is None for entry in plain)
    for entry in explained:
        assert entry.explanation.document == texts[entry.index]
        assert entry.explanation.score == pytest.approx(entry.score, abs=1e-5)


def test_only_what_is_returned_is_explained(checkpoint: Callable[[str], Path]) -> None:
    seen: list[int] = []

    def forward(sequences):
        seen.append(len(sequences))
        return torch.ones(sum(len(sequence.ids) for sequence in sequences), checkpoints.DIM)

    model = ColBERT(checkpoint("stanford"), device="cpu", forward=forward)
    model.rank("a fox", checkpoints.WORDS, top_n=2)
    once = sum(seen)
    model.rank("a fox", checkpoints.WORDS, top_n=2, explain=True)
    assert sum(seen) == once + once + 1 + 2
    assert model.rank("a fox", checkpoints.WORDS, score_threshold=1e9, explain=True) == []


def test_what_was_cut_is_warned_of_once(tiny: ColBERT) -> None:
    query = "a fox and a dog " * 10
    with pytest.warns(TruncationWarning) as caught:
        tiny.rank(query, ["a dog", "a cat"], explain=True)
    assert len(caught) == 1
    with pytest.warns(TruncationWarning, match="1 of 1 queries"):
        tiny.explain(query, "a dog")
    index = ColBERTIndex(tiny)
    index.add(["a dog"])
    with pytest.warns(TruncationWarning) as caught:
        index.search(query, explain=True)
    assert len(caught) == 1


def test_what_is_encoded_to_explain_is_counted_and_its_cuts_are_counted_once(tiny: ColBERT) -> None:
    with observed() as observation, pytest.warns(TruncationWarning):
        tiny.rank("a fox and a dog " * 10, ["a dog", "a cat"], top_n=1, explain=True)
    stats = observation.stats
    assert (stats.queries_encoded, stats.documents_encoded, stats.queries_cut) == (2, 3, 1)


async def test_hits_are_explained_by_their_texts(tiny: ColBERT) -> None:
    index = ColBERTIndex(tiny, MemoryStore(nbits=2))
    index.add([TEXT, "a dog", "the sea"], ids=["fox", "dog", "sea"])
    queries = ["a fox", "the sea", "a fox"]
    found = index.search(queries, k=2, explain=True)
    assert [[hit.id for hit in hits] for hits in found] == [
        [hit.id for hit in hits] for hits in index.search(queries, k=2)
    ]
    for query, hits in zip(queries, found, strict=True):
        for hit in hits:
            assert (hit.explanation.query, hit.explanation.document) == (query, hit.text)
            same(hit.explanation, tiny.explain(query, hit.text))  # of the text, not of two bits a number
    assert [hit.explanation.score for hit in await index.asearch("a fox", k=2, explain=True)] == pytest.approx(
        [hit.explanation.score for hit in found[0]], abs=1e-5
    )
    assert all(hit.explanation is None for hit in index.search("a fox"))


def test_a_hit_without_a_text_has_no_explanation(tiny: ColBERT) -> None:
    index = ColBERTIndex(tiny)
    index.add(["a dog"], ids=["dog"])
    index.store.upsert(["bare"], tiny.encode_document("a fox"))
    explained = {hit.id: hit.explanation for hit in index.search("a fox", explain=True)}
    assert explained["bare"] is None
    assert explained["dog"].document == "a dog"


# ------------------------------------------------------------------------------------------------- what has to be said


def test_what_was_not_read_is_told(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("stanford"), device="cpu", long_documents="truncate")
    query, document = "a fox " * 20, "a dog runs " * 40
    with pytest.warns(TruncationWarning):
        explanation = model.explain(query, document)
    # 16 tokens of a query are 13 of text, 40 of a document 37.
    assert query[: explanation.query_cut].split() == query.split()[:13]
    assert document[: explanation.document_cut].split() == document.split()[:37]
    assert explanation.passage.stop <= explanation.document_cut
    whole = model.explain("a fox", "a dog")
    assert (whole.query_cut, whole.document_cut) == (None, None)


def test_a_tokenizer_that_knows_no_places_tells_no_cut(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("stanford_python"), device="cpu", long_documents="truncate")
    with pytest.warns(TruncationWarning):
        explanation = model.explain("a fox " * 20, "a dog runs " * 40)
    assert (explanation.query_cut, explanation.document_cut) == (None, None)


def test_merged_vectors_are_told(tmp_path: Path, tiny: ColBERT) -> None:
    pooling = {"pool_factor": 2, "num_protected_tokens": 1, "tasks": ["document"]}
    checkpoints.native(tmp_path, pooling=pooling)
    explanation = ColBERT(tmp_path, device="cpu").explain("a fox", TEXT)
    assert explanation.pooled
    assert "merges" in str(explanation)
    assert not tiny.explain("a fox", TEXT).pooled


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vectors_that_are_not_numbers_are_an_error(checkpoint: Callable[[str], Path], value: float) -> None:
    def forward(sequences):
        return torch.full((sum(len(sequence.ids) for sequence in sequences), checkpoints.DIM), value)

    model = ColBERT(checkpoint("stanford"), device="cpu", forward=forward)
    with pytest.raises(NonFiniteError, match="document 0"):
        model.explain("a fox", ["a dog"])


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "document must be a string or a list of strings, not NoneType"),
        (3, "document must be a string or a list of strings, not int"),
        (["a", 3], r"document\[1\] must be a string, not int"),
        ({"a", "b"}, "document must be a string or a list of strings, not set"),
        ({"id": "a"}, "document must be a string or a list of strings, not dict"),
    ],
)
def test_a_document_that_is_no_text_is_refused(tiny: ColBERT, document: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny.explain("a fox", document)


def test_documents_may_be_any_sequence_of_texts(tiny: ColBERT) -> None:
    expected = tiny.explain("a fox", ["a dog", "a fox"])
    for documents in (np.array(["a dog", "a fox"]), iter(["a dog", "a fox"]), {"a dog": 1, "a fox": 2}.keys()):
        assert tiny.explain("a fox", documents) == expected


def test_pairs_may_come_from_a_generator(tiny: ColBERT) -> None:
    expected = [tiny.explain("a fox", "a dog"), tiny.explain("paris", "a fox")]
    assert tiny.explain_pairs(zip(["a fox", "paris"], ["a dog", "a fox"], strict=True)) == expected
    assert tiny.explain_pairs([["a fox", "a dog"], np.array(["paris", "a fox"])]) == expected
    assert tiny.explain_pairs(iter([])) == []


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (None, "pairs must be a list of queries with documents, not NoneType"),
        ("ab", "pairs must be"),
        (["ab"], r"pairs\[0\] must be a query and a document, not 'ab'"),
        ([("a", "b"), ("a",)], r"pairs\[1\] must be a query and a document"),
        ([("a", "b", "c")], r"pairs\[0\] must be a query and a document"),
        ([("a", None)], r"pairs\[0\]\[1\] must be a string, not NoneType"),
        ([3], r"pairs\[0\] must be a list of strings, not int"),
    ],
)
def test_what_are_no_pairs_is_refused(tiny: ColBERT, pairs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny.explain_pairs(pairs)


@pytest.mark.parametrize("number", ["1", -1, 1.5])
def test_impossible_numbers_of_words_and_characters_are_refused(tiny: ColBERT, number: Any) -> None:
    explanation = tiny.explain("a fox", "a dog")
    with pytest.raises(InputError, match="limit must be a whole number from 0"):
        explanation.words(number)
    for length in (number, None, 0):
        with pytest.raises(InputError, match="length must be a whole number from 1"):
            explanation.best_passage(length)
    assert explanation.words(0) == []


# --------------------------------------------------------------------------------------------------------- plain data


@pytest.mark.parametrize("text", ["", TEXT, *SENTENCES[::6]])
def test_plain_data_holds_everything(model: ColBERT, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        explanation = model.explain("東京 naïve fox", text)
    said = explanation.as_dict(similarities=True)
    read = Explanation.from_dict(json.loads(json.dumps(said, allow_nan=False)))
    assert read == explanation
    assert read.as_dict(similarities=True) == said
    assert (str(read), read._repr_html_()) == (str(explanation), explanation._repr_html_())
    assert read.similarities.document_tokens == explanation.similarities.document_tokens
    assert read.similarities.values.dtype == np.float32
    assert np.array_equal(read.similarities.values, explanation.similarities.values)
    assert pickle.loads(pickle.dumps(explanation)) == explanation


def test_similarities_are_left_out_unless_asked_for(tiny: ColBERT) -> None:
    explanation = tiny.explain("a fox", TEXT)
    assert "similarities" not in explanation.as_dict()
    assert Explanation.from_dict(explanation.as_dict()).similarities is None
    assert Explanation.from_dict(explanation.as_dict()) == explanation


def test_plain_data_says_shares_and_passage_too(tiny: ColBERT) -> None:
    explanation = tiny.explain("a fox", TEXT)
    said = explanation.as_dict()
    assert [share["share"] for share in said["shares"]] == [share.share for share in explanation.shares]
    passage = said["passage"]
    assert TEXT[passage["start"] : passage["stop"]] == passage["text"] == explanation.passage.text


def test_a_score_of_minus_infinity_is_null_in_json(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("pylate_nobos"), device="cpu", query_marker="", document_marker="")
    explanation = model.explain("a cat", "")
    said = explanation.as_dict(similarities=True)
    assert said["score"] is None
    assert Explanation.from_dict(json.loads(json.dumps(said, allow_nan=False))) == explanation
    assert "no vectors" in str(explanation)
    assert "no vectors" in explanation._repr_html_()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda said: said.pop("matches"), "'matches' is missing"),
        (lambda said: said.update(matches=None), "not iterable"),
        (lambda said: said["matches"][0].pop("similarity"), "'similarity'"),
        (lambda said: said["matches"][0].update(query_token=3), r"not the output of Explanation.as_dict\(\)"),
        (lambda said: said["matches"][2]["query_token"].update(stop=99), "outside of its text"),
        (lambda said: said["matches"][2]["query_token"].update(start=-3), "outside of its text"),
        (lambda said: said["matches"][2]["query_token"].update(text=5), "in the place of another type"),
        (lambda said: said["matches"][2]["query_token"].update(start=0.5), "in the place of another type"),
        (lambda said: said["matches"][2]["query_token"].update(stop=True), "in the place of another type"),
        (lambda said: said["matches"][0].update(query_index='"><script>'), "in the place of another type"),
        (lambda said: said["matches"][1].update(query_index=99), "not one for each query token, in order"),
        (lambda said: said["matches"].pop(0), "not one for each query token, in order"),
        (lambda said: said["similarities"]["document_tokens"][0].update(text=None), "in the place of another type"),
        (lambda said: said["similarities"]["values"].pop(), "those of other tokens"),
        (lambda said: said["similarities"].update(values=1), "those of other tokens"),
        (lambda said: said["matches"][0].update(document_index=99), "those of other tokens"),
        (lambda said: said["matches"][0].update(document_index=-1), "negative"),
        (lambda said: said.update(score="x"), "in the place of another type"),
        (lambda said: said.update(query_cut="a"), "in the place of another type"),
        (lambda said: said.update(query_cut=-1), "negative"),
        (lambda said: said.update(document_cut=-1), "negative"),
        (lambda said: said.update(pooled="no"), "in the place of another type"),
    ],
)
def test_other_data_is_refused(tiny: ColBERT, change: Callable, said: str) -> None:
    data = json.loads(json.dumps(tiny.explain("a fox", TEXT).as_dict(similarities=True)))
    change(data)
    with pytest.raises(InputError, match=said):
        Explanation.from_dict(data)


# --------------------------------------------------------------------------------------------------------------- words


def test_words_of_other_scripts_are_whole(byte_level: ColBERT, bundled: ColBERT) -> None:
    words = {word for _, word, _ in byte_level.explain("हिन्दी में", "क्षत्रिय हिन्दी नमी").words()}
    assert words <= {"क्षत्रिय", "हिन्दी", "नमी"}
    assert words
    # There is no telling words apart where no space is written: what is named is the token.
    assert ("東", "東") in {match[:2] for match in bundled.explain("東京", "東京は日本の首都です").words()}


def test_its_name_is_short(tiny: ColBERT) -> None:
    assert len(repr(tiny.explain("a fox", TEXT * 9))) < 80


def test_a_tokenizer_that_tells_no_places_still_names_tokens(
    checkpoint: Callable[[str], Path], tiny: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ColBERT(checkpoint("stanford"), device="cpu")
    monkeypatch.setattr(model._ready().tokenizer, "_backend", None)  # as if it were one in pure Python
    explanation, placed = model.explain("a fox", TEXT), tiny.explain("a fox", TEXT)
    assert [match.document_token.text for match in explanation.matches] == [
        match.document_token.text for match in placed.matches
    ]
    assert all(token.span is None for token in explanation.similarities.document_tokens)
    assert explanation.passage is None
    assert "fox" in str(explanation)
    assert TEXT.replace("\n", "") in explanation._repr_html_().replace("\n", "")
    assert Explanation.from_dict(explanation.as_dict()) == explanation
