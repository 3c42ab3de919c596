"""Encode a corpus on many machines with Ray Data, and put it into one Qdrant collection.

    python ray_data.py corpus.jsonl qdrant+http://qdrant:6333/corpus --workers 8 --gpus 1

Lines are JSON with a "text" and, if they have them, an "id" and other keys, which become metadata. Each worker encodes
its part and writes it to Qdrant itself, so no vectors travel through Ray. A run that was interrupted is simply run
again: what is stored already is not encoded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import ray

from colbert_integrations import ColBERT, index_corpus
from colbert_integrations.location import open_store

DEFAULT_MODEL = "answerdotai/answerai-colbert-small-v1"


class Indexer:
    """A worker: a model and a connection, kept from batch to batch."""

    def __init__(self, model: str, location: str) -> None:
        self.model, self.store = ColBERT(model), open_store(location)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Store a batch of lines; what became of them, as one row."""
        rows, why = readable(batch["text"])
        unreadable = len(why)
        report = index_corpus(rows, self.model, self.store, show_progress=False)
        why += [f"{name}: {error}" for name, error in report.failures.items()]
        return {
            "encoded": [report.encoded],
            "unchanged": [report.unchanged],
            "replaced": [report.replaced],
            "failed": [report.failed + unreadable],
            "why": ["\n".join(why)],
        }


def readable(lines: Iterable[str]) -> tuple[list[Any], list[str]]:
    """What lines of JSON say, and what is wrong with those that can't be read: they take no other with them."""
    rows, why = [], []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            why.append(f"{line:.40}: no JSON ({error})")
    return rows, why


def index(source: str, location: str, model: str, *, workers: int, gpus: float, batch_size: int) -> dict[str, Any]:
    """Index a corpus.

    Args:
        source: JSON lines, on any file system that Ray reads.
        location: The collection.
        model: The checkpoint.
        workers: How many encode at the same time.
        gpus: Of each worker; 0 for CPUs.
        batch_size: Documents that a worker gets at a time.

    Returns:
        Sums over all batches.
    """
    # As text: what reads JSON into columns turns a missing value into NaN.
    batches = ray.data.read_text(source).map_batches(
        Indexer,
        fn_constructor_args=(model, location),
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=gpus,
    )
    sums: dict[str, Any] = {"encoded": 0, "unchanged": 0, "replaced": 0, "failed": 0, "why": []}
    for row in batches.iter_rows():
        sums = {name: sums[name] + (row[name].splitlines() if name == "why" else row[name]) for name in sums}
    return sums


def main() -> None:
    """Index what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="JSON lines, a file or a folder, also on S3 and the like")
    parser.add_argument("location", help="qdrant+http://host:6333/collection")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--workers", type=int, default=1, help="fewer than the CPUs of the cluster: reading needs some")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--batch-size", type=int, default=2048)
    options = parser.parse_args()
    done = index(
        options.source,
        options.location,
        options.model,
        workers=options.workers,
        gpus=options.gpus,
        batch_size=options.batch_size,
    )
    said = (
        "{encoded} encoded, {unchanged} there already, {replaced} replaced by later ones of their id, {failed} failed"
    )
    print(said.format(**done))
    print(*done["why"], sep="\n")


if __name__ == "__main__":
    main()
