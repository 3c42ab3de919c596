"""Adds to an index and saves it for ever, in child after child, each killed at a random moment; then looks at it.

Moments are counted in states, not in seconds: on a busy machine a child might get nowhere before its end.

A script of its own: children are forked from a process that has loaded torch but never used a thread of it.
``python killed.py FOLDER KILLS SEED`` prints the number of the state found after each kill.

State n: documents d0 .. d{n % 7 + 5}, all of whose vectors and metadata say n.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.index import memory

DIM = 8


def state_of(store: MemoryStore) -> int:
    """The number of the state that a store is in; fails where it is in none, or in two."""
    documents = list(store.iter_documents())
    numbers = {document.metadata["n"] for document in documents}
    assert len(numbers) == 1, f"documents of several states: {numbers}"
    number: int = numbers.pop()
    assert {document.id for document in documents} == {f"d{i}" for i in range(number % 7 + 5)}, f"state {number}"
    for document in documents:
        assert document.embeddings is not None
        assert (document.embeddings == number % 1000).all(), f"vectors of {document.id}"
    hits = store.search(TokenEmbeddings.from_list([torch.ones(1, DIM)]), 100)[0]
    assert [hit.score for hit in hits] == [DIM * (number % 1000)] * len(documents)
    return number


def advance(store: MemoryStore, number: int) -> None:
    """Bring a store from any state into this one."""
    ids = [f"d{i}" for i in range(number % 7 + 5)]
    vectors = TokenEmbeddings.from_list([torch.full((i + 1, DIM), float(number % 1000)) for i in range(len(ids))])
    store.upsert(ids, vectors, ids, [{"n": number}] * len(ids))
    store.delete([f"d{i}" for i in range(len(ids), 12)])


def work(folder: Path, number: int, told: int) -> None:
    """Save state after state, until somebody ends it; tell of each that begins."""
    store = MemoryStore.load(folder)
    while True:
        number += 1
        os.write(told, b".")
        advance(store, number)
        store.save(folder)


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill, look, and go on from there."""
    torch.set_num_threads(1)
    memory._FEWEST_ROWS = memory._MOST_ROWS = 16  # several segments
    moments = random.Random(seed)
    store = MemoryStore()
    start = time.monotonic()
    advance(store, 1)
    store.save(folder)
    took = time.monotonic() - start
    number = 1
    for _ in range(kills):
        heard, told = os.pipe()
        child = os.fork()
        if not child:
            work(folder, number, told)
        os.close(told)
        for _ in range(moments.randrange(1, 5)):
            os.read(heard, 1)
        time.sleep(moments.uniform(0.0, took))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "a child ended by itself"
        os.close(heard)
        found = state_of(MemoryStore.load(folder))
        assert found >= number, f"state {found} after {number}"
        number = found
        sys.stdout.write(f"{number}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
