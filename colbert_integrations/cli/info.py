"""info: what a checkpoint says of itself, and how it would be run here."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..model import ColBERT
from ..scoring import engine_for
from .opening import open_model
from .output import Output

__all__ = ["run"]


def run(args: argparse.Namespace, output: Output) -> int:
    """Load a model and report on it.

    Args:
        args: What was asked.
        output: Where it is shown.

    Returns:
        0.

    Raises:
        InputError: If a setting is invalid.
        CheckpointError: If the model can't be loaded.
        MissingExtraError: If a package that the model needs is not installed.
    """
    model = open_model(args)
    spec = asdict(model.spec)
    sources, notes = spec.pop("sources"), spec.pop("notes")
    machine = _machine(model)
    if output.as_json:
        output.data({"model": model.settings.model, "spec": spec, "sources": sources, "notes": notes, **machine})
        return 0
    output.line(f"{model.spec}\n")
    output.line(("As it runs here", "bold"))
    for name, value in machine.items():
        output.line(f"  {name:<27}", f"{value:,}" if isinstance(value, int) else str(value))
    return 0


def _machine(model: ColBERT) -> dict[str, Any]:
    return {
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "dim": model.dim,
        "parameters": model.num_parameters,
        "maxsim": engine_for(model.device, model.dim),
        "fingerprint": model.fingerprint.digest,
    }
