"""Cancellation: work in a thread learns that the async caller for whom it runs has gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

__all__ = ["Cancellation", "cancellable", "current_cancellation"]


class Cancellation:
    """Tells a thread when nobody waits any more for what it does.

    Attributes:
        cancelled: Whether nobody does.
        wakers: Called as soon as nobody does.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self.wakers: set[Callable[[], None]] = set()

    def cancel(self) -> None:
        """Say that nobody waits any more; from any thread."""
        self.cancelled = True  # first: who adds a waker after the loop below looks here before it sleeps
        for wake in tuple(self.wakers):
            wake()

    def check(self) -> None:
        """Go on only if somebody waits.

        Raises:
            CancelledError: If nobody does.
        """
        if self.cancelled:
            raise asyncio.CancelledError

    def sleep(self, seconds: float) -> None:
        """Sleep as long as somebody waits.

        Args:
            seconds: How long.

        Raises:
            CancelledError: As soon as nobody does.
        """
        woken = threading.Event()
        self.wakers.add(woken.set)
        try:
            self.check()
            woken.wait(seconds)
        finally:
            self.wakers.discard(woken.set)
        self.check()


# A context variable, since between an async caller and the work lie functions of others, in another thread.
_CANCELLATION: ContextVar[Cancellation | None] = ContextVar("_CANCELLATION", default=None)


@contextmanager
def cancellable() -> Iterator[None]:
    """While the body runs, work started in a copy of its context is dropped as soon as the body is cancelled.

    Yields:
        Nothing.
    """
    cancellation = Cancellation()
    before = _CANCELLATION.set(cancellation)
    try:
        yield
    except BaseException:
        cancellation.cancel()
        raise
    finally:
        with suppress(ValueError):  # a coroutine that is destroyed ends in another context
            _CANCELLATION.reset(before)


def current_cancellation() -> Cancellation:
    """The cancellation of the caller for whom this thread works; without such a caller, one that never comes."""
    return _CANCELLATION.get() or Cancellation()
