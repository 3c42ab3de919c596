"""Where an index is kept, said in one string, so that moving it to a server is a change of one argument."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from .errors import InputError

if TYPE_CHECKING:  # at run time only once a location is opened: its room imports torch
    from .index import Store

__all__ = ["open_store"]

_SCHEMES = {"qdrant+http": "http", "qdrant+https": "https"}
_EXAMPLE = "'qdrant+http://localhost:6333/my-collection'"


def open_store(location: str) -> Store:
    """Open the store at a location.

    Args:
        location: ``qdrant+http://host:6333/collection`` or ``qdrant+https://...``: a collection on a Qdrant server. Its
            API key is read from the environment, ``QDRANT_API_KEY``; a location is logged and shown too often to hold
            it. For other options there is ``QdrantStore``.

    Returns:
        The store, with the options that are the default.

    Raises:
        InputError: If it is not such a location.
        StoreError: If the host or port can't be read.
        MissingExtraError: If what it needs is not installed.

    Example:
        >>> open_store("qdrant+http://localhost:6333/abstracts")
        QdrantStore('http://localhost:6333', 'abstracts', float16)
    """
    if not isinstance(location, str):
        raise InputError(f"a location must be a string such as {_EXAMPLE}, not {type(location).__name__}")
    try:
        parts = urlsplit(location)
    except ValueError:
        # Neither the location nor the error is shown: both may hold a secret.
        raise InputError(f"a location is an address such as {_EXAMPLE}, and this one can't be read") from None
    if parts.scheme and any(mark in location for mark in "@?#"):
        # It is not shown, not even where only the scheme is wrong: it may hold a secret.
        raise InputError(
            f"a location has no user, query or fragment, as {_EXAMPLE} has none: an API key goes into QDRANT_API_KEY"
        )
    if parts.scheme not in _SCHEMES:
        raise InputError(
            f"a store is at a location such as {_EXAMPLE}, not {location!r}; a folder is opened by ColBERTIndex.load"
        )
    prefix, _, collection = parts.path.rpartition("/")
    if not parts.hostname or not collection:
        raise InputError(f"a location ends with the name of a collection, as {_EXAMPLE} does, not {location!r}")
    from .qdrant import QdrantStore

    url = urlunsplit((_SCHEMES[parts.scheme], parts.netloc, prefix, "", ""))
    return QdrantStore(url, unquote(collection), api_key=os.environ.get("QDRANT_API_KEY") or None)
