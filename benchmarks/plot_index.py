"""Draw how the index scales: latency and memory against the number of passages, from the newest results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import index_scale
import records
from matplotlib.axes import Axes
from matplotlib.figure import Figure

IMAGE = records.HERE.parent / "docs" / "images" / "index_scale.png"
LATENCIES = {
    "exact ms": "exact",
    "exact batch of 16 ms per query": "exact, 16 queries at once",
    "centroids ms": 'search="centroids"',
    "codes ms": 'nbits=8, search="codes"',
}
MEMORY = {
    "memory MB": "float16",
    "codes memory MB": "float16 and int8 codes",
    "centroids memory MB": 'what search="centroids" adds',
}

Rows = Sequence[dict[str, str]]


def figure(rows: Rows) -> Figure:
    """A figure of two panels.

    Args:
        rows: Of ``index_scale``, of one device.

    Returns:
        The figure.
    """
    made = Figure(figsize=(9, 3.6), layout="constrained")
    latency, memory = made.subplots(1, 2)
    _lines(latency, rows, LATENCIES)
    latency.set(ylabel="milliseconds per query, median", title=f"Latency, {rows[-1]['threads']} threads")
    _lines(memory, rows, MEMORY)
    memory.set(ylabel="MiB", title="Memory")
    return made


def _lines(axes: Axes, rows: Rows, columns: dict[str, str]) -> None:
    for column, label in columns.items():
        points = [(int(row["documents"]), float(row[column])) for row in rows if float(row[column] or 0) > 0]
        if points:
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=label)
    axes.set(xscale="log", yscale="log", xlabel="passages of 150 tokens, 128 dimensions")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    if axes.lines:
        axes.legend(frameon=False, fontsize="small")


def main() -> None:
    """Draw the newest row of each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=index_scale.RESULTS, help="the CSV of index_scale.py")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="whose rows")
    parser.add_argument("--image", type=Path, default=IMAGE, help="where to")
    options = parser.parse_args()
    every = records.newest(options.results, "case")
    rows = [row for row in every if row["store on"] == options.device and "bits" not in row["case"]]
    figure(rows).savefig(options.image, dpi=150)


if __name__ == "__main__":
    main()
