"""The compiled kernel, where it is installed: loads ``colbert_integrations_kernel``; scoring and encoding call it."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import lru_cache

__all__ = ["Kernel", "load"]

_INT, _LONG, _ADDRESS = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class Kernel:
    """The functions of the compiled library (``kernel/src/kernel.h``), for one instruction set of this CPU.

    Args:
        library: The library.
        rank: Which instruction set, 0 the best; others are there to be tested.
    """

    def __init__(self, library: ctypes.CDLL, rank: int = 0) -> None:
        library.maxsim_instruction_set.restype = ctypes.c_char_p
        library.maxsim_packed_bytes.restype = _LONG
        library.maxsim_packed_bytes.argtypes = [_INT, _INT, _LONG, _LONG]
        library.maxsim_pack.restype = None
        library.maxsim_pack.argtypes = [_INT, _INT, _ADDRESS, _LONG, _LONG, _ADDRESS]
        self.library, self.rank = library, rank

    @property
    def instruction_sets(self) -> list[str]:
        """Names of the instruction sets that this CPU runs, best first."""
        names, rank = list[str](), 0
        while (name := self.library.maxsim_instruction_set(rank)) is not None:
            names, rank = [*names, name.decode()], rank + 1
        return names

    def with_instruction_set(self, name: str) -> Kernel:
        """The same library with another instruction set of this CPU."""
        return Kernel(self.library, self.instruction_sets.index(name))


@lru_cache(maxsize=1)
def load() -> Kernel | None:
    """Load the kernel.

    Returns:
        The kernel; None if it is not installed.
    """
    if importlib.util.find_spec("colbert_integrations_kernel") is None:
        return None
    from colbert_integrations_kernel import LIBRARY

    return Kernel(ctypes.CDLL(str(LIBRARY)))  # its calls give up the interpreter lock while they run
