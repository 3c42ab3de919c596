"""A process that adds and saves is killed at random moments: the folder opens as one state or another, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colbert_integrations import MemoryStore

SCRIPT = Path(__file__).with_name("killed.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fifty_kills_never_tear_an_index(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "index"), "50", "20261122"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    states = [int(line) for line in done.stdout.split()]
    assert len(states) == 50
    assert len(set(states)) > 10  # the kills did hit processes at work
    assert MemoryStore.load(tmp_path / "index").count() == states[-1] % 7 + 5
