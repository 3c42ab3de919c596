"""The page on errors: each message that it quotes is raised by a small reproduction, and each class is there."""

from __future__ import annotations

import json
import pickle
import re
import sys
import threading
import warnings
from contextlib import closing as ended
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from langchain_core.documents import Document
from langchain_core.embeddings import FakeEmbeddings
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from pydantic import ValidationError
from qdrant_client import QdrantClient
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import checkpoints
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, TokenEmbeddings, errors, maxsim
from colbert_integrations.checkpoint import hub
from colbert_integrations.encoder import TorchForward
from colbert_integrations.index import persistence
from colbert_integrations.langchain import ColBERTReranker, ColBERTRetriever, ColBERTVectorStore
from colbert_integrations.llama_index import ColBERTRerank
from colbert_integrations.llama_index import ColBERTRetriever as NodeRetriever
from colbert_integrations.qdrant import QdrantStore
from colbert_integrations.vllm import VLLMForward, VLLMScorer
from qdrant_server import Fault as StoreFault
from qdrant_server import QdrantServer
from qdrant_server.strict import CLOUD
from vllm_double import Double, Fault

PAGE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
QUOTED = [(title, quoted) for title, part in SECTIONS.items() for quoted in re.findall(r"```text\n(.*?)\n```", part)]


class Bench:
    """What reproductions work with: a folder, tiny checkpoints to break, and a model that is whole."""

    def __init__(self, folder: Path, model: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.model, self.monkeypatch = folder, model, monkeypatch

    def load(self, path: Path | str, **options: object) -> ColBERT:
        return ColBERT(path, device="cpu", **options)

    def built(self, layout: str = "stanford") -> Path:
        return checkpoints.build(layout, self.folder)

    def configured(self, **changed: object) -> Path:
        """A checkpoint with another ``config.json``."""
        path = self.built()
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changed}))
        return path

    def weighted(self, *lost: str, **more: torch.Tensor) -> Path:
        """A checkpoint with other weights."""
        path = self.built()
        kept = {name: tensor for name, tensor in load_file(path / "model.safetensors").items() if name not in lost}
        save_file({**kept, **more}, path / "model.safetensors", metadata={"format": "pt"})
        return path

    def index(self) -> ColBERTIndex:
        index = ColBERTIndex(self.model)
        index.add(["a cat", "a dog"], ids=["cat", "dog"], metadatas=[{"year": 1}, {"year": 2}])
        return index

    def saved(self) -> Path:
        self.index().save(self.folder / "index")
        return self.folder / "index"

    def vectors(self) -> Path:
        return next(iter(sorted(self.saved().glob("*.safetensors"))))


REPRODUCTIONS = []


def raises(kind):
    """Registers a function that ends in an error of this class, or the warning."""

    def register(function):
        REPRODUCTIONS.append(pytest.param(kind, function, id=function.__name__))
        return function

    return register


# ---------------------------------------------------------------------------------------------------------- checkpoints


@raises(errors.MissingExtraError)
def an_extra(bench):
    bench.monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    bench.model.encode_document("how does a plane fly", pool_factor=2)


@raises(errors.CheckpointNotFoundError)
def a_folder(bench):
    bench.load("./nowhere")


@raises(errors.CheckpointNotFoundError)
def a_bundled_model(bench):
    bench.load("bundled/nothing")


@raises(errors.CheckpointNotFoundError)
def the_hub(bench):
    bench.load("nobody/nothing", local_files_only=True, cache_dir=bench.folder)


@raises(errors.CheckpointNotFoundError)
def an_empty_folder(bench):
    bench.load(bench.folder)


@raises(errors.MissingWeightsError)
def no_head(bench):
    bench.load(bench.built("plain"))


@raises(errors.MissingWeightsError)
def a_head_that_is_lost(bench):
    bench.load(bench.weighted("linear.weight"))


