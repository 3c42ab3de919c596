"""Qdrant's strict mode, as its Cloud has it: what works there, and what is said where nothing can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from qdrant_client import QdrantClient, models

from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore
from colbert_integrations.errors import StoreServerError
from colbert_integrations.llama_index.nodes import REF_DOC_ID
from colbert_integrations.qdrant import QdrantStore
from colbert_integrations.qdrant.collection import _OWN_INDEXES, Form
from colbert_integrations.qdrant.filters import field_paths
from colbert_integrations.qdrant.points import TEXT_HASH, payload_of, point_id
from qdrant_server import Fault, QdrantServer
from qdrant_server.strict import CLOUD
from stores import DIM, dyadic, fill

QUERIES = dyadic(99, 3, 1, 5)
ONE = torch.ones(1, DIM)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    made = QdrantServer()
    made.strict_mode = dict(CLOUD)
    yield made
    made.close()


def client_of(server: QdrantServer, *, grpc: bool = False) -> QdrantClient:
    port = server.grpc_port if grpc else 6334
    return QdrantClient(url=server.url, grpc_port=port, prefer_grpc=grpc, check_compatibility=False)


def make_otherwise(client: QdrantClient) -> None:
    """A collection without the indexes that a store makes."""
    form = Form("colbert", "float16", False, None, None, None, None, {})
    client.create_collection("colbert", vectors_config=form.vectors(DIM))


def make_as_before(client: QdrantClient, *names: str) -> None:
    """Such a collection with documents from when there were no hashes, each with its id as its text."""
    make_otherwise(client)
    payloads = {name: payload_of(name, name, {}) for name in names}
    points = [
        models.PointStruct(
            id=point_id(name),
            vector={"colbert": ONE.tolist()},
            payload={key: value for key, value in payload.items() if key != TEXT_HASH},
        )
        for name, payload in payloads.items()
    ]
    client.upsert("colbert", points)


# ----------------------------------------------------------------------------------------------------------- what works


@pytest.mark.parametrize("grpc", [True, False], ids=["grpc", "http"])
def test_metadata_is_written_where_the_text_is_still_the_same(server: QdrantServer, grpc: bool) -> None:
    client = client_of(server, grpc=grpc)
    with QdrantStore(client) as store:
        fill(store, {"a": ONE, "b": ONE, "c": ONE})  # each with its id as its text
        store.upsert(["c"], dyadic(1, 2))  # without a text
        store.set_metadata(["a", "b", "c"], [{"n": 1}, {"n": 2}, {"n": 3}], ["another", "b", ""])
        assert [document.metadata for document in store.get(["a", "b", "c"])] == [{}, {"n": 2}, {}]
    client.close()


def test_documents_that_are_added_again_get_their_new_metadata(server: QdrantServer, tiny: ColBERT) -> None:
    texts, ids = ["bread", "wings"], ["a", "b"]
    with ColBERTIndex(tiny, QdrantStore(server.url)) as index:
        index.add(texts, ids=ids, metadatas=[{"n": 1}, {"n": 2}])
        index.add(texts, ids=ids, metadatas=[{"n": 1}, {"n": 3}])
        assert [document.metadata for document in index.get(ids)] == [{"n": 1}, {"n": 3}]


def test_filters_find_the_same_as_in_memory_where_their_keys_are_indexed(server: QdrantServer) -> None:
    values = [0.3, 0.1 + 0.2, 0.3000000000001, 2020, 2**53 + 1, [0.3], [0.3, 1], [0.1 + 0.2, 1], [], None, "0.3"]
    notes: list[dict[str, Any]] = [{"a": value, "b c": {"d": str(value)}} for value in values] + [{}]
    notes += [{"b c.d": "2020", "b c": {"d": "0.3"}}, {"b c.d": ["0.3", "[]"]}]
    documents = dict(zip("abcdefghijklmn", dyadic(1, *[2] * len(notes)), strict=True))
    filters: list[dict[str, Any]] = [
        {"a": {sign: number}} for sign in ("$ne", "$eq", "$gte") for number in (0.3, 0.1 + 0.2, 1, 2020, 2**53 + 1)
    ]
    filters += [{"a": None}, {"a": {"$ne": None}}, {"b c.d": {"$in": ["2020", "[]"]}}, {"b c.d": {"$ne": "0.3"}}]
    filters += [{"b c.d": "0.3"}, {"b c.d": {"$nin": ["2020", "[]"]}}, {"a": {"$nin": [0.3, 1]}}]
    filters += [{"$not": {"a": {sign: 0.3}}} for sign in ("$gt", "$lte")]
    filters += [{"$or": [{"a": 2020}, {"$not": {"b c.d": {"$in": ["0.3", "None"]}}}]}]
    dates = ["2024-01-31", "2024-01-30 23:00:00.5-01:00", ["2024-02-01T00:00:00Z", None], "2024-1-31", "soon", 20240131]
    for note, date in zip(notes, dates, strict=False):
        note["when"] = date
    filters += [{"when": {sign: "2024-01-31"}} for sign in ("$gt", "$gte", "$lt", "$lte")]
    filters += [{"$not": {"when": {"$gte": "2024-01-31"}}}, {"when": {"$gte": "0001-01-01", "$lt": "9999-12-31"}}]
    indexes: Any = {"a": "number", "b c.d": "string", "when": "date"}
    with QdrantStore(server.url, payload_indexes=indexes) as store, MemoryStore() as memory:
        for each in (store, memory):
            fill(each, documents, notes)
        for filter in filters:
            assert store.ids(filter) == memory.ids(filter), filter
            assert store.search(QUERIES, 3, filter) == memory.search(QUERIES, 3, filter), filter
        assert store.ids(lambda document: document.id == "c") == ["c"]


def test_the_key_by_which_nodes_of_a_document_are_found_is_indexed() -> None:
    assert {*field_paths(REF_DOC_ID)} <= {*_OWN_INDEXES}


def test_one_who_lost_the_race_to_make_a_collection_indexes_it_too(server: QdrantServer) -> None:
    client = client_of(server)
    with QdrantStore(client) as store:
        assert store.count() == 0
        exists, asked = client.collection_exists, []

        def not_yet(**arguments: Any) -> bool:
            asked.append(arguments)
            if len(asked) == 1:
                make_otherwise(client)  # and the other one has not come to the indexes
                return False
            return exists(**arguments)

        client.collection_exists = not_yet  # type: ignore[method-assign]
        fill(store, {"a": ONE})
        store.set_metadata(["a"], [{"n": 1}], ["a"])
        assert store.get(["a"])[0].metadata == {"n": 1}
    client.close()


def test_indexes_that_were_not_made_with_the_collection_are_made_later(server: QdrantServer) -> None:
    server.faults.append(Fault(503, "PUT .*/index", times=1))
    with QdrantStore(server.url, retries=0) as store, pytest.raises(StoreServerError, match="create_payload_index"):
        fill(store, {"a": ONE})
    with QdrantStore(server.url) as store:
        fill(store, {"a": ONE})
        store.set_metadata(["a"], [{"n": 1}], ["a"])
        assert store.get(["a"])[0].metadata == {"n": 1}
    assert {*server.engine.indexes("colbert")} == {*_OWN_INDEXES}


def test_one_who_comes_before_the_indexes_makes_them(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with QdrantStore(server.url) as store, QdrantStore(server.url) as other:
        create = store.client.create_payload_index

        def after_the_other_one(**arguments: Any) -> Any:
            if other._collection is None:
                fill(other, {"b": ONE})
            return create(**arguments)

        monkeypatch.setattr(store.client, "create_payload_index", after_the_other_one)
        fill(store, {"a": ONE})
        for each in (store, other):
            each.set_metadata(["a", "b"], [{"n": 1}, {"n": 1}], ["a", "b"])
        assert store.ids(lambda document: document.metadata == {"n": 1}) == ["a", "b"]


def test_one_who_finds_the_documents_of_another_finds_its_indexes(
    server: QdrantServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(server)
    make_otherwise(client)
    with QdrantStore(server.url) as store, QdrantStore(client) as other:
        look = store.client.get_collection

        def just_before_the_other_one(**arguments: Any) -> Any:
            info = look(**arguments)
            fill(other, {"b": ONE})
            return info

        monkeypatch.setattr(store.client, "get_collection", just_before_the_other_one)
        fill(store, {"a": ONE})
        store.set_metadata(["a", "b"], [{"n": 1}, {"n": 1}], ["a", "b"])
        assert [document.metadata for document in store.get(["a", "b"])] == [{"n": 1}, {"n": 1}]
    client.close()


# -------------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("filter", "indexes"),
    [
        ({"year": 2020}, "{'year': 'number'}"),
        ({"year": {"$ne": 2020}}, "{'year': 'number'}"),
        ({"author.first name": "Ada"}, "{'author.first name': 'string'}"),
        ({"author": "0a1b5c2e-6f0d-4c57-9d5e-8b0d6a3c1f47"}, "{'author': 'string'}"),
        ({"draft": {"$ne": True}}, "{'draft': 'boolean'}"),
        ({"when": {"$gt": "2024-01-31"}}, "{'when': 'date'}"),
        ({"draft": None}, "{'draft': 'string' or 'number' or 'boolean' or 'date'}"),
    ],
)
@pytest.mark.parametrize("grpc", [True, False], ids=["grpc", "http"])
def test_a_filter_on_another_key_names_the_option(
    server: QdrantServer, filter: dict[str, Any], indexes: str, grpc: bool
) -> None:
    client = client_of(server, grpc=grpc)
    with QdrantStore(client) as store:
        fill(store, {"a": ONE})
        for call in (lambda: store.ids(filter), lambda: store.search(QUERIES, filter=filter)):
            with pytest.raises(StoreServerError, match="Index required but not found for") as caught:
                call()
            assert str(caught.value).endswith(f"make the store with payload_indexes={indexes}")
            assert caught.value.status == 400
    client.close()


def test_a_long_key_is_named_too(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": ONE})
        with pytest.raises(StoreServerError, match="payload_indexes={'k{400}': 'number'}$"):
            store.ids({"k" * 400: 1})


def test_a_collection_that_was_made_otherwise_is_written_as_before_or_says_what_it_lacks(server: QdrantServer) -> None:
    client = client_of(server)
    make_as_before(client, "a", "b")
    with QdrantStore(client) as store:
        with pytest.raises(StoreServerError, match="copy_from, or call store.client.create_payload_index") as caught:
            store.set_metadata(["a"], [{"n": 1}], ["a"])
        eval(str(caught.value).rpartition("or call ")[2])
        store.set_metadata(["a", "b"], [{"n": 1}, {"n": 1}], ["a", "another"])
        assert [document.metadata for document in store.get(["a", "b"])] == [{"n": 1}, {}]
    client.delete_collection("colbert")
    make_as_before(client, "a", "b")
    server.strict_mode.clear()
    with QdrantStore(client) as store:
        store.set_metadata(["a", "b"], [{"n": 1}, {"n": 1}], ["a", "another"])
        assert store.ids({"n": {"$ne": 2}, REF_DOC_ID: {"$ne": "x"}}) == ["a", "b"]
        assert [document.metadata for document in store.get(["a", "b"])] == [{"n": 1}, {}]
    client.close()


@pytest.mark.parametrize("grpc", [True, False], ids=["grpc", "http"])
def test_what_a_limit_is_stays_in_the_servers_words(server: QdrantServer, grpc: bool) -> None:
    client = client_of(server, grpc=grpc)
    with QdrantStore(client) as store:
        fill(store, {"a": ONE})
        server.strict_mode |= {"max_query_limit": 10, "upsert_max_batchsize": 1}
        with pytest.raises(StoreServerError, match='11 > 10 for "limit". Help: Reduce the "limit" parameter to .* 10$'):
            store.search(QUERIES, 10)
        assert len(store.search(QUERIES, 9)[0]) == 1
        with pytest.raises(StoreServerError, match='Limit exceeded 2 > 1 for "upsert limit"'):
            fill(store, {"a": ONE, "b": ONE})
    client.close()
