"""Makes ``expected.npz`` and ``expected.json`` of golden cases by running the implementation that is right about them.

``python regenerate.py AUTHORITY CASE...`` in an environment that holds the authority; see ``README.md``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# One text and its side, "query" or "document", to the ids that the model saw and the vectors that it gave.
Encode = Callable[[str, str], tuple[list[int], np.ndarray]]


def colbert_ai(folder: str) -> Encode:
    """Stanford's implementation."""
    from colbert.infra import ColBERTConfig
    from colbert.modeling.checkpoint import Checkpoint

    model = Checkpoint(folder, colbert_config=ColBERTConfig(), verbose=0)

    def encode(text: str, side: str) -> tuple[list[int], np.ndarray]:
        if side == "query":
            return model.query_tokenizer.tensorize([text])[0][0].tolist(), model.queryFromText([text])[0].numpy()
        vectors = model.docFromText([text], bsize=1, keep_dims=False)[0][0]
        return model.doc_tokenizer.tensorize([text])[0][0].tolist(), vectors.numpy()

    return encode


def pylate(folder: str) -> Encode:
    """PyLate; it adds prompts only where asked to."""
    from pylate import models

    model = models.ColBERT(folder, device="cpu")

    def encode(text: str, side: str) -> tuple[list[int], np.ndarray]:
        prompt = (model.prompts or {}).get(side) or ""
        tokens = model.tokenize([prompt + text], is_query=side == "query")
        name = side if prompt else None
        vectors = model.encode([text], is_query=side == "query", prompt_name=name, show_progress_bar=False)
        return tokens["input_ids"][0].tolist(), vectors[0]

    return encode


def sentence_transformers(folder: str) -> Encode:
    """sentence-transformers 6, whose own format keeps the markers in the prompts."""
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(folder, device="cpu")

    def encode(text: str, side: str) -> tuple[list[int], np.ndarray]:
        tokens = model[0].preprocess([text], prompt=model.prompts.get(side), task=side)
        run = model.encode_query if side == "query" else model.encode_document
        return tokens["input_ids"][0].tolist(), run([text], show_progress_bar=False)[0].numpy()

    return encode


AUTHORITIES: dict[str, Callable[[str], Encode]] = {
    "colbert-ai": colbert_ai,
    "pylate": pylate,
    "sentence-transformers": sentence_transformers,
}


def expect(case: Path, authority: str, texts: dict[str, dict[str, str]]) -> None:
    """Write what the authority gives for every text with the case's checkpoint."""
    encode = AUTHORITIES[authority](str(case / "checkpoint"))
    vectors: dict[str, np.ndarray] = {}
    said: dict[str, Any] = {"authority": authority}
    said["versions"] = {package: version(package) for package in (authority, "transformers", "torch")}
    for side, named in texts.items():
        encoded = {name: encode(text, side) for name, text in named.items()}
        vectors |= {f"{side}/{name}": matrix.astype(np.float32) for name, (_, matrix) in encoded.items()}
        said[side] = {name: {"input_ids": ids} for name, (ids, _) in encoded.items()}
    np.savez_compressed(case / "expected.npz", **vectors)
    (case / "expected.json").write_text(json.dumps(said))


if __name__ == "__main__":
    texts_of_new_cases = json.loads((Path(__file__).parent / "more_texts.json").read_text())
    for folder in sys.argv[2:]:
        expect(Path(folder), sys.argv[1], texts_of_new_cases)
