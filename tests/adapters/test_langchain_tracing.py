"""ColBERTReranker in traces: a run of its own below the retriever, sync and async, reported once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any

import pytest
import requests
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManager,
    BaseCallbackHandler,
    CallbackManager,
)
from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.config import set_config_context
from langchain_core.tracers.base import AsyncBaseTracer
from langchain_core.tracers.langchain import LangChainTracer
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.tracers.schemas import Run
from langsmith import Client
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from adapters.drivers import QUERY, TEXTS
from adapters.test_langchain import Listed
from colbert_integrations import CallStats, ColBERT, ColBERTError, observing
from colbert_integrations.errors import InputError
from colbert_integrations.langchain import ColBERTReranker, ColBERTRetriever

NAME = "ColBERTReranker"


class Counter(BaseCallbackHandler):
    """Counts what is reported."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_chain_start(self, serialized: Any, inputs: Any, *, name: str = "", **rest: Any) -> None:
        self.seen.append(f"start {name} {inputs['query']}")

    def on_chain_end(self, outputs: Any, **rest: Any) -> None:
        self.seen.append(f"end {len(outputs['documents'])}")

    def on_chain_error(self, error: BaseException, **rest: Any) -> None:
        self.seen.append(f"error {type(error).__name__}")


class AsyncCounter(Counter, AsyncCallbackHandler):
    """The same with coroutines."""

    async def on_chain_start(self, *given: Any, **rest: Any) -> None:
        Counter.on_chain_start(self, *given, **rest)

    async def on_chain_end(self, *given: Any, **rest: Any) -> None:
        Counter.on_chain_end(self, *given, **rest)

    async def on_chain_error(self, *given: Any, **rest: Any) -> None:
        Counter.on_chain_error(self, *given, **rest)


@pytest.fixture
def documents() -> list[Document]:
    return [Document(text, id=f"id-{i}") for i, text in enumerate(TEXTS)]


@pytest.fixture
def retriever(stanford: dict[str, Any], documents: list[Document]) -> ContextualCompressionRetriever:
    base = Listed(documents=documents)
    return ContextualCompressionRetriever(base_compressor=ColBERTReranker(**stanford), base_retriever=base)


async def traced(retriever: ContextualCompressionRetriever, how: str, **config: Any) -> Run:
    """The run tree of one retrieval."""
    collector = RunCollectorCallbackHandler()
    await retrieve(retriever, how, callbacks=[collector], **config)
    [root] = collector.traced_runs
    return root


async def retrieve(retriever: ContextualCompressionRetriever, how: str, **config: Any) -> list[Document]:
    return retriever.invoke(QUERY, config) if how == "sync" else await retriever.ainvoke(QUERY, config)


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_run_tree(retriever: ContextualCompressionRetriever, stanford: dict[str, Any], how: str):
    root = await traced(retriever, how)
    assert [(run.name, run.run_type) for run in root.child_runs] == [("Listed", "retriever"), (NAME, "chain")]
    run = root.child_runs[1]
    assert run.parent_run_id == root.id
    assert run.inputs["query"] == QUERY
    assert run.inputs["documents"] == retriever.base_retriever.documents
    assert run.outputs["documents"] == root.outputs["documents"]
    assert len(run.outputs["documents"]) == 3
    assert run.end_time >= run.start_time
    assert run.extra["metadata"]["colbert.model"] == stanford["model"]
    assert run.extra["metadata"]["colbert.top_n"] == 3
    assert not run.child_runs
    assert run.error is None


class Starts(BaseCallbackHandler):
    """Keeps what is said of a run when it starts."""

    def __init__(self) -> None:
        self.metadata: list[Any] = []

    def on_chain_start(self, *given: Any, metadata: Any, **rest: Any) -> None:
        self.metadata.append(dict(metadata))


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_the_model_is_named_when_the_run_starts(stanford: dict[str, Any], documents: list[Document], how: str):
    reranker, starts = ColBERTReranker(**stanford), Starts()
    if how == "sync":
        reranker.compress_documents(documents, QUERY, [starts])
    else:
        await reranker.acompress_documents(documents, QUERY, [starts])
    [metadata] = starts.metadata
    assert (metadata["colbert.model"], metadata["colbert.top_n"]) == (stanford["model"], 3)


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_tags_and_metadata_of_the_retrieval_reach_the_run(retriever: ContextualCompressionRetriever, how: str):
    root = await traced(retriever, how, tags=["mine"], metadata={"user": 7})
    assert "mine" in root.child_runs[1].tags
    assert root.child_runs[1].extra["metadata"]["user"] == 7


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_an_error_is_recorded_on_the_run_and_raised(missing: dict[str, Any], documents: list[Document], how: str):
    base = Listed(documents=documents)
    retriever = ContextualCompressionRetriever(base_compressor=ColBERTReranker(**missing), base_retriever=base)
    collector = RunCollectorCallbackHandler()
    with pytest.raises(ColBERTError, match="no-such-model"):
        await retrieve(retriever, how, callbacks=[collector])
    run = collector.traced_runs[0].child_runs[1]
    assert run.name == NAME
    assert "no-such-model" in run.error
    assert run.outputs is None or not run.outputs.get("documents")


