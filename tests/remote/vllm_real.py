"""A real vLLM server on the loopback, in an environment of its own that ``make test-vllm`` builds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

NAME = "tiny"
_STARTING_S = 300
# 1 GB for keys and values; nothing is asked of the internet; long inputs beyond what PyLate's files admit.
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


class RealVLLM:
    """The server.

    Args:
        python: Of an environment with vLLM.
        folder: The checkpoint that it serves.
        log: Where it writes what it says.
        architecture: Name of vLLM's class, where the checkpoint does not name it.
        key: For ``--api-key``.
    """

    max_model_len = 512

    def __init__(
        self, python: str, folder: Path, log: Path, *, architecture: str | None = None, key: str | None = None
    ) -> None:
        self.key = key
        self.url = f"http://127.0.0.1:{_free_port()}"
        options = {
            "--model": str(folder),
            "--served-model-name": NAME,
            "--host": "127.0.0.1",
            "--port": self.url.rpartition(":")[2],
            "--dtype": "float32",
            "--max-model-len": str(self.max_model_len),
            **({"--api-key": key} if key else {}),
            **({"--hf-overrides": json.dumps({"architectures": [architecture]})} if architecture else {}),
        }
        arguments = [text for option in options.items() for text in option]
        self._command = [python, "-m", "vllm.entrypoints.openai.api_server", *arguments, "--enforce-eager"]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, on the port that it had before, and wait until it answers."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | _ENVIRONMENT
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self._log.parent
            )
        until = time.monotonic() + _STARTING_S
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"vLLM did not start:\n{self._log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.5)

    def _is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """Be gone at once, with all processes."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Nothing is kept from one test to the next."""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
