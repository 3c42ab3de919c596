"""Encoding against other libraries: the same checkpoint and texts in each, in turn, in one run, tokenisation included.

A hundred ragged documents (178 tokens on average, at most 300) and one query of 16 tokens. Every engine runs in a
process and an environment of its own (``text_worker.py``). The checkpoints are made on the spot (``speed_texts.py``),
unless ``--checkpoints`` has them. An engine that can't be built gets a row that says why. Times are wall times.
``--print`` shows the newest results instead. With ``--device cuda`` all run on the GPU; that part has not been run yet.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import our_kernel
import records
import running
import speed_texts
from tqdm import tqdm

RESULTS = records.HERE / "results" / "encoding_peers.csv"
WORKER = Path(__file__).with_name("text_worker.py")
BASE = "ours float32"
# Those that end in "compiled" need the kernel of the extra; the others are torch alone.
OURS = [BASE, "ours float32 compiled", "ours bfloat16", "ours bfloat16 compiled", "ours int8", "ours int8 compiled"]
# Whose vectors the others are compared with: the first of these that runs.
JUDGES = ["sentence-transformers", "PyLate", BASE]
# Those that on a GPU also run in bfloat16, which is the default of ours there.
HALVES = ["sentence-transformers", "PyLate", "rerankers"]
PAUSE = 0.03
"""Seconds: OpenMP's threads spin for a while after their work, which would slow the next one down."""

MODELS = {"minilm": "MiniLM (6 layers of 384)", "modernbert": "ModernBERT-base (22 layers of 768)"}
LABELS = {
    "ours float32": "**ours**, float32",
    "ours float32 compiled": "**ours**, float32, compiled kernel",
    "ours bfloat16": "**ours**, bfloat16",
    "ours bfloat16 compiled": "**ours**, bfloat16, compiled kernel",
    "ours int8": "**ours**, int8",
    "ours int8 compiled": "**ours**, int8, compiled kernel",
    "sentence-transformers": "sentence-transformers `MultiVectorEncoder`",
    "PyLate": "PyLate `ColBERT`",
    "candding": "candding",
}


@dataclass(frozen=True)
class Case:
    """What is timed."""

    model: str
    documents: int
    threads: int
    device: str = "cpu"

    def __str__(self) -> str:
        where = f"{self.threads} thread{'s'[: self.threads > 1]}" if self.device == "cpu" else self.device
        return f"{self.model}, {self.documents} documents, {where}"


def start(peer: running.Peer, python: str, checkpoint: Path, folder: Path, threads: int, device: str) -> running.Peer:
    """Start an engine of ``text_worker.py``; an empty Python says that there is none."""
    if python:
        command = [python, str(WORKER), peer.name, str(checkpoint), str(folder), str(threads), device]
        peer.start(command, folder, threads)
    else:
        peer.problem = "not run: no Python with it was given"
    return peer


def start_all(engines: dict[str, str], checkpoint: Path, folder: Path, threads: int, device: str) -> list[running.Peer]:
    """Start engines, by the Python of each: one after another on a CPU, where they would slow each other down."""

    def one(name: str) -> running.Peer:
        return start(running.Peer(name), engines[name], checkpoint, folder, threads, device)

    with ThreadPoolExecutor(1 if device == "cpu" else len(engines)) as pool:
        return list(pool.map(one, engines))


