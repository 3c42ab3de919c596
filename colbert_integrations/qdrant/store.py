"""QdrantStore: the store on a Qdrant collection, on a server, a cluster or in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from types import NoneType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from ..checks import check_whole_number
from ..embeddings import TokenEmbeddings
from ..errors import InputError, StoreError, StoreServerError
from ..fingerprint import Fingerprint
from ..index import Filter, Hit, Search, Store, StoredDocument
from ..index.checks import (
    candidate_count,
    check_count,
    check_dtype,
    check_embeddings,
    check_ids,
    check_queries,
    check_same,
    check_same_dim,
    check_search,
    checked_documents,
    checked_metadata,
    finite_as,
)
from ..index.store import Metadata
from .batches import batches
from .clients import client_of
from .collection import FIRST_STAGE, Collection, Form, IndexKind, bound, check_first_stage, made, opened
from .connection import Connection, Request, Steps, ask
from .failures import TOO_LARGE
from .filters import EXACT, METADATA, Wanted, among, wanted
from .first_stage import first_stage_of
from .pages import PAGE, Page
from .points import (
    AROUND_BYTES,
    TEXT_HASH,
    Prepared,
    batched,
    document_of,
    metadata_payload,
    payload_of,
    point_id,
    size_of,
    text_hash,
)
from .search import Query, Searching
from .wire import Wire

__all__ = ["QdrantStore"]

T = TypeVar("T")

# A server takes documents of fewer floats than this.
_TOO_MANY_FLOATS = 2**20
_BATCH_BYTES = 4 * 2**20
# Points named in one request at most, and the bytes of each: 40, and with a first stage twice.
_NAMED, _NAME_BYTES = 10_000, 80
# For async calls that need a thread: they mostly wait for the server, and none should wait for those before it.
_THREADS = 16


class QdrantStore(Store):
    """Keeps token embeddings in a Qdrant collection, and searches them there.

    Everything is as with the store in memory, but for what a server can't do: an ``upsert`` of many documents is
    several requests, so that others may see a part of it for a while, and one that fails in the middle says how many
    documents are stored; upsert all again, which is safe. An async call that is cancelled sends no further request, and
    what was sent is stored. ``iter_documents`` is no snapshot. Any number of stores, in any processes, may use
    one collection. Nothing is asked of the server before the first call.

    Args:
        location: URL of a server such as ``"http://localhost:6333"``, ``":memory:"`` or a folder for Qdrant's local
            mode in this process, which is for tests and small collections, or a client, which stays open when the
            store is closed.
        collection: Name of the collection; made by the first ``upsert`` or ``bind`` if it is not there.
        async_client: For async calls. None: one of the same settings is made for each event loop, if there is a server.
        api_key: Of the server.
        timeout: Seconds to wait for a server that says nothing; an answer that trickles in may take longer. None: 60.
        prefer_grpc: Whether requests go by gRPC, to port 6334: loading is quicker, requests are smaller.
        dtype: How vectors are kept: ``"float16"``, or ``"float32"`` for twice the memory and every last digit.
        on_disk: Whether vectors are read from disk as they are searched, instead of being kept in memory.
        shard_number: In how many parts the collection is spread over a cluster, when it is made. None: the server's
            default.
        replication_factor: How many copies of each part there are, when it is made. None: the server's default.
        quantization: Keep codes too: ``"int8"``, ``"binary"``, or a quantization of ``qdrant_client.models``. They
            serve ``search="codes"`` only.
        first_stage: Keep one vector for each document too, by which ``search="first_stage"`` finds candidates:
            ``"mean"`` of its token vectors, or an embedding model of LangChain or LlamaIndex, which gets the texts.
        first_stage_name: What this model is called; another one's collection is refused. None: by its ``model_name`` or
            ``model``, or else by its class.
        search: What a search does unless it says otherwise. ``"exact"``: MaxSim with every document. ``"codes"``, with
            ``quantization``: a pass over the codes, then MaxSim with the candidates. ``"first_stage"``: candidates by
            one vector each, then MaxSim with them; what the first stage does not find is lost.
        candidates: How many documents a candidate stage hands on. None: ``max(20, 2 * k)`` for ``"codes"``,
            ``max(500, 5 * k)`` for ``"first_stage"``.
        payload_indexes: Keys of metadata to index for filters, as ``"string"``, ``"number"``, ``"boolean"`` or
            ``"date"``.
        vector_name: Name of the vector that holds the token vectors.
        batch_bytes: Maximum number of bytes of a request; one document alone may take more.
        retries: How often a request is tried again that failed for a reason that may pass, after longer and longer
            pauses.

    Raises:
        InputError: If an argument is invalid.
        StoreError: If a folder is in use by another process.

    Example:
        >>> import torch
        >>> store = QdrantStore(":memory:")
        >>> store.upsert(["a", "b"], TokenEmbeddings.from_list([torch.eye(2), -torch.eye(2)]), metadatas=[{"n": 1}, {}])
        >>> [hit.id for hit in store.search(TokenEmbeddings.from_list([torch.eye(2)]), k=2)[0]]
        ['a', 'b']
        >>> store.close()
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | QdrantClient,
        collection: str = "colbert",
        *,
        async_client: AsyncQdrantClient | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        prefer_grpc: bool = False,
        dtype: Literal["float16", "float32"] = "float16",
        on_disk: bool = False,
        shard_number: int | None = None,
        replication_factor: int | None = None,
        quantization: Literal["int8", "binary"] | models.QuantizationConfig | None = None,
        first_stage: Literal["mean"] | Any | None = None,
        first_stage_name: str | None = None,
        search: Search = "exact",
        candidates: int | None = None,
        payload_indexes: Mapping[str, IndexKind] | None = None,
        vector_name: str = "colbert",
        batch_bytes: int = _BATCH_BYTES,
        retries: int = 4,
    ) -> None:
        super().__init__(threads=_THREADS)
        check_dtype(dtype)
        if not isinstance(collection, str) or not collection:
            raise InputError(f"collection must be a name, not {collection!r}")
        check_whole_number("retries", retries, least=0)
        for name, switch in (("prefer_grpc", prefer_grpc), ("on_disk", on_disk)):
            if not isinstance(switch, bool):  # "false", from a file or an environment, would count as true
                raise InputError(f"{name} must be True or False, not {switch!r}")
        if not isinstance(payload_indexes, (Mapping, NoneType)):
            raise InputError(f"payload_indexes must map keys to their kinds, not be a {type(payload_indexes).__name__}")
        if not isinstance(async_client, (AsyncQdrantClient, NoneType)):
            raise InputError(f"async_client must be an AsyncQdrantClient, not {type(async_client).__name__}")
        self._first = first_stage_of(first_stage, first_stage_name)
        self._form = Form(
            vector_name,
            dtype,
            on_disk,
            shard_number,
            replication_factor,
            quantization,
            self._first,
            dict(payload_indexes or {}),
        )
        self.check_search(search)
        self.search_default = search
        self.candidates_default = check_count("candidates", candidates)
        self._batch_bytes = check_count("batch_bytes", batch_bytes) or _BATCH_BYTES
        self._collection: Collection | None = None
        self._closed = False
        client, owned = client_of(location, api_key, timeout, prefer_grpc)
        self._connection = Connection(client, collection, retries, async_client, owned)
        if async_client is not None and self._connection.local:
            raise InputError("async_client is for servers; local mode has none: leave it out")
        self._wire = Wire(dtype, text=not (self._connection.local or self._connection.binary))

    # --------------------------------------------------------------------------------------------------- properties

    @property
    def client(self) -> QdrantClient:
        """The client, for what a store does not do: snapshots, aliases, deleting the collection."""
        return self._connection.client

    @property
    def collection(self) -> str:
        """Name of the collection."""
        return self._connection.collection

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors; None until the first ones are stored, or ``bind`` records the model."""
        found = self._run(self._opened())
        return None if found is None else found.dim

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The model whose vectors these are; None until ``bind`` records it."""
        found = self._run(self._opened(unnamed=True))
        return None if found is None else found.fingerprint

    def bind(self, fingerprint: Fingerprint) -> None:
        """Record which model the vectors come from; see ``Store.bind``. It is kept with the collection."""
        self._run(self._bind(fingerprint))

    def _bind(self, fingerprint: Fingerprint) -> Steps[None]:
        where = f"the collection {self._connection.collection!r}"
        # Look again: it may have been made anew since, for another model.
        before, self._collection = self._collection, None
        found = yield from self._opened(unnamed=True)
        if found is None:
            found = yield from self._made(fingerprint.dim, fingerprint)
        if found.fingerprint is None:
            check_same_dim(found.dim, fingerprint, where)
            found = yield from bound(self._connection, self._form, found, fingerprint)
        check_same(_by_its_name_here(found.fingerprint, before), fingerprint, where)
        kept = found.fingerprint
        # Under this name here; there it stays as it is, since a key that may only read opens an index too.
        if kept is not None and fingerprint.encodings and [*fingerprint.encodings] != [*kept.encodings]:
            yield from bound(self._connection, self._form, found, replace(kept, encodings=fingerprint.encodings))
        self._collection = replace(found, fingerprint=fingerprint.keeping_encodings_of(kept))

    # ------------------------------------------------------------------------------------------------------ writing

    def upsert(
        self,
        ids: Sequence[str],
        embeddings: TokenEmbeddings,
        texts: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Store documents; one whose id is there replaces the old one. See ``Store.upsert``.

        Documents go in requests of about ``batch_bytes``, in smaller ones where the server does not take that much. If
        one fails for good, the error says how many documents are stored; the others are as before, or, where an answer
        was lost, may be stored too.

        Args:
            ids: Their ids, not empty; of a repeated one the last counts.
            embeddings: Their vectors, at least one each, and fewer than 2**20 numbers each.
            texts: Their texts. None: none.
            metadatas: JSON-able data with string keys for each. None: empty.

        Raises:
            InputError: If anything can't be stored; nothing is, then, unless it is that the server does not take a
                document that large.
            StoreServerError: If the server refuses a request or does not answer.
            StoreError: If the store is closed, or the collection can't be used.
        """
        self._check_open()
        documents = self._prepared(ids, embeddings, texts, metadatas)
        if documents:
            self._run(self._upsert(documents, embeddings.dim))

    def _prepared(
        self,
        ids: Sequence[str],
        embeddings: TokenEmbeddings,
        texts: Sequence[str | None] | None,
        metadatas: Sequence[Metadata | None] | None,
    ) -> list[Prepared]:
        """What can be stored, checked as far as that goes without the server."""
        names, kept_texts, kept_metadatas = checked_documents(ids, embeddings, texts, metadatas)
        if not names:
            return []
        kept = TokenEmbeddings(finite_as(embeddings.to("cpu"), self._form.dtype, names), embeddings.offsets.cpu())
        for name, matrix in zip(names, kept, strict=True):
            if matrix.numel() >= _TOO_MANY_FLOATS:
                raise InputError(
                    f"document {name!r} has {len(matrix)} vectors of dim {kept.dim}: a Qdrant server takes at most "
                    f"{(_TOO_MANY_FLOATS - 1) // kept.dim}; split it, or pool its vectors"
                )
        payloads = [payload_of(*row) for row in zip(names, kept_texts, kept_metadatas, strict=True)]
        sizes = list(map(size_of, payloads))
        firsts = None if self._first is None else self._first.of_documents(kept, kept_texts, names)
        last = {name: place for place, name in enumerate(names)}  # of a repeated id the last counts
        return [
            Prepared(
                name,
                payloads[place],
                sizes[place],
                {self._form.vector: kept[place]} | ({} if firsts is None else {FIRST_STAGE: firsts[place]}),
            )
            for name, place in last.items()
        ]

    def _upsert(self, documents: Sequence[Prepared], dim: int) -> Steps[None]:
        found = (yield from self._opened()) or (yield from self._made(dim))
        if found.dim != dim:
            raise InputError(f"the store holds vectors of dim {found.dim}, not {dim}")
        if self._first is not None:
            check_first_stage(found, len(documents[0].vectors[FIRST_STAGE]), self._connection.name)
        elif found.first_stage_dim is not None:
            raise StoreError(
                f"the collection {self._connection.collection!r} was made with a first stage, which would not find "
                "documents that are stored without its vector: make the store with first_stage= to write here"
            )
        yield from _written(
            [document.name for document in documents],
            batched(documents, self._wire, self._batch_bytes),
            lambda points: Request("upsert", {"points": points, "wait": True}),
        )

    def set_metadata(
        self, ids: Sequence[str], metadatas: Sequence[Metadata], texts: Sequence[str] | None = None
    ) -> None:
        """Replace the metadata of documents; see ``Store.set_metadata``."""
        self._run(self._set_metadata(ids, metadatas, texts))

    def _set_metadata(
        self, ids: Sequence[str], metadatas: Sequence[Metadata], texts: Sequence[str] | None
    ) -> Steps[None]:
        metadata_of, text_of = checked_metadata(ids, metadatas, texts)
        found = yield from self._opened()
        hashed = found is not None and found.has_text_hashes
        operations = [_set_payload(name, one, text_of.get(name), hashed) for name, one in metadata_of.items()]
        if found is None:
            return
        yield from _written(
            list(metadata_of),
            batches(operations, itemgetter(1), self._batch_bytes),
            lambda some: Request("batch_update_points", {"update_operations": [one for one, _ in some], "wait": True}),
        )

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; see ``Store.delete``."""
        self._run(self._delete(ids))

    def _delete(self, ids: Sequence[str]) -> Steps[None]:
        points = [point_id(name) for name in check_ids(ids)]
        if (yield from self._opened()) is None:
            return
        for some in _parts(points, self._batch_bytes):
            yield from ask("delete", points_selector=models.PointIdsList(points=list[Any](some)), wait=True)

    # ------------------------------------------------------------------------------------------------------ reading

    def get(self, ids: Sequence[str], *, embeddings: bool = False) -> list[StoredDocument]:
        """Look documents up; see ``Store.get``. Vectors come in ``dtype``."""
        return self._run(self._get(ids, embeddings))

    def _get(self, ids: Sequence[str], embeddings: bool) -> Steps[list[StoredDocument]]:
        names = check_ids(ids)
        points = {name: point_id(name) for name in names}
        if (yield from self._opened()) is None:
            return []
        records: dict[str, models.Record] = {}
        page = Page(self._form.vector if embeddings else None)
        rest = list(points.values())
        while rest:
            some, rest = rest[: page.size], rest[page.size :]
            found = yield from ask("retrieve", ids=some, with_payload=True, with_vectors=self._vectors(embeddings))
            records.update({str(record.id): record for record in found})
            page.saw(found)
        return [self._document(records[points[name]]) for name in names if points[name] in records]

    def count(self) -> int:
        """Count the documents; see ``Store.count``."""
        return self._run(self._count())

    def _count(self) -> Steps[int]:
        if (yield from self._opened()) is None:
            return 0
        counted: models.CountResult = yield from ask("count", exact=True)
        return counted.count

    def ids(self, filter: Filter | None = None) -> list[str]:
        """List the ids of documents; see ``Store.ids``."""
        return self._run(self._ids(filter))

    def _ids(self, filter: Filter | None) -> Steps[list[str]]:
        which = wanted(filter)
        if (yield from self._opened()) is None:
            return []
        return sorted((yield from self._names(which, [()], whole=callable(filter))))

    def _names(self, which: Wanted, scopes: Sequence[Sequence[models.Condition]], whole: bool) -> Steps[list[str]]:
        """Ids of all documents that are wanted, read page by page; ``whole``: with their texts."""
        names = list[str]()
        fields = True if whole else ["id", METADATA, EXACT]
        for scope in scopes:
            filter, offset = which.filter(*scope), None
            while True:
                records, offset = yield from ask(
                    "scroll", scroll_filter=filter, with_payload=fields, limit=PAGE, offset=offset
                )
                documents = [document_of(record.payload) for record in records]
                names += [document.id for document in documents if which.test(document)]
                if offset is None:
                    break
        return names

    def iter_documents(self) -> Iterator[StoredDocument]:
        """All documents with their vectors, in no particular order, page by page.

        What others write meanwhile may be among them or not; no document comes twice.

        Yields:
            Documents.

        Raises:
            StoreError: If the store is closed, or the server does not answer.
        """
        if self._run(self._opened()) is None:
            return
        page, offset = Page(self._form.vector), None
        while True:
            records, offset = self._run(
                ask("scroll", with_payload=True, with_vectors=self._vectors(True), limit=page.size, offset=offset)
            )
            page.saw(records)
            yield from map(self._document, records)
            if offset is None:
                return

    def _vectors(self, embeddings: bool) -> list[str] | bool:
        return [self._form.vector] if embeddings else False

    def _document(self, record: models.Record) -> StoredDocument:
        vectors = record.vector.get(self._form.vector) if isinstance(record.vector, dict) else None
        if vectors is None:
            return document_of(record.payload)
        matrix = torch.from_numpy(np.asarray(vectors, dtype=np.float32))
        return document_of(record.payload, matrix.to(self._wire.torch_dtype))

    # -------------------------------------------------------------------------------------------------------- search

    def search(
        self,
        queries: TokenEmbeddings,
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Find the documents that score highest; see ``Store.search``.

        Args:
            queries: One or more queries.
            k: Maximum number of documents to find for each, at least 1.
            filter: Conditions, which the server applies before it scores, or a function, for which the metadata and
                texts of all documents are read first. None: every document.
            ids: Look among these documents only. None: among all.
            search: ``"exact"``, ``"codes"`` or ``"first_stage"``. None: the store's own choice.
            candidates: For a candidate stage, how many documents are scored exactly. None: the store's own choice.
            texts: What the queries say, for a first stage that makes vectors of texts.

        Returns:
            For each query at most ``k`` hits, score descending, then id ascending.

        Raises:
            InputError: If an argument can't be used, or the store was not made for this ``search``.
            StoreServerError: If the server refuses a request or does not answer.
            StoreError: If the store is closed, or the collection can't be used.
        """
        mode = self._mode(search)
        firsts = self._first_vectors(mode, queries, texts)
        return self._run(self._search(queries, k, filter, ids, mode, candidates, firsts))

    def _first_vectors(
        self, mode: Search, queries: TokenEmbeddings, texts: Sequence[str] | None
    ) -> torch.Tensor | None:
        """A vector for each query, if the search begins with them."""
        if mode != "first_stage" or self._first is None:
            return None
        check_embeddings("queries", queries)  # before anything is made of them
        return self._first.of_queries(queries, texts)

    def _search(
        self,
        queries: TokenEmbeddings,
        k: int,
        filter: Filter | None,
        ids: Sequence[str] | None,
        mode: Search,
        candidates: int | None,
        firsts: torch.Tensor | None,
    ) -> Steps[list[list[Hit]]]:
        check_embeddings("queries", queries)
        check_whole_number("k", k)
        number = candidate_count(mode, k, check_count("candidates", candidates) or self.candidates_default)
        which = wanted(filter)
        named = None if ids is None else check_ids(ids)
        found = yield from self._opened()
        if found is None or not len(queries):
            return [[] for _ in range(len(queries))]
        check_queries(queries, found.dim)
        if firsts is not None:
            check_first_stage(found, firsts.shape[1], self._connection.name)
        if mode == "codes" and not found.has_codes:
            raise InputError("search='codes' needs codes: make the collection with quantization='int8'")
        scopes = _scopes(named, self._batch_bytes)
        if not which.told_all:  # they are looked for here first, and named to the server
            scopes = _scopes((yield from self._names(which, scopes, whole=callable(filter))), self._batch_bytes)
            which = Wanted()
        plain = queries.to("cpu", torch.float32)
        asked = [place for place, length in enumerate(plain.lengths) if length]
        ready = [self._query(plain[place], None if firsts is None else firsts[place]) for place in asked]
        read = partial(self._get, embeddings=False)
        searching = Searching(self._form.vector, k, mode, number, self._batch_bytes, self._connection.local, read)
        hits = dict(zip(asked, (yield from searching.hits(ready, which, scopes)), strict=True))
        # To a query without vectors all documents are alike, and a server would not take it.
        alike = [] if len(asked) == len(plain) else (yield from self._alike(which, scopes, k))
        return [hits[place] if place in hits else list(alike) for place in range(len(plain))]

    def _query(self, tokens: torch.Tensor, first: torch.Tensor | None) -> Query:
        wire = self._wire.exact
        size = wire.size_of(tokens) + (0 if first is None else wire.size_of(first))
        return Query(wire.numbers(tokens), None if first is None else wire.numbers(first), size)

    def _alike(self, which: Wanted, scopes: Sequence[Sequence[models.Condition]], k: int) -> Steps[list[Hit]]:
        names = sorted((yield from self._names(which, scopes, whole=False)))[:k]
        return [Hit(found.id, 0.0, found.text, found.metadata) for found in (yield from self._get(names, False))]

    # -------------------------------------------------------------------------------------------------- async twins
    # Those that only wait for a server do it without a thread; those that work on vectors or metadata, which takes the
    # client its time as well, leave the event loop free.

    async def adelete(self, ids: Sequence[str]) -> None:
        """Do what ``delete`` does without blocking the event loop; see there for the arguments."""
        await self._arun(self._delete(ids))

    async def aget(self, ids: Sequence[str], *, embeddings: bool = False) -> list[StoredDocument]:
        """Do what ``get`` does without blocking the event loop; see there for the arguments."""
        if embeddings:
            return await super().aget(ids, embeddings=True)
        return await self._arun(self._get(ids, False))

    async def acount(self) -> int:
        """Do what ``count`` does without blocking the event loop."""
        return await self._arun(self._count())

    async def aids(self, filter: Filter | None = None) -> list[str]:
        """Do what ``ids`` does without blocking the event loop; see there for the arguments."""
        return await (super().aids(filter) if callable(filter) else self._arun(self._ids(filter)))

    async def asearch(
        self,
        queries: TokenEmbeddings,
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Do what ``search`` does without blocking the event loop; see there for the arguments."""
        if callable(filter):
            return await super().asearch(queries, k, filter, ids=ids, search=search, candidates=candidates, texts=texts)
        mode = self._mode(search)
        firsts = None
        if mode == "first_stage":  # another model may be asked, which takes its time
            firsts = await self._worker.run(self._first_vectors, mode, queries, texts)
        return await self._arun(self._search(queries, k, filter, ids, mode, candidates, firsts))

    async def aclose(self) -> None:
        """Do what ``close`` does without blocking the event loop."""
        await self._connection.aclose()
        await self._worker.run(self.close)

    # ----------------------------------------------------------------------------------------------------- lifecycle

    def close(self) -> None:
        """Close the connection, unless the client was given; further calls are errors."""
        self._closed = True
        self._connection.close()
        super().close()

    def __enter__(self) -> QdrantStore:
        return self

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    def _run(self, steps: Steps[T]) -> T:
        self._check_open()
        return self._connection.run(steps)

    async def _arun(self, steps: Steps[T]) -> T:
        self._check_open()
        if self._connection.local:
            return await self._worker.run(self._connection.run, steps)
        return await self._connection.arun(steps)

    def _opened(self, *, unnamed: bool = False) -> Steps[Collection | None]:
        """The collection, looked at once; None while it is not there. ``unnamed``: again, while it has no model."""
        known = self._collection
        # Another process may have said meanwhile whose vectors it holds.
        if known is None or (unnamed and known.fingerprint is None):
            self._collection = yield from opened(self._connection, self._form)
        return self._collection

    def _made(self, dim: int, fingerprint: Fingerprint | None = None) -> Steps[Collection]:
        self._collection = yield from made(self._connection, self._form, dim, fingerprint)
        return self._collection

    def check_search(self, search: Search) -> None:
        """Refuse a way to search that this store does not offer; see ``Store.check_search``."""
        check_search(search, without=("centroids",), where="a QdrantStore")
        if search == "first_stage" and self._first is None:
            raise InputError("search='first_stage' needs a first stage: make the store with first_stage=")

    def _mode(self, search: Search | None) -> Search:
        """The way to search, before another model is asked for a first stage."""
        self._check_open()
        mode = search or self.search_default
        self.check_search(mode)
        return mode

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"QdrantStore({self._connection.place!r}, {self._connection.collection!r}, {self._form.dtype}{closed})"


def _written(names: Sequence[str], batches: Iterable[list[T]], asked: Callable[[list[T]], Request]) -> Steps[None]:
    """Write batches, an entry for each of the names, in order; in halves where one is more than the server takes."""
    done, unsure = 0, False
    for batch in batches:
        parts = [batch]
        while parts:
            some = parts.pop()
            try:
                yield asked(some)._replace(several=len(some) > 1)
            except StoreServerError as error:
                unsure |= error.unsure
                if error.status != TOO_LARGE or len(some) == 1:
                    raise _not_written(error, names, done, unsure) from error
                middle = len(some) // 2
                parts += [some[middle:], some[:middle]]  # the first half is next
            else:
                done += len(some)


def _not_written(
    error: StoreServerError, names: Sequence[str], done: int, unsure: bool
) -> StoreServerError | InputError:
    """The error for the document ``names[done]``, which failed alone, or with others in its batch."""
    several = len(names) > 1
    if unsure:
        told = f". At least {done} of {len(names)} documents are stored, what was on its way may be too"
    else:
        told = f". {done} of {len(names)} documents are stored, the others are as they were"
    told = told if several else ""
    if error.status != TOO_LARGE:
        again = ": do the same again, which does no harm" if several else ""
        return StoreServerError(f"{error}{told}{again}", error.status, unsure)
    # An error of the document's: who writes many goes on without it.
    return InputError(
        f"document {names[done]!r} is larger than the server takes: split it, pool its vectors, or raise the limit of "
        f"the server, or of a proxy before it{told}"
    )


def _set_payload(name: str, metadata: Metadata, text: str | None, hashed: bool) -> tuple[models.UpdateOperation, int]:
    """What replaces the metadata of a document that has a text, None: any; and about how many bytes that takes."""
    payload, told = metadata_payload(metadata), dict[str, str]()
    # By a filter, since a list of points that has an unknown one is an error.
    must = [among([point_id(name)])]
    if text is not None:
        told = {TEXT_HASH: text_hash(text)} if hashed else {"text": text}
        must += [models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in told.items()]
    setting = models.SetPayload(payload=payload, filter=models.Filter(must=must))
    size = size_of({**payload, "id": name, **told}) + AROUND_BYTES
    return models.SetPayloadOperation(set_payload=setting), size


def _parts(points: Sequence[str], batch_bytes: int) -> Iterator[Sequence[str]]:
    """Points by id, as many at a time as a request may name."""
    most = max(1, min(_NAMED, batch_bytes // _NAME_BYTES))
    return (points[start : start + most] for start in range(0, len(points), most))


def _scopes(names: Sequence[str] | None, batch_bytes: int) -> list[list[models.Condition]]:
    """Conditions for documents by id, some at a time; one without any for all documents."""
    if names is None:
        return [[]]
    points = [point_id(name) for name in dict.fromkeys(names)]
    return [[among(some)] for some in _parts(points, batch_bytes)]


def _by_its_name_here(found: Fingerprint | None, before: Collection | None) -> Fingerprint | None:
    """The model of a collection, by the name under which it was bound here, if it is still that one."""
    here = None if before is None else before.fingerprint
    return here if here is not None and found is not None and here.digest == found.digest else found
