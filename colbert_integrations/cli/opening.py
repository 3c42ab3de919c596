"""Models and stores as the user named them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..colbert_index import ColBERTIndex
from ..errors import InputError, StoreError
from ..index import MemoryStore, Store
from ..location import open_store
from ..model import ColBERT
from ..settings import DEFAULT_MODEL

__all__ = ["folder_of", "open_index", "open_model", "opened_for_writing"]

_LOCK = ".indexing.lock"
# What a first save that was killed may leave behind.
_NO_INDEX_YET = {_LOCK, ".lock", "manifest.json.new"}


def open_model(args: argparse.Namespace, made_with: Mapping[str, Any] | None = None) -> ColBERT:
    """The model that is wanted; its weights are loaded when they are needed.

    Args:
        args: With ``model``, ``device``, ``dtype`` and ``settings``.
        made_with: Settings to use where none is named. None: those of the default model.

    Returns:
        The model.

    Raises:
        InputError: If a setting is invalid.
        CheckpointError: If it is not there, not whole, or of a kind that is not run.
        MissingExtraError: If a package that the model needs is not installed.
    """
    if args.quiet:
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # re-exported

        disable_progress_bars()
    name = args.model
    chosen = {"model": DEFAULT_MODEL, **(made_with or {})} if name is None else {"model": name}
    machine = {"device": args.device, "dtype": args.dtype}
    return ColBERT.shared(**{**chosen, **dict(args.settings), **machine})


def open_index(args: argparse.Namespace) -> ColBERTIndex:
    """Open an index to search it.

    Args:
        args: With ``store`` and what ``open_model`` needs.

    Returns:
        The index, with the model that it was made with unless another is named.

    Raises:
        StoreError: If there is none, or it can't be read.
        FingerprintError: If it holds vectors of another model.
        CheckpointError: If the model can't be loaded.
        MissingExtraError: If a package that the model or the store needs is not installed.
    """
    folder = folder_of(args.store)
    store = open_store(args.store) if folder is None else _loaded(args, folder)
    if store.fingerprint is None and (args.model is None or not store.count()):
        raise StoreError(
            f"{args.store} holds no index, or one that does not say which model it was made with: make one with the "
            "command index, or name the model by --model"
        )
    return _joined(args, store)


@contextmanager
def opened_for_writing(args: argparse.Namespace) -> Iterator[ColBERTIndex]:
    """Open an index to add to it, or make it.

    Args:
        args: With ``store``, ``nbits``, ``search`` and what ``open_model`` needs.

    Yields:
        The index, which nobody else adds to by this command if it is in a folder.

    Raises:
        InputError: If an argument does not fit the store.
        StoreError: If the store can't be used, or somebody else adds to it.
        FingerprintError: If it holds vectors of another model.
        CheckpointError: If the model can't be loaded.
        MissingExtraError: If a package that the model or the store needs is not installed.
    """
    folder = folder_of(args.store)
    if folder is None:
        if args.nbits is not None:
            raise InputError("--nbits is for an index in a folder; for Qdrant make the collection with QdrantStore")
        if args.search is not None:
            raise InputError("--search is for an index in a folder; for Qdrant say it to the command search")
        with _joined(args, open_store(args.store)) as index:
            yield index
        return
    with _locked(folder):
        store = _store_in(args, folder)
        with _joined(args, store) as index:
            _ = index.model.spec  # now, so that a model which can't be loaded is found before anything is written
            # And a folder which can't be written before any work. Not by the index, which would bind it to the model.
            store.save(folder, show_progress=False)
            yield index


def folder_of(where: str) -> Path | None:
    """The folder that is meant; None if it is the location of a store elsewhere."""
    if not where:  # as of a variable that is not set
        raise InputError("--store must name a folder or the location of a store, and is empty")
    return None if "://" in where else Path(where)


def _joined(args: argparse.Namespace, store: Store) -> ColBERTIndex:
    made_with = None if store.fingerprint is None else store.fingerprint.settings
    return ColBERTIndex(open_model(args, made_with), store)


def _loaded(args: argparse.Namespace, folder: Path) -> MemoryStore:
    return MemoryStore.load(folder, show_progress=False if args.quiet else None)


def _store_in(args: argparse.Namespace, folder: Path) -> MemoryStore:
    nbits = args.nbits
    if all(path.name in _NO_INDEX_YET for path in folder.iterdir()):
        return MemoryStore(nbits=nbits, search=args.search or "exact")
    store = _loaded(args, folder)
    if nbits not in (None, store.nbits):
        kept = "vectors as they are" if store.nbits is None else f"codes of {store.nbits} bits"
        raise InputError(f"{folder} keeps {kept}, which --nbits {nbits} can't change: choose another folder")
    if args.search is not None:
        store.check_search(args.search)
        store.search_default = args.search
    return store


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two that add at once would each save without what the other has added."""
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise StoreError(f"another process adds to {folder}: wait until it is done") from error
    except (OSError, NotImplementedError) as error:  # the latter by filelock, where the system can't lock files
        raise StoreError(f"can't use {folder}: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield
    finally:
        lock.release()
