"""ColBERTIndex: texts in, texts out; nothing is encoded twice, and one bad document takes no other with it."""

from __future__ import annotations

import asyncio
import copy
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.documents import Document
from safetensors.torch import load_file, save_file

from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, TokenEmbeddings, TruncationWarning
from colbert_integrations import colbert_index as module
from colbert_integrations.checkpoint import digest
from colbert_integrations.checkpoint.digest import _meaning
from colbert_integrations.encoder import Encoder
from colbert_integrations.errors import (
    AddError,
    CheckpointError,
    DamagedIndexError,
    FingerprintError,
    InputError,
    RepeatedIdsWarning,
    StoreError,
)
from colbert_integrations.index import StoredDocument
from colbert_integrations.langchain import ColBERTReranker

PATIENCE_S = 30
TEXTS = ["wing lift", "boundary layer flow", "heat transfer", "shock wave", "wing lift"]


@pytest.fixture
def index(tiny: ColBERT) -> ColBERTIndex:
    return ColBERTIndex(tiny, MemoryStore("float32"))


@pytest.fixture
def encoded(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The documents that were encoded, in order."""
    seen: list[str] = []
    real = ColBERT.encode_document

    def encode(self: ColBERT, documents: Sequence[str], **options: Any) -> TokenEmbeddings:
        seen.extend(documents)
        return real(self, documents, **options)

    monkeypatch.setattr(ColBERT, "encode_document", encode)
    return seen


# ------------------------------------------------------------------------------------------------------------- search


def test_search_ranks_as_the_model_does(index: ColBERTIndex, tiny: ColBERT) -> None:
    ids = index.add(TEXTS, ids=list("abcde"))
    ranked = tiny.rank("wing shock", TEXTS)
    hits = index.search("wing shock", k=5)
    assert [hit.id for hit in hits] == [ids[entry.index] for entry in ranked]
    assert [hit.score for hit in hits] == pytest.approx([entry.score for entry in ranked], abs=1e-5)
    assert [hit.text for hit in hits] == [TEXTS[entry.index] for entry in ranked]


async def test_several_queries_are_searched_together(index: ColBERTIndex) -> None:
    index.add(TEXTS)
    together = index.search(["wing", "heat"], k=2)
    assert await index.asearch(["wing", "heat"], k=2) == together
    for query, hits in zip(["wing", "heat"], together, strict=True):
        assert [hit.id for hit in hits] == [hit.id for hit in index.search(query, k=2)]
    assert index.search([], k=2) == await index.asearch([], k=2) == []


async def test_looking_into_a_store_where_nothing_is_does_not_claim_it_for_a_model(index: ColBERTIndex) -> None:
    assert index.search("wing") == await index.asearch("wing") == []
    assert [entry.index for entry in index.rank("wing", ["lift"], ["a"])] == [0]
    assert index.store.fingerprint is None


def test_scores_can_be_normalised_and_cut(index: ColBERTIndex, tiny: ColBERT) -> None:
    index.add(TEXTS)
    sums, means = index.search("wing", k=9), index.search("wing", k=9, normalize_scores=True)
    length = tiny.encode_query("wing").lengths[0]
    assert [hit.score for hit in means] == pytest.approx([min(1, max(0, hit.score / length)) for hit in sums])
    threshold = means[1].score
    kept = index.search("wing", k=9, normalize_scores=True, score_threshold=threshold)
    assert kept == [hit for hit in means if hit.score >= threshold]


async def test_async_twins_do_the_same(index: ColBERTIndex) -> None:
    ids = await index.aadd(TEXTS, metadatas=[{"n": number} for number in range(5)])
    assert await index.asearch("wing", 2, {"n": {"$gt": 0}}) == index.search("wing", 2, {"n": {"$gt": 0}})
    assert [document.text for document in await index.aget(ids[:1])] == TEXTS[:1]
    await index.adelete(ids)
    assert len(index) == 0


async def test_adding_to_a_slow_store_holds_up_no_search_of_the_same_model(index: ColBERTIndex, tiny: ColBERT) -> None:
    leave = threading.Event()

    class Slow(MemoryStore):
        def upsert(self, *args: Any, **options: Any) -> None:
            assert leave.wait(PATIENCE_S)
            super().upsert(*args, **options)

    slow = ColBERTIndex(tiny, Slow())
    adding = [asyncio.create_task(slow.aadd([f"wing {number}"])) for number in range(40)]
    index.add(TEXTS)
    assert len(await asyncio.wait_for(index.asearch("wing", 3), PATIENCE_S / 2)) == 3
    leave.set()
    await asyncio.gather(*adding)
    assert len(slow) == 40


async def test_ranking_with_a_slow_store_holds_up_no_rank_of_the_same_model(index: ColBERTIndex, tiny: ColBERT) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(MemoryStore):
        def get(self, *args: Any, **options: Any) -> list[StoredDocument]:
            entered.set()
            assert leave.wait(PATIENCE_S)
            return super().get(*args, **options)

    slow, expected = ColBERTIndex(tiny, Slow()), tiny.rank("wing", TEXTS)
    waiting = [asyncio.create_task(slow.arank("wing", TEXTS, [*"abcde"])) for _ in range(40)]
    documents = [Document(text) for text in TEXTS]
    reranker = ColBERTReranker(index=slow, top_n=None)
    compressing = [asyncio.create_task(reranker.acompress_documents(documents, "wing")) for _ in range(40)]
    assert await asyncio.to_thread(entered.wait, PATIENCE_S)
    assert await asyncio.wait_for(tiny.arank("wing", TEXTS), PATIENCE_S / 2) == expected
    leave.set()
    assert await asyncio.gather(*waiting) == [expected] * 40
    best = TEXTS[expected[0].index]
    assert [found[0].page_content for found in await asyncio.gather(*compressing)] == [best] * 40


# ---------------------------------------------------------------------------------------------------------------- add


def test_unchanged_texts_are_not_encoded_again(index: ColBERTIndex, encoded: list[str]) -> None:
    index.add(TEXTS, ids=list("abcde"))
    assert encoded == TEXTS[:4]  # the text that is there twice only once
    index.add(TEXTS, ids=list("abcde"))
    assert len(encoded) == 4
    index.add(["wing drag", *TEXTS[1:]], ids=list("abcde"))
    assert encoded[4:] == ["wing drag"]
    assert index.get(["a"])[0].text == "wing drag"


def test_changed_metadata_alone_encodes_nothing(index: ColBERTIndex, encoded: list[str]) -> None:
    index.add(TEXTS, ids=list("abcde"), metadatas=[{"v": 1}] * 5)
    before = index.search("wing", k=5)
    encoded.clear()
    index.add(TEXTS, ids=list("abcde"), metadatas=[{"v": 2}, *[{"v": 1}] * 4])
    assert encoded == []
    assert index.get(["a"])[0].metadata == {"v": 2}
    assert [(hit.id, hit.score) for hit in index.search("wing", k=5)] == [(hit.id, hit.score) for hit in before]


def test_without_ids_the_same_document_is_stored_once(index: ColBERTIndex) -> None:
    first = index.add(TEXTS)
    assert first[0] == first[4]
    assert len(index) == 4
    assert index.add(TEXTS) == first
    other = index.add([TEXTS[0]], metadatas=[{"source": "elsewhere"}])
    assert other[0] not in first
    assert len(index) == 5
    assert index.add(["given", "not given"], ids=["mine", None])[0] == "mine"


def test_a_generator_is_read_in_windows(index: ColBERTIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 3)
    ahead: list[int] = []

    def texts() -> Iterator[str]:
        for number in range(10):
            ahead.append(number - len(index))
            yield f"wing number {number}"

    ids = index.add(texts(), ids=(str(number) for number in range(10)))
    assert ids == [str(number) for number in range(10)]
    assert len(index) == 10
    assert max(ahead) <= 3


LONG = [f"{word} " * 90 for word in ("wing", "heat", "shock")]
CUT = "3 of 5 documents cut at document_length=40 tokens; long_documents='window' scores them whole"


@pytest.mark.parametrize("how", ["add", "aadd"])
async def test_documents_that_are_cut_are_told_once_a_call(
    tiny: ColBERT, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "_WINDOW", 2)
    index = ColBERTIndex(ColBERT(tiny.settings.model, device="cpu", long_documents="truncate"))
    texts = [LONG[0], "wing lift", LONG[1], "heat transfer", LONG[2]]
    with pytest.warns(TruncationWarning) as caught:
        await index.aadd(texts) if how == "aadd" else index.add(texts)
    assert [str(warning.message) for warning in caught] == [CUT]
    if how == "add":
        assert caught[0].filename == __file__


def test_documents_that_are_cut_are_told_also_where_others_fail(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 3)
    index = ColBERTIndex(ColBERT(tiny.settings.model, device="cpu", long_documents="truncate"))
    with pytest.warns(TruncationWarning) as caught, pytest.raises(AddError):
        index.add([LONG[0], 3, "wing lift", LONG[1], "half \ud83d", LONG[2], "heat transfer"])  # type: ignore[list-item]
    assert [str(warning.message) for warning in caught] == [CUT]


def test_bad_documents_are_reported_and_the_others_stored(index: ColBERTIndex) -> None:
    texts: list[Any] = ["wing", 3, "bad \ud800", "heat", "flow", "shock", "layer"]
    metadatas: list[Any] = [None, None, None, {1: 2}, None, {"ok": True}, None]
    with pytest.raises(AddError, match=r"4 of 7 documents could not be added.*1 more") as caught:
        index.add(texts, ids=["a", "b", "c", "d", "", "f", "g"], metadatas=metadatas)
    assert caught.value.failures.keys() == {"b", "c", "d", "number 4"}
    assert caught.value.added == ["a", "f", "g"]
    assert {document.id for document in index.store.iter_documents()} == {"a", "f", "g"}
    assert "Unicode" in str(caught.value.failures["c"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.added) == (str(caught.value), caught.value.added)


def test_a_document_that_the_store_refuses_takes_no_other_with_it_and_nothing_is_encoded_twice(
    index: ColBERTIndex, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = index.store.upsert

    def upsert(ids: Sequence[str], *arguments: Any) -> None:
        if "c" in ids:
            raise InputError("not this one")
        real(ids, *arguments)

    monkeypatch.setattr(index.store, "upsert", upsert)
    with pytest.raises(AddError, match="c: not this one") as caught:
        index.add(TEXTS, ids=list("abcde"))
    assert (list(caught.value.failures), caught.value.added) == (["c"], list("abde"))
    assert len(encoded) == 4


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ([], "1 document could not be added (x: why)"),
        (["a"], "1 of 2 documents could not be added (x: why); the other one is stored, see .added"),
        (["a", "b"], "1 of 3 documents could not be added (x: why); the others are stored, see .added"),
    ],
)
def test_an_error_says_how_many_of_the_documents_are_stored(added: list[str], said: str) -> None:
    assert str(AddError({"x": InputError("why")}, added)) == said


def test_an_error_about_half_a_surrogate_pair_can_be_written_to_a_log() -> None:
    error = AddError({"\ud800": InputError("why")}, [])
    assert str(error).encode().decode() == r"1 document could not be added (\ud800: why)"
    assert list(error.failures) == ["\ud800"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("one text",), "lists or generators, not str"),
        ((["a", "b"], ["1"]), r"one length, not \[1, 2\]"),
        (({"a", "b"}, ["1", "2"]), "must be lists or generators, not set"),
        ((["a", "b"], frozenset({"1", "2"})), "must be lists or generators, not frozenset"),
        ((["a"], "i"), "not str"),
        ((["a"], None, 3), "not int"),
        ((["a"], None, {"year": 2020}), "lists or generators, not dict"),
        (({"1": "a"},), "lists or generators, not dict"),
        (({"a", "b"}, ["1", "2"]), "lists or generators, not set"),
        ((["a"], None, [{}, {}]), "one length"),
        ((None, ["a"]), "must be lists or generators, not NoneType"),
        ((TEXTS, 3), "must be lists or generators, not int"),
    ],
)
def test_impossible_arguments_are_refused_before_any_work(
    index: ColBERTIndex, encoded: list[str], arguments: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        index.add(*arguments)
    assert (len(index), encoded) == (0, [])


def test_ids_may_be_those_of_a_mapping_and_texts_its_values(index: ColBERTIndex) -> None:
    passages = {"c": TEXTS[0], "a": TEXTS[1]}
    assert index.add(passages.values(), ids=passages) == ["c", "a"]
    assert [document.text for document in index.get(["c", "a"])] == TEXTS[:2]
    assert index.rank("wing", list(passages.values()), passages) == index.rank("wing", TEXTS[:2], ["c", "a"])


@pytest.mark.parametrize("query", [None, 3, b"wing", {"wing": 1}, {"wing", "heat"}])
def test_a_query_that_is_no_text_is_refused(index: ColBERTIndex, query: Any) -> None:
    with pytest.raises(InputError, match="query must be a string or a list of strings, not"):
        index.search(query)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k must be a whole number from 1, not 0"),
        ({"filter": {"year": [2020]}}, r"'year' is compared with .*; one of several is \{'\$in'"),
        ({"filter": ["year"]}, "a filter must be a mapping"),
        ({"score_threshold": "0.5"}, "score_threshold must be a number"),
        ({"score_threshold": float("nan")}, "score_threshold must be a number"),
        ({"search": "fast"}, "search must be one of 'exact', 'codes', 'centroids', not 'fast'"),
        ({"search": "first_stage"}, "a MemoryStore has no search='first_stage'"),
        ({"search": "codes"}, "search='codes' needs codes"),
        ({"candidates": 0}, "candidates must be a whole number from 1, not 0"),
        ({"ids": "abc"}, "ids must be a list of strings, not 'abc'"),
        ({"ids": {"year": 2020}}, r"ids must be .*, not a mapping; of a filter, store.ids\(filter\) gives the ids"),
    ],
)
async def test_an_impossible_search_is_refused_before_a_model_is_loaded(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    index = ColBERTIndex(tmp_path / "no-such-model")
    with pytest.raises(InputError, match=said):
        index.search("wing", **options)
    with pytest.raises(InputError, match=said):
        await index.asearch("wing", **options)


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_queries_may_come_from_a_generator(index: ColBERTIndex, how: str) -> None:
    index.add(TEXTS)
    queries: Any = (query for query in ("wing", "heat"))
    options: dict[str, Any] = {"k": 2, "explain": True}
    hits: Any = index.search(queries, **options) if how == "sync" else await index.asearch(queries, **options)
    assert [[hit.explanation.query for hit in some] for some in hits] == [["wing"] * 2, ["heat"] * 2]


def test_documents_that_share_an_id_are_warned_of(index: ColBERTIndex) -> None:
    chunks = ["the first wing", "the second wing", "the third wing"]
    said = r"2 of 4 documents were replaced by later ones with the same id, such as 'a.txt'"
    with pytest.warns(RepeatedIdsWarning, match=said) as caught:
        assert index.add([*chunks, "bread"], ids=["a.txt", "a.txt", "a.txt", "b.txt"]) == ["a.txt"] * 3 + ["b.txt"]
    assert caught[0].filename == __file__
    assert [document.text for document in index.get(["a.txt", "b.txt"])] == ["the third wing", "bread"]
    index.add(["the third wing", "the third wing"], ids=["a.txt", "a.txt"])  # the same text: nothing is lost
    index.add(["bread", "bread"])


@pytest.mark.parametrize("call", ["delete", "get"])
def test_a_filter_is_no_list_of_ids(call: str, index: ColBERTIndex) -> None:
    index.add(["bread", "wings"], ids=["year", "b"])
    for who in (index, index.store):
        with pytest.raises(InputError, match="ids must be a list of strings, not a mapping"):
            getattr(who, call)({"year": 2020})
    assert len(index) == 2


def test_metadata_that_only_python_calls_equal_is_replaced(index: ColBERTIndex) -> None:
    for value in (1, True, 1.0):
        index.add(["wing"], ids=["a"], metadatas=[{"draft": value}])
        assert repr(index.get(["a"])[0].metadata["draft"]) == repr(value)


def test_generators_of_different_lengths_are_refused_when_one_ends(index: ColBERTIndex) -> None:
    with pytest.raises(InputError, match="one length"):
        index.add(iter(TEXTS), ids=iter(["a", "b"]))


def test_metadata_does_not_go_to_a_text_that_somebody_else_wrote_meanwhile(
    tiny: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, other = ColBERTIndex(tiny), ColBERTIndex(tiny)
    index.add(["paris"], ids=["x"], metadatas=[{"by": "first"}])
    other.store, look = index.store, index.store.get

    def look_and_be_late(ids: list[str], *, embeddings: bool = False) -> list[StoredDocument]:
        found = look(ids, embeddings=embeddings)
        monkeypatch.undo()
        other.add(["lions"], ids=["x"], metadatas=[{"by": "other"}])
        return found

    monkeypatch.setattr(index.store, "get", look_and_be_late)
    index.add(["paris"], ids=["x"], metadatas=[{"by": "second"}])
    [document] = index.get(["x"])
    assert (document.text, document.metadata) == ("lions", {"by": "other"})


def test_vectors_can_be_pooled_before_they_are_stored(tiny: ColBERT) -> None:
    whole, pooled = ColBERTIndex(tiny), ColBERTIndex(tiny, pool_factor=2)
    for index in (whole, pooled):
        index.add(["boundary layer flow over a wing with heat transfer"], ids=["a"])
    vectors = pooled.store.get(["a"], embeddings=True)[0].embeddings
    expected = tiny.encode_document("boundary layer flow over a wing with heat transfer", pool_factor=2)
    assert vectors is not None
    assert torch.allclose(vectors.float(), expected[0], atol=1e-3)
    assert pooled.store.num_tokens < whole.store.num_tokens  # type: ignore[attr-defined]
    for impossible in (0.5, float("nan"), "2"):
        with pytest.raises(InputError, match="pool_factor"):
            ColBERTIndex(tiny, pool_factor=impossible)


@pytest.mark.parametrize("factor", [np.int64(2), np.float32(1.5), Fraction(3, 2)], ids=repr)
def test_a_pool_factor_of_any_number_is_saved(factor: Any, tiny: ColBERT, tmp_path: Path) -> None:
    pooled = ColBERTIndex(tiny, pool_factor=factor)
    pooled.add(["boundary layer flow over a wing with heat transfer"], ids=["a"])
    pooled.save(tmp_path)
    loaded = ColBERTIndex.load(tmp_path, tiny, pool_factor=float(factor))
    loaded.add(["boundary layer flow over a wing with heat transfer"], ids=["a"])  # no warning: it is the same
    assert loaded.search("wing")[0].id == "a"


# --------------------------------------------------------------------------------------------------------------- rank


async def test_rank_takes_stored_vectors_where_the_text_is_the_same(
    index: ColBERTIndex, tiny: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(TEXTS[:3], ids=["a", "b", "c"])
    model_encoded: list[str] = []
    real = Encoder.encode

    def encode(self: Encoder, texts: Sequence[str], side: Any, **options: Any) -> TokenEmbeddings:
        model_encoded.extend(texts if side == "document" else [])
        return real(self, texts, side, **options)

    monkeypatch.setattr(Encoder, "encode", encode)
    candidates = ["wing lift", "changed", "heat transfer", "new", "wing lift"]
    ranked = index.rank("wing heat", candidates, ["a", "b", "c", None, "unknown"])
    assert model_encoded == ["changed", "new"]
    expected = tiny.rank("wing heat", candidates)
    assert [entry.index for entry in ranked] == [entry.index for entry in expected]
    assert [entry.score for entry in ranked] == pytest.approx([entry.score for entry in expected], abs=1e-5)
    options: dict[str, Any] = {"normalize_scores": True, "score_threshold": 0.1, "explain": True}
    cut = index.rank("wing heat", candidates, ["a", "b", "c", None, "unknown"], 2, **options)
    assert await index.arank("wing heat", candidates, ["a", "b", "c", None, "unknown"], 2, **options) == cut
    best = [entry for entry in ranked if entry.score >= ranked[1].score]
    given = ("wing heat", candidates, ["a", "b", "c", None, "unknown"])
    assert len(best) < 5
    assert index.rank(*given, score_threshold=ranked[1].score) == best
    assert await index.arank(*given, score_threshold=ranked[1].score) == best
    with pytest.raises(InputError, match="2 documents but 1 ids"):
        index.rank("wing", ["a", "b"], ["a"])
    names = ["a", "b", "c", None, "unknown"]
    assert index.rank("wing heat", (text for text in candidates), (name for name in names)) == ranked
    assert index.rank("wing heat", candidates, ["a", "b", "c", "", "unknown"]) == ranked  # as frameworks say None
    for documents, given, said in (
        (None, ["a"], "documents must be a list, not NoneType"),
        ("a", ["a"], "documents must be a list, not str"),
        ({"a"}, ["a"], "documents must be a list, not set"),
        ({"a": "text"}, ["a"], "documents must be a list, not dict"),
        (["a"], None, "ids must be a list, not NoneType"),
        (["a"], [["a"]], r"an id must be a string that is not empty, not \['a'\]"),
        ([3], ["a"], r"documents\[0\] must be a string, not int"),
    ):
        with pytest.raises(InputError, match=said):
            index.rank("wing", documents, given)
        with pytest.raises(InputError, match=said):
            await index.arank("wing", documents, given)


# -------------------------------------------------------------------------------------------------- save, load, models


def test_a_loaded_index_searches_and_grows(
    index: ColBERTIndex, tiny: ColBERT, tmp_path: Path, encoded: list[str]
) -> None:
    index.add(TEXTS, ids=list("abcde"), metadatas=[{"n": number} for number in range(5)])
    index.save(tmp_path)
    encoded.clear()
    loaded = ColBERTIndex.load(tmp_path, tiny)
    assert loaded.search("wing", k=5) == index.search("wing", k=5)
    loaded.add(TEXTS, ids=list("abcde"), metadatas=[{"n": number} for number in range(5)])
    assert encoded == []


def test_an_index_knows_the_model_it_was_made_with(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = ColBERT(checkpoint("plain"), device="cpu", allow_unprojected=True, projection_dim=8)
    index = ColBERTIndex(model)
    index.add(TEXTS)
    index.save(tmp_path)
    loaded = ColBERTIndex.load(tmp_path)
    assert loaded.model.settings.projection_dim == 8
    assert loaded.search("wing", k=5) == index.search("wing", k=5)


def test_a_model_in_a_folder_is_found_from_another_one(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("stanford")
    monkeypatch.chdir(folder.parent)
    model = ColBERT(folder.name, device="cpu")
    monkeypatch.chdir(tmp_path)  # already before it is asked for its fingerprint
    index = ColBERTIndex(model)
    index.add(TEXTS)
    index.save("saved")
    loaded = ColBERTIndex.load("saved")
    assert loaded.model.settings.model == str(folder)
    assert loaded.search("wing", k=5) == index.search("wing", k=5)


def test_an_index_is_loaded_where_and_as_carefully_as_asked(index: ColBERTIndex, tiny: ColBERT, tmp_path: Path) -> None:
    index.add(TEXTS, ids=list("abcde"))
    index.save(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedIndexError, match="checksum"):
        ColBERTIndex.load(tmp_path, tiny)
    loaded = ColBERTIndex.load(tmp_path, tiny, verify=False, pool_factor=3)
    loaded.add([TEXTS[1]], ids=["pooled"])
    whole, pooled = (document.embeddings for document in loaded.store.get(["b", "pooled"], embeddings=True))
    assert len(pooled) == -(-len(whole) // 3)
    with pytest.raises(InputError, match="device='nonsense'"):
        ColBERTIndex.load(tmp_path, tiny, device="nonsense", verify=False)


@pytest.mark.parametrize("how", ["add", "aadd"])
async def test_a_bar_shows_how_far_adding_is(
    index: ColBERTIndex, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "_WINDOW", 2)

    async def add(**options: Any) -> None:
        await index.aadd(TEXTS, **options) if how == "aadd" else index.add(TEXTS, **options)

    await add()
    assert capsys.readouterr().err == ""
    await add(show_progress=True)
    assert "5/5" in capsys.readouterr().err


def test_another_model_is_refused_and_both_are_named(
    index: ColBERTIndex, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    index.add(TEXTS)
    index.save(tmp_path)
    other = ColBERT(checkpoint("stanford"), device="cpu", document_marker="")
    with pytest.raises(FingerprintError) as caught:
        ColBERTIndex.load(tmp_path, other)
    assert index.model.fingerprint.digest in str(caught.value)
    assert other.fingerprint.digest in str(caught.value)
    assert str(caught.value).count(f"{checkpoint('stanford')}") == 2


def test_vectors_that_another_model_brought_meanwhile_are_refused(
    index: ColBERTIndex, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    other = ColBERT(checkpoint("stanford"), device="cpu", document_marker="")  # of the same dimension
    ColBERTIndex(other, index.store).add(TEXTS[:1], ids=["a"])
    calls: list[Callable[[], object]] = [
        lambda: index.search("wing"),
        lambda: index.rank("wing", TEXTS[:1], ["a"]),
        lambda: index.add(["shock wave"]),
        lambda: index.save(tmp_path / "saved"),
    ]
    for call in calls:
        with pytest.raises(
            FingerprintError, match=f"{other.fingerprint.digest}.*; the names are the same, but weights"
        ):
            call()
    assert (len(index), (tmp_path / "saved").exists()) == (1, False)


def test_the_fingerprint_is_of_weights_and_spec_not_of_names(
    checkpoint: Callable[[str], Path], tiny: ColBERT, tmp_path: Path
) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(checkpoint("stanford"), copied)
    assert ColBERT(copied, device="cpu").fingerprint == tiny.fingerprint
    assert ColBERT(copied, device="cpu", document_length=20, batch_size=2).fingerprint == tiny.fingerprint
    assert ColBERT(copied, device="cpu", query_prompt="q: ").fingerprint != tiny.fingerprint
    weights = next(path for path in copied.iterdir() if path.suffix in (".safetensors", ".bin"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # the last bit of the last weight
    weights.write_bytes(content)
    assert ColBERT(copied, device="cpu").fingerprint != tiny.fingerprint


@pytest.fixture
def copied(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint that may be changed."""
    return Path(shutil.copytree(checkpoint("stanford"), tmp_path / "copied"))


def retrain(folder: Path) -> None:
    """Other weights under the same names."""
    (path,) = folder.glob("*.safetensors")
    weights = {name: tensor + 0.1 for name, tensor in load_file(path).items()}
    path.unlink()  # what was mapped stays
    save_file(weights, path, metadata={"format": "pt"})


def test_weights_that_are_loaded_after_a_close_are_no_others_than_an_index_has(copied: Path, tmp_path: Path) -> None:
    model = ColBERT(copied, device="cpu")
    index = ColBERTIndex(model)
    index.add(["wing lift"])
    before = model.fingerprint
    retrain(copied)
    index.add(["heat transfer"])  # by the weights in memory
    assert model.fingerprint == before
    model.close()
    index.save(tmp_path / "saved")  # loads nothing
    assert not model.loaded
    for call in (
        lambda: index.add(["shock wave"]),
        lambda: index.search("wing"),
        lambda: index.save(tmp_path / "saved"),
    ):
        with pytest.raises(FingerprintError, match=before.digest):
            call()
    assert len(index) == 2
    assert model.fingerprint == ColBERT(copied, device="cpu").fingerprint != before


@pytest.mark.parametrize("change", [retrain, shutil.rmtree], ids=["retrained", "gone"])
def test_vectors_are_not_stored_as_those_of_files_that_were_never_loaded(
    change: Callable[[Path], None], copied: Path
) -> None:
    model = ColBERT(copied, device="cpu")
    change(copied)
    index = ColBERTIndex(model)
    with pytest.raises(CheckpointError, match="not those that were loaded"):
        index.add(["wing lift"])
    assert len(index) == 0
    assert len(model.rank("wing", ["lift"])) == 1  # which needs no name


def test_a_model_that_is_loaded_again_reads_its_files_for_the_fingerprint_once(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read, real = ColBERT(checkpoint("stanford"), device="cpu"), list[Path](), digest.weights_digest
    monkeypatch.setattr(digest, "weights_digest", lambda folder: read.append(folder) or real(folder))
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: model.fingerprint.digest, range(40)))
    model.close()
    model.encode_query("wing")
    assert found == {model.fingerprint.digest}
    assert len(read) == 1


