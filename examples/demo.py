"""What ColBERT adds: BM25's ranking of Python's language reference beside ColBERT's, in LangChain and LlamaIndex.

The reference is indexed once. ColBERT reranks what BM25 found with the vectors that are there, and then searches by
itself. Needs no network. The questions are ones where the two differ; for averages see benchmarks/.
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

from colbert_integrations import ColBERT, ColBERTIndex
from colbert_integrations.langchain import ColBERTReranker
from colbert_integrations.langchain import ColBERTRetriever as LangChainRetriever
from colbert_integrations.llama_index import ColBERTRerank
from colbert_integrations.llama_index import ColBERTRetriever as LlamaIndexRetriever

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


Rankings = tuple[list[Hit], list[Hit], list[Hit]]  # all of BM25's, ColBERT's best of these, ColBERT's best of all


class LangChain:
    """A retriever and a reranker, joined into a chain; and ColBERT as the retriever."""

    def __init__(self, corpus: list[Passage], index: ColBERTIndex) -> None:
        documents = [
            Document(passage.text, id=str(number), metadata={"section": passage.section})
            for number, passage in enumerate(corpus)
        ]
        self.retriever = LangChainBM25(documents=documents, k=CANDIDATES)
        self.colbert = LangChainRetriever(index=index, k=SHOWN, score_key="relevance_score")
        reranker = ColBERTReranker(index=index, top_n=SHOWN)
        self.chain = {"query": RunnablePassthrough(), "documents": self.retriever} | reranker.as_runnable()

    def rankings(self, question: str) -> Rankings:
        """Ask the retriever alone, then the chain, then ColBERT alone."""
        before, after, alone = (chain.invoke(question) for chain in (self.retriever, self.chain, self.colbert))
        bm25 = [self._hit(found, "bm25_score") for found in before]
        return bm25, [*map(self._hit, after)], [*map(self._hit, alone)]

    def _hit(self, document: Document, score: str = "relevance_score") -> Hit:
        return Hit(document.metadata["section"], document.page_content, document.metadata[score])


class LlamaIndex:
    """A retriever and a node postprocessor, as a query engine joins them; and ColBERT as the retriever."""

    def __init__(self, corpus: list[Passage], index: ColBERTIndex) -> None:
        hidden = {"excluded_embed_metadata_keys": ["section"]}  # to show headings, not to search them
        nodes = [
            TextNode(id_=str(number), text=passage.text, metadata={"section": passage.section}, **hidden)
            for number, passage in enumerate(corpus)
        ]
        self.retriever = LlamaIndexBM25(nodes=nodes, similarity_top_k=CANDIDATES)
        self.colbert = LlamaIndexRetriever(index=index, similarity_top_k=SHOWN)
        self.reranker = ColBERTRerank(index=index, top_n=SHOWN)

    def rankings(self, question: str) -> Rankings:
        """Ask the retriever, then have its nodes reranked, then ask ColBERT alone."""
        before = self.retriever.retrieve(question)
        after = self.reranker.postprocess_nodes(before, query_str=question)
        alone = self.colbert.retrieve(question)
        return [*map(self._hit, before)], [*map(self._hit, after)], [*map(self._hit, alone)]

    def _hit(self, node: NodeWithScore) -> Hit:
        return Hit(node.metadata["section"], node.text, node.score)


def show(question: str, rankings: Rankings, model: ColBERT) -> None:
    before, after, alone = rankings
    places = {hit.text: place for place, hit in enumerate(before, start=1)}
    left = [cell(place, hit) for place, hit in enumerate(before[:SHOWN], start=1)]
    right = [cell(place, hit, places[hit.text], words(model, question, hit)) for place, hit in enumerate(after, 1)]
    for row in [(["BM25"], [f"ColBERT on BM25's {len(before)}"]), *zip_longest(left, right, fillvalue=[])]:
        for one, other in zip_longest(*row, fillvalue=""):
            print(f"  {one:<{COLUMN}}  {other}".rstrip())
    found = "; ".join(f"{hit.score:.2f} {hit.section}" for hit in alone)
    print("\n".join(wrap(f"ColBERT over everything: {found}", 98, initial_indent="  ", subsequent_indent="    ")))


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
    index = ColBERTIndex("bundled/all-MiniLM-L6-v2")  # one for both frameworks
    index.add(
        [passage.text for passage in corpus],
        ids=[str(number) for number in range(len(corpus))],
        metadatas=[{"section": passage.section} for passage in corpus],
    )
    pipelines = [LangChain(corpus, index), LlamaIndex(corpus, index)]
    print(f"{len(corpus)} passages of Python's language reference. The words after a passage matched best.")
    for question in QUESTIONS:
        for pipeline in pipelines:
            print(f'\n"{question}" in {type(pipeline).__name__}')
            show(question, pipeline.rankings(question), index.model)


if __name__ == "__main__":
    main()