@raises(errors.MissingWeightsError)
def a_file_of_the_head(bench):
    path = bench.built("pylate")
    (path / "1_Dense" / "model.safetensors").unlink()
    bench.load(path)


@raises(errors.MissingWeightsError)
def weights_of_the_backbone(bench):
    bench.load(bench.weighted("bert.encoder.layer.1.output.dense.weight"))


@raises(errors.MissingWeightsError)
def a_marker(bench):
    checkpoints.pylate(bench.folder, markers=("[Q] ",))
    bench.load(bench.folder)


@raises(errors.UnsupportedCheckpointError)
def a_vision_model(bench):
    bench.load(bench.configured(vision_config={}))


@raises(errors.UnsupportedCheckpointError)
def an_adapter(bench):
    (bench.folder / "adapter_config.json").write_text("{}")
    bench.load(bench.folder)


@raises(errors.UnsupportedCheckpointError)
def an_early_colbert(bench):
    bench.load(bench.configured(model_type="ColBERT"))


@raises(errors.UnsupportedCheckpointError)
def a_dnn_file(bench):
    (bench.folder / "colbert.dnn").write_bytes(b"")
    bench.load(bench.folder)


@raises(errors.UnsupportedCheckpointError)
def several_heads(bench):
    heads = {f"projections.{dim}.weight": torch.ones(dim, checkpoints.HIDDEN) for dim in (8, 16)}
    bench.load(bench.weighted("linear.weight", **heads))


@raises(errors.UnsupportedCheckpointError)
def a_model_type(bench):
    bench.load(bench.configured(model_type="nonsense"))


@raises(errors.UnsupportedCheckpointError)
def positions(bench):
    bench.load(bench.configured(position_embedding_type="alibi"))


@raises(errors.RemoteCodeError)
def remote_code(bench):
    bench.load(bench.configured(model_type="own", auto_map={"AutoModel": "modeling_own.OwnModel"}))


@raises(errors.CheckpointError)
def damaged_weights(bench):
    path = bench.built()
    (path / "model.safetensors").write_bytes(b"version https://git-lfs")
    bench.load(path)


@raises(errors.CheckpointError)
def damaged_settings(bench):
    path = bench.built()
    (path / "artifact.metadata").write_text("{")
    bench.load(path)


@raises(errors.CheckpointError)
def a_damaged_tokenizer(bench):
    path = bench.built()
    (path / "tokenizer.json").write_text("{")
    bench.load(path)


@raises(errors.CheckpointError)
def a_bundled_file(bench):
    bench.monkeypatch.setattr(hub, "_sha256", lambda path: "other")
    bench.load("bundled/all-MiniLM-L6-v2")


@raises(errors.CheckpointError)
def weights_that_were_replaced(bench):
    path = bench.built()
    model = bench.load(path)
    (path / "model.safetensors").unlink()
    ColBERTIndex(model).add(["a cat"])


@raises(errors.StoreError)
def a_store_that_travels(bench):
    pickle.dumps(bench.index().store)


@raises(errors.StoreError)
def memory_that_does_not_suffice(bench):
    def full(*_):
        raise RuntimeError("unable to mmap 4096 bytes from file: Cannot allocate memory (12)")

    folder = bench.saved()
    bench.monkeypatch.setattr(persistence, "load_file", full)
    ColBERTIndex.load(folder, bench.model)


@raises(errors.CheckpointError)
def a_class_that_fails(bench):
    def fail(*_):
        raise RuntimeError("mat1 and mat2 must have the same dtype, but got Float and BFloat16")

    bench.monkeypatch.setattr(TorchForward, "_hidden", fail)
    bench.load(bench.built("stanford_deberta"))


# ---------------------------------------------------------------------------------------------------------------- input


@raises(errors.InputError)
def a_device(bench):
    ColBERT(bench.built(), device="cuda:99")


@raises(errors.InputError)
def half_precision(bench):
    bench.load(bench.built(), dtype="float16")


@raises(errors.InputError)
def int8(bench):
    bench.load(bench.built("stanford_deberta"), dtype="int8")


