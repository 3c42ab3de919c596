"""Whether a server is that of the checkpoint: its names and lengths, and the vectors that it gives to a probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from ..checkpoint import ColBERTSpec
from ..errors import InputError, RemoteMismatchError

__all__ = ["UNIT", "Probed", "check_models", "check_spec", "check_vectors"]

# How far from 1 the length of a unit vector may be; half precision on the way gives 0.9995..1.0005.
UNIT = 1e-2
# Lowest cosine of two vectors of one token; half precision on either side stays above 0.99, other weights far below.
_LEAST_COSINE = 0.98


def check_spec(spec: ColBERTSpec) -> None:
    """Refuse a checkpoint that vLLM serves, but not as it was trained.

    Args:
        spec: The checkpoint.

    Raises:
        InputError: If its projection has residual layers, which vLLM (0.32, 0.33) loads without the residual.
    """
    if any(layer.residual for layer in spec.projection):
        raise InputError(
            f"{spec.name} has residual layers in its projection, and vLLM leaves the residual out without a word: its "
            "vectors would be wrong. Encode it here, without forward="
        )


def check_models(url: str, answer: Any, model: str | None, spec: ColBERTSpec) -> None:
    """Compare what ``GET /v1/models`` says with the checkpoint.

    Args:
        url: The server.
        answer: What it says.
        model: The name that it should serve. None: any.
        spec: The checkpoint, lengths filled in.

    Raises:
        RemoteMismatchError: If it serves other names, or fewer tokens than the checkpoint's lengths.
    """
    try:
        served = {entry["id"]: entry.get("max_model_len") for entry in answer["data"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise RemoteMismatchError(f"{url}/v1/models answers {str(answer)[:200]}: is it a vLLM server?", url) from error
    names = ", ".join(map(repr, served))
    if model is not None and model not in served:
        raise RemoteMismatchError(f"{url} serves {names}, not {model!r}: pass one of these as model=", url)
    most = served[model] if model is not None else next(iter(served.values()), None)
    most = most if isinstance(most, int) else None  # a proxy need not say it
    for side, length in (("document", spec.document_length), ("query", spec.query_length)):
        if most is not None and length is not None and length > most:
            raise RemoteMismatchError(
                f"{url} takes {most} tokens, and {side}_length is {length}: start it with --max-model-len {length} "
                f"(for PyLate's checkpoints also VLLM_ALLOW_LONG_MAX_MODEL_LEN=1), or pass {side}_length={most}",
                url,
            )


@dataclass(frozen=True)
class Probed:
    """Vectors of the probe that a server is compared with.

    Attributes:
        vectors: ``(tokens, dim)``, of any length.
        whose: Who gave them, for the error.
    """

    vectors: torch.Tensor
    whose: str


def check_vectors(url: str, vectors: torch.Tensor, spec: ColBERTSpec, expected: Probed | None) -> None:
    """Compare the vectors of a probe with what they should be.

    Args:
        url: The server that gave them.
        vectors: ``(tokens, dim)``.
        spec: The checkpoint.
        expected: What the local weights give, or another server did before. None: nobody has said yet.

    Raises:
        RemoteMismatchError: If they are not of unit length where they should be, or not those of the checkpoint.
    """
    norms = vectors.norm(dim=-1)
    if spec.normalize and not torch.all((norms - 1).abs() < UNIT):
        raise RemoteMismatchError(
            f"{url} gives vectors of length {norms.min():.3g} to {norms.max():.3g}, not of unit length: start it "
            "without a pooler configuration of its own",
            url,
        )
    if expected is None:
        return
    least = cosine_similarity(vectors, expected.vectors.to(vectors), dim=-1).min().item()
    if not least >= _LEAST_COSINE:
        raise RemoteMismatchError(
            f"{url} gives other vectors than {expected.whose} (cosine {least:.3f}): it serves another model or "
            "revision, or loaded this one otherwise than it was trained",
            url,
        )
