"""What tests of the command line name: what a command did, and files to run it on."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

# Of words that the tiny checkpoints know; file names in several scripts.
NOTES = {
    "wings.txt": "the wings lift a plane into the sky",
    "bread.txt": "bread and flour",
    "Straße/Flüsse.txt": "water runs in the river\r\n\r\nand into the sea",
    "Straße/狐.txt": "the quick red fox jumps over the lazy dog",
    "empty.txt": "",
}


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


class Stdin(io.RawIOBase):
    """Lines that come one after another; calls something before each."""

    def __init__(self, lines: list[bytes], before: Callable[[int], None]) -> None:
        self._lines, self._before, self._number = lines, before, 0

    def readable(self) -> bool:
        return True

    def readline(self, size: int | None = -1) -> bytes:
        if self._number == len(self._lines):
            return b""
        self._before(self._number)
        self._number += 1
        return self._lines[self._number - 1]


def numbered(count: int, padding: str = "") -> list[bytes]:
    lines = [{"id": f"{n:04}", "text": f"wing {n}", "padding": padding} for n in range(count)]
    return [json.dumps(line).encode() + b"\n" for line in lines]


def give(monkeypatch: pytest.MonkeyPatch, lines: list[bytes], before: Callable[[int], None]) -> None:
    class Given:
        buffer = Stdin(lines, before)

    monkeypatch.setattr(sys, "stdin", Given())
