"""Cranfield on Qdrant, through the retrievers of both frameworks: is it the same as in memory?

The corpus is encoded once, into a store in memory; ``copy_from`` takes it to Qdrant without encoding it again. Queries
are encoded by the retrievers, as a user's are. The server is the tests' own over the real engine, see
``qdrant_engine``. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cranfield
import qdrant_engine
import records
from index_measuring import median_ms, timed
from tqdm import tqdm

from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, TokenEmbeddings
from colbert_integrations.index import Store
from colbert_integrations.langchain import ColBERTRetriever as LangChainRetriever
from colbert_integrations.llama_index import ColBERTRetriever as LlamaIndexRetriever
from colbert_integrations.qdrant import QdrantStore

RESULTS = records.HERE / "results" / "qdrant_cranfield.csv"
COLUMNS = ["case", "nDCG@10", "RR@10", "same top 10", "largest score difference"]
DEPTH = 10

Dtype = Literal["float16", "float32"]
Search = Callable[[str], cranfield.Ranking]


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        framework: Whose retriever.
        dtype: Of the vectors, in memory and on the server.
    """

    framework: Literal["LangChain", "LlamaIndex"]
    dtype: Dtype


CASES = [Case(framework, dtype) for dtype in ("float16", "float32") for framework in ("LangChain", "LlamaIndex")]


def langchain(index: ColBERTIndex) -> Search:
    """Search through LangChain."""
    retriever = LangChainRetriever(index=index, k=DEPTH, score_key="score", normalize_scores=False)
    return lambda query: [(str(found.id), found.metadata["score"]) for found in retriever.invoke(query)]


def llama_index(index: ColBERTIndex) -> Search:
    """Search through LlamaIndex."""
    retriever = LlamaIndexRetriever(index=index, similarity_top_k=DEPTH, normalize_scores=False)
    return lambda query: [(found.node_id, found.score) for found in retriever.retrieve(query)]


FRAMEWORKS = {"LangChain": langchain, "LlamaIndex": llama_index}


def filled(collection: cranfield.Collection, vectors: TokenEmbeddings, dtype: Dtype) -> MemoryStore:
    """A store in memory with all documents, as both frameworks can read them."""
    store, texts = MemoryStore(dtype), collection.documents
    store.upsert(list(texts), vectors, list(texts.values()))
    return store


def rankings(search: Search, collection: cranfield.Collection) -> tuple[list[cranfield.Ranking], list[float]]:
    """The ten best of each query, and the seconds that each took."""
    search(next(iter(collection.queries.values())))  # makes what the first search makes
    found = [timed(lambda query=query: search(query)) for query in collection.queries.values()]
    return [ranking for ranking, _ in found], [seconds for _, seconds in found]


def measure(
    model: ColBERT, store: Store, case: Case, collection: cranfield.Collection, expected: list[cranfield.Ranking]
) -> tuple[records.Row, list[cranfield.Ranking]]:
    """Measure one case on one store.

    Args:
        model: Encodes the queries.
        store: Is searched.
        case: Whose retriever.
        collection: Texts and judgements.
        expected: What was found in memory; empty: this is in memory.

    Returns:
        Columns, and what was found.
    """
    found, seconds = rankings(FRAMEWORKS[case.framework](ColBERTIndex(model, store)), collection)
    expected = expected or found
    names = [[name for name, _ in ranking] for ranking in found]
    same = [names[place] == [name for name, _ in expected[place]] for place in range(len(found))]
    pairs = zip(found, expected, strict=True)
    apart = [abs(a - b) for ours, theirs in pairs for (_, a), (_, b) in zip(ours, theirs, strict=True)]
    quality = cranfield.quality(dict(zip(collection.queries, found, strict=True)), collection)
    del quality["R@100"]  # ten are found
    where = "in memory" if isinstance(store, MemoryStore) else "on Qdrant"
    return {
        "case": f"{case.framework}, {case.dtype}, {where}",
        **quality,
        "same top 10": f"{sum(same)} of {len(same)}",
        "largest score difference": f"{max(apart):.1e}" if any(apart) else "0",
        "milliseconds per query": median_ms(seconds),
    }, found


def run(path: Path = RESULTS, collection: cranfield.Collection | None = None, cases: list[Case] = CASES) -> None:
    """Measure all cases, in memory and on a server; each row is written as soon as it is there."""
    collection = collection or cranfield.load()
    model = ColBERT.shared(cranfield.MODEL, device=cranfield.DEVICE)
    vectors = model.encode_document(list(collection.documents.values()))
    packages = (
        "torch",
        "colbert-integrations",
        "langchain-core",
        "llama-index-core",
        "qdrant-client",
        "qdrant-edge-py",
    )
    about = records.circumstances(*packages)

    def record(row: records.Row) -> None:
        records.append(path, [{"date": about["date"], "commit": about["commit"], **row, **about}])

    with qdrant_engine.running_server() as server:
        for dtype in dict.fromkeys(case.dtype for case in cases):
            here = filled(collection, vectors, dtype)
            there = QdrantStore(server.url, f"cranfield-{dtype}", dtype=dtype)
            there.copy_from(here)
            for case in tqdm([case for case in cases if case.dtype == dtype], dtype, disable=None):
                expected: list[Any] = []
                for store in (here, there):
                    row, found = measure(model, store, case, collection, expected)
                    expected = expected or found
                    record(row)
            here.close()
            there.close()


def table(path: Path = RESULTS) -> str:
    """The newest row of each case, as a Markdown table."""
    return records.markdown(records.newest(path, "case"), COLUMNS)


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    records.measure_or_print(__doc__, RESULTS, run, table)


if __name__ == "__main__":
    main()