@raises(errors.InputError)
def a_long_prompt(bench):
    bench.load(bench.built(), document_prompt="the fox " * 40)


@raises(errors.InputError)
def flash_attention(bench):
    bench.load(bench.built(), attn_implementation="flash_attention_2")


@raises(errors.InputError)
def too_many_positions(bench):
    bench.load(bench.built(), document_length=100_000)


@raises(errors.InputError)
def an_argument(bench):
    ColBERT.shared(bench.built(), doc_maxlen=180)


@raises(errors.InputError)
def a_field(bench):
    ColBERTReranker(doc_maxlen=180)


@raises(errors.InputError)
def a_token_without_an_embedding(bench):
    path = bench.built()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(path)
    bench.load(path).encode_document("a cat <extra>")


@raises(errors.InputError)
def a_field_said_twice(bench):
    ColBERTReranker(model=bench.model, dtype="bfloat16")


@raises(errors.InputError)
def a_token(bench):
    ColBERTReranker(colbert_options={"token": "hf_secret"})


@raises(errors.InputError)
def a_reranker_with_two_models(bench):
    ColBERTReranker(model="another", index=bench.index())


@raises(errors.InputError)
def a_retriever_with_two_models(bench):
    ColBERTRetriever(model="another", index=bench.index())


@raises(errors.InputError)
def a_node_retriever_with_two_models(bench):
    NodeRetriever(model="another", index=bench.index())


@raises(errors.InputError)
def an_embedding(bench):
    ColBERTVectorStore.from_documents([Document("a cat")], object(), model=bench.model)


@raises(errors.InputError)
def no_query(bench):
    ColBERTRerank(model=bench.model).postprocess_nodes([])


@raises(errors.InputError)
def one_string(bench):
    bench.model.rank("a cat", "a dog")


@raises(errors.InputError)
def no_string(bench):
    bench.model.rank("a cat", ["a dog", None])


@raises(errors.InputError)
def half_a_surrogate_pair(bench):
    bench.model.encode_document(["a dog", "a cat \ud83d"])


@raises(errors.InputError)
def scores_without_bounds(bench):
    checkpoints.native(bench.folder, normalize=False)
    bench.load(bench.folder).rank("a cat", ["a dog"], normalize_scores=True)


@raises(errors.InputError)
def lists_of_two_lengths(bench):
    bench.index().add(["a cat", "a dog"], ids=["one"])


@raises(errors.InputError)
def metadata_that_is_not_json(bench):
    try:
        bench.index().add(["a cat"], ids=["one"], metadatas=[{"path": Path("x")}])
    except errors.AddError as error:
        raise error.failures["one"] from None


@raises(errors.InputError)
def codes_that_are_not_kept(bench):
    bench.index().search("a cat", search="codes")


@raises(errors.InputError)
def a_proxy_of_an_unknown_kind(bench):
    with bench.monkeypatch.context() as patch:
        patch.setenv("ALL_PROXY", "foo://here:1")
        QdrantStore("http://127.0.0.1:9")


@raises(errors.ShapeError)
def two_dimensions(bench):
    maxsim([torch.ones(1, 4)], [torch.ones(1, 8)])


@raises(errors.ShapeError)
def two_dimensions_in_a_store(bench):
    bench.index().store.search(TokenEmbeddings.from_list([torch.ones(1, 8)]))


@raises(errors.ShapeError)
def one_tensor(bench):
    maxsim(torch.ones(1, 4), [torch.ones(1, 4)])


@raises(errors.NonFiniteError)
def a_score_that_is_no_number(bench):
    bench.model.rank("a cat", ["a dog"], known={"a dog": torch.full((1, checkpoints.DIM), torch.nan)})


@raises(errors.NonFiniteError)
def a_value_that_is_too_large(bench):
    MemoryStore().upsert(["one"], TokenEmbeddings.from_list([torch.full((1, 4), 1e6)]))


