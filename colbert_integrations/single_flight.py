"""SingleFlight: a piece of work that several ask for at the same time is done once, and all get what comes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["SingleFlight"]

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs a function once for all who ask for it meanwhile.

    With a lock alone, those who wait while it fails would try again one after another: 40 requests to a hub that can't
    be reached took 40 timeouts.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flight: Future[T] | None = None

    def run(self, work: Callable[[], T]) -> T:
        """Run the function, or wait for the call of it that runs already.

        Args:
            work: What to run.

        Returns:
            What it returned, to this thread or another.

        Raises:
            Exception: What it raised, for all who waited. An interrupt or a cancellation is of one thread alone;
                another that waits runs the function then.
        """
        while True:
            with self._lock:
                flight, first = self._flight or Future[T](), self._flight is None
                self._flight = flight
            try:
                if first:
                    return self._fly(flight, work)
                if isinstance(flight.exception(), Exception | None):
                    return flight.result()
            finally:
                del flight  # with its error, whose traceback leads here: what it holds would stay until a collection

    def _fly(self, flight: Future[T], work: Callable[[], T]) -> T:
        try:
            result = work()
        except BaseException as error:
            self._flight = None  # before anybody goes on: what they ask for next is another flight
            flight.set_exception(error)
            raise
        else:
            self._flight = None
            flight.set_result(result)
            return result
        finally:
            del flight
