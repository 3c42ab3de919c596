"""Link: an event loop in a thread of its own, and the connections that live in it.

Requests are coroutines, so that one which nobody waits for any more is cut off, and many can be under way without a
thread for each.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from .servers import Servers

__all__ = ["Link"]


T = TypeVar("T")

# What a thread without requests may take to close its connections.
_CLOSING_S = 1.0


class Link:
    """Runs coroutines that share connections, from any thread. The first one opens it, also after ``close``.

    Args:
        connect: Makes what they share, each time that the link is opened; used in its event loop only.
    """

    def __init__(self, connect: Callable[[], Servers]) -> None:
        self._connect = connect
        # By process: that of a fork's parent may be held by a thread which is not there.
        self._locks: dict[int, threading.Lock] = {}
        self._line: _Line | None = None

    def start(self, job: Callable[[Servers], Coroutine[Any, Any, T]]) -> Future[T]:
        """Start a coroutine.

        Args:
            job: Gets the shared servers, and returns the coroutine to run.

        Returns:
            Its result to come. Cancelling that cancels the coroutine.
        """
        with self._lock():
            # A forked process has a copy of the line, but not its thread.
            if self._line is None or self._line.process != os.getpid():
                self._line = _Line(self._connect())
            return self._line.start(job)

    def close(self) -> None:
        """Close the connections once what runs has ended."""
        line = self._hang_up()
        if line is not None:
            line.wait()

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _hang_up(self) -> _Line | None:
        with self._lock():
            line, self._line = self._line, None
        if line is None or line.process != os.getpid():
            return None
        line.close()
        return line

    def __del__(self) -> None:
        self._hang_up()


class _Line:
    """A thread with its event loop. It knows nothing of its ``Link``, so that a link that is forgotten is closed."""

    def __init__(self, shared: Servers) -> None:
        self.process = os.getpid()
        self._shared = shared
        self._running = set[asyncio.Task[Any]]()
        self._closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="colbert-vllm", daemon=True)
        self._thread.start()

    def start(self, job: Callable[[Servers], Coroutine[Any, Any, T]]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._tracked(job), self._loop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)

    def wait(self) -> None:
        """Wait for its end, unless requests run."""
        if not self._running:
            self._thread.join(_CLOSING_S)

    def _live(self) -> None:
        try:
            self._loop.run_until_complete(self._until_closed())
        finally:
            self._loop.close()

    async def _until_closed(self) -> None:
        await self._closing.wait()
        while self._running:
            await asyncio.wait(self._running)
        await self._shared.aclose()

    async def _tracked(self, job: Callable[[Servers], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await job(self._shared)
        finally:
            self._running.discard(task)
