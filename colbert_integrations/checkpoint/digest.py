"""The digests of a checkpoint: of its weights, and of all that decides what its vectors mean."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import MODULES
from .spec import ColBERTSpec

__all__ = ["OTHER_FOLDERS", "PICKLED", "WEIGHTS", "WeightFiles", "model_digest", "weights_digest"]

# Here and in what ``hub.py`` downloads: weights, and those that count only where no safetensors are beside them.
WEIGHTS, PICKLED = ("*.safetensors", "colbert_linear.pt"), "pytorch_model*.bin"
# Folders of exports and of training state, which are left out.
OTHER_FOLDERS = ("onnx", "openvino", "coreml", "checkpoint-*")

_BLOCK_BYTES = 2**22

# Of a spec, what does not change the meaning of a vector: where it was read from, how much of a text is seen, and in
# which number format.
_NOT_IN_FINGERPRINT = frozenset(
    {"name", "layout", "backbone", "sources", "notes", "matryoshka_dims", "dtype", "tokenizer_digest"}
    | {"query_length", "document_length", "expansion_length"}
)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weight files of a checkpoint as they were at a time.

    Attributes:
        folder: Root of the checkpoint.
        states: Path, size in bytes and time of the last change in nanoseconds of each file.
    """

    folder: Path
    states: tuple[tuple[Path, int, int], ...]

    @classmethod
    def of(cls, folder: Path) -> WeightFiles:
        """Those of a checkpoint now.

        Args:
            folder: Its root.

        Returns:
            The files; none if there is no such folder, or no checkpoint in it.
        """
        # Any other folder is refused by whoever reads it; it may be a whole disk, which nobody should go through.
        if not any((folder / name).is_file() for name in ("config.json", MODULES)):
            return cls(folder, ())
        stats = [(path, path.stat()) for path in _weight_files(folder)]
        return cls(folder, tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats))

    def changed(self) -> bool:
        """Whether there are other files now, or other contents: by their sizes and times, without reading them.

        Returns:
            True if so.
        """
        return WeightFiles.of(self.folder) != self

    def digest(self) -> str:
        """The hash of these files, as ``weights_digest`` makes it.

        Returns:
            SHA-256 in hexadecimal.

        Raises:
            CheckpointError: If they are not as they were: it would be that of other weights.
        """
        digest = weights_digest(self.folder)
        if self.changed():
            raise CheckpointError(
                f"the weight files in {self.folder} are not those that were loaded, so it can't be said whose vectors "
                "these are: close() the model, which then loads what is there, or put the files back"
            )
        return digest


def model_digest(spec: ColBERTSpec, weights: WeightFiles) -> str:
    """Hash what decides what a model's vectors mean: equal for two models whose vectors may be mixed.

    Args:
        spec: What its checkpoint says, overrides applied.
        weights: Its weight files, as they were loaded.

    Returns:
        32 hexadecimal digits.

    Raises:
        CheckpointError: If the files are not as they were.
    """
    meant = json.dumps({"weights": weights.digest(), **_meaning(spec)}, sort_keys=True)
    return hashlib.sha256(meant.encode()).hexdigest()[:32]


def _meaning(spec: ColBERTSpec) -> dict[str, Any]:
    """Those attributes of a spec that decide what a vector means.

    Attributes that were added later are among them only where they say something, so older fingerprints stay as they
    were.
    """
    own = {name: value for name, value in asdict(spec).items() if name not in _NOT_IN_FINGERPRINT}
    if spec.language is None:
        del own["language"]
    if spec.sources.get("projection") == "argument":
        own["projection_made"] = "positive diagonal"  # vectors of before had LAPACK's signs and don't fit these
    return own


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
    found = [
        path
        for pattern in (*WEIGHTS, PICKLED)
        for path in folder.rglob(pattern)
        if not _is_other(path, folder) and path.is_file()  # not a link that leads nowhere: whoever loads it says so
    ]
    # By its parts: paths themselves are compared without case on Windows, and the digest would be another there.
    files = sorted(found, key=lambda path: path.parts)
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    return [path for path in files if path.parent not in safe or not fnmatch(path.name, PICKLED)]


def _is_other(path: Path, folder: Path) -> bool:
    return any(fnmatch(part, pattern) for part in path.relative_to(folder).parts[:-1] for pattern in OTHER_FOLDERS)
