"""Passages by the hundred thousand with the statistics of real text, for measuring how an index scales.

Nobody can encode a million passages to time a search, and random vectors would make every candidate stage look bad,
for text repeats itself. So passages are stitched from real token vectors:

1. The abstracts of Cranfield, the first 150 words of each, are encoded by the bundled model at 128 dimensions: about
   200,000 contextual token vectors. Its queries are the queries.
2. A passage's length is lognormal (sigma 0.5), rounded, cut to 8..300 tokens; the mean is 150.
3. A passage is about two abstracts: each run of 25 tokens, about a sentence, is a piece of one or the other.
4. Every vector gets noise of length 0.3, so its cosine with what it was is about 0.96, and is brought to unit length:
   no token is there twice.

The same seed gives the same passages on the same device, however many are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cranfield
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from colbert_integrations import ColBERT, TokenEmbeddings

DIM = 128
WORDS = 150
RUN = 25
NOISE = 0.3
SHORTEST, LONGEST = 8, 300
CHUNK = 1000
# exp(N(_LOG_MEAN, 0.5)) has a mean of 150 once it is cut at 300.
_LOG_MEAN, _LOG_SIGMA = 4.9154, 0.5


@dataclass(frozen=True)
class Source:
    """Real token vectors.

    Attributes:
        documents: Those that passages are made of, float16.
        queries: Queries about them, float16.
    """

    documents: TokenEmbeddings
    queries: TokenEmbeddings


@dataclass(frozen=True)
class Passages:
    """Some made-up passages, as ``MemoryStore.upsert`` takes them.

    Attributes:
        ids: ``"0"`` and so on.
        embeddings: Their vectors, float16.
        texts: Short ones.
        metadatas: ``year``, and which abstract was the first of its two, as ``topic``.
    """

    ids: list[str]
    embeddings: TokenEmbeddings
    texts: list[str] = field(repr=False)
    metadatas: list[dict[str, Any]] = field(repr=False)


def source(kept: Path | None = None, abstracts: int | None = None) -> Source:
    """Encode Cranfield, which takes a minute of CPU time, or read what an earlier call kept.

    Args:
        kept: A file to read it from, made if it is not there. None: encode.
        abstracts: How many. None: all 1,400.

    Returns:
        The vectors, on the CPU.
    """
    if kept is not None and kept.exists():
        tensors = load_file(kept)
    else:
        tensors = _encoded(abstracts)
        if kept is not None:
            save_file(tensors, kept)
    return Source(
        TokenEmbeddings(tensors["documents"], tensors["document_offsets"]),
        TokenEmbeddings(tensors["queries"], tensors["query_offsets"]),
    )


def _encoded(abstracts: int | None) -> dict[str, torch.Tensor]:
    collection = cranfield.load()
    texts = [" ".join(text.split()[:WORDS]) for text in collection.documents.values()][:abstracts]
    with ColBERT(cranfield.MODEL, device=cranfield.DEVICE, projection_dim=DIM) as model:
        documents = model.encode_document([text for text in texts if text]).to("cpu", torch.float16)
        queries = model.encode_query(list(collection.queries.values())).to("cpu", torch.float16)
    return {
        "documents": documents.values,
        "document_offsets": documents.offsets,
        "queries": queries.values,
        "query_offsets": queries.offsets,
    }


def passages(source: Source, count: int, *, seed: int = 0, device: str = "cpu") -> Iterator[Passages]:
    """Make passages, a thousand at a time.

    Args:
        source: What they are made of.
        count: How many.
        seed: Other seeds give others.
        device: Where their vectors are made and stay.

    Yields:
        Passages 0 to 999, then the next, until there are ``count``.
    """
    values = source.documents.values.to(device)
    for start in range(0, count, CHUNK):
        # A generator for each chunk: passage 5,000 is the same whether 6,000 or 100,000 are made.
        number = seed * 10**6 + start // CHUNK  # below 2**32, the most that a CPU's generator tells apart
        choice, noise = torch.Generator().manual_seed(number), torch.Generator(device).manual_seed(number)
        yield _chunk(values, source.documents, start, min(CHUNK, count - start), choice, noise)


def _chunk(
    values: torch.Tensor,
    documents: TokenEmbeddings,
    start: int,
    count: int,
    choice: torch.Generator,
    noise: torch.Generator,
) -> Passages:
    lengths = _lengths(choice)
    rows, topics = _rows(documents, lengths, choice)
    picked = values[rows.to(values.device)].float()
    spread = torch.randn(picked.shape, generator=noise, device=picked.device) * (NOISE / DIM**0.5)
    vectors = normalize(picked + spread, dim=-1).half()
    numbers = range(start, start + count)
    return Passages(
        [str(number) for number in numbers],
        TokenEmbeddings(vectors, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)))[:count],
        [f"passage {number}" for number in numbers],
        [{"year": 1950 + number % 70, "topic": topic} for number, topic in zip(numbers, topics[:count], strict=True)],
    )


def _lengths(choice: torch.Generator) -> torch.Tensor:
    drawn = torch.empty(CHUNK).normal_(_LOG_MEAN, _LOG_SIGMA, generator=choice).exp()
    return drawn.round().clamp(SHORTEST, LONGEST).long()


def _rows(documents: TokenEmbeddings, lengths: torch.Tensor, choice: torch.Generator) -> tuple[torch.Tensor, list[int]]:
    """Which source vectors the passages' tokens are, and each passage's first abstract."""
    room = documents.offsets.diff() - RUN
    usable = (room >= 0).nonzero()[:, 0]
    pairs = usable[torch.randint(len(usable), (len(lengths), 2), generator=choice)]
    runs = LONGEST // RUN
    which = torch.randint(2, (len(lengths), runs), generator=choice)
    abstract = pairs.gather(1, which)  # (passages, runs)
    within = (torch.rand(abstract.shape, generator=choice) * (room[abstract] + 1)).long()
    firsts = documents.offsets[abstract] + within
    every = (firsts[:, :, None] + torch.arange(RUN)).flatten(1)  # (passages, LONGEST)
    return every[torch.arange(LONGEST) < lengths[:, None]], pairs[:, 0].tolist()
