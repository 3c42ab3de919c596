"""The language of filters in Qdrant's own: a filter that lets every document through that meets the conditions.

It may let others through, whose numbers are too long for the engine (see ``numbers.py``), so what is found is always
compared with the conditions once more. Qdrant applies its filter before it scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qdrant_client import models

from ..index import (
    AnyOf,
    Condition,
    Conditions,
    Filter,
    StoredDocument,
    is_number,
    is_yes,
    matches,
    parse_filter,
    places,
)
from .numbers import BEYOND, around, is_plain

__all__ = ["EXACT", "METADATA", "Wanted", "among", "field_paths", "wanted"]

METADATA = "metadata"
"""Where the metadata of a document is in its payload, for filters."""

EXACT = "exact"
"""Where it is once more as JSON text, if it has numbers that the engine would change."""

_OPPOSITES = {"$gt": "$lte", "$gte": "$lt", "$lt": "$gte", "$lte": "$gt"}

# What can't stand in a quoted part of a path: quotes, backslashes, and what can't be sent at all.
_UNQUOTABLE = re.compile(r'["\\\ud800-\udfff]')
# Half of a surrogate pair: no string on a server has one.
_UNSENDABLE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Wanted:
    """Which documents are wanted.

    Attributes:
        conditions: What the server is told: each has to hold.
        told_all: Whether that is nearly everything, so that hardly any document has to be thrown away afterwards.
        test: Says of a document whether it is wanted.
    """

    conditions: tuple[models.Condition, ...] = ()
    told_all: bool = True
    test: Callable[[StoredDocument], bool] = lambda document: True

    def filter(self, *more: models.Condition) -> models.Filter | None:
        """The conditions, and some more, as the server takes them; None if there are none."""
        every = [*self.conditions, *more]
        return models.Filter(must=every) if every else None


def wanted(filter: Filter | None) -> Wanted:
    """Read a filter.

    Args:
        filter: Conditions, or a function of a document. None: every document is wanted.

    Returns:
        What to tell the server, and what to look at afterwards.

    Raises:
        FilterError: If it uses a key, operator or value that filters do not support.
    """
    if filter is None:
        return Wanted()
    if callable(filter):
        return Wanted(told_all=False, test=lambda document: is_yes(filter(document)))
    conditions = parse_filter(filter)
    told, told_all = _told(conditions)

    def test(document: StoredDocument) -> bool:
        return matches(document.metadata, conditions)

    return Wanted(tuple(told), told_all, test)


def among(points: Sequence[str]) -> models.Condition:
    """The condition that a point is one of these."""
    return models.HasIdCondition(has_id=list(points))


def field_paths(key: str) -> list[str] | None:
    """Say where a key of metadata is in the payload.

    Args:
        key: The key, as filters name it.

    Returns:
        The path to each of its places, as the server takes it; None if one can't be written.

    Example:
        >>> field_paths("author.first name")
        ['metadata."author.first name"', 'metadata."author"."first name"']
    """
    every = places(key)
    if any(not name or _UNQUOTABLE.search(name) for place in every for name in place):
        return None
    return [".".join([METADATA, *(f'"{name}"' for name in place)]) for place in every]


def _told(conditions: Conditions) -> tuple[list[models.Condition], bool]:
    """What holds for all documents that meet the conditions, and whether that says nearly everything."""
    every = [_any_of(part) if isinstance(part, AnyOf) else _condition(part) for part in conditions]
    return [told for parts in every for told in parts or ()], None not in every


def _any_of(part: AnyOf) -> list[models.Condition] | None:
    """What holds for all documents that meet one of several filters; None: that can't be said."""
    alternatives = [_told(filter) for filter in part.filters]
    if not all(told_all for _, told_all in alternatives):
        return None
    if not all(told for told, _ in alternatives):
        return []  # nearly every document meets the one of which nothing is told
    return [_one_of([told[0] if len(told) == 1 else models.Filter(must=told) for told, _ in alternatives])]


