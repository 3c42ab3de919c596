"""What every store refuses, so that what one takes the others take too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from ..checks import as_list, check_whole_number
from ..embeddings import TokenEmbeddings
from ..errors import FingerprintError, InputError, NonFiniteError, ShapeError
from ..fingerprint import Fingerprint
from .metadata import json_copy
from .store import Metadata, Search

__all__ = [
    "candidate_count",
    "check_count",
    "check_dtype",
    "check_embeddings",
    "check_folder",
    "check_form",
    "check_ids",
    "check_queries",
    "check_same",
    "check_same_dim",
    "check_search",
    "checked_documents",
    "checked_metadata",
    "finite_as",
]


def check_dtype(dtype: object) -> None:
    """Refuse data types in which no store keeps vectors."""
    if dtype not in ("float16", "float32"):
        raise InputError(f"dtype must be 'float16' or 'float32', not {dtype!r}")


def check_form(dtype: object, nbits: object, keep_originals: bool) -> None:
    """Refuse forms in which no store keeps vectors."""
    check_dtype(dtype)
    if nbits is not None and not (isinstance(nbits, int) and nbits in (8, 4, 2)):
        raise InputError(f"nbits must be 8, 4, 2 or None for vectors as they are, not {nbits!r}")
    if keep_originals and nbits is None:
        raise InputError("keep_originals goes with nbits: without it vectors are kept as they are anyway")


def check_count(name: str, value: int | None) -> int | None:
    """The value, if it is None or a whole number from 1."""
    if value is not None:
        check_whole_number(name, value)
    return value


def check_search(search: object, *, without: Sequence[Search], where: str) -> None:
    """Refuse what is no way to search, and those that a store does not offer."""
    offered = [name for name in get_args(Search) if name not in without]
    if search in without:
        raise InputError(f"{where} has no search={search!r}: it has {', '.join(map(repr, offered))}")
    if search not in offered:
        raise InputError(f"search must be one of {', '.join(map(repr, offered))}, not {search!r}")


def candidate_count(mode: Search, k: int, asked: int | None) -> int:
    """How many documents a candidate stage hands on: as many as were asked for, but never less than ``k``."""
    return max(k, asked or (max(20, 2 * k) if mode == "codes" else max(500, 5 * k)))


def check_embeddings(name: str, value: object) -> None:
    """Refuse anything but ``TokenEmbeddings``, such as a tensor or a list of them."""
    if not isinstance(value, TokenEmbeddings):
        raise InputError(
            f"{name} must be TokenEmbeddings, not {type(value).__name__}: TokenEmbeddings.from_list packs one matrix "
            "for each text"
        )


def check_folder(folder: object) -> Path:
    """The path of a folder; an empty one, such as of a variable that is not set, would be the working directory."""
    path = os.fspath(folder) if isinstance(folder, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise InputError(f"folder must be a path that is not empty, not {folder!r}")
    try:
        path.encode()  # others would be written, and then not be read: safetensors takes names in UTF-8 alone
    except UnicodeEncodeError as error:
        raise InputError(f"the name of the folder {path!r} is not UTF-8: choose another") from error
    return Path(path)


def check_queries(queries: TokenEmbeddings, dim: int) -> None:
    """Refuse queries that can't be compared with vectors of a dimension."""
    if queries.dim != dim:
        raise ShapeError(f"queries have dim {queries.dim}, the store holds vectors of dim {dim}")
    if not torch.isfinite(queries.values).all():
        raise InputError("a query's vectors are not all finite")


def check_ids(ids: Iterable[str]) -> list[str]:
    """The ids as a list, if they are strings that are not empty; a generator, which can be read once only, too."""
    if isinstance(ids, Mapping):  # of whose keys some may be ids
        raise InputError("ids must be a list of strings, not a mapping; of a filter, store.ids(filter) gives the ids")
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InputError(f"ids must be a list of strings, not {ids!r}")
    names = list(ids)
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"an id must be a string that is not empty, not {name!r}")
    return names


