"""StackedQueries: the token vectors of several queries as one matrix, to score block after block of documents."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from .. import kernel as compiled
from ..embeddings import TokenEmbeddings
from ..kernel import Kernel
from .gpu import TritonQueries
from .gpu import supports as gpu_supports
from .native import STORAGES, Arithmetic, NativeQueries, supports

__all__ = ["StackedQueries"]

# oneDNN's product, in fp32 and without touching a process-wide flag: 37 ns a row of 128 against 32 query tokens
# where torch.mm, by MKL, takes 65 (two Zen 5 cores). Private to torch, hence the check; measured on x86 only.
_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
)
_TYPICAL_ROWS = 4096
# oneDNN compiles a kernel for each shape that it meets, which takes longer than running it: 100 ns a row with new
# shapes against 25 with known ones. So blocks and queries are filled up to few shapes.
_ROW_STEP, _SMALL_ROW_STEP, _TOKEN_STEP = 1024, 256, 16
# Similarities alive at once: 2**20 float32 = 4 MiB, so that they and the rows they come from stay in a CPU's caches.
_BLOCK_ELEMENTS, _FEWEST_ROWS, _MOST_ROWS = 2**20, 512, 8192
# A GPU has other caches and pays for each launch.
_BLOCK_ELEMENTS_GPU, _MOST_ROWS_GPU = 2**27, 2**18
# The compiled kernel keeps no similarities: few calls are best.
_MOST_ROWS_NATIVE = 2**20

# float32 would not use tensor cores there either, and cuBLAS multiplies it as well.
_HALVES = (torch.float16, torch.bfloat16)

Documents = torch.Tensor | Sequence[torch.Tensor]
"""Vectors of documents, packed into one matrix or one matrix each."""


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
        self._native: dict[Arithmetic, NativeQueries] = {}
        self._triton: dict[torch.dtype, TritonQueries] = {}
        self._onednn = _ONEDNN and on_cpu
        self._packed: torch.Tensor | None = None
        self._int8: tuple[torch.Tensor, torch.Tensor] | None = None
        self._scratch: dict[torch.dtype, torch.Tensor] = {}

    @property
    def block_rows(self) -> int:
        """How many rows of documents are best scored at once."""
        tokens = max(1, len(self.values))
        if self._kernel is not None:
            return _MOST_ROWS_NATIVE
        if self.values.device.type == "cpu":
            return max(_FEWEST_ROWS, min(_MOST_ROWS, _BLOCK_ELEMENTS // tokens))
        return max(_FEWEST_ROWS, min(_MOST_ROWS_GPU, _BLOCK_ELEMENTS_GPU // tokens))

    def __len__(self) -> int:
        return len(self.lengths)

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
            ``(queries, documents)`` float32, accumulated in the dtype of the queries; ``-inf`` for a document without
            tokens. A NaN in a vector makes its scores NaN.

        Source:
            Without the kernel, the maximum over a document is a scatter of its similarity rows onto one row, so
            documents of any length share one matrix product; it is independent of order, hence deterministic on a GPU
            too.
        """
        dtype = rows.dtype if isinstance(rows, torch.Tensor) else rows[0].dtype
        queries = self._native_for(dtype, scaled=row_scales is not None)
        if queries is not None:
            return queries.score(rows, lengths, row_scales=row_scales)
        if dtype in _HALVES and row_scales is None and isinstance(rows, torch.Tensor) and self._on_gpu(dtype):
            return self._triton_for(dtype).score(rows.contiguous(), _offsets(lengths))
        similarities = self._similarities(rows)
        if row_scales is not None:
            similarities *= row_scales[:, None]
        return self._sums(_best(similarities, lengths), lengths)

    @torch.no_grad()
    def score_int8(self, codes: torch.Tensor, lengths: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Score a block of int8 documents in integers: the fastest way, and approximate.

        ``scores[i, j] = step[j] sum_s step[s] max_t <int8(queries[i][s]), codes[j][t]>``

        Args:
            codes: Token vectors of the documents, ``(tokens, dim)`` int8.
            lengths: Tokens of each document, ``(documents,)`` int64, on the device of ``codes``.
            steps: What one step of each document is worth, ``(documents,)``.

        Returns:
            ``(queries, documents)`` float32; ``-inf`` for a document without tokens. The queries are rounded to int8
            too, which is what makes it approximate.
        """
        if self._kernel is not None and supports(self._kernel, Arithmetic.INT8, codes.shape[1]):
            return self._native_int8(self._kernel).score(codes, lengths, document_steps=steps)
        if self._on_gpu(torch.int8):
            return self._triton_for(torch.int8).score(codes.contiguous(), _offsets(lengths), steps.float().contiguous())
        best = _best(self._int8_similarities(codes), lengths)  # (documents, query_tokens)
        return self._sums(best * (steps[:, None] * self._as_int8()[1]), lengths)

    # ---------------------------------------------------------------------------------------------- the kernels

    def _on_gpu(self, dtype: torch.dtype) -> bool:
        return gpu_supports(self.values.shape[1], dtype, self.values.device) and self.values.dtype == torch.float32

    def _triton_for(self, dtype: torch.dtype) -> TritonQueries:
        if dtype not in self._triton:
            self._triton[dtype] = TritonQueries(self._queries, dtype)
        return self._triton[dtype]

    def _native_for(self, dtype: torch.dtype, *, scaled: bool) -> NativeQueries | None:
        """The queries for the kernel, in the arithmetic that is best for documents of a dtype."""
        kernel = self._kernel
        if kernel is None or dtype not in STORAGES:
            return None
        direct = dtype == torch.bfloat16 and not scaled
        direct = direct and supports(kernel, Arithmetic.BFLOAT16, self.values.shape[1])
        arithmetic = Arithmetic.BFLOAT16 if direct else Arithmetic.FLOAT32
        if arithmetic not in self._native:
            self._native[arithmetic] = NativeQueries(kernel, self.values, self.lengths, arithmetic)
        return self._native[arithmetic]

    def _native_int8(self, kernel: Kernel) -> NativeQueries:
        if Arithmetic.INT8 not in self._native:
            codes, steps = self._as_int8()
            count = len(self.values)
            codes, steps = codes.T[:count], steps[:count]
            self._native[Arithmetic.INT8] = NativeQueries(kernel, codes, self.lengths, Arithmetic.INT8, steps)
        return self._native[Arithmetic.INT8]

    # ---------------------------------------------------------------------------------------------------- torch

    def _filled(self) -> torch.Tensor:
        """The query tokens with zeros up to one of few shapes; what zeros score is cut off before the sums."""
        missing = -len(self.values) % _TOKEN_STEP
        return torch.nn.functional.pad(self.values, (0, 0, 0, missing))  # (filled query_tokens, dim)

    def _similarities(self, rows: Documents) -> torch.Tensor:
        """Of every row with every query token, and maybe with zeros, ``(tokens, query_tokens or more)``."""
        count = len(rows) if isinstance(rows, torch.Tensor) else sum(map(len, rows))
        if not self._onednn or not count:
            joined = rows if isinstance(rows, torch.Tensor) else torch.cat(list(rows))
            return joined.to(self.values.dtype) @ self.values.T
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._filled(), _TYPICAL_ROWS)
        filled = self._in_scratch(rows, count, torch.float32)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(filled, self._packed, None, "none", [], "")
        return product[:count]

    def _int8_similarities(self, rows: torch.Tensor) -> torch.Tensor:
        codes, _ = self._as_int8()
        if rows.is_cuda:
            # cuBLAS takes only some shapes as int8, and half precision holds these products exactly enough.
            return (rows.half() @ codes.half()).float()
        if rows.shape[1] == 1 or not len(rows) or not codes.numel():
            return rows.float() @ codes.float()  # _int_mm gives garbage for a dim of 1 (torch 2.13)
        # Below 2**24 for any dim up to 1,040, so float32 holds it exactly.
        return torch._int_mm(self._in_scratch(rows, len(rows), torch.int8), codes)[: len(rows)].float()

    def _in_scratch(self, rows: Documents, count: int, dtype: torch.dtype) -> torch.Tensor:
        """The rows, and behind them whatever was there, ``(filled tokens, dim)``."""
        step = _SMALL_ROW_STEP if count <= _ROW_STEP else _ROW_STEP
        filled = -(-count // step) * step
        if len(self._scratch.get(dtype, ())) < filled:
            self._scratch[dtype] = torch.zeros(max(filled, self.block_rows), self.values.shape[1], dtype=dtype)
        scratch = self._scratch[dtype][:filled]
        if isinstance(rows, torch.Tensor):
            scratch[:count].copy_(rows)
        elif rows[0].dtype == dtype:
            torch.cat(list(rows), out=scratch[:count])
        else:
            scratch[:count].copy_(torch.cat(list(rows)))
        return scratch

    def _as_int8(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries as int8, ``(dim, filled query_tokens)``, and what one step of each token is worth."""
        if self._int8 is None:
            values = self._filled()
            steps = values.abs().amax(1).clamp_min(1e-12) / 127
            codes = (values / steps[:, None]).round_().to(torch.int8)
            self._int8 = codes.T.contiguous(), steps
        return self._int8

    def _sums(self, best: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Sum the query tokens of each query, ``(queries, documents)``."""
        best = best[:, : len(self.values)]
        if len(set(self.lengths)) == 1:
            sums = best.reshape(len(best), len(self.lengths), self.lengths[0]).sum(-1).T
        else:
            sums = torch.stack([part.sum(-1) for part in torch.split(best, self.lengths, dim=1)])
        return sums.to(torch.float32).masked_fill_(lengths == 0, float("-inf"))


def _offsets(lengths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _best(similarities: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Best similarity of each query token within each document, ``(documents, query_tokens)``."""
    documents = torch.arange(len(lengths), device=lengths.device)
    owner = documents.repeat_interleave(lengths, output_size=len(similarities))
    best = similarities.new_full((len(lengths), similarities.shape[1]), float("-inf"))
    # segment_reduce would say the same with less text, but costs 8 times as much on a CPU (152 us against 19 us for
    # 2,048 x 32 similarities) and does not exist on MPS.
    return best.scatter_reduce_(0, owner[:, None].expand_as(similarities), similarities, "amax")
