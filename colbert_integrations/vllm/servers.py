"""Servers: which of several gets the next request, and what happens when one fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import httpx

from ..errors import InputError, RemoteError, RemoteMismatchError, RemoteUnavailableError
from .settings import ServerSettings
from .wire import TOO_MANY_REQUESTS, Failure, read_answer

__all__ = ["Server", "Servers", "open_client"]

T = TypeVar("T")

# A server that can be reached takes a connection within this.
_CONNECT_S = 5.0
# A connection without a request is kept for less than the 5 seconds that the server keeps it, which would otherwise
# close it just as the next request is on its way.
_IDLE_S = 2.0
# The pause after the first failure; each further failure doubles it, up to the longest.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# Who asks a server that fails within this loses little, and another one is asked; beyond it the server hangs.
_QUICK_S = 1.0


@dataclass(eq=False)
class Server:
    """One server, and what has become of requests to it.

    Attributes:
        url: Its root.
        asked: Requests so far.
        under_way: Those that it has not answered yet.
        failures: How often it failed in a row, requests that failed together counted once.
        down_until: Until when others are asked instead.
        hangs: Whether it kept somebody waiting for a failure, and has answered nothing since.
        trial: The copy of a request that finds out whether it still does.
        last_failure: The last one.
        life: Counts up when it may have been started anew, perhaps with another model.
        checked: For each user, the life in which it was found to fit, and whether by its vectors; see ``forward.py``.
        checking: Held by who finds that out.
    """

    url: str
    asked: int = 0
    under_way: int = 0
    failures: int = 0
    down_until: float = 0.0
    hangs: bool = False
    trial: asyncio.Future[None] | None = None
    last_failure: Failure = field(default_factory=lambda: Failure("not asked yet"))
    life: int = 0
    checked: WeakKeyDictionary[Any, tuple[int, bool]] = field(default_factory=WeakKeyDictionary)
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def answered(self) -> None:
        """Take note that it works."""
        self.failures, self.down_until, self.hangs = 0, 0.0, False

    def failed(self, failure: Failure, took: float) -> None:
        """Take note that it does not, and leave it alone for a while; a failure that is known is passed over."""
        if failure is self.last_failure:
            return
        self.last_failure = failure
        self.hangs |= took > _QUICK_S
        self.life += failure.status != TOO_MANY_REQUESTS
        if monotonic() >= self.down_until:  # else it was asked before it was known to be down
            self.failures += 1
            self.down_until = monotonic() + min(_LONGEST_PAUSE_S, max(failure.wait_s, _pause(self.failures)))


class Servers:
    """Sends requests to servers of the same model. Lives in one event loop.

    A request goes to the server with the fewest under way, of those that did not fail lately. Where it fails, another
    server is asked at once; only when none is left it pauses.

    A server that hangs gets no request while others do not, since it would keep that waiting as well. It gets a copy of
    one, again after each pause, until it answers; nobody waits for that.

    Args:
        settings: Which servers, and how they are asked.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._servers = [Server(url) for url in settings.urls]
        self._slots = asyncio.Semaphore(settings.most_requests)
        self._client = open_client(settings)

    async def aclose(self) -> None:
        """Close all connections, and call off what nobody waits for."""
        trials = [server.trial for server in self._servers if server.trial is not None]
        for trial in trials:
            trial.cancel()
        await asyncio.gather(*trials, return_exceptions=True)
        await self._client.aclose()

    async def anywhere(self, exchange: Callable[[Server], Awaitable[T]]) -> T:
        """Run an exchange on one server, and on others while it fails.

        Args:
            exchange: What to do with a server; it raises ``Failure`` where another may do better.

        Returns:
            What it returns.

        Raises:
            RemoteUnavailableError: If no server did it, retries included.
            RemoteMismatchError: If no answer was a vLLM server's.
        """
        async with self._slots:
            most, failures = len(self._servers) + self._settings.retries, list[Failure]()
            for attempt in range(1, most + 1):
                server = self._next(last=attempt == most)
                rest = server.down_until - monotonic()
                if failures and rest > 0:  # it is down, and all others are or hang
                    await asyncio.sleep(min(rest, max(_pause(len(failures)), failures[-1].wait_s)))
                    server = self._next(last=attempt == most)  # one that hung may have answered
                if not server.hangs:
                    self._try_out(exchange)
                try:
                    return await self._with(server, exchange)
                except Failure as failure:
                    failures.append(failure)
        said = ", then ".join(dict.fromkeys(map(str, failures)))  # a server may answer once more before it is gone
        if all(failure.foreign for failure in failures):
            raise RemoteMismatchError(said, server.url, failures[-1].status)
        tried = f"attempt {most} of {most}; servers: {', '.join(self._settings.urls)}"
        raise RemoteUnavailableError(f"{server.url}: {said} ({tried})", server.url, failures[-1].status)

    def _next(self, *, last: bool) -> Server:
        """The one to ask; for the last time also one that hung, which nobody would know to be well again otherwise."""

        def rank(server: Server) -> tuple[bool, float, int, int]:
            down = max(0.0, server.down_until - now)
            return server.hangs and not last, down, server.under_way, server.asked

        now = monotonic()
        return min(self._servers, key=rank)

    def _try_out(self, exchange: Callable[[Server], Awaitable[Any]]) -> None:
        """Begin an exchange on each server that hung and was left alone since, beside the caller's and his slot."""
        for server in self._servers:
            idle = server.trial is None or server.trial.done()
            if server.hangs and idle and monotonic() >= server.down_until:
                server.trial = asyncio.ensure_future(self._trial(server, exchange))

    async def _trial(self, server: Server, exchange: Callable[[Server], Awaitable[Any]]) -> None:
        try:
            await self._with(server, exchange)
        except (Failure, RemoteError):
            pass  # which the server remembers, or tells whoever asks it next
        except Exception as error:  # of this process: whoever sends it here himself meets it again
            server.failed(Failure(f"{server.url}: {error}"), 0.0)

    async def _with(self, server: Server, exchange: Callable[[Server], Awaitable[T]]) -> T:
        began = monotonic()
        server.asked += 1
        server.under_way += 1
        try:
            result = await exchange(server)
        except Failure as failure:
            server.failed(failure, monotonic() - began)
            raise
        except RemoteError:
            server.answered()  # a refusal is an answer
            raise
        finally:
            server.under_way -= 1
        server.answered()
        return result

    async def ask(self, server: Server, path: str, body: Any = None) -> Any:
        """Send one request to one server.

        Args:
            server: Which.
            path: Of what on it.
            body: JSON to post. None: get instead.

        Returns:
            The JSON of the answer.

        Raises:
            Failure: If there was no answer in time, or one that another server or a later time may better.
            RemoteRefusedError: If it refused the request.
        """
        if body is not None and self._settings.model is not None:
            body = {**body, "model": self._settings.model}
        request = self._client.build_request("GET" if body is None else "POST", server.url + path, json=body)
        try:
            # The client's own limit is for each piece of an answer, so one that trickles in would never end.
            response = await asyncio.wait_for(self._client.send(request), self._settings.timeout)
        except (asyncio.TimeoutError, httpx.HTTPError) as error:
            raise Failure(self._reason(error)) from None  # the client's own traceback is long, and says no more
        return read_answer(server.url, path, response)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, httpx.ConnectTimeout):
            return f"no connection within {min(_CONNECT_S, self._settings.timeout):g} s"
        if isinstance(error, (asyncio.TimeoutError, httpx.TimeoutException)):
            return f"no answer within {self._settings.timeout:g} s"
        return str(error) or type(error).__name__


def open_client(settings: ServerSettings) -> httpx.AsyncClient:
    """Make what requests are sent by, as the environment has it at this time; nothing is connected yet.

    Args:
        settings: How servers are asked.

    Returns:
        The client.

    Raises:
        InputError: If the key or the proxies of the environment can't be used.
    """
    headers = settings.headers  # whose error is not one of proxies
    try:
        return httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(settings.timeout, connect=min(_CONNECT_S, settings.timeout)),
            limits=httpx.Limits(keepalive_expiry=_IDLE_S),
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # it reads HTTP_PROXY, ALL_PROXY and their like
        raise InputError(f"the proxy settings of the environment can't be used: {error}") from error


def _pause(failures: int) -> float:
    """Seconds to leave a server alone, varied, so that those who failed together do not come back together."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (failures - 1)) * random.uniform(0.75, 1.25)
