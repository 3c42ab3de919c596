"""ColBERT for LlamaIndex: a node postprocessor and a retriever.

Converts and delegates; no model code, only llama-index-core. They are in ``rerank.py`` and ``retriever.py``;
``nodes.py`` holds how a node is kept in a store, ``filters.py`` how it is found by its metadata, ``tracing.py`` puts
figures on spans.
"""

from __future__ import annotations

from ..errors import MissingExtraError

try:
    import llama_index.core  # noqa: F401  # asked for once, before the modules that need it
except ImportError as error:
    raise MissingExtraError("colbert_integrations.llama_index", "llama-index") from error

from .rerank import ColBERTRerank
from .retriever import ColBERTRetriever

__all__ = ["ColBERTRerank", "ColBERTRetriever"]
