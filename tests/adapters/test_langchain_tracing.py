"""ColBERTReranker in traces: a run of its own below the retriever, sync and async, reported once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManager,
    BaseCallbackHandler,
    CallbackManager,
)
from langchain_core.documents import Document
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.tracers.schemas import Run
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from adapters.drivers import QUERY, TEXTS
from adapters.test_langchain import Listed
from colbert_integrations import ColBERTError
from colbert_integrations.langchain import ColBERTReranker

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


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_openinference_shows_a_span_below_the_retriever(
    spans: InMemorySpanExporter, retriever: ContextualCompressionRetriever, how: str
):
    await traced(retriever, how)
    named: dict[str, ReadableSpan] = {span.name: span for span in spans.get_finished_spans()}
    assert len(named) == len(spans.get_finished_spans()) == 3
    ours, root = named[NAME], named["ContextualCompressionRetriever"]
    assert ours.attributes["openinference.span.kind"] == "CHAIN"
    assert ours.parent.span_id == root.context.span_id
    assert QUERY in ours.attributes["input.value"]
    assert "capital of france" in ours.attributes["output.value"]
