"""ColBERT for LangChain: a document compressor, a retriever, a vector store.

Converts and delegates; no model code, only langchain-core. They are in ``reranker.py``, ``retriever.py`` and
``vector_store.py``; ``documents.py`` holds what they share, ``tracing.py`` puts figures on runs.
"""

from __future__ import annotations

from ..errors import MissingExtraError

try:
    import langchain_core  # noqa: F401  # asked for once, before the modules that need it
except ImportError as error:
    raise MissingExtraError("colbert_integrations.langchain", "langchain") from error

from .reranker import ColBERTReranker
from .retriever import ColBERTRetriever
from .vector_store import ColBERTVectorStore

__all__ = ["ColBERTReranker", "ColBERTRetriever", "ColBERTVectorStore"]