@raises(errors.FilterError)
def an_operator(bench):
    bench.index().search("a cat", filter={"year": {"$like": "x"}})


@raises(errors.FilterError)
def a_range_of_words(bench):
    bench.index().search("a cat", filter={"year": {"$gte": "2020"}})


@raises(errors.FilterError)
def a_list_of_filters(bench):
    bench.index().search("a cat", filter=[{"year": 1}])


@raises(errors.FilterError)
def a_part_of_a_text(bench):
    part = MetadataFilter(key="title", value="plane", operator=FilterOperator.TEXT_MATCH)
    NodeRetriever(model=bench.model, filters=MetadataFilters(filters=[part]))


# --------------------------------------------------------------------------------------------------------------- stores


@raises(errors.StoreError)
def no_index(bench):
    ColBERTIndex.load(bench.folder)


@raises(errors.StoreError)
def a_closed_store(bench):
    index = bench.index()
    index.close()
    index.search("a cat")


@raises(errors.StoreError)
def a_pickle(bench):
    pickle.dumps(bench.index())


@raises(errors.StoreError)
def a_folder_that_is_a_file(bench):
    (bench.folder / "file").write_text("")
    bench.index().save(bench.folder / "file")


@raises(errors.StoreError)
def another_writer(bench):
    bench.monkeypatch.setattr(persistence, "_LOCK_WAIT_S", 0)
    folder = bench.saved()
    with FileLock(folder / ".lock"):
        bench.index().save(folder)


@raises(errors.StoreError)
def another_writer_before(bench):
    folder = bench.saved()
    first, second = (ColBERTIndex.load(folder, bench.model) for _ in range(2))
    first.add(["a fox"])
    first.save(folder)
    second.save(folder)


@raises(errors.StoreError)
def a_collection_of_another_form(bench):
    client = QdrantClient(":memory:")
    QdrantStore(client).bind(bench.model.fingerprint)
    QdrantStore(client, dtype="float32").count()


@raises(errors.StoreServerError)
def no_server(bench):
    QdrantStore("http://127.0.0.1:9", retries=0).count()


@raises(errors.StoreServerError)
def a_slow_server(bench):
    with ended(QdrantServer()) as server:
        server.delay = 1.5
        QdrantStore(server.url, timeout=1, retries=0).count()


@raises(errors.StoreServerError)
def no_key(bench):
    with ended(QdrantServer(api_key="secret")) as server:
        QdrantStore(server.url).count()


@raises(errors.StoreServerError)
def a_large_request(bench):
    with ended(QdrantServer()) as server:
        index = ColBERTIndex(bench.model, QdrantStore(server.url))
        index.add(["a cat"])
        server.most_bytes = 2000
        index.search(["a cat"] * 20)


@raises(errors.StoreServerError)
def a_write_that_fails(bench):
    with ended(QdrantServer()) as server:
        server.faults.append(StoreFault(500, "PUT .*/points$"))
        ColBERTIndex(bench.model, QdrantStore(server.url, retries=0)).add(["a cat", "a dog"])


@raises(errors.InputError)
def a_large_document(bench):
    with ended(QdrantServer(most_bytes=2000)) as server:
        QdrantStore(server.url).upsert(["one"], TokenEmbeddings.from_list([torch.ones(200, 16)]))


@raises(errors.StoreServerError)
def an_unindexed_key(bench):
    with ended(QdrantServer()) as server:
        server.strict_mode = dict(CLOUD)
        index = ColBERTIndex(bench.model, QdrantStore(server.url))
        index.add(["a cat"])
        index.search("cat", filter={"year": {"$gte": 2020}})


@raises(errors.StoreError)
def another_first_stage(bench):
    client = QdrantClient(":memory:")
    QdrantStore(client, first_stage="mean").bind(bench.model.fingerprint)
    QdrantStore(client, first_stage=FakeEmbeddings(size=bench.model.dim)).count()


