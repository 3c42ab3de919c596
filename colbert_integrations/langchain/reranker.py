"""ColBERT as a LangChain document compressor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForChainRun,
    CallbackManager,
    CallbackManagerForChainRun,
    Callbacks,
)
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableLambda, ensure_config
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from ..adapter import EXPLANATION, RerankerFields, check_items, check_query, class_name, copied
from ..errors import InputError
from ..ranking import RankedDocument, check_top_n
from .documents import check_documents
from .tracing import figures_on

__all__ = ["ColBERTReranker"]

T = TypeVar("T")


class _Pair(TypedDict):
    """What the runnable takes: its schema, by which it can become a tool."""

    query: str
    documents: list[Document]


class ColBERTReranker(RerankerFields, BaseDocumentCompressor):
    """Rerank documents with ColBERT, as a LangChain document compressor.

    Each call is a run of its own in traces. Inputs stay as they are; outputs are copies that keep id, type and
    metadata. Scores are Python floats.

    Fields, which are the arguments: ``top_n``, ``score_key``, ``score_threshold``, ``normalize_scores``,
    ``metadata_fields``, ``document_formatter``, ``explain``, ``index``; and those of the model: ``model``, ``device``,
    ``dtype``, ``query_length``, ``document_length``, ``long_documents``, ``window_overlap``, ``batch_size``,
    ``colbert_options``.

    Example:
        >>> from langchain_core.documents import Document
        >>> reranker = ColBERTReranker(model="bundled/all-MiniLM-L6-v2", top_n=1)
        >>> documents = [Document("How to bake bread"), Document("Why the wings of a plane lift it")]
        >>> reranker.compress_documents(documents, "how do planes fly")[0].page_content
        'Why the wings of a plane lift it'
    """

    top_n: int | None = Field(default=3, ge=1)
    """Maximum number of documents to return. None: all."""

    score_key: str | None = "relevance_score"
    """Metadata key under which the score is returned. None: scores are not returned."""

    metadata_fields: list[str] = Field(default_factory=list)
    """Metadata that is scored with the text, a ``name: value`` line each, before it; none for a value of None."""

    document_formatter: SkipJsonSchema[Callable[[Document], str] | None] = None
    """Makes the text that is scored. None: ``metadata_fields`` and the page content."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return the best documents for a query, best first.

        Args:
            documents: The candidates, in any order.
            query: The query; white space around it is ignored.
            callbacks: Handlers or a manager; the call appears below it as a run named after this class.

        Returns:
            At most ``top_n`` copies, score descending, equal ones in the order given; empty for no documents.

        Raises:
            InputError: If the query is not a string or an item not a ``Document``.
            NonFiniteError: If a score is not a number.
            CheckpointError: If the model can't be loaded; by a call that has to load it (the first one, and the next
                after ``close``).
        """
        _check(documents, query)  # before anything is said of the call
        with self._traced(documents, query, callbacks) as output:
            output += self._best(documents, query, self.top_n)
        return output

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Do what ``compress_documents`` does without blocking the event loop.

        Args:
            documents: The candidates, in any order.
            query: The query.
            callbacks: Handlers or a manager.

        Returns:
            As ``compress_documents``. A cancelled call returns at once; what was not computed for it yet is dropped.

        Raises:
            InputError: As ``compress_documents``.
            NonFiniteError: As ``compress_documents``.
            CheckpointError: As ``compress_documents``.
        """
        _check(documents, query)  # before anything is said of the call
        async with self._atraced(documents, query, callbacks) as output:
            output += await self._off_loop(self._best, documents, query, self.top_n)
        return output

    def rerank(
        self, documents: Sequence[str | Document | Mapping[str, Any]], query: str, *, top_n: int | None = -1
    ) -> list[dict[str, Any]]:
        """Rank texts and return places and scores, as other rerankers for LangChain do.

        Args:
            documents: Strings, documents, or mappings with a ``text`` or ``page_content``.
            query: The query.
            top_n: Maximum number of entries to return. None: all; -1: as the field ``top_n`` says.

        Returns:
            ``{"index": place in documents, "relevance_score": score}``, score descending; with ``explain`` also an
            ``"explanation"``.

        Raises:
            InputError: If the query is not a string, an item has no text, or ``top_n`` is invalid.
            NonFiniteError: If a score is not a number.
            CheckpointError: If the model can't be loaded; by a call that has to load it (the first one, and the next
                after ``close``).
        """
        return self._entries(documents, query, self._limit(top_n))

    async def arerank(
        self, documents: Sequence[str | Document | Mapping[str, Any]], query: str, *, top_n: int | None = -1
    ) -> list[dict[str, Any]]:
        """Do what ``rerank`` does without blocking the event loop.

        Args:
            documents: Strings, documents, or mappings with a ``text`` or ``page_content``.
            query: The query.
            top_n: Maximum number of entries to return. None: all; -1: as the field ``top_n`` says.

        Returns:
            As ``rerank``.

        Raises:
            InputError: As ``rerank``.
            NonFiniteError: As ``rerank``.
            CheckpointError: As ``rerank``.
        """
        return await self._off_loop(self._entries, documents, query, self._limit(top_n))

    def as_runnable(self) -> Runnable[dict[str, Any], list[Document]]:
        """Make a runnable that fits into a chain with ``|``, which a compressor does not.

        Returns:
            A runnable from ``{"query": str, "documents": list[Document]}`` to the best documents, sync and async. It
            takes ``top_n`` by ``bind(top_n=...)``, or as an option of a call.
        """

        def rank(
            inputs: dict[str, Any], run_manager: CallbackManagerForChainRun, top_n: int | None = -1
        ) -> list[Document]:
            documents, query = _pair(inputs)
            limit = self._limit(top_n)
            with figures_on(run_manager, lambda: self._metadata(limit)):
                return self._best(documents, query, limit)

        async def arank(
            inputs: dict[str, Any], run_manager: AsyncCallbackManagerForChainRun, top_n: int | None = -1
        ) -> list[Document]:
            documents, query = _pair(inputs)
            limit = self._limit(top_n)
            with figures_on(run_manager, lambda: self._metadata(limit)):
                return await self._off_loop(self._best, documents, query, limit)

        # The runnable is a run of its own in traces, so none is opened inside. Its events show what is added later only
        # if there is metadata from the start.
        runnable = RunnableLambda(rank, arank, name=type(self).__name__).with_types(input_type=_Pair)  # type: ignore[arg-type]  # which is such a dict
        return runnable.with_config(metadata=self._metadata(self.top_n))

    # ------------------------------------------------------------------------------------------------ conversion

    def _best(self, documents: Sequence[Document], query: str, top_n: int | None) -> list[Document]:
        texts = [self._text(document) for document in documents]
        ranked = self._rank(query, texts, _ids(documents), top_n)
        return [_copy(documents[entry.index], self.score_key, entry) for entry in ranked]

    def _entries(self, documents: Sequence[Any], query: str, top_n: int | None) -> list[dict[str, Any]]:
        check_query(query)
        texts = [self._any_text(item, place) for place, item in enumerate(check_items("documents", documents))]
        return [_entry(ranked) for ranked in self._rank(query, texts, _ids(documents), top_n)]

    async def _off_loop(
        self, rank: Callable[..., list[T]], documents: Sequence[Any], query: str, *options: Any
    ) -> list[T]:
        """Rank in the model's own threads, and make texts and copies there too: formatters take their time."""
        check_query(query)
        if not check_items("documents", documents):
            return []  # without a model
        return await self._run_async(rank, documents, query, *options)

    def _limit(self, top_n: int | None) -> int | None:
        if top_n == -1:
            return self.top_n
        check_top_n(top_n)
        return top_n

    def _any_text(self, document: Any, place: int) -> str:
        if isinstance(document, Document):
            return self._text(document)
        if isinstance(document, str):
            return document
        if isinstance(document, Mapping):
            text = document.get("text", document.get("page_content"))
            if isinstance(text, str):
                return _with_fields(text, document, self.metadata_fields)
        wanted = "a string, a Document or a mapping with 'text'"
        raise InputError(f"documents[{place}] must be {wanted}, not {class_name(document, 'Document')}")

    def _text(self, document: Document) -> str:
        if self.document_formatter is not None:
            return self.document_formatter(document)
        return _with_fields(document.page_content, document.metadata, self.metadata_fields)

    # --------------------------------------------------------------------------------------------------- tracing

    def _start(self, documents: Sequence[Document], query: str) -> dict[str, Any]:
        inputs = {"query": query, "documents": list(documents)}
        return {"serialized": None, "inputs": inputs, "name": type(self).__name__}

    def _metadata(self, top_n: int | None) -> dict[str, Any]:
        return {**self.about(), "colbert.top_n": top_n}

    @contextmanager
    def _traced(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None
    ) -> Iterator[list[Document]]:
        """Report what happens inside as a run; the list that is yielded is its output."""
        manager = CallbackManager.configure(**_inherited(callbacks), local_metadata=self._metadata(self.top_n))
        run = manager.on_chain_start(**self._start(documents, query))
        output: list[Document] = []
        try:
            with figures_on(run, lambda: self._metadata(self.top_n)):
                yield output
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end({"documents": output})

    @asynccontextmanager
    async def _atraced(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None
    ) -> AsyncIterator[list[Document]]:
        manager = AsyncCallbackManager.configure(**_inherited(callbacks), local_metadata=self._metadata(self.top_n))
        run = await manager.on_chain_start(**self._start(documents, query))
        output: list[Document] = []
        try:
            with figures_on(run, lambda: self._metadata(self.top_n)):
                yield output
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end({"documents": output})


