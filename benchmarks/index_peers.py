"""The index against other engines: the same made-up passages and queries, one query each in turn, in one run.

Every engine runs in a process and an environment of its own (``index_worker.py``), all with as many threads, and is
idle while another one searches. What each finds is compared with a brute force in numpy. An engine that can't be built
gets a row that says why. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import index_worker
import numpy as np
import records
import running
import synthetic
from index_measuring import median_ms, p90_ms, recall
from tqdm import tqdm

RESULTS = records.HERE / "results" / "index_peers.csv"
SHOWN = [
    "case",
    "version",
    "median ms",
    "p90 ms",
    "times ours exact",
    "recall@10",
    "build seconds",
    "memory MB",
    "problem",
]
OURS = ["ours exact", "ours centroids", "ours codes"]
# PyLate pads all documents to one length at each search: more would not fit into memory. LanceDB takes a minute a query
# beyond that in float16, three times what it takes in float32.
MOST_DOCUMENTS = {"pylate rank.rerank": 20_000, "lancedb float16": 20_000}
WORKER = Path(__file__).with_name("index_worker.py")


@dataclass
class Engine(running.Peer):
    """A running engine, or why it is not running.

    Attributes:
        seconds: What each search took.
        found: What each search found.
        memory: Of its process after the last search, MB.
    """

    seconds: list[float] = field(default_factory=list)
    found: list[list[str]] = field(default_factory=list)
    memory: float = 0.0

    def search(self, query: int, *, counted: bool) -> None:
        """Search for a query; nothing if it has failed."""
        reply = self.ask(query)
        if reply is not None and counted:
            self.found.append(reply["ids"])
            self.seconds.append(reply["ms"] / 1000)
            self.memory = reply["memory MB"]


def write(folder: Path, source: synthetic.Source, count: int, queries: int) -> None:
    """Write passages and queries as files that every engine can read."""
    lengths = [length for part in synthetic.passages(source, count) for length in part.embeddings.lengths]
    shape = (sum(lengths), synthetic.DIM)
    documents = np.lib.format.open_memmap(folder / "documents.npy", "w+", np.float16, shape)
    row = 0
    for part in synthetic.passages(source, count):
        values = part.embeddings.values.numpy()
        documents[row : row + len(values)] = values
        row += len(values)
    documents.flush()
    chosen = source.queries[:queries]
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths]))
    np.save(folder / "queries.npy", chosen.values.numpy())
    np.save(folder / "query_offsets.npy", chosen.offsets.numpy())


def brute_force(data: index_worker.Data, k: int = index_worker.K) -> list[list[str]]:
    """The best documents of each query by MaxSim in float32, equal scores by position."""
    queries = range(len(data.query_offsets) - 1)
    stacked = data.queries.astype(np.float32)
    firsts = np.array(data.query_offsets[:-1])
    scores = []
    for _, values, bounds in data.batches():
        maxima = np.maximum.reduceat(values.astype(np.float32) @ stacked.T, bounds[:-1])  # (documents, query tokens)
        scores.append(np.add.reduceat(maxima, firsts, axis=1))
    order = np.argsort(-np.concatenate(scores), axis=0, kind="stable")[:k]
    return [[str(place) for place in order[:, query]] for query in queries]


def compare(
    engines: dict[str, str], source: synthetic.Source, size: int, *, queries: int = 20, threads: int = 2
) -> list[records.Row]:
    """Measure engines in turn.

    Args:
        engines: The Python to run each with, by name.
        source: What passages are made of.
        size: How many passages.
        queries: How many queries are timed.
        threads: For each engine.

    Returns:
        A row for each engine.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, source, size, queries)
        expected = brute_force(index_worker.read(folder))
        started = [_started(engine, python, folder, size, threads) for engine, python in engines.items()]
        try:
            _rounds(started, queries)
        finally:
            for engine in started:
                engine.stop()
    return [_row(engine, size, expected, started[0]) for engine in started]


def _started(name: str, python: str, folder: Path, size: int, threads: int) -> Engine:
    engine = Engine(name)
    if size > MOST_DOCUMENTS.get(name, size):
        engine.problem = f"not run above {MOST_DOCUMENTS[name]} documents"
        return engine
    engine.start([python, str(WORKER), name, str(folder), str(threads)], folder, threads)
    engine.search(0, counted=False)
    return engine


def _rounds(engines: Sequence[Engine], queries: int) -> None:
    for query in tqdm(range(queries), "queries", disable=None):
        for engine in running.in_turn(engines, query):
            engine.search(query, counted=True)


def _row(engine: Engine, size: int, expected: list[list[str]], first: Engine) -> records.Row:
    done = len(engine.found) == len(expected)
    ratio = statistics.median(engine.seconds) / statistics.median(first.seconds) if done and first.seconds else ""
    return {
        "case": f"{engine.name}, {size}",
        "engine": engine.name,
        "documents": size,
        "version": engine.about.get("version", ""),
        "build seconds": engine.about.get("build seconds", ""),
        "memory MB": engine.memory if done else "",
        "median ms": median_ms(engine.seconds) if done else "",
        "p90 ms": p90_ms(engine.seconds) if done else "",
        "times ours exact": round(ratio, 2) if ratio else "",
        "recall@10": recall(engine.found, expected) if done else "",
        "problem": engine.problem,
    }


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="numbers of passages")
    parser.add_argument("--lancedb", help="a Python that has LanceDB")
    parser.add_argument("--pylate", help="a Python that has PyLate")
    parser.add_argument("--fast-plaid", help="a Python that has fast-plaid")
    parser.add_argument("--queries", type=int, default=20, help="how many are timed")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 2), help="for each engine")
    parser.add_argument("--source", type=Path, help="keeps the encoded abstracts for the next time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    if not options.print:
        run(options)
    print(records.markdown(records.newest(options.results, "case"), SHOWN))


def run(options: argparse.Namespace) -> None:
    """Measure the engines whose Pythons were given, beside our own, at each size."""
    given = {
        "lancedb float32": options.lancedb,
        "lancedb float16": options.lancedb,
        "pylate rank.rerank": options.pylate,
        "fast-plaid": options.fast_plaid,
    }
    engines = dict.fromkeys(OURS, sys.executable) | {name: python for name, python in given.items() if python}
    about = records.circumstances("torch")
    source = synthetic.source(options.source)
    for size in options.sizes:
        rows = compare(engines, source, size, queries=options.queries, threads=options.threads)
        first = {"date": about["date"], "commit": about["commit"]}
        records.append(options.results, [{**first, **row, **about, "threads": options.threads} for row in rows])


if __name__ == "__main__":
    main()
