"""One late-interaction library in a process of its own, with a checkpoint: encodes and reranks texts, says how long.

``encoding_peers.py`` and ``rerank_peers.py`` start it as ``python text_worker.py ENGINE CHECKPOINT FOLDER THREADS
DEVICE``. The folder holds ``texts.json``; what is encoded goes into ``.npy`` files of the engine there. Nothing but
numpy is imported that the engine does not bring.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import our_kernel
import running

Vectors = list[np.ndarray]


def _cannot(*_: Any) -> Any:
    raise NotImplementedError("it gives no vectors")


@dataclass(frozen=True)
class Engine:
    """A library with a loaded checkpoint.

    Attributes:
        version: Of the library.
        rank: Scores of some documents for a query, in the order of the documents.
        encode: Vectors of some documents, ``(tokens, dim)`` each. It alone is timed, ``vectors`` is not.
        encode_query: Vectors of a query.
        vectors: What ``encode`` gave as arrays.
    """

    version: str
    rank: Callable[[str, list[str]], Sequence[float]]
    encode: Callable[[list[str]], Any] = _cannot
    encode_query: Callable[[str], Any] = _cannot
    vectors: Callable[[Any], Vectors] = list


# --------------------------------------------------------------------------------------------------------- engines


def ours(checkpoint: str, device: str, dtype: str) -> Engine:
    """This package. Documents longer than the model reads are cut, as everywhere else, not windowed."""
    from colbert_integrations import ColBERT, __version__

    model = ColBERT(checkpoint, device=device, dtype=dtype, long_documents="truncate")

    def rank(query: str, documents: list[str]) -> list[float]:
        scores = [0.0] * len(documents)
        for entry in model.rank(query, documents):
            scores[entry.index] = entry.score
        return scores

    return Engine(
        __version__,
        rank,
        lambda texts: model.encode_document(texts, show_progress=False),
        lambda text: model.encode_query(text, show_progress=False),
        lambda found: [matrix.float().cpu().numpy() for matrix in found],
    )


def sentence_transformers(checkpoint: str, device: str, dtype: str) -> Engine:
    """sentence-transformers' ``MultiVectorEncoder`` with its defaults."""
    import torch
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(checkpoint, device=device, model_kwargs={"dtype": getattr(torch, dtype)})

    def encode(texts: list[str]) -> Any:
        return model.encode_document(texts, show_progress_bar=False)

    def rank(query: str, documents: list[str]) -> list[float]:
        return model.similarity([model.encode_query(query)], encode(documents))[0].tolist()

    return Engine(version("sentence-transformers"), rank, encode, model.encode_query, _numpy)


def pylate(checkpoint: str, device: str, dtype: str) -> Engine:
    """PyLate's ``ColBERT`` and ``rank.rerank`` with their defaults, but that vectors on a GPU are scored there."""
    import torch
    from pylate import models, rank

    model = models.ColBERT(checkpoint, device=device, model_kwargs={"dtype": getattr(torch, dtype)})
    settings = {"show_progress_bar": False, "convert_to_tensor": device != "cpu"}

    def encode(texts: list[str]) -> Any:
        return model.encode(texts, is_query=False, **settings)

    def encode_query(text: str) -> Any:
        return model.encode(text, is_query=True, **settings)

    def scores(query: str, documents: list[str]) -> list[float]:
        found = rank.rerank([list(range(len(documents)))], [encode_query(query)], [encode(documents)])[0]
        return [result["score"] for result in sorted(found, key=lambda result: result["id"])]

    return Engine(version("pylate"), scores, encode, encode_query, _numpy)


def llama_index(checkpoint: str, device: str, dtype: str) -> Engine:
    """LlamaIndex' ``ColbertRerank``: the backbone alone, without the projection and without markers."""
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.colbert_rerank import ColbertRerank

    # It leaves the model where it is loaded, on the CPU, whatever the device says.
    folder = _stanford(checkpoint)

    def rank(query: str, documents: list[str]) -> list[float]:
        reranker.top_n = len(documents)
        nodes = [NodeWithScore(node=TextNode(text=text, id_=str(at))) for at, text in enumerate(documents)]
        scores = [0.0] * len(documents)
        for node in reranker.postprocess_nodes(nodes, query_str=query):
            scores[int(node.node.node_id)] = float(node.score)
        return scores

    reranker = ColbertRerank(model=folder, tokenizer=folder, device=device)
    return Engine(version("llama-index-postprocessor-colbert-rerank"), rank)


