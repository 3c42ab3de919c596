"""Loading made-up passages into Qdrant over HTTP: how many a second, and how much memory on either side.

See ``synthetic`` for what the passages are, and ``qdrant_engine`` for the server. Each case loads in a process of its
own. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import qdrant_engine
import records
import synthetic
from index_measuring import median_ms, resident_bytes, timed
from tqdm import tqdm

from colbert_integrations.qdrant import QdrantStore

RESULTS = records.HERE / "results" / "qdrant_load.csv"
SIZE, QUERIES, K = 20_000, 20, 10
MIB = 2**20
COLUMNS = [
    "case", "documents per second", "documents per CPU second of the loader", "loader grows by MB", "loader peak MB",
    "engine peak MB", "exact search ms", "load of the machine before",
]  # fmt: skip

Dtype = Literal["float16", "float32"]


def load(dtype: Dtype, server: qdrant_engine.Server, kept: Path, size: int) -> records.Row:
    """Load passages, in this process; making them is not counted.

    Args:
        dtype: What the server keeps.
        server: Where to.
        kept: What passages are made of.
        size: How many passages.

    Returns:
        Columns.
    """
    source = synthetic.source(kept)
    with QdrantStore(server.url, dtype, dtype=dtype, timeout=600) as store:
        seconds, cpu_seconds, grown = 0.0, 0.0, 0
        for passages in tqdm(synthetic.passages(source, size), dtype, disable=None):
            rows = (passages.ids, passages.embeddings, passages.texts, passages.metadatas)
            before, started = _forget_peak(), time.process_time()
            seconds += timed(lambda rows=rows: store.upsert(*rows))[1]
            cpu_seconds += time.process_time() - started
            grown = max(grown, qdrant_engine.peak_bytes() - before)
        assert store.count() == size
        peak = qdrant_engine.peak_bytes()
        queries = [source.queries[place : place + 1] for place in range(QUERIES)]
        searches = [timed(lambda query=query: store.search(query, K))[1] for query in queries]
    return {
        "case": f"{size} passages, {dtype}",
        "documents": size,
        "seconds": round(seconds, 1),
        "documents per second": round(size / seconds, 1),
        "documents per CPU second of the loader": round(size / cpu_seconds, 1),
        "loader grows by MB": round(grown / MIB),
        "loader peak MB": round(peak / MIB),
        "engine peak MB": round(server.peak_bytes / MIB),
        "exact search ms": median_ms(searches),
    }


def _forget_peak() -> int:
    """Let the peak of this process's memory begin anew, and give what it has now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes()


def run(
    path: Path = RESULTS,
    size: int = SIZE,
    dtypes: tuple[Dtype, ...] = ("float16", "float32"),
    kept: Path | None = None,
) -> None:
    """Measure all cases, each with a new server; each row is written as soon as it is there."""
    packages = ("torch", "colbert-integrations", "qdrant-client", "qdrant-edge-py")
    about = records.circumstances(*packages)
    with tempfile.TemporaryDirectory() as folder:
        kept = kept or Path(folder) / "source.safetensors"
        synthetic.source(kept)
        for dtype in dtypes:
            busy = round(os.getloadavg()[0], 1)
            with qdrant_engine.running_server() as server:
                row = _alone(dtype, server, kept, size)
            more = {"load of the machine before": busy}
            records.append(path, [{"date": about["date"], "commit": about["commit"], **row, **more, **about}])


def _alone(*arguments: Any) -> records.Row:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        row: records.Row = pool.apply(load, arguments)
        pool.close()
        pool.join()
    return row


def table(path: Path = RESULTS) -> str:
    """The newest row of each case, as a Markdown table."""
    return records.markdown(records.newest(path, "case"), COLUMNS)


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    parser.add_argument("--size", type=int, default=SIZE, help="number of passages")
    parser.add_argument("--source", type=Path, help="keeps the encoded abstracts for the next time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    if not options.print:
        run(options.results, options.size, kept=options.source)
    print(table(options.results))


if __name__ == "__main__":
    main()
