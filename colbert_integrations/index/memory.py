"""MemoryStore: the store in this process, on a CPU or a GPU, saved to a folder and loaded from it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from ..checks import check_whole_number
from ..devices import indexed_device, no_autocast
from ..embeddings import TokenEmbeddings
from ..errors import InputError, StoreError
from ..fingerprint import Fingerprint
from ..scoring.blocks import QUERY_TOKENS, ranges
from .allocator import SegmentAllocator
from .centroids import Centroids, sample_rows, train
from .checks import (
    candidate_count,
    check_count,
    check_embeddings,
    check_folder,
    check_form,
    check_ids,
    check_queries,
    check_same,
    check_same_dim,
    check_search,
    checked_documents,
    checked_metadata,
)
from .layout import Layout
from .persistence import Saved, read_index, write_index
from .scan import Finder, make_lists
from .segment import Batch, Segment, View
from .state import (
    State,
    all_documents,
    copy_of,
    document_at,
    filtered,
    hits_of,
    last_of_each,
    only,
    sample_of,
    test_of,
    without,
)
from .store import Filter, Hit, Metadata, Search, Store, StoredDocument

__all__ = ["MemoryStore"]

Place: TypeAlias = tuple[Segment, int]
"""Where a document is: its segment, and its position there."""

# Rows of a segment. The first ones are smaller, so that a small index takes little; large ones would make a deletion
# cost more, which copies the segment's list of what is alive, a compaction, which copies a segment, and a save, which
# writes the last one anew. A large store has larger ones: a search by centroids goes through all of them.
_FEWEST_ROWS, _MOST_ROWS, _MOST_ROWS_LARGE = 2**14, 2**18, 2**20
_PART_OF_LARGE = 64
# A segment is written anew without its deleted documents once they take up this part of it.
_COMPACT_ABOVE = 0.25
# So many small segments that were loaded from files are rewritten as one.
_MOST_SMALL = 8


class MemoryStore(Store):
    """Keeps token embeddings in this process, and searches all of them or candidates.

    Adding copies nothing that is there, deleting marks and later compacts, and both are safe while other threads
    search: a search sees what was there when it began.

    Args:
        dtype: How vectors are kept: ``"float16"``, or ``"float32"`` for twice the memory and every last digit.
        nbits: Keep codes of 8, 4 or 2 bits a dimension instead. None: vectors as they are.
        keep_originals: With ``nbits``, keep vectors as they are too: scores come from them, and ``search="codes"``
            finds candidates by the codes.
        search: What a search does unless it says otherwise. ``"exact"``: MaxSim with every document. ``"codes"``,
            with ``nbits``: a pass over the codes in the fastest arithmetic, then MaxSim with the candidates.
            ``"centroids"``: a look into lists of the documents that have a vector near a centroid, for the centroids
            nearest to each query token, then MaxSim with the candidates; the time grows much slower than the store.
            Centroids and lists, which take about a hundredth of the memory that float16 takes, are made by the first
            search that needs them, anew once there are four times as many vectors.
        candidates: How many documents a candidate stage hands on. None: ``max(20, 2 * k)`` for ``"codes"``,
            ``max(500, 5 * k)`` for ``"centroids"``.
        device: Where vectors are kept and searched. None: the CPU.
        device_bytes: Maximum memory in bytes to take on that device; what comes later stays in the host's pinned memory
            and travels at each search. None: 70% of what is free there when the store is made; on a CPU no limit.

    Raises:
        InputError: If an argument is invalid.

    Example:
        >>> import torch
        >>> store = MemoryStore()
        >>> store.upsert(["a", "b"], TokenEmbeddings.from_list([torch.eye(2), -torch.eye(2)]), metadatas=[{"n": 1}, {}])
        >>> [hit.id for hit in store.search(TokenEmbeddings.from_list([torch.eye(2)]), k=2)[0]]
        ['a', 'b']
        >>> len(store.search(TokenEmbeddings.from_list([torch.eye(2)]), filter={"n": {"$gte": 1}})[0])
        1
    """

    def __init__(
        self,
        dtype: Literal["float16", "float32"] = "float16",
        *,
        nbits: Literal[8, 4, 2] | None = None,
        keep_originals: bool = False,
        search: Search = "exact",
        candidates: int | None = None,
        device: str | torch.device | None = None,
        device_bytes: int | None = None,
    ) -> None:
        super().__init__()
        check_form(dtype, nbits, keep_originals)
        self._dtype, self._nbits, self._keep_originals = dtype, nbits, keep_originals
        self.device = indexed_device(device or "cpu")
        if device_bytes is not None:
            check_whole_number("device_bytes", device_bytes, least=0)
        self._allocator = SegmentAllocator(self.device, device_bytes)
        self._layout: Layout | None = None
        self._fingerprint: Fingerprint | None = None
        self._state: State | None = State()  # None: closed
        self._places: dict[str, Place] = {}
        self._centroids: Centroids | None = None
        self._training = threading.Lock()
        self._pending: tuple[State, Mapping[str, Place], Sequence[str]] | None = None
        self._known: dict[str, set[str]] = {}  # by folder, what was loaded or saved there last
        self._lock = threading.RLock()  # held for moments, by readers too: to take or to replace a whole state
        self._writing = threading.RLock()  # one writer at a time
        self._saving = threading.Lock()
        self.check_search(search)
        self.search_default = search
        self.candidates_default = check_count("candidates", candidates)

    # --------------------------------------------------------------------------------------------------- properties

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors; None until the first ones are stored."""
        return None if self._layout is None else self._layout.dim

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The model whose vectors these are; None until ``bind`` records it."""
        return self._fingerprint

    @property
    def nbits(self) -> Literal[8, 4, 2] | None:
        """Bits of a dimension, where vectors are kept as codes; None where they are kept as they are."""
        return self._nbits

    @property
    def num_tokens(self) -> int:
        """Number of vectors, those of deleted documents that still take room included."""
        return sum(view.rows for view in self._now().views)

    @property
    def bytes_per_token(self) -> int:
        """What a vector costs in memory and on disk, in bytes; 0 until the first ones come."""
        return 0 if self._layout is None else self._layout.bytes_per_token

    def bind(self, fingerprint: Fingerprint) -> None:
        """Record which model the vectors come from; see ``Store.bind``."""
        with self._alone():
            check_same(self._fingerprint, fingerprint, "this store")
            if self._fingerprint is None and self._layout is not None:
                check_same_dim(self._layout.dim, fingerprint, "this store")
            self._fingerprint = fingerprint.keeping_encodings_of(self._fingerprint)

    # ------------------------------------------------------------------------------------------------------ writing

    def upsert(
        self,
        ids: Sequence[str],
        embeddings: TokenEmbeddings,
        texts: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Store documents; one whose id is there replaces the old one. See ``Store.upsert``."""
        self._now()
        names, kept_texts, kept_metadatas = checked_documents(ids, embeddings, texts, metadatas)
        if not names:
            return
        layout = self._layout or Layout(embeddings.dim, self._dtype, self._nbits, self._keep_originals)
        with no_autocast(self.device):
            columns = layout.encode(embeddings.to(self.device), names)
            batch = last_of_each(Batch(names, kept_texts, kept_metadatas, embeddings.lengths, columns))
        with self._alone(), self._in_layout(layout):
            self._replace([batch])

    def set_metadata(
        self, ids: Sequence[str], metadatas: Sequence[Metadata], texts: Sequence[str] | None = None
    ) -> None:
        """Replace the metadata of documents; see ``Store.set_metadata``."""
        metadata_of, text_of = checked_metadata(ids, metadatas, texts)
        with self._alone():
            found = self._by_segment(self._still(text_of) if text_of else list(metadata_of))
            # Written anew, from their own codes: a search that is under way keeps the old.
            batches = [copy_of(segment, positions) for segment, positions in found.items()]
            for batch in batches:
                batch.metadatas = [metadata_of[name] for name in batch.ids]
            self._replace(batches)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; see ``Store.delete``."""
        with self._alone():
            gone = self._by_segment(check_ids(ids))
            names = [segment.ids[position] for segment, positions in gone.items() for position in positions]
            moves = dict[str, Place]()
            self._commit(self._compacted(without(self._now(), gone), moves), moves, names)

    def compact(self) -> None:
        """Forget what is left of documents that were deleted or replaced: their texts, metadata and vectors.

        Without it that waits until they take up a quarter of a segment. The next save removes them from a folder, too.

        Raises:
            StoreError: If the store is closed.
        """
        with self._alone():
            moves = dict[str, Place]()
            self._commit(self._compacted(self._now(), moves, above=0), moves)

    def _still(self, texts: Mapping[str, str]) -> list[str]:
        """The ids of documents that have these texts."""
        places = {name: self._places[name] for name in texts if name in self._places}
        return [name for name, (segment, position) in places.items() if segment.texts[position] == texts[name]]

    @contextmanager
    def _in_layout(self, layout: Layout) -> Iterator[None]:
        """Have a form of vectors, from now on if the body stores the first ones."""
        before = self._layout
        if before is not None and before.dim != layout.dim:  # another thread's first vectors were quicker
            raise InputError(f"the store holds vectors of dim {before.dim}, not {layout.dim}")
        self._layout = before or layout
        try:
            yield
        finally:
            if not self._now().views:  # there was no memory for the first ones, say
                self._layout = before

    def _replace(self, batches: list[Batch]) -> None:
        """Store documents and forget those of the same ids, as one step for readers."""
        moves = dict[str, Place]()
        state = without(self._now(), self._by_segment([name for batch in batches for name in batch.ids]))
        for batch in batches:
            state = self._appended(state, batch, moves)
        self._commit(self._compacted(state, moves), moves)

    def _commit(self, state: State, moves: Mapping[str, Place], gone: Sequence[str] = ()) -> None:
        """Make a state the one that readers see."""
        with self._lock:
            self._now()  # it may have been closed meanwhile
            self._pending = state, moves, gone
            self._settle()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other writers out."""
        with self._writing, no_autocast(self.device):
            self._now()
            yield

    def _settle(self) -> None:
        """End a commit, also one that an interrupt cut short: each step may be done twice. Within the lock."""
        if self._pending is not None:
            state, moves, gone = self._pending
            for name in gone:
                self._places.pop(name, None)
            self._places.update(moves)
            self._state, self._pending = state, None

    def _appended(self, state: State, batch: Batch, moves: dict[str, Place]) -> State:
        views, count = list(state.views), len(batch.ids)
        while batch.ids:
            if not views or views[-1].free < batch.lengths[0]:
                views.append(
                    View(self._new_segment(views, batch.lengths[0]), torch.ones(0, dtype=torch.bool, device="cpu"))
                )
            segment, position = views[-1].segment, len(views[-1])
            fitting, batch = batch.split(segment.free)
            segment.append(fitting)
            views[-1] = views[-1].grown(len(fitting.ids))
            moves.update((name, (segment, position + n)) for n, name in enumerate(fitting.ids))
        return State(tuple(views), state.count + count)

    def _new_segment(self, views: list[View], rows: int) -> Segment:
        assert self._layout is not None
        there = sum(view.rows for view in views)
        most = min(max(_MOST_ROWS, there // _PART_OF_LARGE), _MOST_ROWS_LARGE)
        if self.device.type == "cuda":  # a copy costs little there, but a search a few launches for each segment
            most = _MOST_ROWS_LARGE
        return self._allocator.segment(self._layout, max(rows, min(most, max(_FEWEST_ROWS, there))))

    def _compacted(self, state: State, moves: dict[str, Place], above: float = _COMPACT_ABOVE) -> State:
        """Give back the room of deleted documents where they take up more than a part of a segment."""
        sparse = [view for view in state.views if view.deleted_rows > above * view.rows]
        # Each load seals what it finds, so an index that is loaded, added to and saved again and again becomes crumbs.
        small = [view for view in state.views if view.segment.sealed and view.rows < _FEWEST_ROWS]
        sparse += [view for view in small if view not in sparse] if len(small) >= _MOST_SMALL else []
        kept = State(tuple(view for view in state.views if view not in sparse), state.count)
        for view in sparse:
            alive = view.alive.nonzero()[:, 0].tolist()
            if alive:
                kept = self._appended(kept, copy_of(view.segment, alive), moves)
        return State(kept.views, state.count)

    # ------------------------------------------------------------------------------------------------------ reading

    def get(self, ids: Sequence[str], *, embeddings: bool = False) -> list[StoredDocument]:
        """Look documents up; see ``Store.get``. Vectors come in ``dtype``, or in float32 from codes."""
        with self._lock:
            self._now()
            places = [self._places[name] for name in check_ids(ids) if name in self._places]
        return [document_at(segment, position, embeddings) for segment, position in places]

    def count(self) -> int:
        """Number of documents."""
        return self._now().count

    def iter_documents(self) -> Iterator[StoredDocument]:
        """All documents with their vectors, in no particular order; see ``Store.iter_documents``."""
        return all_documents(self._now())

    def ids(self, filter: Filter | None = None) -> list[str]:
        """List the ids of documents; see ``Store.ids``."""
        state, wanted = self._wanted(filter, None)
        pairs = zip(state.views, wanted, strict=True)
        return sorted(view.segment.ids[place] for view, mask in pairs for place in mask.nonzero()[:, 0].tolist())

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
        """Find the documents that score highest; see ``Store.search``. No stage here reads ``texts``."""
        check_embeddings("queries", queries)
        mode = search or self.search_default
        self.check_search(mode)
        asked = check_count("candidates", candidates) or self.candidates_default
        check_whole_number("k", k)
        state, wanted = self._wanted(filter, ids)
        chosen = sum(int(mask.sum()) for mask in wanted)
        if not len(queries) or not chosen:
            return [[] for _ in range(len(queries))]
        assert self._layout is not None
        queries = queries.to(dtype=torch.float32)
        check_queries(queries, self._layout.dim)
        number = candidate_count(mode, k, asked)
        exact = mode == "exact" or number >= chosen
        hits = list[list[Hit]]()
        with no_autocast(self.device):
            centroids = None if exact or mode != "centroids" else self._trained(state)
            ready = queries.to(self.device)
            for start, stop in ranges([0, *accumulate(queries.lengths)], QUERY_TOKENS):
                finder = Finder(state.views, wanted, self._layout, ready[start:stop])
                best = finder.exact(k) if exact else finder.approximate(number, centroids)
                rows = zip(best.scores.tolist(), best.places.tolist(), strict=True)
                hits += [hits_of(state, scores, places, k) for scores, places in rows]
        return hits

    def prepare(self, search: Search | None = None, *, show_progress: bool | None = None) -> None:
        """Make what a way to search needs beside the vectors, which otherwise the next such search does.

        Before ``save``, so that whoever opens the folder need not; in a server, after it has grown much. Other threads
        may go on reading and writing. Where all documents would be candidates, nothing is needed.

        Args:
            search: The way. None: what the store does unless a search says otherwise.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Raises:
            InputError: If the store does not offer it.
            StoreError: If the store is closed.
        """
        mode = search or self.search_default
        self.check_search(mode)
        state = self._now()
        if mode != "centroids" or candidate_count(mode, 1, self.candidates_default) >= state.count:
            return
        with no_autocast(self.device):
            centroids = self._trained(state, wait=True, show_progress=show_progress)
            make_lists(state.views, centroids, show_progress)

    async def aprepare(self, search: Search | None = None, *, show_progress: bool | None = None) -> None:
        """Do what ``prepare`` does without blocking the event loop; see there for the arguments."""
        await self._worker.run(self.prepare, search, show_progress=show_progress)

    def _trained(self, state: State, *, wait: bool = False, show_progress: bool | None = None) -> Centroids:
        """Centroids of the vectors, made anew where the store has outgrown them."""
        known, rows = self._centroids, sum(view.rows for view in state.views)
        if known is not None and not known.outgrown(rows):
            return known
        # Of a million documents it takes minutes: searches that come meanwhile go on with those that were outgrown.
        if not self._training.acquire(blocking=wait or known is None) and known is not None:
            return known
        try:
            known = self._centroids
            if known is None or known.outgrown(rows):
                known = self._train(state, rows, show_progress)
            return known
        finally:
            self._training.release()

    def _train(self, state: State, rows: int, show_progress: bool | None) -> Centroids:
        assert self._layout is not None
        centroids = train(sample_of(state, sample_rows(self._layout.dim)), rows).on(self.device)
        make_lists(state.views, centroids, show_progress)
        with self._lock:
            self._now()  # it may have been closed meanwhile
            self._centroids = centroids
        return centroids

    def _wanted(self, filter: Filter | None, ids: Sequence[str] | None) -> tuple[State, list[torch.Tensor]]:
        """A state and, for each of its views, which documents may be found."""
        with self._lock:
            state = self._now()
            places = None if ids is None else self._by_segment(check_ids(ids))
        wanted = [view.alive for view in state.views]
        if places is not None:
            wanted = [only(view, places.get(view.segment, [])) for view in state.views]
        if filter is not None:
            passes = test_of(filter)
            wanted = [filtered(view, mask, passes) for view, mask in zip(state.views, wanted, strict=True)]
        return state, wanted

    # -------------------------------------------------------------------------------------------------- persistence

    def save(self, folder: str | os.PathLike[str], *, show_progress: bool | None = None) -> None:
        """Write everything to a folder, as one step; other threads may go on reading and writing.

        Only files that are new since the last time are written. What was there is replaced at the end, whole, unless
        somebody else saved there since this store was loaded from the folder or last saved to it.

        Args:
            folder: Where; made if it is not there.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Raises:
            InputError: If the folder is no path.
            StoreError: If it can't be written, or somebody else saved there; an index that was there is unchanged.
        """
        # One after another, from when the state is taken: of two that wait for the folder, the older might come last.
        with self._saving:
            self._save(check_folder(folder), show_progress)

    def _save(self, folder: Path, show_progress: bool | None) -> None:
        with self._lock:
            state = self._now()
            layout, fingerprint, centroids = self._layout, self._fingerprint, self._centroids
        about = {
            "dtype": self._dtype,
            "nbits": self._nbits,
            "keep_originals": self._keep_originals,
            "search": self.search_default,
            "candidates": self.candidates_default,
            "fingerprint": None if fingerprint is None else fingerprint.as_json(),
        }
        known = self._known.setdefault(os.path.realpath(folder), set())
        write_index(folder, Saved(layout, state.views, about, centroids), known, show_progress=show_progress)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        device_bytes: int | None = None,
        verify: bool = True,
        show_progress: bool | None = None,
    ) -> MemoryStore:
        """Open what was saved; on the CPU vectors are mapped, and read from disk when they are first searched.

        Args:
            folder: Where it was saved.
            device: Where vectors are kept and searched. None: the CPU.
            device_bytes: Maximum memory in bytes to take there. None: as in the constructor.
            verify: Whether the checksums of all files are compared, which reads them whole. Sizes are in any case.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Returns:
            The store, with the settings it was saved with.

        Raises:
            InputError: If an argument is invalid.
            StoreError: If there is no index, or a newer version of this package wrote it.
            DamagedIndexError: If a file is missing or damaged, naming it.
        """
        path = check_folder(folder)
        saved = read_index(path, verify=verify, show_progress=show_progress)
        about = dict(saved.about)
        fingerprint = about.pop("fingerprint")
        if about["search"] == "pooled":  # a stage that there was before, with the same default of candidates
            about["search"] = "centroids"
        store = cls(**about, device=device, device_bytes=device_bytes)
        store._fingerprint = None if fingerprint is None else Fingerprint(**fingerprint)
        store._layout = saved.layout
        store._centroids = None if saved.centroids is None else saved.centroids.on(store.device)
        store._known[os.path.realpath(path)] = {saved.checksum}
        views = saved.views if store.device.type == "cpu" else tuple(map(store._brought_here, saved.views))
        store._state = State(views, sum(int(view.alive.sum()) for view in views))
        for view in views:
            positions = view.alive.nonzero()[:, 0].tolist()
            store._places.update((view.segment.ids[position], (view.segment, position)) for position in positions)
        return store

    def _brought_here(self, view: View) -> View:
        """A view of a segment that was mapped, with its vectors on this store's device."""
        mapped = view.segment
        moved = self._allocator.segment(mapped.layout, mapped.capacity, mapped.name)
        moved.append(Batch(mapped.ids, mapped.texts, mapped.metadatas, mapped.lengths, mapped.columns))
        if self._centroids is not None and (lists := mapped.lists_if_made(self._centroids, 0)) is not None:
            moved.adopt_lists(self._centroids, lists)
        moved.sealed = True  # as it came from a file: it counts among the small ones that are written into one
        return View(moved, view.alive, view.deleted_rows)

    # ---------------------------------------------------------------------------------------------------- lifecycle

    def close(self) -> None:
        """Free the memory; further calls are errors."""
        with self._lock:
            self._state, self._pending = None, None
            self._places, self._centroids = {}, None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # torch would keep the memory for itself
        super().close()

    def _now(self) -> State:
        if self._pending is not None:  # of a write that was interrupted
            with self._lock:
                self._settle()
        if self._state is None:
            raise StoreError("the store is closed")
        return self._state

    def _by_segment(self, ids: Sequence[str]) -> dict[Segment, list[int]]:
        """Where the documents that are there lie, by segment."""
        found: dict[Segment, list[int]] = {}
        for name in dict.fromkeys(ids):
            if name in self._places:
                segment, position = self._places[name]
                found.setdefault(segment, []).append(position)
        return found

    def check_search(self, search: Search) -> None:
        """Refuse a way to search that this store does not offer; see ``Store.check_search``."""
        check_search(search, without=("first_stage",), where="a MemoryStore")
        if search == "codes" and self._nbits is None:
            raise InputError("search='codes' needs codes: make the store with nbits=8, 4 or 2")

    def __repr__(self) -> str:
        form = self._dtype if self._nbits is None else f"nbits={self._nbits}"
        if self._state is None:
            return f"MemoryStore({form}, closed)"
        return f"MemoryStore({form}, documents={self.count()}, tokens={self.num_tokens}, device={str(self.device)!r})"
