"""Checkpoints from a hub: what is fetched, from where, and what a user is told when that fails."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub
from safetensors.torch import load_file

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations.checkpoint.hub import HubOptions, locate
from colbert_integrations.errors import CheckpointError, CheckpointNotFoundError, ColBERTError

DOCUMENTS = ["the lazy dog", "a plane flies over Paris", "bread and flour"]
QUERY = "how does a plane fly"
SECRET = "hf_secretsecret"

Away = Callable[..., Any]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def away(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    """Runs a function in an interpreter of its own: the hub's library reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        patch.delenv("HF_TOKEN", raising=False)
        for name, value in settings.items():
            patch.setenv(name, value)
        pool.submit(os.getpid).result()  # started here, while the environment holds
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(timeout=120)


@pytest.fixture(autouse=True)
def _fresh(hub: Hub) -> None:
    hub.sent.clear()


@pytest.fixture
def gone(hub: Hub) -> Iterator[Callable[[], None]]:
    """Takes the hub away until the test ends."""
    away_now: list[bool] = []

    def hang_up() -> None:
        hub.hang_up()
        away_now.append(True)

    yield hang_up
    if away_now:
        hub.resume()


# ---------------------------------------------------------------------------------------- run in another interpreter


def _scores(name: str, **options: Any) -> dict[int, float]:
    ranked = ColBERT(name, device="cpu", **options).rank(QUERY, DOCUMENTS)
    return {entry.index: entry.score for entry in ranked}


def _query_length(name: str, **options: Any) -> int | None:
    return ColBERT(name, device="cpu", **options).spec.query_length


def _remembered(name: str, **options: Any) -> tuple[str, Any]:
    """What an index keeps of a model."""
    fingerprint = ColBERT(name, device="cpu", **options).fingerprint
    return fingerprint.model, fingerprint.settings


def _shown(name: str, **options: Any) -> str:
    """Everything that is printed or written of a model, and of its error if there is one."""
    try:
        model = ColBERT(name, device="cpu", **options)
    except ColBERTError:
        return traceback.format_exc()
    written = pickle.dumps(model).decode("latin-1") + json.dumps(model.settings.changed())
    return f"{model!r} {model.settings!r} {model.spec} {vars(model)} {written}"


# ------------------------------------------------------------------------------------------------------------- tests


def test_a_repository_ranks_as_its_folder_does(hub: Hub, away: Away, checkpoint: Any, tmp_path: Path) -> None:
    hub.add("org/whole", checkpoint("stanford"))
    expected = _scores(str(checkpoint("stanford")))
    assert away(_scores, "org/whole", cache_dir=tmp_path) == pytest.approx(expected)


def test_an_index_remembers_a_repository_not_where_it_was_downloaded(
    hub: Hub, away: Away, checkpoint: Any, tmp_path: Path
) -> None:
    hub.add("org/indexed", checkpoint("stanford"))
    assert away(_remembered, "org/indexed", cache_dir=tmp_path) == ("org/indexed", {"model": "org/indexed"})


def test_the_cache_is_where_it_was_asked_to_be(hub: Hub, away: Away, checkpoint: Any, tmp_path: Path) -> None:
    hub.add("org/cached", checkpoint("stanford"))
    away(_query_length, "org/cached", cache_dir=tmp_path)
    assert list(tmp_path.rglob("artifact.metadata"))
    hub.sent.clear()
    away(_query_length, "org/cached", cache_dir=tmp_path)
    assert hub.fetched("org/cached") == []


def test_revisions_are_told_apart(hub: Hub, away: Away, checkpoint: Any, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    checkpoints.stanford(changed, query_maxlen=24)
    hub.add("org/moving", checkpoint("stanford"))
    commit = hub.add("org/moving", changed, revision="v2")
    lengths = [away(_query_length, "org/moving", revision=name, cache_dir=tmp_path) for name in (None, "v2", commit)]
    assert lengths == [16, 24, 24]


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, away: Away, checkpoint: Any, tmp_path: Path) -> None:
    hub.add("org/private", checkpoint("stanford"), token=SECRET)
    shown = away(_shown, "org/private", token=SECRET, cache_dir=tmp_path)
    assert hub.tokens("org/private") == {f"Bearer {SECRET}"}
    assert "org/private" in shown
    assert SECRET not in shown


