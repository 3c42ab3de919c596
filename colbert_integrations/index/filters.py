"""The language of filters: conditions on metadata that every store understands.

::

    {"year": 2020}                        equal; a list in the metadata contains it
    {"year": {"$gte": 2020, "$lt": 2024}} $gt, $gte, $lt, $lte: numbers, or dates and times
    {"date": {"$gte": "2024-01-31"}}      ISO 8601 as in dates.py, compared as points in time
    {"language": {"$in": ["en", "de"]}}   one of
    {"draft": {"$ne": True}}              not equal, or not there
    {"language": {"$nin": ["en", "de"]}}  none of, or not there
    {"author.name": "Ada"}                a dot looks into a nested mapping, or is a part of the name
    {"$or": [{...}, {...}]}               one of these filters; $and: each of them
    {"$not": {...}}                       not this filter

All conditions must hold. A key that is not there meets none but ``$ne`` and ``$nin``. ``True`` is not ``1``; ``1`` is
``1.0``. Where metadata has a key with dots both ways, what it finds counts together, as the elements of a list do.

A filter that was read is free of ``$not``: De Morgan's laws carry it to the conditions, so that a store has to know the
negation of a condition alone.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import lru_cache
from typing import Any, TypeAlias

from ..dates import instant
from ..errors import FilterError
from .metadata import without_numpy

__all__ = ["AnyOf", "Condition", "Conditions", "is_number", "is_yes", "matches", "parse_filter", "places"]

_RANGES: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_LISTS = ("$in", "$nin")
_NEGATIONS = {"$ne": "$eq", "$nin": "$in"}
OPERATORS = ("$eq", "$ne", *_LISTS, *_RANGES)

_DEEPEST = 32  # filters within filters; what is walked through by recursion must not reach the interpreter's limit

# Under it lies what a LlamaIndex node has beside its metadata. A key below it is never a name with a dot: a node's own
# metadata could pass for it, and collections have an index of the nested place alone.
_RESERVED = "_llama_index"

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Condition:
    """One condition of a filter.

    Attributes:
        key: Where in the metadata; ``places`` says what its dots mean.
        operator: One of ``$eq``, ``$in``, ``$gt``, ``$gte``, ``$lt``, ``$lte``.
        value: What to compare with: a scalar, a tuple of scalars for ``$in``, a number or a point in time, in UTC, for
            the ranges.
        negated: Whether no value that the key finds may be so, instead of one of them.
    """

    key: str
    operator: str
    value: Any
    negated: bool = False

    @property
    def wanted(self) -> tuple[Scalar, ...]:
        """What values are compared with: one or several scalars."""
        return self.value if self.operator in _LISTS else (self.value,)


@dataclass(frozen=True)
class AnyOf:
    """Several filters, one of which must hold.

    Attributes:
        filters: Each as ``parse_filter`` gives it. Nothing meets none at all.
    """

    filters: tuple[Conditions, ...]


Conditions: TypeAlias = "tuple[Condition | AnyOf, ...]"
"""A filter that was read: all of these must hold."""


def parse_filter(filter: Mapping[str, Any]) -> Conditions:
    """Read a filter.

    Args:
        filter: Conditions by key, as the module's docstring shows.

    Returns:
        The conditions, all of which must hold.

    Raises:
        FilterError: If it is no mapping, uses a key, operator or value that filters do not support, or holds filters
            more than 32 deep.

    Example:
        >>> parse_filter({"year": {"$gte": 2020}})
        (Condition(key='year', operator='$gte', value=2020, negated=False),)
    """
    return _parsed(filter, 0)


@lru_cache  # the same for each document
def places(key: str) -> tuple[tuple[str, ...], ...]:
    """Say where in metadata a key looks: under its whole name, and where its dots lead.

    Args:
        key: The key of a condition.

    Returns:
        The names to follow to each place, from the outermost mapping inwards.

    Example:
        >>> places("loc.page")
        (('loc.page',), ('loc', 'page'))
        >>> places("year")
        (('year',),)
    """
    nested = tuple(key.split("."))
    return (nested,) if len(nested) == 1 or nested[0] == _RESERVED else ((key,), nested)


def is_number(value: object) -> bool:
    """Whether a value is a number to the language of filters, which booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_yes(answer: object) -> bool:
    """What a filter that is a function says of a document.

    Args:
        answer: What it returned.

    Returns:
        Whether that is true.

    Raises:
        FilterError: If it is to be awaited, which would count as true for every document.
    """
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()  # or Python warns of it
        raise FilterError("a filter must be a plain function, not an async one")
    return bool(answer)


def matches(metadata: Mapping[str, Any], conditions: Conditions) -> bool:
    """Whether metadata meets all conditions.

    Args:
        metadata: The metadata of a document.
        conditions: As ``parse_filter`` gives them.

    Returns:
        True if each holds; also if there are none.

    Example:
        >>> matches({"tags": ["a", "b"]}, parse_filter({"tags": "b"}))
        True
    """
    return all(
        any(matches(metadata, filter) for filter in part.filters)
        if isinstance(part, AnyOf)
        else _holds(_values(metadata, part.key), part) != part.negated
        for part in conditions
    )


