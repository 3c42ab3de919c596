"""An index from somebody else: what it says of its model consents to nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, open_store
from colbert_integrations.cli import main
from colbert_integrations.errors import RemoteCodeError
from colbert_integrations.index import persistence
from colbert_integrations.langchain import ColBERTRetriever, ColBERTVectorStore
from colbert_integrations.llama_index import ColBERTRetriever as NodeRetriever
from colbert_integrations.qdrant import QdrantStore
from qdrant_server import QdrantServer


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
