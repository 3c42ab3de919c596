"""Cranfield through the index: what each way of storing and searching costs in quality, memory and time.

The corpus is encoded once and put into a store of each kind. Queries are encoded beforehand too, so times are those of
the search alone, one query at a time. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cranfield
import records
from index_measuring import median_ms, recall, timed
from tqdm import tqdm

from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, TokenEmbeddings
from colbert_integrations.pooling import pool_tokens

RESULTS = records.HERE / "results" / "index_cranfield.csv"
COLUMNS = ["setting", "nDCG@10", "RR@10", "R@100", "recall@10", "bytes per document", "queries per second"]
DEPTH, DEEP = 10, 100


@dataclass(frozen=True)
class Setting:
    """A way of storing and searching.

    Attributes:
        name: Of the row.
        store: Arguments of ``MemoryStore``.
        pool_factor: Of the vectors, before they are stored.
        search: Arguments of ``search``.
    """

    name: str
    store: dict[str, Any] = field(default_factory=dict)
    pool_factor: int = 1
    search: dict[str, Any] = field(default_factory=dict)


SETTINGS = [
    Setting("float32", {"dtype": "float32"}),
    Setting("float16 (the default)"),
    *(Setting(f"nbits={nbits}", {"nbits": nbits}) for nbits in (8, 4, 2)),
    *(
        Setting(
            f'nbits={nbits}, keep_originals, search="codes"',
            {"nbits": nbits, "keep_originals": True},
            1,
            {"search": "codes"},
        )
        for nbits in (8, 4, 2)
    ),
    *(Setting(f"pool_factor={factor}", {}, factor) for factor in (2, 3, 4)),
    *(
        Setting(f'search="centroids", candidates={count}', {}, 1, {"search": "centroids", "candidates": count})
        for count in (20, 50, 100, 200, 500)
    ),
]


@dataclass(frozen=True)
class Encoded:
    """A collection and its vectors.

    Attributes:
        collection: Texts and judgements.
        model: What encoded them.
        documents: In the order of the collection.
        queries: In the order of the collection.
    """

    collection: cranfield.Collection
    model: ColBERT
    documents: TokenEmbeddings
    queries: TokenEmbeddings


def encode(collection: cranfield.Collection) -> Encoded:
    """Encode all texts, once for all settings."""
    model = ColBERT.shared(cranfield.MODEL, device=cranfield.DEVICE)
    documents = model.encode_document(list(collection.documents.values()))
    return Encoded(collection, model, documents, model.encode_query(list(collection.queries.values())))


def filled(encoded: Encoded, setting: Setting) -> ColBERTIndex:
    """An index as ``add`` would leave it."""
    vectors = encoded.documents if setting.pool_factor == 1 else pool_tokens(encoded.documents, setting.pool_factor)
    texts = encoded.collection.documents
    index = ColBERTIndex(encoded.model, MemoryStore(**setting.store, device=cranfield.DEVICE))
    index.store.upsert(list(texts), vectors, list(texts.values()))
    return index


def measure(encoded: Encoded, setting: Setting, exact: list[list[str]]) -> tuple[records.Row, list[list[str]]]:
    """Measure a setting.

    Args:
        encoded: The collection.
        setting: What to measure.
        exact: Ids that the exact search found for each query; empty: this is the exact search.

    Returns:
        A row, and the ids of the ten best of each query.
    """
    with filled(encoded, setting) as index:
        single(index, encoded.queries[:1], setting, DEPTH)  # makes what the first search makes
        shallow, seconds = single(index, encoded.queries, setting, DEPTH)
        deep, _ = single(index, encoded.queries, setting, DEEP)
        size = vector_bytes(index.store, setting)
    found = [[name for name, _ in ranking] for ranking in shallow]
    row: records.Row = {
        "setting": setting.name,
        **quality(encoded.collection, shallow, deep),
        "recall@10": recall(found, exact or found),
        "bytes per document": round(size / len(encoded.documents)),
        "milliseconds per query": median_ms(seconds),
        "queries per second": round(1000 / median_ms(seconds), 1),
    }
    return row, found


def single(
    index: ColBERTIndex, queries: TokenEmbeddings, setting: Setting, k: int
) -> tuple[list[cranfield.Ranking], list[float]]:
    """Search one query after another: the rankings, and the seconds that each took."""
    rankings, seconds = [], []
    for place in range(len(queries)):
        query = queries[place : place + 1]
        (hits,), took = timed(lambda query=query: index.store.search(query, k, **setting.search))
        rankings.append([(hit.id, hit.score) for hit in hits])
        seconds.append(took)
    return rankings, seconds


def quality(
    collection: cranfield.Collection, shallow: list[cranfield.Ranking], deep: list[cranfield.Ranking]
) -> records.Row:
    """Measures of the first ten from a search for ten, R@100 from one for a hundred."""
    first, second = (
        cranfield.quality(dict(zip(collection.queries, rankings, strict=True)), collection)
        for rankings in (shallow, deep)
    )
    return {**first, "R@100": second["R@100"]}


def listed_bytes(store: MemoryStore) -> int:
    """What the centroids and their lists take in memory."""
    centroids = store._centroids
    assert centroids is not None
    made = [centroids, *(view.segment.lists(centroids, len(view)) for view in store._now().views)]
    return sum(tensor.nbytes for part in made for tensor in part.tensors().values())


def vector_bytes(store: MemoryStore, setting: Setting) -> int:
    """What the vectors take in memory, and what the candidate stage has made of them."""
    own = store.num_tokens * store.bytes_per_token
    return own + (listed_bytes(store) if setting.search.get("search") == "centroids" else 0)


def run(
    path: Path = RESULTS, settings: list[Setting] = SETTINGS, collection: cranfield.Collection | None = None
) -> None:
    """Measure all settings, the first of which is exact; each row is written as soon as it is there."""
    encoded = encode(collection or cranfield.load())
    about = records.circumstances("torch", "colbert-integrations")
    exact: list[list[str]] = []
    for setting in tqdm(settings, disable=None):
        row, found = measure(encoded, setting, exact)
        exact = exact or found
        records.append(path, [{"date": about["date"], "commit": about["commit"], **row, **about}])


def table(path: Path = RESULTS) -> str:
    """The newest row of each setting, as a Markdown table."""
    return records.markdown(records.newest(path, "setting"), COLUMNS)


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    records.measure_or_print(__doc__, RESULTS, run, table)


if __name__ == "__main__":
    main()
