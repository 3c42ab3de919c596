"""Texts from files and from stdin: whole, line by line, or as JSON lines. What can't be read is told and left out."""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, TypeAlias

from ..errors import InputError
from .output import Output

__all__ = [
    "STDIN",
    "Failed",
    "Form",
    "Text",
    "form_of",
    "opened",
    "read",
    "reason",
    "refuse",
    "resolved",
    "warn_of_whole_files",
]

STDIN = "-"

Form: TypeAlias = Literal["text", "lines", "jsonl"]
"""Of a file: one text; one text a line; a JSON object a line."""

Failed: TypeAlias = Callable[[str, str], None]
"""Is told where something could not be read, and why."""

_JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
# Files of many entries, which are one text all the same unless the user says how to take them apart.
_OF_ENTRIES = (".json", ".csv", ".tsv")


@dataclass(frozen=True)
class Text:
    """A text and where it comes from.

    Attributes:
        text: The text.
        source: The file as it was given, ``-`` for stdin.
        line: The number of its line, from 1. None: it is the whole file.
        fields: Of a JSON line, everything.
    """

    text: str
    source: str
    line: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where it stands, as compilers write it: ``notes.txt:12``."""
        return _place(self.source, self.line)

    @property
    def id(self) -> Any:
        """What a JSON line has as its ``id``, or ``_id`` as in BEIR's; None if it has none."""
        given = self.fields.get("id")
        return self.fields.get("_id") if given is None else given


def _place(source: str, line: int | None) -> str:
    return source if line is None else f"{source}:{line}"


def refuse(place: str, why: str) -> NoReturn:
    """Make an error of what can't be read; a ``Failed``."""
    raise InputError(f"{place}: {why}")


def form_of(file: str, wanted: Form | None) -> Form:
    """In which form a file's texts are.

    Args:
        file: Its name.
        wanted: What the user said of all files. None: nothing.

    Returns:
        JSON lines where its name or the user says so, else what the user wants, else one text.
    """
    return "jsonl" if file.lower().endswith(_JSON_LINES) else wanted or "text"


def warn_of_whole_files(files: Iterable[str], wanted: Form | None, output: Output) -> None:
    """Warn of each file of many entries that is taken as one document.

    Args:
        files: What the user named; of folders and what is not there nothing is said.
        wanted: What the user said of all files. None: nothing.
        output: Where it is told.
    """
    for file in dict.fromkeys(files) if wanted is None else ():
        if file.lower().removesuffix(".gz").endswith(_OF_ENTRIES) and os.path.isfile(file):
            output.warn(
                f"{file} is taken as one document; to have one for each entry, write them as JSON lines (.jsonl, or "
                "--jsonl), or say --lines, which makes one of each line"
            )


def read(file: str, form: Form, failed: Failed) -> Iterator[Text]:
    r"""Read texts, as they are needed.

    Args:
        file: A file, decompressed if its name ends with ``.gz``, or ``-``.
        form: In which form they are.
        failed: Is told of a file, or a line of it, that can't be read.

    Yields:
        The texts, line ends as ``\n``. Of lines those that are not blank.

    Raises:
        InputError: If it is stdin, and that is closed.
    """
    try:
        with opened(file) as stream:
            if form == "text":
                yield from _checked(file, None, _text, stream.read(), failed)
            else:
                for number, line in enumerate(stream, 1):
                    if line.removeprefix(BOM_UTF8).strip():
                        yield from _checked(file, number, _line if form == "lines" else _json_line, line, failed)
    except (OSError, EOFError, zlib.error) as error:
        failed(file, reason(error))


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """Open a file, or stdin, to be read as bytes.

    Args:
        file: Its name.

    Yields:
        The stream.

    Raises:
        InputError: If it is stdin, and that is closed.
    """
    if file == STDIN:
        if sys.stdin is None:
            raise InputError("- can't be read: stdin is closed")
        yield sys.stdin.buffer
    elif file.lower().endswith(".gz"):
        with gzip.open(file) as unzipped:
            yield unzipped  # type: ignore[misc]  # a GzipFile is a stream in all that is used here
    else:
        with open(file, "rb") as plain:
            yield plain


def reason(error: Exception) -> str:
    """What an error of the system says, without the file's name."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"can't be read: {said}"


def resolved(path: str | Path) -> Path:
    """A path without links; of one that leads round in a circle, as much as can be told.

    Args:
        path: The path.

    Returns:
        The path; ``Path.resolve`` would raise an error for such a circle, or not, as the version of Python has it. Of a
        link that may not be read, the path of the link.
    """
    try:
        return Path(os.path.realpath(path))
    except OSError:
        return Path(os.path.abspath(path))


Content: TypeAlias = tuple[str, dict[str, Any]]


def _checked(
    file: str, number: int | None, content: Callable[[bytes], Content], raw: bytes, failed: Failed
) -> Iterator[Text]:
    try:
        text, fields = content(raw)
        yield Text(text, file, number, fields)
    except InputError as error:
        failed(_place(file, number), str(error))


def _text(raw: bytes) -> Content:
    return _decoded(raw).replace("\r\n", "\n"), {}


def _line(raw: bytes) -> Content:
    return _decoded(raw).rstrip("\r\n"), {}


def _json_line(raw: bytes) -> Content:
    try:
        fields = json.loads(_decoded(raw), parse_float=_finite, parse_constant=_refuse_constant)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise InputError('is not a JSON object with a "text" that is a string')
    if b"\\u" in raw:
        _check_unicode(fields)
    return fields["text"], fields


def _decoded(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text: byte 0x{raw[error.start]:02x} at {error.start}") from error
    if "\0" in text:
        raise InputError(f"is not text: it has a NUL character at {text.index(chr(0))}")
    return text


def _refuse_constant(name: str) -> None:
    raise InputError(f"is not JSON, which has no {name}")


def _finite(number: str) -> float:
    """A number, unless it would be read as infinity, which can't be written as JSON again."""
    if not math.isfinite(read := float(number)):
        raise InputError(f"has a number that is too large: {number}")
    return read


def _check_unicode(fields: dict[str, Any]) -> None:
    """Refuse halves of characters, which JSON's escapes can spell and UTF-8 can't."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("is not valid Unicode: it has half a surrogate pair") from error
