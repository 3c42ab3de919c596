"""Encoding on a vLLM server beside encoding here: the same checkpoint, texts and machine, the ways in turn, in one run.

Ragged documents of 178 tokens on average, at most 300, and a rerank of 20 of them. The server is a real vLLM on this
machine's CPU (``--vllm`` names the Python of an environment with it; ``make test-vllm`` builds one), so that what shows
is what the way there and back costs, not what a GPU gains. It and the encoder here have as many threads; beside them
this process needs some of a core for HTTP. CPU time is that of this process; bytes are those of the
bodies of requests and answers. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import records
import speed_texts
import torch
from tqdm import tqdm

from colbert_integrations import ColBERT
from colbert_integrations.vllm import VLLMForward
from colbert_integrations.vllm.wire import pooling_request

sys.path.insert(0, str(records.HERE.parent / "tests" / "remote"))
from vllm_real import RealVLLM

RESULTS = records.HERE / "results" / "vllm_encoding.csv"
HERE = "here"
# Requests at once, and the dtype of vectors on their way.
WAYS = [(1, "float16"), (4, "float16"), (8, "float16"), (8, "float32")]
# Of a request: a quarter of what it has by default, so that there are enough of them to have eight at once.
REQUEST_TOKENS = 2048
RERANKED = 20


@dataclass
class Way:
    """One way to encode, and the seconds that it took.

    Attributes:
        name: What its rows call it.
        model: The model.
        requests: Requests at once; 0 where there are none.
        dtype: Of vectors on their way; empty where they have none.
    """

    name: str
    model: ColBERT
    requests: int = 0
    dtype: str = ""

    def __post_init__(self) -> None:
        self.documents: list[float] = []
        self.cpu: list[float] = []
        self.reranks: list[float] = []


def ways(checkpoint: Path, url: str) -> list[Way]:
    """Every way to encode: here, and on a server with few and many requests at once."""
    found = [Way(HERE, ColBERT(checkpoint, device="cpu"))]
    for requests, dtype in WAYS:
        forward = VLLMForward(url, concurrency=requests, embed_dtype=dtype)
        model = ColBERT(checkpoint, device="cpu", forward=forward, batch_tokens=REQUEST_TOKENS)
        found.append(Way(f"vLLM, {requests} at once, {dtype}", model, requests, dtype))
    return found


def measure(checkpoint: Path, url: str, documents: Sequence[str], query: str, rounds: int) -> list[records.Row]:
    """Encode and rerank in every way, in turn.

    Args:
        checkpoint: Its folder.
        url: A server that serves it.
        documents: What is encoded; the first of them are reranked.
        query: What by.
        rounds: How often each way has its turn.

    Returns:
        A row for each way.
    """
    found = ways(checkpoint, url)
    truth = found[0].model.encode_document(documents).values
    errors = [float((way.model.encode_document(documents).values - truth).abs().max()) for way in found]
    for way in found:
        way.model.rank(query, documents[:RERANKED])  # weights for queries are loaded, servers compared with them
    for number in tqdm(range(rounds), "rounds", disable=None):
        for way in found[number % len(found) :] + found[: number % len(found)]:
            start = time.process_time()
            way.documents.append(_seconds(lambda way=way: way.model.encode_document(documents)))
            way.cpu.append(time.process_time() - start)
            way.reranks.append(_seconds(lambda way=way: way.model.rank(query, documents[:RERANKED])))
    rows = [
        _row(way, error, len(documents), _bytes(way, url, documents)) for way, error in zip(found, errors, strict=True)
    ]
    for way in found:
        way.model.close()
    return rows


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _bytes(way: Way, url: str, documents: Sequence[str]) -> tuple[int, int]:
    """Bytes of a request and its answer, for one document on average; (0, 0) where there is none."""
    if not way.requests:
        return 0, 0
    tokenizer = way.model._ready().tokenizer
    contents = [tokens.ids for tokens in tokenizer.tokens(documents, "document")]
    ids = [tokenizer.sequence(content, "document").ids for content in contents]
    request = httpx.post(f"{url}/pooling", json=pooling_request(ids, way.dtype, normalized=True), timeout=600)
    request.raise_for_status()
    return len(request.request.content) // len(documents), len(request.content) // len(documents)


def _row(way: Way, error: float, count: int, sizes: tuple[int, int]) -> records.Row:
    seconds = sorted(way.documents)
    middle = statistics.median(seconds)
    return {
        "case": way.name,
        "requests": way.requests or "",
        "wire": way.dtype,
        "documents": count,
        "rounds": len(seconds),
        "median s": round(middle, 3),
        "best s": round(seconds[0], 3),
        "worst s": round(seconds[-1], 3),
        "documents per second": round(count / middle, 1),
        "CPU ms per document": round(1000 * statistics.median(way.cpu) / count, 2),
        f"rerank {RERANKED} ms": round(1000 * statistics.median(way.reranks), 1),
        "bytes up per document": sizes[0] or "",
        "bytes down per document": sizes[1] or "",
        "max difference": f"{error:.1e}",
    }


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown."""
    heads = {
        "case": "",
        "documents per second": "documents per second",
        "CPU ms per document": "CPU here, ms per document",
        f"rerank {RERANKED} ms": f"rerank of {RERANKED}, ms",
        "bytes up per document": "bytes there, per document",
        "bytes down per document": "bytes back, per document",
        "max difference": "max difference",
    }
    lines = [[row[column] for column in heads] for row in rows]
    return records.table([*heads.values()], lines, right=len(heads) - 1)


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    parser.add_argument("--vllm", default=str(records.HERE.parent / ".venv-vllm" / "bin" / "python"), help="its Python")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the encoder here, and of the server")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    if not options.print:
        torch.set_num_threads(options.threads)
        os.environ |= {"OMP_NUM_THREADS": str(options.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        about = records.circumstances("torch", "transformers", "httpx")
        about["vllm"] = _version(options.vllm)
        before = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as name:
            checkpoint = Path(name) / "minilm" / speed_texts.STANFORD
            speed_texts.minilm(checkpoint.parent)
            server = RealVLLM(options.vllm, checkpoint, Path(name) / "vllm.log")
            server.start()
            try:
                documents = speed_texts.ragged(checkpoint, options.documents)
                query = speed_texts.short_query(checkpoint)
                rows = measure(checkpoint, server.url, documents, query, options.rounds)
            finally:
                server.kill()
        # Of the whole run, a minute's average at either end: what else was going on.
        about["load"] = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
        first = {"date": about.pop("date"), "commit": about.pop("commit")}
        records.append(options.results, [{**first, **row, **about} for row in rows])
    print(table(records.newest(options.results, "case")))


def _version(python: str) -> str:
    code = "from importlib.metadata import version; print(version('vllm-cpu'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
