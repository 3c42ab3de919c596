"""LlamaIndex: ColBERT searches Python's language reference itself, kept on disk and narrowed down by metadata."""

import tempfile

from corpus import passages
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from colbert_integrations.llama_index import ColBERTRerank, ColBERTRetriever

QUESTION = "why does my default argument keep its value between calls"
ANSWER = "Default parameter values are evaluated from left to right when the function definition is executed."

# Only what is about functions, calls and classes, so that the example takes seconds.
chosen = [passage for passage in passages() if any(word in passage.section for word in ("unction", "Call", "lass"))]
nodes = [TextNode(text=passage.text, metadata={"section": passage.section}) for passage in chosen]

with tempfile.TemporaryDirectory() as folder:
    ColBERTRetriever(nodes, model="bundled/all-MiniLM-L6-v2").persist(folder)
    retriever = ColBERTRetriever.from_persist_dir(folder, similarity_top_k=3)

    engine = RetrieverQueryEngine.from_args(
        retriever,
        llm=MockLLM(),  # yours goes here
        # Not needed, but if you rerank: with the index, what it holds is not encoded again.
        node_postprocessors=[ColBERTRerank(index=retriever.index, top_n=3)],
    )
    found = engine.query(QUESTION).source_nodes

    print(QUESTION)
    for node in found:
        print(f"{node.score:.3f}  {node.metadata['section']}: {node.text[:70]} ...")
    assert ANSWER in found[0].text, "the passage that answers comes first"

    section = found[0].metadata["section"]
    elsewhere = MetadataFilters(filters=[MetadataFilter(key="section", value=section, operator="!=")])
    others = ColBERTRetriever(index=retriever.index, filters=elsewhere).retrieve(QUESTION)
    assert section not in {node.metadata["section"] for node in others}

print(f"Found among {len(nodes)} passages.")
