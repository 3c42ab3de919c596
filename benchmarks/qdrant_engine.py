"""A Qdrant server to measure on: the tests' own, which has the real engine behind it, in a process of its own.

It reads JSON with Python and hands it to the engine's Python binding, so it is slower than Qdrant's own server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import records

TESTS = records.HERE.parent / "tests"
MIB = 2**20


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        url: Where it listens.
        grpc_port: Where it listens for gRPC.
        pid: Its process.
    """

    url: str
    grpc_port: int
    pid: int

    @property
    def peak_bytes(self) -> int:
        """Most memory that it has had; 0 where Linux's /proc is not there."""
        return peak_bytes(self.pid)


def peak_bytes(pid: int | str = "self") -> int:
    """Most memory that a process has had in RAM; 0 where Linux's /proc is not there."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


@contextmanager
def running_server() -> Iterator[Server]:
    """Start a server; it ends with the block."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "qdrant_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    try:
        said = json.loads(process.stdout.readline())
        yield Server(said["url"], said["grpc_port"], process.pid)
    finally:
        process.communicate()  # closes its input, which ends it
