"""Random adds, upserts, deletes, filters, saves and loads in any order, against a store that is a plain dict."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from colbert_integrations import MemoryStore
from colbert_integrations.index import memory, rows, scan
from colbert_integrations.index.layout import ReadyQueries
from stores import brute_force, dyadic, fill, found

NAMES = st.sampled_from([f"n{number:02}" for number in range(25)])
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
QUERIES = dyadic(7, 2, 4)


@pytest.fixture(autouse=True)
def _many_small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real sizes would keep everything in one segment and one block."""
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 8)
    monkeypatch.setattr(memory, "_MOST_ROWS", 32)
    monkeypatch.setattr(ReadyQueries, "block_rows", 16)  # whatever scores them
    monkeypatch.setattr(scan, "_MOST_WAITING", 5)
    monkeypatch.setattr(rows, "GATHERED_ROWS", 8)


class StoreMachine(RuleBasedStateMachine):
    """Does everything to a store and to a dict."""

    @initialize(originals=st.booleans())
    def begin(self, originals: bool) -> None:
        self.store = MemoryStore(nbits=8, keep_originals=True) if originals else MemoryStore()
        self.vectors: dict[str, torch.Tensor] = {}
        self.metadata: dict[str, dict[str, Any]] = {}
        self.folder = Path(tempfile.mkdtemp())
        self.saved: tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]] | None = None

    @rule(names=st.lists(NAMES, min_size=1, max_size=12, unique=True), lengths=LENGTHS, seed=st.integers(0, 9999))
    def upsert(self, names: list[str], lengths: list[int], seed: int) -> None:
        matrices = list(dyadic(seed, *(lengths * 12)[: len(names)]))
        documents = dict(zip(names, matrices, strict=True))
        notes = [{"n": seed % 5, "name": name} for name in names]
        fill(self.store, documents, notes)
        self.vectors.update(documents)
        self.metadata.update(zip(names, notes, strict=True))

    @rule(names=st.lists(NAMES, max_size=8))
    def delete(self, names: list[str]) -> None:
        self.store.delete(names)
        for name in names:
            self.vectors.pop(name, None)
            self.metadata.pop(name, None)

    @rule(names=st.lists(NAMES, max_size=4, unique=True), value=st.integers(0, 4))
    def set_metadata(self, names: list[str], value: int) -> None:
        self.store.set_metadata(names, [{"n": value, "name": name} for name in names])
        self.metadata.update({name: {"n": value, "name": name} for name in names if name in self.vectors})

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def save(self) -> None:
        self.store.save(self.folder)
        self.saved = dict(self.vectors), dict(self.metadata)

    @rule()
    def load(self) -> None:
        if self.saved is not None:
            self.store.close()
            self.store = MemoryStore.load(self.folder)
            self.vectors, self.metadata = dict(self.saved[0]), dict(self.saved[1])

    @rule()
    def move(self) -> None:
        other = MemoryStore("float32")
        other.copy_from(self.store, batch_tokens=20)
        assert {document.id for document in other.iter_documents()} == self.vectors.keys()
        assert found(other, QUERIES, 5) == found(self.store, QUERIES, 5)

    @rule(value=st.integers(0, 4), k=st.integers(1, 30))
    def filtered_search(self, value: int, k: int) -> None:
        some = {name: self.vectors[name] for name, note in self.metadata.items() if note["n"] == value}
        assert found(self.store, QUERIES, k, filter={"n": value}) == brute_force(some, QUERIES, k)

    @rule(names=st.lists(NAMES, max_size=6), k=st.integers(1, 4))
    def search_among(self, names: list[str], k: int) -> None:
        some = {name: self.vectors[name] for name in names if name in self.vectors}
        assert found(self.store, QUERIES, k, ids=names) == brute_force(some, QUERIES, k)

    @rule(k=st.integers(1, 30), candidates=st.integers(30, 40))
    def approximate_search_with_room_for_all(self, k: int, candidates: int) -> None:
        hits = found(self.store, QUERIES, k, search="centroids", candidates=candidates)
        assert hits == brute_force(self.vectors, QUERIES, k)

    @rule(k=st.integers(1, 4), candidates=st.integers(4, 20))
    def approximate_search_gives_true_scores(self, k: int, candidates: int) -> None:
        every = dict(brute_force(self.vectors, QUERIES, 99)[0])
        hits = found(self.store, QUERIES, k, search="centroids", candidates=candidates)[0]
        assert len(hits) == min(k, len(every))
        assert [score for _, score in hits] == sorted((every[name] for name, _ in hits), reverse=True)

    @invariant()
    def is_what_the_dict_is(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.count() == len(self.vectors)
        assert found(self.store, QUERIES, 7) == brute_force(self.vectors, QUERIES, 7)
        there = {document.id: document for document in self.store.get(sorted(self.vectors), embeddings=True)}
        assert {name: document.metadata for name, document in there.items()} == self.metadata
        assert all(torch.equal(there[name].embeddings.float(), matrix) for name, matrix in self.vectors.items())  # type: ignore[union-attr]

    @invariant()
    def dead_rows_do_not_pile_up(self) -> None:
        if hasattr(self, "store"):
            alive = sum(map(len, self.vectors.values()))
            assert self.store.num_tokens <= alive / 0.75 + 1e-9

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def test_the_store_is_a_dict_that_can_be_searched() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=120, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
