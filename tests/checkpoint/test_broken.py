"""Checkpoints that are not whole, in ways that transformers lets pass or tells by errors of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import checkpoints
from colbert_integrations import ColBERT, TruncationWarning
from colbert_integrations.checkpoint import PoolingSpec
from colbert_integrations.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    InputError,
    MissingWeightsError,
    UnsupportedCheckpointError,
)
from colbert_integrations.vllm import VLLMForward

TOKENIZER_FILES = ["tokenizer.json", "vocab.txt", "special_tokens_map.json", "tokenizer_config.json"]


@pytest.mark.parametrize("kept", [[], ["tokenizer_config.json"]])
def test_a_folder_without_a_vocabulary_is_refused(kept: list[str], tmp_path: Path) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    for name in set(TOKENIZER_FILES) - set(kept):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"no vocabulary|can't read the tokenizer"):
        ColBERT(folder, device="cpu")


def test_a_marker_without_an_embedding_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.build("pylate", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("embeddings.weight"))
    config = (folder / "config.json").read_text()
    rows, left = len(tensors[name]), AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("[D] ")
    tensors[name] = tensors[name][:left].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert f'"vocab_size": {rows}' in config
    (folder / "config.json").write_text(config.replace(f'"vocab_size": {rows}', f'"vocab_size": {left}'))
    with pytest.raises(MissingWeightsError, match=rf"below {left}, and none for its .*document marker {left}.*resized"):
        ColBERT(folder, device="cpu")


@pytest.fixture
def with_a_token_more(tmp_path: Path) -> Path:
    """A checkpoint to whose tokenizer a token was added, and whose model was not resized."""
    folder = checkpoints.build("stanford", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_text_that_spells_a_token_without_an_embedding_is_refused_alone(side: str, with_a_token_more: Path) -> None:
    model = ColBERT(with_a_token_more, device="cpu")
    encode = model.encode_query if side == "query" else model.encode_document
    with pytest.raises(InputError, match=f"the {side} 'the <extra> cat' has '<extra>' in it, .* has no embedding"):
        encode(["the cat", "the <extra> cat", "<extra>"])
    assert encode(["the cat", "the extra cat"]).lengths[0] > 0
    assert "no embedding for 1 of the tokenizer's tokens" in str(model.spec)


def test_a_token_without_an_embedding_that_is_cut_off_does_no_harm(with_a_token_more: Path) -> None:
    model = ColBERT(with_a_token_more, device="cpu", document_length=8, long_documents="truncate")
    with pytest.warns(TruncationWarning):
        assert model.encode_document(["the cat " * 9 + "<extra>"]).lengths == [8]
    with pytest.raises(InputError, match="has '<extra>' in it"):
        ColBERT(with_a_token_more, device="cpu", document_length=8).encode_document(["the cat " * 9 + "<extra>"])


def test_servers_are_not_sent_a_token_without_an_embedding(with_a_token_more: Path) -> None:
    model = ColBERT(with_a_token_more, device="cpu", forward=VLLMForward("http://127.0.0.1:9", queries="local"))
    for encode in (model.encode_query, model.encode_document):
        with pytest.raises(InputError, match="has '<extra>' in it"):
            encode("the <extra> cat")


@pytest.mark.parametrize("layout", ["stanford", "stanford_xlmr"])
def test_a_tokenizer_that_fails_on_rare_characters_can_be_loaded(layout: str, tmp_path: Path) -> None:
    folder = checkpoints.build(layout, tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"].update({"unk_token": "nowhere"} if layout == "stanford" else {"unk_id": None})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert ColBERT(folder, device="cpu").encode_document("a cat").lengths[0] > 0


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_prompt_with_a_token_without_an_embedding_is_refused(side: str, with_a_token_more: Path) -> None:
    prompt = {f"{side}_prompt": "<extra> "}
    with pytest.raises(MissingWeightsError, match=rf"none for its {side} prompt \d+: .* not resized"):
        ColBERT(with_a_token_more, device="cpu", **prompt)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"\x00" * 9]
)
def test_weights_that_are_cut_or_pointers_are_an_error_of_ours(content: bytes, tmp_path: Path) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged|can't load"):
        ColBERT(folder, device="cpu")


ST, BERT = "config_sentence_transformers.json", "sentence_bert_config.json"


@pytest.mark.parametrize(
    ("layout", "file", "changed", "said"),
    [
        ("pylate", ST, {"query_length": "32"}, "query_length is '32', and has to be a whole number"),
        ("pylate", ST, {"document_length": True}, "document_length is True, and has to be a whole number"),
        ("pylate", ST, {"query_prefix": 5}, "query_prefix is 5, and has to be a string"),
        ("pylate", ST, {"do_query_expansion": "false"}, "do_query_expansion is 'false', and has to be true or false"),
        ("pylate", ST, {"attend_to_expansion_tokens": "no"}, "attend_to_expansion_tokens is 'no', and has to be true"),
        ("pylate", ST, {"skiplist_words": "abc"}, "skiplist_words is 'abc', and has to be a list"),
        ("pylate", ST, {"skiplist_words": ["a", 1]}, "skiplist_words is 1, and has to be a string"),
        ("pylate", ST, {"prompts": ["ask: "]}, r"prompts is \['ask: '\], and has to be an object"),
        ("pylate", ST, {"prompts": {"query": 5}}, r"prompts\.query is 5, and has to be a string"),
        ("pylate", BERT, {"do_lower_case": "false"}, "do_lower_case is 'false', and has to be true or false"),
        ("pylate", BERT, {"model_args": 5}, "model_args is 5, and has to be an object"),
        ("pylate", BERT, {"processing_kwargs": [1]}, r"processing_kwargs is \[1\], and has to be an object"),
        ("pylate", BERT, {"modality_config": "x"}, "modality_config is 'x', and has to be an object"),
        ("pylate", ST, {"query_length": 1e300}, "query_length is 1e\\+300, and has to be a whole number"),
        ("native", ST, {"matryoshka_dims": 5}, "matryoshka_dims is 5, and has to be a list"),
        ("native", ST, {"matryoshka_dims": ["a"]}, "matryoshka_dims is 'a', and has to be a whole number"),
        (
            "native_fixed",
            BERT,
            {"query_expansion": {"strategy": "fixed", "length": 16, "token": []}},
            r"token is \[\], and has to be a string",
        ),
        ("pylate", "1_Dense/config.json", {"in_features": "many"}, "in_features is 'many', and has to be a whole num"),
        ("pylate", "config.json", {"architectures": 5}, "architectures is 5, and has to be a list"),
        ("stanford", "artifact.metadata", {"doc_maxlen": 40.5}, "doc_maxlen is 40.5, and has to be a whole number"),
        ("stanford", "artifact.metadata", {"mask_punctuation": "false"}, "mask_punctuation is 'false', and has to be"),
        ("native_fixed", BERT, {"query_expansion": "fixed"}, "query_expansion is 'fixed', and has to be an object"),
        ("native_fixed", BERT, {"query_expansion": {"strategy": "fixed"}}, "length is None, and has to be a whole num"),
        ("native", "2_MultiVectorMask/config.json", {"skiplist_tasks": 5}, "skiplist_tasks is 5, and has to be a list"),
    ],
)
def test_a_value_of_another_kind_is_refused(layout: str, file: str, changed: Any, said: str, tmp_path: Path) -> None:
    path = checkpoints.build(layout, tmp_path) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(CheckpointError, match=f"{file}.*{said}|MultiVectorMask: {said}|^matryoshka.*{said}|^{said}"):
        ColBERT(tmp_path / layout, device="cpu")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"normalize_embeddings": "false"}, "normalize_embeddings is 'false', and has to be true or false"),
        ({"num_protected_tokens": "1"}, "num_protected_tokens is '1', and has to be a whole number"),
        ({"num_protected_tokens": 0.5}, "num_protected_tokens is 0.5, and has to be a whole number"),
        ({"num_protected_tokens": -1}, "num_protected_tokens is -1, and has to be at least 0"),
        ({"pool_factor": "2"}, "pool_factor is '2', and has to be a number from 1"),
        ({"pool_factor": None}, "pool_factor is None, and has to be a number from 1"),
        ({"pool_factor": True}, "pool_factor is True, and has to be a number from 1"),
        ({"pool_factor": 0.5}, "pool_factor is 0.5, and has to be a number from 1"),
        ({"pool_factor": float("inf")}, "pool_factor is inf, and has to be a number from 1"),
    ],
)
def test_pooling_that_cannot_be_done_is_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    checkpoints.native(tmp_path, pooling={"pool_factor": 2, **changed})
    with pytest.raises(CheckpointError, match=f"4_HierarchicalTokenPooling/config.json: {said}"):
        ColBERT(tmp_path, device="cpu")


def test_pooling_may_be_written_in_numbers_of_other_kinds(tmp_path: Path) -> None:
    said = {"pool_factor": 2, "num_protected_tokens": 1.0, "normalize_embeddings": 1}
    checkpoints.native(tmp_path, pooling=said)
    assert repr(ColBERT(tmp_path, device="cpu").spec.pooling) == repr(PoolingSpec(2, 1, True))


@pytest.mark.parametrize("activation", ["torch.nn.modules.activation.PReLU", "torch.nn.LazyBatchNorm1d"])
def test_an_activation_with_weights_of_its_own_is_refused(activation: str, tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path) / "1_Dense/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "activation_function": activation}))
    with pytest.raises(UnsupportedCheckpointError, match="has weights of its own"):
        ColBERT(path.parent.parent, device="cpu")


def test_an_activation_that_does_nothing_is_refused(tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path) / "1_Dense/config.json"
    activation = "torch.nn.modules.module.Module"
    path.write_text(json.dumps({**json.loads(path.read_text()), "activation_function": activation}))
    with pytest.raises(UnsupportedCheckpointError, match="unknown activation"):
        ColBERT(path.parent.parent, device="cpu")


def test_a_head_of_another_backbone_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.build("pylate", tmp_path)
    path, weights = folder / "1_Dense/config.json", folder / "1_Dense/model.safetensors"
    tensors = {name: tensor[:, :24].contiguous() for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_features": 24}))
    with pytest.raises(CheckpointError, match="takes 24 numbers of each token, and its backbone gives 32"):
        ColBERT(folder, device="cpu")


def test_tokens_of_other_types_are_refused_where_their_library_hands_them_on(tmp_path: Path) -> None:
    for layout, refused in (("pylate", True), ("stanford", False)):
        folder = checkpoints.build(layout, tmp_path)
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        for part in tokenizer["post_processor"]["single"]:
            next(iter(part.values()))["type_id"] = 1
        path.write_text(json.dumps(tokenizer))
        settings = folder / "tokenizer_config.json"
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_input_names": inputs}))
        if refused:
            with pytest.raises(UnsupportedCheckpointError, match="other types than 0"):
                ColBERT(folder, device="cpu")
        else:
            ColBERT(folder, device="cpu").encode_query("a fox")


def test_links_that_lead_nowhere_do_not_make_a_checkpoint_unusable(tmp_path: Path) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    before = ColBERT(folder, device="cpu").fingerprint
    (folder / "extra").mkdir()
    (folder / "extra" / "old.safetensors").symlink_to("gone")
    (folder / "folder.safetensors").mkdir()
    assert ColBERT(folder, device="cpu").fingerprint == before
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")
    with pytest.raises(CheckpointError):
        ColBERT(folder, device="cpu")


def test_a_name_that_is_too_long_is_no_folder() -> None:
    with pytest.raises(CheckpointNotFoundError, match="no folder 'aaa"):
        ColBERT("a" * 300, device="cpu")


@pytest.mark.parametrize("content", ["{}", '{"0": {}}', '["Transformer"]', '"Transformer"'])
def test_modules_that_are_no_list_of_objects_are_refused(content: str, tmp_path: Path) -> None:
    folder = checkpoints.build("pylate", tmp_path)
    (folder / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json must hold a JSON list of objects"):
        ColBERT(folder, device="cpu")


@pytest.mark.parametrize("key", ["type", "path"])
def test_modules_that_say_too_little_are_an_error_of_ours(key: str, tmp_path: Path) -> None:
    folder = checkpoints.build("pylate", tmp_path)
    listed = json.loads((folder / "modules.json").read_text())
    del listed[1][key]
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError):
        ColBERT(folder, device="cpu")


def test_switches_may_be_numbers_and_lengths_written_as_floats(tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path) / ST
    path.write_text(json.dumps({**json.loads(path.read_text()), "attend_to_expansion_tokens": 1, "query_length": 24.0}))
    spec = ColBERT(path.parent, device="cpu").spec
    assert (spec.attend_to_expansion_tokens, repr(spec.query_length)) == (True, "24")


@pytest.mark.parametrize("token", ["hf_SECRET ", "hf_SEC RET", "hf_SECRET\n"])
def test_a_token_that_cannot_be_sent_is_refused_unseen(token: str) -> None:
    with pytest.raises(InputError, match="call .strip") as caught:
        ColBERT("org/closed", device="cpu", token=token)
    assert "SEC" not in str(caught.value)


@pytest.mark.parametrize("token", [True, 5])
def test_a_token_is_a_string(token: Any) -> None:
    with pytest.raises(InputError, match="token must be a string"):
        ColBERT("org/closed", device="cpu", token=token)


def test_an_empty_token_is_none(tmp_path: Path) -> None:
    assert ColBERT(checkpoints.build("stanford", tmp_path), device="cpu", token="").settings.token is None


def test_an_index_of_shards_that_names_what_is_not_there(tmp_path: Path) -> None:
    path = checkpoints.build("stanford", tmp_path)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    shard = "pytorch_model-00001-of-00001.bin"
    torch.save({name: tensor for name, tensor in tensors.items() if name != "linear.weight"}, path / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(MissingWeightsError, match=r"00001\.bin has no tensor 'linear\.weight', though the index"):
        ColBERT(path, device="cpu")


@pytest.mark.parametrize("key", ["use_residual", "bias"])
def test_a_switch_of_a_dense_module_that_is_a_string_is_refused(key: str, tmp_path: Path) -> None:
    path = checkpoints.build("pylate", tmp_path)
    config = path / "1_Dense" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: "false"}))
    with pytest.raises(CheckpointError, match=f"1_Dense/config.json: {key} is 'false', and has to be true or false"):
        ColBERT(path, device="cpu")
