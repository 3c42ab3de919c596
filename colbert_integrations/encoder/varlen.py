"""Attention over packed tokens on a GPU, by torch's variable-length flash attention."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from .transfer import send

__all__ = ["Part", "is_available", "parts", "varlen_attention"]

# Flash attention is written for these; float32 would not use tensor cores.
_HALVES = (torch.float16, torch.bfloat16)
_LONGEST_HEAD, _HEAD_STEP = 256, 8
_AMPERE = (8, 0)
_EVERYTHING = (-1, -1)


def is_available(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether torch attends to packed tokens by itself there.

    Args:
        device: Where the model is.
        dtype: Of queries, keys and values.
        head_dim: Dimension of a head.

    Returns:
        True on CUDA from Ampere on, in half precision, with a torch (2.11 or later) that knows windows too.
    """
    if device.type != "cuda" or dtype not in _HALVES or head_dim % _HEAD_STEP or head_dim > _LONGEST_HEAD:
        return False
    return _knows_windows() and torch.cuda.get_device_capability(device) >= _AMPERE


def _knows_windows() -> bool:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return "window_size" in inspect.signature(varlen_attn).parameters


class Part(NamedTuple):
    """Sequences that one call attends to.

    Attributes:
        queries: Rows of the tokens that see, ``(query_tokens,)`` int64; None: all rows.
        keys: Rows of the tokens that are seen, ``(key_tokens,)`` int64; None: all rows.
        query_bounds: Where each sequence's seeing tokens begin and the last end, ``(sequences + 1,)`` int32.
        key_bounds: The same for the seen ones.
        longest_query: Most seeing tokens of a sequence.
        longest_key: Most seen tokens of a sequence.
        window: How many tokens to the left and the right a token sees; -1: all.
    """

    queries: torch.Tensor | None
    keys: torch.Tensor | None
    query_bounds: torch.Tensor
    key_bounds: torch.Tensor
    longest_query: int
    longest_key: int
    window: tuple[int, int]


def parts(
    lengths: Sequence[int], attended: Sequence[int], window: int | None, device: torch.device
) -> tuple[Part, ...]:
    """Divide a batch into calls.

    Flash attention lays a window from the last key of the last query. Where all tokens of a sequence are seen, that is
    the window round each token. Where the tail is not seen, the tokens before it are such a sequence, and each token of
    the tail sees what is left of its own window.

    Args:
        lengths: Tokens of each sequence, at least one each.
        attended: How many leading tokens of each may be seen.
        window: How many tokens to either side a token sees. None: all.
        device: Where the tensors are to be.

    Returns:
        One part for a batch whose tokens are all seen, as almost all batches are; else those of its kinds.
    """
    starts = [0, *accumulate(lengths)]
    if list(lengths) == list(attended):
        return (_part(None, None, lengths, lengths, _sides(window), device),)
    if window is None or max(lengths) <= window + 1:
        seen = [range(start, start + count) for start, count in zip(starts, attended, strict=False)]
        return (_part(None, seen, lengths, attended, _EVERYTHING, device),)
    heads = [range(start, start + count) for start, count in zip(starts, attended, strict=False)]
    found = [_part(heads, heads, attended, attended, _sides(window), device)]
    # One token of a tail at a time: no window of flash attention ends where its own does. One that sees nothing is left
    # out, and so zero.
    tails = [
        (range(row, row + 1), range(max(head.start, row - window), head.stop))
        for head, length in zip(heads, lengths, strict=True)
        for row in range(head.stop, head.start + length)
        if row - window < head.stop
    ]
    if tails:
        rows, keys = zip(*tails, strict=True)
        found.append(_part(rows, keys, [1] * len(rows), [*map(len, keys)], _EVERYTHING, device))
    return tuple(found)


def _sides(window: int | None) -> tuple[int, int]:
    return _EVERYTHING if window is None else (window, window)


def _part(
    queries: Sequence[range] | None,
    keys: Sequence[range] | None,
    query_counts: Sequence[int],
    key_counts: Sequence[int],
    window: tuple[int, int],
    device: torch.device,
) -> Part:
    def rows(ranges: Sequence[range] | None) -> torch.Tensor | None:
        return None if ranges is None else send(np.array([row for span in ranges for row in span]), device)

    def bounds(counts: Sequence[int]) -> torch.Tensor:
        return send(np.array([0, *accumulate(counts)], dtype=np.int32), device)

    longest = max(query_counts), max(key_counts)
    return Part(rows(queries), rows(keys), bounds(query_counts), bounds(key_counts), *longest, window)


def varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: Sequence[Part]
) -> torch.Tensor:
    """Let the tokens of each sequence attend to each other.

    ``out = softmax(query key^T / sqrt(head_dim)) value``, for each head of each sequence

    Args:
        query: Of every token, ``(tokens, heads, head_dim)``, float16 or bfloat16 on a GPU.
        key: The same.
        value: The same.
        batch: As ``parts`` divides it.

    Returns:
        ``(tokens, heads, head_dim)``, of the dtype of the inputs.

    Source:
        Dao 2023, arXiv:2307.08691; torch/nn/attention/varlen.py.
    """
    if len(batch) == 1 and batch[0].queries is None:
        return _attend(query, key, value, batch[0])
    out = torch.zeros_like(query)
    for part in batch:
        assert part.queries is not None
        out[part.queries] = _attend(query, key, value, part)
    return out


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, part: Part) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # younger than the oldest torch that is supported

    if part.queries is not None:
        query = query[part.queries]
    if part.keys is not None:
        key, value = key[part.keys], value[part.keys]
    seen: torch.Tensor = varlen_attn(  # type: ignore[assignment]  # it returns more only where that is asked for
        query,
        key,
        value,
        part.query_bounds,
        part.key_bounds,
        part.longest_query,
        part.longest_key,
        window_size=part.window,
    )
    return seen
