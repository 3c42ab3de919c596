"""Interrupts at any line of a write: a document is as it was before or after, and the next write is right too."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch

from colbert_integrations import MemoryStore, TokenEmbeddings

BASE = [f"d{number}" for number in range(10)]


def put(store: MemoryStore, names: list[str]) -> None:
    """Store documents that say in each part who they are."""
    vectors = [torch.full((1 + int(name[1:]) % 3, 4), int(name[1:]) / 8) for name in names]
    notes = [{"n": name} for name in names]
    store.upsert(names, TokenEmbeddings.from_list(vectors), [f"text of {name}" for name in names], notes)


def check(store: MemoryStore) -> None:
    documents = {document.id: document for document in store.iter_documents()}
    assert store.count() == len(list(store.iter_documents())) == len(documents)
    assert {document.id for document in store.get([f"d{number}" for number in range(30)])} == documents.keys()
    for name, document in documents.items():
        assert (document.text, document.metadata) == (f"text of {name}", {"n": name})
        assert document.embeddings is not None
        assert (document.embeddings == int(name[1:]) / 8).all()


def interrupted_at(line: int, work: Callable[[], Any]) -> bool:
    """Do something, but for an interrupt at so many lines of ours; whether there were as many."""
    passed = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal passed
        if "colbert_integrations" not in frame.f_code.co_filename:
            return None
        passed += event == "line"
        # Between taking a lock and its block Python itself can lose one.
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and passed >= line and not text.startswith("with "):
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


WRITES: dict[str, Callable[[MemoryStore], None]] = {
    "upsert": lambda store: put(store, [f"d{number}" for number in range(8, 14)]),
    "delete one": lambda store: store.delete(["d0"]),
    "delete many": lambda store: store.delete(["d0", "d1", "d2", "d3", "d4"]),
    "set_metadata": lambda store: store.set_metadata(["d1", "d2"], [{"n": "d1"}, {"n": "d2"}]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_an_interrupted_write_is_done_or_not(write: Callable[[MemoryStore], None]) -> None:
    line = 1
    while True:
        store = MemoryStore("float32")
        put(store, BASE)
        if not interrupted_at(line, lambda store=store: write(store)):  # type: ignore[misc]
            break
        check(store)
        put(store, [f"d{number}" for number in range(20, 24)])
        check(store)
        put(store, BASE)
        store.delete(["d3"])
        check(store)
        line += 1
    assert line > 20
