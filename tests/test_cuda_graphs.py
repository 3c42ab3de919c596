"""Recording goes on after it failed, and leaves nothing behind. CUDA is played here; ``tests/gpu`` has the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from time import sleep
from types import SimpleNamespace
from typing import Any
from weakref import finalize

import pytest
import torch

from colbert_integrations.devices.cuda_graphs import CudaRecorder

DEVICE = torch.device("cuda", 1)


class Played:
    """What torch does around a recording, as told by its source: one that fails leaves the thread on its stream."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.current, self.said, self.pools = "caller's", list[str](), 0
        self.broken = set[Any]()

    def told(self, said: str) -> Callable[[int, Any], None]:
        return lambda index, pool: self.said.append(f"{said} {index} {pool}")

    def pool(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, *, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        before, self.current = self.current, stream.name
        if pool in self.broken:  # its half for pinned memory was never ended (torch 2.11)
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.said.append(f"begin {pool}")
        yield
        if self.failures:
            self.failures -= 1
            self.broken.add(pool)
            raise RuntimeError("operation failed due to a previous error during capture")
        self.said.append(f"end {pool}")
        self.current = before


class Graph:
    """Says when it ends."""

    def __init__(self, played: Played) -> None:
        self.played = played
        self.replay = lambda: played.said.append("replay")
        finalize(self, played.said.append, "gone")


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    def start(failures: int) -> Played:
        played = Played(failures)
        stream = SimpleNamespace(
            name="side",
            wait_stream=lambda other: None,
            wait_event=lambda event: played.said.append("after the last turn"),
            synchronize=lambda: None,
        )
        for name, value in {
            "CUDAGraph": lambda: Graph(played),
            "Event": lambda: SimpleNamespace(record=lambda stream: played.said.append("done")),
            "Stream": lambda device: stream,
            "current_stream": lambda device: SimpleNamespace(wait_event=lambda event: played.said.append("wait")),
            "graph": played.graph,
            "graph_pool_handle": played.pool,
            "stream": played.stream,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name, said in {"_cuda_endAllocateToPool": "free", "_cuda_releasePool": "unused"}.items():
            monkeypatch.setattr(torch._C, name, played.told(said), raising=False)
        return played

    return start


def recordings(played: Played) -> list[str]:
    return [said for said in played.said if said.split()[0] in ("begin", "end", "free")]


def test_tries_again_where_another_thread_got_in_between(play: Any) -> None:
    played, outs = play(failures=1), iter(range(9))
    again, out = CudaRecorder(DEVICE).record(lambda: next(outs))
    assert recordings(played) == ["begin (0, 1)", "free 1 (0, 1)", "begin (0, 2)", "end (0, 2)"]
    assert out == 3  # of the last of four calls
    again()
    assert played.said[-1] == "replay"
    assert played.current == "caller's"


def test_gives_up_after_two_failures_and_leaves_the_thread_where_it_was(play: Any) -> None:
    played = play(failures=2)
    with pytest.raises(RuntimeError, match="previous error"):
        CudaRecorder(DEVICE).record(lambda: None)
    assert recordings(played) == ["begin (0, 1)", "free 1 (0, 1)", "begin (0, 2)", "free 1 (0, 2)"]
    assert played.current == "caller's"


def test_memory_of_a_recording_that_failed_can_be_given_back(play: Any) -> None:
    """Each recording that begins counts as a user of its pool; one that never ended would for ever."""
    played = play(failures=1)
    CudaRecorder(DEVICE).record(lambda: None)
    after = played.said.index("free 1 (0, 1)")
    assert played.said[after + 1] == "unused 1 (0, 1)"


def test_a_pool_that_was_not_begun_or_has_ended_is_not_released(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    played = play(failures=2)

    def refuse(index: int, pool: Any) -> None:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refuse)
    with pytest.raises(RuntimeError, match="previous error"):
        CudaRecorder(DEVICE).record(lambda: None)
    assert not [said for said in played.said if said.startswith("unused")]


def test_a_failure_spoils_no_later_recording(play: Any) -> None:
    played = play(failures=2)
    recorder = CudaRecorder(DEVICE)
    with pytest.raises(RuntimeError, match="previous error"):
        recorder.record(lambda: None)
    recorder.record(lambda: None)
    recorder.record(lambda: None)
    assert [said for said in played.said if said.startswith("end")] == ["end (0, 3)"] * 2


def test_the_call_before_a_recording_is_made_in_turn(play: Any) -> None:
    played = play(failures=0)
    recorder, began, calls = CudaRecorder(DEVICE), Event(), list[str]()

    def work() -> None:
        calls.append("made")
        began.set()

    with ThreadPoolExecutor(1) as pool:
        with recorder.in_turn():
            recording = pool.submit(recorder.record, work)
            assert not began.wait(0.05)
        recording.result()
    assert played.said[:3] == ["wait", "done", "after the last turn"]
    assert calls == ["made"] * 2


def test_memory_is_shared_unless_it_is_asked_for_alone(play: Any) -> None:
    played = play(failures=0)
    recorder = CudaRecorder(DEVICE)
    recorder.record(lambda: None)
    recorder.record(lambda: None, alone=True)
    recorder.record(lambda: None)
    assert [said for said in played.said if said.startswith("end")] == ["end (0, 1)", "end (0, 2)", "end (0, 1)"]


def test_there_is_one_for_each_device(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    play(failures=0)
    monkeypatch.setattr(CudaRecorder, "_of", {})
    other = torch.device("cuda", 0)
    assert CudaRecorder.of(DEVICE) is CudaRecorder.of(DEVICE) is not CudaRecorder.of(other)


def test_whoever_launches_waits_for_the_one_before(play: Any) -> None:
    played = play(failures=0)
    recorder = CudaRecorder(DEVICE)

    def launch(_: int) -> None:
        with recorder.in_turn():
            sleep(0.002)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(launch, range(40)))
    assert played.said == ["wait", "done"] * 40


def test_a_turn_ends_where_what_was_launched_fails(play: Any) -> None:
    played = play(failures=0)
    recorder = CudaRecorder(DEVICE)
    with pytest.raises(ValueError, match="no"), recorder.in_turn():
        raise ValueError("no")
    with recorder.in_turn():
        pass
    assert played.said == ["wait", "done"] * 2


def test_none_ends_while_another_is_in_use(play: Any) -> None:
    """The end of one would give back memory of cuBLAS that the others use (pytorch issue 193402)."""
    played = play(failures=0)
    recorder = CudaRecorder(DEVICE)
    (first, _), (second, _) = recorder.record(lambda: None), recorder.record(lambda: None)
    del first
    assert "gone" not in played.said
    third, _ = recorder.record(lambda: None)
    del second
    assert "gone" not in played.said
    third()
    del third
    assert played.said.count("gone") == 3


def test_one_that_failed_ends_with_the_others(play: Any) -> None:
    played = play(failures=0)
    recorder = CudaRecorder(DEVICE)
    first, _ = recorder.record(lambda: None)
    played.failures = 1
    second, _ = recorder.record(lambda: None)
    assert "gone" not in played.said
    del first, second
    assert played.said.count("gone") == 3


def test_one_that_goes_while_another_is_recorded_ends_later(play: Any) -> None:
    played = play(failures=0)
    recorder, mine = CudaRecorder(DEVICE), list[Any]()
    mine.append(recorder.record(lambda: None))
    second, _ = recorder.record(mine.clear)
    assert "gone" not in played.said
    del second
    assert played.said.count("gone") == 2


def test_one_alone_ends_when_it_is_given_up(play: Any) -> None:
    played = play(failures=0)
    recorder = CudaRecorder(DEVICE)
    shared, _ = recorder.record(lambda: None)
    alone, _ = recorder.record(lambda: None, alone=True)
    del alone
    assert played.said.count("gone") == 1
    shared()
