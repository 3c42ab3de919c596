"""PackedForward: the forward pass of BERT and ModernBERT on a CPU, over real tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .attention import Run, Runs
from .linear import linear_maker
from .packed_models import PackedBert, PackedModel, PackedModernBert
from .tokens import TokenSequence

__all__ = ["PackedForward", "can_pack"]

_MODELS: dict[str, type[PackedModel]] = {"bert": PackedBert, "modernbert": PackedModernBert}


def can_pack(backbone: Any, attn_implementation: str | None) -> bool:
    """Whether a backbone is one that ``PackedForward`` runs.

    Args:
        backbone: A transformers model.
        attn_implementation: The attention that was asked for. None: any.

    Returns:
        True for transformers' own BERT and ModernBERT with positions and activations that are known; all others keep
        the general path.
    """
    known = _MODELS.get(backbone.config.model_type)
    own = type(backbone).__module__.startswith("transformers.models.")
    return known is not None and own and attn_implementation in (None, "sdpa") and known.fits(backbone)


class PackedForward:
    """A forward pass without padding.

    The tokens of all sequences are one matrix through the linear layers; attention goes by runs of sequences of equal
    length. So nothing is computed that is thrown away, and no mask is needed.

    Args:
        backbone: A model for which ``can_pack`` holds, on the CPU, in the dtype of the vectors between layers.
        projection: The layers between hidden states and vectors, float32.
        dtype: Of the linear layers: float32, bfloat16 or int8.

    Attributes:
        packed: A batch costs as much as it has tokens; see ``Forward``.
        device: The CPU.
    """

    packed = True

    def __init__(self, backbone: Any, projection: nn.Module, dtype: torch.dtype) -> None:
        self._model = _MODELS[backbone.config.model_type](backbone, linear_maker(dtype))
        self._projection = projection
        self.device = torch.device("cpu")

    @torch.no_grad()
    def __call__(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """Run a batch; see ``Forward``."""
        ids = torch.tensor([token for sequence in sequences for token in sequence.ids], dtype=torch.int64)
        positions = torch.cat([torch.arange(len(sequence.ids)) for sequence in sequences])
        hidden = self._model(ids, positions, _runs(sequences))  # (tokens, hidden)
        projected: torch.Tensor = self._projection(hidden)  # (tokens, dim)
        return projected


def _runs(sequences: Sequence[TokenSequence]) -> Runs:
    """Neighbours of equal shape together."""
    runs, first = list[Run](), 0
    for sequence in sequences:
        length = len(sequence.ids)
        last = runs[-1] if runs else None
        if last is not None and (last.length, last.attended) == (length, sequence.attended):
            runs[-1] = last._replace(sequences=last.sequences + 1)
        elif length:
            runs.append(Run(first, 1, length, sequence.attended))
        first += length
    return Runs(runs)
