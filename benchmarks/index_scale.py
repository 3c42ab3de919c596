"""How the in-memory index scales: made-up passages by the thousand, added, searched, deleted, saved and loaded.

See ``synthetic`` for what the passages are. Each size runs in a process of its own, so that memory is told right, and
gives one row. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import records
import synthetic
import torch
from index_measuring import folder_bytes, median_ms, p90_ms, recall, resident_bytes, timed
from tqdm import tqdm

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.index import Search

RESULTS = records.HERE / "results" / "index_scale.csv"
SIZES = [1_000, 3_000, 10_000, 30_000, 100_000]
PARTS = ["batches", "save", "change", "centroids", "codes"]
MIB = 2**20
K = 10
SHOWN = [
    "case", "documents per second", "memory MB", "exact ms", "exact batch of 16 ms per query", "centroids ms",
    "centroids recall@10", "codes ms", "codes recall@10", "save seconds",
    "load and verify seconds", "load seconds",
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        size: Number of passages.
        device: Of the store.
        queries: How many queries are timed, one after another.
        parts: Which of ``PARTS`` beside building and exact search; the columns of the others stay empty.
        nbits: Of the store. None: float16.
        threads: Of torch.
        folder: Where an index of this size may be saved for a moment.
    """

    size: int
    device: str = "cpu"
    queries: int = 30
    parts: tuple[str, ...] = tuple(PARTS)
    nbits: Literal[8, 4, 2] | None = None
    threads: int = 2
    folder: Path = Path(tempfile.gettempdir())


# ------------------------------------------------------------------------------------------------------- one size


def measure(plan: Plan, source: synthetic.Source) -> tuple[records.Row, list[list[str]]]:
    """Measure one size of a store.

    Args:
        plan: What to measure.
        source: What passages are made of.

    Returns:
        Columns, and the ids that the exact search found for each query.
    """
    torch.set_num_threads(plan.threads)
    store, hundredth, row = build(plan, source, nbits=plan.nbits)
    with store:
        exact, found = exact_search(plan, store, source)
        row |= {**exact, **(save_and_load(plan, store, source) if "save" in plan.parts else _blank(SAVE))}
        row |= change(plan, store, hundredth) if "change" in plan.parts else _blank(CHANGE)
        row |= centroid_search(plan, store, source, found) if "centroids" in plan.parts else _blank(CENTROIDS)
    return row, found


def measure_codes(plan: Plan, source: synthetic.Source, exact: list[list[str]]) -> records.Row:
    """Measure one size of a store that keeps int8 codes beside float16.

    Args:
        plan: What to measure.
        source: What passages are made of.
        exact: Ids that the exact search found for each query.

    Returns:
        Columns.
    """
    if "codes" not in plan.parts:
        return _blank(CODES)
    torch.set_num_threads(plan.threads)
    store, _, built = build(plan, source, nbits=8, keep_originals=True)
    with store:
        store.search(source.queries[:1], K, search="codes")
        first = [built["documents per second"], built["memory MB"]]
        return dict(zip(CODES, [*first, *_row(plan, store, source, "codes", exact)], strict=True))


BATCHES = ["exact batch of 16 ms per query", "exact batch of 32 ms per query"]
SAVE = [
    "save seconds", "disk MB", "load and verify seconds", "load seconds", "first search ms",
]  # fmt: skip
CHANGE = ["delete 1% documents per second", "add 1% documents per second", "save 1% seconds"]
# What the first search makes, and what searches take then.
CENTROIDS = [f"centroids {what}" for what in ("build seconds", "memory MB", "ms", "p90 ms", "recall@10")]
CODES = ["codes documents per second", "codes memory MB", "codes ms", "codes p90 ms", "codes recall@10"]


def _blank(columns: list[str]) -> records.Row:
    return dict.fromkeys(columns, "")


