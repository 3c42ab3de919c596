"""Filters as LlamaIndex users write them, said in the language that every store understands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from ..errors import FilterError
from .nodes import REF_DOC_ID, node_of, ref_doc_id_of

if TYPE_CHECKING:
    from ..index import Filter, StoredDocument

__all__ = ["NodeFilter", "store_filter", "translate"]

NodeFilter: TypeAlias = MetadataFilters | Mapping[str, Any] | Callable[[BaseNode], bool]
"""The framework's filters, conditions such as ``{"year": {"$gte": 2020}}``, or a function of a node."""

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.CONTAINS: "$eq",  # of a list: equal to one of it
    FilterOperator.NE: "$ne",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
}
_LISTS = {"$in", "$nin"}
_NEGATIONS = {"$ne", "$nin"}
_RANGES = {"$gt", "$gte", "$lt", "$lte"}
_INSTEAD = "pass a function of a node as filters instead, such as lambda node: node.metadata.get('year') == 2020"


def store_filter(filters: NodeFilter | None, doc_ids: Sequence[str] | None) -> Filter | None:
    """A filter for a store.

    Args:
        filters: What nodes must meet. None: nothing.
        doc_ids: Ids of the documents that nodes must come from. None: any.

    Returns:
        Conditions, or a function of a stored document. None: no filter.

    Raises:
        FilterError: If the filters are of another kind, or ask for what stores can't do.
    """
    given = translate(filters) if isinstance(filters, MetadataFilters) else filters
    if callable(given):
        return _by_function(given, None if doc_ids is None else frozenset(doc_ids))
    if given is not None and not isinstance(given, Mapping):
        raise FilterError(f"filters must be MetadataFilters, a mapping or a function, not {type(given).__name__}")
    restriction = {} if doc_ids is None else {REF_DOC_ID: {"$in": list(doc_ids)}}
    return {**(given or {}), **restriction} or None


def translate(filters: MetadataFilters) -> dict[str, dict[str, Any]]:
    """The framework's filters as conditions, all of which must hold.

    Where metadata holds a list, ``EQ``, ``IN`` and ranges ask for one of it, ``NE`` and ``NIN`` for none; a dot in a
    key looks into a nested mapping, or is a part of the name; ``True`` is not ``1``. All that ``NE`` and ``NIN`` say of
    one key becomes one list.

    Args:
        filters: Filters joined by AND, nested or not.

    Returns:
        Conditions by key and operator.

    Raises:
        FilterError: If they ask for something that can't be said.
    """
    found: dict[str, dict[str, Any]] = {}
    excluded: dict[str, list[Any]] = {}
    for key, name, value in _conditions(filters):
        conditions = found.setdefault(key, {})
        if name in _NEGATIONS:
            excluded.setdefault(key, []).extend(value if name in _LISTS else [value])
        elif conditions.setdefault(name, value) != value:
            raise FilterError(f"two filters ask {name} of {key!r}, {conditions[name]!r} and {value!r}: {_INSTEAD}")
    for key, values in excluded.items():
        found[key] |= {"$ne": values[0]} if len(values) == 1 else {"$nin": values}
    return found


def _is_single_or(filters: MetadataFilters) -> bool:
    return filters.condition is FilterCondition.OR and len(filters.filters) == 1


def _conditions(filters: MetadataFilters) -> Iterator[tuple[str, str, Any]]:
    """The key, operator and value of each filter, nested ones too."""
    if filters.condition not in (None, FilterCondition.AND) and not _is_single_or(filters):
        raise FilterError(f"filters can't be joined by {filters.condition.name}, only by AND: {_INSTEAD}")
    for item in filters.filters:
        if isinstance(item, MetadataFilters):
            yield from _conditions(item)
        else:
            yield item.key, *_condition(item)


def _condition(item: MetadataFilter) -> tuple[str, Any]:
    name, asked = _OPERATORS.get(item.operator), f"{item.operator.name} of {item.key!r}"
    if name is None:
        known = ", ".join(operator.name for operator in _OPERATORS)
        raise FilterError(f"{asked} is not supported: use one of {known}, or {_INSTEAD}")
    if item.value is None:
        raise FilterError(f"{asked} compares with None: {_INSTEAD}")
    if isinstance(item.value, list) != (name in _LISTS):
        raise FilterError(f"{asked} takes {'a list' if name in _LISTS else 'no list'}, not {item.value!r}")
    if name in _RANGES and isinstance(item.value, str):
        raise FilterError(f"{asked} takes a number, not {item.value!r}: {_INSTEAD}")
    return name, item.value


def _by_function(
    passes: Callable[[BaseNode], bool], doc_ids: frozenset[str] | None
) -> Callable[[StoredDocument], bool]:
    def wanted(document: StoredDocument) -> bool:
        if doc_ids is not None and ref_doc_id_of(document.metadata) not in doc_ids:
            return False
        return passes(node_of(document.id, document.text, document.metadata))

    return wanted
