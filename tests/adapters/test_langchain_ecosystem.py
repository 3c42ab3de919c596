"""ColBERTRetriever and ColBERTVectorStore inside what LangChain users put them into, and beside ColBERTReranker."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_classic.retrievers import (
    ContextualCompressionRetriever,
    EnsembleRetriever,
    MultiQueryRetriever,
    ParentDocumentRetriever,
)
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import ToolCall
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.stores import InMemoryStore
from langchain_core.tools import create_retriever_tool
from langchain_text_splitters import CharacterTextSplitter
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from pydantic import ValidationError

from adapters.drivers import QUERY, TEXTS
from adapters.test_langchain_retriever import ids
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore
from colbert_integrations.encoder import Encoder
from colbert_integrations.langchain import ColBERTReranker, ColBERTRetriever, ColBERTVectorStore

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def documents() -> list[Document]:
    return [Document(text, id=f"id-{i}", metadata={"n": i}) for i, text in enumerate(TEXTS)]


@pytest.fixture
def retriever(shared_model: ColBERT, documents: list[Document]) -> ColBERTRetriever:
    return ColBERTRetriever(model=shared_model, documents=documents, store=MemoryStore("float32"))


@pytest.fixture
def found(retriever: ColBERTRetriever) -> list[Document]:
    """What the retriever finds by itself."""
    return retriever.invoke(QUERY)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The documents that models encode from now on."""
    seen: list[str] = []
    encode = Encoder.encode

    def watched(self: Encoder, texts: Sequence[str], side: Any, **options: Any) -> Any:
        seen.extend(texts if side == "document" else [])
        return encode(self, texts, side, **options)

    monkeypatch.setattr(Encoder, "encode", watched)
    return seen


# ----------------------------------------------------------------------------------------------- LangChain's indexing


def counts(result: Any) -> tuple[int, int, int, int]:
    return result["num_added"], result["num_updated"], result["num_skipped"], result["num_deleted"]


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_langchains_indexing_skips_what_is_there_and_cleans_up(
    shared_model: ColBERT, encoded: list[str], how: str
):
    store, records = ColBERTVectorStore(shared_model), InMemoryRecordManager(namespace="test")
    records.create_schema()

    async def indexed(texts: list[str], **options: Any) -> tuple[int, int, int, int]:
        given = [Document(text, metadata={"source": "a"}) for text in texts]
        options = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256", **options}
        if how == "sync":
            return counts(index(given, records, store, **options))
        return counts(await aindex(given, records, store, **options))

    assert await indexed(["lions", "paris", "water"]) == (3, 0, 0, 0)
    assert sorted(encoded) == ["lions", "paris", "water"]
    encoded.clear()
    assert await indexed(["lions", "paris", "water"]) == (0, 0, 3, 0)
    assert await indexed(["lions", "paris"]) == (0, 0, 2, 1)
    assert await indexed(["lions", "paris"], force_update=True) == (0, 2, 0, 0)
    assert encoded == []
    assert await indexed(["lions", "paris"], force_update=True, upsert_kwargs={"reencode": True}) == (0, 2, 0, 0)
    assert sorted(encoded) == ["lions", "paris"]
    encoded.clear()
    assert await indexed(["lions", "berlin"]) == (1, 0, 1, 1)
    assert encoded == ["berlin"]
    assert {document.page_content for document in store.similarity_search("lions", k=9)} == {"lions", "berlin"}


# --------------------------------------------------------------------------------------------------- other retrievers


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_parents_are_found_by_their_children(shared_model: ColBERT, how: str):
    parents = ParentDocumentRetriever(
        vectorstore=ColBERTVectorStore(shared_model),
        docstore=InMemoryStore(),
        child_splitter=CharacterTextSplitter(separator=". ", chunk_size=35, chunk_overlap=0),
    )
    long = [Document("bread and flour. the lazy dog runs over roads"), Document(f"water in the river. {TEXTS[1]}")]
    if how == "sync":
        parents.add_documents(long, ids=["one", "two"])
        assert parents.invoke(TEXTS[1])[0] == long[1]
    else:
        await parents.aadd_documents(long, ids=["one", "two"])
        assert (await parents.ainvoke(TEXTS[1]))[0] == long[1]
    children = parents.vectorstore.similarity_search(TEXTS[1], k=9)
    assert {child.page_content for child in children} > {"bread and flour", TEXTS[1]}
    assert children[0].metadata["doc_id"] == "two"


