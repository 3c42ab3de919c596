"""The retrievers of both frameworks and the vector store on a Qdrant collection, named by a location."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from adapters.drivers import QUERY, TEXTS
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore
from colbert_integrations.encoder import Encoder
from colbert_integrations.errors import FingerprintError, StoreServerError
from colbert_integrations.langchain import ColBERTReranker, ColBERTRetriever, ColBERTVectorStore
from colbert_integrations.llama_index import ColBERTRetriever as LlamaIndexRetriever
from colbert_integrations.qdrant import QdrantStore
from qdrant_server import QdrantServer, shared_server
from qdrant_server.strict import CLOUD


@pytest.fixture
def location() -> Iterator[str]:
    """A collection that is not there yet."""
    name = f"test-{uuid.uuid4().hex}"
    yield f"{shared_server().url.replace('http', 'qdrant+http')}/{name}"
    shared_server().engine.delete_collection(name)


@pytest.fixture
def documents() -> list[Document]:
    notes: list[dict[str, Any]] = [{"year": 2019 + number, "weight": number / 7} for number in range(len(TEXTS))]
    return [Document(text, id=f"id-{i}", metadata=notes[i]) for i, text in enumerate(TEXTS)]


@pytest.fixture
def nodes() -> list[TextNode]:
    return [
        TextNode(text=text, id_=f"id-{i}", metadata={"place": i, "odd": bool(i % 2)}) for i, text in enumerate(TEXTS)
    ]


# ---------------------------------------------------------------------------------------------------------- LangChain


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_a_langchain_retriever_finds_the_same_as_in_memory(
    shared_model: ColBERT, documents: list[Document], location: str, how: str
) -> None:
    here = ColBERTRetriever(model=shared_model, documents=documents, score_key="score", k=6)
    there = ColBERTRetriever(model=shared_model, store=location, score_key="score", k=6)
    await there.aadd_documents(documents)
    for options in (
        {},
        {"filter": {"year": {"$gte": 2021}}},
        {"filter": lambda document: "fox" in document.page_content},
    ):
        expected = here.invoke(QUERY, **options)
        found = there.invoke(QUERY, **options) if how == "invoke" else await there.ainvoke(QUERY, **options)
        assert [(one.id, one.page_content) for one in found] == [(one.id, one.page_content) for one in expected]
        scores = [one.metadata.pop("score") for one in found]
        assert scores == pytest.approx([one.metadata.pop("score") for one in expected], abs=1e-3)
        assert [one.metadata for one in found] == [one.metadata for one in expected]
    assert (await there.aget_by_ids(["id-1"]))[0].metadata == {"year": 2020, "weight": 1 / 7}
    await there.adelete(["id-1"])
    assert "id-1" not in {document.id for document in await there.ainvoke(QUERY)}
    there.index.close()


async def test_a_langchain_vector_store_finds_the_same_as_in_memory(
    shared_model: ColBERT, documents: list[Document], location: str
) -> None:
    here = ColBERTVectorStore.from_documents(documents, model=shared_model)
    there = await ColBERTVectorStore.afrom_documents(documents, model=shared_model, store=location)
    for search in ("similarity_search_with_score", "similarity_search_with_relevance_scores"):
        expected, found = getattr(here, search)(QUERY), getattr(there, search)(QUERY)
        assert [document for document, _ in found] == [document for document, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-3)
        assert await getattr(there, f"a{search}")(QUERY) == found
    there.index.close()


def test_copies_search_the_same_collection_and_dumps_do_not_name_it(
    shared_model: ColBERT, documents: list[Document], location: str
) -> None:
    retriever = ColBERTRetriever(model=shared_model, documents=documents, store=location)
    found = retriever.invoke(QUERY)
    assert copy.deepcopy(retriever).invoke(QUERY) == found
    assert location not in repr(retriever)
    assert location not in str(retriever.model_dump())
    retriever.index.close()


def test_a_reranker_takes_vectors_from_the_collection(
    shared_model: ColBERT, documents: list[Document], location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ColBERTIndex(shared_model, location)
    ColBERTRetriever(index=index).add_documents(documents)
    expected = ColBERTReranker(model=shared_model, top_n=3).compress_documents(documents, QUERY)
    encoded, real = list[str](), Encoder.encode
    monkeypatch.setattr(
        Encoder,
        "encode",
        lambda self, texts, *side, **options: encoded.extend(texts) or real(self, texts, *side, **options),
    )
    found = ColBERTReranker(index=index, top_n=3).compress_documents(documents, QUERY)
    assert encoded == []
    assert [document.id for document in found] == [document.id for document in expected]
    scores = [document.metadata["relevance_score"] for document in expected]
    # Means of products with vectors that were rounded to float16.
    assert [document.metadata["relevance_score"] for document in found] == pytest.approx(scores, abs=2**-11)
    index.close()


# ---------------------------------------------------------------------------------------------------------- LlamaIndex

FILTERS = [
    None,
    MetadataFilters(filters=[MetadataFilter(key="place", value=2, operator=FilterOperator.GT)]),
    {"odd": True},
    lambda node: node.metadata["place"] % 3 == 0,
]


@pytest.mark.parametrize("filters", FILTERS, ids=["none", "range", "boolean", "function"])
async def test_a_llama_index_retriever_finds_the_same_as_in_memory(
    shared_model: ColBERT, nodes: list[TextNode], location: str, filters: Any
) -> None:
    options: dict[str, Any] = {"filters": filters, "similarity_top_k": 6}
    here = LlamaIndexRetriever(nodes, model=shared_model, **options)
    there = LlamaIndexRetriever(model=shared_model, store=location, **options)
    await there.aadd_nodes(nodes)
    expected = here.retrieve(QUERY)
    for found in (there.retrieve(QUERY), await there.aretrieve(QUERY)):
        assert [one.node for one in found] == [one.node for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-3)
    await there.adelete_nodes(["id-0"])
    assert "id-0" not in {one.node_id for one in await there.aretrieve(QUERY)}
    there.index.close()


@pytest.mark.parametrize("strict", [False, True])
def test_nodes_of_a_document_are_found_and_deleted(shared_model: ColBERT, strict: bool) -> None:
    sources = [RelatedNodeInfo(node_id=f"doc-{number % 2}") for number in range(4)]
    nodes = [
        TextNode(text=text, id_=f"id-{i}", relationships={NodeRelationship.SOURCE: sources[i]})
        for i, text in enumerate(TEXTS[:4])
    ]
    with closing(QdrantServer()) as server:
        server.strict_mode = dict(CLOUD) if strict else {}
        store = f"qdrant+{server.url}/nodes"
        retriever = LlamaIndexRetriever(nodes, model=shared_model, store=store, doc_ids=["doc-1", "none"])
        assert sorted(found.node_id for found in retriever.retrieve(QUERY)) == ["id-1", "id-3"]
        retriever.delete_ref_doc("doc-1")
        assert retriever.index.store.ids() == ["id-0", "id-2"]
        retriever.index.close()


# ---------------------------------------------------------------------------------------------------------------- both


def test_one_collection_serves_both_frameworks(shared_model: ColBERT, documents: list[Document], location: str) -> None:
    langchain = ColBERTRetriever(model=shared_model, documents=documents, store=location, k=3)
    llama_index = LlamaIndexRetriever(model=shared_model, store=location, similarity_top_k=3)
    found = [document.id for document in langchain.invoke(QUERY)]
    assert [node.node_id for node in llama_index.retrieve(QUERY)] == found
    langchain.index.close()
    llama_index.index.close()


def test_moving_changes_one_argument_and_encodes_nothing(
    shared_model: ColBERT, documents: list[Document], location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ColBERTRetriever(model=shared_model, documents=documents, score_key="score", k=6)
    monkeypatch.setattr(shared_model, "encode_document", None)
    there = ColBERTRetriever(model=shared_model, store=location, score_key="score", k=6)
    assert there.index.store.copy_from(here.index.store) == 6
    back = ColBERTRetriever(model=shared_model, store=MemoryStore(), score_key="score", k=6)
    assert back.index.store.copy_from(there.index.store) == 6
    assert back.invoke(QUERY) == here.invoke(QUERY)
    assert [document.id for document in there.invoke(QUERY)] == [document.id for document in here.invoke(QUERY)]
    there.index.close()


@pytest.mark.parametrize("retriever", [ColBERTRetriever, LlamaIndexRetriever], ids=["langchain", "llama_index"])
def test_another_model_does_not_open_the_collection(
    retriever: Any, shared_model: ColBERT, location: str, checkpoint: Any
) -> None:
    index = ColBERTIndex(shared_model, location)
    index.add(TEXTS)
    other = ColBERT.shared(checkpoint("native"), device="cpu")
    with pytest.raises(FingerprintError):
        assert retriever(model=other, store=location).index  # LlamaIndex' opens it when it is first used
    index.close()


@pytest.mark.parametrize("retriever", [ColBERTRetriever, LlamaIndexRetriever], ids=["langchain", "llama_index"])
@pytest.mark.parametrize(("store", "said"), [("my-index", "ColBERTIndex.load"), (3, "not int")])
def test_what_is_no_store_is_refused(retriever: Any, shared_model: ColBERT, store: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):  # pydantic wraps ours
        assert retriever(model=shared_model, store=store).index


def test_a_server_that_is_not_there_is_an_error_of_ours(shared_model: ColBERT) -> None:
    with QdrantStore("http://127.0.0.1:9", retries=0) as store, pytest.raises(StoreServerError, match="is it up"):
        ColBERTRetriever(model=shared_model, store=store)


# -------------------------------------------------------------------------------------- LangChain's conformance classes

classes = pytest.importorskip(
    "langchain_tests.integration_tests", reason="needs langchain-tests, which needs langchain-core 1.4"
)


class TestRetriever(classes.RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[ColBERTRetriever]:
        return ColBERTRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        documents = [Document(text, id=f"id-{i}") for i, text in enumerate(TEXTS)]
        store = QdrantStore(":memory:")
        return {"model": "bundled/all-MiniLM-L6-v2", "device": "cpu", "documents": documents, "store": store}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


class TestVectorStore(classes.VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, location: str) -> Iterator[ColBERTVectorStore]:
        made = ColBERTVectorStore(ColBERT.shared("bundled/all-MiniLM-L6-v2", device="cpu"), store=location)
        yield made
        made.index.close()
