"""ColBERT for LangChain and LlamaIndex: one exact core, thin adapters.

The public door. Names are loaded on first use, so that importing the package costs nothing: neither torch nor a
framework is imported, and no GPU is touched.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import ColBERTSpec
    from .colbert_index import ColBERTIndex
    from .corpus import CorpusReport, index_corpus
    from .embeddings import TokenEmbeddings
    from .errors import ColBERTError, TruncationWarning
    from .explain import Explanation
    from .index import Hit, MemoryStore
    from .location import open_store
    from .model import ColBERT
    from .observing import CallStats, observed
    from .ranking import RankedDocument
    from .scoring import maxsim

__version__ = "0.1.0"

__all__ = [
    "CallStats",
    "ColBERT",
    "ColBERTError",
    "ColBERTIndex",
    "ColBERTSpec",
    "CorpusReport",
    "Explanation",
    "Hit",
    "MemoryStore",
    "RankedDocument",
    "TokenEmbeddings",
    "TruncationWarning",
    "index_corpus",
    "maxsim",
    "observed",
    "open_store",
]

# What the package logs goes where the program says, and nowhere as long as it says nothing.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_ROOMS = {
    "CallStats": ".observing",
    "ColBERT": ".model",
    "ColBERTError": ".errors",
    "ColBERTIndex": ".colbert_index",
    "ColBERTSpec": ".checkpoint",
    "CorpusReport": ".corpus",
    "Explanation": ".explain",
    "Hit": ".index",
    "MemoryStore": ".index",
    "RankedDocument": ".ranking",
    "TokenEmbeddings": ".embeddings",
    "TruncationWarning": ".errors",
    "index_corpus": ".corpus",
    "maxsim": ".scoring",
    "observed": ".observing",
    "open_store": ".location",
}


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_ROOMS[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
