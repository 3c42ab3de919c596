"""What it costs to be observable: a rank of 20 short documents by this code and by that of an earlier commit, in turn.

The package of the earlier commit runs in a process of its own, twice, so that the second shows how far two equal ones
differ on this machine: by where their memory lies, say, so all processes are started anew a few times. This code runs
with nobody observing and logs off, within ``observed()``, and with logs at level DEBUG that are formatted and thrown
away. ``none`` for a forward pass leaves tokenising, batching and MaxSim: the difference there is the cost itself, in
microseconds. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import records
import running
from tqdm import tqdm

RESULTS = records.HERE / "results" / "observing_cost.csv"
WORKER = Path(__file__).with_name("observing_worker.py")
# The last commit without it.
BEFORE = "06a5d21"
SHOWN = ["forward pass", "way", "median us", "times before"]
WORDS, DOCUMENTS = 12, 20

# Which process handles each way, and what it is told.
WAYS = {
    "before": ("before", "off"),
    "before, another process": ("before again", "off"),
    "nobody observes": ("after", "off"),
    "observed()": ("after", "observed"),
    "logged at DEBUG": ("after", "debug"),
}


def checkout(commit: str, folder: Path) -> Path:
    """Unpack the package as it was."""
    command = ["git", "-C", str(records.HERE.parent), "archive", commit, "colbert_integrations"]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def texts() -> tuple[str, list[str]]:
    """A query, and the beginnings of abstracts."""
    import speed_texts  # here: it imports transformers, which printing needs not

    return speed_texts.queries()[0], [" ".join(text.split()[:WORDS]) for text in speed_texts.abstracts()[:DOCUMENTS]]


def measure(packages: dict[str, Path], forward: str, rounds: int, calls: int) -> dict[str, list[float]]:
    """Measure all ways in turn, in fresh processes.

    Args:
        packages: The folder that each process takes the package from.
        forward: ``"model"`` or ``"none"``.
        rounds: How often each way has its turn, after one that does not count.
        calls: Ranks of a turn.

    Returns:
        For each way the seconds of a rank in each round, the median of its turn.
    """
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        given = Path(name) / "texts.json"
        given.write_text(json.dumps(texts()))
        peers = {process: running.Peer(process) for process in packages}
        try:
            for process, peer in peers.items():
                command = [sys.executable, str(WORKER), str(packages[process]), str(given), forward]
                peer.start(command, Path(name), threads=1)
            for number in tqdm(range(-1, rounds), forward, disable=None):
                order = list(WAYS)
                turn = number % len(order)
                for way in order[turn:] + order[:turn]:
                    process, how = WAYS[way]
                    reply = peers[process].ask({"how": how, "calls": calls})
                    if reply is None:
                        raise RuntimeError(f"{process}: {peers[process].problem}")
                    if number >= 0:
                        seconds[way].append(statistics.median(reply["seconds"]))
        finally:
            for peer in peers.values():
                peer.stop()
    return seconds


def _row(way: str, forward: str, seconds: dict[str, list[float]], calls: int) -> records.Row:
    ratios = [mine / base for mine, base in zip(seconds[way], seconds["before"], strict=True)]
    return {
        "case": f"{way}: {DOCUMENTS} documents, forward pass {forward}",
        "forward pass": forward,
        "way": way,
        "median us": round(1e6 * statistics.median(seconds[way]), 1),
        "best us": round(1e6 * min(seconds[way]), 1),
        "rounds": len(seconds[way]),
        "calls": calls,
        "times before": round(statistics.median(ratios), 4),
    }


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with")
    parser.add_argument("--starts", type=int, default=6, help="how often all processes are started")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each way after a start")
    parser.add_argument("--quick", action="store_true", help="one round of a few calls")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    if not options.print:
        about = records.circumstances("torch")
        with tempfile.TemporaryDirectory() as name:
            before = checkout(options.before, Path(name))
            packages = {"before": before, "before again": before, "after": records.HERE.parent}
            for forward, calls in {"model": 5, "none": 50}.items():
                starts, rounds, calls = (1, 1, 2) if options.quick else (options.starts, options.rounds, calls)
                found = [measure(packages, forward, rounds, calls) for _ in range(starts)]
                seconds = {way: [second for part in found for second in part[way]] for way in WAYS}
                rows = [_row(way, forward, seconds, calls) for way in WAYS]
                first = {"date": about["date"], "commit": about["commit"], "before commit": options.before}
                records.append(options.results, [{**first, **row, **about, "threads": 1} for row in rows])
    print(records.markdown(records.newest(options.results, "case"), SHOWN))


if __name__ == "__main__":
    main()
