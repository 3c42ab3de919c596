"""The forward pass: token ids in, one projected vector per token out. The seam where another engine can step in."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from ..checkpoint import Checkpoint, ColBERTSpec, DenseSpec
from ..errors import UnsupportedCheckpointError
from .tokens import TokenSequence

__all__ = ["Forward", "TorchForward", "build_projection", "count_parameters"]


class Forward(Protocol):
    """What runs the model on token ids; tokenisation, markers, skiplist and normalisation stay with the encoder.

    One with an attribute ``packed`` that is true does not pad, so batches for it are counted in real tokens. One with
    an attribute ``device`` says where its vectors are. One with an attribute ``num_parameters`` says how many numbers
    the model has learnt, which ``ColBERT.num_parameters`` gives; without it that is None.
    """

    def __call__(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """Run a batch.

        Args:
            sequences: At least one sequence; ``attended`` says how many of its tokens may be attended to, and
                ``unseen_first`` how many that may not come first.

        Returns:
            The projected vector of every token of every sequence, one after another, without padding and not
            normalised: ``(sum of len(ids), dim)``, any float dtype.
        """
        ...


class TorchForward:
    """The forward pass by transformers: any backbone, any device, with padding.

    Args:
        backbone: A transformers model.
        projection: The layers between hidden states and vectors.
        device: Where both are.

    Attributes:
        num_parameters: How many numbers both have learnt.
    """

    def __init__(self, backbone: Any, projection: nn.Module, device: torch.device) -> None:
        self.backbone, self.projection, self.device = backbone, projection, device
        self.num_parameters = count_parameters(backbone, projection)
        self._takes_cache = "use_cache" in self.backbone.config.to_dict()
        # Some releases of transformers (5.3 is one) hide unattended tokens from LFM2's convolutions, but not in a batch
        # of one.
        self._needs_two = self.backbone.config.model_type == "lfm2"
        # Only the backbone's own padding id is padding: PyLate saves the tokenizer's as the mask token, and RoBERTa
        # counts positions by comparing ids with this one.
        self._pad_id = getattr(self.backbone.config, "pad_token_id", None) or 0

    @torch.no_grad()
    def __call__(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """Pad a batch, run it, and drop the padding again."""
        width = max(len(sequence.ids) for sequence in sequences)
        ids = [sequence.ids + [self._pad_id] * (width - len(sequence.ids)) for sequence in sequences]
        seen = [(s.unseen_first, s.attended) for s in sequences]
        mask = [[0] * lead + [1] * attended + [0] * (width - lead - attended) for lead, attended in seen]
        if self._needs_two and len(ids) == 1 and not all(mask[0]):
            ids, mask = ids * 2, mask * 2
        real = [row * width + column for row, s in enumerate(sequences) for column in range(len(s.ids))]
        hidden = self._hidden(self._tensor(ids), self._tensor(mask))  # (batch, width, hidden)
        projected: torch.Tensor = self.projection(hidden.flatten(0, 1)[self._tensor(real)])  # (tokens, dim)
        return projected

    def _hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        extra: dict[str, Any] = {"use_cache": False} if self._takes_cache else {}
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **extra)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device="cpu").to(self.device, non_blocking=True)


def count_parameters(backbone: nn.Module, projection: nn.Module) -> int:
    """Count the parameters of a model.

    Args:
        backbone: A transformers model.
        projection: The layers between hidden states and vectors.

    Returns:
        The parameters of both, less a pooler, which no vector comes from.
    """
    own = [parameter for name, parameter in backbone.named_parameters() if not name.startswith("pooler.")]
    return sum(parameter.numel() for parameter in [*own, *projection.parameters()])


class Dense(nn.Module):
    """One layer of the projection: ``y = activation(W x + b)``, plus ``x`` or ``R x`` where it is residual.

    Args:
        spec: Widths, bias, activation, residual.
        tensors: ``linear.weight`` and, as the spec demands, ``linear.bias`` and ``residual.weight``.

    Source:
        pylate/models/Dense.py: the residual is added after the activation.
    """

    def __init__(self, spec: DenseSpec, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.in_features, spec.out_features, bias=spec.bias, dtype=torch.float32)
        self.activation = build_activation(spec.activation)
        self.residual: nn.Module | None = None
        if spec.residual:
            same = spec.in_features == spec.out_features
            linear = nn.Linear(spec.in_features, spec.out_features, bias=False, dtype=torch.float32)
            self.residual = nn.Identity() if same else linear
        # In float32: a head can be stored in another dtype than its backbone.
        self.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project ``(tokens, in_features)`` to ``(tokens, out_features)``."""
        projected: torch.Tensor = self.activation(self.linear(x))
        return projected if self.residual is None else projected + self.residual(x)


def build_projection(checkpoint: Checkpoint) -> nn.Module:
    """Build the layers between hidden states and vectors.

    Args:
        checkpoint: Spec and tensors of the layers.

    Returns:
        The chain in evaluation mode, float32 on the CPU; an identity for a plain encoder.

    Raises:
        UnsupportedCheckpointError: If an activation is unknown.
    """
    spec: ColBERTSpec = checkpoint.spec
    layers = [Dense(layer, tensors) for layer, tensors in zip(spec.projection, checkpoint.head, strict=True)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def build_activation(path: str) -> nn.Module:
    """Make an activation by its dotted path, from ``torch.nn`` or ``transformers.activations`` and nowhere else.

    Args:
        path: Such as ``torch.nn.modules.linear.Identity``.

    Returns:
        The module, with its default settings.

    Raises:
        UnsupportedCheckpointError: If the path is of another package, or is no module without arguments.
    """
    module, _, name = path.rpartition(".")
    if module == "torch.nn" or module.startswith(("torch.nn.modules.", "transformers.activations")):
        found = getattr(nn, name, None) if module.startswith("torch") else _transformers_activation(name)
        if isinstance(found, type) and issubclass(found, nn.Module):
            try:
                return found()
            except TypeError:
                pass
    raise UnsupportedCheckpointError(
        f"unknown activation {path!r}: only those of torch.nn and transformers.activations are loaded, since any "
        "other path would run code that the checkpoint names"
    )


def _transformers_activation(name: str) -> object:
    return getattr(importlib.import_module("transformers.activations"), name, None)
