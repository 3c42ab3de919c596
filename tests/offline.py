"""Interpreters for scripts and notebooks that must need nothing but this machine: an empty home and no network."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
_NO_NETWORK = """
import socket

def refusing(connect):
    def refuse(self, address):
        if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"an example wanted to reach {address}")
        return connect(self, address)
    return refuse

socket.socket.connect = refusing(socket.socket.connect)
socket.socket.connect_ex = refusing(socket.socket.connect_ex)
"""


def environment(home: Path) -> dict[str, str]:
    """The variables of such an interpreter.

    Args:
        home: An empty folder.

    Returns:
        This interpreter's variables, but for what would tell libraries to stay offline: nothing must need telling.
    """
    (home / "sitecustomize.py").write_text(_NO_NETWORK)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TOKENIZERS_"))}
    path = os.pathsep.join([str(home), str(ROOT)])
    return {**kept, "HOME": str(home), "PYTHONPATH": path, "PYTHONUTF8": "1"}
