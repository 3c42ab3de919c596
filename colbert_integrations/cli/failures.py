"""Failures: what could not be read or stored, counted, told on stderr, and written to a file if one was named."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

from .output import Output, writing

__all__ = ["Failures"]

# Told on stderr; and kept for the report. Of a corpus with a wrong column there would be millions.
_TOLD, _KEPT = 20, 1000


class Failures:
    """Collects failures; a context manager, since it may write a file.

    Args:
        output: Where they are told.
        file: A file for all of them, as JSON lines. None: none.

    Raises:
        InputError: If the file can't be written.

    Attributes:
        count: How many there were.
        first: The first 1,000 of them.
    """

    def __init__(self, output: Output, file: str | None = None) -> None:
        self.count, self.first = 0, list[dict[str, str]]()
        self._output, self._name = output, file or ""
        self._file: TextIO | None = None
        if file is not None:
            with writing(file):
                self._file = Path(file).open("w", encoding="utf-8")  # noqa: SIM115  # closed by __exit__

    def add(self, document: str, why: str | Exception) -> None:
        """Note a failure.

        Args:
            document: The id of the document, or where it stands.
            why: What is wrong with it.

        Raises:
            InputError: If the file can't be written.
        """
        self.count += 1
        failure = {"document": document, "error": str(why)}
        if len(self.first) < _KEPT:
            self.first.append(failure)
        if self._file is not None:
            with writing(self._name):
                self._file.write(json.dumps(failure) + "\n")

    def tell(self) -> None:
        """Say what failed, or the beginning of it."""
        for failure in self.first[:_TOLD]:
            self._output.error(f"{failure['document']}: {failure['error']}")
        if self.count > _TOLD:
            where = f"{self._name} has all" if self._name else "--failures OUT.jsonl writes all"
            self._output.error(f"and {self.count - _TOLD:,} more, {where}")

    def __enter__(self) -> Failures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with writing(self._name):
                self._file.close()