def as_list(handler: BaseCallbackHandler) -> Any:
    return [handler]


def as_manager(handler: BaseCallbackHandler) -> Any:
    return CallbackManager([handler], inheritable_handlers=[handler])


def as_async_manager(handler: BaseCallbackHandler) -> Any:
    return AsyncCallbackManager([handler], inheritable_handlers=[handler])


@pytest.mark.parametrize("handler", [Counter, AsyncCounter])
@pytest.mark.parametrize("given", [as_list, as_manager, as_async_manager])
async def test_callbacks_of_any_form_hear_of_a_call_once(
    stanford: dict[str, Any], documents: list[Document], handler: type[Counter], given: Any
):
    reranker = ColBERTReranker(**stanford)
    wanted = [f"start {NAME} {QUERY}", "end 3"]
    if given is not as_async_manager:
        counter = handler()
        reranker.compress_documents(documents, QUERY, given(counter))
        assert counter.seen == wanted
    counter = handler()
    await reranker.acompress_documents(documents, QUERY, callbacks=given(counter))
    assert counter.seen == wanted


async def test_callbacks_hear_of_an_error_once(missing: dict[str, Any], documents: list[Document]):
    reranker, counter = ColBERTReranker(**missing), Counter()
    wanted = [f"start {NAME} {QUERY}", "error CheckpointNotFoundError"]
    with pytest.raises(ColBERTError):
        reranker.compress_documents(documents, QUERY, [counter])
    with pytest.raises(ColBERTError):
        await reranker.acompress_documents(documents, QUERY, [counter])
    assert counter.seen == wanted * 2


async def test_an_empty_call_is_a_run_too(missing: dict[str, Any]):
    reranker, counter = ColBERTReranker(**missing), Counter()
    reranker.compress_documents([], QUERY, [counter])
    await reranker.acompress_documents([], QUERY, [counter])
    assert counter.seen == [f"start {NAME} {QUERY}", "end 0"] * 2


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_a_call_that_is_refused_is_no_run(stanford: dict[str, Any], documents: list[Document], how: str):
    reranker, counter = ColBERTReranker(**stanford), Counter()
    wrong: list[Any] = [(documents, 3), (["text"], QUERY)]
    for given in wrong:
        call = (
            reranker.acompress_documents if how == "async" else partial(asyncio.to_thread, reranker.compress_documents)
        )
        with pytest.raises(InputError):
            await call(*given, [counter])
    assert counter.seen == []


async def test_no_callbacks_are_fine(stanford: dict[str, Any], documents: list[Document]):
    reranker = ColBERTReranker(**stanford)
    assert reranker.compress_documents(documents, QUERY, None) == await reranker.acompress_documents(documents, QUERY)


async def test_the_runnable_is_one_run_and_not_two(stanford: dict[str, Any], documents: list[Document]):
    runnable, inputs = ColBERTReranker(**stanford).as_runnable(), {"query": QUERY, "documents": documents}
    collector = RunCollectorCallbackHandler()
    runnable.invoke(inputs, {"callbacks": [collector]})
    await runnable.ainvoke(inputs, {"callbacks": [collector]})
    assert [(run.name, run.child_runs) for run in collector.traced_runs] == [(NAME, [])] * 2


async def test_event_stream_shows_the_run(retriever: ContextualCompressionRetriever):
    events = [event async for event in retriever.astream_events(QUERY, version="v2")]
    ours = [event for event in events if event["name"] == NAME]
    assert [event["event"] for event in ours] == ["on_chain_start", "on_chain_end"]
    assert len(ours[1]["data"]["output"]["documents"]) == 3


