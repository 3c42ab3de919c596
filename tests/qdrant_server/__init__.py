"""A Qdrant server for tests and benchmarks: the real engine behind a loopback server of our own.

Qdrant's server itself is no Python package. ``engine.py`` does what it is asked in the real engine, ``bodies.py``
checks that it is asked as the API says, ``strict.py`` refuses what strict mode does, ``http.py`` listens, and
``rpc.py`` does it for gRPC. ``python -m qdrant_server`` runs one alone.
"""

from __future__ import annotations

import atexit
from functools import cache

from .http import Asked, Fault, QdrantServer

__all__ = ["Asked", "Fault", "QdrantServer", "shared_server"]


@cache
def shared_server() -> QdrantServer:
    """A server that all tests share which don't disturb it."""
    server = QdrantServer()
    atexit.register(server.close)
    return server
