"""A Qdrant collection as a store: how it is made and opened, what goes wrong, and what is lost then (nothing)."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import socket
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import torch
from langchain_core.embeddings import FakeEmbeddings
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from colbert_integrations import ColBERT, ColBERTIndex, TokenEmbeddings
from colbert_integrations.cancellation import Cancellation
from colbert_integrations.errors import FingerprintError, InputError, StoreError, StoreServerError
from colbert_integrations.fingerprint import Fingerprint
from colbert_integrations.qdrant import QdrantStore, connection
from colbert_integrations.qdrant.failures import failure_of
from colbert_integrations.qdrant.pages import Page
from qdrant_server import Fault, QdrantServer, shared_server
from qdrant_server.bodies import problem
from stores import DIM, brute_force, by_grpc, dyadic, fill, found, needs_numpy_2, units

PATIENCE_S = 30
QUERIES = dyadic(99, 3, 1, 5)
HERE, THERE = Fingerprint("abc", "one", DIM, {"model": "one"}), Fingerprint("def", "two", DIM)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    """A server of a test's own, to be disturbed."""
    made = QdrantServer()
    yield made
    made.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No waiting between tries; how long it would have been."""
    waited: list[float] = []

    async def asleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(Cancellation, "sleep", lambda _, seconds: waited.append(seconds))
    monkeypatch.setattr(connection, "asleep", asleep)
    return waited


@pytest.fixture
def documents() -> dict[str, torch.Tensor]:
    return {f"d{number}": matrix for number, matrix in enumerate(dyadic(1, 4, 1, 7, 3, 2, 9, 5))}


# ----------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"location": "localhost:6333"}, "write 'http://localhost:6333'"),
        ({"location": "node-1.cluster:6333"}, "write 'http://node-1.cluster:6333'"),
        ({"location": "localhost"}, "write 'http://localhost'"),
        ({"location": "http:/localhost:6333"}, "a URL begins with 'http://'"),
        ({"location": "https:localhost"}, "a URL begins with 'https://'"),
        ({"location": Path("http://localhost:6333")}, "a URL begins with 'http://'"),
        ({"location": None}, "location must be a URL, ':memory:', a folder or a QdrantClient, not NoneType"),
        ({"location": b"http://localhost:1"}, "not bytes"),
        ({"collection": ""}, "collection must be a name"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"quantization": "int4"}, "'int8', 'binary', or a quantization of qdrant_client.models, not 'int4'"),
        ({"quantization": ["int8"]}, r"or a quantization of qdrant_client.models, not \['int8'\]"),
        ({"on_disk": "false"}, "on_disk must be True or False, not 'false'"),
        ({"prefer_grpc": 0}, "prefer_grpc must be True or False, not 0"),
        ({"first_stage": "max"}, "first_stage must be 'mean' or an embedding model"),
        ({"first_stage": object()}, "first_stage must be 'mean' or an embedding model"),
        ({"first_stage_name": "minilm"}, "the name of an embedding model that is the first_stage, not 'minilm'"),
        ({"first_stage_name": "minilm", "first_stage": "mean"}, "of an embedding model that is the first_stage"),
        ({"first_stage_name": 5, "first_stage": FakeEmbeddings(size=3)}, "first_stage_name must be .* not 5"),
        ({"search": "centroids"}, "has no search='centroids'"),
        ({"search": "first_stage"}, "needs a first stage"),
        ({"candidates": 0}, "candidates must be"),
        ({"shard_number": 0}, "shard_number must be"),
        ({"replication_factor": 1.5}, "replication_factor must be"),
        ({"batch_bytes": 0}, "batch_bytes must be"),
        ({"retries": -1}, "retries must be"),
        ({"retries": True}, "retries must be"),
        ({"vector_name": "first_stage"}, "vector_name must be"),
        ({"vector_name": 5}, "vector_name must be"),
        ({"location": "http://localhost:1", "async_client": object()}, "must be an AsyncQdrantClient, not object"),
        ({"payload_indexes": ["year"]}, "must map keys to their kinds, not be a list"),
        ({"payload_indexes": {5: "number"}}, "5 can't have a payload index"),
        ({"location": "http://localhost:1", "timeout": 0}, "timeout must be a positive number of seconds"),
        ({"location": "http://localhost:1", "timeout": float("inf")}, "timeout must be a positive number"),
        ({"location": "http://localhost:1", "timeout": "5"}, "timeout must be a positive number"),
        ({"payload_indexes": {"year": "integer"}}, "one of string, number, boolean, date, not 'integer'"),
        ({"payload_indexes": {"year": ["number"]}}, r"one of string, number, boolean, date, not \['number'\]"),
        ({"payload_indexes": {"year": {"type": "number"}}}, "one of string, number, boolean, date, not {'type': 'num"),
        ({"payload_indexes": {'a"b': "string"}}, "can't have a payload index"),
        ({"payload_indexes": {"\ud800": "string"}}, "has a quote, .* or half of a surrogate pair"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        QdrantStore(**{"location": ":memory:", **options})


def test_a_client_brings_its_own_settings() -> None:
    client = QdrantClient(":memory:")
    given: list[dict[str, Any]] = [{"api_key": "secret"}, {"timeout": 5}, {"prefer_grpc": True}]
    for options in given:
        with pytest.raises(InputError, match="a client has its api_key"):
            QdrantStore(client, **options)
    with pytest.raises(InputError, match="async_client is for servers"):
        QdrantStore(client, async_client=AsyncQdrantClient(":memory:"))
    client.close()


@pytest.mark.parametrize("key", ["hush\n", " hush", "hush hush", "hushé", "hush\x7f"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InputError, match="call .strip") as caught:
        QdrantStore("http://localhost:1", api_key=key)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://me:hush@h:99999", "ftp://me:hush@h:99999", "http://me:hush@[h:99999", "http://me:a@hush@h:99999"]
)
def test_a_url_that_cannot_be_read_is_an_error_without_its_password(url: str) -> None:
    with pytest.raises(StoreError, match="h:99999' can't be opened") as caught:
        QdrantStore(url)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_a_password_in_a_url_is_not_shown(server: QdrantServer) -> None:
    with QdrantStore(server.url.replace("://", "://me:hush@"), retries=0) as store:
        assert repr(store) == f"QdrantStore('{server.url.removeprefix('http://')}', 'colbert', float16)"
        server.faults.append(Fault(500))
        with pytest.raises(StoreServerError, match=server.url.removeprefix("http://")) as caught:
            store.count()
        assert "hush" not in str(caught.value)
        server.faults.clear()
        fill(store, {"a": torch.ones(1, DIM)})
        with pytest.raises(FingerprintError) as refused:
            store.bind(Fingerprint("x", "three", 3))
        assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["http://h:6333?api_key=hush", "http:/me:hush@h", "http://h/#hush", "http://h:abc?hush", "http://h/x?t=hush@g"],
)
def test_a_url_with_what_may_be_a_secret_is_refused_without_it(url: str) -> None:
    with pytest.raises(InputError, match="no query or fragment|begins with") as caught:
        QdrantStore(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["socks5://here:1", "http://here:port", "foo://here:1"])
async def test_proxy_settings_that_cannot_be_used_are_our_error(
    server: QdrantServer, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # as if it were not installed
    said = "the proxy settings of the environment can't be used: "
    with QdrantStore(server.url) as store:
        monkeypatch.setenv("ALL_PROXY", proxy)
        for url in (server.url, "http://me:hush@h:1"):
            with pytest.raises(InputError, match=said) as caught:
                QdrantStore(url)
            assert "hush" not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(InputError, match=said):
            await store.acount()  # which makes a client for this event loop
        assert store.count() == 0
    QdrantStore(":memory:").close()
    monkeypatch.delenv("ALL_PROXY")
    with pytest.raises(StoreError, match="h:99999' can't be opened"):
        QdrantStore("http://h:99999")


def test_so_is_that_of_a_client() -> None:
    client = QdrantClient(url="https://localhost:1", api_key="hush\n", check_compatibility=False)
    with pytest.raises(InputError, match="call .strip"):
        QdrantStore(client)
    client.close()


def test_nothing_is_asked_before_the_first_call(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        assert repr(store) == f"QdrantStore('{server.url}', 'colbert', float16)"
        assert server.asked == []
        assert store.count() == 0
        assert len(server.asked) == 1


def test_a_client_that_was_given_stays_open(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    client = QdrantClient(url=server.url, check_compatibility=False)
    with QdrantStore(client) as store:
        fill(store, documents)
    assert client.count("colbert").count == 7
    with QdrantStore(client) as again:
        assert again.ids() == sorted(documents)
    client.close()


@pytest.mark.parametrize("local", [True, False], ids=["local", "server"])
def test_one_that_was_made_is_closed(server: QdrantServer, local: bool) -> None:
    with QdrantStore(":memory:" if local else server.url) as store:
        assert store.count() == 0
    assert store.client._client.closed


def test_a_client_is_made_as_was_asked() -> None:
    with QdrantStore("http://localhost:1") as store, QdrantStore("http://localhost:1", prefer_grpc=True) as other:
        assert store.client.init_options["timeout"] == 60
        assert [each.client.init_options["prefer_grpc"] for each in (store, other)] == [False, True]


def test_a_folder_may_have_any_name_but_must_be_one(tmp_path: Path) -> None:
    with QdrantStore(tmp_path / "c#?") as store:
        assert store.count() == 0
    (tmp_path / "a@b").touch()
    with pytest.raises(StoreError, match="a@b/in-it' can't be opened: .*a@b"):
        QdrantStore(tmp_path / "a@b" / "in-it")


@pytest.mark.filterwarnings("ignore:.*[.]lock:ResourceWarning")  # the client's own, where it can't lock the folder
@pytest.mark.filterwarnings("ignore:.*[.]lock:pytest.PytestUnraisableExceptionWarning")
# A client that finds the folder in use leaves it open, which Python 3.13 and later say.
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*sqlite3.Connection:pytest.PytestUnraisableExceptionWarning")
def test_a_folder_is_opened_again_but_by_one_process_at_a_time(
    tmp_path: Path, documents: dict[str, torch.Tensor]
) -> None:
    with QdrantStore(tmp_path) as store:
        fill(store, documents, [{"n": number, "w": number / 7} for number in range(7)])
        store.bind(HERE)
        with pytest.raises(StoreError, match="already accessed by another instance"):
            QdrantStore(str(tmp_path))
    with QdrantStore(str(tmp_path)) as again:
        assert again.fingerprint == HERE
        assert again.get(["d3"])[0].metadata == {"n": 3, "w": 3 / 7}
        assert found(again, QUERIES, 4) == brute_force(documents, QUERIES, 4)


# ---------------------------------------------------------------------------------------------------------- collections


def test_a_collection_is_made_as_was_asked(server: QdrantServer) -> None:
    options: dict[str, Any] = {"shard_number": 3, "replication_factor": 2, "on_disk": True, "quantization": "int8"}
    with QdrantStore(server.url, "mine", **options, first_stage="mean", vector_name="tokens") as store:
        store.bind(HERE)
    (made,) = [asked.body for asked in server.asked if asked.call == "PUT /collections/mine"]
    assert made == {
        "vectors": {
            "tokens": {
                "size": DIM,
                "distance": "Dot",
                "multivector_config": {"comparator": "max_sim"},
                "hnsw_config": {"m": 0},
                "datatype": "float16",
                "on_disk": True,
                "quantization_config": {"scalar": {"type": "int8", "always_ram": True}},
            },
            "first_stage": {"size": DIM, "distance": "Cosine"},
        },
        "shard_number": 3,
        "replication_factor": 2,
        "metadata": {"colbert_integrations": {"fingerprint": HERE.as_json(), "first_stage": "mean"}},
    }


def test_a_quantization_of_the_clients_is_taken_as_it_is(server: QdrantServer) -> None:
    config = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99)
    with QdrantStore(server.url, quantization=models.ScalarQuantization(scalar=config)) as store:
        store.bind(HERE)
    made = next(asked.body for asked in server.asked if asked.call == "PUT /collections/colbert")
    assert made["vectors"]["colbert"]["quantization_config"] == {"scalar": {"type": "int8", "quantile": 0.99}}


def multivector(**more: Any) -> models.VectorParams:
    options: dict[str, Any] = {
        "size": DIM,
        "distance": models.Distance.DOT,
        "datatype": models.Datatype.FLOAT16,
        "multivector_config": models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
    }
    return models.VectorParams(**{**options, **more})


@pytest.mark.parametrize(
    ("vectors", "options", "said"),
    [
        ({"other": multivector()}, {}, "has no vector 'colbert' .it has 'other'."),
        ({"colbert": multivector(distance="Cosine")}, {}, "'colbert' with distance 'Cosine', not 'Dot'"),
        ({"colbert": multivector(multivector_config=None)}, {}, "with multivectors 'none', not 'max_sim'"),
        ({"colbert": multivector(datatype=None)}, {}, "datatype 'float32', not 'float16': pass dtype='float32'"),
        ({"colbert": multivector()}, {"dtype": "float32"}, "datatype 'float16', not 'float32'"),
        ({"colbert": multivector(datatype="uint8")}, {}, "datatype 'uint8', not 'float16': name another collection"),
        ({"colbert": multivector()}, {"first_stage": "mean"}, "was made without a first stage"),
        (
            {"colbert": multivector(), "first_stage": models.VectorParams(size=3, distance="Cosine")},
            {"first_stage": "mean"},
            "vectors of dim 3 as its first stage, not 8",
        ),
    ],
)
@pytest.mark.parametrize("local", [True, False], ids=["local", "server"])
def test_a_collection_of_another_form_is_refused(
    server: QdrantServer, vectors: Any, options: dict[str, Any], said: str, local: bool
) -> None:
    client = QdrantClient(":memory:") if local else QdrantClient(url=server.url, check_compatibility=False)
    client.create_collection("colbert", vectors_config=vectors)
    with QdrantStore(client, **options) as store:
        for call in (store.count, lambda: store.search(QUERIES), lambda: fill(store, {"a": torch.ones(1, DIM)})):
            with pytest.raises(StoreError, match=said):
                call()
    client.close()


@pytest.mark.parametrize("local", [True, False], ids=["local", "server"])
def test_a_collection_with_a_first_stage_is_not_written_without_it(
    server: QdrantServer, documents: dict[str, torch.Tensor], local: bool
) -> None:
    client = QdrantClient(":memory:") if local else QdrantClient(url=server.url, check_compatibility=False)
    with QdrantStore(client, first_stage="mean") as store, QdrantStore(client) as other:
        fill(store, documents)
        with pytest.raises(StoreError, match="make the store with first_stage= to write here"):
            fill(other, {"d0": documents["d1"], "new": documents["d1"]})
        assert found(other, QUERIES, 4) == brute_force(documents, QUERIES, 4)
        other.set_metadata(["d0"], [{"n": 1}])
        other.delete(["d1"])
        assert (store.ids({"n": 1}), store.count()) == (["d0"], 6)
    client.close()


class Unasked(FakeEmbeddings):
    """An embedding model that is not to be asked."""

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError("the model was asked")

    embed_documents = embed_query  # type: ignore[assignment]


async def test_calls_that_need_no_first_stage_do_not_ask_its_model(
    server: QdrantServer, documents: dict[str, torch.Tensor]
) -> None:
    with QdrantStore(server.url, first_stage=FakeEmbeddings(size=3), first_stage_name="fake") as store:
        fill(store, documents)
    stage = {"first_stage": Unasked(size=3), "first_stage_name": "fake"}
    with QdrantStore(server.url, **stage) as store:
        assert (await store.acount(), store.count(), len(await store.aget(["d0"])), store.dim) == (7, 7, 1, DIM)
        assert found(store, QUERIES, 4) == brute_force(documents, QUERIES, 4)
        assert await store.asearch(QUERIES, 4) == store.search(QUERIES, 4)
        store.set_metadata(["d0"], [{"n": 1}])
        await store.adelete(["d1"])
        assert await store.aids({"n": 1}) == ["d0"]
        with pytest.raises(AssertionError, match="the model was asked"):
            store.search(QUERIES[:1], search="first_stage", texts=["d0"])
        await store.aclose()


async def test_a_model_of_a_first_stage_is_asked_in_other_threads_only(server: QdrantServer) -> None:
    asked: list[int] = []

    class Slow(FakeEmbeddings):
        def _get_embedding(self) -> list[float]:
            asked.append(threading.get_ident())
            return super()._get_embedding()

    with QdrantStore(server.url, first_stage=Slow(size=3)) as store:
        await store.aupsert(["a"], dyadic(1, 3), ["a text"])
        assert (await store.asearch(QUERIES[:1], search="first_stage", texts=["a"]))[0][0].id == "a"
        assert len(asked) == 2  # a vector for each, and none to see what they are like
        assert threading.get_ident() not in asked
        await store.aclose()


@pytest.mark.parametrize("local", [True, False], ids=["local", "server"])
def test_a_first_stage_of_another_dimension_is_refused_when_it_is_used(server: QdrantServer, local: bool) -> None:
    client = QdrantClient(":memory:") if local else QdrantClient(url=server.url, check_compatibility=False)
    said = "has vectors of dim 3 as its first stage, not 4: pass the first_stage that made them"
    with QdrantStore(client, first_stage=FakeEmbeddings(size=3)) as store:
        fill(store, {"a": torch.ones(1, DIM)})
    with QdrantStore(client, first_stage=FakeEmbeddings(size=4)) as store:
        assert (store.count(), len(store.search(QUERIES[:1])[0])) == (1, 1)
        with pytest.raises(StoreError, match=said):
            store.search(QUERIES[:1], search="first_stage", texts=["a"])
        with pytest.raises(StoreError, match=said):
            fill(store, {"b": torch.ones(1, DIM)})
        assert store.ids() == ["a"]
    client.close()


class Angles:
    """An embedding model that says nothing about itself."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [float(len(text) + 1)] + [1.0] * (DIM - 1)


