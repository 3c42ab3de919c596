"""Checks of arguments for all rooms, without torch: lists, numbers, keys and texts. All raise ``InputError``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, TypeGuard, TypeVar

from .errors import InputError

__all__ = [
    "as_list",
    "check_pool_factor",
    "check_sendable",
    "check_text",
    "check_threshold",
    "check_timeout",
    "check_whole_number",
    "is_list",
    "keys_of",
]


T = TypeVar("T")


def is_list(given: object) -> TypeGuard[Iterable[Any]]:
    """Whether a value has items in an order.

    A text is no list of its characters, a mapping none of its keys, a table none of its columns' names.
    """
    table = hasattr(given, "columns")  # of pandas, polars and the like: this way none of them need be installed
    return isinstance(given, Iterable) and not table and not isinstance(given, (str, bytes, set, frozenset, Mapping))


def keys_of(ids: Any) -> Any:
    """The keys of a mapping from ids, which are in order; anything else as it is."""
    return ids.keys() if isinstance(ids, Mapping) else ids


def as_list(name: str, given: Iterable[T]) -> list[T]:
    """The items of anything that is a list by ``is_list``."""
    if not is_list(given):
        raise InputError(f"{name} must be a list, not {type(given).__name__}")
    return list(given)


def check_whole_number(name: str, value: object, least: int = 1, otherwise: str = "") -> None:
    """Refuse anything but an ``int`` from ``least``; True and False are none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number from {least}{otherwise}, not {value!r}")


def check_timeout(value: object) -> None:
    """Refuse anything but a positive, finite number of seconds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"timeout must be a positive number of seconds, not {value!r}")


def check_pool_factor(value: float) -> None:
    """Refuse what vectors can't be merged by."""
    if not isinstance(value, Real) or not 1 <= value < math.inf:  # a NaN neither
        raise InputError(f"pool_factor must be at least 1 and finite, not {value!r}")


def check_threshold(value: object) -> None:
    """Refuse anything but a number that scores can be compared with, or None."""
    if value is not None and (not isinstance(value, Real) or value != value):
        raise InputError(f"score_threshold must be a number, or None for no limit, not {value!r}")


def check_sendable(name: str, value: object) -> None:
    """Refuse a key that can't be sent in a header. The message names what holds it, and never shows the key."""
    # The transports' own errors would print it.
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, not {type(value).__name__}")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise InputError(
            f"{name} has spaces, line ends or non-ASCII characters, so it can't be sent in a request. If it was read "
            "from a file or a variable, call .strip() on it."
        )


def check_text(name: str, value: object) -> None:
    """Refuse anything but a string that can be encoded: half a surrogate pair can't."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, not {type(value).__name__}")
    if value.isascii():  # which Python knows without looking
        return
    try:
        value.encode()
    except UnicodeError as error:
        raise InputError(
            f"{name} is not valid Unicode: {error}. Decode it with errors='replace' where it is read"
        ) from error
