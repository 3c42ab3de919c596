"""TritonQueries: MaxSim and top-k on a CUDA device by the kernel in ``triton_kernels.py``, without waiting for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from ..devices import CudaRecorder, on_cuda_device, triton_runs
from ..embeddings import TokenEmbeddings
from ..errors import InputError, ShapeError
from .blocks import as_int8

__all__ = ["CapturedTopK", "TritonQueries", "is_available", "supports"]

_FLOAT8 = torch.float8_e4m3fn
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, _FLOAT8)
# Documents of one program at most: enough to spread the loading of the queries over, few enough that the last
# programs to run don't keep the others waiting. Fewer where that would leave multiprocessors idle. Where one small
# stack reads a million documents, runs of 4 take 1 % less time than 16; with 1,024 query tokens, 64 take 2 % less.
_SHORT_RUN, _LONGEST_RUN, _FEWEST_PROGRAMS = 4, 64, 8192
# Up to so many documents, and so many of them wanted, one launch finds the best: torch's topk takes two, and 12 us more
# for 10 of 1,000.
_FEW, _FEW_WANTED = (1024, 4096), 64
# Scores that top_k holds at once: 256 MiB.
_SCORES = 2**26


@dataclass(frozen=True)
class _Tiling:
    """How a program cuts its work.

    Args:
        row_bytes: Widest row, in the dtype that is multiplied in.
        stack: Maximum number of query tokens that are scored together.
        tile: Document tokens that are multiplied at once.
        stages: Tiles that are on their way at once.
    """

    row_bytes: int
    stack: int
    tile: int
    stages: int


# Fixed instead of tried out, which would stall the first call on each new shape. What the compiler asks for stays
# within the 99 KiB of shared memory of the smaller cards, and takes 112 of Hopper's 227 KiB. A tile of 64 wastes 6 % on
# documents of 180 tokens, one of 128 wastes 30 %. On an H100, 32 queries against 200,000 such documents took 17.0 ms;
# 128 query tokens 19.0, tiles of 32 21.6, of 128 25.4 at best. Copies by TMA, one loop over all documents of a run, and
# maxima kept for each column until the document ends were no faster (17.4, 17.8 and 20.2).
_TILINGS = [_Tiling(256, 256, 64, 3), _Tiling(512, 64, 32, 3), _Tiling(1024, 32, 32, 2), _Tiling(2048, 16, 16, 2)]
# Below 64 rows Hopper's own matrix instruction can't be used, and the idle rows cost nothing where memory is the limit.
_STACKS = (64, 128, 256)
_SMALLEST_SLOT = 16


@cache
def is_available(device: torch.device) -> bool:
    """Whether the kernel runs on a device.

    Args:
        device: Any.

    Returns:
        True for an NVIDIA GPU from Ampere on where ``triton`` is installed and works, which is tried once.
    """
    return triton_runs(device, lambda: _try(device), "scores are plain torch's")


def _try(device: torch.device) -> None:
    """Launch both kernels; in a form that is common, so that it is mostly compiled for use."""
    rows = torch.zeros(32, 128, dtype=torch.float16, device=device)  # as many as queries mostly have tokens
    queries = TritonQueries(TokenEmbeddings.from_list([rows]), rows.dtype)
    queries.top_k(rows, torch.tensor([0, 32], device=device), 1)


def supports(dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether documents of a form can be scored on a device by ``TritonQueries``.

    Args:
        dim: Of the vectors; a multiple of 16, up to 2 KiB a row (1,024 in half precision).
        dtype: Of the documents: float32, float16, bfloat16, int8, or float8_e4m3fn (from Ada and Hopper on).
        device: Where they are.

    Returns:
        Whether it can; else plain torch has to score them.
    """
    if not _fits(dim, dtype) or not is_available(device):
        return False
    return dtype != _FLOAT8 or torch.cuda.get_device_capability(device) >= (8, 9)


