"""A store on a GPU that is pretended: no step mixes devices, and it finds what a store on the CPU finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import interpreted
from colbert_integrations import MemoryStore, TokenEmbeddings, maxsim
from colbert_integrations.errors import InputError
from colbert_integrations.index import memory
from colbert_integrations.index.layout import Layout
from colbert_integrations.pooling import pool_tokens
from colbert_integrations.scoring import triton
from pretended import OnCuda, pretended_cuda
from stores import units

pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="needs a machine without a GPU; with one, the true one is used"
    ),
    # A document without tokens is -inf times a weight of 0 before it is set right; NumPy says so, a GPU does not.
    pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning"),
]
FP16 = torch.finfo(torch.float16).eps
DIM, TOKENS, COUNT = 32, 8, 24
DOCUMENTS, QUERIES = units(1, *(3 + number * 7 % 11 for number in range(COUNT)), dim=DIM), units(2, TOKENS, 5, dim=DIM)
IDS = [f"d{number:02}" for number in range(COUNT)]
# On a GPU queries are rounded to the documents' float16: at most half a unit of each number, so as much of a vector.
BOUND = TOKENS * FP16 / 2


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from colbert_integrations.scoring import triton_kernels

    monkeypatch.setattr(triton, "is_available", lambda device: device.type == "cuda")
    with interpreted.interpreted(triton_kernels), pretended_cuda(triton_kernels):
        yield


def scores(store: MemoryStore, k: int = len(IDS), **options: Any) -> list[dict[str, float]]:
    """The score of each document that is found, for each query."""
    found = store.search(QUERIES.to(store.device), k, **options)
    return [{hit.id: hit.score for hit in hits} for hits in found]


def life(
    store: MemoryStore, modes: list[str], folder: Path, devices: list[str] | None = None
) -> dict[str, list[dict[str, float]]]:
    """What is found at several moments of a store's life."""
    documents, found = DOCUMENTS.to(store.device), dict[str, list[dict[str, float]]]()
    for half in (slice(0, COUNT // 2), slice(COUNT // 2, COUNT)):
        store.upsert(IDS[half], documents[half], metadatas=[{"n": number} for number in range(COUNT // 2)])
    if devices is not None:
        assert sorted({view.segment.device.type for view in store._now().views}) == devices
    for mode in modes:
        found[mode] = scores(store, COUNT if mode == "exact" else 3, search=mode, candidates=8)
    found["filtered"] = scores(store, filter={"n": {"$gt": 7}})
    found["among"] = scores(store, ids=IDS[::5])
    store.delete(IDS[1:12:2])
    store.upsert(IDS[:5], documents[:5])
    found["changed"] = scores(store)
    store.compact()
    found["compacted"] = scores(store, 3, search="centroids", candidates=8)
    store.save(folder)
    return found


FORMS: list[dict[str, Any]] = [
    {},
    {"dtype": "float32"},
    {"nbits": 8},
    {"nbits": 4},
    {"nbits": 2, "keep_originals": True},
    {"nbits": 8, "keep_originals": True},
]


# Vectors of how many tokens may be on the device, and where they all are then: the two halves have some hundred each.
WHOLE, PART, NONE = (None, ["cuda"]), (110, ["cpu", "cuda"]), (0, ["cpu"])


@pytest.mark.parametrize(
    ("form", "room"),
    [*((form, WHOLE) for form in FORMS), *((FORMS[number], PART) for number in (0, 3, 5)), (FORMS[0], NONE)],
    ids=str,
)
def test_a_store_there_finds_what_one_here_finds(
    form: dict[str, Any], room: tuple[int | None, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 60)
    (rows, devices), modes = room, ["exact", "centroids", *(["codes"] if "nbits" in form else [])]
    layout = Layout(DIM, form.get("dtype", "float16"), form.get("nbits"), form.get("keep_originals", False))
    budget = None if rows is None else layout.bytes_of(rows)
    here = life(MemoryStore(**form), modes, tmp_path / "here")
    there = life(MemoryStore(**form, device="cuda", device_bytes=budget), modes, tmp_path / "there", devices)
    assert here.keys() == there.keys()
    for moment, expected in here.items():
        for one, other in zip(expected, there[moment], strict=True):
            assert other == pytest.approx(one, abs=BOUND), moment
    for device in ("cpu", "cuda"):  # of whichever device it was, it opens on each
        again = MemoryStore.load(tmp_path / "there", device=device, device_bytes=None if device == "cpu" else budget)
        for one, other in zip(there["changed"], scores(again), strict=True):
            assert other == pytest.approx(one, abs=BOUND)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lists_and_packed_vectors_are_scored_where_the_documents_are(dtype: torch.dtype) -> None:
    documents = DOCUMENTS.to(dtype=dtype)
    expected = maxsim(QUERIES, documents)
    there = documents.to("cuda")
    for given in (there, list(there)):
        scored = maxsim(QUERIES, given)
        assert isinstance(scored, OnCuda)
        torch.testing.assert_close(scored.cpu(), expected, rtol=0, atol=TOKENS * torch.finfo(dtype).eps)


def test_vectors_on_several_devices_are_refused() -> None:
    given = [torch.ones(2, DIM), torch.ones(3, DIM, device="cuda")]
    for pack in (TokenEmbeddings.from_list, lambda matrices: maxsim(QUERIES, matrices)):
        with pytest.raises(InputError, match=r"on one device, not on cpu and cuda:0: move them with \.to\(\)"):
            pack(given)
    with pytest.raises(InputError, match="on one device"):
        TokenEmbeddings.concat([DOCUMENTS, DOCUMENTS.to("cuda")])


def test_vectors_are_merged_where_they_are() -> None:
    merged = pool_tokens(DOCUMENTS.to("cuda"), 2)
    assert isinstance(merged.values, OnCuda)
    torch.testing.assert_close(merged.values.cpu(), pool_tokens(DOCUMENTS, 2).values, rtol=0, atol=1e-6)


def test_the_pretence_refuses_what_a_gpu_does() -> None:
    there = torch.ones(2, device="cuda")
    with pytest.raises(AssertionError, match="on the GPU and on the CPU"):
        _ = there + torch.ones(2)
    with pytest.raises(TypeError, match="can't convert cuda"):
        there.numpy()
    assert (there + 1).device.type == "cuda"
    assert (there + 1).cpu().tolist() == [2, 2]
