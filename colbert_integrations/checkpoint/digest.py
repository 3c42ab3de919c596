"""The digest of a checkpoint's weights: what tells two models apart that say the same of themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["weights_digest"]

_BLOCK_BYTES = 2**22


def weights_digest(folder: Path) -> str:
    """Hash the weight files of a checkpoint.

    Args:
        folder: Root of the checkpoint. Where a folder in it has safetensors, other formats beside them are copies of
            the same weights and don't count: some downloads leave them out.

    Returns:
        SHA-256 in hexadecimal, over the names of the files below the root and their bytes.
    """
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt"))
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    return [path for path in files if path.suffix == ".safetensors" or path.parent not in safe]
