"""The client of a location: a server, Qdrant's local mode, or one that was made already."""

from __future__ import annotations

import os
import re
from typing import Any

import httpx
from qdrant_client import QdrantClient

from ..checks import check_sendable, check_timeout
from ..errors import InputError, StoreError

__all__ = ["UNUSABLE", "check_proxies", "client_of"]

UNUSABLE = (ImportError, ValueError, httpx.InvalidURL)
"""What making a client of a server raises where the environment names a proxy that can't be used."""

_TIMEOUT_S = 60
# gRPC's own waits grow to two minutes, and until one is over every request fails at once: after an outage of 75 seconds
# a store was down for 46 more.
_RECONNECT = {
    "grpc.initial_reconnect_backoff_ms": 250,
    "grpc.min_reconnect_backoff_ms": 250,
    "grpc.max_reconnect_backoff_ms": 2000,
}
# What names a server, and as a folder would be a surprise.
_HOST = re.compile(r"[\w.-]+:\d+|localhost", re.IGNORECASE)
_BROKEN_URL = re.compile(r"(https?):(?!//)", re.IGNORECASE)


def client_of(
    location: str | os.PathLike[str] | QdrantClient, api_key: str | None, timeout: float | None, prefer_grpc: bool
) -> tuple[QdrantClient, bool]:
    """Make a client, or take the one that is given; nothing is asked of a server.

    Args:
        location: URL of a server, ``":memory:"``, a folder, or a client.
        api_key: Of the server.
        timeout: Seconds to wait for a server that says nothing. None: 60.
        prefer_grpc: Whether requests go by gRPC.

    Returns:
        The client, and whether it was made here, to be closed here.

    Raises:
        InputError: If the location is not one, a client is given with what it has already, a key can't be sent, or the
            environment names a proxy that can't be used.
        StoreError: If a folder can't be used, or a URL not be read.
    """
    if isinstance(location, QdrantClient):
        if api_key is not None or timeout is not None or prefer_grpc:
            raise InputError("a client has its api_key, timeout and prefer_grpc already: make it with them")
        _check_key(location.init_options.get("api_key"))
        return location, False
    text = _text_of(location)
    _check_key(api_key)
    if timeout is not None:
        check_timeout(timeout)
    try:
        if text == ":memory:":
            return QdrantClient(":memory:"), True
        if "://" not in text:
            return QdrantClient(path=text, force_disable_check_same_thread=True), True
        seconds: Any = _TIMEOUT_S if timeout is None else timeout  # the client rounds up
        # Its check of versions would ask the server at once, and only warn.
        client = QdrantClient(
            url=text,
            api_key=api_key,
            timeout=seconds,
            prefer_grpc=prefer_grpc,
            grpc_options=dict(_RECONNECT),
            check_compatibility=False,
        )
        return client, True
    except (*UNUSABLE, RuntimeError, OSError) as error:
        if "://" in text:
            check_proxies()
        if "://" in text and "@" in text:  # the client's own error would show the password
            raise StoreError(f"{text.rpartition('@')[2]!r} can't be opened: it is not the URL of a server") from None
        raise StoreError(f"{text!r} can't be opened: {error}") from error


def check_proxies() -> None:
    """Refuse what the environment says of proxies, if no client can use it: one of a server reads it as it is made."""
    try:
        httpx.Client(verify=False).close()  # reads the same settings, and no URL
    except UNUSABLE as error:
        raise InputError(f"the proxy settings of the environment can't be used: {error}") from error


def _text_of(location: str | os.PathLike[str]) -> str:
    """A location as text, if it can be one."""
    if not isinstance(location, (str, os.PathLike)):
        raise InputError(
            f"location must be a URL, ':memory:', a folder or a QdrantClient, not {type(location).__name__}"
        )
    text = os.fspath(location)
    if broken := _BROKEN_URL.match(text):
        # Not said again: it may hold a secret.
        raise InputError(
            f"location must be a URL, ':memory:', a folder or a client: a URL begins with '{broken[1]}://'"
        )
    if "://" in text and any(mark in text for mark in "?#"):
        # Not said again: it may be a secret.
        raise InputError("the URL of a server has no query or fragment (no '?' or '#'): pass a key as api_key=")
    if _HOST.fullmatch(text):
        raise InputError(f"location must be a URL, ':memory:', a folder or a client: write 'http://{text}'")
    return text


def _check_key(api_key: object) -> None:
    if api_key is not None:  # sent as it is, it would look like an outage
        check_sendable("api_key (or QDRANT_API_KEY)", api_key)
