"""LangChain: BM25 finds candidates in Python's language reference, and one line makes ColBERT rank them."""

from bm25 import BM25Retriever
from corpus import passages
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document

from colbert_integrations.langchain import ColBERTReranker

QUESTION = "why does my default argument keep its value between calls"
ANSWER = "Default parameter values are evaluated from left to right when the function definition is executed."

# What you have: any retriever. It should give more candidates than you want to keep.
documents = [Document(passage.text, metadata={"section": passage.section}) for passage in passages()]
retriever = BM25Retriever(documents=documents, k=40)
before = retriever.invoke(QUESTION)

# The line to add.
retriever = ContextualCompressionRetriever(
    base_retriever=retriever, base_compressor=ColBERTReranker(model="bundled/all-MiniLM-L6-v2", top_n=3)
)

after = retriever.invoke(QUESTION)

print(QUESTION)
for document in after:
    print(
        f"{document.metadata['relevance_score']:.3f}  {document.metadata['section']}: {document.page_content[:70]} ..."
    )

places = [place for place, document in enumerate(before, start=1) if ANSWER in document.page_content]
assert ANSWER in after[0].page_content, "the passage that answers comes first"
assert min(places, default=0) > 3, "which BM25 alone would not have shown"
assert "relevance_score" not in before[0].metadata, "and what the retriever gave is left as it was"
print(f"The answer was at place {places[0]}, and is at 1 now.")
