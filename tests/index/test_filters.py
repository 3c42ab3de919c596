"""The language of filters: each operator on hand-made metadata, and what it refuses."""

from __future__ import annotations

import datetime
import enum
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_integrations import ColBERTError
from colbert_integrations.index import matches, parse_filter
from colbert_integrations.llama_index.nodes import REF_DOC_ID

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
        ({"year": {"$nin": [2019, 2020]}}, False),
        ({"year": {"$nin": [2019, "2020", True]}}, True),
        ({"year": {"$nin": []}}, True),
        ({"missing": {"$nin": [2020, None]}}, True),
        ({"note": {"$nin": ["a", None]}}, False),
        ({"tags": {"$nin": ["c", "a"]}}, False),
        ({"tags": {"$nin": ["c", "3"]}}, True),
        ({"draft": {"$nin": [0]}}, True),
        ({"author.name": {"$nin": ["Ada"]}}, False),
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
        ({"$or": [{"year": 2019}, {"language": "en"}]}, True),
        ({"$or": [{"year": 2019}, {"language": "de"}]}, False),
        ({"$or": [{"year": 2020}]}, True),
        ({"$or": [{"year": 2019}, {}]}, True),
        ({"$or": [{"year": 2020, "language": "de"}, {"draft": True}]}, False),
        ({"$or": ({"year": 2019}, {"tags": 3})}, True),
        ({"language": "de", "$or": [{"year": 2020}]}, False),
        ({"$and": [{"tags": "a"}, {"tags": "b"}]}, True),
        ({"$and": [{"tags": "a"}, {"tags": "c"}]}, False),
        ({"$and": [{}]}, True),
        ({"$and": [{"$or": [{"year": 1}, {"year": 2020}]}, {"$or": [{"price": 1}, {"price": 2}]}]}, True),
        ({"$and": [{"$or": [{"year": 1}, {"year": 2020}]}, {"$or": [{"price": 3}, {"price": 2}]}]}, False),
        ({"$not": {}}, False),
        ({"$not": {"year": 2020}}, False),
        ({"$not": {"year": 2019}}, True),
        ({"$not": {"missing": 1}}, True),
        ({"$not": {"year": {"$ne": 2020}}}, True),
        ({"$not": {"missing": {"$nin": [1]}}}, False),
        ({"$not": {"year": 2020, "language": "de"}}, True),
        ({"$not": {"year": 2020, "language": "en"}}, False),
        ({"$not": {"missing": {"$gt": 1}}}, True),
        ({"$not": {"language": {"$gt": 1}}}, True),
        ({"$not": {"year": {"$gt": 2020}}}, True),
        ({"$not": {"year": {"$gte": 2020}}}, False),
        ({"$not": {"tags": {"$gt": 2}}}, False),
        ({"$not": {"tags": {"$gt": 3}}}, True),
        ({"$not": {"$or": [{"year": 1}, {"draft": True}]}}, True),
        ({"$not": {"$or": [{"year": 1}, {"draft": False}]}}, False),
        ({"$not": {"$and": [{"year": 2020}, {"draft": True}]}}, True),
        ({"$not": {"$not": {"year": 2020}}}, True),
        ({"$not": {"$not": {"missing": {"$lt": 1}}}}, False),
    ],
    ids=str,
)
def test_conditions_hold_or_not(filter: dict[str, Any], expected: bool) -> None:
    assert matches(DOCUMENT, parse_filter(filter)) is expected


FLAT, NESTED, BOTH = {"loc.page": 3}, {"loc": {"page": 3}}, {"loc.page": 3, "loc": {"page": [4, 5]}}


@pytest.mark.parametrize(
    ("condition", "flat", "nested", "both", "neither"),
    [
        (3, True, True, True, False),
        (4, False, False, True, False),
        ({"$in": [5, 6]}, False, False, True, False),
        ({"$in": [1, 3]}, True, True, True, False),
        ({"$gt": 3}, False, False, True, False),
        ({"$lt": 4}, True, True, True, False),
        ({"$lt": 4, "$gt": 4}, False, False, True, False),  # each of them asks for one, as it does of a list
        ({"$ne": 3}, False, False, False, True),
        ({"$ne": 5}, True, True, False, True),
        ({"$ne": 6}, True, True, True, True),
        ({"$nin": [5, 6]}, True, True, False, True),
        ({"$nin": [1, 3]}, False, False, False, True),
        ({"$nin": [1, 2]}, True, True, True, True),
        (None, False, False, False, False),
    ],
    ids=str,
)
def test_a_key_with_a_dot_is_a_name_and_a_place(
    condition: Any, flat: bool, nested: bool, both: bool, neither: bool
) -> None:
    conditions = parse_filter({"loc.page": condition})
    for metadata, expected in ((FLAT, flat), (NESTED, nested), (BOTH, both)):
        assert matches(metadata, conditions) is expected
    # A name with a dot is looked for at the top alone, and whole.
    for metadata in ({}, {"page": 3}, {"loc": 3}, {"loc": {"page.x": 3}}, {"loc.page.x": 3}, {"x": {"loc.page": 3}}):
        assert matches(metadata, conditions) is neither