def _check(documents: Sequence[Document], query: str) -> None:
    check_query(query)
    check_documents(documents)


def _inherited(callbacks: Callbacks | None) -> dict[str, Any]:
    """What the run of a call comes below; where nothing is passed that is the runnable around it, as for retrievers."""
    if callbacks is not None:
        return {"inheritable_callbacks": callbacks}
    around = ensure_config()
    return {
        "inheritable_callbacks": around.get("callbacks"),
        "inheritable_tags": around.get("tags"),
        "inheritable_metadata": around.get("metadata"),
    }


def _ids(documents: Sequence[Any]) -> list[str | None]:
    return [document.id if isinstance(document, Document) else None for document in documents]


def _with_fields(text: str, metadata: Mapping[str, Any], names: list[str]) -> str:
    return "\n".join([*(f"{name}: {metadata[name]}" for name in names if metadata.get(name) is not None), text])


def _copy(document: Document, score_key: str | None, entry: RankedDocument) -> Document:
    metadata = copied(document.metadata)
    if score_key is not None:
        metadata[score_key] = entry.score
    if entry.explanation is not None:
        metadata[EXPLANATION] = entry.explanation.as_dict()
    return document.model_copy(update={"metadata": metadata})


def _entry(ranked: RankedDocument) -> dict[str, Any]:
    entry = {"index": ranked.index, "relevance_score": ranked.score}
    return entry if ranked.explanation is None else {**entry, EXPLANATION: ranked.explanation.as_dict()}


def _pair(inputs: dict[str, Any]) -> tuple[Sequence[Document], str]:
    if not isinstance(inputs, Mapping) or not {"query", "documents"} <= inputs.keys():
        raise InputError("the runnable takes {'query': str, 'documents': list[Document]}")
    documents, query = inputs["documents"], inputs["query"]
    _check(documents, query)
    return documents, query