class Others(Angles):
    pass


class Named(Angles):
    def __init__(self, model_name: str) -> None:
        self.model_name = model_name


class NamedOtherwise(Angles):
    def __init__(self, model: Any) -> None:
        self.model = model


@pytest.mark.parametrize(
    ("made", "given", "called"),
    [
        ("mean", Angles(), ("mean", "Angles")),
        (Angles(), "mean", ("Angles", "mean")),
        (Angles(), Others(), ("Angles", "Others")),
        (Named("minilm"), NamedOtherwise("e5"), ("minilm", "e5")),
        (Named("unknown"), NamedOtherwise(object()), ("Named", "NamedOtherwise")),
    ],
)
@pytest.mark.parametrize("local", [True, False], ids=["local", "server"])
def test_a_first_stage_of_another_model_is_refused_though_its_vectors_fit(
    server: QdrantServer, made: Any, given: Any, called: tuple[str, str], local: bool
) -> None:
    client = QdrantClient(":memory:") if local else QdrantClient(url=server.url, check_compatibility=False)
    with QdrantStore(client, first_stage=made) as store:
        fill(store, {"a": torch.ones(1, DIM)})
        store.bind(HERE)  # and what was recorded stays
    said = f"vectors of '{called[0]}' as its first stage, not of '{called[1]}': .* or first_stage_name='{called[0]}'"
    with QdrantStore(client, first_stage=given) as other, pytest.raises(StoreError, match=said):
        other.count()
    with QdrantStore(client) as reader:
        assert reader.count() == 1
    client.close()


