"""Which keys and tokens a request can carry: the transports' own errors for the others would print them."""

from __future__ import annotations

from .errors import InputError

__all__ = ["check_sendable"]


def check_sendable(name: str, value: object) -> None:
    """Refuse a key that can't be sent in a header, by the name of what holds it: it is never shown itself."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, not {type(value).__name__}")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise InputError(
            f"{name} has spaces, line ends or non-ASCII characters, so it can't be sent in a request. If it was read "
            "from a file or a variable, call .strip() on it."
        )
