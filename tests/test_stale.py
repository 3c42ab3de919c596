"""Stored vectors that other settings have made: who adds the same texts is told, and can have them encoded again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode

import checkpoints
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, index_corpus
from colbert_integrations.errors import StaleVectorsWarning, StoreError
from colbert_integrations.index import Store
from colbert_integrations.langchain import ColBERTRetriever, ColBERTVectorStore
from colbert_integrations.llama_index import ColBERTRetriever as NodeRetriever
from colbert_integrations.qdrant import QdrantStore

TEXTS = ["wing lift", "heat transfer in a boundary layer " * 20, "shock wave"]
IDS = ["a", "b", "c"]

Model = Callable[..., ColBERT]


@pytest.fixture
def model(checkpoint: Callable[[str], Path]) -> Model:
    return lambda **settings: ColBERT.shared(checkpoint("stanford"), device="cpu", document_length=32, **settings)


@pytest.fixture(params=["memory", "qdrant"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with MemoryStore("float32") if request.param == "memory" else QdrantStore(":memory:", dtype="float32") as made:
        yield made


def lengths(store: Store) -> list[int]:
    return [len(document.embeddings) for document in store.get(IDS, embeddings=True)]  # type: ignore[arg-type]


def told(add: Callable[[], Any]) -> list[str]:
    """What a call warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StaleVectorsWarning)
        add()
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught if warning.category is StaleVectorsWarning]


CHANGES = [
    ({"document_length": 32}, {"document_length": 24}, "document_length=32 (now 24)"),
    ({"long_documents": "truncate"}, {}, "long_documents='truncate' (now 'window')"),
    ({"window_overlap": 0}, {"window_overlap": 12}, "window_overlap=0 (now 12)"),
    ({}, {"pool_factor": 2}, "pool_factor=1 (now 2)"),
]


@pytest.mark.filterwarnings("ignore::colbert_integrations.TruncationWarning")
@pytest.mark.parametrize("how", ["add", "aadd", "index_corpus"])
@pytest.mark.parametrize(("before", "after", "said"), CHANGES, ids=[said for _, _, said in CHANGES])
async def test_texts_that_were_encoded_otherwise_are_told_and_encoded_again_when_asked(
    store: Store, checkpoint: Callable[[str], Path], before: Any, after: Any, said: str, how: str
) -> None:
    async def add(settings: dict[str, Any], **options: Any) -> list[str]:
        given = {"document_length": 32, **settings}
        pool_factor = given.pop("pool_factor", 1)
        encoder = ColBERT.shared(checkpoint("stanford"), device="cpu", **given)
        if how == "index_corpus":
            rows = [{"id": name, "text": text} for name, text in zip(IDS, TEXTS, strict=True)]
            return told(lambda: index_corpus(rows, encoder, store, pool_factor=pool_factor, **options))
        index = ColBERTIndex(encoder, store, pool_factor=pool_factor)
        if how == "add":
            return told(lambda: index.add(TEXTS, IDS, **options))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", StaleVectorsWarning)
            await index.aadd(TEXTS, IDS, **options)
        return [str(warning.message) for warning in caught]

    assert await add(before) == await add(before) == []
    old = lengths(store)
    [message] = await add(after)
    assert message.startswith("3 of 3 documents are there with the same text")
    assert said in message
    assert lengths(store) == old
    assert await add(after, reencode=True) == []
    new = lengths(store)
    assert new != old
    assert await add(after) == []
    assert len(await add(before)) == 1
    assert lengths(store) == new


