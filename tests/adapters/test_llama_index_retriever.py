"""ColBERTRetriever for LlamaIndex: what it finds, what it keeps of a node, and what it refuses."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import (
    DocumentSummaryIndex,
    MockEmbedding,
    SimpleKeywordTableIndex,
    SummaryIndex,
    VectorStoreIndex,
)
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import MockLLM
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore

import checkpoints
from adapters.drivers import QUERY, TEXTS, PageNode
from adapters.test_imports import WHERE_TORCH_IS_IMPORTED, fresh
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, observed
from colbert_integrations.encoder import Encoder, Side
from colbert_integrations.errors import AddError, FingerprintError, InputError, StoreError
from colbert_integrations.llama_index import ColBERTRerank, ColBERTRetriever
from colbert_integrations.llama_index import retriever as module_of_retriever

Make = Callable[..., ColBERTRetriever]


def texts_as_nodes(texts: list[str] = TEXTS) -> list[TextNode]:
    return [TextNode(text=text, id_=f"id-{place}", metadata={"place": place}) for place, text in enumerate(texts)]


def read(found: list[NodeWithScore]) -> list[tuple[str, float]]:
    return [(node.node_id, node.score) for node in found]


def brute_force(model: ColBERT, queries: list[str], texts: dict[str, str]) -> dict[str, float]:
    """MaxSim by its definition in float64, as a mean over the query's vectors; the best of the queries."""
    asked, documents = model.encode_query(queries), model.encode_document(list(texts.values()))
    return {
        name: max(float((query.double() @ vectors.double().T).amax(1).mean().clamp(0, 1)) for query in asked)
        for name, vectors in zip(texts, documents, strict=True)
    }


