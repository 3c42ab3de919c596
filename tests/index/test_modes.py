"""Stores and torch's modes: what a caller has switched on changes nothing that is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.errors import NonFiniteError
from colbert_integrations.index import quantization
from stores import dyadic, found, units

QUERIES = dyadic(99, 3, 1, 5)
FORMS: list[Any] = [None, 8, 4, 2]
STAGES: list[Any] = ["pooled", "centroids"]


@pytest.mark.parametrize("bits", FORMS)
def test_a_store_begun_in_inference_mode_goes_on_outside_of_it(bits: Any) -> None:
    store = MemoryStore(nbits=bits)
    with torch.inference_mode():
        store.upsert(["a", "b"], dyadic(1, 4, 5))
        for search in STAGES:
            store.search(QUERIES, search=search, candidates=1)
    store.upsert(["b", "c"], dyadic(2, 3, 2), metadatas=[{}, {"n": 1}])
    store.set_metadata(["c"], [{"n": 2}])
    store.delete(["a"])
    for search in STAGES:
        store.search(QUERIES, search=search, candidates=1)
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
        return [found(store, queries, 9, search=search) for search in ("exact", *STAGES)]

    here = searched()
    with torch.autocast("cpu", torch.bfloat16):
        assert searched() == here


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
