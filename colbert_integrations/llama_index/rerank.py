"""ColBERT as a LlamaIndex node postprocessor."""

from __future__ import annotations

from typing import Any

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # re-exported without __all__
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import BaseModel, Field, field_validator

from ..adapter import EXPLANATION, RerankerFields, check_items, check_query
from ..errors import InputError
from ..ranking import RankedDocument
from .nodes import RETRIEVAL_SCORE, node_text, with_hidden
from .tracing import figures_on_span

__all__ = ["ColBERTRerank"]

_dispatcher = get_dispatcher(__name__)


class ColBERTRerank(RerankerFields, BaseNodePostprocessor):
    """Rerank nodes with ColBERT, as a LlamaIndex node postprocessor.

    Sends the framework's rerank events and callbacks. Nodes stay as they are; the nodes with score that come back are
    new. Scores are Python floats.

    Fields, which are the arguments: ``top_n``, ``score_threshold``, ``normalize_scores``, ``keep_retrieval_score``,
    ``metadata_mode``, ``explain``, ``index``, ``callback_manager``; and those of the model: ``model``, ``device``,
    ``dtype``, ``query_length``, ``document_length``, ``long_documents``, ``window_overlap``, ``batch_size``,
    ``colbert_options``.

    Example:
        >>> from llama_index.core.schema import NodeWithScore, TextNode
        >>> reranker = ColBERTRerank(model="bundled/all-MiniLM-L6-v2", top_n=1)
        >>> texts = ["How to bake bread", "Why the wings of a plane lift it"]
        >>> nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
        >>> reranker.postprocess_nodes(nodes, query_str="how do planes fly")[0].node.get_content()
        'Why the wings of a plane lift it'
    """

    top_n: int | None = Field(default=5, ge=1)
    """Maximum number of nodes to return. None: all."""

    keep_retrieval_score: bool = False
    """Whether the score that a node came with is kept in the metadata of a copy, out of sight of LLM and embedding."""

    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Which metadata is scored with the text."""

    @field_validator("callback_manager", mode="before")
    @classmethod
    def _no_callbacks(cls, given: Any) -> Any:
        return CallbackManager() if given is None else given  # None, as retrievers take it

    @classmethod
    def class_name(cls) -> str:
        """Name under which the class is serialised; LlamaIndex's own ``ColbertRerank`` is another class."""
        return "ColBERTRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        texts = [self._text(node, index) for index, node in enumerate(check_items("nodes", nodes))]
        top_n = len(nodes) if self.top_n is None else self.top_n  # the event takes no None
        _dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=self._model_name))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        reranking = self.callback_manager.event(CBEventType.RERANKING, payload=payload)
        with figures_on_span(self.about) as figures, reranking as event:
            ranked = self._rank(query, texts, [node.node.node_id for node in nodes], self.top_n)
            best = [self._copy(nodes[entry.index], entry) for entry in ranked]
            event.on_end(payload={EventPayload.NODES: best})
        _dispatcher.event(ReRankEndEvent(nodes=best, tags=figures))
        return best

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if not nodes:
            return self._postprocess_nodes(nodes, query_bundle)
        # The sync method whole, in the model's own thread: the framework spans that method only, and the copied
        # context keeps the span below its parent.
        return await self._run_async(self._postprocess_nodes, nodes, query_bundle)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> ColBERTRerank:
        # Handlers of callbacks hold locks and connections: copies share them, as they share the weights.
        memo = {} if memo is None else memo
        memo[id(self.callback_manager)] = self.callback_manager
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        # Not the framework's own, which deletes from this very object what can't be pickled.
        state = BaseModel.__getstate__(self)
        settings = {name: value for name, value in state["__dict__"].items() if name != "callback_manager"}
        return {**state, "__dict__": settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The framework restores fields only, and a forward pass of the model's own is none of them.
        self._colbert = state["__pydantic_private__"].get("_colbert")

    # ------------------------------------------------------------------------------------------------ conversion

    def _text(self, node: Any, index: int) -> str:
        if not isinstance(node, NodeWithScore):
            raise InputError(f"nodes[{index}] must be a NodeWithScore, not {type(node).__name__}")
        return node_text(node.node, self.metadata_mode)

    def _copy(self, node: NodeWithScore, entry: RankedDocument) -> NodeWithScore:
        inner, added = node.node, {}
        if self.keep_retrieval_score:  # of the first retrieval, through any number of rerankers
            added[RETRIEVAL_SCORE] = inner.metadata.get(RETRIEVAL_SCORE, node.score)
        if entry.explanation is not None:
            added[EXPLANATION] = entry.explanation.as_dict()
        return node.model_copy(update={"node": with_hidden(inner, added) if added else inner, "score": entry.score})


def _query(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise InputError("Missing query bundle in extra info: pass query_bundle= or query_str=")
    if not isinstance(query_bundle, QueryBundle):
        raise InputError(f"query_bundle must be a QueryBundle, not {type(query_bundle).__name__}; or pass query_str=")
    check_query(query_bundle.query_str)
    return query_bundle.query_str  # as it is: callbacks and events show it
