"""Every layout: what is read from it, what wins where files disagree, and how weights may be stored."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations.checkpoint import ColBERTSpec, SpecOverrides, read_checkpoint
from colbert_integrations.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    InputError,
    MissingWeightsError,
    UnsupportedCheckpointError,
)

PUNCTUATION = tuple(string.punctuation)
Build = Callable[[str], Path]


def spec_of(path: Path, name: str = "tiny", allow_unprojected: bool = False, **overrides) -> ColBERTSpec:
    return read_checkpoint(name, path, SpecOverrides(**overrides), allow_unprojected=allow_unprojected).spec


def edit(path: Path, **changed) -> None:
    """Change keys of a JSON file; ``...`` removes one."""
    value = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not ...}))


EXPECTED = {
    "stanford": {"layout": "stanford", "query_marker": "[unused0]", "query_length": 16, "document_length": 40},
    "stanford_attend": {"attend_to_expansion_tokens": True, "query_expansion": "fixed", "expansion_length": 16},
    "stanford_nopunct": {"skiplist_words": ()},
    "stanford_xlmr": {"query_marker": "[QueryMarker]", "skiplist_rule": "first_piece"},
    "xmod": {"architecture": "xmod"},
    "jina": {"architecture": "xlm-roberta-flash", "attend_to_expansion_tokens": True},
    "pylate": {"layout": "pylate", "query_marker": "[Q] ", "skiplist_words": PUNCTUATION, "strip": True},
    "pylate_noexp": {"query_expansion": "none", "expansion_length": 0},
    "pylate_attend": {"attend_to_expansion_tokens": True},
    "pylate_oldkeys": {"layout": "pylate", "query_expansion": "fixed"},
    "pylate_noskip": {"skiplist_words": ()},
    "pylate_noprefix": {"query_marker": "", "document_marker": ""},
    "pylate_prompts": {"query_prompt": "ask: ", "document_prompt": "text: "},
    "pylate_layers": {"lowercase": True, "dim": 8},
    "pylate_st_dense": {"layout": "pylate", "dim": checkpoints.DIM},
    "native": {"layout": "sentence-transformers", "query_prompt": "[Q] ", "query_expansion": "none", "strip": False},
    "native_fixed": {"query_expansion": "fixed", "expansion_length": 16, "query_length": 16},
    "native_min": {"query_expansion": "min", "expansion_length": 8, "query_length": 16},
    "hybrid_modules": {"layout": "pylate", "backbone": "0_Transformer", "document_length": 48, "query_length": 16},
    "hybrid_root_head": {"layout": "stanford", "query_marker": "[unused0]"},
    "bge": {"layout": "bge-m3", "dropped_tokens": "first", "query_marker": "", "query_length": 512},
    "plain": {"layout": "plain", "dropped_tokens": "special", "query_length": 64, "document_length": 256},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=checkpoints.marks(name)) for name in EXPECTED])
def test_reads_what_the_files_say(name: str, checkpoint: Build) -> None:
    spec = spec_of(checkpoint(name), allow_unprojected=name == "plain")
    assert {key: getattr(spec, key) for key in EXPECTED[name]} == EXPECTED[name]


def test_a_residual_chain_is_read_in_order(checkpoint: Build) -> None:
    layers = spec_of(checkpoint("pylate_layers")).projection
    assert [str(layer) for layer in layers] == [
        "32->16",
        "16->24 (residual)",
        "24->24 (GELU, bias, residual)",
        "24->8",
    ]


def test_the_report_shows_each_value_with_its_file(checkpoint: Build) -> None:
    lines = str(spec_of(checkpoint("stanford"))).splitlines()
    assert lines[0] == "ColBERT checkpoint tiny (layout: stanford)"
    marker = next(line for line in lines if line.split()[0] == "query_marker")
    assert "'[unused0]'" in marker
    assert marker.endswith("artifact.metadata: query_token_id")
    noted = str(spec_of(checkpoint("stanford"), truncate_dim=8)).splitlines()
    assert [line for line in noted if "measure" in line] == [noted[-1]]


def test_a_stanford_checkpoint_without_metadata_has_that_librarys_lengths(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    (path / "artifact.metadata").unlink()
    spec = spec_of(path)
    assert (spec.layout, spec.query_length, spec.document_length) == ("stanford", 32, 220)
    assert spec.skiplist_words == PUNCTUATION


def test_nested_metadata_is_unwrapped(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    (path / "artifact.metadata").write_text(json.dumps({"config": checkpoints.metadata(doc_maxlen=99)}))
    assert spec_of(path).document_length == 99


def test_meaningful_false_values_are_not_taken_for_absent_ones(tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path)
    edit(path / "config_sentence_transformers.json", query_prefix="", skiplist_words=[], do_query_expansion=False)
    spec = spec_of(path)
    assert (spec.query_marker, spec.skiplist_words, spec.query_expansion) == ("", (), "none")


def test_null_falls_back_to_the_formats_default(tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path)
    edit(path / "config_sentence_transformers.json", query_length=None, document_length=None, skiplist_words=None)
    spec = spec_of(path)
    assert (spec.query_length, spec.document_length, spec.skiplist_words) == (32, 180, PUNCTUATION)


def test_a_hybrid_takes_from_metadata_what_its_other_files_leave_open(tmp_path: Path) -> None:
    path = checkpoints.build("hybrid_modules", tmp_path)
    (path / "artifact.metadata").write_text(json.dumps(checkpoints.metadata(query_maxlen=20, mask_punctuation=False)))
    edit(path / "config_sentence_transformers.json", query_prefix=...)
    spec = spec_of(path)
    assert (spec.query_length, spec.query_marker, spec.skiplist_words) == (20, "[unused0]", ())


def test_a_checkpoint_that_calls_itself_pylates_is_read_as_such_wherever_its_head_is(tmp_path: Path) -> None:
    path = checkpoints.build("hybrid_root_head", tmp_path)
    (path / "config_sentence_transformers.json").write_text('{"model_type": "ColBERT", "document_length": 77}')
    spec = spec_of(path)
    assert (spec.layout, spec.document_length, spec.query_length, spec.dim) == ("pylate", 77, 16, checkpoints.DIM)


def test_a_plain_dense_model_with_pooling_is_no_colbert(tmp_path: Path) -> None:
    path = checkpoints.build("plain", tmp_path)
    checkpoints.dense(path, 2, 8, checkpoints.HIDDEN)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    checkpoints.modules(path, *[(folder, f"sentence_transformers.models.{kind}") for folder, kind in kinds])
    with pytest.raises(MissingWeightsError, match="allow_unprojected"):
        spec_of(path)


# ---------------------------------------------------------------------------------------------- heads and weights


@pytest.mark.parametrize("head", ["linear.weight", "colbert_linear.weight"])
def test_the_head_is_found_under_either_name(head: str, tmp_path: Path, checkpoint: Build) -> None:
    checkpoints.stanford(tmp_path, head=head)
    ours = ColBERT(tmp_path, device="cpu").encode_document(["a cat"]).values
    assert torch.equal(ours, ColBERT(checkpoint("stanford"), device="cpu").encode_document(["a cat"]).values)


def test_a_head_with_a_bias_uses_it(tmp_path: Path, checkpoint: Build) -> None:
    checkpoints.stanford(tmp_path, bias=True)
    with_bias = ColBERT(tmp_path, device="cpu")
    assert with_bias.spec.projection[0].bias
    plain = ColBERT(checkpoint("stanford"), device="cpu")
    assert not torch.allclose(with_bias.encode_query("a").values, plain.encode_query("a").values, atol=1e-3)


@pytest.mark.parametrize("key", ["colbert_dim", "dim", "projection_dim"])
def test_a_dimension_that_the_head_contradicts_is_noted(key: str, tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    edit(path / "config.json", **{key: 64})
    spec = spec_of(path)
    assert spec.dim == checkpoints.DIM
    assert any(f"config.json: {key} says 64" in note for note in spec.notes)


@pytest.mark.parametrize(("layout", "activation"), [("native", "torch.nn.Tanh"), ("pylate", "torch.nn.Identity")])
def test_a_dense_that_names_no_activation_has_that_of_its_library(layout: str, activation: str, tmp_path: Path) -> None:
    path = checkpoints.build(layout, tmp_path)
    edit(path / "1_Dense" / "config.json", activation_function=...)
    assert spec_of(path).projection[0].activation == activation


def test_a_dense_that_does_not_say_so_has_a_bias(tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path)
    edit(path / "1_Dense" / "config.json", bias=...)
    with pytest.raises(MissingWeightsError, match=r"'linear\.bias'"):
        spec_of(path)


def test_a_dense_without_widths_is_named(tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path)
    edit(path / "1_Dense" / "config.json", in_features=...)
    with pytest.raises(MissingWeightsError, match=r"1_Dense/config\.json lacks 'in_features'"):
        spec_of(path)


def test_a_dense_of_another_shape_than_it_says_is_refused(tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path)
    edit(path / "1_Dense" / "config.json", out_features=8)
    with pytest.raises(CheckpointError, match=r"linear\.weight has shape \(16, 32\), its config says \(8, 32\)"):
        spec_of(path)


def test_a_head_without_a_matrix_is_refused(tmp_path: Path) -> None:
    path = checkpoints.build("bge", tmp_path)
    torch.save({"bias": torch.zeros(32)}, path / "colbert_linear.pt")
    with pytest.raises(MissingWeightsError, match=r"colbert_linear\.pt must hold a matrix named weight"):
        spec_of(path)


@pytest.mark.parametrize("layout", ["stanford_attend", "pylate", "native"])
def test_dimensions_to_cut_at_are_read_from_either_file(layout: str, tmp_path: Path) -> None:
    path = checkpoints.build(layout, tmp_path)
    edit(path / "config.json", matryoshka_dimensions=[4, 8])
    assert spec_of(path).matryoshka_dims == (4, 8)
    if layout != "stanford_attend":
        edit(path / "config_sentence_transformers.json", matryoshka_dims=[2])
        assert spec_of(path).matryoshka_dims == (2,)


def test_stanfords_l2_similarity_is_noted(tmp_path: Path) -> None:
    checkpoints.stanford(tmp_path, similarity="l2")
    assert any("trained with l2 similarity" in note for note in spec_of(tmp_path).notes)


def test_the_width_of_distilberts_states_is_no_dimension_of_the_head(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    (path / "artifact.metadata").write_text(json.dumps(checkpoints.metadata(dim=64)))
    edit(path / "config.json", model_type="distilbert", dim=checkpoints.HIDDEN)
    assert [note.split(" says ")[0] for note in spec_of(path).notes] == ["artifact.metadata: dim"]


def _shard(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, some in halves.items():
        save_file({name: tensors[name] for name in some}, path / file, metadata={"format": "pt"})
    index = {name: file for file, some in halves.items() for name in some}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (path / "model.safetensors").unlink()


def _pickle(path: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def _shard_pickled(path: Path) -> None:
    _shard(path)
    index = (path / "model.safetensors.index.json").read_text()
    for file in sorted(path.glob("model-*.safetensors")):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    (path / "pytorch_model.bin.index.json").write_text(index.replace(".safetensors", ".bin"))
    (path / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize("store", [_shard, _pickle, _shard_pickled])
def test_weights_may_be_stored_otherwise(store: Callable[[Path], None], tmp_path: Path, checkpoint: Build) -> None:
    path = checkpoints.build("stanford", tmp_path)
    store(path)
    ours = ColBERT(path, device="cpu").encode_document(["the fox runs"]).values
    assert torch.equal(ours, ColBERT(checkpoint("stanford"), device="cpu").encode_document(["the fox runs"]).values)


def test_a_pylate_head_may_be_pickled(tmp_path: Path, checkpoint: Build) -> None:
    path = checkpoints.build("pylate", tmp_path)
    tensors = load_file(path / "1_Dense" / "model.safetensors")
    torch.save(tensors, path / "1_Dense" / "pytorch_model.bin")
    (path / "1_Dense" / "model.safetensors").unlink()
    ours = ColBERT(path, device="cpu").encode_document(["a cat"]).values
    assert torch.equal(ours, ColBERT(checkpoint("pylate"), device="cpu").encode_document(["a cat"]).values)


def test_half_precision_weights_run_in_float32_on_the_cpu(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    tensors = {name: tensor.half() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    edit(path / "config.json", torch_dtype="float16")
    half = ColBERT(path, device="cpu")
    assert half.encode_query("a").values.dtype == torch.float32
    full = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(full, path / "model.safetensors", metadata={"format": "pt"})
    edit(path / "config.json", torch_dtype="float32")
    assert torch.equal(half.encode_query("a").values, ColBERT(path, device="cpu").encode_query("a").values)


def test_a_pickle_of_something_else_than_tensors_by_name_is_refused(tmp_path: Path) -> None:
    path = checkpoints.build("bge", tmp_path)
    torch.save([torch.zeros(2)], path / "colbert_linear.pt")
    with pytest.raises(CheckpointError, match="must hold tensors by name, not a list"):
        spec_of(path)


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path = checkpoints.build("bge", tmp_path)
    torch.save({"weight": print}, path / "colbert_linear.pt")
    with pytest.raises(CheckpointError, match="not a plain file of tensors"):
        spec_of(path)


# ------------------------------------------------------------------------------------------------- damaged, missing


def test_a_missing_head_is_named(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    tensors = load_file(path / "model.safetensors")
    del tensors["linear.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingWeightsError, match=r"no projection.*linear\.weight"):
        spec_of(path)


def test_a_missing_dense_file_is_named(tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path)
    (path / "1_Dense" / "model.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match=r"1_Dense has no tensor 'linear\.weight'"):
        spec_of(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    _shard(path)
    (path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"model-2\.safetensors"):
        spec_of(path)


@pytest.mark.parametrize(("said", "why"), [([], r"weight_map is \[\]"), ({"linear.weight": 2}, r"linear\.weight is 2")])
def test_an_index_of_shards_that_can_not_be_read_is_refused(said: object, why: str, tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    _shard(path)
    edit(path / "model.safetensors.index.json", weight_map=said)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors\.index\.json: {why}, and has to be"):
        spec_of(path)


def test_missing_backbone_weights_are_refused(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    tensors = load_file(path / "model.safetensors")
    lost = "bert.encoder.layer.1.output.dense.weight"
    del tensors[lost]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingWeightsError, match=lost.removeprefix("bert.")):
        ColBERT(path, device="cpu")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    (path / "artifact.metadata").write_text("{")
    with pytest.raises(CheckpointError, match=r"artifact\.metadata is not JSON"):
        spec_of(path)
    (path / "artifact.metadata").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        spec_of(path)
    path = checkpoints.build("stanford_attend", tmp_path)
    (path / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        spec_of(path)


def test_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path)
    checkpoints.dense(path, 2, 4, 99)
    listed = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([*listed, {"path": "2_Dense", "type": "pylate.models.Dense.Dense"}]))
    with pytest.raises(CheckpointError, match="32->16 then 99->4"):
        spec_of(path)


def test_an_empty_folder_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json"):
        spec_of(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "bundled/nothing"])
def test_a_name_that_leads_nowhere_is_refused(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError):
        ColBERT(name, device="cpu")


# -------------------------------------------------------------------------------------------------------- overrides


def test_explicit_arguments_win(checkpoint: Build) -> None:
    spec = spec_of(
        checkpoint("pylate"), query_length=10, document_length=20, skiplist_words=("the",), query_prompt="q:"
    )
    assert (spec.query_length, spec.expansion_length, spec.document_length) == (10, 10, 20)
    assert (spec.skiplist_words, spec.query_prompt) == (("the",), "q:")
    assert spec.sources["document_length"] == "argument"


def test_expansion_can_be_switched(checkpoint: Build) -> None:
    off = spec_of(checkpoint("stanford_attend"), query_expansion=False)
    assert (off.query_expansion, off.expansion_length, off.attend_to_expansion_tokens) == ("none", 0, False)
    on = spec_of(checkpoint("pylate_noexp"), query_expansion=True)
    assert (on.query_expansion, on.expansion_length) == ("fixed", 16)


def test_expansion_that_is_switched_on_is_attended_as_the_files_say(tmp_path: Path) -> None:
    path = checkpoints.build("pylate_attend", tmp_path)
    edit(path / "config_sentence_transformers.json", do_query_expansion=False)
    assert not spec_of(path).attend_to_expansion_tokens
    assert spec_of(path, query_expansion=True).attend_to_expansion_tokens


def test_a_longer_query_moves_only_fixed_expansion(checkpoint: Build) -> None:
    assert spec_of(checkpoint("native_fixed"), query_length=24).expansion_length == 24
    short = spec_of(checkpoint("native_min"), query_length=24)  # longer queries are cut there, others filled up to 8
    assert (short.query_expansion, short.query_length, short.expansion_length) == ("min", 24, 8)


def test_a_known_checkpoint_is_set_right_and_an_argument_beats_that(checkpoint: Build) -> None:
    known = "lightonai/GTE-ModernColBERT-v1"
    old = checkpoint("pylate_oldkeys")  # as an old revision of it: expansion is not mentioned
    assert spec_of(old).query_expansion == "fixed"
    assert spec_of(old, name=known).query_expansion == "none"
    assert spec_of(old, name=known, query_expansion=True).query_expansion == "fixed"


@pytest.mark.parametrize("size", ["", "-96", "-64"])
def test_what_is_known_of_jina_colbert_beats_its_files(size: str, checkpoint: Build) -> None:
    # pylate pull request 55: expansion is attended.
    spec = spec_of(checkpoint("stanford"), name=f"jinaai/jina-colbert-v2{size}")
    markers = (spec.query_marker, spec.document_marker)
    assert (markers, spec.attend_to_expansion_tokens) == (("[QueryMarker]", "[DocumentMarker]"), True)


@checkpoints.needs_jina
def test_a_copy_of_jina_colbert_is_told_what_its_files_leave_out(tmp_path: Path) -> None:
    path = checkpoints.build("jina", tmp_path)
    assert spec_of(path).notes == ()
    (path / "artifact.metadata").write_text(json.dumps(checkpoints.metadata(attend_to_mask_tokens=False)))
    spec = spec_of(path)
    assert not spec.attend_to_expansion_tokens  # it may as well be one that was trained further, as its files say
    assert any("copy of jinaai/jina-colbert-v2" in note for note in spec.notes)
    assert spec_of(path, name="jinaai/jina-colbert-v2").notes == ()


@pytest.mark.parametrize(
    ("prompts", "default", "read"),
    [
        ({"query": "", "document": "", "ask": "ask: "}, "ask", ("ask: ", "ask: ")),
        ({"query": "q: ", "ask": "ask: "}, "ask", ("q: ", "ask: ")),
        ({"query": "q: ", "document": "d: ", "ask": "ask: "}, "ask", ("q: ", "d: ")),
        ({"query": "", "ask": "ask: "}, None, ("", "")),
        ({"query": ""}, "lost", ("", "")),
    ],
)
def test_a_side_without_a_prompt_has_pylates_default_one(
    prompts: dict[str, str], default: str | None, read: tuple[str, str], tmp_path: Path
) -> None:
    checkpoints.pylate(tmp_path, prompts=prompts, default_prompt_name=default)
    spec = spec_of(tmp_path)
    assert (spec.query_prompt, spec.document_prompt) == read
    assert spec.sources["document_prompt"].endswith("default_prompt_name") == (read[1] == "ask: ")
    # PyLate applies the default by itself, the others only when it is told to.
    assert any("prompt_name=" in note for note in spec.notes) == bool(prompts["query"])


def test_a_native_checkpoint_has_no_default_prompt(tmp_path: Path) -> None:
    # encode_query and encode_document of sentence-transformers take the one of their side, also where it is null.
    path = checkpoints.build("native", tmp_path)
    edit(path / "config_sentence_transformers.json", prompts={"query": "[Q] ", "ask": "a"}, default_prompt_name="ask")
    assert spec_of(path).document_prompt == ""


def test_scores_that_are_means_elsewhere_are_noted(tmp_path: Path) -> None:
    path = checkpoints.build("native", tmp_path)
    assert spec_of(path).notes == ()
    edit(path / "config_sentence_transformers.json", similarity_fn_name="meanmaxsim")
    assert any("scores here are sums" in note for note in spec_of(path).notes)


def test_dimensions_are_cut_only_where_the_head_allows(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    assert any("measure" in note for note in spec_of(path, truncate_dim=8).notes)
    edit(path / "config.json", matryoshka_dimensions=[4, 8])
    cut = spec_of(path, truncate_dim=8)
    assert (cut.dim, cut.notes) == (8, ())
    assert spec_of(path, truncate_dim=16).dim == 16  # all of them
    with pytest.raises(InputError, match=r"\(4, 8\)"):
        spec_of(path, truncate_dim=5)
    with pytest.raises(InputError, match="from 1 to 16"):
        spec_of(path, truncate_dim=17)


def test_a_plain_encoder_needs_consent(checkpoint: Build) -> None:
    with pytest.raises(MissingWeightsError, match="allow_unprojected=True"):
        ColBERT(checkpoint("plain"), device="cpu")
    spec = spec_of(checkpoint("plain"), allow_unprojected=True)
    assert (spec.layout, spec.projection, spec.dim) == ("plain", (), checkpoints.HIDDEN)


def test_a_plain_encoder_can_be_projected_keeping_angles(checkpoint: Build) -> None:
    path = checkpoint("plain")
    whole = ColBERT(path, device="cpu", allow_unprojected=True)
    turned = ColBERT(path, device="cpu", allow_unprojected=True, projection_dim=checkpoints.HIDDEN)
    # A square orthonormal matrix is a rotation, under which dot products stay.
    texts = ["the fox", "a lazy dog"]
    ours, theirs = (model.encode_document(texts).values for model in (turned, whole))
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=1e-5)
    assert ColBERT(path, device="cpu", allow_unprojected=True, projection_dim=8).dim == 8
    with pytest.raises(InputError, match="hidden size 32"):
        ColBERT(path, device="cpu", allow_unprojected=True, projection_dim=33)


def test_a_projection_is_the_same_whatever_signs_lapack_chooses(
    checkpoint: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> torch.Tensor:
        options = {"allow_unprojected": True, "projection_dim": 8}
        return read_checkpoint("tiny", checkpoint("plain"), SpecOverrides(), **options).head[0]["linear.weight"]

    here, qr = made(), np.linalg.qr
    signs = np.where(np.arange(8) % 3, 1, -1)

    def other(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        orthonormal, triangle = qr(matrix)
        return orthonormal * signs, triangle * signs[:, None]

    monkeypatch.setattr(np.linalg, "qr", other)
    assert torch.equal(made(), here)


def test_projection_dim_is_for_plain_encoders(checkpoint: Build) -> None:
    with pytest.raises(InputError, match="head of its own"):
        ColBERT(checkpoint("stanford"), device="cpu", projection_dim=8)


# ----------------------------------------------------------------------------------- modules of sentence-transformers


_BASE, _MULTI = "sentence_transformers.base.modules", "sentence_transformers.multi_vector_encoder.modules"
_CHAIN = {
    "Transformer": ("", f"{_BASE}.transformer.Transformer"),
    "Dense": ("1_Dense", f"{_BASE}.dense.Dense"),
    "Mask": ("2_MultiVectorMask", f"{_MULTI}.multi_vector_mask.MultiVectorMask"),
    "Normalize": ("3_Normalize", f"{_BASE}.normalize.Normalize"),
    "Pool": ("4_HierarchicalTokenPooling", f"{_MULTI}.token_pooling.HierarchicalTokenPooling"),
}


def chained(folder: Path, names: str, *more: tuple[str, str], **options) -> Path:
    """A native checkpoint with the named modules in their order, and more after them."""
    folder.mkdir(exist_ok=True)
    checkpoints.native(folder, pooling={"pool_factor": 2}, **options)
    checkpoints.modules(folder, *(_CHAIN[name] for name in names.split()), *more)
    return folder


@pytest.mark.parametrize("names", ["Transformer Mask Dense Normalize", "Transformer Dense Normalize Mask Pool"])
def test_where_the_mask_stands_changes_nothing(names: str, tmp_path: Path, checkpoint: Build) -> None:
    # sentence-transformers 6.2 gives the same vectors for these: the mask only says which tokens count.
    model = ColBERT(chained(tmp_path, names), device="cpu")
    ours, usual = (each.encode_query("the fox").values for each in (model, ColBERT(checkpoint("native"), device="cpu")))
    assert torch.equal(ours, usual)
    assert (model.spec.pooling is not None) == names.endswith("Pool")


@pytest.mark.parametrize("kind", [f"{_BASE}.dense.Dense", "pylate.models.Dense.Dense"])
def test_a_projection_may_have_several_layers(kind: str, tmp_path: Path) -> None:
    path = checkpoints.build("native", tmp_path)
    checkpoints.dense(path, 5, 8, checkpoints.DIM)
    names = ("Transformer", "Dense", "Mask", "Normalize")
    first, dense, *rest = (_CHAIN[name] for name in names)
    checkpoints.modules(path, first, dense, ("5_Dense", kind), *rest)
    assert [str(layer) for layer in spec_of(path).projection] == ["32->16", "16->8"]


@pytest.mark.parametrize(
    "names",
    [
        "Transformer Normalize Dense Mask",
        "Transformer Dense Mask Pool Normalize",
        "Transformer Dense Normalize Pool Mask",
        "Transformer Dense Mask Normalize Pool Pool",
        "Transformer Dense Mask Mask Normalize",
        "Dense Transformer Mask Normalize",
        "Dense Mask Normalize",
    ],
)
def test_another_order_of_modules_is_refused(names: str, tmp_path: Path) -> None:
    first, second, *_ = names.split()
    with pytest.raises(UnsupportedCheckpointError, match=f"runs {first}, .*{second}.* an order that is not computed"):
        spec_of(chained(tmp_path, names))


@pytest.mark.parametrize(
    "kind", ["sentence_transformers.sentence_transformer.modules.cnn.CNN", "own.Dense", f"{_BASE}.dense.OwnDense"]
)
def test_a_module_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=rf"has a module '{kind}'.*only Transformer, Dense"):
        spec_of(chained(tmp_path, "Transformer Dense Mask Normalize", ("1_Dense", kind)))


@pytest.mark.parametrize(
    ("module", "changed", "message"),
    [
        ("3_Normalize", {"module_input_name": ...}, "Normalize whose module_input_name is 'sentence_embedding'"),
        ("3_Normalize", {"module_output_name": "unit"}, "Normalize whose module_output_name is 'unit'"),
        ("1_Dense", {"module_input_name": "sentence_embedding"}, "Dense whose module_input_name is 'sentence_emb"),
    ],
)
def test_a_module_that_works_on_something_else_is_refused(module, changed, message, tmp_path: Path) -> None:
    path = checkpoints.build("native", tmp_path)
    edit(path / module / "config.json", **changed)
    with pytest.raises(UnsupportedCheckpointError, match=message):
        spec_of(path)


def test_a_dense_that_names_no_key_works_on_tokens(tmp_path: Path) -> None:
    path = checkpoints.build("native", tmp_path)
    edit(path / "1_Dense" / "config.json", module_input_name=..., module_output_name=...)
    assert spec_of(path).dim == checkpoints.DIM


def test_expansion_that_nothing_counts_is_refused(tmp_path: Path) -> None:
    expansion = {"strategy": "fixed", "attend": False, "length": 16}
    with pytest.raises(CheckpointError, match="expands queries and has no MultiVectorMask"):
        spec_of(chained(tmp_path, "Transformer Dense Normalize", expansion=expansion))
    assert spec_of(chained(tmp_path / "none", "Transformer Dense Normalize")).skiplist_words == ()
    seen = chained(tmp_path / "seen", "Transformer Dense Normalize", expansion={**expansion, "attend": True})
    assert spec_of(seen).attend_to_expansion_tokens


def test_without_a_mask_the_backbones_configuration_is_not_read_as_one(tmp_path: Path) -> None:
    path = chained(tmp_path, "Transformer Dense Normalize")
    edit(path / "config.json", skiplist_words=["the"], skiplist_tasks=["query"], keep_only_token_ids=[7])
    spec = spec_of(path)
    assert (spec.skiplist_words, spec.skiplist_tasks) == ((), ("document",))


def test_a_checkpoint_for_page_images_is_refused(tmp_path: Path) -> None:
    path = checkpoints.build("native", tmp_path)
    edit(path / "2_MultiVectorMask" / "config.json", keep_only_token_ids=[7])
    with pytest.raises(CheckpointError, match="given token ids, which is made for page images"):
        spec_of(path)


@pytest.mark.parametrize(
    ("said", "tasks"),
    [(None, ("document",)), ([], ()), ("query", ("query",)), (["query", "document"], ("query", "document"))],
)
def test_tasks_may_be_absent_none_one_or_several(said, tasks: tuple[str, ...], tmp_path: Path) -> None:
    checkpoints.native(tmp_path, pooling={"pool_factor": 2, "tasks": said})
    edit(tmp_path / "2_MultiVectorMask" / "config.json", skiplist_tasks=said)
    spec = spec_of(tmp_path)
    assert spec.skiplist_tasks == tasks
    assert (spec.pooling.tasks if spec.pooling else ()) == tasks


def test_a_skiplist_and_pooling_for_no_side_change_nothing(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, pooling={"pool_factor": 2, "tasks": []})
    edit(tmp_path / "2_MultiVectorMask" / "config.json", skiplist_tasks=[])
    # [CLS], "[D] ", a, comma, b, [SEP]
    assert ColBERT(tmp_path, device="cpu").encode_document("a,b").lengths == [6]


@pytest.mark.parametrize(("words", "length"), [([","], 15), ([",", "[MASK]"], 5)])
def test_a_skiplist_of_queries_drops_expansion_tokens_if_it_names_them(
    words: list[str], length: int, tmp_path: Path
) -> None:
    checkpoints.native(tmp_path, expansion={"strategy": "fixed", "attend": False, "length": 16})
    edit(tmp_path / "2_MultiVectorMask" / "config.json", skiplist_words=words, skiplist_tasks=["query", "document"])
    # [CLS], "[Q] ", a, comma, b, [SEP], and ten of [MASK]: as many are left as sentence-transformers 6.2 leaves.
    assert ColBERT(tmp_path, device="cpu").encode_query("a,b").lengths == [length]


def test_a_native_checkpoint_without_a_dense_needs_consent(tmp_path: Path) -> None:
    path = chained(tmp_path, "Transformer Mask Normalize")
    with pytest.raises(MissingWeightsError, match="allow_unprojected=True"):
        ColBERT(path, device="cpu")
    model = ColBERT(path, device="cpu", allow_unprojected=True)
    assert (model.spec.layout, model.spec.projection, model.dim) == ("sentence-transformers", (), checkpoints.HIDDEN)
    # By its own rules: markers, and vectors of special tokens too. A head that is the identity changes nothing.
    whole = checkpoints.build("native", tmp_path)
    edit(whole / "1_Dense" / "config.json", out_features=checkpoints.HIDDEN)
    save_file({"linear.weight": torch.eye(checkpoints.HIDDEN)}, whole / "1_Dense" / "model.safetensors")
    for ours, theirs in zip(
        model.encode_query(["a", "the fox"]), ColBERT(whole, device="cpu").encode_query(["a", "the fox"]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert ColBERT(path, device="cpu", allow_unprojected=True, projection_dim=8).dim == 8


# ------------------------------------------------------------------------------------------------- loading arguments

_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


@pytest.mark.parametrize("layout", ["native", "pylate"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"config_kwargs": {"local_attention": 4}}, r"config_kwargs\.local_attention=4"),
        ({"config_args": {"dtype": "float16", "num_hidden_layers": 1}}, r"config_args\.num_hidden_layers=1"),
        ({"processor_kwargs": {"model_max_length": 9}}, r"processor_kwargs\.model_max_length=9"),
        ({"tokenizer_args": {"add_prefix_space": True}}, r"tokenizer_args\.add_prefix_space=True"),
        ({"model_kwargs": {"rope_theta": 1.0}}, r"model_kwargs\.rope_theta=1\.0"),
        ({"model_args": {"add_cross_attention": True}}, r"model_args\.add_cross_attention=True"),
        ({"processing_kwargs": {"text": {"max_length": 9}}}, r"processing_kwargs\.text\.max_length=9"),
        (
            {"processing_kwargs": {"common": {"padding_side": "left"}}},
            r"processing_kwargs\.common\.padding_side='left'",
        ),
        ({"transformer_task": "fill-mask"}, "transformer_task='fill-mask'"),
        ({"module_output_name": "sentence_embedding"}, "module_output_name='sentence_embedding'"),
        ({"tokenizer_name_or_path": "bert-base-uncased"}, "tokenizer_name_or_path='bert-base-uncased'"),
        ({"modality_config": {**_TEXT, "message": {**_TEXT["text"], "format": "flat"}}}, "modality_config=.*'message'"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": "logits"}}}, "modality_config="),
        ({"modality_config": {"image": _TEXT["text"]}}, "modality_config="),
    ],
)
def test_loading_arguments_that_change_a_vector_are_refused(layout, changed, named, tmp_path: Path) -> None:
    path = checkpoints.build(layout, tmp_path)
    edit(path / "sentence_bert_config.json", **changed)
    with pytest.raises(UnsupportedCheckpointError, match=rf"loaded with {named}.*sentence_bert_config\.json"):
        spec_of(path)


def test_loading_arguments_are_those_of_the_transformers_folder(tmp_path: Path) -> None:
    path = checkpoints.build("hybrid_modules", tmp_path)
    edit(path / "0_Transformer" / "sentence_bert_config.json", model_kwargs={"rope_theta": 1.0})
    with pytest.raises(UnsupportedCheckpointError, match=r"rope_theta=1\.0 \(0_Transformer/sentence_bert_config\.json"):
        spec_of(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"processing_kwargs": None},
        {"processing_kwargs": {"text": None}},
        {"model_kwargs": {"rope_theta": None}},
        {"tokenizer_name_or_path": None},
    ],
)
def test_loading_arguments_that_are_null_pass(changed: dict, tmp_path: Path) -> None:
    path = checkpoints.build("native", tmp_path)
    before = spec_of(path)
    edit(path / "sentence_bert_config.json", **changed)
    assert spec_of(path) == before


def test_loading_arguments_that_change_no_vector_pass(tmp_path: Path) -> None:
    path = checkpoints.build("native", tmp_path)
    before = spec_of(path)
    arguments = {"attn_implementation": "sdpa", "dtype": "bfloat16", "revision": None, "trust_remote_code": True}
    arguments |= {"torch_dtype": "float16", "token": "hf_x", "add_pooling_layer": False, "use_cache": False}
    arguments |= {"unpad_inputs": True, "use_memory_efficient_attention": False, "device_map": "auto"}
    said = {
        "model_kwargs": arguments,
        "config_kwargs": {},
        "processor_kwargs": None,
        "processing_kwargs": {"image": {"x": 1}},
    }
    said |= {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings", "unpad_inputs": False}
    edit(path / "sentence_bert_config.json", **said, modality_config=_TEXT)  # the last four as the library writes them
    assert spec_of(path) == before


def test_expansion_needs_a_length(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, query_length=None)
    with pytest.raises(InputError, match="does not say how long queries are: pass query_length= with query_expansion"):
        ColBERT(tmp_path, device="cpu", query_expansion=True)
    model = ColBERT(tmp_path, device="cpu", query_expansion=True, query_length=12)
    assert model.encode_query("a").lengths == [12]
    assert ColBERT(tmp_path, device="cpu", query_expansion=False).encode_query("a").lengths[0] < 12


def test_a_width_is_read_as_xlm_names_it(tmp_path: Path) -> None:
    vocabulary = checkpoints.wordpiece(tmp_path)
    sizes = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
    checkpoints._write(tmp_path, *checkpoints._backbone("xlm", n_words=vocabulary, **sizes))
    model = ColBERT(tmp_path, device="cpu", allow_unprojected=True)
    assert model.dim == model.encode_document("the fox").dim == 32
    assert ColBERT(tmp_path, device="cpu", allow_unprojected=True, projection_dim=8).dim == 8