def rerankers(checkpoint: str, device: str, dtype: str) -> Engine:
    """``Reranker(model_type="colbert")`` of rerankers."""
    import torch
    from rerankers import Reranker

    options = {"dtype": getattr(torch, dtype), "verbose": 0}
    ranker = Reranker(_stanford(checkpoint), model_type="colbert", device=device, **options)

    def rank(query: str, documents: list[str]) -> list[float]:
        found = ranker.rank(query, documents, doc_ids=list(range(len(documents))))
        return [result.score for result in sorted(found.results, key=lambda result: result.document.doc_id)]

    return Engine(version("rerankers"), rank)


def candding(checkpoint: str, device: str, dtype: str) -> Engine:
    """The multi-vector models of candding, which loads only what it knows by name: see ``speed_texts.CANDDING``."""
    cache = Path(checkpoint) / "candding"
    if not cache.exists():
        raise FileNotFoundError("candding knows no late-interaction model of this shape, and loads only what it knows")
    os.environ["HF_HOME"] = str(cache)
    from candding import MultiVectorTextEmbedding

    model = MultiVectorTextEmbedding("answerdotai/answerai-colbert-small-v1", device=device, max_length=300)

    def rank(query: str, documents: list[str]) -> list[float]:
        (asked,) = model.query_embed([query])
        return [float((asked @ found.T).max(1).sum()) for found in model.passage_embed(documents)]

    return Engine(version("candding"), rank, model.passage_embed, lambda text: model.query_embed([text]))


def _stanford(checkpoint: str) -> str:
    inside = Path(checkpoint) / "stanford"
    return str(inside) if inside.exists() else checkpoint


def _numpy(found: Any) -> Vectors:
    return [np.asarray(matrix.float().cpu() if hasattr(matrix, "cpu") else matrix) for matrix in found]


Build = Callable[[str, str, str], Engine]
ENGINES: dict[str, tuple[Build, str]] = {
    "ours float32": (ours, "float32"),
    "ours bfloat16": (ours, "bfloat16"),
    "ours int8": (ours, "int8"),
    "sentence-transformers": (sentence_transformers, "float32"),
    "sentence-transformers bfloat16": (sentence_transformers, "bfloat16"),
    "PyLate": (pylate, "float32"),
    "PyLate bfloat16": (pylate, "bfloat16"),
    "LlamaIndex ColbertRerank": (llama_index, "float32"),
    "rerankers": (rerankers, "float32"),
    "rerankers bfloat16": (rerankers, "bfloat16"),
    "candding": (candding, "float32"),
}


# ------------------------------------------------------------------------------------------------------- answering


def ready(
    name: str, checkpoint: str, folder: Path, threads: int, device: str
) -> tuple[running.Reply, Callable[[Any], running.Reply]]:
    """Load an engine, and say what can be asked of it: ``{"do": ..., "times" or "query": ...}``."""
    build, dtype = ENGINES[name.removesuffix(our_kernel.COMPILED)]
    our_kernel.choose(name)
    if name != "candding":
        _set_torch(threads)
    started = time.perf_counter()
    engine = build(checkpoint, device, dtype)
    seconds = time.perf_counter() - started
    texts = json.loads((folder / "texts.json").read_text())
    own = folder / name.replace(" ", "-")

    def answer(message: Any) -> running.Reply:
        if message["do"] == "keep":
            return _keep(engine, texts, own)
        if message["do"] == "documents":
            return {"seconds": _seconds(lambda: engine.encode(texts["documents"]), device)}
        if message["do"] == "query":
            work = [_seconds(lambda: engine.encode_query(texts["query"]), device) for _ in range(message["times"])]
            return {"seconds": work}
        query, documents = texts["requests"][message["request"]]
        started = time.perf_counter()
        scores = engine.rank(query, documents)
        return {"seconds": time.perf_counter() - started, "scores": list(map(float, scores))}

    return {"version": engine.version, "load seconds": round(seconds, 3)}, answer


def _keep(engine: Engine, texts: dict[str, Any], own: Path) -> running.Reply:
    """Encode everything once and write it down: the first call, which also warms up."""
    own.mkdir()
    matrices = engine.vectors(engine.encode(texts["documents"]))
    np.save(own / "values.npy", np.concatenate(matrices).astype(np.float32))
    np.save(own / "lengths.npy", np.array(list(map(len, matrices))))
    engine.encode_query(texts["query"])
    return {"vectors": sum(map(len, matrices))}


def _seconds(work: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - started


def _set_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def main(arguments: Sequence[str]) -> None:
    """Serve one engine."""
    name, checkpoint, folder, threads, device = arguments
    running.serve(lambda: ready(name, checkpoint, Path(folder), int(threads), device))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(sys.argv[1:])
