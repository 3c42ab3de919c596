"""An index from somebody else: what it says of its model consents to nothing, and its files stay in their folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, open_store
from colbert_integrations.cli import main
from colbert_integrations.errors import DamagedIndexError, RemoteCodeError
from colbert_integrations.index import persistence
from colbert_integrations.langchain import ColBERTRetriever, ColBERTVectorStore
from colbert_integrations.llama_index import ColBERTRetriever as NodeRetriever
from colbert_integrations.qdrant import QdrantStore
from qdrant_server import QdrantServer
from stores import units


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose own code leaves a file behind."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = checkpoints.build("stanford", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"from pathlib import Path\n\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    return folder


@pytest.fixture
def claimed(theirs: Path) -> dict[str, Any]:
    """A fingerprint, as JSON, that names this checkpoint and consents to everything."""
    consent = {"trust_remote_code": True, "attn_implementation": "theirs/kernel", "token": "theirs"}
    machine = {"device": "meta", "dtype": "float16", "cache_dir": "theirs", "local_files_only": True}
    machine |= {"batch_tokens": 1, "batch_size": 1, "cache_bytes": 10**12}
    settings = {"model": str(theirs), "query_length": 20, **consent, **machine}
    return {"digest": "abc", "model": "theirs", "dim": checkpoints.DIM, "settings": settings}


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """An index whose manifest says something else, with the checksum that belongs to it."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["sha256"]
    change(manifest)
    (folder / "manifest.json").write_bytes(persistence._sealed(manifest))
    return folder


@pytest.fixture
def folder(tiny: ColBERT, claimed: dict[str, Any], tmp_path: Path) -> Path:
    index = ColBERTIndex(tiny)
    index.add(["a plane"])
    index.save(tmp_path / "index")
    return rewritten(tmp_path / "index", lambda manifest: manifest["about"].update(fingerprint=claimed))


@pytest.fixture
def collection(tiny: ColBERT, claimed: dict[str, Any]) -> Iterator[str]:
    with closing(QdrantServer()) as server:
        with QdrantStore(server.url, "theirs") as store:
            ColBERTIndex(tiny, store).add(["a plane"])
            store.client.update_collection("theirs", metadata={"colbert_integrations": {"fingerprint": claimed}})
        yield f"qdrant+{server.url}/theirs"


# ------------------------------------------------------------------------------------------------------ its settings


def test_of_the_settings_only_those_of_the_vectors_are_read(folder: Path, collection: str, theirs: Path) -> None:
    with open_store(collection) as store:
        for found in (MemoryStore.load(folder).fingerprint, store.fingerprint):
            assert found is not None
            assert found.settings == {"model": str(theirs), "query_length": 20}


@pytest.mark.parametrize(
    "opened",
    [ColBERTIndex.load, ColBERTRetriever.load, ColBERTVectorStore.load, NodeRetriever.from_persist_dir],
    ids=lambda opened: f"{opened.__self__.__module__}.{opened.__name__}",
)
def test_an_index_does_not_consent_to_run_code(opened: Callable[[Path], object], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RemoteCodeError, match="trust_remote_code=True"):
        opened(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", ["folder", "collection"])
@pytest.mark.parametrize("command", ["search", "index"])
def test_commands_do_not_take_its_consent_either(
    kept: str, command: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("bread")
    given = "bread" if command == "search" else str(tmp_path / "texts.txt")
    assert main([command, given, "--store", str(request.getfixturevalue(kept))]) == 2
    assert "pass trust_remote_code=True" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------------------------------------- its files


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["../outside", "{root}/outside", f"{'0' * 32}/../../outside", "of another form"])
def test_a_segment_whose_name_is_a_way_out_is_damage(name: str, listed: bool, folder: Path, tmp_path: Path) -> None:
    name = name.format(root=tmp_path)
    (folder / ("0" * 32)).mkdir()  # for the way through it

    def rename(manifest: dict[str, Any]) -> None:
        [entry] = manifest["segments"]
        for file in entry["files"]:
            (folder / file).rename(folder / file.replace(entry["name"], name))
        entry["files"] = {file.replace(entry["name"], name): about for file, about in entry["files"].items() if listed}
        entry["name"] = name

    rewritten(folder, rename)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*outside*")}
    with pytest.raises(DamagedIndexError, match="it names .*, which is no file of an index"):
        MemoryStore.load(folder).save(tmp_path / "copy")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*outside*")} == before


def test_centroids_whose_name_is_a_way_out_are_damage(tmp_path: Path) -> None:
    folder, store = tmp_path / "kept", MemoryStore(candidates=2)
    store.upsert([str(number) for number in range(40)], units(1, *[3] * 40))
    store.prepare("centroids")
    store.save(folder)

    def rename(manifest: dict[str, Any]) -> None:
        entry = manifest["centroids"]
        (folder / f"{entry['name']}.safetensors").rename(tmp_path / "outside.safetensors")
        entry["name"], entry["files"] = "../outside", {}

    rewritten(folder, rename)
    with pytest.raises(DamagedIndexError, match=r"it names '\.\./outside\.safetensors', which is no file of an index"):
        MemoryStore.load(folder)


def test_files_elsewhere_are_not_looked_at(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    about = {"bytes": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    rewritten(folder, lambda manifest: manifest["segments"][0]["files"].update({"../mine": about}))
    with pytest.raises(DamagedIndexError, match=r"it names '\.\./mine', which is no file of an index"):
        MemoryStore.load(folder)
