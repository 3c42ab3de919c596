"""index_corpus: a corpus of any size into a store, in bounded memory, resumed where it was interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .checks import check_whole_number, is_list
from .colbert_index import ColBERTIndex
from .errors import InputError
from .index import Store
from .loading import Loaded, Loader, Row
from .model import ColBERT
from .progress import progress_bar

__all__ = ["CorpusReport", "index_corpus"]

# Failures that a report holds; of a corpus with a wrong column there would be millions.
_FAILURES = 1000


@dataclass(frozen=True)
class CorpusReport:
    """What became of a corpus.

    Attributes:
        documents: How many were given.
        encoded: How many were encoded and stored.
        unchanged: How many were there already with the same text, from before or earlier in this corpus.
        replaced: How many were not stored, since a later one in the same window has their id and another text.
        failed: How many could not be stored.
        failures: Why, for the first 1,000 of those: by id, or by ``number n`` where there is none.
        seconds: How long it took.
    """

    documents: int
    encoded: int
    unchanged: int
    replaced: int
    failed: int
    failures: Mapping[str, Exception]
    seconds: float

    def __str__(self) -> str:
        rate = self.documents / self.seconds if self.seconds else 0.0
        given = f"{self.documents:,} document{'s' * (self.documents != 1)}"
        said = f"{given}: {self.encoded:,} encoded, {self.unchanged:,} there already"
        replaced = f", {self.replaced:,} replaced by later ones with the same id" if self.replaced else ""
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{said}{replaced}{failed}; {self.seconds:.1f} s, {rate:,.0f} a second"


def index_corpus(
    documents: Iterable[str | Mapping[str, Any]],
    model: str | os.PathLike[str] | ColBERT,
    store: Store | str,
    *,
    pool_factor: float = 1,
    reencode: bool = False,
    window: int = 2048,
    total: int | None = None,
    on_failure: Callable[[str, Exception], None] | None = None,
    show_progress: bool | None = None,
) -> CorpusReport:
    """Encode a corpus and store it.

    Two windows of documents are in memory at a time: while one is written, the next one is encoded. Run again after an
    interruption, or on a corpus that has grown, it encodes only what is not there yet (with ``reencode`` all of it).

    Args:
        documents: Texts, or mappings with a ``text`` and, if they have them, an ``id`` and ``metadata`` (JSON-able,
            with string keys), to which other keys are added. Without an id it is a hash of text and metadata, so the
            same document is stored once. A generator is read as it goes.
        model: A name, a path or a ``ColBERT``.
        store: Where to: a store, or the location of one such as ``"qdrant+http://localhost:6333/my-collection"``.
        pool_factor: About 1 in ``pool_factor`` vectors of a document is kept, by merging similar ones; 1 keeps all.
        reencode: Whether texts that are there unchanged are encoded again, as after a change of ``long_documents`` or
            ``pool_factor``; all ids are held in memory then. False: they keep their vectors, with a warning where
            settings have changed.
        window: Maximum number of documents in a window, fewer if they are long. Those of like length are encoded
            together, so large windows suit a GPU; an interruption loses two of them at most.
        total: How many documents will come, for the progress bar. None: not known, or the length of a list.
        on_failure: Called with the id and the error of each document that can't be stored, once for all in a window
            that share an id; the other documents are stored. None: only the report tells.
        show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

    Returns:
        What became of it.

    Raises:
        InputError: If an argument is invalid.
        FingerprintError: If the store holds vectors of another model.
        StoreError: If the store can't be used; what was written by then is there, and the next run goes on from it.
        CheckpointError: If the model can't be loaded.
        MissingExtraError: If a package that the store, the model or the merging of vectors needs is not installed.
        RemoteError: If the model's ``forward=`` is on servers, and they fail.

    Example:
        >>> from colbert_integrations import MemoryStore
        >>> store = MemoryStore()
        >>> lines = [{"id": "a", "text": "How to bake bread"}, {"id": "b", "text": "Why wings lift a plane"}]
        >>> report = index_corpus(lines, "bundled/all-MiniLM-L6-v2", store, show_progress=False)
        >>> report.encoded, report.unchanged, store.ids()
        (2, 0, ['a', 'b'])
        >>> index_corpus(lines, "bundled/all-MiniLM-L6-v2", store, show_progress=False).unchanged
        2
    """
    if not is_list(documents):
        raise InputError(f"documents must be a list or a generator of documents, not one {type(documents).__name__}")
    check_whole_number("window", window)
    if total is not None:
        check_whole_number("total", total, least=0)
    if store is None:
        raise InputError("store must be a store or its location, not None: what is encoded would be lost")
    index = ColBERTIndex(model, store, pool_factor=pool_factor)
    if total is None and isinstance(documents, Sized):
        total = len(documents)
    tally = _Tally(on_failure)
    try:
        with progress_bar(total, show_progress, "Indexing") as bar:
            loader = Loader(index.model, index.store, pool_factor, reencode=reencode)
            for loaded in loader.load_ahead(map(_row, documents), window):
                tally.add(loaded)
                bar.update(loaded.size)
    finally:
        if isinstance(store, str):  # opened here
            index.close()
    return tally.report()


def _row(document: str | Mapping[str, Any]) -> Row:
    """A document as it is to be checked, where one that can't be stored is refused alone."""
    if not isinstance(document, Mapping):
        return Row(document)
    rest = {key: value for key, value in document.items() if key not in ("text", "id", "metadata")}
    metadata = document.get("metadata")
    if rest and (metadata is None or isinstance(metadata, Mapping)):
        metadata = {**rest, **(metadata or {})}
    return Row(document.get("text"), document.get("id"), metadata)


class _Tally:
    """Counts what becomes of windows."""

    def __init__(self, on_failure: Callable[[str, Exception], None] | None) -> None:
        self._on_failure, self._start = on_failure, time.perf_counter()
        self._documents, self._encoded, self._replaced, self._failed = 0, 0, 0, 0
        self._failures = dict[str, Exception]()

    def add(self, loaded: Loaded) -> None:
        """Count a window."""
        self._documents += loaded.size
        self._encoded += loaded.encoded
        self._replaced += len(loaded.replaced)
        self._failed += loaded.size - len(loaded.ids)
        self._failures |= islice(loaded.failures.items(), _FAILURES - len(self._failures))
        if self._on_failure is not None:
            for name, error in loaded.failures.items():
                self._on_failure(name, error)

    def report(self) -> CorpusReport:
        """All that was counted, and the time since the start."""
        unchanged = self._documents - self._encoded - self._replaced - self._failed
        seconds = time.perf_counter() - self._start
        return CorpusReport(
            self._documents, self._encoded, unchanged, self._replaced, self._failed, self._failures, seconds
        )
