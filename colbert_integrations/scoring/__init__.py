"""The one door to scoring: checks what it is given, then hands it to the implementation that fits.

``reference.py`` is the definition in plain loops. ``ragged.py`` goes through a batch block by block, ``stacked.py``
says how a block is scored, and ``engines.py`` by what: on a CPU by the compiled kernel (``compiled.py``) where it is
installed, else by oneDNN (``onednn.py``) where torch has it; on a GPU by the Triton kernels (``triton.py``,
``triton_kernels.py``) where they fit (``triton_or_torch.py``); else by torch's own operations (``torch_alone.py``).
``blocks.py`` holds what several share. Stores score by these engines too, on blocks of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..devices import no_autocast
from ..embeddings import TokenEmbeddings, check_tensor
from ..errors import InputError, ShapeError
from .engines import engine_for, stack_queries
from .ragged import ragged_maxsim
from .stacked import StackedQueries

__all__ = ["StackedQueries", "engine_for", "maxsim", "stack_queries"]


def maxsim(
    queries: TokenEmbeddings | Sequence[torch.Tensor | np.ndarray],
    documents: TokenEmbeddings | Sequence[torch.Tensor | np.ndarray],
) -> torch.Tensor:
    """Score every query against every document by late interaction.

    ``scores[i, j] = sum_s max_t <queries[i][s], documents[j][t]>`` over real tokens only.

    Args:
        queries: Token vectors of the queries, as ``TokenEmbeddings`` or a list of ``(num_tokens_i, dim)`` tensors or
            arrays, any real dtype. Moved to the documents' device.
        documents: Token vectors of the documents, in the same forms and of the same ``dim``. Those in half precision
            may be multiplied as such, the queries rounded to it.

    Returns:
        ``(len(queries), len(documents))`` float32 on the documents' device, accumulated in float32 whatever the
        input dtype (in float64 where an input is float64). A document without vectors scores ``-inf``; a query
        without vectors scores 0 against the others. Sums, not means: comparable within one query only.

    Raises:
        InputError: If an argument is neither ``TokenEmbeddings`` nor a list of tensors or arrays.
        ShapeError: If one is not 2-D or the dimensions differ.

    Source:
        Khattab & Zaharia 2020, arXiv:2004.12832, equation 3. A padding row never takes part, so negative maxima
        survive, unlike in implementations that multiply by a 0/1 mask.

    Example:
        >>> import torch
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> document = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
        >>> maxsim([query], [document, -document]).tolist()
        [[1.5, 0.0]]
    """
    packed_queries, listed = _packed(queries, "queries"), _listed(documents)
    vectors = listed.values if isinstance(listed, TokenEmbeddings) else listed[0]
    dim, device = vectors.shape[1], vectors.device
    if not len(packed_queries) or not len(listed):
        return torch.zeros(len(packed_queries), len(listed), dtype=torch.float32, device=device)
    if packed_queries.dim != dim:
        raise ShapeError(f"queries have dim {packed_queries.dim}, documents have dim {dim}")
    with no_autocast(device):
        return ragged_maxsim(packed_queries.to(device), listed)


def _listed(
    documents: TokenEmbeddings | Sequence[torch.Tensor | np.ndarray],
) -> TokenEmbeddings | Sequence[torch.Tensor]:
    """The documents as they are if there are any and all are alike, else packed."""
    if isinstance(documents, (TokenEmbeddings, torch.Tensor)) or not isinstance(documents, Iterable):
        return _packed(documents, "documents")
    matrices = list(documents)
    tensors = [matrix for matrix in matrices if isinstance(matrix, torch.Tensor) and matrix.ndim == 2]
    kinds = {(matrix.shape[1], matrix.dtype, matrix.device, matrix.layout) for matrix in tensors}
    if len(kinds) != 1 or len(tensors) < len(matrices):
        return _packed(matrices, "documents")
    check_tensor("documents[0]", tensors[0])  # and so the others
    return tensors


def _packed(side: TokenEmbeddings | Sequence[torch.Tensor | np.ndarray], name: str) -> TokenEmbeddings:
    if isinstance(side, TokenEmbeddings):
        return side
    if isinstance(side, torch.Tensor) and side.ndim != 3:
        raise ShapeError(f"{name} must be a list of (num_tokens, dim) tensors, not one of shape {tuple(side.shape)}")
    if not isinstance(side, Iterable):
        raise InputError(f"{name} must be TokenEmbeddings or a list of 2-D tensors, not {type(side).__name__}")
    matrices = list(side)
    for place, matrix in enumerate(matrices):
        if not isinstance(matrix, (torch.Tensor, np.ndarray)):
            raise InputError(f"{name}[{place}] must be a 2-D tensor or array, not {type(matrix).__name__}")
    # An empty list says nothing of its dimension, and with no rows none is needed.
    return TokenEmbeddings.from_list(matrices, dim=None if matrices else 0)