@pytest.mark.parametrize(
    ("made", "given"),
    [
        ({"first_stage": Named("minilm")}, {"first_stage": NamedOtherwise("minilm")}),
        ({"first_stage": Angles()}, {"first_stage": Others(), "first_stage_name": "Angles"}),
        ({"first_stage": Named("/here/minilm"), "first_stage_name": "minilm"}, {"first_stage": Named("minilm")}),
    ],
)
def test_a_first_stage_by_the_same_name_is_the_same(
    server: QdrantServer, made: dict[str, Any], given: dict[str, Any]
) -> None:
    with QdrantStore(server.url, **made) as store, QdrantStore(server.url, **given) as other:
        fill(store, {"a": torch.ones(1, DIM)})
        assert found(other, QUERIES[:1], 1, search="first_stage", texts=["a"])[0][0][0] == "a"


@pytest.mark.parametrize("said", [{}, {"colbert_integrations": {"fingerprint": None}}])
def test_a_collection_that_does_not_say_its_first_stage_has_any(server: QdrantServer, said: dict[str, Any]) -> None:
    client = QdrantClient(url=server.url, check_compatibility=False)
    vectors = {"colbert": multivector(), "first_stage": models.VectorParams(size=DIM, distance="Cosine")}
    client.create_collection("colbert", vectors_config=vectors, metadata=said)
    for stage in ("mean", Angles()):
        with QdrantStore(client, first_stage=stage) as store:
            assert store.count() == 0
    client.close()


def test_a_collection_whose_vector_has_no_name_is_refused() -> None:
    client = QdrantClient(":memory:")
    client.create_collection("colbert", vectors_config=multivector())
    with QdrantStore(client) as store, pytest.raises(StoreError, match="it has only one without a name"):
        store.count()
    client.close()


