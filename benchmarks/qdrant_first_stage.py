"""What a first stage on Qdrant loses, on Cranfield: by mean vectors, and by those of a dense model.

The dense model is the bundled one as it was trained, one vector a text. Queries are encoded beforehand. ``--print``
shows the newest results instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cranfield
import qdrant_engine
import records
from index_measuring import recall
from qdrant_cranfield import filled
from tqdm import tqdm

from colbert_integrations import ColBERT, MemoryStore, TokenEmbeddings
from colbert_integrations.qdrant import QdrantStore

RESULTS = records.HERE / "results" / "qdrant_first_stage.csv"
COLUMNS = ["case", "nDCG@10", "recall@10"]
CANDIDATES = [20, 50, 100, 200, 500]
DEPTH = 10


class Dense:
    """One vector a text, asked as LangChain's ``Embeddings`` are."""

    def __init__(self) -> None:
        self._embed = cranfield._embedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Make a vector of each text."""
        return self._embed(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Make a vector of a query."""
        return self._embed([text])[0].tolist()


def searched(
    store: QdrantStore | MemoryStore, queries: TokenEmbeddings, texts: list[str], **options: Any
) -> list[cranfield.Ranking]:
    """The ten best of each query."""
    found = []
    for place, text in enumerate(texts):
        (hits,) = store.search(queries[place : place + 1], DEPTH, texts=[text], **options)
        found.append([(hit.id, hit.score) for hit in hits])
    return found


def run(
    path: Path = RESULTS, collection: cranfield.Collection | None = None, candidates: list[int] = CANDIDATES
) -> None:
    """Measure each first stage; each row is written as soon as it is there."""
    collection = collection or cranfield.load()
    model, texts = ColBERT.shared(cranfield.MODEL, device=cranfield.DEVICE), list(collection.queries.values())
    here = filled(collection, model.encode_document(list(collection.documents.values())), "float16")
    queries = model.encode_query(texts)
    exact = searched(here, queries, texts)
    about = records.circumstances("torch", "colbert-integrations", "qdrant-client", "qdrant-edge-py")

    def record(case: str, found: list[cranfield.Ranking]) -> None:
        measured = cranfield.quality(dict(zip(collection.queries, found, strict=True)), collection)
        names, expected = ([[name for name, _ in one] for one in many] for many in (found, exact))
        row = {"case": case, "nDCG@10": measured["nDCG@10"], "recall@10": recall(names, expected)}
        records.append(path, [{"date": about["date"], "commit": about["commit"], **row, **about}])

    record("exact", exact)
    stages: dict[str, Any] = {"mean": "mean", "dense model": Dense()}
    with qdrant_engine.running_server() as server:
        for name, stage in stages.items():
            with QdrantStore(server.url, name.replace(" ", "-"), first_stage=stage) as store:
                store.copy_from(here)
                for number in tqdm(candidates, name, disable=None):
                    found = searched(store, queries, texts, search="first_stage", candidates=number)
                    record(f"{name}, {number} candidates", found)


def table(path: Path = RESULTS) -> str:
    """The newest row of each case, as a Markdown table."""
    return records.markdown(records.newest(path, "case"), COLUMNS)


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    records.measure_or_print(__doc__, RESULTS, run, table)


if __name__ == "__main__":
    main()
