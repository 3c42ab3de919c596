"""The recipe for Ray Data: a small cluster encodes a corpus into one collection, and a second run finds it there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from colbert_integrations.location import open_store
from qdrant_server import QdrantServer

pytest.importorskip("ray", reason="needs Ray: make test-ray")

ROOT = Path(__file__).parents[1]


def test_a_cluster_indexes_a_corpus_and_a_second_run_encodes_nothing(
    tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    documents = [{"id": str(n), "text": f"wing number {n}", "year": 1900 + n, "title": None} for n in range(50)]
    lines = [json.dumps(row) for row in (*documents, {"id": "bad", "text": None})] + ['{"text": "cut off']
    for part in range(2):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines[part::2]) + "\n")
    server = QdrantServer()
    location = f"qdrant+{server.url}/corpus"
    command = [sys.executable, str(ROOT / "examples" / "ray_data.py"), str(tmp_path), location]
    command += ["--model", str(checkpoint("stanford")), "--batch-size", "8"]
    quiet = {**os.environ, "RAY_DEDUP_LOGS": "1", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        said = [subprocess.run(command, capture_output=True, text=True, check=True, env=quiet).stdout for _ in range(2)]
        with open_store(location) as store:
            assert store.ids() == sorted(document["id"] for document in documents)
            assert store.get(["7"])[0].metadata == {"year": 1907, "title": None}
    finally:
        server.close()
    assert "50 encoded, 0 there already, 0 replaced by later ones of their id, 2 failed\n" in said[0]
    assert "0 encoded, 50 there already, 0 replaced by later ones of their id, 2 failed\n" in said[1]
    for each in said:
        assert "\nbad: a text must be a string" in each
        assert '\n{"text": "cut off: no JSON (' in each
