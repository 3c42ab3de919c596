"""Checkpoints that are not whole, in ways that transformers lets pass or tells by errors of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations.errors import CheckpointError, InputError, MissingWeightsError

TOKENIZER_FILES = ["tokenizer.json", "vocab.txt", "special_tokens_map.json", "tokenizer_config.json"]


@pytest.mark.parametrize("kept", [[], ["tokenizer_config.json"]])
def test_a_folder_without_a_vocabulary_is_refused(kept: list[str], tmp_path: Path) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    for name in set(TOKENIZER_FILES) - set(kept):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"no vocabulary|can't read the tokenizer"):
        ColBERT(folder, device="cpu")


def test_a_marker_without_an_embedding_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.build("pylate", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("embeddings.weight"))
    config = (folder / "config.json").read_text()
    rows, left = len(tensors[name]), AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("[D] ")
    tensors[name] = tensors[name][:left].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert f'"vocab_size": {rows}' in config
    (folder / "config.json").write_text(config.replace(f'"vocab_size": {rows}', f'"vocab_size": {left}'))
    with pytest.raises(MissingWeightsError, match=rf"below {left}, and none for its .*document marker {left}.*resized"):
        ColBERT(folder, device="cpu")


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"\x00" * 9]
)
def test_weights_that_are_cut_or_pointers_are_an_error_of_ours(content: bytes, tmp_path: Path) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged|can't load"):
        ColBERT(folder, device="cpu")


@pytest.mark.parametrize("token", ["hf_SECRET ", "hf_SEC RET", "hf_SECRET\n"])
def test_a_token_that_cannot_be_sent_is_refused_unseen(token: str) -> None:
    with pytest.raises(InputError, match="call .strip") as caught:
        ColBERT("org/closed", device="cpu", token=token)
    assert "SEC" not in str(caught.value)


@pytest.mark.parametrize("token", [True, 5])
def test_a_token_is_a_string(token: Any) -> None:
    with pytest.raises(InputError, match="token must be a string"):
        ColBERT("org/closed", device="cpu", token=token)


def test_an_empty_token_is_none(tmp_path: Path) -> None:
    assert ColBERT(checkpoints.build("stanford", tmp_path), device="cpu", token="").settings.token is None
