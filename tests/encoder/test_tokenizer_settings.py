"""Settings of a checkpoint's tokenizer that its library follows, against the ids that the tokenizer itself gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

import checkpoints
from colbert_integrations import ColBERT, TruncationWarning
from colbert_integrations.checkpoint import SpecOverrides, read_checkpoint
from colbert_integrations.encoder import build_tokenizer
from colbert_integrations.errors import CheckpointError, InputError

LONG = "The fox, the dog and the cat run into the city where the wind lifts the wings of a plane over the river. "


def build(name: str, folder: Path, file: str = "tokenizer_config.json", **changed) -> Path:
    """A checkpoint with keys of a JSON file changed."""
    path = checkpoints.build(name, folder)
    edit(path / file, **changed)
    return path


def edit(path: Path, **changed) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def load(path: Path, **options) -> ColBERT:
    return ColBERT(path, device="cpu", long_documents="truncate", **options)


def ids_of(model: ColBERT, text: str, side) -> list[int]:
    encoder = model._ready()
    (sequence,) = encoder.sequences(encoder.tokenizer.tokens([text], side)[0], side)
    return sequence.ids


def cut_ids(path: Path, text: str, length: int) -> list[int]:
    """What the libraries get where they let the tokenizer cut."""
    return AutoTokenizer.from_pretrained(str(path))(text, truncation=True, max_length=length)["input_ids"]


@pytest.mark.parametrize("length", ["512", [512], 20.5])
def test_a_length_that_is_no_whole_number_is_refused(length: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model_max_length .* has to be a whole number: correct it in tokenizer_"):
        load(build("stanford", tmp_path, model_max_length=length))


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


# ---------------------------------------------------------------------------------------------------------- padding


def test_fixed_expansion_stands_where_the_tokenizer_pads(tmp_path: Path, checkpoint: Callable) -> None:
    model, right = load(build("native_fixed", tmp_path, padding_side="left")), load(checkpoint("native_fixed"))
    mask = model.spec.expansion_token_id
    ids, usual = ids_of(model, "a fox", "query"), ids_of(right, "a fox", "query")
    real = [token for token in usual if token != mask]
    assert 3 < len(real) < 16
    assert ids == [mask] * (16 - len(real)) + real
    # Documents, and queries that fill their length, have no expansion.
    assert ids_of(model, LONG, "query") == ids_of(right, LONG, "query")
    ours, theirs = (each.encode_document("a fox").values for each in (model, right))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert any("padding_side" in note for note in model.spec.notes)


def test_expansion_in_front_is_explained_by_the_right_tokens(tmp_path: Path) -> None:
    model = load(build("native_fixed", tmp_path, padding_side="left"))
    explanation = model.explain("a fox", "the quick fox")
    told = [match.query_token for match in explanation.matches]
    assert len(told) == 16
    assert {token.text for token in told if token.span is None} == {"[MASK]", "[CLS]", "[Q] ", "[SEP]"}
    assert told[0].text == "[MASK]"
    assert "".join("a fox"[slice(*token.span)] for token in told if token.span is not None) == "afox"
    assert explanation.score == pytest.approx(model.rank("a fox", ["the quick fox"])[0].score, abs=1e-5)


@pytest.mark.parametrize(("name", "strategy"), [("native_min", "min"), ("pylate", "fixed")])
def test_other_expansion_stays_at_the_end(name: str, strategy: str, tmp_path: Path, checkpoint: Callable) -> None:
    # "min": sentence-transformers fills up after padding. PyLate would put its marker between the padding.
    model = load(build(name, tmp_path, padding_side="left"))
    assert model.spec.query_expansion == strategy
    assert ids_of(model, "a fox", "query") == ids_of(load(checkpoint(name)), "a fox", "query")


def test_unseen_expansion_in_front_is_not_run_in_int8(tmp_path: Path) -> None:
    path = build("native_fixed", tmp_path, padding_side="left")
    with pytest.raises(InputError, match="expansion before a query"):
        load(path, dtype="int8").encode_query("a")


# ---------------------------------------------------------------------------------------------------- lower-casing


def test_lower_casing_leaves_a_marker_in_a_prompt_whole(tmp_path: Path, checkpoint: Callable) -> None:
    model, usual = (
        load(build("native", tmp_path, "sentence_bert_config.json", do_lower_case=True)),
        load(checkpoint("native")),
    )
    for side in ("query", "document"):
        assert ids_of(model, "A FOX", side) == ids_of(model, "a fox", side) == ids_of(usual, "a fox", side)
    assert usual._ready().tokenizer.text_of(ids_of(model, "A FOX", "query")[1]) == "[Q] "


def test_places_in_a_lower_cased_text_are_those_of_the_text_as_given(tmp_path: Path) -> None:
    model = load(build("native", tmp_path, "sentence_bert_config.json", do_lower_case=True))
    text = "İİ THE Fox"  # lower-cased, the first two are longer
    found = model._ready().tokenizer.tokens([text], "document", with_spans=True)[0]
    cut = [text[slice(*span)] for span in found.spans if span is not None]
    assert "".join(cut).endswith(" THE Fox")
    assert max(stop for _, stop in filter(None, found.spans)) == len(text)


def test_a_tokenizer_that_lower_cases_anyway_is_left_alone(tmp_path: Path) -> None:
    path = build("native", tmp_path, "sentence_bert_config.json", do_lower_case=True)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.save(str(path / "tokenizer.json"))
    backend = load(path)._ready().tokenizer._backend
    assert [type(part).__name__ for part in backend.normalizer] == ["NFC", "Lowercase"]


# ---------------------------------------------------------------------------------------------------- open lengths


@pytest.mark.parametrize(("positions", "length"), [(24, 24), (900, 512), (-1, 512)])
def test_an_open_length_is_the_tokenizers_or_the_configurations_if_that_is_less(
    positions: int, length: int, tmp_path: Path
) -> None:
    checkpoints.native(tmp_path, query_length=None, document_length=None)
    edit(tmp_path / "config.json", max_position_embeddings=positions)
    checkpoint = read_checkpoint("tiny", tmp_path, SpecOverrides())
    spec = build_tokenizer(checkpoint, AutoTokenizer.from_pretrained(str(tmp_path))).spec
    assert (spec.query_length, spec.document_length) == (length, length)


def test_an_open_length_may_be_written_as_a_float(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, query_length=None, document_length=None)
    edit(tmp_path / "tokenizer_config.json", model_max_length=20.0)
    spec = load(tmp_path).spec
    assert (repr(spec.query_length), repr(spec.document_length)) == ("20", "20")
    assert len(ids_of(load(tmp_path), LONG, "document")) == 20


def test_an_open_length_cuts(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, query_length=None, document_length=None)
    edit(tmp_path / "config.json", max_position_embeddings=24)
    assert len(ids_of(load(tmp_path), LONG, "document")) == 24
    edit(tmp_path / "sentence_bert_config.json", max_seq_length=20)
    assert len(ids_of(load(tmp_path), LONG, "document")) == 20


def test_a_query_is_cut_at_max_seq_length_and_filled_up_beyond_it(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, query_length=None, expansion={"strategy": "min", "attend": True, "length": 8})
    edit(tmp_path / "sentence_bert_config.json", max_seq_length=6)
    model = load(tmp_path)
    cut = cut_ids(tmp_path, "[Q] " + LONG, 6)
    assert ids_of(model, LONG, "query") == [*cut, model.spec.expansion_token_id, model.spec.expansion_token_id]


def test_a_query_length_below_that_of_expansion_is_raised(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, query_length=6, expansion={"strategy": "min", "attend": True, "length": 8})
    assert load(tmp_path).spec.query_length == 8