def _fits(dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernel takes documents of a form, leaving the device aside.

    Args:
        dim: Of the vectors.
        dtype: Of the documents.

    Returns:
        True for the dimensions and dtypes that ``supports`` names.
    """
    return dtype in _DTYPES and dim % 16 == 0 and 0 < dim * _factor_dtype(dim, dtype).itemsize <= _TILINGS[-1].row_bytes


def _chunk(dim: int) -> int:
    """The widest power of 2 that divides a dimension, up to 128."""
    return min(dim & -dim, 128)


def _factor_dtype(dim: int, dtype: torch.dtype) -> torch.dtype:
    """What to multiply documents of a dtype in; half precision holds each number of 8 bits exactly."""
    # Tensor cores take no fewer than 32 int8 at once. They add products of float8 up with some 14 bits only.
    narrow = dtype == _FLOAT8 or (dtype == torch.int8 and _chunk(dim) < 32)
    return torch.float16 if narrow else dtype


class TritonQueries:
    """Queries made ready to be scored on a GPU against many blocks of documents.

    Queries are stacked, up to 256 tokens, and each stack reads the documents once, in their own dtype and length.

    Args:
        queries: At least one, any float dtype, on the documents' device. Rounded to the documents' dtype: to int8 with
            a step per token; to float16 for float8 documents.
        dtype: Of the documents.

    Raises:
        InputError: If there is no query or the kernel can't take documents of that dtype and dimension.
    """

    def __init__(self, queries: TokenEmbeddings, dtype: torch.dtype) -> None:
        factor = _factor_dtype(queries.dim, dtype)
        if not len(queries) or not _fits(queries.dim, dtype):
            raise InputError(f"can't score documents of dim {queries.dim} in {dtype} against {len(queries)} queries")
        self.dtype, self._factor = dtype, factor
        self._tiling = tiling = next(tiling for tiling in _TILINGS if queries.dim * factor.itemsize <= tiling.row_bytes)
        self.lengths, self.dim = queries.lengths, queries.dim
        longest = max(1, *queries.lengths)
        # A query takes as many slots as the longest needs: mostly one.
        self._slot = min(max(_SMALLEST_SLOT, 1 << (longest - 1).bit_length()), tiling.stack)
        self._parts = -(-longest // self._slot)
        tokens = len(queries) * self._parts * self._slot
        self._stack = min(tiling.stack, next((size for size in _STACKS if size >= tokens), _STACKS[-1]))
        self._stacks = -(-tokens // self._stack)
        self._places = self._to_places().to(queries.device, non_blocking=True)
        self._values = torch.zeros(len(self._places), self.dim, dtype=factor, device=queries.device)
        self._weights = torch.zeros(len(self._places), dtype=torch.float32, device=queries.device)
        self.replace(queries)

    def _to_places(self) -> torch.Tensor:
        """Which token of the queries stands in each row of the stacks; where none does, the number of tokens."""
        total = sum(self.lengths)
        places = torch.full((self._stacks * self._stack,), total, device="cpu")
        start, width = 0, self._parts * self._slot
        for query, length in enumerate(self.lengths):
            places[query * width : query * width + length] = torch.arange(start, start + length, device="cpu")
            start += length
        return places

    @torch.no_grad()
    def replace(self, queries: TokenEmbeddings) -> None:
        """Put other queries in the place of these, for a captured call to read.

        Args:
            queries: Of the same lengths and dimension, on the same device.

        Raises:
            ShapeError: If they differ in length or dimension.
        """
        if queries.lengths != self.lengths or queries.dim != self.dim:
            raise ShapeError(f"expected queries of {self.lengths} tokens and dim {self.dim}, not {queries}")
        values, steps = _rounded(queries.values, self.dtype)
        # One row more, of zeros and with no weight, for the places without a token.
        values = torch.nn.functional.pad(values, (0, 0, 0, 1))
        steps = torch.nn.functional.pad(steps, (0, 1))
        self._values.copy_(values[self._places])
        self._weights.copy_(steps[self._places])

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.no_grad()
    def score(self, rows: torch.Tensor, offsets: torch.Tensor, steps: torch.Tensor | None = None) -> torch.Tensor:
        """Score documents; returns before the GPU has done so.

        ``scores[i, j] = step[j] sum_s max_t <queries[i][s], documents[j][t]>``

        Args:
            rows: Token vectors of the documents, ``(tokens, dim)`` in the dtype of the constructor, contiguous. They
                may be more than 2**31 elements.
            offsets: Where each document begins in them and the last one ends, ``(documents + 1,)`` int64; need not
                begin at 0.
            steps: What one step of each document is worth, ``(documents,)`` float32, above 0. None: 1.

        Returns:
            ``(queries, documents)`` float32, accumulated in float32 or in integers; ``-inf`` for a document without
            tokens, 0 for a query without against the others. A NaN in a vector makes its scores NaN.

        Raises:
            ShapeError: If ``rows`` are not contiguous rows of the dtype and dimension that were announced.
        """
        if rows.dtype != self.dtype or rows.ndim != 2 or rows.shape[1] != self.dim or not rows.is_contiguous():
            raise ShapeError(
                f"rows must be contiguous (tokens, {self.dim}) in {self.dtype}, not {rows.dtype} "
                f"{tuple(rows.shape)} of strides {rows.stride()}"
            )
        slots, documents = len(self) * self._parts, len(offsets) - 1
        scores = torch.empty(slots, documents, dtype=torch.float32, device=rows.device)
        if documents:
            self._launch(rows, offsets, steps, scores)
        return scores if self._parts == 1 else scores.view(len(self), self._parts, documents).sum(1)

    def _launch(
        self, rows: torch.Tensor, offsets: torch.Tensor, steps: torch.Tensor | None, scores: torch.Tensor
    ) -> None:
        from .triton_kernels import maxsim_kernel

        slots, documents = scores.shape
        longest = _SHORT_RUN if self._stack == _STACKS[0] else _LONGEST_RUN
        run = max(1, min(longest, documents * self._stacks // _FEWEST_PROGRAMS))
        with on_cuda_device(rows.device):
            maxsim_kernel[(-(-documents // run) * self._stacks,)](
                *(self._values, self._weights, rows, offsets, steps, scores, documents, slots, self._stacks, run),
                **self._constants(),
                **self._options(),
            )

    def _constants(self) -> dict[str, int]:
        """What a variant of the kernel is compiled for."""
        # Chunks of 32 at most in float32: the products are then plain multiplications, which run out of registers.
        chunk = min(_chunk(self.dim), 32) if self._factor == torch.float32 else _chunk(self.dim)
        return {"DIM": self.dim, "CHUNK": chunk, "STACK": self._stack, "SLOT": self._slot, "TILE": self._tiling.tile}

    def _options(self) -> dict[str, int]:
        wide = self._stack > _STACKS[0] or self._factor == torch.float32
        # Fusing is the default so far; said aloud, since Triton 3.9 warns where it isn't.
        return {"num_warps": 8 if wide else 4, "num_stages": self._tiling.stages, "enable_fp_fusion": True}

    @torch.no_grad()
    def top_k(
        self, rows: torch.Tensor, offsets: torch.Tensor, k: int, steps: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best documents of each query; returns before the GPU has found them.

        Args:
            rows: As for ``score``.
            offsets: As for ``score``.
            k: How many; all if there are fewer.
            steps: As for ``score``.

        Returns:
            Scores, falling, ``(queries, k)`` float32, and positions, ``(queries, k)`` int64. A NaN counts as the
            largest. Among equal scores any may come first.
        """
        documents = len(offsets) - 1
        block = max(1, _SCORES // (len(self) * self._parts))
        best = [
            self._best(rows, offsets, start, min(start + block, documents), k, steps)
            for start in range(0, max(1, documents), block)
        ]
        if len(best) == 1:
            return best[0]
        scores, positions = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        scores, chosen = scores.topk(min(k, documents), dim=1)
        return scores, positions.gather(1, chosen)

    def _best(
        self, rows: torch.Tensor, offsets: torch.Tensor, start: int, stop: int, k: int, steps: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.score(rows, offsets[start : stop + 1], None if steps is None else steps[start:stop])
        best, positions = _top_k(scores, min(k, stop - start))
        return best, positions + start if start else positions

    def capture(
        self, rows: torch.Tensor, offsets: torch.Tensor, k: int, steps: torch.Tensor | None = None
    ) -> CapturedTopK:
        """Record ``top_k`` on these very tensors as a CUDA graph: one launch, for small sets that come again and again.

        Args:
            rows: As for ``score``; may have room for more rows than ``offsets`` use.
            offsets: As for ``score``.
            k: As for ``top_k``.
            steps: As for ``score``.

        Returns:
            The recorded call. Waits for the device.
        """
        return CapturedTopK(self, rows, offsets, k, steps)


class CapturedTopK:
    """``TritonQueries.top_k`` as a CUDA graph: reads its tensors anew at each replay, so write new values into them.

    Args:
        queries: Change them with ``queries.replace``.
        rows: As for ``TritonQueries.score``.
        offsets: As for ``TritonQueries.score``.
        k: As for ``TritonQueries.top_k``.
        steps: As for ``TritonQueries.score``.
    """

    def __init__(
        self, queries: TritonQueries, rows: torch.Tensor, offsets: torch.Tensor, k: int, steps: torch.Tensor | None
    ) -> None:
        self._read = (queries, rows, offsets, steps)  # the graph holds addresses, so they must live as long
        with on_cuda_device(rows.device):
            recorder = CudaRecorder.of(rows.device)
            # It multiplies nothing by cuBLAS, so it need not run in turn.
            self._replay, self._best = recorder.record(lambda: queries.top_k(rows, offsets, k, steps), alone=True)

    def replay(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Score what the tensors hold now.

        Returns:
            What ``top_k`` does. The next replay overwrites it.
        """
        self._replay()
        return self._best


def _top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, falling, and their columns."""
    queries, documents = scores.shape
    if not 0 < documents <= _FEW[-1] or not 0 < k <= _FEW_WANTED:
        best, positions = scores.topk(k, dim=1)
        return best, positions
    from .triton_kernels import top_k_kernel

    best = torch.empty(queries, k, dtype=torch.float32, device=scores.device)
    positions = torch.empty(queries, k, dtype=torch.int64, device=scores.device)
    room = next(room for room in _FEW if room >= documents)
    with on_cuda_device(scores.device):
        top_k_kernel[(queries,)](scores, best, positions, documents, k, ROOM=room, num_warps=4)
    return best, positions


def _rounded(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors in the numbers of a dtype, and what one step of each is worth, ``(tokens,)`` float32."""
    if dtype != torch.int8:
        factor = torch.float16 if dtype == _FLOAT8 else dtype
        return values.to(factor), torch.ones(len(values), dtype=torch.float32, device=values.device)
    return as_int8(values.float())
