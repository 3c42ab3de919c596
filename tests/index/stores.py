"""What tests of stores share: documents with exact arithmetic, the stores to run them on, and a brute force."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.index import Store
from colbert_integrations.qdrant import QdrantStore
from colbert_integrations.scoring.reference import reference_maxsim
from qdrant_server import shared_server

DIM = 8
CLUSTER = os.environ.get("COLBERT_TEST_QDRANT_URL")


@contextmanager
def on_server(**options: Any) -> Iterator[QdrantStore]:
    """A store on a new collection of the shared server, removed in the end."""
    name = f"test-{uuid.uuid4().hex}"
    with QdrantStore(shared_server().url, name, **options) as store:
        yield store
    shared_server().engine.delete_collection(name)


@contextmanager
def by_grpc(**options: Any) -> Iterator[QdrantStore]:
    """A store on a new collection of the shared server, by gRPC."""
    name, server = f"test-{uuid.uuid4().hex}", shared_server()
    client = QdrantClient(url=server.url, grpc_port=server.grpc_port, prefer_grpc=True, check_compatibility=False)
    with QdrantStore(client, name, **options) as store:
        yield store
    client.close()
    server.engine.delete_collection(name)


@contextmanager
def on_cluster() -> Iterator[QdrantStore]:
    """A store on a new collection of a real server or cluster, removed in the end."""
    name, key = f"test-{uuid.uuid4().hex}", os.environ.get("QDRANT_API_KEY")
    try:
        with QdrantStore(CLUSTER or "", name, api_key=key) as store:
            yield store
    finally:
        with QdrantStore(CLUSTER or "", name, api_key=key) as janitor:
            janitor.client.delete_collection(name)


@contextmanager
def in_folder() -> Iterator[QdrantStore]:
    """A store in Qdrant's local mode that keeps files."""
    with tempfile.TemporaryDirectory() as folder, QdrantStore(folder, dtype="float32") as store:
        yield store


needs_numpy_2 = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.0.0",
    reason="needs numpy>=2: the engine's binding takes booleans of an older one for numbers",
)

# Every store that holds vectors as they are; they must be alike in everything.
STORES: dict[str, Callable[[], AbstractContextManager[Store]]] = {
    "memory-float16": MemoryStore,
    "memory-float32": lambda: MemoryStore("float32"),
    "memory-originals": lambda: MemoryStore(nbits=8, keep_originals=True),
    "qdrant-memory": lambda: QdrantStore(":memory:"),
    "qdrant-folder": in_folder,
    "qdrant-server": on_server,
    "qdrant-grpc": lambda: by_grpc(dtype="float32"),
    "qdrant-cluster": on_cluster,
}

# The same for tests to run on each, where it is there.
_NO_CLUSTER = pytest.mark.skipif(CLUSTER is None, reason="set COLBERT_TEST_QDRANT_URL to the URL of a Qdrant server")
KINDS = [pytest.param(name, marks=[_NO_CLUSTER] if name == "qdrant-cluster" else []) for name in STORES]


def dyadic(seed: int, *lengths: int) -> TokenEmbeddings:
    """Vectors of small multiples of 1/8: products and sums are exact in any order and in float16."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randint(-8, 9, (length, DIM), generator=generator) / 8 for length in lengths]
    return TokenEmbeddings.from_list(matrices, DIM)


def units(seed: int, *lengths: int, dim: int = 32) -> TokenEmbeddings:
    """Random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(length, dim, generator=generator) for length in lengths]
    return TokenEmbeddings.from_list([torch.nn.functional.normalize(matrix, dim=1) for matrix in matrices], dim)


def brute_force(
    documents: Mapping[str, torch.Tensor], queries: TokenEmbeddings, k: int
) -> list[list[tuple[str, float]]]:
    """The k best of each query by the formula in float64: score descending, then id ascending."""
    names = list(documents)
    if not names:
        return [[] for _ in range(len(queries))]
    scores = reference_maxsim(queries, [documents[name] for name in names]).tolist()
    return [sorted(zip(names, row, strict=True), key=lambda pair: (-pair[1], pair[0]))[:k] for row in scores]


def found(store: Store, queries: TokenEmbeddings, k: int, **options: Any) -> list[list[tuple[str, float]]]:
    """What a search gives, as pairs of id and score."""
    return [[(hit.id, hit.score) for hit in hits] for hits in store.search(queries, k, **options)]


def fill(
    store: Store, documents: Mapping[str, torch.Tensor], metadatas: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Put documents into a store, each with its id as its text."""
    store.upsert(list(documents), TokenEmbeddings.from_list(list(documents.values())), list(documents), metadatas)
