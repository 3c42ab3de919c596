"""index_corpus: any corpus in bounded memory; interrupted and run again, nothing is lost and nothing doubled."""

from __future__ import annotations

import datetime
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_integrations import (
    ColBERT,
    ColBERTIndex,
    MemoryStore,
    TokenEmbeddings,
    TruncationWarning,
    colbert_index,
    corpus,
    index_corpus,
    loading,
)
from colbert_integrations.errors import FingerprintError, InputError, StoreError
from colbert_integrations.pooling import pool_tokens
from colbert_integrations.qdrant import QdrantStore
from qdrant_server import QdrantServer

TEXTS = ["wing lift", "boundary layer flow", "heat transfer", "shock wave"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The documents that were encoded, in order."""
    seen: list[str] = []
    real = ColBERT.encode_document

    def encode(self: ColBERT, documents: Sequence[str], **options: Any) -> TokenEmbeddings:
        seen.extend(documents)
        return real(self, documents, **options)

    monkeypatch.setattr(ColBERT, "encode_document", encode)
    return seen


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"id": f"{number:04}", "text": f"wing number {number}"} for number in range(count)]


def contents(store: MemoryStore) -> list[tuple[str, str | None, dict[str, Any], list[list[float]]]]:
    return sorted(
        (document.id, document.text, document.metadata, document.embeddings.tolist())  # type: ignore[union-attr]
        for document in store.iter_documents()
    )


def test_it_stores_what_an_index_would(tiny: ColBERT) -> None:
    by_hand, store = ColBERTIndex(tiny, MemoryStore("float32")), MemoryStore("float32")
    ids = by_hand.add(TEXTS, metadatas=[{"n": number} for number in range(4)])
    report = index_corpus([{"text": text, "n": number} for number, text in enumerate(TEXTS)], tiny, store)
    assert sorted(ids) == store.ids()
    assert contents(store) == contents(by_hand.store)  # type: ignore[arg-type]
    assert store.fingerprint == tiny.fingerprint
    assert (report.documents, report.encoded, report.unchanged, report.failed) == (4, 4, 0, 0)
    said = str(replace(report, seconds=0.5))
    assert said == "4 documents: 4 encoded, 0 there already; 0.5 s, 8 a second"
    assert str(replace(report, documents=1)).startswith("1 document: ")


def test_documents_that_give_way_to_others_of_their_id_are_counted(tiny: ColBERT) -> None:
    store = MemoryStore()
    texts = ["paris", "lions", "paris", "paris", "a fox"]
    given = [{"id": name, "text": text} for name, text in zip("aabbc", texts, strict=True)]
    report = index_corpus(given, tiny, store)
    # Of a the first gave way to another text; of b both are the same.
    assert (report.documents, report.encoded, report.unchanged, report.replaced, report.failed) == (5, 3, 1, 1, 0)
    assert "3 encoded, 1 there already, 1 replaced by later ones with the same id;" in str(report)
    assert [document.text for document in store.get(["a", "b"])] == ["lions", "paris"]


def test_a_text_alone_is_a_document(tiny: ColBERT) -> None:
    store = MemoryStore()
    assert index_corpus(iter([*TEXTS, TEXTS[0]]), tiny, store).unchanged == 1
    assert len(store) == 4


def test_a_table_is_no_list_of_its_columns(tiny: ColBERT) -> None:
    class Table:  # as those of pandas
        columns = ("text",)

        def __iter__(self) -> Iterator[str]:
            return iter(self.columns)

    for call in (partial(index_corpus, model=tiny, store=MemoryStore()), ColBERTIndex(tiny).add):
        with pytest.raises(InputError, match="must be .* not .*Table"):
            call(Table())


def test_other_keys_are_metadata(tiny: ColBERT) -> None:
    store = MemoryStore()
    index_corpus([{"id": "a", "text": "wing", "title": "Wings", "metadata": {"year": 1958}}], tiny, store)
    assert store.get(["a"])[0].metadata == {"title": "Wings", "year": 1958}


def test_metadata_counts_where_another_key_has_the_same_name(tiny: ColBERT) -> None:
    store = MemoryStore()
    index_corpus([{"id": "a", "text": "wing", "year": 2020, "metadata": {"year": 1958}}], tiny, store)
    assert store.get(["a"])[0].metadata == {"year": 1958}


def test_a_store_that_it_opened_is_closed_and_one_that_was_passed_is_not(
    tiny: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    monkeypatch.setattr(colbert_index, "open_store", lambda location: store)
    index_corpus(TEXTS, tiny, store)
    assert store.count() == 4
    index_corpus(TEXTS, tiny, "qdrant+http://localhost:6333/wings")
    with pytest.raises(StoreError, match="the store is closed"):
        store.count()


def test_a_store_that_it_opened_is_closed_where_the_corpus_breaks_off(
    tiny: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[str]:
        yield TEXTS[0]
        raise OSError("the disk is gone")

    store = MemoryStore()
    monkeypatch.setattr(colbert_index, "open_store", lambda location: store)
    with pytest.raises(OSError, match="the disk is gone"):
        index_corpus(broken(), tiny, "qdrant+http://localhost:6333/wings")
    with pytest.raises(StoreError, match="the store is closed"):
        store.count()


def test_a_second_run_encodes_what_is_new(tiny: ColBERT, encoded: list[str]) -> None:
    store = MemoryStore()
    index_corpus(numbered(5), tiny, store)
    encoded.clear()
    report = index_corpus([*numbered(7), {"id": "0001", "text": "another wing"}], tiny, store)
    assert sorted(encoded) == ["another wing", "wing number 5", "wing number 6"]
    assert (report.encoded, report.unchanged, report.replaced, len(store)) == (3, 4, 1, 7)


def test_documents_that_can_not_be_stored_are_told_and_take_no_other_with_them(
    tiny: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [{"text": 3}, {"id": "", "text": "a"}, {"id": "u", "text": "\ud800"}, {"id": "m", "text": "b", "metadata": 5}]
    bad[-1]["year"] = 1958  # which can't be added to that
    told, store = dict[str, Exception](), MemoryStore()
    report = index_corpus([*numbered(4), *bad, None], tiny, store, window=3, on_failure=told.__setitem__)  # type: ignore[list-item]
    assert store.ids() == [f"{number:04}" for number in range(4)]
    assert report.failures.keys() == told.keys() == {"number 4", "number 5", "u", "m", "number 8"}
    assert (report.documents, report.encoded, report.failed) == (9, 4, 5)
    assert "5 failed" in str(report)
    assert "Unicode" in str(told["u"])


def test_what_can_not_be_stored_says_why(tiny: ColBERT) -> None:
    day = datetime.date(2024, 1, 31)
    bad = [{"txt": "a"}, {"text": "b", "day": day}, {"id": "c", "text": "c", "metadata": {1: 2}}]
    failures = index_corpus(bad, tiny, MemoryStore()).failures
    assert [str(failures[name]).split(";")[0] for name in ("number 0", "number 1", "c")] == [
        "a text must be a string, not NoneType",
        "the metadata of document number 1 is not JSON at 'day': Object of type date is not JSON serializable",
        "the metadata of document 'c' has the key 1: keys must be strings",
    ]
    assert str(failures["number 0"]).endswith("; a document that is a mapping has it under 'text'")
    assert str(failures["number 1"]).endswith("; turn it into a string or a number, and NaN into None")


def test_what_a_server_can_not_take_takes_no_other_with_it(tiny: ColBERT) -> None:
    with QdrantStore(":memory:") as store:
        index_corpus([{"id": "b", "text": "lions"}], tiny, store)
        bad = [{"id": "bad\ud800", "text": "a dog"}, {"id": "b", "text": "lions", "k": "\ud83d"}]
        report = index_corpus([{"id": "a", "text": "paris"}, *bad, {"id": "c", "text": "the fox"}], tiny, store)
        assert store.ids() == ["a", "b", "c"]
        assert (report.documents, report.encoded, report.failed) == (4, 2, 2)
        assert report.failures.keys() == {"bad\ud800", "b"}
        assert store.get(["b"])[0].metadata == {}


def test_what_a_server_finds_too_large_takes_no_other_with_it(tiny: ColBERT) -> None:
    server = QdrantServer(most_bytes=5000)
    long = {"id": "long", "text": "lions and lambs " * 600}
    with QdrantStore(server.url) as store:
        report = index_corpus([*numbered(5), long, *numbered(9)[5:]], tiny, store)
        assert store.ids() == [f"{number:04}" for number in range(9)]
        assert (report.documents, report.encoded, report.failed) == (10, 9, 1)
        assert "document 'long' is larger than the server takes" in str(report.failures["long"])
        # Likewise where only metadata is new.
        noted = [{**row, "note": "x" * (6000 * (row["id"] == "0003"))} for row in numbered(9)]
        assert index_corpus(noted, tiny, store).failures.keys() == {"0003"}
        assert store.ids({"note": ""}) == [f"{number:04}" for number in range(9) if number != 3]
    server.close()


@pytest.mark.parametrize("make", [MemoryStore, lambda: QdrantStore(":memory:")], ids=["memory", "qdrant"])
def test_vectors_that_are_no_numbers_are_told_by_id_though_they_are_pooled(
    tiny: ColBERT, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(embeddings: TokenEmbeddings, pool_factor: float, **options: Any) -> TokenEmbeddings:
        """As a model in half precision makes of a text now and then; here of the long one."""
        values = embeddings.values.clone()
        for length, stop in zip(embeddings.lengths, embeddings.offsets[1:].tolist(), strict=True):
            values[stop - 1] = torch.nan if length > 20 else values[stop - 1]
        return pool_tokens(TokenEmbeddings(values, embeddings.offsets), pool_factor, **options)

    monkeypatch.setattr("colbert_integrations.model.pool_tokens", spoilt)
    with make() as store:
        report = index_corpus([*numbered(3), {"id": "long", "text": "wing " * 30}], tiny, store, pool_factor=2)
        assert store.ids() == ["0000", "0001", "0002"]
        assert str(report.failures["long"]) == "the vectors of document 'long' are not all finite"


def test_a_report_holds_a_bounded_number_of_failures(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_FAILURES", 3)
    report = index_corpus([{"text": number} for number in range(7)], tiny, MemoryStore(), window=2)
    assert (report.failed, len(report.failures)) == (7, 3)


def test_texts_that_are_cut_are_told_once(tiny: ColBERT) -> None:
    model = ColBERT(tiny.settings.model, device="cpu", long_documents="truncate")
    texts = [f"{text} " * times for text in TEXTS for times in (1, 90)]
    with pytest.warns(TruncationWarning) as caught:
        index_corpus(texts, model, MemoryStore(), window=2)
    said = [str(warning.message) for warning in caught]
    assert said == ["4 of 8 documents cut at document_length=40 tokens; long_documents='window' scores them whole"]
    assert caught[0].filename == __file__


@settings(max_examples=15, deadline=None)
@given(numbers=st.lists(st.integers(0, 5), max_size=12), window=st.integers(1, 5), stop=st.integers(0, 12))
def test_however_it_is_cut_and_interrupted_the_end_is_the_same(
    tiny: ColBERT, numbers: list[int], window: int, stop: int
) -> None:
    documents = [{"id": str(number), "text": f"wing {number} {place}"} for place, number in enumerate(numbers)]
    expected = {document["id"]: document["text"] for document in documents}

    def broken() -> Iterator[dict[str, str]]:
        yield from documents[:stop]
        raise KeyboardInterrupt

    store, whole = MemoryStore("float32"), MemoryStore("float32")
    with pytest.raises(KeyboardInterrupt):
        index_corpus(broken(), tiny, store, window=window)
    index_corpus(documents, tiny, store, window=window)
    assert {document.id: document.text for document in store.iter_documents()} == expected
    index_corpus(documents, tiny, whole, window=window)
    for mine, theirs in zip(contents(store), contents(whole), strict=True):
        torch.testing.assert_close(torch.tensor(mine[3]), torch.tensor(theirs[3]), rtol=0, atol=1e-5)


def test_at_most_two_windows_are_read_ahead_of_what_is_stored(tiny: ColBERT) -> None:
    store, ahead = MemoryStore(), list[int]()

    def documents() -> Iterator[dict[str, Any]]:
        for number, document in enumerate(numbered(40)):
            ahead.append(number - len(store))
            yield document

    assert index_corpus(documents(), tiny, store, window=4).encoded == 40
    assert max(ahead) < 3 * 4  # one is written, one waits to be, one is read


def test_long_texts_make_small_windows(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_WINDOW_CHARACTERS", 100)
    sizes = list[int]()
    real = MemoryStore.upsert
    monkeypatch.setattr(
        MemoryStore, "upsert", lambda self, ids, *rest: [sizes.append(len(ids)), real(self, ids, *rest)]
    )
    index_corpus(["a" * 99, "b" * 30, "c" * 101, "d", "e"], tiny, MemoryStore())
    assert sizes == [2, 1, 2]
    sizes.clear()
    monkeypatch.setattr(loading, "_TEXT_CHARACTERS", 10)
    index_corpus(["a" * 20, "b" * 19, "c" * 30, "d", "e", "f"], tiny, MemoryStore(), window=2)
    assert sizes == [1, 2, 2, 1]


def test_the_next_window_is_encoded_while_one_is_written(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    second, real, encode = threading.Event(), MemoryStore.upsert, ColBERT.encode_document

    def upsert(self: MemoryStore, ids: list[str], *rest: Any) -> None:
        if ids == ["0000"]:
            assert second.wait(60)
        real(self, ids, *rest)

    def encode_document(self: ColBERT, documents: list[str], **options: Any) -> TokenEmbeddings:
        if documents == ["wing number 1"]:
            second.set()
        return encode(self, documents, **options)

    monkeypatch.setattr(MemoryStore, "upsert", upsert)
    monkeypatch.setattr(ColBERT, "encode_document", encode_document)
    assert index_corpus(numbered(2), tiny, MemoryStore(), window=1).encoded == 2


def test_a_store_that_fails_ends_the_run_and_the_next_one_goes_on(
    tiny: ColBERT, monkeypatch: pytest.MonkeyPatch, encoded: list[str]
) -> None:
    store, real = MemoryStore(), MemoryStore.upsert

    def upsert(self: MemoryStore, ids: list[str], *rest: Any) -> None:
        if "0004" in ids:
            raise StoreError("gone")
        real(self, ids, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "upsert", upsert)
        with pytest.raises(StoreError, match="gone"):
            index_corpus(numbered(10), tiny, store, window=2)
    assert store.ids() == ["0000", "0001", "0002", "0003"]
    encoded.clear()
    assert index_corpus(numbered(10), tiny, store).unchanged == 4
    assert len(encoded) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("wing",), "documents must be a list or a generator of documents, not one str"),
        (({"text": "wing"},), "not one dict"),
        ((None,), "not one NoneType"),
        ((["wing"], {"pool_factor": 0}), "pool_factor must be at least 1"),
        ((["wing"], {"window": 0}), "window must be a whole number from 1, not 0"),
        ((["wing"], {"total": "9"}), "total must be a whole number from 0, not '9'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tiny: ColBERT, arguments: Any, said: str) -> None:
    documents, *options = arguments
    store = MemoryStore()
    with pytest.raises(InputError, match=said):
        index_corpus(documents, tiny, store, **(options[0] if options else {}))
    assert store.fingerprint is None


def test_a_corpus_goes_somewhere(tiny: ColBERT) -> None:
    with pytest.raises(InputError, match="not None: what is encoded would be lost"):
        index_corpus(TEXTS, tiny, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [StoreError, InputError], ids=["the store", "a document"])
def test_a_failure_keeps_no_vectors_in_memory(tiny: ColBERT, error: type[Exception]) -> None:
    class Failing(MemoryStore):
        def upsert(self, ids: Sequence[str], embeddings: TokenEmbeddings, *more: Any) -> None:
            kept.append(weakref.ref(embeddings))
            if "0003" in ids:
                raise error("not this one")
            super().upsert(ids, embeddings, *more)

    kept, report = list[weakref.ref[TokenEmbeddings]](), None
    gc.disable()
    try:
        with suppress(StoreError):
            report = index_corpus(numbered(7), tiny, Failing(), window=4)
        # Without a collection, which may be long in coming.
        assert [vectors() for vectors in kept] == [None] * len(kept)
        assert report is None or [str(why) for why in report.failures.values()] == ["not this one"]
    finally:
        gc.enable()


def test_vectors_of_another_model_are_not_mixed(tiny: ColBERT, checkpoint: Callable[[str], Any]) -> None:
    store = MemoryStore()
    index_corpus(TEXTS, tiny, store)
    with pytest.raises(FingerprintError):
        index_corpus(TEXTS, ColBERT(checkpoint("pylate"), device="cpu"), store)


def test_a_bar_shows_how_far_it_is(tiny: ColBERT, capsys: pytest.CaptureFixture[str]) -> None:
    index_corpus(iter(TEXTS), tiny, MemoryStore(), total=4, show_progress=True)
    assert "4/4" in capsys.readouterr().err
    index_corpus(TEXTS, tiny, MemoryStore(), total=5, show_progress=True)  # whoever says it knows better than a length
    assert "4/5" in capsys.readouterr().err
    index_corpus(TEXTS, tiny, MemoryStore(), show_progress=False)
    assert capsys.readouterr().err == ""
