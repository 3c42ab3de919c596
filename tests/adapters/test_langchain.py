"""ColBERTReranker: what is LangChain's own, and the reranker inside what LangChain users put it into."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, TypedDict

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core._api.beta_decorator import LangChainBetaWarning
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import ToolCall
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from llama_index.core import schema

from adapters.drivers import QUERY, TEXTS, LangChain
from colbert_integrations.errors import InputError
from colbert_integrations.langchain import ColBERTReranker


class Listed(BaseRetriever):
    """Finds the same documents whatever the query."""

    documents: list[Document]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int = 100
    ) -> list[Document]:
        return self.documents[:k]


@pytest.fixture
def reranker(stanford: dict[str, Any]) -> ColBERTReranker:
    return ColBERTReranker(**stanford)


@pytest.fixture
def documents() -> list[Document]:
    return LangChain().items(TEXTS)


@pytest.fixture
def retriever(reranker: ColBERTReranker, documents: list[Document]) -> ContextualCompressionRetriever:
    base = Listed(documents=documents)
    return ContextualCompressionRetriever(base_compressor=reranker, base_retriever=base)


@pytest.fixture
def best(reranker: ColBERTReranker, documents: list[Document]) -> list[Document]:
    """What the reranker gives when it is called by hand."""
    return list(reranker.compress_documents(documents, QUERY))


def ids(documents: Sequence[Document]) -> list[str | None]:
    return [document.id for document in documents]


# ------------------------------------------------------------------------------------------------------------- fields


def test_is_a_compressor_that_returns_three_documents(reranker: ColBERTReranker, best: list[Document]):
    assert isinstance(reranker, BaseDocumentCompressor)
    assert len(best) == 3


def test_score_goes_under_its_key_and_nothing_else_changes(stanford: dict[str, Any]):
    [ranked] = ColBERTReranker(**stanford, score_key="colbert").compress_documents(
        [Document("lions", metadata={"relevance_score": 7, "source": "a"})], QUERY
    )
    assert ranked.metadata.keys() == {"relevance_score", "source", "colbert"}
    assert ranked.metadata["relevance_score"] == 7


def test_a_stale_score_is_overwritten_in_the_output_only(reranker: ColBERTReranker):
    document = Document("lions", metadata={"relevance_score": 7})
    [ranked] = reranker.compress_documents([document], QUERY)
    assert 0 <= ranked.metadata["relevance_score"] <= 1
    assert document.metadata == {"relevance_score": 7}


def test_without_a_score_key_metadata_stay_equal(
    stanford: dict[str, Any], documents: list[Document], best: list[Document]
):
    silent = ColBERTReranker(**stanford, score_key=None).compress_documents(documents, QUERY)
    assert ids(silent) == ids(best)
    assert all(document.metadata == {} for document in silent)


def test_metadata_fields_are_scored_before_the_text(stanford: dict[str, Any]):
    document = Document("lions", metadata={"title": "paris", "year": 7, "hidden": "berlin", "author": None})
    reranker = ColBERTReranker(**stanford, metadata_fields=["year", "title", "absent", "author"])
    [ranked] = reranker.compress_documents([document], QUERY)
    spelt = reranker.compress_documents([Document("year: 7\ntitle: paris\nlions")], QUERY)
    assert score(ranked) == pytest.approx(score(spelt[0]), abs=1e-6)
    assert score(ranked) != pytest.approx(score(ColBERTReranker(**stanford).compress_documents([document], QUERY)[0]))
    assert ranked.page_content == "lions"


def test_a_formatter_makes_the_text_that_is_scored(stanford: dict[str, Any]):
    document = Document("lions", metadata={"title": "paris"})
    reranker = ColBERTReranker(**stanford, document_formatter=lambda document: document.metadata["title"])
    [ranked] = reranker.compress_documents([document], "paris")
    assert score(ranked) == pytest.approx(score(reranker.compress_documents([document], "paris")[0]))
    [plain] = ColBERTReranker(**stanford).compress_documents([Document("paris")], "paris")
    assert score(ranked) == pytest.approx(score(plain), abs=1e-6)
    assert ranked.page_content == "lions"


async def test_async_calls_make_texts_and_copies_off_the_event_loop(stanford):
    threads = set()

    def formatted(document):
        threads.add(threading.get_ident())
        return document.page_content

    class Value:
        def __deepcopy__(self, memo):
            threads.add(threading.get_ident())
            return self

    reranker = ColBERTReranker(**stanford, document_formatter=formatted)
    documents = [Document(text, metadata={"value": Value()}) for text in TEXTS]
    await reranker.acompress_documents(documents, QUERY)
    await reranker.arerank(documents, QUERY)
    await reranker.as_runnable().ainvoke({"query": QUERY, "documents": documents})
    assert threads
    assert threading.get_ident() not in threads


def test_a_formatter_that_gives_no_text_is_named(stanford: dict[str, Any]):
    reranker = ColBERTReranker(**stanford, document_formatter=lambda document: None)
    with pytest.raises(InputError, match=r"documents\[0\]"):
        reranker.compress_documents([Document("lions")], QUERY)


def score(document: Document) -> float:
    return document.metadata["relevance_score"]


# ------------------------------------------------------------------------------------------------------------- rerank


async def test_rerank_gives_places_and_scores_for_texts_of_any_kind(
    reranker: ColBERTReranker, documents: list[Document], best: list[Document]
):
    wanted = [{"index": int(d.id.removeprefix("id-")), "relevance_score": score(d)} for d in best]
    kinds = [TEXTS, documents, [{"text": text} for text in TEXTS], [{"page_content": text} for text in TEXTS]]
    for items in [*kinds, [TEXTS[0], documents[1], {"text": TEXTS[2]}, *TEXTS[3:]]]:
        assert reranker.rerank(items, QUERY) == wanted
        assert await reranker.arerank(items, QUERY) == wanted
    assert json.loads(json.dumps(wanted)) == wanted


@pytest.mark.parametrize(("top_n", "count"), [(-1, 3), (None, 6), (1, 1), (100, 6)])
async def test_rerank_takes_its_own_top_n(reranker: ColBERTReranker, top_n: int | None, count: int):
    assert len(reranker.rerank(TEXTS, QUERY, top_n=top_n)) == count
    assert len(await reranker.arerank(TEXTS, QUERY, top_n=top_n)) == count


@pytest.mark.parametrize("top_n", [0, -2, 1.5, True])
@pytest.mark.parametrize("texts", [TEXTS, []])
async def test_rerank_refuses_an_impossible_top_n(reranker: ColBERTReranker, texts: list[str], top_n: Any):
    with pytest.raises(InputError, match="top_n"):
        reranker.rerank(texts, QUERY, top_n=top_n)
    with pytest.raises(InputError, match="top_n"):
        await reranker.arerank(texts, QUERY, top_n=top_n)


async def test_rerank_of_nothing_is_nothing(missing: dict[str, Any]):
    assert ColBERTReranker(**missing).rerank([], QUERY) == []
    assert await ColBERTReranker(**missing).arerank([], QUERY) == []


def test_rerank_scores_the_metadata_fields_of_mappings(stanford: dict[str, Any]):
    reranker = ColBERTReranker(**stanford, metadata_fields=["title"])
    [entry] = reranker.rerank([{"title": "paris", "text": "lions"}], QUERY)
    [spelt] = ColBERTReranker(**stanford).rerank(["title: paris\nlions"], QUERY)
    assert entry == pytest.approx(spelt, abs=1e-6)


@pytest.mark.parametrize("item", [None, 3, {}, {"text": None}, {"title": "a"}])
def test_rerank_refuses_items_without_text(missing: dict[str, Any], item: Any):
    with pytest.raises(InputError, match=r"documents\[1\]"):
        ColBERTReranker(**missing).rerank(["a", item], QUERY)


async def test_rerank_refuses_a_query_that_is_no_text_also_where_there_is_nothing_to_rank(missing: dict[str, Any]):
    query: Any = None
    with pytest.raises(InputError, match="query must be a string"):
        ColBERTReranker(**missing).rerank([], query)
    with pytest.raises(InputError, match="query must be a string"):
        await ColBERTReranker(**missing).arerank([], query)


def test_a_document_of_the_other_framework_is_told_from_one_of_this(missing: dict[str, Any]):
    reranker, documents = ColBERTReranker(**missing), [schema.Document(text="a")]
    with pytest.raises(InputError, match=r"documents\[0\] must be a Document, not llama_index\.\S+\.Document$"):
        reranker.compress_documents(documents, QUERY)
    with pytest.raises(InputError, match=r"or a mapping with 'text', not llama_index\.\S+\.Document$"):
        reranker.rerank(documents, QUERY)


def test_rerank_refuses_a_single_text(missing: dict[str, Any]):
    with pytest.raises(InputError, match="must be a list"):
        ColBERTReranker(**missing).rerank("one text", QUERY)


# --------------------------------------------------------------------------------------------------------- retrievers


async def test_in_a_compression_retriever(retriever: ContextualCompressionRetriever, best: list[Document]):
    assert retriever.invoke(QUERY) == best
    assert await retriever.ainvoke(QUERY) == best
    assert retriever.batch([QUERY, QUERY]) == [best, best]
    assert await retriever.abatch([QUERY, QUERY]) == [best, best]


def test_a_compression_retriever_that_finds_nothing(missing: dict[str, Any]):
    nothing = Listed(documents=[])
    retriever = ContextualCompressionRetriever(base_compressor=ColBERTReranker(**missing), base_retriever=nothing)
    assert retriever.invoke(QUERY) == []


def test_k_of_a_compression_retriever_limits_the_candidates(
    retriever: ContextualCompressionRetriever, reranker: ColBERTReranker, documents: list[Document]
):
    assert retriever.invoke(QUERY, k=2) == reranker.compress_documents(documents[:2], QUERY)


async def test_two_rerankers_in_a_pipeline(stanford: dict[str, Any], documents: list[Document], best: list[Document]):
    first = ColBERTReranker(**stanford, top_n=4)
    second = ColBERTReranker(**stanford, top_n=2, normalize_scores=False)
    pipeline = DocumentCompressorPipeline(transformers=[first, second])
    retriever = ContextualCompressionRetriever(base_compressor=pipeline, base_retriever=Listed(documents=documents))
    raw = second.compress_documents(documents, QUERY)
    assert score(raw[0]) > 1  # so that the first reranker's score would show
    assert retriever.invoke(QUERY) == raw
    assert await retriever.ainvoke(QUERY) == raw
    assert ids(raw) == ids(best)[:2]


async def test_in_an_ensemble(retriever: ContextualCompressionRetriever, documents: list[Document]):
    other = Listed(documents=documents[:1])
    ensemble = EnsembleRetriever(retrievers=[retriever, other], weights=[0.9, 0.1])
    found = ensemble.invoke(QUERY)
    # The ensemble merges equal texts, and its own ranks decide.
    texts = list(dict.fromkeys([*(d.page_content for d in retriever.invoke(QUERY)), documents[0].page_content]))
    assert sorted(d.page_content for d in found) == sorted(texts)
    assert found[0].page_content == texts[0]
    assert [d.page_content for d in await ensemble.ainvoke(QUERY)] == [d.page_content for d in found]


async def test_as_a_tool(retriever: ContextualCompressionRetriever, best: list[Document]):
    tool = create_retriever_tool(retriever, "search", "Searches.")
    text = "\n\n".join(document.page_content for document in best)
    assert tool.invoke({"query": QUERY}) == text
    assert await tool.ainvoke({"query": QUERY}) == text
    full = create_retriever_tool(retriever, "search", "Searches.", response_format="content_and_artifact")
    message = full.invoke(ToolCall(name="search", args={"query": QUERY}, id="1", type="tool_call"))
    assert message.artifact == best


# --------------------------------------------------------------------------------------------------- chains and graphs


@pytest.fixture
def rag(reranker: ColBERTReranker, documents: list[Document]) -> Runnable:
    """Retriever, reranker and prompt, piped."""
    found = {"query": RunnablePassthrough(), "documents": Listed(documents=documents)} | reranker.as_runnable()
    context = found | (lambda ranked: {"context": "\n".join(d.page_content for d in ranked)})
    return context | ChatPromptTemplate.from_template("{context}")


async def test_as_a_runnable_in_a_chain(rag: Runnable, best: list[Document]):
    wanted = "\n".join(document.page_content for document in best)
    assert rag.invoke(QUERY).messages[0].content == wanted
    assert (await rag.ainvoke(QUERY)).messages[0].content == wanted
    assert [message.messages[0].content for message in rag.batch([QUERY] * 2)] == [wanted] * 2
    answer = rag | FakeListChatModel(responses=["Paris."]) | StrOutputParser()
    assert "".join(answer.stream(QUERY)) == "Paris."
    assert "".join([part async for part in answer.astream(QUERY)]) == "Paris."


async def test_a_runnable_streams_the_documents(
    reranker: ColBERTReranker, documents: list[Document], best: list[Document]
):
    inputs = {"query": QUERY, "documents": documents}
    assert list(reranker.as_runnable().stream(inputs)) == [best]
    assert [part async for part in reranker.as_runnable().astream(inputs)] == [best]


async def test_a_runnable_takes_the_number_of_documents(
    reranker: ColBERTReranker, documents: list[Document], best: list[Document]
):
    inputs = {"query": QUERY, "documents": documents}
    runnable = reranker.as_runnable().bind(top_n=1)
    assert runnable.invoke(inputs) == best[:1]
    assert await runnable.ainvoke(inputs) == best[:1]
    assert len(reranker.as_runnable().invoke(inputs, top_n=None)) == len(documents)
    with pytest.raises(InputError, match="top_n must be a whole number from 1"):
        reranker.as_runnable().invoke(inputs, top_n=0)


async def test_a_runnable_can_become_a_tool(reranker: ColBERTReranker, documents: list[Document], best: list[Document]):
    with pytest.warns(LangChainBetaWarning):
        tool = reranker.as_runnable().as_tool(name="rerank", description="order documents")
    assert set(tool.args) == {"query", "documents"}
    assert tool.invoke({"query": QUERY, "documents": documents}) == best
    assert await tool.ainvoke({"query": QUERY, "documents": documents}) == best


@pytest.mark.parametrize("inputs", [{}, {"query": "a"}, {"documents": []}, "a", [1, 2]])
async def test_a_runnable_says_what_it_takes(reranker: ColBERTReranker, inputs: Any):
    with pytest.raises(InputError, match="'query'.*'documents'"):
        reranker.as_runnable().invoke(inputs)
    with pytest.raises(InputError, match="'query'.*'documents'"):
        await reranker.as_runnable().ainvoke(inputs)


class State(TypedDict):
    query: str
    documents: list[Document]


async def test_in_a_graph_with_a_checkpointer(
    reranker: ColBERTReranker, documents: list[Document], best: list[Document]
):
    graph = StateGraph(State)
    graph.add_node("rerank", lambda s: {"documents": reranker.compress_documents(s["documents"], s["query"])})
    graph.add_edge(START, "rerank")
    graph.add_edge("rerank", END)
    app = graph.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    plain = [Document(d.page_content, id=d.id) for d in documents]  # classes of a test are none that it restores
    ranked = reranker.compress_documents(plain, QUERY)
    assert app.invoke({"query": QUERY, "documents": plain}, config)["documents"] == ranked
    assert app.get_state(config).values["documents"] == ranked
    assert (await app.ainvoke({"query": QUERY, "documents": plain}, config))["documents"] == ranked
    assert ids(ranked) == ids(best)


def test_the_serializer_of_graphs_takes_the_output(reranker: ColBERTReranker):
    ranked = reranker.compress_documents([Document("lions", id="a"), Document("paris")], QUERY)
    serializer = JsonPlusSerializer(pickle_fallback=False)
    assert serializer.loads_typed(serializer.dumps_typed(ranked)) == ranked
