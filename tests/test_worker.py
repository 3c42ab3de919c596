"""Worker: a forked child, which has none of its parent's threads, and what no future can carry."""

from __future__ import annotations

import asyncio
import os

import pytest

from colbert_integrations.worker import Worker


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
