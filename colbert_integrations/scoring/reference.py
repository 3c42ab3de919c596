"""MaxSim as its definition, in plain loops: the oracle that every faster path is measured against."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["reference_maxsim"]


def reference_maxsim(queries: Iterable[torch.Tensor], documents: Iterable[torch.Tensor]) -> torch.Tensor:
    """Score by the formula, one pair at a time, in float64.

    ``scores[i, j] = sum_s max_t <queries[i][s], documents[j][t]>``

    Args:
        queries: ``(num_tokens_i, dim)`` tensors, any real dtype.
        documents: The same, of the same ``dim``.

    Returns:
        ``(num_queries, num_documents)`` float64 on the CPU; ``-inf`` for a document without tokens.

    Source:
        Khattab & Zaharia 2020, arXiv:2004.12832, equation 3.
    """
    documents = [document.detach().cpu().double() for document in documents]
    rows = [[_pair(query.detach().cpu().double(), document) for document in documents] for query in queries]
    return torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(len(rows), len(documents))


def _pair(query: torch.Tensor, document: torch.Tensor) -> float:
    if not len(document):
        return float("-inf")
    return sum(max(float(token @ other) for other in document) for token in query)
