"""What is on a CPU stays there whatever torch's default device is, which notebooks like to set to a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, kernel, maxsim

TEXTS = ["the lift of a wing", "bread is made of flour, water and salt", "", "heat on a wing at supersonic speed"]
QUERY = "what lifts a wing"

# A device that holds no numbers: whatever is made there by mistake fails.
ELSEWHERE = torch.device("meta")


@pytest.fixture(params=["torch", "compiled"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "compiled" and kernel.load() is None:
        pytest.skip("needs the compiled kernel: pip install ./kernel")
    if request.param == "torch":
        monkeypatch.setattr(kernel, "load", lambda: None)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("layout", ["stanford", "pylate"])
def test_ranks_the_same(layout: str, dtype: str, checkpoint: Callable[[str], Path]) -> None:
    # transformers loads no weights while the default device is this one.
    model = ColBERT(checkpoint(layout), device="cpu", dtype=dtype)

    def ranked() -> Any:
        pooled = model.encode_document(TEXTS, pool_factor=2).values.tolist()
        return model.rank(QUERY, TEXTS), str(model.explain(QUERY, TEXTS[0])), pooled

    here = ranked()
    with ELSEWHERE:
        assert ranked() == here


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_the_same(dtype: torch.dtype) -> None:
    documents = [torch.randn(length, 16).to(dtype) for length in (3, 40, 0, 7)]
    here = maxsim(documents[:2], documents)
    with ELSEWHERE:
        assert torch.equal(maxsim(documents[:2], documents), here)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("bits", [None, 8, 4, 2])
def test_searches_the_same(bits: Any, tiny: ColBERT, tmp_path: Path) -> None:
    def found(folder: Path) -> Any:
        index = ColBERTIndex(tiny, MemoryStore(nbits=bits, keep_originals=bits is not None))
        index.add(TEXTS, ids=list("abcd"), metadatas=[{"n": number} for number in range(4)])
        index.delete(["b"])
        index.save(folder)
        loaded = ColBERTIndex.load(folder, tiny)
        ways = ["exact", "pooled", *(["codes"] if bits else [])]
        return [
            [(hit.id, hit.score) for hit in one.search(QUERY, k=3, filter={"n": {"$lt": 9}}, search=way)]
            for one in (index, loaded)
            for way in ways
        ]

    here = found(tmp_path / "here")
    with ELSEWHERE:
        assert found(tmp_path / "elsewhere") == here