def _condition(condition: Condition) -> list[models.Condition] | None:
    """What holds for all documents that meet a condition; None: that can't be said."""
    paths = field_paths(condition.key)
    if paths is None:
        return None
    if condition.operator in _OPPOSITES and condition.negated:
        if isinstance(condition.value, datetime):
            return None  # the server takes more strings for dates: it would pass over documents that have one
        return [_none_in_range(paths, condition)]
    if condition.negated:
        none_of = [part for path in paths for part in _surely_among(path, condition.wanted)]
        return [models.Filter(must_not=none_of)] if none_of else []
    return [_one_of([part for path in paths for part in _alternatives(path, condition)])]


def _one_of(alternatives: Sequence[models.Condition]) -> models.Condition:
    if len(alternatives) == 1:
        return alternatives[0]
    # No condition at all would hold for every document.
    return models.Filter(should=list(alternatives)) if alternatives else among([])


def _none_in_range(paths: Sequence[str], condition: Condition) -> models.Condition:
    """What holds where no number is in a range: one is on the other side of its end, or there is none."""
    outside = [_in_range(path, _OPPOSITES[condition.operator], condition.value) for path in paths]
    numbers = [models.FieldCondition(key=path, range=models.Range(gte=-BEYOND)) for path in paths]
    return models.Filter(should=[*outside, models.Filter(must_not=[*numbers])])


def _alternatives(path: str, condition: Condition) -> list[models.Condition]:
    """Conditions on a path, one of which has to hold."""
    if condition.operator in ("$eq", "$in"):
        texts, others = _parted(condition.wanted)
        return [*_one_of_texts(path, texts), *(_equal(path, value) for value in others)]
    return [_in_range(path, condition.operator, condition.value)]


def _parted(values: Sequence[Any]) -> tuple[list[str], list[Any]]:
    """Values that are strings, as far as a server could hold them, and the others."""
    texts = [value for value in values if isinstance(value, str)]
    others = [value for value in values if not isinstance(value, str)]
    return [text for text in dict.fromkeys(texts) if not _UNSENDABLE.search(text)], others


def _one_of_texts(path: str, texts: list[str]) -> list[models.Condition]:
    """At most one condition, as servers may limit how many a filter has."""
    if not texts:
        return []
    match = models.MatchValue(value=texts[0]) if len(texts) == 1 else models.MatchAny(any=texts)
    return [models.FieldCondition(key=path, match=match)]


def _equal(path: str, value: Any) -> models.Condition:
    if value is None:
        return models.IsNullCondition(is_null=models.PayloadField(key=path))
    if value != value:
        return among([])  # not a number, which equals nothing
    if is_number(value):
        # 1 is 1.0, which a match of whole numbers does not know.
        low = value if is_plain(value) else around(value)[0]
        return models.FieldCondition(key=path, range=models.Range(gte=low, lte=low))
    return models.FieldCondition(key=path, match=models.MatchValue(value=value))


def _surely_among(path: str, values: Sequence[Any]) -> list[models.Condition]:
    """What holds only where one of the values is equal."""
    texts, others = _parted(values)
    return [*_one_of_texts(path, texts), *(part for value in others for part in _surely_equal(path, value))]


def _surely_equal(path: str, value: Any) -> list[models.Condition]:
    """What holds only where the value is equal; nothing, if the server can't tell."""
    equal = _equal(path, value)
    if not is_number(value):
        return [equal]
    if not is_plain(value):
        return []
    # Of the two numbers that stand in for another one, one may be equal where that one is not. That there is a single
    # number is asked of this key again, so that an index of another one is never needed.
    single = models.FieldCondition(key=path, values_count=models.ValuesCount(lt=2))
    return [models.Filter(must=[equal, single])]


def _in_range(path: str, operator: str, value: Any) -> models.Condition:
    name = operator.removeprefix("$")
    if isinstance(value, datetime):
        return models.FieldCondition(key=path, range=models.DatetimeRange(**{name: value}))
    below, above = (value, value) if is_plain(value) else around(value)
    return models.FieldCondition(key=path, range=models.Range(**{name: below if name.startswith("g") else above}))