def build(
    plan: Plan, source: synthetic.Source, **settings: Any
) -> tuple[MemoryStore, list[synthetic.Passages], records.Row]:
    """Fill a store; making the passages is not counted.

    Args:
        plan: What to measure.
        source: What passages are made of.
        **settings: Of the store.

    Returns:
        The store, every hundredth passage again, and columns.
    """
    warm = MemoryStore(device=plan.device, **settings)
    _upsert(warm, next(synthetic.passages(source, 1, device=plan.device)))
    warm.close()
    store, seconds, hundredth, tokens = MemoryStore(device=plan.device, **settings), 0.0, [], 0
    before = _memory(plan)
    for passages in tqdm(synthetic.passages(source, plan.size, device=plan.device), "passages", disable=None):
        seconds += timed(lambda passages=passages: _upsert(store, passages))[1]
        hundredth.append(_every_hundredth(passages))
        tokens += len(passages.embeddings.values)
    del passages
    memory = _memory(plan) - before
    row: records.Row = {
        "tokens": tokens,
        "build seconds": round(seconds, 3),
        "documents per second": round(plan.size / seconds),
        "memory MB": round(memory / MIB, 1),
        "memory bytes per document": round(memory / plan.size),
        "vector bytes per document": round(store.num_tokens * store.bytes_per_token / plan.size),
    }
    return store, hundredth, row


def _upsert(store: MemoryStore, passages: synthetic.Passages) -> None:
    store.upsert(passages.ids, passages.embeddings, passages.texts, passages.metadatas)
    _wait(store)


def _wait(store: MemoryStore) -> None:
    if store.device.type == "cuda":
        torch.cuda.synchronize()


def _every_hundredth(passages: synthetic.Passages) -> synthetic.Passages:
    part = slice(0, None, 100)
    return synthetic.Passages(
        passages.ids[part], passages.embeddings[part], passages.texts[part], passages.metadatas[part]
    )


def _memory(plan: Plan) -> int:
    """Memory in use where the vectors are."""
    return torch.cuda.memory_allocated() if plan.device == "cuda" else resident_bytes()


def singles(
    plan: Plan, store: MemoryStore, queries: TokenEmbeddings, search: Search = "exact"
) -> tuple[list[list[str]], list[float]]:
    """Search one query after another: the ids found, and the seconds that each took."""
    found, seconds = [], []
    for place in islice(cycle(range(len(queries))), plan.queries):
        query = queries[place : place + 1]
        (hits,), took = timed(lambda query=query: store.search(query, K, search=search))
        found.append([hit.id for hit in hits])
        seconds.append(took)
    return found, seconds


def exact_search(plan: Plan, store: MemoryStore, source: synthetic.Source) -> tuple[records.Row, list[list[str]]]:
    """Exact search, queries alone and in batches: columns, and the ids found for each query."""
    store.search(source.queries[:1], K)
    found, seconds = singles(plan, store, source.queries)
    row: records.Row = {"exact ms": median_ms(seconds), "exact p90 ms": p90_ms(seconds), **_blank(BATCHES)}
    for count, column in zip((16, 32), BATCHES if "batches" in plan.parts else (), strict=False):
        batches = [source.queries[start : start + count] for start in (0, count, 2 * count)]
        store.search(batches[-1], K)
        times = [timed(lambda batch=batch: store.search(batch, K))[1] / count for batch in batches]
        row[column] = median_ms(times)
    return row, found


def save_and_load(plan: Plan, store: MemoryStore, source: synthetic.Source) -> records.Row:
    """Save and load; what is loaded was just written, so the system still has it in memory."""
    with tempfile.TemporaryDirectory(dir=plan.folder) as name:
        folder = Path(name)
        saved = timed(lambda: store.save(folder))[1]
        checked, verified = timed(lambda: MemoryStore.load(folder, device=plan.device))
        checked.close()
        del checked
        loaded, seconds = timed(lambda: MemoryStore.load(folder, device=plan.device, verify=False))
        first = timed(lambda: loaded.search(source.queries[:1], K))[1]
        size = folder_bytes(folder)
        loaded.close()
    row = [round(saved, 3), round(size / MIB, 1), round(verified, 3), round(seconds, 3), median_ms([first])]
    return dict(zip(SAVE, row, strict=True))


