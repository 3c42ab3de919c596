"""The bar of long work, where there is nothing to show it on."""

from __future__ import annotations

import sys

import pytest

from colbert_integrations import progress
from colbert_integrations.progress import progress_bar


@pytest.mark.parametrize("show", [True, None])
def test_a_program_without_stderr_shows_none(show: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pythonw and PyInstaller's windowed programs are."""
    monkeypatch.setattr(progress, "_BAR_AFTER_S", 0.0)
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(2, show, "Encoding") as bar:
        bar.update(2)
    assert bar.disable
