"""StackedQueries: the token vectors of several queries as one matrix, to score block after block of documents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar, Protocol

import torch

from ..embeddings import TokenEmbeddings
from .blocks import Documents, as_int8

__all__ = ["FewBits", "StackedQueries"]


class FewBits(Protocol):
    """A form of vectors in 4 or 2 bits a coordinate: codes that stand for levels, and a scale in each row."""

    @property
    def nbits(self) -> int:
        """Bits of a code: 4 or 2."""

    @property
    def levels(self) -> torch.Tensor:
        """What each code stands for, ``(2**nbits,)`` float32 on the CPU."""

    def unpack(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels, ``(tokens, dim)``, and scales, ``(tokens,)``, of rows of bytes."""


class StackedQueries(ABC):
    """Queries made ready to be scored against many blocks of documents, by one thread at a time.

    There is a class for each engine; all agree within the rounding of the documents' dtype.

    Args:
        queries: At least one query.
        dtype: To compute in, float32 or float64.

    Attributes:
        lengths: Tokens of each query.
        values: Their vectors, ``(query_tokens, dim)``.
        unpacks: Whether vectors in few bits are copied as levels before they are scored.
    """

    unpacks: ClassVar[bool] = True

    def __init__(self, queries: TokenEmbeddings, dtype: torch.dtype = torch.float32) -> None:
        self.lengths = queries.lengths
        self.values = queries.values.to(dtype)  # (query_tokens, dim)

    @abstractmethod
    def block_rows(self, dtype: torch.dtype) -> int:
        """How many rows of documents of a dtype are best scored at once."""

    @abstractmethod
    def score(self, rows: Documents, lengths: torch.Tensor, row_scales: torch.Tensor | None = None) -> torch.Tensor:
        """Score a block of documents.

        ``scores[i, j] = sum_s max_t <queries[i][s], documents[j][t]>``

        Args:
            rows: Token vectors of the documents, ``(tokens, dim)`` or one such matrix each, any dtype. Half precision
                may be multiplied as such, the queries rounded to it.
            lengths: Tokens of each document, ``(documents,)`` int64, on the device of ``rows``.
            row_scales: What each row is to be multiplied by, ``(tokens,)``; cheaper here than on the rows, as a query
                has fewer tokens than a row has numbers. Only for packed rows. None: 1.

        Returns:
            ``(queries, documents)`` float32, summed up in the dtype of the queries; ``-inf`` for a document without
            tokens. A NaN in a vector makes its scores NaN.
        """

    @abstractmethod
    def score_int8(self, codes: torch.Tensor, lengths: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Score a block of int8 documents in integers: the fastest way, and approximate.

        ``scores[i, j] = steps[j] sum_s token_steps[s] max_t <int8(queries[i][s]), codes[j][t]>``

        Args:
            codes: Token vectors of the documents, ``(tokens, dim)`` int8.
            lengths: Tokens of each document, ``(documents,)`` int64, on the device of ``codes``.
            steps: What one step of each document is worth, ``(documents,)``.

        Returns:
            ``(queries, documents)`` float32; ``-inf`` for a document without tokens. The queries are rounded to int8
            too, which is what makes it approximate.
        """

    def score_few_bits(self, packed: torch.Tensor, lengths: torch.Tensor, bits: FewBits) -> torch.Tensor:
        """Score a block of documents in 4 or 2 bits.

        ``scores[i, j] = sum_s max_t scales[t] <queries[i][s], levels[codes[t]]>``

        Args:
            packed: Token vectors of the documents, ``(tokens, width)`` uint8: codes, the first coordinate in the lowest
                bits, filled up to whole bytes, and then the scale as float16.
            lengths: Tokens of each document, ``(documents,)`` int64, on the device of ``packed``.
            bits: Their form.

        Returns:
            As ``score``.
        """
        levels, scales = bits.unpack(packed)
        return self.score(levels, lengths, scales)

    @cached_property
    def _int8(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries as int8, ``(query_tokens, dim)``, and what one step of each token is worth."""
        return as_int8(self.values)
