"""Traces of LlamaIndex: rerank events, callbacks and spans, each of them once, sync and async; figures on spans."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from adapters.drivers import QUERY, TEXTS, LlamaIndex
from adapters.test_llama_index import Listed
from colbert_integrations import CallStats, ColBERT, ColBERTError, MemoryStore, observing
from colbert_integrations.llama_index import ColBERTRerank, ColBERTRetriever

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


# -------------------------------------------------------------------------------------------------------------- figures

Figures = dict[str, Any]
SECONDS = {"colbert.tokenize_s", "colbert.encode_s", "colbert.score_s"}


def figures(tags: Any) -> Figures:
    """What a span's tags or attributes say of the call, without seconds."""
    return {name: value for name, value in tags.items() if name.startswith("colbert.") and not name.endswith("_s")}


def seconds(tags: Any) -> set[str]:
    """The names of seconds that are not 0."""
    return {name for name, value in tags.items() if name.startswith("colbert.") and name.endswith("_s") and value}


def expected(about: Figures, **counts: int) -> Figures:
    return figures({**CallStats(**counts).as_metadata(), **about})


@pytest.fixture
def reranked(shared_model: ColBERT) -> Figures:
    """Figures of a rerank of the common texts, two of which are equal: 33 words, 3 tokens beside, 16 of the query."""
    counts = {"queries_encoded": 1, "documents_encoded": 5, "tokens_encoded": 16 + 33 + 5 * 3, "batches": 1}
    return expected(shared_model.about(), **counts, documents_ranked=6)


@pytest.fixture
def found(shared_model: ColBERT) -> Figures:
    """Figures of a retrieval of two nodes."""
    about = {**shared_model.about(), "colbert.k": 2}
    return expected(about, queries_encoded=1, tokens_encoded=16, batches=1)


@pytest.fixture
def retriever(shared_model: ColBERT, nodes: list[NodeWithScore]) -> ColBERTRetriever:
    bare = [node.node for node in nodes]
    return ColBERTRetriever(bare, model=shared_model, store=MemoryStore("float32"), similarity_top_k=2)


@pytest.fixture
def handler() -> Iterator[SimpleSpanHandler]:
    """The framework's own span handler, which keeps spans in memory."""
    handler, dispatcher = SimpleSpanHandler(), get_dispatcher()
    dispatcher.add_span_handler(handler)
    yield handler
    dispatcher.span_handlers.remove(handler)


def ours(spans: list[SimpleSpan]) -> dict[str, Figures]:
    """The tags of each span that carries figures."""
    return {span.id_.partition("-")[0]: span.tags for span in spans if figures(span.tags)}


async def test_the_end_event_and_the_span_of_a_rerank_carry_the_figures(
    stanford: dict[str, Any],
    events: list[Any],
    nodes: list[NodeWithScore],
    handler: SimpleSpanHandler,
    rerank: Rerank,
    reranked: Figures,
):
    await rerank(ColBERTRerank(**stanford), nodes)
    [tags] = ours(handler.completed_spans).values()
    for seen in (tags, events[1].tags):
        assert figures(seen) == reranked
        assert seconds(seen) >= SECONDS
    assert figures(events[0].tags) == {}


@pytest.mark.parametrize(
    ("how", "name"), [("sync", "ColBERTRetriever._retrieve"), ("async", "ColBERTRetriever.aretrieve")]
)
async def test_the_span_of_a_retrieval_carries_the_figures(
    retriever: ColBERTRetriever, handler: SimpleSpanHandler, found: Figures, how: str, name: str
):
    await retrieve(retriever, how)
    tagged = ours(handler.completed_spans)
    assert {name: figures(tags) for name, tags in tagged.items()} == {name: found}
    assert seconds(tagged[name]) == SECONDS


async def retrieve(retriever: ColBERTRetriever, how: str, query: Any = QUERY) -> list[NodeWithScore]:
    return retriever.retrieve(query) if how == "sync" else await retriever.aretrieve(query)


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_several_queries_of_one_retrieval_are_summed(
    retriever: ColBERTRetriever, handler: SimpleSpanHandler, how: str
):
    await retrieve(retriever, how, QueryBundle("a", custom_embedding_strs=["paris", "lions"]))
    [tags] = ours(handler.completed_spans).values()
    assert (tags["colbert.queries_encoded"], tags["colbert.tokens_encoded"]) == (2, 32)


