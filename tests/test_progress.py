"""The bar of long work: who sees it, and that nobody waits for one that is not shown."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
import tqdm.auto

from colbert_integrations import progress
from colbert_integrations.progress import progress_bar


@pytest.mark.parametrize("show", [True, None])
def test_a_program_without_stderr_shows_none(show: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pythonw and PyInstaller's windowed programs are."""
    monkeypatch.setattr(progress, "_BAR_AFTER_S", 0.0)
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(2, show, "Encoding") as bar:
        bar.update(2)
    assert not isinstance(bar, tqdm.auto.tqdm)


@pytest.mark.parametrize("show", [True, None])
@pytest.mark.parametrize("stderr", ["closed", "a program's own"])
def test_a_program_may_have_an_odd_one(stderr: str, show: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_BAR_AFTER_S", 0.0)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed if stderr == "closed" else Mock(spec=["write", "flush"]))
    _bar_of_two(show)


@pytest.mark.parametrize("show", [False, None])
def test_what_is_not_shown_does_not_wait_for_bars_of_others(show: bool | None) -> None:
    """tqdm's lock is shared by forked processes, and stays taken where one of them is killed that holds it."""
    from tqdm.std import TqdmDefaultWriteLock

    lock = TqdmDefaultWriteLock()  # all of them are one
    with ThreadPoolExecutor(1) as holder, ThreadPoolExecutor(1) as other:
        holder.submit(lock.acquire).result()
        try:
            other.submit(_bar_of_two, show).result(timeout=30.0)
        finally:
            holder.submit(lock.release).result()


def _bar_of_two(show: bool | None) -> None:
    with progress_bar(2, show, "Encoding") as bar:
        bar.update(2)


@pytest.mark.parametrize(("terminal", "show", "shown"), [(False, None, False), (True, None, True), (False, True, True)])
def test_bars_are_for_who_looks(
    terminal: bool,
    show: bool | None,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "_BAR_AFTER_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    _bar_of_two(show)
    assert ("Encoding: 100%" in capsys.readouterr().err) == shown


def test_a_notebook_shows_its_own_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its stderr is no terminal."""
    made = Mock()
    monkeypatch.setattr(tqdm.auto, "tqdm", made)
    assert progress_bar(2, None, "Encoding") is made.return_value
    made.assert_called_once_with(total=2, desc="Encoding", unit="text", delay=2.0)
