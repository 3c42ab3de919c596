"""A linear layer in int8 by the compiled kernel."""

from __future__ import annotations

import ctypes

import torch

from ..kernel import Arithmetic, Kernel

__all__ = ["NativeLinear"]


class _Job(ctypes.Structure):
    """``struct linear`` of ``kernel.h``."""

    _fields_ = [
        ("rows", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    ]


class NativeLinear:
    """``y = W x + b`` in int8, with one step for each output and each token.

    Args:
        kernel: The kernel, on a CPU that multiplies bytes.
        codes: The weights, ``(out_features, in_features)`` int8.
        steps: What one step of each output is worth, ``(out_features,)`` float32.
        bias: ``(out_features,)`` float32, or None.
    """

    def __init__(self, kernel: Kernel, codes: torch.Tensor, steps: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._kernel, (self._outputs, self._inputs) = kernel, codes.shape
        missing = -self._inputs % Arithmetic.INT8.coordinates
        self._packed = kernel.pack(torch.nn.functional.pad(codes, (0, missing)), Arithmetic.INT8)
        self._sums = codes.sum(1, dtype=torch.int32)
        self._steps = steps.contiguous()
        self._bias = None if bias is None else bias.contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` float32 to ``(tokens, out_features)`` float32."""
        x, out = x.contiguous(), torch.empty(len(x), self._outputs, dtype=torch.float32, device="cpu")
        job = _Job(
            rows=len(x),
            inputs=self._inputs,
            outputs=self._outputs,
            x=x.data_ptr(),
            packed=self._packed.data_ptr(),
            steps=self._steps.data_ptr(),
            sums=self._sums.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            out=out.data_ptr(),
        )
        self._kernel.run("linear", job)
        return out
