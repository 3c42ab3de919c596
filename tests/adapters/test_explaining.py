"""explain=True, the same in both frameworks: plain data in a copy's metadata, and nothing at all when it is off."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.documents import Document
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from adapters.drivers import QUERY, TEXTS, LangChain, LlamaIndex
from adapters.test_ranking import FILLER
from colbert_integrations import ColBERT, ColBERTIndex, Explanation, MemoryStore, TruncationWarning
from colbert_integrations import langchain as for_langchain
from colbert_integrations import llama_index as for_llama_index

Driver = LangChain | LlamaIndex

KEY = "explanation"
EXPLAINING = [(ColBERT, "explain_pairs"), (Explanation, "as_dict")]


def explanation(ranked: Any) -> Explanation:
    return Explanation.from_dict(ranked.metadata[KEY])


def same(found: Explanation, wanted: Explanation) -> None:
    assert (found.query, found.document) == (wanted.query, wanted.document)
    assert [match.document_token for match in found.matches] == [match.document_token for match in wanted.matches]
    assert found.score == pytest.approx(wanted.score, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------- rerankers


def test_off_it_adds_nothing(rank: Callable):
    assert all(KEY not in ranked.metadata for ranked in rank(QUERY, TEXTS))


def test_each_result_is_explained(rank: Callable, tiny: ColBERT):
    plain = rank(QUERY, TEXTS, normalize_scores=False)
    output = rank(f"\n {QUERY} ", TEXTS, normalize_scores=False, explain=True)
    assert [(r.id, r.score) for r in output] == [(r.id, r.score) for r in plain]
    for ranked in output:
        same(explanation(ranked), tiny.explain(QUERY, ranked.text))
        assert explanation(ranked).score == pytest.approx(ranked.score, abs=1e-5)
        assert [*ranked.metadata] == [KEY]


def test_only_what_comes_back_is_explained(driver: Driver, shared_model: ColBERT, monkeypatch: pytest.MonkeyPatch):
    explained: list[int] = []
    explain_pairs = ColBERT.explain_pairs
    monkeypatch.setattr(
        ColBERT, "explain_pairs", lambda self, pairs: explained.append(len(pairs)) or explain_pairs(self, pairs)
    )
    for fields, count in (({"explain": True}, [2]), ({}, [])):
        reranker = driver.Reranker(model=shared_model, top_n=2, **fields)
        assert len(driver.rerank(reranker, driver.items(TEXTS), QUERY)) == 2
        assert explained == count
        explained.clear()
    assert driver.rerank(driver.Reranker(model=shared_model, explain=True), [], QUERY) == []


def test_it_is_plain_data(rank: Callable):
    for ranked in rank(QUERY, [*TEXTS, "", "東京 👨‍👩‍👧"], explain=True):
        said = ranked.metadata[KEY]
        assert json.loads(json.dumps(said, allow_nan=False)) == said
        serializer = JsonPlusSerializer()
        assert serializer.loads_typed(serializer.dumps_typed(said)) == said
        assert Explanation.from_dict(said)._repr_html_().startswith("<div")


def test_results_survive_the_frameworks_own_serialisers(stanford: dict[str, Any]):
    [document] = for_langchain.ColBERTReranker(**stanford, explain=True).compress_documents([Document("lions")], QUERY)
    serializer = JsonPlusSerializer()
    assert serializer.loads_typed(serializer.dumps_typed(document)) == document
    [node] = for_llama_index.ColBERTRerank(**stanford, explain=True).postprocess_nodes(
        [NodeWithScore(node=TextNode(text="lions"))], query_str=QUERY
    )
    assert TextNode.from_dict(json.loads(node.to_json())["node"]) == node.node


def test_inputs_stay_as_they_are(driver: Driver, stanford: dict[str, Any]):
    metadata = {"source": "a", KEY: {"old": [1]}}
    items = driver.items([*TEXTS, TEXTS[0]], metadata)
    before = copy.deepcopy(items)
    reranker = driver.Reranker(**stanford, explain=True)
    output = driver.read(driver.rerank(reranker, items, QUERY))
    asyncio.run(driver.arerank(reranker, items, QUERY))
    assert [item.model_dump() for item in items] == [item.model_dump() for item in before]
    assert metadata == {"source": "a", KEY: {"old": [1]}}
    assert all(ranked.metadata["source"] == "a" and explanation(ranked) for ranked in output)


def test_equal_results_do_not_share_their_data(driver: Driver, stanford: dict[str, Any]):
    reranker = driver.Reranker(**stanford, explain=True)
    one, other = driver.read(driver.rerank(reranker, driver.items(["lions", "lions"]), QUERY))
    one.metadata[KEY]["matches"].clear()
    assert other.metadata[KEY]["matches"]


def test_a_second_stage_explains_anew_and_does_not_score_the_first_explanation(
    driver: Driver, stanford: dict[str, Any], tiny: ColBERT
):
    first = driver.rerank(driver.Reranker(**stanford, top_n=None, explain=True), driver.items(TEXTS), "the lazy dog")
    fields = {"metadata_mode": MetadataMode.ALL} if isinstance(driver, LlamaIndex) else {}
    for explain in (True, False):
        second = driver.Reranker(**stanford, top_n=None, explain=explain, normalize_scores=False, **fields)
        for ranked in driver.read(driver.rerank(second, first, QUERY)):
            assert ranked.score == pytest.approx(tiny.rank(QUERY, [ranked.text])[0].score, abs=1e-5)
            assert explanation(ranked).query == (QUERY if explain else "the lazy dog")


def test_data_of_the_users_own_under_that_key_is_scored_as_ever(stanford: dict[str, Any], tiny: ColBERT):
    node = TextNode(text="lions", metadata={KEY: "paris is a capital"})
    [ranked] = for_llama_index.ColBERTRerank(**stanford, normalize_scores=False).postprocess_nodes(
        [NodeWithScore(node=node)], query_str=QUERY
    )
    assert ranked.score == pytest.approx(tiny.rank(QUERY, [f"{KEY}: paris is a capital\n\nlions"])[0].score, abs=1e-5)
    assert ranked.node.metadata == {KEY: "paris is a capital"}


def test_what_was_cut_is_warned_of_once(rank: Callable):
    with pytest.warns(TruncationWarning) as caught:
        output = rank("capital " * 40, [FILLER, "lions"], explain=True)
    assert len(caught) == 1
    assert explanation(output[0]).query_cut < 320


def test_the_text_that_was_scored_is_explained(stanford: dict[str, Any]):
    document = Document("lions", metadata={"title": "paris"})
    rerankers = {
        "title: paris\nlions": for_langchain.ColBERTReranker(**stanford, explain=True, metadata_fields=["title"]),
        "the lions of paris": for_langchain.ColBERTReranker(
            **stanford, explain=True, document_formatter=lambda document: "the lions of paris"
        ),
    }
    for text, reranker in rerankers.items():
        [ranked] = reranker.compress_documents([document], "paris")
        assert explanation(ranked).document == text
        tokens = [match.document_token for match in explanation(ranked).matches]
        cuts = {(text[slice(*token.span)], token.text.removeprefix("##")) for token in tokens if token.span}
        assert all(cut == spelt for cut, spelt in cuts)
        assert cuts
    node = TextNode(text="lions", metadata={"title": "paris"})
    for mode, text in ((MetadataMode.EMBED, "title: paris\n\nlions"), (MetadataMode.NONE, "lions")):
        reranker = for_llama_index.ColBERTRerank(**stanford, explain=True, metadata_mode=mode)
        [ranked] = reranker.postprocess_nodes([NodeWithScore(node=node)], query_str="paris")
        assert explanation(ranked).document == text


def test_in_llama_index_neither_llm_nor_embedding_sees_it(stanford: dict[str, Any]):
    node = TextNode(text="lions", metadata={"title": "paris"}, excluded_llm_metadata_keys=["title"])
    reranker = for_llama_index.ColBERTRerank(**stanford, explain=True, keep_retrieval_score=True)
    ranked = [NodeWithScore(node=node, score=0.5)]
    for _ in range(2):
        ranked = reranker.postprocess_nodes(ranked, query_str=QUERY)
    [once] = ranked
    assert once.node.excluded_llm_metadata_keys == ["title", "retrieval_score", KEY]
    assert once.node.excluded_embed_metadata_keys == ["retrieval_score", KEY]
    assert once.node.metadata["retrieval_score"] == 0.5
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert once.node.get_content(metadata_mode=mode) == node.get_content(metadata_mode=mode)


def test_a_stage_with_an_index_finds_the_texts_of_an_explained_one(driver: Driver, shared_model: ColBERT):
    index = ColBERTIndex(shared_model, MemoryStore("float32"))
    index.add(TEXTS, ids=[f"id-{place}" for place in range(len(TEXTS))])
    reranker = driver.Reranker(index=index, top_n=None, explain=True)
    first = driver.rerank(reranker, driver.items(TEXTS), QUERY)
    for ranked in driver.read(first):
        same(explanation(ranked), shared_model.explain(QUERY, ranked.text))
    encoded: list[int] = []
    plain = driver.Reranker(index=index, top_n=None)
    encode = type(shared_model._ready()).encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(shared_model._ready()),
            "encode",
            lambda self, texts, side, **options: encoded.append(len(texts)) or encode(self, texts, side, **options),
        )
        second = driver.read(driver.rerank(plain, first, QUERY))
    assert encoded == [0]  # the query goes along
    assert [ranked.score for ranked in second] == pytest.approx([r.score for r in driver.read(first)], abs=1e-5)


def test_langchains_rerank_says_it_too(stanford: dict[str, Any], tiny: ColBERT):
    reranker = for_langchain.ColBERTReranker(**stanford, explain=True)
    entries = reranker.rerank(["lions", Document("paris")], "paris", top_n=1)
    assert entries == asyncio.run(reranker.arerank(["lions", Document("paris")], "paris", top_n=1))
    same(Explanation.from_dict(entries[0][KEY]), tiny.explain("paris", "paris"))
    assert entries[0].keys() == {"index", "relevance_score", KEY}
    [document] = reranker.as_runnable().invoke({"query": "paris", "documents": [Document("paris")]})
    assert explanation(document).document == "paris"


def test_two_stages_of_a_pipeline(stanford: dict[str, Any]):
    stages = [for_langchain.ColBERTReranker(**stanford, top_n=n, explain=True) for n in (3, 1)]
    pipeline = DocumentCompressorPipeline(transformers=stages)
    [document] = pipeline.compress_documents([Document(text) for text in TEXTS], QUERY)
    assert explanation(document).query == QUERY


@pytest.mark.parametrize("where", EXPLAINING, ids=["explain_pairs", "as_dict"])
async def test_the_event_loop_goes_on(
    driver: Driver, shared_model: ColBERT, off_loop: Callable, monkeypatch: pytest.MonkeyPatch, where: Any
):
    monkeypatch.setattr(*where, off_loop(getattr(*where)))
    assert await driver.arerank(driver.Reranker(model=shared_model, explain=True), driver.items(TEXTS), QUERY)


# --------------------------------------------------------------------------------------------------------- retrievers


def langchain_retriever(model: ColBERT, **fields: Any) -> Any:
    documents = [Document(text, id=f"id-{place}", metadata={"n": place}) for place, text in enumerate(TEXTS)]
    return for_langchain.ColBERTRetriever(model=model, documents=documents, k=3, **fields)


def llama_index_retriever(model: ColBERT, **options: Any) -> Any:
    nodes = [TextNode(text=text, id_=f"id-{place}", metadata={"n": place}) for place, text in enumerate(TEXTS)]
    options = {"metadata_mode": MetadataMode.NONE, **options}
    return for_llama_index.ColBERTRetriever(nodes, model=model, similarity_top_k=3, **options)


@pytest.fixture(params=["sync", "async"])
def retrieved(driver: Driver, shared_model: ColBERT, request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """What a retriever of either framework finds, through either door; documents, or nodes."""
    make = langchain_retriever if isinstance(driver, LangChain) else llama_index_retriever

    def found(query: str, **fields: Any) -> list[Any]:
        retriever = make(shared_model, **fields)
        if isinstance(driver, LangChain):
            return retriever.invoke(query) if request.param == "sync" else asyncio.run(retriever.ainvoke(query))
        nodes = retriever.retrieve(query) if request.param == "sync" else asyncio.run(retriever.aretrieve(query))
        return [node.node for node in nodes]

    return found


def text_of(item: Any) -> str:
    return item.page_content if isinstance(item, Document) else item.text


def test_a_retriever_explains_what_it_finds(retrieved: Callable, tiny: ColBERT):
    plain, explained = retrieved(QUERY), retrieved(f" {QUERY}\n", explain=True)
    assert [text_of(item) for item in plain] == [text_of(item) for item in explained]
    for item, before in zip(explained, plain, strict=True):
        same(explanation(item), tiny.explain(QUERY, text_of(item)))
        assert before.metadata == {"n": item.metadata["n"]}
        assert item.metadata.keys() == {"n", KEY}
        assert json.loads(json.dumps(item.metadata, allow_nan=False)) == item.metadata


@pytest.mark.parametrize("where", EXPLAINING, ids=["explain_pairs", "as_dict"])
async def test_the_event_loop_goes_on_while_a_retriever_explains(
    driver: Driver, shared_model: ColBERT, off_loop: Callable, monkeypatch: pytest.MonkeyPatch, where: Any
):
    monkeypatch.setattr(*where, off_loop(getattr(*where)))
    if isinstance(driver, LangChain):
        assert await langchain_retriever(shared_model, explain=True).ainvoke(QUERY)
    else:
        assert await llama_index_retriever(shared_model, explain=True).aretrieve(QUERY)


def test_what_is_stored_stays_as_it_is(shared_model: ColBERT):
    for retriever, ask in (
        (langchain_retriever(shared_model, explain=True), "invoke"),
        (llama_index_retriever(shared_model, explain=True), "retrieve"),
    ):
        getattr(retriever, ask)(QUERY)
        assert all(KEY not in stored.metadata for stored in retriever.index.get(["id-0", "id-1", "id-2"]))


def test_langchain_explains_a_single_call(shared_model: ColBERT):
    retriever = langchain_retriever(shared_model)
    assert explanation(retriever.invoke(QUERY, explain=True)[0]).query == QUERY
    assert explanation(asyncio.run(retriever.ainvoke(QUERY, explain=True))[0]).query == QUERY
    assert KEY not in retriever.invoke(QUERY)[0].metadata
    assert KEY not in langchain_retriever(shared_model, explain=True).invoke(QUERY, explain=False)[0].metadata


def test_a_retrievers_llm_and_embedding_do_not_see_it(shared_model: ColBERT):
    [node, *_] = llama_index_retriever(shared_model, explain=True).retrieve(QUERY)
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert KEY not in node.node.get_content(metadata_mode=mode)


def test_of_several_queries_the_one_that_counts_is_explained(shared_model: ColBERT, tiny: ColBERT):
    queries = ["bread and flour", "the lazy dog runs", "a lion"]
    retriever = llama_index_retriever(shared_model, explain=True, normalize_scores=False)
    retriever.similarity_top_k = 6
    found = retriever.retrieve(QueryBundle(QUERY, custom_embedding_strs=queries))
    scores = [{query: tiny.explain(query, node.node.text).score for query in queries} for node in found]
    assert [explanation(node.node).query for node in found] == [max(each, key=each.get) for each in scores]
    assert len({explanation(node.node).query for node in found}) > 1


def test_a_node_that_was_explained_is_indexed_without_it(shared_model: ColBERT):
    found = llama_index_retriever(shared_model, explain=True).retrieve(QUERY)
    again = for_llama_index.ColBERTRetriever(
        [node.node for node in found], model=shared_model, metadata_mode=MetadataMode.ALL
    )
    assert KEY not in again.index.get([found[0].node_id])[0].text


def test_a_retrieved_and_reranked_node_has_the_last_explanation(shared_model: ColBERT):
    found = llama_index_retriever(shared_model, explain=True).retrieve("the lazy dog")
    reranked = for_llama_index.ColBERTRerank(model=shared_model, explain=True).postprocess_nodes(found, query_str=QUERY)
    assert {explanation(node.node).query for node in reranked} == {QUERY}
    assert {explanation(node.node).query for node in found} == {"the lazy dog"}
