"""Copies to a device: on all but CUDA they are waited for.

MPS reads the host's memory later than ``to(..., non_blocking=True)`` returns, by when others may have written there:
https://github.com/pytorch/pytorch/issues/189690. No such device is needed to see what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoints
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each ``Tensor.to``, whether it need not wait."""
    asked, real = list[bool](), torch.Tensor.to

    def to(tensor: torch.Tensor, *where: Any, **options: Any) -> torch.Tensor:
        asked.append(options.get("non_blocking", False))
        return real(tensor, *where, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    return asked


def test_token_ids_are_waited_for(checkpoint: Callable[[str], Path], tmp_path: Path, copies: list[bool]) -> None:
    checkpoints.others(tmp_path, "mpnet")
    packed, padded = ColBERT(checkpoint("stanford"), device="cpu"), ColBERT(tmp_path, device="cpu")
    copies.clear()
    for model in (packed, padded):
        model.rank("how does a plane fly", ["the fox", "a plane flies over paris"])
        assert copies
        assert not any(copies)
        copies.clear()


@pytest.mark.parametrize("search", ["exact", "codes", "centroids"])
def test_blocks_of_an_index_are_waited_for(tiny: ColBERT, copies: list[bool], search: str) -> None:
    index = ColBERTIndex(tiny, MemoryStore(nbits=8, keep_originals=True))
    index.add(["the fox", "a plane flies over paris", "bread"])
    copies.clear()
    index.store.search(tiny.encode_query("plane"), 1, search=search, candidates=1)  # type: ignore[arg-type]
    assert copies
    assert not any(copies)
