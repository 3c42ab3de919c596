"""Draw how long others take where ours takes 1: MaxSim and encoding, from the newest results of both."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import encoding_peers
import maxsim_peers
import records
from matplotlib.axes import Axes
from matplotlib.figure import Figure

IMAGES = records.HERE.parent / "docs" / "images"
OURS, OTHERS, LIMIT = "#1f77b4", "#b8bec6", "#dfe3e8"

Rows = Sequence[dict[str, str]]


def maxsim(rows: Rows) -> Figure:
    """A panel of bars for one query and one for 16, against 1,000 documents.

    Args:
        rows: Of ``maxsim_peers``; those of the most threads are drawn.

    Returns:
        The figure.
    """
    chosen = [row for row in _most_threads(rows) if row["dim"] == "128" and row["documents"] == "1000"]
    titles = {"1": "1 query x 1,000 documents", "16": "16 queries x 1,000 documents"}
    return _figure(
        chosen, lambda row: row["queries"], titles, maxsim_peers.LABELS, "time, where ours packed in float32 takes 1"
    )


def encoding(rows: Rows) -> Figure:
    """A panel of bars for each model.

    Args:
        rows: Of ``encoding_peers``; those of the most threads are drawn.

    Returns:
        The figure.
    """
    return _figure(
        _most_threads(rows),
        lambda row: row["model"],
        encoding_peers.MODELS,
        encoding_peers.LABELS,
        "time, where ours in float32 takes 1",
    )


def _most_threads(rows: Rows) -> Rows:
    able = [row for row in rows if row["on"] == "cpu" and row["times ours"]]
    most = max((int(row["threads"]) for row in able), default=0)
    return [row for row in able if int(row["threads"]) == most]


def _figure(
    rows: Rows, panel: Callable[[dict[str, str]], str], titles: Mapping[str, str], labels: Mapping[str, str], axis: str
) -> Figure:
    panels = [name for name in titles if any(panel(row) == name for row in rows)]
    tallest = max((sum(panel(row) == name for row in rows) for name in panels), default=1)
    made = Figure(figsize=(10, 1.1 + 0.27 * tallest), layout="constrained")
    for axes, name in zip(made.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        _bars(axes, [row for row in rows if panel(row) == name], labels)
        axes.set_title(titles[name], fontsize="medium")
        axes.set_xlabel(axis, fontsize="small")
    if rows:
        threads = rows[0]["threads"]
        made.suptitle(f"{rows[0]['cpu']}, {threads} thread{'s'[: threads != '1']}", fontsize="small", color="gray")
    return made


def _bars(axes: Axes, rows: Rows, labels: Mapping[str, str]) -> None:
    """The quickest on top; the length is written behind each bar."""
    ordered = sorted(rows, key=lambda row: -float(row["times ours"]))
    values = [float(row["times ours"]) for row in ordered]
    names = [labels.get(row["engine"], row["engine"]).replace("**", "").replace("`", "") for row in ordered]
    bars = axes.barh(names, values, color=[_colour(row["engine"]) for row in ordered], height=0.7)
    readable = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # also where the line at 1 goes through
    axes.bar_label(bars, [f"{value:.2g}" for value in values], padding=3, fontsize="small", bbox=readable)
    axes.axvline(1, color=OTHERS, linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize="small")
    axes.margins(x=0.12)


def _colour(engine: str) -> str:
    if engine.startswith("ours"):
        return OURS
    return LIMIT if engine == "GEMM alone" else OTHERS


def main() -> None:
    """Draw what there are results of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maxsim", type=Path, default=maxsim_peers.RESULTS, help="the CSV of maxsim_peers.py")
    parser.add_argument("--encoding", type=Path, default=encoding_peers.RESULTS, help="the CSV of encoding_peers.py")
    parser.add_argument("--cpu", default="Xeon", help="part of its name; by itself that of docs/performance.md")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where to")
    options = parser.parse_args()
    for name, draw in {"maxsim": maxsim, "encoding": encoding}.items():
        results = getattr(options, name)
        if results.exists():
            draw(records.newest(results, "case", options.cpu)).savefig(options.images / f"{name}_speed.png", dpi=150)


if __name__ == "__main__":
    main()
