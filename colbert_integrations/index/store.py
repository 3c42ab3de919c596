"""Store: the protocol of everything that keeps token embeddings and searches them, in this process or elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import torch

from ..cancellation import current_cancellation
from ..checks import check_whole_number
from ..embeddings import TokenEmbeddings
from ..errors import InputError, StoreError
from ..fingerprint import Fingerprint
from ..progress import progress_bar
from ..worker import Worker

if TYPE_CHECKING:  # stores find documents, and who knows the model may explain them
    from ..explain import Explanation

__all__ = ["Filter", "Hit", "Metadata", "Search", "Store", "StoredDocument"]

Metadata: TypeAlias = Mapping[str, Any]

Search: TypeAlias = Literal["exact", "codes", "centroids", "first_stage"]
"""How a search finds documents; ``"exact"`` scores every one, the others name a candidate stage."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredDocument:
    """What a store keeps of a document.

    Attributes:
        id: Its id.
        text: Its text, None if none was given.
        metadata: JSON-able data with string keys; a copy, free to change.
        embeddings: Its vectors, ``(num_tokens, dim)``; None where they were not asked for.
    """

    id: str
    text: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    embeddings: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found.

    Attributes:
        id: Its id.
        score: Its MaxSim with the query; its mean over the query's vectors, 0 to 1, where ``normalize_scores`` was
            asked for. Higher is better, comparable within one query only.
        text: Its text, None if none was given.
        metadata: Its metadata; a copy, free to change.
        explanation: How the score came about, where that was asked for.
    """

    id: str
    score: float
    text: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    explanation: Explanation | None = field(default=None, repr=False)


Filter: TypeAlias = Mapping[str, Any] | Callable[[StoredDocument], bool]
"""Conditions on metadata, all of which must hold, or a function of a document without its vectors."""


class Store(ABC):
    """Keeps documents as token embeddings and finds those that score highest for a query.

    Ids are strings, metadata is JSON. All stores give the same results: raw MaxSim sums in float32, ordered by score
    descending, then id ascending. A search sees the documents of whole calls only, never half an ``upsert``. Texts
    are kept, not encoded: a store knows no model, only the ``fingerprint`` of the one whose vectors it holds.
    """

    def __init__(self, *, threads: int = 2) -> None:
        self._worker = Worker(threads)
        # For what takes moments, which would wait behind searches otherwise.
        self._quick_worker = Worker(threads)

    # ------------------------------------------------------------------------------------------- to be implemented

    @property
    @abstractmethod
    def dim(self) -> int | None:
        """Dimension of the vectors; None until the first ones are stored."""

    @property
    @abstractmethod
    def fingerprint(self) -> Fingerprint | None:
        """The model whose vectors these are; None until ``bind`` records it."""

    @abstractmethod
    def upsert(
        self,
        ids: Sequence[str],
        embeddings: TokenEmbeddings,
        texts: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Store documents; one whose id is there replaces the old one.

        Args:
            ids: Their ids, not empty; of a repeated one the last counts.
            embeddings: Their vectors, at least one each, ``len(ids)`` entries.
            texts: Their texts. None: none.
            metadatas: JSON-able data with string keys for each. None: empty.

        Raises:
            InputError: If anything can't be stored; nothing is, then.
            StoreError: If the store is closed, or its server fails or refuses.
        """

    @abstractmethod
    def set_metadata(
        self, ids: Sequence[str], metadatas: Sequence[Metadata], texts: Sequence[str] | None = None
    ) -> None:
        """Replace the metadata of documents, their vectors and texts stay.

        Args:
            ids: Ids of documents; unknown ones are passed over.
            metadatas: The new metadata of each.
            texts: The text that each has had: one whose text was replaced by now is passed over. None: whatever it is.

        Raises:
            InputError: If the ids are not a list of strings, the lengths differ or metadata is not JSON.
            StoreError: If the store is closed, or its server fails or refuses.
        """

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents.

        Args:
            ids: Their ids; unknown ones are passed over.

        Raises:
            InputError: If the ids are not a list of strings.
            StoreError: If the store is closed, or its server fails or refuses.
        """

    @abstractmethod
    def get(self, ids: Sequence[str], *, embeddings: bool = False) -> list[StoredDocument]:
        """Look documents up.

        Args:
            ids: Their ids.
            embeddings: Whether their vectors are wanted too.

        Returns:
            The documents that are there, in the order of ``ids``.

        Raises:
            InputError: If the ids are not a list of strings.
            StoreError: If the store is closed, or its server fails or refuses.
        """

    @abstractmethod
    def count(self) -> int:
        """Count the documents.

        Returns:
            How many there are.

        Raises:
            StoreError: If the store is closed, or its server fails or refuses.
        """

    @abstractmethod
    def ids(self, filter: Filter | None = None) -> list[str]:
        """List the ids of documents.

        Args:
            filter: Conditions that documents must meet. None: all do.

        Returns:
            Their ids, rising.

        Raises:
            FilterError: If the filter uses a key, operator or value that filters do not support.
            StoreError: If the store is closed, or its server fails or refuses.
        """

    @abstractmethod
    def search(
        self,
        queries: TokenEmbeddings,
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Find the documents that score highest.

        ``score(q, d) = sum_s max_t <q_s, d_t>``

        Args:
            queries: One or more queries.
            k: Maximum number of documents to find for each, at least 1.
            filter: Conditions that documents must meet, applied before scoring; see ``filters``. None: all do.
            ids: Look among these documents only. None: among all.
            search: ``"exact"``: score every document; others name a candidate stage that the store offers. None: the
                store's own choice, which is exact unless it was made otherwise.
            candidates: For a candidate stage, how many documents are scored exactly: more is slower and finds more.
                None: the store's own choice.
            texts: What the queries say, for a candidate stage that has vectors of its own for them. None: not at hand.

        Returns:
            For each query at most ``k`` hits, score descending, then id ascending.

        Raises:
            InputError: If an argument can't be used, or the store does not offer this ``search``.
            StoreError: If the store is closed, or its server fails or refuses.
        """

    def check_search(self, search: Search) -> None:  # noqa: B027  # what a store does not refuse here, search() does
        """Refuse a way to search that this store does not offer, before queries are encoded for it.

        Args:
            search: As for ``search``.

        Raises:
            InputError: If ``search`` would refuse it.
        """

    @abstractmethod
    def iter_documents(self) -> Iterator[StoredDocument]:
        """All documents with their vectors, as they were when the first was asked for.

        Yields:
            Documents, in no particular order.

        Raises:
            StoreError: If the store is closed, or its server fails or refuses.
        """

    @abstractmethod
    def bind(self, fingerprint: Fingerprint) -> None:
        """Record which model the vectors come from.

        Args:
            fingerprint: Of the model. Its ``encodings`` replace those that are recorded, unless it has none.

        Raises:
            FingerprintError: If they are another model's.
            StoreError: If the store is closed, or its server fails or refuses.
        """

    def close(self) -> None:
        """Free what the store holds in this process; further calls are errors."""
        self._worker.close()
        self._quick_worker.close()

    # ------------------------------------------------------------------------------------------------ same for all

    def copy_from(self, source: Store, *, batch_tokens: int = 2**17, show_progress: bool | None = None) -> int:
        """Take over all documents of another store; nothing is encoded again.

        Args:
            source: The other store.
            batch_tokens: About how many vectors are moved at once.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Returns:
            How many documents came.

        Raises:
            FingerprintError: If this store holds another model's vectors.
            InputError: If an argument is invalid, or a document can't be stored here.
            StoreError: If a store is closed, or its server fails or refuses.
        """
        if not isinstance(source, Store):
            raise InputError(f"source must be a store, not {type(source).__name__}; that of an index is its .store")
        check_whole_number("batch_tokens", batch_tokens)
        if source.fingerprint is not None:
            self.bind(source.fingerprint.with_encodings_of(self.fingerprint))
        moved, cancellation = 0, current_cancellation()
        with progress_bar(source.count(), show_progress, "Copying") as bar:
            for batch in _batches(source.iter_documents(), batch_tokens):
                cancellation.check()
                self._take(batch)
                moved += len(batch)
                bar.update(len(batch))
        return moved

    def _take(self, batch: list[StoredDocument]) -> None:
        self.upsert(
            [document.id for document in batch],
            TokenEmbeddings.from_list([_vectors_of(document) for document in batch]),
            [document.text for document in batch],
            [document.metadata for document in batch],
        )

    def __len__(self) -> int:
        return self.count()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __copy__(self) -> Store:
        return self  # as open files are: a copy of what holds a store uses the same documents

    def __deepcopy__(self, memo: dict[int, Any]) -> Store:
        return self

    def __reduce__(self) -> NoReturn:
        raise StoreError(
            f"a {type(self).__name__} can't be pickled: save it and load it in the other process, or, where it has a "
            "location, open the same one there"
        )

    # ------------------------------------------------------------------------------------------------- async twins

    async def aupsert(
        self,
        ids: Sequence[str],
        embeddings: TokenEmbeddings,
        texts: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Do what ``upsert`` does without blocking the event loop; see there for the arguments."""
        await self._worker.run(self.upsert, ids, embeddings, texts, metadatas)

    async def aset_metadata(
        self, ids: Sequence[str], metadatas: Sequence[Metadata], texts: Sequence[str] | None = None
    ) -> None:
        """Do what ``set_metadata`` does without blocking the event loop; see there for the arguments."""
        await self._worker.run(self.set_metadata, ids, metadatas, texts)

    async def adelete(self, ids: Sequence[str]) -> None:
        """Do what ``delete`` does without blocking the event loop; see there for the arguments."""
        await self._quick_worker.run(self.delete, ids)

    async def aget(self, ids: Sequence[str], *, embeddings: bool = False) -> list[StoredDocument]:
        """Do what ``get`` does without blocking the event loop; see there for the arguments."""
        return await self._quick_worker.run(self.get, ids, embeddings=embeddings)

    async def acount(self) -> int:
        """Do what ``count`` does without blocking the event loop."""
        return await self._quick_worker.run(self.count)

    async def aids(self, filter: Filter | None = None) -> list[str]:
        """Do what ``ids`` does without blocking the event loop; see there for the arguments."""
        return await self._quick_worker.run(self.ids, filter)

    async def asearch(
        self,
        queries: TokenEmbeddings,
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Do what ``search`` does without blocking the event loop; see there for the arguments."""
        return await self._worker.run(
            self.search, queries, k, filter, ids=ids, search=search, candidates=candidates, texts=texts
        )

    async def aiter_documents(self) -> AsyncIterator[StoredDocument]:
        """Do what ``iter_documents`` does without blocking the event loop."""
        documents = self.iter_documents()
        while (document := await self._worker.run(next, documents, None)) is not None:
            yield document

    async def acopy_from(self, source: Store, *, batch_tokens: int = 2**17, show_progress: bool | None = None) -> int:
        """Do what ``copy_from`` does without blocking the event loop; see there for the arguments."""
        return await self._worker.run(self.copy_from, source, batch_tokens=batch_tokens, show_progress=show_progress)

    async def aclose(self) -> None:
        """Do what ``close`` does without blocking the event loop."""
        await self._worker.run(self.close)


def _batches(documents: Iterator[StoredDocument], tokens: int) -> Iterator[list[StoredDocument]]:
    """Documents in batches that have about so many vectors."""
    batch, taken = list[StoredDocument](), 0
    for document in documents:
        batch.append(document)
        taken += len(_vectors_of(document))
        if taken >= tokens:
            yield batch
            batch, taken = [], 0
    if batch:
        yield batch


def _vectors_of(document: StoredDocument) -> torch.Tensor:
    if document.embeddings is None:
        raise StoreError(f"{document.id!r} has no vectors in the store that is copied")
    return document.embeddings
