"""Stores and torch's modes: what a caller has switched on changes nothing that is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.errors import InputError, NonFiniteError
from colbert_integrations.index import quantization
from stores import dyadic, found, units

QUERIES = dyadic(99, 3, 1, 5)
FORMS: list[Any] = [None, 8, 4, 2]


@pytest.mark.parametrize("bits", FORMS)
def test_a_store_begun_in_inference_mode_goes_on_outside_of_it(bits: Any) -> None:
    store = MemoryStore(nbits=bits)
    with torch.inference_mode():
        store.upsert(["a", "b"], dyadic(1, 4, 5))
        store.search(QUERIES, search="centroids", candidates=1)
    store.upsert(["b", "c"], dyadic(2, 3, 2), metadatas=[{}, {"n": 1}])
    store.set_metadata(["c"], [{"n": 2}])
    store.delete(["a"])
    store.search(QUERIES, search="centroids", candidates=1)
    expected = MemoryStore(nbits=bits)
    expected.upsert(["b", "c"], dyadic(2, 3, 2))
    assert found(store, QUERIES, 9) == found(expected, QUERIES, 9)


@pytest.mark.parametrize("bits", FORMS)
def test_queries_that_want_a_gradient_are_searched(bits: Any) -> None:
    quantization._rotation.cache_clear()  # so that it is made in inference mode
    store = MemoryStore(nbits=bits)
    with torch.inference_mode():
        store.upsert(["a", "b"], dyadic(1, 4, 5))
    tracked = TokenEmbeddings(QUERIES.values.clone().requires_grad_(), QUERIES.offsets)
    assert found(store, tracked, 9) == found(store, QUERIES, 9)


@pytest.mark.parametrize("bits", FORMS)
def test_autocast_changes_no_vector_and_no_score(bits: Any) -> None:
    documents, queries = units(1, 40, 3), units(2, 5)

    def searched() -> Any:
        store = MemoryStore(nbits=bits)
        store.upsert(["a", "b"], documents)
        return [found(store, queries, 9, search=search) for search in ("exact", "centroids")]

    here = searched()
    with torch.autocast("cpu", torch.bfloat16):
        assert searched() == here


@pytest.mark.parametrize("options", [{}, *({"nbits": bits, "keep_originals": True} for bits in (8, 4))], ids=str)
def test_autocast_hinders_no_writer(options: dict[str, Any]) -> None:
    def changed() -> dict[str, Any]:
        store = MemoryStore(**options)
        store.upsert(["a", "b", "a", "c"], units(1, 4, 3, 5, 2))
        store.set_metadata(["a"], [{"n": 1}])
        store.upsert(["b"], units(2, 6))
        store.delete(["c"])
        store.compact()
        copied = MemoryStore(**options)
        copied.copy_from(store)
        documents = copied.get(["a", "b", "c"], embeddings=True)
        return {document.id: (document.metadata, document.embeddings.tolist()) for document in documents}  # type: ignore[union-attr]

    here = changed()
    assert sorted(here) == ["a", "b"]
    with torch.autocast("cpu", torch.bfloat16):
        assert changed() == here


@pytest.mark.parametrize("bits", FORMS)
def test_autocast_changes_no_vector_on_its_way_out(bits: Any) -> None:
    store = MemoryStore(nbits=bits)
    store.upsert(["a"], units(1, 40))
    (here,) = store.get(["a"], embeddings=True)
    with torch.autocast("cpu", torch.bfloat16):
        for document in (*store.get(["a"], embeddings=True), *store.iter_documents()):
            torch.testing.assert_close(document.embeddings, here.embeddings, rtol=0, atol=0)


def test_a_query_that_float32_can_not_hold_is_refused() -> None:
    store = MemoryStore()
    store.upsert(["a"], units(1, 2))
    with pytest.raises(InputError, match="a query's vectors are not all finite"):
        store.search(TokenEmbeddings.from_list([torch.full((1, 32), 1e300, dtype=torch.float64)]))


def test_vectors_that_are_being_trained_are_stored_as_numbers() -> None:
    store = MemoryStore("float32")
    (trained,) = units(1, 4)
    store.upsert(["a"], TokenEmbeddings.from_list([trained.requires_grad_()]))
    assert not any(tensor.requires_grad for tensor in store._now().views[0].segment.columns.values())


@pytest.mark.parametrize("bits", [4, 2])
def test_a_vector_too_long_for_a_float16_scale_is_refused(bits: Any) -> None:
    store = MemoryStore(nbits=bits)
    with pytest.raises(NonFiniteError, match=f"too long for {bits} bits"):
        store.upsert(["a"], TokenEmbeddings.from_list([torch.full((2, 8), 1e6)]))
    assert not len(store)
