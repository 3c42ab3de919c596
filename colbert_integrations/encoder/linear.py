"""Linear layers for the packed forward pass: torch's own, or on a CPU laid out once for oneDNN or rounded to int8."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch.nn import functional

from .. import kernel as compiled
from ..kernel import Arithmetic
from .native_linear import NativeLinear

__all__ = ["Activation", "Linear", "MakeLinear", "linear_maker"]

Activation: TypeAlias = Literal["none", "gelu", "gelu_tanh", "relu"]
MakeLinear: TypeAlias = Callable[[torch.Tensor, torch.Tensor | None, Activation], "Linear"]

_ONEDNN = {"none": ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "")}
_PLAIN: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
# Rows for which oneDNN chooses the layout of the weights; others run too.
_TYPICAL_ROWS = 2048


class Linear:
    """``y = activation(W x + b)``, in torch's own way; others do the same faster.

    Args:
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)``, or None.
        activation: What follows.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation = "none") -> None:
        self.weight, self.bias, self.activation = weight, bias, activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)``."""
        return _PLAIN[self.activation](functional.linear(x, self.weight, self.bias))

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``self(x) + other``, without an activation."""
        return self(x) + other

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``self(x) * other``, without an activation."""
        return self(x) * other


class PrepackedLinear(Linear):
    """The same by oneDNN, with weights in its own layout and what follows fused: twice MKL's speed on Zen 5.

    ``torch.set_float32_matmul_precision`` would bring oneDNN too, but for the whole process, and in bfloat16 on some
    CPUs.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation = "none") -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS), bias, activation)
        self._follows = _ONEDNN[activation]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)``."""
        name, algorithm = self._follows
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)
        return product

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``self(x) + other``, without an activation; fused where both are of one dtype."""
        return self._binary(x, other, "add") if x.dtype == other.dtype else self(x) + other

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``self(x) * other``, without an activation."""
        return self._binary(x, other, "mul")

    def _binary(self, x: torch.Tensor, other: torch.Tensor, name: str) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, name)
        return product


class Int8Linear(Linear):
    """The same in int8: weights rounded with one step for each output, inputs with one step for each token.

    float32 comes in and goes out. By the compiled kernel where it is installed and the CPU multiplies bytes, else by
    torch; both round alike. torch's own dynamic int8 is fast too, but takes one step for all tokens: with the weights
    of all-MiniLM-L6-v2 the least cosine to float32 is 0.947 then, and 0.992 with a step for each.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation = "none") -> None:
        steps = (weight.float().abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (weight.float() / steps[:, None]).round_().to(torch.int8)  # (out_features, in_features)
        bias, kernel = None if bias is None else bias.float(), compiled.load()
        usable = kernel is not None and kernel.supports(Arithmetic.INT8, dim=Arithmetic.INT8.coordinates)
        self._native = NativeLinear(kernel, codes, steps, bias) if kernel is not None and usable else None
        super().__init__(codes if self._native is None else codes[:0].clone(), bias, activation)
        self._steps = steps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)``."""
        return _PLAIN[self.activation](self._by_torch(x) if self._native is None else self._native(x))

    def _by_torch(self, x: torch.Tensor) -> torch.Tensor:
        steps = x.abs().amax(1, keepdim=True).div_(127)  # (tokens, 1)
        codes = (x / steps.clamp_min(torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
        product = torch._int_mm(codes, self.weight.T).float().mul_(steps)
        bias = torch.zeros(1, dtype=torch.float32, device="cpu") if self.bias is None else self.bias
        return torch.addcmul(bias, product, self._steps, out=product)


def linear_maker(dtype: torch.dtype) -> MakeLinear:
    """Choose the linear layers of a model on a CPU.

    Args:
        dtype: float32, bfloat16 or int8.

    Returns:
        What makes a layer of ``weight``, ``bias`` and ``activation``.
    """
    if dtype == torch.int8:
        return Int8Linear
    return PrepackedLinear if _has_onednn(dtype) else Linear


def _has_onednn(dtype: torch.dtype) -> bool:
    # On ARM torch's compiler leaves them out too: oneDNN has no fast product there that is fused with what follows.
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    # Private to torch, hence the checks.
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
