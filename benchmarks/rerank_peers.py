"""Reranking from text to order: the same checkpoint, queries and documents in each library, in turn, in one run.

Each of Cranfield's queries comes with BM25's best 100 documents, cut to the 300 tokens that the model reads, so that
nobody reads more than the others. Everything is encoded anew for each query. Every library runs in a process and an
environment of its own (``text_worker.py``). A library that can't be built gets a row that says why. Times are wall
times. ``--print`` shows the newest results instead. With ``--device cuda`` all run on the GPU; that part has not been
run yet.

``--concurrent`` measures ours alone: 64 requests, one after another, from threads, and from asyncio; and the encoding
of all their texts in one call, which is the most that sharing could reach.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import encoding_peers
import numpy as np
import our_kernel
import records
import running
import speed_texts
import torch
from tqdm import tqdm

from colbert_integrations import ColBERT

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # bm25s would take most of a GPU for JAX, where that is installed
import bm25s

RESULTS = records.HERE / "results" / "rerank_peers.csv"
CONCURRENT = records.HERE / "results" / "concurrent.csv"
BASE = encoding_peers.BASE
OURS = [name for name in encoding_peers.OURS if "int8" not in name]
# Whose order the others are compared with.
JUDGE = "sentence-transformers"
SHOWN = ["engine", "threads", "median s", "p90 s", "times ours", "top 10 as float32", "problem"]
SHOWN_SHORT = ["engine", "median s", "top 10 as float32"]
SHOWN_CONCURRENT = ["texts", "documents", "way", "threads", "requests per second", "times in sequence"]
SHOWN_CONCURRENT += ["p50 ms", "p99 ms"]
REQUESTS = 64
LENGTHS = {"abstracts": speed_texts.MOST_TOKENS, "sentences": 32}
"""Texts of the concurrent requests, and the most tokens that they have."""
SIZES = [("abstracts", 20), ("sentences", 20), ("sentences", 2)]
"""Texts and documents of each request."""
ON_GPU = [("abstracts", 100)]
"""More of them, which a GPU has done in a second."""

MOST_OF_QUERY = 32

Request = tuple[str, list[str]]


def requests(checkpoint: Path, count: int, depth: int, length: int = speed_texts.MOST_TOKENS) -> list[Request]:
    """The first queries of Cranfield, each with the documents that BM25 ranks best.

    Args:
        checkpoint: Whose tokens.
        count: How many queries, up to 225.
        depth: How many documents each.
        length: Most tokens of a document.

    Returns:
        Queries and documents.
    """
    documents, queries = speed_texts.abstracts(), speed_texts.queries()[:count]
    index = bm25s.BM25(k1=0.9, b=0.4)
    index.index(bm25s.tokenize(documents, stopwords="en", show_progress=False), show_progress=False)
    places, _ = index.retrieve(
        bm25s.tokenize(queries, stopwords="en", show_progress=False),
        k=depth,
        show_progress=False,
        backend_selection="numpy",
    )
    texts, asked = speed_texts.cut(checkpoint, documents, length), speed_texts.cut(checkpoint, queries, MOST_OF_QUERY)
    return [(query, [texts[place] for place in found]) for query, found in zip(asked, places.tolist(), strict=True)]


# ------------------------------------------------------------------------------------------------------------ peers


def compare(
    model: str, checkpoint: Path, engines: dict[str, str], work: Sequence[Request], *, threads: int, device: str = "cpu"
) -> list[records.Row]:
    """Measure libraries in turn; the first request only warms them up.

    Args:
        model: What rows call the checkpoint.
        checkpoint: Its folder.
        engines: The Python to run each with, by name; an empty one says that there is none.
        work: The requests, at least two.
        threads: For each library.
        device: Where they run.

    Returns:
        A row for each library.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps({"requests": work}))
        peers = encoding_peers.start_all(engines, checkpoint, folder, threads, device)
        replies: dict[str, list[running.Reply]] = {peer.name: [] for peer in peers}
        try:
            for number in tqdm(range(len(work)), f"{threads} threads", disable=None):
                for peer in running.in_turn(peers, number):
                    reply = peer.ask({"do": "rank", "request": number})
                    if reply and number:
                        replies[peer.name].append(reply)
                    time.sleep(encoding_peers.PAUSE)
        finally:
            for peer in peers:
                peer.stop()
    what = {"model": model, "documents": len(work[0][1]), "on": device}
    where = f"{threads} threads" if device == "cpu" else device
    rows = [
        _row(peer, replies, what, f"{peer.name}: {what['documents']} documents, {model}, {where}") for peer in peers
    ]
    return rows


