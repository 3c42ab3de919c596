"""index: what the library would store, from any source; interrupted and run again, nothing is lost or doubled."""

from __future__ import annotations

import builtins
import errno
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock

from cli.running import NOTES, Run, give, numbered
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, progress
from colbert_integrations.cli import index as command
from colbert_integrations.cli import main
from colbert_integrations.cli.corpora import Corpus
from colbert_integrations.cli.reading import refuse
from colbert_integrations.errors import InputError, StoreError

IDS = sorted(f"notes/{name}" for name in NOTES)


def stored(folder: str | Path) -> dict[str, tuple[str | None, dict[str, Any]]]:
    documents = MemoryStore.load(folder).iter_documents()
    return {document.id: (document.text, document.metadata) for document in documents}


def vectors(store: MemoryStore) -> dict[str, torch.Tensor]:
    return {document.id: document.embeddings for document in store.iter_documents()}  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------------ sources


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_once_also_on_a_terminal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jsonl")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # where documents are counted for a bar
    writer = threading.Thread(target=Path("pipe.jsonl").write_text, args=('{"id": "a", "text": "the plane"}\n',))
    writer.start()
    done = run("index", "pipe.jsonl", "--store", "kept")
    writer.join()
    assert done.code == 0
    assert stored("kept") == {"a": ("the plane", {})}


def test_a_folder_is_stored_as_the_library_stores_its_texts(run: Run, model: ColBERT, notes: Path) -> None:
    done = run("index", "notes", "--store", "kept", "--json")
    texts = {name: Path(name).read_text(encoding="utf-8") for name in IDS}
    by_hand = ColBERTIndex(model)
    by_hand.add(list(texts.values()), ids=list(texts))
    kept = MemoryStore.load("kept")
    assert kept.fingerprint == model.fingerprint
    assert stored("kept") == {name: (text, {}) for name, text in texts.items()}
    for name, matrix in vectors(by_hand.store).items():  # type: ignore[arg-type]
        # A last digit of float16, should texts have shared other batches.
        torch.testing.assert_close(vectors(kept)[name], matrix, rtol=0, atol=2**-11)
    report = done.data
    assert (done.code, report.pop("seconds") > 0) == (0, True)
    assert report == {
        "store": "kept",
        "model": model.settings.model,
        "documents": 5,
        "encoded": 5,
        "unchanged": 0,
        "replaced": 0,
        "failed": 0,
        "failures": [],
        "stored": 5,
    }


def test_patterns_are_looked_up_where_no_shell_has_done_so(run: Run, notes: Path) -> None:
    assert run("index", "notes/*.txt", "--store", "kept").code == 0
    assert sorted(stored("kept")) == sorted(name for name in NOTES if "/" not in name)


def test_a_second_run_adds_what_is_new_however_the_folder_is_called(run: Run, notes: Path) -> None:
    run("index", "notes", "--store", "kept", "--glob", "*.txt")
    (notes / "new.md").write_text("the sun")
    (notes / "bread.txt").write_text("bread with flour")
    for source in ("./notes/", str(notes.resolve()), "notes/../notes"):
        report = run("index", source, "--store", "kept", "--json").data
        assert (report["documents"], report["stored"]) == (6, 6)
    assert report["unchanged"] == 6
    assert stored("kept")["notes/bread.txt"] == ("bread with flour", {})


def test_readable_output_is_the_report(run: Run, model: ColBERT, notes: Path) -> None:
    done = run("index", "notes", "--store", "kept")
    assert done.out.startswith("5 documents: 5 encoded, 0 there already; ")
    assert done.out.endswith("\nkept holds 5 documents\n")
    assert done.err == f"Indexing into kept with {model.settings.model} on cpu\n"
    assert run("index", "notes", "--store", "kept", "--quiet").err == ""
    alone = run("index", "notes/bread.txt", "--store", "alone").out
    assert alone.startswith("1 document: 1 encoded, 0 there already; ")
    assert alone.endswith("\nalone holds 1 document\n")


