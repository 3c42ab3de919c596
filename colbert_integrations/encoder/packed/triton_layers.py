"""TritonLayers: the layers of ``layers.py`` on a GPU, with what lies between matrix products in Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .layers import Layers, Norm, Rotary, Stream
from .linear import Activation, Linear, TorchLinear
from .runs import Runs
from .triton_attention import attend

__all__ = ["TritonLayers"]

# Rows and columns of one program, as they took the least time on an H100.
_NORM_ROWS, _GATE_ROWS, _GATE_COLUMNS = 4, 4, 256
_WARPS = 8
# Of products that are followed by gelu. 32,768 tokens from 384 to 1,536: 114 us, and 147 by cuBLAS and torch, of which
# 74 are gelu. With twice the inputs cuBLAS should gain more than that; with fewer tokens multiprocessors would be idle.
_PRODUCT_TILE = {"ROWS": 128, "COLUMNS": 128, "STEP": 64}
_PRODUCT_OPTIONS = {"num_warps": 8, "num_stages": 3}
_MOST_INPUTS, _FEWEST_TOKENS = 512, 2048


class TritonLayers(Layers):
    """Layers whose norms, gates and rotations each read what they need and write what comes of it, once.

    What goes from layer to layer is in half precision, as in transformers: memory is the limit here, and float32 would
    take 50 us more for each norm of 768 numbers of 32,768 tokens. float16 is as fast as bfloat16, and eight times as
    exact.
    """

    def __init__(self) -> None:
        super().__init__(_linear)

    def norm(self, module: Any, dtype: torch.dtype) -> Norm:
        """Make a norm of a ``LayerNorm``, for linear layers that read ``dtype``."""
        return _TritonNorm(module, dtype)

    def gated(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Make a gated layer; see ``Gated``. Only gelu is fused, the one that published models have."""
        return _GeluGated(weight, bias) if activation == "gelu" else super().gated(weight, bias, activation)

    def attend(
        self, qkv: torch.Tensor, runs: Runs, window: int | None = None, rotary: Rotary | None = None
    ) -> torch.Tensor:
        """Let tokens attend to each other; see ``Layers``."""
        if rotary is not None:
            self.rotate(qkv[:, :2], rotary)
        query, key, value = qkv.unbind(1)  # each (tokens, heads, head_dim)
        return attend(query, key, value, runs.blocks(qkv.device), window)

    def rotate(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Turn ``(tokens, 2, heads, head_dim)`` in place, the first two of three that lie side by side."""
        from .triton_kernels import rotate_kernel

        tokens, _, heads, head_dim = x.shape
        half = head_dim // 2
        blocks = {"BLOCK_HEADS": _next_power_of_2(2 * heads), "BLOCK_HALF": _next_power_of_2(half)}
        if tokens:
            rotate_kernel[(tokens,)](x, *rotary, HEADS=heads, HALF=half, **blocks, num_warps=_WARPS)
        return x


class _TritonNorm(Norm):
    def of_embeddings(
        self,
        words: torch.Tensor,
        ids: torch.Tensor,
        others: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> Stream:
        normed = self._normed(len(ids), words, ids, others, positions)
        return normed, normed

    def post_norm(self, linear: Linear, inputs: torch.Tensor, residual: torch.Tensor) -> Stream:
        normed = self._normed(len(inputs), linear(inputs), None, residual)
        return normed, normed

    def pre_norm(self, linear: Linear, inputs: torch.Tensor, residual: torch.Tensor) -> Stream:
        assert isinstance(linear, TorchLinear)  # all that are made here are
        # In place: nobody else reads what came in.
        if linear.bias is not None:
            return residual, self._normed(len(inputs), linear(inputs), None, residual, total=residual)
        residual.addmm_(inputs, linear.weight.T)  # cuBLAS adds as it writes, one matrix less to move
        return residual, self._normed(len(inputs), residual)

    def _normed(
        self,
        tokens: int,
        left: torch.Tensor,
        left_rows: torch.Tensor | None = None,
        right: torch.Tensor | None = None,
        right_rows: torch.Tensor | None = None,
        total: torch.Tensor | None = None,
    ) -> torch.Tensor:
        from .triton_kernels import add_norm_kernel

        (width,) = self.shape
        normed = torch.empty(tokens, width, dtype=self.dtype, device=left.device)
        if tokens:
            add_norm_kernel[(-(-tokens // _NORM_ROWS),)](
                *(left, left_rows, right, right_rows, self.weight, self.bias, total, normed, tokens, self.eps),
                WIDTH=width,
                BLOCK=_next_power_of_2(width),
                ROWS=_NORM_ROWS,
                num_warps=_WARPS,
            )
        return normed


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> Linear:
    return (_GeluLinear if activation == "gelu" else TorchLinear)(weight, bias, activation)


class _GeluLinear(TorchLinear):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _gelu_product(x, self.weight, self.bias) if _pays(x, self.weight) else super().__call__(x)


class _GeluGated:
    """The gate and what it is for lie side by side, a row of weights of each in turn, so that one program has both."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._both = TorchLinear(_in_turn(weight), None if bias is None else _in_turn(bias))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _gate(self._both(x))


def _in_turn(halves: torch.Tensor) -> torch.Tensor:
    return torch.stack(halves.chunk(2), 1).flatten(0, 1)


def _gate(both: torch.Tensor) -> torch.Tensor:
    from .triton_kernels import gelu_gate_kernel

    tokens, width = len(both), both.shape[1] // 2
    out = torch.empty(tokens, width, dtype=both.dtype, device=both.device)
    if tokens:
        gelu_gate_kernel[-(-tokens // _GATE_ROWS), -(-width // _GATE_COLUMNS)](
            both, out, tokens, WIDTH=width, COLUMNS=_GATE_COLUMNS, ROWS=_GATE_ROWS, num_warps=_WARPS
        )
    return out


def _pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    outputs, inputs = weight.shape
    fits = outputs % _PRODUCT_TILE["COLUMNS"] == 0 and inputs % _PRODUCT_TILE["STEP"] == 0 and inputs <= _MOST_INPUTS
    return fits and len(x) >= _FEWEST_TOKENS and x.is_contiguous()


def _gelu_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    from .triton_kernels import gelu_product_kernel

    (tokens, inputs), outputs = x.shape, len(weight)
    out = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    grid = (-(-tokens // _PRODUCT_TILE["ROWS"]) * (outputs // _PRODUCT_TILE["COLUMNS"]),)
    gelu_product_kernel[grid](x, weight, bias, out, tokens, inputs, outputs, **_PRODUCT_TILE, **_PRODUCT_OPTIONS)
    return out


def _next_power_of_2(number: int) -> int:
    """The next power of 2."""
    return 1 << (number - 1).bit_length()