async def test_in_an_ensemble_with_bm25(
    retriever: ColBERTRetriever, documents: list[Document], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(EXAMPLES)
    words = importlib.import_module("bm25").BM25Retriever(documents=documents, k=3)
    ensemble = EnsembleRetriever(retrievers=[words, retriever], weights=[0.5, 0.5], id_key="n")
    one, other = ids(words.invoke(QUERY)), ids(retriever.invoke(QUERY))
    # Reciprocal ranks, by hand: 60 is the ensemble's own constant.
    fused = {
        name: sum(0.5 / (61 + found.index(name)) for found in (one, other) if name in found) for name in {*one, *other}
    }
    for merged in (ensemble.invoke(QUERY), await ensemble.ainvoke(QUERY)):
        assert len(merged) == len(fused)
        assert [fused[document.id] for document in merged] == sorted(fused.values(), reverse=True)
        assert {id(document.metadata) for document in merged}.isdisjoint({id(d.metadata) for d in documents})


async def test_several_queries_find_each_document_once(retriever: ColBERTRetriever):
    asked = ["capital of france", "where is paris", "the lazy dog"]

    def several() -> MultiQueryRetriever:
        return MultiQueryRetriever.from_llm(retriever, FakeListChatModel(responses=["\n".join(asked)]))

    wanted = {document.id for query in asked for document in retriever.invoke(query)}
    for merged in (several().invoke(QUERY), await several().ainvoke(QUERY)):
        assert len(merged) == len(wanted) < 4 * len(asked)
        assert set(ids(merged)) == wanted


# --------------------------------------------------------------------------------------- tools, chains, graphs, agents


async def test_as_a_tool(retriever: ColBERTRetriever, found: list[Document]):
    tool = create_retriever_tool(retriever, "search", "Searches.")
    text = "\n\n".join(document.page_content for document in found)
    assert tool.invoke({"query": QUERY}) == text
    assert await tool.ainvoke({"query": QUERY}) == text
    full = create_retriever_tool(retriever, "search", "Searches.", response_format="content_and_artifact")
    message = full.invoke(ToolCall(name="search", args={"query": QUERY}, id="1", type="tool_call"))
    assert message.artifact == found


async def test_in_a_chain_with_a_chat_model(retriever: ColBERTRetriever, found: list[Document]):
    context = retriever | (lambda documents: "\n".join(document.page_content for document in documents))
    prompt = {"context": context, "question": RunnablePassthrough()} | ChatPromptTemplate.from_template(
        "{context}|{question}"
    )
    wanted = "\n".join(document.page_content for document in found) + f"|{QUERY}"
    assert prompt.invoke(QUERY).messages[0].content == wanted
    assert (await prompt.ainvoke(QUERY)).messages[0].content == wanted
    chain = prompt | FakeListChatModel(responses=["Paris."]) | StrOutputParser()
    assert chain.invoke(QUERY) == await chain.ainvoke(QUERY) == "Paris."
    assert "".join([part async for part in chain.astream(QUERY)]) == "Paris."


class State(TypedDict):
    query: str
    documents: list[Document]


async def test_in_a_graph_with_a_checkpointer(retriever: ColBERTRetriever):
    scored = ColBERTRetriever(index=retriever.index, score_key="score")
    found = scored.invoke(QUERY)
    graph = StateGraph(State)
    graph.add_node("retrieve", lambda state: {"documents": scored.invoke(state["query"])})
    graph.add_edge(START, "retrieve")
    graph.add_edge("retrieve", END)
    app = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    assert app.invoke({"query": QUERY, "documents": []}, config)["documents"] == found
    assert app.get_state(config).values["documents"] == found
    assert (await app.ainvoke({"query": QUERY, "documents": []}, config))["documents"] == found


def test_the_serializer_of_graphs_takes_results_of_both(retriever: ColBERTRetriever):
    serializer = JsonPlusSerializer(pickle_fallback=False)
    scored = ColBERTRetriever(index=retriever.index, score_key="score").invoke(QUERY)
    pairs = ColBERTVectorStore(index=retriever.index).similarity_search_with_score(QUERY)
    assert serializer.loads_typed(serializer.dumps_typed(scored)) == scored
    assert [tuple(pair) for pair in serializer.loads_typed(serializer.dumps_typed(pairs))] == pairs


# -------------------------------------------------------------------------------------- a reranker with stored vectors


@pytest.fixture
def plain(shared_model: ColBERT) -> ColBERTReranker:
    return ColBERTReranker(model=shared_model, top_n=None)


def scores(documents: Sequence[Document]) -> dict[str | None, float]:
    return {document.id: document.metadata["relevance_score"] for document in documents}


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_a_reranker_with_the_index_encodes_no_document_again(
    retriever: ColBERTRetriever, plain: ColBERTReranker, found: list[Document], encoded: list[str], how: str
):
    wanted = scores(plain.compress_documents(found, QUERY))
    assert len(encoded) == len({document.page_content for document in found})
    encoded.clear()
    reranker = ColBERTReranker(index=retriever.index, top_n=None)
    both = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=retriever)
    ranked = both.invoke(QUERY) if how == "invoke" else await both.ainvoke(QUERY)
    assert encoded == []
    assert ids(ranked) == ids(found)
    assert scores(ranked) == pytest.approx(wanted, abs=1e-5)


