"""First stages: one vector a document, by which Qdrant finds candidates before MaxSim scores them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch

from ..embeddings import TokenEmbeddings
from ..errors import InputError

__all__ = ["FirstStage", "MeanVectors", "TextVectors", "VectorsOfTexts", "first_stage_of"]


_MEAN = "mean"


class TextVectors(Protocol):
    """What makes one vector of a text, as LangChain's ``Embeddings`` do."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Make a vector of each text."""

    def embed_query(self, text: str) -> list[float]:
        """Make a vector of a query."""


class MeanVectors:
    """The mean of a text's token vectors: costs nothing, and loses much where texts are alike."""

    name = _MEAN

    def dim(self, token_dim: int) -> int:
        """Dimension of its vectors."""
        return token_dim

    known_dim = dim

    def of_documents(
        self, embeddings: TokenEmbeddings, texts: Sequence[str | None], names: Sequence[str]
    ) -> torch.Tensor:
        """A vector for each document, ``(documents, dim)``."""
        return _means(embeddings)

    def of_queries(self, embeddings: TokenEmbeddings, texts: Sequence[str] | None) -> torch.Tensor:
        """A vector for each query, ``(queries, dim)``."""
        return _means(embeddings)


class _OfLlamaIndex:
    """A model of LlamaIndex, asked as one of LangChain is."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Make a vector of each text."""
        vectors: list[list[float]] = self._model.get_text_embedding_batch(texts)
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Make a vector of a query."""
        vector: list[float] = self._model.get_query_embedding(text)
        return vector


class VectorsOfTexts:
    """Vectors of another model, which reads the texts.

    Args:
        model: Makes them.
        name: What tells them from those of other models.
    """

    def __init__(self, model: TextVectors, name: str) -> None:
        self.model, self.name = model, name
        self._dim: int | None = None

    def dim(self, token_dim: int) -> int:
        """Dimension of its vectors; the model is asked if it has made none yet, which takes its time and may fail."""
        if self._dim is None:
            self._dim = len(self.model.embed_query("dimension"))
        return self._dim

    def known_dim(self, token_dim: int) -> int | None:
        """Dimension of its vectors, if it has made one; the model is not asked."""
        return self._dim

    def of_documents(
        self, embeddings: TokenEmbeddings, texts: Sequence[str | None], names: Sequence[str]
    ) -> torch.Tensor:
        """A vector for each document, ``(documents, dim)``."""
        given = [text for text in texts if text is not None]
        if len(given) < len(texts):
            name = next(name for name, text in zip(names, texts, strict=True) if text is None)
            raise InputError(f"document {name!r} has no text, and the first stage makes its vector from that")
        return self._seen(_checked(self.model.embed_documents(given), len(given)))

    def of_queries(self, embeddings: TokenEmbeddings, texts: Sequence[str] | None) -> torch.Tensor:
        """A vector for each query, ``(queries, dim)``."""
        if texts is None:
            raise InputError("search='first_stage' makes vectors of the queries' texts here: pass texts=")
        return self._seen(_checked([self.model.embed_query(text) for text in texts], len(embeddings)))

    def _seen(self, vectors: torch.Tensor) -> torch.Tensor:
        if len(vectors):
            self._dim = vectors.shape[1]
        return vectors


FirstStage: TypeAlias = MeanVectors | VectorsOfTexts


def first_stage_of(given: Any, name: str | None = None) -> FirstStage | None:
    """Read the arguments of a store.

    Args:
        given: ``"mean"``, an embedding model of LangChain or LlamaIndex, or None.
        name: What the model is called. None: as it says, or else as its class is.

    Returns:
        The first stage; None: there is none.

    Raises:
        InputError: If it is something else, or nothing that has a name.
    """
    if name is not None and (given in (None, _MEAN) or not isinstance(name, str) or not name):
        raise InputError(
            f"first_stage_name must be the name of an embedding model that is the first_stage, not {name!r}"
        )
    if given is None:
        return None
    if given == _MEAN:
        return MeanVectors()
    if hasattr(given, "embed_documents") and hasattr(given, "embed_query"):
        return VectorsOfTexts(given, name or _name_of(given))
    if hasattr(given, "get_text_embedding_batch") and hasattr(given, "get_query_embedding"):
        return VectorsOfTexts(_OfLlamaIndex(given), name or _name_of(given))
    raise InputError(f"first_stage must be 'mean' or an embedding model of LangChain or LlamaIndex, not {given!r}")


def _name_of(model: Any) -> str:
    """The name of the weights, which one class has of many, and which both frameworks may load."""
    said = [getattr(model, attribute, None) for attribute in ("model_name", "model")]
    # LlamaIndex' models say "unknown" where nobody named them.
    return next((name for name in said if isinstance(name, str) and name not in ("", "unknown")), type(model).__name__)


def _means(embeddings: TokenEmbeddings) -> torch.Tensor:
    """The mean of each text's vectors, ``(texts, dim)`` float32."""
    lengths = torch.tensor(embeddings.lengths, dtype=torch.int64, device="cpu")
    sums = torch.zeros(len(lengths), embeddings.dim, dtype=torch.float32, device="cpu").index_add_(
        0, torch.repeat_interleave(lengths), embeddings.values.float().cpu()
    )
    return sums / lengths.clamp(min=1)[:, None]


def _checked(vectors: Sequence[Sequence[float]], number: int) -> torch.Tensor:
    if len(vectors) != number:
        raise InputError(f"the first stage made {len(vectors)} vectors for {number} texts")
    dims = sorted({len(vector) for vector in vectors})
    if len(dims) > 1:
        raise InputError(f"the first stage made vectors of several dimensions: {', '.join(map(str, dims))}")
    found = torch.tensor(vectors, dtype=torch.float32, device="cpu").reshape(number, dims[0] if dims else 0)
    if not torch.isfinite(found).all():
        raise InputError("the first stage made vectors that are not all finite")
    return found
