"""The compiled kernel where it can't be used: torch does its work, and the log says so."""

from __future__ import annotations

import ctypes
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from colbert_integrations import kernel

NEEDED = "needs the compiled kernel: pip install ./kernel"


def test_a_library_that_the_system_cannot_load_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("colbert_integrations_kernel", reason=NEEDED)

    def missing(path: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with caplog.at_level(logging.WARNING):
        assert kernel.load.__wrapped__() is None
    assert caplog.messages == [
        "the compiled kernel can't be loaded, so torch does its work: libgomp.so.1: cannot open shared object file"
    ]


def test_a_package_without_its_library_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """As in a program that PyInstaller made, which takes modules along, but no library that ctypes opens."""
    name = "colbert_integrations_kernel"
    (tmp_path / name).mkdir()
    shutil.copy(Path(__file__).parents[1] / "kernel" / name / "__init__.py", tmp_path / name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)  # and what is there now comes back afterwards
    del sys.modules[name]
    with caplog.at_level(logging.WARNING):
        assert kernel.load.__wrapped__() is None
    assert len(caplog.messages) == 1
    assert "can't be loaded, so torch does its work" in caplog.messages[0]


@pytest.mark.parametrize("library", [SimpleNamespace(), SimpleNamespace(kernel_interface=lambda: 10_000)])
def test_a_library_of_another_version_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, library: SimpleNamespace
) -> None:
    pytest.importorskip("colbert_integrations_kernel", reason=NEEDED)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: library)
    with caplog.at_level(logging.WARNING):
        assert kernel.load.__wrapped__() is None
    assert caplog.messages == [
        "the compiled kernel is of another version, so torch does its work: "
        "pip install -U 'colbert-integrations[kernel]'"
    ]
