"""Reading files of a checkpoint folder: JSON, names of weights, single tensors. Knows file names, no formats."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, CheckpointNotFoundError, MissingWeightsError
from .json_types import expect_type

__all__ = ["Folder"]

_SINGLE = "model.safetensors"
_SHARDED = "model.safetensors.index.json"
_PICKLED = "pytorch_model.bin"
_PICKLED_SHARDED = "pytorch_model.bin.index.json"


class Folder:
    """A checkpoint folder.

    Args:
        path: The folder; must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._weight_files: dict[str, dict[str, Path]] = {}

    def has(self, name: str) -> bool:
        """Tell whether a file exists, by its path within the folder."""
        return (self.path / name).is_file()

    def json(self, name: str) -> Any:
        """Read a JSON file.

        Args:
            name: Path within the folder.

        Returns:
            What the file holds, or None where there is no such file.

        Raises:
            CheckpointError: If the file is not JSON.
        """
        if not self.has(name):
            return None
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.path / name} is not JSON: {error}") from error

    def mapping(self, name: str) -> dict[str, Any]:
        """Read a JSON file that holds an object.

        Args:
            name: Path within the folder.

        Returns:
            The object; an empty one where there is no such file.

        Raises:
            CheckpointError: If the file holds something else.
        """
        value = self.json(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path / name} must hold a JSON object, not a {type(value).__name__}")
        return value

    def objects(self, name: str) -> list[dict[str, Any]]:
        """Read a JSON file that holds a list of objects.

        Args:
            name: Path within the folder.

        Returns:
            The objects; none where there is no such file.

        Raises:
            CheckpointError: If the file holds something else.
        """
        value = self.json(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise CheckpointError(f"{self.path / name} must hold a JSON list of objects")
        return value

    def weight_names(self, subfolder: str = "") -> frozenset[str]:
        """Names of the tensors stored in a subfolder, without reading them where the format allows.

        Args:
            subfolder: Path within the folder; ``""`` is its root.

        Returns:
            The names; none where there are no weight files.

        Raises:
            CheckpointError: If a weight file can't be read.
        """
        return frozenset(self._files_by_tensor(subfolder))

    def tensors(self, names: Iterable[str], subfolder: str = "") -> dict[str, torch.Tensor]:
        """Read some tensors of a subfolder.

        Args:
            names: Names of tensors.
            subfolder: Path within the folder; ``""`` is its root.

        Returns:
            The tensors by name, on the CPU in the dtype they are stored in.

        Raises:
            MissingWeightsError: If one is not stored there.
            CheckpointError: If a weight file can't be read.
        """
        files, found = self._files_by_tensor(subfolder), {}
        for name in names:
            if name not in files:
                raise MissingWeightsError(
                    f"{self.path / subfolder} has no tensor {name!r}; it has {_some(files)}. "
                    "Download the checkpoint again, or choose another one."
                )
            found[name] = _read_tensor(files[name], name)
        return found

    def pickled(self, name: str) -> dict[str, torch.Tensor]:
        """Read a file of pickled tensors, refusing any other object in it.

        Args:
            name: Path within the folder.

        Returns:
            The tensors by name, on the CPU.

        Raises:
            CheckpointError: If the file is not a mapping of names to tensors.
        """
        return _read_pickled(self.path / name)

    def _files_by_tensor(self, subfolder: str) -> dict[str, Path]:
        if subfolder not in self._weight_files:
            self._weight_files[subfolder] = self._find_weights(self.path / subfolder)
        return self._weight_files[subfolder]

    def _find_weights(self, path: Path) -> dict[str, Path]:
        # Safetensors first: it is what transformers reads where both exist.
        if (path / _SINGLE).is_file():
            return dict.fromkeys(_safetensors_names(path / _SINGLE), path / _SINGLE)
        for index in (_SHARDED, _PICKLED_SHARDED):
            if (path / index).is_file():
                return self._shards(path, index)
        if (path / _PICKLED).is_file():
            return dict.fromkeys(_read_pickled(path / _PICKLED), path / _PICKLED)
        return {}

    def _shards(self, path: Path, index: str) -> dict[str, Path]:
        said = self.mapping(str((path / index).relative_to(self.path))).get("weight_map", {})
        shards = {
            name: expect_type(file, str, f"{path / index}: {name}")
            for name, file in expect_type(said, dict, f"{path / index}: weight_map").items()
        }
        missing = sorted({shard for shard in shards.values() if not (path / shard).is_file()})
        if missing:
            raise CheckpointNotFoundError(f"{path} lacks {_some(missing)}, which {index} names")
        return {name: path / shard for name, shard in shards.items()}


def _safetensors_names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _read_tensor(path: Path, name: str) -> torch.Tensor:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        return tensor
    tensors = _read_pickled(path)
    if name not in tensors:
        raise MissingWeightsError(f"{path} has no tensor {name!r}, though the index of the weights says so")
    return tensors[name].clone()


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        # Mapped, so that looking at names does not read gigabytes; only the zip format (torch 1.6 on) can be.
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load has no error class of its own for a refused or damaged pickle
        raise CheckpointError(f"{path} is not a plain file of tensors: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise CheckpointError(f"{path} must hold tensors by name, not a {type(value).__name__}")
    return value


def _some(names: Iterable[str], limit: int = 6) -> str:
    ordered = sorted(names)
    return (", ".join(ordered[:limit]) or "none") + (f" and {len(ordered) - limit} more" * (len(ordered) > limit))
