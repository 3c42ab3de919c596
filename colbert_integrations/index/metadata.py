"""Metadata: JSON data with string keys, checked when it comes in, so that it is the same in every store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError

__all__ = ["clone", "json_copy", "without_numpy"]

# What every store takes: by gRPC, Qdrant's messages may be 100 deep, and a level is three of them.
_MOST_LEVELS = 32


def without_numpy(value: object) -> Any:
    """A number, string or date of NumPy's, as tables hold them, in Python's own type; anything else as it is."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")  # one of nanoseconds would become a number
    return value.item() if isinstance(value, np.generic) else value


def _encodable(value: object) -> Any:
    plain = without_numpy(value)
    if plain is value:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return plain


_ENCODER = json.JSONEncoder(allow_nan=False, default=_encodable)


def json_copy(metadata: Mapping[str, Any] | None, document: str) -> dict[str, Any]:
    """Copy metadata as it would come back from a file.

    Args:
        metadata: JSON-able data with string keys. None: empty.
        document: What messages call it, such as ``"document 'a'"``.

    Returns:
        The same data in plain dictionaries and lists; numbers of NumPy as Python's.

    Raises:
        InputError: If it is not JSON, a key not a string, or it is nested deeper than 32 levels.

    Example:
        >>> json_copy({"pages": (1, 2)}, "document 'a'")
        {'pages': [1, 2]}
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InputError(f"the metadata of {document} must be a mapping, not {type(metadata).__name__}")
    _check_keys(metadata, document, _MOST_LEVELS)
    return {key: _value_copy(value, key, document) for key, value in metadata.items()}


def _value_copy(value: object, key: str, document: str) -> Any:
    try:
        return json.loads(_ENCODER.encode(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the metadata of {document} is not JSON at {key!r}: {error}; turn it into a string or a number, and "
            "NaN into None"
        ) from error


def _check_keys(value: object, document: str, levels: int) -> None:
    if not levels:
        raise InputError(f"the metadata of {document} is nested deeper than {_MOST_LEVELS} levels")
    # json.dumps would turn other keys into strings without a word.
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InputError(f"the metadata of {document} has the key {key!r}: keys must be strings")
            _check_keys(inner, document, levels - 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_keys(inner, document, levels - 1)


def clone(value: Any) -> Any:
    """Copy JSON data, many times faster than ``deepcopy``."""
    if isinstance(value, dict):
        return {key: clone(inner) for key, inner in value.items()}
    return [clone(inner) for inner in value] if isinstance(value, list) else value
