"""Where segments get their memory: a budget that comes back.

The device is played by "meta", which holds nothing.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from colbert_integrations.errors import InputError
from colbert_integrations.index import MemoryStore
from colbert_integrations.index.allocator import SegmentAllocator
from colbert_integrations.index.layout import Layout
from colbert_integrations.index.segment import Segment
from stores import units

DEVICE = torch.device("meta")
HALVES = Layout(8)  # 16 bytes a token


def place(segment: Segment) -> str:
    return segment.device.type


def test_a_budget_comes_back_when_the_last_reader_is_gone() -> None:
    allocator = SegmentAllocator(DEVICE, 3000)
    first, second = allocator.segment(HALVES, 100), allocator.segment(HALVES, 100)
    assert (place(first), place(second)) == ("meta", "cpu")
    reader = first
    del first
    gc.collect()
    assert place(allocator.segment(HALVES, 100)) == "cpu"
    del reader
    gc.collect()
    assert place(allocator.segment(HALVES, 100)) == "meta"


@pytest.mark.parametrize(("nbits", "originals"), [(None, False), (8, False), (8, True), (4, False), (2, True)])
def test_a_budget_counts_all_that_is_taken(nbits: Any, originals: bool) -> None:
    layout = Layout(8, nbits=nbits, keep_originals=originals)
    taken = sum(tensor.numel() * tensor.element_size() for tensor in layout.empty(100, "cpu").values())
    assert layout.bytes_of(100) == taken
    assert place(SegmentAllocator(DEVICE, taken).segment(layout, 100)) == "meta"
    assert place(SegmentAllocator(DEVICE, taken - 1).segment(layout, 100)) == "cpu"


def test_without_a_budget_all_is_taken() -> None:
    allocator = SegmentAllocator(DEVICE, None)
    segments = [allocator.segment(HALVES, 10**9) for _ in range(3)]
    assert [place(segment) for segment in segments] == ["meta"] * 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_memory_that_is_not_there_costs_no_budget(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    allocator, empty = SegmentAllocator(DEVICE, 2000), Layout.empty

    def full(layout: Layout, rows: int, device: torch.device | str, **options: Any) -> dict[str, torch.Tensor]:
        if device == DEVICE:
            raise error
        return empty(layout, rows, device, **options)

    monkeypatch.setattr(Layout, "empty", full)
    if isinstance(error, torch.OutOfMemoryError):  # others took it
        assert place(allocator.segment(HALVES, 100)) == "cpu"
    else:
        with pytest.raises(KeyboardInterrupt):
            allocator.segment(HALVES, 100)
    monkeypatch.setattr(Layout, "empty", empty)
    assert place(allocator.segment(HALVES, 100)) == "meta"


def test_an_index_that_is_written_again_and_again_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    store, fitted, take = MemoryStore(device_bytes=6 * 2**20), list[bool](), SegmentAllocator._take

    def noted(allocator: SegmentAllocator, count: int) -> bool:
        fitted.append(take(allocator, count))
        return fitted[-1]

    monkeypatch.setattr(SegmentAllocator, "_take", noted)
    documents = units(0, *[40] * 100, dim=64)
    for _ in range(40):
        store.upsert([f"d{number}" for number in range(100)], documents)
    assert store.count() == 100
    assert len(fitted) > 10
    assert all(fitted)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="device='nonsense' can't be used on this machine"):
        MemoryStore(device="nonsense")
