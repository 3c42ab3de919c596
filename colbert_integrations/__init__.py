"""ColBERT for LangChain and LlamaIndex: one exact core, thin adapters.

The public door. Names are loaded on first use, so that importing the package costs nothing: neither torch nor a
framework is imported, and no GPU is touched.

The adapters are ``langchain/`` and ``llama_index/``; what both share is in ``adapter.py``. They convert and delegate to
the core, which knows no framework:

- ``model.py``, a checkpoint that is ready to use. ``checkpoint/`` reads what its files say, ``encoder/`` makes vectors
  of texts, ``scoring/`` scores them (with ``kernel.py``, the compiled one, and ``ranking.py`` for the order),
  ``explain/`` says why. ``settings.py`` are its arguments, ``fingerprint.py`` is which vectors it makes, ``cache.py``
  keeps some, ``pooling.py`` merges them, ``cuts.py`` counts what did not fit.
- ``colbert_index.py``, texts in and texts out: a model and a store. ``index/`` has the stores' protocol and the one in
  this process, ``location.py`` finds one by its address, ``loading.py`` encodes and stores documents, ``stale.py``
  tells which were encoded otherwise, ``corpus.py`` takes corpora of any size.
- Past one machine, ``qdrant/`` is a store and ``vllm/`` a forward pass. ``cli/`` is the command line, run by
  ``__main__.py``.

For all of them: ``embeddings.py`` is the data that travels between rooms, ``errors.py`` the tree of errors,
``checks.py`` and ``names.py`` say what is wrong with an argument, ``dates.py`` compares dates in metadata, ``devices/``
knows devices, ``observing.py`` and ``progress.py`` tell what happens, ``worker.py``, ``cancellation.py`` and
``single_flight.py`` are for threads and async callers.
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
