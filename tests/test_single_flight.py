"""SingleFlight: one call for all who ask meanwhile, its error for all of them, an interrupt for one alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from colbert_integrations.single_flight import SingleFlight


def outcomes(work: Callable[[], int], callers: int) -> list[int | BaseException]:
    """What each caller gets, of those that all ask at the same time."""
    flight, together = SingleFlight[int](), threading.Barrier(callers)

    def ask(_: int) -> int | BaseException:
        together.wait()
        try:
            return flight.run(work)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(ask, range(callers)))


def slow(results: list[int | BaseException]) -> Callable[[], int]:
    """Gives one result after another, and lets others come meanwhile."""
    remaining, pause = iter(results), threading.Event()

    def work() -> int:
        result = next(remaining)
        pause.wait(0.2)
        if isinstance(result, BaseException):
            raise result
        return result

    return work


def test_all_get_what_one_call_returns() -> None:
    assert outcomes(slow([7]), 6) == [7] * 6


def test_all_get_the_error_of_one_call() -> None:
    error = ValueError("no")
    assert outcomes(slow([error]), 6) == [error] * 6


@pytest.mark.parametrize("gone", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_who_is_interrupted_leaves_it_to_another(gone: BaseException) -> None:
    found = outcomes(slow([gone, 7]), 6)
    assert (found.count(gone), found.count(7)) == (1, 5)


def test_later_calls_run_anew() -> None:
    flight, numbers = SingleFlight[int](), iter(range(3))
    with pytest.raises(ZeroDivisionError):
        flight.run(lambda: 1 // next(numbers))
    assert [flight.run(lambda: next(numbers)) for _ in range(2)] == [1, 2]
