"""Waiting for what another thread does, but not for ever."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from types import FunctionType

PATIENCE_S = 30


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def until_async(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def is_in(thread: threading.Thread, function: FunctionType) -> bool:
    """Whether a thread runs a function, or waits in what that calls of the interpreter's own."""
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code is function.__code__
