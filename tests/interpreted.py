"""Triton's interpreter in place of a GPU, where there is none, with what it lacks repaired."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is decorated, thus when one is first launched

_UNREPAIRED: list = []


@contextmanager
def interpreted(kernels: ModuleType) -> Iterator[None]:
    """Interpret the kernels of a module, which has ``larger`` and ``added`` to reduce by; nothing on a GPU.

    The interpreter reduces by a function of ours one element at a time in Python, and multiplies the bits of bfloat16
    as if they were integers.
    """
    if DEVICE.type == "cuda":
        yield
        return
    from triton.runtime import interpreter

    dot, reduce = interpreter.InterpreterBuilder.create_dot, interpreter.ReduceOps.generic_reduce
    _UNREPAIRED.append(reduce)

    def fast_reduce(self, tensors):
        # Of NumPy's maxima np.max is the one that keeps a NaN.
        return [self.min_max(tensors[0], np.max if self.combine_fn is kernels.larger else np.sum)]

    def true_dot(self, a, b, accumulator, *options):
        return dot(self, _widened(a), _widened(b), accumulator, *options)

    with pytest.MonkeyPatch.context() as patch:
        # Read where a kernel is decorated; something may have imported it before.
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.reload(kernels)
        patch.setattr(interpreter.ReduceOps, "generic_reduce", fast_reduce)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", true_dot)
        yield


@contextmanager
def reduced_one_by_one() -> Iterator[None]:
    """Reduce as on a GPU, element by element: slow in the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            from triton.runtime import interpreter

            patch.setattr(interpreter.ReduceOps, "generic_reduce", _UNREPAIRED[-1])
        yield


def _widened(handle):
    """bfloat16 as the float32 that it is the upper half of."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
