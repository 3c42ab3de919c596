"""The compiled kernel where it can't be used: torch does its work, and the log says so."""

from __future__ import annotations

import ctypes
import logging
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
