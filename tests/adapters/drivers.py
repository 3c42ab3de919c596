"""One face for the rerankers of both frameworks, so that a single suite can hold them to a single contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from colbert_integrations.langchain import ColBERTReranker
from colbert_integrations.llama_index import ColBERTRerank

TEXTS = [
    "bread and flour",
    "paris is the capital of france",
    "the lazy dog runs over roads",
    "a fox jumps over the quick cat in the city of berlin and into the red river",
    "bread and flour",
    "lions",
]
QUERY = "what is the capital of france"


class Ranked(NamedTuple):
    text: str
    score: float
    id: str
    metadata: dict[str, Any]
    item: Any


class Page(Document):
    number: int = 7


class PageNode(TextNode):
    number: int = 7


class LangChain:
    """Drives a ``ColBERTReranker`` with documents of a subclass."""

    Reranker = ColBERTReranker
    Item = Page

    def items(self, texts: Sequence[str], metadata: dict[str, Any] | None = None) -> list[Document]:
        documents = [Page(text, id=f"id-{i}", number=i) for i, text in enumerate(texts)]
        for document in documents:
            document.metadata = {} if metadata is None else metadata  # the constructor would copy it
        return documents

    def rerank(self, reranker: ColBERTReranker, items: Any, query: Any) -> Any:
        return reranker.compress_documents(items, query)

    async def arerank(self, reranker: ColBERTReranker, items: Any, query: Any) -> Any:
        return await reranker.acompress_documents(items, query)

    def read(self, output: list[Document]) -> list[Ranked]:
        return [self._read(document) for document in output]

    def _read(self, document: Document) -> Ranked:
        metadata = dict(document.metadata)
        score = metadata.pop("relevance_score")
        return Ranked(document.page_content, score, document.id, metadata, document)


class LlamaIndex:
    """Drives a ``ColBERTRerank`` with nodes of a subclass."""

    Reranker = ColBERTRerank
    Item = PageNode

    def items(self, texts: Sequence[str], metadata: dict[str, Any] | None = None) -> list[NodeWithScore]:
        nodes = [PageNode(text=text, id_=f"id-{i}", number=i) for i, text in enumerate(texts)]
        for node in nodes:
            node.metadata = {} if metadata is None else metadata
            node.excluded_embed_metadata_keys = list(node.metadata)  # LangChain scores no metadata either
        return [NodeWithScore(node=node, score=0.25) for node in nodes]

    def rerank(self, reranker: ColBERTRerank, items: Any, query: Any) -> Any:
        return reranker.postprocess_nodes(items, query_str=query)

    async def arerank(self, reranker: ColBERTRerank, items: Any, query: Any) -> Any:
        return await reranker.apostprocess_nodes(items, query_str=query)

    def read(self, output: list[NodeWithScore]) -> list[Ranked]:
        return [Ranked(n.node.text, n.score, n.node.node_id, n.node.metadata, n.node) for n in output]


def scores_of(driver: LangChain | LlamaIndex, reranker: Any) -> list[tuple[str, float]]:
    """Ids and scores that a reranker gives the common texts, best first."""
    return [(ranked.id, ranked.score) for ranked in driver.read(driver.rerank(reranker, driver.items(TEXTS), QUERY))]
