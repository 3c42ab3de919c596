"""What ColBERT adds: BM25's ranking of Python's language reference beside ColBERT's, in LangChain and LlamaIndex.

Needs no network. The questions are ones where the two differ; for averages see benchmarks/.
"""

from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap

from bm25 import BM25Retriever as LangChainBM25
from corpus import Passage, passages
from langchain_core.documents import Document
from langchain_core.runnables import RunnablePassthrough
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.retrievers.bm25 import BM25Retriever as LlamaIndexBM25

from colbert_integrations import ColBERT
from colbert_integrations.langchain import ColBERTReranker
from colbert_integrations.llama_index import ColBERTRerank

QUESTIONS = [
    "why does my default argument keep its value between calls",
    "how do I make an object usable in a with statement",
    "remove spaces around text",
]
CANDIDATES, SHOWN, WORDS = 40, 3, 3
COLUMN = 48  # two and a gap fit into 100 characters


@dataclass(frozen=True)
class Hit:
    """A passage that was found, whatever the framework."""

    section: str
    text: str
    score: float


Rankings = tuple[list[Hit], list[Hit]]  # all of BM25's and the best of ColBERT's


class LangChain:
    """A retriever and a reranker, joined into a chain."""

    def __init__(self, corpus: list[Passage], model: ColBERT) -> None:
        documents = [Document(passage.text, metadata={"section": passage.section}) for passage in corpus]
        self.retriever = LangChainBM25(documents=documents, k=CANDIDATES)
        reranker = ColBERTReranker(model=model, top_n=SHOWN)
        self.chain = {"query": RunnablePassthrough(), "documents": self.retriever} | reranker.as_runnable()

    def rankings(self, question: str) -> Rankings:
        """Ask the retriever alone, then the chain."""
        before, after = self.retriever.invoke(question), self.chain.invoke(question)
        return [self._hit(found, "bm25_score") for found in before], [self._hit(found) for found in after]

    def _hit(self, document: Document, score: str = "relevance_score") -> Hit:
        return Hit(document.metadata["section"], document.page_content, document.metadata[score])


class LlamaIndex:
    """A retriever and a node postprocessor, as a query engine joins them."""

    def __init__(self, corpus: list[Passage], model: ColBERT) -> None:
        hidden = {"excluded_embed_metadata_keys": ["section"]}  # to show headings, not to search them
        nodes = [TextNode(text=passage.text, metadata={"section": passage.section}, **hidden) for passage in corpus]
        self.retriever = LlamaIndexBM25(nodes=nodes, similarity_top_k=CANDIDATES)
        self.reranker = ColBERTRerank(model=model, top_n=SHOWN)

    def rankings(self, question: str) -> Rankings:
        """Ask the retriever, then have its nodes reranked."""
        before = self.retriever.retrieve(question)
        after = self.reranker.postprocess_nodes(before, query_str=question)
        return [self._hit(found) for found in before], [self._hit(found) for found in after]

    def _hit(self, node: NodeWithScore) -> Hit:
        return Hit(node.metadata["section"], node.text, node.score)


def show(question: str, rankings: Rankings, model: ColBERT) -> None:
    before, after = rankings
    places = {hit.text: place for place, hit in enumerate(before, start=1)}
    left = [cell(place, hit) for place, hit in enumerate(before[:SHOWN], start=1)]
    right = [cell(place, hit, places[hit.text], words(model, question, hit)) for place, hit in enumerate(after, 1)]
    for row in [(["BM25"], [f"ColBERT on BM25's {len(before)}"]), *zip_longest(left, right, fillvalue=[])]:
        for one, other in zip_longest(*row, fillvalue=""):
            print(f"  {one:<{COLUMN}}  {other}".rstrip())


def cell(place: int, hit: Hit, was: int | None = None, note: str = "") -> list[str]:
    """A hit in lines: its place, score and section, how the text begins, and what there is to note."""
    section = hit.section if was is None else f"{hit.section} (was {was})"
    lines = [f"{place}. {hit.score:.2f} {section}", f"   {hit.text}"]
    return [line[:COLUMN] for line in lines] + wrap(note, COLUMN, initial_indent="   ", subsequent_indent="   ")


def words(model: ColBERT, question: str, hit: Hit) -> str:
    """Which words of the question met which of the passage."""
    strongest = model.explain(question, hit.text).words(WORDS)
    return ", ".join(f"{asked}~{found} {similarity:.2f}" for asked, found, similarity in strongest)


def main() -> None:
    corpus = passages()
    model = ColBERT("bundled/all-MiniLM-L6-v2")  # one for both frameworks
    pipelines = [LangChain(corpus, model), LlamaIndex(corpus, model)]
    print(f"{len(corpus)} passages of Python's language reference. The words after a passage matched best.")
    for question in QUESTIONS:
        for pipeline in pipelines:
            print(f'\n"{question}" in {type(pipeline).__name__}')
            show(question, pipeline.rankings(question), model)


if __name__ == "__main__":
    main()
