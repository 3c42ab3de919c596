"""CudaRecorder: work recorded as CUDA graphs, one at a time in a process, for scoring and encoding."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from threading import Lock
from typing import ClassVar, TypeVar

import torch

__all__ = ["CudaRecorder"]

Out = TypeVar("Out")

# While one thread records, no other may wait for a whole device, and torch does so before it records.
_RECORDING = Lock()


class CudaRecorder:
    """Records on one stream of a device, or two.

    cuBLAS keeps memory for each stream that it has worked on, for good, and recordings use it: so there is one stream
    for all that multiply, and they must run in turn. From torch 2.12 or 2.13 on, a recording that ends gives back this
    memory of its stream, which the others still use (pytorch issue 193402): so none of them ends before all are given
    up. What multiplies nothing is recorded on a stream of its own, and ends when it is given up.

    Args:
        device: A CUDA device, with its index.
    """

    _of: ClassVar[dict[torch.device, CudaRecorder]] = {}

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shared = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream_alone = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._numbers = count()
        self._used: dict[int, torch.cuda.CUDAGraph] = {}  # those on the shared stream, by number
        self._given_up = list[torch.cuda.CUDAGraph]()
        self._turn, self._done = Lock(), torch.cuda.Event()  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, device: torch.device) -> CudaRecorder:
        """The one of a device that everybody shares.

        Args:
            device: A CUDA device, with its index.

        Returns:
            The same object for the same device.
        """
        return cls._of.get(device) or cls._of.setdefault(device, cls(device))

    def record(self, work: Callable[[], Out], *, alone: bool = False) -> tuple[Callable[[], object], Out]:
        """Record a call. It is made twice, or four times; the device must be the current one.

        Args:
            work: Reads and writes the same memory each time, and does not wait.
            alone: Whether what it allocates is its own, and it multiplies nothing by cuBLAS. If not, recordings share
                memory, and must run in turn.

        Returns:
            What does it again, and the tensors that each time hold what comes out.

        Raises:
            Exception: Of torch, CUDA or ``work``, twice in a row.
        """
        try:
            return self._record(work, alone)
        except Exception:  # mostly, another thread waited for the device; and a success clears what torch has left set
            return self._record(work, alone)

    def _record(self, work: Callable[[], Out], alone: bool) -> tuple[Callable[[], object], Out]:
        graph = torch.cuda.CUDAGraph()
        if alone:
            return graph.replay, self._capture(graph, work, alone)
        number = next(self._numbers)
        self._used[number] = graph
        try:
            out = self._capture(graph, work, alone)
        except BaseException:
            self._give_up(number)
            raise
        replay = _Replay(graph)
        weakref.finalize(replay, self._give_up, number).atexit = False
        return replay, out

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Callable[[], Out], alone: bool) -> Out:
        stream, callers = self._stream_alone if alone else self._stream, torch.cuda.current_stream(self._device)
        # A context around torch's own, which leaves the thread on the stream where recording fails.
        with _RECORDING, torch.cuda.stream(stream):
            pool = torch.cuda.graph_pool_handle() if alone else self._shared
            stream.wait_stream(callers)
            with self._turn:  # it multiplies in the memory of this stream, as recordings do that are launched meanwhile
                stream.wait_event(self._done)
                work()  # compiles and allocates what a recording must not
                stream.synchronize()
            try:
                # Other threads may use the device meanwhile.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    return work()
            except BaseException:
                # torch would believe for ever that a recording goes on, and that this one uses the pool, and would free
                # nothing.
                with suppress(Exception):
                    torch._C._cuda_endAllocateToPool(self._device.index, pool)
                    torch._C._cuda_releasePool(self._device.index, pool)  # not where torch had ended it
                # For pinned memory nothing ends it (torch 2.11 and 2.12): no other recording can use this pool.
                if not alone:
                    self._shared = torch.cuda.graph_pool_handle()
                raise

    def _give_up(self, number: int) -> None:
        """End all recordings on the shared stream if this was the last one in use.

        Called wherever an object happens to go, so it waits for no lock. Whoever records on this device has a recording
        in use anyway; where another device holds the lock, they end the next time.
        """
        self._given_up.append(self._used.pop(number))
        if _RECORDING.acquire(blocking=False):
            try:
                if not self._used:
                    self._given_up.clear()
            finally:
                _RECORDING.release()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let one thread at a time launch what is within; it begins after what was launched in turn before."""
        with self._turn:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done.record(stream)


class _Replay:
    """Does what was recorded again; it is in use as long as anybody holds this."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def __call__(self) -> None:
        self._graph.replay()
