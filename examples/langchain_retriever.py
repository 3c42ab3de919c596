"""LangChain: ColBERT searches Python's language reference in this process; filters, saving, loading."""

import tempfile

from corpus import passages
from langchain_core.documents import Document

from colbert_integrations.langchain import ColBERTRetriever

QUESTION = "why does my default argument keep its value between calls"
ANSWER = "Default parameter values are evaluated from left to right when the function definition is executed."

# What you have: texts, with data about them to filter by. A part of the reference, so that it takes seconds.
documents = [Document(passage.text, metadata={"section": passage.section}) for passage in passages()[200:300]]

# Encodes each once; a second run with the same documents would encode nothing.
retriever = ColBERTRetriever.from_documents(
    documents, model="bundled/all-MiniLM-L6-v2", k=3, score_key="relevance_score"
)

found = retriever.invoke(QUESTION)
print(QUESTION)
for document in found:
    print(
        f"{document.metadata['relevance_score']:.3f}  {document.metadata['section']}: {document.page_content[:70]} ..."
    )

# Conditions are applied before scoring, so there are still three. A function of a document would do as well.
section = found[0].metadata["section"]
elsewhere = retriever.invoke(QUESTION, filter={"section": {"$ne": section}})
print(f"Outside of {section}: " + ", ".join(document.metadata["section"] for document in elsewhere))

with tempfile.TemporaryDirectory() as folder:
    retriever.save(folder)
    loaded = ColBERTRetriever.load(folder, k=3, score_key="relevance_score")
    again = loaded.invoke(QUESTION)
    loaded.index.close()

assert ANSWER in found[0].page_content, "the passage that answers comes first"
assert len(elsewhere) == 3, "a filter takes nothing from k"
assert section not in {document.metadata["section"] for document in elsewhere}, "and holds"
assert again == found, "what was saved finds the same"
print(f"Saved and loaded, {len(retriever.index)} documents give the same answer.")
