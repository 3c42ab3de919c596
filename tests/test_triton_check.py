"""Triton is used where a kernel of ours can be launched, and nowhere else."""

from __future__ import annotations

import logging

import pytest
import torch

from colbert_integrations.devices import triton_check
from colbert_integrations.devices.triton_check import triton_runs

CUDA = torch.device("cuda")


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if there were a card that is new enough, and Triton."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(triton_check, "find_spec", lambda name: object())
    return monkeypatch


def never() -> None:
    raise AssertionError("there was nothing to try")


def test_runs_where_a_kernel_was_launched(ampere: pytest.MonkeyPatch) -> None:
    launched = []
    assert triton_runs(CUDA, lambda: launched.append(1), "torch does it")
    assert launched == [1]


def test_without_a_compiler_the_log_says_what_is_done_instead(
    ampere: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def launch() -> None:
        raise RuntimeError("Failed to find C compiler")

    with caplog.at_level(logging.WARNING):
        assert not triton_runs(CUDA, launch, "torch does it")
    assert caplog.messages == ["Triton does not work on cuda, so torch does it: Failed to find C compiler"]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), RuntimeError("Triton Error [CUDA]: out of memory")]
)
def test_no_room_is_not_taken_for_no_triton(ampere: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def launch() -> None:
        raise error

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        triton_runs(CUDA, launch, "torch does it")


def test_tries_nothing_elsewhere(ampere: pytest.MonkeyPatch) -> None:
    assert not triton_runs(torch.device("cpu"), never, "")
    ampere.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not triton_runs(CUDA, never, "")
    ampere.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    ampere.setattr(triton_check, "find_spec", lambda name: None)
    assert not triton_runs(CUDA, never, "")
    ampere.setattr(triton_check, "find_spec", lambda name: object())
    ampere.setattr(torch.version, "cuda", None)  # ROCm's build
    assert not triton_runs(CUDA, never, "")
