"""Spelling: a checkpoint's queries and documents as texts, for a server that tokenises them itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..checkpoint import HubOptions, SpecOverrides, locate, read_checkpoint
from ..encoder import LoadOptions, Side, Tokenizer, build_tokenizer, read_tokenizer

__all__ = ["PLAIN", "Spelling", "read_spelling"]

# Both cases, and a space: a tokenizer may treat a marker otherwise before either of them.
_EXAMPLE = "Aa bb"


@dataclass(frozen=True)
class Spelling:
    """How the texts of one side are written.

    Attributes:
        marker: Text of the marker, put before each text; empty where the tokenizer would not read it as the marker.
        most_tokens: Where a server cuts a text, marker included and special tokens not. 0: nowhere.
        prepare: What else is done to a text.
    """

    marker: str = ""
    most_tokens: int = 0
    prepare: Callable[[str], str] = str

    def __call__(self, text: str) -> str:
        """The text as it is sent."""
        return self.marker + self.prepare(text)


PLAIN = Spelling()


def read_spelling(name: str | os.PathLike[str]) -> tuple[Spelling, Spelling]:
    """Find out how a checkpoint's texts are written. Its weights are not loaded.

    Args:
        name: A folder or a repository on the hub.

    Returns:
        The spelling of queries and that of documents.

    Raises:
        CheckpointError: If the checkpoint is not there or can't be read.
    """
    name = os.fspath(name)
    checkpoint = read_checkpoint(name, locate(name, HubOptions()), SpecOverrides(), allow_unprojected=True)
    load = LoadOptions(torch.device("cpu"), torch.float32)
    # Twice: ours changes the tokenizer that it is given, and the server's is as the files have it.
    tokenizer, plain = build_tokenizer(checkpoint, read_tokenizer(checkpoint, load)), read_tokenizer(checkpoint, load)
    return _spelling(tokenizer, plain, "query"), _spelling(tokenizer, plain, "document")


def _spelling(tokenizer: Tokenizer, plain: Any, side: Side) -> Spelling:
    marker = tokenizer.spec.query_marker if side == "query" else tokenizer.spec.document_marker
    prepare = partial(tokenizer.prepare, side=side)
    content = tokenizer.tokens([_EXAMPLE], side)[0].ids
    wanted = tokenizer.sequence(content, side).ids
    text = marker + prepare(_EXAMPLE)
    # Where texts are lower-cased, a server does it once more, and to the marker as well.
    found = plain(text.lower() if tokenizer.spec.lowercase else text, verbose=False)["input_ids"]
    # What a query has beyond that is its expansion.
    marker = marker if found == wanted[: len(found)] else ""
    capacity = tokenizer.capacity(side)
    return Spelling(marker, 0 if capacity is None else capacity + bool(marker), prepare)