@pytest.mark.parametrize("end", ["", "\n", "é"])
def test_a_refused_token_is_not_shown(hub: Hub, away: Away, checkpoint: Any, tmp_path: Path, end: str) -> None:
    hub.add("org/locked", checkpoint("stanford"), token=SECRET)
    shown = away(_shown, "org/locked", token="hf_another" + end, cache_dir=tmp_path)
    assert ("InputError" if end else "CheckpointNotFoundError") in shown
    assert "hf_another" not in shown


@pytest.mark.parametrize(
    ("name", "options", "advice"),
    [
        ("org/gated", {}, "ask for access"),
        ("org/gated", {"token": "hf_other"}, "ask for access"),
        ("org/hidden", {}, "for a private repository log in with `hf auth login`, or pass token= to ColBERT"),
        ("org/nowhere", {}, "check the name"),
        ("org/nowhere", {"token": "hf_other"}, "check the name"),
        ("org/open", {"token": "hf_expired"}, "refuses the token"),
        ("org/open", {"revision": "v9"}, "no revision 'v9'"),
        ("org/open", {"local_files_only": True}, "not downloaded before, and local_files_only=True"),
        ("no such name", {}, "neither a folder nor the name of a repository"),
    ],
)
def test_what_is_missing_is_said_with_advice(
    hub: Hub, away: Away, checkpoint: Any, tmp_path: Path, name: str, options: dict[str, Any], advice: str
) -> None:
    hub.add("org/gated", checkpoint("stanford"), token=SECRET, gated=True)
    hub.add("org/hidden", checkpoint("stanford"), token=SECRET)
    hub.add("org/open", checkpoint("stanford"))
    with pytest.raises(CheckpointNotFoundError) as raised:
        away(_query_length, name, cache_dir=tmp_path, **options)
    assert repr(name) in str(raised.value)
    assert advice in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "bundled/" not in str(raised.value)


def test_a_hub_that_cannot_be_reached_is_named_as_the_reason(
    hub: Hub, away: Away, checkpoint: Any, tmp_path: Path, gone: Callable[[], None]
) -> None:
    hub.add("org/far", checkpoint("stanford"))
    gone()
    with pytest.raises(CheckpointNotFoundError) as raised:
        away(_query_length, "org/far", cache_dir=tmp_path)
    said = r"can't get 'org/far' from the hub: it was not downloaded before, and the hub can't be reached \(\w+: .*\)"
    assert re.fullmatch(said, str(raised.value))  # one line


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_bundled_model_is_named_where_one_of_its_name_is_missing(hub: Hub, away: Away, name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="there is bundled/all-MiniLM-L6-v2, which needs no network$"):
        away(_query_length, name)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), " (OSError: [Errno 28] No space left on device)"),
        (TimeoutError(), " (TimeoutError)"),
        (ValueError("first.\nsecond"), " (ValueError: first)"),
    ],
)
def test_a_failure_without_advice_is_told_by_its_first_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointNotFoundError) as raised:
        locate("org/any", HubOptions())
    advice = "check the connection and the disk, or pass a local folder"
    assert str(raised.value) == f"can't get 'org/any' from the hub: {advice}{said}"
    assert raised.value.__cause__ is error