def test_another_tokenizer_is_told_when_an_index_is_opened_until_all_is_encoded_again(
    store: Store, tmp_path: Path
) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    ColBERTIndex(ColBERT(folder, device="cpu"), store).add(TEXTS, IDS)
    assert told(lambda: ColBERTIndex(ColBERT(folder, device="cpu"), store)) == []

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = folder / "tokenizer_config.json"  # where transformers 4 reads it from
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_lower_case": False}))
    model = ColBERT(folder, device="cpu")
    [message] = told(lambda: ColBERTIndex(model, store))
    assert "gave other tokens than now" in message
    assert "tokenizer='" in told(lambda: ColBERTIndex(model, store).add(TEXTS, IDS))[1]
    told(lambda: ColBERTIndex(model, store).add(TEXTS, IDS, reencode=True))
    assert told(lambda: ColBERTIndex(model, store).add(TEXTS, IDS)) == []


def test_an_empty_index_is_not_told_of_another_tokenizer(store: Store, model: Model) -> None:
    ColBERTIndex(model(), store).add(TEXTS, IDS)
    [encoding] = store.fingerprint.encodings
    store.bind(replace(store.fingerprint, encodings=[{**encoding, "tokenizer": "another"}]))
    assert len(told(lambda: ColBERTIndex(model(), store))) == 1
    store.delete(IDS)
    assert told(lambda: ColBERTIndex(model(), store)) == []


def test_an_index_that_does_not_say_how_it_was_tokenised_is_not_told(store: Store, model: Model) -> None:
    ColBERTIndex(model(), store).add(TEXTS, IDS)
    [encoding] = store.fingerprint.encodings
    before = {name: value for name, value in encoding.items() if name != "tokenizer"}
    store.bind(replace(store.fingerprint, encodings=[before]))  # as versions before wrote it
    assert told(lambda: ColBERTIndex(model(), store).add(TEXTS, IDS)) == []


def test_settings_that_say_the_same_are_no_change(store: Store, checkpoint: Callable[[str], Path]) -> None:
    plain = ColBERT.shared(checkpoint("stanford"), device="cpu")
    said = ColBERT.shared(checkpoint("stanford"), device="cpu", document_length=plain.spec.document_length)
    assert told(lambda: ColBERTIndex(plain, store).add(TEXTS, IDS)) == []
    assert told(lambda: ColBERTIndex(said, store, pool_factor=1.0).add(TEXTS, IDS)) == []


def test_an_index_knows_what_it_has_encoded_itself(store: Store, model: Model) -> None:
    ColBERTIndex(model(), store, pool_factor=2).add(TEXTS, IDS)
    index = ColBERTIndex(model(), store)
    index.add(TEXTS[:1], IDS[:1], reencode=True)
    assert "2 of 3" in told(lambda: index.add(TEXTS, IDS))[0]
    assert "3 of 3" in told(lambda: ColBERTIndex(model(), store).add(TEXTS, IDS))[0]  # which can't know
    index.add(TEXTS[1:], IDS[1:], reencode=True)  # that was all of them
    assert told(lambda: ColBERTIndex(model(), store).add(TEXTS, IDS)) == []


