"""Layout: in which form a store keeps vectors, and how they are scored in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch

from ..embeddings import TokenEmbeddings
from ..errors import InputError
from ..scoring import StackedQueries, stack_queries
from .checks import finite_as
from .quantization import PackedBits, decode_int8, encode_int8

__all__ = ["PER_DOCUMENT", "Columns", "Layout", "part"]

Columns: TypeAlias = Mapping[str, torch.Tensor]
"""``vectors`` and ``codes`` with a row for each token, ``steps`` with an entry for each document."""

PER_DOCUMENT = frozenset({"steps"})
"""The columns with an entry for each document."""

# Rows of codes that are unpacked at once, on a CPU and on a GPU, which pays for each launch.
_UNPACKED_ROWS, _UNPACKED_ROWS_GPU = 2**15, 2**18
# A step is a float32; each document has one, so there may be as many as rows.
_STEP_BYTES = 4
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


def part(columns: Columns, documents: slice, rows: slice) -> dict[str, torch.Tensor]:
    """The columns of neighbouring documents, which have these rows, without a copy."""
    return {name: tensor[documents if name in PER_DOCUMENT else rows] for name, tensor in columns.items()}


@dataclass(frozen=True)
class Layout:
    """The form in which vectors are kept.

    Attributes:
        dim: Dimension of the vectors.
        dtype: Of vectors that are kept as they are.
        nbits: 8, 4 or 2: vectors are kept as codes of that many bits a dimension. None: as they are.
        keep_originals: With ``nbits``, whether they are kept as they are too, to score by.
    """

    dim: int
    dtype: Literal["float16", "float32"] = "float16"
    nbits: Literal[8, 4, 2] | None = None
    keep_originals: bool = False

    @cached_property
    def _bits(self) -> PackedBits | None:
        return PackedBits(self.nbits, self.dim) if self.nbits in (4, 2) else None

    @property
    def has_vectors(self) -> bool:
        """Whether vectors are kept as they are."""
        return self.nbits is None or self.keep_originals

    @property
    def bytes_per_token(self) -> int:
        """What a token costs in memory and on disk, in bytes."""
        return sum(tensor.shape[1] * tensor.element_size() for tensor in self._per_token(1, "meta").values())

    def bytes_of(self, rows: int) -> int:
        """What ``empty`` takes for so many rows, in bytes."""
        return rows * (self.bytes_per_token + (_STEP_BYTES if self.nbits == 8 else 0))

    def empty(self, rows: int, device: torch.device | str, *, pin: bool = False) -> dict[str, torch.Tensor]:
        """Make room for tokens.

        Args:
            rows: For how many.
            device: Where.
            pin: Whether host memory is pinned, so that a GPU can read it while it computes.

        Returns:
            A tensor for each column, its content undefined.
        """
        # What is made in inference mode can't be written to outside of it.
        with torch.inference_mode(False):
            columns = self._per_token(rows, device, pin)
            if self.nbits == 8:
                # A document has at least one token, so there are at most as many steps as rows.
                columns["steps"] = torch.empty(rows, dtype=torch.float32, device=device, pin_memory=pin)
        return columns

    def _per_token(self, rows: int, device: torch.device | str, pin: bool = False) -> dict[str, torch.Tensor]:
        shapes: dict[str, tuple[int, torch.dtype]] = {}
        if self.has_vectors:
            shapes["vectors"] = self.dim, _DTYPES[self.dtype]
        if self._bits is not None:
            shapes["codes"] = self._bits.width, torch.uint8
        elif self.nbits == 8:
            shapes["codes"] = self.dim, torch.int8
        return {
            name: torch.empty(rows, width, dtype=dtype, device=device, pin_memory=pin)
            for name, (width, dtype) in shapes.items()
        }

    @torch.no_grad()
    def encode(self, embeddings: TokenEmbeddings, names: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """Bring vectors into this form.

        Args:
            embeddings: The vectors, at least one for each document.
            names: Ids of the documents, for the error. Empty: it says their places.

        Returns:
            The columns.

        Raises:
            NonFiniteError: If a value is not finite, or too large for float16, which codes of few bits have as scale.
            InputError: If the dimension differs.
        """
        if embeddings.dim != self.dim:
            raise InputError(f"the store holds vectors of dim {self.dim}, not {embeddings.dim}")
        columns = dict[str, torch.Tensor]()
        if self.has_vectors:
            columns["vectors"] = finite_as(embeddings, self.dtype, names)
        if self._bits is not None:
            columns["codes"] = self._bits.encode(finite_as(embeddings, "float32", names))
        elif self.nbits == 8:
            columns["codes"], columns["steps"] = encode_int8(
                finite_as(embeddings, "float32", names), embeddings.offsets.diff()
            )
        return columns

    def decode(self, columns: Columns, lengths: torch.Tensor) -> torch.Tensor:
        """The best vectors that are kept.

        Args:
            columns: Some documents.
            lengths: Tokens of each, ``(documents,)`` int64.

        Returns:
            ``(tokens, dim)``; in ``dtype`` if kept as they are, else float32.
        """
        if self.has_vectors:
            return columns["vectors"]
        if self._bits is not None:
            return self._bits.decode(columns["codes"])
        return decode_int8(columns["codes"], columns["steps"], lengths)

    @torch.no_grad()  # a rotation that was made in inference mode could not be kept for a gradient
    def ready(self, queries: TokenEmbeddings) -> ReadyQueries:
        """Make queries ready to be scored against documents in this form.

        Args:
            queries: At least one query, float32.

        Returns:
            The queries, as they are and as codes need them.
        """
        plain = stack_queries(queries)
        if self._bits is None:
            return ReadyQueries(self, plain, plain)
        rotated = TokenEmbeddings(queries.values @ self._bits.rotation_on(queries.device), queries.offsets)
        return ReadyQueries(self, plain, stack_queries(rotated))


@dataclass(frozen=True)
class ReadyQueries:
    """Queries ready to be scored against documents in one layout.

    Attributes:
        layout: Of the documents.
        plain: For vectors as they are.
        coded: For codes; rotated where codes are.
    """

    layout: Layout
    plain: StackedQueries
    coded: StackedQueries

    @property
    def block_rows(self) -> int:
        """How many rows of documents are best scored at once."""
        kept = _DTYPES[self.layout.dtype] if self.layout.has_vectors else torch.float32
        rows = self.plain.block_rows(kept)
        if self.layout._bits is None or not self.coded.unpacks:
            return rows
        return min(rows, _UNPACKED_ROWS if self.plain.values.device.type == "cpu" else _UNPACKED_ROWS_GPU)

    def score(self, columns: Columns, lengths: torch.Tensor) -> torch.Tensor:
        """Score by the best vectors that are kept, ``(queries, documents)`` float32."""
        if self.layout.has_vectors:
            return self.plain.score(columns["vectors"], lengths)
        if self.layout._bits is not None:
            return self.coded.score_few_bits(columns["codes"], lengths, self.layout._bits)
        # Steps are positive, so they can wait for the sums.
        return self.plain.score(columns["codes"], lengths) * columns["steps"]

    def screen(self, columns: Columns, lengths: torch.Tensor) -> torch.Tensor:
        """Score by codes, the fastest way, ``(queries, documents)`` float32."""
        if self.layout._bits is not None:
            return self.coded.score_few_bits(columns["codes"], lengths, self.layout._bits)
        return self.coded.score_int8(columns["codes"], lengths, columns["steps"])
