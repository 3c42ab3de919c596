"""Stale vectors: a store says how its documents were encoded, so that old vectors are not taken for new ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from .cuts import callers_stacklevel
from .errors import StaleVectorsWarning
from .index import Store
from .model import ColBERT

__all__ = ["StaleVectors", "warn_of_other_tokens"]

Encoding: TypeAlias = Mapping[str, Any]


class StaleVectors:
    """Documents of a store that may have been encoded otherwise than a model would do it now.

    Args:
        store: The store.
        model: Encodes what is added.
        pool_factor: The one with which documents are encoded now.
        alike: Ids of documents that are known to be encoded like this, which grow by those that are.
    """

    def __init__(self, store: Store, model: ColBERT, pool_factor: float, alike: set[str]) -> None:
        self._store, self._model, self._pool_factor, self._alike = store, model, pool_factor, alike
        self._own: Encoding = {}
        self._others: list[Encoding] = []
        self._recorded = False
        self._kept, self._total = 0, 0

    def begin(self) -> None:
        """Bind the store to the model, and look how its documents were encoded.

        Raises:
            FingerprintError: If the store holds vectors of another model.
            StoreError: If it can't be used.
        """
        self._own = _encoding(self._model, self._pool_factor)
        if self._store.fingerprint is None:
            self._record()
        else:
            self._store.bind(self._model.fingerprint)
        known = [] if self._store.fingerprint is None else self._store.fingerprint.encodings
        self._others = [encoding for encoding in known if _differing(encoding, self._own)]
        self._recorded = len(self._others) < len(known)

    def keeps(self, total: int, ids: Iterable[str]) -> None:
        """Take note of ``ids``, which are not encoded again, among the ``total`` documents that were given."""
        self._total += total
        if self._others:
            self._kept += sum(name not in self._alike for name in ids)

    def writes(self) -> None:
        """Say in the store how documents are encoded now, before it gets the first of them."""
        if not self._recorded:
            self._record()
            self._recorded = True

    def wrote(self, ids: Iterable[str]) -> None:
        """Take note of documents that are encoded like this now."""
        if self._others:
            self._alike.update(ids)

    def end(self) -> None:
        """If all of the store is encoded like this now, say so in it; else warn of documents that may not be."""
        if self._others and self._all_alike():
            self._others = []
            self._record()
            self._alike.clear()
        elif self._kept:
            said = dict.fromkeys(change for other in self._others for change in _differing(other, self._own))
            message = (
                f"{self._kept} of {self._total} documents are there with the same text and keep their vectors, which "
                f"may have been made with {', '.join(said)}; reencode=True encodes them again"
            )
            warnings.warn(message, StaleVectorsWarning, stacklevel=callers_stacklevel())

    def _all_alike(self) -> bool:
        # Counted first: listing all ids is worth it only if there can be no others.
        return 0 < self._store.count() <= len(self._alike) and self._alike.issuperset(self._store.ids())

    def _record(self) -> None:
        self._store.bind(replace(self._model.fingerprint, encodings=[*self._others, self._own]))


def warn_of_other_tokens(store: Store, model: ColBERT) -> None:
    """Warn of documents that may have been split into other tokens than the model's tokenizer would give now.

    Args:
        store: Where the documents are.
        model: The one that they were encoded with, as far as its fingerprint says.
    """
    known = [] if store.fingerprint is None else store.fingerprint.encodings
    now = model.spec.tokenizer_digest
    if any(encoding.get("tokenizer", now) != now for encoding in known) and store.count():
        message = (
            f"documents may have been encoded when the tokenizer of {model.settings.model} gave other tokens than now, "
            "so that they and queries fit less well: its files have changed, or the version of transformers or "
            "tokenizers. Adding them again with reencode=True encodes them anew"
        )
        warnings.warn(message, StaleVectorsWarning, stacklevel=callers_stacklevel())


def _encoding(model: ColBERT, pool_factor: float) -> Encoding:
    """What decides a document's vectors beside the fingerprint: how it is read, and how much of that is kept."""
    settings = model.settings
    return {
        "document_length": model.spec.document_length,
        "long_documents": settings.long_documents,
        "window_overlap": settings.window_overlap if settings.long_documents == "window" else None,
        # NumPy's numbers and fractions are no JSON, as which this is saved.
        "pool_factor": pool_factor if isinstance(pool_factor, int) else float(pool_factor),
        "tokenizer": model.spec.tokenizer_digest,
    }


def _differing(other: Encoding, own: Encoding) -> list[str]:
    """What the two say differently; not what one of them does not say at all, as another version may not."""
    names = [name for name in own if name in other and other[name] != own[name]]
    return [f"{name}={other[name]!r} (now {own[name]!r})" for name in names]