async def test_a_reranker_encodes_what_the_index_does_not_hold_as_it_is(
    retriever: ColBERTRetriever, plain: ColBERTReranker, encoded: list[str]
):
    given = [
        Document(TEXTS[1], id="id-1"),
        Document("water and wind", id="id-2"),  # the index has another text under this id
        Document("red river", id="nowhere"),
        Document("cat and dog"),
    ]
    wanted = scores(plain.compress_documents(given, QUERY))
    reranker = ColBERTReranker(index=retriever.index, top_n=None)
    for rank in (reranker.compress_documents, reranker.acompress_documents):
        encoded.clear()
        ranked: Any = rank(given, QUERY)
        ranked = ranked if isinstance(ranked, list) else await ranked
        assert sorted(encoded) == ["cat and dog", "red river", "water and wind"]
        assert scores(ranked) == pytest.approx(wanted, abs=1e-5)
    assert [document.page_content for document in retriever.get_by_ids(["id-2", "nowhere"])] == [TEXTS[2]]


def test_a_reranker_scores_the_text_it_makes_and_not_the_stored_one(
    retriever: ColBERTRetriever, shared_model: ColBERT, encoded: list[str]
):
    document = Document(TEXTS[1], id="id-1", metadata={"title": "lions"})
    fields: dict[str, Any] = {"metadata_fields": ["title"]}
    wanted = ColBERTReranker(model=shared_model, **fields).compress_documents([document], QUERY)
    encoded.clear()
    ranked = ColBERTReranker(index=retriever.index, **fields).compress_documents([document], QUERY)
    assert encoded == [f"title: lions\n{TEXTS[1]}"]
    assert scores(ranked) == pytest.approx(scores(wanted), abs=1e-5)


def test_a_reranker_takes_an_index_with_its_model_or_none(retriever: ColBERTRetriever, tiny: ColBERT):
    assert ColBERTReranker(index=retriever.index).colbert is retriever.index.model
    assert ColBERTReranker(index=retriever.index, model=retriever.index.model).colbert is retriever.index.model
    with pytest.raises(ValidationError, match="leave model out"):
        ColBERTReranker(index=retriever.index, model=tiny)
    with pytest.raises(ValidationError, match="must be a ColBERTIndex"):
        ColBERTReranker(index="folder")


def test_a_reranker_writes_out_nothing_of_its_index(shared_model: ColBERT):
    reranker = ColBERTReranker(index=ColBERTIndex(shared_model))
    assert "index" not in reranker.model_dump()
    assert "ColBERTIndex" not in repr(reranker)
