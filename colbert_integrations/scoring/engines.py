"""Which engine scores what: the one place that chooses among them."""

from __future__ import annotations

import torch

from .. import kernel as compiled
from ..embeddings import TokenEmbeddings
from . import onednn
from .compiled import CompiledQueries
from .stacked import StackedQueries
from .torch_alone import TorchQueries
from .triton import supports
from .triton_or_torch import TritonOrTorchQueries

__all__ = ["engine_for", "stack_queries"]


def stack_queries(queries: TokenEmbeddings, dtype: torch.dtype = torch.float32) -> StackedQueries:
    """Make queries ready to be scored by what is fastest where they are.

    On a CPU that is the compiled kernel where it is installed, else oneDNN where torch has it; on a GPU the Triton
    kernel for documents in half precision or int8; and torch does the rest.

    Args:
        queries: At least one query.
        dtype: To compute in, float32 or float64.

    Returns:
        The queries, on their device.
    """
    if dtype != torch.float32 or not queries.values.numel():
        return TorchQueries(queries, dtype)
    if queries.device.type == "cpu":
        kernel = compiled.load()
        if kernel is not None:
            return CompiledQueries(queries, kernel)
        if onednn.is_available():
            return onednn.OneDNNQueries(queries)
    elif queries.device.type == "cuda":
        return TritonOrTorchQueries(queries)
    return TorchQueries(queries)


def engine_for(device: torch.device, dim: int) -> str:
    """Say what scores vectors on a device, for a report to read.

    Args:
        device: Where documents are.
        dim: Dimension of the vectors.

    Returns:
        The kernel with its instruction set, or the library.
    """
    if device.type == "cpu":
        kernel = compiled.load()
        if kernel is not None:
            return f"compiled kernel ({kernel.instruction_set})"
        return "oneDNN" if onednn.is_available() else "torch"
    by_triton = supports(dim, torch.float16, device)
    return "Triton kernel for half precision, else torch" if by_triton else "torch"
