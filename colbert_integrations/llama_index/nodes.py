"""Nodes as documents of a store, and back: nothing of a node is lost but the vector of another model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from llama_index.core.schema import BaseNode, IndexNode, MediaResource, MetadataMode, TextNode

from ..adapter import EXPLANATION, copied, is_explanation
from ..errors import InputError

__all__ = [
    "KEY",
    "REF_DOC_ID",
    "RETRIEVAL_SCORE",
    "node_of",
    "node_text",
    "ref_doc_id_of",
    "stored_metadata",
    "with_hidden",
]

KEY = "_llama_index"
"""The one metadata key that is ours: below it lies what a node has beside its metadata."""

REF_DOC_ID = f"{KEY}.ref_doc_id"
"""Where filters find the document that a node comes from."""

RETRIEVAL_SCORE = "retrieval_score"
"""The metadata key under which a reranker keeps the score that a node came with."""


def node_text(node: BaseNode, mode: MetadataMode) -> str:
    """The text of a node that is encoded or scored.

    Args:
        node: The node.
        mode: Which metadata belongs to the text.

    Returns:
        Metadata and content by the templates of the node; may be empty. An explanation or a score of ours, which an
        earlier stage put there, does not belong to it.
    """
    ours = {EXPLANATION} if is_explanation(node.metadata.get(EXPLANATION)) else set[str]()
    if _is_hidden(node, RETRIEVAL_SCORE):
        ours.add(RETRIEVAL_SCORE)
    if ours & node.metadata.keys():
        rest = {key: value for key, value in node.metadata.items() if key not in ours}
        node = node.model_copy(update={"metadata": rest})
    return node.get_content(metadata_mode=mode)


def _is_hidden(node: BaseNode, key: str) -> bool:
    """Whether neither an LLM nor an embedding sees a key, as is so of those that ``with_hidden`` adds."""
    return key in node.excluded_embed_metadata_keys and key in node.excluded_llm_metadata_keys


def with_hidden(node: BaseNode, metadata: Mapping[str, Any]) -> BaseNode:
    """A copy of a node with more metadata, which neither an LLM nor an embedding sees.

    Args:
        node: The node.
        metadata: What to add.

    Returns:
        The copy; what it had under these keys is replaced. Changing a list in its metadata leaves the node alone.
    """
    hidden = {
        name: [*dict.fromkeys([*getattr(node, name), *metadata])]
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    return node.model_copy(update={"metadata": {**copied(node.metadata), **metadata}, **hidden})


def stored_metadata(node: BaseNode) -> dict[str, Any]:
    """The node as metadata of a document: its own metadata as it is, so that filters see it, and the rest below KEY.

    Args:
        node: The node.

    Returns:
        What ``node_of`` reads.

    Raises:
        InputError: If the node uses our key, or holds something that has no JSON.
    """
    if KEY in node.metadata:
        raise InputError(f"node {node.node_id!r} has the metadata key {KEY!r}, which is kept for this package")
    rest = {"classes": [_name(line) for line in type(node).__mro__ if issubclass(line, BaseNode)], "node": _dump(node)}
    if node.ref_doc_id is not None:
        rest["ref_doc_id"] = node.ref_doc_id
    return {**node.metadata, KEY: rest}


def node_of(name: str, text: str | None, metadata: Mapping[str, Any]) -> BaseNode:
    """A new node, equal to the one that was stored.

    Args:
        name: Id of the document.
        text: Its text.
        metadata: Its metadata.

    Returns:
        The node, free to change. A document that did not come from here is a ``TextNode``.
    """
    rest = metadata.get(KEY)
    if not _is_ours(rest):
        return TextNode(id_=name, text=text or "", metadata=dict(metadata))
    own = {key: value for key, value in metadata.items() if key != KEY}
    return _class_of(rest["classes"]).from_dict({**json.loads(rest["node"]), "metadata": own})


def ref_doc_id_of(metadata: Mapping[str, Any]) -> str | None:
    """The id of the document that a stored node comes from.

    Args:
        metadata: Metadata of the stored node.

    Returns:
        The id, None if it has none.
    """
    rest = metadata.get(KEY)
    found = rest.get("ref_doc_id") if isinstance(rest, Mapping) else None
    return found if isinstance(found, str) else None


def _is_ours(rest: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether ``stored_metadata`` wrote this: whoever fills an index otherwise may use the same key."""
    return isinstance(rest, Mapping) and isinstance(rest.get("classes"), list) and isinstance(rest.get("node"), str)


def _dump(node: BaseNode) -> str:
    if isinstance(node, IndexNode) and not isinstance(node.obj, BaseNode):
        node = node.model_copy(update={"obj": None})  # an engine or a retriever: nothing that could be stored
    try:
        dumped = node.model_dump(mode="json", exclude={"metadata", "embedding"})
        for field, resource in _binaries(node):
            dumped[field]["data"] = resource.decode()
        return json.dumps(dumped)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"node {node.node_id!r} can't be written as JSON: {error}") from error


def _binaries(node: BaseNode) -> Iterator[tuple[str, bytes]]:
    """Contents of images, sounds and films, which the framework leaves out of its dumps; as base64 already."""
    for field in type(node).model_fields:
        resource = getattr(node, field)
        if isinstance(resource, MediaResource) and resource.data is not None:
            yield field, resource.data


def _class_of(names: list[str]) -> type[BaseNode]:
    """The first of a node's classes that this program has; looked for, never imported on a file's word."""
    known = {_name(found): found for found in _subclasses(BaseNode)}
    return next((known[name] for name in names if name in known), TextNode)


def _subclasses(base: type[Any]) -> Iterator[type[BaseNode]]:
    for found in base.__subclasses__():
        yield found
        yield from _subclasses(found)


def _name(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"
