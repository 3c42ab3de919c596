"""What can be asked on the command line: commands, options, and what is wrong with them, without loading anything."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from glob import glob
from pathlib import PurePath
from typing import Any

from .. import __version__
from ..settings import DEFAULT_MODEL, STRINGS, Settings

__all__ = ["PROGRAM", "parse"]

PROGRAM = "colbert-integrations"

_DESCRIPTION = "ColBERT on the command line: rank, explain, index and search texts by late interaction."
_EXIT_CODES = (
    "exit codes: 0 done; 1 done, but some documents could not be read or stored; 2 an error; 130 interrupted; "
    "141 the reader of the output has gone"
)
_WHERE = "a folder, or qdrant+http://host:6333/NAME (its API key is read from QDRANT_API_KEY)"
_DTYPES = ("float32", "bfloat16", "float16", "int8")
# Of an index in a folder; Qdrant has the others.
_SEARCHES = ("exact", "codes", "centroids")
# Of the settings, those with an option of their own, and the token, which is read from the environment.
_NOT_SET = {"model", "device", "dtype", "token"}
# Characters of a value that an error shows.
_MOST_SHOWN = 200


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits with help, the version or what is wrong, as argparse does.

    Args:
        argv: The arguments. None: those of this process.

    Returns:
        The arguments by name, the command as ``command``.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(PROGRAM, description=_DESCRIPTION, epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_rerank, _add_explain, _add_info, _add_index, _add_search):
        add(commands)
    if not given or given[0] not in commands.choices:
        return parser.parse_args(given)  # which exits: there is no command
    # By the command's own parser, which alone takes files before and after options; but in some Pythons not after "--".
    command: argparse.ArgumentParser = commands.choices[given[0]]
    args = command.parse_args(given[1:]) if "--" in given else command.parse_intermixed_args(given[1:])
    args.command = given[0]
    for several in ("files", "sources"):
        if several in args:
            setattr(args, several, _expanded(getattr(args, several)))
    if args.command == "search" and (args.query is None) == (args.queries is None):
        command.error("give one query, or several by --queries")
    if args.command == "explain" and (args.file is None) == (args.text is None):
        command.error("give one FILE, or a text by --text")
    if args.command == "info" and args.name is not None:
        if args.model is not None:
            command.error("give the model once, as MODEL or by --model")
        args.model = args.name
    return args


# ----------------------------------------------------------------------------------------------------------- commands


def _add_rerank(commands: Any) -> None:
    command = _command(
        commands,
        "rerank",
        "rank texts by how well they answer a query",
        'rerank "why do planes fly" notes/*.txt --explain',
        'grep -h wing *.txt | %(prog)s rerank "why do planes fly" --lines --top-n 5 -',
    )
    command.add_argument("query", help="the query")
    command.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a text file, which is one document; .jsonl: lines with a text; -: stdin",
    )
    _add_form(command)
    command.add_argument("-k", "--top-n", type=_count, metavar="N", help="most documents to show; default: all")
    _add_scores(command)
    command.add_argument("--explain", action="store_true", help="show the best passage and which words matched")
    _add_model(command)
    _add_output(command, "one document with the results")


def _add_explain(commands: Any) -> None:
    command = _command(
        commands,
        "explain",
        "show which words of a document matched a query",
        'explain "why do planes fly" wings.txt --html wings.html',
        'explain "why do planes fly" --text "Wings push air downwards."',
    )
    command.add_argument("query", help="the query")
    command.add_argument("file", nargs="?", metavar="FILE", help="the document, a text file; -: stdin")
    command.add_argument("--text", help="the document itself")
    command.add_argument("--html", metavar="OUT.html", help="write a page with the words in colour too")
    command.add_argument("--plot", metavar="OUT.png", help="write a heat map too, of tokens by tokens (or .svg, .pdf)")
    _add_model(command)
    _add_output(command, "the explanation as one document")


def _add_info(commands: Any) -> None:
    command = _command(
        commands,
        "info",
        "show what a checkpoint says, and how it would be run",
        f"info {DEFAULT_MODEL}",
    )
    command.add_argument("name", nargs="?", metavar="MODEL", help="the same as --model")
    _add_model(command)
    _add_output(command, "the report as one document")


def _add_index(commands: Any) -> None:
    command = _command(
        commands,
        "index",
        "encode documents and store them; run again, it goes on with what is not there yet",
        'index notes --glob "*.md" --store notes-index',
        "index corpus.jsonl.gz --store qdrant+http://localhost:6333/corpus",
    )
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder of text files, each one document; a text file; .jsonl or .jsonl.gz: lines with text, and id or "
        "other keys, which are metadata; -: such lines from stdin",
    )
    command.add_argument("--store", required=True, metavar="WHERE", help=f"{_WHERE}; made if it is not there")
    command.add_argument(
        "--glob",
        type=_pattern,
        action="append",
        default=[],
        metavar="PATTERN",
        help="of a folder only files like this, such as *.md, at any depth; repeatable",
    )
    _add_form(command)
    command.add_argument(
        "--no-title", action="store_true", help="don't put the title of a line before its text; it is metadata anyway"
    )
    command.add_argument(
        "--pool-factor", type=_factor, default=1, metavar="F", help="keep about 1 in F vectors, by merging similar ones"
    )
    command.add_argument(
        "--reencode",
        action="store_true",
        help="also encode again what is there unchanged, as after a change of --pool-factor or --set",
    )
    command.add_argument(
        "--nbits", type=int, choices=(8, 4, 2), help="of a new folder: keep vectors as codes of so many bits"
    )
    command.add_argument(
        "--search",
        choices=_SEARCHES,
        help="of a folder: how it is searched unless a search says otherwise, from some ten thousand documents on best "
        "by centroids; what that needs is made now; default: as before, in a new folder exact",
    )
    command.add_argument("--failures", metavar="OUT.jsonl", help="write what could not be read or stored, and why")
    _add_model(command, "the one that the store was made with, else ")
    _add_output(command, "the report as one document")


def _add_search(commands: Any) -> None:
    command = _command(
        commands,
        "search",
        "find the documents that answer a query best",
        'search "why do planes fly" --store notes-index -k 3 --explain',
        "search --queries questions.txt --store notes-index --json",
    )
    command.add_argument("query", nargs="?", help="the query")
    command.add_argument("--store", required=True, metavar="WHERE", help=_WHERE)
    command.add_argument(
        "--queries", metavar="FILE", help="a file with a query on each line, in .jsonl under text; -: lines from stdin"
    )
    command.add_argument(
        "-k", "--top-n", type=_count, default=10, metavar="N", help="most documents to find; default: %(default)s"
    )
    command.add_argument(
        "--filter",
        type=_json_object,
        metavar="JSON",
        help='conditions on metadata, such as \'{"year": {"$gte": 2020}}\'',
    )
    command.add_argument(
        "--search", choices=(*_SEARCHES, "first_stage"), help="how to search; default: as the store was made for"
    )
    _add_scores(command)
    command.add_argument("--explain", action="store_true", help="show which words matched")
    command.add_argument(
        "--no-passages", action="store_true", help="don't look for the best passages, for which texts are encoded again"
    )
    _add_model(command, "the one that the store was made with, else ")
    _add_output(command, "a line for each query")


# ------------------------------------------------------------------------------------------------------------ options


def _command(commands: Any, name: str, said: str, *examples: str) -> argparse.ArgumentParser:
    shown = "\n".join(f"  {example if '%(prog)s' in example else '%(prog)s ' + example}" for example in examples)
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        prog=f"{PROGRAM} {name}",
        help=said,
        description=f"{said[0].upper()}{said[1:]}.",
        epilog=f"examples:\n{shown}".replace("%(prog)s", PROGRAM),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return command


def _add_form(command: argparse.ArgumentParser) -> None:
    forms = command.add_mutually_exclusive_group()
    forms.add_argument(
        "--lines", dest="form", action="store_const", const="lines", help="each line of a text file is a document"
    )
    forms.add_argument(
        "--jsonl", dest="form", action="store_const", const="jsonl", help="files are JSON lines whatever their names"
    )


def _add_scores(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--threshold",
        type=_number,
        metavar="SCORE",
        help="lowest score to show; of sums, or with --normalize from 0 to 1",
    )
    command.add_argument(
        "--normalize", action="store_true", help="scores from 0 to 1, means over the query's tokens, instead of sums"
    )


def _add_model(command: argparse.ArgumentParser, default: str = "") -> None:
    command.add_argument(
        "--model",
        metavar="MODEL",
        help=f"a folder, a repository on the hub, or bundled/all-MiniLM-L6-v2; default: {default}{DEFAULT_MODEL}",
    )
    _add_machine(command)


def _add_machine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="such as cpu, cuda:1, mps; default: the first of CUDA, MPS and CPU")
    command.add_argument("--dtype", choices=_DTYPES, help="of the forward pass; default: float32, on CUDA bfloat16")
    command.add_argument(
        "--set",
        dest="settings",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another argument of ColBERT, such as document_length=300; repeatable",
    )


def _add_output(command: argparse.ArgumentParser, said: str) -> None:
    command.add_argument("--json", action="store_true", help=f"write JSON to stdout, {said}, and nothing else")
    command.add_argument("--quiet", action="store_true", help="no progress bar, no messages but errors")
    command.add_argument("--debug", action="store_true", help="show where in the code an error was raised")


# ------------------------------------------------------------------------------------------------------------- values


def _refusing(said: str) -> Callable[[Callable[[str], Any]], Callable[[str], Any]]:
    """Make a reader of values say what would be right where it raises a ValueError."""

    def decorate(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def checked(value: str) -> Any:
            try:
                return read(value)
            except ValueError as error:
                shown = value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}…"
                raise argparse.ArgumentTypeError(f"{said}, not {shown!r}") from error

        return checked

    return decorate


def _expanded(names: list[str]) -> list[str]:
    """The files that patterns stand for, which on Windows no shell has looked up; what matches nothing as it is."""
    return [found for name in names for found in ([name] if os.path.lexists(name) else sorted(glob(name)) or [name])]


@_refusing("must be a whole number from 1")
def _count(value: str) -> int:
    if (number := int(value)) < 1:
        raise ValueError
    return number


@_refusing("must be a number")
def _number(value: str) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number


@_refusing("must be a number from 1")
def _factor(value: str) -> float:
    if not 1 <= (number := float(value)) < math.inf:
        raise ValueError
    return number


@_refusing('must be a JSON object such as {"year": 2020}')
def _json_object(value: str) -> dict[str, Any]:
    try:
        read = json.loads(value)
    except RecursionError as error:
        raise ValueError from error
    if not isinstance(read, dict):
        raise ValueError
    return read


@_refusing("must be a pattern such as *.md")
def _pattern(value: str) -> str:
    pattern = PurePath(value).as_posix().removeprefix("**/")  # any depth, at which one without it is looked for too
    if "**" in pattern:  # which would be taken for *
        raise argparse.ArgumentTypeError(f"must have no ** but **/ at its beginning, not {value!r}")
    PurePath().match(pattern)  # refuses an empty one
    return pattern


def _setting(value: str) -> tuple[str, Any]:
    """A name and a value, which is JSON or else a string."""
    known = [item.name for item in fields(Settings) if item.name not in _NOT_SET]
    name, equals, said = value.partition("=")
    if not equals or name not in known:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, NAME one of {', '.join(known)}, not {value!r}")
    try:
        read = json.loads(said)
    except (ValueError, RecursionError):
        return name, said
    return name, said if name in STRINGS and not isinstance(read, str | None) else read
