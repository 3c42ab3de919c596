"""What a CPU multiplies fast in torch: not every one has products of bfloat16 and int8, nor oneDNN's."""

from __future__ import annotations

import platform

import torch

__all__ = ["has_onednn", "multiplies"]


def multiplies(dtype: torch.dtype) -> bool:
    """Whether torch has fast products of a dtype on this CPU.

    It makes them on every CPU, but without instructions for them number by number: on a Zen 3, which has AVX2 only,
    they take 8 times as long in bfloat16 as in float32, and 30 times as long in int8. Numbers of both can be
    multiplied in float32 instead, exactly.

    Args:
        dtype: float32, bfloat16 or int8.

    Returns:
        Whether it has; also not where that is unknown, as of int8 on other processors than x86.
    """
    if dtype == torch.int8:
        return torch.backends.cpu.get_cpu_capability() == "AVX512"
    if dtype == torch.bfloat16:
        # Private to torch, hence the check.
        asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return asked is not None and bool(asked())
    return True


def has_onednn(*operations: str) -> bool:
    """Whether torch has operations of oneDNN's under these names, on a CPU on which they are fast.

    They are private to torch, hence the check, and were measured on x86 only. On ARM torch's own compiler leaves them
    out too: oneDNN has no fast product there that is fused with what follows.

    Args:
        *operations: As ``torch.ops.mkldnn`` calls them.

    Returns:
        True on x86 where all of them are there.
    """
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    x86 = platform.machine() in ("x86_64", "AMD64")
    return x86 and available and all(hasattr(torch.ops.mkldnn, name) for name in operations)
