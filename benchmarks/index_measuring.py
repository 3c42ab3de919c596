"""What the benchmarks of the index measure with: recall, latencies, memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def recall(found: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
    """Mean share of what was expected that was found.

    Args:
        found: Ids that a search found, for each query.
        expected: Ids that it should have found, at least one for each query.

    Returns:
        From 0 to 1, rounded to 4 digits.
    """
    pairs = zip(found, expected, strict=True)
    return round(statistics.fmean(len(set(got) & set(right)) / len(set(right)) for got, right in pairs), 4)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Do something once; what came out, and the seconds that it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def median_ms(seconds: Sequence[float]) -> float:
    """Median of some durations, in milliseconds."""
    return round(1000 * statistics.median(seconds), 3)


def p90_ms(seconds: Sequence[float]) -> float:
    """What nine in ten of some durations do not exceed, in milliseconds."""
    ordered = sorted(seconds)
    return round(1000 * ordered[-(-9 * len(ordered) // 10) - 1], 3)


def resident_bytes() -> int:
    """Memory of this process that is in RAM, files that are mapped included; 0 where Linux's /proc is not there."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