def compare(
    case: Case, checkpoint: Path, engines: dict[str, str], *, rounds: int = 5, queries: int = 40
) -> list[records.Row]:
    """Measure engines in turn.

    Args:
        case: What to encode.
        checkpoint: Its folder.
        engines: The Python to run each with, by name; an empty one says that there is none.
        rounds: How often each has its turn.
        queries: How often each encodes the query in a turn.

    Returns:
        A row for each engine.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = speed_texts.ragged(checkpoint, case.documents)
        texts = {"documents": documents, "query": speed_texts.short_query(checkpoint)}
        (folder / "texts.json").write_text(json.dumps(texts))
        peers = start_all(engines, checkpoint, folder, case.threads, case.device)
        seconds: dict[str, dict[str, list[float]]] = {peer.name: {"documents": [], "query": []} for peer in peers}
        try:
            for peer in peers:
                peer.ask({"do": "keep"})
            for number in tqdm(range(rounds), str(case), disable=None):
                for peer in running.in_turn(peers, number):
                    _turn(peer, seconds[peer.name], queries)
        finally:
            for peer in peers:
                peer.stop()
        judgements = judge(peers, folder)
    base = statistics.median(seconds.get(base_on(case.device), {}).get("documents") or [math.nan])
    return [_row(case, peer, seconds[peer.name], base, judgements[peer.name]) for peer in peers]


def _turn(peer: running.Peer, seconds: dict[str, list[float]], queries: int) -> None:
    if reply := peer.ask({"do": "documents"}):
        seconds["documents"].append(reply["seconds"])
    if reply := peer.ask({"do": "query", "times": queries}):
        seconds["query"] += reply["seconds"]
    time.sleep(PAUSE)


def judge(peers: Sequence[running.Peer], folder: Path) -> dict[str, records.Row]:
    """Compare the vectors of each engine with those of the first judge that ran."""
    done = {peer.name: folder / peer.name.replace(" ", "-") for peer in peers if not peer.problem}
    against = next((name for name in JUDGES if name in done), "")
    return {
        peer.name: differences(done[peer.name], done[against]) | {"compared with": against} if peer.name in done else {}
        for peer in peers
    }


def differences(folder: Path, truth: Path) -> records.Row:
    """Largest difference and smallest cosine of the vectors in two folders, and how many vectors there are."""
    values, right = (np.load(path / "values.npy").astype(np.float64) for path in (folder, truth))
    lengths, right_lengths = (np.load(path / "lengths.npy") for path in (folder, truth))
    if values.shape[1] != right.shape[1]:
        return {"vectors": len(values), "max difference": f"a head of {values.shape[1]}", "min cosine": ""}
    if not np.array_equal(lengths, right_lengths):
        return {"vectors": len(values), "max difference": "other tokens", "min cosine": ""}
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(right, axis=1)
    cosines = (values * right).sum(1) / norms
    return {
        "vectors": len(values),
        "max difference": f"{np.abs(values - right).max():.1e}",
        "min cosine": round(float(cosines.min()), 6),
    }


def _row(
    case: Case, peer: running.Peer, seconds: dict[str, list[float]], base: float, judgement: records.Row
) -> records.Row:
    documents = [] if peer.problem else seconds["documents"]
    ratio = statistics.median(documents) / base if documents else math.nan
    return {
        "case": f"{peer.name}: {case}",
        "engine": peer.name,
        "version": peer.about.get("version", ""),
        "model": case.model,
        "documents": case.documents,
        "on": case.device,
        **spread(documents),
        "times ours": "" if math.isnan(ratio) else round(ratio, 3),
        **latency([] if peer.problem else seconds["query"]),
        **{name: judgement.get(name, "") for name in ("vectors", "max difference", "min cosine", "compared with")},
        "problem": peer.problem,
    }


def spread(seconds: Sequence[float]) -> records.Row:
    """Median, first and last tenth and the best of some durations, in seconds; empty where there are none."""
    names = ["median s", "p10 s", "p90 s", "best s"]
    places = np.quantile(seconds, [0.5, 0.1, 0.9, 0.0]) if seconds else [""] * 4
    return {
        **{name: place if place == "" else round(float(place), 4) for name, place in zip(names, places, strict=True)},
        "rounds": len(seconds),
    }


def latency(seconds: Sequence[float]) -> records.Row:
    """Median and last hundredth of some durations, in milliseconds; empty where there are none."""
    names = ["query p50 ms", "query p99 ms"]
    places = np.quantile(seconds, [0.5, 0.99]) if seconds else [""] * 2
    return {
        name: place if place == "" else round(1000 * float(place), 3) for name, place in zip(names, places, strict=True)
    }


# ----------------------------------------------------------------------------------------------------------- tables


def tables(rows: Sequence[dict[str, str]]) -> str:
    """Markdown: a table for each model, with a column of each number of threads.

    Args:
        rows: The newest ones of the results.

    Returns:
        The tables, each below a line that says what it holds.
    """
    models = dict.fromkeys((row["model"], row["documents"]) for row in rows)
    parts = [
        _table(
            [row for row in rows if (row["model"], row["documents"]) == key], f"{MODELS[key[0]]}, {key[1]} documents"
        )
        for key in models
    ]
    problems = {row["engine"]: row["problem"] for row in rows if row["problem"]}
    return "\n\n".join([*parts, *(f"- {name}: {problem}" for name, problem in problems.items())])


def _table(rows: Sequence[dict[str, str]], title: str) -> str:
    places = list(dict.fromkeys(map(_where, rows)))
    cells = {(row["engine"], _where(row)): row for row in rows}
    heads = ["engine", *(f"s, {place} (times ours, float32)" for place in places)]
    heads += [*(f"query p50 / p99 ms, {place}" for place in places), "max difference", "min cosine"]
    lines = []
    for name in _engines(rows):
        own = [cells[name, place] for place in places if (name, place) in cells and cells[name, place]["median s"]]
        found = {_where(row): row for row in own}
        lines.append(
            [
                LABELS.get(name, name),
                *(_seconds(found[place]) if place in found else "" for place in places),
                *(
                    f"{found[place]['query p50 ms']} / {found[place]['query p99 ms']}" if place in found else ""
                    for place in places
                ),
                max((row["max difference"] for row in own), key=_number),
                min((row["min cosine"] for row in own), key=_number),
            ]
        )
    return f"{title}:\n\n{records.table(heads, lines, right=len(heads) - 1)}"


def _where(row: dict[str, str]) -> str:
    return f"{row['threads']} thread{'s'[: row['threads'] != '1']}" if row["on"] == "cpu" else row["on"]


def _seconds(row: dict[str, str]) -> str:
    return f"{float(row['median s']):.3g}" + (f" ({float(row['times ours']):.2f})" if row["times ours"] else "")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _engines(rows: Iterable[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(row["engine"] for row in rows if row["median s"]))


# ------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as Markdown tables")
    parser.add_argument("--cpu", help="print what a CPU with this in its name measured, not the last one")
    parser.add_argument("--models", nargs="+", choices=speed_texts.CHECKPOINTS, default=list(speed_texts.CHECKPOINTS))
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for each engine")
    parser.add_argument("--rounds", type=int, default=5, help="how often each engine has its turn")
    parser.add_argument("--queries", type=int, default=40, help="how often it encodes the query in each")
    parser.add_argument("--quick", action="store_true", help="10 documents, MiniLM")
    add_pythons(parser)
    parser.add_argument("--candding", default="", help="a Python that has candding")
    parser.add_argument("--results", type=Path, help="the CSV")
    options = parser.parse_args()
    options.results = options.results or records.on_device(RESULTS, options.device)
    if not options.print:
        run(options)
    print(tables(records.newest(options.results, "case", options.cpu)))


def add_pythons(parser: argparse.ArgumentParser) -> None:
    """Options that this script and ``rerank_peers.py`` share."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sentence-transformers", default="", help="a Python that has sentence-transformers 6")
    parser.add_argument("--pylate", default="", help="a Python that has PyLate")
    parser.add_argument("--checkpoints", type=Path, help="a folder of checkpoints by name, not to be made on the spot")
    parser.add_argument("--only", nargs="+", help="engines to run, by name; ours by default is always among them")