def test_tags_and_metadata_of_a_config_around_a_call_reach_its_run(stanford: dict[str, Any], documents: list[Document]):
    collector, reranker = RunCollectorCallbackHandler(), ColBERTReranker(**stanford)
    around = {"callbacks": [collector], "tags": ["mine"], "metadata": {"user": "ada"}}
    with set_config_context(around) as context:  # type: ignore[arg-type]
        context.run(reranker.compress_documents, documents, QUERY)
    [run] = collector.traced_runs
    assert run.tags == ["mine"]
    assert run.extra["metadata"]["user"] == "ada"


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_a_call_within_a_runnable_is_a_run_below_it(
    stanford: dict[str, Any], documents: list[Document], how: str
):
    reranker, collector = ColBERTReranker(**stanford), RunCollectorCallbackHandler()

    async def arerank(query: str) -> list[Document]:
        return list(await reranker.acompress_documents(documents, query))

    runnable = RunnableLambda(lambda query: reranker.compress_documents(documents, query), arerank)
    config: Any = {"callbacks": [collector], "tags": ["mine"], "metadata": {"user": 7}}
    _ = runnable.invoke(QUERY, config) if how == "sync" else await runnable.ainvoke(QUERY, config)
    [root] = collector.traced_runs
    [ours] = root.child_runs
    assert (ours.name, ours.tags, ours.extra["metadata"]["user"]) == (NAME, ["mine"], 7)


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_an_error_of_a_formatter_is_recorded(stanford: dict[str, Any], documents: list[Document], how: str):
    reranker = ColBERTReranker(**stanford, document_formatter=lambda document: document.metadata["no such key"])
    collector = RunCollectorCallbackHandler()
    twin = reranker.acompress_documents if how == "async" else partial(asyncio.to_thread, reranker.compress_documents)
    with pytest.raises(KeyError, match="no such key"):
        await twin(documents, QUERY, [collector])
    [run] = collector.traced_runs
    assert "no such key" in run.error


# -------------------------------------------------------------------------------------------------------------- figures

Metadata = dict[str, Any]


def figures(metadata: Metadata) -> Metadata:
    """What a run's metadata says of the call, without seconds, of which only the names are the same each time."""
    return {name: value for name, value in metadata.items() if name.startswith("colbert.") and not name.endswith("_s")}


def seconds(metadata: Metadata) -> set[str]:
    """The names of seconds that are not 0."""
    return {name for name, value in metadata.items() if name.startswith("colbert.") and name.endswith("_s") and value}


@pytest.fixture
def wanted(stanford: dict[str, Any]) -> Metadata:
    """Figures of a rerank of the common texts, two of which are equal: 33 words, 3 tokens beside, 16 of the query."""
    return expected(
        {"colbert.model": stanford["model"], "colbert.device": "cpu", "colbert.dtype": "float32", "colbert.top_n": 3},
        queries_encoded=1,
        documents_encoded=5,
        tokens_encoded=16 + 33 + 5 * 3,
        batches=1,
        documents_ranked=6,
    )


def expected(about: Metadata, **counts: int) -> Metadata:
    return figures({**CallStats(**counts).as_metadata(), **about})


RERANK_SECONDS = {"colbert.tokenize_s", "colbert.encode_s", "colbert.score_s"}


@pytest.fixture(params=["sync", "async"])
def how(request: pytest.FixtureRequest) -> str:
    return request.param


async def invoke(runnable: Runnable[Any, Any], given: Any, how: str, *handlers: Any, **options: Any) -> Any:
    config = {"callbacks": list(handlers)}
    if how == "sync":
        return runnable.invoke(given, config, **options)
    return await runnable.ainvoke(given, config, **options)


async def test_a_run_below_a_retriever_carries_the_figures(
    retriever: ContextualCompressionRetriever, wanted: Metadata, shared_model: ColBERT, how: str
):
    shared_model._ready()
    run = (await traced(retriever, how)).child_runs[1]
    assert figures(run.extra["metadata"]) == wanted
    assert seconds(run.extra["metadata"]) == RERANK_SECONDS


async def test_figures_stay_on_their_own_run(retriever: ContextualCompressionRetriever, how: str):
    config = {"user": 7}
    root = await traced(retriever, how, metadata=config)
    assert config == {"user": 7}
    assert figures(root.extra["metadata"]) == figures(root.child_runs[0].extra["metadata"]) == {}


