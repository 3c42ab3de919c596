"""The runs of a batch: its sequences, those of one shape together, and what attention needs to know of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from .triton_attention import Blocks, divide

__all__ = ["Run", "Runs"]


class Run(NamedTuple):
    """Neighbouring sequences of one shape.

    Attributes:
        first: Row of their first token.
        sequences: How many there are.
        length: Tokens of each.
        attended: How many leading tokens of each may be attended to.
    """

    first: int
    sequences: int
    length: int
    attended: int


class Runs:
    """All sequences of a batch. What attention needs to know of them is made once, not in every layer.

    Args:
        runs: In the order of their rows.
        blocks: The same for a GPU, where they are there already. None: made when they are asked for.
    """

    def __init__(self, runs: Sequence[Run], blocks: Blocks | None = None) -> None:
        self._runs = tuple(runs)
        self._bands: dict[tuple[int, int, int], torch.Tensor] = {}
        self._blocks = blocks

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    @cached_property
    def bounds(self) -> torch.Tensor:
        """Where sequences begin and the last one ends, ``(sequences + 1,)`` int64."""
        return torch.from_numpy(np.concatenate([[0], self._of_each("length")]).cumsum())

    @cached_property
    def attended(self) -> torch.Tensor:
        """How many leading tokens of each sequence may be attended to, ``(sequences,)`` int64."""
        return torch.from_numpy(self._of_each("attended"))

    def _of_each(self, name: str) -> np.ndarray:
        """What runs say of their sequences, ``(sequences,)`` int64."""
        values = [getattr(run, name) for run in self]
        return np.array(values, dtype=np.int64).repeat([run.sequences for run in self])

    def blocks(self, device: torch.device) -> Blocks:
        """``Blocks`` of these sequences on a GPU, made once."""
        if self._blocks is None:
            self._blocks = divide(self.bounds, self.attended, device)
        return self._blocks

    def band(self, run: Run, window: int | None) -> torch.Tensor | None:
        """Which token of a sequence sees which, ``(length, attended)`` bool; None if every one sees all."""
        if window is None or run.length <= window + 1:
            return None
        shape = run.length, run.attended, window
        if shape not in self._bands:
            queries, keys = (torch.arange(number, device="cpu") for number in (run.length, run.attended))
            self._bands[shape] = (queries[:, None] - keys[None, :]).abs() <= window
        return self._bands[shape]
