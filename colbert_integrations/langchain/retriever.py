"""ColBERT as a LangChain retriever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from typing_extensions import Self

from ..adapter import ModelFields, check_query
from ..errors import InputError
from ..names import likely_name
from .documents import DocumentFilter, columns, document_of, document_of_hit, make_index, store_filter
from .tracing import figures_on

if TYPE_CHECKING:
    from ..colbert_index import ColBERTIndex
    from ..index import Hit, Search, Store
    from ..model import ColBERT
else:  # what pydantic sees: the real ones come with torch, so they are checked when an index is made
    ColBERTIndex = Store = Any
    Search = Literal["exact", "codes", "centroids", "first_stage"]

__all__ = ["ColBERTRetriever"]

# What a call may say otherwise than the fields.
_OPTIONS = ("k", "filter", "score_threshold", "search", "candidates", "explain")


class ColBERTRetriever(ModelFields, BaseRetriever):
    """Find documents with ColBERT, as a LangChain retriever.

    Documents are searched in this process, or wherever the store keeps them. Each result is a new document, free to
    change. Copies search the same documents; dumps carry none, and pickling is refused: save and load are for that.

    Fields, which are the arguments: ``k``, ``filter``, ``search``, ``candidates``, ``normalize_scores``,
    ``score_threshold``, ``score_key``, ``explain``; ``index``, ``store`` and ``documents`` to begin with; and those of
    the model: ``model``, ``device``, ``dtype``, ``query_length``, ``document_length``, ``long_documents``,
    ``window_overlap``, ``batch_size``, ``colbert_options``.

    Example:
        >>> retriever = ColBERTRetriever.from_texts(
        ...     ["How to bake bread", "Why the wings of a plane lift it"], model="bundled/all-MiniLM-L6-v2", k=1
        ... )
        >>> retriever.invoke("how do planes fly")[0].page_content
        'Why the wings of a plane lift it'
    """

    # Repeated: BaseRetriever's own would let a misspelt field pass without a word.
    model_config = ModelFields.model_config

    k: int = Field(default=4, ge=1)
    """Maximum number of documents to find."""

    filter: dict[str, Any] | Callable[[Document], bool] | None = None
    """Conditions on metadata, such as ``{"year": {"$gte": 2020}}``, or a function of a document. None: all."""

    search: Search | None = None
    """``"exact"`` scores every document, the others name a candidate stage. None: the store's own choice."""

    candidates: int | None = Field(default=None, ge=1)
    """For a candidate stage, how many documents are scored exactly. None: the store's own choice."""

    normalize_scores: bool = True
    """Scores from 0 to 1: the mean over the query's vectors. False: the raw sum. Neither is a probability."""

    score_threshold: float | None = None
    """Lowest score that is returned, on the scale of the scores. None: no limit."""

    score_key: str | None = None
    """Metadata key under which the score is returned. None: it is not, so that what several queries or retrievers
    find is equal where it is the same, which LangChain merges by."""

    explain: bool = False
    """Whether each document says how its score came about, in its metadata under ``explanation``. What several queries
    find is not equal then: explain in a reranker after the retrievers instead."""

    index: ColBERTIndex = Field(default=None, exclude=True, repr=False)  # type: ignore[assignment]  # there when made
    """What is searched; it may be shared with other adapters. Not with ``store``, and it brings its model."""

    store: Store | str | None = Field(default=None, exclude=True, repr=False)
    """Only to be passed: where the index keeps documents, or its location, such as
    ``"qdrant+http://localhost:6333/my-collection"``. None: in this process."""

    documents: list[Document] | None = Field(default=None, exclude=True, repr=False)
    """Only to be passed: documents to add at once."""

    @model_validator(mode="wrap")
    @classmethod
    def _with_index(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        given = {name: data.get(name) for name in ("index", "store", "documents")}
        fields = {name: value for name, value in data.items() if name not in given}
        if given["index"] is not None:
            fields["model"] = make_index(data.get("model"), given["store"], given["index"]).model
        made = handler(fields)
        made.index = given["index"] if given["index"] is not None else make_index(made.colbert, given["store"])
        made.index.check_search(filter=store_filter(made.filter), search=made.search)  # before documents are encoded
        if given["documents"] is not None:
            made.add_documents(given["documents"])
        return made

    # --------------------------------------------------------------------------------------------------------- making

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        metadatas: Sequence[dict[str, Any] | None] | None = None,
        ids: Sequence[str | None] | None = None,
        **fields: Any,
    ) -> Self:
        """Make a retriever of texts.

        Args:
            texts: The texts.
            metadatas: JSON-able data for each. None: empty.
            ids: An id for each. None, here or there: a hash of text and metadata.
            **fields: Fields of the retriever.

        Returns:
            The retriever.

        Raises:
            InputError: If the arguments have different lengths.
            AddError: If some can't be stored.
            ValidationError: If a field is unknown or invalid.
        """
        made = cls(**fields)
        made.index.add(texts, ids, metadatas)
        return made

    @classmethod
    def from_documents(cls, documents: Sequence[Document], **fields: Any) -> Self:
        """Make a retriever of documents.

        Args:
            documents: The documents.
            **fields: Fields of the retriever.

        Returns:
            The retriever.

        Raises:
            InputError: If they are not a list of documents.
            AddError: If some can't be stored.
            ValidationError: If a field is unknown or invalid.
        """
        made = cls(**fields)
        made.add_documents(documents)
        return made

    @classmethod
    async def afrom_texts(
        cls,
        texts: Sequence[str],
        metadatas: Sequence[dict[str, Any] | None] | None = None,
        ids: Sequence[str | None] | None = None,
        **fields: Any,
    ) -> Self:
        """Do what ``from_texts`` does without blocking the event loop; see there for the arguments."""
        made = await asyncio.to_thread(cls, **fields)  # the first index of a process imports torch
        await made.index.aadd(texts, ids, metadatas)
        return made

    @classmethod
    async def afrom_documents(cls, documents: Sequence[Document], **fields: Any) -> Self:
        """Do what ``from_documents`` does without blocking the event loop; see there for the arguments."""
        made = await asyncio.to_thread(cls, **fields)
        await made.aadd_documents(documents)
        return made

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: str | os.PathLike[str] | ColBERT | None = None,
        *,
        device: str | None = None,
        verify: bool = True,
        **fields: Any,
    ) -> Self:
        """Open what was saved.

        Args:
            folder: Where it was saved.
            model: The model whose vectors it holds. None: the one it was made with, by its name and settings.
            device: Where vectors are kept and searched. None: the CPU.
            verify: Whether the checksums of all files are compared.
            **fields: Other fields of the retriever, which are not saved.

        Returns:
            The retriever.

        Raises:
            StoreError: If there is no index, a file is damaged, or it holds vectors of another model.
            CheckpointError: If the model can't be loaded.
            ValidationError: If a field is unknown or invalid.
        """
        from ..colbert_index import ColBERTIndex

        return cls(index=ColBERTIndex.load(folder, model, device=device, verify=verify), **fields)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the documents and their vectors to a folder, as one step, and only what changed.

        Args:
            folder: Where; made if it is not there.

        Raises:
            StoreError: If it can't be written, or the store is kept elsewhere anyway.
        """
        self.index.save(folder)

    # ------------------------------------------------------------------------------------------------------ documents

    def add_documents(
        self, documents: Sequence[Document], ids: Sequence[str | None] | None = None, *, reencode: bool = False
    ) -> list[str]:
        """Add documents; one whose id is there replaces the old one, and is encoded only if its text changed.

        Args:
            documents: The documents, with JSON-able metadata.
            ids: An id for each. None, for one or for all: the document's own, or a hash of text and metadata.
            reencode: Whether texts that are there unchanged are encoded again, as after a change of the model's
                settings.

        Returns:
            The id of each, in order.

        Raises:
            InputError: If they are not a list of documents, or not as many as ids.
            AddError: If some can't be stored, after all others were; it lists them and says why.
            StoreError: If the store can't be used.
        """
        texts, metadatas, names = columns(documents, ids)
        return self.index.add(texts, names, metadatas, reencode=reencode)

    async def aadd_documents(
        self, documents: Sequence[Document], ids: Sequence[str | None] | None = None, *, reencode: bool = False
    ) -> list[str]:
        """Do what ``add_documents`` does without blocking the event loop; see there for the arguments."""
        texts, metadatas, names = columns(documents, ids)
        return await self.index.aadd(texts, names, metadatas, reencode=reencode)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents.

        Args:
            ids: Their ids; unknown ones are passed over.

        Raises:
            InputError: If the ids are not a list of strings.
            StoreError: If the store can't be used.
        """
        self.index.delete(ids)

    async def adelete(self, ids: Sequence[str]) -> None:
        """Do what ``delete`` does without blocking the event loop; see there for the arguments."""
        await self.index.adelete(ids)

    def get_by_ids(self, ids: Sequence[str]) -> list[Document]:
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

    async def aget_by_ids(self, ids: Sequence[str]) -> list[Document]:
        """Do what ``get_by_ids`` does without blocking the event loop; see there for the arguments."""
        found = await self.index.aget(ids)
        return await asyncio.to_thread(lambda: [document_of(stored) for stored in found])

    # ------------------------------------------------------------------------------------------------------ retrieval

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: DocumentFilter | None = None,
        score_threshold: float | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        explain: bool | None = None,
        **unknown: object,
    ) -> list[Document]:
        _refuse(unknown)
        arguments = self._arguments(k, filter, score_threshold, search, candidates, explain)
        with figures_on(run_manager, lambda: {**self.about(), "colbert.k": arguments["k"]}):
            return self._documents(self.index.search(check_query(query), **arguments))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: DocumentFilter | None = None,
        score_threshold: float | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        explain: bool | None = None,
        **unknown: object,
    ) -> list[Document]:
        _refuse(unknown)
        arguments = self._arguments(k, filter, score_threshold, search, candidates, explain)
        with figures_on(run_manager, lambda: {**self.about(), "colbert.k": arguments["k"]}):
            hits = await self.index.asearch(check_query(query), **arguments)
            # Documents of thousands of hits, or explanations of a few, take a while: not on the loop.
            return await asyncio.to_thread(self._documents, hits)

    def _arguments(
        self,
        k: int | None,
        filter: DocumentFilter | None,
        score_threshold: float | None,
        search: Search | None,
        candidates: int | None,
        explain: bool | None,
    ) -> dict[str, Any]:
        """Arguments of a search of the index: the options of this call, else the fields."""
        self._check_settings_of(self.index)
        return {
            "k": self.k if k is None else k,
            "filter": store_filter(self.filter if filter is None else filter),
            "score_threshold": self.score_threshold if score_threshold is None else score_threshold,
            "search": self.search if search is None else search,
            "candidates": self.candidates if candidates is None else candidates,
            "normalize_scores": self.normalize_scores,
            "explain": self.explain if explain is None else explain,
        }

    def _documents(self, hits: list[Hit]) -> list[Document]:
        return [document_of_hit(hit, self.score_key) for hit in hits]

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = type(self.index.store).__name__
        params["ls_embedding_provider"] = "colbert_integrations"
        params["ls_embedding_model"] = self._model_name
        return params


def _refuse(unknown: Mapping[str, object]) -> None:
    """Refuse options of a call that there are not."""
    for name in unknown:
        likely = likely_name(name, _OPTIONS)
        hint = f" (is it {likely}?)" if likely else ""
        raise InputError(f"a retriever has no option {name!r}{hint}; a call takes {', '.join(_OPTIONS)}")
