"""The head of a checkpoint: the layers between hidden states and vectors, wherever a repository keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError, InputError, MissingWeightsError, UnsupportedCheckpointError
from .files import BGE_HEAD, METADATA, MODULES, ROOT_HEADS, Files
from .json_types import expect_type
from .spec import DenseSpec

__all__ = ["Head", "disputed_dims", "hidden_size", "orthonormal_head", "read_head"]

# Where config.json may state the dimension, in vLLM's order.
_DIM_KEYS = ("colbert_dim", "dim", "projection_dim")
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Head:
    """The projection.

    Attributes:
        layers: Its layers, in order; empty where there is none.
        tensors: For each layer ``linear.weight`` ``(out, in)`` and, as the layer demands, ``linear.bias`` ``(out,)``
            and ``residual.weight`` ``(out, in)``.
        source: Where it was found.
    """

    layers: tuple[DenseSpec, ...] = ()
    tensors: tuple[Mapping[str, torch.Tensor], ...] = ()
    source: str = ""


def read_head(files: Files, layout: str) -> Head:
    """Read the projection of a ColBERT checkpoint.

    Args:
        files: The checkpoint's files.
        layout: Name of its format.

    Returns:
        The head; its layers fit each other and their tensors.

    Raises:
        MissingWeightsError: If there is none, or a tensor of it is missing.
        UnsupportedCheckpointError: If it is stored as codes of some quantisation.
        CheckpointError: If its shapes contradict each other.
    """
    if layout == "bge-m3":
        head = _pickled_head(files)
    else:
        head = _dense_modules(files, layout) if files.modules_of("Dense") else _root_head(files)
    _check_numbers(files, head)
    _check_shapes(head)
    return head


def orthonormal_head(files: Files, dim: int) -> Head:
    """Make a projection for a plain encoder that keeps angles as well as a fixed matrix can.

    Args:
        files: The checkpoint's files.
        dim: Dimension to project to.

    Returns:
        One layer whose rows are orthonormal, the same on every machine but for rounding.

    Raises:
        InputError: If ``dim`` is not from 1 to the encoder's hidden size.
    """
    hidden = hidden_size(files)
    if not 0 < dim <= hidden:
        raise InputError(f"projection_dim must be from 1 to the hidden size {hidden}, not {dim}")
    # RandomState, not default_rng: its stream is frozen, so an index stays valid across numpy releases.
    gaussian = np.random.RandomState(0).standard_normal((hidden, dim))
    orthonormal, triangle = np.linalg.qr(gaussian)
    # With a positive diagonal the factor is unique. Signs are else LAPACK's, and queries would not fit kept vectors.
    weight = torch.from_numpy((orthonormal * np.sign(np.diag(triangle))).T).float().contiguous()  # (dim, hidden)
    return _single_layer({"linear.weight": weight}, "argument")


def hidden_size(files: Files) -> int:
    """Width of the backbone's hidden states, by whichever name its configuration has for it; 0 if it has none."""
    names = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")  # DistilBERT's, some decoders', XLM's
    name = next((name for name in names if name in files.config), None)
    return 0 if name is None else expect_type(files.config[name], int, f"config.json: {name}")


def disputed_dims(files: Files, head: Head) -> list[str]:
    """Notes on every file that states another dimension than the head has; the head decides."""
    stated = {f"config.json: {key}": files.config.get(key) for key in _DIM_KEYS}
    stated[f"{METADATA}: dim"] = files.metadata.get("dim")
    if files.config.get("model_type") == "distilbert":
        del stated["config.json: dim"]  # DistilBERT's name for its hidden size
    dim = head.layers[-1].out_features if head.layers else None
    return [
        f"{source} says {value}, the head has {dim} rows; the head decides"
        for source, value in stated.items()
        if dim is not None and isinstance(value, int) and value != dim
    ]


def _pickled_head(files: Files) -> Head:
    tensors = files.folder.pickled(BGE_HEAD)
    return _single_layer({f"linear.{name}": tensor for name, tensor in tensors.items()}, BGE_HEAD)


