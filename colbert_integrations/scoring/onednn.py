"""OneDNNQueries: MaxSim on a CPU in torch alone, by oneDNN's products, block after block without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate

import torch

from ..devices import cpu
from ..embeddings import TokenEmbeddings
from .blocks import Documents, ranges, take_maxima
from .torch_alone import TorchQueries

__all__ = ["OneDNNQueries", "is_available"]

# Similarities alive at once: at most 2**20 float32 = 4 MiB, so that they stay in a CPU's caches.
_SIMILARITIES, _FEWEST_ROWS, _MOST_ROWS = 2**20, 2048, 8192
# Maxima alive at once, one for each query token and document: 8 MiB if documents have 32 tokens.
_MAXIMA, _SHORT_DOCUMENT = 2**21, 32
# oneDNN compiles a kernel for each shape that it meets, which takes longer than running it: 100 ns a row with new
# shapes against 25 with known ones. So rows are cut, and queries filled up, to few shapes.
_ROW_STEP, _SMALL_ROW_STEP, _TOKEN_STEP = 1024, 256, 16


def is_available() -> bool:
    """Whether torch has oneDNN's product under the name that is used here.

    In fp32, and without touching a process-wide flag, a row of 128 against 32 query tokens takes 37 ns where torch.mm,
    by MKL, takes 65 (two Zen 5 cores).
    """
    return cpu.has_onednn("_linear_pointwise")


class OneDNNQueries(TorchQueries):
    """Queries that oneDNN multiplies.

    The maximum over a document is a scatter of its rows onto one row. Copying rows into dense groups, whose maximum is
    plain, made it slower: the copy costs more than the scatter (1.7 against 1.0 ms for 100 documents).

    Args:
        queries: At least one query, with at least one number, on the CPU.
    """

    def __init__(self, queries: TokenEmbeddings) -> None:
        super().__init__(queries)
        self._filled = -(-len(self.values) // _TOKEN_STEP) * _TOKEN_STEP
        self._factor = self._fill(self.values)
        self._step = max(_FEWEST_ROWS, min(_MOST_ROWS, _SIMILARITIES // self._filled))  # rows of a block
        self._room: dict[torch.dtype, torch.Tensor] = {}
        self._products: torch.Tensor | None = None

    def block_rows(self, dtype: torch.dtype) -> int:
        """See ``StackedQueries``."""
        return max(_MOST_ROWS, _MAXIMA // self._filled * _SHORT_DOCUMENT)

    def _best(self, rows: Documents, lengths: torch.Tensor, row_scales: torch.Tensor | None) -> torch.Tensor:
        """See ``TorchQueries``."""
        return self._best_floats(self._factor, rows, lengths, row_scales)

    def _best_int8(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See ``TorchQueries``; exact for a dim up to 1,040."""
        if cpu.multiplies(torch.int8) and codes.shape[1] > 1:  # _int_mm gives garbage for a dim of 1 (torch 2.13)
            return self._best_integers(codes, lengths)
        return self._best_floats(self._float_codes, codes, lengths, None)

    @cached_property
    def _float_codes(self) -> torch.Tensor:
        return self._fill(self._int8[0].float())  # (filled query_tokens, dim)

    @cached_property
    def _integer_codes(self) -> torch.Tensor:
        return self._fill(self._int8[0]).T.contiguous()  # (dim, filled query_tokens)

    def _fill(self, values: torch.Tensor) -> torch.Tensor:
        """Query tokens filled up with zeros, whose scores are cut off again, ``(filled query_tokens, dim)``."""
        return torch.nn.functional.pad(values, (0, 0, 0, self._filled - len(values)))

    def _best_floats(
        self, factor: torch.Tensor, rows: Documents, lengths: torch.Tensor, row_scales: torch.Tensor | None
    ) -> torch.Tensor:
        best, owner = self._start(lengths)
        for block, some in self._pieces(rows, torch.float32):
            # The queries as they are: laying them out for oneDNN beforehand costs 90 us and gains nothing.
            products = torch.ops.mkldnn._linear_pointwise(some, factor, None, "none", [], "")
            products = products[: block.stop - block.start]  # (rows, filled query_tokens)
            if row_scales is not None:
                products *= row_scales[block, None]
            take_maxima(best, owner[block], products)
            # Let go of before the next block's are made, which then take the same memory, warm.
            del products
        return best[:, : len(self.values)]

    def _best_integers(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        best, owner = self._start(lengths)
        for block, some in self._pieces(codes, torch.int8):
            room = self._products_for(len(some))
            torch._int_mm(some, self._integer_codes, out=room)
            room = room[: block.stop - block.start]  # (rows, filled query_tokens)
            # Turned into floats where they lie: a scatter of integers takes twice as long.
            take_maxima(best, owner[block], room.view(torch.float32).copy_(room))
        return best[:, : len(self.values)]

    def _start(self, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maxima of nothing, ``(documents, filled query_tokens)``, and the document of each row."""
        best = torch.full((len(lengths), self._filled), float("-inf"), dtype=torch.float32, device="cpu")
        return best, torch.repeat_interleave(lengths)

    def _blocks(self, rows: int) -> Iterator[slice]:
        """Blocks of rows, wherever documents begin and end in them; smaller ones for the rest."""
        start, step = 0, self._step
        for size in (step, _ROW_STEP, _SMALL_ROW_STEP, 1):
            while rows - start >= size:
                stop = start + min(step, (rows - start) // size * size)
                yield slice(start, stop)
                start = stop

    def _pieces(self, rows: Documents, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of rows, and each of them in a dtype, with anything behind it up to one of few shapes."""
        if not isinstance(rows, torch.Tensor):
            yield from self._joined(rows, dtype)
            return
        for block in self._blocks(len(rows)):
            some = rows[block]
            if len(some) % _SMALL_ROW_STEP or some.dtype != dtype:
                room = self._room_for(len(some), rows.shape[1], dtype)
                room[: len(some)].copy_(some)
                some = room
            yield block, some

    def _joined(self, matrices: Sequence[torch.Tensor], dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """The same of documents that lie apart, joined block by block, so that a CPU's caches hold them."""
        bounds = [0, *accumulate(map(len, matrices))]
        for first, last in ranges(bounds, self._step):
            block = slice(bounds[first], bounds[last])
            count = block.stop - block.start
            room = self._room_for(count, matrices[0].shape[1], matrices[0].dtype)
            torch.cat(list(matrices[first:last]), out=room[:count])
            yield block, room.to(dtype)

    def _room_for(self, rows: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory for rows and what fills them up; the same again, since fresh memory costs as much as a product."""
        step = _SMALL_ROW_STEP if rows <= _ROW_STEP else _ROW_STEP
        filled = -(-rows // step) * step
        room = self._room.get(dtype)
        if room is None or len(room) < filled:
            room = self._room[dtype] = torch.zeros(filled, dim, dtype=dtype, device="cpu")
        return room[:filled]

    def _products_for(self, rows: int) -> torch.Tensor:
        """Memory for products of integers, ``(rows, filled query_tokens)`` int32, the same again."""
        if self._products is None or len(self._products) < rows:
            self._products = torch.empty(rows, self._filled, dtype=torch.int32, device="cpu")
        return self._products[:rows]
