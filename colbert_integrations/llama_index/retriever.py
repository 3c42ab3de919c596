"""ColBERT as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.data_structs.data_structs import IndexDict, IndexList, KeywordTable
from llama_index.core.data_structs.document_summary import IndexDocumentSummary
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import BaseNode, IndexNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore.types import BaseDocumentStore
from pydantic import ValidationError
from typing_extensions import Self, TypedDict, Unpack

from ..adapter import EXPLANATION, ModelFields, check_index, check_items, check_query, class_name
from ..checks import check_threshold, check_whole_number
from ..errors import AddError, InputError
from .filters import NodeFilter, store_filter
from .nodes import REF_DOC_ID, node_of, node_text, stored_metadata, with_hidden
from .tracing import figures_on_span

if TYPE_CHECKING:
    from ..colbert_index import ColBERTIndex
    from ..index import Hit, Search, Store
    from ..model import ColBERT

__all__ = ["ColBERTRetriever"]


@dataclass
class _Adding:
    """Nodes that can be stored, what is stored of each, and why others can't be."""

    nodes: list[BaseNode] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    metadatas: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[list[str], list[str], list[dict[str, Any]]]:
        """Texts, ids and metadata, as an index takes them."""
        return self.texts, [node.node_id for node in self.nodes], self.metadatas


class SearchOptions(TypedDict, total=False):
    """Arguments of ``ColBERTRetriever`` that say how it searches."""

    similarity_top_k: int
    filters: NodeFilter | None
    node_ids: Sequence[str] | None
    doc_ids: Sequence[str] | None
    normalize_scores: bool
    score_threshold: float | None
    search: Search | None
    candidates: int | None
    explain: bool
    metadata_mode: MetadataMode
    show_progress: bool | None
    callback_manager: CallbackManager | None
    objects: list[IndexNode] | None
    object_map: dict[str, Any] | None
    verbose: bool


class Options(SearchOptions, total=False):
    """Arguments of ``ColBERTRetriever`` beside those that say what it searches."""

    store: Store | str | None
    model: str | os.PathLike[str] | ColBERT | None
    device: str | None
    dtype: str | None
    query_length: int | None
    document_length: int | None
    long_documents: Literal["window", "truncate"] | None
    window_overlap: int | None
    batch_size: int | None
    colbert_options: dict[str, Any] | None


