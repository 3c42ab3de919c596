"""Observing: how long the parts of a call took and what they handled, for whoever asks, and at no cost for others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields
from time import perf_counter
from typing import Any

__all__ = ["CallStats", "Observation", "logged", "observed", "record", "timed"]


@dataclass(frozen=True, slots=True)
class CallStats:
    """Figures of one call, or the sums of several.

    Seconds are wall time as the call saw it, waiting included: for its turn, for a batch that others share, for a busy
    device. What overlaps counts twice (a corpus is tokenised while its beginning is encoded; weights that are loaded
    beside servers, for a query that these can't encode, are in ``load_s`` and in ``encode_s``), and what is none of the
    parts (sorting, converting, merging vectors) counts nowhere.

    Attributes:
        load_s: Seconds until the weights were there, whoever loaded them; 0 if they were. Importing torch is not in it.
        tokenize_s: Seconds for making token sequences of texts.
        encode_s: Seconds from handing sequences over until all their vectors were there, on a GPU too: waiting for a
            turn, and running batches that hold others' sequences too.
        score_s: Seconds for MaxSim in ``rank``, for the store's search, filters included, in ``search``.
        queries_encoded: Queries that went through the model.
        documents_encoded: Documents that went through the model.
        tokens_encoded: Tokens of both: markers, expansion and the overlap of windows included, padding not.
        batches: Batches that these tokens were in. One that calls share counts for each of them.
        windows: Windows that documents too long for one sequence were encoded as; 0 if each of them fitted.
        queries_cut: Queries whose end was dropped.
        documents_cut: Documents whose end was dropped.
        documents_ranked: Documents given to ``rank``, repeated ones included.
        documents_cached: Different documents whose vectors were in the cache (``cache_bytes``).
        documents_known: Different documents whose vectors were given, or in the index.
    """

    load_s: float = 0.0
    tokenize_s: float = 0.0
    encode_s: float = 0.0
    score_s: float = 0.0
    queries_encoded: int = 0
    documents_encoded: int = 0
    tokens_encoded: int = 0
    batches: int = 0
    windows: int = 0
    queries_cut: int = 0
    documents_cut: int = 0
    documents_ranked: int = 0
    documents_cached: int = 0
    documents_known: int = 0

    def as_metadata(self) -> dict[str, Any]:
        """The figures as logs and traces carry them.

        Returns:
            Each figure by its name with ``colbert.`` before it, such as ``colbert.encode_s``.
        """
        return {f"colbert.{item.name}": getattr(self, item.name) for item in fields(self)}

    def __str__(self) -> str:
        pairs = [(item.name, getattr(self, item.name)) for item in fields(self)]
        shown = [(name, f"{value:.6g}" if isinstance(value, float) else value) for name, value in pairs if value]
        return " ".join(f"{name}={value}" for name, value in shown) or "nothing to do"


class Observation:
    """Adds up the figures of calls, from any thread.

    Args:
        outer: Another one that the same figures go to. None: there is none.
    """

    def __init__(self, outer: Observation | None = None) -> None:
        self._outer = outer
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}

    @property
    def stats(self) -> CallStats:
        """The sums so far."""
        with self._lock:
            return CallStats(**self._sums)  # type: ignore[arg-type]  # counts are added to counts

    def add(self, figures: Mapping[str, float]) -> None:
        """Add to the sums.

        Args:
            figures: By their names in ``CallStats``.
        """
        with self._lock:
            for name, value in figures.items():
                self._sums[name] = self._sums.get(name, 0) + value
        if self._outer is not None:
            self._outer.add(figures)

    def __repr__(self) -> str:
        return f"Observation({self.stats})"


# A context variable, since between who asks and what is measured lie functions of others, and other threads.
_CURRENT: ContextVar[Observation | None] = ContextVar("_CURRENT", default=None)


@contextmanager
def observed() -> Iterator[Observation]:
    """Collect the figures of the calls in the body, sync and async.

    Tasks and threads that are started in the body count if they get its context, as by asyncio and
    ``asyncio.to_thread``; a bare thread gets none. Requests of others never count, also where they share a batch.

    Yields:
        Where the figures are: ``stats`` is a ``CallStats``, in the body and afterwards.

    Example:
        >>> from colbert_integrations import ColBERT
        >>> model = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu")
        >>> with observed() as observation:
        ...     ranked = model.rank("how do planes fly", ["bread recipes", "the lift of a wing"])
        >>> stats = observation.stats
        >>> stats.queries_encoded, stats.documents_encoded, stats.batches, stats.documents_cut
        (1, 2, 1, 0)
        >>> stats.encode_s > 0
        True
    """
    observation = Observation(_CURRENT.get())
    before = _CURRENT.set(observation)
    try:
        yield observation
    finally:
        with suppress(ValueError):  # a coroutine that is destroyed ends in another context
            _CURRENT.reset(before)


def record(**figures: float) -> None:
    """Add figures to what is being observed, if anything is.

    Args:
        **figures: By their names in ``CallStats``.
    """
    observation = _CURRENT.get()
    if observation is not None:
        observation.add(figures)


@contextmanager
def timed(figure: str) -> Iterator[None]:
    """Record how long the body takes, also where it fails.

    Args:
        figure: Name in ``CallStats``.

    Yields:
        Nothing.
    """
    start = perf_counter()
    try:
        yield
    finally:
        record(**{figure: perf_counter() - start})


@contextmanager
def logged(logger: logging.Logger, call: str, about: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Log the figures of a call once it is done, if anybody listens at level DEBUG.

    Args:
        logger: Where to.
        call: What the call is called.
        about: Gives further attributes of the log record; called at the end.

    Yields:
        Nothing.
    """
    if not logger.isEnabledFor(logging.DEBUG):
        yield
        return
    start = perf_counter()
    with observed() as observation:
        yield
    total, stats = perf_counter() - start, observation.stats
    extra = {"colbert.call": call, "colbert.total_s": total, **about(), **stats.as_metadata()}
    logger.debug("%s took %.6g s: %s", call, total, stats, extra=extra)
