"""Run a server alone: ``python -m qdrant_server [PORT]`` says its address, and ends with its standard input."""

from __future__ import annotations

import sys

from . import QdrantServer

if __name__ == "__main__":
    server = QdrantServer(int(sys.argv[1]) if len(sys.argv) > 1 else 0, strict=False)
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.close()