class Served:
    """A vLLM server of the whole model, and models of it and others on that server."""

    def __init__(self, bench: Bench, *faults: Fault, **settings: object) -> None:
        self.bench, self.double = bench, Double(Path(bench.model.settings.model), **settings)
        self.double.faults += faults

    def encode(self, path: Path | None = None, **options: object) -> None:
        """Encode a document with ``options`` of the forward pass, and those of the model that it has no name for."""
        own = {name: options.pop(name) for name in ("document_length",) if name in options}
        forward = VLLMForward(self.double.url, **{"retries": 0, **options})
        model = self.bench.load(path or self.bench.model.settings.model, forward=forward, **own)
        try:
            model.rank("a cat", ["a dog"])
        finally:
            model.close()
            self.double.kill()


@raises(errors.InputError)
def a_query_for_a_server(bench):
    Served(bench).encode(queries="refuse")


@raises(errors.InputError)
def a_key_with_a_line_end(bench):
    bench.monkeypatch.setenv("VLLM_API_KEY", "secret\n")
    bench.load(bench.built(), forward=VLLMForward("http://127.0.0.1:9"))


@raises(errors.InputError)
def a_proxy_of_another_kind(bench):
    bench.monkeypatch.setenv("ALL_PROXY", "ftp://somewhere:1")
    bench.load(bench.built(), forward=VLLMForward("http://127.0.0.1:9"))


@raises(errors.InputError)
def a_residual(bench):
    Served(bench).encode(bench.built("pylate_layers"))


@raises(errors.RemoteRefusedError)
def a_server_with_a_key(bench):
    Served(bench, key="secret").encode()


@raises(errors.RemoteRefusedError)
def a_server_of_another_kind(bench):
    other = {"data": [{"id": "a-chat-model"}]}
    Served(bench, Fault(200, other, path="/v1/models"), Fault(404, {"detail": "Not Found"})).encode()


@raises(errors.RemoteRefusedError)
def a_text_that_nobody_cuts(bench):
    double = Double(Path(bench.model.settings.model))
    scorer = VLLMScorer(double.url)
    try:
        scorer.rank("a cat", ["the dog " * 400])
    finally:
        scorer.close()
        double.kill()


@raises(errors.RemoteUnavailableError)
def no_vllm(bench):
    with bench.load(bench.built(), forward=VLLMForward("http://127.0.0.1:9", retries=0)) as model:
        model.encode_document("a cat")


@raises(errors.RemoteUnavailableError)
def a_slow_vllm(bench):
    Served(bench, Fault(hold=threading.Event())).encode(timeout=0.2)


@raises(errors.RemoteUnavailableError)
def a_vllm_that_died(bench):
    dead = {"error": {"message": "EngineDeadError", "type": "InternalServerError", "param": None, "code": 500}}
    Served(bench, Fault(500, dead)).encode()


@raises(errors.RemoteMismatchError)
def a_server_of_shorter_texts(bench):
    Served(bench, max_model_len=30).encode()


@raises(errors.RemoteMismatchError)
def a_server_of_another_name(bench):
    Served(bench).encode(model="another")


@raises(errors.RemoteMismatchError)
def a_server_of_another_vocabulary(bench):
    checkpoints.pylate(bench.folder, do_query_expansion=False)
    Served(bench).encode(bench.folder)


@raises(errors.RemoteMismatchError)
def a_server_without_a_projection(bench):
    served = Served(bench)
    served.double.alter = lambda vectors: torch.cat([vectors, vectors], -1)
    served.encode()


@raises(errors.RemoteMismatchError)
def a_server_of_other_weights(bench):
    served = Served(bench)
    served.double.alter = lambda vectors: vectors.flip(-1)
    served.encode()


@raises(errors.RemoteMismatchError)
def a_page(bench):
    Served(bench, Fault(200, "<html>It works!</html>", path="/v1/models")).encode()


