"""Results are the same whatever torch's default device and dtype are.

Notebooks like to set the device to a GPU; transformers sets the dtype, for all threads, while it loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, TokenEmbeddings, kernel, maxsim

TEXTS = ["the lift of a wing", "bread is made of flour, water and salt", "", "heat on a wing at supersonic speed"]
QUERY = "what lifts a wing"


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


Defaults = Callable[[], AbstractContextManager[Any]]


# A device that holds no numbers: whatever is made there by mistake fails.
@pytest.fixture(params=["meta", torch.bfloat16, torch.float64], ids=str)
def defaults(request: pytest.FixtureRequest) -> Defaults:
    if request.param == "meta":
        return lambda: torch.device("meta")
    return lambda: default_dtype(request.param)


@pytest.fixture(params=["torch", "compiled"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "compiled" and kernel.load() is None:
        pytest.skip("needs the compiled kernel: pip install ./kernel")
    if request.param == "torch":
        monkeypatch.setattr(kernel, "load", lambda: None)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("layout", ["stanford", "pylate"])
def test_ranks_the_same(layout: str, dtype: str, checkpoint: Callable[[str], Path], defaults: Defaults) -> None:
    model = ColBERT(checkpoint(layout), device="cpu", dtype=dtype)

    def ranked() -> Any:
        pooled = model.encode_document(TEXTS, pool_factor=2).values.tolist()
        return model.rank(QUERY, TEXTS), str(model.explain(QUERY, TEXTS[0])), pooled

    here = ranked()
    with defaults():
        assert ranked() == here


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_the_same(dtype: torch.dtype, defaults: Defaults) -> None:
    documents = [torch.randn(length, 16).to(dtype) for length in (3, 40, 0, 7)]
    sides = [(documents[:2], documents), (documents, []), (TokenEmbeddings.from_list(documents),) * 2]
    here = [maxsim(*pair) for pair in sides]
    with defaults():
        for pair, expected in zip(sides, here, strict=True):
            found = maxsim(*pair)
            assert (found.dtype, found.device) == (torch.float32, torch.device("cpu"))
            assert torch.equal(found, expected)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("bits", [None, 8, 4, 2])
def test_searches_the_same(bits: Any, tiny: ColBERT, tmp_path: Path, defaults: Defaults) -> None:
    def found(folder: Path) -> Any:
        index = ColBERTIndex(tiny, MemoryStore(nbits=bits, keep_originals=bits is not None))
        index.add(TEXTS, ids=list("abcd"), metadatas=[{"n": number} for number in range(4)])
        index.delete(["b"])
        index.save(folder)
        loaded = ColBERTIndex.load(folder, tiny)
        ways = ["exact", "centroids", *(["codes"] if bits else [])]
        return [
            [(hit.id, hit.score) for hit in one.search(QUERY, k=2, filter={"n": {"$lt": 9}}, search=way, candidates=2)]
            for one in (index, loaded)
            for way in ways
        ]

    here = found(tmp_path / "here")
    with defaults():
        assert found(tmp_path / "elsewhere") == here


@pytest.mark.parametrize("layout", ["stanford", "pylate", "bge", "native"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_loads_the_same(layout: str, dtype: torch.dtype, checkpoint: Callable[[str], Path]) -> None:
    here = ColBERT(checkpoint(layout), device="cpu").encode_document(TEXTS)
    with default_dtype(dtype):
        found = ColBERT(checkpoint(layout), device="cpu").encode_document(TEXTS)
    assert found.values.dtype == torch.float32
    assert torch.equal(found.values, here.values)
