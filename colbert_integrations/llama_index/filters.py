"""Filters as LlamaIndex users write them, said in the language that every store understands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from ..dates import instant
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
    FilterOperator.ANY: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.ALL: "$eq",  # of a list: equal to one of it, for each value
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
}
_LISTS = {FilterOperator.IN, FilterOperator.ANY, FilterOperator.NIN, FilterOperator.ALL}
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
    return _joined([part for part in (given, restriction) if part]) or None


def translate(filters: MetadataFilters) -> dict[str, Any]:
    """The framework's filters in the language of ours.

    Where metadata holds a list, ``EQ``, ``IN``, ``ANY`` and ranges ask for one of it, ``ALL`` for each of its values,
    ``NE`` and ``NIN`` for none; a dot in a key looks into a nested mapping, or is a part of the name; ``True`` is not
    ``1``. ``NOT`` lets pass what meets none of its filters.

    Args:
        filters: Filters joined by AND, OR or NOT, nested or not. No filters at all let everything pass.

    Returns:
        A filter that every store understands.

    Raises:
        FilterError: If they ask for something that can't be said.
    """
    parts = [translate(item) if isinstance(item, MetadataFilters) else _condition(item) for item in filters.filters]
    if not parts or filters.condition in (None, FilterCondition.AND):
        return _joined(parts)
    return {"$or": parts} if filters.condition is FilterCondition.OR else {"$not": {"$or": parts}}


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What holds where all filters do."""
    return dict(parts[0]) if len(parts) == 1 else {"$and": list(parts)} if parts else {}


def _condition(item: MetadataFilter) -> dict[str, Any]:
    name, asked = _OPERATORS.get(item.operator), f"{item.operator.name} of {item.key!r}"
    if name is None:
        known = ", ".join(operator.name for operator in _OPERATORS)
        raise FilterError(f"{asked} is not supported: use one of {known}, or {_INSTEAD}")
    if item.value is None:
        raise FilterError(f"{asked} compares with None: {_INSTEAD}")
    several = item.operator in _LISTS
    if isinstance(item.value, list) != several:
        raise FilterError(f"{asked} takes {'a list' if several else 'no list'}, not {item.value!r}")
    if name in _RANGES and isinstance(item.value, str) and instant(item.value) is None:
        raise FilterError(f"{asked} takes a number, or a date such as '2024-01-31', not {item.value!r}: {_INSTEAD}")
    if item.operator is not FilterOperator.ALL or not isinstance(item.value, list):
        return {item.key: {name: item.value}}
    if not item.value:
        raise FilterError(f"{asked} takes at least one value")
    return _joined([{item.key: {name: value}} for value in item.value])


def _by_function(
    passes: Callable[[BaseNode], bool], doc_ids: frozenset[str] | None
) -> Callable[[StoredDocument], bool]:
    def wanted(document: StoredDocument) -> bool:
        if doc_ids is not None and ref_doc_id_of(document.metadata) not in doc_ids:
            return False
        return passes(node_of(document.id, document.text, document.metadata))

    return wanted
