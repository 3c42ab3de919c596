"""StackedQueries: the token vectors of several queries as one matrix, to score block after block of documents."""

from __future__ import annotations

import torch

from .. import kernel as compiled
from ..devices import cpu
from ..embeddings import TokenEmbeddings, offsets_of
from ..kernel import STORAGES, Arithmetic, Kernel
from .blocks import Documents, as_int8, take_maxima
from .compiled import CompiledQueries
from .onednn import OneDNNQueries, is_available
from .triton import TritonQueries, supports

__all__ = ["StackedQueries", "engine_for"]

# Whole similarities alive at once, where neither kernel nor oneDNN do it: 2**20 float32 = 4 MiB.
_BLOCK_ELEMENTS, _FEWEST_ROWS, _MOST_ROWS = 2**20, 512, 8192
# A GPU has other caches and pays for each launch.
_BLOCK_ELEMENTS_GPU, _MOST_ROWS_GPU = 2**27, 2**18
# The compiled kernel and Triton's keep no similarities: few calls are best.
_MOST_ROWS_KERNEL = 2**20
# What the Triton kernel scores besides int8: float32 would not use tensor cores, and cuBLAS multiplies it as well.
_HALVES = (torch.float16, torch.bfloat16)


class StackedQueries:
    """Queries made ready to be scored against many blocks of documents, by one thread at a time.

    On a CPU the compiled kernel does it where it is installed, on a GPU the Triton kernel for documents in half
    precision or int8, and torch does the rest; all agree within the rounding of the documents' dtype.

    Args:
        queries: At least one query.
        dtype: To compute in, float32 or float64.
    """

    def __init__(self, queries: TokenEmbeddings, dtype: torch.dtype = torch.float32) -> None:
        self.lengths, self._queries = queries.lengths, queries
        self.values = queries.values.to(dtype)  # (query_tokens, dim)
        on_cpu = self.values.device.type == "cpu" and dtype == torch.float32 and self.values.numel() > 0
        self._kernel = compiled.load() if on_cpu else None
        self._compiled: dict[Arithmetic, CompiledQueries] = {}
        self._compiled_codes: CompiledQueries | None = None
        self._triton: dict[torch.dtype, TritonQueries] = {}
        self._onednn = OneDNNQueries(self.values) if on_cpu and self._kernel is None and is_available() else None
        self._onednn_codes: OneDNNQueries | None = None
        self._int8: tuple[torch.Tensor, torch.Tensor] | None = None

    def block_rows(self, dtype: torch.dtype) -> int:
        """How many rows of documents of a dtype are best scored at once."""
        tokens = max(1, len(self.values))
        if self._kernel is not None or self._by_triton(dtype):
            return _MOST_ROWS_KERNEL
        if self._onednn is not None:
            return self._onednn.block_rows
        if self.values.device.type == "cpu":
            return max(_FEWEST_ROWS, min(_MOST_ROWS, _BLOCK_ELEMENTS // tokens))
        return max(_FEWEST_ROWS, min(_MOST_ROWS_GPU, _BLOCK_ELEMENTS_GPU // tokens))

    @torch.no_grad()
    def score(self, rows: Documents, lengths: torch.Tensor, row_scales: torch.Tensor | None = None) -> torch.Tensor:
        """Score a block of documents.

        ``scores[i, j] = sum_s max_t <queries[i][s], documents[j][t]>``

        Args:
            rows: Token vectors of the documents, ``(tokens, dim)`` or one such matrix each, any dtype. Half precision
                may be multiplied as such, the queries rounded to it.
            lengths: Tokens of each document, ``(documents,)`` int64, on the device of ``rows``.
            row_scales: What each row is to be multiplied by, ``(tokens,)``; cheaper here than on the rows, as a query
                has fewer tokens than a row has numbers. None: 1.

        Returns:
            ``(queries, documents)`` float32, summed up in the dtype of the queries; ``-inf`` for a document without
            tokens. A NaN in a vector makes its scores NaN.
        """
        dtype = rows.dtype if isinstance(rows, torch.Tensor) else rows[0].dtype
        queries = self._compiled_for(dtype, scaled=row_scales is not None)
        if queries is not None:
            return queries.score(rows, lengths, row_scales=row_scales)
        if self._onednn is not None:
            return self._sums(self._onednn.best(rows, lengths, row_scales), lengths)
        rows = rows if isinstance(rows, torch.Tensor) else torch.cat(list(rows))
        if row_scales is None and self._by_triton(dtype):
            return self._triton_for(dtype).score(rows.contiguous(), offsets_of(lengths))
        similarities = rows.to(self.values.dtype) @ self.values.T  # (tokens, query_tokens)
        if row_scales is not None:
            similarities *= row_scales[:, None]
        return self._sums(_best(similarities, lengths), lengths)

    @torch.no_grad()
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
        if self._kernel is not None:
            return self._compiled_int8(self._kernel).score(codes, lengths, document_steps=steps)
        if self._on_gpu(torch.int8):
            return self._triton_for(torch.int8).score(
                codes.contiguous(), offsets_of(lengths), steps.float().contiguous()
            )
        query_codes, token_steps = self._as_int8()
        if self._onednn is not None:
            best = self._best_codes(self._onednn, codes, lengths)
        else:
            # cuBLAS takes only some shapes as int8, and float16 ends at 65,504.
            best = _best(codes.float() @ query_codes.float().T, lengths)
        return self._sums(best * (steps[:, None] * token_steps), lengths)  # best is (documents, query_tokens)

    # ---------------------------------------------------------------------------------------------- the kernels

    def _by_triton(self, dtype: torch.dtype) -> bool:
        return dtype in _HALVES and self._on_gpu(dtype)

    def _on_gpu(self, dtype: torch.dtype) -> bool:
        return supports(self.values.shape[1], dtype, self.values.device) and self.values.dtype == torch.float32

    def _triton_for(self, dtype: torch.dtype) -> TritonQueries:
        if dtype not in self._triton:
            self._triton[dtype] = TritonQueries(self._queries, dtype)
        return self._triton[dtype]

    def _compiled_for(self, dtype: torch.dtype, *, scaled: bool) -> CompiledQueries | None:
        """The queries for the kernel, in the arithmetic that is best for documents of a dtype."""
        kernel = self._kernel
        if kernel is None or dtype not in STORAGES:
            return None
        direct = dtype == torch.bfloat16 and not scaled
        direct = direct and kernel.supports(Arithmetic.BFLOAT16, self.values.shape[1])
        arithmetic = Arithmetic.BFLOAT16 if direct else Arithmetic.FLOAT32
        if arithmetic not in self._compiled:
            self._compiled[arithmetic] = CompiledQueries(kernel, self.values, self.lengths, arithmetic)
        return self._compiled[arithmetic]

    def _compiled_int8(self, kernel: Kernel) -> CompiledQueries:
        if self._compiled_codes is None:
            codes, steps = self._as_int8()
            # Below 2**24 for any dim up to 1,040, so float32 holds the products of codes exactly too.
            direct = kernel.supports(Arithmetic.INT8, codes.shape[1])
            arithmetic = Arithmetic.INT8 if direct else Arithmetic.FLOAT32
            self._compiled_codes = CompiledQueries(kernel, codes, self.lengths, arithmetic, steps)
        return self._compiled_codes

    # ---------------------------------------------------------------------------------------------------- torch

    def _as_int8(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries as int8, ``(query_tokens, dim)``, and what one step of each token is worth."""
        if self._int8 is None:
            self._int8 = as_int8(self.values)
        return self._int8

    def _best_codes(self, onednn: OneDNNQueries, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The best products of codes, ``(documents, query_tokens)``, by oneDNN."""
        query_codes = self._as_int8()[0]
        if cpu.multiplies(torch.int8) and codes.shape[1] > 1:  # _int_mm gives garbage for a dim of 1 (torch 2.13)
            return onednn.best_int8(codes, lengths, query_codes)
        if self._onednn_codes is None:
            self._onednn_codes = OneDNNQueries(query_codes.float())
        return self._onednn_codes.best(codes, lengths)

    def _sums(self, best: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Sum the query tokens of each query, ``(queries, documents)``."""
        if len(set(self.lengths)) == 1:
            sums = best.reshape(len(best), len(self.lengths), self.lengths[0]).sum(-1).T
        else:
            sums = torch.stack([part.sum(-1) for part in torch.split(best, self.lengths, dim=1)])
        return sums.to(torch.float32).masked_fill_(lengths == 0, float("-inf"))


def engine_for(device: torch.device, dim: int) -> str:
    """Say what scores vectors on a device, for a report to read.

    Args:
        device: Where documents are.
        dim: Dimension of the vectors.

    Returns:
        The kernel with its instruction set, or the library.
    """
    kernel = compiled.load()
    if device.type == "cpu" and kernel is not None:
        return f"compiled kernel ({kernel.instruction_set})"
    if device.type == "cpu":
        return "oneDNN" if is_available() else "torch"
    return "Triton kernel for half precision, else torch" if supports(dim, torch.float16, device) else "torch"


def _best(similarities: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Best similarity of each query token within each document, ``(documents, query_tokens)``."""
    owner = torch.repeat_interleave(lengths, output_size=len(similarities))
    best = similarities.new_full((len(lengths), similarities.shape[1]), float("-inf"))
    take_maxima(best, owner, similarities)
    return best
