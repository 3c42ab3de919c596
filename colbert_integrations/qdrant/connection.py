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
from time import sleep
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from qdrant_client import AsyncQdrantClient, QdrantClient

from ..errors import StoreServerError
from .failures import failure_of

__all__ = ["Connection", "Request", "Steps", "ask"]

T = TypeVar("T")

# Seconds before the first further try; doubled for each, up to the second number, and cut by a random part of it, so
# that clients that failed together don't come back together.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 20.0
# A server may ask for more patience than is reasonable.
_LONGEST_WAIT = 60.0


class Request(NamedTuple):
    """A call of Qdrant's client: the method, and its arguments beside the collection."""

    method: str
    arguments: dict[str, Any]


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


@dataclass
class Connection:
    """A client, and how it is used.

    Attributes:
        client: The client.
        collection: The collection that all requests are about.
        retries: How often a request is tried again.
        given: An async client that was given, used as it is.
        owned: Whether the clients are closed with this.
    """

    client: QdrantClient
    collection: str
    retries: int
    given: AsyncQdrantClient | None = None
    owned: bool = False
    _made: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncQdrantClient] = field(default_factory=WeakKeyDictionary)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def local(self) -> bool:
        """Whether this is Qdrant's local mode, in this process."""
        options = self.client.init_options
        return options.get("location") == ":memory:" or options.get("path") is not None

    @property
    def binary(self) -> bool:
        """Whether requests are gRPC's."""
        return bool(self.client.init_options.get("prefer_grpc")) and not self.local

    @property
    def place(self) -> str:
        """Where it leads, for people; no secrets."""
        options = self.client.init_options
        if self.local:
            return str(options.get("path") or ":memory:")
        named = (options.get(name) for name in ("url", "location", "host"))
        return next((str(name).rpartition("@")[2] for name in named if name), "localhost")

    def run(self, steps: Steps[T]) -> T:
        """Send requests one after another.

        Args:
            steps: The requests.

        Returns:
            What comes of them.

        Raises:
            StoreServerError: If a request fails for good, and the steps can't go on without it.
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
        """Close the client, if it is ours."""
        self._made.clear()
        if self.owned:
            self.client.close()

    async def aclose(self) -> None:
        """Close the async client of this event loop too."""
        made = self._made.pop(asyncio.get_running_loop(), None)
        if made is not None:
            await made.close()

    def _answer(self, request: Request) -> Any:
        for pause in self._pauses():
            try:
                # Local mode is not made for threads.
                with self._lock if self.local else nullcontext():
                    call = getattr(self.client, request.method)
                    return call(collection_name=self.collection, **request.arguments)
            except Exception as error:
                sleep(self._wait(error, request, pause))
        raise AssertionError("the last try raises")

    async def _aanswer(self, request: Request) -> Any:
        client = self._async_client()
        for pause in self._pauses():
            try:
                return await getattr(client, request.method)(collection_name=self.collection, **request.arguments)
            except Exception as error:
                await asleep(self._wait(error, request, pause))
        raise AssertionError("the last try raises")

    def _pauses(self) -> Iterator[float | None]:
        """Seconds to wait after each try that fails; None after the last."""
        for number in range(self.retries):
            yield min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number) * random.uniform(0.5, 1)
        yield None

    def _wait(self, error: Exception, request: Request, pause: float | None) -> float:
        """Seconds to wait before a request that failed is tried again, or else an error."""
        found = failure_of(error, f"{request.method} of the collection {self.collection!r} at {self.place}")
        if found is None:
            raise error
        if pause is None or not found.again:
            raise found.error from error
        return max(pause, min(found.wait, _LONGEST_WAIT))

    def _async_client(self) -> AsyncQdrantClient:
        """The async client; of our own one for each event loop, since connections belong to one."""
        if self.given is not None:
            return self.given
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._made:
                self._made[loop] = AsyncQdrantClient(**{**self.client.init_options, "check_compatibility": False})
            return self._made[loop]
