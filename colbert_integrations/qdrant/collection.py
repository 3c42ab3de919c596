"""The collection behind a store: how it is made, and whether one that is there can be used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel
from qdrant_client import models

from ..errors import InputError, StoreError, StoreServerError
from ..fingerprint import Fingerprint
from ..index.checks import check_count
from .connection import Connection, Steps, ask
from .filters import METADATA, field_paths
from .first_stage import FirstStage
from .points import TEXT_HASH

__all__ = ["FIRST_STAGE", "Collection", "Form", "IndexKind", "bound", "check_first_stage", "made", "opened"]

FIRST_STAGE = "first_stage"
"""Name of the vector that the first stage searches."""

IndexKind: TypeAlias = Literal["string", "number", "boolean", "date"]

_FORBIDDEN = 403
_OURS = "colbert_integrations"  # our part of a collection's own metadata
# An index of whole numbers would pass over others, so there is none.
_KINDS = {
    "string": models.PayloadSchemaType.KEYWORD,
    "number": models.PayloadSchemaType.FLOAT,
    "boolean": models.PayloadSchemaType.BOOL,
    "date": models.PayloadSchemaType.DATETIME,
}
# What this package's own calls filter by, for servers whose strict mode takes filters on indexed keys only (Qdrant
# Cloud's is on): writing metadata where the text is still the same, and LlamaIndex' nodes of a document. Hashes take
# about a hundred bytes a document beside its vectors' tens of thousands, an index of the texts themselves would take as
# much as they do; a key that no document has, such as the second one outside LlamaIndex, takes next to nothing.
_OWN_INDEXES = {
    TEXT_HASH: models.PayloadSchemaType.UUID,
    f'{METADATA}."_llama_index"."ref_doc_id"': models.PayloadSchemaType.KEYWORD,
}
_QUANTIZATIONS: dict[str, models.QuantizationConfig] = {
    "int8": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
    ),
    "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
}
_DATATYPES = {"float16": models.Datatype.FLOAT16, "float32": models.Datatype.FLOAT32}


@dataclass(frozen=True)
class Form:
    """How a collection keeps documents.

    Attributes:
        vector: Name of the vector that holds their token vectors.
        dtype: Of these.
        on_disk: Whether they are read from disk at each search, instead of being kept in memory.
        shard_number: In how many parts the collection is spread over a cluster. None: the server's default.
        replication_factor: How many copies of each part there are. None: the server's default.
        quantization: ``"int8"``, ``"binary"`` or a model of the client's. None: no codes.
        first_stage: Makes one vector for each document. None: there is no such vector.
        payload_indexes: Which keys of metadata are indexed, and as what.
    """

    vector: str
    dtype: Literal["float16", "float32"]
    on_disk: bool
    shard_number: int | None
    replication_factor: int | None
    quantization: Any
    first_stage: FirstStage | None
    payload_indexes: Mapping[str, IndexKind]

    def __post_init__(self) -> None:
        if not isinstance(self.vector, str) or self.vector in ("", FIRST_STAGE):
            raise InputError(f"vector_name must be a name other than {FIRST_STAGE!r}, not {self.vector!r}")
        check_count("shard_number", self.shard_number)
        check_count("replication_factor", self.replication_factor)
        known = self.quantization is None or isinstance(self.quantization, BaseModel)
        if not known and self.quantization not in [*_QUANTIZATIONS]:  # which need not be hashable
            raise InputError(
                f"quantization must be one of {', '.join(map(repr, _QUANTIZATIONS))}, or a quantization of "
                f"qdrant_client.models, not {self.quantization!r}"
            )
        for key, kind in self.payload_indexes.items():
            if kind not in [*_KINDS]:  # it need not be hashable
                raise InputError(f"the payload index of {key!r} must be one of {', '.join(_KINDS)}, not {kind!r}")
            if not isinstance(key, str) or field_paths(key) is None:
                raise InputError(
                    f"{key!r} can't have a payload index: it has a quote, a backslash, an empty part or half "
                    "of a surrogate pair"
                )

    def vectors(self, dim: int) -> dict[str, models.VectorParams]:
        """The vectors of a collection of this form.

        Args:
            dim: Dimension of the token vectors.

        Returns:
            Their configuration, by name.
        """
        codes = _QUANTIZATIONS[self.quantization] if isinstance(self.quantization, str) else self.quantization
        tokens = models.VectorParams(
            size=dim,
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # no graph: building one over token vectors takes hours
            datatype=_DATATYPES[self.dtype],
            on_disk=self.on_disk or None,
            quantization_config=codes,
        )
        if self.first_stage is None:
            return {self.vector: tokens}
        size = self.first_stage.dim(dim)
        return {self.vector: tokens, FIRST_STAGE: models.VectorParams(size=size, distance=models.Distance.COSINE)}


@dataclass(frozen=True)
class Collection:
    """A collection that is there, and can be used.

    Attributes:
        dim: Dimension of its token vectors.
        fingerprint: Of the model whose vectors it holds. None: not recorded.
        has_codes: Whether it has quantised vectors.
        first_stage_dim: Dimension of its vectors for the first stage. None: it has none.
        first_stage: Name of what made these vectors. None: not recorded.
        has_text_hashes: Whether hashes of the texts are indexed, so that every document has one.
    """

    dim: int
    fingerprint: Fingerprint | None
    has_codes: bool
    first_stage_dim: int | None
    first_stage: str | None
    has_text_hashes: bool = False


def opened(connection: Connection, form: Form) -> Steps[Collection | None]:
    """Look at a collection, None if it is not there; make payload indexes that it lacks, refuse another form."""
    if not (yield from ask("collection_exists")):
        return None
    info: models.CollectionInfo = yield from ask("get_collection")
    found = _read(info, form, connection.name)
    if connection.local:  # which has no indexes
        return found
    there = _indexes_of(info)
    wanted = {path: _KINDS[kind] for key, kind in form.payload_indexes.items() for path in field_paths(key) or ()}
    if any(_unquoted(path) not in there for path in _OWN_INDEXES):
        if (yield from _is_empty()):
            wanted |= _OWN_INDEXES
        else:  # who has written to it meanwhile made them before
            there = _indexes_of((yield from ask("get_collection")))
    for path, kind in wanted.items():
        if (kept := there.get(_unquoted(path), kind)) != kind:
            # Of another kind it loses what it does not hold, such as 2003.5 where it is one of whole numbers.
            raise StoreError(
                f"{connection.name} has an index of {path} as {kept.value}, and payload_indexes asks for {kind.value}: "
                f"remove that one with store.client.delete_payload_index(store.collection, {path!r})"
            )
        if _unquoted(path) not in there and (yield from _indexed(path, kind)):
            there[path] = kind
    return replace(found, has_text_hashes=TEXT_HASH in there)


def _indexes_of(info: models.CollectionInfo) -> dict[str, models.PayloadSchemaType]:
    return {_unquoted(path): index.data_type for path, index in (info.payload_schema or {}).items()}


def _is_empty() -> Steps[bool]:
    """Whether a collection has yet to get this package's own indexes, if it has none.

    It may be another process's, which has made it just now, or was ended before it came to the indexes. Documents that
    are there may be from a time without hashes, and an index of hashes would not find them.
    """
    counted: models.CountResult = yield from ask("count", exact=True)
    return counted.count == 0


def _indexed(path: str, kind: models.PayloadSchemaType) -> Steps[bool]:
    """Make a payload index, unless the key may only read: it searches without, or strict mode says what is missing."""
    try:
        yield from ask("create_payload_index", field_name=path, field_schema=kind, wait=True)
    except StoreServerError as error:
        if error.status != _FORBIDDEN:
            raise
        return False
    return True


def _unquoted(path: str) -> str:
    """A path without the quotes that a server may leave out: around a name that has neither dots nor brackets."""
    return re.sub(r'"([^".\[\]]*)"', r"\1", path)


def made(connection: Connection, form: Form, dim: int, fingerprint: Fingerprint | None = None) -> Steps[Collection]:
    """Make a collection; where another process was quicker, its collection will do if it is of this form too."""
    refused: StoreError | None = None
    try:
        yield from ask(
            "create_collection",
            vectors_config=form.vectors(dim),
            shard_number=form.shard_number,
            replication_factor=form.replication_factor,
            metadata=_said(fingerprint, None if form.first_stage is None else form.first_stage.name),
        )
    except StoreServerError as error:
        refused = error
    found = yield from opened(connection, form)
    if found is None:
        raise refused or StoreError(f"the collection {connection.collection!r} was made, but is not there")
    return found


def bound(connection: Connection, form: Form, before: Collection, fingerprint: Fingerprint) -> Steps[Collection]:
    """Write down whose vectors a collection holds, and read it again: another process may have been quicker."""
    found = yield from opened(connection, form)  # since it was looked at, payload indexes may have taken minutes
    if found is None or found.fingerprint is None or before.fingerprint is not None:
        yield from ask("update_collection", metadata=_said(fingerprint, before.first_stage))
        found = yield from opened(connection, form)
    if found is None or found.fingerprint is None:
        raise StoreError(
            f"{connection.place} does not store collection metadata, so the model can't be recorded: "
            "Qdrant 1.16 or later is needed"
        )
    return found


def _said(fingerprint: Fingerprint | None, first_stage: str | None) -> dict[str, Any]:
    said = None if fingerprint is None else fingerprint.as_json()
    return {_OURS: {"fingerprint": said, "first_stage": first_stage}}


def _read(info: models.CollectionInfo, form: Form, name: str) -> Collection:
    """What a collection is like; another form is an error."""
    vectors = info.config.params.vectors
    tokens = vectors.get(form.vector) if isinstance(vectors, dict) else None
    if tokens is None:
        there = ", ".join(map(repr, vectors)) if isinstance(vectors, dict) else "only one without a name"
        raise StoreError(f"{name} has no vector {form.vector!r} (it has {there or 'none'}): name another collection")
    dtype = (tokens.datatype or models.Datatype.FLOAT32).value
    other_dtype = (
        f"pass dtype={dtype!r}, or name another collection" if dtype in _DATATYPES else "name another collection"
    )
    multivectors = "none" if tokens.multivector_config is None else tokens.multivector_config.comparator.value
    for what, has, needs, way_out in (
        ("distance", tokens.distance.value, models.Distance.DOT.value, "name another collection"),
        ("multivectors", multivectors, models.MultiVectorComparator.MAX_SIM.value, "name another collection"),
        ("datatype", dtype, form.dtype, other_dtype),
    ):
        if has != needs:
            raise StoreError(f"{name} has {form.vector!r} with {what} {has!r}, not {needs!r}: {way_out}")
    fingerprint, first_stage = _recorded(info.config.metadata, name)
    has_codes = (tokens.quantization_config or info.config.quantization_config) is not None
    stage = vectors.get(FIRST_STAGE) if isinstance(vectors, dict) else None
    found = Collection(tokens.size, fingerprint, has_codes, None if stage is None else stage.size, first_stage)
    if form.first_stage is not None:
        # What is not known yet is compared when vectors are made: no other call is to wait for the model.
        check_first_stage(found, form.first_stage.known_dim(tokens.size), name)
        _check_same_stage(first_stage, form.first_stage.name, name)
    return found


def _recorded(metadata: Mapping[str, Any] | None, name: str) -> tuple[Fingerprint | None, str | None]:
    """The model that a collection was bound to, and the name of its first stage, as far as it says that."""
    try:
        ours = (metadata or {}).get(_OURS) or {}
        said, first_stage = ours.get("fingerprint"), ours.get("first_stage")
        if said is None:
            return None, first_stage
        # Of a later version's, what this one knows; of an earlier one's, what that said.
        known = {item.name: said[item.name] for item in fields(Fingerprint) if item.name in said}
        return Fingerprint(**known), first_stage
    except (AttributeError, TypeError) as error:
        raise StoreError(
            f"{name} has metadata that this version can't read ({type(error).__name__}: {error})"
        ) from error


def check_first_stage(found: Collection, dim: int | None, name: str) -> None:
    """Refuse vectors of a first stage that the collection of this name does not have; None: they have any dimension."""
    there = found.first_stage_dim
    if there is None:
        raise StoreError(f"{name} was made without a first stage: leave first_stage out, or name another collection")
    if dim not in (None, there):
        raise StoreError(
            f"{name} has vectors of dim {there} as its first stage, not {dim}: pass the first_stage that made them"
        )


def _check_same_stage(recorded: str | None, given: str, name: str) -> None:
    """Refuse a first stage of another name: its vectors may have the same size, but nothing good is found by them."""
    if recorded not in (None, given):
        raise StoreError(
            f"{name} has vectors of {recorded!r} as its first stage, not of {given!r}: pass the first_stage that made "
            f"them, or first_stage_name={recorded!r} if this one is the same by another name"
        )
