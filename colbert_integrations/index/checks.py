"""What every store refuses, so that what one takes the others take too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..checks import check_whole_number
from ..embeddings import TokenEmbeddings
from ..errors import InputError, ShapeError
from .metadata import json_copy

__all__ = ["check_count", "check_form", "check_ids", "check_k", "check_queries", "checked", "checked_notes"]


def check_form(dtype: object, nbits: object, keep_originals: bool) -> None:
    """Refuse forms of vectors that there are not."""
    if dtype not in ("float16", "float32"):
        raise InputError(f"dtype must be 'float16' or 'float32', not {dtype!r}")
    if nbits not in (None, 8, 4, 2):
        raise InputError(f"nbits must be 8, 4, 2 or None for vectors as they are, not {nbits!r}")
    if keep_originals and nbits is None:
        raise InputError("keep_originals goes with nbits: without it vectors are kept as they are anyway")


def check_count(name: str, value: int | None) -> int | None:
    """The value, if it is None or a whole number from 1."""
    if value is not None:
        check_whole_number(name, value)
    return value


def check_k(k: int) -> int:
    """The number, if it is a whole number from 1."""
    check_whole_number("k", k)
    return k


def check_queries(queries: TokenEmbeddings, dim: int) -> None:
    """Refuse queries that can't be compared with vectors of a dimension."""
    if queries.dim != dim:
        raise ShapeError(f"queries have dim {queries.dim}, the store holds vectors of dim {dim}")
    if not torch.isfinite(queries.values).all():
        raise InputError("a query's vectors are not all finite")


def check_ids(ids: Iterable[str]) -> list[str]:
    """The ids as a list, if they are strings that are not empty; a generator, which can be read once only, too."""
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InputError(f"ids must be a list of strings, not {ids!r}")
    names = list(ids)
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"an id must be a string that is not empty, not {name!r}")
    return names


def checked_notes(
    ids: Sequence[str], metadatas: Sequence[Mapping[str, Any]], texts: Sequence[str] | None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Metadata and texts by id, copied from what ``Store.set_metadata`` was given."""
    names, notes = check_ids(ids), list(metadatas)
    bodies = [] if texts is None else list(texts)
    for what, column in (("metadatas", notes), ("texts", names if texts is None else bodies)):
        if len(column) != len(names):
            raise InputError(f"{len(names)} ids but {len(column)} {what}")
    copies = {name: json_copy(note, name) for name, note in zip(names, notes, strict=True)}
    return copies, dict(zip(names, bodies, strict=False))


def checked(
    ids: Sequence[str],
    embeddings: TokenEmbeddings,
    texts: Sequence[str | None] | None,
    metadatas: Sequence[Mapping[str, Any] | None] | None,
) -> tuple[list[str], list[str | None], list[dict[str, Any]]]:
    """Ids, texts and metadata of documents that can be stored, copied from what ``Store.upsert`` was given."""
    names = check_ids(ids)
    bodies: list[str | None] = [None] * len(names) if texts is None else list(texts)
    notes = [None] * len(names) if metadatas is None else list(metadatas)
    for what, number in (("embeddings", len(embeddings)), ("texts", len(bodies)), ("metadatas", len(notes))):
        if number != len(names):
            raise InputError(f"{len(names)} ids but {number} {what}")
    for name, length, body in zip(names, embeddings.lengths, bodies, strict=True):
        if not length:
            raise InputError(f"document {name!r} has no vectors, so nothing can find it")
        if body is not None and not isinstance(body, str):
            raise InputError(f"the text of document {name!r} must be a string, not {type(body).__name__}")
    return names, bodies, [json_copy(note, name) for name, note in zip(names, notes, strict=True)]
