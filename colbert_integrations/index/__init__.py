"""Stores of token embeddings and the search in them; a store sees embeddings, never a model.

``store.py`` is the protocol, ``memory.py`` the store in this process. Below it: ``state.py`` is what there is at one
moment; ``segment.py`` keeps documents whose vectors ``rows.py`` packs in memory that ``allocator.py`` finds;
``layout.py`` decides in which form (``quantization.py``), ``centroids.py`` lists the documents near centroids for a
candidate stage; ``scan.py`` scores them, ``persistence.py`` keeps them in a folder. For all stores: ``filters.py`` is
the language of filters, ``metadata.py`` and ``checks.py`` say what is refused.
"""

from __future__ import annotations

from .checks import check_ids
from .filters import AnyOf, Condition, Conditions, is_number, is_yes, matches, parse_filter, places
from .memory import MemoryStore
from .metadata import json_copy
from .store import Filter, Hit, Search, Store, StoredDocument

__all__ = [
    "AnyOf",
    "Condition",
    "Conditions",
    "Filter",
    "Hit",
    "MemoryStore",
    "Search",
    "Store",
    "StoredDocument",
    "check_ids",
    "is_number",
    "is_yes",
    "json_copy",
    "matches",
    "parse_filter",
    "places",
]