def test_a_collection_that_somebody_made_is_used(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    client = QdrantClient(url=server.url, check_compatibility=False)
    client.create_collection("colbert", vectors_config={"colbert": multivector()}, metadata={"mine": 1})
    with QdrantStore(client) as store:
        assert (store.dim, store.fingerprint, store.count()) == (DIM, None, 0)
        fill(store, documents)
        store.bind(HERE)
        assert found(store, QUERIES, 4) == brute_force(documents, QUERIES, 4)
    assert client.get_collection("colbert").config.metadata["mine"] == 1
    client.close()


def test_points_of_somebody_else_are_an_error(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        store.bind(HERE)
        vector = {"colbert": torch.ones(1, DIM).tolist()}
        store.client.upsert("colbert", [models.PointStruct(id=7, vector=vector, payload={"name": "x"})])
        for call in (store.ids, lambda: store.search(QUERIES), lambda: list(store.iter_documents())):
            with pytest.raises(StoreError, match="points that this package did not store"):
                call()
        store.client.upsert("colbert", [models.PointStruct(id=7, vector={}, payload={"name": "x"})])
        with pytest.raises(StoreError, match="points that this package did not store"):
            list(store.iter_documents())


@pytest.mark.parametrize("other", [{"metadata": 5}, {"metadata": [1]}, {"exact": "5"}, {"text": 5}], ids=str)
def test_payloads_of_another_form_are_our_error(server: QdrantServer, other: dict[str, Any]) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": torch.ones(1, DIM)})
        (point,), _ = store.client.scroll("colbert", with_vectors=True)
        spoilt = models.PointStruct(id=point.id, vector=point.vector, payload={**point.payload, **other})
        store.client.upsert("colbert", [spoilt])
        for call in (lambda: store.search(QUERIES), lambda: list(store.iter_documents())):
            with pytest.raises(StoreError, match="'a' can't be read"):
                call()


def test_fewer_answers_than_queries_are_our_error(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": torch.ones(1, DIM)})
        answers = store.client.query_batch_points
        monkeypatch.setattr(store.client, "query_batch_points", lambda **asked: answers(**asked)[:-1])
        with pytest.raises(StoreServerError, match="3 queries got 2 answers"):
            store.search(QUERIES[:3])


def test_metadata_that_somebody_spoilt_is_our_error(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": torch.ones(1, DIM)})
        (point,), _ = store.client.scroll("colbert", with_vectors=True)
        spoilt = models.PointStruct(id=point.id, vector=point.vector, payload={**point.payload, "exact": "{bad"})
        store.client.upsert("colbert", [spoilt])
        for call in (lambda: store.search(QUERIES), lambda: list(store.iter_documents())):
            with pytest.raises(StoreError, match="the metadata of 'a' can't be read"):
                call()


@needs_numpy_2
def test_payload_indexes_are_made_once(server: QdrantServer) -> None:
    indexes: Any = {"year": "number", "author.first name": "string", "draft": "boolean"}
    notes = [{"year": 2020, "author": {"first name": "Ada"}, "draft": True}, {"year": 2021.5, "draft": False}]
    for _ in range(2):
        with QdrantStore(server.url, payload_indexes=indexes) as store:
            fill(store, dict(zip("ab", dyadic(1, 2, 3), strict=True)), notes)
            assert store.ids({"year": {"$gt": 2020}}) == store.ids({"draft": False}) == ["b"]
            assert store.ids({"year": 2020.0, "draft": True}) == store.ids({"author.first name": "Ada"}) == ["a"]
    bodies = [asked.body for asked in server.asked if asked.call.endswith("/index")]
    assert [(body["field_name"], body["field_schema"]) for body in bodies] == [
        ('metadata."year"', "float"),
        ('metadata."author.first name"', "keyword"),
        ('metadata."author"."first name"', "keyword"),
        ('metadata."draft"', "bool"),
        ("text_hash", "uuid"),
        ('metadata."_llama_index"."ref_doc_id"', "keyword"),
    ]
    with QdrantStore(server.url, payload_indexes={"more": "string"}) as store:
        assert store.count() == 2
    assert len([asked for asked in server.asked if asked.call.endswith("/index")]) == 7


def test_a_payload_index_of_the_nested_place_alone_gets_the_other(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": torch.ones(1, DIM)}, [{"loc": {"page": 3}}])
        store.client.create_payload_index("colbert", "metadata.loc.page", "float")
    before = len(server.asked)
    with QdrantStore(server.url, payload_indexes={"loc.page": "number"}) as store:
        assert store.ids({"loc.page": 3}) == ["a"]
    made = [asked.body["field_name"] for asked in server.asked[before:] if asked.call.endswith("/index")]
    assert made == ['metadata."loc.page"']


def test_a_payload_index_of_another_kind_is_refused_with_the_way_out(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": torch.ones(1, DIM)}, [{"year": 2003.5}])
        store.client.create_payload_index("colbert", 'metadata."year"', "integer")
    said = "index of metadata.* as integer, and payload_indexes asks for float"
    with QdrantStore(server.url, payload_indexes={"year": "number"}) as store, pytest.raises(StoreError, match=said):
        store.ids({"year": {"$gt": 2000}})


def test_a_key_that_may_only_read_does_without_the_indexes_that_it_can_not_make(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": torch.ones(1, DIM)}, [{"year": 2003.5}])
    with QdrantStore(server.url, payload_indexes={"year": "number"}) as store:
        server.faults.append(Fault(403, "PUT .*/index"))
        assert store.ids({"year": {"$gt": 2000}}) == ["a"]
    with QdrantStore(server.url, payload_indexes={"year": "number"}, retries=0) as store:
        server.faults[:] = [Fault(500, "PUT .*/index")]
        with pytest.raises(StoreServerError, match="create_payload_index"):
            store.count()


def test_local_mode_has_no_payload_indexes_and_does_not_warn() -> None:
    with QdrantStore(":memory:", payload_indexes={"year": "number"}) as store:
        fill(store, {"a": torch.ones(1, DIM)}, [{"year": 1}])
        assert store.ids({"year": 1}) == ["a"]


# ---------------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_kept_with_the_collection(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    with QdrantStore(server.url) as store, QdrantStore(server.url) as other:
        fill(store, documents)
        assert (store.fingerprint, other.fingerprint) == (None, None)
        store.bind(HERE)
        assert other.fingerprint == HERE
        assert other.fingerprint.settings == HERE.settings
        with pytest.raises(FingerprintError, match=r"the collection 'colbert' holds vectors of one .* not fit .* two"):
            other.bind(THERE)
        assert (store.count(), len(store.ids()), len(list(store.iter_documents()))) == (7, 7, 7)


def test_a_collection_that_was_made_anew_for_another_model_is_found_out(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store, QdrantStore(server.url) as other:
        store.bind(HERE)
        other.client.delete_collection("colbert")
        other.bind(THERE)
        with pytest.raises(FingerprintError, match="holds vectors of two .* not fit .* one"):
            store.bind(HERE)


def test_one_that_another_process_bound_meanwhile_stays_its(
    server: QdrantServer, documents: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with QdrantStore(server.url) as other, QdrantStore(server.url, payload_indexes={"n": "number"}) as store:
        fill(other, documents)
        create = store.client.create_payload_index

        def slowly(**arguments: Any) -> Any:
            other.bind(THERE)
            return create(**arguments)

        monkeypatch.setattr(store.client, "create_payload_index", slowly)
        with pytest.raises(FingerprintError, match="holds vectors of two .* not fit .* one"):
            store.bind(HERE)
        assert other.fingerprint == THERE
        with QdrantStore(server.url) as reader:
            assert reader.fingerprint == THERE


def test_a_fingerprint_of_a_later_version_is_read(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        store.bind(HERE)
        said = {"colbert_integrations": {"fingerprint": {**HERE.as_json(), "of_later": 1}}}
        store.client.update_collection("colbert", metadata=said)
        with QdrantStore(server.url) as reader:
            assert reader.fingerprint == HERE


@pytest.mark.parametrize("said", ["hello", {"fingerprint": "abc"}, {"fingerprint": {"model": "one"}}])
def test_metadata_of_a_collection_that_nobody_can_read_is_our_error(server: QdrantServer, said: object) -> None:
    with QdrantStore(server.url) as store:
        store.bind(HERE)
        store.client.update_collection("colbert", metadata={"colbert_integrations": said})
        with (
            QdrantStore(server.url) as reader,
            pytest.raises(StoreError, match="metadata that this version can't read"),
        ):
            reader.count()


def test_another_name_of_the_same_model_is_not_written(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store, QdrantStore(server.url) as reader:
        store.bind(HERE)
        server.faults.append(Fault(403, "PATCH|PUT|DELETE"))  # a key that may only read
        reader.bind(Fingerprint("abc", "another name", DIM))
        assert store.fingerprint.model == "one"  # type: ignore[union-attr]


def test_a_key_that_may_only_read_searches_what_says_its_model(server: QdrantServer, tiny: ColBERT) -> None:
    vectors = tiny.encode_document(["a dog"])
    with QdrantStore(server.url) as writer, QdrantStore(server.url) as reader:
        writer.upsert(["a"], vectors, ["a dog"])
        server.faults.append(Fault(403, "PATCH|PUT|DELETE"))
        with pytest.raises(StoreServerError, match="update_collection .* the API key may not do this") as caught:
            ColBERTIndex(tiny, reader).search("a dog")
        assert caught.value.status == 403
        server.faults.clear()
        writer.bind(tiny.fingerprint)
        server.faults.append(Fault(403, "PATCH|PUT|DELETE"))
        assert [hit.id for hit in ColBERTIndex(tiny, reader).search("a dog")] == ["a"]


def test_encodings_are_kept_with_the_collection_under_the_name_that_it_has(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store, QdrantStore(server.url) as writer:
        store.bind(HERE)
        writer.bind(Fingerprint("abc", "another name", DIM, encodings=[{"pool_factor": 2}]))
        with QdrantStore(server.url) as reader:
            kept = reader.fingerprint
        assert kept is not None
        assert (kept.model, [*kept.encodings]) == ("one", [{"pool_factor": 2}])


def test_a_model_of_another_dimension_is_refused(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    with QdrantStore(server.url) as store:
        fill(store, documents)
        with pytest.raises(FingerprintError, match="vectors of dim 8, which are not those of three .dim 3"):
            store.bind(Fingerprint("x", "three", 3))
        assert store.fingerprint is None


def test_a_server_that_keeps_no_metadata_is_an_error(server: QdrantServer) -> None:
    server.engine.keeps_metadata = False  # as before 1.16
    with QdrantStore(server.url) as store, pytest.raises(StoreError, match="Qdrant 1.16 or later"):
        store.bind(HERE)


def test_two_stores_on_one_collection_see_each_other(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    with QdrantStore(server.url) as one, QdrantStore(server.url) as other:
        assert (one.count(), other.count()) == (0, 0)
        fill(one, {"d0": documents["d0"], "d1": documents["d1"]}, [{"n": 0}, {"n": 1}])
        assert other.ids() == ["d0", "d1"]
        other.set_metadata(["d1"], [{"n": 5}])
        fill(other, {"d2": documents["d2"]})
        assert one.ids({"n": 5}) == ["d1"]
        one.delete(["d0"])
        left = {name: documents[name] for name in ("d1", "d2")}
        assert found(other, QUERIES, 9) == found(one, QUERIES, 9) == brute_force(left, QUERIES, 9)


def test_many_may_make_the_collection_at_once(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    def add(name: str) -> None:
        with QdrantStore(server.url) as store:
            store.bind(HERE)
            fill(store, {name: documents[name]})

    with ThreadPoolExecutor(7) as threads:
        list(threads.map(add, documents))
    with QdrantStore(server.url) as store:
        assert (store.ids(), store.fingerprint) == (sorted(documents), HERE)


# -------------------------------------------------------------------------------------------------- batches and losses


def test_requests_have_so_many_bytes_at_most(server: QdrantServer) -> None:
    many = {f"d{number}": matrix for number, matrix in enumerate(units(1, *[20] * 60, dim=32))}
    for dtype in ("float16", "float32"):
        with QdrantStore(server.url, dtype, dtype=dtype, batch_bytes=50_000) as store:  # type: ignore[arg-type]
            fill(store, many, [{"é": "漢\u0000" * 50}] * 60)
            sizes = server.sizes(f"/collections/{dtype}/points$")
            assert len(sizes) > 5
            assert max(sizes) <= 50_000
            assert max(sizes) > 25_000  # not many more than needed either
            assert store.count() == 60


def test_so_have_those_that_change_metadata(server: QdrantServer) -> None:
    many = {f"d{number:02}": matrix for number, matrix in enumerate(dyadic(1, *[2] * 40))}
    notes = [{"n": number, "é": "漢" * 50} for number in range(40)]
    with QdrantStore(server.url, batch_bytes=5000) as store:
        fill(store, many)
        store.set_metadata(list(many), notes, list(many))
        sizes = server.sizes("/points/batch$")
        assert 1 < len(sizes) < 40
        assert max(sizes) <= 5000
        assert [document.metadata for document in store.get(list(many))] == notes


def test_a_document_that_is_larger_than_a_request_goes_alone(server: QdrantServer) -> None:
    lengths = [2, 400, 2, 2]
    with QdrantStore(server.url, batch_bytes=10_000) as store:
        fill(store, dict(zip("abcd", units(1, *lengths, dim=32), strict=True)))
        small, large, rest = server.sizes("PUT .*/points$")
        assert small < 10_000 < large
        assert rest < 10_000
        assert store.ids() == list("abcd")


def test_what_a_server_does_not_take_is_refused_before_anything_is_sent(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        fits, large = torch.ones(2**16 - 1, 16), torch.ones(2**16, 16)
        with pytest.raises(InputError, match="'b' has 65536 vectors of dim 16: a Qdrant server takes at most 65535"):
            fill(store, {"a": fits[:1], "b": large})
        assert server.asked == []
    with QdrantStore(":memory:") as store:
        fill(store, {"a": fits})
        assert store.count() == 1


@pytest.mark.parametrize(
    ("name", "text", "metadata", "said"),
    [
        ("\ud800", None, {}, "half of a surrogate pair"),
        ("a", "\udfff", {}, "half of a surrogate pair"),
        ("a", None, {"x": ["\ud800"]}, "half of a surrogate pair"),
        ("a", None, {"\ud800": 1}, "half of a surrogate pair"),
    ],
)
def test_what_the_engine_could_not_read_again_is_refused(
    server: QdrantServer, name: str, text: str | None, metadata: dict[str, Any], said: str
) -> None:
    with QdrantStore(server.url) as store:
        vectors = TokenEmbeddings.from_list([torch.ones(1, DIM)] * 2)
        with pytest.raises(InputError, match=said):
            store.upsert(["kept", name], vectors, [None, text], [{}, metadata])
        assert server.asked == []
        store.upsert(["kept"], vectors[:1], None, [{"x": [[]] * 3}])
        with pytest.raises(InputError, match=said):
            store.set_metadata(["kept"], [{"x": text, "y": metadata, "z": name}])
        assert store.get(["kept"])[0].metadata == {"x": [[], [], []]}


def test_an_id_that_cannot_be_written_is_refused() -> None:
    with QdrantStore(":memory:") as store:
        fill(store, {"a": torch.ones(1, DIM)})
        bad = ["a", "b\ud800"]
        calls: list[Any] = [
            lambda: store.get(bad),
            lambda: store.delete(bad),
            lambda: store.set_metadata(bad, [{}, {}]),
            lambda: store.search(QUERIES, ids=bad),
        ]
        for call in calls:
            with pytest.raises(InputError, match=r"the id 'b\\ud800' has half of a surrogate pair"):
                call()


def test_queries_may_need_a_gradient_and_be_none_at_all() -> None:
    tracked = TokenEmbeddings(QUERIES.values.clone().requires_grad_(), QUERIES.offsets)
    none = TokenEmbeddings.from_list([], DIM)
    with QdrantStore(":memory:", first_stage="mean") as store:
        fill(store, {"a": torch.ones(1, DIM)})
        assert found(store, tracked, 3) == found(store, QUERIES, 3)
        assert store.search(none, search="first_stage") == []


@pytest.mark.parametrize("local", [True, False], ids=["local", "server"])
def test_nothing_is_left_of_metadata_that_is_replaced(server: QdrantServer, local: bool) -> None:
    one = {"a": torch.ones(1, DIM)}
    notes: list[dict[str, Any]] = [{"w": 0.1 + 0.2, "x": 1}, {"w": 1}, {"w": 2**70}, {}]
    with QdrantStore(":memory:" if local else server.url) as store:
        for note in notes:
            fill(store, one, [note])
            assert store.get(["a"])[0].metadata == note
        for note in notes:
            store.set_metadata(["a"], [note])
            assert store.get(["a"])[0].metadata == note


def test_an_upsert_that_fails_in_the_middle_says_what_is_stored(
    server: QdrantServer, documents: dict[str, torch.Tensor]
) -> None:
    with QdrantStore(server.url, batch_bytes=500, retries=0) as store:
        fill(store, {"d4": documents["d0"]}, [{"old": True}])
        server.faults.append(Fault(500, "PUT .*/points$", after=3, times=1))
        with pytest.raises(
            StoreServerError, match="At least 3 of 7 documents are stored, what was on its way may be too"
        ) as caught:
            fill(store, documents, [{"n": number} for number in range(7)])
        assert caught.value.status == 500
        # Exactly the first three, and what was there of the others.
        assert store.ids() == ["d0", "d1", "d2", "d4"]
        assert store.get(["d4"])[0].metadata == {"old": True}
        # The advice of the error:
        fill(store, documents, [{"n": number} for number in range(7)])
        assert store.get(["d4"])[0].metadata == {"n": 4}
        assert found(store, QUERIES, 9) == brute_force(documents, QUERIES, 9)


def test_an_answer_that_is_lost_says_nothing_of_what_was_done(
    server: QdrantServer, documents: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with QdrantStore(server.url, retries=0) as store:
        write = store.client.upsert

        def lose(**arguments: Any) -> None:
            write(**arguments)
            raise ResponseHandlingException(httpx.ReadTimeout("timed out"))

        monkeypatch.setattr(store.client, "upsert", lose)
        with pytest.raises(StoreServerError, match="At least 0 of 7 documents are stored, what was on its way may be"):
            fill(store, documents)
        assert store.count() == 7
    with QdrantStore(server.url, batch_bytes=500, retries=0) as store:
        server.faults.append(Fault(400, "PUT .*/points$", after=3, times=1))
        with pytest.raises(
            StoreServerError, match="3 of 7 documents are stored, the others are as they were"
        ) as caught:
            fill(store, documents)
        assert not caught.value.unsure


@pytest.mark.parametrize("lost", [(408,), (408, 400), (503, 429), (500, 413)])
async def test_nor_does_a_later_answer_where_one_was_lost(
    server: QdrantServer, documents: dict[str, torch.Tensor], pauses: list[float], lost: tuple[int, ...]
) -> None:
    with QdrantStore(server.url, retries=len(lost) - 1) as store:
        store.bind(HERE)
        # The last one for the halves of what is too large, too.
        server.faults[:] = [Fault(status, "PUT .*/points$", times=1 + (status == 413) * 9) for status in lost]
        with pytest.raises((StoreServerError, InputError), match="what was on its way may be too"):
            fill(store, documents)
        server.faults[:] = [Fault(status, "POST .*/delete$", times=1) for status in lost]
        with pytest.raises(StoreServerError) as deleted:
            await store.adelete(list(documents))
        assert deleted.value.unsure
        await store.aclose()


@pytest.mark.skipif("WAIT_TIMEOUT" not in models.UpdateStatus.__members__, reason="needs qdrant-client>=1.17")
@pytest.mark.parametrize("binary", [False, True], ids=["http", "grpc"])
async def test_what_a_server_no_longer_waits_for_is_not_taken_for_done(
    server: QdrantServer, documents: dict[str, torch.Tensor], pauses: list[float], binary: bool
) -> None:
    options = {"grpc_port": server.grpc_port, "prefer_grpc": True} if binary else {}
    client = QdrantClient(url=server.url, check_compatibility=False, **options)
    with QdrantStore(client, retries=1) as store:
        fill(store, documents)
        calls: list[Any] = [
            lambda: fill(store, documents),
            lambda: store.set_metadata(list(documents), [{"n": 1}] * 7),
            lambda: store.delete(["d0"]),
        ]
        for call in calls:
            server.engine.too_slow = 1
            call()
            server.engine.too_slow = 9  # one for each change of metadata
            with pytest.raises(StoreServerError, match="status 408: .*wait_timeout") as caught:
                call()
            assert (caught.value.status, caught.value.unsure) == (408, True)
            server.engine.too_slow = 0
        server.engine.too_slow = 2
        with pytest.raises(StoreServerError, match="wait_timeout"):
            await store.adelete(["d0"])
        await store.aclose()
    client.close()


def test_requests_that_name_many_documents_are_no_larger_than_others(server: QdrantServer) -> None:
    names = [f"d{number}" for number in range(300)]
    for options in ({}, {"first_stage": "mean", "search": "first_stage", "collection": "with-means"}):
        with QdrantStore(server.url, batch_bytes=4000, **options) as store:
            fill(store, dict.fromkeys(names[:3], torch.ones(1, DIM)), [{"said": "日本語" * 100}] * 3)
            server.most_bytes = 5000  # what surrounds the ids, and the query
            assert len(store.search(QUERIES[:1], 9, ids=names)[0]) == 3
            assert len(store.search(QUERIES, 9, {"said": "日本語" * 100})[0]) == 3
            store.delete(names)
            assert store.count() == 0
            server.most_bytes = 2**20


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_after_an_outage_grpc_is_tried_again_soon(server: QdrantServer, asynchronous: bool) -> None:
    with QdrantStore(server.url, prefer_grpc=True) as store:
        client = store._connection._async_client() if asynchronous else store.client
        assert client.init_options["grpc_options"]["grpc.max_reconnect_backoff_ms"] == 2000


async def test_calls_that_closing_ends_are_not_taken_for_cancelled(server: QdrantServer) -> None:
    client = QdrantClient(
        url=server.url, grpc_port=server.grpc_port, prefer_grpc=True, check_compatibility=False, timeout=60
    )
    store, server.delay = QdrantStore(client), 1.0
    call = asyncio.create_task(store.acount())
    while not server.asked:
        await asyncio.sleep(0.001)
    await store.aclose()
    with pytest.raises(StoreError, match="the store was closed meanwhile"):
        await call
    # Who cancels a call gets what cancelling gives.
    store, before = QdrantStore(client), len(server.asked)
    call = asyncio.create_task(store.acount())
    while len(server.asked) == before:
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await store.aclose()
    server.delay = 0.0
    client.close()


def test_adding_again_after_a_failure_encodes_only_what_is_missing(server: QdrantServer, tiny: ColBERT) -> None:
    texts = [f"quest {number}" for number in range(20)]
    with QdrantStore(server.url, batch_bytes=2000, retries=0) as store:
        index = ColBERTIndex(tiny, store)
        server.faults.append(Fault(503, "PUT .*/points$", after=2, times=1))
        with pytest.raises(StoreServerError, match=r"documents are stored"):
            index.add(texts)
        there = store.count()
        assert 0 < there < 20
        encoded: list[str] = []
        encode = tiny.encode_document

        def counted(texts: list[str], **options: Any) -> TokenEmbeddings:
            encoded.extend(texts)
            return encode(texts, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, "encode_document", counted)
            index.add(texts)
        assert (len(encoded), store.count()) == (20 - there, 20)


async def test_searching_makes_no_collection(server: QdrantServer, tiny: ColBERT) -> None:
    with QdrantStore(server.url, "misspelt") as store:
        index = ColBERTIndex(tiny, store)
        assert index.search("a dog") == await index.asearch("a dog") == []
        assert [entry.index for entry in index.rank("a dog", ["a fox"], ["a"])] == [0]
        assert {asked.call for asked in server.asked} == {"GET /collections/misspelt/exists"}
        await store.aclose()


def test_pages_adapt_to_the_documents(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [1 + number % 5 for number in range(100)]
    many = {f"d{number:03}": matrix for number, matrix in enumerate(dyadic(1, *lengths))}
    with QdrantStore(server.url) as store:
        fill(store, many)
        seen = [document.id for document in store.iter_documents()]
        assert sorted(seen) == list(many)
        assert [asked.body["limit"] for asked in server.asked if asked.call.endswith("/scroll")] == [16, 256]
        kept = store.get(list(many), embeddings=True)
        assert all(torch.equal(document.embeddings.float(), many[document.id]) for document in kept)  # type: ignore[union-attr]
        read = [asked.body["ids"] for asked in server.asked if asked.call == "POST /collections/colbert/points"]
        assert list(map(len, read)) == [16, 84]
        monkeypatch.setattr("colbert_integrations.qdrant.pages._FLOATS", 4 * 3 * DIM)
        assert sorted(document.id for document in store.iter_documents()) == list(many)
        limits = [asked.body["limit"] for asked in server.asked if asked.call.endswith("/scroll")][2:]
        assert len(limits) > 20
        assert max(limits[1:]) <= 12


@pytest.mark.parametrize("local", [True, False], ids=["local", "server"])
async def test_what_fills_several_pages_is_read_to_its_end(
    server: QdrantServer, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("store", "pages"):
        monkeypatch.setattr(f"colbert_integrations.qdrant.{module}.PAGE", 7)
    many = {f"d{number:02}": matrix for number, matrix in enumerate(dyadic(1, *[1 + n % 5 for n in range(20)]))}
    some = {name: many[name] for name in [*many][2:19]}  # more than a page of them, of all three
    with QdrantStore(":memory:" if local else server.url, first_stage="mean") as store:
        fill(store, many, [{"n": number, 'quo"te': name in some} for number, name in enumerate(many)])
        assert store.ids() == await store.aids() == list(many)
        assert [document.id for document in store.get(list(many))] == list(many)
        filters: list[Any] = [
            {"n": {"$gte": 2, "$lt": 19}},
            {'quo"te': True},  # which a server can't be told
            lambda document: document.id in some,
            lambda document: document.text in some,
        ]
        for filter in filters:
            assert store.ids(filter) == await store.aids(filter) == list(some)
            for stage in ({}, {"search": "first_stage", "candidates": 17}):
                assert found(store, QUERIES, 17, filter=filter, **stage) == brute_force(some, QUERIES, 17)
        nothing = TokenEmbeddings.from_list([torch.ones(0, DIM)])  # to which all are alike
        assert found(store, nothing, 18) == [[(name, 0.0) for name in [*many][:18]]]
        assert found(store, nothing, 18, ids=[*some, "missing"]) == [[(name, 0.0) for name in some]]
        if not local:
            scrolls = [asked.body for asked in server.asked if asked.call.endswith("/scroll")]
            assert [scroll["limit"] for scroll in scrolls[:3]] == [7, 7, 7]
        await store.aclose()


def test_a_page_holds_some_megabytes_of_vectors() -> None:
    page, large = Page("colbert"), models.Record(id=1, vector={"colbert": [[0.5] * 128] * 1000})
    page.saw([large] * page.size)
    assert 2**20 <= page.size * 1000 * 128 * 4 <= 2**23


def test_documents_that_are_not_there_do_not_make_pages_small(server: QdrantServer) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": torch.ones(1, DIM)})
        assert store.get([str(number) for number in range(64)], embeddings=True) == []
        assert len([asked for asked in server.asked if asked.call == "POST /collections/colbert/points"]) == 4


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("status", "tries", "said"),
    [
        (400, 1, "told to answer 400"),
        (401, 1, "pass api_key="),
        (403, 1, "may not do this"),
        (404, 1, "not there any more"),
        (408, 4, "did not get it done in time"),
        (409, 1, "meanwhile"),
        (422, 1, "older than what this client speaks"),
        (429, 4, "limits how much"),
        (500, 4, "told to answer 500"),
        (501, 1, "told to answer 501"),
        (502, 4, "told to answer 502"),
        (503, 4, "told to answer 503"),
        (504, 4, "told to answer 504"),
    ],
)
async def test_what_a_server_refuses_is_tried_again_only_if_that_can_help(
    server: QdrantServer,
    documents: dict[str, torch.Tensor],
    pauses: list[float],
    status: int,
    tries: int,
    said: str,
) -> None:
    with QdrantStore(server.url, retries=3) as store:
        fill(store, documents)
        server.faults.append(Fault(status))

        def check(error: StoreServerError, call: str) -> None:
            assert error.status == status
            assert f"status {status}: told to answer {status}" in str(error)
            assert said in str(error)
            assert server.url in str(error)
            assert len(server.sizes(call)) == tries
            assert len(pauses) == tries - 1
            server.asked.clear()
            pauses.clear()

        server.asked.clear()
        with pytest.raises(StoreServerError, match="query_batch_points of the collection 'colbert'") as caught:
            store.search(QUERIES)
        check(caught.value, "query")
        with pytest.raises(StoreServerError, match="upsert of the collection 'colbert'") as caught:
            fill(store, documents)
        check(caught.value, "PUT")
        with pytest.raises(StoreServerError) as caught:
            await store.asearch(QUERIES)
        check(caught.value, "query")
        await store.aclose()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 501, 503, 504])
async def test_by_grpc_the_same_goes_wrong(pauses: list[float], status: int) -> None:
    with by_grpc(retries=1) as store:
        fill(store, {"a": torch.ones(1, DIM)})
        fault = Fault(status, store.collection)
        shared_server().faults.append(fault)
        try:
            for number in (1, 2):
                with pytest.raises(StoreServerError, match=f"told to answer {status}") as caught:
                    store.count() if number == 1 else await store.acount()
                assert caught.value.status == status
                assert len(pauses) == number * (status in (429, 500, 503, 504))
        finally:
            shared_server().faults.remove(fault)
        await store.aclose()


def test_a_server_that_fails_twice_and_then_works_is_not_noticed(
    server: QdrantServer, documents: dict[str, torch.Tensor], pauses: list[float]
) -> None:
    with QdrantStore(server.url) as store:
        for calls in ("GET", "PUT .*/colbert$", "PUT .*/points$", "POST .*/query", "POST .*/scroll", "PATCH"):
            server.faults.append(Fault(503, calls, times=2))
        fill(store, documents)
        assert found(store, QUERIES, 4) == brute_force(documents, QUERIES, 4)
        store.bind(HERE)
        assert store.ids() == sorted(documents)
        assert len(pauses) == 12


async def test_a_cancelled_upsert_sends_no_further_request(
    server: QdrantServer, documents: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with QdrantStore(server.url, batch_bytes=500) as store:
        fill(store, {"first": torch.ones(1, DIM)})
        before, entered, leave = len(server.sizes("PUT")), threading.Event(), threading.Event()
        real = store.client.upsert

        def held(**request: Any) -> Any:
            entered.set()
            assert leave.wait(PATIENCE_S)
            return real(**request)

        monkeypatch.setattr(store.client, "upsert", held)
        call = asyncio.create_task(store.aupsert(list(documents), TokenEmbeddings.from_list(list(documents.values()))))
        assert await asyncio.to_thread(entered.wait, PATIENCE_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        leave.set()
        await ended(store)
        assert len(server.sizes("PUT")) == before + 1


async def test_a_cancelled_call_does_not_try_again(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_FIRST_PAUSE", 2 * PATIENCE_S)
    with QdrantStore(server.url, retries=1) as store:
        fill(store, {"a": torch.ones(1, DIM)})
        server.asked.clear()
        server.faults.append(Fault(503))
        call = asyncio.create_task(store.aset_metadata(["a"], [{"n": 1}]))
        while not server.asked:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await ended(store)
        assert len(server.asked) == 1


async def ended(store: QdrantStore) -> None:
    """Wait until nothing runs for async calls."""
    executor = store._worker._executor
    assert executor is not None
    await asyncio.wait_for(asyncio.to_thread(executor.shutdown), PATIENCE_S)


def test_pauses_grow_and_differ(server: QdrantServer, pauses: list[float]) -> None:
    server.faults.append(Fault(503))
    for _ in range(2):
        with QdrantStore(server.url, retries=9) as store, pytest.raises(StoreServerError):
            store.count()
    for number, pause in enumerate(pauses):
        assert 0.5 <= pause / min(20, 0.25 * 2 ** (number % 9)) <= 1
    assert pauses[:9] != pauses[9:]


@pytest.mark.parametrize(("status", "wanted", "waited"), [(429, "7", 7), (429, "9999", 60), (503, "7.5", 7.5)])
def test_a_server_that_says_how_long_to_wait_is_listened_to(
    server: QdrantServer, pauses: list[float], status: int, wanted: str, waited: float
) -> None:
    server.faults.append(Fault(status, times=1, headers=(("Retry-After", wanted),)))
    with QdrantStore(server.url) as store:
        assert store.count() == 0
    assert pauses == [waited]


@pytest.mark.parametrize("wanted", ["Wed, 21 Oct 2026 07:28:00 GMT", "1.5"])
async def test_a_wait_that_the_client_cannot_read_is_ours_to_choose(
    server: QdrantServer, pauses: list[float], wanted: str
) -> None:
    server.faults.append(Fault(429, times=2, headers=(("Retry-After", wanted),)))
    with QdrantStore(server.url) as store:
        assert store.count() == 0
        assert len(pauses) == 2
        assert max(pauses) <= 0.5
        server.faults.append(Fault(429, headers=(("Retry-After", wanted),)))
        with pytest.raises(StoreServerError, match="status 429") as caught:
            await store.acount()
        assert caught.value.status == 429
        await store.aclose()


async def test_a_dead_server_is_an_error_that_says_so(pauses: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with QdrantStore(url, retries=2) as store:
        for call in (store.count, lambda: store.fingerprint, lambda: fill(store, {"a": torch.ones(1, DIM)})):
            with pytest.raises(StoreServerError, match=f"at {url}: no answer .ConnectError.*is it up") as caught:
                call()
            assert caught.value.status is None
        with pytest.raises(StoreServerError, match="no answer .ConnectError.*is it up"):
            await store.acount()
        assert len(pauses) == 8
        await store.aclose()


async def test_a_slow_server_is_an_error_that_says_what_helps(server: QdrantServer, pauses: list[float]) -> None:
    with QdrantStore(server.url, timeout=1, retries=0) as store:
        server.delay = 2.5
        with pytest.raises(StoreServerError, match="no answer .ReadTimeout.*raise timeout="):
            store.count()
        with pytest.raises(StoreServerError, match="no answer .ReadTimeout.*raise timeout="):
            await store.acount()
        await store.aclose()


def test_a_search_that_is_too_large_says_what_helps(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    with QdrantStore(server.url) as store:
        fill(store, documents)
        server.most_bytes = 1500
        queries = dyadic(5, *[4] * 30)
        for server.behind_proxy in (False, True):
            with pytest.raises(StoreServerError, match="lower batch_bytes=") as caught:
                store.search(queries)
            assert caught.value.status == 413
    with QdrantStore(server.url, batch_bytes=1500) as store:
        assert found(store, queries, 3) == brute_force(documents, queries, 3)


@pytest.mark.parametrize("way", ["http", "proxy", "grpc"])
def test_what_is_too_large_together_is_written_in_parts(
    server: QdrantServer, documents: dict[str, torch.Tensor], way: str
) -> None:
    server.most_bytes, server.behind_proxy = 1500, way == "proxy"
    options = {"grpc_port": server.grpc_port, "prefer_grpc": True} if way == "grpc" else {}
    client = QdrantClient(url=server.url, check_compatibility=False, **options)
    with QdrantStore(client, dtype="float32") as store:
        fill(store, documents)
        assert found(store, QUERIES[:1], 9) == brute_force(documents, QUERIES[:1], 9)
        store.set_metadata(list(documents), [{"said": "é" * 300}] * 7, list(documents))
        assert store.ids({"said": "é" * 300}) == sorted(documents)
        # One that is too large alone is the caller's to leave out. Those before it are stored.
        large, said = dyadic(7, 300)[0], "document 'large' is larger than the server takes: split it"
        told = "2 of 4 documents are stored, the others are as they were"
        with pytest.raises(InputError, match=f"{said}.*{told}"):
            fill(store, {"new": large[:1], "newer": large[:2], "large": large, "d0": large[:3]})
        with pytest.raises(InputError, match=f"{said}.*proxy before it$"):
            fill(store, {"large": large})
        with pytest.raises(InputError, match="document 'd1' is larger than the server takes.*1 of 7 documents"):
            store.set_metadata(list(documents), [{"said": "é" * (900 * (name == "d1"))} for name in documents])
        assert store.ids() == sorted([*documents, "new", "newer"])
        assert [document.metadata for document in store.get(["d0", "d1", "d2"])] == [
            {"said": ""},
            {"said": "é" * 300},
            {"said": "é" * 300},
        ]
    client.close()


def test_what_is_not_taken_in_time_is_written_in_parts_too(
    server: QdrantServer, documents: dict[str, torch.Tensor], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with QdrantStore(server.url, retries=2) as store:
        store.bind(HERE)
        write, tried = store.client.upsert, []

        def stuck(**arguments: Any) -> Any:  # as if what is refused for its length were not read
            tried.append(len(arguments["points"]))
            if tried[-1] > most:
                raise ResponseHandlingException(httpx.WriteTimeout("timed out"))
            return write(**arguments)

        monkeypatch.setattr(store.client, "upsert", stuck)
        most = 2
        fill(store, documents)
        assert (tried, pauses) == ([7, 3, 1, 2, 4, 2, 2], [])
        assert found(store, QUERIES, 9) == brute_force(documents, QUERIES, 9)
        # One alone is slow, as far as anybody can know.
        most, tried[:] = 0, []
        with pytest.raises(StoreServerError, match="no answer .WriteTimeout.*raise timeout="):
            fill(store, {"new": documents["d0"]})
        assert (tried, len(pauses)) == ([1, 1, 1], 2)


class FromGrpc(grpc.RpcError):
    def __init__(self, name: str, said: str) -> None:
        self._code, self._said = grpc.StatusCode[name], said

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._said


def test_a_proxys_answer_to_what_is_too_large_is_known_by_grpc() -> None:
    failure = failure_of(FromGrpc("UNKNOWN", "Received http2 header with status: 413"), "upsert")
    assert failure is not None
    assert (failure.error.status, failure.again) == (413, False)


@pytest.mark.parametrize("name", ["UNKNOWN", "CANCELLED", "ABORTED", "FAILED_PRECONDITION"])
def test_what_grpc_has_other_codes_for_is_tried_again_as_by_http(name: str) -> None:
    failure = failure_of(FromGrpc(name, "the shard is on its way"), "upsert")
    assert failure is not None
    assert (failure.error.status, failure.again, failure.unsure) == (500, True, True)


def test_a_call_of_a_store_that_was_closed_meanwhile_is_not_tried_again() -> None:
    failure = failure_of(FromGrpc("CANCELLED", "Channel closed!"), "upsert")
    assert failure is not None
    assert (failure.error.status, failure.again) == (None, False)


def test_a_server_that_is_locked_says_so_by_http_and_by_grpc() -> None:
    said = "Storage locked: a snapshot is taken"
    answers = [
        UnexpectedResponse(403, "Forbidden", json.dumps({"status": {"error": said}}).encode(), httpx.Headers()),
        FromGrpc("FAILED_PRECONDITION", said),
    ]
    for answer in answers:
        failure = failure_of(answer, "upsert")
        assert failure is not None
        assert (failure.error.status, failure.again, failure.unsure) == (403, False, False)
        assert str(failure.error).endswith(f"{said}; somebody has locked the server against changes: unlock it there")


def test_metadata_goes_in_requests_of_a_bounded_size_with_the_texts_that_go_along(server: QdrantServer) -> None:
    texts = [f"{number} " + "é" * 300 for number in range(40)]
    ids, vectors = [str(number) for number in range(40)], TokenEmbeddings.from_list([torch.ones(1, DIM)] * 40)
    with QdrantStore(server.url, batch_bytes=4000) as store:
        store.upsert(ids, vectors, texts)
        server.most_bytes = 5000
        store.set_metadata(ids, [{"n": 1}] * 40, texts)
        assert store.ids({"n": 1}) == sorted(ids)


def test_a_key_opens_a_server_that_wants_one(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    server.api_key = "secret"
    with QdrantStore(server.url) as store, pytest.raises(StoreServerError, match="api_key=") as caught:
        store.count()
    assert caught.value.status == 401
    with pytest.warns(UserWarning, match="insecure connection"):
        store = QdrantStore(server.url, api_key="secret")
    fill(store, documents)
    assert store.count() == 7
    assert "secret" not in repr(store)
    store.close()


def test_an_answer_that_nobody_can_read_is_not_asked_for_again(
    server: QdrantServer, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": torch.ones(1, DIM)})
        monkeypatch.setattr(server.engine, "count", None)
        monkeypatch.setattr(QdrantServer, "answer", lambda *_: {"total": 1})
        with pytest.raises(StoreServerError, match="ValidationError"):
            store.count()
        assert pauses == []


@pytest.mark.parametrize(
    "answer", [b"<html>maintenance</html>", b'{"result": {"count"', b"", b"{}", b'{"result": null}']
)
def test_an_answer_that_is_not_qdrants_is_our_error(
    server: QdrantServer, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    with QdrantStore(server.url) as store:
        fill(store, {"a": torch.ones(1, DIM)})
        request = httpx.Request("GET", server.url)
        said = httpx.Response(200, content=answer, headers={"content-type": "application/json"}, request=request)
        monkeypatch.setattr(httpx.Client, "send", lambda *_, **__: said)
        with pytest.raises(StoreServerError, match="not Qdrant's: is it a proxy's page|ValidationError"):
            store.count()


def test_a_collection_that_was_deleted_is_an_error(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    with QdrantStore(server.url) as store:
        fill(store, documents)
        store.client.delete_collection("colbert")
        with pytest.raises(StoreServerError, match="not there any more") as caught:
            store.count()
        assert caught.value.status == 404


def test_what_goes_wrong_in_local_mode_is_our_error_too(documents: dict[str, torch.Tensor]) -> None:
    client = QdrantClient(":memory:")
    with QdrantStore(client) as store:
        fill(store, documents)
        client.delete_collection("colbert")
        with pytest.raises(StoreServerError, match="'colbert' at :memory: failed: Collection colbert not found"):
            store.count()
        client.close()
        with pytest.raises(StoreServerError, match="failed: .*closed"):
            store.count()


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("database or disk is full"), OSError(28, "No space left on device"), KeyError(1)]
)
def test_so_is_what_local_mode_raises_but_not_our_own_mistakes(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise error

    with QdrantStore(":memory:") as store:
        fill(store, {"a": torch.ones(1, DIM)})
        monkeypatch.setattr(store.client, "count", fail)
        with pytest.raises(StoreServerError, match="count of the collection 'colbert' at :memory: failed") as caught:
            store.count()
        assert str(error) in str(caught.value)
        monkeypatch.setattr(store.client, "count", lambda: 1)  # is given arguments
        with pytest.raises(TypeError):
            store.count()


def test_errors_are_pickled_with_their_status() -> None:
    again = pickle.loads(pickle.dumps(StoreServerError("said", 503, True)))
    assert (str(again), again.status, again.unsure) == ("said", 503, True)


def test_stores_that_share_a_local_client_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    count, inside, most = client.count, 0, 0

    def counted(**arguments: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.005)  # local mode is not made for threads
        inside -= 1
        return count(**arguments)

    monkeypatch.setattr(client, "count", counted)
    with QdrantStore(client) as one, QdrantStore(client) as other, ThreadPoolExecutor(4) as threads:
        fill(one, {"a": torch.ones(1, DIM)})
        assert set(threads.map(QdrantStore.count, [one, other] * 8)) == {1}
    assert most == 1
    client.close()


def test_threads_do_not_take_turns_at_a_server(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=30)
    with QdrantStore(server.url) as store, ThreadPoolExecutor(2) as executor:
        fill(store, {"a": torch.ones(1, DIM)})
        real = store.client.count

        def count(**arguments: Any) -> models.CountResult:
            both.wait()  # for the other thread's request to be under way
            return real(**arguments)

        monkeypatch.setattr(store.client, "count", count)
        assert list(executor.map(lambda _: store.count(), range(2))) == [1, 1]


# ---------------------------------------------------------------------------------------------------------------- forks


def test_a_fork_has_a_client_of_its_own(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    store = QdrantStore(server.url, timeout=7)
    fill(store, {"a": torch.ones(1, DIM)})
    parents = store.client
    monkeypatch.setattr(connection, "getpid", lambda: 0)
    assert store.count() == 1
    childs = store.client
    assert childs is store.client is not parents
    assert childs.init_options == parents.init_options
    store.close()
    assert [client._client.closed for client in (childs, parents)] == [True, False]
    parents.close()


def test_a_fork_that_did_nothing_closes_nothing(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    store = QdrantStore(server.url)
    parents = store.client
    monkeypatch.setattr(connection, "getpid", lambda: 0)
    store.close()
    assert not parents._client.closed
    parents.close()


async def test_a_fork_has_async_clients_of_its_own(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    given = AsyncQdrantClient(url=server.url, check_compatibility=False, headers={"x": "y"})
    stores = [QdrantStore(server.url, async_client=given), QdrantStore(server.url)]
    fill(stores[0], {"a": torch.ones(1, DIM)})
    parents = [store._connection._async_client() for store in stores]
    with monkeypatch.context() as patch:
        patch.setattr(connection, "getpid", lambda: 0)
        assert [await store.acount() for store in stores] == [1, 1]
        childs = [store._connection._async_client() for store in stores]
        assert not set(map(id, childs)) & set(map(id, parents))
        assert childs[0].init_options["headers"] == {"x": "y"}
        for store in stores:
            await store.aclose()
    for client in parents:
        await client.close()


async def test_so_it_has_with_grpc_and_a_client_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with by_grpc() as store, monkeypatch.context() as patch:
        fill(store, {"a": torch.ones(1, DIM)})
        parents = store.client
        patch.setattr(connection, "getpid", lambda: 0)
        assert (store.count(), await store.acount()) == (1, 1)
        assert store.client is not parents
        assert store.client.init_options["prefer_grpc"]
        await store.aclose()


def test_a_fork_of_local_mode_has_a_lock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with QdrantStore(":memory:") as store:
        fill(store, {"a": torch.ones(1, DIM)})
        parents, lock = store.client, store._connection._opened().lock
        monkeypatch.setattr(connection, "getpid", lambda: 0)
        assert store.client is parents
        assert store._connection._opened().lock is not lock
        assert store.count() == 1


# ---------------------------------------------------------------------------------------------------------------- async


def test_each_event_loop_has_a_client_of_its_own(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    async def search() -> Any:
        return await store.asearch(QUERIES, 3)

    with QdrantStore(server.url) as store:
        fill(store, documents)
        assert asyncio.run(search()) == asyncio.run(search()) == store.search(QUERIES, 3)


@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")  # what the ended loops' connections say
@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")
def test_event_loops_that_have_ended_are_forgotten(server: QdrantServer) -> None:
    # By this name the client keeps connections, which refer to their loop.
    with QdrantStore(server.url.replace("127.0.0.1", "127.1")) as store:
        for _ in range(3):
            asyncio.run(store.acount())
            gc.collect()
            assert len(store._connection._opened().loops) == 1
    gc.collect()


async def test_waiting_for_a_server_takes_no_thread(
    server: QdrantServer, documents: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = QdrantStore(server.url)
    fill(store, documents, [{"n": number} for number in range(7)])
    expected = store.search(QUERIES, 3)

    async def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a thread was taken")

    with monkeypatch.context() as patch:
        patch.setattr(store._worker, "run", refuse)
        results = await asyncio.gather(
            *[store._arun(store._search(QUERIES, 3, None, None, "exact", None, None)) for _ in range(20)]
        )
        assert results == [expected] * 20
        assert await store.acount() == 7
        assert await store.aids({"n": 3}) == ["d3"]
        assert (await store.aget(["d3"]))[0].text == "d3"
    await store.aclose()


async def test_an_async_client_that_was_given_is_used(server: QdrantServer, documents: dict[str, torch.Tensor]) -> None:
    given = AsyncQdrantClient(url=server.url, check_compatibility=False, headers={"x": "y"})
    store = QdrantStore(server.url, async_client=given)
    fill(store, documents)
    assert store._connection._async_client() is given
    assert await store.acount() == 7
    await store.aclose()
    assert (await given.count("colbert")).count == 7  # it stays open
    await given.close()


async def test_a_search_does_not_wait_for_writers(
    server: QdrantServer, documents: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, leave = server.answer, threading.Event()

    def held(asked: str, headers: Any, content: bytes) -> Any:
        assert not asked.startswith("PUT") or leave.wait(PATIENCE_S)
        return answer(asked, headers, content)

    with QdrantStore(server.url, first_stage="mean") as store:
        fill(store, documents)
        monkeypatch.setattr(server, "answer", held)
        writers = [asyncio.create_task(store.aupsert([str(n)], dyadic(n, 4))) for n in range(4)]
        await asyncio.sleep(0)  # they have their threads
        for search in (
            store.asearch(QUERIES, 3, lambda document: True),
            store.asearch(QUERIES, 3, search="first_stage"),
            store.aget(["d0"], embeddings=True),
        ):
            await asyncio.wait_for(search, PATIENCE_S)
        assert not any(writer.done() for writer in writers)
        leave.set()
        await asyncio.gather(*writers)
        await store.aclose()


# ----------------------------------------------------------------------------------------------- the tests' own server


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ({"limit": 0}, "ScrollRequest", "ScrollRequest.limit: no count: 0"),
        ({"limits": 1}, "ScrollRequest", "has no limits"),
        ({"exact": 1}, "CountRequest", "no bool"),
        ({}, "PointRequest", "PointRequest lacks ids"),
        ({"ids": ["x"]}, "PointRequest", "no id: 'x'"),
        ({"ids": [-1]}, "PointRequest", "no id: -1"),
        ({"points": [{"id": 1, "vector": {"a": [[1.0], ["x"]]}}]}, "PointsList", "no multivector"),
        ({"points": [{"id": 1, "vector": {"a": []}, "payload": []}]}, "PointsList", "PointStruct.payload"),
        ({"filter": {"must": [{"key": "a", "range": {"gte": "x"}}]}}, "CountRequest", "Range.gte: no number: 'x'"),
        ({"filter": {"must": [{"key": "a", "match": {"value": 1.5}}]}}, "CountRequest", "no int: 1.5"),
        ({"filter": {"any": []}}, "CountRequest", "Filter has no any"),
        ({"vectors": {"a": {"size": 1, "distance": "dot"}}}, "CreateCollection", "'dot' is not Dot"),
    ],
)
def test_the_tests_server_takes_only_what_the_api_has(body: Any, kind: str, said: str) -> None:
    assert said in str(problem(body, kind))


def test_it_takes_what_the_api_has() -> None:
    conditions = [{"has_id": []}, {"is_null": {"key": "a"}}, {"should": [{"key": "a", "match": {"value": True}}]}]
    assert problem({"filter": {"must": conditions, "must_not": None}, "limit": 3}, "ScrollRequest") is None