def test_a_hub_that_is_down_is_named_as_the_reason(
    hub: Hub, away: Away, checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/down", checkpoint("stanford"))
    monkeypatch.setattr(hub, "broken", True)
    with pytest.raises(CheckpointNotFoundError, match="the hub can't be reached"):
        away(_query_length, "org/down", cache_dir=tmp_path)


@pytest.mark.parametrize("options", [{}, {"local_files_only": True}])
@pytest.mark.parametrize("layout", ["stanford", "pickled"])
def test_what_was_downloaded_needs_no_hub(
    hub: Hub,
    away: Away,
    checkpoint: Any,
    pickled: Path,
    tmp_path: Path,
    gone: Callable[[], None],
    layout: str,
    options: dict[str, Any],
) -> None:
    hub.add("org/kept", pickled if layout == "pickled" else checkpoint(layout), revision=layout)
    before = away(_scores, "org/kept", revision=layout, cache_dir=tmp_path)
    gone()
    assert away(_scores, "org/kept", revision=layout, cache_dir=tmp_path, **options) == before


# --------------------------------------------------------------------------------------------------- what is fetched


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory, checkpoint: Any) -> Path:
    """The Stanford checkpoint with its weights in ``pytorch_model.bin`` only."""
    folder = tmp_path_factory.mktemp("pickled") / "stanford"
    shutil.copytree(checkpoint("stanford"), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def _litter(folder: Path) -> None:
    """What repositories hold beside a checkpoint."""
    for path in (
        "onnx/model.onnx",
        "onnx/config.json",
        "openvino/openvino_model.bin",
        "0_Transformer/onnx/tokenizer.json",
        "checkpoint-500/model.safetensors",
        "checkpoint-500/trainer_state.json",
        "pytorch_model.bin",
        "optimizer.pt",
        "model.gguf",
        "tf_model.h5",
        "README.md",
        "modeling_evil.py",
        "1_Dense/pytorch_model.bin",
    ):
        file = folder / path
        file.parent.mkdir(exist_ok=True, parents=True)
        if not file.exists():
            file.write_text(json.dumps({"path": path}))  # each its own: equal contents are fetched once


def test_only_the_checkpoint_is_fetched(hub: Hub, away: Away, tmp_path: Path) -> None:
    folder = checkpoints.build("pylate", tmp_path)
    wanted = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    _litter(folder)
    hub.add("org/littered", folder)
    away(_query_length, "org/littered", cache_dir=tmp_path)
    assert hub.fetched("org/littered") == wanted


def test_pickled_weights_are_fetched_where_there_are_no_others(
    hub: Hub, away: Away, checkpoint: Any, pickled: Path, tmp_path: Path
) -> None:
    hub.add("org/pickled", pickled)
    assert away(_scores, "org/pickled", cache_dir=tmp_path) == pytest.approx(_scores(str(checkpoint("stanford"))))
    assert "pytorch_model.bin" in hub.fetched("org/pickled")


def test_a_pickled_head_does_not_bring_a_pickled_backbone_along(hub: Hub, away: Away, tmp_path: Path) -> None:
    folder = checkpoints.build("pylate", tmp_path)
    dense = folder / "1_Dense"
    torch.save(load_file(dense / "model.safetensors"), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    _litter(folder)
    hub.add("org/half", folder)
    away(_query_length, "org/half", cache_dir=tmp_path)
    assert [path for path in hub.fetched("org/half") if path.endswith(".bin")] == ["1_Dense/pytorch_model.bin"]


def test_every_file_of_a_tokenizer_is_fetched(hub: Hub, away: Away, checkpoint: Any, tmp_path: Path) -> None:
    hub.add("org/python", checkpoint("stanford_python"))  # PhoBERT's, with bpe.codes
    expected = _scores(str(checkpoint("stanford_python")), query_length=40)
    assert away(_scores, "org/python", query_length=40, cache_dir=tmp_path) == pytest.approx(expected)


def test_code_is_fetched_on_consent_only(hub: Hub, away: Away, checkpoint: Any, tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(checkpoint("stanford"), folder)
    (folder / "modeling_own.py").write_text("raise SystemExit('this ran')\n")
    hub.add("org/coded", folder)
    away(_query_length, "org/coded", cache_dir=tmp_path)
    assert "modeling_own.py" not in hub.fetched("org/coded")
    away(_query_length, "org/coded", cache_dir=tmp_path, trust_remote_code=True)
    assert "modeling_own.py" in hub.fetched("org/coded")


def test_an_interrupted_download_is_refused_or_completed_never_used(
    hub: Hub, away: Away, checkpoint: Any, tmp_path: Path
) -> None:
    hub.add("org/partial", checkpoint("stanford"))
    before = away(_scores, "org/partial", cache_dir=tmp_path)
    weights = next(tmp_path.rglob("snapshots/*/model.safetensors"))
    weights.resolve().unlink()
    weights.unlink()
    with pytest.raises(CheckpointError, match="org/partial"):
        away(_scores, "org/partial", cache_dir=tmp_path, local_files_only=True)
    assert away(_scores, "org/partial", cache_dir=tmp_path) == before


def test_code_of_another_repository_lies_with_the_weights_and_is_told(hub: Hub, away: Away, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    code = "from transformers import BertModel\n\n\nclass OwnBertModel(BertModel):\n    pass\n"
    (tmp_path / "code" / "modeling_own.py").write_text(code)
    folder = checkpoints.build("stanford", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoModel": "org/code--modeling_own.OwnBertModel"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    hub.add("org/code", tmp_path / "code")
    hub.add("org/elsewhere", folder)
    options = {"trust_remote_code": True, "cache_dir": tmp_path / "cache"}
    shown = away(_shown, "org/elsewhere", **options)
    assert "runs code of org/code as it is on the default branch there" in shown
    assert list((tmp_path / "cache").rglob("modeling_own.py"))
    hub.sent.clear()
    assert away(_query_length, "org/elsewhere", local_files_only=True, **options) == 16
    assert hub.sent == []
