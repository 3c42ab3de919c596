"""CudaRecorder: work recorded as CUDA graphs, one at a time in a process, for scoring and encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import ClassVar, TypeVar

import torch

__all__ = ["CudaRecorder"]

Out = TypeVar("Out")

# While one thread records, no other may wait for a whole device, and torch does so before it records.
_RECORDING = Lock()


class CudaRecorder:
    """Records on one stream of a device.

    cuBLAS keeps memory for each stream that it has worked on, for good, and recordings use it: so there is one stream,
    and recordings that multiply must run in turn.

    Args:
        device: A CUDA device, with its index.
    """

    _of: ClassVar[dict[torch.device, CudaRecorder]] = {}

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shared = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
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
            alone: Whether what it allocates is its own. If not, recordings share memory, and must run in turn.

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
        graph, stream, callers = torch.cuda.CUDAGraph(), self._stream, torch.cuda.current_stream(self._device)
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
                    out = work()
            except BaseException:
                # torch would take it for ever that a recording goes on, and free nothing.
                with suppress(Exception):
                    torch._C._cuda_endAllocateToPool(self._device.index, pool)
                # Nothing ends it for pinned memory (torch 2.11 and 2.12): this pool can't be begun again.
                if not alone:
                    self._shared = torch.cuda.graph_pool_handle()
                raise
        return graph.replay, out

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let one thread at a time launch what is within, to begin after what was launched so before."""
        with self._turn:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done.record(stream)
