"""The tree of errors: everything that this package raises on purpose.

::

    ColBERTError
    ├── InputError (ValueError)           an argument, a text or a vector that can't be used
    │   ├── ShapeError                    arrays whose shapes or dimensions don't fit
    │   └── NonFiniteError                NaN or infinity where a score should be
    ├── CheckpointError                   a checkpoint that can't be used as it is
    │   ├── CheckpointNotFoundError       no such folder, repository, revision or file
    │   ├── MissingWeightsError           it would run with random or missing weights
    │   ├── UnsupportedCheckpointError    a kind of model that this package does not run
    │   └── RemoteCodeError               it needs code from the repository, without consent
    └── MissingExtraError (ImportError)   an optional dependency is not installed

    TruncationWarning (UserWarning)       text was cut at the model's length

Each message names the value that was wrong and what would be right.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CheckpointNotFoundError",
    "ColBERTError",
    "InputError",
    "MissingExtraError",
    "MissingWeightsError",
    "NonFiniteError",
    "RemoteCodeError",
    "ShapeError",
    "TruncationWarning",
    "UnsupportedCheckpointError",
]


class ColBERTError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(ColBERTError, ValueError):
    """An argument, a text or a vector can't be used."""


class ShapeError(InputError):
    """Arrays have shapes or dimensions that don't fit together."""


class NonFiniteError(InputError):
    """A vector or a score is NaN or infinite."""


class CheckpointError(ColBERTError):
    """A checkpoint can't be used as it is."""


class CheckpointNotFoundError(CheckpointError):
    """A folder, repository, revision or file does not exist or can't be reached."""


class MissingWeightsError(CheckpointError):
    """A checkpoint would run with random or missing weights."""


class UnsupportedCheckpointError(CheckpointError):
    """A checkpoint is of a kind that this package does not run."""


class RemoteCodeError(CheckpointError):
    """A checkpoint needs code from its repository and the caller did not consent."""


class MissingExtraError(ColBERTError, ImportError):
    """An optional dependency is not installed.

    Args:
        feature: What the user wanted, as the subject of the message.
        extra: The extra of this package that installs it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        self.feature = feature
        self.extra = extra
        super().__init__(f"{feature} needs an optional dependency: pip install 'colbert-integrations[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.feature, self.extra)


class TruncationWarning(UserWarning):
    """Text was cut at the model's length: what lies beyond did not count."""
