"""ColBERTRerank: what is LlamaIndex's own, and the reranker inside what LlamaIndex users put it into."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MetadataMode,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.retrievers.bm25 import BM25Retriever

from adapters.drivers import QUERY, TEXTS, LlamaIndex
from colbert_integrations.errors import InputError
from colbert_integrations.llama_index import ColBERTRerank
from colbert_integrations.llama_index.nodes import node_text


class Listed(BaseRetriever):
    """Finds the same nodes whatever the query."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self.nodes)


@pytest.fixture
def reranker(stanford: dict[str, Any]) -> ColBERTRerank:
    return ColBERTRerank(**stanford, top_n=2)


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    # BM25 and fusion rate equal texts as one, so none here.
    return LlamaIndex().items(list(dict.fromkeys(TEXTS)))


@pytest.fixture
def best(reranker: ColBERTRerank, nodes: list[NodeWithScore]) -> list[tuple[str, float]]:
    """What the reranker gives when it is called by hand."""
    return read(reranker.postprocess_nodes(nodes, query_str=QUERY))


def read(nodes: list[NodeWithScore]) -> list[tuple[str, float]]:
    return [(node.node_id, node.score) for node in nodes]


def one(reranker: ColBERTRerank, node: BaseNode, query: str = QUERY) -> float:
    """The score of a single node."""
    [ranked] = reranker.postprocess_nodes([NodeWithScore(node=node)], query_str=query)
    return ranked.score


# ------------------------------------------------------------------------------------------------------------- fields


def test_is_a_postprocessor_of_its_own_name_that_returns_five_nodes(stanford: dict[str, Any]):
    assert BaseNodePostprocessor.__name__ in [base.__name__ for base in ColBERTRerank.__mro__]
    assert ColBERTRerank.class_name() == "ColBERTRerank"
    assert len(ColBERTRerank(**stanford).postprocess_nodes(LlamaIndex().items(TEXTS), query_str=QUERY)) == 5


def test_output_is_json(reranker: ColBERTRerank, nodes: list[NodeWithScore]):
    for node in reranker.postprocess_nodes(nodes, query_str=QUERY):
        assert json.loads(node.to_json())["score"] == node.score


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (MetadataMode.NONE, "lions"),
        (MetadataMode.EMBED, "city: paris\n\nlions"),
        (MetadataMode.LLM, "year: 7\n\nlions"),
        (MetadataMode.ALL, "city: paris\nyear: 7\n\nlions"),
    ],
)
def test_metadata_mode_decides_what_is_scored(stanford: dict[str, Any], mode: MetadataMode, text: str):
    node = TextNode(text="lions", metadata={"city": "paris", "year": 7})
    node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys = ["year"], ["city"]
    reranker = ColBERTRerank(**stanford, metadata_mode=mode)
    assert one(reranker, node) == pytest.approx(one(reranker, TextNode(text=text)), abs=1e-6)


def test_metadata_are_scored_as_they_are_embedded(stanford: dict[str, Any]):
    node = TextNode(text="lions", metadata={"city": "paris"})
    reranker = ColBERTRerank(**stanford)
    assert reranker.metadata_mode is MetadataMode.EMBED
    assert one(reranker, node) != pytest.approx(one(reranker, TextNode(text="lions")), abs=1e-4)


@pytest.mark.parametrize("mode", ["embed", MetadataMode.EMBED])
def test_metadata_mode_may_be_a_string(stanford: dict[str, Any], mode: str | MetadataMode):
    assert ColBERTRerank(**stanford, metadata_mode=mode).metadata_mode is MetadataMode.EMBED


@pytest.mark.parametrize(
    "node",
    [
        ImageNode(metadata={"caption": "paris"}),
        ImageNode(image_url="file.png"),
        IndexNode(text="lions", index_id="x"),
        Document(text="lions"),
    ],
    ids=["image with caption", "image alone", "index", "document"],
)
def test_nodes_of_other_kinds_are_scored(reranker: ColBERTRerank, node: BaseNode):
    assert 0 <= one(reranker, node) <= 1


def test_a_caption_counts(reranker: ColBERTRerank):
    caption = one(reranker, ImageNode(metadata={"caption": "paris"}), "caption: paris")
    assert caption > one(reranker, ImageNode(), "caption: paris")


