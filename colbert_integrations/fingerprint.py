"""Fingerprint: which model's vectors an index holds, so that another's are never mixed with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

__all__ = ["Fingerprint"]

# Settings that may differ from machine to machine, secrets, and what decides which code runs: else, whoever can write
# an index could run code where it is opened. Consent to that is given by the caller, never by a file.
_OF_THIS_MACHINE = frozenset(
    {"device", "dtype", "batch_tokens", "batch_size", "attn_implementation", "cache_bytes"}
    | {"cache_dir", "local_files_only", "token", "trust_remote_code"}
)


@dataclass(frozen=True)
class Fingerprint:
    """Identity of the vectors that a model makes, as plain data that is kept with an index.

    Attributes:
        digest: Hash of the weights and of everything in the spec that decides a vector; lengths and number formats
            apart, which change how much of a text is seen and how exactly, not what a vector means. Two fingerprints
            are equal if their digests are.
        model: Name or path of the checkpoint.
        dim: Dimension of its vectors.
        settings: Arguments with which ``ColBERT`` makes it again. Those that are a matter of the machine, and consent
            to run code, are left out, whoever gives them: an index may come from anywhere.
        encodings: In which ways documents of a store were encoded with it: lengths, windows, pooling, tokens. Empty in
            a model's own fingerprint.
    """

    digest: str
    model: str = field(compare=False)
    dim: int = field(compare=False)
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    encodings: Sequence[Mapping[str, Any]] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        kept = {name: value for name, value in self.settings.items() if name not in _OF_THIS_MACHINE}
        object.__setattr__(self, "settings", kept)

    def keeping_encodings_of(self, kept: Fingerprint | None) -> Fingerprint:
        """This fingerprint; where it has no ``encodings``, with those of ``kept``."""
        return self if kept is None or self.encodings else replace(self, encodings=kept.encodings)

    def with_encodings_of(self, other: Fingerprint | None) -> Fingerprint:
        """This fingerprint, with the encodings of both."""
        more = [] if other is None else [each for each in other.encodings if each not in self.encodings]
        return replace(self, encodings=[*self.encodings, *more])

    def as_json(self) -> dict[str, Any]:
        """The fingerprint as JSON-able data; ``Fingerprint(**data)`` makes it again."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.model} (dim {self.dim}, {self.digest})"