def test_a_name_with_dots_has_no_other_place() -> None:
    conditions = parse_filter({"a.b.c": 1})
    found = [{"a.b.c": 1}, {"a": {"b": {"c": 1}}}, {"a.b": {"c": 1}}, {"a": {"b.c": 1}}]
    assert [matches(metadata, conditions) for metadata in found] == [True, True, False, False]
    assert matches({"a..b": 1}, parse_filter({"a..b": 1}))
    assert matches({".": None}, parse_filter({".": None}))


@given(
    places=st.fixed_dictionaries({}, optional={name: st.lists(st.integers(0, 3), max_size=2) for name in "fn"}),
    values=st.lists(st.integers(0, 3), max_size=2),
    value=st.integers(0, 3),
)
def test_both_places_of_a_key_are_one_list(places: dict[str, list[int]], values: list[int], value: int) -> None:
    metadata: dict[str, Any] = {"loc": {"x": value}}
    if "f" in places:
        metadata["loc.page"] = places["f"]
    if "n" in places:
        metadata["loc"]["page"] = places["n"]
    every = {number for found in places.values() for number in found}
    expected = {
        "$eq": value in every,
        "$ne": value not in every,
        "$in": bool(every & set(values)),
        "$nin": not every & set(values),
        "$gt": max(every, default=-1) > value,
        "$lte": min(every, default=9) <= value,
    }
    said = {name: values if name in ("$in", "$nin") else value for name in expected}
    found = {name: matches(metadata, parse_filter({"loc.page": {name: said[name]}})) for name in expected}
    assert found == expected


def test_a_node_of_llama_index_is_found_by_its_nested_data_alone() -> None:
    conditions = parse_filter({REF_DOC_ID: "a"})
    assert matches({"_llama_index": {"ref_doc_id": "a"}}, conditions)
    assert not matches({"_llama_index.ref_doc_id": "a", "_llama_index": {"ref_doc_id": "b"}}, conditions)
    assert matches({"_llama": {"ref": 1}, "_llama.ref": 2}, parse_filter({"_llama.ref": 2}))


LEAVES = st.dictionaries(
    st.sampled_from("abc"),
    st.integers(0, 2)
    | st.dictionaries(st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), st.integers(0, 2), min_size=1)
    | st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(st.integers(0, 2), max_size=2), min_size=1),
    max_size=2,
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.builds(
        lambda conditions, joined: {**conditions, **joined},
        LEAVES,
        st.fixed_dictionaries(
            {},
            optional={
                "$and": st.lists(inner, min_size=1, max_size=3),
                "$or": st.lists(inner, min_size=1, max_size=3),
                "$not": inner,
            },
        ),
    ),
    max_leaves=8,
)


def said(metadata: dict[str, Any], filter: dict[str, Any]) -> bool:
    """What a filter says of metadata, by the words of the language as they are nested."""
    return all(said_of_entry(metadata, key, value) for key, value in filter.items())


def said_of_entry(metadata: dict[str, Any], key: str, value: Any) -> bool:
    if key == "$not":
        return not said(metadata, value)
    if key in ("$and", "$or"):
        return (all if key == "$and" else any)(said(metadata, filter) for filter in value)
    # A single condition of one key is what the tests above hold by hand.
    each = value.items() if isinstance(value, dict) else [("$eq", value)]
    return all(matches(metadata, parse_filter({key: {name: operand}})) for name, operand in each)


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.sampled_from([0, 1, 2, 1.0, True, None, "1", ""]) | st.lists(st.integers(0, 2), max_size=2),
    ),
    FILTERS,
)
def test_filters_in_filters_say_what_they_are_made_of(metadata: dict[str, Any], filter: dict[str, Any]) -> None:
    assert matches(metadata, parse_filter(filter)) is said(metadata, filter)
    assert matches(metadata, parse_filter({"$not": filter})) is not said(metadata, filter)


