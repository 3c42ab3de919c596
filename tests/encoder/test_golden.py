"""Every golden case: the token ids and vectors that the right implementation of each layout gives."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import transformers

from colbert_integrations import ColBERT

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/expected.npz"))
# 168 roundings of a number up to 1: what up to four layers of 32 numbers make of them where another library,
# on another CPU, sums in another order. The worst seen is 3e-6.
FP32 = 1e-5
# Expansion reaches past the last window of local attention here, which only happens where the window is as tiny as in
# these checkpoints. What such a token sees changed with transformers 5.1, and the peers agree with what it is since.
BEYOND_WINDOW = {
    "pylate_exp",
    "pylate_eos",
    "pylate_noprefix",
    "pylate_noskip",
    "native_fixed",
    "native_left",
    "native_lower",
}
OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 1)

pytestmark = [
    pytest.mark.filterwarnings("ignore::colbert_integrations.TruncationWarning"),
    pytest.mark.parametrize("side", ["query", "document"]),
    pytest.mark.parametrize("case", CASES),
]


@pytest.fixture(autouse=True)
def needs(case: str, side: str) -> None:
    if OLD and side == "query" and case in BEYOND_WINDOW:
        pytest.skip("needs transformers>=5.1")
    if case == "native_pool":
        pytest.importorskip("scipy", reason="needs the extra [pooling]")


@cache
def load(case: str, **options) -> ColBERT:
    return ColBERT(GOLDEN / case / "checkpoint", device="cpu", long_documents="truncate", **options)


def texts_of(case: str, side: str) -> dict[str, str]:
    said = json.loads((GOLDEN / case / "expected.json").read_text())
    file = "more_texts.json" if "versions" in said else "texts.json"
    texts = json.loads((GOLDEN / file).read_text("utf-8"))[side]
    assert texts.keys() == said[side].keys()
    return texts


def encode(model: ColBERT, side: str, texts: list[str]) -> list[np.ndarray]:
    run = model.encode_query if side == "query" else model.encode_document
    return [matrix.numpy() for matrix in run(texts)]


def assert_expected(case: str, side: str, encoded: dict[str, np.ndarray]) -> None:
    with np.load(GOLDEN / case / "expected.npz") as expected:
        assert {f"{side}/{name}" for name in encoded} == {key for key in expected if key.startswith(side)}
        for name, ours in encoded.items():
            theirs = expected[f"{side}/{name}"]
            assert ours.shape == theirs.shape, name
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=FP32, err_msg=name)


def test_token_ids_are_the_authoritys(case: str, side: str) -> None:
    said = json.loads((GOLDEN / case / "expected.json").read_text())[side]
    texts, encoder = texts_of(case, side), load(case)._ready()
    for name, tokens in zip(texts, encoder.tokenizer.tokens(list(texts.values()), side), strict=True):
        (sequence,) = encoder.sequences(tokens, side)
        assert sequence.ids == said[name]["input_ids"], name


def test_vectors_are_the_authoritys_for_a_text_alone(case: str, side: str) -> None:
    model = load(case)
    alone = {name: encode(model, side, [text])[0] for name, text in texts_of(case, side).items()}
    assert_expected(case, side, alone)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 7}, {"batch_tokens": 100}], ids=str)
def test_vectors_are_the_authoritys_in_batches(case: str, side: str, options: dict[str, int]) -> None:
    texts = texts_of(case, side)
    encoded = encode(load(case, **options), side, list(texts.values()))
    assert_expected(case, side, dict(zip(texts, encoded, strict=True)))
