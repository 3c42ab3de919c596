"""BM25 as a LangChain retriever.

Over bm25s, the engine that LlamaIndex's own BM25 retriever runs on, with that retriever's settings. The one in
langchain-community is no longer maintained, takes a text apart at white space only, and gives no scores.
"""

from typing import Any

import bm25s
import Stemmer
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import PrivateAttr


class BM25Retriever(BaseRetriever):
    """The ``k`` best documents, with their score in the metadata."""

    documents: list[Document]
    k: int = 4
    _index: bm25s.BM25 = PrivateAttr(default_factory=bm25s.BM25)

    def model_post_init(self, context: Any, /) -> None:
        """Index the documents."""
        self._index.index(_words([document.page_content for document in self.documents]), show_progress=False)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        k = min(self.k, len(self.documents))
        places, scores = self._index.retrieve(_words([query]), k=k, show_progress=False)
        found = zip(places[0].tolist(), scores[0].tolist())
        return [_scored(self.documents[place], score) for place, score in found]


def _words(texts: list[str]) -> bm25s.tokenization.Tokenized:
    return bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "bm25_score": score}})