@pytest.fixture
def make(shared_model: ColBERT) -> Make:
    """Makes retrievers whose vectors are not rounded; of the common texts, unless told otherwise."""

    def made(nodes: list[BaseNode] | None = None, **options: Any) -> ColBERTRetriever:
        options = {"store": MemoryStore("float32"), "model": shared_model, **options}
        return ColBERTRetriever(texts_as_nodes() if nodes is None else nodes, **options)

    return made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The documents that are encoded, in order."""
    texts, encode = list[str](), ColBERT.encode_document

    def counting(self: ColBERT, documents: Any, **options: Any) -> Any:
        texts.extend(documents)
        return encode(self, documents, **options)

    monkeypatch.setattr(ColBERT, "encode_document", counting)
    return texts


def forbidden(*args: Any, **options: Any) -> Any:
    raise AssertionError("a text was encoded")


# --------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_finds_what_a_brute_force_finds(make: Make, shared_model: ColBERT, how: str):
    retriever = make(similarity_top_k=6)
    found = retriever.retrieve(QUERY) if how == "sync" else await retriever.aretrieve(QUERY)
    texts = {node.node_id: node.get_content(MetadataMode.EMBED) for node in texts_as_nodes()}
    wanted = brute_force(shared_model, [QUERY], texts)
    assert dict(read(found)) == pytest.approx(wanted, abs=1e-5)
    assert [node.score for node in found] == sorted((node.score for node in found), reverse=True)
    assert all(type(node.score) is float for node in found)


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("top_k", [1, 2, 6])
async def test_of_several_embedding_strings_the_best_score_counts(
    make: Make, shared_model: ColBERT, how: str, top_k: int
):
    # As HyDE makes it. A long and a short one: sums of different lengths would not compare.
    bundle = QueryBundle(
        QUERY, custom_embedding_strs=["lions", " a fox jumps over the quick cat in the city of berlin\n"]
    )
    retriever = make(similarity_top_k=top_k)
    found = retriever.retrieve(bundle) if how == "sync" else await retriever.aretrieve(bundle)
    texts = {node.node_id: node.get_content(MetadataMode.EMBED) for node in texts_as_nodes()}
    wanted = brute_force(shared_model, [text.strip() for text in bundle.embedding_strs], texts)
    best = sorted(wanted.values(), reverse=True)[:top_k]
    assert [score for _, score in read(found)] == pytest.approx(best, abs=1e-5)
    assert all(score == pytest.approx(wanted[name], abs=1e-5) for name, score in read(found))


def test_embedding_strings_take_the_place_of_the_query(make: Make):
    retriever = make(similarity_top_k=6)
    assert read(retriever.retrieve(QueryBundle(QUERY, custom_embedding_strs=["lions"]))) == read(
        retriever.retrieve("lions")
    )
    assert read(retriever.retrieve(QueryBundle(QUERY, custom_embedding_strs=[]))) == read(retriever.retrieve(QUERY))


async def test_white_space_around_a_query_does_not_count(make: Make, monkeypatch: pytest.MonkeyPatch):
    retriever, encode, asked = make(), ColBERT.encode_query, list[Any]()
    monkeypatch.setattr(
        ColBERT, "encode_query", lambda self, texts, **rest: asked.append(texts) or encode(self, texts, **rest)
    )
    retriever.retrieve("\n lions \n\n")
    await retriever.aretrieve("lions\n\n")
    assert asked == [["lions"], ["lions"]]


@pytest.mark.parametrize("query", ["", " \n"])
async def test_an_empty_query_finds_something_finite(make: Make, query: str):
    retriever = make(similarity_top_k=6)
    assert len(retriever.retrieve(query)) == len(await retriever.aretrieve(query)) == 6
    assert all(0 <= node.score <= 1 for node in retriever.retrieve(query))


def test_raw_sums_are_means_times_the_query_length(make: Make, shared_model: ColBERT):
    [length] = shared_model.encode_query(QUERY).lengths
    means, sums = (make(similarity_top_k=6, normalize_scores=scale).retrieve(QUERY) for scale in (True, False))
    assert [node.score / length for node in sums] == pytest.approx([node.score for node in means], abs=1e-6)
    assert sums[0].score > 1


def test_the_threshold_keeps_what_reaches_it(make: Make):
    scores = [node.score for node in make(similarity_top_k=6).retrieve(QUERY)]
    assert scores[2] > scores[3]
    assert [n.score for n in make(similarity_top_k=6, score_threshold=scores[2]).retrieve(QUERY)] == scores[:3]
    assert make(score_threshold=1.1).retrieve(QUERY) == []


def test_what_is_set_afterwards_counts_as_if_it_had_been_passed(make: Make):
    scores = [node.score for node in make(similarity_top_k=6, normalize_scores=False).retrieve(QUERY)]
    asked = {
        "filters": {"place": {"$gte": 1}},
        "node_ids": ["id-0", "id-1", "id-2", "id-3", "id-4"],
        "normalize_scores": False,
        "score_threshold": scores[4],
        "similarity_top_k": 3,
        "explain": True,
    }
    later = make()
    for name, value in asked.items():
        setattr(later, name, value)
    found = later.retrieve(QUERY)
    assert read(found) == read(make(**asked).retrieve(QUERY))
    assert found
    assert {node.node_id for node in found} <= {"id-1", "id-2", "id-3", "id-4"}
    assert all(node.score >= scores[4] and "explanation" in node.node.metadata for node in found)


async def test_search_and_candidates_reach_the_store(make: Make, monkeypatch: pytest.MonkeyPatch):
    retriever, seen = make(search="centroids", candidates=7), list[Any]()
    monkeypatch.setattr(
        MemoryStore, "search", lambda self, queries, k, filter, **rest: seen.append(rest) or [[]] * len(queries)
    )
    retriever.retrieve(QUERY)
    await retriever.aretrieve(QUERY)
    assert seen == [{"ids": None, "search": "centroids", "candidates": 7, "texts": [QUERY]}] * 2


def test_equal_scores_are_ordered_by_id(make: Make):
    nodes = [TextNode(text="bread", id_=name) for name in ("c", "a", "b")]
    assert [name for name, _ in read(make(nodes, similarity_top_k=3).retrieve(QUERY))] == ["a", "b", "c"]


def test_scores_that_are_cut_off_at_0_keep_their_order(checkpoint: Callable[[str], Path]):
    def turning(sequences: Any) -> torch.Tensor:  # documents, whose marker is 2, turn away the more words they have
        angles = [torch.full((len(s.ids),), 1.6 + 0.2 * len(s.ids) if 2 in s.ids else 0.0) for s in sequences]
        return torch.nn.functional.pad(torch.stack([torch.cat(angles).cos(), torch.cat(angles).sin()], 1), (0, 14))

    nodes = [TextNode(text=text, id_=name) for text, name in (("a fox is", "a"), ("a", "c"), ("a fox", "b"))]
    retriever = ColBERTRetriever(nodes, model=ColBERT(checkpoint("stanford"), device="cpu", forward=turning))
    retriever.similarity_top_k = 3
    assert read(retriever.retrieve("lions")) == [("c", 0.0), ("b", 0.0), ("a", 0.0)]
    assert read(retriever.retrieve(QueryBundle("", custom_embedding_strs=["lions", "fox"])))[0] == ("c", 0.0)


def test_a_candidate_stage_of_all_nodes_finds_the_same(make: Make):
    exact = read(make(similarity_top_k=6).retrieve(QUERY))
    found = make(similarity_top_k=6, search="centroids", candidates=6).retrieve(QUERY)
    assert dict(read(found)) == pytest.approx(dict(exact), abs=1e-5)


# ------------------------------------------------------------------------------------------------------ how many, which


def test_finds_two_unless_told_otherwise(make: Make):
    retriever = make()
    assert retriever.similarity_top_k == len(retriever.retrieve(QUERY)) == 2
    retriever.similarity_top_k = 3
    assert retriever.similarity_top_k == len(retriever.retrieve(QUERY)) == 3


def test_more_than_there_are_gives_all(make: Make):
    assert len(make(similarity_top_k=100).retrieve(QUERY)) == 6


async def test_an_empty_retriever_finds_nothing_and_loads_nothing(missing: dict[str, Any]):
    for retriever in (ColBERTRetriever(**missing), ColBERTRetriever([], **missing)):
        assert retriever.retrieve(QUERY) == await retriever.aretrieve(QUERY) == []
        retriever.delete_nodes(["a"])
        retriever.delete_ref_doc("a")


async def test_a_retriever_whose_nodes_were_all_deleted_finds_nothing(make: Make):
    retriever = make()
    retriever.delete_nodes([f"id-{place}" for place in range(6)] + ["unknown"])
    assert retriever.retrieve(QUERY) == await retriever.aretrieve(QUERY) == []


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_looks_among_the_named_nodes_only(make: Make, how: str):
    retriever = make(similarity_top_k=6, node_ids=["id-5", "id-2", "unknown"])
    found = retriever.retrieve(QUERY) if how == "sync" else await retriever.aretrieve(QUERY)
    assert {name for name, _ in read(found)} == {"id-2", "id-5"}
    assert make(node_ids=[]).retrieve(QUERY) == []


def from_document(name: str, number: int, text: str = "bread and flour") -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)}
    return TextNode(text=text, id_=f"{name}-{number}", metadata={"number": number}, relationships=source)


@pytest.fixture
def pages() -> list[TextNode]:
    alone = TextNode(text="paris", id_="alone", metadata={"number": 0})
    return [*(from_document(name, number) for name in ("a", "b") for number in (0, 1)), alone]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"doc_ids": ["a"]}, {"a-0", "a-1"}),
        ({"doc_ids": ["a", "b", "unknown"]}, {"a-0", "a-1", "b-0", "b-1"}),
        ({"doc_ids": []}, set()),
        ({"doc_ids": ["a"], "node_ids": ["a-1", "b-1"]}, {"a-1"}),
        ({"doc_ids": ["a"], "filters": {"number": 0}}, {"a-0"}),
        ({"doc_ids": ["a"], "filters": lambda node: node.metadata["number"] == 1}, {"a-1"}),
        ({"filters": lambda node: node.ref_doc_id == "b"}, {"b-0", "b-1"}),
        ({"filters": {"number": {"$gt": 5}}}, set()),
    ],
)
async def test_looks_among_nodes_of_the_named_documents_only(make: Make, pages: Any, options: Any, wanted: set[str]):
    retriever = make(pages, similarity_top_k=9, **options)
    assert {name for name, _ in read(retriever.retrieve(QUERY))} == wanted
    assert {name for name, _ in read(await retriever.aretrieve(QUERY))} == wanted


# ------------------------------------------------------------------------------------------------------ what comes back


def kinds() -> list[BaseNode]:
    """A node of each class, with everything set that it has."""
    common = {
        "metadata": {"city": "paris", "years": [1, 2.5, None, True], "in": {"a.b": {"c": "d"}}, "text": "t", "node": 1},
        "excluded_embed_metadata_keys": ["years"],
        "excluded_llm_metadata_keys": ["city"],
        "metadata_template": "{key}={value}",
        "metadata_separator": "; ",
        "text_template": "[{metadata_str}] {content}",
        "relationships": {
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="source", metadata={"city": "berlin"}, hash="h"),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="next"),
            NodeRelationship.CHILD: [RelatedNodeInfo(node_id="child-1"), RelatedNodeInfo(node_id="child-2")],
        },
    }
    return [
        TextNode(text="lions 🦁 “quoted”", id_="text", start_char_idx=3, end_char_idx=9, **common),
        ImageNode(text="a fox", id_="image", image_path="fox.png", image_mimetype="image/png", **common),
        IndexNode(text="bread", id_="index", index_id="other", **common),
        IndexNode(text="flour", id_="follow", index_id="x", obj=TextNode(text="inner", id_="inner"), **common),
        PageNode(text="roads", id_="page", number=9, **common),
        Document(text="berlin", id_="document", **common),
        Node(
            id_="media",
            text_resource=MediaResource(text="red river"),
            image_resource=MediaResource(data=b"\x89PNG", url="http://example.org/a.png"),
            **common,
        ),
    ]


def everything(node: BaseNode) -> dict[str, Any]:
    binary = getattr(node, "image_resource", None)
    return {"class": type(node), "data": binary and binary.data, **node.model_dump()}


@pytest.mark.parametrize("saved", [False, True])
def test_nodes_come_back_whole(make: Make, shared_model: ColBERT, saved: bool, tmp_path: Path):
    retriever = make(kinds(), similarity_top_k=9)
    if saved:
        retriever.persist(tmp_path / "index")
        retriever = ColBERTRetriever.from_persist_dir(tmp_path / "index", shared_model, similarity_top_k=9)
    # The base class follows index nodes, so past it.
    found = {node.node_id: node.node for node in retriever._retrieve(QueryBundle(QUERY))}
    for node in kinds():
        assert everything(found[node.node_id]) == everything(node)
        for mode in MetadataMode:
            assert found[node.node_id].get_content(mode) == node.get_content(mode)
        assert found[node.node_id].hash == node.hash
    assert found["follow"].obj == kinds()[3].obj


def test_a_node_of_a_class_that_is_gone_comes_back_as_the_next_of_its_line(make: Make):
    class Passing(TextNode):
        extra: int = 1

    retriever = make([Passing(text="lions", id_="a")])
    index = retriever.index
    [document] = index.get(["a"])
    document.metadata["_llama_index"]["classes"][0] = "somewhere.Else"
    index.store.set_metadata(["a"], [document.metadata])
    [found] = retriever.retrieve("lions")
    assert (type(found.node), found.text) == (TextNode, "lions")


def test_vectors_of_other_models_are_not_kept(make: Make):
    [found] = make([TextNode(text="lions", embedding=[0.5] * 1536)]).retrieve("lions")
    assert found.node.embedding is None


def test_documents_that_were_added_to_the_index_itself_come_back_as_text_nodes(shared_model: ColBERT):
    index = ColBERTIndex(shared_model)
    index.add(["lions"], ids=["a"], metadatas=[{"year": 2020}])
    retriever = ColBERTRetriever(index=index, filters={"year": 2020})
    [found] = retriever.retrieve("lions")
    assert found.node == TextNode(id_="a", text="lions", metadata={"year": 2020})


@pytest.mark.parametrize("theirs", ["mine", ["a"], None, {}, {"classes": 3, "node": "{}"}, {"classes": [], "node": 3}])
def test_a_key_of_that_name_that_is_not_ours_is_metadata(theirs: Any, shared_model: ColBERT):
    index, metadata = ColBERTIndex(shared_model), {"_llama_index": theirs, "year": 2020}
    index.add(["lions"], ids=["a"], metadatas=[metadata])
    [found] = ColBERTRetriever(index=index).retrieve("lions")
    assert found.node == TextNode(id_="a", text="lions", metadata=metadata)
    passing = {"filters": lambda node: node.metadata == metadata}
    assert len(ColBERTRetriever(index=index, **passing).retrieve("lions")) == 1
    assert ColBERTRetriever(index=index, doc_ids=["x"], **passing).retrieve("lions") == []


def test_a_document_that_the_store_has_no_text_for_comes_without(shared_model: ColBERT):
    index = ColBERTIndex(shared_model)
    index.store.upsert(["a"], shared_model.encode_document("lions"))
    for filters in (None, lambda node: node.get_content() == ""):
        [found] = ColBERTRetriever(index=index, filters=filters).retrieve("lions")
        assert found.node == TextNode(id_="a", text="")


def test_the_index_finds_nodes_by_plain_metadata_keys(make: Make):
    [hit] = make().index.search("lions", filter={"place": 3})
    assert (hit.id, hit.text, hit.metadata["place"]) == ("id-3", f"place: 3\n\n{TEXTS[3]}", 3)


async def test_changing_what_came_back_changes_nothing_else(make: Make):
    retriever = make([from_document("a", 0)])
    before = retriever.retrieve("bread")
    for found in (retriever.retrieve("bread"), await retriever.aretrieve("bread")):
        node = found[0].node
        node.set_content("overwritten")
        node.metadata["number"] = node.metadata["new"] = 99
        node.relationships.clear()
        found[0].score = 0.0
    assert retriever.retrieve("bread") == before
    assert retriever.retrieve("bread")[0].node == from_document("a", 0)


def test_changing_a_node_after_adding_it_changes_nothing(make: Make):
    node = from_document("a", 0)
    before = node.model_copy(deep=True)
    retriever = make([node])
    assert node == before
    node.text, node.metadata["number"] = "overwritten", 7
    assert retriever.retrieve("bread")[0].node == from_document("a", 0)


# -------------------------------------------------------------------------------------------------- adding and deleting


def test_unchanged_nodes_are_not_encoded_again(make: Make, encoded: list[str]):
    retriever = make()
    assert len(encoded) == 6
    assert retriever.add_nodes(texts_as_nodes()) == [f"id-{place}" for place in range(6)]
    assert len(encoded) == 6
    retriever.add_nodes([TextNode(text="lions and roads", id_="id-5", metadata={"place": 5})])
    assert encoded[6:] == ["place: 5\n\nlions and roads"]
    assert len(retriever.index) == 6


def test_metadata_that_is_not_encoded_changes_without_encoding(make: Make, encoded: list[str]):
    hidden = {"excluded_embed_metadata_keys": ["year"], "id_": "a", "text": "lions"}
    retriever = make([TextNode(**hidden, metadata={"year": 1})], filters={"year": 2})
    assert retriever.retrieve("lions") == []
    retriever.add_nodes([TextNode(**hidden, metadata={"year": 2})])
    assert encoded == ["lions"]
    assert retriever.retrieve("lions")[0].node.metadata == {"year": 2}


def test_the_metadata_mode_says_what_is_encoded(make: Make, encoded: list[str]):
    make([TextNode(text="lions", metadata={"city": "paris"})], metadata_mode=MetadataMode.NONE)
    make([TextNode(text="lions", metadata={"city": "paris"})])
    assert encoded == ["lions", "city: paris\n\nlions"]


async def test_nodes_are_added_without_a_model_at_hand(stanford: dict[str, Any]):
    retriever = ColBERTRetriever(**stanford)
    assert await retriever.aadd_nodes(texts_as_nodes()) == [f"id-{place}" for place in range(6)]
    assert len(await retriever.aretrieve(QUERY)) == 2
    await retriever.adelete_nodes(["id-0"])
    assert len(retriever.index) == 5


async def test_a_bar_is_shown_where_it_is_asked_for(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make()
    assert capsys.readouterr().err == ""
    retriever = make(show_progress=True)
    assert "6/6" in capsys.readouterr().err
    await retriever.aadd_nodes(texts_as_nodes(["bread"]))
    assert "1/1" in capsys.readouterr().err
    retriever.persist(tmp_path)
    assert "Saving" in capsys.readouterr().err
    ColBERTRetriever.from_persist_dir(tmp_path, retriever.index.model, show_progress=True)
    assert "Opening" in capsys.readouterr().err
    opened = ColBERTRetriever.from_persist_dir(tmp_path, retriever.index.model, show_progress=False)
    opened.persist(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_all_nodes_of_a_document_are_deleted(make: Make, pages: list[TextNode], how: str):
    retriever = make(pages, similarity_top_k=9)
    if how == "sync":
        retriever.delete_ref_doc("a")
        retriever.delete_ref_doc("unknown")
    else:
        await retriever.adelete_ref_doc("a")
    assert {name for name, _ in read(retriever.retrieve(QUERY))} == {"b-0", "b-1", "alone"}


def test_metadata_can_not_pass_for_the_document_of_a_node(make: Make, pages: list[TextNode]):
    retriever = make(pages, similarity_top_k=9)
    retriever.add_nodes([TextNode(text="bread", id_="other", metadata={"_llama_index.ref_doc_id": "a"})])
    retriever.delete_ref_doc("a")
    assert {name for name, _ in read(retriever.retrieve(QUERY))} == {"b-0", "b-1", "alone", "other"}


@pytest.mark.parametrize("node", [TextNode(text=""), TextNode(text=" \n"), ImageNode(image_path="a.png"), Node()])
def test_a_node_without_text_is_scored(make: Make, node: BaseNode):
    [found] = make([node]).retrieve(QUERY)
    assert 0 <= found.score <= 1
    assert found.node_id == node.node_id


def test_a_node_whose_metadata_is_no_json_is_named_and_the_others_are_added(make: Make):
    retriever = make([])
    with pytest.raises(AddError, match="bad.*not JSON") as caught:
        retriever.add_nodes([TextNode(text="a", id_="good"), TextNode(text="b", id_="bad", metadata={"x": object()})])
    assert caught.value.added == ["good"]
    assert [name for name, _ in read(retriever.retrieve(QUERY))] == ["good"]


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_nodes_that_can_not_be_written_are_named_and_the_others_are_added(make: Make, how: str):
    retriever = make([])
    source: Any = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="of", metadata={"x": object()})}
    nodes = [
        TextNode(text="a", id_="ours", metadata={"_llama_index": 1}),
        TextNode(text="b", id_="split", relationships=source),
        TextNode(text="c", id_="store", metadata={"x": object()}),
        TextNode(text="d", id_="good"),
    ]
    with pytest.raises(AddError, match="3 of 4 documents.*'_llama_index'") as caught:
        await retriever.aadd_nodes(nodes) if how == "async" else retriever.add_nodes(nodes)
    assert list(caught.value.failures) == ["ours", "split", "store"]
    assert caught.value.added == ["good"]
    assert caught.value.index is retriever.index
    assert [name for name, _ in read(retriever.retrieve(QUERY))] == ["good"]


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_adding_that_fails_leaves_what_nodes_lead_to(shared_model: ColBERT, how: str):
    inner = ColBERTRetriever([TextNode(text="lions", id_="inner")], model=shared_model)
    pointer = IndexNode(text="lions", id_="x", index_id="i", obj=inner)
    retriever = ColBERTRetriever([pointer], model=shared_model)
    bad = IndexNode(text="lions", id_="x", index_id="i", metadata={"n": float("nan")})
    other = IndexNode(text="bread", id_="y", index_id="j", obj=inner)
    with pytest.raises(AddError):
        await retriever.aadd_nodes([bad, other]) if how == "async" else retriever.add_nodes([bad, other])
    assert [found.node.node_id for found in retriever.retrieve("lions")] == ["inner"]
    assert set(retriever.object_map) == {"i", "j"}


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity_top_k": 0}, "similarity_top_k must be a whole number from 1, not 0"),
        ({"similarity_top_k": True}, "similarity_top_k must be"),
        ({"similarity_top_k": None}, "similarity_top_k must be"),
        ({"candidates": 0}, "candidates must be a whole number from 1"),
        ({"score_threshold": "0.5"}, "score_threshold must be a number"),
        ({"search": "fast"}, "search must be one of 'exact', 'codes', 'centroids', not 'fast'"),
        ({"filters": {"year": {"$near": 1}}}, "'\\$near' for 'year'"),
        ({"filters": ["year"]}, "filters must be MetadataFilters, a mapping or a function, not list"),
        ({"node_ids": "id-1"}, "node_ids must be a list, not str"),
        ({"device": "cpu", "index": None, "dtype": "float8"}, "^dtype"),
        ({"colbert_options": {"nothing": 1}}, "^unknown argument nothing"),
        ({"doc_ids": [1]}, "doc_ids must be a list of strings"),
        ({"metadata_mode": "some"}, "metadata_mode must be one of all, embed, llm, none, not 'some'"),
        ({"batch_size": -1}, "batch_size"),
        ({"index": 1}, "index must be a ColBERTIndex, not int"),
        ({"index": SummaryIndex([])}, "for an index of LlamaIndex there is from_defaults"),
        ({"nodes": "text"}, "nodes must be a list, not str"),
        ({"nodes": [NodeWithScore(node=TextNode(text="a"))]}, r"nodes\[0\] must be a node, not NodeWithScore"),
        ({"nodes": [TextNode(text="a"), "b"]}, r"nodes\[1\] must be a node, not str"),
        ({"nodes": [LangChainDocument("a")]}, r"nodes\[0\] must be a node, not langchain_core\.\S+\.Document$"),
    ],
)
def test_what_is_impossible_is_refused_before_any_work(
    stanford: dict[str, Any], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
):
    monkeypatch.setattr(ColBERT, "encode_document", forbidden)
    with pytest.raises(InputError, match=message):
        ColBERTRetriever(**{"nodes": texts_as_nodes(), **stanford, **options})


async def test_a_bundle_without_a_query_is_refused(make: Make):
    with pytest.raises(InputError, match="query must be a string, not NoneType"):
        make()._retrieve(QueryBundle(None))
    with pytest.raises(InputError, match="query must be a string, not NoneType"):
        await make()._aretrieve(QueryBundle(None))


def test_deleting_wants_ids(make: Make):
    with pytest.raises(InputError, match="node_ids must be a list, not NoneType"):
        make().delete_nodes(None)


def test_top_k_is_checked_when_it_is_set(make: Make):
    retriever = make()
    with pytest.raises(InputError, match="similarity_top_k"):
        retriever.similarity_top_k = 0
    assert retriever.similarity_top_k == 2


def test_an_index_brings_its_model_and_its_store(tiny: ColBERT, shared_model: ColBERT):
    index = ColBERTIndex(shared_model)
    assert ColBERTRetriever(index=index, model=shared_model).index is index
    for options in ({"model": tiny}, {"model": "other"}, {"store": MemoryStore()}, {"document_length": 7}):
        with pytest.raises(InputError, match="index brings|belong to the ColBERT"):
            ColBERTRetriever(index=index, **options)


def test_settings_of_the_model_reach_it():
    settings: dict[str, Any] = {
        "model": "some/model",
        "device": "cpu",
        "dtype": "bfloat16",
        "query_length": 9,
        "document_length": 50,
        "long_documents": "truncate",
        "window_overlap": 3,
        "batch_size": 2,
    }
    retriever = ColBERTRetriever(**settings, colbert_options={"batch_tokens": 99})
    assert retriever.index.model.settings.changed() == {**settings, "batch_tokens": 99}


def test_unknown_arguments_are_refused(stanford: dict[str, Any]):
    with pytest.raises(TypeError, match="top_n"):
        ColBERTRetriever(**stanford, top_n=3)


async def test_a_query_that_is_no_text_is_refused(make: Make):
    for query in (QueryBundle(5, custom_embedding_strs=[]), QueryBundle("a", custom_embedding_strs=["a", None])):
        with pytest.raises(InputError, match="query must be a string"):
            make().retrieve(query)
        with pytest.raises(InputError, match="query must be a string"):
            await make().aretrieve(query)


# --------------------------------------------------------------------------------------------------- from what there is


def test_is_made_of_nodes_a_docstore_or_an_index(make: Make, stanford: dict[str, Any], shared_model: ColBERT):
    docstore = SimpleDocumentStore()
    docstore.add_documents(texts_as_nodes())
    made = make()
    sources = {
        "nodes": texts_as_nodes(),
        "docstore": docstore,
        "index": SummaryIndex(texts_as_nodes()),
    }
    for name, source in sources.items():
        options = {**stanford, "store": MemoryStore("float32"), "similarity_top_k": 6}
        retriever = ColBERTRetriever.from_defaults(**{name: source}, **options)
        assert dict(read(retriever.retrieve(QUERY))) == pytest.approx(
            {name: score for name, score in read(make(similarity_top_k=6).retrieve(QUERY))}, abs=1e-6
        )
    assert ColBERTRetriever.from_defaults(index=made.index).index is made.index


def test_exactly_one_source_is_needed(stanford: dict[str, Any]):
    for sources in ({}, {"nodes": [], "docstore": SimpleDocumentStore()}):
        with pytest.raises(InputError, match="exactly one"):
            ColBERTRetriever.from_defaults(**sources, **stanford)


def test_an_index_that_keeps_no_nodes_is_refused(stanford: dict[str, Any]):
    with pytest.raises(InputError, match="no nodes in its docstore"):
        ColBERTRetriever.from_defaults(index=SummaryIndex([]), **stanford)


def test_takes_the_nodes_of_an_index_and_not_all_of_its_docstore(stanford: dict[str, Any]):
    nodes = texts_as_nodes()
    nodes[0].relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="gone")
    by_vector = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=2))
    by_vector.docstore.add_documents([TextNode(text="a parent, for auto-merging", id_="parent")])
    by_vector.delete_ref_doc("gone")  # whose node stays in the docstore
    in_order = SummaryIndex(texts_as_nodes())
    in_order.docstore.add_documents([TextNode(text="a parent", id_="parent")])
    for index, wanted in ((by_vector, nodes[1:]), (in_order, nodes)):
        retriever = ColBERTRetriever.from_defaults(index=index, **stanford)
        assert retriever.index.store.ids() == sorted(node.node_id for node in wanted)


@pytest.mark.parametrize("kind", [SimpleKeywordTableIndex, DocumentSummaryIndex])
def test_takes_neither_summaries_nor_what_was_deleted(stanford: dict[str, Any], kind: Any):
    index = kind([], llm=MockLLM(), embed_model=MockEmbedding(embed_dim=2))
    for name in ("kept", "gone"):
        index.insert(Document(text="bread and flour", doc_id=name))
    index.delete_ref_doc("gone")  # whose node stays in the docstore
    retriever = ColBERTRetriever.from_defaults(index=index, **stanford, similarity_top_k=9)
    [found] = retriever.retrieve(QUERY)
    assert (found.node.text, found.node.ref_doc_id) == ("bread and flour", "kept")
    index.delete_ref_doc("kept")
    assert ColBERTRetriever.from_defaults(index=index, **stanford).retrieve(QUERY) == []


def test_an_index_whose_vector_store_has_the_nodes_is_refused(stanford: dict[str, Any]):
    index = VectorStoreIndex(texts_as_nodes(), embed_model=MockEmbedding(embed_dim=2))
    index.vector_store.stores_text = True
    with pytest.raises(InputError, match="its vector store may have them"):
        ColBERTRetriever.from_defaults(index=index, **stanford)


def test_objects_of_nodes_that_are_gone_are_not_followed(shared_model: ColBERT):
    inner = ColBERTRetriever([TextNode(text="lions", id_="inner")], model=shared_model)
    retriever = ColBERTRetriever(model=shared_model)
    for number, forget in enumerate((lambda: retriever.delete_nodes(["0"]), lambda: retriever.delete_ref_doc("of"))):
        relationships: Any = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="of")}
        pointer = IndexNode(text="lions", id_=str(number), index_id="x", obj=inner, relationships=relationships)
        retriever.add_nodes([pointer])
        assert [found.node.node_id for found in retriever.retrieve("lions")] == ["inner"]
        forget()
        retriever.add_nodes([IndexNode(text="lions", id_="plain", index_id="x")])
        assert [found.node.node_id for found in retriever.retrieve("lions")] == ["plain"]
    assert "x" not in retriever.object_map


async def test_what_is_there_is_encoded_again_only_where_that_is_asked_for(shared_model: ColBERT):
    nodes = [TextNode(text=text, id_=text) for text in ("lions", "paris", "water")]
    retriever, names = ColBERTRetriever(nodes, model=shared_model), ["lions", "paris", "water"]
    for options, encoded in (({}, 0), ({"reencode": True}, 3)):
        with observed() as sync:
            assert retriever.add_nodes(nodes, **options) == names
        with observed() as twin:
            assert await retriever.aadd_nodes(nodes, **options) == names
        assert (sync.stats.documents_encoded, twin.stats.documents_encoded) == (encoded, encoded)


def test_an_object_is_followed_as_long_as_one_node_leads_there(shared_model: ColBERT):
    inner = ColBERTRetriever([TextNode(text="lions", id_="inner")], model=shared_model)
    pointers = [IndexNode(text="lions", id_=name, index_id="x", obj=inner) for name in ("a", "b")]
    retriever = ColBERTRetriever(pointers, model=shared_model)
    retriever.delete_nodes(["a"])
    assert [found.node.node_id for found in retriever.retrieve("lions")] == ["inner"]
    retriever.delete_nodes(["b"])
    assert retriever.object_map == {}


def test_what_nodes_lead_to_is_there_as_soon_as_they_are(shared_model: ColBERT, monkeypatch: pytest.MonkeyPatch):
    inner = ColBERTRetriever([TextNode(text="lions", id_="inner")], model=shared_model)
    retriever, upsert, seen = ColBERTRetriever(model=shared_model), MemoryStore.upsert, list[str]()

    def stored(self: MemoryStore, *given: Any, **options: Any) -> None:
        upsert(self, *given, **options)
        seen.extend(found.node.node_id for found in retriever.retrieve("lions"))
        raise StoreError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "upsert", stored)
        with pytest.raises(StoreError, match="is gone"):
            retriever.add_nodes([IndexNode(text="lions", id_="a", index_id="x", obj=inner)])
    assert seen == ["inner"]
    assert [found.node.node_id for found in retriever.retrieve("lions")] == ["inner"]


def test_nodes_that_can_not_be_stored_lead_where_they_led_before(shared_model: ColBERT):
    old, new = (ColBERTRetriever([TextNode(text="lions", id_=name)], model=shared_model) for name in ("old", "new"))
    retriever = ColBERTRetriever([IndexNode(text="lions", id_="a", index_id="x", obj=old)], model=shared_model)
    bad = {"of": object()}
    for name in ("x", "y"):
        with pytest.raises(AddError):
            retriever.add_nodes([IndexNode(text="lions", id_="a", index_id=name, obj=new, metadata=bad)])
    assert [found.node.node_id for found in retriever.retrieve("lions")] == ["old"]
    assert set(retriever.object_map) == {"x"}


def test_nodes_of_one_name_of_which_some_can_not_be_stored_lead_where_those_do_that_are(shared_model: ColBERT):
    old, new = (ColBERTRetriever([TextNode(text="lions", id_=name)], model=shared_model) for name in ("old", "new"))
    retriever = ColBERTRetriever([IndexNode(text="lions", id_="a", index_id="x", obj=old)], model=shared_model)
    nodes = [IndexNode(text="lions", id_=name, index_id="x", obj=new) for name in ("b", "c")]
    nodes[1].metadata = {"of": object()}
    with pytest.raises(AddError):
        retriever.add_nodes(nodes)
    assert retriever.object_map["x"] is new


def test_what_nodes_lead_to_goes_with_them_also_if_the_store_failed(
    shared_model: ColBERT, monkeypatch: pytest.MonkeyPatch
):
    retriever = ColBERTRetriever(model=shared_model)

    def failing(*_: Any, **__: Any) -> None:
        raise StoreError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "upsert", failing)
        with pytest.raises(StoreError):
            retriever.add_nodes([IndexNode(text="lions", id_="a", index_id="x", obj=object())])
    retriever.delete_nodes(["a"])
    assert retriever.object_map == {}


@pytest.mark.parametrize("impossible", [{"$ne": "nothing"}, None, 5])
def test_a_document_to_delete_is_named_by_a_string(make: Make, impossible: Any):
    retriever = make()
    count = len(retriever.index)
    with pytest.raises(InputError, match="ref_doc_id must be a string"):
        retriever.delete_ref_doc(impossible)
    assert len(retriever.index) == count


def test_repr_says_what_is_searched_but_no_text(make: Make, missing: dict[str, Any]):
    shown = repr(make(similarity_top_k=3))
    assert re.fullmatch(r"ColBERTRetriever\(ColBERTIndex\(.*documents=6.*\), similarity_top_k=3\)", shown)
    assert "paris" not in shown
    assert repr(ColBERTRetriever(**missing)) == f"ColBERTRetriever({missing['model']!r}, similarity_top_k=2)"


def test_is_a_retriever_by_the_frameworks_own_test():
    assert BaseRetriever.__name__ in [base.__name__ for base in ColBERTRetriever.__mro__]


# ---------------------------------------------------------------------------------------------------------- persistence


@pytest.mark.parametrize("named", [True, False])
def test_what_was_saved_finds_the_same(make: Make, shared_model: ColBERT, tmp_path: Path, named: bool):
    retriever = make([*texts_as_nodes(), *kinds()], similarity_top_k=9)
    wanted = retriever._retrieve(QueryBundle(QUERY))
    retriever.persist(tmp_path / "index")
    loaded = ColBERTRetriever.from_persist_dir(
        tmp_path / "index", shared_model if named else None, similarity_top_k=9, filters=None
    )
    found = loaded._retrieve(QueryBundle(QUERY))
    assert read(found) == read(wanted)
    assert [everything(node.node) for node in found] == [everything(node.node) for node in wanted]


def test_what_was_saved_empty_opens_empty(make: Make, shared_model: ColBERT, tmp_path: Path):
    make([]).persist(tmp_path / "index")
    assert ColBERTRetriever.from_persist_dir(tmp_path / "index", shared_model).retrieve(QUERY) == []


def test_an_index_is_opened_where_and_as_carefully_as_asked(make: Make, shared_model: ColBERT, tmp_path: Path):
    make().persist(tmp_path / "index")
    path = next((tmp_path / "index").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="checksum"):
        ColBERTRetriever.from_persist_dir(tmp_path / "index", shared_model)
    assert ColBERTRetriever.from_persist_dir(tmp_path / "index", shared_model, verify=False).retrieve(QUERY)
    with pytest.raises(InputError, match="device='nonsense'"):
        ColBERTRetriever.from_persist_dir(tmp_path / "index", shared_model, device="nonsense", verify=False)


def test_another_model_and_no_index_are_refused(make: Make, checkpoint: Callable[[str], Path], tmp_path: Path):
    make().persist(tmp_path / "index")
    with pytest.raises(FingerprintError):
        ColBERTRetriever.from_persist_dir(tmp_path / "index", ColBERT(checkpoint("pylate"), device="cpu"))
    with pytest.raises(StoreError):
        ColBERTRetriever.from_persist_dir(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------------------------ reranking


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("early", [True, False])
def test_a_copy_searches_the_same_nodes(make: Make, how: Callable[[Any], Any], early: bool):
    options = {"callback_manager": CallbackManager([]), "filters": {"place": {"$gte": 0}}}
    retriever = make([], **options) if early else make(**options)
    twin = how(retriever)
    if early:
        retriever.add_nodes(texts_as_nodes())
    assert twin.index is retriever.index
    assert twin.callback_manager is retriever.callback_manager
    assert read(twin.retrieve(QUERY)) == read(retriever.retrieve(QUERY)) != []
    twin.similarity_top_k = 1
    assert len(retriever.retrieve(QUERY)) == 2


def test_a_copy_follows_the_same_objects(shared_model: ColBERT):
    retriever = ColBERTRetriever(model=shared_model, similarity_top_k=1)
    twin = copy.deepcopy(retriever)
    inner = ColBERTRetriever(texts_as_nodes(["paris"]), model=shared_model)
    retriever.add_nodes([IndexNode(text=QUERY, index_id="inner", obj=inner)])
    assert [found.node_id for found in twin.retrieve(QUERY)] == ["id-0"]


@pytest.mark.parametrize("store", [None, MemoryStore])
def test_pickling_is_refused_with_the_way_out(shared_model: ColBERT, store: Callable[[], MemoryStore] | None):
    retriever = ColBERTRetriever(model=shared_model, store=store and store())
    with pytest.raises(StoreError, match=r"save\(\) it and load\(\) it"):
        pickle.dumps(retriever)


def test_a_reranker_takes_the_vectors_that_are_stored(make: Make, monkeypatch: pytest.MonkeyPatch):
    retriever = make(
        [*texts_as_nodes(), *(node for node in kinds() if type(node) is not IndexNode)], similarity_top_k=20
    )
    found = retriever.retrieve(QUERY)
    reranker = ColBERTRerank(index=retriever.index, top_n=None)
    encodes, documents = Encoder.encode, list[str]()

    def counting(self: Encoder, texts: list[str], side: Side, **options: Any) -> Any:
        documents.extend(texts if side == "document" else [])
        return encodes(self, texts, side, **options)

    monkeypatch.setattr(Encoder, "encode", counting)
    ranked = reranker.postprocess_nodes(found, query_str=QUERY)
    assert documents == []
    assert dict(read(ranked)) == pytest.approx(dict(read(found)), abs=1e-5)
    found[0].node.set_content("something else")
    reranker.postprocess_nodes(found, query_str=QUERY)
    assert documents == [found[0].node.get_content(MetadataMode.EMBED)]


# --------------------------------------------------------------------------------------------- many at once, event loop


def some_text(choose: random.Random, most: int) -> str:
    return " ".join(choose.choices(checkpoints.WORDS, k=choose.randint(1, most)))


@pytest.fixture
def asks(make: Make) -> list[tuple[ColBERTRetriever, QueryBundle]]:
    """Retrievers of one index with options of all kinds, and queries of all lengths."""
    choose = random.Random(0)
    nodes = [TextNode(text=some_text(choose, 60), id_=f"{n}", metadata={"n": n % 5}) for n in range(80)]
    index = make(nodes).index
    options = [{}, {"filters": {"n": 3}}, {"filters": lambda node: node.metadata["n"] > 1}, {"normalize_scores": False}]
    retrievers = [ColBERTRetriever(index=index, similarity_top_k=k, **more) for k in (1, 5, 100) for more in options]
    bundles = [QueryBundle(some_text(choose, 12)) for _ in range(200)]
    for bundle in bundles[::3]:
        bundle.custom_embedding_strs = [some_text(choose, 12), bundle.query_str]
    return [(choose.choice(retrievers), bundle) for bundle in bundles]


def assert_same(found: list[list[NodeWithScore]], wanted: list[list[NodeWithScore]]) -> None:
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert [node.score for node in mine] == pytest.approx([node.score for node in theirs], abs=1e-5)
        assert {node.node_id for node in mine} == {node.node_id for node in theirs}


async def test_200_concurrent_retrievals_equal_sequential_ones(asks: Any):
    wanted = [retriever.retrieve(bundle) for retriever, bundle in asks]
    assert_same(await asyncio.gather(*(retriever.aretrieve(bundle) for retriever, bundle in asks)), wanted)
    with ThreadPoolExecutor(max_workers=16) as pool:
        assert_same(list(pool.map(lambda ask: ask[0].retrieve(ask[1]), asks)), wanted)


def test_threads_that_come_first_make_one_index(shared_model: ColBERT, monkeypatch: pytest.MonkeyPatch):
    retriever, both, make = ColBERTRetriever(model=shared_model), threading.Barrier(2), ColBERTIndex.__init__

    def meet(*args: Any, **options: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.2)  # for another thread that makes one
        make(*args, **options)

    monkeypatch.setattr(ColBERTIndex, "__init__", meet)
    with ThreadPoolExecutor(max_workers=2) as pool:
        one, other = pool.map(lambda _: retriever.index, range(2))
    assert one is other


@pytest.mark.parametrize(
    "where", [(ColBERT, "encode_query"), (MemoryStore, "search"), (module_of_retriever, "node_of")]
)
async def test_the_loop_goes_on_while_something_blocks(
    make: Make, off_loop: Callable, monkeypatch: pytest.MonkeyPatch, where: Any
):
    retriever = make()
    monkeypatch.setattr(*where, off_loop(getattr(*where)))
    assert await retriever.aretrieve(QUERY)


async def test_the_loop_goes_on_while_a_slow_filter_looks_at_nodes(make: Make, off_loop: Callable):
    assert await make(filters=off_loop(lambda node: True)).aretrieve(QUERY)


@pytest.mark.parametrize(
    "where",
    [
        (module_of_retriever, "stored_metadata"),
        (module_of_retriever, "node_text"),
        (ColBERT, "encode_document"),
        (MemoryStore, "upsert"),
    ],
    ids=lambda where: where[1],
)
async def test_the_loop_goes_on_while_nodes_are_added(
    make: Make, off_loop: Callable, monkeypatch: pytest.MonkeyPatch, where: Any
):
    monkeypatch.setattr(*where, off_loop(getattr(*where)))
    assert await make([]).aadd_nodes(texts_as_nodes())


@pytest.mark.parametrize(("door", "which"), [("adelete_nodes", ["id-0"]), ("adelete_ref_doc", "a document")])
async def test_the_loop_goes_on_while_nodes_are_deleted(
    make: Make, off_loop: Callable, monkeypatch: pytest.MonkeyPatch, door: str, which: Any
):
    retriever = make([*texts_as_nodes(), from_document("a document", 0, "lions")])
    monkeypatch.setattr(MemoryStore, "delete", off_loop(MemoryStore.delete))
    await getattr(retriever, door)(which)


def test_the_first_async_call_imports_torch_off_the_event_loop():
    program = f"""
{WHERE_TORCH_IS_IMPORTED}
from colbert_integrations.errors import ColBERTError
from colbert_integrations.llama_index import ColBERTRetriever
from llama_index.core.schema import TextNode
sys.meta_path.insert(0, Watcher())
async def main():
    retriever = ColBERTRetriever(model="/no/such/model", filters={{"a": 1}}, node_ids=["a"], search="exact")
    assert await retriever.aretrieve("q") == []
    assert not found
    try:
        await retriever.aadd_nodes([TextNode(text="a")])
    except ColBERTError:
        print(found)
