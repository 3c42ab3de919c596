"""What tests of the command line name: what a command did, and files to run it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
