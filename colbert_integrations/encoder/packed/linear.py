"""Linear layers for the packed forward pass: torch's own; on a CPU by oneDNN or the compiled kernel, or rounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch.nn import functional

from ... import kernel as compiled
from ...devices import cpu
from ...kernel import Activation, Arithmetic, Kernel
from .compiled_product import CompiledProduct

__all__ = ["Activation", "Linear", "MakeLinear", "TorchLinear", "linear_maker"]

MakeLinear: TypeAlias = Callable[[torch.Tensor, torch.Tensor | None, Activation], "Linear"]

_ONEDNN = {"none": ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "")}
_PLAIN: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
# Instruction sets in which the compiled kernel multiplies float32 faster. Measured on none with AVX-512 so far.
_FASTER_THAN_ONEDNN = ("avx2",)
# Rows for which oneDNN chooses the layout of the weights; others run too.
_TYPICAL_ROWS = 2048


class Linear(ABC):
    """``y = activation(W x + b)``, made of a ``weight``, a ``bias`` or None, and the name of an activation.

    Attributes:
        few_sizes: Whether few numbers of rows are better on a CPU than exact ones: torch's libraries may compile code
            for each, and keep it.
    """

    few_sizes = True

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)``."""

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``self(x) + other``, for layers without an activation only: it may be left out here."""
        return self(x) + other

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``self(x) * other``, for layers without an activation only: it may be left out here."""
        return self(x) * other


class TorchLinear(Linear):
    """Such a layer by torch's own operations.

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


class PrepackedLinear(Linear):
    """The same by oneDNN, with weights in its own layout and what follows fused: twice MKL's speed on Zen 5.

    ``torch.set_float32_matmul_precision`` would bring oneDNN too, but for the whole process, and in bfloat16 on some
    CPUs.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation = "none") -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)
        self._bias, self._follows = bias, _ONEDNN[activation]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)``."""
        name, algorithm = self._follows
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, name, [], algorithm)
        return product

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``self(x) + other``, fused where both are of one dtype."""
        return self._binary(x, other, "add") if x.dtype == other.dtype else self(x) + other

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``self(x) * other``, fused."""
        return self._binary(x, other, "mul")

    def _binary(self, x: torch.Tensor, other: torch.Tensor, name: str) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, name)
        return product


class CompiledLinear(Linear):
    """The same in float32 by the compiled kernel, with what follows fused.

    Besides, what comes of a token is the same to the last bit whoever shares its batch, and no code is compiled for a
    number of rows that was not met before.

    Args:
        kernel: The kernel.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)``, or None.
        activation: What follows.
    """

    few_sizes = False

    def __init__(
        self, kernel: Kernel, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation = "none"
    ) -> None:
        self._product = CompiledProduct(kernel, weight, bias, activation)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)``."""
        return self._product(x)

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``self(x) * other``, fused."""
        return self._product(x, other)


class WidenedLinear(Linear):
    """The same for bfloat16 in and out, on a CPU that does not multiply it: in float32, as oneDNN adds up elsewhere.

    The weights are rounded to bfloat16, and take the memory of float32.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation = "none") -> None:
        self._wide = linear_maker(torch.float32)(weight.float(), None if bias is None else bias.float(), activation)
        self.few_sizes = self._wide.few_sizes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)``."""
        return self._wide(x.float()).to(x.dtype)


class Int8Linear(Linear):
    """The same in int8: weights rounded with one step for each output, inputs with one step for each token.

    float32 comes in and goes out. By the compiled kernel where it is installed and the CPU multiplies bytes, else by
    torch; all round alike. torch's own dynamic int8 is fast too, but takes one step for all tokens: with the weights
    of all-MiniLM-L6-v2 the least cosine to float32 is 0.947 then, and 0.992 with a step for each.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation = "none") -> None:
        steps = (weight.float().abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (weight.float() / steps[:, None]).round_().to(torch.int8)  # (out_features, in_features)
        bias, kernel = None if bias is None else bias.float(), compiled.load()
        self._rounded: Callable[[torch.Tensor], torch.Tensor]
        if kernel is not None and kernel.supports(Arithmetic.INT8, dim=Arithmetic.INT8.coordinates):
            self._rounded = CompiledProduct(kernel, codes, bias, activation, steps)
            self.few_sizes = False
        else:
            self._rounded = _RoundedByTorch(codes, steps, bias, activation)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)``."""
        return self._rounded(x)


class _RoundedByTorch:
    """``CompiledProduct`` in torch: by integers where the CPU multiplies them, else by the same numbers in float32."""

    def __init__(
        self, codes: torch.Tensor, steps: torch.Tensor, bias: torch.Tensor | None, activation: Activation
    ) -> None:
        self._codes, self._steps, self._follow = codes, steps, _PLAIN[activation]
        self._bias = torch.zeros(1, dtype=torch.float32, device="cpu") if bias is None else bias
        self._wide = None if cpu.multiplies(torch.int8) else linear_maker(torch.float32)(codes.float(), None, "none")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        steps = x.abs().amax(1, keepdim=True).div_(127)  # (tokens, 1)
        codes = (x / steps.clamp_min(torch.finfo(torch.float32).tiny)).round_()
        if self._wide is None:
            product = torch._int_mm(codes.to(torch.int8), self._codes.T).float()
        else:
            product = self._wide(codes)
        product.mul_(steps)
        return self._follow(torch.addcmul(self._bias, product, self._steps, out=product))


def linear_maker(dtype: torch.dtype) -> MakeLinear:
    """Choose the linear layers of a model on a CPU.

    Args:
        dtype: float32, bfloat16 or int8.

    Returns:
        What makes a layer of ``weight``, ``bias`` and ``activation``.
    """
    if dtype == torch.int8:
        return Int8Linear
    if not cpu.multiplies(dtype):
        return WidenedLinear
    kernel = compiled.load()
    if dtype == torch.float32 and kernel is not None and kernel.instruction_set in _FASTER_THAN_ONEDNN:
        return partial(CompiledLinear, kernel)
    return PrepackedLinear if _has_onednn() else TorchLinear


def _has_onednn() -> bool:
    return cpu.has_onednn("_reorder_linear_weight", "_linear_pointwise")
