"""DocumentCache: token vectors of texts that were ranked lately, bounded in bytes; the least recently used go first."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

__all__ = ["CacheInfo", "DocumentCache"]


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache has done and holds.

    Attributes:
        hits: Texts that were found.
        misses: Texts that were not.
        entries: Texts that it holds.
        bytes: Size of their vectors and of the texts themselves.
    """

    hits: int = 0
    misses: int = 0
    entries: int = 0
    bytes: int = 0


class DocumentCache:
    """Token vectors by text. Safe to share between threads.

    It belongs to one model, whose spec never changes: the text alone says what its vectors are.

    Args:
        max_bytes: Maximum number of bytes of vectors and texts; a text that needs more by itself is not kept. None or
            0: nothing is.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes or 0
        self._lock = threading.Lock()
        # With the size of each: that of a string grows when it is first written as UTF-8.
        self._entries: OrderedDict[str, tuple[torch.Tensor, int]] = OrderedDict()  # (num_tokens, dim) float32
        self._bytes = self._hits = self._misses = 0

    def find(self, texts: Iterable[str]) -> dict[str, torch.Tensor]:
        """Look texts up.

        Args:
            texts: The texts.

        Returns:
            The vectors of those that are there, ``(num_tokens, dim)`` each; not to be written to.
        """
        found: dict[str, torch.Tensor] = {}
        if not self._max_bytes:
            return found
        with self._lock:
            for text in texts:
                entry = self._entries.get(text)
                if entry is None:
                    self._misses += 1
                    continue
                self._hits += 1
                self._entries.move_to_end(text)
                found[text] = entry[0]
        return found

    def keep(self, texts: Iterable[str], vectors: Iterable[torch.Tensor]) -> None:
        """Keep vectors; the least recently used ones make room for them.

        Args:
            texts: The texts.
            vectors: The vectors of each, ``(num_tokens, dim)``. They are copied: a view would keep the memory of the
                whole batch, and its owner could write to it.
        """
        for text, matrix in zip(texts, vectors, strict=True):
            size = matrix.nbytes + sys.getsizeof(text)
            if size <= self._max_bytes:
                self._add(text, matrix.clone(), size)

    def _add(self, text: str, matrix: torch.Tensor, size: int) -> None:
        with self._lock:
            _, before = self._entries.pop(text, (matrix, 0))
            self._entries[text] = matrix, size
            self._bytes += size - before
            while self._bytes > self._max_bytes:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._bytes -= dropped

    def info(self) -> CacheInfo:
        """What it has done and holds."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._entries), self._bytes)
