"""ColBERTRetriever inside what LlamaIndex users put a retriever into, and in traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.indices.query.query_transform.base import HyDEQueryTransform
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter, SentenceWindowNodeParser
from llama_index.core.postprocessor import MetadataReplacementPostProcessor, SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine, TransformQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever, RouterRetriever
from llama_index.core.schema import Document, IndexNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index.retrievers.bm25 import BM25Retriever
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from adapters.drivers import QUERY, TEXTS
from colbert_integrations import ColBERT
from colbert_integrations.errors import ColBERTError
from colbert_integrations.llama_index import ColBERTRerank, ColBERTRetriever

DISTINCT = list(dict.fromkeys(TEXTS))  # BM25 and fusion rate equal texts as one


def nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=f"id-{place}") for place, text in enumerate(DISTINCT)]


def read(found: list[NodeWithScore]) -> list[tuple[str, float]]:
    return [(node.node_id, node.score) for node in found]


@pytest.fixture
def retriever(shared_model: ColBERT) -> ColBERTRetriever:
    return ColBERTRetriever(nodes(), model=shared_model)


@pytest.fixture
def best(retriever: ColBERTRetriever) -> list[tuple[str, float]]:
    """What the retriever finds by itself."""
    return read(retriever.retrieve(QUERY))


class First(BaseSelector):
    """Selects one choice without a language model."""

    def __init__(self, place: int) -> None:
        self.place = place

    def _update_prompts(self, prompts: Any) -> None: ...

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _select(self, choices: Any, query: QueryBundle) -> SelectorResult:
        return SelectorResult(selections=[SingleSelection(index=self.place, reason="")])

    async def _aselect(self, choices: Any, query: QueryBundle) -> SelectorResult:
        return self._select(choices, query)


# -------------------------------------------------------------------------------------------------------------- engines


def assert_answers_from(answer: str, found: list[NodeWithScore]) -> None:
    kept = [node.node.text for node in found]
    assert [answer.index(text) for text in kept] == sorted(answer.index(text) for text in kept)
    assert not any(text in answer for text in DISTINCT if text not in kept)


async def test_in_a_query_engine(retriever: ColBERTRetriever, best: list[tuple[str, float]]):
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    for response in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert read(response.source_nodes) == best
        assert_answers_from(str(response), response.source_nodes)


async def test_in_a_streaming_query_engine(retriever: ColBERTRetriever, best: list[tuple[str, float]]):
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), streaming=True)
    response = engine.query(QUERY)
    assert isinstance(response, StreamingResponse)
    assert read(response.source_nodes) == best
    assert_answers_from("".join(response.response_gen), response.source_nodes)
    response = await engine.aquery(QUERY)
    assert isinstance(response, AsyncStreamingResponse)
    assert read(response.source_nodes) == best
    assert_answers_from("".join([part async for part in response.async_response_gen()]), response.source_nodes)


async def test_in_a_chat_engine(retriever: ColBERTRetriever, best: list[tuple[str, float]]):
    # The default memory opens a database and leaves it open.
    memory = ChatMemoryBuffer.from_defaults(token_limit=4000)
    chat = ContextChatEngine.from_defaults(retriever, llm=MockLLM(), memory=memory)
    for response in (chat.chat(QUERY), await chat.achat(QUERY)):
        assert read(response.source_nodes) == best


async def test_as_a_tool(retriever: ColBERTRetriever, best: list[tuple[str, float]]):
    # The tool hands the query over with line ends around it.
    tool = RetrieverTool.from_defaults(retriever, description="finds")
    assert read(tool.call(QUERY).raw_output) == best
    assert read((await tool.acall(QUERY)).raw_output) == best


@pytest.mark.parametrize("place", [0, 1])
async def test_in_a_router(shared_model: ColBERT, place: int):
    halves = [ColBERTRetriever(half, model=shared_model) for half in (nodes()[:2], nodes()[2:])]
    tools = [RetrieverTool.from_defaults(half, description=f"half {n}") for n, half in enumerate(halves)]
    router = RouterRetriever(First(place), tools, llm=MockLLM())
    wanted = dict(read(halves[place].retrieve(QUERY)))
    assert dict(read(router.retrieve(QUERY))) == wanted
    assert dict(read(await router.aretrieve(QUERY))) == wanted


@pytest.mark.parametrize("use_async", [False, True])
async def test_fused_with_bm25(retriever: ColBERTRetriever, best: list[tuple[str, float]], use_async: bool):
    bm25 = BM25Retriever.from_defaults(nodes=nodes(), similarity_top_k=2)
    fusion = QueryFusionRetriever(
        [retriever, bm25],
        llm=MockLLM(),
        num_queries=1,
        similarity_top_k=10,
        mode="reciprocal_rerank",
        use_async=use_async,
    )
    wanted: dict[str, float] = {}
    for ranking in (best, read(bm25.retrieve(QUERY))):
        for place, (name, _) in enumerate(ranking):
            wanted[name] = wanted.get(name, 0) + 1 / (60 + place)
    found = [dict(read(await fusion.aretrieve(QUERY)))]
    if not use_async:  # that way the framework runs a loop of its own, and does not inside of one
        found.append(dict(read(fusion.retrieve(QUERY))))
    assert found == [pytest.approx(wanted)] * len(found)
    assert read(retriever.retrieve(QUERY)) == best  # fusion writes scores into what it gets


def test_fused_with_bm25_in_a_loop_of_its_own(retriever: ColBERTRetriever, best: list[tuple[str, float]]):
    fusion = QueryFusionRetriever(
        [retriever, retriever], llm=MockLLM(), num_queries=1, similarity_top_k=10, mode="simple", use_async=True
    )
    assert read(fusion.retrieve(QUERY)) == read(fusion.retrieve(QUERY)) == best


async def test_under_hyde_what_the_model_made_up_is_searched_too(retriever: ColBERTRetriever):
    engine = TransformQueryEngine(
        RetrieverQueryEngine.from_args(retriever, llm=MockLLM()), HyDEQueryTransform(llm=MockLLM(max_tokens=2))
    )
    # What the mock makes up is the word "text", twice.
    made_up = QueryBundle(QUERY, custom_embedding_strs=["text text", QUERY])
    wanted = read(retriever.retrieve(made_up))
    assert read(engine.query(QUERY).source_nodes) == wanted
    assert read((await engine.aquery(QUERY)).source_nodes) == wanted


# ----------------------------------------------------------------------------------------------------- before and after


def test_a_pipelines_nodes_are_added_and_found(shared_model: ColBERT):
    documents = [Document(text=" ".join([text] * 8), id_=f"document-{n}") for n, text in enumerate(DISTINCT)]
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=16, chunk_overlap=0)])
    chunks = pipeline.run(documents=documents)
    assert len(chunks) > len(documents)
    retriever = ColBERTRetriever(model=shared_model, similarity_top_k=100)
    assert retriever.add_nodes(chunks) == [chunk.node_id for chunk in chunks]
    found = {node.node_id: node.node for node in retriever.retrieve(QUERY)}
    assert found == {chunk.node_id: chunk for chunk in chunks}
    retriever.delete_ref_doc("document-1")
    assert {node.node.ref_doc_id for node in retriever.retrieve(QUERY)} == {d.doc_id for d in documents} - {
        "document-1"
    }


async def test_replacing_content_by_metadata_afterwards_leaves_the_index_unchanged(shared_model: ColBERT):
    parser = SentenceWindowNodeParser.from_defaults(window_size=1, sentence_splitter=lambda text: text.split(". "))
    sentences = parser.get_nodes_from_documents([Document(text=". ".join(DISTINCT))])
    retriever = ColBERTRetriever(sentences, model=shared_model)
    before = retriever.retrieve(QUERY)
    replacing = MetadataReplacementPostProcessor(target_metadata_key="window")
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), node_postprocessors=[replacing])
    for response in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert [n.node.text for n in response.source_nodes] == [n.metadata["window"] for n in before]
        assert response.source_nodes[0].node.text != before[0].node.text
    assert retriever.retrieve(QUERY) == before


def test_before_a_cutoff_and_a_reranker(retriever: ColBERTRetriever, best: list[tuple[str, float]]):
    assert best[0][1] > best[1][1]
    cutoff = SimilarityPostprocessor(similarity_cutoff=best[0][1] - 1e-6)
    reranker = ColBERTRerank(model=retriever.index.model)
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), node_postprocessors=[cutoff, reranker])
    [found] = engine.query(QUERY).source_nodes
    assert found.node_id == best[0][0]
    assert found.score == pytest.approx(best[0][1], abs=2**-11)  # the index rounds vectors to float16


# -------------------------------------------------------------------------------------------------------------- objects


async def follow(retriever: ColBERTRetriever) -> list[list[NodeWithScore]]:
    return [retriever.retrieve("lions"), await retriever.aretrieve("lions")]


async def test_a_node_that_an_index_node_carries_is_followed(shared_model: ColBERT):
    parent = TextNode(text="all about lions", id_="parent")
    retriever = ColBERTRetriever([IndexNode(text="lions", index_id="parent", obj=parent)], model=shared_model)
    [[plain], _] = await follow(ColBERTRetriever([TextNode(text="lions")], model=shared_model))
    for [found] in await follow(retriever):
        assert found.node == parent
        assert found.score == plain.score  # that of the index node's own text
        found.node.set_content("overwritten")
    assert [found.text for [found] in await follow(retriever)] == [parent.text] * 2


@pytest.mark.parametrize("how", ["obj", "objects", "object_map"])
async def test_a_retriever_that_an_index_node_stands_for_is_followed(
    shared_model: ColBERT, retriever: ColBERTRetriever, how: str
):
    pointer = IndexNode(text="lions", id_="pointer", index_id="inner", obj=retriever if how == "obj" else None)
    given = {
        "obj": {},
        "objects": {"objects": [IndexNode(text="", index_id="inner", obj=retriever)]},
        "object_map": {"object_map": {"inner": retriever}},
    }[how]
    outer = ColBERTRetriever([pointer], model=shared_model, **given)
    for found in await follow(outer):
        assert read(found) == read(retriever.retrieve("lions"))
    assert pointer.obj is (retriever if how == "obj" else None)
    assert ColBERTRetriever(index=outer.index).retrieve("lions")[0].node_id == "pointer"  # nothing to follow


def test_a_map_of_objects_that_was_passed_stays_as_it_is(shared_model: ColBERT, retriever: ColBERTRetriever):
    mine: dict[str, Any] = {"other": retriever}
    ColBERTRetriever([IndexNode(text="a", index_id="b", obj=retriever)], model=shared_model, object_map=mine)
    assert mine == {"other": retriever}


# --------------------------------------------------------------------------------------------------------------- traces


class EventLog(BaseEventHandler):
    """Keeps what is sent."""

    seen: list[Any] = []

    def handle(self, event: Any, **rest: Any) -> None:
        self.seen.append(event)


@pytest.fixture
def events() -> Iterator[list[Any]]:
    log, dispatcher = EventLog(seen=[]), get_dispatcher()
    dispatcher.add_event_handler(log)
    yield log.seen
    dispatcher.event_handlers.remove(log)


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_start_and_end_are_sent_once(retriever: ColBERTRetriever, events: list[Any], how: str):
    found = retriever.retrieve(QUERY) if how == "sync" else await retriever.aretrieve(QUERY)
    start, end = events
    assert isinstance(start, RetrievalStartEvent)
    assert isinstance(end, RetrievalEndEvent)
    assert start.str_or_query_bundle == QUERY
    assert end.nodes == found


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_callbacks_get_one_pair(shared_model: ColBERT, how: str):
    handler = LlamaDebugHandler(print_trace_on_end=False)
    retriever = ColBERTRetriever(nodes(), model=shared_model, callback_manager=CallbackManager([handler]))
    found = retriever.retrieve(QUERY) if how == "sync" else await retriever.aretrieve(QUERY)
    [(start, end)] = handler.get_event_pairs(CBEventType.RETRIEVE)
    assert start.payload[EventPayload.QUERY_STR] == QUERY
    assert end.payload[EventPayload.NODES] == found


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_an_error_reaches_the_caller_and_closes_the_pair(
    shared_model: ColBERT, monkeypatch: pytest.MonkeyPatch, how: str
):
    handler = LlamaDebugHandler(print_trace_on_end=False)
    retriever = ColBERTRetriever(nodes(), model=shared_model, callback_manager=CallbackManager([handler]))
    retriever.index.close()
    with pytest.raises(ColBERTError, match="closed"):
        retriever.retrieve(QUERY) if how == "sync" else await retriever.aretrieve(QUERY)
    assert len(handler.get_event_pairs(CBEventType.RETRIEVE)) == 1


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_openinference_shows_a_retriever_span_with_its_documents(retriever: ColBERTRetriever, how: str):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    try:
        found = retriever.retrieve(QUERY) if how == "sync" else await retriever.aretrieve(QUERY)
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
    outer = [span for span in exporter.get_finished_spans() if span.parent is None]
    [span] = outer
    assert span.attributes["openinference.span.kind"] == "RETRIEVER"
    prefix = "retrieval.documents"
    assert [
        (span.attributes[f"{prefix}.{n}.document.id"], span.attributes[f"{prefix}.{n}.document.score"]) for n in (0, 1)
    ] == read(found)
