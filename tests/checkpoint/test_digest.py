"""The digest is of the weights that are loaded, wherever the folder comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations.checkpoint import weights_digest
from colbert_integrations.errors import CheckpointNotFoundError


@pytest.mark.parametrize("layout", ["stanford", "pylate", "bge", "native"])
def test_exports_and_leftovers_of_training_do_not_count(layout: str, tmp_path: Path) -> None:
    folder = checkpoints.build(layout, tmp_path)
    before = weights_digest(folder)
    for name in (
        *("openvino/openvino_model.bin", "onnx/model.bin", "checkpoint-500/model.safetensors"),
        *("onnx/model.safetensors", "openvino/model.safetensors", "coreml/model.safetensors"),
        *("checkpoint-500/optimizer.pt", "optimizer.pt", "training_args.bin", "runs/x.pt"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"other")
    assert weights_digest(folder) == before


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("pylate", ["1_Dense/model.safetensors", "model.safetensors"]),
        ("bge", ["colbert_linear.pt", "model.safetensors"]),  # the head in a format of its own
    ],
)
def test_every_weight_counts(layout: str, names: list[str], checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoints.build(layout, tmp_path)
    before = weights_digest(folder)
    said = b"".join(name.encode() + (folder / name).read_bytes() for name in names)
    assert before == hashlib.sha256(said).hexdigest()
    for path in (folder / name for name in names):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert weights_digest(folder) != before
        path.write_bytes(content)
    assert weights_digest(folder) == before == weights_digest(checkpoint(layout))


def test_a_folder_that_is_called_like_an_export_counts_as_any_other(tmp_path: Path) -> None:
    folder = checkpoints.build("stanford", tmp_path / "checkpoint-500" / "onnx")
    assert weights_digest(folder) == weights_digest(checkpoints.build("stanford", tmp_path))


def test_a_large_file_counts_to_its_end(tmp_path: Path) -> None:
    content = b"\0" * 2**23 + b"end"  # more than is read at once
    (tmp_path / "model.safetensors").write_bytes(content)
    assert weights_digest(tmp_path) == hashlib.sha256(b"model.safetensors" + content).hexdigest()


def test_a_folder_that_is_no_checkpoint_is_not_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.build("stanford", tmp_path)

    def gone(path: Path, pattern: str) -> list[Path]:
        raise FileNotFoundError(path)  # as on a whole disk, of which something goes all the time

    monkeypatch.setattr(type(tmp_path), "rglob", gone)
    with pytest.raises(CheckpointNotFoundError, match=r"has no config\.json"):
        ColBERT(tmp_path, device="cpu")


class Caseless(type(Path())):  # type: ignore[misc]
    """A path as Windows compares them."""

    def __lt__(self, other: Path) -> bool:
        return str(self).lower() < str(other).lower()


def test_it_is_the_same_where_case_does_not_count(tmp_path: Path) -> None:
    folder = checkpoints.build("pylate", tmp_path)
    (folder / "1_Dense").rename(folder / "Z_Dense")  # before model.safetensors, unless the case does not count
    assert weights_digest(Caseless(folder)) == weights_digest(folder)


def test_pickled_copies_count_only_where_nothing_else_is(tmp_path: Path) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    before = weights_digest(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a copy")
    assert weights_digest(folder) == before
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"other")
    assert weights_digest(folder) == hashlib.sha256(b"pytorch_model.bin" + b"a copy").hexdigest()


def test_pickled_shards_count(tmp_path: Path) -> None:
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    said = b"".join(name.encode() + b"half" for name in names)
    assert weights_digest(tmp_path) == hashlib.sha256(said).hexdigest()


def test_a_pickled_head_counts_beside_a_backbone_in_safetensors(tmp_path: Path) -> None:
    folder = checkpoints.build("pylate", tmp_path)
    (folder / "1_Dense" / "model.safetensors").unlink()
    digests = set()
    for content in (b"one head", b"another"):
        (folder / "1_Dense" / "pytorch_model.bin").write_bytes(content)
        digests.add(weights_digest(folder))
    assert len(digests) == 2
