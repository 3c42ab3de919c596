"""Many reranks at once are right, and none of them holds up the event loop."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoints
from adapters.conftest import PATIENCE_S
from adapters.drivers import QUERY, LangChain, LlamaIndex
from colbert_integrations import ColBERT
from colbert_integrations.encoder import Encoder
from colbert_integrations.langchain import reranker as reranker_of_langchain

Driver = LangChain | LlamaIndex

REQUESTS = 200


class Request:
    """One rerank: a reranker of its own settings, a query and documents of any length."""

    def __init__(self, driver: Driver, stanford: dict[str, Any], seed: int) -> None:
        choose = random.Random(seed)
        self.driver = driver
        self.query = _text(choose, 1, 12)
        self.texts = [_text(choose, 0, 90 if choose.random() < 0.2 else 20) for _ in range(choose.randint(1, 7))]
        scale, top_n = choose.random() < 0.5, choose.choice([None, 1, 3])
        self.reranker = driver.Reranker(**stanford, normalize_scores=scale, top_n=top_n)

    def run(self) -> list[tuple[str, float]]:
        return self._read(self.driver.rerank(self.reranker, self.driver.items(self.texts), self.query))

    async def arun(self) -> list[tuple[str, float]]:
        return self._read(await self.driver.arerank(self.reranker, self.driver.items(self.texts), self.query))

    def _read(self, output: Any) -> list[tuple[str, float]]:
        return [(ranked.id, ranked.score) for ranked in self.driver.read(output)]


def _text(choose: random.Random, least: int, most: int) -> str:
    return " ".join(choose.choices(checkpoints.WORDS, k=choose.randint(least, most)))


def assert_same(found: list[list[tuple[str, float]]], wanted: list[list[tuple[str, float]]]) -> None:
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert [score for _, score in mine] == pytest.approx([score for _, score in theirs], abs=1e-5)
        assert {identity for identity, _ in mine} == {identity for identity, _ in theirs}


@pytest.fixture
def requests(driver: Driver, stanford: dict[str, Any]) -> list[Request]:
    return [Request(driver, stanford, seed) for seed in range(REQUESTS)]


async def test_concurrent_async_reranks_equal_sequential_ones(requests: list[Request]):
    wanted = [request.run() for request in requests]
    assert_same(await asyncio.gather(*(request.arun() for request in requests)), wanted)


def test_concurrent_threads_equal_sequential_reranks(requests: list[Request]):
    wanted = [request.run() for request in requests]
    with ThreadPoolExecutor(max_workers=16) as pool:
        assert_same(list(pool.map(Request.run, requests)), wanted)


async def test_both_frameworks_and_both_doors_at_once_equal_sequential_reranks(stanford: dict[str, Any]):
    drivers = (LangChain(), LlamaIndex())
    requests = [Request(drivers[seed % 2], stanford, seed) for seed in range(REQUESTS)]
    wanted = [request.run() for request in requests]
    with ThreadPoolExecutor(max_workers=8) as pool:
        loop = asyncio.get_running_loop()
        doors = [r.arun() if i % 4 < 2 else loop.run_in_executor(pool, r.run) for i, r in enumerate(requests)]
        assert_same(await asyncio.gather(*doors), wanted)


def test_tokenising_in_many_threads_at_once_equals_sequential_reranks(checkpoint: Callable[[str], Path]):
    # A forward pass that costs nothing, so that threads meet at the tokenizer: with lengths set on a shared one, about
    # one rerank in 200 was wrong.
    table = torch.randn(500, checkpoints.DIM, generator=torch.Generator().manual_seed(0))
    model = ColBERT(
        checkpoint("stanford"), device="cpu", forward=lambda rows: torch.cat([table[row.ids] for row in rows])
    )
    requests = [Request(LangChain(), {"model": model}, seed) for seed in range(5 * REQUESTS)]
    wanted = [request.run() for request in requests]
    with ThreadPoolExecutor(max_workers=16) as pool:
        assert_same(list(pool.map(Request.run, requests)), wanted)


async def test_first_calls_at_once_load_one_model(driver: Driver, checkpoint: Callable[[str], Path]):
    fields = {"model": str(checkpoint("stanford")), "device": "cpu", "document_length": 39}
    requests = [Request(driver, fields, seed) for seed in range(20)]
    found = await asyncio.gather(*(request.arun() for request in requests))
    assert len({id(request.reranker.colbert) for request in requests}) == 1
    assert_same(found, [request.run() for request in requests])


# --------------------------------------------------------------------------------------------------------- event loop


@pytest.mark.parametrize("where", [(ColBERT, "rank"), (Encoder, "encode")], ids=["rank", "encode"])
async def test_loop_goes_on_while_a_model_blocks(
    driver: Driver, stanford: dict[str, Any], off_loop: Callable, monkeypatch: pytest.MonkeyPatch, where: Any
):
    monkeypatch.setattr(*where, off_loop(getattr(*where)))
    await driver.arerank(driver.Reranker(**stanford), driver.items(["lions", "paris"]), QUERY)


async def test_loop_goes_on_while_texts_and_results_are_made(
    driver: Driver, stanford: dict[str, Any], off_loop: Callable, monkeypatch: pytest.MonkeyPatch
):
    for name in ("_text", "_copy"):
        owner = driver.Reranker if hasattr(driver.Reranker, name) else reranker_of_langchain
        monkeypatch.setattr(owner, name, off_loop(getattr(owner, name)))
    await driver.arerank(driver.Reranker(**stanford), driver.items(["lions", "paris"]), QUERY)


async def test_waiting_reranks_leave_the_default_threads_to_others(
    driver: Driver, stanford: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    loop, entered, release = asyncio.get_running_loop(), asyncio.Queue[None](), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))  # a single rerank would fill it

    def held(*args: Any, **options: Any) -> list[Any]:
        loop.call_soon_threadsafe(entered.put_nowait, None)
        assert release.wait(6 * PATIENCE_S)
        return []

    monkeypatch.setattr(ColBERT, "rank", held)
    reranker = driver.Reranker(**stanford)
    waiting = [asyncio.create_task(driver.arerank(reranker, driver.items(["a"]), QUERY)) for _ in range(50)]
    try:
        await asyncio.wait_for(entered.get(), PATIENCE_S)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), PATIENCE_S) == "free"
    finally:
        release.set()
    assert await asyncio.gather(*waiting) == [[]] * 50


async def test_a_cancelled_rerank_returns_at_once_and_harms_no_other(
    driver: Driver, stanford: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    ranks, loop, entered, release = ColBERT.rank, asyncio.get_running_loop(), asyncio.Queue[None](), threading.Event()

    def held(self: ColBERT, *args: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(entered.put_nowait, None)
        assert release.wait(6 * PATIENCE_S)
        return ranks(self, *args, **options)

    monkeypatch.setattr(ColBERT, "rank", held)
    reranker = driver.Reranker(**stanford)
    first, second = (asyncio.create_task(driver.arerank(reranker, driver.items(["a"]), QUERY)) for _ in range(2))
    for _ in range(2):
        await asyncio.wait_for(entered.get(), PATIENCE_S)
    first.cancel()
    await asyncio.wait([first], timeout=PATIENCE_S)
    assert first.cancelled()
    release.set()
    assert len(await second) == 1