# -------------------------------------------------------------------------------------------------------------- query


@pytest.mark.parametrize("query_bundle", [None, "a string", QueryBundle(None)])
async def test_a_query_that_is_missing_is_an_error(missing: dict[str, Any], query_bundle: Any):
    reranker, nodes = ColBERTRerank(**missing), LlamaIndex().items(TEXTS)
    for given in (nodes, []):
        with pytest.raises(InputError, match="query"):
            reranker.postprocess_nodes(given, query_bundle)
        with pytest.raises(InputError, match="query"):
            await reranker.apostprocess_nodes(given, query_bundle)


def test_without_any_query_the_message_is_the_frameworks_own(reranker: ColBERTRerank, nodes: list[NodeWithScore]):
    with pytest.raises(ValueError, match="Missing query bundle in extra info"):
        reranker.postprocess_nodes(nodes)


def test_a_bundle_is_ranked_by_its_query_string(
    reranker: ColBERTRerank, nodes: list[NodeWithScore], best: list[tuple[str, float]]
):
    # As HyDE makes it: what a retriever embeds is an answer that a model made up.
    bundle = QueryBundle(QUERY, custom_embedding_strs=["lions and bread", QUERY])
    assert read(reranker.postprocess_nodes(nodes, bundle)) == best


# ---------------------------------------------------------------------------------------------------- retrieval scores


def test_retrieval_score_survives_two_passes_in_copies(stanford: dict[str, Any], nodes: list[NodeWithScore]):
    reranker = ColBERTRerank(**stanford, keep_retrieval_score=True)
    before = [node.model_dump() for node in nodes]
    once = reranker.postprocess_nodes(nodes, query_str=QUERY)
    twice = reranker.postprocess_nodes(once, query_str=QUERY)
    assert [node.metadata["retrieval_score"] for node in once + twice] == [0.25] * 10
    assert read(twice) == read(once)
    assert [node.model_dump() for node in nodes] == before
    assert "retrieval_score" not in json.dumps(before)


def test_retrieval_score_is_kept_out_of_what_llm_and_embedding_see(stanford: dict[str, Any]):
    node = TextNode(text="lions", metadata={"city": "paris"}, excluded_llm_metadata_keys=["city"])
    [ranked] = ColBERTRerank(**stanford, keep_retrieval_score=True).postprocess_nodes(
        [NodeWithScore(node=node, score=0.5)], query_str=QUERY
    )
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert ranked.node.get_content(mode) == node.get_content(mode)
    assert ranked.metadata == {"city": "paris", "retrieval_score": 0.5}
    assert node.excluded_llm_metadata_keys == ["city"]


def test_a_second_stage_does_not_score_what_the_first_one_kept(stanford: dict[str, Any]):
    node = TextNode(text="lions", metadata={"city": "paris"})
    first = ColBERTRerank(**stanford, keep_retrieval_score=True, explain=True)
    kept = first.postprocess_nodes([NodeWithScore(node=node, score=0.5)], query_str=QUERY)
    every = ColBERTRerank(**stanford, metadata_mode=MetadataMode.ALL)
    fresh = every.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert every.postprocess_nodes(kept, query_str=QUERY)[0].score == fresh[0].score
    # A number of the user's own under that name is metadata like any other.
    own = TextNode(text="lions", metadata={"city": "paris", "retrieval_score": 0.5})
    assert node_text(own, MetadataMode.ALL) == own.get_content(MetadataMode.ALL)
    for side in ("embed", "llm"):  # also where one of the two does not see it
        own = TextNode(text="lions", metadata={"retrieval_score": 0.5})
        setattr(own, f"excluded_{side}_metadata_keys", ["retrieval_score"])
        assert node_text(own, MetadataMode.ALL) == "retrieval_score: 0.5\n\nlions"


async def test_no_callback_manager_is_one_without_handlers(stanford: dict[str, Any], nodes: list[NodeWithScore]):
    reranker = ColBERTRerank(**stanford, callback_manager=None)
    expected = read(ColBERTRerank(**stanford).postprocess_nodes(nodes, query_str=QUERY))
    assert read(reranker.postprocess_nodes(nodes, query_str=QUERY)) == expected
    assert read(await reranker.apostprocess_nodes(nodes, query_str=QUERY)) == expected