@raises(errors.DamagedIndexError)
def a_missing_file(bench):
    file = bench.vectors()
    file.unlink()
    ColBERTIndex.load(file.parent, bench.model)


@raises(errors.DamagedIndexError)
def a_file_cut_short(bench):
    file = bench.vectors()
    file.write_bytes(file.read_bytes()[:-1])
    ColBERTIndex.load(file.parent, bench.model)


@raises(errors.DamagedIndexError)
def a_changed_file(bench):
    file = bench.vectors()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    ColBERTIndex.load(file.parent, bench.model)


@raises(errors.FingerprintError)
def another_model(bench):
    ColBERTIndex.load(bench.saved(), bench.load(bench.built("pylate")))


@raises(errors.AddError)
def documents_that_are_refused(bench):
    bench.index().add(["a cat", None], ids=["one", "two"])


@raises(errors.TruncationWarning)
def a_document_that_is_cut(bench):
    bench.load(bench.built(), long_documents="truncate").rank("a cat", ["the dog " * 400])


@raises(errors.TruncationWarning)
def a_query_that_is_cut(bench):
    bench.model.rank("the dog " * 400, ["a cat"])


@raises(errors.StaleVectorsWarning)
def vectors_of_before(bench):
    ColBERTIndex(bench.model, bench.index().store, pool_factor=2).add(["a cat"], ids=["cat"])


@raises(errors.StaleVectorsWarning)
def another_tokenizer(bench):
    store = bench.index().store
    [encoding] = store.fingerprint.encodings
    store.bind(replace(store.fingerprint, encodings=[{**encoding, "tokenizer": "another"}]))
    ColBERTIndex(bench.model, store)


@raises(errors.RepeatedIdsWarning)
def chunks_of_one_file(bench):
    ColBERTIndex(bench.model).add(["a cat", "a dog"], ids=["pets.md", "pets.md"])


@raises(NotImplementedError)
def mmr(bench):
    ColBERTVectorStore(bench.model).as_retriever(search_type="mmr").invoke("a cat")


# ---------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def raised(tiny, tmp_path_factory):
    """What each reproduction ended in."""
    return {parameter.id: ended_in(parameter.values[1], tiny, tmp_path_factory) for parameter in REPRODUCTIONS}


def ended_in(reproduce, model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
        for category in (errors.TruncationWarning, errors.StaleVectorsWarning, errors.RepeatedIdsWarning):
            warnings.simplefilter("error", category)
        try:
            reproduce(Bench(tmp_path_factory.mktemp("bench"), model, monkeypatch))
        except Exception as error:
            return error
    return None


def section_and_message(error):
    """Where the page should have it, and what it says; pydantic wraps errors of ours that come from its fields."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        error = first.get("ctx", {}).get("error", first["msg"])
    ours = type(error).__name__ in errors.__all__
    return type(error).__name__ if ours else "From the frameworks", str(error)


def fits(message: str, quoted: str) -> bool:
    return re.fullmatch(".+".join(map(re.escape, quoted.split("…"))), message, re.DOTALL) is not None


@pytest.mark.parametrize(("kind", "reproduce"), REPRODUCTIONS)
def test_a_message_is_quoted_once_under_its_class(kind, reproduce, raised):
    error = raised[reproduce.__name__]
    section, message = section_and_message(error)
    assert section == kind.__name__ or type(error) is kind, repr(error)
    found = [quoted for title, quoted in QUOTED if title == section and fits(message, quoted)]
    assert len(found) == 1, message


@pytest.mark.parametrize(("section", "quoted"), [pytest.param(*row, id=f"{row[0]}: {row[1][:50]}") for row in QUOTED])
def test_a_message_on_the_page_is_raised(section, quoted, raised):
    there = [section_and_message(error) for error in raised.values()]
    assert any(title == section and fits(message, quoted) for title, message in there)


def test_each_class_of_ours_has_a_section():
    # ColBERTError is never raised itself.
    assert set(errors.__all__) - set(SECTIONS) == {"ColBERTError"}
