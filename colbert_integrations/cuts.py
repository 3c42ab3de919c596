"""Cuts: texts that are too long are warned of once a call, also where it encodes them piece by piece."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from .errors import TruncationWarning

__all__ = ["NOUNS", "CutDocuments", "callers_stacklevel", "warn_of_cuts"]

NOUNS = {"query": "queries", "document": "documents"}


class CutDocuments:
    """Adds up the documents that a call encodes piece by piece, to warn of those that were cut when all are done."""

    def __init__(self) -> None:
        self._total, self._cut = 0, 0
        self._length: int | None = None

    @contextmanager
    def piece(self) -> Iterator[None]:
        """Add up what is encoded in the body, instead of warning of it there."""
        token = _ADDING.set(self)
        try:
            yield
        finally:
            _ADDING.reset(token)

    @contextmanager
    def all_pieces(self) -> Iterator[None]:
        """Warn at the end of the body, also of one that fails: what was encoded before may be stored."""
        try:
            yield
        except Exception:
            self._warn()
            raise
        self._warn()

    def add(self, total: int, cut: int, length: int | None) -> None:
        """Add ``total`` documents, of which ``cut`` were cut at ``length`` tokens."""
        self._total, self._cut, self._length = self._total + total, self._cut + cut, length

    def _warn(self) -> None:
        _warn(self._total, self._cut, "document", self._length)


# A context variable, since between whoever has the pieces and whoever cuts lies the model's public door.
_ADDING: ContextVar[CutDocuments | None] = ContextVar("_ADDING", default=None)


def warn_of_cuts(total: int, cut: int, side: Literal["query", "document"], length: int | None) -> None:
    """Warn of texts that were cut, unless they are one piece of what a call encodes.

    Args:
        total: How many texts there are.
        cut: How many of them were cut; for 0 there is no warning.
        side: What they are.
        length: Maximum number of tokens of one.
    """
    adding = _ADDING.get()
    if adding is not None and side == "document":
        adding.add(total, cut, length)
    else:
        _warn(total, cut, side, length)


def _warn(total: int, cut: int, side: str, length: int | None) -> None:
    if not cut:
        return
    cure = "long_documents='window' scores them whole" if side == "document" else "raise query_length to keep more"
    message = f"{cut} of {total} {NOUNS[side]} cut at {side}_length={length} tokens; {cure}"
    warnings.warn(message, TruncationWarning, stacklevel=callers_stacklevel())


def callers_stacklevel() -> int:
    """How far up the stack the code lies that called this package: that line is what a warning should name."""
    package, frame, level = __name__.split(".")[0], sys._getframe(1), 1
    while frame.f_back is not None and _is_between(frame.f_globals.get("__name__", ""), package):
        frame, level = frame.f_back, level + 1
    return level


def _is_between(module: str, package: str) -> bool:
    # Frames of contextlib lie in between where our context managers end.
    return module.split(".")[0] in (package, "contextlib")
