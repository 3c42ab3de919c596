"""TokenEmbeddings: a packed, ragged batch of token vectors, the one data type that travels between rooms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import overload

import numpy as np
import torch

from .checks import as_list
from .devices import no_autocast
from .errors import InputError, ShapeError

__all__ = ["TokenEmbeddings", "check_tensor", "offsets_of"]


class TokenEmbeddings:
    """Token vectors of n texts in one matrix, without padding.

    ``embeddings[i] = values[offsets[i] : offsets[i + 1]]``

    Args:
        values: Token vectors of all texts, one after another, ``(total_tokens, dim)``, any dtype. Made contiguous
            if it is not.
        offsets: Where each text begins, ``(n + 1,)`` int64, from 0 to ``total_tokens``, never falling. A text may
            have no tokens. Moved to the device of ``values``.

    Raises:
        InputError: If either is not a plain tensor: dense, of real numbers, with data.
        ShapeError: If ``values`` is not a matrix or ``offsets`` does not describe it.

    Example:
        >>> import torch
        >>> batch = TokenEmbeddings(torch.eye(3), torch.tensor([0, 1, 3]))
        >>> batch
        TokenEmbeddings(n=2, tokens=3, dim=3, dtype=float32, device=cpu)
        >>> batch[1].tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def __init__(self, values: torch.Tensor, offsets: torch.Tensor) -> None:
        check_tensor("values", values)
        check_tensor("offsets", offsets)
        if values.ndim != 2:
            raise ShapeError(f"values must have shape (total_tokens, dim), not {tuple(values.shape)}")
        if offsets.ndim != 1 or offsets.numel() == 0 or offsets.dtype != torch.int64:
            raise ShapeError(f"offsets must be int64 of shape (n + 1,), not {offsets.dtype} {tuple(offsets.shape)}")
        bounds = offsets.tolist()
        if bounds[0] != 0 or bounds[-1] != len(values) or any(a > b for a, b in pairwise(bounds)):
            raise ShapeError(
                f"offsets must rise from 0 to {len(values)} (the rows of values), not {bounds[:4]}...{bounds[-1]}"
            )
        self.values = values.contiguous()
        self.offsets = offsets.to(values.device)
        # Kept as Python ints: slicing by a CUDA offset would synchronise with the device at every access.
        self._bounds: list[int] = bounds

    @classmethod
    def from_list(cls, matrices: Iterable[torch.Tensor | np.ndarray], dim: int | None = None) -> TokenEmbeddings:
        """Pack one matrix per text.

        Args:
            matrices: One ``(num_tokens_i, dim)`` tensor or array per text, all of one dtype, on one device; a list, a
                generator or one ``(n, num_tokens, dim)`` tensor.
            dim: Dimension of the vectors. None: that of the first matrix; needed for an empty list.

        Returns:
            The packed batch, a text for each matrix, of the dtype and device of the matrices.

        Raises:
            InputError: If ``matrices`` is no list or the like, a matrix neither a plain tensor nor an array of
                numbers, or they are on several devices.
            ShapeError: If a matrix is not 2-D or the dimensions differ, or if the list is empty and ``dim`` is None.

        Example:
            >>> TokenEmbeddings.from_list([torch.ones(2, 4), torch.ones(0, 4)]).lengths
            [2, 0]
        """
        given = as_list("matrices", matrices)
        if not given:
            if dim is None:
                raise ShapeError("an empty list has no dimension: pass dim=")
            return cls(
                torch.empty(0, dim, dtype=torch.float32, device="cpu"), torch.zeros(1, dtype=torch.int64, device="cpu")
            )
        packed = [_as_tensor(f"matrix {position}", matrix) for position, matrix in enumerate(given)]
        for position, matrix in enumerate(packed):
            if matrix.ndim != 2 or dim not in (None, matrix.shape[1]):
                wanted = "dim" if dim is None else dim
                raise ShapeError(f"matrix {position} must have shape (num_tokens, {wanted}), not {tuple(matrix.shape)}")
            dim = matrix.shape[1]
        lengths = torch.tensor([0, *map(len, packed)], dtype=torch.int64, device="cpu")
        return cls(_joined(packed), lengths.cumsum(0))

    @classmethod
    def concat(cls, batches: Iterable[TokenEmbeddings]) -> TokenEmbeddings:
        """Join batches into one, in order.

        Args:
            batches: At least one batch; all of one dimension, dtype and device.

        Returns:
            One batch with the texts of all.

        Raises:
            InputError: If ``batches`` is empty, no list or the like of batches, or they are on several devices.
            ShapeError: If the dimensions differ.
        """
        batches = as_list("batches", batches)
        for position, batch in enumerate(batches):
            if not isinstance(batch, TokenEmbeddings):
                raise InputError(f"batches[{position}] must be TokenEmbeddings, not {type(batch).__name__}")
        if not batches:
            raise InputError("concat needs at least one TokenEmbeddings")
        if len({batch.dim for batch in batches}) > 1:
            raise ShapeError(f"can't join dimensions {sorted({batch.dim for batch in batches})}")
        lengths = [0, *(length for batch in batches for length in batch.lengths)]
        values = _joined([batch.values for batch in batches])
        return cls(values, torch.tensor(lengths, dtype=torch.int64, device="cpu").cumsum(0))

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the vectors."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Device of the vectors and the offsets."""
        return self.values.device

    @property
    def lengths(self) -> list[int]:
        """Number of token vectors of each text, n Python ints, in a new list."""
        return list(self._lengths)

    @cached_property
    def _lengths(self) -> list[int]:
        return [b - a for a, b in pairwise(self._bounds)]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TokenEmbeddings:
        """Copy to another device or dtype; no copy where nothing changes.

        Args:
            device: Where to. None: stay.
            dtype: Of the vectors; the offsets stay int64. None: unchanged.

        Returns:
            A batch with the same texts.
        """
        values, offsets = self.values.to(device=device, dtype=dtype), self.offsets.to(device=device)
        return self if values is self.values and offsets is self.offsets else TokenEmbeddings(values, offsets)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> TokenEmbeddings: ...

    def __getitem__(self, index: int | slice) -> torch.Tensor | TokenEmbeddings:
        if isinstance(index, slice):
            return self._slice(index)
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return self.values[self._bounds[position] : self._bounds[position + 1]]  # (num_tokens_i, dim), a view

    def _slice(self, index: slice) -> TokenEmbeddings:
        start, stop, step = index.indices(len(self))
        if (start, stop, step) == (0, len(self), 1):
            return self
        if step != 1:
            chosen = [self[i] for i in range(start, stop, step)]
            return TokenEmbeddings.from_list(chosen, self.dim) if chosen else self[:0]
        bounds = self._bounds[start : max(start, stop) + 1]
        values = self.values[bounds[0] : bounds[-1]]
        return TokenEmbeddings(values, torch.tensor(bounds, dtype=torch.int64, device="cpu") - bounds[0])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"TokenEmbeddings(n={len(self)}, tokens={len(self.values)}, dim={self.dim}, dtype={dtype}, "
            f"device={self.device})"
        )


def offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    """Where entries of these lengths begin, one after another, and the last one ends.

    Args:
        lengths: Of each entry, ``(n,)`` int64.

    Returns:
        ``(n + 1,)`` int64, on the same device.

    Example:
        >>> offsets_of(torch.tensor([3, 0, 2])).tolist()
        [0, 3, 3, 5]
    """
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _joined(matrices: list[torch.Tensor]) -> torch.Tensor:
    devices = dict.fromkeys(matrix.device for matrix in matrices)
    if len(devices) > 1:
        raise InputError(
            f"all vectors must be on one device, not on {' and '.join(map(str, devices))}: move them with .to()"
        )
    with no_autocast(matrices[0].device):  # within which torch can't join float16
        return torch.cat(matrices)


def _as_tensor(name: str, given: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A tensor that ``check_tensor`` lets pass as it is, an array of numbers as a copy on the CPU."""
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "biuf" or given.itemsize > 8:
            raise InputError(f"{name} must be an array of real numbers, not of {given.dtype}")
        # Of any strides and byte order, of which torch takes few.
        return torch.tensor(np.ascontiguousarray(given, given.dtype.newbyteorder("=")), device="cpu")
    check_tensor(name, given)
    return given


def check_tensor(name: str, given: object) -> None:
    """Refuse anything but a plain tensor: complex numbers would lose a part, and other kinds can't be multiplied."""
    if not isinstance(given, torch.Tensor):
        raise InputError(f"{name} must be a tensor, not {type(given).__name__}")
    if given.layout != torch.strided or given.is_complex() or given.is_quantized or given.is_meta:
        what = f"{given.dtype}, {given.layout}, on {given.device}"
        raise InputError(f"{name} must be a dense tensor of real numbers, not one of {what}")
