"""The way to a server, or to Qdrant's local mode: requests one after another, tried again where that can help.

What a store does is written once, as a generator that yields requests and is sent the answers. ``run`` drives it with
the client, ``arun`` with the async one.
"""

from __future__ import annotations

import asyncio
import random
import threading
from asyncio import sleep as asleep
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from os import getpid
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from qdrant_client import AsyncQdrantClient, QdrantClient

from ..cancellation import current_cancellation
from ..errors import StoreError, StoreServerError
from .clients import UNUSABLE, check_proxies
from .failures import Failure, failure_of, finished

__all__ = ["Connection", "Request", "Steps", "ask"]

T = TypeVar("T")
C = TypeVar("C", QdrantClient, AsyncQdrantClient)

# Seconds before the first further try; doubled for each, up to the second number, and cut by a random part of it, so
# that clients that failed together don't come back together.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 20.0
# A server may ask for more patience than is reasonable.
_LONGEST_WAIT = 60.0


class Request(NamedTuple):
    """A call of Qdrant's client.

    Attributes:
        method: What is called.
        arguments: Its arguments beside the collection.
        several: Whether it can be made in parts.
    """

    method: str
    arguments: dict[str, Any]
    several: bool = False


Steps: TypeAlias = Generator[Request, Any, T]
"""Requests whose answers are sent back, and what comes of them."""


def ask(method: str, **arguments: Any) -> Steps[Any]:
    """Make one request.

    Args:
        method: Of Qdrant's client.
        **arguments: Its arguments beside the collection.

    Returns:
        The answer.
    """
    return (yield Request(method, arguments))


@dataclass(frozen=True)
class _Open:
    """What one process has open, which a process that is forked from it must not use.

    Attributes:
        process: Whose it is.
        client: The client.
        owned: Whether the client is closed with the connection.
        lock: Held while local mode or ``loops`` is used; of the client, which several stores may use.
        loops: Async clients that were made for event loops.
    """

    process: int
    client: QdrantClient
    owned: bool
    lock: threading.RLock
    loops: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncQdrantClient] = field(default_factory=WeakKeyDictionary)


# By process too: that of a fork's parent may be held by a thread which is not there.
_LOCKS: WeakKeyDictionary[QdrantClient, dict[int, threading.RLock]] = WeakKeyDictionary()


def _lock_of(client: QdrantClient, process: int) -> threading.RLock:
    return _LOCKS.setdefault(client, {}).setdefault(process, threading.RLock())


