"""CompiledQueries: MaxSim by the compiled kernel, on documents where they lie."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property

import torch

from ..embeddings import TokenEmbeddings, offsets_of
from ..kernel import FEW_BITS, STORAGES, Arithmetic, Kernel, MaxSimJob, address
from .blocks import Documents, dtype_of
from .stacked import FewBits, StackedQueries

__all__ = ["CompiledQueries"]

# The kernel keeps no similarities: few calls are best. What it does not take is copied, as float32.
_MOST_ROWS, _MOST_COPIED_ROWS = 2**20, 8192


class CompiledQueries(StackedQueries):
    """Queries that the kernel scores, packed for each arithmetic when it is first needed.

    Args:
        queries: At least one query, with at least one number, on the CPU.
        kernel: The kernel.
    """

    unpacks = False

    def __init__(self, queries: TokenEmbeddings, kernel: Kernel) -> None:
        super().__init__(queries)
        self._kernel = kernel

    def block_rows(self, dtype: torch.dtype) -> int:
        """See ``StackedQueries``."""
        return _MOST_ROWS if dtype in STORAGES else _MOST_COPIED_ROWS

    @torch.no_grad()
    def score(self, rows: Documents, lengths: torch.Tensor, row_scales: torch.Tensor | None = None) -> torch.Tensor:
        """See ``StackedQueries``."""
        rows = _as_storage(rows)
        direct = dtype_of(rows) == torch.bfloat16 and row_scales is None
        queries = self._bfloat16 if direct else self._float32
        return queries.score(rows, lengths, row_scales=row_scales)

    @torch.no_grad()
    def score_int8(self, codes: torch.Tensor, lengths: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """See ``StackedQueries``."""
        return self._codes.score(codes, lengths, document_steps=steps)

    @torch.no_grad()
    def score_few_bits(self, packed: torch.Tensor, lengths: torch.Tensor, bits: FewBits) -> torch.Tensor:
        """See ``StackedQueries``."""
        return self._float32.score(packed, lengths, few_bits=bits)

    @cached_property
    def _float32(self) -> _PackedQueries:
        return _PackedQueries(self._kernel, self.values, self.lengths)

    @cached_property
    def _bfloat16(self) -> _PackedQueries:
        if not self._kernel.supports(Arithmetic.BFLOAT16, self.values.shape[1]):
            return self._float32
        return _PackedQueries(self._kernel, self.values, self.lengths, Arithmetic.BFLOAT16)

    @cached_property
    def _codes(self) -> _PackedQueries:
        codes, steps = self._int8
        # Below 2**24 for any dim up to 1,040, so float32 holds the products of codes exactly too.
        direct = self._kernel.supports(Arithmetic.INT8, codes.shape[1])
        return _PackedQueries(
            self._kernel, codes, self.lengths, Arithmetic.INT8 if direct else Arithmetic.FLOAT32, steps
        )


class _PackedQueries:
    """Queries packed for one arithmetic of the kernel.

    Args:
        kernel: The kernel.
        values: Query tokens, ``(query_tokens, dim)``, float32, or int8 for products in int8.
        lengths: Tokens of each query.
        arithmetic: What products are made in.
        token_steps: What the best similarity of each query token is multiplied by, ``(query_tokens,)`` float32.
            None: 1.
    """

    def __init__(
        self,
        kernel: Kernel,
        values: torch.Tensor,
        lengths: Sequence[int],
        arithmetic: Arithmetic = Arithmetic.FLOAT32,
        token_steps: torch.Tensor | None = None,
    ) -> None:
        self._kernel, self._arithmetic, self._dim = kernel, arithmetic, values.shape[1]
        self._packed = kernel.pack(values.to(arithmetic.dtype), arithmetic)
        self._bounds = offsets_of(torch.tensor(lengths, dtype=torch.int64, device="cpu"))
        self._token_steps = _contiguous(token_steps)
        self._token_sums = values.sum(1, dtype=torch.int32) if arithmetic is Arithmetic.INT8 else None

    def score(
        self,
        documents: Documents,
        lengths: torch.Tensor,
        *,
        row_scales: torch.Tensor | None = None,
        document_steps: torch.Tensor | None = None,
        few_bits: FewBits | None = None,
    ) -> torch.Tensor:
        """Score documents.

        ``scores[i, j] = document_steps[j] sum_s token_steps[s] max_t <queries[i][s], row_scales[t] documents[j][t]>``

        Args:
            documents: Their vectors on the CPU, packed ``(tokens, dim)`` or one matrix each; all in one of float32,
                float16, bfloat16 and int8, which for products in bfloat16 or int8 is that one; or bytes of few bits.
            lengths: Tokens of each, ``(documents,)`` int64.
            row_scales: ``(tokens,)``, for packed vectors and products in float32. None: 1.
            document_steps: ``(documents,)``. None: 1.
            few_bits: The form of vectors in 4 or 2 bits, for products in float32. None: they are no such.

        Returns:
            ``(queries, documents)`` float32; ``-inf`` for a document without tokens; NaN where a vector holds NaN.

        Raises:
            MemoryError: If a thread can't get its few hundred kB.
        """
        scores = torch.empty(len(self._bounds) - 1, len(lengths), dtype=torch.float32, device="cpu")
        if not scores.numel():
            return scores
        rows, matrices = _addresses(documents)
        bounds = offsets_of(lengths)
        # Named, so that they live until the call is over.
        scales, steps = _contiguous(row_scales), _contiguous(document_steps)
        levels = None if few_bits is None else few_bits.levels.repeat(16 // len(few_bits.levels))
        job = MaxSimJob(
            storage=STORAGES[rows[0].dtype] if few_bits is None else FEW_BITS[few_bits.nbits],
            arithmetic=self._arithmetic,
            dim=self._dim,
            rows=None if matrices else rows[0].data_ptr(),
            matrices=ctypes.cast(matrices, ctypes.c_void_p) if matrices else None,
            row_scales=address(scales),
            levels=address(levels),
            document_steps=address(steps),
            bounds=bounds.data_ptr(),
            documents=len(lengths),
            packed=self._packed.data_ptr(),
            token_steps=address(self._token_steps),
            token_sums=address(self._token_sums),
            query_bounds=self._bounds.data_ptr(),
            queries=len(scores),
            scores=scores.data_ptr(),
        )
        self._kernel.run("maxsim_score", job)
        return scores


def _as_storage(rows: Documents) -> Documents:
    """Vectors as they are if the kernel reads them so, else as float32."""
    if dtype_of(rows) in STORAGES:
        return rows
    return rows.float() if isinstance(rows, torch.Tensor) else [matrix.float() for matrix in rows]


def _addresses(documents: Documents) -> tuple[list[torch.Tensor], ctypes.Array[ctypes.c_void_p] | None]:
    """What holds the rows, and where each matrix lies if there are several."""
    if isinstance(documents, torch.Tensor):
        return [documents.contiguous()], None
    held = [matrix.contiguous() for matrix in documents]
    return held, (ctypes.c_void_p * len(held))(*[matrix.data_ptr() for matrix in held])


def _contiguous(values: torch.Tensor | None) -> torch.Tensor | None:
    return None if values is None else values.float().contiguous()
