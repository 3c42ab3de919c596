"""Attention over packed tokens on a CPU, by the compiled kernel or run by run in torch."""

from __future__ import annotations

import ctypes

import torch
from torch.nn import functional

from .. import kernel as compiled
from ..kernel import STORAGES, Kernel
from .runs import Runs

__all__ = ["attention"]


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, runs: Runs, window: int | None = None
) -> torch.Tensor:
    """Let the tokens of each sequence attend to each other.

    ``out = softmax(query key^T / sqrt(head_dim)) value``, for each head of each sequence

    Args:
        query: Of every token, ``(tokens, heads, head_dim)``, float32 or bfloat16.
        key: The same.
        value: The same.
        runs: The sequences.
        window: How many tokens to either side a token sees. None: all.

    Returns:
        ``(tokens, heads * head_dim)``, of the dtype of the inputs.

    Raises:
        MemoryError: If a thread of the kernel can't get room for the keys of one head.
    """
    kernel = compiled.load()
    if kernel is None:
        return _by_torch(query, key, value, runs, window)
    return _by_kernel(kernel, query, key, value, runs, window)


# ------------------------------------------------------------------------------------------------------- kernel


class _Job(ctypes.Structure):
    """``struct attention`` of ``kernel.h``."""

    _fields_ = [
        ("storage", ctypes.c_int32),
        ("sequences", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("queries", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("bounds", ctypes.c_void_p),
        ("attended", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    ]


def _by_kernel(
    kernel: Kernel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Runs,
    window: int | None,
) -> torch.Tensor:
    tokens, heads, head_dim = query.shape
    query, key, value = _alike(query, key, value)
    out = torch.empty(tokens, heads * head_dim, dtype=query.dtype, device=query.device)
    job = _Job(
        storage=STORAGES[query.dtype],
        sequences=len(runs.attended),
        heads=heads,
        head_dim=head_dim,
        stride=query.stride(0),
        window=-1 if window is None else window,
        scale=head_dim**-0.5,
        queries=query.data_ptr(),
        keys=key.data_ptr(),
        values=value.data_ptr(),
        bounds=runs.bounds.data_ptr(),
        attended=runs.attended.data_ptr(),
        out=out.data_ptr(),
    )
    kernel.run("attention", job)
    return out


def _alike(*sides: torch.Tensor) -> list[torch.Tensor]:
    """The same with the heads of a token side by side, and as far from one token to the next in all of them."""
    head_dim = sides[0].shape[-1]
    if len({side.stride(0) for side in sides}) == 1 and all(side.stride()[1:] == (head_dim, 1) for side in sides):
        return list(sides)
    return [side.contiguous() for side in sides]


# -------------------------------------------------------------------------------------------------------- torch


def _by_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, runs: Runs, window: int | None
) -> torch.Tensor:
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for run in runs:
        rows = slice(run.first, run.first + run.sequences * run.length)
        q, k, v = (
            side[rows].view(run.sequences, run.length, *query.shape[1:]).transpose(1, 2) for side in (query, key, value)
        )  # (sequences, heads, length, head_dim)
        # No mask: what may not be attended to lies at the end, and is cut off.
        k, v = k[:, :, : run.attended], v[:, :, : run.attended]
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=runs.band(run, window))
        out[rows] = seen.transpose(1, 2).reshape(-1, *query.shape[1:])
    return out.flatten(1)
