"""A store's documents in a folder: written as one step, checked when read, vectors mapped rather than loaded.

::

    manifest.json                  what belongs to the index, with the size and the SHA-256 of each file
    NAME-COUNT.safetensors         vectors of the first COUNT documents of the segment NAME
    CENTROIDS.safetensors          centroids of the candidate stage of that name, if they were made
    NAME-COUNT.CENTROIDS.safetensors  which documents are in their lists
    NAME-COUNT.jsonl               id, text and metadata of each document, a line each

A file's name says all of its content, so files never change: a save writes those that are new, then replaces the
manifest, then removes what the new manifest does not name. After a kill at any moment the manifest is the old one or
the new one, and all that it names is there. No pickle anywhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..errors import DamagedIndexError, StoreError
from ..progress import progress_bar
from .centroids import Centroids, InvertedLists
from .layout import PER_DOCUMENT, Columns, Layout, part
from .rows import PackedRows
from .segment import Batch, Segment, View

__all__ = ["Saved", "read_index", "write_index"]

_FORMAT, _VERSION = "colbert_integrations index", 1
_MANIFEST = "manifest.json"
_NAME = "[0-9a-f]{32}"
# With ".pooled", files of a stage that there was before: the next save removes them.
_OURS = re.compile(rf"{_NAME}-\d+(\.pooled|\.{_NAME})?\.(safetensors|jsonl)|{_NAME}\.safetensors|manifest\.json\.new")
_LOCK_WAIT_S = 60
# What Windows refuses while somebody else has a file open is tried again after these pauses.
_PAUSES_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
_BLOCK_BYTES = 2**22
# What reading raises where a file is not as a save writes it, with other names or types, and no checksum has told.
_UNLIKE_OURS = (LookupError, TypeError, ValueError, AttributeError, AssertionError)

T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """What a folder holds.

    Attributes:
        layout: Form of the vectors; None where there are none yet.
        views: The documents.
        about: What else the store wants to find again, as JSON-able data.
        centroids: Those of the candidate stage; None where none were made.
        checksum: That of the manifest, where this was read: it tells whether somebody else has saved there since.
    """

    layout: Layout | None
    views: tuple[View, ...]
    about: Mapping[str, Any]
    centroids: Centroids | None = None
    checksum: str = ""


# ----------------------------------------------------------------------------------------------------------- writing


def write_index(folder: Path, saved: Saved, known: set[str], *, show_progress: bool | None) -> None:
    """Write an index, as one step.

    Args:
        folder: Where; made if it is not there.
        saved: What to write. Files that are there already are not written again.
        known: Checksum of what was read or written there last, or nothing; that of this save takes its place. What is
            there is replaced if it is known or if nothing is.
        show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

    Raises:
        StoreError: If that fails; the index that was there is whole, and nothing is left behind but a lock and a folder
            that was made; or if the new one is there, and the system can't say that it is so for good.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _write(folder, saved, known, show_progress)
    except (OSError, NotImplementedError) as error:  # the latter by filelock, where the system can't lock files
        raise StoreError(f"can't save the index to {folder}: {error}. An index that was there is unchanged") from error


def _write(folder: Path, saved: Saved, known: set[str], show_progress: bool | None) -> None:
    _check_replaceable(folder)
    replaced = _manifest_or_none(folder)
    _check_known(folder, replaced, known)
    there = _files_of(replaced)
    new: list[Path] = []
    try:
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "layout": None if saved.layout is None else asdict(saved.layout),
            "about": dict(saved.about),
            "centroids": _write_centroids(folder, saved.centroids, there, new),
            "segments": _write_views(folder, saved, there, new, show_progress),
        }
        _write_file(folder / f"{_MANIFEST}.new", _sealed(manifest), new)
        _sync_folder(folder)  # the files must be there for good before something names them
        known.add(_checksum(manifest))  # not later: an interrupt may come once it is there
        _patiently(partial(os.replace, folder / f"{_MANIFEST}.new", folder / _MANIFEST))
    except BaseException:
        # An interrupt may come once the new manifest is in its place.
        named = _files_of(_manifest_or_none(folder))
        for path in new:
            if path.name not in named:
                path.unlink(missing_ok=True)
        raise
    known.intersection_update({_checksum(manifest)})
    try:
        _sync_folder(folder)
    except OSError as error:
        raise StoreError(f"the index in {folder} is the new one, but a power cut may lose it: {error}") from error
    _sweep(folder, set(_files_of(manifest)))


