"""Worker: a forked child, which has none of its parent's threads, what no future can carry, the end of the program."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from colbert_integrations.worker import Worker, begin


async def test_a_forked_child_starts_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    await worker.run(int)
    parents = worker._executor
    await worker.run(int)
    assert worker._executor is parents
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a child
    await worker.run(int)
    assert worker._executor is not parents
    assert parents is not None
    parents.shutdown()
    worker.close()


async def test_a_stop_iteration_does_not_leave_the_caller_waiting() -> None:
    worker = Worker()
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(worker.run(next, iter([])), 10)  # type: ignore[arg-type]
    worker.close()


def test_what_can_not_begin_elsewhere_once_the_main_thread_has_ended_runs_here() -> None:
    executor = ThreadPoolExecutor(1)
    assert begin(executor, threading.get_ident).result() != threading.get_ident()
    executor.shutdown()  # as Python does then with all of them
    assert begin(executor, threading.get_ident).result() == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        begin(executor, divmod, 1, 0).result()


def test_where_the_system_has_no_more_threads_nothing_is_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done = list[int]()
    with ThreadPoolExecutor(1) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="new thread"):
                begin(executor, done.append, 1)
        begin(executor, done.append, 2).result()
    assert done.count(1) <= 1, "the executor may have it in its queue still"
