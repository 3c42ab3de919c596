"""ColBERT: ranking, sharing, closing, pickling, async, and arguments that are impossible."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import checkpoints
from colbert_integrations import ColBERT, RankedDocument, TruncationWarning
from colbert_integrations.devices import choose_device, choose_dtype
from colbert_integrations.errors import (
    CheckpointNotFoundError,
    ColBERTError,
    InputError,
    MissingExtraError,
    NonFiniteError,
)
from colbert_integrations.scoring.reference import reference_maxsim
from colbert_integrations.settings import Settings

DOCUMENTS = [
    "bread and flour",
    "the wings lift a plane into the sky",
    "",
    "a fox runs",
    "the wings lift a plane into the sky",
]
QUERY = "how does a plane fly?"


# ---------------------------------------------------------------------------------------------------------- ranking


def test_ranks_by_the_definition(tiny: ColBERT) -> None:
    expected = reference_maxsim(tiny.encode_query(QUERY), tiny.encode_document(DOCUMENTS))[0]
    ranked = tiny.rank(QUERY, DOCUMENTS)
    assert sorted(entry.index for entry in ranked) == [0, 1, 2, 3, 4]
    for entry in ranked:
        assert entry.score == pytest.approx(expected[entry.index].item(), abs=1e-5)
        assert type(entry.score) is float
    assert [entry.score for entry in ranked] == sorted((entry.score for entry in ranked), reverse=True)


def test_equal_documents_score_equally_and_keep_their_order(tiny: ColBERT) -> None:
    ranked = tiny.rank(QUERY, DOCUMENTS)
    twins = [entry for entry in ranked if entry.index in (1, 4)]
    assert [entry.index for entry in twins] == [1, 4]
    assert twins[0].score == twins[1].score


@settings(deadline=None, max_examples=20)
@given(
    documents=st.lists(st.sampled_from([*DOCUMENTS, "paris", "the lazy dog"]), max_size=9),
    top_n=st.none() | st.integers(1, 12),
)
def test_top_n_is_the_beginning_of_the_whole_ranking(documents: list[str], top_n: int | None, tiny: ColBERT) -> None:
    whole = tiny.rank(QUERY, documents)
    assert tiny.rank(QUERY, documents, top_n) == whole[:top_n]
    assert len(whole) == len(documents)


def test_normalised_scores_are_means_within_0_and_1(tiny: ColBERT) -> None:
    sums = {entry.index: entry.score for entry in tiny.rank(QUERY, DOCUMENTS)}
    for entry in tiny.rank(QUERY, DOCUMENTS, normalize_scores=True):
        assert entry.score == pytest.approx(min(1, max(0, sums[entry.index] / 16)), abs=1e-6)


def test_a_text_matches_itself_with_no_more_than_1(checkpoint: Callable[[str], Path]) -> None:
    # Without markers and expansion query and document are the same tokens, and each matches itself.
    model = ColBERT(checkpoint("plain"), device="cpu", allow_unprojected=True)
    scores = [model.rank(text, [text], normalize_scores=True)[0].score for text in checkpoints.WORDS[:20]]
    assert max(scores) <= 1.0
    assert min(scores) > 1 - 1e-6


def test_a_negative_mean_is_cut_to_0(tiny: ColBERT) -> None:
    model = ColBERT(tiny.settings.model, forward=opposite)
    assert model.rank("a", ["a"])[0].score == -16.0
    assert model.rank("a", ["a"], normalize_scores=True) == [RankedDocument(0, 0.0)]


def test_normalising_keeps_the_order_of_what_is_cut_to_0(tiny: ColBERT) -> None:
    def turning(sequences) -> torch.Tensor:  # documents turn away from the query the more words they have
        angles = [torch.tensor(0.0 if s.ids[1] == 1 else 1.6 + 0.2 * len(s.ids)).repeat(len(s.ids)) for s in sequences]
        return torch.nn.functional.pad(torch.stack([torch.cat(angles).cos(), torch.cat(angles).sin()], 1), (0, 14))

    model, documents = ColBERT(tiny.settings.model, forward=turning), ["a fox is in it", "a fox", "a", "a fox is in"]
    sums, means = model.rank("a", documents), model.rank("a", documents, normalize_scores=True)
    assert [entry.index for entry in means] == [entry.index for entry in sums] == [2, 1, 3, 0]
    assert max(entry.score for entry in sums) < 0
    assert {entry.score for entry in means} == {0.0}
    assert model.rank("a", documents, 2, normalize_scores=True, score_threshold=0.0) == means[:2]


def opposite(sequences) -> torch.Tensor:
    """A model whose queries look east and whose documents look west."""
    east = torch.eye(checkpoints.DIM)[0]
    return torch.cat([east.repeat(len(s.ids), 1) * (1 if s.ids[1] == 1 else -1) for s in sequences])


@pytest.mark.parametrize("normalize", [False, True])
def test_threshold_keeps_what_reaches_it(normalize: bool, tiny: ColBERT) -> None:
    whole = tiny.rank(QUERY, DOCUMENTS, normalize_scores=normalize)
    limit = whole[2].score
    kept = tiny.rank(QUERY, DOCUMENTS, normalize_scores=normalize, score_threshold=limit)
    assert kept == [entry for entry in whole if entry.score >= limit]
    assert len(kept) == 3
    assert tiny.rank(QUERY, DOCUMENTS, normalize_scores=normalize, score_threshold=99.0) == []


def test_no_documents_rank_to_nothing(tiny: ColBERT) -> None:
    assert tiny.rank(QUERY, []) == []


def test_scores_without_bounds_are_not_normalised(tmp_path: Path) -> None:
    checkpoints.native(tmp_path, normalize=False)
    model = ColBERT(tmp_path, device="cpu")
    assert model.rank("a", ["a"])[0].score > 0
    with pytest.raises(InputError, match="normalize_scores=False"):
        model.rank("a", ["a"], normalize_scores=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_no_numbers_name_the_document(bad: float, tiny: ColBERT) -> None:
    inner = tiny._ready()._forward

    def forward(sequences):
        packed = inner(sequences)
        if len(sequences) == 1 and len(sequences[0].ids) == 5:
            packed[2] = bad
        return packed

    model = ColBERT(tiny.settings.model, forward=forward, batch_size=1)
    with pytest.raises(NonFiniteError, match="document 1 scores nan"):
        model.rank("a", ["a cat runs", "fox fox"])


def test_pooling_baked_into_a_checkpoint_applies_to_documents(tmp_path: Path) -> None:
    plain, pooled = tmp_path / "plain", tmp_path / "pooled"
    for path, pooling in ((plain, None), (pooled, {"pool_factor": 2.0, "num_protected_tokens": 1})):
        path.mkdir()
        checkpoints.native(path, pooling=pooling)
    text = "the quick red fox jumps over the lazy dog"
    before, after = (ColBERT(path, device="cpu") for path in (plain, pooled))
    tokens = before.encode_document(text).lengths[0]
    assert after.encode_document(text).lengths == [1 + (tokens - 1) // 2]
    assert after.encode_query(text).lengths == before.encode_query(text).lengths
    assert after.rank("a fox", [text])[0].score != before.rank("a fox", [text])[0].score


def test_pool_factor_gives_fewer_vectors(tiny: ColBERT) -> None:
    whole, half = (tiny.encode_document(checkpoints.SENTENCES, pool_factor=factor) for factor in (1, 2))
    assert half.lengths == [1 + (length - 1) // 2 for length in whole.lengths]
    with pytest.raises(InputError, match="at least 1"):
        tiny.encode_document("a", pool_factor=0.5)
    with pytest.raises(InputError, match="at least 1 and finite, not nan"):
        tiny.encode_document("a", pool_factor=float("nan"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_with_one_thread_computes() -> None:
    # In a process of its own, with a model that is large enough for torch to use several threads.
    code = """
