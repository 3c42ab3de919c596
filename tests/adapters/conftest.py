"""The framework under test, and rerankers of it on a tiny checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.drivers import LangChain, LlamaIndex, Ranked
from colbert_integrations import ColBERT


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
