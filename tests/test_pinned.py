"""What indexes and collections that exist already hold: literals that no version may change without a new format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import saved_indexes
from colbert_integrations import ColBERT, MemoryStore
from colbert_integrations.index.centroids import Centroids
from colbert_integrations.index.quantization import PackedBits
from colbert_integrations.loading import _content_id
from colbert_integrations.qdrant.points import payload_of, point_id
from colbert_integrations.scoring.reference import reference_maxsim

GOLDEN = Path(__file__).parent / "golden"


def test_the_point_of_an_id() -> None:
    assert point_id("a") == "4629dd3b-8472-5559-ae5f-8b31527b2d9f"


def test_the_payload_of_a_point() -> None:
    assert payload_of("a", "wing é", {"n": [1, 0.5]}) == {
        "id": "a",
        "text": "wing é",
        "text_hash": "392014c9-6420-158e-9fd5-a268fbadfc40",  # printf 'wing é' | sha256sum, half of it
        "metadata": {"n": [1, 0.5]},
    }
    assert payload_of("b", None, {"n": 0.1 + 0.2}) == {
        "id": "b",
        "text": None,
        "metadata": {"n": [0.3, 0.300000000001]},
        "exact": '{"n": 0.30000000000000004}',
    }


def test_the_id_of_a_content_which_the_order_of_metadata_does_not_change() -> None:
    assert _content_id("a", {"n": 1}) == "423e7dc534002d665a438ec9212d2524"
    assert _content_id("a", {"a": 1, "b": 2}) == _content_id("a", {"b": 2, "a": 1})


@pytest.mark.parametrize(("nbits", "codes"), [(4, [82, 50, 90, 87, 115, 64]), (2, [4, 86, 163, 64])])
def test_codes_of_few_bits(nbits: int, codes: list[int]) -> None:
    encoded = PackedBits(nbits, 8).encode(torch.arange(8.0)[None] - 3.3)
    packed = encoded if isinstance(encoded, torch.Tensor) else encoded[0]
    assert packed.tolist() == [codes]


def test_the_digest_of_a_model() -> None:
    model = ColBERT(GOLDEN / "stanford_bert" / "checkpoint", device="cpu")
    assert model.fingerprint.digest == "f09cee45a51478cf283e9e95acd4a3a1"


# ------------------------------------------------------------------------------------------------------- saved indexes

# What each of few bits gave when it was saved; what is kept as it is gives MaxSim of the vectors by the formula.
FOUND: dict[str, list[list[tuple[str, float]]]] = {
    "nbits2": [
        [("ü/c:1", 29.1615), ("d", 13.9568), ("f", 12.5910), ("a", 3.1395)],
        [("a", 6.0696), ("f", 3.5747), ("ü/c:1", 3.4051), ("d", 3.3617)],
    ],
    "nbits4_pooled": [
        [("ü/c:1", 30.5217), ("d", 15.7718), ("f", 12.0339), ("a", 4.4566)],
        [("a", 5.5619), ("ü/c:1", 4.3540), ("f", 3.4314), ("d", 3.3403)],
    ],
    "nbits8": [
        [("ü/c:1", 30.6447), ("d", 15.7923), ("f", 12.5915), ("a", 4.4478)],
        [("a", 5.6457), ("ü/c:1", 4.3494), ("f", 3.6299), ("d", 3.4862)],
    ],
}
# The least cosine of a vector and what is kept of it.
LIKENESS = {"nbits2": 0.9, "nbits4_pooled": 0.99, "nbits8": 0.9999}


def by_the_formula() -> list[list[tuple[str, float]]]:
    names = list(saved_indexes.METADATA)
    every = saved_indexes.documents()
    scores = reference_maxsim(saved_indexes.queries(), [every[name] for name in names]).tolist()
    return [sorted(zip(names, row, strict=True), key=lambda pair: -pair[1])[:4] for row in scores]


@pytest.mark.parametrize("form", saved_indexes.FORMS)
def test_documents_and_settings_of_an_index_that_was_saved_before(form: str) -> None:
    options, every = saved_indexes.FORMS[form], saved_indexes.documents()
    store = MemoryStore.load(GOLDEN / "indexes" / form)
    assert store.fingerprint is not None
    assert store.fingerprint.as_json() == saved_indexes.FINGERPRINT.as_json()
    assert store.search_default == options.get("search", "exact")
    assert store.candidates_default == options.get("candidates")
    assert store.ids() == ["a", "b", "d", "e", "f", "ü/c:1"]
    for document in store.get(store.ids(), embeddings=True):
        assert document.text == saved_indexes.TEXTS[document.id]
        assert document.metadata == saved_indexes.METADATA[document.id]
        kept, made = document.embeddings, every[document.id]
        assert kept is not None
        if form in LIKENESS:
            assert torch.cosine_similarity(kept, made).min() > LIKENESS[form]
        else:
            assert torch.equal(kept.float(), made)


@pytest.mark.parametrize(
    ("form", "search"),
    [
        (form, search)
        for form, options in saved_indexes.FORMS.items()
        for search in ("exact", "centroids", *(["codes"] if "nbits" in options else []))
    ],
)
def test_what_is_found_in_an_index_that_was_saved_before(form: str, search: Any) -> None:
    store = MemoryStore.load(GOLDEN / "indexes" / form)
    found = store.search(saved_indexes.queries(), 4, search=search, candidates=6)
    expected = FOUND.get(form) or by_the_formula()
    assert [[hit.id for hit in hits] for hits in found] == [[name for name, _ in row] for row in expected]
    for hits, row in zip(found, expected, strict=True):
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in row], abs=0.01)


def test_lists_that_were_saved_before_choose_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Centroids, "nearest", None)  # so that none are made
    store = MemoryStore.load(GOLDEN / "indexes" / "centroids")
    hits = store.search(saved_indexes.queries(), 2, candidates=2)[0]
    assert [hit.id for hit in hits] == ["ü/c:1", "f"]  # by them the second is another one


@pytest.mark.parametrize("form", saved_indexes.FORMS)
def test_an_index_that_was_saved_before_is_written_on(form: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "indexes" / form, tmp_path / form)
    store = MemoryStore.load(tmp_path / form)
    before = store.search(saved_indexes.queries(), 4)
    store.upsert(["new"], saved_indexes.queries()[:1])
    store.delete(["b"])
    store.save(tmp_path / form)
    assert not [*(tmp_path / form).glob("*.pooled.*")], "of a stage that there was before"
    again = MemoryStore.load(tmp_path / form)
    assert again.ids() == ["a", "d", "e", "f", "new", "ü/c:1"]
    assert again.search(saved_indexes.queries(), 1)[0][0].id == "new"
    again.delete(["new"])
    again.compact()
    assert again.search(saved_indexes.queries(), 4) == before
