"""Documents for an index from what the user named: folders of text files, files, JSON lines, stdin.

A document's id does not depend on where it is read from on this machine, so that reading it again stores it once:
``FOLDER/PATH``, by the folder's name and the path within, or the name of a file; of a JSON line its ``id`` or ``_id``;
of a line without one, a hash of what it says.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..errors import InputError
from .reading import STDIN, Failed, Form, Text, form_of, opened, read, reason, resolved

__all__ = ["Corpus"]


@dataclass(frozen=True)
class _File:
    """A file to read, and its name in ids."""

    path: str
    name: str
    form: Form


class Corpus:
    """The documents of some sources, in order.

    Args:
        sources: Folders, files and ``-``.
        form: In which form texts are, where their files' names don't tell. None: a file is one document, stdin is JSON
            lines.
        globs: Patterns of files to take of folders. Empty: all, but hidden ones.
        with_title: Whether the title of a JSON line goes before its text.
        leave_out: Folders and files to leave out of folders: what is written meanwhile.
        failed: Is told of what can't be read.

    Raises:
        InputError: If a source is not there, or two of them would give their documents the same ids.

    Attributes:
        unread: How many could not be read so far.
    """

    def __init__(
        self,
        sources: Sequence[str],
        form: Form | None,
        globs: Sequence[str],
        *,
        with_title: bool,
        leave_out: Collection[Path],
        failed: Failed,
    ) -> None:
        self._form, self._globs, self._with_title = form, globs, with_title
        self._leave_out, self._tell = leave_out, failed
        self.unread = 0
        self._check_names(sources)
        self._files = [file for source in sources for file in self._files_of(source)]

    def count(self) -> int | None:
        """How many documents there are, by reading what has to be read for it; None where that can't be read twice."""
        if not all(os.path.isfile(file.path) for file in self._files):  # stdin, pipes
            return None
        return sum(1 if file.form == "text" else _count_lines(file.path) for file in self._files)

    def documents(self) -> Iterator[dict[str, Any]]:
        """Read the documents.

        Yields:
            Mappings with ``text``, and ``id`` and other keys if they have them.
        """
        for file in self._files:
            for text in read(file.path, file.form, self._failed):
                try:
                    yield self._document(file, text)
                except InputError as error:
                    self._failed(text.place, str(error))

    def _failed(self, place: str, why: str) -> None:
        self.unread += 1
        self._tell(place, why)

    # -------------------------------------------------------------------------------------------------------- files

    def _check_names(self, sources: Sequence[str]) -> None:
        """Refuse sources whose documents would replace each other; those of JSON lines bring their own ids."""
        named: dict[str, str] = {}
        for source in sources:
            name = _name_of(source)
            if name in named and (source == STDIN or os.path.isdir(source) or self._form_of(Path(source)) != "jsonl"):
                raise InputError(
                    f"{named[name]} and {source} have the same name, by which their documents are told apart: give a "
                    "folder that holds both"
                )
            named[name] = source

    def _files_of(self, source: str) -> list[_File]:
        if source == STDIN:
            return [_File(STDIN, STDIN, self._form or "jsonl")]
        name = _name_of(source)
        if os.path.isdir(source):
            inner = sorted(self._walk(Path(source)))
            return [_File(str(source / path), _spelt(name / path), self._form_of(path)) for source, path in inner]
        if not os.path.lexists(source):  # a link that leads nowhere is told when it is read
            raise InputError(f"{source} is not there: a source is a folder, a file, or - for stdin")
        return [_File(source, _spelt(PurePath(name)), self._form_of(PurePath(source)))]

    def _form_of(self, path: PurePath) -> Form:
        return form_of(path.name, self._form)

    def _walk(self, root: Path) -> Iterator[tuple[Path, PurePath]]:
        """The files below a folder that are wanted: the folder, and the path within."""

        def failed(error: OSError) -> None:
            if error.filename == str(root):
                raise InputError(f"{root} {reason(error)}") from error
            self._failed(str(error.filename), reason(error))

        for folder, folders, files in os.walk(root, onerror=failed):
            here, place = Path(folder), resolved(folder)
            within = here.relative_to(root)
            folders[:] = [name for name in folders if self._is_admitted(name, resolved(here / name))]
            for name in files:
                path = here / name
                # Resolving each file of a large tree would take most of the time.
                target = resolved(path) if os.path.islink(path) else place / name
                if self._is_admitted(name, target) and self._is_wanted(within / name) and _may_be_read(path):
                    yield root, within / name

    def _is_admitted(self, name: str, target: Path) -> bool:
        """Whether a name may be a document; ``target`` is what it leads to."""
        return not name.startswith(".") and target not in self._leave_out

    def _is_wanted(self, path: PurePath) -> bool:
        return not self._globs or any(path.match(glob) for glob in self._globs)

    # ----------------------------------------------------------------------------------------------------- documents

    def _document(self, file: _File, text: Text) -> dict[str, Any]:
        if file.form == "jsonl":
            return self._of_line(text.fields)
        if file.form == "text":
            return {"id": file.name, "text": text.text}
        return {"text": text.text} if file.path == STDIN else {"text": text.text, "file": file.name}

    def _of_line(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A document of a JSON line; BEIR's corpora have ``_id`` and ``title``."""
        document = dict(fields)
        if document.get("id") is None:
            document["id"] = document.pop("_id", None)
        name, metadata = document["id"], document.get("metadata")
        if isinstance(name, int) and not isinstance(name, bool):
            name = document["id"] = str(name)
        if name is not None and (not isinstance(name, str) or not name):
            raise InputError(f"has an id that is {name!r}: it must be a string that is not empty, or a whole number")
        if metadata is not None and not isinstance(metadata, dict):
            raise InputError(f'has "metadata" that is {metadata!r}: it must be an object')
        title = document.get("title")
        if self._with_title and isinstance(title, str) and title.strip():
            document["text"] = f"{title}\n{document['text']}"
        return document


def _name_of(source: str) -> str:
    """What the ids of a source begin with: of a folder its own name, which ``.`` is not; of a file as it was given."""
    return resolved(source).name if os.path.isdir(source) else os.path.basename(source)


def _may_be_read(path: Path) -> bool:
    """Whether it is a file, or can't be looked at, which is told when it is read; sockets and such are no documents."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _count_lines(path: str) -> int:
    try:
        with opened(path) as stream:
            return sum(1 for line in stream if line.strip())
    except (OSError, EOFError, zlib.error):  # told when it is read
        return 0


def _spelt(path: PurePath) -> str:
    """A path as an id: slashes everywhere, and escapes for bytes that are no text."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
