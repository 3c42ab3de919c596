"""Which keys and tokens a request can carry: the transports' own errors for the others would print them."""

from __future__ import annotations

__all__ = ["is_sendable"]


def is_sendable(key: object) -> bool:
    """Whether a key can be sent in a header.

    Args:
        key: Anything that a caller or the environment gave as one.

    Returns:
        True for a string of printable ASCII characters without spaces and line ends.
    """
    return isinstance(key, str) and key.isascii() and key.isprintable() and " " not in key
