"""The store on a Qdrant collection: for what outgrows one process.

``store.py`` is the store; what it does is a series of requests, which ``connection.py`` sends over a client that
``clients.py`` makes, tries again, and turns into our errors (``failures.py``). ``collection.py`` makes a collection or
looks whether one can be used, ``points.py`` and ``wire.py`` turn documents into points, ``batches.py`` and ``pages.py``
say how many are sent and read at once, ``filters.py`` and ``numbers.py`` say our filters in Qdrant's, ``search.py``
asks for the best, ``first_stage.py`` has the vectors by which candidates are found.
"""

from __future__ import annotations

from ..errors import MissingExtraError

try:
    import qdrant_client  # noqa: F401  # asked for once, before the modules that need it
except ImportError as error:
    raise MissingExtraError("colbert_integrations.qdrant", "qdrant") from error

from .store import QdrantStore

__all__ = ["QdrantStore"]
