"""Worker: threads of its own for async callers, made on first use; and work begun in an executor, or else here."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from .cancellation import cancellable

__all__ = ["Worker", "begin"]

P = ParamSpec("P")
T = TypeVar("T")


def begin(executor: Executor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Begin to run a function in an executor, or run it here once the main thread has ended.

    Python's executors take no more work from then on, while threads of the program still go on with theirs.

    Args:
        executor: Not shut down by us.
        function: What to run.
        *args: Its arguments.
        **kwargs: Its arguments by name.

    Returns:
        What it returns or raises, to come.

    Raises:
        RuntimeError: If the system has no more threads.
    """
    try:
        return executor.submit(function, *args, **kwargs)
    except RuntimeError as refused:
        if "schedule new futures" not in str(refused):  # such as of threads, when the executor has it in its queue
            raise
        done = Future[T]()
        try:
            done.set_result(function(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done


class Worker:
    """Runs functions for async callers in threads of its own, not in the event loop's pool.

    50 calls that wait for one device would block that pool for everybody else.

    Args:
        threads: Maximum number of threads at once; further calls wait their turn.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function with the caller's context variables; where the caller is cancelled, the function can learn it.

        Args:
            function: What to run.
            *args: Its arguments.
            **kwargs: Its arguments by name.

        Returns:
            What it returns.
        """
        with cancellable():
            context = contextvars.copy_context()
            with self._lock:
                # Threads don't survive a fork, and the executor would wait for them.
                if self._executor is None or self._process != os.getpid():
                    self._process = os.getpid()
                    self._executor = ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix="colbert")
                future = self._executor.submit(context.run, lambda: _result(function, *args, **kwargs))
            return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let the threads end when their work is done; the next call makes new ones."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)


def _result(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # No future of asyncio can carry it: whoever awaits would wait for ever.
        raise RuntimeError("a function that was called here raised StopIteration") from error