async def test_a_span_that_is_dropped_carries_what_was_done(
    checkpoint: Callable[[str], Any], nodes: list[NodeWithScore], handler: SimpleSpanHandler, rerank: Rerank
):
    def failing(sequences: Any) -> Any:
        raise RuntimeError("no device")

    model = ColBERT(checkpoint("stanford"), device="cpu", forward=failing)
    with pytest.raises(RuntimeError, match="no device"):
        await rerank(ColBERTRerank(model=model), nodes)
    assert ours(handler.completed_spans) == {}
    [tags] = ours(handler.dropped_spans).values()
    assert figures(tags) == expected(model.about(), documents_ranked=6)
    assert observing._CURRENT.get() is None


async def test_an_empty_call_knows_its_model_and_loads_nothing(
    missing: dict[str, Any], handler: SimpleSpanHandler, rerank: Rerank
):
    await rerank(ColBERTRerank(**missing), [])
    [tags] = ours(handler.completed_spans).values()
    assert figures(tags) == expected({"colbert.model": missing["model"]})


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
    spans: InMemorySpanExporter,
    stanford: dict[str, Any],
    nodes: list[NodeWithScore],
    caplog: pytest.LogCaptureFixture,
    reranked: Figures,
    how: str,
):
    reranker = ColBERTRerank(**stanford, top_n=2)
    distinct = nodes[:4]  # a retriever of an older core drops nodes of equal text
    engine = RetrieverQueryEngine.from_args(Listed(distinct), llm=MockLLM(), node_postprocessors=[reranker])
    response = engine.query(QUERY) if how == "sync" else await engine.aquery(QUERY)
    finished = spans.get_finished_spans()
    [ours] = [span for span in finished if span.attributes["openinference.span.kind"] == "RERANKER"]
    distinct_texts = {"colbert.documents_encoded": 4, "colbert.documents_ranked": 4, "colbert.tokens_encoded": 60}
    assert figures(ours.attributes) == {**reranked, **distinct_texts}
    assert seconds(ours.attributes) >= SECONDS
    assert [span.name for span in finished if figures(span.attributes)] == [ours.name]
    assert "Unhandled event" not in caplog.text  # what the instrumentor says of events that it does not know
    names = {span.context.span_id: span.name for span in finished}
    assert ours.name == "ColBERTRerank._postprocess_nodes"
    assert names[ours.parent.span_id] == f"RetrieverQueryEngine.{'_query' if how == 'sync' else '_aquery'}"
    assert ours.attributes["reranker.query"] == QUERY
    assert ours.attributes["reranker.top_k"] == 2
    assert ours.attributes["reranker.model_name"] == stanford["model"]
    assert documents(ours.attributes, "input") == [(node.node_id, 0.25) for node in distinct]
    assert documents(ours.attributes, "output") == [(n.node_id, n.score) for n in response.source_nodes]


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_openinference_shows_the_figures_of_a_retrieval_in_an_engine(
    spans: InMemorySpanExporter, retriever: ColBERTRetriever, caplog: pytest.LogCaptureFixture, found: Figures, how: str
):
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    _ = engine.query(QUERY) if how == "sync" else await engine.aquery(QUERY)
    finished = spans.get_finished_spans()
    [carrier] = [span for span in finished if figures(span.attributes)]
    assert carrier.name == ("ColBERTRetriever._retrieve" if how == "sync" else "ColBERTRetriever.aretrieve")
    assert carrier.attributes["openinference.span.kind"] == "RETRIEVER"
    assert figures(carrier.attributes) == found
    assert seconds(carrier.attributes) >= SECONDS
    by_id: dict[int, ReadableSpan] = {span.context.span_id: span for span in finished}
    top = carrier
    while top.parent is not None:
        top = by_id[top.parent.span_id]
    assert top.name == f"RetrieverQueryEngine.{'query' if how == 'sync' else 'aquery'}"
    assert "Unhandled event" not in caplog.text


async def test_spans_of_others_are_left_alone(stanford: dict[str, Any], nodes: list[NodeWithScore], rerank: Rerank):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("a web server").start_as_current_span("POST /ask"):
        await rerank(ColBERTRerank(**stanford), nodes)
    assert [(span.name, dict(span.attributes)) for span in exporter.get_finished_spans()] == [("POST /ask", {})]


def documents(attributes: Any, side: str) -> list[tuple[str, float]]:
    """Ids and scores of a reranker's documents, from the flat attributes of its span."""
    prefix, found = f"reranker.{side}_documents", []
    while f"{prefix}.{len(found)}.document.id" in attributes:
        document = f"{prefix}.{len(found)}.document"
        found.append((attributes[f"{document}.id"], attributes[f"{document}.score"]))
    return found
