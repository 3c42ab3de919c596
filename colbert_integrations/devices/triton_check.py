"""Whether Triton's kernels run on a device, found out by launching one; both kinds of kernels ask here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec

import torch

__all__ = ["triton_runs"]

_log = logging.getLogger(__name__)
_AMPERE = (8, 0)


def triton_runs(device: torch.device, trial: Callable[[], object], instead: str) -> bool:
    """Whether kernels can be launched on a device. Worth remembering, since it tries.

    Args:
        device: Any.
        trial: Launches one there. Triton needs a C compiler for that, which slim containers lack.
        instead: What is done otherwise, for the log.

    Returns:
        True for an NVIDIA GPU from Ampere on where ``triton`` is installed and works.

    Raises:
        torch.OutOfMemoryError: If the device has no room left, which says nothing about Triton.
    """
    if device.type != "cuda" or torch.version.cuda is None or find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(device) < _AMPERE:
        return False
    try:
        trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton, a compiler or CUDA: whatever it is, there is another way
        if "out of memory" in str(error):  # Triton says so by a RuntimeError of its own
            raise torch.OutOfMemoryError(str(error)) from error
        _log.warning("Triton does not work on %s, so %s: %s", device, instead, error)
        return False
    return True
