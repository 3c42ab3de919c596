"""ColBERTIndex: a model and a store joined, so that texts go in and texts come out."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import zip_longest
from typing import Any, NoReturn, ParamSpec, TypeVar, overload

from .checks import as_list, check_pool_factor, check_threshold, check_whole_number, is_list, keys_of
from .cuts import callers_stacklevel
from .embeddings import TokenEmbeddings
from .errors import AddError, InputError, RepeatedIdsWarning, StoreError
from .index import Filter, Hit, MemoryStore, Search, Store, StoredDocument, check_ids, parse_filter
from .loading import Loader, Row
from .location import open_store
from .model import ColBERT
from .observing import logged, timed
from .progress import progress_bar
from .ranking import RankedDocument, check_normalizable, normalized_score
from .settings import DEFAULT_MODEL
from .stale import warn_of_other_tokens
from .worker import Worker

__all__ = ["ColBERTIndex"]

# Texts that are in memory at once while adding: enough to find neighbours of like length to encode together.
_WINDOW = 512
# Async calls that add, or rank, at once. In threads of their own: those of the model would be held up by a slow store.
_ADDING_THREADS, _RANKING_THREADS = 8, 32

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class ColBERTIndex:
    """Texts, searchable by late interaction.

    A call that needs the model's weights loads them first if they are not in memory, and then may raise what the
    constructor of ``ColBERT`` raises. With a model whose ``forward=`` is on servers it may raise ``RemoteError``.

    Args:
        model: A name, a path or a ``ColBERT``.
        store: Where vectors, texts and metadata are kept: a store, or the location of one such as
            ``"qdrant+http://localhost:6333/my-collection"``. None: a new ``MemoryStore``, in this process.
        pool_factor: About 1 in ``pool_factor`` vectors of a document is kept, by merging similar ones; 1 keeps all.

    Raises:
        InputError: If an argument is invalid.
        FingerprintError: If the store holds vectors of another model.
        StoreError: If the store can't be used.
        CheckpointError: If the model has to be loaded to find that out, and can't be.
        MissingExtraError: If a package that the store or the model needs is not installed.

    Example:
        >>> index = ColBERTIndex("bundled/all-MiniLM-L6-v2")
        >>> index.add(["How to bake bread", "Why wings lift a plane"], ids=["bread", "wings"])
        ['bread', 'wings']
        >>> index.search("how do planes fly", k=1)[0].text
        'Why wings lift a plane'
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ColBERT = DEFAULT_MODEL,
        store: Store | str | None = None,
        *,
        pool_factor: float = 1,
    ) -> None:
        check_pool_factor(pool_factor)
        self.model = model if isinstance(model, ColBERT) else ColBERT.shared(model)
        self.store: Store = _opened(store)
        self.pool_factor = pool_factor
        self._alike = set[str]()  # ids encoded with the current settings, kept from one call of add to the next
        self._worker = Worker(_ADDING_THREADS)
        self._ranking_worker = Worker(_RANKING_THREADS)
        if self.store.fingerprint is not None:
            self.store.bind(self.model.fingerprint)
            warn_of_other_tokens(self.store, self.model)

    # ------------------------------------------------------------------------------------------------------- writing

    def add(
        self,
        texts: Iterable[str],
        ids: Iterable[str | None] | None = None,
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        reencode: bool = False,
        show_progress: bool | None = None,
    ) -> list[str]:
        """Encode and store texts; one whose id is there replaces the old one.

        A document that is there with the same text is not encoded again, so running this twice costs little. Texts
        may come from a generator: only a few hundred are in memory at once.

        Args:
            texts: The texts.
            ids: An id for each, with a warning where one comes again soon with another text. None, for one or for all:
                a hash of text and metadata, so that the same document is stored once.
            metadatas: JSON-able data with string keys for each. None: empty.
            reencode: Whether texts that are there unchanged are encoded again, as after a change of
                ``long_documents`` or ``pool_factor``. False: they keep their vectors, with a warning where settings
                have changed.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Returns:
            The id of each text, in order.

        Raises:
            InputError: If the arguments are not lists or generators of one length.
            AddError: If some documents can't be stored, after all others were; it lists them and says why.
            StoreError: If the store can't be used.
            MissingExtraError: If vectors are to be merged and scipy is not installed.
        """
        done = list[str]()
        for added in self._steps(texts, ids, metadatas, reencode, show_progress):
            done += added
        return done

    def _steps(
        self,
        texts: Iterable[str],
        ids: Iterable[str | None] | None,
        metadatas: Iterable[Mapping[str, Any] | None] | None,
        reencode: bool,
        show_progress: bool | None,
    ) -> Iterator[list[str]]:
        """Add window by window; the ids of each."""
        ids = keys_of(ids)
        total = _common_length(texts, *(column for column in (ids, metadatas) if column is not None))
        done, failures, replaced = list[str](), dict[str, Exception](), list[str]()
        loader = Loader(self.model, self.store, self.pool_factor, reencode=reencode, alike=self._alike)
        with progress_bar(total, show_progress, "Indexing") as bar:
            for loaded in loader.load(_rows(texts, ids, metadatas), _WINDOW):
                failures.update(loaded.failures)
                replaced += loaded.replaced
                done += loaded.ids
                bar.update(loaded.size)
                yield loaded.ids
        if failures:
            raise AddError(failures, done, self)
        if replaced:
            message = (
                f"{len(replaced)} of {len(done)} documents were replaced by later ones with the same id, such "
                f"as {replaced[0]!r}: give each document an id of its own, or leave ids out"
            )
            warnings.warn(message, RepeatedIdsWarning, stacklevel=callers_stacklevel())

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents.

        Args:
            ids: Their ids; unknown ones are passed over.

        Raises:
            InputError: If the ids are not a list of strings.
            StoreError: If the store can't be used.
        """
        self.store.delete(ids)

    def _bind(self) -> None:
        """Refuse vectors of another model, which may have come since this was made; bind what has no model yet."""
        # Where nothing is there yet, a search must not make it: a name may be misspelt, a key may only read.
        if self.store.fingerprint != self.model.fingerprint and self.store.dim is not None:
            self.store.bind(self.model.fingerprint)

    # ------------------------------------------------------------------------------------------------------- reading

    def get(self, ids: Sequence[str]) -> list[StoredDocument]:
        """Look documents up.

        Args:
            ids: Their ids.

        Returns:
            The documents that are there, in the order of ``ids``, without their vectors.

        Raises:
            InputError: If the ids are not a list of strings.
            StoreError: If the store can't be used.
        """
        return self.store.get(ids)

    @overload
    def search(  # type: ignore[overload-overlap]  # a string is a sequence of strings too; the first one counts
        self,
        query: str,
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        explain: bool = False,
        show_progress: bool | None = None,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        query: Sequence[str],
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        explain: bool = False,
        show_progress: bool | None = None,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        query: str | Sequence[str],
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        explain: bool = False,
        show_progress: bool | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Find the documents that answer a query best.

        ``score = sum_s max_t <q_s, d_t>``, divided by the number of query vectors if normalised.

        Args:
            query: A query, or several, which are searched together: quicker than one by one.
            k: Maximum number of documents to find for each, at least 1.
            filter: Conditions that documents must meet, such as ``{"year": {"$gte": 2020}}``, or a function of a
                ``StoredDocument``. None: all do.
            ids: Look among these documents only. None: among all.
            search: ``"exact"`` scores every document; for others see the store. None: the store's own choice.
            candidates: For a candidate stage, how many documents are scored exactly. None: the store's own choice.
            normalize_scores: Whether scores are means over the query's vectors, clamped to 0..1, instead of sums.
            score_threshold: Lowest score to return, on the scale of the scores returned. None: no limit.
            explain: Whether hits carry an ``explanation``, of their texts encoded once more: scores of stored vectors,
                which may be rounded or merged, can differ from it. Hits without a text get none.
            show_progress: Whether a bar shows how many queries are encoded. None: on a terminal or in a notebook, for
                work over two seconds.

        Returns:
            At most ``k`` hits, score descending, then id ascending; a list of them for each query of several.

        Raises:
            InputError: If an argument can't be used.
            StoreError: If the store can't be used.
            MissingExtraError: If the checkpoint merges vectors of queries and scipy is not installed.
        """
        with logged(_log, "search", self.model.about):
            texts = _queries(query)
            self.check_search(k, filter, search, candidates, score_threshold)
            named = None if ids is None else check_ids(ids)
            encoded = self._encode_queries(texts, normalize_scores, show_progress)
            with timed("score_s"):
                found = self.store.search(
                    encoded, k, filter, ids=named, search=search, candidates=candidates, texts=texts
                )
            found = self._finished(encoded, found, normalize_scores, score_threshold)
            if explain:
                found = self._explained(texts, found)
        return found[0] if isinstance(query, str) else found

    @overload
    async def asearch(  # type: ignore[overload-overlap]  # as for search
        self,
        query: str,
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        explain: bool = False,
        show_progress: bool | None = None,
    ) -> list[Hit]: ...

    @overload
    async def asearch(
        self,
        query: Sequence[str],
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        explain: bool = False,
        show_progress: bool | None = None,
    ) -> list[list[Hit]]: ...

    async def asearch(
        self,
        query: str | Sequence[str],
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        explain: bool = False,
        show_progress: bool | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Do what ``search`` does without blocking the event loop; see there for the arguments."""
        with logged(_log, "search", self.model.about):
            texts = _queries(query)
            self.check_search(k, filter, search, candidates, score_threshold)
            named = None if ids is None else check_ids(ids)
            encoded = await self.model.run_async(self._encode_queries, texts, normalize_scores, show_progress)
            with timed("score_s"):
                found = await self.store.asearch(
                    encoded, k, filter, ids=named, search=search, candidates=candidates, texts=texts
                )
            found = self._finished(encoded, found, normalize_scores, score_threshold)
            if explain:
                found = await self.model.run_async(self._explained, texts, found)
        return found[0] if isinstance(query, str) else found

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        ids: Sequence[str | None],
        top_n: int | None = None,
        *,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        explain: bool = False,
    ) -> list[RankedDocument]:
        """Order documents as ``ColBERT.rank`` does, with the stored vectors of those that are here.

        Args:
            query: The query.
            documents: The candidates.
            ids: The id of each, or None. A document that is stored under its id with the very same text is not
                encoded again; its score is that of its stored vectors, which may be rounded or pooled.
            top_n: Maximum number of documents to return, at least 1. None: all.
            normalize_scores: Whether scores are means over the query's vectors, clamped to 0..1, instead of sums.
            score_threshold: Lowest score to return, on the scale of the scores returned. None: no limit.
            explain: Whether the documents that are returned are explained: as texts, which are encoded for it.

        Returns:
            The best documents, by descending sum, equal ones in the order given.

        Raises:
            InputError: If an argument is invalid.
            NonFiniteError: If a score is not a number.
            StoreError: If the store can't be used.
            MissingExtraError: If the checkpoint merges vectors and scipy is not installed.
        """
        documents, ids = as_list("documents", documents), as_list("ids", keys_of(ids))
        if len(ids) != len(documents):
            raise InputError(f"{len(documents)} documents but {len(ids)} ids")
        named = check_ids(name for name in ids if name is not None and name != "")
        self._bind()
        stored = self.store.get(list(dict.fromkeys(named)), embeddings=True)
        known = {d.text: d.embeddings for d in stored if d.text is not None and d.embeddings is not None}
        return self.model.rank(
            query,
            documents,
            top_n,
            normalize_scores=normalize_scores,
            score_threshold=score_threshold,
            known=known,
            explain=explain,
        )

    async def arank(
        self,
        query: str,
        documents: Sequence[str],
        ids: Sequence[str | None],
        top_n: int | None = None,
        *,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        explain: bool = False,
    ) -> list[RankedDocument]:
        """Do what ``rank`` does without blocking the event loop; see there for the arguments."""
        return await self.run_async(
            self.rank,
            query,
            documents,
            ids,
            top_n,
            normalize_scores=normalize_scores,
            score_threshold=score_threshold,
            explain=explain,
        )

    async def run_async(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that ranks with this index in one of its own threads; see ``ColBERT.run_async``.

        Args:
            function: What to run.
            *args: Its arguments.
            **kwargs: Its arguments by name.

        Returns:
            What it returns.
        """
        return await self._ranking_worker.run(function, *args, **kwargs)

    def check_search(
        self,
        k: int = 10,
        filter: Filter | None = None,
        search: Search | None = None,
        candidates: int | None = None,
        score_threshold: float | None = None,
    ) -> None:
        """Refuse arguments that ``search`` would refuse, before the model is loaded.

        Args:
            k: As of ``search``.
            filter: As of ``search``.
            search: As of ``search``.
            candidates: As of ``search``.
            score_threshold: As of ``search``.

        Raises:
            InputError: If one is invalid, or the store does not offer the way to search.
            FilterError: If the filter uses a key, operator or value that filters do not support.
        """
        check_whole_number("k", k)
        if candidates is not None:
            check_whole_number("candidates", candidates)
        if filter is not None and not callable(filter):
            parse_filter(filter)
        if search is not None:
            self.store.check_search(search)
        check_threshold(score_threshold)

    def _encode_queries(
        self, queries: Sequence[str], normalize_scores: bool, show_progress: bool | None
    ) -> TokenEmbeddings:
        self._bind()
        if normalize_scores:
            check_normalizable(self.model.spec)
        return self.model.encode_query(queries, show_progress=show_progress)

    def _finished(
        self, encoded: TokenEmbeddings, found: list[list[Hit]], normalized: bool, threshold: float | None
    ) -> list[list[Hit]]:
        if normalized:
            found = [_normalized(hits, length) for hits, length in zip(found, encoded.lengths, strict=True)]
        if threshold is not None:
            found = [[hit for hit in hits if hit.score >= threshold] for hits in found]
        return found

    def _explained(self, queries: Sequence[str], found: list[list[Hit]]) -> list[list[Hit]]:
        pairs = [
            (query, hit.text)
            for query, hits in zip(queries, found, strict=True)
            for hit in hits
            if hit.text is not None
        ]
        said = iter(self.model.explain_pairs(pairs))
        return [[hit if hit.text is None else replace(hit, explanation=next(said)) for hit in hits] for hits in found]

    # --------------------------------------------------------------------------------------------------- persistence

    def save(self, folder: str | os.PathLike[str], *, show_progress: bool | None = None) -> None:
        """Write the index to a folder, as one step: what was there before stays whole until the end.

        Only what changed since the last time is written.

        Args:
            folder: Where; made if it is not there.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Raises:
            InputError: If the folder is no path.
            StoreError: If it can't be written, if somebody else saved there since this index was loaded from the folder
                or last saved to it, or if the store is kept elsewhere anyway.
        """
        if not isinstance(self.store, MemoryStore):
            raise StoreError(f"a {type(self.store).__name__} keeps its documents itself: there is nothing to save")
        # A model that was closed is not loaded for it, as its files may have gone since.
        if self.model.loaded or self.store.fingerprint is None:
            self.store.bind(self.model.fingerprint)
        self.store.save(folder, show_progress=show_progress)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: str | os.PathLike[str] | ColBERT | None = None,
        *,
        device: str | None = None,
        verify: bool = True,
        pool_factor: float = 1,
        show_progress: bool | None = None,
    ) -> ColBERTIndex:
        """Open a saved index.

        Args:
            folder: Where it was saved.
            model: The model whose vectors it holds. None: the one it was made with, by its name and settings.
            device: Where vectors are kept and searched. None: the CPU, where files are read only as far as they are
                needed.
            verify: Whether the checksums of all files are compared. Sizes are in any case.
            pool_factor: For documents that are added from now on.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Returns:
            The index.

        Raises:
            InputError: If an argument is invalid.
            StoreError: If there is no index.
            DamagedIndexError: If a file is missing or damaged, naming it.
            FingerprintError: If it holds vectors of another model, naming both.
            CheckpointError: If the model can't be loaded.
            MissingExtraError: If a bundled model's package is not installed.
        """
        store = MemoryStore.load(folder, device=device, verify=verify, show_progress=show_progress)
        if model is None:
            if store.fingerprint is None:
                raise StoreError(f"{os.fspath(folder)} does not say which model it was made with: pass model=")
            model = ColBERT.shared(**store.fingerprint.settings)
        return cls(model, store, pool_factor=pool_factor)

    def close(self) -> None:
        """Close the store; the model, which others may share, stays."""
        self._worker.close()
        self._ranking_worker.close()
        self.store.close()

    # -------------------------------------------------------------------------------------------------- async twins

    async def aadd(
        self,
        texts: Iterable[str],
        ids: Iterable[str | None] | None = None,
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        reencode: bool = False,
        show_progress: bool | None = None,
    ) -> list[str]:
        """Do what ``add`` does without blocking the event loop; see there for the arguments."""
        # Window by window, so that other calls of this kind have their turn in between.
        steps, done = self._steps(texts, ids, metadatas, reencode, show_progress), list[str]()
        while (added := await self._worker.run(next, steps, None)) is not None:
            done += added
        return done

    async def adelete(self, ids: Sequence[str]) -> None:
        """Do what ``delete`` does without blocking the event loop."""
        await self.store.adelete(ids)

    async def aget(self, ids: Sequence[str]) -> list[StoredDocument]:
        """Do what ``get`` does without blocking the event loop."""
        return await self.store.aget(ids)

    def __copy__(self) -> ColBERTIndex:
        return self  # as open files are: a copy of an adapter searches the same documents

    def __deepcopy__(self, memo: dict[int, Any]) -> ColBERTIndex:
        return self

    def __reduce__(self) -> NoReturn:
        raise StoreError(
            "a ColBERTIndex can't be pickled (that would copy its documents): save() it and load() it in the other "
            "process, or open the same store location there"
        )

    def __len__(self) -> int:
        return self.store.count()

    def __enter__(self) -> ColBERTIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ColBERTIndex({self.model.settings.model!r}, {self.store!r})"


