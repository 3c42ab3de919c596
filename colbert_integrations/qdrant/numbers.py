"""Numbers as Qdrant's engine keeps them: which come back to the last digit, and what stands in for the others.

The engine keeps metadata as JSON text, and its JSON reader is not exact: of random floats one in five comes back one
digit off, and whole numbers from 2**64 on come back as floats. It is exact where a number has few digits, since both
its digits and its power of ten are then exact in a float64. Such numbers are called plain here. Others are stored, for
filters only, as a pair of round numbers around them, so that a filter finds too much rather than too little; what it
finds is then compared with the metadata as it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

from ..index import is_number

__all__ = ["BEYOND", "around", "is_plain", "searchable"]

BEYOND = 1e308
"""Stands in for all that is further from zero than numbers that filters tell apart."""

# 15 digits are below 2**53, and 10**22 is the largest power of ten that a float64 holds.
_LARGEST, _DIGITS, _PLACES = 10**15, 15, 22
# Those that stand in for others have fewer digits, so that they are read exactly, but not beyond that power of ten:
# zeros at their end are not written as digits.
_ROUND_DIGITS, _ROUND_LARGEST = 12, Decimal(10) ** _PLACES


def is_plain(number: float) -> bool:
    """Whether the engine keeps a number, and compares it, to the last digit.

    Args:
        number: An int or a float.

    Returns:
        True if it does.

    Example:
        >>> [is_plain(number) for number in (2020, 19.99, 0.1 + 0.2, 2**53 + 1)]
        [True, True, False, False]
    """
    if not abs(number) <= _LARGEST:
        return False
    _, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    return len(digits) <= _DIGITS and int(exponent) >= -_PLACES


def around(number: float) -> tuple[float, float]:
    """The round numbers that stand in for one that is not plain.

    Args:
        number: An int or a float, infinity too.

    Returns:
        One that is not above it and one that is not below it; neither is smaller for a larger number.

    Example:
        >>> around(0.1 + 0.2)
        (0.3, 0.300000000001)
    """
    # Small floats are ordered as their shortest digits are, which is also how plain ones are stored. A large one may
    # be compared with a whole number, and its digits would say something else than its value.
    small = isinstance(number, float) and abs(number) <= _LARGEST
    exact = Decimal(repr(number)) if small else Decimal(number)
    return _rounded(exact, ROUND_FLOOR), _rounded(exact, ROUND_CEILING)


def _rounded(exact: Decimal, mode: str) -> float:
    if abs(exact) > _ROUND_LARGEST:
        outwards = (exact > 0) == (mode == ROUND_CEILING)
        size = BEYOND if outwards else float(_ROUND_LARGEST)
        return size if exact > 0 else -size
    rounded = Context(prec=_ROUND_DIGITS, rounding=mode).create_decimal(exact)
    if abs(rounded) < Decimal(10) ** (_ROUND_DIGITS - _PLACES):
        rounded = exact.quantize(Decimal(10) ** -_PLACES, rounding=mode, context=Context(prec=60))
    return float(rounded)


def searchable(value: Any) -> Any:
    """Copy JSON data with numbers that are not plain replaced by the pair around them.

    Args:
        value: JSON data.

    Returns:
        A copy; equal to the data if all its numbers are plain.

    Example:
        >>> searchable({"year": 2020, "weights": [0.5, 0.1 + 0.2]})
        {'year': 2020, 'weights': [0.5, 0.3, 0.300000000001]}
    """
    if isinstance(value, Mapping):
        return {key: searchable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        # A filter on a list looks at its elements, not at lists in it.
        return [part for inner in value for part in (_pair(inner) or [searchable(inner)])]
    return _pair(value) or value


def _pair(value: Any) -> list[float]:
    return list(around(value)) if is_number(value) and not is_plain(value) else []
