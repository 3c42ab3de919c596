"""LangChain's own conformance classes, whole, on the retriever and the vector store."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document

from adapters.drivers import QUERY, TEXTS
from colbert_integrations import ColBERT
from colbert_integrations.langchain import ColBERTRetriever, ColBERTVectorStore

classes = pytest.importorskip(
    "langchain_tests.integration_tests", reason="needs langchain-tests, which needs langchain-core 1.4"
)


class TestRetriever(classes.RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[ColBERTRetriever]:
        return ColBERTRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        documents = [Document(text, id=f"id-{i}") for i, text in enumerate(TEXTS)]
        return {"model": "bundled/all-MiniLM-L6-v2", "device": "cpu", "documents": documents}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


class TestVectorStore(classes.VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> ColBERTVectorStore:
        return ColBERTVectorStore(ColBERT.shared("bundled/all-MiniLM-L6-v2", device="cpu"))
