"""What went wrong with a request, in both modes of Qdrant's client: our error, and whether to try again."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import dataclass
from typing import TypeVar

import grpc
import httpx
from qdrant_client import models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ..errors import StoreServerError
from .filters import METADATA

__all__ = ["TOO_LARGE", "Failure", "failure_of", "finished"]

T = TypeVar("T")

TOO_LARGE = 413
"""Status of a request that has more bytes than the server takes: a proxy's; Qdrant itself says it with 400."""

# 408 is the server's own limit of time, after which it may go on nevertheless. 500 is also what a cluster answers while
# one of its nodes is started anew (Qdrant's issue 7031).
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_FORBIDDEN, _TIMEOUT, _SERVERS_FAULT = 403, 408, 500
_NO_ANSWER = "is it up, and does it listen there?"
_TOO_SLOW = "raise timeout= if the server needs longer"
_HELP = {
    401: "the server wants an API key: pass api_key=, or set QDRANT_API_KEY where the store is named by a location",
    403: "the API key may not do this: pass one that may as api_key=",
    404: "the collection is not there any more: make a new store, and add the documents again",
    408: "the server did not get it done in time: it is busy, or the request asks for too much at once",
    409: "something else was made under this name meanwhile",
    413: "the request is larger than the server takes: lower batch_bytes=, or raise its service.max_request_size_mb",
    422: "the server can't read it: it may be older than what this client speaks",
    429: "the server limits how much is asked of it: ask less at once, or raise its limits",
    503: _NO_ANSWER,  # as gRPC also says it
    504: _TOO_SLOW,
}
# What strict mode says of a filter: the key, and the kinds of index of which it wants one.
_UNINDEXED = re.compile(r'Index required but not found for "(.+)" of one of the following types: \[(.*?)\]')
# As payload_indexes= calls them.
_KINDS = {"keyword": "string", "float": "number", "bool": "boolean", "datetime": "date"}
# As REST says the same: what is cut off, broken off or of no kind is there a server's fault.
_STATUS_OF_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.CANCELLED: 500,
    grpc.StatusCode.ABORTED: 500,
    grpc.StatusCode.FAILED_PRECONDITION: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# What Qdrant says of it, with status 400. gRPC has no status for it: what a server says, what one in Rust says, and a
# proxy's own answer.
_TOO_LARGE = re.compile(
    r"larger than allowed \(limit|payload has exceeded limit|"
    "message larger than max|message length too large|http2 header with status: 413"
)
# What REST says with 403, and gRPC with the code of what REST says with 500.
_LOCKED = "Storage locked"
# Said by gRPC here, with a code of servers, where the store was closed while it waited.
_CLOSED = "Channel closed"
_SHOWN = 300


class _Unfinished(Exception):
    """A change was taken, but has not been made in the time for which the server waits."""


def finished(answer: T) -> T:
    """Take an answer, unless it says that a change is not made yet.

    Args:
        answer: What came from Qdrant's client.

    Returns:
        The same.

    Raises:
        _Unfinished: If it says so.
    """
    for one in answer if isinstance(answer, list) else [answer]:
        # By its text: earlier clients have no name for it.
        if isinstance(one, models.UpdateResult) and one.status == "wait_timeout":
            raise _Unfinished("the change is waited for no longer (wait_timeout)")
    return answer


@dataclass(frozen=True)
class Failure:
    """What went wrong.

    Attributes:
        error: What to raise.
        again: Whether the same request may succeed later. All that a store asks can be asked twice.
        wait: Seconds that the server wants us to wait before that.
    """

    error: StoreServerError
    again: bool = False
    wait: float = 0

    @property
    def unsure(self) -> bool:
        """Whether the server may have done what was asked, or may still do it."""
        status = self.error.status
        return status is None or status == _TIMEOUT or status >= _SERVERS_FAULT