def check_same(kept: Fingerprint | None, fingerprint: Fingerprint, where: str) -> None:
    """Refuse another model's vectors where those of ``kept`` are; None: not recorded."""
    if kept is not None and kept != fingerprint:
        alike = "; the names are the same, but weights, markers, prompts, skiplist or expansion are not"
        raise FingerprintError(
            f"{where} holds vectors of {kept}, which do not fit those of {fingerprint}: use that model, or index the "
            f"texts again with this one{alike if kept.model == fingerprint.model else ''}"
        )


def check_same_dim(dim: int, fingerprint: Fingerprint, where: str) -> None:
    """Refuse to take vectors of ``dim``, whose model is not recorded, for those of a model with another dimension."""
    if dim != fingerprint.dim:
        raise FingerprintError(f"{where} holds vectors of dim {dim}, which are not those of {fingerprint}")


def checked_metadata(
    ids: Sequence[str], metadatas: Sequence[Metadata], texts: Sequence[str] | None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Metadata and texts by id, copied from what ``Store.set_metadata`` was given."""
    ids, metadatas = check_ids(as_list("ids", ids)), as_list("metadatas", metadatas)
    texts = None if texts is None else as_list("texts", texts)
    for what, column in (("metadatas", metadatas), ("texts", ids if texts is None else texts)):
        if len(column) != len(ids):
            raise InputError(f"{len(ids)} ids but {len(column)} {what}")
    copies = {name: json_copy(metadata, f"document {name!r}") for name, metadata in zip(ids, metadatas, strict=True)}
    return copies, {} if texts is None else dict(zip(ids, texts, strict=True))


def checked_documents(
    ids: Sequence[str],
    embeddings: TokenEmbeddings,
    texts: Sequence[str | None] | None,
    metadatas: Sequence[Metadata | None] | None,
) -> tuple[list[str], list[str | None], list[dict[str, Any]]]:
    """Ids, texts and metadata of documents that can be stored, copied from what ``Store.upsert`` was given."""
    ids = check_ids(as_list("ids", ids))
    check_embeddings("embeddings", embeddings)
    texts = [None] * len(ids) if texts is None else as_list("texts", texts)
    metadatas = [None] * len(ids) if metadatas is None else as_list("metadatas", metadatas)
    for what, number in (("embeddings", len(embeddings)), ("texts", len(texts)), ("metadatas", len(metadatas))):
        if number != len(ids):
            raise InputError(f"{len(ids)} ids but {number} {what}")
    for name, length, text in zip(ids, embeddings.lengths, texts, strict=True):
        if not length:
            raise InputError(f"document {name!r} has no vectors, so nothing can find it")
        if text is not None and not isinstance(text, str):
            raise InputError(f"the text of document {name!r} must be a string, not {type(text).__name__}")
    copies = [json_copy(metadata, f"document {name!r}") for name, metadata in zip(ids, metadatas, strict=True)]
    return ids, texts, copies


def finite_as(embeddings: TokenEmbeddings, dtype: str, names: Sequence[str] = ()) -> torch.Tensor:
    """The vectors in the dtype in which they are kept; an error that names a document if one is not finite in it."""
    values: torch.Tensor = embeddings.values.detach().to(getattr(torch, dtype))
    if _finite(values):
        return values
    for number, matrix in enumerate(embeddings):
        if not _finite(matrix.float()):
            name = repr(names[number]) if names else number
            raise NonFiniteError(f"the vectors of document {name} are not all finite")
    raise NonFiniteError("a value is too large for float16: use dtype='float32'")


def _finite(values: torch.Tensor) -> bool:
    # isfinite on every value took 2/3 of the time of an upsert; extremes are NaN if any value is.
    return not values.numel() or bool(torch.isfinite(torch.stack(values.aminmax())).all())
