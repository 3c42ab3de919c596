"""The documents of the indexes in ``tests/golden/indexes``, which earlier versions saved and every later one must read.

``python tests/saved_indexes.py FOLDER`` saves such indexes with the present code. Those in git are never made again: a
new format adds folders, and they stay as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.fingerprint import Fingerprint
from colbert_integrations.index import memory

DIM = 16
LENGTHS = {"a": 3, "b": 1, "gone": 1, "ü/c:1": 9, "d": 6, "e": 2, "f": 12}
TEXTS = {"a": "the wings", "b": "", "ü/c:1": "狐\r\n\u2028 runs", "d": None, "e": "e", "f": "long"}
METADATA: dict[str, dict[str, Any]] = {
    "a": {"year": 2020, "deep": {"list": [1, 2.5, None, "ü"]}},
    "b": {},
    "ü/c:1": {"year": 2021.5},
    "d": {"year": None},
    "e": {"large": 2**70},
    "f": {"yes": True},
}
FINGERPRINT = Fingerprint(
    "0123456789abcdef0123456789abcdef",
    "a/model",
    DIM,
    {"model": "a/model", "query_length": 24},
    [{"document_length": 180, "pool_factor": 2.0}],
)
FORMS: dict[str, dict[str, Any]] = {
    "float16": {},
    "float32": {"dtype": "float32"},
    "nbits2": {"nbits": 2},
    "nbits4_pooled": {"nbits": 4, "search": "centroids", "candidates": 3},  # in git "pooled", as it was then
    "nbits8": {"nbits": 8},
    "centroids": {"search": "centroids", "candidates": 5},
    "nbits8_originals": {"nbits": 8, "keep_originals": True, "search": "codes", "candidates": 4},
}


def vectors(text: int, tokens: int) -> torch.Tensor:
    """Vectors of multiples of 1/8 from -1 to 1, which float16 holds exactly."""
    rows = [[(5 * text + 3 * t + 7 * j * j + text * t * j) % 17 - 8 for j in range(DIM)] for t in range(tokens)]
    return torch.tensor(rows) / 8


def documents() -> dict[str, torch.Tensor]:
    """The vectors of each document, by id."""
    return {name: vectors(number, length) for number, (name, length) in enumerate(LENGTHS.items())}


def queries() -> TokenEmbeddings:
    """Two queries."""
    return TokenEmbeddings.from_list([vectors(20, 5), vectors(31, 2)])


def save(folder: Path) -> None:
    """Save an index in each form, of several segments, with a document that was deleted."""
    memory._FEWEST_ROWS, memory._MOST_ROWS = 8, 24
    every = documents()
    for form, options in FORMS.items():
        store = MemoryStore(**options)
        texts, notes = [TEXTS.get(name) for name in every], [METADATA.get(name) for name in every]
        store.upsert(list(every), TokenEmbeddings.from_list(list(every.values())), texts, notes)
        store.bind(FINGERPRINT)
        store.delete(["gone"])
        if store.search_default == "centroids":
            store.search(queries(), 1)  # which makes what is saved with the vectors
        store.save(folder / form)
        (folder / form / ".lock").unlink(missing_ok=True)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