asyncio.run(main())
"""
    assert fresh(program) == ["[False]"]


def test_threads_add_and_delete_while_others_retrieve(make: Make):
    retriever, done = make(similarity_top_k=200), threading.Event()
    batches = [[from_document(f"{number}", n, TEXTS[n]) for n in range(6)] for number in range(12)]

    def write() -> None:
        try:
            for number, batch in enumerate(batches):
                retriever.add_nodes(batch)
                if number % 2:
                    retriever.delete_ref_doc(f"{number}")
        finally:
            done.set()

    def look() -> int:
        rounds = 0
        while not done.is_set() or not rounds:
            found = retriever.retrieve(QUERY)
            documents = [node.node.ref_doc_id for node in found]
            assert all(documents.count(name) == 6 for name in documents)  # never half a batch
            rounds += 1
        return rounds

    with ThreadPoolExecutor(max_workers=5) as pool:
        writer, readers = pool.submit(write), [pool.submit(look) for _ in range(4)]
        writer.result(timeout=120)
        assert all(reader.result(timeout=120) for reader in readers)
    found = {node.node.ref_doc_id for node in retriever.retrieve(QUERY)}
    assert found == {None, *(f"{number}" for number in range(0, 12, 2))}


def test_scores_are_json(make: Make):
    assert json.loads(make().retrieve(QUERY)[0].to_json())["score"] > 0
