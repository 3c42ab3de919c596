"""Padding: it shows in no vector, also where a backbone mixes it in; and finding that out changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FNetModel

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations.encoder import TokenSequence
from colbert_integrations.encoder.forward import TorchForward
from colbert_integrations.errors import CheckpointError

# Convolutions, neighbouring words joined, Fourier transforms, and a mean over stretches of the sequence.
MIXING: dict[str, dict[str, Any]] = {
    "convbert": {"embedding_size": 32, "head_ratio": 2, "num_groups": 1, "conv_kernel_size": 9},
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "fnet": {},
    "nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8},
}
KEEPING: dict[str, dict[str, Any]] = {"electra": {"embedding_size": 16}, "albert": {"embedding_size": 16}, "mpnet": {}}
TEXTS = [
    "the fox",
    "paris",
    "how does a plane fly?",
    "the dog",
    "paris is the capital of france",
    *checkpoints.SENTENCES,
]


def load(folder: Path, model_type: str, **options: Any) -> ColBERT:
    checkpoints.others(folder, model_type, **{**MIXING, **KEEPING}[model_type])
    return ColBERT(folder, device="cpu", **options)


def general(model: ColBERT) -> TorchForward:
    forward = model._ready()._forward
    assert isinstance(forward, TorchForward)
    return forward


@pytest.mark.parametrize("model_type", [*MIXING, *KEEPING])
def test_what_stands_beside_a_text_does_not_show_in_its_vectors(model_type: str, tmp_path: Path) -> None:
    if model_type == "fnet" and "attention_mask" not in signature(FNetModel.forward).parameters:
        pytest.skip("needs transformers>=5: before, its FNet takes no mask")
    model = load(tmp_path, model_type)
    alone = [model.encode_document(text)[0] for text in TEXTS]
    query = model.encode_query("how does a plane fly")[0]
    for vectors, expected in zip(model.encode_document(TEXTS), alone, strict=True):
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    for vectors, expected in zip(
        model._ready().encode(TEXTS, "document", query="how does a plane fly"), [query, *alone], strict=True
    ):
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["convbert", "mobilebert", *KEEPING])
def test_only_where_padding_shows_is_it_left_out(model_type: str, dtype: str, tmp_path: Path) -> None:
    assert general(load(tmp_path, model_type, dtype=dtype)).pads == (model_type in KEEPING)


def test_texts_of_one_length_still_share_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tmp_path, "convbert")
    forward, widths = general(model), list[tuple[int, int]]()
    hidden = forward._hidden
    monkeypatch.setattr(forward, "_hidden", lambda ids, mask: widths.append(tuple(ids.shape)) or hidden(ids, mask))
    model.encode_document(["the fox", "the dog", "paris", "a cat", "berlin"])
    assert sorted(widths) == [(2, 4), (3, 5)]


def widths_run(forward: TorchForward, batches: Iterable[Sequence[int]], patch: pytest.MonkeyPatch) -> list[int]:
    """The widths of batches of texts of so many tokens."""
    widths, hidden = list[int](), forward._hidden

    def kept(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert mask.sum() == sum(batch)
        widths.append(ids.shape[1])
        return hidden(ids, mask)

    patch.setattr(forward, "_hidden", kept)
    for batch in batches:
        assert len(forward([TokenSequence([20] * length, length, [], []) for length in batch])) == sum(batch)
    return widths


@pytest.mark.parametrize("model_type", ["electra", "gpt2"])
def test_in_bfloat16_few_widths_occur_on_a_cpu(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # oneDNN compiles code for each, and keeps it; a table of positions of 500 ends within a step.
    checkpoints.others(tmp_path, model_type, max_position_embeddings=500)
    lengths = [*range(1, 500, 7), 500]
    batches = [(length, max(1, length // 2)) for length in lengths]
    forward = general(ColBERT(tmp_path, device="cpu", dtype="bfloat16", document_length=60))
    widths = widths_run(forward, batches, monkeypatch)
    assert len(set(widths)) <= 32
    assert all(n <= width <= min(500, max(n + 7, n * 9 / 8)) for n, width in zip(lengths, widths, strict=True))
    precise = general(ColBERT(tmp_path, device="cpu", document_length=60))
    assert widths_run(precise, batches, monkeypatch) == lengths


def test_padding_to_a_width_changes_no_vector(tmp_path: Path) -> None:
    sequence = TokenSequence(list(range(15, 48)), 33, [], [])
    forward = general(load(tmp_path, "electra", dtype="bfloat16"))
    assert forward._width([33]) == 40
    exact = general(load(tmp_path, "electra"))
    exact.backbone.double(), exact.projection.double()
    expected = exact([sequence])
    errors = [
        (found.double() - expected).abs().max() for found in (forward([sequence]), forward._padded([sequence], 33))
    ]
    assert 0 < errors[0] < 2 * errors[1]


def test_lfm2_is_not_run_twice_for_the_sake_of_a_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.others(tmp_path, "lfm2", num_key_value_heads=2, layer_types=["conv", "full_attention"])
    forward = general(ColBERT(tmp_path, device="cpu", dtype="bfloat16"))
    assert widths_run(forward, [(33,), (33, 20)], monkeypatch) == [33, 40]


@pytest.mark.parametrize("hidden_in_one", [True, False])
def test_an_lfm2_query_alone_is_what_it_is_in_a_batch(
    hidden_in_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.others(tmp_path, "lfm2", num_key_value_heads=2, layer_types=["conv", "full_attention"])
    model = ColBERT(tmp_path, device="cpu", query_length=48)
    batch = model.encode_query(TEXTS)
    if not hidden_in_one:  # as some releases of transformers have it: a batch of one is run without its mask
        forward = general(model)
        hidden = forward._hidden
        monkeypatch.setattr(
            forward, "_hidden", lambda ids, mask: hidden(ids, mask if len(ids) > 1 else torch.ones_like(mask))
        )
    for text, vectors in zip(TEXTS, batch, strict=True):
        torch.testing.assert_close(model.encode_query(text)[0], vectors, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", [-1, 10**6, None, 3])
def test_a_padding_id_without_a_row_is_not_used(padding: int | None, tmp_path: Path) -> None:
    # GPT-2's embeddings don't know of padding, so that transformers takes any id.
    checkpoints.others(tmp_path, "gpt2", n_embd=checkpoints.HIDDEN, n_layer=2, n_head=4, n_positions=512)
    alone = ColBERT(tmp_path, device="cpu").encode_document("the fox")[0]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": padding}))
    together = ColBERT(tmp_path, device="cpu").encode_document(["the fox", *checkpoints.SENTENCES])[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_finding_out_changes_nothing(tmp_path: Path) -> None:
    forward = general(load(tmp_path, "electra"))
    probe = TokenSequence(list(range(15, 25)), 10, [], [])
    before = {name: tensor.clone() for name, tensor in forward.backbone.state_dict().items()}
    state = torch.get_rng_state()
    forward.probe(probe, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in forward.backbone.modules())
    after = forward.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_bigbird_keeps_its_sparse_attention_until_a_short_text_comes(tmp_path: Path) -> None:
    checkpoints.others(tmp_path, "big_bird", attention_type="block_sparse", block_size=8, num_random_blocks=1)
    forward = general(ColBERT(tmp_path, device="cpu"))
    assert forward.backbone.attention_type == "block_sparse"


def test_the_packed_path_is_not_probed(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchForward, "probe", lambda *_: pytest.fail("probed"))
    ColBERT(tiny.settings.model, device="cpu")


def test_a_backbone_that_fails_says_so_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> None:
        def hidden(*_: Any) -> None:
            raise error

        monkeypatch.setattr(TorchForward, "_hidden", hidden)

    fail(RuntimeError("no such kernel"))
    with pytest.raises(CheckpointError, match=r"ElectraModel can't be run in torch.float32 on cpu: no such kernel"):
        load(tmp_path, "electra")
    fail(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        ColBERT(tmp_path, device="cpu")
