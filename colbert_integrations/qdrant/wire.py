"""Vectors on the way to a server: as JSON in as few digits as give them back, or as binary floats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

__all__ = ["Wire"]

_TORCH = {"float16": torch.float16, "float32": torch.float32}
# Longest text of a number with the comma after it, as in "-1.23456e-05," and "-0.0001234567891,"; one nearer to 0 than
# 1e-12 may take a few more.
_TEXT_BYTES = {"float16": 13, "float32": 18}
_BINARY_BYTES, _ROW_BYTES = 4, 3
_FLOAT16S = 2**16
# A float32's exponents as frexp has them, and the first of them.
_EXPONENTS, _LOWEST = 280, -150


@dataclass(frozen=True)
class Wire:
    """How vectors travel.

    Attributes:
        dtype: What the server keeps.
        text: Whether requests are JSON, or else binary.
    """

    dtype: Literal["float16", "float32"]
    text: bool

    @property
    def exact(self) -> Wire:
        """The same for what the server keeps to the last digit: queries, and vectors of a first stage."""
        return replace(self, dtype="float32")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same for torch."""
        return _TORCH[self.dtype]

    def size_of(self, vectors: torch.Tensor) -> int:
        """Bytes that vectors take in a request, at most."""
        rows = vectors.shape[0] if vectors.ndim == 2 else 1
        return vectors.numel() * (_TEXT_BYTES[self.dtype] if self.text else _BINARY_BYTES) + rows * _ROW_BYTES

    def numbers(self, vectors: torch.Tensor) -> list[Any]:
        """Vectors as lists of floats, which the server reads as what they are in its dtype.

        Args:
            vectors: A matrix or one vector, on the CPU.

        Returns:
            The same in lists, in JSON's fewest digits.
        """
        kept = vectors.detach().to(self.torch_dtype).numpy()
        if not self.text:
            return list(kept.astype(np.float32).tolist())
        # Twenty digits of a float64 for what a float16 or float32 says in five or nine would double every request.
        short = _short_float16s()[kept.view(np.uint16)] if self.dtype == "float16" else _short(kept, 9)
        return list(short.tolist())


@cache
def _short_float16s() -> np.ndarray[Any, np.dtype[np.float64]]:
    """All numbers of float16 in five digits."""
    every = np.arange(_FLOAT16S, dtype=np.uint16).view(np.float16).astype(np.float32)
    return _short(np.where(np.isfinite(every), every, 0), 5)


def _short(values: np.ndarray[Any, Any], digits: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Values rounded to some digits, or one more, as float64, whose text is as short."""
    _, exponents = np.frexp(values)
    scales = _scales(digits)[exponents - _LOWEST]
    short: np.ndarray[Any, np.dtype[np.float64]] = np.rint(values.astype(np.float64) * scales) / scales
    return short


@cache
def _scales(digits: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """For each exponent the power of ten that brings ``digits`` digits in front of the point."""
    exponents = np.arange(_EXPONENTS) + _LOWEST
    scales: np.ndarray[Any, np.dtype[np.float64]] = 10.0 ** (digits - 1 - np.floor((exponents - 1) * np.log10(2)))
    return scales
