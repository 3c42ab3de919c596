"""Settings: the arguments of a ColBERT as plain data that can be compared, shared, pickled and written as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from .checks import check_whole_number
from .errors import InputError
from .names import likely_name

__all__ = ["DEFAULT_MODEL", "STRINGS", "Settings"]

# 33M parameters: better than colbertv2.0 on BEIR by its authors' figures, and quick on a CPU.
DEFAULT_MODEL = "answerdotai/answerai-colbert-small-v1"

# The lowest value of each whole number; then, of the booleans, those for which None means: as the checkpoint says.
_NUMBERS = dict.fromkeys(("query_length", "document_length", "batch_tokens", "batch_size"), 1)
_NUMBERS |= {"truncate_dim": 1, "projection_dim": 1, "window_overlap": 0, "cache_bytes": 0}
_UNDECIDED = {"query_expansion", "attend_to_expansion_tokens"}
_SWITCHES = {"allow_unprojected", "local_files_only", "trust_remote_code"} | _UNDECIDED

STRINGS = {"device", "dtype", "query_marker", "document_marker", "query_prompt", "document_prompt", "language"}
STRINGS |= {"attn_implementation", "revision", "cache_dir"}
"""Of the settings, those that are strings, also where they look like numbers, as a revision may."""


@dataclass(frozen=True)
class Settings:
    """The arguments of a ``ColBERT``, all of them plain values; see there. Equal settings can share weights."""

    model: str
    device: str | None = None
    dtype: str | None = None
    query_length: int | None = None
    document_length: int | None = None
    long_documents: Literal["window", "truncate"] = "window"
    window_overlap: int | None = None
    batch_tokens: int | None = None
    batch_size: int | None = None
    query_marker: str | None = None
    document_marker: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    query_expansion: bool | None = None
    attend_to_expansion_tokens: bool | None = None
    skiplist_words: tuple[str, ...] | None = None
    truncate_dim: int | None = None
    projection_dim: int | None = None
    allow_unprojected: bool = False
    attn_implementation: str | None = None
    language: str | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False, compare=False)
    cache_dir: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InputError(f"model must be the name or path of a checkpoint, not {self.model!r}")
        if self.long_documents not in ("window", "truncate"):
            raise InputError(f"long_documents must be 'window' or 'truncate', not {self.long_documents!r}")
        for item in fields(self):
            _check(item.name, getattr(self, item.name))
        if self.token is not None and not isinstance(self.token, str):  # whose value is not for messages
            raise InputError(f"token must be a string, not {type(self.token).__name__}")

    def changed(self) -> dict[str, Any]:
        """The settings that are not at their defaults, as JSON-able values, without the token."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "token"}
        defaults = {item.name: item.default for item in fields(self)}
        changed = {name: value for name, value in values.items() if value != defaults[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Make plain, hashable settings from what a caller may pass.

        Args:
            given: Arguments of ``ColBERT`` by name, paths, devices and dtypes in any form; None is the default.

        Returns:
            The settings.

        Raises:
            InputError: If an argument is unknown or invalid.
        """
        names = {item.name for item in fields(cls)}
        unknown = {name: likely_name(name, names) for name in sorted(set(given) - names)}
        if unknown:
            said = [f"{name} (is it {meant}?)" if meant else name for name, meant in unknown.items()]
            raise InputError(f"unknown argument {', '.join(said)}")
        values = {name: value for name, value in given.items() if value is not None or name == "model"}
        if values.get("token") == "":  # as an environment gives one that is not set
            del values["token"]
        for name in ("model", "cache_dir"):
            if isinstance(values.get(name), os.PathLike):
                values[name] = os.fspath(values[name])
        for name in ("device", "dtype"):
            values[name] = str(values.get(name, "auto")).removeprefix("torch.")
            values[name] = None if values[name] == "auto" else values[name]
        if "skiplist_words" in values:
            words = values["skiplist_words"]
            if isinstance(words, (set, frozenset)):  # whose order is another in each process, and would be hashed
                words = sorted(words, key=str)
            several = isinstance(words, Iterable) and not isinstance(words, str)
            values["skiplist_words"] = tuple(words) if several else words
        return cls(**values)


def _check(name: str, value: object) -> None:
    """Refuse what would be taken for something else: "false", from a file or an environment, counts as true."""
    if name in _SWITCHES and not isinstance(value, bool) and (value is not None or name not in _UNDECIDED):
        raise InputError(f"{name} must be True or False, not {value!r}")
    if value is None:
        return
    if name in _NUMBERS:
        check_whole_number(name, value, _NUMBERS[name])
    elif name in STRINGS and not isinstance(value, str):
        raise InputError(f"{name} must be a string, not {value!r}")
    elif name == "skiplist_words" and not (isinstance(value, tuple) and all(isinstance(word, str) for word in value)):
        raise InputError(f"skiplist_words must be a list of words, not {value!r}")
