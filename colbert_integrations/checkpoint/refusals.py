"""What is refused, and why: one row for each kind of repository that must not be run as a ColBERT model here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedCheckpointError
from .folder import Folder
from .json_types import expect_type

__all__ = ["refuse_unsupported"]


@dataclass(frozen=True)
class Refusal:
    """A kind of repository that is refused.

    Attributes:
        applies: Tells from the folder and its ``config.json`` whether it is of this kind.
        reason: What it is and what the user can do, a sentence that follows the checkpoint's name.
    """

    applies: Callable[[Folder, Mapping[str, Any]], bool]
    reason: str


# A projection for each of several dimensions: "projections.64.weight", "linear_64.weight".
_PER_DIMENSION = re.compile(r"(^|\.)(projections?|linears?|heads?|colbert_linear)[._]\d+\.(linear\.)?weight$")


def _is_adapter(folder: Folder, config: Mapping[str, Any]) -> bool:
    return folder.has("adapter_config.json")


def _is_vision(folder: Folder, config: Mapping[str, Any]) -> bool:
    architectures = expect_type(config.get("architectures") or [], list, "config.json: architectures")
    retrieval = any(str(name).endswith("ForRetrieval") for name in architectures)
    return retrieval or "vision_config" in config


def _is_early_colbert(folder: Folder, config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "ColBERT" or "ColBERT" in (config.get("architectures") or ())


def _is_pickled_colbert(folder: Folder, config: Mapping[str, Any]) -> bool:
    return not folder.has("config.json") and any(folder.path.glob("*.dnn"))


def _is_many_headed(folder: Folder, config: Mapping[str, Any]) -> bool:
    named = any("matryoshka" in str(module.get("type", "")).lower() for module in folder.objects("modules.json"))
    return named or sum(bool(_PER_DIMENSION.search(name)) for name in folder.weight_names()) > 1


def _is_quantised(folder: Folder, config: Mapping[str, Any]) -> bool:
    return bool(config.get("quantization_config"))


def _is_encoder_decoder(folder: Folder, config: Mapping[str, Any]) -> bool:
    return bool(config.get("is_encoder_decoder"))


_REFUSALS = (
    Refusal(
        _is_adapter,
        "holds a PEFT adapter (adapter_config.json), not a model. Merge it once with peft: "
        "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder), and load that folder",
    ),
    Refusal(
        _is_vision,
        "is a vision model (*ForRetrieval or a vision_config); this package encodes text. Use sentence-transformers "
        "or colpali-engine for page images",
    ),
    Refusal(
        _is_early_colbert,
        "is an early ColBERT with a model class of its own (model_type 'ColBERT'), which transformers can't resolve. "
        "Use a successor such as colbert-ir/colbertv2.0",
    ),
    Refusal(
        _is_pickled_colbert,
        "is a ColBERTv1 .dnn file, a pickle that can run code when opened. Convert it with colbert-ai "
        "(HF_ColBERT.save_pretrained) on a machine that you trust it with",
    ),
    Refusal(
        _is_many_headed,
        "has one projection for each of several dimensions (multi-head Matryoshka); which one a query was trained "
        "with can't be told from the files. Save the backbone with one head as a PyLate or Stanford checkpoint",
    ),
    Refusal(
        _is_encoder_decoder,
        "is an encoder-decoder model, which gives no hidden state per input token. Save its encoder alone, or choose "
        "an encoder",
    ),
    Refusal(
        _is_quantised,
        "stores quantised weights (quantization_config in config.json): codes, which only the library that made them "
        "can multiply by. Use the checkpoint that they were made of; dtype='int8' rounds it when it is loaded",
    ),
)


def refuse_unsupported(name: str, folder: Folder, config: Mapping[str, Any]) -> None:
    """Raise if a checkpoint is of a kind that can't be run.

    Args:
        name: What the user asked for, for the message.
        folder: The checkpoint.
        config: Its ``config.json``; empty where there is none.

    Raises:
        UnsupportedCheckpointError: With the reason and a way out.
    """
    for refusal in _REFUSALS:
        if refusal.applies(folder, config):
            raise UnsupportedCheckpointError(f"{name} {refusal.reason}.")
