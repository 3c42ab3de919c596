"""Checkpoints that bring code of their own: it runs on consent only, and only where transformers has no class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations.errors import MissingWeightsError, RemoteCodeError

# A model whose hidden states can be computed by hand: tanh of a word's row.
CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, vocab_size=1, hidden_size=1, **others):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**others)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        return BaseModelOutput(last_hidden_state=torch.tanh(self.words(input_ids)))
"""
FORBIDDEN = "raise SystemExit('code ran without need')\n"
CLASSES = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
TEXTS = ["the quick red fox", "a plane in the sky, over Paris!"]


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code that transformers copies goes to a folder of this test."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def edit(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A PyLate checkpoint on a backbone that only its own code knows."""
    folder = checkpoints.build("pylate", tmp_path)
    rows = len(AutoTokenizer.from_pretrained(folder))
    words = torch.randn(rows, checkpoints.HIDDEN, generator=torch.Generator().manual_seed(3))
    save_file({"words.weight": words}, folder / "model.safetensors")
    shape = {"vocab_size": rows, "hidden_size": checkpoints.HIDDEN}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": CLASSES, **shape}))
    (folder / "modeling_own.py").write_text(CODE)
    return folder


def by_hand(folder: Path, ids: list[int]) -> torch.Tensor:
    words = load_file(folder / "model.safetensors")["words.weight"].double()
    head = load_file(folder / "1_Dense" / "model.safetensors")["linear.weight"].double()
    projected = words[ids].tanh() @ head.T
    return projected / projected.norm(dim=-1, keepdim=True)


def test_code_runs_on_consent_and_its_weights_are_the_stored_ones(own: Path) -> None:
    model = ColBERT(own, device="cpu", trust_remote_code=True, skiplist_words=[])
    tokenizer = AutoTokenizer.from_pretrained(own)
    for text, vectors in zip(TEXTS, model.encode_document(TEXTS), strict=True):
        first, *others = tokenizer(text)["input_ids"]
        ids = [first, tokenizer.convert_tokens_to_ids("[D] "), *others]
        torch.testing.assert_close(vectors.double(), by_hand(own, ids), atol=1e-6, rtol=0)


def test_code_does_not_run_without_consent(own: Path) -> None:
    (own / "modeling_own.py").write_text(FORBIDDEN)
    with pytest.raises(RemoteCodeError, match="trust_remote_code=True"):
        ColBERT(own, device="cpu")


def test_code_of_a_tokenizer_does_not_run_without_consent(own: Path) -> None:
    (own / "modeling_own.py").write_text(FORBIDDEN)
    settings = json.loads((own / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "modeling_own.OwnTokenizer"]}}
    (own / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(RemoteCodeError, match="trust_remote_code=True"):
        ColBERT(own, device="cpu")


def test_code_that_leaves_weights_random_is_refused(own: Path) -> None:
    wider = CODE.replace("self.post_init()", "self.more = torch.nn.Linear(2, 2)\n        self.post_init()")
    (own / "modeling_own.py").write_text(wider)
    with pytest.raises(MissingWeightsError, match="more"):
        ColBERT(own, device="cpu", trust_remote_code=True)


@pytest.mark.parametrize("consent", [False, True])
def test_a_native_class_that_fits_goes_first(tmp_path: Path, checkpoint: Callable[[str], Path], consent: bool) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    edit(folder, auto_map={"AutoModel": "modeling_own.BertModel"})
    (folder / "modeling_own.py").write_text(FORBIDDEN)
    model = ColBERT(folder, device="cpu", trust_remote_code=consent)
    plain = ColBERT(checkpoint("stanford"), device="cpu")
    assert torch.equal(model.encode_document(TEXTS).values, plain.encode_document(TEXTS).values)


@pytest.mark.parametrize("consent", [False, True])
def test_a_class_of_another_name_goes_before_a_native_one_that_its_weights_fit(tmp_path: Path, consent: bool) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    edit(folder, auto_map={"AutoModel": "modeling_own.OtherBertModel"})
    (folder / "modeling_own.py").write_text(
        "from transformers import BertModel\n\n\nclass OtherBertModel(BertModel):\n    pass\n"
    )
    if consent:
        model = ColBERT(folder, device="cpu", trust_remote_code=True)
        assert type(model._ready()._forward.backbone).__name__ == "OtherBertModel"
    else:
        with pytest.raises(
            RemoteCodeError, match="OtherBertModel; transformers' BertModel fits its weights but may compute something"
        ):
            ColBERT(folder, device="cpu")


@pytest.mark.parametrize("consent", [False, True])
def test_a_native_class_that_lacks_weights_needs_the_code(own: Path, consent: bool) -> None:
    edit(own, model_type="bert", num_hidden_layers=1, num_attention_heads=4, intermediate_size=8)
    if consent:
        assert ColBERT(own, device="cpu", trust_remote_code=True).dim == checkpoints.DIM
    else:
        with pytest.raises(RemoteCodeError, match="weights of BertModel are not in the checkpoint"):
            ColBERT(own, device="cpu")


@pytest.mark.parametrize("consent", [False, True])
def test_a_native_class_with_other_positions_needs_the_code(tmp_path: Path, consent: bool) -> None:
    folder = checkpoints.build("stanford", tmp_path)
    stored = load_file(folder / "model.safetensors")
    words = {"words.weight": stored["bert.embeddings.word_embeddings.weight"].clone()}
    save_file(stored | words, folder / "model.safetensors")
    edit(folder, position_embedding_type="alibi", auto_map=CLASSES)
    (folder / "modeling_own.py").write_text(CODE)
    if consent:
        assert ColBERT(folder, device="cpu", trust_remote_code=True).dim == checkpoints.DIM
    else:
        with pytest.raises(RemoteCodeError, match="'alibi' positions"):
            ColBERT(folder, device="cpu")
