"""Figures of a call on its LangChain run, where tracers find them when the run ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from langchain_core.callbacks import BaseRunManager
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer

from ..observing import observed

__all__ = ["figures_on"]


@contextmanager
def figures_on(run: BaseRunManager, about: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Add the figures of what happens in the body to the metadata of a run, also where it fails.

    Args:
        run: The run, which ends after the body.
        about: What else is to be said of it; asked at the end.

    Yields:
        Nothing.
    """
    if not run.handlers:
        yield
        return
    try:
        with observed() as observation:
            yield
    finally:
        _add_metadata(run, {**about(), **observation.stats.as_metadata()})


def _add_metadata(run: BaseRunManager, figures: Mapping[str, Any]) -> None:
    run.metadata.update(figures)  # the stream of events holds this very dictionary
    for handler in run.handlers:
        # Tracers keep a run until it ends. Some have copied its metadata, or began without any.
        if isinstance(handler, (BaseTracer, AsyncBaseTracer)):
            traced = handler.run_map.get(str(run.run_id))
            if traced is not None:
                traced.add_metadata(dict(figures))