def test_a_text_that_a_later_window_replaces_is_not_told(
    store: Store, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_integrations.colbert_index._WINDOW", 1)
    ColBERTIndex(model(), store, pool_factor=2).add(["wing"], ["a"])
    assert told(lambda: ColBERTIndex(model(), store).add(["wing", "shock"], ["a", "a"])) == []


def test_new_documents_make_a_mixed_store_and_the_old_settings_are_told_too(store: Store, model: Model) -> None:
    pooling, plain = (ColBERTIndex(model(), store, pool_factor=factor) for factor in (2, 1))
    pooling.add(TEXTS[:2], IDS[:2])
    assert told(lambda: plain.add(TEXTS[2:], IDS[2:])) == []  # none of them was there
    assert "pool_factor=1 (now 2)" in told(lambda: ColBERTIndex(model(), store, pool_factor=2).add(TEXTS, IDS))[0]
    assert "pool_factor=2 (now 1)" in told(lambda: ColBERTIndex(model(), store).add(TEXTS, IDS))[0]
    assert "2 of 3" in told(lambda: plain.add(TEXTS, IDS))[0]


def test_what_was_removed_is_not_told(store: Store, model: Model) -> None:
    ColBERTIndex(model(), store, pool_factor=2).add(TEXTS, IDS)
    store.delete(IDS)
    index = ColBERTIndex(model(), store)
    assert told(lambda: index.add(TEXTS, IDS)) == []
    assert told(lambda: ColBERTIndex(model(), store).add(TEXTS, IDS)) == []


def test_what_is_left_is_told_also_where_as_many_were_encoded_again(store: Store, model: Model) -> None:
    ColBERTIndex(model(), store, pool_factor=2).add(TEXTS, IDS)
    index = ColBERTIndex(model(), store)
    index.add(TEXTS[:2], IDS[:2], reencode=True)
    store.delete(["a"])
    assert "1 of 2" in told(lambda: index.add(TEXTS[1:], IDS[1:]))[0]


def test_an_interrupted_run_leaves_the_rest_to_be_told(
    store: Store, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ColBERTIndex(model(), store, pool_factor=2).add(TEXTS, IDS)
    rows = [{"id": name, "text": text} for name, text in zip(IDS, TEXTS, strict=True)]
    real = type(store).upsert

    def fail(self: Store, ids: list[str], *rest: Any) -> None:
        if "c" in ids:
            raise StoreError("the disk is full")
        real(self, ids, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "upsert", fail)
        with pytest.raises(StoreError, match="disk"):
            index_corpus(rows, model(), store, window=1, reencode=True)
    assert len(told(lambda: index_corpus(rows, model(), store))) == 1
    assert told(lambda: index_corpus(rows, model(), store, reencode=True)) == []
    assert told(lambda: index_corpus(rows, model(), store)) == []


def test_it_is_saved_whatever_opened_the_index_meanwhile(model: Model, tmp_path: Path) -> None:
    pooled = ColBERTIndex(model(), pool_factor=2)
    pooled.add(TEXTS, IDS)
    pooled.save(tmp_path)
    ColBERTIndex.load(tmp_path, model(long_documents="truncate")).save(tmp_path)
    loaded = ColBERTIndex.load(tmp_path, model())
    assert "pool_factor=2 (now 1)" in told(lambda: loaded.add(TEXTS, IDS))[0]
    assert told(lambda: ColBERTIndex.load(tmp_path, model(), pool_factor=2).add(TEXTS, IDS)) == []


async def test_the_adapters_encode_again(store: Store, model: Model) -> None:
    pooled, plain = (ColBERTIndex(model(), store, pool_factor=factor) for factor in (2, 1))
    documents = [Document(text, id=name) for name, text in zip(IDS, TEXTS, strict=True)]
    nodes = [TextNode(text=text, id_=name) for name, text in zip(IDS, TEXTS, strict=True)]
    found = set()
    for adapter, given in (
        (ColBERTVectorStore(index=plain), (documents,)),
        (ColBERTRetriever(index=plain), (documents,)),
        (NodeRetriever(index=plain), (nodes,)),
    ):
        name = "add_nodes" if given == (nodes,) else "add_documents"
        for twin in ("", "a"):
            pooled.add(TEXTS, IDS, reencode=True)
            few = lengths(store)
            done = getattr(adapter, twin + name)(*given, reencode=True)
            assert (await done if twin else done) == IDS
            assert sum(few) < 0.7 * sum(lengths(store))
            found.add(tuple(lengths(store)))
    assert len(found) == 1


def test_what_others_have_encoded_again_meanwhile_is_told(model: Model, store: Store) -> None:
    ours, theirs = ColBERTIndex(model(), store), ColBERTIndex(model(), store, pool_factor=2)
    theirs.add(TEXTS, IDS)
    assert told(lambda: ours.add(TEXTS, IDS, reencode=True)) == []
    assert told(lambda: theirs.add(TEXTS, IDS, reencode=True)) == []
    [said] = told(lambda: ours.add(TEXTS, IDS))
    assert said.startswith("3 of 3 documents are there with the same text and keep their vectors")
    assert "pool_factor=2 (now 1)" in said
