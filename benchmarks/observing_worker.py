"""Ranks the same texts again and again with the package of any checkout; the worker of ``observing_cost.py``."""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import running


def ready(package: Path, texts: Path, forward: str) -> tuple[running.Reply, Callable[[Any], running.Reply]]:
    """Load the model and make the batch of texts; ``forward="none"`` gives every token the same vector at no cost."""
    sys.path.insert(0, str(package))
    import torch

    import colbert_integrations

    def constant(sequences: Any) -> torch.Tensor:
        return rows[: sum(len(sequence.ids) for sequence in sequences)]

    options = {"forward": constant} if forward == "none" else {}
    model = colbert_integrations.ColBERT("bundled/all-MiniLM-L6-v2", device="cpu", **options)
    rows = torch.ones(4096, model.dim)
    query, documents = json.loads(texts.read_text())
    log = logging.getLogger("colbert_integrations")
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.propagate = False

    def answer(message: running.Reply) -> running.Reply:
        how, seconds = message["how"], []
        log.setLevel(logging.DEBUG if how == "debug" else logging.WARNING)
        for _ in range(message["calls"]):
            started = time.perf_counter()
            with colbert_integrations.observed() if how == "observed" else nullcontext():
                model.rank(query, documents)
            seconds.append(time.perf_counter() - started)
        handler.setStream(io.StringIO())
        return {"seconds": seconds}

    return {"package": colbert_integrations.__file__}, answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="folder that colbert_integrations lies in")
    parser.add_argument("texts", type=Path, help="JSON: a query and documents")
    parser.add_argument("forward", choices=["model", "none"])
    given = parser.parse_args()
    running.serve(lambda: ready(given.package, given.texts, given.forward))
