"""Run a server alone: ``python -m qdrant_server`` says where it listens, and ends with its standard input."""

from __future__ import annotations

import json
import sys

from . import QdrantServer

if __name__ == "__main__":
    server = QdrantServer(strict=False)
    sys.stdout.write(json.dumps({"url": server.url, "grpc_port": server.grpc_port}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.close()
