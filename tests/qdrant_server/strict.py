"""Strict mode, which Qdrant's server has and the engine has not: what it refuses, in its own words.

After ``lib/collection/src/operations/verification`` and ``problems/unindexed_field.rs`` of
https://github.com/qdrant/qdrant, as far as stores meet it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

Json = Any

# What Qdrant Cloud gives new collections.
CLOUD = {"unindexed_filtering_retrieve": False, "unindexed_filtering_update": False}

_ANY = ("bool", "datetime", "float", "geo", "integer", "keyword", "text", "uuid")


def shown(path: str) -> str:
    """A path as the server writes it, with quotes only around names that need them."""
    return re.sub(r'"([\w-]+)"', r"\1", path, flags=re.ASCII)


def is_of_dates(range: Mapping[str, Json]) -> bool:
    """Whether a range is one of dates, which are strings, and not of numbers."""
    return any(isinstance(end, str) for end in range.values())


def refusal(mode: Mapping[str, Json], kind: str, body: Json, indexes: Mapping[str, str]) -> str | None:
    """What is said to a request.

    Args:
        mode: The collection's ``strict_mode_config``.
        kind: The type of the body.
        body: The request.
        indexes: Kinds of payload indexes by path.

    Returns:
        The words of the error; None if the request may be answered.
    """
    asked = body.get("searches", [body])
    indexes = {shown(path): of for path, of in indexes.items()}
    limits = [("limit", one.get("limit", 0), mode.get("max_query_limit")) for one in asked]
    if kind == "PointsList":
        limits.append(("upsert limit", len(body["points"]), mode.get("upsert_max_batchsize")))
    for name, value, most in limits:
        if most is not None and value > most:
            return (
                f'Bad request: Limit exceeded {value} > {most} for "{name}". '
                f'Help: Reduce the "{name}" parameter to or below {most}.'
            )
    reads = [part.get("filter") for one in asked for part in (one, *_prefetches(one))]
    writes = [one["set_payload"].get("filter") for one in body.get("operations", [])]
    for filters, allowed in (
        (reads, mode.get("unindexed_filtering_retrieve")),
        (writes, mode.get("unindexed_filtering_update")),
    ):
        for filter in filters if allowed is False else ():
            if (said := _unindexed(filter, indexes)) is not None:
                return said
    return None


def _prefetches(request: Json) -> list[Json]:
    given = request.get("prefetch") or []
    return given if isinstance(given, list) else [given]


def _unindexed(filter: Json, indexes: Mapping[str, str]) -> str | None:
    for condition in _conditions(filter):
        path, kinds = _needed(condition)
        if kinds and indexes.get(shown(path)) not in kinds:
            return (
                f'Bad request: Index required but not found for "{shown(path)}" of one of the following types: '
                f"[{', '.join(kinds)}]. Help: Create an index for this key or use a different filter."
            )
    return None


def _conditions(filter: Json) -> Iterator[Json]:
    for part in ("should", "must", "must_not"):
        for condition in (filter or {}).get(part) or []:
            if {"should", "must", "must_not"} & set(condition):
                yield from _conditions(condition)
            else:
                yield condition


def _needed(condition: Json) -> tuple[str, tuple[str, ...]]:
    """The path that a condition looks at, and the kinds of index of which one will do."""
    if "has_id" in condition:
        return "", ()
    for name in ("is_null", "is_empty"):
        if name in condition:
            return condition[name]["key"], _ANY
    path = condition["key"]
    if condition.get("range") is not None:
        return path, ("datetime",) if is_of_dates(condition["range"]) else ("float", "integer")
    if condition.get("values_count") is not None:
        return path, _ANY
    match = condition["match"]
    each = [_matching(value) for value in match.get("any", [match.get("value")])]
    return path, tuple(kind for kind in each[0] if all(kind in kinds for kinds in each))


def _matching(value: Json) -> tuple[str, ...]:
    if isinstance(value, bool):
        return ("bool",)
    if isinstance(value, int):
        return ("integer",)
    try:
        uuid.UUID(value)
    except ValueError:
        return ("keyword",)
    return ("keyword", "uuid")
