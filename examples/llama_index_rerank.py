"""LlamaIndex: BM25 finds candidates in Python's language reference, and one argument makes ColBERT rank them."""

from corpus import passages
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.retrievers.bm25 import BM25Retriever

from colbert_integrations.llama_index import ColBERTRerank

QUESTION = "why does my default argument keep its value between calls"
ANSWER = "Default parameter values are evaluated from left to right when the function definition is executed."

# What you have: any retriever. It should give more candidates than you want to keep.
nodes = [TextNode(text=passage.text, metadata={"section": passage.section}) for passage in passages()]
retriever = BM25Retriever(nodes=nodes, similarity_top_k=40)
before = retriever.retrieve(QUESTION)

engine = RetrieverQueryEngine.from_args(
    retriever,
    llm=MockLLM(),  # yours goes here
    # The line to add.
    node_postprocessors=[ColBERTRerank(model="bundled/all-MiniLM-L6-v2", top_n=3)],
)

after = engine.query(QUESTION).source_nodes

print(QUESTION)
for node in after:
    print(f"{node.score:.3f}  {node.metadata['section']}: {node.text[:70]} ...")

places = [place for place, node in enumerate(before, start=1) if ANSWER in node.text]
assert ANSWER in after[0].text, "the passage that answers comes first"
assert min(places, default=0) > 3, "which BM25 alone would not have shown"
print(f"The answer was at place {places[0]}, and is at 1 now.")
