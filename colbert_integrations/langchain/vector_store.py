"""ColBERT as a LangChain vector store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from typing_extensions import Self

from ..adapter import check_query
from ..errors import InputError
from .documents import DocumentFilter, columns, document_of, document_of_hit, make_index, store_filter

if TYPE_CHECKING:
    from ..colbert_index import ColBERTIndex
    from ..index import Hit, Search, Store
    from ..model import ColBERT

__all__ = ["ColBERTVectorStore"]

Scored = tuple[Document, float]


class ColBERTVectorStore(VectorStore):
    """Documents that ColBERT finds, for what takes a LangChain vector store.

    For retrieval alone ``ColBERTRetriever`` says more. Searches take ``k``, a ``filter`` (conditions on metadata or a
    function of a document), ``search`` and ``candidates``, which are those of ``ColBERTIndex.search``. Each result is
    a new document without a score in its metadata.

    Args:
        model: A name, a path or a ``ColBERT``. None: that of the index, or the default.
        store: Where documents are kept, or its location, such as ``"qdrant+http://localhost:6333/my-collection"``.
            None: that of the index, or in this process.
        index: An index to share with other adapters, instead of model and store.

    Raises:
        InputError: If an argument is of a wrong type, or they contradict each other.
        StoreError: If the store holds vectors of another model.

    Example:
        >>> store = ColBERTVectorStore.from_texts(
        ...     ["How to bake bread", "Why the wings of a plane lift it"], model="bundled/all-MiniLM-L6-v2"
        ... )
        >>> store.similarity_search("how do planes fly", k=1)[0].page_content
        'Why the wings of a plane lift it'
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ColBERT | None = None,
        store: Store | str | None = None,
        index: ColBERTIndex | None = None,
    ) -> None:
        self.index = make_index(model, store, index)

    # --------------------------------------------------------------------------------------------------------- making

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a vector store of texts.

        Args:
            texts: The texts.
            embedding: None: ColBERT needs none, and would not use one.
            metadatas: JSON-able data for each. None: empty.
            ids: An id for each. None, here or there: a hash of text and metadata.
            **kwargs: Arguments of the constructor.

        Returns:
            The vector store.

        Raises:
            InputError: If an argument can't be used.
            AddError: If some texts can't be stored.
        """
        _check_no_embedding(embedding)
        made = cls(**kwargs)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Do what ``from_texts`` does without blocking the event loop; see there for the arguments."""
        _check_no_embedding(embedding)
        made = await asyncio.to_thread(cls, **kwargs)  # the first index of a process imports torch
        await made.aadd_texts(texts, metadatas, ids=ids)
        return made

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        embedding: Embeddings | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a vector store of documents.

        Args:
            documents: The documents.
            embedding: None: ColBERT needs none, and would not use one.
            ids: An id for each. None, for one or for all: the document's own, or a hash of text and metadata.
            **kwargs: Arguments of the constructor.

        Returns:
            The vector store.

        Raises:
            InputError: If an argument can't be used.
            AddError: If some documents can't be stored.
        """
        _check_no_embedding(embedding)
        made = cls(**kwargs)
        made.add_documents(documents, ids=ids)
        return made

    @classmethod
    async def afrom_documents(
        cls,
        documents: Sequence[Document],
        embedding: Embeddings | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Do what ``from_documents`` does without blocking the event loop; see there for the arguments."""
        _check_no_embedding(embedding)
        made = await asyncio.to_thread(cls, **kwargs)
        await made.aadd_documents(documents, ids=ids)
        return made

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: str | os.PathLike[str] | ColBERT | None = None,
        *,
        device: str | None = None,
        verify: bool = True,
    ) -> Self:
        """Open what was saved.

        Args:
            folder: Where it was saved.
            model: The model whose vectors it holds. None: the one it was made with, by its name and settings.
            device: Where vectors are kept and searched. None: the CPU.
            verify: Whether the checksums of all files are compared.

        Returns:
            The vector store.

        Raises:
            StoreError: If there is no index, a file is damaged, or it holds vectors of another model.
            CheckpointError: If the model can't be loaded.
        """
        from ..colbert_index import ColBERTIndex

        return cls(index=ColBERTIndex.load(folder, model, device=device, verify=verify))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the documents and their vectors to a folder, as one step, and only what changed.

        Args:
            folder: Where; made if it is not there.

        Raises:
            StoreError: If it can't be written, or the store is kept elsewhere anyway.
        """
        self.index.save(folder)

    def close(self) -> None:
        """Free the model's weights; the documents stay, and the next call loads the weights again."""
        self.index.model.close()

    # ------------------------------------------------------------------------------------------------------ documents

    def add_texts(  # type: ignore[override]  # unknown arguments are an error
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        reencode: bool = False,
    ) -> list[str]:
        """Add texts; one whose id is there replaces the old one, and is encoded only if it changed.

        Args:
            texts: The texts.
            metadatas: JSON-able data for each. None: empty.
            ids: An id for each. None, here or there: a hash of text and metadata.
            batch_size: Not used: LangChain's indexing passes it, the model has a budget of its own.
            reencode: Whether texts that are there unchanged are encoded again, as after a change of the model's
                settings. To LangChain's indexing pass it as ``upsert_kwargs={"reencode": True}``.

        Returns:
            The id of each, in order.

        Raises:
            InputError: If the arguments have different lengths.
            AddError: If some can't be stored, after all others were; it lists them and says why.
            StoreError: If the store can't be used.
        """
        return self.index.add(texts, ids, metadatas, reencode=reencode)

    async def aadd_texts(  # type: ignore[override]  # unknown arguments are an error
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        reencode: bool = False,
    ) -> list[str]:
        """Do what ``add_texts`` does without blocking the event loop; see there for the arguments."""
        return await self.index.aadd(texts, ids, metadatas, reencode=reencode)

    # LangChain's own goes through the documents three times: of a generator it would add nothing, without a word.
    def add_documents(  # type: ignore[override]  # unknown arguments are an error
        self,
        documents: Sequence[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        reencode: bool = False,
    ) -> list[str]:
        """Add documents; one whose id is there replaces the old one, and is encoded only if its text changed.

        Args:
            documents: The documents, with JSON-able metadata.
            ids: An id for each. None, for one or for all: the document's own, or a hash of text and metadata.
            batch_size: Not used, as in ``add_texts``.
            reencode: As in ``add_texts``.

        Returns:
            The id of each, in order.

        Raises:
            InputError: If they are not a list of documents, or not as many as ids.
            AddError: If some can't be stored, after all others were; it lists them and says why.
            StoreError: If the store can't be used.
        """
        texts, metadatas, names = columns(documents, ids)
        return self.add_texts(texts, metadatas, ids=names, reencode=reencode)

    async def aadd_documents(  # type: ignore[override]  # unknown arguments are an error
        self,
        documents: Sequence[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        reencode: bool = False,
    ) -> list[str]:
        """Do what ``add_documents`` does without blocking the event loop; see there for the arguments."""
        texts, metadatas, names = columns(documents, ids)
        return await self.aadd_texts(texts, metadatas, ids=names, reencode=reencode)

    def delete(self, ids: Sequence[str] | None = None) -> bool:  # type: ignore[override]  # the same
        """Remove documents.

        Args:
            ids: Their ids; unknown ones are passed over. None is refused, so that nobody deletes all by mistake.

        Returns:
            True.

        Raises:
            InputError: If the ids are not a list of strings.
            StoreError: If the store can't be used.
        """
        self.index.delete(_named(ids))
        return True

    async def adelete(self, ids: Sequence[str] | None = None) -> bool:  # type: ignore[override]  # the same
        """Do what ``delete`` does without blocking the event loop; see there for the arguments."""
        await self.index.adelete(_named(ids))
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Look documents up.

        Args:
            ids: Their ids.

        Returns:
            Those that are there, in the order of ``ids``.

        Raises:
            InputError: If the ids are not a list of strings.
            StoreError: If the store can't be used.
        """
        return [document_of(stored) for stored in self.index.get(ids)]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Do what ``get_by_ids`` does without blocking the event loop; see there for the arguments."""
        found = await self.index.aget(ids)
        return await asyncio.to_thread(lambda: [document_of(stored) for stored in found])

    # --------------------------------------------------------------------------------------------------------- search
    # Options are named and checked in _arguments. Here they are **kwargs: Any as in LangChain's own methods, since a
    # tool that is made of one reads its signature and can make nothing of an Unpack.

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Find the documents that answer a query best.

        Args:
            query: The query; white space around it is ignored.
            k: Maximum number of documents to find.
            **kwargs: ``filter``, ``search``, ``candidates``: see the class.

        Returns:
            At most ``k`` documents, best first.

        Raises:
            InputError: If an argument can't be used.
            StoreError: If the store can't be used.
        """
        return [document for document, _ in self._search(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Do what ``similarity_search`` does without blocking the event loop; see there for the arguments."""
        return [document for document, _ in await self._asearch(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[Scored]:
        """Find documents and say their scores.

        Args:
            query: The query.
            k: Maximum number of documents to find.
            **kwargs: ``filter``, ``search``, ``candidates``: see the class.

        Returns:
            Documents, each with its MaxSim: the raw sum, higher is better, comparable within one query only. Scores
            from 0 to 1 are in ``similarity_search_with_relevance_scores``.

        Raises:
            InputError: If an argument can't be used.
            StoreError: If the store can't be used.
        """
        return self._search(query, k, **kwargs)

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[Scored]:
        """Do what ``similarity_search_with_score`` does without blocking the event loop; see there."""
        return await self._asearch(query, k, **kwargs)

    # Not by _select_relevance_score_fn, which sees a sum but not the number of query vectors that it is to be
    # divided by.
    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> list[Scored]:
        return self._search(query, k, normalize_scores=True, **kwargs)

    async def _asimilarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> list[Scored]:
        return await self._asearch(query, k, normalize_scores=True, **kwargs)

    def max_marginal_relevance_search(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: it compares documents by one vector each, and here they have one for each token.

        Args:
            *args: Of any kind.
            **kwargs: Of any kind.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "mmr compares documents by a single vector each, ColBERT keeps one for each token: use search_type="
            "'similarity' or 'similarity_score_threshold'"
        )

    async def amax_marginal_relevance_search(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse as ``max_marginal_relevance_search`` does."""
        self.max_marginal_relevance_search()

    def similarity_search_by_vector(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a query has one vector for each token.

        Args:
            *args: Of any kind.
            **kwargs: Of any kind.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "a query has one vector for each token: pass its text to similarity_search, or its vectors to "
            "index.store.search"
        )

    async def asimilarity_search_by_vector(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse as ``similarity_search_by_vector`` does."""
        self.similarity_search_by_vector()

    def _search(self, query: str, k: int, **options: Any) -> list[Scored]:
        return _scored(self.index.search(check_query(query), k, **_arguments(**options)))

    async def _asearch(self, query: str, k: int, **options: Any) -> list[Scored]:
        hits = await self.index.asearch(check_query(query), k, **_arguments(**options))
        return await asyncio.to_thread(_scored, hits)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index!r})"


def _arguments(
    filter: DocumentFilter | None = None,
    search: Search | None = None,
    candidates: int | None = None,
    normalize_scores: bool = False,
    **others: Any,
) -> dict[str, Any]:
    """Arguments of a search of the index, made of the options of a call; refuse other options."""
    if "score_threshold" in others:
        raise InputError(
            "score_threshold is for similarity_search_with_relevance_scores, and for as_retriever with "
            "search_type='similarity_score_threshold'"
        )
    if others:
        raise InputError(f"a search takes k, filter, search and candidates, not {', '.join(others)}")
    return {
        "filter": store_filter(filter),
        "search": search,
        "candidates": candidates,
        "normalize_scores": normalize_scores,
    }


def _scored(hits: list[Hit]) -> list[Scored]:
    return [(document_of_hit(hit), hit.score) for hit in hits]


def _check_no_embedding(embedding: object) -> None:
    if embedding is not None:
        raise InputError(
            "embedding must be None: the ColBERT that is passed as model makes the vectors; pass metadatas= by name"
        )


def _named(ids: Sequence[str] | None) -> Sequence[str]:
    if ids is None:
        raise InputError("delete needs the ids of the documents to remove")
    return ids