def test_the_language_of_adapters_is_part_of_the_fingerprint(checkpoint: Callable[[str], Path]) -> None:
    default, english, german = (
        ColBERT(checkpoint("xmod"), device="cpu", language=language) for language in (None, "en_XX", "de_DE")
    )
    assert default.fingerprint == english.fingerprint != german.fingerprint
    assert german.fingerprint.settings["language"] == "de_DE"


def test_a_projection_made_here_is_part_of_the_fingerprint_as_it_is_made(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("plain"), device="cpu", allow_unprojected=True, projection_dim=8)
    assert _meaning(model.spec)["projection_made"] == "positive diagonal"  # as long as it is made the same way


def test_what_later_versions_add_to_a_spec_leaves_fingerprints_as_they_were(tiny: ColBERT) -> None:
    assert _meaning(tiny.spec).keys() == {
        *("architecture", "query_marker", "document_marker", "query_marker_id", "document_marker_id"),
        *("query_expansion", "expansion_token", "expansion_token_id", "attend_to_expansion_tokens"),
        *("skiplist_words", "skiplist_ids", "skiplist_rule", "skiplist_tasks", "query_prompt", "document_prompt"),
        *("strip", "lowercase", "dropped_tokens", "projection", "dim", "truncate_dim", "normalize", "pooling"),
    }