class ColBERTRetriever(BaseRetriever):
    """Find nodes with ColBERT, as a LlamaIndex retriever.

    Nodes are kept as they are in a ``ColBERTIndex``; what comes back are new nodes, free to change. Scores are Python
    floats. White space around a query is ignored. Of a query with several ``embedding_strs``, such as HyDE makes,
    each is searched, and a node's score is the highest that it gets. What says how nodes are searched may be set
    afterwards too, by the name of its argument. Copies search the same nodes; pickling is refused: ``persist`` and
    ``from_persist_dir`` are for that.

    Args:
        nodes: Nodes to add. They are encoded at once: inside an event loop use ``aadd_nodes``. None: none yet.
        index: What is searched, and grows by ``add_nodes``; brings its model. None: a new index.
        store: Where a new index keeps the nodes, or its location, such as
            ``"qdrant+http://localhost:6333/my-collection"``. None: in this process.
        similarity_top_k: Maximum number of nodes to find.
        filters: What nodes must meet: the framework's filters, conditions as ``index.search`` takes them, or a
            function of a node. None: nothing.
        node_ids: Look among these nodes only. None: among all.
        doc_ids: Look among nodes of these documents only, by ``ref_doc_id``. None: of all.
        normalize_scores: Whether scores are means over the query's vectors, clamped to 0..1, instead of sums.
        score_threshold: Lowest score that is returned, on the scale of the scores. None: no limit.
        search: ``"exact"`` scores every node, others name a candidate stage. None: the store's own choice.
        candidates: For a candidate stage, how many nodes are scored exactly. None: the store's own choice.
        explain: Whether each node says how its score came about, in its metadata under ``explanation``, out of sight of
            LLM and embedding. What several queries find is not equal then: explain in a reranker after fusion instead.
        metadata_mode: Which metadata is encoded with the content.
        model: A name, a path or a ``ColBERT``. None: that of the index, or the default.
        device: As in ``ColBERT``.
        dtype: As in ``ColBERT``.
        query_length: As in ``ColBERT``.
        document_length: As in ``ColBERT``.
        long_documents: As in ``ColBERT``. None: ``"window"``.
        window_overlap: As in ``ColBERT``.
        batch_size: As in ``ColBERT``.
        colbert_options: Further arguments of ``ColBERT``, by name.
        show_progress: Whether adding shows a bar. None: on a terminal or in a notebook, for work over two seconds.
        callback_manager: Gets the framework's retrieval events.
        objects: Index nodes whose objects are followed when one of the same ``index_id`` is found.
        object_map: The same by ``index_id``. Objects of nodes that are added are taken along; those that are not
            nodes themselves are not saved.
        verbose: Whether following an object is printed.

    Raises:
        InputError: If an argument is invalid.
        FilterError: If the filters ask for what stores can't do.
        AddError: If some nodes can't be stored, after all others were.
        CheckpointError: If the model can't be loaded; without nodes this shows at the first call.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> nodes = [TextNode(text="How to bake bread"), TextNode(text="Why the wings of a plane lift it")]
        >>> retriever = ColBERTRetriever(nodes, model="bundled/all-MiniLM-L6-v2", similarity_top_k=1)
        >>> retriever.retrieve("how do planes fly")[0].node.get_content()
        'Why the wings of a plane lift it'
    """

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        index: ColBERTIndex | None = None,
        store: Store | str | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: NodeFilter | None = None,
        node_ids: Sequence[str] | None = None,
        doc_ids: Sequence[str] | None = None,
        normalize_scores: bool = True,
        score_threshold: float | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        explain: bool = False,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        model: str | os.PathLike[str] | ColBERT | None = None,
        device: str | None = None,
        dtype: str | None = None,
        query_length: int | None = None,
        document_length: int | None = None,
        long_documents: Literal["window", "truncate"] | None = None,
        window_overlap: int | None = None,
        batch_size: int | None = None,
        colbert_options: dict[str, Any] | None = None,
        show_progress: bool | None = None,
        callback_manager: CallbackManager | None = None,
        objects: list[IndexNode] | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(callback_manager=callback_manager, object_map=object_map, objects=objects, verbose=verbose)
        self.object_map = dict(self.object_map)  # ours: it grows with the nodes
        self._leading: dict[str, str] = {}  # of nodes that have added to it, the key by node id
        settings = {
            "model": model,
            "device": device,
            "dtype": dtype,
            "query_length": query_length,
            "document_length": document_length,
            "long_documents": long_documents,
            "window_overlap": window_overlap,
            "batch_size": batch_size,
            "colbert_options": colbert_options,
        }
        self._fields = _model_fields(index, store, settings)
        self._index, self._store, self._opening = index, store, threading.Lock()
        self.similarity_top_k = similarity_top_k
        self.filters, self.node_ids, self.doc_ids = filters, node_ids, doc_ids
        self.normalize_scores, self.score_threshold = normalize_scores, score_threshold
        self.search, self.candidates, self.explain = search, candidates, explain
        self.metadata_mode, self.show_progress = _mode(metadata_mode), show_progress
        self._search_arguments()  # impossible ones are an error now, not at the first query
        check_threshold(score_threshold)
        if candidates is not None:
            check_whole_number("candidates", candidates)
        if nodes is not None and len(_nodes(nodes)):
            self.add_nodes(nodes)

    # --------------------------------------------------------------------------------------------------------- making

    @classmethod
    def from_defaults(
        cls,
        nodes: Sequence[BaseNode] | None = None,
        index: BaseIndex[Any] | ColBERTIndex | None = None,
        docstore: BaseDocumentStore | None = None,
        **options: Unpack[Options],
    ) -> Self:
        """Make a retriever of what there is, as other retrievers of the framework do.

        Args:
            nodes: The nodes.
            index: An index of the framework, whose nodes are encoded, or a ``ColBERTIndex``, which is searched.
            docstore: Where the nodes are.
            **options: Arguments of the class.

        Returns:
            The retriever.

        Raises:
            InputError: If not exactly one of the three is given, or an argument is invalid.
            AddError: If some nodes can't be stored.
        """
        if sum(given is not None for given in (nodes, index, docstore)) != 1:
            raise InputError("pass exactly one of nodes, index and docstore")
        if isinstance(index, BaseIndex):
            nodes, index = _nodes_of_index(index), None
        if docstore is not None:
            nodes = list(docstore.docs.values())
        return cls(nodes, index, **options)

    @classmethod
    def from_persist_dir(
        cls,
        path: str | os.PathLike[str],
        model: str | os.PathLike[str] | ColBERT | None = None,
        *,
        device: str | None = None,
        verify: bool = True,
        **options: Unpack[SearchOptions],
    ) -> Self:
        """Open what ``persist`` wrote.

        Args:
            path: The folder.
            model: The model that the nodes were encoded with. None: by the name and settings it had then.
            device: Where vectors are kept and searched. None: the CPU.
            verify: Whether the checksums of all files are compared.
            **options: Arguments of the class; they are not saved.

        Returns:
            The retriever.

        Raises:
            StoreError: If there is no index, or it is damaged, or of another model.
            CheckpointError: If the model can't be loaded.
        """
        from ..colbert_index import ColBERTIndex

        show = options.get("show_progress")
        return cls(index=ColBERTIndex.load(path, model, device=device, verify=verify, show_progress=show), **options)

    def persist(self, path: str | os.PathLike[str]) -> None:
        """Write the nodes and their vectors to a folder, as one step; see ``ColBERTIndex.save``.

        Args:
            path: The folder; made if it is not there.

        Raises:
            StoreError: If it can't be written, or the store is kept elsewhere anyway.
        """
        self.index.save(path, show_progress=self.show_progress)

    def close(self) -> None:
        """Free the model's weights; the nodes stay, and the next call loads the weights again."""
        self._fields.close()

    @property
    def index(self) -> ColBERTIndex:
        """What is searched; ``ColBERTRerank(index=...)`` takes it, so as not to encode nodes again."""
        with self._opening:
            if self._index is None:
                from ..colbert_index import ColBERTIndex

                self._index = ColBERTIndex(self._fields.colbert, self._store)
            return self._index

    @property
    def similarity_top_k(self) -> int:
        """Maximum number of nodes to find."""
        return self._similarity_top_k

    @similarity_top_k.setter
    def similarity_top_k(self, value: int) -> None:
        check_whole_number("similarity_top_k", value)
        self._similarity_top_k = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Handlers of callbacks hold locks and connections, as stores do, and the owner of a method may. What nodes lead
        # to grows with the index.
        shared: list[object] = [
            self.index,
            self._store,
            self._opening,
            self.callback_manager,
            self.object_map,
            self._leading,
        ]
        shared += [self.filters] if callable(self.filters) else []
        memo.update({id(part): part for part in shared})
        twin = memo[id(self)] = type(self).__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # The index is made, or a shallow copy would make one of its own. It goes first: it refuses to be pickled and
        # says what to do instead, where the lock would only say that it is one.
        return {"_index": self.index, **vars(self)}

    def __repr__(self) -> str:
        searched = self._fields.model if self._index is None else self._index  # that is not made for this
        return f"{type(self).__name__}({searched!r}, similarity_top_k={self.similarity_top_k})"

    # -------------------------------------------------------------------------------------------------------- writing

    def add_nodes(self, nodes: Sequence[BaseNode], *, reencode: bool = False) -> list[str]:
        """Encode and store nodes; one whose id is there replaces the old one, without encoding if its text is the same.

        Args:
            nodes: The nodes. Embeddings that they carry are of other models, and not kept.
            reencode: Whether nodes whose text is the same are encoded again, as after a change of the model's settings.

        Returns:
            Their ids.

        Raises:
            InputError: If an item is no node; nothing is added, then.
            AddError: If some can't be stored or written as JSON, after all others were stored; it lists them and says
                why.
            StoreError: If the store can't be used.
        """
        index, adding = self._prepared(nodes)
        with self._followed(adding, index):
            return index.add(*adding.rows, reencode=reencode, show_progress=self.show_progress)

    def _prepared(self, nodes: Sequence[BaseNode]) -> tuple[ColBERTIndex, _Adding]:
        """The index, and what is to be added to it."""
        adding, mode = _Adding(), _mode(self.metadata_mode)
        for node in _nodes(nodes):
            try:
                adding.metadatas.append(stored_metadata(node))
                adding.nodes.append(node)
            except InputError as error:
                adding.failures[node.node_id] = error
        adding.texts += [node_text(node, mode) for node in adding.nodes]
        return self._checked_index(), adding

    @contextmanager
    def _followed(self, adding: _Adding, index: ColBERTIndex) -> Iterator[None]:
        """Note what those nodes lead to that the body stores; at its end, raise for those that could not be stored."""
        added, failures = [node.node_id for node in adding.nodes], adding.failures
        leading = _leading_away(adding.nodes)
        before = {node.index_id: self.object_map[node.index_id] for node in leading if node.index_id in self.object_map}
        # First: nodes are stored window by window, and found at once.
        self.object_map.update({node.index_id: node.obj for node in leading})
        try:
            yield
        except AddError as error:
            added, failures = error.added, {**failures, **error.failures}
        except BaseException:
            self._follow(adding.nodes)  # some are stored, and nobody knows which; the others lead nobody anywhere
            raise
        stored = set(added)
        self._follow([node for node in adding.nodes if node.node_id in stored])
        self._restore(leading, stored, before)
        if failures:
            raise AddError(failures, added, index)

    def _follow(self, nodes: Sequence[BaseNode]) -> None:
        """Note what nodes lead to that were stored, in place of what they led to before."""
        self._forget_objects([node.node_id for node in nodes])
        for node in _leading_away(nodes):
            self.object_map[node.index_id] = node.obj
            self._leading[node.node_id] = node.index_id

    def _restore(self, nodes: Sequence[IndexNode], stored: set[str], before: Mapping[str, Any]) -> None:
        """Note again what was led to before nodes came of which some could not be stored."""
        kept = {node.index_id for node in nodes if node.node_id in stored}
        for key in {node.index_id for node in nodes} - kept:
            if key in before:
                self.object_map[key] = before[key]
            else:
                self.object_map.pop(key, None)

    def _forget_objects(self, node_ids: Sequence[str]) -> None:
        """Drop what these nodes lead to, unless another one leads there."""
        keys = {self._leading.pop(name) for name in node_ids if name in self._leading}
        for key in keys - set(self._leading.values()):
            self.object_map.pop(key, None)

    def delete_nodes(self, node_ids: Sequence[str]) -> None:
        """Remove nodes.

        Args:
            node_ids: Their ids; unknown ones are passed over.

        Raises:
            InputError: If the ids are not a list of strings.
            StoreError: If the store can't be used.
        """
        wanted = _ids("node_ids", node_ids)
        if wanted and not self._is_new():
            self.index.delete(wanted)
            self._forget_objects(wanted)

    def delete_ref_doc(self, ref_doc_id: str) -> None:
        """Remove all nodes of a document.

        Args:
            ref_doc_id: Its id; an unknown one is passed over.

        Raises:
            InputError: If it is not a string.
            StoreError: If the store can't be used.
        """
        if not isinstance(ref_doc_id, str):  # a mapping would be a condition, which others may meet
            raise InputError(f"ref_doc_id must be a string, not {type(ref_doc_id).__name__}")
        if not self._is_new():
            self.delete_nodes(self.index.store.ids({REF_DOC_ID: ref_doc_id}))

    async def aadd_nodes(self, nodes: Sequence[BaseNode], *, reencode: bool = False) -> list[str]:
        """Do what ``add_nodes`` does without blocking the event loop; see there."""
        index, adding = await asyncio.to_thread(self._prepared, nodes)
        with self._followed(adding, index):
            return await index.aadd(*adding.rows, reencode=reencode, show_progress=self.show_progress)

    async def adelete_nodes(self, node_ids: Sequence[str]) -> None:
        """Do what ``delete_nodes`` does without blocking the event loop; see there."""
        await asyncio.to_thread(self.delete_nodes, node_ids)

    async def adelete_ref_doc(self, ref_doc_id: str) -> None:
        """Do what ``delete_ref_doc`` does without blocking the event loop; see there."""
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id)

    # ------------------------------------------------------------------------------------------------------ searching

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        queries = _queries(query_bundle)
        if self._is_new():
            return []
        index = self._checked_index()
        with figures_on_span(self._about):
            return self._merged(index.search(queries, **self._search_arguments()))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        queries = _queries(query_bundle)
        if self._is_new():
            return []
        # In threads: what the first use of a model imports takes seconds, and a thousand nodes are not made in no time.
        index = await asyncio.to_thread(self._checked_index)
        with figures_on_span(self._about):
            found = await index.asearch(queries, **self._search_arguments())
            return await asyncio.to_thread(self._merged, found)

    def _about(self) -> dict[str, Any]:
        """What traces say of a call beside its figures."""
        return {**self._fields.about(), "colbert.k": self.similarity_top_k}

    def _search_arguments(self) -> dict[str, Any]:
        doc_ids = None if self.doc_ids is None else _ids("doc_ids", self.doc_ids)
        return {
            "k": self.similarity_top_k,
            "filter": store_filter(self.filters, doc_ids),
            "ids": None if self.node_ids is None else _ids("node_ids", self.node_ids),
            "search": self.search,
            "candidates": self.candidates,
            "normalize_scores": self.normalize_scores,
            "score_threshold": self.score_threshold,
            "explain": self.explain,
        }

    def _merged(self, found: Sequence[Sequence[Hit]]) -> list[NodeWithScore]:
        """The best of what several queries found; what is best for one of them is in that one's list."""
        # Among equal scores the place in the list counts: normalised ones that are cut off at 0 keep their order.
        entries = [(-hit.score, place, hit.id, hit) for hits in found for place, hit in enumerate(hits)]
        best: dict[str, Hit] = {}
        for *_, name, hit in sorted(entries, key=lambda entry: entry[:3]):
            best.setdefault(name, hit)
        return [NodeWithScore(node=_node(hit), score=hit.score) for hit in [*best.values()][: self.similarity_top_k]]

    def _is_new(self) -> bool:
        """Whether nothing was ever added, so that there is no need to load anything."""
        return self._index is None and self._store is None

    def _checked_index(self) -> ColBERTIndex:
        """The index, once what only the rooms with torch can judge is known to be right."""
        asked = self._search_arguments()
        self.index.check_search(filter=asked["filter"], search=asked["search"])
        return self.index


