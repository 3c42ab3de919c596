"""SingleFlight: one call for all who ask meanwhile, its error for all of them, an interrupt for one alone."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from colbert_integrations.single_flight import SingleFlight

Outcomes = Callable[[list[int | BaseException]], list[int | BaseException]]


@pytest.fixture
def outcomes(wait_for_company: Callable[[int], None]) -> Outcomes:
    """What each of six gets that all ask for work at the same time, which gives one result after another."""

    def found(results: list[int | BaseException]) -> list[int | BaseException]:
        flight, remaining = SingleFlight[int](), list(enumerate(results))

        def work() -> int:
            place, result = remaining.pop(0)
            wait_for_company(5 - place)
            if isinstance(result, BaseException):
                raise result
            return result

        def ask(_: int) -> int | BaseException:
            try:
                return flight.run(work)
            except BaseException as error:
                return error

        with ThreadPoolExecutor(6) as pool:
            return list(pool.map(ask, range(6)))

    return found


def test_all_get_what_one_call_returns(outcomes: Outcomes) -> None:
    assert outcomes([7]) == [7] * 6


def test_all_get_the_error_of_one_call(outcomes: Outcomes) -> None:
    error = ValueError("no")
    assert outcomes([error]) == [error] * 6


@pytest.mark.parametrize("gone", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_who_is_interrupted_leaves_it_to_another(gone: BaseException, outcomes: Outcomes) -> None:
    found = outcomes([gone, 7])
    assert (found.count(gone), found.count(7)) == (1, 5)


def test_later_calls_run_anew() -> None:
    flight, numbers = SingleFlight[int](), iter(range(3))
    with pytest.raises(ZeroDivisionError):
        flight.run(lambda: 1 // next(numbers))
    assert [flight.run(lambda: next(numbers)) for _ in range(2)] == [1, 2]


def test_an_error_keeps_nothing_of_the_work_alive() -> None:
    class Weights:
        pass

    gone = list[weakref.ref[Weights]]()

    def load() -> int:
        weights = Weights()
        gone.append(weakref.ref(weights))
        raise MemoryError

    gc.collect()
    gc.disable()  # as between two collections, while somebody tries again
    try:
        with pytest.raises(MemoryError) as caught:
            SingleFlight[int]().run(load)
        del caught
        assert gone[0]() is None
    finally:
        gc.enable()