def change(plan: Plan, store: MemoryStore, hundredth: list[synthetic.Passages]) -> records.Row:
    """Delete one passage in a hundred, add them again, and save that; afterwards all are there as before."""
    count = sum(len(passages.ids) for passages in hundredth)
    with tempfile.TemporaryDirectory(dir=plan.folder) as name:
        store.save(name)
        deleted = timed(lambda: store.delete([name for passages in hundredth for name in passages.ids]))[1]
        added = timed(lambda: [_upsert(store, passages) for passages in hundredth])[1]
        saved = timed(lambda: store.save(name))[1]
    return dict(zip(CHANGE, [round(count / deleted), round(count / added), round(saved, 3)], strict=True))


def centroid_search(plan: Plan, store: MemoryStore, source: synthetic.Source, exact: list[list[str]]) -> records.Row:
    """The candidate stage of every store; the first search makes centroids and lists."""
    before = _memory(plan)
    _, made = timed(lambda: store.search(source.queries[:1], K, search="centroids"))
    memory = (_memory(plan) - before) / MIB
    row = [round(made, 3), round(memory, 1), *_row(plan, store, source, "centroids", exact)]
    return dict(zip(CENTROIDS, row, strict=True))


def _row(
    plan: Plan, store: MemoryStore, source: synthetic.Source, search: Search, exact: list[list[str]]
) -> list[float]:
    found, seconds = singles(plan, store, source.queries, search)
    return [median_ms(seconds), p90_ms(seconds), recall(found, exact)]


# ------------------------------------------------------------------------------------------------------ all sizes


def run(plans: list[Plan], path: Path = RESULTS, kept: Path | None = None) -> None:
    """Measure all sizes, each in processes of its own; each row is written as soon as it is there."""
    with tempfile.TemporaryDirectory() as folder:
        kept = kept or Path(folder) / "source.safetensors"
        synthetic.source(kept)
        for plan in plans:
            row, exact = _alone(_measured, plan, kept)
            records.append(path, [_whole(plan, row | _alone(_measured_codes, plan, kept, exact))])


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(work, arguments)
        pool.close()
        pool.join()
    return result


def _measured(plan: Plan, kept: Path) -> tuple[records.Row, list[list[str]]]:
    return measure(plan, synthetic.source(kept))


def _measured_codes(plan: Plan, kept: Path, exact: list[list[str]]) -> records.Row:
    return measure_codes(plan, synthetic.source(kept), exact)


def _whole(plan: Plan, row: records.Row) -> records.Row:
    about = records.circumstances("torch", "colbert-integrations")
    case = f"{plan.size} on {plan.device}" + (f", {plan.nbits} bits" if plan.nbits else "")
    first: records.Row = {"date": about["date"], "commit": about["commit"], "case": case}
    return {**first, "documents": plan.size, "store on": plan.device, **row, **about, "threads": plan.threads}


def table(path: Path = RESULTS) -> str:
    """The newest row of each size and device, as a Markdown table."""
    return records.markdown(records.newest(path, "case"), SHOWN)


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of passages")
    parser.add_argument("--device", choices=["cpu", "cuda"], nargs="+", help="default: the CPU, and CUDA where it is")
    parser.add_argument("--parts", choices=PARTS, nargs="*", default=PARTS, help="beside building and exact search")
    parser.add_argument("--nbits", type=int, choices=[8, 4, 2], help="of the store; default: float16")
    parser.add_argument("--queries", type=int, default=30, help="how many are timed")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 2), help="of torch")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where indexes are saved")
    parser.add_argument("--source", type=Path, help="keeps the encoded abstracts for the next time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    if not options.print:
        devices = options.device or ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
        plans = [
            Plan(size, device, options.queries, tuple(options.parts), options.nbits, options.threads, options.folder)
            for device in devices
            for size in options.sizes
        ]
        run(plans, options.results, options.source)
    print(table(options.results))


if __name__ == "__main__":
    main()
