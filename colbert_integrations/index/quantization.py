"""Vectors in few bits, without training: int8 with one step a document, and 4 or 2 bits after a fixed rotation."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ..errors import NonFiniteError

__all__ = ["PackedBits", "decode_int8", "encode_int8"]


def encode_int8(values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round vectors to int8, with one step size a document.

    ``code = round(value / step)``, ``step = max |value of the document| / 127``

    One step a document, not one a vector, since it can then be applied after the maximum over tokens: the product
    stays in integers.

    Args:
        values: Token vectors of all documents, ``(tokens, dim)`` float32.
        lengths: Tokens of each document, at least 1, ``(documents,)`` int64.

    Returns:
        Codes from -127 to 127, ``(tokens, dim)`` int8, and steps, ``(documents,)`` float32.
    """
    owner = torch.repeat_interleave(lengths, output_size=len(values))
    largest = values.new_zeros(len(lengths)).scatter_reduce_(0, owner, values.abs().amax(1), "amax")
    steps = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)  # a document of zeros: no division by zero
    return (values / steps[owner, None]).round_().to(torch.int8), steps


def decode_int8(codes: torch.Tensor, steps: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Undo ``encode_int8`` up to rounding.

    Args:
        codes: ``(tokens, dim)`` int8.
        steps: ``(documents,)`` float32.
        lengths: Tokens of each document, ``(documents,)`` int64.

    Returns:
        ``(tokens, dim)`` float32.
    """
    return codes * steps.repeat_interleave(lengths, output_size=len(codes))[:, None]


# The levels that lose least, in the square mean, of a standard normal variable; the negative ones mirror them.
_LEVELS = {
    2: (0.4528, 1.5104),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
}
_SCALE_BYTES = 2
# Rows that are encoded at once: 4 MiB of float32 at 128 dimensions.
_ENCODED_ROWS = 2**13


class _Tables(NamedTuple):
    """What vectors are encoded and decoded with, on one device.

    Attributes:
        rotation: ``(dim, dim)`` float32.
        levels: The levels, ``(2**nbits,)`` float32.
        of_bytes: Those of each byte of codes, in float16 as one integer, ``(256,)``.
        codes: Those of each float16, by its bits, ``(65536,)`` uint8.
    """

    rotation: torch.Tensor
    levels: torch.Tensor
    of_bytes: torch.Tensor
    codes: torch.Tensor


class PackedBits:
    """Vectors as 4 or 2 bits a dimension and a scale, all in one row of bytes.

    A fixed random rotation makes the coordinates of any vector look like a normal variable, so one table of levels
    serves all models and nothing is trained. Dot products are the same in the rotated space: searches rotate the
    query, never the documents.

    Args:
        nbits: 4 or 2.
        dim: Dimension of the vectors.

    Attributes:
        levels: What each code stands for, ``(2**nbits,)`` float32.
        rotation: ``(dim, dim)`` float32.

    Source:
        Levels: Max 1960, "Quantizing for Minimum Distortion", table I. The rotation before scalar quantisation:
        Zandieh et al. 2025 (TurboQuant), arXiv:2504.19874.
    """

    def __init__(self, nbits: int, dim: int) -> None:
        positive = torch.tensor(_LEVELS[nbits], dtype=torch.float32, device="cpu")
        best = torch.cat([-positive.flip(0), positive])  # (2**nbits,)
        self.levels = best.half().float()  # as they are unpacked
        self.rotation = _rotation(dim)  # (dim, dim)
        self.nbits, self.dim = nbits, dim
        self._per_byte = 8 // nbits
        self._code_bytes = -(-dim // self._per_byte)
        self.width = self._code_bytes + _SCALE_BYTES
        halves = torch.arange(2**16, device="cpu").to(torch.uint16).view(torch.float16)
        codes = torch.bucketize(halves.float(), (best[1:] + best[:-1]) / 2).to(torch.uint8)
        self._tables = {torch.device("cpu"): _Tables(self.rotation, self.levels, self._byte_table(), codes)}

    def _byte_table(self) -> torch.Tensor:
        """The float16 levels in each byte, seen as one integer: a look-up then moves 4 or 8 bytes at once."""
        shifts = torch.arange(self._per_byte, device="cpu") * self.nbits
        places = (torch.arange(256, device="cpu")[:, None] >> shifts) & (2**self.nbits - 1)
        wide = torch.int32 if self._per_byte == 2 else torch.int64
        return self.levels[places].half().view(wide).view(256)

    def rotation_on(self, device: torch.device) -> torch.Tensor:
        """``rotation`` on a device."""
        return self._on(device).rotation

    def _on(self, device: torch.device) -> _Tables:
        """What is needed on a device: sent once, since a GPU is waited for each time."""
        if device not in self._tables:
            here = self._tables[torch.device("cpu")]
            self._tables[device] = _Tables(*(table.to(device) for table in here))
        return self._tables[device]

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Rotate, scale and round vectors.

        Args:
            values: ``(tokens, dim)`` float32.

        Returns:
            ``(tokens, width)`` uint8: the codes, first dimension in the lowest bits, then the scale as float16.

        Raises:
            NonFiniteError: If a vector is too long for a float16 scale.
        """
        # In parts that stay in a CPU's caches, and take little memory beside them: all at once took over twice as long.
        packed = torch.cat([self._encode(part) for part in torch.split(values, _ENCODED_ROWS)])
        if not torch.isfinite(self._scales(packed)).all():
            raise NonFiniteError(f"a vector is too long for {self.nbits} bits, whose scales are float16")
        return packed

    def _encode(self, values: torch.Tensor) -> torch.Tensor:
        rotated = values @ self.rotation_on(values.device)
        norms = rotated.norm(dim=1, keepdim=True)
        unit = rotated * (self.dim**0.5 / norms.clamp_min(1e-12))
        # By float16 and a table: a tenth of the time of a search among the boundaries, which was half of all.
        halves = unit.half().view(torch.int16).flatten().int() & 0xFFFF
        tables = self._on(values.device)
        places = tables.codes.index_select(0, halves)  # (tokens * dim,), from 0 to 2**nbits - 1
        # Not the scale of least squares, which shortens a vector: keeping the norm keeps cosines comparable.
        rounded = tables.levels.index_select(0, places.int()).view_as(unit)
        scales = (norms / rounded.norm(dim=1, keepdim=True)).half()
        return torch.cat([self._pack(places.view_as(unit)), scales.view(torch.uint8)], dim=1)

    def _pack(self, places: torch.Tensor) -> torch.Tensor:
        missing = self._code_bytes * self._per_byte - self.dim
        padded = torch.nn.functional.pad(places, (0, missing)).view(len(places), self._code_bytes, self._per_byte)
        packed = padded[..., 0].clone()
        for place in range(1, self._per_byte):
            packed |= padded[..., place] << place * self.nbits
        return packed

    def unpack(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors as they are searched: rotated, and apart from their scales.

        Args:
            packed: ``(tokens, width)`` uint8.

        Returns:
            Levels, ``(tokens, dim)`` float16, and scales, ``(tokens,)`` float32.
        """
        codes = packed[:, : self._code_bytes].reshape(-1).int()
        levels = self._on(packed.device).of_bytes.index_select(0, codes).view(len(packed), self._code_bytes)
        return levels.view(torch.float16)[:, : self.dim], self._scales(packed).float()

    def _scales(self, packed: torch.Tensor) -> torch.Tensor:
        return packed[:, self._code_bytes :].flatten().clone().view(torch.float16)  # copied: it may lie at an odd byte

    def decode(self, packed: torch.Tensor) -> torch.Tensor:
        """Undo ``encode`` up to rounding.

        Args:
            packed: ``(tokens, width)`` uint8.

        Returns:
            ``(tokens, dim)`` float32.
        """
        levels, scales = self.unpack(packed)
        return (levels.float() * scales[:, None]) @ self.rotation_on(packed.device).T


@lru_cache(maxsize=8)
def _rotation(dim: int) -> torch.Tensor:
    """A random rotation, the same on every machine, ``(dim, dim)`` float32."""
    # RandomState's stream is frozen by numpy's promise, and a positive diagonal makes the factor unique: an index
    # that one machine wrote is read by another.
    gaussian = np.random.RandomState(0).standard_normal((dim, dim))
    orthonormal, triangle = np.linalg.qr(gaussian)
    return torch.from_numpy(orthonormal * np.sign(np.diag(triangle))).float()
