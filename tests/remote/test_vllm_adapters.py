"""The adapters of both frameworks with a model on a server: the same documents and scores as with one here."""

from __future__ import annotations

import pickle

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from colbert_integrations import ColBERTIndex
from colbert_integrations.langchain import ColBERTReranker
from colbert_integrations.langchain import ColBERTRetriever as LangChainRetriever
from colbert_integrations.llama_index import ColBERTRerank
from colbert_integrations.llama_index import ColBERTRetriever as LlamaIndexRetriever

TEXTS = ["bread and flour", "paris is the capital of france", "the lazy dog runs over roads", "lions"]
QUERY = "what is the capital of france"


@pytest.fixture(params=["stanford", "pylate_noexp"])
def models(request: pytest.FixtureRequest, remote, local):
    return remote(request.param), local(request.param)


def assert_same(found, wanted) -> None:
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-4)


async def test_langchain_reranks(models) -> None:
    def read(documents):
        return [(document.page_content, document.metadata["relevance_score"]) for document in documents]

    rerankers = [ColBERTReranker(model=model, top_n=3) for model in models]
    documents = [Document(text) for text in TEXTS]
    found, wanted = (read(reranker.compress_documents(documents, QUERY)) for reranker in rerankers)
    assert_same(found, wanted)
    assert_same(read(await rerankers[0].acompress_documents(documents, QUERY)), wanted)


async def test_llama_index_reranks(models) -> None:
    def read(nodes):
        return [(node.node.text, node.score) for node in nodes]

    rerankers = [ColBERTRerank(model=model, top_n=3) for model in models]
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    found, wanted = (read(reranker.postprocess_nodes(nodes, query_str=QUERY)) for reranker in rerankers)
    assert_same(found, wanted)
    assert_same(read(await rerankers[0].apostprocess_nodes(nodes, query_str=QUERY)), wanted)


async def test_langchain_retrieves(models) -> None:
    retrievers = [
        LangChainRetriever(model=model, documents=[Document(text) for text in TEXTS], k=2) for model in models
    ]
    found, wanted = ([document.page_content for document in retriever.invoke(QUERY)] for retriever in retrievers)
    assert found == wanted == [document.page_content for document in await retrievers[0].ainvoke(QUERY)]


async def test_llama_index_retrieves(models) -> None:
    retrievers = [
        LlamaIndexRetriever(model=model, nodes=[TextNode(text=text) for text in TEXTS], similarity_top_k=2)
        for model in models
    ]
    found, wanted = ([(n.node.text, n.score) for n in retriever.retrieve(QUERY)] for retriever in retrievers)
    assert_same(found, wanted)
    assert_same([(n.node.text, n.score) for n in await retrievers[0].aretrieve(QUERY)], wanted)


def test_a_pickled_reranker_still_asks_the_server(double, folder) -> None:
    from colbert_integrations import ColBERT
    from colbert_integrations.vllm import VLLMForward

    model = ColBERT(folder("stanford"), device="cpu", forward=VLLMForward(double.url))
    reranker = pickle.loads(pickle.dumps(ColBERTReranker(model=model)))
    reranker.compress_documents([Document(text) for text in TEXTS], QUERY)
    assert double.count("/pooling") == 2
    reranker.close()


def test_an_index_made_on_a_server_is_searched_by_a_model_here(models, tmp_path) -> None:
    remote, local = models
    index = ColBERTIndex(remote)
    index.add(TEXTS)
    index.save(tmp_path / "index")
    assert remote.fingerprint == local.fingerprint
    hits = ColBERTIndex.load(tmp_path / "index", local).search(QUERY, k=4)
    assert [hit.text for hit in hits] == [hit.text for hit in index.search(QUERY, k=4)]
