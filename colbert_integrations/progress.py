"""The bar that long work shows, on a terminal or in a notebook."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["progress_bar"]

# Work that ends before this many seconds shows no bar.
_BAR_AFTER_S = 2.0


def progress_bar(total: int | None, show: bool | None, desc: str) -> Any:
    """A bar for texts that are worked on.

    Args:
        total: How many will come. None: not known.
        show: Whether to show it. None: on a terminal or in a notebook, for work over two seconds. Where a
            program has no stderr, as on Windows without a console, there is none in any case.
        desc: What is done with them.

    Returns:
        A tqdm bar, as a context manager.
    """
    from tqdm.auto import tqdm

    # disable=None is tqdm's own "off unless on a terminal"; a notebook's bar has no terminal and shows.
    delay, off = (_BAR_AFTER_S, None) if show is None else (0.0, not show)
    return tqdm(total=total, desc=desc, unit="text", delay=delay, disable=sys.stderr is None or off)
