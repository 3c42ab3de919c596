"""What a benchmark writes down: rows of a CSV, with the commit and the machine; and the newest ones as a table."""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).parent
COMMIT = "COLBERT_BENCH_COMMIT"
"""A variable that says the commit, for a copy of the files that is no checkout."""

Row = dict[str, str | float | int]
Key = Callable[[dict[str, str]], str]


def circumstances(*packages: str) -> Row:
    """When, from which commit, on what and with which versions a benchmark ran."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        **{package: version(package) for package in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    """The commit, ``-dirty`` if files differ from it; empty outside of a checkout, unless ``COMMIT`` says it."""
    if named := os.environ.get(COMMIT):
        return named
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _cpu() -> str:
    """Its name, with family and model: virtual machines call Zen 3 and Zen 5 "AMD EPYC" alike."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"


def append(path: Path, rows: list[Row]) -> None:
    """Add rows to a CSV; the first ones also make its header, and all others must have its columns."""
    columns = list(rows[0])
    header = _header(path)
    if header not in ([], columns):
        raise ValueError(f"{path} has other columns than {', '.join(columns)}: move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not header:
            writer.writeheader()
        writer.writerows(rows)


def _header(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def on_device(path: Path, device: str) -> Path:
    """Where what a device measured is written: a CSV of its own for a GPU, so that no table mixes them."""
    return path if device == "cpu" else path.with_stem(f"{path.stem}_{device}")


def newest(path: Path, key: str, cpu: str | None = "") -> list[dict[str, str]]:
    """The last row of each value of ``key``, in the order in which the values first came.

    Args:
        path: The CSV.
        key: A column.
        cpu: Part of the CPU's name, to leave out what others measured. Empty: all. None: the CPU of the last row.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = rows[-1]["cpu"] if cpu is None and rows else cpu or ""
    return list({row[key]: row for row in rows if wanted in row.get("cpu", "")}.values())


def markdown(rows: list[dict[str, str]], columns: list[str]) -> str:
    """A Markdown table of some columns; numbers stand right."""
    rule = ["---:" if _is_number(rows[0][column]) else "---" for column in columns]
    return _joined([columns, rule, *([row[column] for column in columns] for row in rows)])


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], right: int) -> str:
    """A Markdown table of any cells; the last ``right`` columns stand right."""
    rule = ["---"] * (len(heads) - right) + ["---:"] * right
    return _joined([heads, rule, *lines])


def _joined(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def measure_or_print(
    description: str | None, results: Path, run: Callable[[Path], None], table: Callable[[Path], str]
) -> None:
    """The command line of a benchmark without settings.

    Args:
        description: What it measures.
        results: The CSV, unless another is named.
        run: Measures, and appends rows to a CSV.
        table: A CSV's newest rows as Markdown.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    parser.add_argument("--results", type=Path, default=results, help="the CSV")
    options = parser.parse_args()
    if not options.print:
        run(options.results)
    print(table(options.results))
