"""PackedRows: vectors of documents, one document after another in preallocated memory; and blocks of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ..devices import send
from ..scoring.blocks import ranges
from .layout import PER_DOCUMENT, Columns, Layout, part

__all__ = ["GATHERED_ROWS", "Block", "PackedRows", "gather"]

GATHERED_ROWS = 2**15
"""Most rows that are copied together; blocks without a copy may be larger."""

# Where at most one document in so many is unwanted, blocks are as large as where all are wanted.
_MOSTLY = 8


@dataclass(frozen=True)
class Block:
    """Documents that are scored together: neighbours, without a copy, or gathered from anywhere.

    Attributes:
        positions: Places of the documents whose vectors these are, ``(documents,)`` int64.
        columns: Their vectors.
        lengths: Tokens of each, ``(documents,)`` int64.
    """

    positions: torch.Tensor
    columns: Columns
    lengths: torch.Tensor


class PackedRows:
    """Vectors of documents, which only ever grow at the end.

    What was written never changes, so readers need no lock: a reader that knows how many documents there were sees
    these whole, whatever is written behind them.

    Args:
        layout: Form of the vectors.
        columns: The memory: as many rows as there can ever be.

    Attributes:
        layout: Form of the vectors.
        columns: The memory.
        bounds: Where documents begin, in rows; the last entry is the number of rows in use.
    """

    def __init__(self, layout: Layout, columns: Columns) -> None:
        self.layout = layout
        self.columns = columns
        self.bounds = [0]
        self._lengths = torch.empty(0, dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def capacity(self) -> int:
        """Rows that fit."""
        return len(next(tensor for name, tensor in self.columns.items() if name not in PER_DOCUMENT))

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return next(iter(self.columns.values())).device

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [stop - start for start, stop in pairwise(self.bounds[: len(self) + 1])]

    def write(self, columns: Columns, lengths: Sequence[int]) -> None:
        """Add vectors of documents that fit; one writer at a time.

        Args:
            columns: The vectors, in this layout.
            lengths: Tokens of each document.
        """
        document = len(self)
        del self.bounds[document + 1 :]  # what an interrupted call left behind the documents that there are
        first = self.bounds[-1]
        for name, tensor in columns.items():
            start = document if name in PER_DOCUMENT else first
            self.columns[name][start : start + len(tensor)].copy_(tensor)
        if self.device.type == "cuda":  # a reader may be on another stream, which would not wait for this one
            torch.cuda.current_stream(self.device).synchronize()
        self.note(lengths)

    def note(self, lengths: Sequence[int]) -> None:
        """Take note of documents whose vectors are in place."""
        for length in lengths:
            self.bounds.append(self.bounds[-1] + length)

    # ------------------------------------------------------------------------------------------------------ blocks

    def block(self, start: int, stop: int) -> Block:
        """Neighbouring documents, without a copy."""
        rows, documents = slice(self.bounds[start], self.bounds[stop]), slice(start, stop)
        columns = part(self.columns, documents, rows)
        return Block(torch.arange(start, stop, device=self.device), columns, self._lengths_of(stop)[start:stop])

    def gather(self, positions: Sequence[int]) -> Block:
        """Documents from anywhere, copied together.

        Args:
            positions: Places of at least one document.

        Returns:
            Their vectors, in the order of ``positions``.
        """
        return gather([(self, position) for position in positions])

    def blocks(self, wanted: torch.Tensor, rows: int) -> Iterator[Block]:
        """The wanted documents, in blocks of a bounded size.

        Args:
            wanted: Which of the first documents, ``(documents,)`` bool on the CPU.
            rows: Maximum number of rows of a block; a document with more stands alone.

        Yields:
            Blocks; some of their documents may not be wanted, where leaving them out would cost more than it saves.
        """
        bounds, everything = self.bounds, bool(wanted.all())
        rest, rest_rows = list[int](), 0
        rows = rows if _MOSTLY * int(wanted.sum()) >= len(wanted) * (_MOSTLY - 1) else min(rows, GATHERED_ROWS)
        for start, stop in ranges(bounds, rows, len(wanted)):
            if everything or 2 * int(wanted[start:stop].sum()) >= stop - start:
                yield self.block(start, stop)
                continue
            chosen = (wanted[start:stop].nonzero()[:, 0] + start).tolist()
            rest += chosen
            rest_rows += sum(map(self.length_of, chosen))
            if rest_rows >= rows:
                yield self.gather(rest)
                rest, rest_rows = [], 0
        if rest:
            yield self.gather(rest)

    def length_of(self, position: int) -> int:
        """Tokens of a document."""
        return self.bounds[position + 1] - self.bounds[position]

    def _lengths_of(self, documents: int) -> torch.Tensor:
        """Tokens of at least the first documents, ``(documents or more,)`` int64."""
        lengths = self._lengths
        if len(lengths) < documents:  # made anew when it has grown: a list, block by block, cost as much as scoring
            bounds = self.bounds[: len(self) + 1]
            # Copied last: a copy from the host is waited for, so they are there for readers on other streams too.
            lengths = self._lengths = torch.tensor(bounds, device="cpu").diff().to(self.device)
        if lengths.is_cuda:  # another reader's stream made them, and must not have their memory back before this one
            lengths.record_stream(torch.cuda.current_stream(self.device))
        return lengths


def gather(places: Sequence[tuple[PackedRows, int]]) -> Block:
    """Documents from anywhere, copied together.

    Args:
        places: Rows, all on one device and in one layout, and the place of a document there, for at least one.

    Returns:
        Their vectors, in this order.
    """
    pieces = [_columns_of(packed, position) for packed, position in places]
    columns = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    lengths = np.array([packed.length_of(position) for packed, position in places], np.int64)
    positions = np.array([position for _, position in places], np.int64)
    device = places[0][0].device
    return Block(send(positions, device), columns, send(lengths, device))


def _columns_of(packed: PackedRows, position: int) -> dict[str, torch.Tensor]:
    """The columns of a document, without a copy."""
    rows = slice(packed.bounds[position], packed.bounds[position + 1])
    return part(packed.columns, slice(position, position + 1), rows)