async def test_a_runnable_in_a_chain_carries_the_figures(
    stanford: dict[str, Any], documents: list[Document], wanted: Metadata, how: str
):
    chain = (
        RunnableLambda(lambda query: {"query": query, "documents": documents})
        | ColBERTReranker(**stanford).as_runnable()
    )
    collector = RunCollectorCallbackHandler()
    await invoke(chain, QUERY, how, collector)
    [ours] = [run for run in collector.traced_runs[0].child_runs if run.name == NAME]
    assert figures(ours.extra["metadata"]) == wanted


@pytest.mark.parametrize("options", [{}, {"k": 1}])
async def test_a_retrieval_carries_the_figures(
    shared_model: ColBERT, documents: list[Document], how: str, options: dict[str, Any]
):
    ours = ColBERTRetriever(model=shared_model, documents=documents, k=2)
    collector = RunCollectorCallbackHandler()
    await invoke(ours, QUERY, how, collector, **options)
    metadata = collector.traced_runs[0].extra["metadata"]
    about = {**shared_model.about(), "colbert.k": options.get("k", 2)}
    assert figures(metadata) == expected(about, queries_encoded=1, tokens_encoded=16, batches=1)
    assert seconds(metadata) == RERANK_SECONDS


async def test_a_run_that_fails_carries_what_was_done(
    checkpoint: Callable[[str], Any], documents: list[Document], how: str
):
    def failing(sequences: Any) -> Any:
        raise RuntimeError("no device")

    model = ColBERT(checkpoint("stanford"), device="cpu", forward=failing)
    base = Listed(documents=documents)
    retriever = ContextualCompressionRetriever(base_compressor=ColBERTReranker(model=model), base_retriever=base)
    collector = RunCollectorCallbackHandler()
    with pytest.raises(RuntimeError, match="no device"):
        await retrieve(retriever, how, callbacks=[collector])
    run = collector.traced_runs[0].child_runs[1]
    assert "no device" in run.error
    assert figures(run.extra["metadata"]) == expected({**model.about(), "colbert.top_n": 3}, documents_ranked=6)
    assert observing._CURRENT.get() is None


async def test_an_impossible_setting_is_an_error_of_each_run(
    stanford: dict[str, Any], documents: list[Document], how: str
):
    base = Listed(documents=documents)
    reranker = ColBERTReranker(**{**stanford, "dtype": "float16"})
    retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=base)
    for _ in range(2):
        collector = RunCollectorCallbackHandler()
        with pytest.raises(ColBERTError, match="float16"):
            await retrieve(retriever, how, callbacks=[collector])
        run = collector.traced_runs[0].child_runs[1]
        assert "unusably slow" in run.error
        assert "During handling" not in run.error  # of it nothing else went wrong
        about = {"colbert.model": stanford["model"], "colbert.top_n": 3}
        assert figures(run.metadata) == expected(about)


async def test_an_empty_call_knows_its_model_and_loads_nothing(missing: dict[str, Any], how: str):
    collector, reranker = RunCollectorCallbackHandler(), ColBERTReranker(**missing, top_n=2)
    if how == "sync":
        reranker.compress_documents([], QUERY, [collector])
    else:
        await reranker.acompress_documents([], QUERY, [collector])
    about = {"colbert.model": missing["model"], "colbert.top_n": 2}
    assert figures(collector.traced_runs[0].extra["metadata"]) == expected(about)


