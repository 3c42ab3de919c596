"""Searching: requests for so many points, and for more of them until the best are known for certain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qdrant_client import models

from ..errors import StoreServerError
from ..index import Hit, Search, StoredDocument
from ..index.metadata import clone
from .batches import batches
from .collection import FIRST_STAGE
from .connection import Steps, ask
from .filters import EXACT, METADATA, Wanted
from .points import document_of

__all__ = ["Query", "Searching"]

# How many times as many points are asked for, where those that came don't settle what the best are.
_GROWTH = 4
# At least so many times as many documents are scored exactly as are asked for, after a pass over codes.
_OVERSAMPLING = 2
# What a query has beside its vectors and its filter.
_AROUND_BYTES = 300


@dataclass(frozen=True)
class Query:
    """A query as the server takes it.

    Attributes:
        tokens: Its token vectors, at least one.
        first: Its vector for the first stage, if there is one.
        size: Bytes that these take in a request, at most.
    """

    tokens: list[list[float]]
    first: list[float] | None
    size: int


@dataclass(frozen=True)
class Searching:
    """How to search.

    Attributes:
        vector: Name of the vector that holds the documents' token vectors.
        k: Maximum number of documents to find for each query.
        search: The candidate stage, or ``"exact"``.
        candidates: How many documents a candidate stage hands on.
        batch_bytes: Maximum number of bytes of a request.
        local: Whether this is local mode, which has nothing that could be tuned.
        documents: Reads documents by id, without their vectors.
    """

    vector: str
    k: int
    search: Search
    candidates: int
    batch_bytes: int
    local: bool
    documents: Callable[[Sequence[str]], Steps[list[StoredDocument]]]

    def hits(
        self, queries: Sequence[Query], wanted: Wanted, scopes: Sequence[Sequence[models.Condition]]
    ) -> Steps[list[list[Hit]]]:
        """Find the best documents.

        Args:
            queries: The queries.
            wanted: Which documents may be found.
            scopes: Sets of further conditions. Documents that meet one of them are looked at; none meets two.

        Returns:
            For each query at most ``k`` hits, score descending, then id ascending.
        """
        best: list[list[Hit]] = [[] for _ in queries]
        for scope in scopes:
            found = yield from self._within(queries, wanted, wanted.filter(*scope))
            best = [_ordered([*one, *more])[: self.k] for one, more in zip(best, found, strict=True)]
        return best

    def _within(self, queries: Sequence[Query], wanted: Wanted, filter: models.Filter | None) -> Steps[list[list[Hit]]]:
        found: dict[int, list[Hit]] = {}
        # A first stage has no more than its candidates.
        most = self.candidates if self.search == "first_stage" else sys.maxsize
        limits = dict.fromkeys(range(len(queries)), min(self.k + 1, most))
        tied = set[int]()
        while limits:
            answers = yield from self._asked(queries, limits, filter, _bare(wanted) if tied else True)
            for number, points in answers.items():
                hits = _ordered([hit for point in points if (hit := _hit(point, wanted)) is not None])
                limit = limits.pop(number)
                if len(points) < limit or limit == most or self._settled(points, hits):
                    found[number] = hits[: self.k]
                else:
                    limits[number] = min(limit * _GROWTH, most)
                    tied.add(number)
        whole = yield from self._whole({hit.id for number in tied for hit in found[number]}, wanted)
        return [_filled(found[number], whole) if number in tied else found[number] for number in range(len(queries))]

    def _whole(self, names: set[str], wanted: Wanted) -> Steps[dict[str, StoredDocument]]:
        """Documents by id, but for those that somebody has deleted or changed meanwhile."""
        documents = (yield from self.documents(sorted(names))) if names else []
        return {document.id: document for document in documents if wanted.test(document)}

    def _settled(self, points: Sequence[models.ScoredPoint], hits: Sequence[Hit]) -> bool:
        """Whether no point that did not come can be among the best: the order of equal ones is the server's."""
        return len(hits) >= self.k and points[-1].score < hits[self.k - 1].score

    def _asked(
        self, queries: Sequence[Query], limits: dict[int, int], filter: models.Filter | None, fields: bool | list[str]
    ) -> Steps[dict[int, list[models.ScoredPoint]]]:
        answers: dict[int, list[models.ScoredPoint]] = {}
        # The filter goes with each query, and with its first stage once more.
        more = 0 if filter is None else 2 * len(filter.model_dump_json(exclude_none=True).encode())
        for numbers in batches(limits, lambda number: queries[number].size + more + _AROUND_BYTES, self.batch_bytes):
            requests = [self._request(queries[number], limits[number], filter, fields) for number in numbers]
            responses = yield from ask("query_batch_points", requests=requests)
            if len(responses) != len(requests):
                raise StoreServerError(f"{len(requests)} queries got {len(responses)} answers: is it a Qdrant server?")
            answers.update({number: reply.points for number, reply in zip(numbers, responses, strict=True)})
        return answers

    def _request(
        self, query: Query, limit: int, filter: models.Filter | None, fields: bool | list[str]
    ) -> models.QueryRequest:
        prefetch = None
        if self.search == "first_stage":
            prefetch = models.Prefetch(query=query.first, using=FIRST_STAGE, filter=filter, limit=self.candidates)
        return models.QueryRequest(
            prefetch=prefetch,
            query=query.tokens,
            using=self.vector,
            filter=filter,
            params=self._params(limit),
            limit=limit,
            with_payload=fields,
        )

    def _params(self, limit: int) -> models.SearchParams | None:
        if self.local:
            return None
        if self.search != "codes":
            # By the vectors as they are, of every document that it gets.
            return models.SearchParams(exact=True, quantization=models.QuantizationSearchParams(ignore=True))
        # Scores of codes are far off: those of vectors as they are decide, of more documents than are asked for.
        oversampling = max(_OVERSAMPLING, self.candidates / limit)
        quantization = models.QuantizationSearchParams(ignore=False, rescore=True, oversampling=oversampling)
        return models.SearchParams(quantization=quantization)


def _bare(wanted: Wanted) -> list[str]:
    """The fields by which equal documents, which may be all there are, are ordered and told from unwanted ones."""
    return ["id"] if wanted == Wanted() else ["id", METADATA, EXACT]


def _filled(hits: Sequence[Hit], whole: Mapping[str, StoredDocument]) -> list[Hit]:
    """Hits with the texts and metadata that they came without."""
    there = [(hit, whole[hit.id]) for hit in hits if hit.id in whole]
    return [replace(hit, text=document.text, metadata=clone(document.metadata)) for hit, document in there]


def _hit(point: models.ScoredPoint, wanted: Wanted) -> Hit | None:
    document = document_of(point.payload)
    if not wanted.test(document):
        return None
    return Hit(document.id, float(point.score), document.text, document.metadata)


def _ordered(hits: list[Hit]) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))
