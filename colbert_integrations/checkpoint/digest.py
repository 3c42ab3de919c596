"""The digest of a checkpoint's weights: what tells two models apart that say the same of themselves."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path

__all__ = ["OTHER_FOLDERS", "PICKLED", "WEIGHTS", "weights_digest"]

# Here and in what ``hub.py`` downloads: weights, and those that count only where no safetensors are beside them.
WEIGHTS, PICKLED = ("*.safetensors", "colbert_linear.pt"), "pytorch_model*.bin"
# Folders of exports and of training state, which are left out.
OTHER_FOLDERS = ("onnx", "openvino", "coreml", "checkpoint-*")

_BLOCK_BYTES = 2**22


def weights_digest(folder: Path) -> str:
    """Hash the weight files of a checkpoint.

    Args:
        folder: Root of the checkpoint. Exports and what training left there don't count. Where a folder in it has
            safetensors, ``pytorch_model`` files beside them are copies of the same weights and don't count either: some
            downloads leave them out.

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
    found = [path for pattern in (*WEIGHTS, PICKLED) for path in folder.rglob(pattern) if not _is_other(path, folder)]
    # By its parts: paths themselves are compared without case on Windows, and the digest would be another there.
    files = sorted(found, key=lambda path: path.parts)
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    return [path for path in files if path.parent not in safe or not fnmatch(path.name, PICKLED)]


def _is_other(path: Path, folder: Path) -> bool:
    return any(fnmatch(part, pattern) for part in path.relative_to(folder).parts[:-1] for pattern in OTHER_FOLDERS)