def test_without_a_wish_for_it_no_retrieval_score_is_kept(reranker: ColBERTRerank, nodes: list[NodeWithScore]):
    assert all(node.metadata == {} for node in reranker.postprocess_nodes(nodes, query_str=QUERY))


def test_a_node_without_a_score_is_ranked(stanford: dict[str, Any]):
    reranker = ColBERTRerank(**stanford, keep_retrieval_score=True)
    [ranked] = reranker.postprocess_nodes([NodeWithScore(node=TextNode(text="lions"))], query_str=QUERY)
    assert ranked.metadata == {"retrieval_score": None}
    assert 0 <= ranked.score <= 1


# ------------------------------------------------------------------------------------------------------------ engines


@pytest.fixture
def engine(reranker: ColBERTRerank, nodes: list[NodeWithScore]) -> Callable[..., RetrieverQueryEngine]:
    """A query engine whose model answers with its prompt, so that the answer shows what the model saw."""

    def make(retriever: BaseRetriever | None = None, **options: Any) -> RetrieverQueryEngine:
        options = {"node_postprocessors": [reranker], "llm": MockLLM(), **options}
        return RetrieverQueryEngine.from_args(retriever or Listed(nodes), **options)

    return make


def assert_answers_from(answer: str, nodes: list[NodeWithScore]) -> None:
    kept = [node.node.text for node in nodes]
    places = [answer.index(text) for text in kept]
    assert places == sorted(places)
    assert not any(text in answer for text in TEXTS if text not in kept)


async def test_in_a_query_engine(engine: Callable[..., RetrieverQueryEngine], best: list[tuple[str, float]]):
    for response in (engine().query(QUERY), await engine().aquery(QUERY)):
        assert read(response.source_nodes) == best
        assert_answers_from(str(response), response.source_nodes)


async def test_in_a_streaming_query_engine(engine: Callable[..., RetrieverQueryEngine], best: list[tuple[str, float]]):
    response = engine(streaming=True).query(QUERY)
    assert isinstance(response, StreamingResponse)
    assert read(response.source_nodes) == best
    assert_answers_from("".join(response.response_gen), response.source_nodes)
    response = await engine(streaming=True).aquery(QUERY)
    assert isinstance(response, AsyncStreamingResponse)
    assert read(response.source_nodes) == best
    assert_answers_from("".join([part async for part in response.async_response_gen()]), response.source_nodes)


async def test_in_a_chat_engine(reranker: ColBERTRerank, nodes: list[NodeWithScore], best: list[tuple[str, float]]):
    # The default memory opens a database and leaves it open.
    memory = ChatMemoryBuffer.from_defaults(token_limit=4000)
    chat = ContextChatEngine.from_defaults(Listed(nodes), llm=MockLLM(), memory=memory, node_postprocessors=[reranker])
    for response in (chat.chat(QUERY), await chat.achat(QUERY)):
        assert read(response.source_nodes) == best


def test_after_bm25(engine: Callable[..., RetrieverQueryEngine], nodes: list[NodeWithScore], best: Any):
    bm25 = BM25Retriever.from_defaults(nodes=[node.node for node in nodes], similarity_top_k=len(nodes))
    assert dict(read(engine(bm25).query(QUERY).source_nodes)) == pytest.approx(dict(best), abs=1e-6)


@pytest.mark.parametrize("use_async", [False, True])
def test_after_fusion_and_before_a_cutoff(
    engine: Callable[..., RetrieverQueryEngine],
    reranker: ColBERTRerank,
    nodes: list[NodeWithScore],
    best: list[tuple[str, float]],
    use_async: bool,
):
    retrievers = [Listed(nodes[:3]), Listed(nodes[1:])]
    fusion = QueryFusionRetriever(
        retrievers, llm=MockLLM(), num_queries=1, similarity_top_k=10, mode="reciprocal_rerank", use_async=use_async
    )
    assert read(engine(fusion).query(QUERY).source_nodes) == best
    assert read(asyncio.run(engine(fusion).aquery(QUERY)).source_nodes) == best
    cutoff = SimilarityPostprocessor(similarity_cutoff=best[0][1] - 1e-6)
    response = engine(fusion, node_postprocessors=[reranker, cutoff]).query(QUERY)
    assert read(response.source_nodes) == best[:1]
