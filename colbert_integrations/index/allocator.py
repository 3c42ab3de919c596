"""SegmentAllocator: memory for a store's segments: on its device while a budget lasts, then pinned on the host."""

from __future__ import annotations

import threading
import weakref
from collections import deque

import torch

from .layout import Layout
from .segment import Segment

__all__ = ["SegmentAllocator"]

# Of a GPU's free memory. The rest is for the model and for what scoring needs.
_SHARE = 0.7


class SegmentAllocator:
    """Memory for segments.

    Args:
        device: Where they belong.
        limit: Maximum of bytes to take there. None: 70% of what is free now on a GPU, else no limit.
    """

    def __init__(self, device: torch.device, limit: int | None) -> None:
        if limit is None and device.type == "cuda":
            limit = int(_SHARE * torch.cuda.mem_get_info(device)[0])
        self._device, self._left = device, limit
        # What segments gave back: put down by whichever thread was the last to need one, in the middle of anything,
        # also of _take; so it must not wait for a lock.
        self._returned = deque[int]()
        self._lock = threading.Lock()

    def segment(self, layout: Layout, rows: int, name: str | None = None) -> Segment:
        """Make an empty segment, whose memory counts until nobody holds the segment any more.

        Args:
            layout: Form of its vectors.
            rows: How many it can hold.
            name: A unique one. None: a new one.

        Returns:
            The segment, on the device or, if the rest of the budget is too small, in the host's pinned memory.
        """
        needed = layout.bytes_of(rows)
        if self._left is None:
            return Segment(layout, layout.empty(rows, self._device), name)
        if not self._take(needed):
            return self._on_host(layout, rows, name)
        try:
            segment = Segment(layout, layout.empty(rows, self._device), name)
        except torch.OutOfMemoryError:  # others have taken it since the budget was made
            self._returned.append(needed)
            return self._on_host(layout, rows, name)
        except BaseException:
            self._returned.append(needed)
            raise
        weakref.finalize(segment, self._returned.append, needed).atexit = False
        return segment

    def _on_host(self, layout: Layout, rows: int, name: str | None) -> Segment:
        return Segment(layout, layout.empty(rows, "cpu", pin=self._device.type == "cuda"), name)

    def _take(self, count: int) -> bool:
        with self._lock:
            left = self._left or 0
            while self._returned:
                left += self._returned.popleft()
            taken = count <= left
            self._left = left - count if taken else left
            return taken
