"""Repositories that must not run as a ColBERT model: each is refused with its reason and a way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations.encoder import backbone as backbones
from colbert_integrations.errors import (
    CheckpointError,
    MissingWeightsError,
    RemoteCodeError,
    UnsupportedCheckpointError,
)


def edit(path: Path, **changed) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def load(path: Path, **options) -> ColBERT:
    return ColBERT(path, device="cpu", **options)


@pytest.fixture
def stanford(tmp_path: Path) -> Path:
    return checkpoints.build("stanford", tmp_path)


@pytest.fixture
def pylate(tmp_path: Path) -> Path:
    return checkpoints.build("pylate", tmp_path)


def test_a_peft_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedCheckpointError, match="merge_and_unload"):
        load(tmp_path)


def test_a_peft_adapter_beside_the_model_it_was_made_of(stanford: Path) -> None:
    (stanford / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedCheckpointError, match="merge_and_unload"):
        load(stanford)


@pytest.mark.parametrize("changed", [{"architectures": ["ColPaliForRetrieval"]}, {"vision_config": {}}])
def test_a_vision_model(changed: dict, stanford: Path) -> None:
    edit(stanford / "config.json", **changed)
    with pytest.raises(UnsupportedCheckpointError, match="vision model"):
        load(stanford)


@pytest.mark.parametrize("changed", [{"model_type": "ColBERT"}, {"architectures": ["ColBERT"]}])
def test_an_early_colbert(changed: dict, stanford: Path) -> None:
    edit(stanford / "config.json", **changed)
    with pytest.raises(UnsupportedCheckpointError, match=r"colbert-ir/colbertv2\.0"):
        load(stanford)


def test_a_dnn_pickle(tmp_path: Path) -> None:
    (tmp_path / "colbert.dnn").write_bytes(b"")
    with pytest.raises(UnsupportedCheckpointError, match="can run code when opened"):
        load(tmp_path)


def test_a_dnn_pickle_beside_a_model_is_left_alone(stanford: Path) -> None:
    (stanford / "colbert.dnn").write_bytes(b"")
    assert load(stanford).dim == checkpoints.DIM


@pytest.mark.parametrize(
    "name",
    [
        "projections.{}.weight",
        "projection_{}.weight",
        "linear_{}.weight",
        "model.heads.{}.linear.weight",
        "colbert_linear.{}.weight",
    ],
)
def test_a_head_for_each_of_several_dimensions(name: str, stanford: Path) -> None:
    tensors = load_file(stanford / "model.safetensors")
    heads = {name.format(dim): torch.ones(dim, checkpoints.HIDDEN) for dim in (8, 16)}
    save_file({**tensors, **heads}, stanford / "model.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match="multi-head Matryoshka"):
        load(stanford)


def test_one_layer_with_a_number_is_no_choice_of_heads(stanford: Path) -> None:
    layer = {"head.0.weight": torch.ones(8, checkpoints.HIDDEN)}  # such as one of a classifier that nobody needs
    save_file({**load_file(stanford / "model.safetensors"), **layer}, stanford / "model.safetensors")
    assert load(stanford).dim == checkpoints.DIM


def test_modules_of_several_heads(pylate: Path) -> None:
    listed = json.loads((pylate / "modules.json").read_text())
    listed[1]["type"] = "own.MatryoshkaDense"
    (pylate / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(UnsupportedCheckpointError, match="multi-head Matryoshka"):
        load(pylate)


def test_an_encoder_decoder(stanford: Path) -> None:
    edit(stanford / "config.json", is_encoder_decoder=True)
    with pytest.raises(UnsupportedCheckpointError, match="encoder-decoder"):
        load(stanford)


def test_quantised_weights(stanford: Path) -> None:
    edit(stanford / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedCheckpointError, match="stores quantised weights.*that they were made of"):
        load(stanford)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("layout", "file"), [("stanford", ""), ("pylate", "1_Dense/"), ("bge", "colbert_linear.pt")])
def test_a_quantised_head(layout: str, file: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = checkpoints.build(layout, tmp_path)
    if layout == "bge":
        head = torch.load(path / file)
        torch.save({**head, "weight": head["weight"].to(dtype)}, path / file)
    else:
        tensors = load_file(path / f"{file}model.safetensors")
        tensors["linear.weight"] = tensors["linear.weight"].to(dtype)
        save_file(tensors, path / f"{file}model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedCheckpointError, match=rf"stores its head .*linear\.weight\) as {dtype}"):
        load(path)


def test_architectures_and_kinds_that_are_null_or_false_are_no_reason(stanford: Path) -> None:
    edit(stanford / "config.json", architectures=None, is_encoder_decoder=False)
    assert load(stanford).dim == checkpoints.DIM


@pytest.mark.skipif(transformers.__version__ < "5", reason="needs transformers 5: 4 can't read such a configuration")
def test_a_quantisation_that_is_null_is_none(stanford: Path) -> None:
    edit(stanford / "config.json", quantization_config=None)
    assert load(stanford).dim == checkpoints.DIM


@pytest.mark.parametrize("kind", ["sentence_transformers.models.Transformer", "own_code.OwnTransformer"])
def test_what_the_folder_of_the_transformer_says_counts(kind: str, tmp_path: Path) -> None:
    path = checkpoints.build("hybrid_modules", tmp_path)
    checkpoints.modules(path, ("0_Transformer", kind), ("1_Dense", "pylate.models.Dense.Dense"))
    assert load(path).spec.backbone == "0_Transformer"
    edit(path / "0_Transformer" / "config.json", is_encoder_decoder=True)
    with pytest.raises(UnsupportedCheckpointError, match="encoder-decoder"):
        load(path)


def test_an_unknown_model_type(stanford: Path) -> None:
    edit(stanford / "config.json", model_type="nonsense")
    with pytest.raises(UnsupportedCheckpointError, match="no model type 'nonsense'"):
        load(stanford)


@pytest.mark.parametrize("path", ["my_package.evil.Activation", "os.system", "torch.nn.functional.relu", "Tanh"])
def test_an_unknown_activation(path: str, pylate: Path) -> None:
    edit(pylate / "1_Dense" / "config.json", activation_function=path)
    with pytest.raises(UnsupportedCheckpointError, match=r"only those of torch\.nn"):
        load(pylate)


@pytest.mark.parametrize("path", ["torch.nn.modules.activation.Tanh", "transformers.activations.GELUActivation"])
def test_a_known_activation_is_used(path: str, pylate: Path) -> None:
    before = load(pylate).encode_query("a cat").values
    edit(pylate / "1_Dense" / "config.json", activation_function=path)
    assert not torch.allclose(load(pylate).encode_query("a cat").values, before, atol=1e-3)


def test_a_pylate_marker_that_is_not_in_the_vocabulary(tmp_path: Path) -> None:
    checkpoints.pylate(tmp_path, markers=("[Q] ",))
    with pytest.raises(MissingWeightsError, match=r"'\[D\] '.*would be random"):
        load(tmp_path)


def test_expansion_without_a_token_to_expand_with(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, expansion={"strategy": "fixed", "attend": False, "length": 16, "token": "[NO]"})
    with pytest.raises(MissingWeightsError, match=r"\[NO\]"):
        load(tmp_path)


def test_an_unknown_expansion_strategy(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, expansion={"strategy": "double", "length": 16})
    with pytest.raises(CheckpointError, match="'double'"):
        load(tmp_path)


def test_alibi_positions_on_a_class_with_a_table(stanford: Path) -> None:
    # jina-colbert-v1: with its own table of weights BertModel would load it whole, and number positions wrongly.
    edit(stanford / "config.json", position_embedding_type="alibi")
    with pytest.raises(UnsupportedCheckpointError, match="'alibi' positions"):
        load(stanford)


@pytest.mark.parametrize("version", ["4.57.3", "5.0.0"])
@pytest.mark.parametrize("said", [{}, {"global_rope_theta": 160_000.0}])
def test_rotary_bases_that_an_old_transformers_does_not_read(
    version: str, said: dict[str, float], pylate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = {kind: {"rope_type": "default", "rope_theta": 5e3} for kind in ("full_attention", "sliding_attention")}
    edit(pylate / "config.json", rope_parameters=bases, **said)
    monkeypatch.setattr("transformers.__version__", version)
    if version.startswith("4") and not said:
        with pytest.raises(UnsupportedCheckpointError, match=r"transformers 4\.57\.3 does not read.*transformers>=5'"):
            load(pylate)
    else:
        assert load(pylate).dim == checkpoints.DIM


@checkpoints.needs_jina
def test_rotary_weights_under_another_kind_of_position(tmp_path: Path) -> None:
    checkpoints.jina(tmp_path, position_embedding_type="absolute")
    with pytest.raises(UnsupportedCheckpointError, match="only rotary"):
        load(tmp_path)


@checkpoints.needs_jina
def test_a_rope_base_that_is_no_number(tmp_path: Path) -> None:
    checkpoints.jina(tmp_path, rotary_emb_base="ntk")
    with pytest.raises(UnsupportedCheckpointError, match="rotary_emb_base"):
        load(tmp_path)


@checkpoints.needs_jina
def test_the_rope_base_is_the_checkpoints_own(tmp_path: Path) -> None:
    # The class in transformers assumes another base; a wrong one loads without a word.
    made = {}
    for base in (10_000.0, 20_000.0, None):
        path = tmp_path / str(base)
        path.mkdir()
        checkpoints.jina(path, rotary_emb_base=base)
        if base is None:
            config = json.loads((path / "config.json").read_text())
            del config["rotary_emb_base"]
            (path / "config.json").write_text(json.dumps(config))
        made[base] = load(path).encode_document(["how does a plane fly over the river"]).values
    assert (made[10_000.0] - made[20_000.0]).abs().max() > 1e-3
    assert torch.equal(made[None], made[10_000.0])


def test_remote_code_without_consent(stanford: Path) -> None:
    edit(stanford / "config.json", model_type="own", auto_map={"AutoModel": "modeling_own.OwnModel"})
    with pytest.raises(RemoteCodeError, match="trust_remote_code=True"):
        load(stanford)


def test_flash_attention_with_expansion_that_nobody_sees(stanford: Path) -> None:
    with pytest.raises(ValueError, match="drops tokens that nobody attends to"):
        load(stanford, attn_implementation="flash_attention_2")


def test_flash_attention_that_transformers_or_the_files_chose(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_backbone(*arguments: Any) -> Any:
        backbone = backbones.load_backbone(*arguments)
        backbone.config._attn_implementation = "kernels-community/vllm-flash-attn3"
        return backbone

    monkeypatch.setattr("colbert_integrations.encoder.load.load_backbone", load_backbone)
    with pytest.raises(ValueError, match=r"vllm-flash-attn3' drops tokens.*pass attn_implementation='sdpa'"):
        load(checkpoint("stanford_deberta"))
    load(checkpoint("stanford_deberta"), query_expansion=False)  # nothing that it would drop


@pytest.mark.parametrize(("layout", "passed"), [("pylate", "sdpa"), ("stanford", None)])
def test_transformers_is_not_left_to_choose_for_modernbert(
    layout: str, passed: str | None, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = [], AutoModel.from_pretrained

    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        seen.append(options.get("attn_implementation"))
        return original(*arguments, **options)

    monkeypatch.setattr(AutoModel, "from_pretrained", from_pretrained)
    load(checkpoint(layout))
    load(checkpoint(layout), attn_implementation="eager")
    assert seen == [passed, "eager"]