def _node(hit: Hit) -> BaseNode:
    node = node_of(hit.id, hit.text, hit.metadata)
    return node if hit.explanation is None else with_hidden(node, {EXPLANATION: hit.explanation.as_dict()})


def _model_fields(index: ColBERTIndex | None, store: Store | str | None, settings: Mapping[str, Any]) -> ModelFields:
    given = {name: value for name, value in settings.items() if value is not None}
    if index is not None:
        if isinstance(index, BaseIndex):
            raise InputError("index must be a ColBERTIndex; for an index of LlamaIndex there is from_defaults")
        given["model"] = check_index(index, given.get("model"), store).model
    try:
        return ModelFields(**given)
    except ValidationError as error:
        raise InputError(
            "; ".join(f"{'.'.join(map(str, one['loc']))} {_said(one['msg'])}".strip() for one in error.errors())
        ) from error


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")  # pydantic's, before what we say


def _mode(given: object) -> MetadataMode:
    if given not in list(MetadataMode):  # a string is equal to its member
        raise InputError(f"metadata_mode must be one of {', '.join(MetadataMode)}, not {given!r}")
    return MetadataMode(given)


def _queries(query_bundle: QueryBundle) -> list[str]:
    # Not its embedding_strs, which fails where the query is no text.
    given = query_bundle.custom_embedding_strs or [query_bundle.query_str]
    return list(dict.fromkeys(check_query(query) for query in given))


