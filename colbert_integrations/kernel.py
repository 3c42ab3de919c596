"""The compiled kernel, where it is installed: what ``kernel.h`` declares, for scoring and encoding to call."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from enum import IntEnum
from functools import lru_cache
from typing import Literal, TypeAlias

import torch

__all__ = [
    "ACTIVATIONS",
    "FEW_BITS",
    "STORAGES",
    "Activation",
    "Arithmetic",
    "AttentionJob",
    "Kernel",
    "LinearJob",
    "MaxSimJob",
    "NormJob",
    "address",
    "load",
]

_log = logging.getLogger(__name__)

_INT, _LONG, _FLOAT, _ADDRESS = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p

_INTERFACE = 4  # that of kernel.h

Activation: TypeAlias = Literal["none", "gelu", "gelu_tanh", "relu"]

STORAGES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
"""``enum storage`` of ``kernel.h``: the forms in which vectors can be."""

FEW_BITS = {4: 4, 2: 5}
"""The same for vectors in so many bits a coordinate."""

ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
"""``enum activation`` of ``kernel.h``: what follows the sums of a linear layer."""


class Arithmetic(IntEnum):
    """The numbers that products are made in: ``enum arithmetic`` of ``kernel.h``."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the side that is packed, as the kernel takes it."""
        return torch.int8 if self is Arithmetic.INT8 else torch.float32

    @property
    def coordinates(self) -> int:
        """How many coordinates are multiplied at once; the dimension must be a multiple of it."""
        return {Arithmetic.FLOAT32: 1, Arithmetic.BFLOAT16: 2, Arithmetic.INT8: 4}[self]


# The jobs, field by field as in ``kernel.h``, which says what each is.


class MaxSimJob(ctypes.Structure):
    """``struct maxsim`` of ``kernel.h``."""

    _fields_ = [
        ("storage", _INT),
        ("arithmetic", _INT),
        ("dim", _LONG),
        ("rows", _ADDRESS),
        ("matrices", _ADDRESS),
        ("row_scales", _ADDRESS),
        ("levels", _ADDRESS),
        ("document_steps", _ADDRESS),
        ("bounds", _ADDRESS),
        ("documents", _LONG),
        ("packed", _ADDRESS),
        ("token_steps", _ADDRESS),
        ("token_sums", _ADDRESS),
        ("query_bounds", _ADDRESS),
        ("queries", _LONG),
        ("scores", _ADDRESS),
    ]


class AttentionJob(ctypes.Structure):
    """``struct attention`` of ``kernel.h``."""

    _fields_ = [
        ("storage", _INT),
        ("sequences", _LONG),
        ("heads", _LONG),
        ("head_dim", _LONG),
        ("stride", _LONG),
        ("window", _LONG),
        ("scale", _FLOAT),
        ("queries", _ADDRESS),
        ("keys", _ADDRESS),
        ("values", _ADDRESS),
        ("bounds", _ADDRESS),
        ("attended", _ADDRESS),
        ("cosines", _ADDRESS),
        ("sines", _ADDRESS),
        ("out", _ADDRESS),
    ]


class LinearJob(ctypes.Structure):
    """``struct linear`` of ``kernel.h``."""

    _fields_ = [
        ("arithmetic", _INT),
        ("activation", _INT),
        ("rows", _LONG),
        ("inputs", _LONG),
        ("outputs", _LONG),
        ("x", _ADDRESS),
        ("packed", _ADDRESS),
        ("steps", _ADDRESS),
        ("sums", _ADDRESS),
        ("bias", _ADDRESS),
        ("factors", _ADDRESS),
        ("out", _ADDRESS),
    ]


class NormJob(ctypes.Structure):
    """``struct norm`` of ``kernel.h``."""

    _fields_ = [
        ("storage", _INT),
        ("rows", _LONG),
        ("width", _LONG),
        ("eps", _FLOAT),
        ("left", _ADDRESS),
        ("right", _ADDRESS),
        ("weight", _ADDRESS),
        ("bias", _ADDRESS),
        ("total", _ADDRESS),
        ("normed", _ADDRESS),
        ("rounded", _ADDRESS),
    ]


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's numbers lie, for a job; None, which C reads as NULL, for none."""
    return None if tensor is None else tensor.data_ptr()


class Kernel:
    """The functions of the compiled library (``kernel.h``), for one instruction set of this CPU.

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
        names = list[str]()
        while (name := self.library.maxsim_instruction_set(len(names))) is not None:
            names.append(name.decode())
        return names

    @property
    def instruction_set(self) -> str:
        """Name of the instruction set that is used."""
        return self.instruction_sets[self.rank]

    def with_instruction_set(self, name: str) -> Kernel:
        """The same library with another instruction set of this CPU."""
        return Kernel(self.library, self.instruction_sets.index(name))

    def supports(self, arithmetic: Arithmetic, dim: int) -> bool:
        """Whether this CPU has instructions for such products, and they take this dimension."""
        return dim % arithmetic.coordinates == 0 and bool(self.library.maxsim_supports(self.rank, arithmetic))

    def pack(self, values: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
        """Lay out one side of a product for the inner loops.

        Args:
            values: Query tokens or weights, ``(rows, dim)`` of ``arithmetic.dtype`` on the CPU.
            arithmetic: What products will be made in; this CPU supports it for ``dim``.

        Returns:
            Opaque bytes, for this instruction set only.
        """
        values = values.contiguous()
        packed = torch.empty(
            self.library.maxsim_packed_bytes(self.rank, arithmetic, *values.shape), dtype=torch.uint8, device="cpu"
        )
        self.library.maxsim_pack(self.rank, arithmetic, values.data_ptr(), *values.shape, packed.data_ptr())
        return packed

    def run(self, name: Literal["maxsim_score", "attention", "linear", "norm"], job: ctypes.Structure) -> None:
        """Do a job with as many threads as torch takes, out of the same pool: both are OpenMP's.

        Args:
            name: Which function.
            job: What it is to do; the caller keeps alive what it points to.

        Raises:
            MemoryError: If a thread can't get its few hundred kB.
        """
        function = getattr(self.library, name)  # not library[name], which looks it up anew: 3% of a short query
        if function(self.rank, ctypes.byref(job), torch.get_num_threads()):
            raise MemoryError(f"not enough memory for {name} of the compiled kernel")


@lru_cache(maxsize=1)
def load() -> Kernel | None:
    """Load the kernel.

    Returns:
        The kernel; None if it is not installed, or if the system can't load it or it is of another version than this
        package, which is logged.
    """
    if importlib.util.find_spec("colbert_integrations_kernel") is None:
        return None
    from colbert_integrations_kernel import LIBRARY

    try:
        library = ctypes.CDLL(str(LIBRARY))  # its calls give up the interpreter lock while they run
        found = library.kernel_interface() if hasattr(library, "kernel_interface") else 1
    except OSError as error:  # such as no libgomp, where it was built elsewhere
        _log.warning("the compiled kernel can't be loaded, so torch does its work: %s", error)
        return None
    if found != _INTERFACE:  # a job of another shape would be read wrongly
        _log.warning(
            "the compiled kernel is of another version, so torch does its work: "
            "pip install -U 'colbert-integrations[kernel]'"
        )
        return None
    return Kernel(library)
