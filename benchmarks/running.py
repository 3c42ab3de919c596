"""A worker in a process and an environment of its own, asked line by line: both ends of the line.

The parent keeps a ``Peer``; the script that the peer runs calls ``serve``. Nothing but the standard library is
imported, so that this works in the environment of any engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Reply = dict[str, Any]
_LIMITED = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_NUM_THREADS"]
_OFFLINE = ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"]


@dataclass
class Peer:
    """A running worker, or why it is not running.

    Attributes:
        name: What its rows call it.
        process: Its process, None if it did not start or has ended.
        about: What its first line said.
        problem: Why it failed, empty if it did not.
        log: What it says beside its answers.
    """

    name: str
    process: subprocess.Popen[str] | None = None
    about: Reply = field(default_factory=dict)
    problem: str = ""
    log: Path = Path(os.devnull)

    def start(self, command: Sequence[str], folder: Path, threads: int) -> None:
        """Start it and wait until it is ready.

        Args:
            command: A Python, a script and its arguments.
            folder: Where its log goes.
            threads: As many as it may use.
        """
        limits = dict.fromkeys(_LIMITED, str(threads)) | dict.fromkeys(_OFFLINE, "1")
        self.log = folder / f"{self.name.replace(' ', '-').replace('/', '-')}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **limits},
            )
        self.about = self._reply() or {}

    def ask(self, message: Any) -> Reply | None:
        """Send a message and wait for the reply; None if it has failed."""
        if self.process is None or self.process.stdin is None:
            return None
        with suppress(BrokenPipeError):  # it died since its last reply, which the lack of another one shows
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        return self._reply()

    def stop(self) -> None:
        """End its process."""
        if self.process is not None:
            self._end()
            self.process = None

    def _end(self) -> None:
        """Close its input, which ends it, and wait."""
        assert self.process is not None
        with suppress(BrokenPipeError):
            self.process.communicate()

    def _reply(self) -> Reply | None:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            reply: Reply = json.loads(line)
            return reply
        self._end()
        said = self.log.read_text().strip().splitlines() or [""]
        self.problem = f"exit code {self.process.returncode}: {said[-1]}"[:300]
        self.process = None
        return None


AnyPeer = TypeVar("AnyPeer", bound=Peer)


def in_turn(peers: Sequence[AnyPeer], number: int) -> list[AnyPeer]:
    """The peers, beginning with another one each time: nobody always follows the same one."""
    turn = number % len(peers)
    return [*peers[turn:], *peers[:turn]]


def serve(ready: Callable[[], tuple[Reply, Callable[[Any], Reply]]]) -> None:
    """Answer messages on the standard output, and send nothing there that an engine prints.

    Args:
        ready: Gets the engine ready; gives what is to be known about it, and what answers a message.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    about, answer = ready()
    print(json.dumps(about), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)
