"""The language of filters: each operator on hand-made metadata, and what it refuses."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np
import pytest

from colbert_integrations import ColBERTError
from colbert_integrations.index import matches, parse_filter

DOCUMENT = {
    "year": 2020,
    "price": 1.0,
    "language": "en",
    "draft": False,
    "note": None,
    "tags": ["a", "b", 3],
    "author": {"name": "Ada", "born": 1815},
}


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({}, True),
        ({"year": 2020}, True),
        ({"year": 2020.0}, True),
        ({"year": "2020"}, False),
        ({"price": 1}, True),
        ({"price": True}, False),
        ({"draft": False}, True),
        ({"draft": 0}, False),
        ({"note": None}, True),
        ({"missing": None}, False),
        ({"language": "en", "year": 2020}, True),
        ({"language": "en", "year": 2021}, False),
        ({"year": {"$eq": 2020}}, True),
        ({"year": {"$ne": 2020}}, False),
        ({"missing": {"$ne": 2020}}, True),
        ({"tags": {"$ne": "a"}}, False),
        ({"tags": {"$ne": "c"}}, True),
        ({"year": {"$in": [2019, 2020]}}, True),
        ({"year": {"$in": []}}, False),
        ({"missing": {"$in": [None]}}, False),
        ({"tags": "b"}, True),
        ({"tags": {"$in": ["c", "a"]}}, True),
        ({"tags": {"$gte": 3}}, True),
        ({"tags": {"$gt": 3}}, False),
        ({"year": {"$gte": 2020, "$lt": 2021}}, True),
        ({"year": {"$gt": 2020}}, False),
        ({"year": {"$lte": 2020}}, True),
        ({"year": {"$lt": 2020.5}}, True),
        ({"language": {"$gt": 1}}, False),
        ({"draft": {"$lte": 1}}, False),
        ({"missing": {"$lt": 1}}, False),
        ({"author.name": "Ada"}, True),
        ({"author.born": {"$lt": 1900}}, True),
        ({"author.name.first": "Ada"}, False),
        ({"language.code": "en"}, False),
        ({"author": "Ada"}, False),
    ],
    ids=str,
)
def test_conditions_hold_or_not(filter: dict[str, Any], expected: bool) -> None:
    assert matches(DOCUMENT, parse_filter(filter)) is expected


class Year(enum.IntEnum):
    """Numbers that say more than a number."""

    LAST = 2020


@pytest.mark.parametrize("operator", ["$eq", "$ne", "$gte", "$in"])
@pytest.mark.parametrize(("value", "plain"), [(Year.LAST, 2020), (np.float64(0.6), 0.6)])
def test_numbers_become_plain_ones(operator: str, value: Any, plain: float) -> None:
    (condition,) = parse_filter({"year": {operator: [value] if operator == "$in" else value}})
    (number,) = condition.value if operator == "$in" else (condition.value,)
    assert (type(number), number) == (type(plain), plain)


@pytest.mark.parametrize(
    ("filter", "said"),
    [
        ("year = 2020", "must be a mapping"),
        ([("year", 2020)], "must be a mapping"),
        ({"$or": [{"a": 1}]}, r"'\$or' is not a metadata key: a filter is \{key: condition, ...\}, and all"),
        ({1: 2}, "^1 is not a metadata key"),
        ({"year": {"$regex": "2"}}, r"unknown operator '\$regex' for 'year': use one of \$eq"),
        ({"year": {"nested": 2}}, "unknown operator 'nested'"),
        ({"year": {}}, "no condition"),
        ({"year": {"$in": "abc"}}, "takes a list"),
        ({"year": {"$in": [[1]]}}, "compared with a string"),
        ({"year": {"$gt": "2020"}}, "takes a number"),
        ({"year": {"$gt": True}}, "takes a number"),
        ({"year": {"$gt": math.nan}}, "takes a number"),
        ({"year": [2020]}, "compared with a string"),
    ],
    ids=str,
)
def test_what_the_language_does_not_have_is_refused(filter: Any, said: str) -> None:
    with pytest.raises(ColBERTError, match=said):
        parse_filter(filter)
