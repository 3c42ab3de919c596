"""TritonOrTorchQueries: MaxSim on an NVIDIA GPU, by the Triton kernel where it takes the documents, else by torch."""

from __future__ import annotations

import torch

from ..embeddings import TokenEmbeddings, offsets_of
from .blocks import Documents
from .torch_alone import TorchQueries
from .triton import TritonQueries, supports

__all__ = ["TritonOrTorchQueries"]

# What the Triton kernel scores besides int8: float32 would not use tensor cores, and cuBLAS multiplies it as well.
_HALVES = (torch.float16, torch.bfloat16)
# The kernel keeps no similarities: few calls are best.
_MOST_ROWS = 2**20


class TritonOrTorchQueries(TorchQueries):
    """Queries on a device of CUDA, where Triton is tried by the first documents that it may score.

    Args:
        queries: At least one query, float32.
    """

    def __init__(self, queries: TokenEmbeddings) -> None:
        super().__init__(queries)
        self._queries = queries
        self._triton: dict[torch.dtype, TritonQueries] = {}

    def block_rows(self, dtype: torch.dtype) -> int:
        """See ``StackedQueries``."""
        return _MOST_ROWS if self._by_triton(dtype) else super().block_rows(dtype)

    @torch.no_grad()
    def score(self, rows: Documents, lengths: torch.Tensor, row_scales: torch.Tensor | None = None) -> torch.Tensor:
        """See ``StackedQueries``."""
        rows = rows if isinstance(rows, torch.Tensor) else torch.cat(list(rows))
        if row_scales is None and self._by_triton(rows.dtype):
            return self._triton_for(rows.dtype).score(rows.contiguous(), offsets_of(lengths))
        return super().score(rows, lengths, row_scales)

    @torch.no_grad()
    def score_int8(self, codes: torch.Tensor, lengths: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """See ``StackedQueries``."""
        if not supports(self.values.shape[1], torch.int8, self.values.device):
            return super().score_int8(codes, lengths, steps)
        queries = self._triton_for(torch.int8)
        return queries.score(codes.contiguous(), offsets_of(lengths), steps.float().contiguous())

    def _by_triton(self, dtype: torch.dtype) -> bool:
        return dtype in _HALVES and supports(self.values.shape[1], dtype, self.values.device)

    def _triton_for(self, dtype: torch.dtype) -> TritonQueries:
        if dtype not in self._triton:
            self._triton[dtype] = TritonQueries(self._queries, dtype)
        return self._triton[dtype]
