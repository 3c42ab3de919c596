"""The cache of documents: bounded in bytes, safe, and without effect on scores."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations.cache import CacheInfo, DocumentCache
from colbert_integrations.errors import InputError, NonFiniteError

QUERY = "what is the capital of france?"
LARGE = 1 << 20
# Where fewer documents are encoded, batches have other shapes, and float32 sums round otherwise.
FP32 = 1e-5


def size(text: str, tokens: int) -> int:
    return sys.getsizeof(text) + 4 * 2 * tokens


def rows(tokens: int) -> torch.Tensor:
    return torch.ones(tokens, 2)


# ------------------------------------------------------------------------------------------------------------ the cache


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = DocumentCache(size("a", 3) * 2)
    cache.keep(["a", "b"], [rows(3), rows(3)])
    assert set(cache.find(["a"])) == {"a"}
    cache.keep(["c"], [rows(3)])
    assert set(cache.find(["a", "b", "c"])) == {"a", "c"}
    assert cache.info() == CacheInfo(hits=3, misses=1, entries=2, bytes=2 * size("a", 3))


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["a", "bb", "é", "a long text 😀"]), st.integers(0, 20))),
    most=st.integers(0, 600),
)
def test_bytes_are_those_of_what_is_there_and_never_more_than_the_bound(steps: list, most: int) -> None:
    cache, last = DocumentCache(most), {}
    for text, number in steps:
        fits = size(text, number) <= most
        cache.keep([text], [rows(number)])
        last |= {text: number} if fits else {}
        found = cache.find(last)
        assert cache.info().entries == len(found)
        assert cache.info().bytes == sum(size(text, len(matrix)) for text, matrix in found.items()) <= most
        assert all(len(matrix) == last[text] for text, matrix in found.items())
        assert text in found or not fits


def test_a_text_larger_than_the_bound_is_not_kept_and_drops_no_other() -> None:
    cache = DocumentCache(size("a", 3))
    cache.keep(["a", "b"], [rows(3), rows(4)])
    assert set(cache.find(["a", "b"])) == {"a"}


@pytest.mark.parametrize("bound", [None, 0])
def test_without_a_bound_nothing_is_kept_or_counted(bound: int | None) -> None:
    cache = DocumentCache(bound)
    cache.keep(["a"], [rows(1)])
    assert cache.find(["a"]) == {}
    assert cache.info() == CacheInfo(0, 0, 0, 0)


def test_a_kept_slice_holds_no_more_memory_than_itself_and_is_nobody_elses() -> None:
    cache, batch = DocumentCache(LARGE), rows(1000)
    cache.keep(["a"], [batch[10:13]])
    batch.zero_()
    kept = cache.find(["a"])["a"]
    assert kept.untyped_storage().nbytes() == 3 * 2 * 4
    assert torch.equal(kept, rows(3))


def test_info_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        CacheInfo().hits = 1


def test_threads_do_not_disturb_each_other() -> None:
    cache = DocumentCache(10 * size("0", 5))
    wrong = []

    def work(seed: int) -> None:
        for step in range(300):
            number = (seed * 7 + step) % 20
            cache.keep([str(number)], [rows(5) * number])
            found = cache.find([str(number)])
            wrong.extend(text for text, matrix in found.items() if not torch.equal(matrix, rows(5) * int(text)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    info = cache.info()
    assert wrong == []
    assert info.hits + info.misses == 8 * 300
    assert info.bytes == sum(size(text, len(matrix)) for text, matrix in cache.find(map(str, range(20))).items())


# ------------------------------------------------------------------------------------------------------------ the model


@pytest.fixture
def cached(checkpoint: Callable[[str], Path]) -> ColBERT:
    return ColBERT(checkpoint("stanford"), device="cpu", cache_bytes=LARGE)


def scores(model: ColBERT, texts: list[str], **options: Any) -> list[float]:
    found = {entry.index: entry.score for entry in model.rank(QUERY, texts, **options)}
    return [found[index] for index in range(len(texts))]


def test_scores_are_those_without_a_cache(tiny: ColBERT, cached: ColBERT) -> None:
    texts = [*checkpoints.SENTENCES, "", "bread", "the fox " * 90, "bread"]
    wanted = scores(tiny, texts)
    assert scores(cached, texts) == wanted  # the same batches: equal to the bit
    assert scores(cached, texts) == pytest.approx(wanted, abs=FP32)
    assert scores(cached, ["a dog", *texts[::2]])[1:] == pytest.approx(wanted[::2], abs=FP32)
    assert cached.cache_info().hits == 6 + 3


def test_a_text_that_is_there_is_not_encoded_again(tiny: ColBERT) -> None:
    inner, seen = tiny._ready()._forward, list[int]()

    def forward(sequences):
        seen.append(len(sequences))
        return inner(sequences)

    model = ColBERT(tiny.settings.model, device="cpu", forward=forward, cache_bytes=LARGE)
    model.rank(QUERY, ["a fox", "a dog", "a fox"])
    model.rank("another query", ["a dog", "a fox"])
    model.rank("another query", ["a dog", "a cat"])
    assert seen == [3, 1, 2]
    info = model.cache_info()
    assert (info.hits, info.misses, info.entries) == (3, 3, 3)


def test_known_vectors_go_before_the_cache_and_are_not_kept(tiny: ColBERT, cached: ColBERT) -> None:
    known = {"a fox": tiny.encode_document("a dog")[0]}
    cached.rank(QUERY, ["a fox"])
    assert scores(cached, ["a fox"], known=known) == pytest.approx(scores(tiny, ["a dog"]), abs=FP32)
    assert scores(cached, ["a fox"]) == pytest.approx(scores(tiny, ["a fox"]), abs=FP32)
    assert (cached.cache_info().hits, cached.cache_info().misses) == (1, 1)


def test_pooled_vectors_are_kept_as_they_are_scored(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, pooling={"pool_factor": 2.0, "num_protected_tokens": 1})
    model = ColBERT(tmp_path, device="cpu", cache_bytes=LARGE)
    fresh = scores(model, checkpoints.SENTENCES)
    assert scores(model, checkpoints.SENTENCES) == pytest.approx(fresh, abs=FP32)
    assert model.cache_info().hits == len(checkpoints.SENTENCES)


def test_vectors_that_are_no_numbers_are_not_kept(tiny: ColBERT) -> None:
    inner, broken = tiny._ready()._forward, [True]

    def forward(sequences):
        return inner(sequences) * (float("nan") if broken else 1)

    model = ColBERT(tiny.settings.model, device="cpu", forward=forward, cache_bytes=LARGE)
    with pytest.raises(NonFiniteError):
        model.rank(QUERY, ["a fox"])
    broken.clear()
    assert scores(model, ["a fox"]) == scores(tiny, ["a fox"])


def test_close_empties_the_cache(cached: ColBERT) -> None:
    cached.rank(QUERY, ["a fox"])
    assert cached.cache_info().entries == 1
    cached.close()
    assert cached.cache_info() == CacheInfo()


def test_a_call_that_ends_after_close_leaves_nothing_in_the_new_cache(tiny: ColBERT) -> None:
    inner, entered, leave = tiny._ready()._forward, threading.Event(), threading.Event()

    def forward(sequences):
        entered.set()
        assert leave.wait(30)
        return inner(sequences)

    model = ColBERT(tiny.settings.model, device="cpu", forward=forward, cache_bytes=LARGE)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(model.rank, QUERY, ["a fox"])
        assert entered.wait(30)
        model.close()
        leave.set()
        assert len(running.result(30)) == 1
    assert model.cache_info().entries == 0
    assert len(model.rank(QUERY, ["a fox"])) == 1


def test_nothing_is_kept_unless_asked_for(tiny: ColBERT) -> None:
    tiny.rank(QUERY, ["a fox"])
    assert tiny.cache_info() == CacheInfo()


def test_it_is_a_setting_of_this_machine(checkpoint: Callable[[str], Path], cached: ColBERT, tiny: ColBERT) -> None:
    assert cached.settings.changed()["cache_bytes"] == LARGE
    assert pickle.loads(pickle.dumps(cached)).settings.cache_bytes == LARGE
    assert cached.fingerprint == tiny.fingerprint
    assert ColBERT.shared(tiny.settings.model, cache_bytes=LARGE) is not ColBERT.shared(tiny.settings.model)


@pytest.mark.parametrize("bad", [-1, True, 1.5, "1GB"])
def test_an_impossible_bound_is_refused(bad: Any, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="cache_bytes must be a whole number"):
        ColBERT(checkpoint("stanford"), cache_bytes=bad)
