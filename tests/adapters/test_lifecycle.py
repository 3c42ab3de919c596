"""Settings, sharing, copies and closing: a reranker is its settings; weights are shared and come and go."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.documents import Document
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.schema import TextNode
from pydantic import ValidationError, create_model

import checkpoints
from adapters.drivers import QUERY, TEXTS, LangChain, LlamaIndex, scores_of
from colbert_integrations import ColBERT, ColBERTIndex, langchain, llama_index
from colbert_integrations.errors import DamagedIndexError, InputError

Driver = LangChain | LlamaIndex

SMALL = 4096

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda reranker: pickle.loads(pickle.dumps(reranker)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "model_copy": lambda reranker: reranker.model_copy(),
    "model_copy_deep": lambda reranker: reranker.model_copy(deep=True),
    "model_dump": lambda reranker: type(reranker).model_validate(_fields(reranker)),
    "json": lambda reranker: type(reranker)(**json.loads(json.dumps(_fields(reranker)))),
}


def _fields(reranker: Any) -> dict[str, Any]:
    return {key: value for key, value in json.loads(reranker.model_dump_json()).items() if key != "class_name"}


# ------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_equal_settings_and_the_same_weights(driver: Driver, stanford: dict[str, Any], how: str):
    reranker = driver.Reranker(**stanford, top_n=2, score_threshold=0.1, colbert_options={"batch_tokens": 512})
    scores = scores_of(driver, reranker)
    twin = COPIES[how](reranker)
    assert _fields(twin) == _fields(reranker)
    assert twin.colbert is reranker.colbert
    assert scores_of(driver, twin) == scores


def test_a_field_of_this_type_takes_one_that_is_made(driver: Driver, shared_model: ColBERT):
    retriever = langchain.ColBERTRetriever(model=shared_model)
    for made in (driver.Reranker(model=shared_model), retriever):
        holder = create_model("Holder", part=(type(made), ...))
        assert holder(part=made).part is made
        assert made.colbert is shared_model


def test_a_used_reranker_is_small_when_written(driver: Driver, stanford: dict[str, Any]):
    reranker = driver.Reranker(**stanford)
    scores_of(driver, reranker)
    assert len(pickle.dumps(reranker)) < SMALL
    assert len(reranker.model_dump_json()) < SMALL


def test_pickles_work_in_another_process(stanford: dict[str, Any], tmp_path: Path):
    pairs = [(driver, driver.Reranker(**stanford, top_n=2)) for driver in (LangChain(), LlamaIndex())]
    scores = [scores_of(*pair) for pair in pairs]
    (tmp_path / "pairs").write_bytes(pickle.dumps(pairs))
    program = (
        "import json, pickle, sys; from adapters.drivers import scores_of\n"
        "print(json.dumps([scores_of(*pair) for pair in pickle.load(open(sys.argv[1], 'rb'))]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "pairs")]
    tests = Path(__file__).parents[1]
    found = subprocess.run(command, cwd=tests, capture_output=True, text=True, check=True)
    for here, there in zip(scores, json.loads(found.stdout), strict=True):
        assert dict(there) == pytest.approx(dict(here), abs=1e-6)


def test_a_forward_pass_elsewhere_survives_pickling(driver: Driver, checkpoint: Callable[[str], Path]):
    model = ColBERT(checkpoint("stanford"), device="cpu", forward=constant_forward)
    twin = pickle.loads(pickle.dumps(driver.Reranker(model=model, top_n=2)))
    assert [score for _, score in scores_of(driver, twin)] == pytest.approx([1.0] * 2, abs=1e-6)


def constant_forward(sequences: Any) -> torch.Tensor:
    return torch.ones(sum(len(sequence.ids) for sequence in sequences), checkpoints.DIM)


def test_llama_index_dictionaries_and_json(stanford: dict[str, Any]):
    driver = LlamaIndex()
    reranker = driver.Reranker(**stanford, top_n=2, keep_retrieval_score=True)
    scores = scores_of(driver, reranker)
    assert reranker.to_dict()["class_name"] == "ColBERTRerank"
    assert len(reranker.to_json()) < SMALL
    for twin in (
        driver.Reranker.from_dict(reranker.to_dict()),
        driver.Reranker.from_json(reranker.to_json()),
        driver.Reranker.from_dict(reranker.to_dict(), model=reranker.colbert),
    ):
        assert twin.to_dict() == reranker.to_dict()
        assert twin.colbert is reranker.colbert
        assert scores_of(driver, twin) == scores


@pytest.mark.parametrize(
    "adapter", [langchain.ColBERTReranker, langchain.ColBERTRetriever, llama_index.ColBERTRerank], ids=str
)
def test_fields_have_a_json_schema(adapter: Any):
    fields = adapter.model_json_schema()["properties"]
    assert {"model", "device", "score_threshold", "explain"} <= fields.keys()
    assert "document_formatter" not in fields  # a function, which JSON can't say
    assert adapter.model_json_schema(mode="serialization")["type"] == "object"


@pytest.mark.parametrize("how", COPIES)
def test_a_callback_handler_that_cannot_be_copied_does_not_matter(stanford: dict[str, Any], how: str):
    handler = LlamaDebugHandler(print_trace_on_end=False)
    handler.lock = threading.Lock()
    driver = LlamaIndex()
    reranker = driver.Reranker(**stanford, callback_manager=CallbackManager([handler]))
    assert scores_of(driver, COPIES[how](reranker)) == scores_of(driver, reranker)
    assert len(pickle.dumps(reranker)) < SMALL


# ------------------------------------------------------------------------------------------------------------ sharing


def test_both_frameworks_share_one_model(stanford: dict[str, Any]):
    langchain = LangChain.Reranker(**stanford, top_n=1)
    llama_index = LlamaIndex.Reranker(**stanford, normalize_scores=False)
    assert langchain.colbert is llama_index.colbert
    assert langchain.colbert._ready() is llama_index.colbert._ready()


def test_other_model_settings_are_another_model(driver: Driver, stanford: dict[str, Any]):
    reranker = driver.Reranker(**stanford)
    other = driver.Reranker(**stanford, document_length=20)
    assert other.colbert is not reranker.colbert
    assert other.colbert.settings.document_length == 20


def test_a_setting_that_is_changed_later_counts(driver: Driver, stanford: dict[str, Any]):
    reranker = driver.Reranker(**stanford)
    before = reranker.colbert
    reranker.document_length = 20
    assert reranker.colbert is not before
    assert reranker.colbert.spec.document_length == 20


def test_a_setting_that_is_changed_beside_an_index_is_refused(driver: Driver, shared_model: ColBERT):
    index = ColBERTIndex(shared_model)
    reranker, other = driver.Reranker(index=index), driver.Reranker(model=shared_model.settings.model, query_length=9)
    reranker.document_length, other.index = 20, index
    for changed in (reranker, other):
        with pytest.raises(InputError, match=f"can.t be changed: .* Make a new {driver.Reranker.__name__}"):
            scores_of(driver, changed)
    reranker.document_length = None
    assert scores_of(driver, reranker)


def test_close_frees_the_weights_and_the_next_call_loads_them_again(driver: Driver, checkpoint: Callable[[str], Path]):
    # Settings that nothing else uses: others' weights stay.
    reranker = driver.Reranker(model=str(checkpoint("stanford")), device="cpu", query_length=12)
    assert not reranker.colbert.loaded
    scores = scores_of(driver, reranker)
    assert reranker.colbert.loaded
    reranker.close()
    assert not reranker.colbert.loaded
    assert scores_of(driver, reranker) == scores


@pytest.mark.parametrize("how", ["langchain", "vector store", "llama index"])
def test_closing_a_retriever_frees_the_weights_and_keeps_the_documents(how: str, checkpoint: Callable[[str], Path]):
    model = ColBERT(checkpoint("stanford"), device="cpu")
    if how == "langchain":
        retriever = langchain.ColBERTRetriever.from_texts(TEXTS, model=model)
        find = retriever.invoke
    elif how == "vector store":
        retriever = langchain.ColBERTVectorStore.from_texts(TEXTS, model=model)
        find = retriever.similarity_search
    else:
        retriever = llama_index.ColBERTRetriever([TextNode(text=text, id_=text) for text in TEXTS], model=model)
        find = retriever.retrieve
    found = find(QUERY)
    retriever.close()
    assert not model.loaded
    assert find(QUERY) == found


def test_device_shows_and_is_used(driver: Driver, stanford: dict[str, Any]):
    reranker = driver.Reranker(**stanford)
    assert "device='cpu'" in repr(reranker)
    assert reranker.colbert.device == torch.device("cpu")
    elsewhere = driver.Reranker(**{**stanford, "device": "meta"})
    assert elsewhere.colbert.device == torch.device("meta")


# ---------------------------------------------------------------------------------------------- a ColBERT as the model


def test_a_colbert_is_used_as_it_is(driver: Driver, tiny: ColBERT):
    reranker = driver.Reranker(model=tiny)
    assert reranker.colbert is tiny
    assert reranker.model == tiny.settings.model
    assert reranker.device == "cpu"
    assert scores_of(driver, reranker)


def test_what_a_colbert_was_made_with_is_written_out(driver: Driver, checkpoint: Callable[[str], Path]):
    model = ColBERT.shared(checkpoint("stanford"), device="cpu", query_length=12, skiplist_words=["the"])
    reranker = driver.Reranker(model=model)
    assert reranker.query_length == 12
    assert reranker.colbert_options == {"skiplist_words": ["the"]}
    assert type(reranker)(**_fields(reranker)).colbert is model


def test_settings_that_contradict_a_colbert_are_refused(driver: Driver, tiny: ColBERT):
    with pytest.raises(ValidationError, match="device, document_length belong to the ColBERT"):
        driver.Reranker(model=tiny, device="cuda", document_length=20)
    with pytest.raises(ValidationError, match="batch_tokens belong to the ColBERT"):
        driver.Reranker(model=tiny, colbert_options={"batch_tokens": 7})
    assert driver.Reranker(model=tiny, device="cpu", long_documents="window", colbert_options={}).colbert is tiny


@pytest.mark.parametrize(
    "options",
    [
        {"colbert_options": {"local_files_only": False, "cache_bytes": None, "cache_dir": None}},
        {"colbert_options": {"skiplist_words": ("the",), "cache_dir": Path("somewhere")}},
        {"device": "auto", "dtype": "auto"},
    ],
    ids=["defaults", "other types", "auto"],
)
def test_settings_may_be_said_again_in_any_form(driver: Driver, stanford: dict[str, Any], options: dict[str, Any]):
    reranker = driver.Reranker(**stanford | options)
    # What configurable fields do: made anew from all fields, and from the model that the first has made.
    assert driver.Reranker(**{**stanford, **options, "model": reranker.colbert}).colbert is reranker.colbert


def test_devices_and_data_types_may_be_those_of_torch(driver: Driver, stanford: dict[str, Any]):
    reranker = driver.Reranker(**stanford | {"device": torch.device("cpu"), "dtype": torch.float32})
    assert (reranker.device, reranker.dtype) == ("cpu", "float32")
    assert reranker.colbert.settings.dtype == "float32"


def test_a_path_is_a_model(driver: Driver, checkpoint: Callable[[str], Path], shared_model: ColBERT):
    reranker = driver.Reranker(model=checkpoint("stanford"), device="cpu")
    assert reranker.model == str(checkpoint("stanford"))
    assert reranker.colbert is shared_model


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"topn": 3}, "topn"),
        ({"model": 3}, "model"),
        ({"model": ""}, "model"),
        ({"long_documents": "cut"}, "long_documents"),
        ({"document_length": 0}, "document_length"),
        ({"batch_size": -1}, "batch_size"),
        ({"colbert_options": {"batch_token": 3}}, "batch_token"),
        ({"colbert_options": {"device": "cpu"}}, "device"),
        ({"colbert_options": {"forward": print}}, "forward"),
    ],
)
def test_an_impossible_field_is_refused_at_once(driver: Driver, fields: dict[str, Any], named: str):
    with pytest.raises(ValidationError, match=named):
        driver.Reranker(**fields)


def test_a_token_is_refused_and_not_repeated(driver: Driver):
    with pytest.raises(ValidationError, match="token") as caught:
        driver.Reranker(colbert_options={"token": "hf_secret"})
    assert "hf_secret" not in str(caught.value)
    assert "hf_secret" not in repr(caught.value)


def test_the_token_of_a_colbert_is_not_written_out(driver: Driver, checkpoint: Callable[[str], Path]):
    reranker = driver.Reranker(model=ColBERT(checkpoint("stanford"), device="cpu", token="hf_secret"))
    assert "hf_secret" not in repr(reranker) + reranker.model_dump_json() + str(pickle.dumps(reranker))


def test_a_copy_shares_what_a_method_belongs_to(shared_model: ColBERT) -> None:
    class Tenant:
        def __init__(self) -> None:
            self.own = threading.Lock()

        def __call__(self, document: Any) -> bool:
            return True

        def asked(self, document: Any) -> bool:
            return True

        def text(self, document: Any) -> str:
            return "lions"

    tenant = Tenant()
    for given in (tenant, tenant.asked):
        found = copy.deepcopy(langchain.ColBERTRetriever.from_texts(["lions"], model=shared_model, filter=given))
        assert len(found.invoke("lions")) == 1
        nodes = copy.deepcopy(llama_index.ColBERTRetriever([TextNode(text="lions")], model=shared_model, filters=given))
        assert len(nodes.retrieve("lions")) == 1
    reranker = copy.deepcopy(langchain.ColBERTReranker(model=shared_model, document_formatter=tenant.text))
    assert len(reranker.compress_documents([Document("a")], "lions")) == 1


# ------------------------------------------------------------------------------------------------ an index in a folder


@pytest.mark.parametrize(
    "load",
    [
        ColBERTIndex.load,
        langchain.ColBERTRetriever.load,
        langchain.ColBERTVectorStore.load,
        llama_index.ColBERTRetriever.from_persist_dir,
    ],
)
def test_a_change_of_a_file_is_found_unless_checksums_are_not_wanted(
    load: Callable[..., Any], shared_model: ColBERT, tmp_path: Path
):
    index = ColBERTIndex(shared_model)
    index.add(TEXTS)
    index.save(tmp_path)
    [vectors] = tmp_path.glob("*.safetensors")
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    with pytest.raises(DamagedIndexError, match="its checksum differs"):
        load(tmp_path, shared_model)
    load(tmp_path, shared_model, verify=False)