def _row(peer: running.Peer, replies: dict[str, list[running.Reply]], what: records.Row, case: str) -> records.Row:
    own = [] if peer.problem else replies[peer.name]
    seconds = [reply["seconds"] for reply in own]
    base = [reply["seconds"] for reply in replies.get(encoding_peers.base_on(what["on"]), [])]
    same = [
        top_shared(mine["scores"], right["scores"]) for mine, right in zip(own, replies.get(JUDGE, []), strict=False)
    ]
    return {
        "case": case,
        "engine": peer.name,
        "version": peer.about.get("version", ""),
        **what,
        **encoding_peers.spread(seconds),
        "times ours": round(statistics.median(seconds) / statistics.median(base), 3) if seconds and base else "",
        "top 10 as float32": round(statistics.fmean(same), 3) if same else "",
        "load seconds": peer.about.get("load seconds", ""),
        "problem": peer.problem,
    }


def top_shared(scores: Sequence[float], right: Sequence[float], k: int = 10) -> float:
    """Share of the best documents by some scores that are also best by others."""
    best, wanted = (set(np.argsort(-np.array(some), kind="stable")[:k].tolist()) for some in (scores, right))
    return len(best & wanted) / len(wanted)


# ------------------------------------------------------------------------------------------------- many at once


Way = Callable[[ColBERT, Sequence[Request]], list[float]]
"""Handles all requests; the seconds from the moment that all were there until each was answered."""


def in_sequence(model: ColBERT, work: Sequence[Request]) -> list[float]:
    """One request after another; each is taken to arrive when the one before is answered."""
    return [_timed(model, *request) for request in work]


def _timed(model: ColBERT, query: str, documents: list[str]) -> float:
    started = time.perf_counter()
    model.rank(query, documents)
    return time.perf_counter() - started


def in_threads(model: ColBERT, work: Sequence[Request]) -> list[float]:
    """A thread for each request."""
    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(lambda request: _timed(model, *request), work))


def in_asyncio(model: ColBERT, work: Sequence[Request]) -> list[float]:
    """A task for each request."""

    async def one(request: Request) -> float:
        started = time.perf_counter()
        await model.arank(*request)
        return time.perf_counter() - started

    async def everything() -> list[float]:
        return await asyncio.gather(*map(one, work))

    return asyncio.run(everything())


def in_one_call(model: ColBERT, work: Sequence[Request]) -> list[float]:
    """No way to rank, but a bound: all texts are encoded in one call, and nothing is scored."""
    started = time.perf_counter()
    model.encode_query([query for query, _ in work])
    model.encode_document([document for _, documents in work for document in documents])
    if model.device.type == "cuda":
        torch.cuda.synchronize()  # the vectors stay there, so nothing else has waited for them
    return [time.perf_counter() - started] * len(work)


WAYS: dict[str, Way] = {
    "in sequence": in_sequence,
    "threads": in_threads,
    "asyncio": in_asyncio,
    "encoded in one call": in_one_call,
}


def concurrent(model: ColBERT, work: Sequence[Request], rounds: int) -> list[records.Row]:
    """Measure the ways to make many requests, in turn.

    Args:
        model: Ready to rank.
        work: All requests.
        rounds: How often each way has its turn, after one that does not count.

    Returns:
        A row for each way.
    """
    totals: dict[str, list[float]] = {name: [] for name in WAYS}
    waits: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in tqdm(range(-1, rounds), "rounds", disable=None):
        for name, way in WAYS.items():
            started = time.perf_counter()
            seconds = way(model, work)
            if number >= 0:
                totals[name].append(time.perf_counter() - started)
                waits[name] += seconds
    base = statistics.median(totals["in sequence"])
    return [_way_row(name, len(work), totals[name], waits[name], base) for name in WAYS]