def _opened(given: Store | str | None) -> Store:
    if given is None:
        return MemoryStore()
    if isinstance(given, Store):
        return given
    return open_store(given)


def _queries(query: object) -> list[Any]:
    """One query or several as a list."""
    if isinstance(query, str):
        return [query]
    if not is_list(query):
        raise InputError(f"query must be a string or a list of strings, not {type(query).__name__}")
    return list(query)


def _normalized(hits: list[Hit], length: int) -> list[Hit]:
    return [replace(hit, score=normalized_score(hit.score, length)) for hit in hits]


# ------------------------------------------------------------------------------------------------------------ adding


def _common_length(*columns: object) -> int | None:
    """The common length of the columns that have one, checked before any work is done."""
    for column in columns:
        if not is_list(column):
            raise InputError(f"texts, ids and metadatas must be lists or generators, not {type(column).__name__}")
    lengths = {len(column) for column in columns if isinstance(column, Sized)}
    if len(lengths) > 1:
        raise InputError(f"texts, ids and metadatas must have one length, not {sorted(lengths)}")
    return next(iter(lengths), None)


_END = object()


def _rows(texts: Iterable[Any], ids: Iterable[Any] | None, metadatas: Iterable[Any] | None) -> Iterator[Row]:
    columns = {"text": texts, "id": ids, "metadata": metadatas}
    given = {name: column for name, column in columns.items() if column is not None}
    for cells in zip_longest(*given.values(), fillvalue=_END):
        if any(cell is _END for cell in cells):
            raise InputError("texts, ids and metadatas must have one length; some of what came before may be stored")
        yield Row(**dict(zip(given, cells, strict=True)))
