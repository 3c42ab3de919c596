"""Saving and loading: round trips, damage that is named, writing only what changed, errors that leave all as it was."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, TokenEmbeddings, progress
from colbert_integrations.errors import DamagedIndexError, InputError, StoreError
from colbert_integrations.fingerprint import Fingerprint
from colbert_integrations.index import memory, persistence
from stores import brute_force, dyadic, fill, found, units

QUERIES = dyadic(99, 3, 1, 5)
PRINT = Fingerprint("abc", "model", 8, {"model": "model", "projection_dim": 8})


@pytest.fixture
def documents() -> dict[str, torch.Tensor]:
    return {f"d{number}": matrix for number, matrix in enumerate(dyadic(1, 4, 1, 7, 3, 2, 9, 5))}


@pytest.fixture
def store(documents: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store of several segments with something deleted."""
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 8)
    monkeypatch.setattr(memory, "_MOST_ROWS", 16)
    made = MemoryStore()
    fill(made, documents, [{"n": number} for number in range(7)])
    made.delete(["d1"])
    made.bind(PRINT)
    return made


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show bars from the first moment; only of one test's own stderr, which a fixture does not have yet."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_BAR_AFTER_S", 0.0)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


# --------------------------------------------------------------------------------------------------------------- bars


def test_saving_opening_and_merging_show_bars(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of documents in segments, a deleted one among them."""
    on_a_terminal(monkeypatch)
    store.save(tmp_path)
    assert re.search("Saving: 100%.* 7/7 ", capsys.readouterr().err)
    store.save(tmp_path, show_progress=False)
    loaded = MemoryStore.load(tmp_path, show_progress=False)
    assert capsys.readouterr().err == ""
    MemoryStore.load(tmp_path)
    assert re.search("Opening: 100%.* 7/7 ", capsys.readouterr().err)
    for wanted, bar in (
        (["d0", "d2"], "Listing vectors: 100%.* [1-7]/[1-7] "),
        (None, "^$"),
    ):
        loaded.search(QUERIES, 1, search="centroids", candidates=1, ids=wanted)
        assert re.search(bar, capsys.readouterr().err)


def test_an_index_shows_bars_unless_it_is_asked_not_to(
    tiny: ColBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    index = ColBERTIndex(tiny)
    index.add(["wing"], show_progress=False)
    index.save(tmp_path, show_progress=False)
    ColBERTIndex.load(tmp_path, tiny, show_progress=False)
    assert capsys.readouterr().err == ""
    index.save(tmp_path)
    assert "Saving" in capsys.readouterr().err
    ColBERTIndex.load(tmp_path, tiny)
    assert "Opening" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- round trip


FORMS: list[dict[str, Any]] = [
    {},
    {"dtype": "float32"},
    *({"nbits": nbits, "keep_originals": originals} for nbits in (8, 4, 2) for originals in (False, True)),
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_a_loaded_store_is_the_saved_one(tmp_path: Path, options: dict[str, Any]) -> None:
    store = MemoryStore(**options, search="centroids", candidates=3)
    embeddings = units(3, 5, 2, 9, 1)
    store.upsert(["a", "b", "c", "d"], embeddings, ["A", None, "\u0000é漢\n", ""], [{"x": 1}, {}, {"y": [1]}, None])
    store.bind(replace(PRINT, dim=32))
    queries = units(4, 3, 6)
    expected = store.search(queries, 2)
    store.save(tmp_path / "deep" / "folder")
    loaded = MemoryStore.load(tmp_path / "deep" / "folder")
    assert loaded.search(queries, 2) == expected
    assert loaded.search(queries, 4, search="exact") == store.search(queries, 4, search="exact")
    assert [(d.id, d.text, d.metadata) for d in loaded.get(list("abcd"))] == [
        ("a", "A", {"x": 1}),
        ("b", None, {}),
        ("c", "\u0000é漢\n", {"y": [1]}),
        ("d", "", {}),
    ]
    assert (loaded.fingerprint, loaded.dim) == (PRINT, 32)
    assert loaded.fingerprint is not None
    assert loaded.fingerprint.settings == PRINT.settings
    assert (loaded.search_default, loaded.candidates_default, repr(loaded)) == ("centroids", 3, repr(store))


def test_an_empty_store_can_be_saved(tmp_path: Path) -> None:
    MemoryStore(nbits=4).save(tmp_path)
    loaded = MemoryStore.load(tmp_path)
    assert (loaded.count(), loaded.search(QUERIES)) == (0, [[], [], []])
    fill(loaded, {"a": torch.ones(1, 8)})
    assert loaded.count() == 1


def test_a_loaded_store_can_be_written_to(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    loaded = MemoryStore.load(tmp_path)
    for target in (store, loaded):
        fill(target, {"new": torch.ones(3, 8), "d2": torch.ones(1, 8)})
        target.delete(["d4", "d5", "d6"])
    assert loaded.search(QUERIES, 20) == store.search(QUERIES, 20)
    loaded.save(tmp_path)
    assert MemoryStore.load(tmp_path).search(QUERIES, 20) == store.search(QUERIES, 20)


def test_vectors_are_mapped_not_copied(tmp_path: Path) -> None:
    store = MemoryStore()
    store.upsert(["a"], TokenEmbeddings.from_list([torch.ones(4000, 128)]))
    store.save(tmp_path)
    loaded = MemoryStore.load(tmp_path)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc to see what is mapped")
    assert str(next(tmp_path.glob("*.safetensors"))) in maps.read_text()
    assert loaded.count() == 1


# -------------------------------------------------------------------------------------------------------- incremental


def test_a_second_save_writes_only_what_changed(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    store.save(tmp_path)
    kept = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime_ns == before.get(path.name)}
    assert kept >= before.keys() - {"manifest.json", ".lock"}
    fill(store, {"new": torch.ones(2, 8)})
    store.save(tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    changed = {name for name in after if after[name] != before.get(name)} - {"manifest.json", ".lock"}
    gone = before.keys() - after.keys()
    assert len(changed) == 2  # the last segment: its vectors and its texts
    assert all(name.split("-")[0] in {other.split("-")[0] for other in changed} for name in gone)


def test_a_save_leaves_other_files_alone(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_text("mine too")
    store.save(tmp_path)
    store.delete(["d2", "d3", "d5"])
    store.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model.safetensors").read_text() == "mine too"
    assert MemoryStore.load(tmp_path).count() == 3


def test_a_save_clears_away_what_a_killed_one_left(store: MemoryStore, tmp_path: Path) -> None:
    for name in (f"{'0' * 32}-12.safetensors", f"{'0' * 32}-12.jsonl", "manifest.json.new"):
        (tmp_path / name).write_bytes(b"half")
    store.save(tmp_path)
    assert not [name for name in files(tmp_path) if name.startswith("0" * 32) or name.endswith(".new")]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_what_was_deleted_is_gone_from_the_files_once_it_is_compacted(tmp_path: Path, options: dict[str, Any]) -> None:
    store = MemoryStore(**options)
    embeddings = units(3, 60, 2, 9, 1)  # few enough are deleted for them to stay by themselves
    names = ["kept", "secret-id", "changed", "last"]
    store.upsert(names, embeddings, ["one", "secret-text", "secret-words", None], [{}, {}, {}, {"a": "secret-note"}])
    store.save(tmp_path)
    store.delete(["secret-id"])
    store.upsert(["changed"], embeddings[2:3], ["other words"])
    store.set_metadata(["last"], [{"a": "another note"}])
    queries = units(4, 3, 6)
    expected = store.search(queries, 4)
    for secrets in (1, 0):  # files
        store.save(tmp_path)
        assert sum(b"secret" in content for content in files(tmp_path).values()) == secrets
        store.compact()
    assert [len(view) for view in store._now().views] == [3]
    for left in (store, MemoryStore.load(tmp_path)):
        assert left.search(queries, 4) == expected
        assert [document.text for document in left.get(["kept", "changed", "last"])] == ["one", "other words", None]


def test_compacting_what_has_no_remains_changes_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    store.compact()
    fill(store, {"a": torch.ones(3, 8)})
    store.save(tmp_path)
    before = files(tmp_path)
    store.compact()
    store.save(tmp_path)
    assert files(tmp_path) == before


# ------------------------------------------------------------------------------------------------------------- damage


def damaged_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("options", [{}, {"verify": True}, {"verify": False}], ids=str)
def test_a_flipped_byte_is_found_and_the_file_named(
    store: MemoryStore, tmp_path: Path, number: int, options: dict[str, Any]
) -> None:
    store.save(tmp_path)
    path = damaged_files(tmp_path)[number]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if options.get("verify", True) or path.name == "manifest.json":
        with pytest.raises(DamagedIndexError, match=path.name):
            MemoryStore.load(tmp_path, **options)


def test_files_that_take_several_blocks_to_read_are_checked_to_their_last_byte(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "_BLOCK_BYTES", 64)
    store.save(tmp_path)
    assert found(MemoryStore.load(tmp_path), QUERIES, 9) == found(store, QUERIES, 9)
    large = [path for path in damaged_files(tmp_path) if path.stat().st_size > 64 and path.name != "manifest.json"]
    assert {path.suffix for path in large} == {".safetensors", ".jsonl"}
    for path in large:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedIndexError, match=f"{path.name} is damaged: its checksum differs"):
            MemoryStore.load(tmp_path)
        path.write_bytes(content)
    assert MemoryStore.load(tmp_path).count() == 6


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_cut_short_or_missing_is_named(store: MemoryStore, tmp_path: Path, number: int, verify: bool) -> None:
    store.save(tmp_path)
    path = damaged_files(tmp_path)[number]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedIndexError, match=path.name):
        MemoryStore.load(tmp_path, verify=verify)
    path.unlink()
    with pytest.raises(StoreError, match=path.name):
        MemoryStore.load(tmp_path, verify=verify)


def test_there_must_be_an_index(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no manifest.json"):
        MemoryStore.load(tmp_path)
    with pytest.raises(StoreError, match="no manifest.json"):
        MemoryStore.load(tmp_path / "nowhere")


@pytest.mark.parametrize("folder", [None, 3, b"x", "", "a\0b", ["x"]])
def test_a_folder_that_is_no_path_is_refused(store: MemoryStore, folder: Any) -> None:
    with pytest.raises(InputError, match="folder must be a path that is not empty"):
        store.save(folder)
    with pytest.raises(InputError, match="folder must be a path that is not empty"):
        MemoryStore.load(folder)


def test_an_index_of_a_later_version_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    manifest.pop("sha256")
    (tmp_path / "manifest.json").write_bytes(persistence._sealed({**manifest, "version": 2}))
    with pytest.raises(StoreError, match=r"version 2.*upgrade"):
        MemoryStore.load(tmp_path)


def test_an_index_of_another_format_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    manifest.pop("sha256")
    (tmp_path / "manifest.json").write_bytes(persistence._sealed({**manifest, "format": "other"}))
    with pytest.raises(StoreError, match="was not written by colbert-integrations: its format is 'other'"):
        MemoryStore.load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'"text"', b"\xff", b'{"sha256": 1}', b"[" * 100_000], ids=repr
)
def test_what_is_no_manifest_is_named(store: MemoryStore, tmp_path: Path, content: bytes) -> None:
    store.save(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedIndexError, match=r"manifest\.json is damaged"):
        MemoryStore.load(tmp_path)


def test_a_damaged_index_can_be_saved_over(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"{")
    store.save(tmp_path)
    assert found(MemoryStore.load(tmp_path), QUERIES, 9) == found(store, QUERIES, 9)


@pytest.mark.parametrize("pattern", ["*.safetensors", "*.jsonl"])
def test_a_save_writes_again_what_was_lost_or_cut_short(store: MemoryStore, tmp_path: Path, pattern: str) -> None:
    store.save(tmp_path)
    before = files(tmp_path)
    cut, lost = sorted(tmp_path.glob(pattern))[:2]
    cut.write_bytes(cut.read_bytes()[:-1])
    os.link(cut, tmp_path / "mapped")  # as somebody may have it who opened the index
    lost.unlink()
    store.save(tmp_path)
    assert files(tmp_path) == {**before, "mapped": before[cut.name][:-1]}


def test_a_manifest_that_was_changed_by_hand_is_damaged(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"search": "exact"', '"search": "centroids"'))
    with pytest.raises(DamagedIndexError, match=r"manifest\.json is damaged: its checksum differs"):
        MemoryStore.load(tmp_path)


def test_a_manifest_that_can_not_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(StoreError, match=r"can't read .*manifest\.json"):
        MemoryStore.load(tmp_path)


def test_a_load_during_a_save_sees_one_of_the_two(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path)
    real = persistence._check_file
    saved = []

    def save_first(*arguments: Any) -> None:
        if not saved:
            saved.append(True)
            fill(store, {"new": torch.ones(2, 8)})
            store.delete(["d0", "d2", "d3"])
            store.save(tmp_path)
        real(*arguments)

    monkeypatch.setattr(persistence, "_check_file", save_first)
    assert MemoryStore.load(tmp_path).search(QUERIES, 9) == store.search(QUERIES, 9)


# ----------------------------------------------------------------------------------------- a disk that does not obey


def full_after(bytes_left: int) -> Callable[..., Any]:
    real = Path.open

    class Disk:
        left = bytes_left

    def open_full(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = real(self, mode, *arguments, **options)
        if "w" in mode:
            write = file.write

            def limited(content: bytes) -> int:
                write(content[: Disk.left])
                if len(content) > Disk.left:
                    raise OSError(errno.ENOSPC, "No space left on device")
                Disk.left -= len(content)
                return len(content)

            file = _Wrapped(file, limited)
        return file

    return open_full


class _Wrapped:
    def __init__(self, file: Any, write: Callable[[bytes], int]) -> None:
        self._file, self.write = file, write

    def __enter__(self) -> _Wrapped:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 100, 700, 1500])
def test_a_full_disk_leaves_the_old_index_whole(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    store.save(tmp_path)
    before, old = files(tmp_path), found(store, QUERIES, 9)
    fill(store, {f"new{number}": torch.ones(5, 8) for number in range(20)})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full_after(room))
        with pytest.raises(StoreError, match="No space left"):
            store.save(tmp_path)
    assert files(tmp_path) == before
    assert found(MemoryStore.load(tmp_path), QUERIES, 9) == old
    store.save(tmp_path)  # once there is room again
    assert MemoryStore.load(tmp_path).count() == 26


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Whoever runs the tests: root would write anywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_may_not_be_written_is_an_error_of_ours(store: MemoryStore) -> None:
    with tempfile.TemporaryDirectory() as name:  # not below tmp_path, which others can't even look into
        folder = Path(name)
        store.save(folder)
        before, old = files(folder), found(store, QUERIES, 9)
        fill(store, {"new": torch.ones(5, 8)})
        folder.chmod(0o555)
        with bound_by_permissions():
            with pytest.raises(StoreError, match="can't save the index"):
                store.save(folder)
            assert found(MemoryStore.load(folder), QUERIES, 9) == old
        folder.chmod(0o755)
        assert files(folder) == before


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_folders_that_know_no_sync_are_saved_to(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if code == errno.EIO:  # the disk fails
        with pytest.raises(StoreError, match="can't save the index"):
            store.save(tmp_path)
        return
    store.save(tmp_path)  # as on shares of CIFS and of virtual machines
    assert found(MemoryStore.load(tmp_path), QUERIES, 9) == found(store, QUERIES, 9)


def test_a_sync_that_fails_once_the_new_index_is_there_does_not_say_that_it_is_the_old_one(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path)
    fill(store, {"new": torch.ones(3, 8)})
    synced, real = list[int](), os.fsync

    def fsync(handle: int) -> None:
        synced.append(handle)
        if stat.S_ISDIR(os.fstat(handle).st_mode) and (tmp_path / "manifest.json.new").exists() is False:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match=r"^the index in .* is the new one, but a power cut may lose it"):
            store.save(tmp_path)
    assert "new" in MemoryStore.load(tmp_path).ids()
    store.save(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of files that are no text")
def test_a_folder_whose_name_is_no_text_is_refused_before_it_is_written(store: MemoryStore, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"st\xff")
    for use in (store.save, MemoryStore.load):
        with pytest.raises(InputError, match=r"'.*st\\udcff' is not UTF-8: choose another"):
            use(folder)
    assert not folder.exists()


def test_a_file_system_without_locks_is_said_to_be_one(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(self: FileLock, *_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")  # as filelock 3 does

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(StoreError, match="can't save the index to .* does not appear to support flock"):
        store.save(tmp_path)


@pytest.mark.parametrize("refusals", [2, 1000])
@pytest.mark.parametrize("what", ["replace", "read"])
def test_a_manifest_that_others_have_open_for_a_moment_is_waited_for(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, refusals: int
) -> None:
    """What Windows says: ``os.replace`` of a file that a reader or a scanner has open, ``open`` meanwhile."""
    store.save(tmp_path)
    before, old, left = files(tmp_path), found(store, QUERIES, 9), [refusals]
    monkeypatch.setattr(persistence.time, "sleep", lambda seconds: None)
    target, name = {"replace": (os, "replace"), "read": (Path, "read_bytes")}[what]
    real = getattr(target, name)

    def refusing(*arguments: Any) -> Any:
        if "manifest" in str(arguments[0]) and left[0]:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "Access is denied")
        return real(*arguments)

    def act() -> None:
        store.save(tmp_path) if what == "replace" else MemoryStore.load(tmp_path)

    fill(store, {"new": torch.ones(5, 8)})
    with monkeypatch.context() as patch:
        patch.setattr(target, name, refusing)
        if refusals == 2:
            act()
        else:
            with pytest.raises(StoreError, match="Access is denied"):
                act()
    changed = what == "replace" and refusals == 2
    assert (files(tmp_path) != before) == changed
    assert found(MemoryStore.load(tmp_path), QUERIES, 9) == (found(store, QUERIES, 9) if changed else old)


def test_a_place_that_can_not_be_a_folder_is_an_error_of_ours(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="can't save the index"):
        store.save(tmp_path / "file" / "index")
    with pytest.raises(StoreError):
        store.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="needs a system that syncs folders")
def test_files_are_on_the_disk_before_a_manifest_names_them(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, sync, replace = list[Any](), os.fsync, os.replace
    with monkeypatch.context() as patch:
        patch.setattr(persistence.os, "fsync", lambda file: steps.append(os.fstat(file).st_ino) or sync(file))
        patch.setattr(persistence.os, "replace", lambda *paths: steps.append("replaced") or replace(*paths))
        store.save(tmp_path)
    *written, before, named, after = steps
    assert named == "replaced"
    assert before == after == tmp_path.stat().st_ino
    assert sorted(written) == sorted((tmp_path / name).stat().st_ino for name in files(tmp_path))


def test_two_savers_do_not_mix(store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(tmp_path)
    monkeypatch.setattr(persistence, "_LOCK_WAIT_S", 0.05)
    with FileLock(tmp_path / ".lock"), pytest.raises(StoreError, match="another process"):
        store.save(tmp_path)
    store.save(tmp_path)


def test_a_save_never_loses_what_another_has_saved(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    first, second = MemoryStore.load(tmp_path), MemoryStore.load(tmp_path)
    fill(first, {"first": torch.ones(1, 8)})
    fill(second, {"second": torch.ones(1, 8)})
    first.save(tmp_path)
    before = files(tmp_path)
    for late in (second, second, store):  # also those that have changed nothing, and a second time
        with pytest.raises(StoreError, match="saved by somebody else since"):
            late.save(tmp_path)
    assert files(tmp_path) == before
    second.save(tmp_path / "elsewhere")
    fill(first, {"more": torch.ones(1, 8)})
    first.save(tmp_path)
    assert {"first", "more"} <= set(MemoryStore.load(tmp_path).ids())
    assert "second" in MemoryStore.load(tmp_path / "elsewhere").ids()


def test_a_folder_is_the_same_by_any_of_its_names(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store.save("index")
    names = ("index", tmp_path / "index")
    loaded = list(map(MemoryStore.load, names))
    fill(store, {"new": torch.ones(1, 8)})
    store.save("index")
    for late, name in zip(loaded, reversed(names), strict=True):
        with pytest.raises(StoreError, match="saved by somebody else since"):
            late.save(name)


def test_an_older_index_that_was_put_back_is_not_replaced(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path / "index")
    shutil.copytree(tmp_path / "index", tmp_path / "backup")
    fill(store, {"new": torch.ones(1, 8)})
    store.save(tmp_path / "index")
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "backup").rename(tmp_path / "index")
    with pytest.raises(StoreError, match="saved by somebody else since"):
        store.save(tmp_path / "index")


def test_a_new_store_replaces_what_is_there(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    new = MemoryStore()
    fill(new, {"new": torch.ones(1, 8)})
    new.save(tmp_path)
    new.save(tmp_path)
    assert MemoryStore.load(tmp_path).ids() == ["new"]
    with pytest.raises(StoreError, match="saved by somebody else since"):
        store.save(tmp_path)


def test_a_new_store_replaces_what_is_there_also_after_a_failure(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path)
    new = MemoryStore()
    fill(new, {"new": torch.ones(1, 8)})
    with monkeypatch.context() as patch:
        patch.setattr(persistence.os, "replace", lambda *_: os.stat(tmp_path / "missing"))
        with pytest.raises(StoreError, match="can't save the index"):
            new.save(tmp_path)
    new.save(tmp_path)
    assert MemoryStore.load(tmp_path).ids() == ["new"]


def test_a_folder_that_was_emptied_can_be_saved_to(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path / "index")
    shutil.rmtree(tmp_path / "index")
    store.save(tmp_path / "index")
    assert found(MemoryStore.load(tmp_path / "index"), QUERIES, 9) == found(store, QUERIES, 9)


def test_an_interrupt_right_after_the_step_leaves_the_new_index_whole(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path)
    store.upsert(["new"], dyadic(7, 3))
    real = os.replace

    def interrupted(*paths: Any) -> None:
        real(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(persistence.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(tmp_path)
    assert found(MemoryStore.load(tmp_path), QUERIES, 9) == found(store, QUERIES, 9)
    monkeypatch.undo()
    store.save(tmp_path)  # which knows that it was its own


@pytest.mark.parametrize("reader", ["load_file", "_read_rows"])
def test_files_that_a_save_removes_while_they_are_read_are_read_anew(
    reader: str, store: MemoryStore, documents: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path)
    real, saved = getattr(persistence, reader), list[bool]()

    def save_first(*arguments: Any) -> Any:
        if not saved:
            saved.append(True)
            fill(store, {name: matrix + 1 for name, matrix in documents.items()})
            store.save(tmp_path)
        return real(*arguments)

    monkeypatch.setattr(persistence, reader, save_first)
    assert found(MemoryStore.load(tmp_path), QUERIES, 9) == found(store, QUERIES, 9)


def test_files_that_go_between_two_openings_of_a_library_are_read_anew(
    store: MemoryStore, documents: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path)
    real, saved = persistence.load_file, list[bool]()

    def gone(*arguments: Any) -> Any:
        if saved:
            return real(*arguments)
        saved.append(True)
        fill(store, {name: matrix + 1 for name, matrix in documents.items()})
        store.save(tmp_path)
        raise RuntimeError("unable to open file")  # as safetensors has it

    monkeypatch.setattr(persistence, "load_file", gone)
    assert found(MemoryStore.load(tmp_path), QUERIES, 9) == found(store, QUERIES, 9)


def test_memory_that_does_not_suffice_is_no_damage(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path)

    def full(*arguments: Any) -> Any:
        raise RuntimeError("unable to mmap 16696568 bytes: Cannot allocate memory (12)")  # as torch has it

    monkeypatch.setattr(persistence, "load_file", full)
    with pytest.raises(StoreError, match="Cannot allocate memory") as caught:
        MemoryStore.load(tmp_path)
    assert not isinstance(caught.value, DamagedIndexError)


def test_of_two_savers_the_later_state_is_what_stays(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, passed, real, calls = threading.Event(), threading.Event(), memory.write_index, list[int]()

    def slow(folder: Path, saved: persistence.Saved, *arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            began.set()
            passed.wait(1)  # the other one would go by, if it could
        real(folder, saved, *arguments, **options)
        passed.set()

    monkeypatch.setattr(memory, "write_index", slow)
    first, other = (threading.Thread(target=store.save, args=(tmp_path,)) for _ in range(2))
    first.start()
    assert began.wait(30)
    fill(store, {"late": torch.ones(1, 8)})
    other.start()
    first.join()
    other.join()
    assert "late" in MemoryStore.load(tmp_path).ids()


def test_files_that_are_mapped_are_never_written_into(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path)
    loaded = MemoryStore.load(tmp_path)
    expected = found(loaded, QUERIES, 9)
    (tmp_path / "manifest.json").unlink()  # so that nothing is known to be there

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(persistence.os, "fsync", full)
        with pytest.raises(StoreError, match="full"):
            loaded.save(tmp_path)
    assert found(loaded, QUERIES, 9) == expected  # by the files that it has mapped, or the process would end


@pytest.mark.parametrize("lengths", [[2**20 + 4, 1], [5], [3, 1, 1], [4, 1, 0], [0, 5], [5, 0], [7, -2]], ids=str)
def test_lengths_that_are_not_those_of_the_vectors_are_damage(lengths: list[int], tmp_path: Path) -> None:
    store = MemoryStore()
    store.upsert(["a", "b"], dyadic(1, 4, 1))
    store.save(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    columns = load_file(path)
    assert columns["lengths"].tolist() == [4, 1]
    save_file({**columns, "lengths": torch.tensor(lengths)}, path)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())  # as if it had been saved so
    del manifest["sha256"]
    content = path.read_bytes()
    about = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["segments"][0]["files"][path.name] = about
    (tmp_path / "manifest.json").write_bytes(persistence._sealed(manifest))
    with pytest.raises(DamagedIndexError, match=f"{path.stem}.*its lengths are not those"):
        MemoryStore.load(tmp_path)


def test_an_index_that_is_loaded_added_to_and_saved_again_and_again_does_not_crumble(tmp_path: Path) -> None:
    for number in range(40):
        store = MemoryStore.load(tmp_path) if number else MemoryStore()
        fill(store, {f"d{number}": dyadic(number, 3)[0]})
        store.save(tmp_path)
    again = MemoryStore.load(tmp_path)
    assert sorted(again.ids()) == sorted(f"d{number}" for number in range(40))
    assert len(again._now().views) <= memory._MOST_SMALL
    assert found(again, QUERIES, 40) == brute_force({f"d{n}": dyadic(n, 3)[0] for n in range(40)}, QUERIES, 40)


def test_a_small_segment_that_has_deleted_documents_is_written_anew_once(tmp_path: Path) -> None:
    documents = {f"d{number}": dyadic(number, 3)[0] for number in range(2 * memory._MOST_SMALL)}
    for number in range(memory._MOST_SMALL):
        store = MemoryStore.load(tmp_path) if number else MemoryStore()
        fill(store, {name: documents[name] for name in (f"d{2 * number}", f"d{2 * number + 1}")})
        store.save(tmp_path)
    again = MemoryStore.load(tmp_path)
    again.delete(["d0"])  # half of its segment, and there are as many small ones as are written into one
    del documents["d0"]
    assert again.ids() == sorted(documents)
    assert found(again, QUERIES, 40) == brute_force(documents, QUERIES, 40)


def test_what_is_loaded_onto_another_device_does_not_crumble_either(tmp_path: Path) -> None:
    for number in range(memory._MOST_SMALL):
        store = MemoryStore.load(tmp_path) if number else MemoryStore()
        fill(store, {f"d{number}": dyadic(number, 3)[0]})
        store.save(tmp_path)
    moved = MemoryStore.load(tmp_path, device="meta", device_bytes=0)  # the vectors are on the host
    moved.delete(["unknown"])
    assert [len(view) for view in moved._now().views] == [memory._MOST_SMALL]
    for number in range(memory._MOST_SMALL):
        [document] = moved.get([f"d{number}"], embeddings=True)
        assert torch.equal(document.embeddings, dyadic(number, 3)[0].half())


@pytest.mark.parametrize("bytes_there", [None, 10**9])
def test_what_is_loaded_onto_a_device_is_there_all_of_it(
    store: MemoryStore, tmp_path: Path, bytes_there: int | None
) -> None:
    store.save(tmp_path)
    moved = MemoryStore.load(tmp_path, device="meta", device_bytes=bytes_there)
    segments = [view.segment for view in moved._now().views]
    assert len(segments) == len(store._now().views) > 1
    places = {column.device.type for segment in segments for column in segment.columns.values()}
    assert (places, moved.device.type) == ({"meta"}, "meta")
    assert (moved.ids(), moved.num_tokens) == (store.ids(), store.num_tokens)
    assert MemoryStore.load(tmp_path).device.type == "cpu"


def test_a_fork_does_not_fill_the_segments_of_its_parent(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, {"base": dyadic(3, 1)[0]})
    before = len(store._now().views)
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a child
    fill(store, {"child": dyadic(4, 1)[0]})
    assert len(store._now().views) == before + 1


def test_a_large_upsert_makes_as_few_segments_as_many_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 8)
    monkeypatch.setattr(memory, "_MOST_ROWS", 64)
    documents = {f"d{number:03}": dyadic(number, 2)[0] for number in range(200)}
    at_once, one_by_one = MemoryStore(), MemoryStore()
    fill(at_once, documents)
    for name, matrix in documents.items():
        fill(one_by_one, {name: matrix})
    assert len(at_once._now().views) <= len(one_by_one._now().views) + 1


def test_segments_grow_with_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in {"_FEWEST_ROWS": 8, "_MOST_ROWS": 16, "_PART_OF_LARGE": 4, "_MOST_ROWS_LARGE": 24}.items():
        monkeypatch.setattr(memory, name, rows)
    store = MemoryStore()
    for number in range(80):
        fill(store, {f"d{number}": dyadic(number, 2)[0]})  # two rows
    # As many as there are, then at most 16, then a fourth of 80, then at most 24.
    assert [view.segment.capacity for view in store._now().views] == [8, 8, 16, 16, 16, 16, 20, 24, 24, 24]


@pytest.mark.parametrize("content", [b'{"name": "a web app", "icons": []}', b"[]", b'{"format": 1}'])
def test_what_is_no_index_is_not_written_over(content: bytes, store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match="was not written by colbert-integrations, so"):
        store.save(tmp_path)
    assert files(tmp_path) == {"manifest.json": content}


def test_an_index_of_a_newer_version_is_not_written_over(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    manifest.pop("sha256")
    (tmp_path / "manifest.json").write_bytes(persistence._sealed({**manifest, "version": 2}))
    before = files(tmp_path)
    with pytest.raises(StoreError, match=r"newer version .* 2\), so it is not overwritten"):
        store.save(tmp_path)
    assert files(tmp_path) == before


def test_lines_that_are_damaged_are_named_also_without_checksums(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    path = next(tmp_path.glob("*.jsonl"))
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DamagedIndexError, match=path.name):
        MemoryStore.load(tmp_path, verify=False)


def test_lines_that_are_missing_are_named_also_without_checksums(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    path = next(path for path in sorted(tmp_path.glob("*.jsonl")) if path.read_bytes().count(b"\n") > 1)
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first.rstrip(b"\n") + b" " * len(second) + b"\n", *rest]))
    with pytest.raises(DamagedIndexError, match=rf"{path.name} has {1 + len(rest)} documents, not {2 + len(rest)}"):
        MemoryStore.load(tmp_path, verify=False)


def test_one_changed_byte_is_an_error_of_ours_or_none_also_without_checksums(
    store: MemoryStore, tmp_path: Path
) -> None:
    store.save(tmp_path)
    for path in [next(tmp_path.glob("*.jsonl")), next(tmp_path.glob("*.safetensors"))]:
        content = path.read_bytes()
        raised = set[type[Exception]]()
        for place in range(min(len(content), 200)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            try:
                MemoryStore.load(tmp_path, verify=False)
            except StoreError as error:
                raised.add(type(error))
        path.write_bytes(content)
        assert DamagedIndexError in raised


def test_a_manifest_of_other_hands_is_an_error_of_ours_or_opens(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest.pop("sha256")
    changed = [{**manifest, **other} for key in ("layout", "segments") for other in otherwise(manifest, key)]
    damaged = 0
    for other in changed:
        path.write_bytes(persistence._sealed(other))
        try:
            MemoryStore.load(tmp_path, verify=False)
        except StoreError:
            damaged += 1
    assert damaged > len(changed) / 2


def otherwise(data: Any, key: Any) -> Iterator[Any]:
    """The data with other values at a key, or below it; without it, of a dictionary."""
    for value in (None, 3, -1, "x", [], {}, [{}]):
        yield replaced(data, key, value)
    if isinstance(data, dict):
        yield {name: value for name, value in data.items() if name != key}
    inner = data[key]
    for below in list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ():
        yield from (replaced(data, key, other) for other in otherwise(inner, below))


def replaced(data: Any, key: Any, value: Any) -> Any:
    copy = data.copy()
    copy[key] = value
    return copy


@pytest.mark.parametrize("kind", ["jsonl", "safetensors"])
@pytest.mark.parametrize("verify", [False, True])
def test_a_file_that_may_not_be_read_is_no_damage(store: MemoryStore, kind: str, verify: bool) -> None:
    with tempfile.TemporaryDirectory() as name:  # not below tmp_path, which others can't even look into
        folder = Path(name)
        folder.chmod(0o755)
        store.save(folder)
        path = next(folder.glob(f"*.{kind}"))
        path.chmod(0)
        with bound_by_permissions(), pytest.raises(StoreError, match=f"can't read .*{path.name}") as caught:
            MemoryStore.load(folder, verify=verify)
        assert not isinstance(caught.value, DamagedIndexError)


def test_vectors_that_are_damaged_are_named_also_without_checksums(store: MemoryStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DamagedIndexError, match=path.name):
        MemoryStore.load(tmp_path, verify=False)
