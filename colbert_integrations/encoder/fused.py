"""FusedLayers: the layers of ``layers.py`` on a GPU, with what lies between matrix products in Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .attention import Runs
from .gpu_attention import attend
from .layers import Layers, Norm, Stream, Turns
from .linear import Activation, Linear

__all__ = ["FusedLayers"]

# What layers add to on a GPU. None: the dtype of the linear layers, half the bytes.
_RESIDUAL: torch.dtype | None = torch.float32
# Rows and columns of one program; not timed on a GPU yet.
_NORM_ROWS, _GATE_ROWS, _GATE_COLUMNS = 4, 8, 128
_WARPS = 4


class FusedLayers(Layers):
    """Layers whose norms, gates and rotations each read what they need and write what comes of it, once."""

    def __init__(self) -> None:
        super().__init__(Linear)

    def norm(self, module: Any, dtype: torch.dtype) -> Norm:
        """Make a norm of a ``LayerNorm``, for linear layers that read ``dtype``."""
        return _FusedNorm(module, dtype)

    def gated(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Make a gated layer; see ``Gated``. Only gelu is fused, the one that published models have."""
        return _GeluGated(weight, bias) if activation == "gelu" else super().gated(weight, bias, activation)

    def attend(
        self, mixed: torch.Tensor, runs: Runs, window: int | None = None, turns: Turns | None = None
    ) -> torch.Tensor:
        """Let tokens attend to each other; see ``Layers``."""
        if turns is not None:
            self.rotate(mixed[:, :2], turns)
        return attend(*mixed.unbind(1), runs.blocks(mixed.device), window)

    def rotate(self, x: torch.Tensor, turns: Turns) -> torch.Tensor:
        """Turn ``(tokens, 2, heads, head_dim)`` in place, the first two of three that lie side by side."""
        from .triton_layers import rotate_kernel

        tokens, _, heads, head_dim = x.shape
        half = head_dim // 2
        blocks = {"BLOCK_HEADS": _power(2 * heads), "BLOCK_HALF": _power(half)}
        if tokens:
            rotate_kernel[(tokens,)](x, *turns, HEADS=heads, HALF=half, **blocks, num_warps=_WARPS)
        return x


class _FusedNorm(Norm):
    def of_embeddings(
        self,
        words: torch.Tensor,
        ids: torch.Tensor,
        places: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> Stream:
        return self._launch(len(ids), words, ids, places, positions, total=None)

    def of_sum(self, linear: Linear, inputs: torch.Tensor, residual: torch.Tensor) -> Stream:
        return self._launch(len(inputs), linear(inputs), None, residual, None, total=None)

    def beside_sum(self, linear: Linear, inputs: torch.Tensor, residual: torch.Tensor) -> Stream:
        # In place: nobody else reads what came in.
        return self._launch(len(inputs), linear(inputs), None, residual, None, total=residual)

    def _launch(
        self,
        tokens: int,
        left: torch.Tensor,
        left_rows: torch.Tensor | None,
        right: torch.Tensor | None,
        right_rows: torch.Tensor | None,
        total: torch.Tensor | None,
    ) -> Stream:
        from .triton_layers import add_norm_kernel

        (width,) = self.shape
        kept = _RESIDUAL or self.dtype
        normed = torch.empty(tokens, width, dtype=self.dtype, device=left.device)
        wide = torch.empty_like(normed, dtype=kept) if total is None and kept != self.dtype else None
        if tokens:
            add_norm_kernel[(-(-tokens // _NORM_ROWS),)](
                left,
                left_rows,
                right,
                right_rows,
                self.weight,
                self.bias,
                total,
                wide,
                normed,
                tokens,
                self.eps,
                WIDTH=width,
                BLOCK=_power(width),
                ROWS=_NORM_ROWS,
                num_warps=_WARPS,
            )
        return (normed if wide is None else wide) if total is None else total, normed


class _GeluGated:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._both, self._width = Linear(weight, bias), len(weight) // 2

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        from .triton_layers import gelu_gate_kernel

        both = self._both(x)  # (tokens, 2 * out_features)
        out = torch.empty(len(x), self._width, dtype=x.dtype, device=x.device)
        grid = -(-len(x) // _GATE_ROWS), -(-self._width // _GATE_COLUMNS)
        if len(x):
            gelu_gate_kernel[grid](
                both, out, len(x), WIDTH=self._width, COLUMNS=_GATE_COLUMNS, ROWS=_GATE_ROWS, num_warps=_WARPS
            )
        return out


def _power(number: int) -> int:
    """The next power of 2."""
    return 1 << (number - 1).bit_length()
