"""Settings of a checkpoint's tokenizer that its library follows, against the ids that the tokenizer itself gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import checkpoints
from colbert_integrations import ColBERT, TruncationWarning

LONG = "The fox, the dog and the cat run into the city where the wind lifts the wings of a plane over the river. "


def build(name: str, folder: Path, file: str = "tokenizer_config.json", **changed) -> Path:
    """A checkpoint with keys of a JSON file changed."""
    path = checkpoints.build(name, folder)
    settings = json.loads((path / file).read_text()) | changed
    (path / file).write_text(json.dumps(settings))
    return path


def load(path: Path, **options) -> ColBERT:
    return ColBERT(path, device="cpu", long_documents="truncate", **options)


def ids_of(model: ColBERT, text: str, side) -> list[int]:
    encoder = model._ready()
    (sequence,) = encoder.sequences(encoder.tokenizer.tokens([text], side)[0], side)
    return sequence.ids


def cut_ids(path: Path, text: str, length: int) -> list[int]:
    """What the libraries get where they let the tokenizer cut."""
    return AutoTokenizer.from_pretrained(str(path))(text, truncation=True, max_length=length)["input_ids"]


# ------------------------------------------------------------------------------------------------------- truncation


@pytest.mark.parametrize("setting", ["tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer_that_cuts_the_beginning_also_cuts_the_prompt(setting: str, tmp_path: Path) -> None:
    cut = {"direction": "Left", "max_length": 30, "strategy": "LongestFirst", "stride": 0}
    changed = {"truncation_side": "left"} if setting == "tokenizer_config.json" else {"truncation": cut}
    path = build("native", tmp_path, setting, **changed)
    model = load(path)
    for side, marker, length in (("query", "[Q] ", 16), ("document", "[D] ", 40)):
        ids = ids_of(model, LONG * 2, side)
        assert ids == cut_ids(path, marker + LONG * 2, length)
        assert model._ready().tokenizer.text_of(ids[1]) != marker
    assert any("truncation_side" in note for note in model.spec.notes)


def test_a_marker_that_is_inserted_by_id_stays(tmp_path: Path) -> None:
    # PyLate and colbert-ai cut first, to one token less, and then insert the marker.
    for name in ("pylate", "stanford"):
        path = build(name, tmp_path, truncation_side="left")
        model = load(path)
        first, *rest = cut_ids(path, LONG.strip() * 2, 39)
        assert ids_of(model, LONG.strip() * 2, "document") == [first, model.spec.document_marker_id, *rest]


def test_cutting_the_beginning_is_told_and_explained(tmp_path: Path) -> None:
    model = load(build("pylate", tmp_path, truncation_side="left"))
    with pytest.warns(TruncationWarning, match="1 of 1 documents"):
        explanation = model.explain("a fox", LONG * 2)
    spans = [token.span for token in explanation.similarities.document_tokens if token.span is not None]
    assert min(spans)[0] > len(LONG) - 20
    assert max(spans)[1] > 2 * len(LONG) - 10
    assert explanation.document_cut is None


def test_windows_and_short_texts_are_the_same_from_either_side(tmp_path: Path, checkpoint: Callable) -> None:
    path = build("pylate", tmp_path, truncation_side="left")
    for text in ("a fox", LONG * 2):
        ours, theirs = (ColBERT(folder, device="cpu").encode_document(text) for folder in (path, checkpoint("pylate")))
        assert ours.values.equal(theirs.values)
