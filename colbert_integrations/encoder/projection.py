"""The projection: the layers between hidden states and vectors, with activations by name and nothing else by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import torch
from torch import nn

from ..checkpoint import Checkpoint, ColBERTSpec, DenseSpec
from ..errors import UnsupportedCheckpointError

__all__ = ["build_projection"]


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
        UnsupportedCheckpointError: If the path is of another package, or is no module without arguments, or of one that
            is trained.
    """
    activation = _activation(path)
    if activation is None:
        raise UnsupportedCheckpointError(
            f"unknown activation {path!r}: only those of torch.nn and transformers.activations are loaded, since any "
            "other path would run code that the checkpoint names"
        )
    if activation.state_dict():
        raise UnsupportedCheckpointError(
            f"activation {path!r} has weights of its own, which are not loaded here: save the checkpoint with another"
        )
    return activation


def _activation(path: str) -> nn.Module | None:
    """The module of a path; None for other packages, for what is no module, and for one that needs arguments."""
    module, _, name = path.rpartition(".")
    if module == "torch.nn" or module.startswith("torch.nn.modules."):
        found = getattr(nn, name, None)
    elif module.startswith("transformers.activations"):
        found = getattr(importlib.import_module("transformers.activations"), name, None)
    else:
        return None
    if not isinstance(found, type) or not issubclass(found, nn.Module) or found.forward is nn.Module.forward:
        return None
    try:
        return found()
    except TypeError:
        return None
