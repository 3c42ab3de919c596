"""Attention over packed tokens on a CPU in torch, run by run."""

from __future__ import annotations

import torch
from torch.nn import functional

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
    """
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
