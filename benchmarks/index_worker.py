"""One search engine in its own process, in the environment that it needs: answers "search for query i" line by line.

``index_peers.py`` starts it as ``python index_worker.py ENGINE FOLDER THREADS``, writes ``i`` to its standard input and
reads ``{"ids": ..., "ms": ...}`` from its standard output; its first line tells of the building. The folder holds the
vectors as ``.npy`` files. Nothing but numpy is imported that the engine does not bring.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import running

K = 10
BATCH = 1000

Search = Callable[[int], list[str]]


@dataclass(frozen=True)
class Data:
    """Vectors of documents and queries, float16, as files that are mapped."""

    documents: np.ndarray
    offsets: list[int]
    queries: np.ndarray
    query_offsets: list[int]

    def query(self, number: int) -> np.ndarray:
        """Vectors of a query, ``(tokens, dim)`` float32."""
        return self.queries[self.query_offsets[number] : self.query_offsets[number + 1]].astype(np.float32)

    def batches(self) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        """Ids, vectors and offsets of some documents after another."""
        for start in range(0, len(self.offsets) - 1, BATCH):
            bounds = np.array(self.offsets[start : start + BATCH + 1])
            ids = [str(number) for number in range(start, start + len(bounds) - 1)]
            yield ids, np.array(self.documents[bounds[0] : bounds[-1]]), bounds - bounds[0]

    def matrices(self) -> Iterator[np.ndarray]:
        """Vectors of each document, ``(tokens, dim)`` float16."""
        for _, values, bounds in self.batches():
            yield from np.split(values, bounds[1:-1])


def read(folder: Path) -> Data:
    """Open what ``index_peers.write`` wrote."""
    documents, queries = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("documents", "queries"))
    offsets, query_offsets = (np.load(folder / f"{name}.npy").tolist() for name in ("offsets", "query_offsets"))
    return Data(documents, offsets, queries, query_offsets)


# -------------------------------------------------------------------------------------------------------- engines


def ours(data: Data, search: str) -> Search:
    """This package's store, with a search by name."""
    import torch

    from colbert_integrations import MemoryStore, TokenEmbeddings

    store = MemoryStore(nbits=8, keep_originals=True) if search == "codes" else MemoryStore()
    for ids, values, bounds in data.batches():
        store.upsert(ids, TokenEmbeddings(torch.from_numpy(values), torch.from_numpy(bounds)))

    def find(number: int) -> list[str]:
        query = TokenEmbeddings.from_list([torch.from_numpy(data.query(number))])
        return [hit.id for hit in store.search(query, K, search=search)[0]]

    find(0)  # makes what the candidate stage needs
    return find


def lancedb(data: Data, search: str) -> Search:
    """LanceDB's flat scan of a multivector column, which is exact; it knows the cosine only."""
    import lancedb
    import pyarrow

    dim, folder = data.documents.shape[1], tempfile.TemporaryDirectory()
    kind = pyarrow.float16() if search == "float16" else pyarrow.float32()
    schema = pyarrow.schema([("id", pyarrow.string()), ("vector", pyarrow.list_(pyarrow.list_(kind, dim)))])

    def batches() -> Iterator[pyarrow.RecordBatch]:
        for ids, values, bounds in data.batches():
            flat = pyarrow.array(values.astype(kind.to_pandas_dtype()).reshape(-1), kind)
            rows = pyarrow.FixedSizeListArray.from_arrays(flat, dim)
            vectors = pyarrow.ListArray.from_arrays(pyarrow.array(bounds, pyarrow.int32()), rows)
            yield pyarrow.RecordBatch.from_arrays([pyarrow.array(ids), vectors], schema=schema)

    reader = pyarrow.RecordBatchReader.from_batches(schema, batches())
    table = lancedb.connect(folder.name).create_table("passages", reader, schema=schema)

    def find(number: int) -> list[str]:
        _ = folder  # removed when nobody can search any more
        query = table.search(data.query(number), vector_column_name="vector").distance_type("cosine")
        return query.limit(K).select(["id"]).to_arrow()["id"].to_pylist()

    return find


def pylate(data: Data, search: str) -> Search:
    """PyLate's ``rank.rerank`` over all documents."""
    import torch
    from pylate import rank

    documents = [torch.from_numpy(matrix.astype(np.float32)) for matrix in data.matrices()]
    ids = [str(number) for number in range(len(documents))]

    def find(number: int) -> list[str]:
        found = rank.rerank([ids], [torch.from_numpy(data.query(number))], [documents])
        return [result["id"] for result in found[0][:K]]

    return find


def fast_plaid(data: Data, search: str) -> Search:
    """fast-plaid with its default settings, which is approximate."""
    import torch
    from fast_plaid.search import FastPlaid

    folder = tempfile.TemporaryDirectory()
    index = FastPlaid(index=f"{folder.name}/index", device="cpu")
    index.create([torch.from_numpy(matrix.astype(np.float32)) for matrix in data.matrices()])

    def find(number: int) -> list[str]:
        _ = folder
        query = torch.from_numpy(data.query(number))[None]
        return [str(place) for place, _ in index.search(query, top_k=K, show_progress=False)[0]]

    return find


ENGINES: dict[str, tuple[Callable[[Data, str], Search], str, str]] = {
    "ours exact": (ours, "exact", "colbert-integrations"),
    "ours centroids": (ours, "centroids", "colbert-integrations"),
    "ours codes": (ours, "codes", "colbert-integrations"),
    "lancedb float32": (lancedb, "float32", "lancedb"),
    "lancedb float16": (lancedb, "float16", "lancedb"),
    "pylate rank.rerank": (pylate, "", "pylate"),
    "fast-plaid": (fast_plaid, "", "fast-plaid"),
}


def ready(name: str, folder: Path) -> tuple[running.Reply, Callable[[Any], running.Reply]]:
    """Build an engine; say how long it took, and what searches for the query of a number."""
    build, search, package = ENGINES[name]
    data, started = read(folder), time.perf_counter()
    find = build(data, search)
    about = {"build seconds": round(time.perf_counter() - started, 3), "version": version(package)}

    def answer(number: Any) -> running.Reply:
        started = time.perf_counter()
        ids = find(number)
        return {"ids": ids, "ms": 1000 * (time.perf_counter() - started), "memory MB": _memory()}

    return about, answer


def _memory() -> float:
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def main() -> None:
    """Serve one engine."""
    name, folder, threads = sys.argv[1:]
    if name.startswith(("ours", "pylate", "fast-plaid")):
        import torch

        torch.set_num_threads(int(threads))
    running.serve(lambda: ready(name, Path(folder)))


if __name__ == "__main__":
    main()
