"""What every test can use: tiny checkpoints by name, and one small model."""

from __future__ import annotations

import functools
import gc
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

import checkpoints
from colbert_integrations import ColBERT, single_flight

# Before any tokenizer is made: no test reaches a hub, and a fork would only warn.
os.environ["HF_HUB_OFFLINE"] = "1" if os.environ.get("COLBERT_TEST_HUB") != "1" else "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The models are tiny: threads of torch's own, beside those that tests start, turned seconds into minutes. In processes
# that tests start they waited for each other in a loop, beside another worker for most of the time.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Each client of HTTP reads all the certificates of this machine: 30 ms, more than most tests of a store take.
ssl.create_default_context = functools.cache(ssl.create_default_context)

_SWITCHES = {"hub": "COLBERT_TEST_HUB", "slow": "COLBERT_TEST_SLOW"}


# Files that take minutes: begun last, they would keep one worker busy while another has nothing left to do.
_LONGEST = {"test_contract.py", "test_documentation.py", "test_examples.py", "test_notebooks.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST)
    for item in items:
        for marker, variable in _SWITCHES.items():
            if item.get_closest_marker(marker) and os.environ.get(variable) != "1":
                item.add_marker(pytest.mark.skip(reason=f"set {variable}=1 to run it"))
        if item.get_closest_marker("vllm") and not os.environ.get("COLBERT_TEST_VLLM"):
            reason = "make test-vllm sets COLBERT_TEST_VLLM to the Python of an environment with vLLM"
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    # What was imported and collected stays: a tenth of the time went into looking through it for garbage.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a checkpoint of ``checkpoints.LAYOUTS`` once and gives its folder."""
    root = tmp_path_factory.mktemp("checkpoints")
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            built[name] = checkpoints.build(name, root)
        return built[name]

    return get


@pytest.fixture(scope="session")
def tiny(checkpoint: Callable[[str], Path]) -> ColBERT:
    """A tiny Stanford checkpoint, loaded on the CPU; shared, so don't close it."""
    return ColBERT(checkpoint("stanford"), device="cpu")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as Python has it; a job that a shell started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def wait_for_company(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Called by the work of a ``SingleFlight``: waits until so many others wait for it."""
    arrived = threading.Semaphore(0)

    class Counting(Future):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            arrived.release()
            return super().exception(timeout)

    def wait(others: int) -> None:
        for _ in range(others):
            assert arrived.acquire(timeout=30), "fewer came than were to come"

    monkeypatch.setattr(single_flight, "Future", Counting)
    return wait
