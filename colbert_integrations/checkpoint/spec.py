"""ColBERTSpec: everything that decides an embedding, as frozen data that prints as a load report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch

__all__ = ["Checkpoint", "ColBERTSpec", "DenseSpec", "PoolingSpec", "SpecOverrides"]


@dataclass(frozen=True)
class DenseSpec:
    """One layer of the projection: ``y = activation(W x + b)``, plus ``x`` or ``R x`` where it is residual.

    Attributes:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether a bias is added before the activation.
        activation: Dotted path of the activation's class, of ``torch.nn`` or ``transformers.activations``.
        residual: Whether the input is added after the activation, projected where the widths differ.
    """

    in_features: int
    out_features: int
    bias: bool = False
    activation: str = "torch.nn.Identity"
    residual: bool = False

    def __str__(self) -> str:
        extras = [self.activation.rsplit(".", 1)[-1]] if not self.activation.endswith("Identity") else []
        extras += ["bias"] * self.bias + ["residual"] * self.residual
        return f"{self.in_features}->{self.out_features}" + (f" ({', '.join(extras)})" if extras else "")


@dataclass(frozen=True)
class PoolingSpec:
    """Token pooling that the checkpoint bakes into its documents or queries.

    Attributes:
        pool_factor: About 1 in ``pool_factor`` vectors is kept.
        num_protected_tokens: Leading vectors that are never merged.
        normalize: Whether pooled vectors are brought to unit length again.
        tasks: Which sides are pooled, of ``"query"`` and ``"document"``.
    """

    pool_factor: float
    num_protected_tokens: int = 1
    normalize: bool = False
    tasks: tuple[str, ...] = ("document",)


@dataclass(frozen=True)
class ColBERTSpec:
    """What a checkpoint says of how texts become token embeddings.

    Read from the checkpoint's files, never guessed from its name; explicit arguments override it. ``print(spec)``
    shows each value with the file it came from.

    Attributes:
        name: The name or path that was asked for.
        layout: Name of the on-disk format, a row of the table in ``formats.py``.
        architecture: The backbone's ``model_type``.
        backbone: Folder of the backbone, relative to the checkpoint; ``""`` is its root.
        query_marker: Text of the token inserted after the first one of a query; ``""`` for none.
        document_marker: The same for documents.
        query_marker_id: Its id in the vocabulary, None where there is no marker.
        document_marker_id: The same for documents.
        query_length: Maximum number of tokens in a query, markers and special tokens included. None: the backbone's
            limit.
        document_length: Maximum number of tokens in a document, likewise.
        query_expansion: ``"none"``; ``"fixed"``: filled up and cut to ``expansion_length`` tokens; ``"min"``:
            filled up to it, longer queries stay.
        expansion_length: Tokens that expansion fills up to; 0 without expansion.
        expansion_token: Text of the token to fill with. None: the mask token, else the end-of-sequence token.
        expansion_token_id: Its id in the vocabulary, None without expansion.
        attend_to_expansion_tokens: Whether the other tokens see the expansion tokens.
        skiplist_words: Words whose tokens are encoded but give no vector.
        skiplist_ids: Their ids in the vocabulary.
        skiplist_rule: ``"first_piece"``: the first piece that a word is split into (Stanford); ``"vocabulary"``: the
            word as it stands in the vocabulary (PyLate).
        skiplist_tasks: Which sides the skiplist holds for.
        query_prompt: Text put before every query.
        document_prompt: Text put before every document.
        strip: Whether white space around a text is removed.
        lowercase: Whether a text is lower-cased before tokenisation.
        dropped_tokens: Vectors that never count: ``"none"``; ``"first"``: that of the first token; ``"special"``:
            those of the special tokens, unless a text has no other.
        projection: The layers between hidden states and vectors, in order; empty for a plain encoder.
        dim: Dimension of the vectors.
        truncate_dim: Dimensions kept before normalisation. None: all.
        matryoshka_dims: Dimensions the head was trained to be cut at, where the files say so.
        normalize: Whether vectors are brought to unit length.
        pooling: Token pooling baked into the checkpoint, if any.
        language: Whose adapters are used, of an X-MOD model; None for all others.
        dtype: Data type of the stored weights, as the files name it.
        tokenizer_digest: Hash of the ids that the tokenizer gives to some fixed texts; ``""`` before there is one.
        sources: For each attribute that a file or an argument decided, which one it was.
        notes: What a user should know of this checkpoint.
    """

    name: str
    layout: str
    architecture: str
    backbone: str = ""
    query_marker: str = ""
    document_marker: str = ""
    query_marker_id: int | None = None
    document_marker_id: int | None = None
    query_length: int | None = 32
    document_length: int | None = 180
    query_expansion: Literal["none", "fixed", "min"] = "none"
    expansion_length: int = 0
    expansion_token: str | None = None
    expansion_token_id: int | None = None
    attend_to_expansion_tokens: bool = False
    skiplist_words: tuple[str, ...] = ()
    skiplist_ids: tuple[int, ...] = ()
    skiplist_rule: Literal["first_piece", "vocabulary"] = "vocabulary"
    skiplist_tasks: tuple[str, ...] = ("document",)
    query_prompt: str = ""
    document_prompt: str = ""
    strip: bool = False
    lowercase: bool = False
    dropped_tokens: Literal["none", "first", "special"] = "none"
    projection: tuple[DenseSpec, ...] = ()
    dim: int = 0
    truncate_dim: int | None = None
    matryoshka_dims: tuple[int, ...] = ()
    normalize: bool = True
    pooling: PoolingSpec | None = None
    language: str | None = None
    dtype: str = "float32"
    tokenizer_digest: str = field(default="", repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        shown = [item for item in fields(self) if item.repr and item.name not in ("name", "layout")]
        rows = [(item.name, _brief(getattr(self, item.name)), self.sources.get(item.name, "")) for item in shown]
        width = min(44, max(len(value) for _, value, _ in rows))
        lines = [f"ColBERT checkpoint {self.name} (layout: {self.layout})"]
        lines += [f"  {name:<27}{value:<{width}}  {source}".rstrip() for name, value, source in rows]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def _brief(value: object) -> str:
    if isinstance(value, tuple):
        text = " ".join(map(str, value))
        return f"{len(value)}: {text[:36]}..." if len(text) > 40 else text or "-"
    if isinstance(value, str):
        return repr(value)
    return "-" if value is None else str(value)


@dataclass(frozen=True)
class SpecOverrides:
    """Explicit arguments, which win over the checkpoint; None leaves a value as it was read.

    The attributes are those of ``ColBERTSpec``; ``query_expansion=True`` fills up to the query length.
    """

    query_length: int | None = None
    document_length: int | None = None
    query_marker: str | None = None
    document_marker: str | None = None
    query_expansion: bool | None = None
    attend_to_expansion_tokens: bool | None = None
    skiplist_words: tuple[str, ...] | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    truncate_dim: int | None = None
    language: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: what it says, where it is, and the weights of its head.

    Attributes:
        spec: What decides an embedding; marker, expansion and skiplist ids are not resolved yet.
        folder: Folder of the backbone and, unless ``tokenizer_folder`` differs, the tokenizer.
        tokenizer_folder: Folder of the tokenizer.
        head: For each layer of ``spec.projection``, its tensors: ``linear.weight`` ``(out, in)``, and where the
            layer has them ``linear.bias`` ``(out,)`` and ``residual.weight`` ``(out, in)``.
        config: The backbone's ``config.json``.
    """

    spec: ColBERTSpec
    folder: Path
    tokenizer_folder: Path
    head: tuple[Mapping[str, torch.Tensor], ...]
    config: Mapping[str, object]
