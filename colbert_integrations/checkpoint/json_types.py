"""Values of a checkpoint's files: refused where they are not of the kind that they have to be."""

from __future__ import annotations

from typing import Any, TypeVar

from ..errors import CheckpointError

__all__ = ["expect_type", "strings"]

T = TypeVar("T")

# What counts or measures something in a checkpoint fits into 64 bits.
_TOO_LARGE = 2**63

_KINDS = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def expect_type(value: Any, kind: type[T], where: str) -> T:
    """Take a value if it is of a kind: ``"false"``, as some write by hand, would count as true.

    Args:
        value: The value, not null.
        kind: What it has to be. For ``bool`` 0 and 1 are fine too, for ``int`` a float without a fraction.
        where: The file and the key, for the message.

    Returns:
        The value, as that kind.

    Raises:
        CheckpointError: If it is of another kind.
    """
    if not _fits(value, kind):
        raise CheckpointError(f"{where} is {value!r}, and has to be {_KINDS[kind]}")
    return kind(value)  # type: ignore[call-arg]  # all of ``_KINDS`` take one


def _fits(value: object, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and value in (0, 1)
    whole = kind is int and isinstance(value, float) and value.is_integer()
    if kind is int and (whole or isinstance(value, int)):
        return abs(value) < _TOO_LARGE  # type: ignore[arg-type]  # a number
    return isinstance(value, kind)


def strings(value: Any, where: str) -> tuple[str, ...]:
    """Take a list of strings; see ``expect_type``."""
    return tuple(expect_type(item, str, where) for item in expect_type(value, list, where))
