"""ShortForward: the forward pass of one short sequence as CUDA graphs, since launching costs more than it computes."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import numpy as np
import torch

from ...devices import no_autocast, ready, send
from ..tokens import TokenSequence
from .runs import Runs
from .triton_attention import Blocks

__all__ = ["ForwardPass", "Recorder", "ShortForward"]

_log = logging.getLogger(__name__)

# Ids, positions and sequences to one vector for each token.
ForwardPass: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Runs], torch.Tensor]
# A few, so that a query is padded by little and no more graphs than these are held. None is longer than one block of
# attention.
_SIZES = (16, 32, 48, 64)


class Recorder(Protocol):
    """Records what a device does, to have it done again by one launch; see ``CudaRecorder``."""

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        """Record a call: what does it again, and the tensor that each time holds what comes out."""
        ...

    def in_turn(self) -> AbstractContextManager[object]:
        """Let one thread at a time launch what is within; it begins after what was launched in turn before."""
        ...


class ShortForward:
    """The forward pass of one sequence of up to 64 tokens, recorded beforehand for a few lengths.

    Safe between threads, which take turns. Where recording fails that is logged, and nothing is taken.

    Args:
        run: The forward pass.
        device: Where the model is.
        recorder: Records it.
        longest: How many tokens the model has positions for.
    """

    def __init__(self, run: ForwardPass, device: torch.device, recorder: Recorder, longest: int) -> None:
        self._recorder = recorder
        self._recorded: list[_Recorded] = []
        # Not when the first query comes: whoever waited for the whole device just then would see an error.
        try:
            # What is made in inference mode can't be written to outside of it; autocast would be recorded for good.
            with torch.inference_mode(False), torch.no_grad(), no_autocast(device):
                self._recorded = [_Recorded(run, size, device, recorder) for size in _SIZES if size <= longest]
        except Exception as error:  # of torch, CUDA or a compiler: whatever it is, the work can be done without
            _log.warning("short texts are encoded without CUDA graphs, which can't be recorded: %s", error)

    def __call__(self, sequence: TokenSequence) -> torch.Tensor | None:
        """Run one sequence.

        Args:
            sequence: Of any length.

        Returns:
            One vector for each of its tokens, ``(tokens, dim)``; None if it is not taken.
        """
        place = bisect_left(_SIZES, len(sequence.ids))
        if not sequence.ids or place >= len(self._recorded):
            return None
        with self._recorder.in_turn():
            return self._recorded[place](sequence)


class _Recorded:
    """A recording for sequences of up to ``size`` tokens.

    A sequence's own numbers are read from memory: its ids, and how far its tokens see and are seen. What is computed
    behind its end is seen by nobody, and cut off.
    """

    def __init__(self, run: ForwardPass, size: int, device: torch.device, recorder: Recorder) -> None:
        self._size, self._device = size, device
        self._numbers = send(_numbers(size, [0] * size, size), device)
        ids, bounds, attended = self._numbers.split_with_sizes([size, 2, 1])
        # One sequence, which is no longer than a block.
        alone = Runs((), Blocks(bounds, attended, torch.zeros(1, 2, dtype=torch.int32, device=device)))
        positions = torch.arange(size, dtype=torch.int32, device=device)  # as in batches: another dtype compiles anew
        self._read = (ids, positions, alone)  # the graph holds addresses, so they must live as long
        self._replay, self._out = recorder.record(lambda: run(ids, positions, alone))

    def __call__(self, sequence: TokenSequence) -> torch.Tensor:
        numbers = _numbers(self._size, sequence.ids, sequence.attended)
        self._numbers.copy_(ready(numbers, self._device), non_blocking=True)
        self._replay()
        return self._out[: len(sequence.ids)].clone()  # (tokens, dim)


def _numbers(size: int, ids: list[int], attended: int) -> np.ndarray:
    """Ids up to a size, where the sequence begins and ends, and how far it is seen, ``(size + 3,)`` int32."""
    return np.array([*ids, *[0] * (size - len(ids)), 0, len(ids), attended], dtype=np.int32)