def test_a_store_that_is_kept_elsewhere_is_not_saved(tiny: ColBERT, tmp_path: Path) -> None:
    class Elsewhere(MemoryStore):
        pass

    index = ColBERTIndex(tiny, Elsewhere())
    index.store.__class__ = type("Remote", (module.Store,), {name: None for name in module.Store.__abstractmethods__})
    with pytest.raises(StoreError, match="keeps its documents itself"):
        index.save(tmp_path)


def test_an_index_is_not_pickled_and_not_copied(index: ColBERTIndex) -> None:
    assert copy.deepcopy(index) is index
    assert copy.copy(index) is index
    with pytest.raises(StoreError, match=r"save\(\) it and load\(\) it"):
        pickle.dumps(index)


def test_closing_ends_it(index: ColBERTIndex) -> None:
    index.add(TEXTS)
    with index:
        assert len(index) == 4
    with pytest.raises(StoreError, match="closed"):
        index.search("wing")


async def test_closing_lets_its_threads_end(tiny: ColBERT) -> None:
    before = threading.enumerate()
    index = ColBERTIndex(tiny)
    await index.aadd(TEXTS)
    await index.arank("wing", ["lift"], ["a"])
    await index.aget(["a"])
    assert len([document async for document in index.store.aiter_documents()]) == len(set(TEXTS))
    threads = [thread for thread in threading.enumerate() if thread not in before]
    assert len(threads) >= 4  # at least one for each kind of work
    index.close()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
