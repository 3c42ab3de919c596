"""The bar that long work shows, on a terminal or in a notebook."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["progress_bar"]

# Work that ends before this many seconds shows no bar.
_BAR_AFTER_S = 2.0


class _NoBar(AbstractContextManager["_NoBar"]):
    """Stands in for a bar that is not shown.

    tqdm has one too (``disable=True``), but makes it under a lock that all processes forked from here share: if one of
    them was killed while it held the lock, as workers of servers may be, this process would wait for ever.
    """

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        """Take note of what is done; here it does nothing."""


def progress_bar(total: int | None, show: bool | None, desc: str) -> Any:
    """A bar for texts that are worked on.

    Args:
        total: How many will come. None: not known.
        show: Whether to show it. None: on a terminal or in a notebook, for work over two seconds. Where a
            program has no stderr, as on Windows without a console, there is none in any case.
        desc: What is done with them.

    Returns:
        A tqdm bar, or what takes its place where none is shown, as a context manager with ``update(n)``.
    """
    if sys.stderr is None or not (_on_a_screen() if show is None else show):
        return _NoBar()
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=desc, unit="text", delay=_BAR_AFTER_S if show is None else 0.0)


def _on_a_screen() -> bool:
    """Whether somebody may be looking: at a terminal, or at a notebook, whose stderr is no terminal."""
    from tqdm.asyncio import tqdm_asyncio
    from tqdm.auto import tqdm

    try:
        terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # a stream of the program's own without isatty; a closed one
        terminal = False
    return terminal or tqdm is not tqdm_asyncio
