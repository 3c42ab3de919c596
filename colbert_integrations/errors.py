"""The tree of errors: everything that this package raises on purpose.

::

    ColBERTError
    ├── InputError (ValueError)           an argument, a text or a vector that can't be used
    │   ├── ShapeError                    arrays whose shapes or dimensions don't fit
    │   ├── NonFiniteError                NaN or infinity where a score or a vector should be
    │   └── FilterError                   a filter with a key, operator or value that is not supported
    ├── CheckpointError                   a checkpoint that can't be used as it is
    │   ├── CheckpointNotFoundError       no such folder, repository, revision or file
    │   ├── MissingWeightsError           it would run with random or missing weights
    │   ├── UnsupportedCheckpointError    a kind of model that this package does not run
    │   └── RemoteCodeError               it needs code from the repository, without consent
    ├── StoreError                        an index that can't be opened, saved or used
    │   ├── DamagedIndexError             a file of it is missing or not as it was written
    │   ├── FingerprintError              it holds vectors of another model
    │   └── StoreServerError              the server that keeps it refused a request, or did not answer
    ├── AddError                          some documents could not be added; the others are
    ├── RemoteError                       a server that encodes or scores
    │   ├── RemoteRefusedError            it refused a request, and would refuse it again
    │   ├── RemoteUnavailableError        unreachable, too slow, overloaded or failing, after all retries
    │   └── RemoteMismatchError           it answers, but not as the server of this checkpoint
    └── MissingExtraError (ImportError)   an optional dependency is not installed

    TruncationWarning (UserWarning)       text was cut at the model's length
    StaleVectorsWarning (UserWarning)     vectors are kept that other settings may have made
    RepeatedIdsWarning (UserWarning)      documents were replaced by later ones with the same id

Each message names the value that was wrong and what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "AddError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ColBERTError",
    "DamagedIndexError",
    "FilterError",
    "FingerprintError",
    "InputError",
    "MissingExtraError",
    "MissingWeightsError",
    "NonFiniteError",
    "RemoteCodeError",
    "RemoteError",
    "RemoteMismatchError",
    "RemoteRefusedError",
    "RemoteUnavailableError",
    "RepeatedIdsWarning",
    "ShapeError",
    "StaleVectorsWarning",
    "StoreError",
    "StoreServerError",
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


class FilterError(InputError):
    """A filter uses a key, operator or value that filters do not support."""


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


class StoreError(ColBERTError):
    """An index can't be opened, saved or used."""


class DamagedIndexError(StoreError):
    """A file of a saved index is missing, or its content is not what was written."""


class FingerprintError(StoreError):
    """An index holds vectors of another model."""


class StoreServerError(StoreError):
    """The server that keeps an index refused a request, or did not answer.

    Args:
        message: What was asked, what came back, and what would help.
        status: The HTTP status of the answer, 503 for gRPC's UNAVAILABLE and so on. None: there was no answer.
        unsure: Whether what was asked may have been done nevertheless, by this try or one before it.
    """

    def __init__(self, message: str, status: int | None = None, unsure: bool = False) -> None:
        self.status = status
        self.unsure = unsure
        super().__init__(message)

    def __reduce__(self) -> tuple[type[StoreServerError], tuple[str, int | None, bool]]:
        return type(self), (str(self), self.status, self.unsure)


class AddError(ColBERTError):
    """Some documents could not be added; all others were.

    Args:
        failures: The id of each document that was refused, and why.
        added: Ids of the documents that are stored now, those that were there unchanged included.
        index: The ``ColBERTIndex`` that has them, to go on with where the call would have returned it. A pickle of
            the error has none.
    """

    def __init__(self, failures: Mapping[str, Exception], added: Sequence[str], index: Any = None) -> None:
        self.failures = dict(failures)
        self.added = list(added)
        self.index = index
        first = "; ".join(f"{_printable(name)}: {error}" for name, error in list(self.failures.items())[:3])
        more = f"; and {len(self.failures) - 3} more, see .failures" if len(self.failures) > 3 else ""
        total = len(self.failures) + len(self.added)
        some = "1 document" if total == 1 else f"{len(self.failures)} of {total} documents"
        others = "the others are" if len(self.added) > 1 else "the other one is"
        stored = f"; {others} stored, see .added" if self.added else ""
        super().__init__(f"{some} could not be added ({first}{more}){stored}")

    def __reduce__(self) -> tuple[type[AddError], tuple[dict[str, Exception], list[str]]]:
        return type(self), (self.failures, self.added)


class RemoteError(ColBERTError):
    """A server that encodes or scores does not do so.

    Args:
        message: Which server, what it was asked, what came back, and what would help.
        url: The server.
        status: The HTTP status of its answer. None: there was none.
    """

    def __init__(self, message: str, url: str, status: int | None = None) -> None:
        self.url = url
        self.status = status
        super().__init__(message)

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str, int | None]]:
        return type(self), (str(self), self.url, self.status)


class RemoteRefusedError(RemoteError):
    """A server refused a request: it is not what the server takes, or whoever sends it may not."""


class RemoteUnavailableError(RemoteError):
    """A server could not be reached, did not answer in time, is overloaded, or failed, after all retries."""


class RemoteMismatchError(RemoteError):
    """A server answers, but with something else than the vectors of this checkpoint."""


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


class StaleVectorsWarning(UserWarning):
    """Documents are not encoded again, though settings or the tokenizer have changed since they may have been."""


class RepeatedIdsWarning(UserWarning):
    """Documents that were added together had the same id and other texts: the last one is kept."""


def _printable(name: str) -> str:
    """A name that every stream takes: half a surrogate pair can't be encoded."""
    return name.encode("utf-8", "backslashreplace").decode()