def failure_of(error: Exception, asked: str, *, several: bool = False) -> Failure | None:
    """Read an exception of Qdrant's client.

    Args:
        error: The exception.
        asked: What was asked of whom, for the message.
        several: Whether it can be asked in parts.

    Returns:
        What went wrong; None if this is no exception of the client's, but a mistake of ours.
    """
    if isinstance(error, _Unfinished):
        return _refused(asked, _TIMEOUT, str(error))
    if isinstance(error, UnexpectedResponse):
        return _refused(asked, error.status_code, _said(error.content), _seconds(error.headers.get("retry-after")))
    if isinstance(error, ResourceExhaustedResponse):
        return _refused(asked, 429, error.message, error.retry_after_s)
    if isinstance(error, QdrantException):
        # The client can't read a Retry-After that is a date or has a fraction, and says no more than that.
        return _refused(asked, 429, str(error))
    if isinstance(error, ResponseHandlingException):
        return _not_answered(asked, error.source, several)
    if isinstance(error, grpc.RpcError):
        # Whether by the sync or the async client, an answer has a code; RpcError itself does not say so.
        code, details = (getattr(error, name, str)() for name in ("code", "details"))
        said = str(details or error)
        if _CLOSED in said:
            return _refused(asked, None, said)
        return _refused(asked, _FORBIDDEN if _LOCKED in said else _STATUS_OF_CODE.get(code), said)
    if isinstance(error, (json.JSONDecodeError, AssertionError)):  # the client asserts what an answer holds
        return Failure(StoreServerError(f"{asked} got an answer that is not Qdrant's: is it a proxy's page? ({error})"))
    # The client's local mode, which does what a server does without saying a status.
    if isinstance(error, (ValueError, KeyError, RuntimeError, OSError, sqlite3.Error)):
        return Failure(StoreServerError(f"{asked} failed: {error}"))
    return None


def _refused(asked: str, status: int | None, said: str, wait: float = 0) -> Failure:
    status = TOO_LARGE if _TOO_LARGE.search(said) else status
    refused = "refused" if status is None else f"refused with status {status}"
    text = "; ".join(part for part in (said[:_SHOWN].rstrip("."), _help(status, said)) if part)
    return Failure(StoreServerError(f"{asked} was {refused}: {text}", status), status in _AGAIN, wait)


def _help(status: int | None, said: str) -> str:
    """What would help."""
    if (unindexed := _UNINDEXED.search(said)) is not None:
        return _to_index(*unindexed.groups())
    if _LOCKED in said:
        return "somebody has locked the server against changes: unlock it there"
    return _HELP.get(status or 0, "")


def _to_index(path: str, kinds: str) -> str:
    """How to make the index that a filter needs in strict mode."""
    key = path.removeprefix(f"{METADATA}.").replace('"', "")
    if key == path:  # one of this package's own
        return (
            "the collection was made without that index: copy it into a new one with copy_from, or call "
            f"store.client.create_payload_index(store.collection, {path!r}, 'keyword')"
        )
    fitting = " or ".join(repr(ours) for theirs, ours in _KINDS.items() if theirs in kinds.split(", "))
    way_out = f"make the store with payload_indexes={{{key!r}: {fitting}}}"
    return f"its strict mode takes filters on indexed keys only: {way_out}"


def _not_answered(asked: str, source: Exception, several: bool) -> Failure:
    if several and isinstance(source, httpx.WriteTimeout):
        # Who refuses a request for its length need not read it, and then its answer is never looked at.
        return Failure(StoreServerError(f"{asked}: not taken in time ({source})", TOO_LARGE))
    helps = _TOO_SLOW if isinstance(source, httpx.TimeoutException) else _NO_ANSWER
    # What is no fault of the connection is an answer that the client can't read, and won't be able to.
    again = isinstance(source, httpx.TransportError)
    said = f"{type(source).__name__}: {source}"[:_SHOWN]
    return Failure(StoreServerError(f"{asked}: no answer ({said}); {helps}" if again else f"{asked}: {said}"), again)


def _seconds(said: str | None) -> float:
    """What a Retry-After says; a date, which the header may hold as well, counts as none."""
    try:
        return max(0.0, float(said or 0))
    except ValueError:
        return 0.0


def _said(content: bytes) -> str:
    """The server's own words, which its JSON has as ``status.error``."""
    try:
        found = json.loads(content)["status"]["error"]
    except (ValueError, KeyError, TypeError):
        found = content.decode("utf-8", "replace")
    return str(found).strip()
