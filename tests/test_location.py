"""Locations of stores: what they open, and what they refuse without saying a secret again."""

from __future__ import annotations

from typing import Any

import pytest

from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, index_corpus, open_store
from colbert_integrations.errors import InputError
from colbert_integrations.qdrant import QdrantStore
from qdrant_server import QdrantServer


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("location", "url", "collection"),
    [
        ("qdrant+http://localhost:6333/abstracts", "http://localhost:6333", "abstracts"),
        ("qdrant+https://example.org/abstracts", "https://example.org", "abstracts"),
        (
            "qdrant+https://example.org:443/behind/a/proxy/abstracts",
            "https://example.org:443/behind/a/proxy",
            "abstracts",
        ),
        ("qdrant+http://[::1]:6333/my%20abstracts", "http://[::1]:6333", "my abstracts"),
    ],
)
def test_a_location_names_server_and_collection(location: str, url: str, collection: str) -> None:
    with open_store(location) as store:
        assert isinstance(store, QdrantStore)
        assert (store.client.init_options["url"], store.collection) == (url, collection)
        assert store.client.init_options["api_key"] is None


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "hush")
    with open_store("qdrant+https://example.org/abstracts") as store:
        assert isinstance(store, QdrantStore)
        assert store.client.init_options["api_key"] == "hush"
        assert "hush" not in repr(store)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://localhost:6333/abstracts", "such as 'qdrant.http://"),
        ("my-index", "a folder is opened by ColBERTIndex.load"),
        ("", "such as 'qdrant.http://"),
        ("qdrant+http://localhost:6333", "ends with the name of a collection"),
        ("qdrant+http://localhost:6333/", "ends with the name of a collection"),
        ("qdrant+http:///abstracts", "ends with the name of a collection"),
        (3, "must be a string such as 'qdrant.http://.*not int"),
        ("qdrant+http://localhost:6333/abstracts?api_key=hush", "QDRANT_API_KEY"),
        ("qdrant+http://localhost:6333/abstracts#hush", "QDRANT_API_KEY"),
        ("qdrant+http://hush@localhost:6333/abstracts", "QDRANT_API_KEY"),
        ("qdrant+http://me:hush@localhost:6333/abstracts", "QDRANT_API_KEY"),
        ("http://me:hush@localhost:6333/abstracts", "QDRANT_API_KEY"),
        ("https://localhost/abstracts?api_key=hush", "QDRANT_API_KEY"),
        ("qdrant://localhost/abstracts#hush", "QDRANT_API_KEY"),
        ("qdrant+http://[::1/abstracts", "can't be read"),
        ("qdrant+http://me:hush@a\u2100b/abstracts", "can't be read"),
    ],
)
def test_what_is_no_location_is_refused(location: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        open_store(location)
    assert "hush" not in str(caught.value)


def test_an_index_takes_a_location_for_its_store(tiny: ColBERT) -> None:
    server = QdrantServer()
    location = f"{server.url.replace('http', 'qdrant+http')}/abstracts"
    texts = ["a quest", "lions", "bread and flour"]
    with ColBERTIndex(tiny, location) as index, ColBERTIndex(tiny, MemoryStore()) as memory:
        assert index.add(texts) == memory.add(texts)
        expected = [hit.id for hit in memory.search("lions")]
        assert [hit.id for hit in index.search("lions")] == expected
        assert len(index) == 3
    with ColBERTIndex(tiny, location) as again:
        assert [hit.id for hit in again.search("lions")] == expected
    server.close()


def test_a_corpus_goes_to_a_location(tiny: ColBERT) -> None:
    server = QdrantServer()
    location, texts = f"{server.url.replace('http', 'qdrant+http')}/corpus", ["a quest", "lions", "bread and flour"]
    assert index_corpus(texts, tiny, location, show_progress=False).encoded == 3
    assert index_corpus(texts, tiny, location, show_progress=False).unchanged == 3
    server.close()


def test_what_is_no_store_is_refused(tiny: ColBERT) -> None:
    with pytest.raises(InputError, match="must be a string such as"):
        ColBERTIndex(tiny, 3)  # type: ignore[arg-type]