class AsyncCollector(AsyncBaseTracer):
    """A tracer with coroutines; keeps the metadata of runs that ended."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Metadata] = []

    async def _persist_run(self, run: Run) -> None:
        self.seen.append(dict(run.metadata))


class AsyncCopier(AsyncCollector):
    """One that has a copy of the metadata that a run begins with."""

    async def on_chain_start(self, *given: Any, metadata: Metadata | None = None, **rest: Any) -> None:
        await super().on_chain_start(*given, metadata=dict(metadata or {}), **rest)


@pytest.mark.parametrize("tracer", [AsyncCollector, AsyncCopier])
async def test_an_async_tracer_gets_the_figures(
    stanford: dict[str, Any], documents: list[Document], wanted: Metadata, tracer: type[AsyncCollector]
):
    collector, reranker = tracer(), ColBERTReranker(**stanford)
    await reranker.acompress_documents(documents, QUERY, [collector])
    await invoke(reranker.as_runnable(), {"query": QUERY, "documents": documents}, "async", collector)
    assert [figures(metadata) for metadata in collector.seen] == [wanted] * 2


async def test_the_stream_of_events_carries_the_figures(retriever: ContextualCompressionRetriever, wanted: Metadata):
    events = [event async for event in retriever.astream_events(QUERY, version="v2")]
    [end] = [event for event in events if event["name"] == NAME and event["event"] == "on_chain_end"]
    assert figures(end["metadata"]) == wanted


async def test_so_does_that_of_the_runnable_in_a_chain(
    stanford: dict[str, Any], documents: list[Document], wanted: Metadata
):
    start = RunnableLambda(lambda query: {"query": query, "documents": documents})
    chain = start | ColBERTReranker(**stanford).as_runnable()
    for _ in range(2):
        events = [event async for event in chain.astream_events(QUERY, version="v2")]
        [end] = [event for event in events if event["name"] == NAME and event["event"] == "on_chain_end"]
        assert figures(end["metadata"]) == wanted


class Session(requests.Session):
    """A connection to LangSmith that ends here; keeps what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        if options.get("data"):
            self.sent.append((method, json.loads(options["data"])))
        response = requests.Response()
        response.status_code, response._content = 200, b"{}"
        return response


@pytest.mark.skipif(
    "metadata" not in signature(LangChainTracer).parameters, reason="needs a langchain-core whose tracer takes metadata"
)
@pytest.mark.parametrize("metadata", [None, {"tenant": "a"}])  # the tracer's own: it copies those of runs, then
async def test_langsmith_is_sent_the_figures_at_the_end_of_a_run(
    retriever: ContextualCompressionRetriever, wanted: Metadata, how: str, metadata: Metadata | None
):
    session = Session()
    client = Client(api_url="http://localhost:1", api_key="none", session=session, auto_batch_tracing=False)
    await retrieve(retriever, how, callbacks=[LangChainTracer(client=client, metadata=metadata)])
    ours = [(method, run["extra"]["metadata"]) for method, run in session.sent if run["name"] == NAME]
    assert [method for method, _ in ours] == ["POST", "PATCH"]
    assert figures(ours[1][1]) == wanted
    assert seconds(ours[1][1]) >= RERANK_SECONDS
    assert ours[1][1].get("tenant") == (metadata or {}).get("tenant")


# ------------------------------------------------------------------------------------------------------ OpenInference


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    yield exporter
    instrumentor.uninstrument()
    provider.shutdown()


async def test_openinference_shows_a_span_below_the_retriever(
    spans: InMemorySpanExporter, retriever: ContextualCompressionRetriever, wanted: Metadata, how: str
):
    await traced(retriever, how)
    named: dict[str, ReadableSpan] = {span.name: span for span in spans.get_finished_spans()}
    assert len(named) == len(spans.get_finished_spans()) == 3
    ours, root = named[NAME], named["ContextualCompressionRetriever"]
    assert ours.attributes["openinference.span.kind"] == "CHAIN"
    assert ours.parent.span_id == root.context.span_id
    assert QUERY in ours.attributes["input.value"]
    assert "capital of france" in ours.attributes["output.value"]
    metadata = json.loads(ours.attributes["metadata"])
    assert figures(metadata) == wanted
    assert seconds(metadata) >= RERANK_SECONDS
    assert "colbert.encode_s" not in json.loads(root.attributes.get("metadata", "{}"))


async def test_openinference_shows_the_figures_of_a_retrieval_in_a_chain(
    spans: InMemorySpanExporter, shared_model: ColBERT, documents: list[Document], how: str
):
    ours = ColBERTRetriever(model=shared_model, documents=documents, k=2)
    await invoke(ours | RunnableLambda(len), QUERY, how)
    named: dict[str, ReadableSpan] = {span.name: span for span in spans.get_finished_spans()}
    assert named["ColBERTRetriever"].attributes["openinference.span.kind"] == "RETRIEVER"
    assert named["ColBERTRetriever"].parent.span_id == named["RunnableSequence"].context.span_id
    metadata = json.loads(named["ColBERTRetriever"].attributes["metadata"])
    about = {**shared_model.about(), "colbert.k": 2}
    assert figures(metadata) == expected(about, queries_encoded=1, tokens_encoded=16, batches=1)
    assert seconds(metadata) == RERANK_SECONDS
