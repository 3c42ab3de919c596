"""What the adapters share: the check of documents, the index behind them, and documents on their way in and out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.documents import Document

from ..adapter import EXPLANATION, check_index, check_items, class_name
from ..checks import as_list, keys_of
from ..errors import InputError

if TYPE_CHECKING:  # at run time only once an index is made: its room imports torch
    from ..colbert_index import ColBERTIndex
    from ..index import Filter, Hit, Store, StoredDocument
    from ..model import ColBERT

__all__ = [
    "DocumentFilter",
    "check_documents",
    "columns",
    "document_of",
    "document_of_hit",
    "make_index",
    "store_filter",
]

DocumentFilter: TypeAlias = Mapping[str, Any] | Callable[[Document], bool]
"""Conditions on metadata, as in ``index.filters``, or a function of a document."""


def make_index(
    model: str | os.PathLike[str] | ColBERT | None = None,
    store: Store | str | None = None,
    index: ColBERTIndex | None = None,
) -> ColBERTIndex:
    """The index to search: the one that is given, or a new one of model and store.

    Args:
        model: A name, a path or a ``ColBERT``. None: that of the index, or the default.
        store: Where documents are kept, or its location. None: that of the index, or a new one in this process.
        index: An index, which has a model and a store.

    Returns:
        The index.

    Raises:
        InputError: If an argument is of a wrong type, or index and others contradict.
        StoreError: If the store holds vectors of another model.
    """
    from ..colbert_index import ColBERTIndex
    from ..index import Store

    if store is not None and not isinstance(store, (Store, str)):
        raise InputError(f"store must be a Store or the location of one, not {type(store).__name__}")
    if index is None:
        return ColBERTIndex(store=store) if model is None else ColBERTIndex(model, store)
    return check_index(index, model, store)


# ----------------------------------------------------------------------------------------------------------------- in


def check_documents(documents: object) -> Sequence[Document]:
    """The documents, if they are a list of them."""
    items = check_items("documents", documents)
    for place, document in enumerate(items):
        if not isinstance(document, Document):
            raise InputError(f"documents[{place}] must be a Document, not {class_name(document, 'Document')}")
    return items


def columns(
    documents: Sequence[Document], ids: Sequence[str | None] | None
) -> tuple[list[str], list[dict[str, Any]], list[str | None]]:
    """Texts, metadata and ids of documents.

    Args:
        documents: The documents.
        ids: An id for each. None, for one or for all: its own, if it has one.

    Returns:
        The three lists.

    Raises:
        InputError: If they are not a list of documents, or not as many as ids.
    """
    check_documents(documents)
    given = [None] * len(documents) if ids is None else as_list("ids", keys_of(ids))
    if len(given) != len(documents):
        raise InputError(f"{len(documents)} documents but {len(given)} ids")
    return (
        [document.page_content for document in documents],
        [document.metadata for document in documents],
        [document.id if name is None else name for document, name in zip(documents, given, strict=True)],
    )


# ---------------------------------------------------------------------------------------------------------------- out


def document_of(stored: StoredDocument) -> Document:
    """Make a new document of a stored one.

    Args:
        stored: The stored document; its metadata is a copy already.

    Returns:
        The document; without text if the store has none for it.
    """
    return Document(stored.text or "", id=stored.id, metadata=stored.metadata)


def document_of_hit(hit: Hit, score_key: str | None = None) -> Document:
    """Make a new document of what a search found.

    Args:
        hit: What was found; its metadata is a copy already.
        score_key: Where the score goes in the metadata. None: nowhere.

    Returns:
        The document, with the hit's explanation if it has one; without text if the store has none for it.
    """
    metadata = hit.metadata if score_key is None else {**hit.metadata, score_key: hit.score}
    if hit.explanation is not None:
        metadata = {**metadata, EXPLANATION: hit.explanation.as_dict()}
    return Document(hit.text or "", id=hit.id, metadata=metadata)


def store_filter(filter: DocumentFilter | None) -> Filter | None:
    """Make the filter that a store takes.

    Args:
        filter: Conditions, or a function of a ``Document``. None: none.

    Returns:
        The conditions, or a function of what the store has.
    """
    if filter is None or not callable(filter):
        return filter
    return lambda stored: filter(document_of(stored))
