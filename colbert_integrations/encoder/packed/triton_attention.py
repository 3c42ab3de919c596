"""Attention over packed tokens on a GPU, by a Triton kernel: what is computed ends with each sequence."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from ...devices import on_cuda_device, send, triton_runs

__all__ = ["Blocks", "attend", "divide", "is_available", "options"]

# float32 would not use the matrix units.
_HALVES = (torch.float16, torch.bfloat16)
_HEAD_DIMS = (16, 32, 64, 128)
# Tokens of a block and keys of a tile. On an H100, 32,768 tokens of 12 heads of 64 took 107 us so, 129 and more with
# blocks of 128, 182 by torch's varlen_attn; with a window of 64, 90 us and 268. Turning queries and keys in here too
# took 58 and 49 us more, little less than the 76 of turning them beforehand.
_BLOCK = _TILE = 64
_OPTIONS = {"num_warps": 4, "num_stages": 3}
# Three tiles of keys and values of so wide heads would not fit into the 99 KiB of the smaller cards.
_WIDE_HEAD = 128


def is_available(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel runs there.

    Args:
        device: Where the model is.
        dtype: Of queries, keys and values.
        head_dim: Dimension of a head.

    Returns:
        True on an NVIDIA GPU from Ampere on where ``triton`` is installed and works, in half precision, for heads of
        16, 32, 64 or 128.
    """
    return dtype in _HALVES and head_dim in _HEAD_DIMS and _runs(device)


@cache
def _runs(device: torch.device) -> bool:
    return triton_runs(device, lambda: _try(device), "models are run with padding")


def _try(device: torch.device) -> None:
    one = torch.zeros(1, 1, _HEAD_DIMS[0], dtype=_HALVES[0], device=device)
    bounds, attended = (torch.tensor(numbers, device="cpu") for numbers in ([0, 1], [1]))
    with on_cuda_device(device):
        attend(one, one, one, divide(bounds, attended, device))


class Blocks(NamedTuple):
    """How the tokens of a batch are dealt out; each sequence by itself.

    Attributes:
        bounds: Where each sequence begins and the last one ends, ``(sequences + 1,)`` int32.
        attended: How many leading tokens of each may be seen, ``(sequences,)`` int32.
        places: Sequence, and first token within it, of each block, ``(blocks, 2)`` int32.
    """

    bounds: torch.Tensor
    attended: torch.Tensor
    places: torch.Tensor


def divide(bounds: torch.Tensor, attended: torch.Tensor, device: torch.device) -> Blocks:
    """Deal out the tokens of a batch.

    Args:
        bounds: Where each sequence begins and the last one ends, ``(sequences + 1,)`` int64 on the CPU.
        attended: How many leading tokens of each may be seen, ``(sequences,)`` int64 on the CPU.
        device: Where the blocks are to be.

    Returns:
        The blocks, on their way to the device.
    """
    counts = -(-np.diff(bounds.numpy()) // _BLOCK)
    sequence = np.repeat(np.arange(len(counts)), counts)
    first = (np.arange(len(sequence)) - np.repeat(counts.cumsum() - counts, counts)) * _BLOCK
    # One copy instead of three.
    parts = [bounds.numpy(), attended.numpy(), np.stack([sequence, first], 1).ravel()]
    sent = send(np.concatenate(parts).astype(np.int32), device).split_with_sizes([*map(len, parts)])
    return Blocks(sent[0], sent[1], sent[2].view(-1, 2))


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: Blocks, window: int | None = None
) -> torch.Tensor:
    """Let the tokens of each sequence attend to each other.

    ``out = softmax(query key^T / sqrt(head_dim)) value``, for each head of each sequence

    Args:
        query: Of every token, ``(tokens, heads, head_dim)``; heads side by side.
        key: The same, with the same strides.
        value: The same, with the same strides.
        blocks: The sequences, as ``divide`` gives them.
        window: How many tokens to either side a token sees. None: all.

    Returns:
        ``(tokens, heads * head_dim)``, of the dtype of the inputs; 0 for a token that sees nothing.
    """
    from .triton_kernels import attention_kernel

    tokens, heads, head_dim = query.shape
    out = torch.empty(tokens, heads * head_dim, dtype=query.dtype, device=query.device)
    attention_kernel[(len(blocks.places) * heads,)](
        *(query, key, value, out, *blocks, query.stride(0), head_dim**-0.5 / math.log(2), window or 0),
        HEADS=heads,
        HEAD_DIM=head_dim,
        BLOCK=_BLOCK,
        TILE=_TILE,
        WINDOWED=window is not None,
        **options(head_dim),
    )
    return out


def options(head_dim: int) -> dict[str, int]:
    """What the kernel is compiled with for heads of a dimension."""
    return _OPTIONS if head_dim < _WIDE_HEAD else {**_OPTIONS, "num_stages": 2}