def _root_head(files: Files) -> Head:
    stored = files.folder.weight_names(files.backbone)
    name = next((name for name in ROOT_HEADS if name in stored), None)
    if name is None:
        raise MissingWeightsError(
            f"{files.name} looks like a ColBERT checkpoint but has no projection: no Dense module in {MODULES} and "
            f"none of {', '.join(ROOT_HEADS)} among its weights. Download it again, or choose another revision"
        )
    wanted = {"linear.weight": name, "linear.bias": name.replace("weight", "bias")}
    tensors = files.folder.tensors([stored_as for stored_as in wanted.values() if stored_as in stored], files.backbone)
    return _single_layer({ours: tensors[theirs] for ours, theirs in wanted.items() if theirs in tensors}, name)


def _single_layer(tensors: dict[str, torch.Tensor], source: str) -> Head:
    weight = tensors.get("linear.weight", torch.empty(0, device="cpu"))
    if weight.ndim != 2:
        raise MissingWeightsError(f"{source} must hold a matrix named weight, not {sorted(tensors)}")
    layer = DenseSpec(in_features=weight.shape[1], out_features=weight.shape[0], bias="linear.bias" in tensors)
    return Head((layer,), (tensors,), source)


def _dense_modules(files: Files, layout: str) -> Head:
    # What each library assumes where the file is silent: PyLate nothing, sentence-transformers a tanh.
    default = "torch.nn.Tanh" if layout == "sentence-transformers" else "torch.nn.Identity"
    modules = files.modules_of("Dense")
    layers = [_dense_spec(files.folder.mapping(module.config_file), module.config_file, default) for module in modules]
    tensors = [
        files.folder.tensors(_tensor_names(layer), module.path) for layer, module in zip(layers, modules, strict=True)
    ]
    return Head(tuple(layers), tuple(tensors), ", ".join(module.path for module in modules))


def _dense_spec(config: Mapping[str, Any], file: str, default_activation: str) -> DenseSpec:
    try:
        return DenseSpec(
            in_features=expect_type(config["in_features"], int, f"{file}: in_features"),
            out_features=expect_type(config["out_features"], int, f"{file}: out_features"),
            bias=_is_set(config, "bias", file, default=True),
            activation=str(config.get("activation_function") or default_activation),
            residual=_is_set(config, "use_residual", file, default=False),
        )
    except KeyError as error:
        raise MissingWeightsError(f"{file} lacks {error}: the projection is unknown") from error


def _is_set(config: Mapping[str, Any], key: str, file: str, *, default: bool) -> bool:
    value = config.get(key, default)
    return value is not None and expect_type(value, bool, f"{file}: {key}")


def _tensor_names(layer: DenseSpec) -> list[str]:
    projected = layer.residual and layer.in_features != layer.out_features
    return ["linear.weight"] + ["linear.bias"] * layer.bias + ["residual.weight"] * projected


def _check_numbers(files: Files, head: Head) -> None:
    """Refuse a float8 or integer, which stands for another number that only a scale stored elsewhere tells."""
    for name, tensor in (item for tensors in head.tensors for item in tensors.items()):
        if tensor.dtype not in _NUMBERS:
            raise UnsupportedCheckpointError(
                f"{files.name} stores its head ({head.source}: {name}) as {tensor.dtype}, the codes of some "
                "quantisation. Save it as float32, float16 or bfloat16, or use the checkpoint that it was made of"
            )


def _check_shapes(head: Head) -> None:
    for layer, tensors in zip(head.layers, head.tensors, strict=True):
        expected = {
            "linear.weight": (layer.out_features, layer.in_features),
            "linear.bias": (layer.out_features,),
            "residual.weight": (layer.out_features, layer.in_features),
        }
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != expected[name]:
                raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}, its config says {expected[name]}")
    if any(before.out_features != after.in_features for before, after in pairwise(head.layers)):
        raise CheckpointError(f"the layers of the projection don't fit: {' then '.join(map(str, head.layers))}")
