"""VLLMScorer: the scores that vLLM servers compute by themselves, which are not the model's."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from ..checks import check_text
from ..errors import InputError, NonFiniteError
from ..ranking import RankedDocument, check_top_n, ranked
from .link import Link
from .servers import Server, Servers
from .settings import ServerSettings, roots
from .spelling import PLAIN, read_spelling
from .wire import read_scores

__all__ = ["VLLMScorer"]

T = TypeVar("T")

# Documents in a request: answers stay small, and several servers share a list.
_DOCUMENTS_PER_REQUEST = 64


class VLLMScorer:
    """Late interaction computed by vLLM servers from plain text (``POST /score``).

    Its scores are not those of ``ColBERT``, which are those that the checkpoint was trained for. vLLM sums the maxima
    over all tokens: queries are not expanded, the skiplist does not hold, long documents are cut instead of windowed,
    and vectors never leave the server, so that they can't be stored. With ``checkpoint`` texts get its prompts, its
    lengths, and its markers where its tokenizer reads them as one token each, as those of PyLate do; BERT's
    ``[unused0]`` can't be written as text, so checkpoints in the manner of colbertv2.0 go without markers, and rank
    worse for it. For the model's own scores use ``ColBERT(model, forward=VLLMForward(urls))``.

    Nothing else in this package uses it. Safe to share between threads. Requests are spread and sent again as by
    ``VLLMForward``. Pickles and copies carry settings, without the key and the connections.

    Args:
        urls: Root of a server, such as ``"http://gpu-1:8000"``, or of several that serve the same model.
        checkpoint: Folder or name of the checkpoint that they serve, which says how texts are written. None: texts go
            as they are, and one that is longer than the server takes is refused.
        model: The name that the servers give the model. None: the one that they serve.
        api_key: Sent as a bearer token. None: the variable ``VLLM_API_KEY``, if it is set.
        concurrency: Requests under way at most, over all servers. None: 8 for each server.
        timeout: Seconds that a request may take.
        retries: How often a request is sent again when all servers have failed it.

    Attributes:
        markers: Text of the markers that are sent before queries and documents; empty where none is.

    Raises:
        InputError: If an argument is invalid.
        CheckpointError: If the checkpoint is not there or can't be read.

    Source:
        vllm/entrypoints/pooling/scoring of vLLM 0.32.

    Example:
        >>> VLLMScorer("http://gpu-1:8000").rank("no documents, no request", [])
        []
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        checkpoint: str | os.PathLike[str] | None = None,
        model: str | None = None,
        *,
        api_key: str | None = None,
        concurrency: int | None = None,
        timeout: float = 120.0,
        retries: int = 3,
    ) -> None:
        self.settings = ServerSettings(roots(urls), model, api_key, concurrency, timeout, retries)
        self.checkpoint = None if checkpoint is None else _checkpoint_name(checkpoint)
        self._query, self._document = (PLAIN, PLAIN) if self.checkpoint is None else read_spelling(self.checkpoint)
        self.markers = self._query.marker, self._document.marker
        self._link = Link(partial(Servers, self.settings))

    def rank(self, query: str, documents: Sequence[str], top_n: int | None = None) -> list[RankedDocument]:
        """Order documents by the servers' scores.

        Args:
            query: The query.
            documents: The candidates, in any order; repeated ones are scored once and all returned.
            top_n: Maximum number of documents to return, at least 1. None: all.

        Returns:
            The best documents, score descending, equal ones in the order given; empty for no documents.

        Raises:
            InputError: If an argument is invalid.
            NonFiniteError: If a score is not a number.
            RemoteError: If the servers refuse, fail, or do not answer.
        """
        check_top_n(top_n)
        return ranked(_wait(self._start(query, documents)), top_n)

    async def arank(self, query: str, documents: Sequence[str], top_n: int | None = None) -> list[RankedDocument]:
        """Do what ``rank`` does without blocking the event loop.

        Args:
            query: The query.
            documents: The candidates.
            top_n: Maximum number of documents to return. None: all.

        Returns:
            As ``rank``. A cancelled call calls its requests off.

        Raises:
            InputError: As ``rank``.
            NonFiniteError: As ``rank``.
            RemoteError: As ``rank``.
        """
        check_top_n(top_n)
        return ranked(await asyncio.wrap_future(self._start(query, documents)), top_n)

    def score(self, query: str, documents: Sequence[str]) -> list[float]:
        """Score documents.

        Args:
            query: The query.
            documents: The documents.

        Returns:
            A score for each, in their order; higher is better, comparable within one query only.

        Raises:
            InputError: If an argument is invalid.
            NonFiniteError: If a score is not a number.
            RemoteError: If the servers refuse, fail, or do not answer.
        """
        return _wait(self._start(query, documents))

    async def ascore(self, query: str, documents: Sequence[str]) -> list[float]:
        """Do what ``score`` does without blocking the event loop.

        Args:
            query: The query.
            documents: The documents.

        Returns:
            As ``score``. A cancelled call calls its requests off.

        Raises:
            InputError: As ``score``.
            NonFiniteError: As ``score``.
            RemoteError: As ``score``.
        """
        return await asyncio.wrap_future(self._start(query, documents))

    def close(self) -> None:
        """Close the connections once the requests that are under way have ended; the next call opens them again."""
        self._link.close()

    def _start(self, query: str, documents: Sequence[str]) -> Future[list[float]]:
        _check_texts(query, documents)
        return self._link.start(lambda servers: self._scores(servers, query, documents))

    async def _scores(self, servers: Servers, query: str, documents: Sequence[str]) -> list[float]:
        unique = list(dict.fromkeys(documents))  # equal texts must get equal scores, wherever a server batches them
        starts = range(0, len(unique), _DOCUMENTS_PER_REQUEST)
        parts = [unique[start : start + _DOCUMENTS_PER_REQUEST] for start in starts]
        found = await _all([servers.anywhere(partial(self._ask, servers, query, part)) for part in parts])
        scores = dict(zip(unique, chain.from_iterable(found), strict=True))
        for index, text in enumerate(documents):
            if not math.isfinite(scores[text]):
                raise NonFiniteError(f"document {index} scores {scores[text]}: start the server with --dtype float32")
        return [scores[text] for text in documents]

    async def _ask(self, servers: Servers, query: str, documents: list[str], server: Server) -> list[float]:
        request = {
            "queries": self._query(query),
            "documents": [self._document(text) for text in documents],
            "max_tokens_per_query": self._query.most_tokens,
            "max_tokens_per_doc": self._document.most_tokens,
        }
        answer = await servers.ask(server, "/score", request)
        return read_scores(server.url, answer, len(documents))

    def __copy__(self) -> VLLMScorer:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> VLLMScorer:
        return self

    def __reduce__(self) -> tuple[Callable[[], VLLMScorer], tuple[()]]:
        return partial(VLLMScorer, checkpoint=self.checkpoint, **self.settings.arguments()), ()

    def __repr__(self) -> str:
        return f"VLLMScorer({list(self.settings.urls)}, checkpoint={self.checkpoint!r}, markers={self.markers})"


def _checkpoint_name(given: object) -> str:
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(name, str) or not name:
        raise InputError(f"checkpoint must be the name or path of a checkpoint, not {given!r}")
    return name


async def _all(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; where one fails, the others are called off."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _wait(future: Future[T]) -> T:
    try:
        return future.result()
    finally:
        future.cancel()  # of no effect unless the wait was interrupted


def _check_texts(query: object, documents: object) -> None:
    check_text("query", query)
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Sequence):
        raise InputError(f"documents must be a list of strings, not {type(documents).__name__}")
    for index, text in enumerate(documents):
        check_text(f"documents[{index}]", text)
