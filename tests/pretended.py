"""Tensors that say they are on a GPU and are computed on the CPU: what mixes devices fails, as it would there.

Speed, streams, pinned memory and what a GPU rounds otherwise are not pretended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
# These may take tensors of both.
_BOTH = {torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class OnCuda(torch.Tensor):
    """A tensor that says so."""

    device = CUDA  # type: ignore[assignment]
    is_cuda = True  # type: ignore[assignment]

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    def pin_memory(self, *args: Any) -> torch.Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _computed(function, args, dict(kwargs or {}))


class _Making(TorchFunctionMode):
    """Sees what takes no tensor too, such as ``torch.zeros``."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _computed(function, args, dict(kwargs or {}))


@contextmanager
def pretended_cuda(kernels: ModuleType) -> Iterator[None]:
    """Have ``"cuda"`` be such tensors, in this thread.

    Args:
        kernels: A module of Triton kernels, which are interpreted.

    Yields:
        Nothing.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
        patch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(torch.cuda, "current_stream", lambda *device: SimpleNamespace(synchronize=lambda: None))
        patch.setattr(torch.cuda, "mem_get_info", lambda *device: (10**9, 2 * 10**9))
        patch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
        for name in kernels.__all__:
            patch.setattr(kernels, name, _Kernel(getattr(kernels, name)))
        with _Making():
            yield


class _Kernel:
    """A kernel that takes no tensor of the CPU."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            given = [value for value in (*args, *options.values()) if isinstance(value, torch.Tensor)]
            assert all(isinstance(value, OnCuda) for value in given), "a kernel was given a tensor of the CPU"
            with torch._C.DisableTorchFunction():
                self._kernel[grid](*map(_here, args), **{name: _here(value) for name, value in options.items()})

        return launch


def _here(value: Any) -> Any:
    """The tensor that is computed with, which has the same memory."""
    return value.as_subclass(torch.Tensor) if isinstance(value, OnCuda) else value


def _there(value: Any) -> Any:
    return value.as_subclass(OnCuda) if isinstance(value, torch.Tensor) else value


def _computed(function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
    """What a function gives, on the device where torch would compute it."""
    with torch._C.DisableTorchFunction():
        given = [value for value in tree_leaves((args, options)) if isinstance(value, torch.Tensor)]
        on_cuda = [isinstance(tensor, OnCuda) for tensor in given]
        target = _target(function, args, options)
        if target is None and any(on_cuda) and function not in _BOTH:
            strangers = [tensor for tensor in given if tensor.dim() and not isinstance(tensor, OnCuda)]
            assert not strangers, f"{function.__name__} of tensors on the GPU and on the CPU"
        there = target.type == "cuda" if target is not None else any(on_cuda[:1])
        options.pop("pin_memory", None)  # which asks for a driver
        results = function(*tree_map(_without_cuda, args), **tree_map(_without_cuda, options))
        if target is not None and given and there != on_cuda[0]:
            results = results.clone()  # another device has memory of its own
        return tree_map(_there, results) if there else results


def _target(function: Callable[..., Any], args: Any, options: dict[str, Any]) -> torch.device | None:
    """The device that is asked for; None: that of the tensors."""
    if function is torch.Tensor.cpu:
        return torch.device("cpu")
    asked = options.get("device")
    if function is torch.Tensor.to:
        others = [value.device for value in (*args[1:], *options.values()) if isinstance(value, torch.Tensor)]
        named = [value for value in args[1:2] if isinstance(value, (str, torch.device))]
        asked = next(iter([*others, *named]), asked)
    return None if asked is None else torch.device(asked)


def _without_cuda(value: Any) -> Any:
    if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda")):
        return torch.device("cpu")
    return _here(value)
