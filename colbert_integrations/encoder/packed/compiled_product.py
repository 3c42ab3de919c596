"""A linear layer and what follows it by the compiled kernel, in float32 or int8."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...kernel import ACTIVATIONS, Activation, Arithmetic, Kernel, LinearJob, address

__all__ = ["CompiledProduct"]

_WIDEST_PANEL = 32  # outputs that any instruction set takes together; it reads as many steps, sums and biases


class CompiledProduct:
    """``y = activation(W x + b) * factors``; in int8 with one step for each output and each token.

    Args:
        kernel: The kernel, for int8 on a CPU that multiplies in it.
        weight: ``(out_features, in_features)``, float32 or int8 codes.
        bias: ``(out_features,)`` float32, or None.
        activation: What follows.
        steps: What one step of the codes of each output is worth, ``(out_features,)`` float32. None: in float32.
    """

    def __init__(
        self,
        kernel: Kernel,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: Activation,
        steps: torch.Tensor | None = None,
    ) -> None:
        self._kernel, (self._outputs, self._inputs) = kernel, weight.shape
        self._arithmetic = Arithmetic.FLOAT32 if steps is None else Arithmetic.INT8
        missing = -self._inputs % self._arithmetic.coordinates
        self._packed = kernel.pack(functional.pad(weight, (0, missing)), self._arithmetic)
        self._steps = None if steps is None else _filled(steps)
        self._sums = None if steps is None else _filled(weight.sum(1, dtype=torch.int32))
        self._bias, self._activation = None if bias is None else _filled(bias), ACTIVATIONS[activation]

    def __call__(self, x: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
        """Map ``(tokens, in_features)`` float32 to ``(tokens, out_features)`` float32; factors are of that shape."""
        x, rows = x.contiguous(), x.shape[0]  # len(x) would cost a short query 1%
        out = torch.empty(rows, self._outputs, dtype=torch.float32, device="cpu")
        factors = None if factors is None else factors.contiguous()
        job = LinearJob(
            arithmetic=self._arithmetic,
            activation=self._activation,
            rows=rows,
            inputs=self._inputs,
            outputs=self._outputs,
            x=x.data_ptr(),
            packed=self._packed.data_ptr(),
            steps=address(self._steps),
            sums=address(self._sums),
            bias=address(self._bias),
            factors=address(factors),
            out=out.data_ptr(),
        )
        self._kernel.run("linear", job)
        return out


def _filled(of_outputs: torch.Tensor) -> torch.Tensor:
    return functional.pad(of_outputs, (0, -len(of_outputs) % _WIDEST_PANEL)).contiguous()
