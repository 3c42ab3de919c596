"""MaxSim against other implementations: the same random vectors in each, one call each in turn, in one run.

Every engine runs in a process and an environment of its own (``maxsim_worker.py``) and is idle while another one
computes. What each finds is compared with float64. An engine that can't be built gets a row that says why. Times are
wall times. ``--print`` shows the newest results instead.

With ``--device cuda`` the engines are ours and the GPU kernels of others, through the same calls. That part has not
been run yet; times there include the copy of the scores to the host. See ``gpu_maxsim.py`` for the kernel alone.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import records
import running
from tqdm import tqdm

RESULTS = records.HERE / "results" / "maxsim_peers.csv"
WORKER = Path(__file__).with_name("maxsim_worker.py")
QUERY_TOKENS, TOP, RESCORED = 32, 10, 20
SIZES = ["1x100", "1x1000", "1x10000", "16x1000"]
DIMS = [48, 64, 96, 128]
BASE = "ours"
# Of ours, those that end in "compiled" need the kernel of the extra; the others are torch alone.
OURS = ["ours", "ours compiled", "ours bf16", "ours bf16 compiled", "ours int8", "ours int8 compiled"]
OURS += ["ours list", "ours list compiled"]
LABELS = {
    "ours": "**ours**, packed",
    "ours compiled": "**ours**, packed, compiled kernel",
    "ours bf16": "**ours**, bf16 rows",
    "ours bf16 compiled": "**ours**, bf16 rows, compiled kernel",
    "ours int8": "**ours**, int8 rows",
    "ours int8 compiled": "**ours**, int8 rows, compiled kernel",
    "ours list": "**ours**, list of tensors",
    "ours list compiled": "**ours**, list of tensors, compiled kernel",
    "ours fp16": "**ours**, float16, packed",
    "GEMM alone": "the matrix product alone",
    "maxsim-cpu": "maxsim-cpu",
    "lateweave": "lateweave, packed",
    "sentence-transformers maxsim": "sentence-transformers `maxsim`, list",
    "PyLate rank.rerank": "PyLate `rank.rerank`, list",
}


@dataclass(frozen=True)
class Case:
    """What is timed: queries of 32 tokens, documents of 150 tokens on average."""

    queries: int
    documents: int
    dim: int
    threads: int
    device: str = "cpu"

    def __str__(self) -> str:
        where = f"{self.threads} thread{'s'[: self.threads > 1]}" if self.device == "cpu" else self.device
        return f"{self.queries} x {self.documents:,}, dim {self.dim}, {where}"


# ------------------------------------------------------------------------------------------------------------ data


def write(folder: Path, case: Case, judged: int = 100) -> None:
    """Write vectors as files that every engine can read.

    Args:
        folder: Where to.
        case: How many.
        judged: Queries whose scores are compared, fewer where documents are many: the timed ones are among them.
    """
    chance = np.random.default_rng(0)
    lengths = document_lengths(chance, case.documents)
    values = _unit(chance, int(lengths.sum()), case.dim)
    count = max(case.queries, judged if case.documents <= 1000 else 0)
    queries = _unit(chance, count * QUERY_TOKENS, case.dim).reshape(count, QUERY_TOKENS, case.dim)
    np.save(folder / "judged_queries.npy", queries)
    _save(folder, "timed", queries[: case.queries], values, lengths)
    # Every similarity is negative: an implementation that lets padding take part says 0.
    positive = np.abs(_unit(chance, QUERY_TOKENS, case.dim))
    _save(folder, "negative", positive[None], -np.abs(values[: lengths[:20].sum()]), lengths[:20])


def document_lengths(chance: np.random.Generator, count: int) -> np.ndarray:
    """Lognormal (sigma 0.5), of mean 150, cut to 8..300; the parameter makes up for the cut."""
    return np.clip(np.rint(np.exp(chance.normal(math.log(136), 0.5, count))), 8, 300).astype(np.int64)


def _unit(chance: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    vectors = chance.standard_normal((rows, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _save(folder: Path, name: str, queries: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> None:
    for part, array in (("queries", queries), ("values", values), ("lengths", lengths)):
        np.save(folder / f"{name}_{part}.npy", array)


# ---------------------------------------------------------------------------------------------------------- judging


def exact(queries: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """MaxSim in float64 by numpy.

    Args:
        queries: ``(queries, tokens, dim)``.
        values: ``(document tokens, dim)``.
        lengths: Tokens of each document, at least 1, ``(documents,)``.

    Returns:
        ``(queries, documents)`` float64.
    """
    count, tokens, dim = queries.shape
    stacked = queries.reshape(-1, dim).astype(np.float64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    parts = []
    for first in range(0, len(lengths), 100):
        some = bounds[first : first + 101]
        similarities = values[some[0] : some[-1]].astype(np.float64) @ stacked.T  # (rows, query tokens)
        best = np.maximum.reduceat(similarities, some[:-1] - some[0])  # (documents, query tokens)
        parts.append(best.reshape(len(best), count, tokens).sum(2))
    return np.concatenate(parts).T


def top_kept(scores: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true ten best that are among the twenty that scored best, so that exact rescoring finds them."""
    found = np.argsort(-scores, axis=1, kind="stable")[:, :RESCORED]
    wanted = np.argsort(-truth, axis=1, kind="stable")[:, :TOP]
    return float(np.mean([np.isin(best, some).mean() for best, some in zip(wanted, found, strict=True)]))


