"""MaxSim on one GPU beside what its memory and its matrix units can do, and beside other libraries.

1. How fast the device copies (bytes read and written): the bandwidth that the scans are compared with.
2. One query of 32 tokens against a million documents of 180 tokens, dimension 128, in float16 and in int8.
3. 32 queries against the same.
4. Both against 90,000 documents, which those take too that count in 32 bits.
5. One query against 1,000 documents and the ten best of them, as a plain call and as a CUDA graph.

Times are those of CUDA events around each call, the engines in turn; ``wall us`` is what the host waits for a call and
its end. A small case takes another part of the corpus at each call, so that no L2 cache holds it already. Scores of
some documents, the last ones among them, are compared with float64 over the documents as they are stored; with int8 the
queries are rounded too, and that shows. late-interaction-kernels and flash-maxsim run in the same process where they
are installed; they count in 32 bits in places, so they get no more documents than that holds. Where there is no GPU
nothing is measured. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import records
import torch

RESULTS = records.HERE / "results" / "gpu_maxsim.csv"
TOKENS, DIM, QUERY_TOKENS, TOP = 180, 128, 32, 10
MILLION, SMALL = 1_000_000, 1_000
# The elements of a few more would need more than 31 bits.
FITTING = 90_000
# More than the L2 cache of any GPU so far.
ROTATED_BYTES = 400 * 2**20
SHOWN = [
    "case",
    "median us",
    "p90 us",
    "wall us",
    "first call ms",
    "GB/s",
    "share of copy",
    "TFLOP/s",
    "error",
    "problem",
]

Call = Callable[[], object]


@dataclass(frozen=True)
class Corpus:
    """Documents of one length on a device.

    Attributes:
        rows: ``(documents * TOKENS, DIM)`` float16 or int8.
        steps: What one step of each document is worth, ``(documents,)`` float32; None in float16.
    """

    rows: torch.Tensor
    steps: torch.Tensor | None

    @classmethod
    def make(cls, documents: int, dtype: torch.dtype, device: str) -> Corpus:
        """Random unit vectors, made block by block."""
        rows = torch.empty(documents * TOKENS, DIM, dtype=dtype, device=device)
        made = torch.Generator(device).manual_seed(0)
        for block in rows.split(TOKENS * 10_000):
            vectors = torch.randn(block.shape, device=device, generator=made)
            vectors = torch.nn.functional.normalize(vectors, dim=1)
            block.copy_((vectors * 127).round_() if dtype == torch.int8 else vectors)
        steps = torch.full((documents,), 1 / 127, device=device) if dtype == torch.int8 else None
        return cls(rows, steps)

    def __len__(self) -> int:
        return len(self.rows) // TOKENS

    def part(self, start: int, count: int) -> Corpus:
        """Some documents in a row."""
        steps = None if self.steps is None else self.steps[start : start + count]
        return Corpus(self.rows[start * TOKENS : (start + count) * TOKENS], steps)

    @property
    def offsets(self) -> torch.Tensor:
        """Where each document begins, and the end, ``(documents + 1,)`` int64."""
        return torch.arange(len(self) + 1, device=self.rows.device) * TOKENS

    def parts(self, count: int) -> list[Corpus]:
        """As many parts of so many documents as a rotation needs, and as there are."""
        size = count * TOKENS * DIM * self.rows.element_size()
        wanted = max(1, -(-ROTATED_BYTES // size))
        return [self.part(start * count, count) for start in range(min(wanted, len(self) // count))]


def queries(count: int, device: str) -> torch.Tensor:
    """Random unit vectors, ``(count, QUERY_TOKENS, DIM)`` float32."""
    made = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(count, QUERY_TOKENS, DIM, generator=made), dim=2).to(device)


# ---------------------------------------------------------------------------------------------------------- engines


def ours(asked: torch.Tensor, parts: Sequence[Corpus]) -> list[Call]:
    """Scores by the kernel."""
    stacked = _stacked(asked, parts[0].rows.dtype)
    ready = [(part.rows, part.offsets, part.steps) for part in parts]
    return [lambda some=some: stacked.score(*some) for some in ready]


def ours_top_k(asked: torch.Tensor, parts: Sequence[Corpus]) -> list[Call]:
    """The ten best, found on the device."""
    stacked = _stacked(asked, parts[0].rows.dtype)
    ready = [(part.rows, part.offsets, TOP, part.steps) for part in parts]
    return [lambda some=some: stacked.top_k(*some) for some in ready]


def ours_graph(asked: torch.Tensor, parts: Sequence[Corpus]) -> list[Call]:
    """The same, each part recorded as a CUDA graph."""
    stacked = _stacked(asked, parts[0].rows.dtype)
    return [stacked.capture(part.rows, part.offsets, TOP, part.steps).replay for part in parts]


def _stacked(asked: torch.Tensor, dtype: torch.dtype) -> object:
    from colbert_integrations import TokenEmbeddings
    from colbert_integrations.scoring.triton import TritonQueries

    bounds = torch.arange(len(asked) + 1) * QUERY_TOKENS
    return TritonQueries(TokenEmbeddings(asked.reshape(-1, DIM), bounds), dtype)


def late_interaction_kernels(asked: torch.Tensor, parts: Sequence[Corpus]) -> list[Call]:
    """Packed scoring of late-interaction-kernels."""
    from late_interaction_kernels import maxsim_varlen

    flat = asked.half().reshape(-1, DIM)
    starts = torch.arange(len(asked) + 1, dtype=torch.int32, device=asked.device) * QUERY_TOKENS
    ready = [(part.rows, starts, part.offsets.int(), QUERY_TOKENS, TOKENS) for part in parts]
    return [lambda some=some: maxsim_varlen(flat, *some) for some in ready]


def flash_maxsim(asked: torch.Tensor, parts: Sequence[Corpus]) -> list[Call]:
    """Packed scoring of flash-maxsim, query by query."""
    from flash_maxsim import flash_maxsim_packed

    half = list(asked.half())
    ready = [(part.rows, part.offsets.int(), TOKENS) for part in parts]
    return [lambda some=some: torch.stack([flash_maxsim_packed(query, *some) for query in half]) for some in ready]


Build = Callable[[torch.Tensor, Sequence[Corpus]], list[Call]]
FLOAT16, INT8 = torch.float16, torch.int8
# Name, how, and in what; the last two know of no int8 without padding.
SCANS: list[tuple[str, Build, torch.dtype]] = [
    ("ours float16", ours, FLOAT16),
    ("ours int8", ours, INT8),
    ("late-interaction-kernels", late_interaction_kernels, FLOAT16),
    ("flash-maxsim", flash_maxsim, FLOAT16),
]
TOPS: list[tuple[str, Build, torch.dtype]] = [
    ("ours top-k", ours_top_k, FLOAT16),
    ("ours top-k, graph", ours_graph, FLOAT16),
    ("ours top-k, graph, int8", ours_graph, INT8),
    *SCANS,
]
MOST = {"late-interaction-kernels": (2**31 - 1) // (TOKENS * DIM), "flash-maxsim": (2**31 - 1) // TOKENS}


# -------------------------------------------------------------------------------------------------------- measuring


@dataclass
class Runner:
    """An engine on a case.

    Attributes:
        name: What rows call it.
        calls: The same work on one part after another.
        first: Seconds of the very first call, with all that it compiles or tries out.
        error: See ``error``.
        problem: Why it does not run, empty if it does.
        inside: Seconds of each call on the device.
        wall: Seconds that the host waits for a call and its end.
    """

    name: str
    calls: Sequence[Call] = ()
    first: float = 0.0
    error: float = 0.0
    problem: str = ""
    inside: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def start(self, build: Build, asked: torch.Tensor, parts: Sequence[Corpus]) -> None:
        """Build it, call it once for each part, and see whether it is right."""
        documents = len(parts[0])
        try:
            if documents > MOST.get(self.name, documents):
                raise ValueError(f"counts in 32 bits: not run above {MOST[self.name]:,} documents")
            started = time.perf_counter()
            self.calls = build(asked, parts)
            found = self.calls[0]()
            _wait(asked)
            self.first = time.perf_counter() - started
            self.error = error(found, asked, parts[0])
            for call in self.calls[1:]:
                call()
        except Exception as problem:  # of whatever a peer, Triton or CUDA has: the others go on
            self.problem = told(problem)


def told(problem: Exception) -> str:
    """What a row says of a failure."""
    return f"{type(problem).__name__}: {problem}"[:300]


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def take_turns(runners: Sequence[Runner], rounds: int, device: str) -> None:
    """Time the calls of engines that run, each in turn, on another part each time.

    Args:
        runners: Started; get their seconds.
        rounds: How many calls of each count.
        device: ``"cuda"``: by events, without waiting in between; else by the clock.
    """
    able = [runner for runner in runners if not runner.problem]
    pairs = [(runner, number) for number in range(rounds) for runner in able]
    if device == "cuda":
        _by_events(pairs)
    for runner, number in pairs:
        started = time.perf_counter()
        runner.calls[number % len(runner.calls)]()
        if device == "cuda":
            torch.cuda.synchronize()
        runner.wall.append(time.perf_counter() - started)
    for runner in able:
        runner.inside = runner.inside or runner.wall


def _by_events(pairs: Sequence[tuple[Runner, int]]) -> None:
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in pairs]
    torch.cuda.synchronize()
    for (runner, number), (start, end) in zip(pairs, events, strict=True):
        start.record()
        runner.calls[number % len(runner.calls)]()
        end.record()
    torch.cuda.synchronize()
    for (runner, _), (start, end) in zip(pairs, events, strict=True):
        runner.inside.append(start.elapsed_time(end) / 1000)


def copy_bandwidth(count: int, device: str, rounds: int = 20) -> float:
    """Bytes a second that a copy of so many bytes reads and writes, median."""
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = Runner("copy", [lambda: target.copy_(source)])
    copying.calls[0]()
    take_turns([copying], rounds, device)
    return 2 * count / statistics.median(copying.inside)


def error(found: object, asked: torch.Tensor, corpus: Corpus) -> float:
    """Largest difference from float64, of the documents as they are stored.

    Args:
        found: All scores, of which the first, the last and some others are looked at; or the best scores of the first
            query and their positions.
        asked: The queries.
        corpus: The documents.

    Returns:
        The difference.
    """
    if isinstance(found, torch.Tensor):
        some = np.random.default_rng(0).integers(0, len(corpus), 100).tolist()
        scores = {place: found[:, place] for place in (0, len(corpus) - 1, *some)}
    else:
        best, positions = found  # type: ignore[misc]
        scores = {place: best[:1, rank] for rank, place in enumerate(positions[0].tolist())}
    return max(
        float((score.double() - _right(asked, corpus.part(place, 1))[: len(score)]).abs().max())
        for place, score in scores.items()
    )


def _right(asked: torch.Tensor, document: Corpus) -> torch.Tensor:
    values = document.rows.double() * (1 if document.steps is None else document.steps.double())
    return (asked.double() @ values.T).amax(2).sum(1)  # (queries,)


def measure(
    engines: Sequence[tuple[str, Build]], asked: torch.Tensor, parts: Sequence[Corpus], copy: float, rounds: int
) -> list[records.Row]:
    """A row for each engine on a case.

    Args:
        engines: What rows call them, and what gives a call for each part.
        asked: The queries.
        parts: The documents; one part at each call.
        copy: Bytes a second of a copy.
        rounds: How many calls count.

    Returns:
        The rows; with a problem and without times where an engine fails.
    """
    runners = [Runner(name) for name, _ in engines]
    for runner, (_, build) in zip(runners, engines, strict=True):
        runner.start(build, asked, parts)
    try:
        take_turns(runners, rounds, asked.device.type)
    except Exception as problem:  # the other cases go on
        for runner in runners:
            runner.problem = runner.problem or told(problem)
    return [_row(runner, asked, parts[0], copy) for runner in runners]


def _row(runner: Runner, asked: torch.Tensor, corpus: Corpus, copy: float) -> records.Row:
    numbers = dict[str, str | float | int].fromkeys(_NUMBERS, "")
    if not runner.problem:
        numbers = {**_numbers(runner, asked, corpus, copy), "error": f"{runner.error:.1e}"}
    return {
        "case": f"{runner.name}: {len(asked)} x {len(corpus):,}",
        "engine": runner.name,
        "queries": len(asked),
        "documents": len(corpus),
        **numbers,
        "problem": runner.problem,
    }


_NUMBERS = ["median us", "p10 us", "p90 us", "best us", "wall us", "first call ms"]
_NUMBERS += ["GB/s", "share of copy", "TFLOP/s", "error"]


def _numbers(runner: Runner, asked: torch.Tensor, corpus: Corpus, copy: float) -> records.Row:
    middle, low, high, best = (float(place) for place in np.quantile(runner.inside, [0.5, 0.1, 0.9, 0.0]))
    rate = corpus.rows.numel() * corpus.rows.element_size() / middle
    work = 2 * len(corpus.rows) * DIM * len(asked) * QUERY_TOKENS / middle
    micro = [middle, low, high, best, statistics.median(runner.wall), runner.first / 1000]
    shares = [round(rate / 1e9, 1), round(rate / copy, 3), round(work / 1e12, 2)]
    return dict(zip(_NUMBERS, [*(round(1e6 * seconds, 2) for seconds in micro), *shares], strict=False))


def run(documents: int, rounds: int, device: str) -> Iterator[list[records.Row]]:
    """Measure everything, one corpus in memory at a time.

    Args:
        documents: Of the large cases.
        rounds: How many calls of the large cases count; the small ones get ten times as many.
        device: Where to.

    Yields:
        A row for each engine, case by case: what is done is not lost if a later one takes too long.
    """
    copy = copy_bandwidth(min(8 * 2**30, documents * TOKENS * DIM), device)
    for dtype in (FLOAT16, INT8):
        corpus = Corpus.make(documents, dtype, device)
        for able, count, size, turns in (
            (SCANS, 1, documents, 1),
            (SCANS, 32, documents, 1),
            (SCANS, 1, FITTING, 1),
            (SCANS, 32, FITTING, 1),
            (TOPS, 1, SMALL, 10),
        ):
            engines = [(name, build) for name, build, stored in able if stored == dtype]
            parts = corpus.parts(min(size, documents))
            rows = measure(engines, queries(count, device), parts, copy, rounds * turns)
            yield [{**row, "copy GB/s": round(copy / 1e9, 1)} for row in rows]
        del corpus, parts


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    parser.add_argument("--documents", type=int, default=MILLION, help="46 kB each in float16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    if not options.print:
        if not torch.cuda.is_available():
            parser.error("there is no CUDA device here")
        about = records.circumstances("torch")
        first = {"date": about["date"], "commit": about["commit"]}
        for rows in run(options.documents, options.rounds, "cuda"):
            records.append(options.results, [{**first, **row, **about} for row in rows])
    print(records.markdown(records.newest(options.results, "case"), SHOWN))


if __name__ == "__main__":
    main()
