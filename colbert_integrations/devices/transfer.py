"""Small arrays from the host to where the model is, without waiting for the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

__all__ = ["on_cuda_device", "ready", "send"]


def ready(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Make an array ready to be copied to a device.

    Args:
        values: Any shape.
        device: Where to.

    Returns:
        The same numbers on the host: for a GPU in pinned memory, which it reads by itself, else in the array's own.
    """
    here = torch.from_numpy(values)
    return here.pin_memory() if device.type == "cuda" else here


def send(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to a device.

    Args:
        values: Any shape.
        device: Where to. CUDA is not waited for: the copy joins what runs there. MPS is, since it might read the
            host's memory after that was given back.

    Returns:
        The same numbers; on a CPU they share the array's memory.
    """
    return ready(values, device).to(device, non_blocking=device.type == "cuda")


def on_cuda_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the one that kernels are launched on; for other devices, do nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
