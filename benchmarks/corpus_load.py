"""A corpus into Qdrant's engine by ``index_corpus``: killed in the middle, run again, and looked at afterwards.

20,000 passages are sentences of Cranfield's abstracts, and runs of two and three. They are encoded by the bundled
model at 128 dimensions in a process of its own, which is killed (SIGKILL) once half of them are stored, and then run
again on the same corpus. Afterwards every id has to be there once, with its text, and a sample of vectors has to be
what the model makes of the text. See ``qdrant_engine`` for the server. ``--print`` shows the newest results instead.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import qdrant_engine
import records
import torch

from colbert_integrations import ColBERT, index_corpus
from colbert_integrations.qdrant import QdrantStore

RESULTS = records.HERE / "results" / "corpus_load.csv"
CORPUS = records.HERE / "data" / "cranfield" / "corpus.jsonl.gz"
SIZE, SAMPLE = 20_000, 50
MIB = 2**20
SHOWN = ["case", "encoded", "there already", "seconds", "documents per second", "loader peak MB", "engine peak MB"]
SHOWN += ["lost", "doubled", "wrong"]


def passages(size: int) -> Iterator[dict[str, Any]]:
    """Sentences, then runs of two and of three; as many as there are, ids rising."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        abstracts = [json.loads(line)["text"].split(" . ") for line in lines]
    whole = [[sentence.strip() for sentence in abstract if sentence.strip()] for abstract in abstracts]
    runs = (
        " . ".join(abstract[start : start + length])
        for length in (1, 2, 3)
        for abstract in whole
        for start in range(len(abstract) - length + 1)
    )
    texts = islice(dict.fromkeys(runs), size)
    return ({"id": f"{number:06}", "text": text} for number, text in enumerate(texts))


def model() -> ColBERT:
    """The bundled model at the dimension of most checkpoints."""
    return ColBERT("bundled/all-MiniLM-L6-v2", projection_dim=128)


def load(url: str, size: int) -> dict[str, Any]:
    """Load them all, in this process."""
    with QdrantStore(url, "corpus", timeout=600) as store:
        report = index_corpus(passages(size), model(), store, total=size)
    assert not report.failures, report.failures
    return {
        "encoded": report.encoded,
        "there already": report.unchanged,
        "seconds": report.seconds,
        "peak": qdrant_engine.peak_bytes(),
    }


def start(url: str, size: int) -> subprocess.Popen[str]:
    """Load them in another process, which says at the end what it did."""
    command = [sys.executable, __file__, "--load", url, "--size", str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed(url: str, size: int) -> records.Row:
    """Load until half of them are stored, and kill the loader without warning."""
    started, process = time.perf_counter(), start(url, size)
    with QdrantStore(url, "corpus") as store:
        while store.count() < size // 2:
            assert process.poll() is None, "the loader ended by itself"
            time.sleep(0.2)
        peak, seconds = qdrant_engine.peak_bytes(process.pid), time.perf_counter() - started
        process.kill()
        process.communicate()
        return _row("until it is killed", store.count(), 0, seconds, peak)


def resumed(url: str, size: int) -> records.Row:
    """Run it again."""
    process = start(url, size)
    said, _ = process.communicate()
    assert process.returncode == 0, process.returncode
    done = json.loads(said)
    return _row("run again", done["encoded"], done["there already"], done["seconds"], done["peak"])


def _row(what: str, encoded: int, there: int, seconds: float, peak: int) -> records.Row:
    return {
        "case": what,
        "encoded": encoded,
        "there already": there,
        "seconds": round(seconds, 1),
        "documents per second": round(encoded / seconds, 1),
        "loader peak MB": round(peak / MIB),
    }


def look(url: str, size: int) -> records.Row:
    """Compare what is stored with what there was to store.

    Args:
        url: The server.
        size: How many passages were loaded.

    Returns:
        How many are missing, are there more than once, or have another text or other vectors than they should.
    """
    wanted = {row["id"]: row["text"] for row in passages(size)}
    with QdrantStore(url, "corpus") as store:
        counted, ids = store.count(), store.ids()
        texts = {document.id: document.text for document in store.get(ids)}
        some = list(wanted)[:: max(1, size // SAMPLE)]
        kept = {document.id: document.embeddings for document in store.get(some, embeddings=True)}
    right = dict(zip(some, model().encode_document([wanted[name] for name in some]), strict=True))
    far = sum(not _close(vectors, right[name]) for name, vectors in kept.items())
    return {
        "lost": len(wanted.keys() - texts.keys()),
        "doubled": counted - len(set(ids)),
        "wrong": sum(texts[name] != text for name, text in wanted.items() if name in texts) + far,
    }


def _close(kept: torch.Tensor | None, right: torch.Tensor) -> bool:
    # float16 keeps 11 bits of numbers up to 1; what shares a batch decides the last digit in float32.
    return kept is not None and kept.shape == right.shape and torch.allclose(kept.float(), right, rtol=0, atol=2**-11)


def run(path: Path = RESULTS, size: int = SIZE) -> None:
    """Load, kill, load again, look; write rows."""
    size = sum(1 for _ in passages(size))
    about = records.circumstances("torch", "colbert-integrations", "qdrant-client", "qdrant-edge-py")
    nothing: records.Row = dict.fromkeys(["lost", "doubled", "wrong"], "")
    with qdrant_engine.running_server() as server:
        first = {**killed(server.url, size), "engine peak MB": round(server.peak_bytes / MIB), **nothing}
        second = {**resumed(server.url, size), "engine peak MB": round(server.peak_bytes / MIB)}
        rows = [first, {**second, **look(server.url, size)}]
    begin = {"date": about["date"], "commit": about["commit"], "documents": size}
    records.append(path, [{**begin, **row, **about} for row in rows])


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    parser.add_argument("--size", type=int, default=SIZE, help="number of passages, as far as there are")
    parser.add_argument("--load", metavar="URL", help="load only, and say what was done; what the others start")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    if options.load:
        json.dump(load(options.load, options.size), sys.stdout)
        return
    if not options.print:
        run(options.results, options.size)
    print(records.markdown(records.newest(options.results, "case"), SHOWN))


if __name__ == "__main__":
    main()
