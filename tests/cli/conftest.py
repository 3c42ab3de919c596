"""What tests of the command line share: running a command in this process, and files to run it on."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.running import NOTES, Done, Run
from colbert_integrations import ColBERT
from colbert_integrations.cli import main


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], Path]) -> ColBERT:
    """The model that commands use here, held so that each does not load it again."""
    return ColBERT.shared(str(checkpoint("stanford")), device="cpu")


@pytest.fixture
def run_as_given(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command."""

    def run(*arguments: object, stdin: str | bytes = b"") -> Done:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as ended:  # as argparse ends
            code = ended.code  # type: ignore[assignment]
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def run(model: ColBERT, run_as_given: Run) -> Run:
    """Runs a command on the CPU, with the tiny model unless it says ``--model`` or needs none."""

    def run(*arguments: object, stdin: str | bytes = b"") -> Done:
        more = list[str]()
        if arguments[0] in ("rerank", "explain", "index") and "--model" not in arguments:
            more += ["--model", model.settings.model]
        if arguments[0] in ("rerank", "explain", "info", "index", "search") and "--device" not in arguments:
            more += ["--device", "cpu"]
        return run_as_given(*arguments, *more, stdin=stdin)

    return run


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``notes`` of text files, in the current folder."""
    folder = tmp_path / "notes"
    for name, text in NOTES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    monkeypatch.chdir(tmp_path)
    return folder