def pythons(options: argparse.Namespace, ours: Sequence[str], others: dict[str, str]) -> dict[str, str]:
    """The Python of each engine that is to run: on a GPU without those of ours that are for CPUs, but with halves.

    Args:
        options: The command line's.
        ours: Names of ours.
        others: The Pythons of others by name; an empty one says that there is none.

    Returns:
        Pythons by name.
    """
    if options.device == "cuda":
        ours = [name for name in ours if not name.endswith(our_kernel.COMPILED) and "int8" not in name]
        others = others | {f"{name} bfloat16": others[name] for name in HALVES if name in others}
    given = dict.fromkeys(ours, sys.executable) | others
    wanted = [base_on(options.device), *(options.only or given)]
    return {name: python for name, python in given.items() if name in wanted}


def base_on(device: str) -> str:
    """Which of ours the times of others are divided by: the default there."""
    return BASE if device == "cpu" else "ours bfloat16"


def run(options: argparse.Namespace) -> None:
    """Measure all cases; the rows of a case are written as soon as it is done."""
    others = {"sentence-transformers": options.sentence_transformers, "PyLate": options.pylate}
    if options.device == "cpu":
        others["candding"] = options.candding
    engines = pythons(options, OURS, others)
    about = records.circumstances("torch")
    first = {"date": about["date"], "commit": about["commit"]}
    for model in ["minilm"] if options.quick else options.models:
        with speed_texts.checkpoint(model, options.checkpoints) as checkpoint:
            for threads in options.threads if options.device == "cpu" else [os.cpu_count() or 1]:
                case = Case(model, 10 if options.quick else options.documents, threads, options.device)
                rows = compare(case, checkpoint, engines, rounds=options.rounds, queries=options.queries)
                records.append(options.results, [{**first, **row, **about, "threads": threads} for row in rows])


if __name__ == "__main__":
    main()
