"""Models with the tokenizers that are about: word pieces, byte-level pairs, sentence pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

import checkpoints
from colbert_integrations import ColBERT
from texts import SENTENCES


@pytest.fixture(scope="session")
def bundled() -> ColBERT:
    """A trained model with BERT's own vocabulary."""
    return ColBERT("bundled/all-MiniLM-L6-v2", device="cpu")


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> ColBERT:
    """Byte-level pairs that were learnt from many scripts, so that tokens hold parts of characters; no skiplist."""
    folder: Path = tmp_path_factory.mktemp("byte_level")
    checkpoints.pylate(folder, texts=SENTENCES * 3, skiplist_words=[])
    return ColBERT(folder, device="cpu")


@pytest.fixture(scope="session")
def sentence_pieces(tmp_path_factory: pytest.TempPathFactory) -> ColBERT:
    """Sentence pieces over compatible characters, which may hold the space before them."""
    folder: Path = tmp_path_factory.mktemp("sentence_pieces")
    checkpoints.stanford_xlmr(folder, texts=SENTENCES)
    return ColBERT(folder, device="cpu")


@pytest.fixture(params=["bundled", "byte_level", "sentence_pieces"])
def model(request: pytest.FixtureRequest) -> ColBERT:
    """Each of them."""
    return request.getfixturevalue(request.param)