import os, signal, torch
from colbert_integrations import ColBERT

torch.set_num_threads(2)
model = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu")
texts = ["bread " * 100, "a plane " * 100]
expected = model.rank("planes", texts)
child = os.fork()
if child == 0:
    signal.alarm(60)
    torch.set_num_threads(1)
    ranked = model.rank("planes", texts)
    model.close()
    os._exit(0 if [entry.index for entry in ranked + model.rank("planes", texts)] == [1, 0, 1, 0] else 1)
print(expected[0].index, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 0\n"


def test_a_folder_is_the_one_it_was_when_it_was_named(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("stanford")
    monkeypatch.chdir(folder.parent)
    loaded, lazy = ColBERT(folder.name, device="cpu"), ColBERT.shared(folder.name, device="cpu")
    expected = loaded.rank("a fox", DOCUMENTS)
    monkeypatch.chdir(tmp_path)  # as a daemon does
    loaded.close()
    assert loaded.rank("a fox", DOCUMENTS) == lazy.rank("a fox", DOCUMENTS) == expected
    assert loaded.settings.model == lazy.settings.model == folder.name


# -------------------------------------------------------------------------------------------------------- bad input


class Table:
    """As those of pandas: what goes through it meets the names of its columns."""

    columns = ("text",)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("query", "documents", "options", "message"),
    [
        (None, ["a"], {}, "query must be a string, not NoneType"),
        (["a"], ["a"], {}, "query must be a string, not list"),
        ("a", ["a", 3], {}, r"documents\[1\] must be a string, not int"),
        ("a", "text", {}, "list of strings, not one string"),
        ("a", {"a", "b"}, {}, "documents must be a list of strings, not set"),
        ("a", {"id": "a"}, {}, "documents must be a list of strings, not dict"),
        ("a", Table(), {}, "documents must be a list of strings, not Table"),
        ("a", b"a", {}, "documents must be a list of strings, not bytes"),
        ("a", ["a"], {"top_n": 0}, "top_n must be a whole number from 1"),
        ("a", ["a"], {"top_n": -1}, "not -1"),
        ("a", ["a"], {"top_n": True}, "not True"),
        ("a", ["a"], {"top_n": 1.5}, "not 1.5"),
        ("a", ["a"], {"score_threshold": "0.5"}, "score_threshold must be a number, or None for no limit, not '0.5'"),
        ("a", ["a"], {"score_threshold": float("nan")}, "not nan"),
    ],
)
def test_impossible_arguments_are_refused_before_any_work(query, documents, options, message, tiny: ColBERT) -> None:
    with pytest.raises(InputError, match=message):
        tiny.rank(query, documents, **options)


@pytest.mark.parametrize("vectors", [torch.ones(3, 5), torch.ones(16), np.ones((3, 16)), [[1.0] * 16], None], ids=type)
def test_known_vectors_of_another_form_are_refused_and_the_text_is_named(vectors: Any, tiny: ColBERT) -> None:
    with pytest.raises(InputError, match=r"known must hold tensors \(num_tokens, 16\), not .* for 'b'"):
        tiny.rank("a", ["a", "b"], known={"b": vectors})
    with pytest.raises(InputError, match="known must map texts to their vectors, not be a list"):
        tiny.rank("a", ["a", "b"], known=["a"])
    with pytest.raises(InputError, match="documents must be a list of strings, not NoneType"):
        tiny.encode_document(None)


@pytest.mark.parametrize("vectors", [torch.ones(3, 16) * 1j, torch.ones(3, 16).to_sparse()], ids=["complex", "sparse"])
def test_known_vectors_of_another_kind_are_refused_and_the_text_is_named(vectors: torch.Tensor, tiny: ColBERT) -> None:
    with pytest.raises(InputError, match=r"known\['b'\] must be a dense tensor of real numbers, not one of torch"):
        tiny.rank("a", ["a", "b"], known={"b": vectors})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["stanford", "stanford_xlmr"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_callers_autocast_changes_nothing(
    half: torch.dtype, layout: str, dtype: str, checkpoint: Callable[[str], Path]
) -> None:
    def results(model: ColBERT) -> Any:
        pooled = model.encode_document(DOCUMENTS, pool_factor=2)
        return model.rank("wing", DOCUMENTS), str(model.explain("wing", DOCUMENTS[0])), pooled.values.tolist()

    here = results(ColBERT(checkpoint(layout), device="cpu", dtype=dtype))
    model = ColBERT(checkpoint(layout), device="cpu", dtype=dtype, cache_bytes=10**6)
    with torch.autocast("cpu", half):
        assert results(model) == here
    assert results(model) == here  # nor what was kept


def test_of_known_vectors_only_those_of_the_texts_are_read(tiny: ColBERT) -> None:
    class OnDisk(Mapping):
        read = list[str]()

        def __getitem__(self, text: str) -> torch.Tensor:
            self.read.append(text)
            return tiny.encode_document(text)[0]

        def __iter__(self) -> Iterator[str]:
            raise AssertionError("all of it is read")

        def __contains__(self, text: object) -> bool:
            return text in DOCUMENTS[:2]

        def __len__(self) -> int:
            return 10**9

    known = OnDisk()
    found = tiny.rank(QUERY, DOCUMENTS, known=known)
    assert known.read == DOCUMENTS[:2]
    assert [entry.index for entry in found] == [entry.index for entry in tiny.rank(QUERY, DOCUMENTS)]


@pytest.mark.parametrize("known", [5, torch.ones(3), ["a"]])
def test_known_vectors_that_are_no_mapping_are_refused(known: Any, checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT.shared(checkpoint("stanford"), device="cpu", cache_bytes=10**6)
    with pytest.raises(InputError, match="known must map texts to their vectors, not be a"):
        model.rank("a", ["a", "b"], known=known)


def test_known_vectors_may_ask_the_model(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT.shared(checkpoint("stanford"), device="cpu", cache_bytes=10**6)

    class Asking(dict):
        def __contains__(self, text: object) -> bool:
            return model.cache_info().entries > 10**6

    assert len(model.rank("a", ["a", "b"], known=Asking())) == 2


def test_what_lacks_scipy_is_said_before_anything_is_encoded(tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    monkeypatch.setattr(ColBERT, "_encode", None)
    with pytest.raises(MissingExtraError, match="pooling"):
        tiny.encode_document(DOCUMENTS, pool_factor=2)


@pytest.mark.parametrize("factor", [2, 3])
def test_pool_factor_keeps_its_share_of_vectors_of_any_length(factor: int, tmp_path: Path) -> None:
    checkpoints.native(tmp_path, normalize=False)
    model = ColBERT(tmp_path, device="cpu")
    whole = model.encode_document("the fox runs over the wing " * 9).lengths[0]
    assert (
        model.encode_document("the fox runs over the wing " * 9, pool_factor=factor).lengths[0]
        == 1 + (whole - 1) // factor
    )


def test_a_set_of_words_makes_the_same_settings_in_each_process() -> None:
    words = ["of", "a", ".", "the", "and"]
    for kind in (set, frozenset):
        assert Settings.of({"model": "m", "skiplist_words": kind(words)}).skiplist_words == tuple(sorted(words))
    assert Settings.of({"model": "m", "skiplist_words": words}).skiplist_words == tuple(words)
    with pytest.raises(InputError, match="skiplist_words must be a list of words"):
        Settings.of({"model": "m", "skiplist_words": {"a", 1}})


@pytest.mark.parametrize(
    "forward",
    [
        lambda sequences: torch.randn(sum(len(s.ids) for s in sequences) + 1, 32),
        lambda sequences: torch.randn(sum(len(s.ids) for s in sequences) - 1, 32),
        lambda sequences: torch.randn(sum(len(s.ids) for s in sequences), 7),
        lambda sequences: torch.randn(sum(len(s.ids) for s in sequences), 32),
        lambda sequences: torch.randn(1, sum(len(s.ids) for s in sequences), 32),
        lambda sequences: [[0.0] * 32 for s in sequences for _ in s.ids],
        lambda sequences: None,
    ],
)
def test_what_a_forward_pass_of_ones_own_must_not_return(forward: Any, checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=forward)
    with pytest.raises(ColBERTError, match=r"forward must return a tensor \(tokens, dim\), here \(\d+, 16\), not"):
        model.encode_document(["a fox", "the cat runs"])


def test_texts_that_are_no_strings_are_refused(tiny: ColBERT) -> None:
    with pytest.raises(InputError, match=r"queries\[0\] must be a string, not bytes"):
        tiny.encode_query([b"a"])
    with pytest.raises(InputError, match=r"documents\[1\]"):
        tiny.encode_document(["a", None])
    with pytest.raises(InputError, match="document must be a string or a list of strings, not NoneType"):
        tiny.explain("a", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype must be one of"),
        ({"dtype": "float16"}, "unusably slow on a CPU"),
        ({"device": "warp"}, "device='warp' can't be used"),
        ({"device": "cuda:99"}, "device='cuda:99' can't be used"),
        ({"long_documents": "drop"}, "'window' or 'truncate'"),
        ({"query_length": 0}, "query_length must be a whole number from 1"),
        ({"batch_tokens": -5}, "batch_tokens must be"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"truncate_dim": True}, "truncate_dim must be"),
        ({"window_overlap": 2.5}, "window_overlap must be a whole number"),
        ({"window_overlap": -1}, "window_overlap must be a whole number"),
        ({"skiplist_words": "the"}, "a list of words, not 'the'"),
        ({"skiplist_words": 5}, "a list of words, not 5"),
        ({"skiplist_words": [["the"]]}, "a list of words"),
        ({"trust_remote_code": "false"}, "trust_remote_code must be True or False, not 'false'"),
        ({"local_files_only": 1}, "local_files_only must be True or False"),
        ({"query_expansion": "off"}, "query_expansion must be True or False"),
        ({"query_prompt": 5}, "query_prompt must be a string"),
        ({"revision": {}}, "revision must be a string"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=message):
        ColBERT(checkpoint("stanford"), **{"device": "cpu", **options})


def test_a_forward_pass_that_is_none_is_refused(tiny: ColBERT) -> None:
    with pytest.raises(InputError, match="forward must be a function of sequences or a VLLMForward, not str"):
        ColBERT(tiny.settings.model, forward="http://gpu-1:8000")


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="model must be the name or path of a checkpoint, not None"):
        ColBERT(None)


def test_an_empty_name_is_refused() -> None:
    for none in ("", None):
        with pytest.raises(InputError, match="name or path"):
            ColBERT(none)


def test_a_shared_model_refuses_unknown_settings(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"^unknown argument batchsize \(is it batch_size\?\), nothing$"):
        ColBERT.shared(checkpoint("stanford"), batchsize=3, nothing=1)


# -------------------------------------------------------------------------------------------------------- lifecycle


def test_debuggers_may_look_at_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """And coverage tools; in Python 3.12 looking adds to ``locals()``."""
    monkeypatch.setattr(ColBERT, "_ready", lambda self: None)

    def look(frame: FrameType, event: str, argument: object) -> object:
        assert frame.f_locals is not None
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        model = ColBERT("a-model", device="cpu", query_length=8)
    finally:
        sys.settrace(before)
    assert model.settings.changed() == {"model": "a-model", "device": "cpu", "query_length": 8}


def test_equal_settings_share_one_model(checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint("stanford")
    first = ColBERT.shared(path, device="cpu", dtype="auto", query_length=23)
    assert first is ColBERT.shared(str(path), device=torch.device("cpu"), query_length=23)
    assert first is not ColBERT.shared(path, device="cpu", query_length=20)
    assert not first.loaded
    first.encode_query("a")
    assert first.loaded


def test_a_shared_model_is_that_of_the_folder_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, length in (("one", 50), ("other", 99)):
        (tmp_path / name / "model").mkdir(parents=True)
        checkpoints.stanford(tmp_path / name / "model", doc_maxlen=length)
    monkeypatch.chdir(tmp_path / "one")
    one = ColBERT.shared("model", device="cpu")
    monkeypatch.chdir(tmp_path / "other")
    other = ColBERT.shared("model", device="cpu")
    assert (one.spec.document_length, other.spec.document_length) == (50, 99)
    assert ColBERT.shared("model", device="cpu") is other


def test_a_shared_model_is_of_the_class_that_is_asked(checkpoint: Callable[[str], Path]) -> None:
    class Own(ColBERT):
        pass

    plain, own = (kind.shared(checkpoint("stanford"), device="cpu", query_length=19) for kind in (ColBERT, Own))
    assert (type(plain), type(own)) == (ColBERT, Own)


def test_a_token_that_comes_later_serves_the_load_to_come(tmp_path: Path) -> None:
    folder = checkpoints.build("stanford", tmp_path)  # nobody else has loaded it
    first = ColBERT.shared(folder, device="cpu")
    assert ColBERT.shared(folder, device="cpu", token="hf_secret") is first
    assert first.settings.token == "hf_secret"
    assert ColBERT.shared(folder, device="cpu") is first
    assert first.settings.token == "hf_secret"


def test_sharing_keeps_nothing_alive(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT.shared(checkpoint("stanford"), device="cpu", query_length=21)
    model.encode_query("a")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_close_frees_the_weights_and_the_next_call_loads_them(checkpoint: Callable[[str], Path]) -> None:
    with ColBERT(checkpoint("stanford"), device="cpu") as model:
        before = model.rank(QUERY, DOCUMENTS)
        weights = weakref.ref(model._ready()._forward)
    assert weights() is None
    assert not model.loaded
    assert model.rank(QUERY, DOCUMENTS) == before
    model.close()
    model.close()


def test_a_model_can_be_closed_while_it_is_loaded(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, load = ColBERT.shared(checkpoint("stanford"), device="cpu", query_length=18), ColBERT._load

    def closing(self: ColBERT) -> Any:
        loaded = load(self)
        self.close()  # as a handler of signals does, in the very thread that loads
        return loaded

    monkeypatch.setattr(ColBERT, "_load", closing)
    assert len(model.encode_query("a")) == 1
    assert not model.loaded, "it was closed after the call had begun"
    monkeypatch.setattr(ColBERT, "_load", load)
    assert len(model.encode_query("a")) == 1
    assert model.loaded


def test_who_comes_after_a_close_does_not_get_what_was_being_loaded_before(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, load = ColBERT.shared(checkpoint("stanford"), device="cpu", query_length=17), ColBERT._load
    encoders = list[Any]()

    def closing(self: ColBERT) -> Any:
        loaded = load(self)
        encoders.append(loaded[0])
        if len(encoders) == 1:
            self.close()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(self.encode_query, "b").result(timeout=60)
        return loaded

    monkeypatch.setattr(ColBERT, "_load", closing)
    model.encode_query("a")
    assert len(encoders) == 2
    assert model._encoder is encoders[1], "the later load stays, whichever ends last"


@pytest.mark.parametrize("name", ["stanford", "stanford_xlmr", "pylate_layers", "plain"])
def test_parameters_are_those_in_the_files(name: str, checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint(name), device="cpu", allow_unprojected=True)
    files = [load_file(path) for path in checkpoint(name).rglob("*.safetensors")]
    assert model.num_parameters == sum(tensor.numel() for file in files for tensor in file.values()) > 10_000
    elsewhere = ColBERT(checkpoint(name), device="cpu", allow_unprojected=True, forward=lambda sequences: None)
    assert elsewhere.num_parameters is None


def test_a_load_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "later"
    model = ColBERT.shared(path, device="cpu")
    with pytest.raises(CheckpointNotFoundError):
        model.encode_query("a")
    path.mkdir()
    checkpoints.stanford(path)
    assert len(model.encode_query("a")) == 1


def test_threads_load_the_weights_once(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ColBERT.shared(checkpoint("stanford"), device="cpu", query_length=22)
    loads, load = [], ColBERT._load
    monkeypatch.setattr(ColBERT, "_load", lambda self: loads.append(1) or load(self))
    threads = [threading.Thread(target=model.encode_query, args=("a",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [1]


def test_those_who_wait_for_a_load_that_fails_get_its_error(
    tmp_path: Path, wait_for_company: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loads = ColBERT.shared(tmp_path / "nowhere"), list[int]()

    def load(self: ColBERT) -> None:
        loads.append(1)
        wait_for_company(7)
        raise CheckpointNotFoundError("the hub is down")

    def encode(_: int) -> str:
        with pytest.raises(CheckpointNotFoundError) as caught:
            model.encode_query("a")
        return str(caught.value)

    monkeypatch.setattr(ColBERT, "_load", load)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(encode, range(8))) == {"the hub is down"}
    assert loads == [1]


async def test_nothing_is_loaded_for_callers_who_have_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loads, entered, leave = ColBERT.shared(tmp_path / "gone"), list[int](), threading.Event(), threading.Event()

    def load(self: ColBERT) -> None:
        loads.append(1)
        entered.set()
        assert leave.wait(30)
        raise CheckpointNotFoundError("the hub is down")

    monkeypatch.setattr(ColBERT, "_load", load)
    calls = [asyncio.create_task(model.arank("a", ["b"])) for _ in range(100)]
    await asyncio.to_thread(entered.wait)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    leave.set()
    with pytest.raises(CheckpointNotFoundError):
        await model.arank("a", ["b"])
    assert len(loads) <= 2


def test_pickles_hold_settings_only(tiny: ColBERT) -> None:
    stored = pickle.dumps(ColBERT(tiny.settings.model, device="cpu", skiplist_words=["a"], token="hf_secret"))
    assert len(stored) < 1000
    assert b"hf_secret" not in stored
    restored = pickle.loads(stored)
    assert not restored.loaded
    assert restored.settings.skiplist_words == ("a",)
    assert restored is pickle.loads(stored)
    assert restored.encode_query("a").lengths == [16]


def test_a_spec_and_an_error_can_be_pickled(tiny: ColBERT) -> None:
    assert pickle.loads(pickle.dumps(tiny.spec)) == tiny.spec
    assert str(pickle.loads(pickle.dumps(tiny.spec))) == str(tiny.spec)
    error = MissingExtraError("Token pooling", "pooling")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_copies_share_the_weights(tiny: ColBERT) -> None:
    assert copy.copy(tiny) is tiny
    assert copy.deepcopy([tiny])[0] is tiny


def test_settings_survive_json(tiny: ColBERT) -> None:
    model = ColBERT(tiny.settings.model, device="cpu", skiplist_words=["a"], query_length=20)
    again = ColBERT.shared(**json.loads(json.dumps(model.settings.changed())))
    assert again.settings == model.settings


def test_the_token_shows_nowhere(tiny: ColBERT) -> None:
    model = ColBERT(tiny.settings.model, device="cpu", token="hf_secret")
    assert "hf_secret" not in repr(model) + repr(model.settings) + str(model.settings.changed())


def test_the_repr_shows_where_and_how_it_runs(tiny: ColBERT) -> None:
    shown = repr(tiny)
    for part in ("device='cpu'", "dtype='float32'", "layout='stanford'", "query_length=16", "loaded=True"):
        assert part in shown
    assert "loaded=False" in repr(ColBERT.shared("org/never-loaded"))


def test_loading_is_silent(checkpoint: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    ColBERT(checkpoint("stanford"), device="cpu").rank(QUERY, DOCUMENTS)
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_transformers_verbosity_alone(checkpoint: Callable[[str], Path]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    ColBERT(checkpoint("stanford"), device="cpu")
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled())


def test_a_bar_is_shown_when_asked_for(tiny: ColBERT, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.encode_document(DOCUMENTS, show_progress=True)
    assert "Encoding documents: 100%" in capsys.readouterr().err
    tiny.encode_document(DOCUMENTS)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------------ async


async def test_arank_gives_what_rank_gives(tiny: ColBERT, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny.rank(QUERY, DOCUMENTS, 3)
    assert await tiny.arank(QUERY, DOCUMENTS, 3) == plain
    options: dict[str, Any]
    for options in (
        {"normalize_scores": True},
        {"score_threshold": plain[0].score},
        {"known": {DOCUMENTS[plain[0].index]: tiny.encode_document("something else")[0]}},
        {"explain": True},
    ):
        assert await tiny.arank(QUERY, DOCUMENTS, 3, **options) == tiny.rank(QUERY, DOCUMENTS, 3, **options) != plain
    assert capsys.readouterr().err == ""
    await tiny.arank(QUERY, DOCUMENTS, show_progress=True)
    assert "100%" in capsys.readouterr().err
    with pytest.raises(InputError, match="top_n"):
        await tiny.arank(QUERY, DOCUMENTS, 0)


async def test_async_work_runs_in_threads_of_its_own_with_the_callers_context(tiny: ColBERT) -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)
    names = await asyncio.gather(
        *[tiny.run_async(lambda: (threading.current_thread().name, variable.get())) for _ in range(8)]
    )
    assert all(name.startswith("colbert") and value == 7 for name, value in names)


async def test_a_cancelled_call_returns_and_the_next_one_works(tiny: ColBERT) -> None:
    entered, release = threading.Event(), threading.Event()
    blocked = asyncio.create_task(tiny.run_async(lambda: entered.set() or release.wait(2 * PATIENCE_S)))
    assert await asyncio.to_thread(entered.wait, PATIENCE_S)
    blocked.cancel()
    await asyncio.wait([blocked], timeout=PATIENCE_S)
    assert blocked.cancelled()
    release.set()
    assert await tiny.arank("a", ["a"]) == [RankedDocument(0, tiny.rank("a", ["a"])[0].score)]


async def test_a_closed_model_answers_async_calls_again(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT(checkpoint("stanford"), device="cpu")
    await model.arank("a", ["a"])
    model.close()
    assert len(await model.arank("a", ["a"])) == 1


# ------------------------------------------------------------------------------------------------- many calls at once

PATIENCE_S = 30


class Held:
    """A forward pass that waits for leave, and records its batches."""

    def __init__(self, model: ColBERT) -> None:
        self.inner = model._ready()._forward
        self.entered, self.leave = threading.Event(), threading.Event()
        self.batches: list[list[list[int]]] = []

    def __call__(self, sequences) -> torch.Tensor:
        self.batches.append([sequence.ids for sequence in sequences])
        self.entered.set()
        assert self.leave.wait(PATIENCE_S)
        return self.inner(sequences)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def job(seed: int) -> tuple[str, list[str]]:
    choose = random.Random(seed)
    query, *texts = (" ".join(choose.choices(checkpoints.WORDS, k=k)) for k in (5, *choose.choices(range(16), k=20)))
    return query, texts


def by_index(ranked: list[RankedDocument]) -> list[float]:
    return [entry.score for entry in sorted(ranked, key=lambda entry: entry.index)]


def test_a_query_is_encoded_in_the_batches_of_its_documents(tiny: ColBERT) -> None:
    forward = Held(tiny)
    forward.leave.set()
    ColBERT(tiny.settings.model, device="cpu", forward=forward).rank(QUERY, DOCUMENTS)
    assert [len(batch) for batch in forward.batches] == [1 + len(set(DOCUMENTS))]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 19])
def test_many_documents_are_ranked_piece_by_piece(count: int, tiny: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    query, texts = job(0)
    wanted = by_index(tiny.rank(query, texts[:count]))
    monkeypatch.setattr("colbert_integrations.encoder.encoder._TEXTS_AT_ONCE", 3)
    assert by_index(tiny.rank(query, texts[:count])) == pytest.approx(wanted, abs=1e-5)


def test_ranking_warns_of_a_query_and_of_documents_that_were_cut(tiny: ColBERT) -> None:
    model = ColBERT(tiny.settings.model, device="cpu", long_documents="truncate")
    with pytest.warns(TruncationWarning) as caught:
        model.rank("fox " * 90, ["a", "dog " * 90, "cat " * 90])
    assert [str(warning.message)[:11] for warning in caught] == ["1 of 1 quer", "2 of 3 docu"]
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("packed", [False, True])
def test_64_threads_share_batches_and_get_what_they_get_alone(tiny: ColBERT, packed: bool) -> None:
    jobs = [job(seed) for seed in range(64)]
    wanted = [by_index(tiny.rank(*one)) for one in jobs]
    forward = Held(tiny)
    forward.packed = packed
    model = ColBERT(tiny.settings.model, device="cpu", forward=forward)
    with ThreadPoolExecutor(64) as pool:
        found = [pool.submit(model.rank, *one) for one in jobs]
        merger = model._ready()._merge
        until(lambda: len(merger._waiting) >= 63)
        forward.leave.set()
        for future, scores in zip(found, wanted, strict=True):
            assert by_index(future.result(PATIENCE_S)) == pytest.approx(scores, abs=1e-5)
    tokens = sum(len(ids) for batch in forward.batches for ids in batch)
    assert all(sum(map(len, batch)) <= 2048 for batch in forward.batches)
    assert len(forward.batches) <= (2 + tokens / 1900 if packed else 40)


async def test_64_async_ranks_share_batches_and_give_what_they_give_alone(tiny: ColBERT) -> None:
    jobs = [job(seed) for seed in range(64)]
    wanted = [by_index(tiny.rank(*one)) for one in jobs]
    forward = Held(tiny)
    model = ColBERT(tiny.settings.model, device="cpu", forward=forward)
    calls = [asyncio.create_task(model.arank(*one)) for one in jobs]
    merger = model._ready()._merge
    await asyncio.to_thread(until, lambda: len(merger._waiting) >= 16)
    forward.leave.set()
    for found, scores in zip(await asyncio.gather(*calls), wanted, strict=True):
        assert by_index(found) == pytest.approx(scores, abs=1e-5)
    assert len(forward.batches) < 48


async def test_what_a_cancelled_call_still_waits_for_is_not_computed(tiny: ColBERT) -> None:
    forward = Held(tiny)
    model = ColBERT(tiny.settings.model, device="cpu", forward=forward)
    first = asyncio.create_task(model.arank("a", ["a fox"]))
    await asyncio.to_thread(forward.entered.wait, PATIENCE_S)
    gone = asyncio.create_task(model.arank("a", ["bread", "flour"]))
    other = asyncio.create_task(model.arank("a", ["paris"]))
    merger = model._ready()._merge
    await asyncio.to_thread(until, lambda: len(merger._waiting) == 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await asyncio.to_thread(until, lambda: len(merger._waiting) == 1)
    forward.leave.set()
    assert by_index(await first) == pytest.approx(by_index(tiny.rank("a", ["a fox"])), abs=1e-5)
    assert by_index(await other) == pytest.approx(by_index(tiny.rank("a", ["paris"])), abs=1e-5)
    assert [len(batch) for batch in forward.batches] == [2, 2]


def test_calls_that_run_when_a_model_is_closed_end_well(tiny: ColBERT) -> None:
    forward = Held(tiny)
    model = ColBERT(tiny.settings.model, device="cpu", forward=forward)
    encoder = model._ready()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(model.rank, QUERY, DOCUMENTS) for _ in range(4)]
        assert forward.entered.wait(PATIENCE_S)
        until(lambda: len(encoder._merge._waiting) == 3)
        model.close()
        assert not model.loaded
        forward.leave.set()
        for call in calls:
            assert by_index(call.result(PATIENCE_S)) == pytest.approx(by_index(tiny.rank(QUERY, DOCUMENTS)), abs=1e-5)
    assert len(model.rank(QUERY, DOCUMENTS)) == len(DOCUMENTS)
    assert model._ready() is not encoder


def test_encoding_and_ranking_at_once_equal_one_after_another(tiny: ColBERT) -> None:
    jobs = [job(seed) for seed in range(12)]
    wanted = [tiny.encode_document(texts).values for _, texts in jobs]
    scores = [by_index(tiny.rank(*one)) for one in jobs]
    with ThreadPoolExecutor(24) as pool:
        encoded = [pool.submit(tiny.encode_document, texts) for _, texts in jobs]
        ranked = [pool.submit(tiny.rank, *one) for one in jobs]
        for future, values in zip(encoded, wanted, strict=True):
            torch.testing.assert_close(future.result(PATIENCE_S).values, values, rtol=0, atol=1e-5)
        for future, expected in zip(ranked, scores, strict=True):
            assert by_index(future.result(PATIENCE_S)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_bfloat16_is_the_default_of_cards_that_have_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    asked = list[torch.device]()

    def answer(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", answer)
    assert choose_dtype(None, torch.device("cuda", 1)) == expected
    assert asked == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_device_that_is_there_is_chosen(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device(None).type == expected