@dataclass
class Connection:
    """A client, and how it is used.

    In a forked process the same sockets would bring it the answers to its parent's requests, so it makes another
    client of the same arguments there; local mode has no sockets, and goes on with a copy of what it holds.

    Attributes:
        first: The client of the process that made this.
        collection: The collection that all requests are about.
        retries: How often a request is tried again.
        given: An async client that was given, used as it is.
        owned: Whether the client is closed with this.
    """

    first: QdrantClient
    collection: str
    retries: int
    given: AsyncQdrantClient | None = None
    owned: bool = False
    _open: _Open = field(init=False)

    def __post_init__(self) -> None:
        process = getpid()
        self._open = _Open(process, self.first, self.owned, _lock_of(self.first, process))

    @property
    def client(self) -> QdrantClient:
        """The client of this process."""
        return self._opened().client

    @property
    def local(self) -> bool:
        """Whether this is Qdrant's local mode, in this process."""
        options = self.first.init_options
        return options.get("location") == ":memory:" or options.get("path") is not None

    @property
    def binary(self) -> bool:
        """Whether requests are gRPC's."""
        return bool(self.first.init_options.get("prefer_grpc")) and not self.local

    @property
    def place(self) -> str:
        """Where it leads, for people; no secrets."""
        options = self.first.init_options
        if self.local:
            return str(options.get("path") or ":memory:")
        named = (options.get(name) for name in ("url", "location", "host"))
        return next((str(name).rpartition("@")[2] for name in named if name), "localhost")

    @property
    def name(self) -> str:
        """The collection, for people."""
        return f"the collection {self.collection!r} at {self.place}"

    def run(self, steps: Steps[T]) -> T:
        """Send requests one after another.

        Args:
            steps: The requests.

        Returns:
            What comes of them.

        Raises:
            StoreServerError: If a request fails for good, and the steps can't go on without it.
            CancelledError: If the async caller for whom this runs was cancelled; the steps end where they are.
        """
        answer, failure = None, None
        try:
            while True:
                request = steps.send(answer) if failure is None else steps.throw(failure)
                try:
                    answer, failure = self._answer(request), None
                except StoreServerError as error:
                    answer, failure = None, error
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def arun(self, steps: Steps[T]) -> T:
        """Do what ``run`` does with an async client; see there. Not for local mode, which never waits."""
        answer, failure = None, None
        try:
            while True:
                request = steps.send(answer) if failure is None else steps.throw(failure)
                try:
                    answer, failure = await self._aanswer(request), None
                except StoreServerError as error:
                    answer, failure = None, error
        except StopIteration as stop:
            result: T = stop.value
            return result

    def close(self) -> None:
        """Close the client, if it is ours; in a forked process, what that has opened itself."""
        if self._open.process == getpid():
            self._open.loops.clear()
            if self._open.owned:
                self._open.client.close()

    async def aclose(self) -> None:
        """Close the async client of this event loop too."""
        made = self._opened().loops.pop(asyncio.get_running_loop(), None)
        if made is not None:
            await made.close()

    def _answer(self, request: Request) -> Any:
        here, cancellation, failed = self._opened(), current_cancellation(), list[Failure]()
        for pause in self._pauses():
            cancellation.check()
            try:
                # Local mode is not made for threads.
                with here.lock if self.local else nullcontext():
                    call = getattr(here.client, request.method)
                    return finished(call(collection_name=self.collection, **request.arguments))
            except Exception as error:
                cancellation.sleep(self._wait(error, request, failed, pause))
        raise AssertionError("the last try raises")

    async def _aanswer(self, request: Request) -> Any:
        client, failed = self._async_client(), list[Failure]()
        for pause in self._pauses():
            try:
                call = getattr(client, request.method)
                return finished(await call(collection_name=self.collection, **request.arguments))
            except asyncio.CancelledError as error:
                if self._was_closed(client):
                    raise StoreError(f"{request.method} of {self.name}: the store was closed meanwhile") from error
                raise
            except Exception as error:
                await asleep(self._wait(error, request, failed, pause))
        raise AssertionError("the last try raises")

    def _was_closed(self, client: AsyncQdrantClient) -> bool:
        """Whether ``aclose`` has closed a client, upon which gRPC ends its calls as if their tasks were cancelled."""
        return client is not self.given and self._open.loops.get(asyncio.get_running_loop()) is not client

    def _pauses(self) -> Iterator[float | None]:
        """Seconds to wait after each try that fails; None after the last."""
        for number in range(self.retries):
            yield min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number) * random.uniform(0.5, 1)
        yield None

    def _wait(self, error: Exception, request: Request, failed: list[Failure], pause: float | None) -> float:
        """Seconds to wait before a request that failed, as it has before, is tried again, or else an error."""
        found = failure_of(error, f"{request.method} of {self.name}", several=request.several)
        if found is None:
            raise error
        failed.append(found)
        if pause is None or not found.again:
            # What one answer says of what was done is worth nothing where an earlier one was lost.
            found.error.unsure = any(each.unsure for each in failed)
            raise found.error from error
        return max(pause, min(found.wait, _LONGEST_WAIT))

    def _opened(self) -> _Open:
        """What this process has open."""
        here, process = self._open, getpid()
        if here.process != process:
            # The first client stays referred to: if it ended here, it would close what its own process uses.
            client = self.first if self.local else _like(self.first, QdrantClient)
            # In one assignment: of two threads that come here at once, each has a client that works. A folder stays
            # open, since closing it would give its lock away for its own process too.
            here = self._open = _Open(process, client, not self.local, _lock_of(client, process))
        return here

    def _async_client(self) -> AsyncQdrantClient:
        """The async client; of our own one for each event loop, since connections belong to one."""
        here = self._opened()
        if self.given is not None and here.client is self.first:
            return self.given
        loop = asyncio.get_running_loop()
        with here.lock:
            # A client's connections refer to their loop, so that one that has ended would never be forgotten.
            for ended in [other for other in here.loops if other.is_closed()]:
                del here.loops[ended]
            if loop not in here.loops:
                here.loops[loop] = _like(self.given or self.first, AsyncQdrantClient)
            return here.loops[loop]


def _like(client: QdrantClient | AsyncQdrantClient, kind: type[C]) -> C:
    """Another client like this one; its check of versions would ask the server at once."""
    options = {**client.init_options, "check_compatibility": False}
    # The first one has written its own name among these, and another would warn of it.
    options["grpc_options"] = {
        name: value for name, value in (options.get("grpc_options") or {}).items() if name != "grpc.primary_user_agent"
    }
    try:
        return kind(**options)
    except UNUSABLE:
        check_proxies()  # the environment may have changed since the other one was made
        raise