@dataclass(frozen=True)
class Truth:
    """What is right, in float64."""

    scores: np.ndarray
    negative: np.ndarray

    @classmethod
    def of(cls, folder: Path) -> Truth:
        """Score what ``write`` wrote."""
        load = {path.stem: np.load(path) for path in folder.glob("*.npy")}
        timed, negative = ((load[f"{name}_values"], load[f"{name}_lengths"]) for name in ("timed", "negative"))
        return cls(exact(load["judged_queries"], *timed), exact(load["negative_queries"], *negative))

    def judge(self, folder: Path) -> records.Row:
        """Compare with what an engine left in its folder; empty where it does not score."""
        scores, negative = np.load(folder / "scores.npy"), np.load(folder / "negative.npy")
        if scores.shape != self.scores.shape:
            return {"error": "", "error if all negative": "", "top 10 in its 20": ""}
        return {
            "error": f"{np.abs(scores - self.scores).max():.1e}",
            "error if all negative": f"{np.abs(negative - self.negative).max():.1e}",
            "top 10 in its 20": round(top_kept(scores, self.scores), 5),
        }


# ---------------------------------------------------------------------------------------------------------- running


def compare(case: Case, engines: dict[str, str], *, rounds: int = 15, judged: int = 100) -> list[records.Row]:
    """Measure engines in turn.

    Args:
        case: What to score.
        engines: The Python to run each with, by name; an empty one says that there is none.
        rounds: How often each has its turn.
        judged: See ``write``.

    Returns:
        A row for each engine.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, case, judged)
        truth = Truth.of(folder)
        running_now = [_started(engine, python, folder, case) for engine, python in engines.items()]
        seconds: dict[str, list[float]] = {engine: [] for engine in engines}
        try:
            for number in tqdm(range(rounds), str(case), disable=None):
                for peer in running.in_turn(running_now, number):
                    seconds[peer.name] += _asked(peer)
        finally:
            for peer in running_now:
                peer.stop()
        base = statistics.median(seconds.get(BASE) or [math.nan])
        judgements = [{} if peer.problem else truth.judge(folder / peer.name.replace(" ", "-")) for peer in running_now]
    lines = zip(running_now, judgements, strict=True)
    return [_row(case, peer, seconds[peer.name], base, judgement) for peer, judgement in lines]


def _started(name: str, python: str, folder: Path, case: Case) -> running.Peer:
    peer = running.Peer(name)
    if python:
        peer.start([python, str(WORKER), name, str(folder), str(case.threads), case.device], folder, case.threads)
    else:
        peer.problem = "not run: no Python with it was given"
    return peer


def _asked(peer: running.Peer, budget: float = 0.1) -> list[float]:
    reply = peer.ask(budget)
    time.sleep(0.03)  # OpenMP's threads spin for a while after their work, which would slow the next one down
    return reply["seconds"] if reply else []


def _row(case: Case, peer: running.Peer, seconds: Sequence[float], base: float, judgement: records.Row) -> records.Row:
    done = not peer.problem
    ratio = statistics.median(seconds) / base if done else math.nan
    return {
        "case": f"{peer.name}: {case}",
        "engine": peer.name,
        "version": peer.about.get("version", ""),
        "queries": case.queries,
        "documents": case.documents,
        "dim": case.dim,
        "on": case.device,
        **summary(seconds if done else []),
        "times ours": "" if math.isnan(ratio) else round(ratio, 3),
        "error": judgement.get("error", ""),
        "error if all negative": judgement.get("error if all negative", ""),
        "top 10 in its 20": judgement.get("top 10 in its 20", ""),
        "extra MB": peer.about.get("extra MB", "") if done else "",
        "problem": peer.problem,
    }


def summary(seconds: Sequence[float]) -> records.Row:
    """Median, first and last tenth and the best of some durations, in milliseconds; empty where there are none."""
    names = ["median ms", "p10 ms", "p90 ms", "best ms"]
    if not seconds:
        return {**dict.fromkeys(names, ""), "calls": 0}
    places = np.quantile(seconds, [0.5, 0.1, 0.9, 0.0])
    return {
        **{name: round(1000 * float(place), 4) for name, place in zip(names, places, strict=True)},
        "calls": len(seconds),
    }


# ----------------------------------------------------------------------------------------------------------- tables


def tables(rows: Sequence[dict[str, str]]) -> str:
    """Markdown: for each number of threads one table of the sizes and one of the dimensions, then one of the errors.

    Args:
        rows: The newest ones of the results.

    Returns:
        The tables, each below a line that says what it holds.
    """
    parts = []
    for threads, on in dict.fromkeys((row["threads"], row["on"]) for row in rows):
        some = [row for row in rows if (row["threads"], row["on"]) == (threads, on)]
        where = f"{threads} thread{'s'[: threads != '1']}" if on == "cpu" else on
        sizes = [row for row in some if row["dim"] == "128"]
        parts += [_grid(sizes, f"Queries x documents, dimension 128, {where}", _size)]
        dims = [row for row in some if _size(row) == "1 x 1,000"]
        if len({row["dim"] for row in dims}) > 1:
            parts += [_grid(dims, f"Dimensions, 1 x 1,000, {where}", lambda row: f"dim {row['dim']}")]
    return "\n\n".join([*parts, _errors(rows)])


def _size(row: dict[str, str]) -> str:
    return f"{row['queries']} x {int(row['documents']):,}"


def _grid(rows: Sequence[dict[str, str]], title: str, place: records.Key) -> str:
    """Milliseconds, and how many times as long as ours packed: a line an engine, a column a place."""
    places = list(dict.fromkeys(map(place, rows)))
    cells = {(row["engine"], place(row)): _cell(row) for row in rows}
    lines = [[LABELS.get(name, name), *(cells.get((name, at), "") for at in places)] for name in _engines(rows)]
    heads = ["ms (times ours, packed)", *places]
    return f"{title}:\n\n{records.table(heads, lines, right=len(places))}"


def _engines(rows: Iterable[dict[str, str]]) -> list[str]:
    """Engines that have any time, in the order of ``LABELS``."""
    there = dict.fromkeys(row["engine"] for row in rows if row["median ms"])
    return sorted(there, key=lambda name: list(LABELS).index(name) if name in LABELS else len(LABELS))


def _cell(row: dict[str, str]) -> str:
    if not row["median ms"]:
        return ""
    ratio = f" ({float(row['times ours']):.2f})" if row["times ours"] else ""
    return (
        f"{float(row['median ms']):.3g}{ratio}"
        if float(row["median ms"]) < 1000
        else f"{float(row['median ms']):.0f}{ratio}"
    )


def _errors(rows: Sequence[dict[str, str]]) -> str:
    """The worst of each engine over all cases, and why those without a time have none."""
    lines = []
    for name in [*_engines(rows), *dict.fromkeys(row["engine"] for row in rows if row["problem"])]:
        own = [row for row in rows if row["engine"] == name]
        worst = [
            max((row[column] for row in own if row[column]), key=float, default="")
            for column in ("error", "error if all negative", "extra MB")
        ]
        kept = min((row["top 10 in its 20"] for row in own if row["top 10 in its 20"]), key=float, default="")
        lines.append([LABELS.get(name, name), own[-1]["version"], *worst, kept, own[-1]["problem"]])
    heads = [
        "worst of all cases",
        "version",
        "error",
        "error if all negative",
        "extra MB",
        "top 10 in its 20",
        "problem",
    ]
    return f"Errors against float64, and memory:\n\n{records.table(heads, lines, right=0)}"


# ------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as Markdown tables")
    parser.add_argument("--cpu", help="print what a CPU with this in its name measured, not the last one")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="QUERIESxDOCUMENTS")
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, help="128 for all sizes, the others for 1x1000")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for each engine")
    parser.add_argument("--rounds", type=int, default=15, help="how often each engine has its turn")
    parser.add_argument("--quick", action="store_true", help="1x100 and 1x1000, dim 128, fewer queries judged")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--maxsim", default="", help="a Python that has maxsim-cpu and lateweave")
    parser.add_argument("--sentence-transformers", default="", help="a Python that has sentence-transformers 6")
    parser.add_argument("--pylate", default="", help="a Python that has PyLate")
    parser.add_argument("--kernels", default="", help="a Python that has late-interaction-kernels and flash-maxsim")
    parser.add_argument("--only", nargs="+", help="engines to run, by name; ours is always among them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    if not options.print:
        run(options)
    print(tables(records.newest(options.results, "case", options.cpu)))


def run(options: argparse.Namespace) -> None:
    """Measure all cases; the rows of a case are written as soon as it is done."""
    about = records.circumstances("torch")
    for case in cases(options):
        rows = compare(case, engines(options), rounds=options.rounds, judged=10 if options.quick else 100)
        first = {"date": about["date"], "commit": about["commit"]}
        records.append(options.results, [{**first, **row, **about, "threads": case.threads} for row in rows])


def cases(options: argparse.Namespace) -> list[Case]:
    """What the options ask for."""
    sizes = ["1x100", "1x1000"] if options.quick else options.sizes
    dims = [128] if options.quick else options.dims
    wanted = []
    for threads in options.threads if options.device == "cpu" else [os.cpu_count() or 1]:
        for queries, documents in (map(int, size.split("x")) for size in sizes):
            some = dims if (queries, documents) == (1, 1000) else dims[-1:]
            wanted += [Case(queries, documents, dim, threads, options.device) for dim in some]
    return wanted


def engines(options: argparse.Namespace) -> dict[str, str]:
    """The Python of each engine, by its name."""
    if options.device == "cpu":
        found = dict.fromkeys([*OURS, "GEMM alone"], sys.executable)
        found |= dict.fromkeys(["maxsim-cpu", "lateweave"], options.maxsim)
        found |= {"sentence-transformers maxsim": options.sentence_transformers, "PyLate rank.rerank": options.pylate}
    else:
        found = dict.fromkeys(["ours", "ours fp16"], sys.executable)
        found |= dict.fromkeys(["late-interaction-kernels", "flash-maxsim"], options.kernels)
        found |= {"sentence-transformers maxsim": options.sentence_transformers}
    return {name: python for name, python in found.items() if not options.only or name in [BASE, *options.only]}


if __name__ == "__main__":
    main()
