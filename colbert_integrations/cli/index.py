"""index: documents encoded and stored; interrupted, it keeps what it has, and the next run goes on from there."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..colbert_index import ColBERTIndex
from ..corpus import CorpusReport, index_corpus
from ..errors import InputError
from ..index import MemoryStore
from .corpora import Corpus
from .failures import Failures
from .opening import folder_of, opened_for_writing
from .output import INTERRUPTED, Output
from .reading import resolved, warn_of_whole_files

__all__ = ["run"]

# Documents of a window: on a CPU more are not quicker, and an interruption would lose more.
_WINDOW_CPU, _WINDOW_OTHER = 64, 2048
# An index in a folder is saved after so many seconds, or after more where saving would take too much of the time.
_SAVE_EVERY_S, _SAVING_SHARE = 30.0, 0.05


def run(args: argparse.Namespace, output: Output) -> int:
    """Index documents.

    Args:
        args: What was asked.
        output: Where it is shown.

    Returns:
        1 if some documents could not be read or stored, 130 if it was interrupted, else 0.

    Raises:
        InputError: If an argument is invalid.
        StoreError: If the store can't be used; what was stored by then is kept.
        FingerprintError: If it holds vectors of another model.
        CheckpointError: If the model can't be loaded.
        MissingExtraError: If a package that the model or the store needs is not installed.
    """
    written = _written(args)
    with Failures(output, args.failures) as failures:
        corpus = Corpus(
            args.sources,
            args.form,
            args.glob,
            with_title=not args.no_title,
            leave_out=written,
            failed=failures.add,
        )
        warn_of_whole_files(args.sources, args.form, output)
        with opened_for_writing(args) as index:
            output.say(f"Indexing into {args.store} with {index.model.settings.model} on {index.model.device}")
            try:
                report = _load(args, output, corpus, index, failures)
            except KeyboardInterrupt:
                failures.tell()
                output.error(f"interrupted; what is stored is kept, and {_then(args)}")
                return INTERRUPTED
            failures.tell()
            _show(args, output, report, index, failures)
    return 1 if failures.count else 0


def _then(args: argparse.Namespace) -> str:
    """What comes of running the same again after an interruption."""
    return "the same command encodes all of it again" if args.reencode else "the same command goes on from there"


def _written(args: argparse.Namespace) -> set[Path]:
    """What this command writes, none of which may be a source."""
    names = [folder_of(args.store), args.failures]
    written = {resolved(name) for name in names if name is not None}
    for source in args.sources:
        if resolved(source) in written:
            raise InputError(f"{source} is to be read and to be written: choose another place for one of them")
    return written


def _load(
    args: argparse.Namespace, output: Output, corpus: Corpus, index: ColBERTIndex, failures: Failures
) -> CorpusReport:
    folder, documents = folder_of(args.store), corpus.documents()
    try:
        report = index_corpus(
            documents if folder is None else _saving(documents, index, folder),
            index.model,
            index.store,
            pool_factor=args.pool_factor,
            reencode=args.reencode,
            window=_WINDOW_CPU if index.model.device.type == "cpu" else _WINDOW_OTHER,
            total=corpus.count() if sys.stderr.isatty() and not output.quiet else None,
            on_failure=failures.add,
            show_progress=output.show_progress,
        )
        if isinstance(index.store, MemoryStore):
            index.store.prepare(show_progress=output.show_progress)  # an interruption leaves it to the next run
    finally:
        if folder is not None:
            _save(index, folder, show_progress=output.show_progress)
    # Not by what was told: documents of one id that can't be stored are told once.
    return replace(report, documents=report.documents + corpus.unread, failed=report.failed + corpus.unread)


def _save(index: ColBERTIndex, folder: Path, *, show_progress: bool | None) -> None:
    """Save what is stored; without a vector it stays unbound, so that whoever named the wrong model can begin again."""
    if isinstance(index.store, MemoryStore) and index.store.dim is not None:
        index.save(folder, show_progress=show_progress)


def _saving(documents: Iterator[dict[str, Any]], index: ColBERTIndex, folder: Path) -> Iterator[dict[str, Any]]:
    """The same documents; while they are read, what is stored is saved now and then."""
    saved, pause = time.monotonic(), _SAVE_EVERY_S
    for document in documents:
        yield document
        if (started := time.monotonic()) - saved > pause:
            _save(index, folder, show_progress=False)  # the bar that is shown is of the documents
            saved = time.monotonic()
            pause = max(_SAVE_EVERY_S, (saved - started) / _SAVING_SHARE)


def _show(
    args: argparse.Namespace, output: Output, report: CorpusReport, index: ColBERTIndex, failures: Failures
) -> None:
    stored = len(index)
    if not output.as_json:
        output.line(str(report))
        output.line(f"{args.store} holds {stored:,} document{'s' * (stored != 1)}")
        return
    counts = {
        name: getattr(report, name) for name in ("documents", "encoded", "unchanged", "replaced", "failed", "seconds")
    }
    about = {"store": args.store, "model": index.model.settings.model}
    output.data({**about, **counts, "failures": failures.first, "stored": stored})