def test_a_bar_on_a_terminal_knows_how_many_there_are(run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lines.jsonl").write_text('{"text": "a fox"}\n\n{"text": "the sky"}\n')
    Path("torn.jsonl.gz").write_bytes(gzip.compress(b'{"text": "bread"}\n')[:12])  # of which nothing can be read
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_BAR_AFTER_S", 0.0)
    done = run("index", "notes", "lines.jsonl", "torn.jsonl.gz", "--store", "kept")
    assert " 7/7 " in done.err
    assert done.code == 1
    assert "Saving: 100%" in done.err
    assert "Opening: 100%" in run("search", "fox", "--store", "kept").err
    assert "Opening: 100%" in run("index", "notes", "--store", "kept").err
    for asked in (["search", "fox"], ["index", "notes"]):
        assert run(*asked, "--store", "kept", "--quiet").err == ""


def test_globs_choose_files_of_folders_and_hidden_ones_are_left_out(run: Run, notes: Path) -> None:
    for name in (".hidden.txt", ".git/config.txt", "a.md", "Straße/b.md", "c.rst"):
        (notes / name).parent.mkdir(exist_ok=True)
        (notes / name).write_text(name)
    run("index", "notes", "--store", "one", "--glob", "*.md", "--glob", "Straße/狐.*")
    assert sorted(stored("one")) == ["notes/Straße/b.md", "notes/Straße/狐.txt", "notes/a.md"]
    run("index", "notes", "--store", "two")
    assert sorted(stored("two")) == sorted([*IDS, "notes/a.md", "notes/Straße/b.md", "notes/c.rst"])
    run("index", "notes", "--store", "three", "--glob", "**/*.md", "--glob", "**/Straße/狐.*")
    assert sorted(stored("three")) == sorted(stored("one"))


def test_an_index_in_its_own_source_does_not_index_itself(run: Run, notes: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(notes)
    (notes / "binary").write_bytes(b"\xff")
    for _ in range(2):
        report = run("index", ".", "--store", "kept", "--failures", "failed.jsonl", "--json").data
        assert (report["stored"], report["failed"]) == (5, 1)
    assert sorted(stored("kept")) == IDS


def test_what_is_written_is_left_out_by_whichever_way_it_is_reached(run: Run, notes: Path) -> None:
    Path("way").symlink_to("notes")
    (notes / "link.txt").symlink_to("failed.txt")
    (notes / "linked.txt").symlink_to("bread.txt")
    (notes / "binary").write_bytes(b"\xff")
    for source in ("notes", "way"):
        for writes in ("notes", "way"):
            written = ("--store", f"{writes}/kept", "--failures", f"{writes}/link.txt")
            report = run("index", source, *written, "--json").data
            assert [failure["document"] for failure in report["failures"]] == [f"{source}/binary"]
    assert sorted(stored("notes/kept")) == sorted([*IDS, "notes/linked.txt"])


def test_files_of_a_folder_are_not_resolved_one_by_one(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        (notes / f"{number}.txt").touch()
    real, seen = os.path.realpath, list[str]()

    def realpath(path: Any, **options: Any) -> str:
        seen.append(str(path))
        return real(path, **options)

    monkeypatch.setattr(os.path, "realpath", realpath)
    corpus = Corpus(["notes"], None, [], with_title=False, leave_out={notes / "7.txt"}, failed=refuse)
    assert corpus.count() == 99 + len(NOTES)
    assert set(seen) <= {"notes", "notes/Straße"}


LINES = [
    {"_id": "MED-10", "title": "Statin Use", "text": "the plane", "metadata": {"url": "a"}},
    {"id": 7, "text": "bread", "year": 2020, "rate": 4.5, "tags": ["x"]},
    {"text": "the sky", "title": ""},
    {"id": "own", "_id": "other", "text": "a fox"},
    {"id": None, "_id": "one of both", "text": "a dog"},
]


def test_json_lines_have_ids_and_metadata(run: Run, model: ColBERT, tmp_path: Path) -> None:
    content = "\n".join(map(json.dumps, LINES)).encode()
    (tmp_path / "corpus.jsonl").write_bytes(content)
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(content))
    by_hand = ColBERTIndex(model)
    (hashed,) = by_hand.add(["the sky"], metadatas=[{"title": ""}])
    expected = {
        "MED-10": ("Statin Use\nthe plane", {"title": "Statin Use", "url": "a"}),
        "7": ("bread", {"year": 2020, "rate": 4.5, "tags": ["x"]}),
        hashed: ("the sky", {"title": ""}),
        "own": ("a fox", {"_id": "other"}),
        "one of both": ("a dog", {}),
    }
    for number, source in enumerate((tmp_path / "corpus.jsonl", tmp_path / "corpus.jsonl.gz", "-")):
        assert run("index", source, "--store", tmp_path / f"kept{number}", stdin=content).code == 0
        assert stored(tmp_path / f"kept{number}") == expected
    run("index", "-", "--store", tmp_path / "kept", "--no-title", stdin=content)
    assert stored(tmp_path / "kept")["MED-10"] == ("the plane", {"title": "Statin Use", "url": "a"})


def test_a_file_of_entries_that_is_taken_whole_is_told_where_it_is_named(run: Run, notes: Path) -> None:
    Path("folder.csv").mkdir()
    for path in (notes / "inner.json", Path("folder.csv/inner.csv"), Path("named.json")):
        path.write_text('["a plane", "bread"]')
    done = run("index", "notes", "folder.csv", "named.json", "--store", "kept")
    assert (done.code, "named.json" in stored("kept")) == (0, True)
    warned, indexing = done.err.splitlines()
    assert warned.startswith("warning: named.json is taken as one document; to have one for each entry, ")
    assert indexing.startswith("Indexing into kept ")
    assert run("index", "named.json", "--store", "kept", "--quiet").err == ""
    assert "warning" not in run("index", "named.json", "--store", "kept", "--lines").err


def test_files_of_json_lines_may_have_one_name(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.jsonl").write_text(json.dumps({"id": name, "text": name}))
    run("index", tmp_path / "a" / "part.jsonl", tmp_path / "b" / "part.jsonl", "--store", tmp_path / "kept")
    assert sorted(stored(tmp_path / "kept")) == ["a", "b"]


def test_links_are_told_apart_by_their_own_names(run: Run, notes: Path) -> None:
    for link, target in (("one/a.txt", "wings.txt"), ("two/a.txt", "bread.txt"), ("two/b.txt", "wings.txt")):
        Path(link).parent.mkdir(exist_ok=True)
        Path(link).symlink_to((notes / target).resolve())
    done = run("index", "one/a.txt", "two/a.txt", "--store", "kept")
    assert done.code == 2
    assert "one/a.txt and two/a.txt have the same name" in done.err
    assert run("index", "one/a.txt", "two/b.txt", "--store", "kept").code == 0
    assert stored("kept") == dict.fromkeys(["a.txt", "b.txt"], (NOTES["wings.txt"], {}))


def test_each_line_can_be_a_document(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the sky\n\na fox\nthe sky\n")
    report = run("index", tmp_path / "a.txt", "--store", tmp_path / "kept", "--lines", "--json").data
    assert (report["documents"], report["encoded"], report["unchanged"]) == (3, 2, 1)
    (tmp_path / "a.txt").write_text("a new first line\nthe sky\na fox\n")  # which moves the others
    report = run("index", tmp_path / "a.txt", "-", "--store", tmp_path / "kept", "--lines", "--json", stdin="b").data
    assert (report["encoded"], report["stored"]) == (2, 4)
    kept = sorted(stored(tmp_path / "kept").values(), key=str)
    assert kept[-1] == ("the sky", {"file": "a.txt"})
    assert ("b", {}) in kept


def test_names_that_are_no_text_are_spelt_out(run: Run, notes: Path) -> None:
    try:
        Path(os.fsdecode(b"notes/\xff.txt")).write_text("a fox")
    except OSError:
        pytest.skip("needs a file system that takes any name")
    run("index", "notes", "--store", "kept", "--glob", "*.txt")
    assert "notes/\\xff.txt" in stored("kept")


# ----------------------------------------------------------------------------------------------------------- failures


def test_what_fails_is_told_and_the_rest_is_stored(run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (notes / "picture.png").write_bytes(b"\x89PNG\r\n")
    (notes / "gone.txt").symlink_to("nowhere")
    (notes / "closed").mkdir()
    lines = ['{"text": "a", "id": "line"}', '{"text": "b", "id": ""}', '{"id": "c"}', '{"text": "", "metadata": 5}']
    (notes / "lines.jsonl").write_text("\n".join(lines))
    real = os.scandir

    def scandir(path: Any) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("closed"):  # chmod would not keep root out
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    done = run("index", "notes", "--store", "kept", "--json", "--failures", "failed.jsonl")
    failures = [
        {"document": "notes/closed", "error": "can't be read: Permission denied"},
        {"document": "notes/gone.txt", "error": "can't be read: No such file or directory"},
        {
            "document": "notes/lines.jsonl:2",
            "error": "has an id that is '': it must be a string that is not empty, or a whole number",
        },
        {"document": "notes/lines.jsonl:3", "error": 'is not a JSON object with a "text" that is a string'},
        {"document": "notes/lines.jsonl:4", "error": 'has "metadata" that is 5: it must be an object'},
        {"document": "notes/picture.png", "error": "is not UTF-8 text: byte 0x89 at 0"},
    ]
    report = done.data
    assert sorted(report["failures"], key=str) == failures
    assert (done.code, report["documents"], report["encoded"], report["failed"]) == (1, 12, 6, 6)
    assert sorted(done.err.splitlines()[1:]) == [
        f"colbert-integrations: {entry['document']}: {entry['error']}" for entry in failures
    ]
    written = [json.loads(line) for line in Path("failed.jsonl").read_text().splitlines()]
    assert sorted(written, key=str) == failures
    assert sorted(stored("kept")) == sorted([*IDS, "line"])


def test_the_files_of_a_folder_are_read_in_the_order_of_their_names(run: Run, notes: Path) -> None:
    names = ["b.txt", "a/z.txt", "c.txt", "a/y.txt", "a.txt"]
    for name in names:
        (notes / name).parent.mkdir(exist_ok=True)
        (notes / name).write_bytes(b"\xff")
    failures = run("index", "notes", "--store", "kept", "--json").data["failures"]
    expected = ["a/y.txt", "a/z.txt", "a.txt", "b.txt", "c.txt"]
    assert [failure["document"] for failure in failures] == [f"notes/{name}" for name in expected]


def test_a_link_round_in_a_circle_is_told_and_the_rest_is_stored(run: Run, notes: Path) -> None:
    for link in (notes / "round.txt", Path("itself")):
        link.symlink_to(link.name)
    done = run("index", "notes", "itself", "--store", "kept", "--json")
    why = f"can't be read: {os.strerror(errno.ELOOP)}"
    assert done.data["failures"] == [{"document": name, "error": why} for name in ("notes/round.txt", "itself")]
    assert done.code == 1
    assert sorted(stored("kept")) == sorted(IDS)


def test_a_link_that_may_not_be_followed_is_told_and_the_rest_is_stored(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes / "elsewhere").symlink_to("/proc/1/cwd")
    real = os.path.realpath

    def refusing(path: Any, **options: Any) -> Any:  # as the system does for links of other users' processes
        if str(path).endswith("elsewhere"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(os.path, "realpath", refusing)
    done = run("index", "notes", "--store", "kept", "--json")
    assert done.code in (0, 1)  # 1 where it is a folder that can't be listed
    assert sorted(stored("kept")) == sorted(IDS)


def test_a_folder_that_may_be_listed_only_is_told_and_the_rest_is_stored(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes / "listed").mkdir()
    (notes / "listed/a.txt").write_text("a")

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).endswith("listed/a.txt"):  # chmod would not keep root out
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return call

    monkeypatch.setattr(os, "stat", refusing(os.stat))
    monkeypatch.setattr(builtins, "open", refusing(open))
    done = run("index", "notes", "--store", "kept", "--json")
    assert done.data["failures"] == [{"document": "notes/listed/a.txt", "error": "can't be read: Permission denied"}]
    assert done.code == 1
    assert sorted(stored("kept")) == sorted(IDS)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("count", [1, 1500])  # written at the end, and before
def test_failures_that_can_not_be_written_are_an_error(run: Run, tmp_path: Path, count: int) -> None:
    lines = '{"text": "a"}\n' + "{}\n" * count
    done = run("index", "-", "--store", tmp_path / "kept", "--failures", "/dev/full", stdin=lines)
    assert done.code == 2
    said = f"colbert-integrations: can't write /dev/full: {os.strerror(errno.ENOSPC)}"
    assert done.err.splitlines()[-1] == said
    assert done.err.count(said) == 1


def test_many_failures_are_cut_on_the_terminal_only(run: Run, tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text("of an earlier run\n")
    options = ("--failures", tmp_path / "f.jsonl", "--quiet", "--json")
    done = run("index", "-", "--store", tmp_path / "kept", *options, stdin="{}\n" * 1500)
    assert (done.code, done.data["failed"], len(done.data["failures"])) == (1, 1500, 1000)
    assert done.err.count("\n") == 21
    assert done.err.endswith(f"and 1,480 more, {tmp_path / 'f.jsonl'} has all\n")
    assert (tmp_path / "f.jsonl").read_text().count("\n") == 1500


def test_more_failures_than_are_told_are_counted(run: Run, tmp_path: Path) -> None:
    for count, last in ((20, "-:20: "), (21, "and 1 more, --failures OUT.jsonl writes all")):
        lines = run("index", "-", "--store", tmp_path / "kept", "--quiet", stdin="{}\n" * count).err.splitlines()
        assert len(lines) == count
        assert lines[-1].startswith(f"colbert-integrations: {last}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "missing is not there: a source is a folder, a file, or - for stdin"),
        (["notes", "other/notes"], "notes and other/notes have the same name"),
        (["-", "-"], "- and - have the same name"),
        (["notes/bread.txt", "other/bread.txt"], "notes/bread.txt and other/bread.txt have the same name"),
        (["notes", "--failures", "no/f.jsonl"], "can't write no/f.jsonl: No such file or directory"),
        (["notes", "--store", "notes/bread.txt"], "can't use notes/bread.txt: "),
        (["notes", "--store", "notes"], "notes is to be read and to be written: choose another place"),
        (["notes", "notes/bread.txt", "--failures", "notes/bread.txt"], "notes/bread.txt is to be read and to be wri"),
        (["notes/bread.txt", "--store", "notes"], "no index in notes: it has no manifest.json"),
        (["notes", "--store", "qdrant+http://a:1/b", "--nbits", "4"], "--nbits is for an index in a folder"),
        (["notes", "--store", "qdrant+http://a:1/b", "--search", "exact"], "--search is for an index in a folder"),
        (["notes", "--search", "codes"], "search='codes' needs codes"),
        (["notes", "--store", "qdrant+http://[::1/b"], "a location is an address such as"),
        (["notes", "--store", "http://a:1/b"], "a store is at a location such as"),
        (["notes", "--model", "./missing"], "no folder './missing'"),
        (["notes", "--set", "query_length=-1"], "query_length must be a whole number from 1, not -1"),
    ],
)
def test_errors_are_one_line_and_nothing_is_done(arguments: list[str], said: str, run: Run, notes: Path) -> None:
    Path("other/notes").mkdir(parents=True)
    before = sorted(Path().rglob("*"))
    store = [] if "--store" in arguments else ["--store", "kept"]
    done = run("index", *arguments, *store)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"colbert-integrations: {said}")
    assert done.err.count("\n") == 1
    lock = {Path("notes/.indexing.lock"), Path("kept/.indexing.lock"), Path("kept")}
    assert set(Path().rglob("*")) - lock == set(before)


def test_a_model_that_does_not_fit_the_store_is_refused(
    run: Run, checkpoint: Callable[[str], Path], notes: Path
) -> None:
    run("index", "notes", "--store", "kept")
    done = run("index", "notes", "--store", "kept", "--model", checkpoint("pylate"))
    assert done.code == 2
    assert "holds vectors of" in done.err
    assert sorted(stored("kept")) == IDS


def test_the_stores_model_is_the_default(run_as_given: Run, checkpoint: Callable[[str], Path], notes: Path) -> None:
    command_line = ["index", "notes", "--store", "kept", "--device", "cpu"]
    run_as_given(*command_line, "--set", "document_length=30", "--model", checkpoint("pylate"))
    (notes / "new.txt").write_text("the sun")
    assert run_as_given(*command_line).code == 0
    kept = MemoryStore.load("kept")
    assert kept.count() == 6
    assert kept.fingerprint is not None
    assert kept.fingerprint.settings == {"model": str(checkpoint("pylate")), "document_length": 30}


def test_a_model_in_a_folder_is_found_from_elsewhere(
    run: Run, checkpoint: Callable[[str], Path], notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint("stanford")
    monkeypatch.chdir(path.parent)
    run("index", notes, "--store", notes.parent / "kept", "--model", path.name)
    monkeypatch.chdir(notes)
    assert run("search", "plane", "--store", "../kept", "--json").code == 0


# -------------------------------------------------------------------------------------------------------- how vectors


@pytest.mark.filterwarnings("default::colbert_integrations.errors.StaleVectorsWarning")  # shown, as on a terminal
def test_vectors_can_be_few_and_small(run: Run, model: ColBERT, notes: Path) -> None:
    run("index", "notes", "--store", "kept", "--nbits", 4, "--pool-factor", 2)
    kept = MemoryStore.load("kept")
    assert kept.nbits == 4
    lengths = model.encode_document(list(NOTES.values())).lengths
    assert 0 < kept.num_tokens < 0.7 * sum(lengths)
    again = run("index", "notes", "--store", "kept", "--nbits", 8)
    assert again.code == 2
    assert "kept keeps codes of 4 bits, which --nbits 8 can't change" in again.err
    few = kept.num_tokens
    without = run("index", "notes", "--store", "kept")
    assert without.code == 0
    assert "warning: " in without.err
    assert "pool_factor=2" in without.err
    assert MemoryStore.load("kept").num_tokens == few
    whole = run("index", "notes", "--store", "kept", "--reencode")
    assert (whole.code, "warning" in whole.err) == (0, False)
    assert MemoryStore.load("kept").num_tokens == sum(lengths)
    assert "warning" not in run("index", "notes", "--store", "kept").err


def test_a_way_to_search_is_kept_and_what_it_needs_is_made(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = list[tuple[str, int]]()
    monkeypatch.setattr(
        MemoryStore, "prepare", lambda store, **_: prepared.append((store.search_default, store.count()))
    )
    for argument, kept in (("centroids", "centroids"), (None, "centroids"), ("exact", "exact")):
        assert run("index", "notes", "--store", "kept", *(() if argument is None else ("--search", argument))).code == 0
        assert MemoryStore.load("kept").search_default == kept
    assert prepared == [("centroids", 5), ("centroids", 5), ("exact", 5)]
    again = run("index", "notes", "--store", "kept", "--search", "codes")
    assert (again.code, "search='codes' needs codes: make the store with nbits=8, 4 or 2" in again.err) == (2, True)


def test_ctrl_c_while_lists_are_made_keeps_the_documents(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(store: MemoryStore, **_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryStore, "prepare", interrupted)
    assert run("index", "notes", "--store", "kept", "--search", "centroids").code == 130
    assert sorted(stored("kept")) == IDS


# ------------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("stop", [0, 63, 64, 65, 130, 199])
def test_ctrl_c_keeps_what_was_stored_and_the_next_run_goes_on(
    stop: int, run: Run, model: ColBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupt(number: int) -> None:
        if number == stop:
            raise KeyboardInterrupt

    lines, folder = numbered(200), tmp_path / "kept"
    give(monkeypatch, lines, interrupt)
    assert main(["index", "-", "--store", str(folder), "--model", model.settings.model, "--device", "cpu"]) == 130
    said = capsys.readouterr()
    assert said.err.endswith("interrupted; what is stored is kept, and the same command goes on from there\n")
    assert said.out == ""
    kept = stop // 64 * 64  # the whole windows before
    assert sorted(stored(folder)) == [f"{number:04}" for number in range(kept)]
    report = run("index", "-", "--store", folder, "--json", stdin=b"".join(lines)).data
    assert (report["unchanged"], report["encoded"], report["stored"]) == (kept, 200 - kept, 200)


def test_what_began_with_another_model_and_stored_nothing_can_begin_again(
    run: Run, model: ColBERT, checkpoint: Callable[[str], Path], notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    give(monkeypatch, numbered(3), interrupt)
    wrong = ["--model", str(checkpoint("pylate")), "--device", "cpu"]
    assert main(["index", "-", "--store", "kept", *wrong]) == 130
    assert MemoryStore.load("kept").fingerprint is None
    assert run("search", "plane", "--store", "kept").code == 2
    assert run("index", "notes", "--store", "kept").code == 0
    fingerprint = MemoryStore.load("kept").fingerprint
    assert fingerprint is not None
    assert fingerprint == model.fingerprint


def test_an_interrupted_reencoding_does_not_say_that_it_goes_on(
    run: Run, model: ColBERT, notes: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    give(monkeypatch, numbered(3), interrupt)
    settings = ["--model", model.settings.model, "--device", "cpu"]
    assert main(["index", "-", "--store", "kept", "--reencode", *settings]) == 130
    assert capsys.readouterr().err.endswith("is kept, and the same command encodes all of it again\n")


@pytest.mark.parametrize("command", ["index", "search"])
def test_a_store_without_a_name_is_not_the_working_directory(command: str, run: Run, notes: Path) -> None:
    before = sorted(Path().rglob("*"))
    done = run(command, "notes", "--store", "")
    assert (done.code, done.out) == (2, "")
    assert done.err == "colbert-integrations: --store must name a folder or the location of a store, and is empty\n"
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of files that are no text")
def test_a_store_whose_name_is_no_text_is_refused_before_any_work(run: Run, notes: Path) -> None:
    done = run("index", "notes", "--store", os.fsdecode(b"st\xff"))
    assert (done.code, done.out) == (2, "")
    assert "is not UTF-8: choose another" in done.err


@pytest.mark.parametrize("name", ["some.jsonl", "some.txt"])
def test_a_first_line_of_a_byte_order_mark_alone_is_blank(name: str, run: Run, tmp_path: Path, notes: Path) -> None:
    Path(name).write_bytes(b'\xef\xbb\xbf\r\n{"id": "a", "text": "the plane"}\n')
    done = run("index", name, "--store", "kept", *([] if name.endswith("jsonl") else ["--lines"]), "--json")
    assert (done.code, done.data["stored"]) == (0, 1)


def test_an_index_is_saved_while_it_grows(
    run: Run, model: ColBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(seconds)))  # a second a document
    seen = dict[int, int]()

    def look(number: int) -> None:
        if number % 16 == 15:
            seen[number] = len(stored(tmp_path / "kept"))

    give(monkeypatch, numbered(260), look)
    argv = ["index", "-", "--store", str(tmp_path / "kept"), "--model", model.settings.model, "--device", "cpu"]
    assert main(argv) == 0
    assert set(seen.values()) <= {0, 64, 128, 192}  # whole windows
    # What a kill would leave: while the fourth window is read, the second one at least was written, and then saved.
    assert seen[63] == 0
    assert seen[239] >= 128


def test_saving_takes_no_more_than_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, saved = [0], list[int]()

    def save(*_: object, **__: object) -> None:
        clock[0] += 10  # seconds
        saved.append(clock[0])

    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(command, "_save", save)
    for _ in command._saving(iter([{}] * 700), None, Path()):  # type: ignore[arg-type]
        clock[0] += 1
    # The first one after half a minute; then there are 200 seconds between them, and one more until that is noticed.
    assert saved == [41, 252, 463, 674]


def test_what_a_store_refuses_is_told_and_the_rest_is_stored(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemoryStore.upsert

    def upsert(self: MemoryStore, ids: list[str], *rest: Any) -> None:
        if "0002" in ids:
            raise InputError("document '0002' is too long")
        real(self, ids, *rest)

    monkeypatch.setattr(MemoryStore, "upsert", upsert)
    done = run("index", "-", "--store", tmp_path / "kept", "--json", stdin=b"".join(numbered(5)) + b"{}\n")
    assert (done.code, done.data["documents"], done.data["encoded"], done.data["failed"]) == (1, 6, 4, 2)
    assert [failure["document"] for failure in done.data["failures"]] == ["-:6", "0002"]
    assert done.err.endswith("\ncolbert-integrations: 0002: document '0002' is too long\n")
    assert sorted(stored(tmp_path / "kept")) == ["0000", "0001", "0003", "0004"]


def test_documents_of_one_id_that_can_not_be_stored_are_all_counted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upsert(self: MemoryStore, ids: list[str], *rest: Any) -> None:
        raise InputError("no room")

    monkeypatch.setattr(MemoryStore, "upsert", upsert)
    done = run("index", "-", "--store", tmp_path / "kept", "--json", stdin=b"".join(numbered(2) * 3) + b"{}\n")
    assert (done.code, done.data["documents"], done.data["encoded"], done.data["failed"]) == (1, 7, 0, 7)
    assert [failure["document"] for failure in done.data["failures"]] == ["-:7", "0000", "0001"]


def test_a_store_that_fails_keeps_what_it_has(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = MemoryStore.upsert

    def upsert(self: MemoryStore, ids: list[str], *rest: Any) -> None:
        if "0100" in ids:
            raise StoreError("the disk is on fire")
        real(self, ids, *rest)

    monkeypatch.setattr(MemoryStore, "upsert", upsert)
    done = run("index", "-", "--store", tmp_path / "kept", stdin=b"".join(numbered(200)))
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("\ncolbert-integrations: the disk is on fire\n")
    assert len(stored(tmp_path / "kept")) == 64


def test_what_a_killed_first_save_left_is_no_obstacle(run: Run, notes: Path) -> None:
    Path("kept").mkdir()
    for name in (".lock", ".indexing.lock", "manifest.json.new"):
        (Path("kept") / name).touch()
    assert run("index", "notes", "--store", "kept").code == 0
    assert sorted(stored("kept")) == IDS


def test_two_at_once_would_lose_documents_and_are_refused(run: Run, notes: Path) -> None:
    run("index", "notes", "--store", "kept")
    with FileLock("kept/.indexing.lock"):
        done = run("index", "notes", "--store", "kept")
        assert done.code == 2
        assert done.err == "colbert-integrations: another process adds to kept: wait until it is done\n"
        assert run("search", "plane", "--store", "kept", "--json").code == 0
    assert run("index", "notes", "--store", "kept").code == 0
    with FileLock("kept/.indexing.lock", timeout=0):
        pass  # it was released


# A shell may have told its background jobs to ignore it.
WITH_SIGINT = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("colbert_integrations", run_name="__main__")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
@pytest.mark.parametrize("times", [1, 5])
def test_a_process_that_gets_sigint_can_be_run_again(run: Run, model: ColBERT, tmp_path: Path, times: int) -> None:
    lines = numbered(400, "x" * 1000)  # more than a pipe holds
    argv = ["index", "-", "--store", str(tmp_path / "kept"), "--model", model.settings.model, "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_SIGINT, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"".join(lines[:-1]))  # of which all but 64 kB have been read when this is done
    process.stdin.flush()
    for _ in range(times):  # of an impatient user: the later ones come while what is stored is saved
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err.endswith(b"goes on from there\n")
    assert b"Traceback" not in err
    kept = len(stored(tmp_path / "kept"))
    assert 64 <= kept < 400
    assert kept % 64 == 0
    report = run("index", "-", "--store", tmp_path / "kept", "--json", stdin=b"".join(lines)).data
    assert (report["unchanged"], report["encoded"], report["stored"]) == (kept, 400 - kept, 400)
    assert sorted(stored(tmp_path / "kept")) == [f"{number:04}" for number in range(400)]
