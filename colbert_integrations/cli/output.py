"""Output: results to stdout, as lines to read or as JSON; messages to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import InputError
from .parser import PROGRAM

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["INTERRUPTED", "Output", "forget_stdout", "writing"]

INTERRUPTED = 130
"""The exit code of a command that was interrupted."""

Piece: TypeAlias = str | tuple[str, str]
"""A part of a line, or such a part with its style."""

_WIDTH = 100  # where stdout is no terminal


def forget_stdout() -> None:
    """Let what is still to be written go nowhere, or Python would complain of it at its end."""
    with suppress(OSError):  # not a real file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _to_stderr(message: str) -> None:
    from ..explain.wording import visible  # loads regex, which help does not need

    _write_to_stderr(f"{visible(message)}\n")


def _write_to_stderr(text: str) -> None:
    # Where nobody can hear it the work goes on, or ends with the code that it would have.
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(text)


@contextmanager
def _to_stdout() -> Iterator[None]:
    """Make one line of what goes wrong with stdout; a pipe that nobody reads is ``main``'s."""
    if sys.stdout is None:
        raise InputError("can't write to stdout: it is closed")
    try:
        yield
    except BrokenPipeError:
        raise
    except SystemExit as error:  # rich makes this of a pipe that nobody reads
        raise BrokenPipeError from error
    except OSError as error:
        forget_stdout()
        raise InputError(f"can't write to stdout: {error.strerror}") from error


@contextmanager
def writing(file: str) -> Iterator[None]:
    """Make one line of what goes wrong with writing a file.

    Args:
        file: Its name.

    Yields:
        Nothing.

    Raises:
        InputError: If the system refuses it, or what writes it does not know such a kind of file.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"can't write {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"can't write {file}: {error}") from error


class Output:
    """Where a command writes. What writes to stdout raises an ``InputError`` if that is closed or full.

    Args:
        as_json: Whether stdout gets JSON and nothing else.
        quiet: Whether stderr gets errors only.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet
        for stream in (sys.stdout, sys.stderr):
            # A letter that a terminal does not have is no reason to stop.
            getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")

    # ------------------------------------------------------------------------------------------------------ messages

    def say(self, message: str) -> None:
        """Tell how it goes, unless that is not wanted."""
        if not self.quiet:
            _to_stderr(message)

    def warn(self, message: str) -> None:
        """Tell what may not be as it was meant, unless that is not wanted."""
        self.say(f"warning: {message}")

    def error(self, message: str) -> None:
        """Tell what went wrong."""
        _to_stderr(f"{PROGRAM}: {message}")

    def trace(self) -> None:
        """Show where in the code the error that is being handled was raised."""
        _write_to_stderr(traceback.format_exc())

    @property
    def show_progress(self) -> bool | None:
        """Whether a bar is shown: on a terminal, unless that is not wanted."""
        return False if self.quiet else None

    # ------------------------------------------------------------------------------------------------------- results

    @_to_stdout()
    def data(self, data: Any) -> None:
        """Write a line of JSON."""
        said = json.dumps(data, ensure_ascii=False, allow_nan=False)
        try:
            said.encode(sys.stdout.encoding or "ascii")
        except UnicodeEncodeError:
            said = json.dumps(data, allow_nan=False)
        sys.stdout.write(f"{said}\n")

    @_to_stdout()
    def line(self, *pieces: Piece) -> None:
        """Write a line to read, or several; styles show on a terminal where rich is installed."""
        if self.console is None:
            sys.stdout.write("".join(piece if isinstance(piece, str) else piece[0] for piece in pieces) + "\n")
            return
        from rich.text import Text

        self.console.print(Text.assemble(*pieces), soft_wrap=True)

    @_to_stdout()
    def show(self, thing: object) -> None:
        """Write what can be printed, and by rich too."""
        if self.console is not None:
            self.console.print(thing)
        else:
            self.line(str(thing))

    @_to_stdout()
    def paragraph(self, text: str | Text, indent: int) -> None:
        """Write a text, wrapped and indented."""
        if self.console is not None:
            from rich.padding import Padding

            self.console.print(Padding(text, (0, 0, 0, indent)))
        elif text:
            space = " " * indent
            wrapped = textwrap.fill(str(text), self.width, initial_indent=space, subsequent_indent=space)
            sys.stdout.write(f"{wrapped}\n")

    @_to_stdout()
    def flush(self) -> None:
        """Bring everything out, so that what goes wrong with it is an error here, and not at the end of Python."""
        sys.stdout.flush()

    @cached_property
    def console(self) -> Console | None:
        """What writes in colour; None where stdout is no terminal or rich is not installed."""
        if self.as_json:
            return None
        try:
            from rich.console import Console
        except ImportError:
            return None
        console = Console(highlight=False, emoji=False, markup=False)
        return console if console.is_terminal else None

    @property
    def width(self) -> int:
        """Columns of the terminal, or about as many as are pleasant to read."""
        return shutil.get_terminal_size((_WIDTH, 24)).columns