def _write_centroids(
    folder: Path, centroids: Centroids | None, there: Mapping[str, Any], new: list[Path]
) -> dict[str, Any] | None:
    if centroids is None:
        return None
    contents = {f"{centroids.name}.safetensors": lambda: save(centroids.tensors())}
    files = _write_files(folder, contents, there, new)
    return {"name": centroids.name, "rows": centroids.rows, "sizes": centroids.sizes, "files": files}


def _write_views(
    folder: Path, saved: Saved, there: Mapping[str, Any], new: list[Path], show_progress: bool | None
) -> list[dict[str, Any]]:
    entries = []
    with progress_bar(sum(map(len, saved.views)), show_progress, "Saving") as bar:
        for view in saved.views:
            entries.append(_write_view(folder, view, saved.centroids, there, new))
            bar.update(len(view))
    return entries


def _write_view(
    folder: Path, view: View, centroids: Centroids | None, there: Mapping[str, Any], new: list[Path]
) -> dict[str, Any]:
    count = len(view)
    stem = _stem(view.segment.name, count)
    contents = {f"{stem}.safetensors": partial(_vectors, view.segment, count), f"{stem}.jsonl": partial(_lines, view)}
    lists = None if centroids is None else view.segment.lists_if_made(centroids, count)
    if centroids is not None and lists is not None and lists.documents == count:
        contents[f"{stem}.{centroids.name}.safetensors"] = partial(save, lists.tensors())
    return {
        "name": view.segment.name,
        "documents": count,
        "deleted": (~view.alive).nonzero()[:, 0].tolist(),
        "files": _write_files(folder, contents, there, new),
    }


def _write_files(
    folder: Path, contents: Mapping[str, Callable[[], bytes]], there: Mapping[str, Any], new: list[Path]
) -> dict[str, Any]:
    """Write the files that are not there yet; what the manifest says of each."""
    files = {}
    for name, content in contents.items():
        path = folder / name
        kept = name in there and path.exists() and path.stat().st_size == there[name]["bytes"]
        files[name] = there[name] if kept else _write_file(path, content(), new)
    return files


def _stem(name: str, documents: int) -> str:
    """What the names of the files of so many documents of a segment begin with."""
    return f"{name}-{documents}"


def _vectors(rows: PackedRows, count: int) -> bytes:
    columns = part(rows.columns, slice(count), slice(rows.bounds[count]))
    lengths = torch.tensor(rows.bounds[: count + 1], device="cpu").diff()
    return save({**columns, "lengths": lengths})


def _lines(view: View) -> bytes:
    segment = view.segment
    rows = zip(segment.ids, segment.texts, segment.metadatas, strict=False)  # a writer may be between them
    seen = islice(rows, len(view))  # the view's, whatever came later
    lines = (json.dumps({"id": name, "text": text, "metadata": note}) for name, text, note in seen)
    return "".join(f"{line}\n" for line in lines).encode()


def _write_file(path: Path, content: bytes, new: list[Path]) -> dict[str, Any]:
    new.append(path)
    path.unlink(missing_ok=True)  # a new file: somebody may have mapped the old one
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps({**manifest, "sha256": _checksum(manifest)}, indent=1).encode()


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # knows no such thing
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a folder says that another machine or the host of a virtual one shares
            raise
    finally:
        os.close(handle)


def _patiently(act: Callable[[], T]) -> T:
    """Do what Windows refuses for a moment: a scanner looks at each new file, a reader has the manifest open."""
    for pause in _PAUSES_S:
        try:
            return act()
        except PermissionError:
            time.sleep(pause)
    return act()


