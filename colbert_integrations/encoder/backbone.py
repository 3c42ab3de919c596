"""Loading the transformer, and refusing one that would run with weights or positions it was not trained with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..checkpoint import Checkpoint, HubOptions
from ..errors import (
    CheckpointError,
    MissingWeightsError,
    RemoteCodeError,
    UnsupportedCheckpointError,
)

__all__ = ["LoadOptions", "embedding_rows", "load_backbone", "position_limit"]

# A transformers model, whose attributes differ by class, and what transformers says of loading it.
Backbone = Any
Loaded = tuple[Backbone, Mapping[str, Any]]
# transformers' verbosity and progress bars are process-wide; one load at a time may change and restore them.
_QUIET = threading.Lock()


@dataclass(frozen=True)
class LoadOptions:
    """Where a backbone is loaded to, and how.

    Attributes:
        device: Device of the weights.
        dtype: Data type of the weights and the forward pass; int8 is of the linear layers, the rest being float32.
        attn_implementation: Name of an attention backend of transformers. None: its own choice, for ModernBERT
            ``"sdpa"``.
        hub: Whether code from the checkpoint's repository may run, and how it is got where it lies in another one.
    """

    device: torch.device
    dtype: torch.dtype
    attn_implementation: str | None = None
    hub: HubOptions = HubOptions()

    @property
    def elsewhere(self) -> dict[str, Any]:
        """How transformers gets code from another repository, to which the revision does not apply."""
        hub = self.hub
        return {"token": hub.token, "cache_dir": hub.cache_dir, "local_files_only": hub.local_files_only}

    @property
    def float_dtype(self) -> torch.dtype:
        """Data type of what is not rounded to int8."""
        return torch.float32 if self.dtype == torch.int8 else self.dtype


def load_backbone(checkpoint: Checkpoint, options: LoadOptions) -> Backbone:
    """Load the transformer of a checkpoint.

    Args:
        checkpoint: What to load.
        options: Where to and how.

    Returns:
        The model in evaluation mode, on the device and in the dtype asked for.

    Raises:
        MissingWeightsError: If a weight of the model, the pooler aside, is not in the checkpoint.
        UnsupportedCheckpointError: If transformers has no class for it, or one with other positions.
        RemoteCodeError: If it needs code from its repository and ``trust_remote_code`` is off.
        CheckpointError: If it can't be read.
    """
    if checkpoint.spec.architecture == "xlm-roberta-flash":
        model = _checked(checkpoint, _load_flash_xlm_roberta(checkpoint, options))
    else:
        model = _load_auto(checkpoint, options)
    if checkpoint.spec.language is not None:
        model.set_default_language(checkpoint.spec.language)
    return model.to(options.device).eval().requires_grad_(False)


def position_limit(model: Backbone) -> int | None:
    """Maximum number of tokens that a learned position table can tell apart; None where there is no such table.

    Args:
        model: A transformers backbone.

    Returns:
        The rows of the table, less those that RoBERTa's numbering skips (its padding id and what lies before).
    """
    table = _position_table(model)
    if table is None:
        return None
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def embedding_rows(model: Backbone) -> int | None:
    """Number of token ids for which a model has an embedding; None where it does not say.

    Args:
        model: A transformers backbone.

    Returns:
        The rows of its table.
    """
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):  # code of a checkpoint's own need not say
        return None


def _position_table(model: Backbone) -> nn.Embedding | None:
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return next((table for table in tables if isinstance(table, nn.Embedding)), None)


def _load_auto(checkpoint: Checkpoint, options: LoadOptions) -> Backbone:
    from transformers import AutoModel

    # The native class first, also on consent: it is the one that is maintained.
    try:
        model = _checked(checkpoint, _from_pretrained(AutoModel.from_pretrained, checkpoint, options))
        _check_rope(checkpoint)
        _check_positions(checkpoint, model)
        _check_class(checkpoint, model)
        return model
    except CheckpointError as error:
        if "auto_map" not in checkpoint.config:
            raise
        if not options.hub.trust_remote_code:
            raise RemoteCodeError(
                f"{checkpoint.spec.name} needs code from its repository, since the class in transformers does not fit "
                f"it ({error}). Read that code, then pass trust_remote_code=True"
            ) from error
    return _checked(checkpoint, _from_pretrained(AutoModel.from_pretrained, checkpoint, options, trust=True))


def _from_pretrained(
    load: Callable[..., Any], checkpoint: Checkpoint, options: LoadOptions, *, trust: bool = False, config: Any = None
) -> Loaded:
    arguments: dict[str, Any] = {
        "dtype": options.float_dtype,
        "output_loading_info": True,
        "attn_implementation": options.attn_implementation or _attention(checkpoint),
        "trust_remote_code": trust,
        "config": config,
        **options.elsewhere,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    try:
        with _quiet_transformers():
            model, info = load(str(checkpoint.folder), **arguments)
    except Exception as error:  # of transformers, safetensors, pickle: none of theirs is left out for good
        raise _explain_failure(checkpoint, error) from error
    return model, info


def _attention(checkpoint: Checkpoint) -> str | None:
    """The attention of a backbone where the caller does not say; None: transformers' choice.

    For ModernBERT transformers 4 takes FlashAttention wherever that is installed, which drops tokens that nobody
    attends to.
    """
    return "sdpa" if checkpoint.spec.architecture == "modernbert" else None


def _explain_failure(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    name, architecture = checkpoint.spec.name, checkpoint.spec.architecture
    from transformers import CONFIG_MAPPING, __version__

    if architecture not in CONFIG_MAPPING:
        return UnsupportedCheckpointError(
            f"transformers {__version__} has no model type {architecture!r}, which {name} needs: a newer release may"
        )
    return CheckpointError(f"transformers can't load {name}: {error}")


def _checked(checkpoint: Checkpoint, loaded: Loaded) -> Backbone:
    model, info = loaded
    # A pooler makes the dense vector of a sentence; token vectors do not pass through it.
    missing = sorted(key for key in info["missing_keys"] if "pooler." not in key)
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    if missing or mismatched:
        names, count = ", ".join([*missing, *mismatched][:4]), len(missing) + len(mismatched)
        raise MissingWeightsError(
            f"{checkpoint.spec.name}: {count} weights of {type(model).__name__} are not in the checkpoint and would be "
            f"random ({names}, ...). The class does not fit the weights, or the download is not whole"
        )
    return model


def _check_positions(checkpoint: Checkpoint, model: Backbone) -> None:
    kind = checkpoint.config.get("position_embedding_type") or "absolute"
    if kind != "absolute" and _position_table(model) is not None:
        raise UnsupportedCheckpointError(
            f"{checkpoint.spec.name} was trained with {kind!r} positions, but {type(model).__name__} numbers them in a "
            "table: its vectors would be wrong. It needs its own code: pass trust_remote_code=True after reading it"
        )


def _check_rope(checkpoint: Checkpoint) -> None:
    """Refuse rotary bases as transformers 5 writes them, in place of which transformers 4 takes its defaults."""
    from transformers import __version__

    names = ("rope_theta", "global_rope_theta")
    unread = bool(checkpoint.config.get("rope_parameters")) and not any(name in checkpoint.config for name in names)
    if unread and int(__version__.partition(".")[0]) < 5:
        raise UnsupportedCheckpointError(
            f"{checkpoint.spec.name} was saved by transformers 5: transformers {__version__} does not read its rotary "
            "positions (rope_parameters in config.json) and would assume others: pip install -U 'transformers>=5'"
        )


def _check_class(checkpoint: Checkpoint, model: Backbone) -> None:
    """Refuse the native class of another name: weights that fit don't say that it computes the same.

    LFM2 with attention in both directions has the weights of plain LFM2, which sees backwards only.
    """
    classes = checkpoint.config.get("auto_map")
    own = classes.get("AutoModel") if isinstance(classes, dict) else None
    if isinstance(own, str) and own.rpartition(".")[2] != type(model).__name__:
        raise UnsupportedCheckpointError(
            f"{checkpoint.spec.name} declares its own model class {own.rpartition('.')[2]}; transformers' "
            f"{type(model).__name__} fits its weights but may compute something else"
        )


def _load_flash_xlm_roberta(checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    """Jina's rotary XLM-RoBERTa, saved under the plain one's name, by the class that transformers has for it."""
    try:
        from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model
    except ImportError as error:
        from transformers import __version__

        raise UnsupportedCheckpointError(
            f"{checkpoint.spec.name} needs JinaEmbeddingsV3Model, which transformers {__version__} does not have: "
            "pip install -U 'transformers>=5.4'"
        ) from error
    rope = {"rope_type": "default", "rope_theta": _rope_theta(checkpoint)}
    others = {"model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "rope_parameters"}
    known = JinaEmbeddingsV3Config().to_dict().keys() - others
    taken: dict[str, Any] = {key: value for key, value in checkpoint.config.items() if key in known}
    native = JinaEmbeddingsV3Config(**taken, rope_parameters=rope)
    return _from_pretrained(JinaEmbeddingsV3Model.from_pretrained, checkpoint, options, config=native)


def _rope_theta(checkpoint: Checkpoint) -> float:
    config = checkpoint.config
    if config.get("position_embedding_type") != "rotary":
        raise UnsupportedCheckpointError(
            f"{checkpoint.spec.name} has fused attention weights but {config.get('position_embedding_type')!r} "
            "positions; only rotary ones are known"
        )
    # The class in transformers assumes 20,000, the remote code 10,000: a wrong one runs, and is wrong by 0.08.
    theta = config.get("rotary_emb_base", 10_000.0)
    if not isinstance(theta, (int, float)) or theta <= 0:
        raise UnsupportedCheckpointError(f"{checkpoint.spec.name}: rotary_emb_base must be positive, not {theta!r}")
    return float(theta)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' load table and progress bar, which call our own head's weight 'unexpected'."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    with _QUIET:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
