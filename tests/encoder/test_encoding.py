"""The encoder's promises on every layout: order, batches, padding, windows, odd texts, threads, memory."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import checkpoints
from colbert_integrations import ColBERT, ColBERTIndex, TruncationWarning, maxsim
from colbert_integrations.encoder import TokenSequence
from colbert_integrations.errors import AddError, InputError

Build = Callable[[str], Path]
LAYOUTS = [pytest.param(name, marks=checkpoints.marks(name)) for name in checkpoints.LAYOUTS]
# Sums of a few hundred float32 products, in another order where the batch is another: measured at most 2e-6.
FP32 = 1e-5
ODD = ["", " ", "\n\t", "a", ".", "...!!!", "😀 🦊", "日本語 العربية", "é é ﬁ", "\x00\x07", "[CLS] [MASK] </s> [Q] "]


def load(path: Path, **options) -> ColBERT:
    return ColBERT(path, device="cpu", allow_unprojected=path.name == "plain", **options)


@pytest.fixture(scope="session")
def loaded(checkpoint: Build) -> Callable[[str], ColBERT]:
    models: dict[str, ColBERT] = {}

    def get(name: str) -> ColBERT:
        if name not in models:
            models[name] = load(checkpoint(name))
        return models[name]

    return get


def assert_same(ours, theirs) -> None:
    assert ours.lengths == theirs.lengths
    torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=FP32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_text_has_the_same_vectors_alone_and_in_any_batch(name: str, loaded) -> None:
    model = loaded(name)
    texts = [*ODD, *checkpoints.SENTENCES, "the fox " * 90]
    together = model.encode_document(texts)
    for index, text in enumerate(texts):
        torch.testing.assert_close(together[index], model.encode_document(text)[0], rtol=0, atol=FP32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_query_has_the_same_vectors_alone_and_beside_documents(name: str, loaded) -> None:
    model = loaded(name)
    query, documents = "a plane", ["the fox", *checkpoints.SENTENCES, ""]
    together = model._ready().encode(documents, "document", query=query)
    apart = [model.encode_query(query), *map(model.encode_document, documents)]
    for index, alone in enumerate(apart):
        torch.testing.assert_close(together[index], alone[0], rtol=0, atol=FP32)


@pytest.mark.parametrize("shapes", [[(8, 5), (12, 12), (0, 0), (12, 5), (8, 6), (9, 9)], [(0, 0), (8, 5)]])
def test_expansion_that_nobody_sees_does_not_see_what_is_beside_it(shapes: list[tuple[int, int]], loaded) -> None:
    forward = loaded("stanford_deberta")._ready()._forward
    sequences = [TokenSequence(list(range(15, 15 + length)), seen, [], []) for length, seen in shapes]
    alone = torch.cat([forward([sequence]) for sequence in sequences if sequence.ids])
    torch.testing.assert_close(forward(sequences), alone, rtol=0, atol=FP32)


@pytest.mark.filterwarnings("ignore::colbert_integrations.errors.TruncationWarning")
@pytest.mark.parametrize("name", LAYOUTS)
def test_odd_texts_give_finite_unit_vectors(name: str, loaded) -> None:
    model = loaded(name)
    for encoded in (model.encode_query(ODD), model.encode_document(ODD)):
        assert all(encoded.lengths)
        norms = encoded.values.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)
        assert encoded.values.dtype == torch.float32


words = st.lists(st.sampled_from([*checkpoints.WORDS, ",", "?!"]), max_size=60).map(" ".join)


@settings(deadline=None, max_examples=15)
@given(texts=st.lists(words, min_size=1, max_size=8), data=st.data())
def test_order_and_batch_size_do_not_matter(texts: list[str], data, tiny: ColBERT) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    size = data.draw(st.integers(1, 9))
    whole = tiny.encode_document(texts)
    other = load(Path(tiny.settings.model), batch_size=size, batch_tokens=data.draw(st.integers(1, 300)))
    shuffled = other.encode_document([texts[index] for index in order])
    for place, index in enumerate(order):
        torch.testing.assert_close(shuffled[place], whole[index], rtol=0, atol=FP32)


def test_a_corpus_is_encoded_piece_by_piece(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(checkpoints.WORDS[i : i + 1 + i % 7]) for i in range(20)]
    whole = tiny.encode_document(texts)
    monkeypatch.setattr("colbert_integrations.encoder.encoder._TEXTS_AT_ONCE", 3)
    assert_same(tiny.encode_document(texts), whole)


def test_nothing_encodes_to_nothing(tiny: ColBERT) -> None:
    for encoded in (tiny.encode_query([]), tiny.encode_document([])):
        assert (len(encoded), encoded.dim) == (0, checkpoints.DIM)


def test_a_single_string_is_one_text(tiny: ColBERT) -> None:
    assert_same(tiny.encode_query("a cat"), tiny.encode_query(["a cat"]))


def test_a_tokenizer_that_adds_nothing_gives_no_vectors_for_no_text(loaded) -> None:
    model = load(Path(loaded("pylate_nobos").settings.model), document_marker="", query_marker="")
    encoded = model.encode_document(["", "a cat"])
    assert encoded.lengths[0] == 0
    assert encoded.lengths[1] > 0
    assert model.rank("a cat", ["", "a cat"])[1].score == float("-inf")
    assert model.encode_document([""]).lengths == [0]


# --------------------------------------------------------------------------------------------------------- lengths


def test_a_long_document_is_the_union_of_its_windows(tiny: ColBERT) -> None:
    words = [checkpoints.WORDS[i % len(checkpoints.WORDS)] for i in range(80)]
    # 40 tokens less [CLS], marker and [SEP] leave 37; overlap is half of it: starts 0, 19, 38 and the last at 80 - 37.
    pieces = [" ".join(words[start : start + 37]) for start in (0, 19, 38, 43)]
    expected = torch.cat(list(tiny.encode_document(pieces)))
    whole = tiny.encode_document([" ".join(words)])
    torch.testing.assert_close(whole[0], expected, rtol=0, atol=FP32)


LONG = " ".join(["the wind lifts both wings (and water runs) in the river"] * 12)


@pytest.mark.parametrize("text", ["the fox", LONG], ids=["short", "long"])
@pytest.mark.parametrize("overlap", [None, 0, 5])
def test_a_marker_in_the_prompt_is_the_marker_of_each_window(overlap: int | None, text: str, checkpoint: Build) -> None:
    # The same weights in two layouts: PyLate's marker is inserted, that of sentence-transformers is the prompt.
    native, pylate = (load(checkpoint(name), window_overlap=overlap) for name in ("native", "pylate_noexp"))
    assert_same(native.encode_document(text), pylate.encode_document(text))
    query = "how does a plane fly"
    ours, theirs = native.explain(query, text), pylate.explain(query, text)
    assert ours.score == pytest.approx(native.rank(query, [text])[0].score, abs=FP32)
    assert ours.similarities is not None
    assert theirs.similarities is not None
    assert ours.similarities.document_tokens == theirs.similarities.document_tokens


def test_each_window_begins_with_the_prompt_which_counts_once(loaded) -> None:
    # Words of one token each, after "text:" of five, whose colon is skipped. 40 tokens less [CLS], marker and [SEP]
    # leave 37, less the prompt 32, which overlap by half: starts 0, 16, 32 and the last at 70 - 32.
    words = ["wind", "the", "runs", "in", "water", "and", "wings"] * 10
    model = loaded("pylate_prompts")
    assert len(ids_of(model, " ".join(words[:32]), "document")) == 40
    pieces = [" ".join(words[start : start + 32]) for start in (0, 16, 32, 38)]
    first, *later = model.encode_document(pieces)
    expected = torch.cat([first, *(torch.cat([vectors[:2], vectors[6:]]) for vectors in later)])
    torch.testing.assert_close(model.encode_document(" ".join(words))[0], expected, rtol=0, atol=FP32)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["pylate", "pylate_prompts", "native", "stanford", "stanford_xlmr", "bge", "plain"]),
    prompt=st.sampled_from([None, "", "text: ", "the qui", " ", "[D] text: ", "Über (x)\n"]),
    texts=words,
    length=st.integers(16, 40),
)
def test_windows_hold_each_token_once_and_the_prompt_each(
    name: str, prompt: str | None, texts: str, length: int, checkpoint: Build
) -> None:
    model = load(checkpoint(name), document_prompt=prompt, document_length=length)
    encoder = model._ready()
    tokens = encoder.tokenizer.tokens(["ck " + texts], "document")[0]
    sequences = encoder.sequences(tokens, "document")
    head = encoder.tokenizer.prompt_length(tokens.ids)
    for sequence in sequences:
        held = [(origin, id_) for origin, id_ in zip(sequence.origins, sequence.ids, strict=True) if origin is not None]
        assert [tokens.ids[origin] for origin, _ in held] == [id_ for _, id_ in held]
        assert [origin for origin, _ in held[:head]] == list(range(head))
        assert len(sequence.ids) <= length
    origins = {origin for sequence in sequences for origin in sequence.origins} - {None}
    assert origins == set(range(len(tokens.ids)))
    added = set(encoder.tokenizer._tokenizer.get_added_vocab().values())
    for sequence in sequences[1:]:
        kept = [p for p in sequence.kept if sequence.origins[p] is not None and sequence.origins[p] < head]
        assert all(sequence.ids[position] in added for position in kept)


def test_a_prompt_that_merges_with_the_text_leads_as_far_as_it_is_its_own(checkpoint: Build) -> None:
    model = load(checkpoint("pylate"), document_prompt="in the qui")
    encoder = model._ready()
    tokens = encoder.tokenizer.tokens(["ck fox " * 40], "document")[0]
    spelt = [[encoder.tokenizer.text_of(id_) for id_ in s.ids[2:4]] for s in encoder.sequences(tokens, "document")]
    assert encoder.tokenizer.text_of(tokens.ids[2]) == "Ġquick"
    assert len(spelt) > 2
    assert all(found == ["in", "Ġthe"] for found in spelt)


@pytest.mark.parametrize("options", [{}, {"long_documents": "truncate"}])
def test_a_prompt_without_room_for_text_is_refused(options: dict[str, Any], checkpoint: Build) -> None:
    prompts = {"document_prompt": "fox dog " * 20, **options}
    with pytest.raises(
        InputError, match="document_length=40 leaves no room for text beside a prompt of 40 tokens.* 44"
    ):
        load(checkpoint("stanford"), **prompts)
    assert load(checkpoint("stanford"), **prompts, document_length=44).encode_document("cat").lengths == [44]


def test_a_prompt_that_fills_all_queries_is_refused(checkpoint: Build) -> None:
    prompt = {"query_prompt": "fox dog " * 10}
    with pytest.raises(InputError, match="query_length=23 leaves no room for text beside a prompt of 20 tokens.* 24"):
        load(checkpoint("stanford"), **prompt, query_length=23)
    model = load(checkpoint("stanford"), **prompt, query_length=24)
    one, other = model.encode_query("cat"), model.encode_query("the")
    assert not torch.equal(one.values, other.values)


def test_a_prompt_that_is_cut_away_takes_no_room(checkpoint: Build, tmp_path: Path) -> None:
    folder = tmp_path / "left"
    shutil.copytree(checkpoint("stanford"), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation_side": "left"}))
    model = load(folder, document_prompt="fox dog " * 20, long_documents="truncate")
    with pytest.warns(TruncationWarning):
        one, other = model.encode_document("cat"), model.encode_document("the")
    assert not torch.equal(one.values, other.values)


def test_a_piece_that_fails_keeps_no_vectors_alive(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, made = tiny._ready(), list[weakref.ref[torch.Tensor]]()
    piece, encode = encoder._piece, encoder._encode_sequences

    def failing(texts, *rest):
        if texts == ["bad"]:
            raise InputError("bad")
        return piece(texts, *rest)

    def noting(*given):
        embeddings = encode(*given)
        made.append(weakref.ref(embeddings.values))
        return embeddings

    monkeypatch.setattr("colbert_integrations.encoder.encoder._TEXTS_AT_ONCE", 1)
    monkeypatch.setattr(encoder, "_piece", failing)
    monkeypatch.setattr(encoder, "_encode_sequences", noting)
    gc.collect()
    gc.disable()  # as between two collections
    try:
        with contextlib.suppress(InputError):
            tiny.encode_document(["a fox", "bad"])
        assert [vectors() for vectors in made] == [None]
    finally:
        gc.enable()


def test_a_text_that_the_tokenizer_can_not_read_takes_no_other_with_it(checkpoint: Build, tmp_path: Path) -> None:
    folder = tmp_path / "no-unknown"
    shutil.copytree(checkpoint("stanford"), folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["unk_token"] = "[NONE]"  # which is not in the vocabulary
    path.write_text(json.dumps(tokenizer))
    index = ColBERTIndex(load(folder))
    with pytest.raises(AddError) as caught:
        index.add(["the fox", "\u6c49\u5b57", "a cat"], ids=["a", "b", "c"])
    assert (index.store.ids(), caught.value.failures.keys()) == (["a", "c"], {"b"})
    assert "can't read the text: WordPiece error" in str(caught.value.failures["b"])


def test_windows_never_score_less_than_the_beginning(tiny: ColBERT) -> None:
    query = tiny.encode_query("what is the capital of france")
    document = "the dog runs " * 30 + "paris is the capital of france"
    cut = load(Path(tiny.settings.model), long_documents="truncate")
    with pytest.warns(TruncationWarning, match=r"1 of 1 documents cut at document_length=40 tokens; long_documents="):
        beginning = maxsim(query, cut.encode_document(document))
    whole = maxsim(query, tiny.encode_document(document))
    assert whole.item() > beginning.item() + 0.1


def test_windows_do_not_warn(tiny: ColBERT) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.encode_document("the dog runs " * 90)
    assert caught == []


def test_cutting_warns_once_with_the_number_of_texts(tiny: ColBERT) -> None:
    with pytest.warns(TruncationWarning) as caught:
        # [CLS], marker and [SEP] leave 13.
        tiny.encode_query(["a " * 40, "a", "b " * 14, "b " * 13])
    assert [str(warning.message) for warning in caught] == [
        "2 of 4 queries cut at query_length=16 tokens; raise query_length to keep more"
    ]
    assert caught[0].filename == __file__


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_text_at_the_limit(extra: int, tiny: ColBERT) -> None:
    tokens = tiny._ready().tokenizer.capacity("document") + extra
    lengths = load(Path(tiny.settings.model)).encode_document("fox " * tokens).lengths
    assert lengths == [tokens + 3 if extra <= 0 else 2 * 40]  # one token too many makes a second, full window


def test_windows_of_long_documents_overlap_by_64_tokens(tiny: ColBERT) -> None:
    # 300 tokens less [CLS], marker and [SEP] leave 297, so each begins 297 - 64 = 233 after the one before, and the
    # last ends with the text: starts 0, 233 and 700 - 297.
    encoder = load(Path(tiny.settings.model), document_length=300)._ready()
    tokens = encoder.tokenizer.tokens(["fox " * 700], "document")[0]
    assert len(tokens.ids) == 700
    held = [[o for o in sequence.origins if o is not None] for sequence in encoder.sequences(tokens, "document")]
    assert held == [list(range(start, start + 297)) for start in (0, 233, 403)]


def test_the_overlap_can_be_chosen(tiny: ColBERT) -> None:
    path = Path(tiny.settings.model)
    assert load(path, window_overlap=0).encode_document("fox " * 74).lengths == [2 * 40]
    assert load(path, window_overlap=36).encode_document("fox " * 40).lengths == [4 * 40]
    with pytest.raises(InputError, match="from 0 to 36"):
        load(path, window_overlap=37)


def test_a_length_without_room_for_text_is_refused(checkpoint: Build) -> None:
    for side in ("query", "document"):
        with pytest.raises(InputError, match=f"{side}_length=3 .*at least 4"):
            load(checkpoint("stanford"), **{f"{side}_length": 3})


def test_lengths_stop_at_the_position_table(checkpoint: Build) -> None:
    # XLM-RoBERTa's table of 130 begins to count after its padding id 1.
    spec = load(checkpoint("bge")).spec
    assert (spec.query_length, spec.document_length) == (128, 128)
    assert any("128 positions" in note for note in spec.notes)
    assert load(checkpoint("bge"), document_length=128).encode_document("fox " * 126).lengths == [127]
    with pytest.raises(InputError, match="document_length=129.*128 positions"):
        load(checkpoint("bge"), document_length=129)


def test_rotary_positions_have_no_such_limit(checkpoint: Build) -> None:
    assert load(checkpoint("pylate"), document_length=900).spec.document_length == 900


def test_open_lengths_are_the_tokenizers(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, query_length=None, document_length=None)
    spec = load(tmp_path).spec
    assert (spec.query_length, spec.document_length) == (512, 512)


# ------------------------------------------------------------------------------------------------------ token rules


def ids_of(model: ColBERT, text: str, side) -> list[int]:
    encoder = model._ready()
    return encoder.sequences(encoder.tokenizer.tokens([text], side)[0], side)[0].ids


def test_stanford_ids_by_hand(tiny: ColBERT) -> None:
    # [PAD] [unused0..9] [UNK] [CLS] [SEP] [MASK]: 0, 1..10, 11, 12, 13, 14; then 32 symbols and 26 letters.
    a = 14 + 32 + 1
    assert ids_of(tiny, "a", "query") == [12, 1, a, 13, *[14] * 12]
    assert ids_of(tiny, "A!", "document") == [12, 2, a, 15, 13]
    assert tiny.encode_document("a!").lengths == [4]  # the mark is read, but gives no vector


def test_a_query_is_filled_up_with_the_token_that_the_checkpoint_names(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, expansion={"strategy": "fixed", "attend": False, "length": 16, "token": "[UNK]"})
    vocabulary = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab()
    model = load(tmp_path)
    assert ids_of(model, "a", "query")[4:] == [vocabulary["[UNK]"]] * 12  # after [CLS], "[Q] ", a and [SEP]


def test_a_spelt_out_marker_is_text_for_stanford_and_the_marker_for_pylate(loaded) -> None:
    stanford, pylate = loaded("stanford"), loaded("pylate")
    assert ids_of(stanford, "[unused1]", "document").count(stanford.spec.document_marker_id) == 1
    assert ids_of(pylate, "[D] ", "document").count(pylate.spec.document_marker_id) == 1  # stripped: no longer "[D] "
    assert ids_of(pylate, "x [D] y", "document").count(pylate.spec.document_marker_id) == 2


def test_pylate_strips_white_space_and_stanford_leaves_it_to_the_tokenizer(loaded) -> None:
    assert ids_of(loaded("pylate"), "  a cat \n", "query") == ids_of(loaded("pylate"), "a cat", "query")
    assert ids_of(loaded("native"), "  a cat", "query") != ids_of(loaded("native"), "a cat", "query")


def test_a_checkpoint_that_lower_cases_does_so_whatever_its_tokenizer(loaded) -> None:
    assert ids_of(loaded("pylate_layers"), "A CAT", "query") == ids_of(loaded("pylate_layers"), "a cat", "query")
    assert ids_of(loaded("pylate"), "A CAT", "query") != ids_of(loaded("pylate"), "a cat", "query")


def test_prompts_stand_between_marker_and_text(loaded) -> None:
    model = loaded("pylate_prompts")
    query = ids_of(model, "a cat", "query")
    assert query[1] == model.spec.query_marker_id
    assert query[2:] == ids_of(load(Path(model.settings.model), query_prompt=""), "ask: a cat", "query")[2:]


def test_sentence_pieces_skip_the_first_piece_of_each_symbol(loaded) -> None:
    model = loaded("stanford_xlmr")
    tokenizer = model._ready().tokenizer
    assert {tokenizer.text_of(index) for index in model.spec.skiplist_ids} == {"▁", "▁("}


def test_unknown_skiplist_words_do_not_delete_unknown_tokens(checkpoint: Build) -> None:
    model = load(checkpoint("pylate"), skiplist_words=["never-a-token", "!"])
    assert len(model.spec.skiplist_ids) == 1


@pytest.mark.parametrize("layout", ["stanford", "stanford_xlmr"])
def test_words_that_are_passed_are_skipped_and_not_what_they_begin_with(layout: str, checkpoint: Build) -> None:
    words, text = ["planes", "日本", "lazy dog"], "日本 שלום a lazy plane flies"  # none is a token
    model = load(checkpoint(layout), skiplist_words=words)
    assert not set(words) & set(model._ready().tokenizer._vocabulary)
    assert model.spec.skiplist_ids == ()
    every = load(checkpoint(layout), skiplist_words=[])
    assert model.encode_document(text).lengths == every.encode_document(text).lengths


def test_marker_less_tokenizers_are_noted(loaded) -> None:
    assert any("markers follow its first token" in note for note in loaded("pylate_nobos").spec.notes)


def test_truncation_and_padding_in_the_tokenizers_file_do_not_matter(tmp_path: Path, tiny: ColBERT) -> None:
    # As sentence-transformers leaves them there: all-MiniLM-L6-v2 says to cut at 128 and to pad to 128.
    path = checkpoints.build("stanford", tmp_path)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=30)
    tokenizer.save(str(path / "tokenizer.json"))
    assert_same(load(path).encode_document(checkpoints.SENTENCES), tiny.encode_document(checkpoints.SENTENCES))


@pytest.mark.parametrize("name", ["stanford", "stanford_python"])
@pytest.mark.parametrize("text", ["\ud800", "a \udfff b"])
def test_half_a_surrogate_pair_is_refused_and_named(text: str, name: str, loaded) -> None:
    model = loaded(name)
    with pytest.raises(InputError, match=r"documents.1. is not valid Unicode"):
        model.encode_document(["fine", text])
    with pytest.raises(InputError, match=r"documents.4. is not valid Unicode"):
        model.rank("q", ["a", "a", "a", "b", text])
    with pytest.raises(InputError, match="^query is not valid Unicode"):
        model.rank(text, ["a"])
    with pytest.raises(InputError, match="documents is not valid Unicode"):
        model.encode_document(text)
    with pytest.raises(InputError, match="text 1 is not valid Unicode"):
        model._ready().encode(["fine", text], "document")


# ----------------------------------------------------------------------------------------------- threads and memory


@pytest.mark.filterwarnings("ignore::colbert_integrations.errors.TruncationWarning")
def test_threads_do_not_disturb_each_other(tiny: ColBERT) -> None:
    texts = ["a", "the fox " * 11, "paris", "the dog " * 70, "what is the capital of france?"]
    jobs = [(side, text) for text in texts for side in ("query", "document")] * 20

    def encode(job: tuple[str, str]):
        return tiny.encode_query(job[1]) if job[0] == "query" else tiny.encode_document(job[1])

    alone = {job: encode(job) for job in set(jobs)}
    with ThreadPoolExecutor(8) as pool:
        for job, encoded in zip(jobs, pool.map(encode, jobs), strict=True):
            assert_same(encoded, alone[job])


class Starved:
    """A forward pass with memory for so many tokens at once."""

    def __init__(self, model: ColBERT, tokens: int) -> None:
        self.inner = model._ready()._forward
        self.tokens = tokens
        self.sizes: list[int] = []

    def __call__(self, sequences):
        if sum(len(sequence.ids) for sequence in sequences) > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(sequences))
        return self.inner(sequences)


def test_a_batch_too_large_for_memory_is_halved(tiny: ColBERT) -> None:
    texts = ["the fox runs"] * 8
    forward = Starved(tiny, tokens=20)
    model = ColBERT(tiny.settings.model, device="cpu", forward=forward)
    assert_same(model.encode_document(texts), tiny.encode_document(texts))
    assert forward.sizes == [2, 2, 2, 2]


def test_a_single_text_too_large_for_memory_says_so(tiny: ColBERT) -> None:
    model = ColBERT(tiny.settings.model, device="cpu", forward=Starved(tiny, tokens=3))
    with pytest.raises(torch.OutOfMemoryError):
        model.encode_document(["the fox runs"])


def test_batches_keep_to_their_budget(tiny: ColBERT) -> None:
    seen: list[list[int]] = []
    inner = tiny._ready()._forward

    def forward(sequences):
        seen.append([len(sequence.ids) for sequence in sequences])
        return inner(sequences)

    texts = [" ".join(["fox"] * (1 + i % 30)) for i in range(40)]
    ColBERT(tiny.settings.model, forward=forward, batch_tokens=100, batch_size=6).encode_document(texts)
    assert sum(map(len, seen)) == 40
    assert all(max(batch) * len(batch) <= 100 and len(batch) <= 6 for batch in seen)
    assert all(max(batch) - min(batch) <= 10 for batch in seen)  # neighbours in length, or padding would cost more


# ------------------------------------------------------------------------------------------- numbers and languages


def test_bfloat16_stays_near_float32(tiny: ColBERT) -> None:
    half = load(Path(tiny.settings.model), dtype="bfloat16")
    ours, theirs = half.encode_document(checkpoints.SENTENCES), tiny.encode_document(checkpoints.SENTENCES)
    assert ours.values.dtype == torch.float32
    assert (ours.values * theirs.values).sum(-1).min() > 0.99
    norms = ours.values.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


def test_vectors_keep_their_length_where_the_checkpoint_does_not_normalise(tmp_path: Path, checkpoint: Build) -> None:
    checkpoints.native(tmp_path, normalize=False)
    raw = load(tmp_path).encode_document("the fox runs").values
    norms = raw.norm(dim=-1, keepdim=True)
    assert ((norms - 1).abs() > 0.1).any()
    unit = load(checkpoint("native")).encode_document("the fox runs").values
    torch.testing.assert_close(raw / norms, unit, rtol=0, atol=FP32)


def test_cut_dimensions_are_the_first_ones_normalised_again(tiny: ColBERT) -> None:
    cut = load(Path(tiny.settings.model), truncate_dim=8).encode_document("a cat").values
    whole = tiny.encode_document("a cat").values[:, :8]
    torch.testing.assert_close(cut, whole / whole.norm(dim=-1, keepdim=True), rtol=0, atol=1e-6)


def test_xmod_speaks_the_language_it_is_told(checkpoint: Build) -> None:
    english, default, german = (load(checkpoint("xmod"), language=code) for code in ("en_XX", None, "de_DE"))
    assert torch.equal(english.encode_query("a").values, default.encode_query("a").values)
    assert not torch.allclose(english.encode_query("a").values, german.encode_query("a").values, atol=1e-3)
    assert [model.spec.language for model in (english, default, german)] == ["en_XX", "en_XX", "de_DE"]
    with pytest.raises(InputError, match=r"\['de_DE', 'en_XX'\]"):
        load(checkpoint("xmod"), language="fr_FR")
    with pytest.raises(InputError, match="has no languages"):
        load(checkpoint("stanford"), language="en_XX")


@pytest.mark.parametrize("languages", [["en_XX", "de_DE"], ["de_DE"]])
def test_a_language_is_not_guessed(languages: list[str], checkpoint: Build, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("xmod"), tmp_path / "xmod")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "languages": languages, "default_language": None}))
    if len(languages) == 1:
        expected = load(checkpoint("xmod"), language="de_DE").encode_query("a").values
        assert torch.equal(load(folder).encode_query("a").values, expected)
    else:
        with pytest.raises(InputError, match=r"no default language: pass language=, one of \['de_DE', 'en_XX'\]"):
            load(folder)
        assert load(folder, language="de_DE").spec.language == "de_DE"


@pytest.mark.gpu
def test_the_gpu_encodes_like_the_cpu(tiny: ColBERT) -> None:
    on_gpu = ColBERT(tiny.settings.model, device="cuda", dtype="float32").encode_document(checkpoints.SENTENCES)
    assert on_gpu.device.type == "cuda"
    ours = tiny.encode_document(checkpoints.SENTENCES)
    torch.testing.assert_close(on_gpu.values.cpu(), ours.values, rtol=0, atol=1e-4)
