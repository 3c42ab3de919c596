"""What tests of stores share: documents with exact arithmetic, the stores to run them on, and a brute force."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.index import Store
from colbert_integrations.scoring.reference import reference_maxsim

DIM = 8

# Every store that holds vectors as they are; they must be alike in everything.
STORES: dict[str, Callable[[], Store]] = {
    "memory-float16": MemoryStore,
    "memory-float32": lambda: MemoryStore("float32"),
    "memory-originals": lambda: MemoryStore(nbits=8, keep_originals=True),
}


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
