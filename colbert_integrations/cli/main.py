"""main: runs a command; errors of ours are one line on stderr, others a traceback, and every end has its exit code."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from ..errors import ColBERTError
from .output import INTERRUPTED, Output, forget_stdout
from .parser import parse

__all__ = ["main"]

_ERROR, _PIPE_CLOSED = 2, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments. None: those of this process.

    Returns:
        The exit code: 0 done; 1 done, but some documents could not be read or stored; 2 an error; 130 interrupted; 141
        nobody reads the output any more. Help and errors of usage exit as argparse does.
    """
    args = parse(argv)
    output = Output(as_json=args.json, quiet=args.quiet)
    try:
        with _one_interrupt(own_process=argv is None), _warnings_in_one_line(output):
            output.flush()  # before any work: stdout may be closed
            code: int = import_module(f".{args.command}", __package__).run(args, output)
            output.flush()
            return code
    except ColBERTError as error:
        if args.debug:
            output.trace()
        output.error(" ".join(str(error).split()))
        return _ERROR
    except KeyboardInterrupt:
        output.error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        forget_stdout()
        return _PIPE_CLOSED
    except Exception:
        output.trace()
        return _ERROR  # Python's own code for it, 1, means something else here


@contextmanager
def _one_interrupt(*, own_process: bool) -> Iterator[None]:
    """Let Ctrl-C interrupt once: a second one would stop the saving that the first one led to, or the way out.

    Args:
        own_process: Whether the process ends with the command, so that the rest of its end is left in peace too.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def interrupt(number: int, frame: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if not own_process or signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _warnings_in_one_line(output: Output) -> Iterator[None]:
    """Show warnings as messages, without the line of code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        output.warn(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