def _parsed(filter: object, depth: int) -> Conditions:
    if not isinstance(filter, Mapping):
        raise FilterError(f"a filter must be a mapping such as {{'year': 2020}}, or a function, not {filter!r}")
    if depth > _DEEPEST:
        raise FilterError(f"a filter may hold filters {_DEEPEST} deep, not deeper")
    return tuple(part for key, value in filter.items() for part in _parts(key, value, depth + 1))


def _parts(key: object, value: object, depth: int) -> Conditions:
    """What one entry of a filter asks."""
    if key == "$and":
        return tuple(part for filter in _several(key, value) for part in _parsed(filter, depth))
    if key == "$or":
        return (AnyOf(tuple(_parsed(filter, depth) for filter in _several(key, value))),)
    if key == "$not":
        return _negated(_parsed(value, depth))
    if not isinstance(key, str) or key.startswith("$"):
        raise FilterError(
            f"{key!r} is not a metadata key: a filter is {{key: condition, ...}}, or joins others by $and, $or and $not"
        )
    return _conditions(key, value)


def _several(key: str, value: object) -> Sequence[object]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or not value:
        raise FilterError(f"{key} takes a list of at least one filter, such as [{{'year': 2020}}], not {value!r}")
    return value


def _negated(conditions: Conditions) -> Conditions:
    """What holds where one of the conditions does not."""
    opposites = tuple(_opposite(part) for part in conditions)
    return opposites[0] if len(opposites) == 1 else (AnyOf(opposites),)


def _opposite(part: Condition | AnyOf) -> Conditions:
    if isinstance(part, AnyOf):
        return tuple(opposite for filter in part.filters for opposite in _negated(filter))
    return (replace(part, negated=not part.negated),)


def _conditions(key: str, value: object) -> Conditions:
    if not isinstance(value, Mapping):
        return (Condition(key, "$eq", _scalar(key, value)),)
    if not value:
        raise FilterError(f"{key!r} has no condition: name one of {', '.join(OPERATORS)}")
    conditions = tuple(_condition(key, name, operand) for name, operand in value.items())
    if len({is_number(part.value) for part in conditions if part.operator in _RANGES}) > 1:
        raise FilterError(f"{key!r} has a range from a number to a date: both ends are of one kind, not {value!r}")
    return conditions


def _condition(key: str, name: Any, operand: object) -> Condition:
    operand = _operand(key, name, operand)
    return Condition(key, _NEGATIONS.get(name, name), operand, negated=name in _NEGATIONS)


def _operand(key: str, name: object, operand: object) -> Any:
    if name not in OPERATORS:
        raise FilterError(f"unknown operator {name!r} for {key!r}: use one of {', '.join(OPERATORS)}")
    if name in _LISTS:
        if isinstance(operand, (str, Mapping)) or not isinstance(operand, (Sequence, set, frozenset)):
            raise FilterError(f"{name} for {key!r} takes a list, not {operand!r}")
        return tuple(_scalar(key, value) for value in operand)
    return _end(key, name, without_numpy(operand)) if name in _RANGES else _scalar(key, operand)


def _end(key: str, name: object, operand: Any) -> Scalar | datetime:
    """Where a range ends."""
    if is_number(operand) and operand == operand:
        return _scalar(key, operand)
    if (moment := instant(operand)) is not None:
        return moment
    raise FilterError(
        f"{name} for {key!r} takes a number, or a date such as '2024-01-31' or '2024-01-31T09:30:00Z', not {operand!r}"
    )


def _scalar(key: str, value: object) -> Scalar:
    value = without_numpy(value)
    if value is None or isinstance(value, (str, bool)):
        return value
    # Plain numbers, not those of an enum, which are written in other words.
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    hint = "; one of several is {'$in': [...]}" if isinstance(value, (Sequence, set, frozenset)) else ""
    if isinstance(value, date):
        hint = "; write it as the metadata has it, or as a range: {'$gte': ..., '$lt': ...}"
    raise FilterError(f"{key!r} is compared with a string, a number, a boolean or None, not {value!r}{hint}")


def _values(metadata: Mapping[str, Any], key: str) -> list[Any]:
    """All values that a key finds; a list counts as its elements."""
    values: list[Any] = []
    for place in places(key):
        found: Any = metadata
        for name in place:
            if not isinstance(found, Mapping) or name not in found:
                break
            found = found[name]
        else:
            values += found if isinstance(found, list) else [found]
    return values


def _holds(values: Sequence[Any], condition: Condition) -> bool:
    """Whether one of the values is as a condition asks, before it is negated."""
    compare, end = _RANGES.get(condition.operator), condition.value
    if compare is None:
        return any(_equal(value, wanted) for value in values for wanted in condition.wanted)
    if isinstance(end, datetime):
        return any(compare(moment, end) for value in values if (moment := instant(value)) is not None)
    return any(is_number(value) and compare(value, end) for value in values)


def _equal(value: Any, wanted: Scalar) -> bool:
    # JSON's booleans are no numbers, Python's are.
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)