def _leading_away(nodes: Iterable[BaseNode]) -> list[IndexNode]:
    """Those that lead to an object which is no node itself."""
    leading = [node for node in nodes if isinstance(node, IndexNode)]
    return [node for node in leading if node.obj is not None and not isinstance(node.obj, BaseNode)]


def _nodes(nodes: object) -> Sequence[BaseNode]:
    items = check_items("nodes", nodes)
    for place, node in enumerate(items):
        if not isinstance(node, BaseNode):
            raise InputError(f"nodes[{place}] must be a node, not {class_name(node, 'Document')}")
    return items


def _nodes_of_index(index: BaseIndex[Any]) -> list[BaseNode]:
    """The nodes that an index finds: its docstore may have more, deleted ones, parents, summaries, another index's."""
    docstore, found = index.docstore, _node_ids(index.index_struct)
    stores_text = getattr(getattr(index, "vector_store", None), "stores_text", False)
    elsewhere = stores_text and not getattr(index, "_store_nodes_override", False)
    if elsewhere or not docstore.docs:
        raise InputError("the index has no nodes in its docstore; its vector store may have them: pass nodes=")
    return list(docstore.docs.values()) if found is None else docstore.get_nodes(list(found))


def _node_ids(struct: object) -> Iterable[str] | None:
    """Ids of the nodes that an index of the framework finds. None: for its kind that is not known."""
    if isinstance(struct, IndexDict):
        return struct.nodes_dict.values()
    if isinstance(struct, IndexList):
        return struct.nodes
    if isinstance(struct, KeywordTable):
        return sorted(set[str]().union(*struct.table.values()))
    return struct.node_id_to_summary_id if isinstance(struct, IndexDocumentSummary) else None


def _ids(name: str, ids: object) -> list[str]:
    items = list(check_items(name, ids))
    if not all(isinstance(item, str) for item in items):
        raise InputError(f"{name} must be a list of strings, not {items!r}")
    return items
