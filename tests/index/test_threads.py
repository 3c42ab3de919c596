"""Reads and writes from several threads: a search sees what was there at one moment, and memory does not grow."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.errors import StoreError
from colbert_integrations.index import Hit, StoredDocument, memory
from colbert_integrations.index.layout import Layout
from colbert_integrations.index.rows import PackedRows
from colbert_integrations.index.segment import Batch, Segment
from stores import brute_force, dyadic, found

DIM = 8
ONE = TokenEmbeddings.from_list([torch.ones(1, DIM)])


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 16)
    monkeypatch.setattr(memory, "_MOST_ROWS", 64)


async def test_a_cancelled_copy_stops() -> None:
    entered, leave, ended = threading.Event(), threading.Event(), threading.Event()

    class Held(MemoryStore):
        def iter_documents(self) -> Iterator[StoredDocument]:
            try:
                for document in super().iter_documents():
                    yield document
                    entered.set()
                    leave.wait()
            finally:
                ended.set()

    source, copied = Held(), MemoryStore()
    source.upsert(["a", "b", "c"], TokenEmbeddings.from_list([torch.ones(1, DIM)] * 3))
    call = asyncio.create_task(copied.acopy_from(source, batch_tokens=1))
    await asyncio.to_thread(entered.wait)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    leave.set()
    await asyncio.to_thread(ended.wait)
    assert copied.count() == 1


async def test_what_takes_moments_does_not_wait_behind_searches() -> None:
    leave = threading.Event()

    class Slow(MemoryStore):
        def search(self, *args: Any, **options: Any) -> list[list[Hit]]:
            assert leave.wait(30)
            return super().search(*args, **options)

    store = Slow()
    store.upsert(["a", "b"], TokenEmbeddings.from_list([torch.ones(1, DIM)] * 2))
    searches = [asyncio.create_task(store.asearch(ONE)) for _ in range(8)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(store.aids(), 20) == ["a", "b"]
    assert [document.id for document in await asyncio.wait_for(store.aget(["b"]), 20)] == ["b"]
    await asyncio.wait_for(store.adelete(["b"]), 20)
    assert await asyncio.wait_for(store.acount(), 20) == 1
    leave.set()
    assert [[hit.id for hit in hits] for (hits,) in await asyncio.gather(*searches)] == [["a"]] * 8


def test_a_store_is_not_pickled_and_not_copied() -> None:
    store = MemoryStore()
    assert copy.copy(store) is copy.deepcopy(store) is store
    with pytest.raises(StoreError, match="MemoryStore can't be pickled"):
        pickle.dumps(store)


def test_a_reader_never_sees_half_an_upsert() -> None:
    store, ids = MemoryStore(), [f"d{number}" for number in range(20)]

    def write(value: int) -> None:
        vectors = TokenEmbeddings.from_list([torch.full((1 + number % 4, DIM), value / 8) for number in range(20)])
        store.upsert(ids, vectors, None, [{"v": value}] * 20)

    write(0)
    done = threading.Event()

    def read() -> int:
        seen = set()
        while not done.is_set():
            hits = store.search(ONE, 30)[0]
            assert len(hits) == 20
            assert len({(hit.score, hit.metadata["v"]) for hit in hits}) == 1
            assert hits[0].score == hits[0].metadata["v"]
            documents = store.get(ids)
            assert len({document.metadata["v"] for document in documents}) == 1
            assert len(list(store.iter_documents())) == 20
            seen.add(hits[0].metadata["v"])
        return len(seen)

    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for value in range(1, 150):
            write(value)
        done.set()
        assert max(reader.result() for reader in readers) > 1


def test_a_write_does_not_open_again_what_was_closed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    store, append = MemoryStore(), Segment.append

    def append_and_close(segment: Segment, batch: Batch) -> None:
        append(segment, batch)
        store.close()

    monkeypatch.setattr(Segment, "append", append_and_close)
    for call in (lambda: store.upsert(["a"], ONE), store.count):
        with pytest.raises(StoreError, match="closed"):
            call()


def soak(seconds: float, threads: int) -> tuple[MemoryStore, dict[str, torch.Tensor]]:
    """Adds, deletes and searches from many threads, each on ids of its own; what should be there at the end."""
    store, end = MemoryStore(), time.monotonic() + seconds

    def work(thread: int) -> dict[str, torch.Tensor]:
        moments, mine = random.Random(thread), dict[str, torch.Tensor]()
        while time.monotonic() < end:
            names = [f"{thread}-{moments.randrange(40)}" for _ in range(moments.randrange(1, 6))]
            names = list(dict.fromkeys(names))
            if moments.random() < 0.6:
                matrices = list(dyadic(moments.randrange(10**6), *[moments.randrange(1, 9) for _ in names]))
                store.upsert(names, TokenEmbeddings.from_list(matrices), names, [{"thread": thread}] * len(names))
                mine.update(zip(names, matrices, strict=True))
            else:
                store.delete(names)
                mine = {name: matrix for name, matrix in mine.items() if name not in names}
            expected = brute_force(mine, ONE, 5)
            assert found(store, ONE, 5, filter={"thread": thread}) == expected
        return mine

    with ThreadPoolExecutor(threads) as pool:
        parts = [pool.submit(work, thread) for thread in range(threads)]
        return store, {name: matrix for part in parts for name, matrix in part.result().items()}


def check_end(store: MemoryStore, expected: dict[str, torch.Tensor]) -> None:
    assert {document.id for document in store.iter_documents()} == expected.keys()
    queries = dyadic(5, 3, 2)
    assert found(store, queries, 50) == brute_force(expected, queries, 50)


def test_eight_threads_leave_what_they_should() -> None:
    check_end(*soak(3, threads=8))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see memory")
def test_minutes_of_it_leave_memory_flat() -> None:
    check_end(*soak(20, threads=8))
    before = resident_bytes()
    check_end(*soak(180, threads=8))
    assert resident_bytes() - before < 20_000_000


def repeat_until(done: threading.Event, call: Callable[[], object]) -> int:
    count = 0
    while not done.is_set():
        call()
        count += 1
    return count


def test_saving_while_others_write_keeps_a_whole_state(tmp_path: Path) -> None:
    store, done = MemoryStore(), threading.Event()
    ids = [f"d{number}" for number in range(10)]

    def write() -> None:
        value = random.randrange(100)
        vectors = TokenEmbeddings.from_list([torch.full((3, DIM), value / 8)] * 10)
        store.upsert(ids, vectors, None, [{"v": value}] * 10)

    write()
    with ThreadPoolExecutor() as pool:
        writer = pool.submit(repeat_until, done, write)
        try:
            for _ in range(15):
                store.save(tmp_path)
                loaded = list(MemoryStore.load(tmp_path).iter_documents())
                assert len(loaded) == 10
                assert len({document.metadata["v"] for document in loaded}) == 1
        finally:
            done.set()
        assert writer.result() > 0


def test_rows_are_on_a_gpu_before_readers_on_other_streams_know_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU(PackedRows):
        @property
        def device(self) -> torch.device:
            return torch.device("cuda", 1)  # played: the columns are here

    layout, waited = Layout(4), list[tuple[torch.device, int]]()
    rows = OnGPU(layout, layout.empty(8, "cpu"))

    def stream(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: waited.append((device, len(rows))))

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    rows.write(layout.encode(TokenEmbeddings.from_list([torch.ones(2, 4)])), [2])
    assert waited == [(torch.device("cuda", 1), 0)]
    assert rows.lengths == [2]