def _way_row(name: str, count: int, totals: Sequence[float], waits: Sequence[float], base: float) -> records.Row:
    total = statistics.median(totals)
    half, last = np.quantile(waits, [0.5, 0.99])
    return {
        "way": name,
        "requests": count,
        "median s": round(total, 3),
        "best s": round(min(totals), 3),
        "rounds": len(totals),
        "requests per second": round(count / total, 2),
        "times in sequence": round(base / total, 3),
        "p50 ms": round(1000 * float(half), 1),
        "p99 ms": round(1000 * float(last), 1),
    }


# ------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as Markdown tables")
    parser.add_argument("--short", action="store_true", help="with --print: one thread, the fastest first")
    parser.add_argument("--cpu", help="print what a CPU with this in its name measured, not the last one")
    parser.add_argument("--concurrent", action="store_true", help="many requests at once, ours alone")
    parser.add_argument("--model", choices=speed_texts.CHECKPOINTS, default="minilm")
    parser.add_argument("--queries", type=int, default=10, help="how many are timed, after one that is not")
    parser.add_argument("--depth", type=int, default=100, help="documents of each query")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for each library")
    parser.add_argument("--rounds", type=int, default=3, help="of --concurrent")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of --concurrent")
    parser.add_argument("--quick", action="store_true", help="2 queries of 10 documents; 8 requests")
    encoding_peers.add_pythons(parser)
    parser.add_argument("--llama-index", default="", help="a Python that has LlamaIndex' ColbertRerank")
    parser.add_argument("--rerankers", default="", help="a Python that has rerankers")
    parser.add_argument("--results", type=Path, help="the CSV")
    options = parser.parse_args()
    options.results = options.results or records.on_device(
        CONCURRENT if options.concurrent else RESULTS, options.device
    )
    if options.quick:
        options.queries, options.depth, options.requests, options.rounds = 2, 10, 8, 1
    if not options.print:
        with speed_texts.checkpoint(options.model, options.checkpoints) as checkpoint:
            (run_concurrent if options.concurrent else run)(options, checkpoint)
    shown = SHOWN_CONCURRENT if options.concurrent else SHOWN
    rows = records.newest(options.results, "case", options.cpu)
    if options.concurrent:
        rows.sort(key=lambda row: (row["texts"], -int(row["documents"])))
    if options.short:
        rows, shown = [row for row in rows if row["threads"] == "1"], SHOWN_SHORT
        rows.sort(key=lambda row: float(row["median s"]))
        rows = [{**row, "median s": f"{float(row['median s']):.2f}"} for row in rows]
    print(records.markdown(rows, shown))


def run(options: argparse.Namespace, checkpoint: Path) -> None:
    """Measure the libraries whose Pythons were given."""
    others = {JUDGE: options.sentence_transformers, "PyLate": options.pylate}
    others |= {"LlamaIndex ColbertRerank": options.llama_index, "rerankers": options.rerankers}
    engines = encoding_peers.pythons(options, OURS, others)
    work = requests(checkpoint, options.queries + 1, options.depth)
    about = records.circumstances("torch")
    first = {"date": about["date"], "commit": about["commit"]}
    for threads in options.threads if options.device == "cpu" else [os.cpu_count() or 1]:
        rows = compare(options.model, checkpoint, engines, work, threads=threads, device=options.device)
        records.append(options.results, [{**first, **row, **about, "threads": threads} for row in rows])


def run_concurrent(options: argparse.Namespace, checkpoint: Path) -> None:
    """Measure many requests at once, on a CPU with the threads that the last of ``--threads`` says."""
    if options.device == "cpu":
        torch.set_num_threads(options.threads[-1])
    about = records.circumstances("torch")
    first = {"date": about["date"], "commit": about["commit"]}
    with ColBERT(checkpoint, device=options.device, long_documents="truncate") as model:
        dtype = str(model.dtype).removeprefix("torch.")
        for texts, each in SIZES + ON_GPU * (options.device == "cuda"):
            rows = concurrent(model, requests(checkpoint, options.requests, each, LENGTHS[texts]), options.rounds)
            what: dict[str, Any] = {"texts": texts, "documents": each, "model": options.model}
            what |= {"on": options.device, "dtype": dtype, "compiled kernel": "yes" if our_kernel.is_there() else "no"}
            where = f"{each} {texts}, {options.model}, {options.device}, {about['threads']} threads"
            named = [{"case": f"{row['way']}: {where}", **what, **row} for row in rows]
            records.append(options.results, [{**first, **row, **about} for row in named])


if __name__ == "__main__":
    main()
