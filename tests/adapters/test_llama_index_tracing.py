"""ColBERTRerank in traces: rerank events, callbacks and spans, each of them once, sync and async."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from adapters.drivers import QUERY, TEXTS, LlamaIndex
from adapters.test_llama_index import Listed
from colbert_integrations import ColBERTError
from colbert_integrations.llama_index import ColBERTRerank

Rerank = Callable[[ColBERTRerank, list[NodeWithScore]], Awaitable[list[NodeWithScore]]]


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


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return LlamaIndex().items(TEXTS)


@pytest.fixture(params=["sync", "async"])
def rerank(request: pytest.FixtureRequest) -> Rerank:
    async def ranked(reranker: ColBERTRerank, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        if request.param == "sync":
            return reranker.postprocess_nodes(nodes, query_str=QUERY)
        return await reranker.apostprocess_nodes(nodes, query_str=QUERY)

    return ranked


# ------------------------------------------------------------------------------------------------ events and callbacks


@pytest.mark.parametrize(("top_n", "sent"), [(2, 2), (None, 6), (100, 100)])
async def test_start_and_end_are_sent_once(
    stanford: dict[str, Any], events: list[Any], nodes: list[NodeWithScore], rerank: Rerank, top_n: Any, sent: int
):
    ranked = await rerank(ColBERTRerank(**stanford, top_n=top_n), nodes)
    start, end = events
    assert isinstance(start, ReRankStartEvent)
    assert isinstance(end, ReRankEndEvent)
    assert start.query.query_str == QUERY
    assert start.nodes == nodes
    assert start.top_n == sent
    assert start.model_name == stanford["model"]
    assert end.nodes == ranked
    assert start.span_id == end.span_id is not None


@pytest.mark.parametrize("top_n", [5, None])
async def test_start_and_end_are_sent_for_nothing_too(
    missing: dict[str, Any], events: list[Any], rerank: Rerank, top_n: int | None
):
    assert await rerank(ColBERTRerank(**missing, top_n=top_n), []) == []
    assert [type(event) for event in events] == [ReRankStartEvent, ReRankEndEvent]
    assert type(events[0].top_n) is int


async def test_bad_input_starts_nothing(missing: dict[str, Any], events: list[Any], nodes: list[NodeWithScore]):
    with pytest.raises(ColBERTError):
        ColBERTRerank(**missing).postprocess_nodes(nodes)
    assert not any(isinstance(event, ReRankStartEvent) for event in events)


async def test_callbacks_get_one_pair(stanford: dict[str, Any], nodes: list[NodeWithScore], rerank: Rerank):
    handler = LlamaDebugHandler(print_trace_on_end=False)
    reranker = ColBERTRerank(**stanford, top_n=None, callback_manager=CallbackManager([handler]))
    ranked = await rerank(reranker, nodes)
    [(start, end)] = handler.get_event_pairs(CBEventType.RERANKING)
    assert start.payload[EventPayload.NODES] == nodes
    assert start.payload[EventPayload.MODEL_NAME] == stanford["model"]
    assert start.payload[EventPayload.QUERY_STR] == QUERY
    assert start.payload[EventPayload.TOP_K] == 6
    assert end.payload[EventPayload.NODES] == ranked


async def test_callbacks_of_an_engine_reach_the_reranker(stanford: dict[str, Any], nodes: list[NodeWithScore]):
    handler = LlamaDebugHandler(print_trace_on_end=False)
    engine = RetrieverQueryEngine.from_args(
        Listed(nodes),
        llm=MockLLM(),
        node_postprocessors=[ColBERTRerank(**stanford)],
        callback_manager=CallbackManager([handler]),
    )
    await engine.aquery(QUERY)
    assert len(handler.get_event_pairs(CBEventType.RERANKING)) == 1


async def test_a_pair_is_closed_after_an_error(missing: dict[str, Any], nodes: list[NodeWithScore], rerank: Rerank):
    handler = LlamaDebugHandler(print_trace_on_end=False)
    with pytest.raises(ColBERTError, match="no-such-model"):
        await rerank(ColBERTRerank(**missing, callback_manager=CallbackManager([handler])), nodes)
    assert len(handler.get_event_pairs(CBEventType.RERANKING)) == 1


# ------------------------------------------------------------------------------------------------------ OpenInference


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    yield exporter
    instrumentor.uninstrument()
    provider.shutdown()


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_openinference_shows_a_reranker_span_in_its_place(
    spans: InMemorySpanExporter, stanford: dict[str, Any], nodes: list[NodeWithScore], how: str
):
    reranker = ColBERTRerank(**stanford, top_n=2)
    distinct = nodes[:4]  # a retriever of an older core drops nodes of equal text
    engine = RetrieverQueryEngine.from_args(Listed(distinct), llm=MockLLM(), node_postprocessors=[reranker])
    response = engine.query(QUERY) if how == "sync" else await engine.aquery(QUERY)
    finished = spans.get_finished_spans()
    [ours] = [span for span in finished if span.attributes["openinference.span.kind"] == "RERANKER"]
    names = {span.context.span_id: span.name for span in finished}
    assert ours.name == "ColBERTRerank._postprocess_nodes"
    assert names[ours.parent.span_id] == f"RetrieverQueryEngine.{'_query' if how == 'sync' else '_aquery'}"
    assert ours.attributes["reranker.query"] == QUERY
    assert ours.attributes["reranker.top_k"] == 2
    assert ours.attributes["reranker.model_name"] == stanford["model"]
    assert documents(ours.attributes, "input") == [(node.node_id, 0.25) for node in distinct]
    assert documents(ours.attributes, "output") == [(n.node_id, n.score) for n in response.source_nodes]


def documents(attributes: Any, side: str) -> list[tuple[str, float]]:
    """Ids and scores of a reranker's documents, from the flat attributes of its span."""
    prefix, found = f"reranker.{side}_documents", []
    while f"{prefix}.{len(found)}.document.id" in attributes:
        document = f"{prefix}.{len(found)}.document"
        found.append((attributes[f"{document}.id"], attributes[f"{document}.score"]))
    return found
