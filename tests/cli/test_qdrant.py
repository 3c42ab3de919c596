"""index and search on a Qdrant collection, named by its location: as with a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.running import NOTES, Run, give, numbered
from colbert_integrations import ColBERT, open_store
from colbert_integrations.cli import main
from qdrant_server import Fault, QdrantServer

QUERY = "how does a plane fly?"
IDS = sorted(f"notes/{name}" for name in NOTES)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    server = QdrantServer()
    yield server
    server.close()


@pytest.fixture
def where(server: QdrantServer) -> str:
    """The location of a collection that is not there yet."""
    return f"qdrant+{server.url}/notes"


def test_a_collection_is_filled_and_searched_as_a_folder_is(run: Run, notes: Path, where: str) -> None:
    for store in ("kept", where):
        report = run("index", "notes", "--store", store, "--json").data
        assert (report["store"], report["encoded"], report["stored"]) == (store, 5, 5)
    assert run("index", "notes", "--store", where, "--json").data["unchanged"] == 5
    ours, theirs = (
        run("search", QUERY, "--store", store, "--json", "--explain").data["hits"] for store in ("kept", where)
    )
    # Qdrant rounds queries to float16 too: a product with one of their 16 vectors errs by 2**-11 at most, and a sum of
    # such errors grows by the root of their number.
    rounding = 16**0.5 * 2**-11
    assert [hit.pop("score") for hit in theirs] == pytest.approx([hit.pop("score") for hit in ours], abs=rounding)
    assert theirs == ours
    assert sorted(hit["id"] for hit in theirs) == IDS


def test_filters_are_translated(run: Run, where: str) -> None:
    lines = [{"id": str(year), "text": "a plane", "year": year} for year in (1998, 2003, 2021)]
    run("index", "-", "--store", where, stdin="\n".join(map(json.dumps, lines)))
    hits = run("search", QUERY, "--store", where, "--json", "--filter", '{"year": {"$gte": 2003}}').data["hits"]
    assert [hit["id"] for hit in hits] == ["2003", "2021"]


def test_an_interrupted_run_is_taken_up_again(
    run: Run, where: str, model: ColBERT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(number: int) -> None:
        if number == 130:
            raise KeyboardInterrupt

    give(monkeypatch, numbered(150), interrupt)
    assert main(["index", "-", "--store", where, "--model", model.settings.model, "--device", "cpu"]) == 130
    assert capsys.readouterr().err.endswith("the same command goes on from there\n")
    with open_store(where) as store:
        assert store.ids() == [f"{number:04}" for number in range(128)]
    report = run("index", "-", "--store", where, "--json", stdin=b"".join(numbered(150))).data
    assert (report["unchanged"], report["encoded"], report["stored"]) == (128, 22, 150)


def test_what_the_server_refuses_is_one_line(
    run: Run, where: str, notes: Path, server: QdrantServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults.append(Fault(403, "PUT .*/points"))
    done = run("index", "notes", "--store", where)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("colbert-integrations: ")
    assert "403" in done.err
    assert "Traceback" not in done.err


def test_a_collection_that_is_not_there_is_not_made_by_searching(
    run: Run, where: str, server: QdrantServer, model: ColBERT
) -> None:
    for named in ([], ["--model", model.settings.model]):
        done = run("search", QUERY, "--store", where, *named)
        assert done.code == 2
        assert "holds no index" in done.err
    assert not [asked for asked in server.asked if asked.call.startswith("PUT")]
