"""MetadataFilters in our language of filters, against the framework's own function for them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from colbert_integrations import ColBERT, MemoryStore
from colbert_integrations.errors import FilterError
from colbert_integrations.index import matches, parse_filter
from colbert_integrations.llama_index import ColBERTRetriever
from colbert_integrations.llama_index.filters import translate

METADATAS: list[dict[str, Any]] = [
    {},
    {"other": "a"},
    {"key": None},
    {"key": ""},
    {"key": "a"},
    {"key": "ab"},
    {"key": "5"},
    {"key": 0},
    {"key": 5},
    {"key": 5.0},
    {"key": -1.5},
    {"key": 10**9},
    {"key": "a", "other": 3},
    {"key": 5, "other": "b"},
]
LISTS: list[dict[str, Any]] = [{"key": []}, {"key": ["a"]}, {"key": ["b", "a", 5]}, {"key": [5.0, None]}]
VALUES = ["", "a", "ab", "c", "5", 0, 5, 5.0, 7, -1.5]
RANGES = [FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE]


def one(operator: FilterOperator, value: Any, key: str = "key") -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def ours(filters: MetadataFilters, metadata: dict[str, Any]) -> bool:
    return matches(metadata, parse_filter(translate(filters)))


def theirs(filters: MetadataFilters, metadata: dict[str, Any]) -> bool:
    return build_metadata_filter_fn(lambda name: metadata, filters)("node")


# --------------------------------------------------------------------------------------------- as the framework has it


@pytest.mark.parametrize("operator", [FilterOperator.EQ, FilterOperator.NE])
@pytest.mark.parametrize("value", VALUES)
def test_equality_is_the_frameworks(operator: FilterOperator, value: Any):
    filters = one(operator, value)
    assert [ours(filters, metadata) for metadata in METADATAS] == [theirs(filters, metadata) for metadata in METADATAS]


@pytest.mark.parametrize("values", [[], ["a"], ["a", "5"], [5], [0, 7], [-1.5, 5.0]])
def test_membership_is_the_frameworks(values: list[Any]):
    filters, none_of = one(FilterOperator.IN, values), one(FilterOperator.NIN, values)
    found = [ours(filters, metadata) for metadata in METADATAS]
    assert found == [theirs(filters, metadata) for metadata in METADATAS]
    assert any(found) == bool(values)
    assert [ours(none_of, metadata) for metadata in METADATAS] == [theirs(none_of, metadata) for metadata in METADATAS]


@pytest.mark.parametrize("operator", RANGES)
@pytest.mark.parametrize("value", [0, 5, 5.5, -1.5, 10**9])
def test_ranges_of_numbers_are_the_frameworks(operator: FilterOperator, value: Any):
    # With a text in the metadata the framework raises a TypeError.
    comparable = [metadata for metadata in METADATAS if not isinstance(metadata.get("key"), str)]
    filters = one(operator, value)
    assert [ours(filters, metadata) for metadata in comparable] == [theirs(filters, found) for found in comparable]
    assert not any(ours(filters, metadata) for metadata in METADATAS if metadata not in comparable)


# The framework compares strings, which are in the order of time as long as all have one form.
DAYS: list[dict[str, Any]] = [{"key": f"2024-{month:02}-01", "other": "ab"[month % 2]} for month in range(1, 6)] + [{}]


@pytest.mark.parametrize("operator", RANGES)
@pytest.mark.parametrize("condition", FilterCondition)
def test_ranges_of_dates_are_the_frameworks(operator: FilterOperator, condition: FilterCondition):
    parts = [*one(operator, "2024-03-01").filters, *one(FilterOperator.EQ, "b", "other").filters]
    for filters in (one(operator, "2024-03-01"), MetadataFilters(filters=parts, condition=condition)):
        found = [ours(filters, metadata) for metadata in DAYS]
        assert found == [theirs(filters, metadata) for metadata in DAYS]
        assert 0 < sum(found) < len(DAYS)


@pytest.mark.parametrize("value", ["a", "b", "c", 5, 5.0, 7])
def test_what_a_list_contains_is_the_frameworks(value: Any):
    filters = one(FilterOperator.CONTAINS, value)
    nothing = [{}, {"key": None}]
    assert [ours(filters, metadata) for metadata in LISTS + nothing] == [
        theirs(filters, metadata) for metadata in LISTS + nothing
    ]


@pytest.mark.parametrize("condition", [*FilterCondition, None])
def test_joined_filters_are_the_frameworks(condition: FilterCondition | None):
    parts = [
        MetadataFilter(key="key", value=5, operator=FilterOperator.EQ),
        MetadataFilter(key="other", value="b", operator=FilterOperator.EQ),
    ]
    for chosen in (parts, parts[:1], parts[1:], []):
        filters = MetadataFilters(filters=chosen, condition=condition)
        found = [ours(filters, metadata) for metadata in METADATAS]
        assert found == [theirs(filters, metadata) for metadata in METADATAS]
        assert any(found)


def test_several_conditions_of_one_key_hold_together():
    between = MetadataFilters(filters=[*one(FilterOperator.GTE, 0).filters, *one(FilterOperator.LT, 6).filters])
    assert translate(between) == {"$and": [{"key": {"$gte": 0}}, {"key": {"$lt": 6}}]}
    numbers = [metadata for metadata in METADATAS if not isinstance(metadata.get("key"), str)]
    assert [ours(between, found) for found in numbers] == [theirs(between, found) for found in numbers]


def test_all_that_is_excluded_of_one_key_holds_together():
    parts = [*one(FilterOperator.NE, "a").filters, *one(FilterOperator.NIN, [5, 7]).filters]
    parts += [*one(FilterOperator.NE, 0).filters, *one(FilterOperator.NE, "b", "other").filters]
    filters = MetadataFilters(filters=parts)
    expected = [theirs(filters, metadata) for metadata in METADATAS]
    assert [ours(filters, metadata) for metadata in METADATAS] == expected
    nested = MetadataFilters(filters=[MetadataFilters(filters=parts[:2]), *parts[2:]])
    assert [ours(nested, metadata) for metadata in METADATAS] == expected


def test_exclusion_joins_what_else_is_asked_of_a_key():
    filters = MetadataFilters(filters=[*one(FilterOperator.NE, 5).filters, *one(FilterOperator.GT, 0).filters])
    numbers = [metadata for metadata in METADATAS if not isinstance(metadata.get("key"), str)]
    assert [ours(filters, found) for found in numbers] == [theirs(filters, found) for found in numbers]


def test_an_operator_may_be_asked_twice_of_one_key():
    tags = [MetadataFilter(key="key", value=tag, operator=FilterOperator.CONTAINS) for tag in ("a", "b", "a")]
    filters = MetadataFilters(filters=tags)
    assert [ours(filters, metadata) for metadata in LISTS] == [theirs(filters, metadata) for metadata in LISTS]
    assert [metadata for metadata in LISTS if ours(filters, metadata)] == [{"key": ["b", "a", 5]}]


@pytest.mark.parametrize("operator", [FilterOperator.ANY, FilterOperator.ALL])
@pytest.mark.parametrize("values", [["a"], ["a", "b"], ["a", "c"], ["c"], [5], [5, 7]])
def test_any_and_all_of_a_list_are_the_frameworks(operator: FilterOperator, values: list[Any]):
    filters, lists = one(operator, values), [*LISTS, {}, {"key": None}]
    assert [ours(filters, metadata) for metadata in lists] == [theirs(filters, metadata) for metadata in lists]


ITEMS = st.builds(
    lambda key, operator, value: MetadataFilter(
        key=key, operator=operator, value=[value] if operator in (FilterOperator.IN, FilterOperator.NIN) else value
    ),
    st.sampled_from(["key", "other"]),
    st.sampled_from([FilterOperator.EQ, FilterOperator.NE, FilterOperator.IN, FilterOperator.NIN]),
    st.sampled_from(VALUES),
)


@given(filters=st.lists(ITEMS, max_size=4), condition=st.sampled_from([*FilterCondition, None]))
def test_any_filters_joined_in_any_way_are_the_frameworks(
    filters: list[MetadataFilter], condition: FilterCondition | None
):
    joined = MetadataFilters(filters=[*filters], condition=condition)
    assert [ours(joined, metadata) for metadata in METADATAS] == [theirs(joined, metadata) for metadata in METADATAS]


@pytest.mark.parametrize(("operator", "value"), [(FilterOperator.EQ, "Ada"), (FilterOperator.NIN, ["Ada", "Emmy"])])
def test_a_name_with_a_dot_is_the_frameworks(operator: FilterOperator, value: Any):
    filters = one(operator, value, "author.name")
    metadatas = [{"author.name": "Ada"}, {"author.name": "Grace"}, {"author": "Ada"}, {}]
    found = [ours(filters, metadata) for metadata in metadatas]
    assert found == [theirs(filters, metadata) for metadata in metadatas]
    assert 0 < sum(found) < len(metadatas)


def test_nested_filters_are_joined():
    # The framework's own function has none.
    inner = MetadataFilters(filters=[one(FilterOperator.EQ, "b", "other"), one(FilterOperator.GT, 4)])
    filters = MetadataFilters(filters=[inner, MetadataFilter(key="key", value=[5, 6], operator=FilterOperator.IN)])
    assert [metadata for metadata in METADATAS if ours(filters, metadata)] == [{"key": 5, "other": "b"}]
    either = MetadataFilters(filters=[inner, MetadataFilter(key="key", value="ab")], condition=FilterCondition.OR)
    assert [metadata for metadata in METADATAS if ours(either, metadata)] == [{"key": "ab"}, {"key": 5, "other": "b"}]
    neither = MetadataFilters(filters=[either], condition=FilterCondition.NOT)
    assert [ours(neither, metadata) for metadata in METADATAS] == [not ours(either, found) for found in METADATAS]


# --------------------------------------------------------------------------------- other than the framework, on purpose


@pytest.mark.parametrize(
    ("operator", "value", "found", "here", "there"),
    [
        # A list in the metadata: one of it is asked for, as in every store of ours.
        (FilterOperator.EQ, "a", ["a", "b"], True, False),
        (FilterOperator.NE, "a", ["a", "b"], False, True),
        (FilterOperator.IN, ["a", "c"], ["a", "b"], True, False),
        (FilterOperator.NIN, ["a", "c"], ["a", "b"], False, True),
        # JSON's booleans are no numbers.
        (FilterOperator.EQ, 1, True, False, True),
        (FilterOperator.NE, 0, False, True, False),
        (FilterOperator.NIN, [0, 2], False, True, False),
        (FilterOperator.GT, 0, True, False, True),
        # Dates are points in time, whatever their form.
        (FilterOperator.GT, "2024-01-31", "2024-01-31T01:00:00+02:00", False, True),
        (FilterOperator.LTE, "2024-01-31", "2024-01-31T00:00:00Z", True, False),
        # CONTAINS asks a list; within a text the framework looks for a part of it.
        (FilterOperator.CONTAINS, "a", "cab", False, True),
        (FilterOperator.ANY, ["a", "x"], "cab", False, True),
        (FilterOperator.ALL, ["a", "b"], "cab", False, True),
    ],
)
def test_differs_from_the_framework(operator: FilterOperator, value: Any, found: Any, here: bool, there: bool):
    filters, metadata = one(operator, value), {"key": found}
    assert ours(filters, metadata) is here
    assert theirs(filters, metadata) is there


def test_a_dot_looks_into_a_nested_mapping():
    filters = one(FilterOperator.EQ, "Ada", "author.name")
    assert ours(filters, {"author": {"name": "Ada"}})
    assert not theirs(filters, {"author": {"name": "Ada"}})


# ------------------------------------------------------------------------------------------------- what can't be said


@pytest.mark.parametrize(
    "operator",
    [
        FilterOperator.TEXT_MATCH,
        FilterOperator.TEXT_MATCH_INSENSITIVE,
        FilterOperator.IS_EMPTY,
    ],
)
def test_other_operators_are_named_and_refused(operator: FilterOperator):
    with pytest.raises(FilterError, match=f"^{operator.name} of 'key' is not supported: use .*EQ, .*pass a function"):
        translate(one(operator, "a"))


def test_every_operator_of_the_framework_is_known_or_refused():
    for operator in FilterOperator:
        try:
            translate(one(operator, ["a"] if operator in (FilterOperator.IN, FilterOperator.NIN) else 5))
        except FilterError as error:
            assert str(error).startswith(operator.name)  # noqa: PT017  # some are translated


@pytest.mark.parametrize(
    ("operator", "value", "message"),
    [
        (FilterOperator.EQ, None, "EQ of 'key' compares with None"),
        (FilterOperator.NE, None, "NE of 'key' compares with None"),
        (FilterOperator.EQ, ["a"], r"EQ of 'key' takes no list, not \['a'\]"),
        (FilterOperator.IN, "a", "IN of 'key' takes a list, not 'a'"),
        (FilterOperator.NIN, 5, "NIN of 'key' takes a list, not 5"),
        (FilterOperator.ANY, "a", "ANY of 'key' takes a list, not 'a'"),
        (FilterOperator.ALL, [], "ALL of 'key' takes at least one value"),
        (
            FilterOperator.GT,
            "soon",
            "GT of 'key' takes a number, or a date such as '2024-01-31', not 'soon': pass a fun",
        ),
    ],
)
def test_impossible_values_are_refused(operator: FilterOperator, value: Any, message: str):
    with pytest.raises(FilterError, match=message):
        translate(one(operator, value))


# ------------------------------------------------------------------------------------------------------ in a retriever


@pytest.fixture
def found(shared_model: ColBERT) -> Any:
    nodes = [TextNode(text="lions", id_=str(n), metadata=metadata) for n, metadata in enumerate(METADATAS + LISTS)]
    index = ColBERTRetriever(nodes, model=shared_model, store=MemoryStore()).index

    def ids(filters: Any) -> set[int]:
        retriever = ColBERTRetriever(index=index, similarity_top_k=99, filters=filters)
        return {int(node.node_id) for node in retriever.retrieve("lions")}

    return ids


@pytest.mark.parametrize("operator", [FilterOperator.EQ, FilterOperator.NE, FilterOperator.NIN])
@pytest.mark.parametrize("value", ["a", 5, "nowhere"])
def test_a_retriever_finds_what_the_filters_let_pass(found: Any, operator: FilterOperator, value: Any):
    filters = one(operator, [value] * 2 if operator is FilterOperator.NIN else value)
    wanted = {n for n, metadata in enumerate(METADATAS) if theirs(filters, metadata)}
    assert {n for n in found(filters) if n < len(METADATAS)} == wanted


def test_mappings_functions_and_filters_find_the_same(found: Any):
    wanted = {n for n, metadata in enumerate(METADATAS) if metadata.get("key") == 5}
    filters = MetadataFilters(filters=[*one(FilterOperator.GTE, 5).filters, *one(FilterOperator.LT, 6).filters])
    # A range finds numbers in lists too.
    assert found(filters) == found({"key": {"$gte": 5, "$lt": 6}}) == wanted | {16, 17}
    assert found(lambda node: node.metadata.get("key") == 5) == wanted
    assert found(MetadataFilters(filters=[])) == found({}) == found(None) == set(range(len(METADATAS + LISTS)))


def test_a_function_gets_the_node_itself(found: Any):
    seen: list[Any] = []
    found(lambda node: seen.append(node) or False)
    assert {type(node) for node in seen} == {TextNode}
    assert sorted(int(node.node_id) for node in seen) == list(range(len(METADATAS + LISTS)))
    assert {node.node_id: node.metadata for node in seen}["4"] == {"key": "a"}


def test_what_cannot_be_said_is_refused_when_the_retriever_is_made(missing: dict[str, Any]):
    with pytest.raises(FilterError, match="TEXT_MATCH"):
        ColBERTRetriever([TextNode(text="a")], **missing, filters=one(FilterOperator.TEXT_MATCH, "a"))
    with pytest.raises(FilterError, match="not MetadataFilter$"):
        ColBERTRetriever(**missing, filters=one(FilterOperator.EQ, "a").filters[0])


def test_an_error_in_a_function_reaches_the_caller(found: Any):
    with pytest.raises(KeyError, match="nothing"):
        found(lambda node: node.metadata["nothing"])