def test_filters_may_be_nested_but_not_without_end() -> None:
    filter: dict[str, Any] = {"year": 2020}
    for depth in range(32):
        filter = {"$not": filter} if depth % 2 else {"$or": [filter, {"year": 1}]}
    assert matches(DOCUMENT, parse_filter(filter)) is True
    for _ in range(100_000):
        filter = {"$and": [filter]}
    with pytest.raises(ColBERTError, match="a filter may hold filters 32 deep, not deeper"):
        parse_filter(filter)
    while "$and" in filter:  # or it is freed by recursion
        (filter,) = filter["$and"]


class Year(enum.IntEnum):
    """Numbers that say more than a number."""

    LAST = 2020


@pytest.mark.parametrize("operator", ["$eq", "$ne", "$gte", "$in", "$nin"])
@pytest.mark.parametrize(
    ("value", "plain"), [(Year.LAST, 2020), (np.int64(2020), 2020), (np.float32(0.5), 0.5), (np.float64(0.6), 0.6)]
)
def test_numbers_become_plain_ones(operator: str, value: Any, plain: float) -> None:
    several = operator in ("$in", "$nin")
    (condition,) = parse_filter({"year": {operator: [value] if several else value}})
    (number,) = condition.value if several else (condition.value,)
    assert (type(number), number) == (type(plain), plain)


@pytest.mark.parametrize(
    ("filter", "said"),
    [
        ("year = 2020", "must be a mapping"),
        ([("year", 2020)], "must be a mapping"),
        ({"$nor": [{"a": 1}]}, r"'\$nor' is not a metadata key: .* or joins others by \$and, \$or and \$not"),
        ({"$or": []}, r"\$or takes a list of at least one filter, .* not \[\]"),
        ({"$or": {"a": 1}}, r"\$or takes a list of at least one filter, .* not \{'a': 1\}"),
        ({"$and": "a"}, r"\$and takes a list of at least one filter, .* not 'a'"),
        ({"$and": None}, r"\$and takes a list"),
        ({"$or": [{"a": 1}, "b"]}, "must be a mapping .* not 'b'"),
        ({"$not": [{"a": 1}]}, "must be a mapping .* not "),
        ({"$not": {"a": {"$regex": 1}}}, "unknown operator"),
        ({"a": {"$or": [1, 2]}}, r"unknown operator '\$or' for 'a'"),
        ({1: 2}, "^1 is not a metadata key"),
        ({"year": {"$regex": "2"}}, r"unknown operator '\$regex' for 'year': use one of \$eq, \$ne, \$in, \$nin, \$gt"),
        ({"year": {"nested": 2}}, "unknown operator 'nested'"),
        ({"year": {}}, "no condition"),
        ({"year": {"$in": "abc"}}, r"\$in for 'year' takes a list"),
        ({"year": {"$nin": 2020}}, r"\$nin for 'year' takes a list"),
        ({"year": {"$nin": [[1]]}}, "compared with a string"),
        ({"year": {"$in": [[1]]}}, "compared with a string"),
        ({"year": {"$gt": "2020"}}, r"\$gt for 'year' takes a number, or a date such as '2024-01-31' .* not '2020'"),
        ({"date": {"$lt": "2024-02-30"}}, "takes a number, or a date"),
        ({"date": {"$lt": "2024-01-31T09:30"}}, "takes a number, or a date"),
        ({"date": {"$lt": datetime.time(9, 30)}}, "takes a number, or a date"),
        ({"date": {"$lt": np.datetime64("NaT")}}, "takes a number, or a date"),
        ({"date": {"$gte": 2020, "$lt": "2024-01-31"}}, "'date' has a range from a number to a date: both ends are of"),
        (
            {"date": datetime.date(2024, 1, 31)},
            "compared with a string.*; write it as the metadata has it, or as a range",
        ),
        ({"year": {"$gt": True}}, "takes a number"),
        ({"year": {"$gt": np.True_}}, "takes a number"),
        ({"year": {"$gt": [2020]}}, "takes a number"),
        ({"year": {"$gt": math.nan}}, "takes a number"),
        ({"year": np.datetime64("2020-01-01")}, "compared with a string"),
        ({"year": [2020]}, "compared with a string"),
    ],
    ids=str,
)
def test_what_the_language_does_not_have_is_refused(filter: Any, said: str) -> None:
    with pytest.raises(ColBERTError, match=said):
        parse_filter(filter)
