"""The framework under test, and rerankers of it on a tiny checkpoint."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.drivers import LangChain, LlamaIndex, Ranked
from colbert_integrations import ColBERT

PATIENCE_S = 10


@pytest.fixture(params=[LangChain, LlamaIndex], ids=["langchain", "llama_index"])
def driver(request: pytest.FixtureRequest) -> LangChain | LlamaIndex:
    return request.param()


@pytest.fixture(scope="session")
def shared_model(checkpoint: Callable[[str], Path]) -> ColBERT:
    """What the rerankers on ``stanford`` share. Sharing is weak: unless held, every test would load it again."""
    model = ColBERT.shared(checkpoint("stanford"), device="cpu")
    assert model.dim  # loads it: what it says of itself must not hang on which test comes first
    return model


@pytest.fixture
def stanford(shared_model: ColBERT) -> dict[str, Any]:
    """Fields of a reranker on a tiny checkpoint."""
    return shared_model.settings.changed()


@pytest.fixture
def missing(tmp_path: Path) -> dict[str, Any]:
    """Fields of a reranker whose model can't be loaded."""
    return {"model": str(tmp_path / "no-such-model"), "device": "cpu"}


@pytest.fixture(params=["sync", "async"])
def rank(driver: LangChain | LlamaIndex, stanford: dict[str, Any], request: pytest.FixtureRequest) -> Callable:
    """Ranks texts in either framework through either door; all of them, unless told otherwise."""

    def ranked(query: Any, texts: Sequence[str], **fields: Any) -> list[Ranked]:
        reranker = driver.Reranker(**{**stanford, "top_n": None, **fields})
        items = driver.items(texts)
        if request.param == "sync":
            return driver.read(driver.rerank(reranker, items, query))
        return driver.read(asyncio.run(driver.arerank(reranker, items, query)))

    return ranked


@pytest.fixture
async def off_loop() -> AsyncIterator[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """Lets a function wait until the event loop has come round: in vain, where the loop runs it or waits for it.

    Each function that was given must have been called in the end.
    """
    loop, calls = asyncio.get_running_loop(), list[list[bool]]()

    def waiting(function: Callable[..., Any]) -> Callable[..., Any]:
        free = list[bool]()
        calls.append(free)

        def held(*args: Any, **options: Any) -> Any:
            round_came = threading.Event()
            loop.call_soon_threadsafe(round_came.set)
            free.append(round_came.wait(PATIENCE_S))
            assert free[-1], f"the event loop stood still while {function.__qualname__} ran"
            return function(*args, **options)

        return held

    yield waiting
    assert all(free and all(free) for free in calls), "a function was not called, or the event loop stood still"
