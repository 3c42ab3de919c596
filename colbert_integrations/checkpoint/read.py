"""Reading a checkpoint: files, then the row of the format that fits, then the head, then explicit arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingWeightsError
from .files import BGE_HEAD, ROOT_HEADS, Files, read_files
from .folder import Folder
from .formats import FORMATS, Values, known_values
from .head import Head, disputed_dims, hidden_size, orthonormal_head, read_head
from .json_types import strings
from .spec import Checkpoint, ColBERTSpec, SpecOverrides

__all__ = ["read_checkpoint"]


def read_checkpoint(
    name: str,
    path: Path,
    overrides: SpecOverrides,
    *,
    allow_unprojected: bool = False,
    projection_dim: int | None = None,
) -> Checkpoint:
    """Read what a checkpoint says of itself, and the weights of its head.

    Args:
        name: What the user asked for, for messages and the table of known checkpoints.
        path: Folder of the checkpoint.
        overrides: Explicit arguments, which win over the files.
        allow_unprojected: Whether a plain encoder, without a ColBERT head, may be used.
        projection_dim: For a plain encoder, dimension of a fixed orthonormal projection. None: its own vectors.

    Returns:
        The spec, without the ids that only a tokenizer can resolve, and the head's tensors.

    Raises:
        CheckpointNotFoundError: If the folder holds no model.
        MissingWeightsError: If the head, or a part of it, is missing.
        UnsupportedCheckpointError: If it is of a kind that is not run here.
        CheckpointError: If a file is damaged or contradicts another.
        InputError: If an override is invalid.
    """
    files = read_files(name, Folder(path))
    form = next(row for row in FORMATS if row.detect(files))
    values = Values(known_values(name))
    form.read(files, values)
    head = _head(files, form.name, allow_unprojected, projection_dim)
    values.set("projection", head.layers, head.source)
    values.set("dim", head.layers[-1].out_features if head.layers else hidden_size(files), head.source)
    values.notes.extend(disputed_dims(files, head))
    spec = ColBERTSpec(
        name=name,
        layout=form.name,
        architecture=_architecture(files),
        backbone=files.backbone,
        dtype=str(files.config.get("dtype") or files.config.get("torch_dtype") or "float32"),
        sources=values.sources,
        notes=tuple(values.notes),
        **values.attributes,
    )
    folder = path / files.backbone
    tokenizer_folder = folder if _has_tokenizer(folder) else path
    spec = _with_language(_override(spec, overrides), files.config)
    return Checkpoint(spec, folder, tokenizer_folder, head.tensors, files.config)


def _head(files: Files, layout: str, allow_unprojected: bool, projection_dim: int | None) -> Head:
    if not _is_unprojected(files, layout):
        if projection_dim is not None:
            raise InputError(f"projection_dim is for plain encoders; {files.name} has a head of its own")
        return read_head(files, layout)
    if not allow_unprojected:
        raise MissingWeightsError(
            f"{files.name} has no ColBERT head: no Dense module and none of {', '.join(ROOT_HEADS)}, {BGE_HEAD}. "
            "Other libraries add a random one, whose scores mean nothing. Choose a ColBERT checkpoint, or pass "
            "allow_unprojected=True to score by the encoder's own token vectors"
        )
    return Head() if projection_dim is None else orthonormal_head(files, projection_dim)


def _is_unprojected(files: Files, layout: str) -> bool:
    """Whether a checkpoint scores by the backbone's own vectors; sentence-transformers needs no Dense either."""
    if layout != "sentence-transformers":
        return layout == "plain"
    stored = files.folder.weight_names(files.backbone)
    return not files.modules_of("Dense") and not any(head in stored for head in ROOT_HEADS)


def _architecture(files: Files) -> str:
    # The class that Jina's files name would load with random weights.
    return "xlm-roberta-flash" if files.has_fused_attention else str(files.config.get("model_type", ""))


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))


def _override(spec: ColBERTSpec, overrides: SpecOverrides) -> ColBERTSpec:
    given = {name: value for name, value in vars(overrides).items() if value is not None}
    sources = {**spec.sources, **dict.fromkeys(given, "argument")}
    expands = given.pop("query_expansion", spec.query_expansion != "none")
    if "skiplist_words" in given:  # these words, and not what theirs begin with, as colbert-ai reads its punctuation
        given["skiplist_rule"] = "vocabulary"
    changed = replace(spec, **given, sources=sources)
    changed = _check_truncation(changed)
    if not expands:
        return replace(changed, query_expansion="none", expansion_length=0, attend_to_expansion_tokens=False)
    kind = "fixed" if spec.query_expansion == "none" else spec.query_expansion
    # "fixed" fills up to the query length where that is given, and where the checkpoint itself does not expand.
    to_query_length = kind == "fixed" and ("query_length" in given or spec.query_expansion == "none")
    length = changed.query_length if to_query_length else changed.expansion_length
    if overrides.query_expansion and not length:
        raise InputError(f"{spec.name} does not say how long queries are: pass query_length= with query_expansion=True")
    return replace(changed, query_expansion=kind, expansion_length=length or 0)


def _with_language(spec: ColBERTSpec, config: Mapping[str, Any]) -> ColBERTSpec:
    """Decide whose adapters an X-MOD model uses; they make a vector as much as other weights do."""
    if spec.architecture != "xmod":
        if spec.language is not None:
            raise InputError(f"language={spec.language!r} is for X-MOD models; {spec.name} has no languages")
        return spec
    languages = strings(config.get("languages") or ["en_XX"], "config.json: languages")  # transformers' default
    only = languages[0] if len(languages) == 1 else None
    chosen = spec.language or config.get("default_language") or only
    if chosen is None:
        raise InputError(f"{spec.name} names no default language: pass language=, one of {sorted(languages)}")
    if chosen not in languages:
        raise InputError(f"language must be one of {sorted(languages)}, not {chosen!r}")
    return replace(spec, language=chosen, sources={"language": "config.json", **spec.sources})


def _check_truncation(spec: ColBERTSpec) -> ColBERTSpec:
    if spec.truncate_dim is None:
        return spec
    if spec.truncate_dim > spec.dim:
        raise InputError(f"truncate_dim must be from 1 to {spec.dim}, the head's dimension, not {spec.truncate_dim}")
    if spec.matryoshka_dims and spec.truncate_dim not in (*spec.matryoshka_dims, spec.dim):
        raise InputError(f"the head was trained for truncate_dim in {spec.matryoshka_dims}, not {spec.truncate_dim}")
    note = f"nothing in the files says that the head was trained to be cut at {spec.truncate_dim} dimensions: measure"
    notes = spec.notes if spec.matryoshka_dims else (*spec.notes, note)
    return replace(spec, dim=spec.truncate_dim, notes=notes)