def _sweep(folder: Path, named: set[str]) -> None:
    """Remove what older saves left, and nothing that is not ours."""
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            try:
                path.unlink(missing_ok=True)
            except OSError:  # Windows: somebody has it open; the next save tries again
                continue


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time, of all processes; a killed one holds no lock."""
    try:
        with FileLock(folder / ".lock", timeout=_LOCK_WAIT_S):
            yield
    except Timeout as error:
        raise StoreError(f"another process has been saving to {folder} for {_LOCK_WAIT_S} seconds") from error


# ----------------------------------------------------------------------------------------------------------- reading


def read_index(folder: Path, *, verify: bool, show_progress: bool | None) -> Saved:
    """Read an index; vectors are mapped into memory, not copied.

    Args:
        folder: Where it was written.
        verify: Whether checksums of all files are compared; sizes are in any case.
        show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

    Returns:
        What it holds, on the CPU.

    Raises:
        StoreError: If there is none, a newer version of this package wrote it, or memory does not suffice.
        DamagedIndexError: If a file is missing or is not as it was written.
    """
    while True:
        manifest = _manifest(folder)
        try:
            return _read(folder, manifest, verify, show_progress)
        except (DamagedIndexError, FileNotFoundError, RuntimeError, *_UNLIKE_OURS) as error:
            # Somebody may have saved since, and removed what the older manifest names.
            if _manifest(folder) != manifest:
                continue
            if isinstance(error, RuntimeError):  # torch's, where no memory is left to map a file into
                raise StoreError(f"can't read the index in {folder}: {error}") from error
            unlike = isinstance(error, _UNLIKE_OURS)
            said = f"{folder} is damaged: its files are not as they are written: {error!r}" if unlike else str(error)
            raise DamagedIndexError(said) from error


def _read(folder: Path, manifest: Mapping[str, Any], verify: bool, show_progress: bool | None) -> Saved:
    layout = None if manifest["layout"] is None else Layout(**manifest["layout"])
    entries, views = manifest["segments"], list[View]()
    centroids = _read_centroids(folder, manifest.get("centroids"), layout, verify)
    with progress_bar(sum(entry["documents"] for entry in entries), show_progress, "Opening") as bar:
        for entry in entries:
            _check_names(folder, _stem(entry["name"], entry["documents"]), entry)
            _check_files(folder, entry, verify)
            assert layout is not None  # where there are documents
            views.append(_read_view(folder, entry, layout, centroids))
            bar.update(entry["documents"])
    return Saved(layout, tuple(views), manifest["about"], centroids, manifest["sha256"])


def _read_centroids(
    folder: Path, entry: Mapping[str, Any] | None, layout: Layout | None, verify: bool
) -> Centroids | None:
    if entry is None:
        return None
    _check_names(folder, entry["name"], entry)
    _check_files(folder, entry, verify)
    path = folder / f"{entry['name']}.safetensors"
    tensors, sizes = _read_tensors(path), tuple(entry["sizes"])
    means, groups = tensors["means"], tensors["groups"]
    shapes = [(sum(sizes), layout and layout.dim), (len(sizes), layout and layout.dim)]
    if [means.shape, groups.shape] != shapes or {means.dtype, groups.dtype} != {torch.float32}:
        raise DamagedIndexError(f"{path} can't be read: it does not hold the centroids that the manifest names")
    return Centroids(means, groups, sizes, entry["rows"], entry["name"])


def _read_view(folder: Path, entry: Mapping[str, Any], layout: Layout, centroids: Centroids | None) -> View:
    count = entry["documents"]
    stem = _stem(entry["name"], count)
    columns, lengths = _read_rows(folder / f"{stem}.safetensors", count)
    path = folder / f"{stem}.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            documents = [json.loads(line) for line in file]
    except ValueError as error:  # of JSON or of Unicode
        raise DamagedIndexError(f"{path} can't be read: {error}") from error
    if len(documents) != count:
        raise DamagedIndexError(f"{path} has {len(documents)} documents, not {count}")
    ids, texts, metadatas = ([document[key] for document in documents] for key in ("id", "text", "metadata"))
    segment = Segment(layout, columns, entry["name"])
    segment.register(Batch(ids, texts, metadatas, lengths, columns))
    segment.sealed = True
    if centroids is not None and (name := f"{stem}.{centroids.name}.safetensors") in entry["files"]:
        lists = InvertedLists(count, **_read_tensors(folder / name))
        if not lists.is_sound(len(centroids)):
            raise DamagedIndexError(f"{folder / name} can't be read: it holds no lists of these centroids")
        segment.adopt_lists(centroids, lists)
    alive = torch.ones(count, dtype=torch.bool, device="cpu")
    return View(segment, alive).without(entry["deleted"])


def _read_rows(path: Path, documents: int) -> tuple[Columns, list[int]]:
    """Vectors of so many documents, and how many each has."""
    columns = _read_tensors(path)
    lengths = columns.pop("lengths").tolist()
    rows = [len(tensor) for name, tensor in columns.items() if name not in PER_DOCUMENT]
    if len(lengths) != documents or min(lengths, default=1) < 1 or rows[:1] != [sum(lengths)]:
        raise DamagedIndexError(f"{path} can't be read: its lengths are not those of its vectors")
    return columns, lengths


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with torch.device("cpu"):  # safetensors before 0.5 goes by the default device
            return load_file(path)  # maps the file: pages are read when they are searched
    except SafetensorError as error:
        raise DamagedIndexError(f"{path} can't be read: {error}") from error


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        content = _patiently(path.read_bytes)
    except FileNotFoundError as error:
        raise StoreError(f"no index in {folder}: it has no {_MANIFEST}") from error
    except OSError as error:
        raise StoreError(f"can't read {path}: {error}") from error
    try:
        manifest: dict[str, Any] = json.loads(content)
        known = manifest.pop("sha256")
        checksum = _checksum(manifest)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedIndexError(f"{path} is damaged: it is not a manifest") from error
    if checksum != known:
        raise DamagedIndexError(f"{path} is damaged: its checksum differs")
    if manifest.get("format") != _FORMAT:
        raise StoreError(f"{path} was not written by colbert-integrations: its format is {manifest.get('format')!r}")
    version = manifest.get("version")
    if not isinstance(version, int):
        raise DamagedIndexError(f"{path} is damaged: its version is {version!r}")
    if version > _VERSION:
        raise StoreError(
            f"{path} is of version {version}, and this release reads up to {_VERSION}: upgrade colbert-integrations"
        )
    return {**manifest, "sha256": known}


def _check_replaceable(folder: Path) -> None:
    """Refuse to write over what is no index of ours, or one of a newer version; a damaged one may be replaced."""
    path = folder / _MANIFEST
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise StoreError(
            f"{path} was not written by colbert-integrations, so it is not overwritten: save to another folder"
        )
    if found.get("version") not in range(_VERSION + 1):
        raise StoreError(
            f"{path} was written by a newer version of colbert-integrations (its format is of version "
            f"{found.get('version')}), so it is not overwritten: save to another folder"
        )


def _check_known(folder: Path, there: Mapping[str, Any] | None, known: set[str]) -> None:
    """Refuse to replace what others saved meanwhile: what they added would be lost."""
    if there is None:
        return
    if known and there["sha256"] not in known:
        raise StoreError(
            f"{folder} was saved by somebody else since this index was loaded from there or saved to it, and what they "
            "changed would be lost: load it again and make your changes there, or save to another folder"
        )
    known.add(there["sha256"])  # a second try, after a failure, may replace it too


def _manifest_or_none(folder: Path) -> dict[str, Any] | None:
    """What is there, if it can be told: a save replaces a damaged index too."""
    try:
        return _manifest(folder)
    except StoreError:
        return None


def _files_of(manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    parts = [] if manifest is None else [manifest.get("centroids"), *manifest["segments"]]
    return {name: entry for part in parts if part is not None for name, entry in part["files"].items()}


def _check_names(folder: Path, stem: str, entry: Mapping[str, Any]) -> None:
    """Refuse names that no save gives: by them, files outside of the folder would be read, or later written."""
    names = {f"{stem}.safetensors", *entry["files"]}
    if other := sorted(name for name in names if not _OURS.fullmatch(name)):
        raise DamagedIndexError(f"{folder / _MANIFEST} is damaged: it names {other[0]!r}, which is no file of an index")


def _check_files(folder: Path, entry: Mapping[str, Any], verify: bool) -> None:
    for name, about in entry["files"].items():
        _check_file(folder / name, about, verify)


def _check_file(path: Path, entry: Mapping[str, Any], verify: bool) -> None:
    try:
        with path.open("rb") as file:  # also to see whether it may be read
            size = os.fstat(file.fileno()).st_size
            digest = _digest(file) if verify and size == entry["bytes"] else entry["sha256"]
    except FileNotFoundError as error:
        raise DamagedIndexError(f"{path} is missing") from error
    except OSError as error:
        raise StoreError(f"can't read {path}: {error}") from error
    if size != entry["bytes"]:
        raise DamagedIndexError(f"{path} is damaged: it has {size} bytes, not {entry['bytes']}")
    if digest != entry["sha256"]:
        raise DamagedIndexError(f"{path} is damaged: its checksum differs")


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
