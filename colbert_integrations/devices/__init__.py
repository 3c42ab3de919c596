"""What differs from device to device, for encoding, scoring and storing alike.

``choose.py`` says where things are and in which data type they run, ``cpu.py`` what a CPU multiplies fast,
``triton_check.py`` whether a GPU runs our kernels. ``transfer.py`` sends arrays there, ``autocast.py`` keeps torch from
rounding behind our back, ``cuda_graphs.py`` records work to have it done again.
"""

from __future__ import annotations

from .autocast import no_autocast
from .choose import choose_device, choose_dtype, indexed_device
from .cuda_graphs import CudaRecorder
from .transfer import on_cuda_device, ready, send
from .triton_check import triton_runs

__all__ = [
    "CudaRecorder",
    "choose_device",
    "choose_dtype",
    "indexed_device",
    "no_autocast",
    "on_cuda_device",
    "ready",
    "send",
    "triton_runs",
]
