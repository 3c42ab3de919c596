"""Arithmetic as this package chose it, also where a caller has torch's autocast on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["no_autocast"]


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off within.

    It would round products behind our back, and what comes out may be kept and shared with other callers.

    Args:
        device: Where things are computed.

    Returns:
        A context; one that costs nothing where autocast is off.
    """
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()
