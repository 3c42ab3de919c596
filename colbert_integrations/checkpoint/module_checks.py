"""The modules of a native checkpoint: refused where one of them, or their order, is not what is computed here."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UnsupportedCheckpointError
from .files import MODULES, Files, Module

__all__ = ["check_chain"]

# What follows what; only layers of the projection may come several times. The mask says which tokens count, which
# nothing before pooling looks at, so it may stand anywhere up to there.
_ORDER = ("Transformer", "Dense", "Normalize", "HierarchicalTokenPooling")
_MASK = "MultiVectorMask"
_KEY = "token_embeddings"
# What sentence-transformers assumes where the file is silent.
_DEFAULT_KEYS: Mapping[str, str] = {"Dense": _KEY, "Normalize": "sentence_embedding"}
_INSTEAD = "Score with sentence-transformers, or save it again"


def check_chain(files: Files) -> None:
    """Raise unless a native checkpoint's modules are computed here as they are listed.

    Args:
        files: The checkpoint's files.

    Raises:
        UnsupportedCheckpointError: If a module is of another kind, stands elsewhere, or works on something else than
            the vectors of tokens.
    """
    for module in files.modules:
        _check_kind(files, module)
        _check_keys(files, module)
    _check_order(files)


def _check_kind(files: Files, module: Module) -> None:
    package = module.type.partition(".")[0]
    known = module.kind in (*_ORDER, _MASK) and package in ("sentence_transformers", "pylate")
    if not known:
        raise UnsupportedCheckpointError(
            f"{files.name} has a module {module.type!r} in {MODULES}, and only {', '.join((*_ORDER, _MASK))} of "
            f"sentence-transformers are computed here. {_INSTEAD} without that module"
        )


def _check_keys(files: Files, module: Module) -> None:
    if module.kind not in _DEFAULT_KEYS:
        return
    config = files.folder.mapping(module.config_file)
    read = config.get("module_input_name") or _DEFAULT_KEYS[module.kind]
    written = config.get("module_output_name") or read
    for name, key in (("module_input_name", read), ("module_output_name", written)):
        if key != _KEY:
            raise UnsupportedCheckpointError(
                f"{files.name} has a {module.kind} whose {name} is {key!r} ({module.config_file}), and only "
                f"{_KEY!r} is computed here. {_INSTEAD} with that name"
            )


def _check_order(files: Files) -> None:
    kinds = [module.kind for module in files.modules]
    others = [kind for kind in kinds if kind != _MASK]
    in_order = others == sorted(others, key=_ORDER.index) and kinds[:1] in ([], ["Transformer"])
    once = all(kinds.count(kind) <= 1 for kind in kinds if kind != "Dense")
    masked_first = _MASK not in kinds or "HierarchicalTokenPooling" not in kinds[: kinds.index(_MASK)]
    if not (in_order and once and masked_first):
        raise UnsupportedCheckpointError(
            f"{files.name} runs {', '.join(kinds)} ({MODULES}), an order that is not computed here. {_INSTEAD} as "
            f"Transformer, Dense, {_MASK}, Normalize, HierarchicalTokenPooling"
        )
