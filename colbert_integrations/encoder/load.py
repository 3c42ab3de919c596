"""From a checkpoint on disk to an Encoder: tokenizer, forward pass, and lengths that the backbone can take."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from ..checkpoint import Checkpoint, ColBERTSpec
from ..devices import cpu
from ..errors import CheckpointError, InputError, MissingWeightsError, RemoteCodeError
from .backbone import LoadOptions, embedding_rows, load_backbone, position_limit
from .encoder import EncodeOptions, Encoder
from .forward import Forward, TorchForward
from .packed import PackedForward, can_pack
from .projection import build_projection
from .remote import LazyForward, RemoteForward
from .tokens import Tokenizer, TokenSequence

__all__ = ["build_tokenizer", "load_encoder", "read_tokenizer"]

_log = logging.getLogger(__name__)

# What servers are compared by, and batches.
_PROBE = "One vector for each token of this text."
# transformers writes this where a tokenizer knows no limit.
_NO_LIMIT = 10**9


def load_encoder(
    checkpoint: Checkpoint, load: LoadOptions, encode: EncodeOptions, forward: Forward | RemoteForward | None = None
) -> Encoder:
    """Load a checkpoint and make it ready to encode.

    Args:
        checkpoint: Its spec, folders and head.
        load: Where to and how the weights are loaded.
        encode: Batches and windows.
        forward: Runs the model elsewhere. None: load the weights into this process.

    Returns:
        The encoder, its spec complete with ids and lengths. One with a ``RemoteForward`` has asked no server yet, and
        loads weights once a sequence comes that no server takes.

    Raises:
        CheckpointError: If the tokenizer can't be read, or the backbone would not be the trained one.
        InputError: If an explicit length, ``attn_implementation`` or int8 does not fit this checkpoint, or the
            checkpoint can't be run elsewhere.
    """
    spec = checkpoint.spec
    _check_attention(spec, load.attn_implementation)
    hf_tokenizer = read_tokenizer(checkpoint, load)
    if isinstance(forward, RemoteForward):
        rows = _rows_said(checkpoint)  # nothing is loaded yet, and may never be
        tokenizer = build_tokenizer(checkpoint, hf_tokenizer, rows=rows)
        _check_rows(tokenizer, rows)
        return _connect(checkpoint, load, encode, forward, tokenizer)
    if forward is not None:
        return Encoder(build_tokenizer(checkpoint, hf_tokenizer), forward, encode)
    backbone = load_backbone(checkpoint, load)
    checkpoint = _with_code_noted(checkpoint, backbone)
    rows = embedding_rows(backbone)
    tokenizer = build_tokenizer(checkpoint, hf_tokenizer, position_limit(backbone), rows)
    _check_rows(tokenizer, rows)
    return Encoder(tokenizer, _choose_forward(checkpoint, backbone, load, tokenizer), encode)


def _with_code_noted(checkpoint: Checkpoint, backbone: Any) -> Checkpoint:
    """Say where code came from that ``revision`` does not pin."""
    classes = checkpoint.config.get("auto_map")
    source = str(classes.get("AutoModel")) if isinstance(classes, dict) else ""
    if "--" not in source or not type(backbone).__module__.startswith("transformers_modules."):
        return checkpoint
    note = f"runs code of {source.partition('--')[0]} as it is on the default branch there: revision= does not pin it"
    return replace(checkpoint, spec=replace(checkpoint.spec, notes=(*checkpoint.spec.notes, note)))


def _connect(
    checkpoint: Checkpoint, load: LoadOptions, encode: EncodeOptions, forward: RemoteForward, tokenizer: Tokenizer
) -> Encoder:
    def load_weights() -> Forward:
        return _choose_forward(checkpoint, load_backbone(checkpoint, load), load, tokenizer)

    probe = _probe(tokenizer)
    local = LazyForward(load_weights, probe, load.device)
    return Encoder(tokenizer, local, encode, forward.connect(tokenizer.spec, probe, local.probed))


def _probe(tokenizer: Tokenizer) -> TokenSequence:
    content = tokenizer.tokens([_PROBE], "document")[0].ids[: tokenizer.capacity("document")]
    return tokenizer.sequence(content, "document")


def _choose_forward(checkpoint: Checkpoint, backbone: Any, load: LoadOptions, tokenizer: Tokenizer) -> Forward:
    projection = build_projection(checkpoint)
    if can_pack(backbone, load.attn_implementation) and not tokenizer.hides_beginnings:
        _check_width(checkpoint.spec, backbone.config.hidden_size)
        return PackedForward(backbone, projection.to(load.device), load.dtype)
    # Again, of the one that runs: config.json or transformers may have chosen it.
    _check_attention(checkpoint.spec, getattr(backbone.config, "_attn_implementation", None))
    if load.dtype == torch.int8:
        expansion = ", expansion before a query" if tokenizer.hides_beginnings else ""
        raise InputError(
            f"dtype='int8' is for BERT, RoBERTa and ModernBERT on a CPU, and {checkpoint.spec.name} is "
            f"{checkpoint.spec.architecture} with attn_implementation={load.attn_implementation!r}{expansion}: use "
            "'bfloat16' or 'float32'"
        )
    if load.device.type == "cpu" and not cpu.multiplies(load.dtype):
        _log.warning(
            "%s runs in %s on a CPU that does not multiply it, several times as slowly as in float32: leave out dtype=",
            checkpoint.spec.name,
            load.dtype,
        )
    forward = TorchForward(backbone, projection.to(load.device, load.dtype), load.device)
    _try(forward, _probe(tokenizer), checkpoint.spec, load)
    return forward


def _try(forward: TorchForward, probe: TokenSequence, spec: ColBERTSpec, load: LoadOptions) -> None:
    """Refuse a backbone that can't be run; find out whether padding shows in it."""
    try:
        forward.probe(probe, (len(probe.ids) + 1) // 2)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of transformers or a checkpoint's own code: none of theirs is left out for good
        raise CheckpointError(
            f"{spec.name}: {type(forward.backbone).__name__} can't be run in {load.dtype} on {load.device}: {error}"
        ) from error


def _open_length(hf_tokenizer: Any, checkpoint: Checkpoint) -> int | None:
    """The length of a side that the checkpoint does not limit: the tokenizer's, or the configuration's if less."""
    said = (getattr(hf_tokenizer, "model_max_length", None), checkpoint.config.get("max_position_embeddings"))
    limits = [int(limit) for limit in said if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT]  # XLNet: -1
    return min(limits, default=None)


def build_tokenizer(
    checkpoint: Checkpoint, hf_tokenizer: Any, positions: int | None = None, rows: int | None = None
) -> Tokenizer:
    """Build our tokenizer of Hugging Face's and the checkpoint's rules.

    Args:
        checkpoint: The checkpoint.
        hf_tokenizer: As ``read_tokenizer`` gives it, from now on used by nobody else.
        positions: Maximum number of tokens that the backbone tells apart. None: not known, or any number.
        rows: Number of ids for which the backbone has an embedding. None: not known.

    Returns:
        What makes token sequences, with a spec that is complete.

    Raises:
        InputError: If an explicit length is beyond the positions.
        MissingWeightsError: If the vocabulary lacks a marker or an expansion token.
    """
    spec = _limit_lengths(checkpoint.spec, positions, _open_length(hf_tokenizer, checkpoint))
    return Tokenizer(hf_tokenizer, spec, rows)


def read_tokenizer(checkpoint: Checkpoint, load: LoadOptions) -> Any:
    """Read a checkpoint's tokenizer.

    Args:
        checkpoint: The checkpoint.
        load: Whether code of its repository may run.

    Returns:
        A Hugging Face tokenizer, as its files have it.

    Raises:
        CheckpointError: If it can't be read, or its length is no whole number.
        RemoteCodeError: If it is code, and ``trust_remote_code`` is off.
    """
    from transformers import AutoTokenizer

    def read(trust: bool) -> Any:
        return AutoTokenizer.from_pretrained(
            str(checkpoint.tokenizer_folder), trust_remote_code=trust, **load.elsewhere
        )

    try:
        tokenizer = read(trust=False)  # first, also on consent: with it transformers runs the model's code as well
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        needs_code = "trust_remote_code" in str(error)
        if not needs_code:
            raise CheckpointError(f"can't read the tokenizer of {checkpoint.spec.name}: {error}") from error
        if not load.hub.trust_remote_code:
            raise RemoteCodeError(
                f"the tokenizer of {checkpoint.spec.name} is code from its repository. Read that code, then pass "
                "trust_remote_code=True"
            ) from error
        tokenizer = read(trust=True)
    _check_vocabulary(tokenizer, checkpoint.spec)
    _check_max_length(tokenizer, checkpoint.spec)
    return tokenizer


def _check_vocabulary(tokenizer: Any, spec: ColBERTSpec) -> None:
    """Refuse a tokenizer with special tokens only, as transformers 5 makes one where the files are missing."""
    if set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
        raise CheckpointError(
            f"{spec.name} has no vocabulary: its folder lacks tokenizer.json, or another tokenizer file. "
            "Save the tokenizer beside the model, or download the checkpoint again"
        )


def _check_max_length(tokenizer: Any, spec: ColBERTSpec) -> None:
    """Refuse a length that is no whole number, which transformers takes and fails on with each text."""
    length = getattr(tokenizer, "model_max_length", None)
    if length is not None and (not isinstance(length, (int, float)) or length % 1 > 0):
        raise CheckpointError(
            f"model_max_length of the tokenizer of {spec.name} is {length!r}, and has to be a whole number: correct it "
            "in tokenizer_config.json"
        )


def _rows_said(checkpoint: Checkpoint) -> int | None:
    rows = checkpoint.config.get("vocab_size")
    return rows if isinstance(rows, int) else None


def _check_rows(tokenizer: Tokenizer, rows: int | None) -> None:
    """Refuse ids for which the model has no embedding, as where tokens were added and the model was not resized."""
    if rows is None:
        return
    spec = tokenizer.spec
    ids = {
        "query marker": spec.query_marker_id,
        "document marker": spec.document_marker_id,
        "expansion token": spec.expansion_token_id,
        "query prompt": max(tokenizer.prompt_ids("query"), default=None),
        "document prompt": max(tokenizer.prompt_ids("document"), default=None),
    }
    beyond = [f"{name} {token}" for name, token in ids.items() if token is not None and token >= rows]
    if beyond:
        raise MissingWeightsError(
            f"{spec.name} has embeddings for the ids below {rows}, and none for its {', '.join(beyond)}: tokens were "
            "added to its tokenizer and the model was not resized"
        )


def _check_width(spec: ColBERTSpec, hidden: int) -> None:
    """Refuse a head that was made for another backbone."""
    if spec.projection and spec.projection[0].in_features != hidden:
        raise CheckpointError(
            f"{spec.name}: its projection takes {spec.projection[0].in_features} numbers of each token, and its "
            f"backbone gives {hidden}: they are not of one checkpoint"
        )


def _check_attention(spec: ColBERTSpec, attention: str | None) -> None:
    unseen = spec.query_expansion != "none" and not spec.attend_to_expansion_tokens
    if unseen and attention is not None and "flash" in attention:  # also of kernels from the hub
        raise InputError(
            f"attn_implementation={attention!r} drops tokens that nobody attends to, and with them the query "
            f"expansion that {spec.name} scores by: pass attn_implementation='sdpa'"
        )


def _limit_lengths(spec: ColBERTSpec, positions: int | None, open_length: int | None) -> ColBERTSpec:
    """Cut lengths down to the position table, and fill in those that the checkpoint leaves open."""
    notes, changed = list(spec.notes), dict[str, Any]()
    for name in ("query_length", "document_length", "expansion_length"):
        length: int | None = getattr(spec, name)
        length = open_length if length is None else length
        if positions is not None and length is not None and length > positions:
            if spec.sources.get(name) == "argument":
                raise InputError(f"{name}={length}, but {spec.name} has {positions} positions")
            notes.append(f"{name} was {length}, but there are {positions} positions")
            length = positions
        changed[name] = length
    return replace(spec, **changed, notes=tuple(notes))
