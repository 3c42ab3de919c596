"""Batches of so many bytes: a server takes only so much in one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["batches"]

T = TypeVar("T")


def batches(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Put things together that fit into one request.

    Args:
        items: The things.
        size: The bytes that one takes.
        most: Bytes of a batch, if it has more than one of them.

    Yields:
        Some things, at least one, in order.

    Example:
        >>> list(batches(["aaaa", "b", "cc", "dddd", "e"], len, 3))
        [['aaaa'], ['b', 'cc'], ['dddd'], ['e']]
    """
    batch, taken = list[T](), 0
    for item in items:
        needed = size(item)
        if batch and taken + needed > most:
            yield batch
            batch, taken = [], 0
        batch.append(item)
        taken += needed
    if batch:
        yield batch
