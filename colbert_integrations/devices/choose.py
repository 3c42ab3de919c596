"""Where a model or a store is to be, and in which data type a model runs there."""

from __future__ import annotations

import torch

from ..errors import InputError

__all__ = ["choose_device", "choose_dtype", "indexed_device"]

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


def choose_device(device: str | torch.device | None) -> torch.device:
    """Decide where the model runs.

    Args:
        device: A torch device or its name. None: the first available of CUDA, MPS and the CPU.

    Returns:
        The device.

    Raises:
        InputError: If torch does not know it or this machine does not have it.
    """
    if device is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    indexed_device(device)
    return torch.device(device)


def indexed_device(device: str | torch.device) -> torch.device:
    """The device with its index: without one it means the current device, which differs from thread to thread.

    Args:
        device: A torch device or its name.

    Returns:
        The device, such as ``cuda:0`` for ``"cuda"``.

    Raises:
        InputError: If torch does not know it or this machine does not have it.
    """
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # torch raises RuntimeError, AssertionError or its own, by backend
        raise InputError(f"device={str(device)!r} can't be used on this machine: {error}") from error


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Decide the data type of the weights and the forward pass; normalisation and scores are float32 in any case.

    Args:
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"`` or torch's own. None: float32 on
            the CPU and MPS; on CUDA bfloat16 where the card has it, else float16. Never the checkpoint's: transformers
            would run a half-precision checkpoint in half precision even on a CPU.
        device: Where the model runs.

    Returns:
        The data type.

    Raises:
        InputError: If it is none of these, or float16 on a CPU, or int8 elsewhere.
    """
    if dtype is None:
        if device.type != "cuda":
            return torch.float32
        # Not is_bf16_supported, which counts cards that only imitate it.
        has_bfloat16 = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    chosen = _DTYPES.get(str(dtype).removeprefix("torch."))
    if chosen is None:
        raise InputError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    if chosen == torch.float16 and device.type == "cpu":
        raise InputError("dtype='float16' is unusably slow on a CPU: use 'bfloat16' or 'float32'")
    if chosen == torch.int8 and device.type != "cpu":
        raise InputError(f"dtype='int8' is for CPUs: use 'bfloat16' or 'float16' on {device.type}")
    return chosen
