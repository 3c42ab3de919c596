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
def run(model: ColBERT, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command with the tiny model, unless it says ``--model`` or needs none."""

    def run(*arguments: str | Path, stdin: str | bytes = b"") -> Done:
        argv = list(map(str, arguments))
        if argv[0] in ("rerank", "explain", "index") and "--model" not in argv:
            argv += ["--model", model.settings.model]
        if argv[0] in ("rerank", "explain", "index", "search", "info") and "--device" not in argv:
            argv += ["--device", "cpu"]
        given = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        try:
            code = main(argv)
        except SystemExit as ended:  # as argparse ends
            code = ended.code  # type: ignore[assignment]
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

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
