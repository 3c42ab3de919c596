"""A Qdrant server for tests and benchmarks: the real engine behind a loopback server of our own.

Qdrant's server itself is no Python package. ``engine.py`` does what it is asked in the real engine, ``bodies.py``
checks that it is asked as the API says, ``http.py`` listens, and ``rpc.py`` does it for gRPC. ``python -m
qdrant_server`` runs one alone.
"""

from __future__ import annotations

from .http import Asked, Fault, QdrantServer

__all__ = ["Asked", "Fault", "QdrantServer"]
