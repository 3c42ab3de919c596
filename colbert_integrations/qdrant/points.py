"""Documents as Qdrant's points and back: ids, payloads, and batches of so many bytes."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from qdrant_client import models

from ..errors import InputError, StoreError
from ..index import StoredDocument
from ..index.metadata import clone
from .batches import batches
from .filters import EXACT, METADATA
from .numbers import searchable
from .wire import Wire

__all__ = [
    "AROUND_BYTES",
    "TEXT_HASH",
    "Prepared",
    "batched",
    "document_of",
    "metadata_payload",
    "payload_of",
    "point_id",
    "size_of",
    "text_hash",
]

TEXT_HASH = "text_hash"
"""Where the hash of a document's text is in its payload, which takes less of an index than the text."""

AROUND_BYTES = 200
"""What a point has in a request beside payload and vectors: its id, names and braces."""

_NAMESPACE = uuid.UUID("0a1b5c2e-6f0d-4c57-9d5e-8b0d6a3c1f47")


def point_id(name: str) -> str:
    """The id of the point that holds a document; Qdrant's are numbers or UUIDs.

    Args:
        name: Id of the document.

    Returns:
        A UUID.

    Raises:
        InputError: If the document's id has a character that can't be written.
    """
    try:
        return str(uuid.uuid5(_NAMESPACE, name))
    except UnicodeEncodeError as error:
        raise InputError(f"the id {name!r} has half of a surrogate pair: {error}") from error


# ------------------------------------------------------------------------------------------------------------ payload


def payload_of(name: str, text: str | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a document beside its vectors.

    Args:
        name: Its id.
        text: Its text.
        metadata: Its metadata, JSON data.

    Returns:
        The payload of its point.
    """
    hashed = {} if text is None else {TEXT_HASH: text_hash(text)}
    return {"id": name, "text": text, **hashed, **_kept(metadata)}


def text_hash(text: str) -> str:
    """What tells a text from another one in an index, in 16 bytes.

    Args:
        text: The text.

    Returns:
        A hash of it, as a UUID.
    """
    return str(uuid.UUID(bytes=hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]))


def metadata_payload(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What to set in the payload of a document to replace its metadata; a None there removes.

    Args:
        metadata: Its new metadata, JSON data.

    Returns:
        A part of a payload.
    """
    return {EXACT: None, **_kept(metadata)}


def _kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    rounded = searchable(metadata)
    return {METADATA: rounded, **({} if rounded == metadata else {EXACT: json.dumps(metadata)})}


def size_of(payload: Mapping[str, Any]) -> int:
    """Bytes that a payload takes in a request.

    Args:
        payload: The payload, or a part of it.

    Returns:
        Its size as JSON.

    Raises:
        InputError: If it has a character that can't be written.
    """
    try:
        return len(json.dumps(payload, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        raise InputError(f"document {payload.get('id')!r} has half of a surrogate pair: {error}") from error


# ------------------------------------------------------------------------------------------------------------- points


@dataclass(frozen=True)
class Prepared:
    """A document on its way to the server.

    Attributes:
        name: Its id.
        payload: What is kept beside its vectors.
        size: Bytes that the payload takes in a request.
        vectors: Matrices, or single vectors, by name.
    """

    name: str
    payload: dict[str, Any]
    size: int
    vectors: dict[str, torch.Tensor]

    def request_bytes(self, wire: Wire) -> int:
        """Bytes that it takes in a request, at most."""
        vectors = sum(_wire_of(values, wire).size_of(values) for values in self.vectors.values())
        return self.size + vectors + AROUND_BYTES

    def point(self, wire: Wire) -> models.PointStruct:
        """Make the point that holds it."""
        vectors: dict[str, Any] = {
            name: _wire_of(values, wire).numbers(values) for name, values in self.vectors.items()
        }
        return models.PointStruct(id=point_id(self.name), vector=vectors, payload=self.payload)


def _wire_of(values: torch.Tensor, wire: Wire) -> Wire:
    """How vectors travel: one alone is a first stage's, whose numbers may be too large for a float16."""
    return wire if values.ndim == 2 else wire.exact


def batched(documents: Iterable[Prepared], wire: Wire, most_bytes: int) -> Iterator[list[models.PointStruct]]:
    """Make points, as many at a time as a request holds.

    Args:
        documents: The documents.
        wire: How vectors travel.
        most_bytes: Of a request, if it has more than one document.

    Yields:
        Some points, at least one.
    """
    for some in batches(documents, lambda document: document.request_bytes(wire), most_bytes):
        yield [document.point(wire) for document in some]


def document_of(payload: Mapping[str, Any] | None, embeddings: torch.Tensor | None = None) -> StoredDocument:
    """The document that a point holds.

    Args:
        payload: Of the point.
        embeddings: Its vectors, if they were asked for.

    Returns:
        The document, its metadata a copy.

    Raises:
        StoreError: If the point is nothing that this package stored.
    """
    if payload is None or not isinstance(payload.get("id"), str):
        raise StoreError(
            "the collection has points that this package did not store: they have no 'id' in their payload"
        )
    exact = payload.get(EXACT)
    try:
        metadata = clone(payload.get(METADATA, {})) if exact is None else json.loads(exact)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"the metadata of {payload['id']!r} can't be read: somebody else wrote it ({error})"
        ) from error
    text = payload.get("text")
    if not isinstance(metadata, dict) or not isinstance(text, (str, NoneType)):
        raise StoreError(f"text or metadata of {payload['id']!r} can't be read: somebody else wrote it")
    return StoredDocument(payload["id"], text, metadata, embeddings)
