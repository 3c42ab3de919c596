"""ServerSettings: which servers, and how they are asked, as plain data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import httpx

from ..checks import check_sendable, check_timeout, check_whole_number
from ..errors import InputError

__all__ = ["API_KEY_VARIABLE", "ServerSettings", "roots"]

API_KEY_VARIABLE = "VLLM_API_KEY"
"""The variable that the server itself reads its key from."""

# Requests under way to each server: enough that it has the next one when it ends one.
_REQUESTS_PER_SERVER = 8
_LAST_PORT = 65_535


@dataclass(frozen=True)
class ServerSettings:
    """Which servers, and how they are asked; see ``VLLMForward`` for each of them."""

    urls: tuple[str, ...]
    model: str | None = None
    api_key: str | None = field(default=None, repr=False, compare=False)
    concurrency: int | None = None
    timeout: float = 120.0
    retries: int = 3

    def __post_init__(self) -> None:
        if not self.urls:
            raise InputError("urls must name at least one server, such as 'http://localhost:8000'")
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise InputError(
                f"model must be the name that the servers give it, or None for their only one, not {self.model!r}"
            )
        if self.api_key is not None:
            check_sendable("api_key", self.api_key)
        if self.concurrency is not None:
            check_whole_number("concurrency", self.concurrency)
        check_whole_number("retries", self.retries, least=0)
        check_timeout(self.timeout)

    @property
    def most_requests(self) -> int:
        """Requests under way at most, over all servers."""
        return self.concurrency or _REQUESTS_PER_SERVER * len(self.urls)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries.

        Raises:
            InputError: If the key in the environment can't be sent.
        """
        key = self.api_key or os.environ.get(API_KEY_VARIABLE)
        if not key:
            return {}
        check_sendable(API_KEY_VARIABLE, key)
        return {"Authorization": f"Bearer {key}"}

    def arguments(self) -> dict[str, Any]:
        """The settings by name, without the key."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "api_key"}


def roots(urls: str | Sequence[str]) -> tuple[str, ...]:
    """Roots of one server or of several.

    Args:
        urls: Their URLs.

    Returns:
        The URLs without a slash at the end, each but once.

    Raises:
        InputError: If one can't be used.
    """
    if not isinstance(urls, Iterable):
        raise InputError(f"urls must be the URL of a server or a list of them, not {type(urls).__name__}")
    return tuple(dict.fromkeys(map(_root, [urls] if isinstance(urls, str) else urls)))


def _root(url: object) -> str:
    if not isinstance(url, str):
        raise InputError(f"urls must be strings, not {type(url).__name__}")
    if any(mark in url for mark in "@?#"):
        # Not shown here either: what is written so is often a secret.
        raise InputError(
            "the URL of a server has no user, password, query or fragment (no '@', '?' or '#'), since errors and "
            "pickles hold it: pass a key as api_key="
        )
    try:
        parsed = httpx.URL(url)
        host, port = parsed.host, parsed.port
    except (httpx.InvalidURL, ValueError) as error:  # the latter of a host that is no name
        raise InputError(f"{url!r} is not a URL: {error}") from error
    if port is not None and port > _LAST_PORT:
        raise InputError(f"{url!r} is not a URL: there is no port {port}")
    if parsed.scheme not in ("http", "https") or not host:
        raise InputError(f"{url!r} is not the URL of a server: write it as 'http://host:8000'")
    root = url.rstrip("/")
    if root.endswith("/v1"):
        raise InputError(f"{url!r} ends with /v1: pass the server's root, without it")
    return root
