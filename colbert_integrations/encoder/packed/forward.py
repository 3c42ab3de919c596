"""PackedForward: the forward pass over real tokens only, for the families in ``models.py``, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from torch import nn

from ... import kernel as compiled
from ...devices import CudaRecorder, on_cuda_device, send
from ..backbone import position_limit
from ..batching import next_size
from ..forward import count_parameters
from ..tokens import TokenSequence
from . import triton_attention
from .compiled_layers import CompiledLayers
from .layers import Layers
from .linear import linear_maker
from .models import PackedBert, PackedJina, PackedModel, PackedModernBert, PackedRoberta
from .runs import Run, Runs
from .short_forward import ShortForward
from .triton_layers import TritonLayers

__all__ = ["PackedForward", "can_pack", "choose_layers"]

_MODELS: dict[str, type[PackedModel]] = {
    "bert": PackedBert,
    "camembert": PackedRoberta,
    "jina_embeddings_v3": PackedJina,
    "modernbert": PackedModernBert,
    "roberta": PackedRoberta,
    "xlm-roberta": PackedRoberta,
}
# Where linear layers compile code per size, batches are filled up to a few sizes, by texts of one token; see
# ``next_size``. It costs 2% on average, but a query of 6 to 17 tokens up to 30%.
_SIZES = 16
_FILLER = TokenSequence([0], 1, [], [None])


def can_pack(backbone: Any, attn_implementation: str | None) -> bool:
    """Whether a backbone is one that ``PackedForward`` runs.

    Args:
        backbone: A transformers model.
        attn_implementation: The attention that was asked for. None: any.

    Returns:
        True for transformers' own classes of the families in ``models.py``, with positions and activations that are
        known, on a CPU, or on a GPU that ``triton_attention`` is for; all others keep the general path.
    """
    known = _MODELS.get(backbone.config.model_type)
    own = type(backbone).__module__.startswith("transformers.models.")
    if known is None or not own or attn_implementation not in (None, "sdpa") or not known.fits(backbone):
        return False
    head_dim = backbone.config.hidden_size // backbone.config.num_attention_heads
    return backbone.device.type == "cpu" or triton_attention.is_available(backbone.device, backbone.dtype, head_dim)


def choose_layers(device: torch.device, dtype: torch.dtype) -> Layers:
    """Choose what a model is made of: the fastest layers that are there.

    Args:
        device: Where it is.
        dtype: Of its linear layers, on a CPU.

    Returns:
        Triton's on a GPU; on a CPU those of the compiled kernel where it is installed, else torch's.
    """
    if device.type == "cuda":
        return TritonLayers()
    kernel, linear = compiled.load(), linear_maker(dtype)
    return Layers(linear) if kernel is None else CompiledLayers(kernel, linear)


class PackedForward:
    """A forward pass without padding.

    The tokens of all sequences are one matrix through the linear layers; attention goes by runs of sequences of equal
    length, on a GPU by sequences of any length. So little is computed that is thrown away, and no mask is needed.

    Args:
        backbone: A model for which ``can_pack`` holds, in the dtype of its linear layers, or float32 for int8.
        projection: The layers between hidden states and vectors, float32, on the same device.
        dtype: Of the linear layers: that of the backbone, or int8.

    Attributes:
        packed: A batch costs as much as it has tokens; see ``Forward``.
        device: Where the model is.
        num_parameters: Number of parameters of backbone and projection.
    """

    packed = True

    def __init__(self, backbone: Any, projection: nn.Module, dtype: torch.dtype) -> None:
        self.device: torch.device = backbone.device
        self.num_parameters = count_parameters(backbone, projection)
        layers = choose_layers(self.device, dtype)
        self._model = _MODELS[backbone.config.model_type](backbone, layers)
        self._few_sizes = self.device.type == "cpu" and layers.few_sizes
        self._projection = projection
        self._short: ShortForward | None = None
        if self.device.type == "cuda":
            # Not a method of this object, which would then live until garbage is collected, and its weights with it.
            run = partial(_run, self._model, projection)
            longest = position_limit(backbone) or backbone.config.max_position_embeddings
            with on_cuda_device(self.device), torch.no_grad():
                self._short = ShortForward(run, self.device, CudaRecorder.of(self.device), longest)

    @torch.no_grad()
    def __call__(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """Run a batch; see ``Forward``."""
        with on_cuda_device(self.device):
            short = self._short(sequences[0]) if self._short is not None and len(sequences) == 1 else None
            if short is not None:
                return short
            missing = _missing(sequences) if self._few_sizes else 0
            filled = [*sequences, *[_FILLER] * missing]
            ids, positions = send(_rows(filled), self.device).unbind()  # each (tokens,)
            projected = _run(self._model, self._projection, ids, positions, _runs(filled))
            return projected[: len(projected) - missing]


def _run(
    model: PackedModel, projection: nn.Module, ids: torch.Tensor, positions: torch.Tensor, runs: Runs
) -> torch.Tensor:
    projected: torch.Tensor = projection(model(ids, positions, runs))  # (tokens, dim)
    return projected


def _missing(sequences: Sequence[TokenSequence]) -> int:
    """How many tokens a batch lacks of the next size."""
    tokens = sum(len(sequence.ids) for sequence in sequences)
    return next_size(tokens, _SIZES) - tokens


def _rows(sequences: Sequence[TokenSequence]) -> np.ndarray:
    """Ids of all tokens, and their positions, ``(2, tokens)`` int32."""
    lengths = np.array([len(sequence.ids) for sequence in sequences])
    tokens = int(lengths.sum())
    # From one iterator: as one list of Python it took nine times as long, more than a GPU needs for MiniLM.
    ids = np.fromiter(chain.from_iterable(sequence.ids for sequence in sequences), np.int32, tokens)
    positions = np.arange(tokens) - np.repeat(lengths.cumsum() - lengths, lengths)
    return np.stack([ids, positions.astype(np.int32)])


def _runs(sequences: Sequence[TokenSequence]) -> Runs:
    """Neighbours of equal shape together."""
    runs, first = list[Run](), 0
    for (length, attended), alike in groupby((len(sequence.ids), sequence.attended) for sequence in sequences):
        count = sum(1 for _ in alike)
        if length:
            runs.append(Run(first, count, length, attended))
        first += count * length
    return Runs(runs)
