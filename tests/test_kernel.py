"""The compiled kernel where it can't be used: torch does its work, and the log says so."""

from __future__ import annotations

import ctypes
import logging

import pytest

from colbert_integrations import kernel


def test_a_library_that_the_system_cannot_load_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("colbert_integrations_kernel", reason="needs the compiled kernel: pip install ./kernel")

    def missing(path: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with caplog.at_level(logging.WARNING):
        assert kernel.load.__wrapped__() is None
    assert caplog.messages == [
        "the compiled kernel can't be loaded, so torch does its work: libgomp.so.1: cannot open shared object file"
    ]
