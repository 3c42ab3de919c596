"""MemoryStore: the store in this process, on a CPU or a GPU, saved to a folder and loaded from it."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..embeddings import TokenEmbeddings
from ..errors import InputError, ShapeError, StoreError
from ..fingerprint import Fingerprint
from .filters import matches, parse_filter
from .layout import Layout
from .metadata import clone, json_copy
from .persistence import Saved, read_index, write_index
from .scan import Best, rescore, scan, starts
from .segment import Batch, Segment, View, gather
from .store import Filter, Hit, Metadata, Search, Store, StoredDocument, check_same

__all__ = ["MemoryStore"]

# Rows of a segment. The first ones are smaller, so that a small index takes little; large ones would make a deletion
# cost more, which copies the segment's list of what is alive, and a compaction, which copies a segment.
_FEWEST_ROWS, _MOST_ROWS = 2**14, 2**18
# A segment is written anew without its deleted documents once they take up this part of it.
_COMPACT_ABOVE = 0.25
# What Qdrant's servers accept is what is accepted here, so that every index can move there.
_MOST_FLOATS = 2**20 - 1
# On a GPU, the part of its free memory that is left to the model and the scoring.
_DEVICE_SHARE = 0.8


@dataclass(frozen=True)
class _State:
    """Everything a reader needs; replaced, never changed."""

    views: tuple[View, ...] = ()
    count: int = 0


class MemoryStore(Store):
    """Keeps token embeddings in this process and searches all of them.

    Adding copies nothing that is there, deleting marks and later compacts, and both are safe while other threads
    search: a search sees what was there when it began.

    Args:
        dtype: How vectors are kept: ``"float16"``, or ``"float32"`` for twice the memory and every last digit.
        nbits: Keep codes of 8, 4 or 2 bits a dimension instead. None: vectors as they are.
        keep_originals: With ``nbits``, keep vectors as they are too: scores come from them, and ``search="codes"``
            finds candidates by the codes.
        search: What a search does unless it says otherwise. ``"exact"``: MaxSim with every document. ``"codes"``,
            with ``nbits``: a pass over the codes in the fastest arithmetic, then MaxSim with the candidates.
            ``"pooled"``: a pass over a quarter of the vectors, merged within each document and rounded to int8, then
            MaxSim with the candidates; the merged vectors take an eighth of the memory that float16 takes, and are
            made by the first search that needs them.
        candidates: How many documents a candidate stage hands on. None: ``max(20, 2 * k)`` for ``"codes"``,
            ``max(500, 5 * k)`` for ``"pooled"``.
        device: Where vectors are kept and searched. None: the CPU.
        device_bytes: Most memory to take on that device; what comes later stays in the host's pinned memory and
            travels at each search. None: 80% of what is free there when the store is made; on a CPU no limit.

    Raises:
        InputError: If an argument is impossible.

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
        _check_layout(dtype, nbits, keep_originals)
        self._dtype, self._nbits, self._keep_originals = dtype, nbits, keep_originals
        self.device = torch.device(device or "cpu")
        self._device_bytes = _budget(self.device) if device_bytes is None else device_bytes
        self._layout: Layout | None = None
        self._fingerprint: Fingerprint | None = None
        self._state: _State | None = _State()  # None: closed
        self._places: dict[str, tuple[Segment, int]] = {}
        self._lock = threading.Lock()  # held for moments, by readers too: to take or to replace a whole state
        self._writing = threading.RLock()  # one writer at a time
        self.search_default = self._check_search(search)
        self.candidates_default = _check_count("candidates", candidates)

    # --------------------------------------------------------------------------------------------------- properties

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors; None until the first ones come."""
        return None if self._layout is None else self._layout.dim

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The model whose vectors these are; None while nobody has said."""
        return self._fingerprint

    @property
    def num_tokens(self) -> int:
        """Number of vectors, those of deleted documents that still take room included."""
        return sum(view.rows for view in self._now().views)

    @property
    def bytes_per_token(self) -> int:
        """What a vector costs in memory and on disk, in bytes; 0 until the first ones come."""
        return 0 if self._layout is None else self._layout.bytes_per_token

    def bind(self, fingerprint: Fingerprint) -> None:
        """Say which model's vectors are kept here; see ``Store.bind``."""
        with self._writing:
            self._now()
            check_same(self._fingerprint, fingerprint, "this store")
            self._fingerprint = fingerprint

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
        names, bodies, notes = _checked(ids, embeddings, texts, metadatas)
        if not names:
            return
        layout = self._layout or Layout(embeddings.dim, self._dtype, self._nbits, self._keep_originals)
        columns = layout.encode(embeddings.to(self.device))
        batch = _last_of_each(Batch(names, bodies, notes, embeddings.lengths, columns))
        with self._writing:
            if self._layout is None:
                self._layout = layout
            elif self._layout.dim != layout.dim:  # another thread's first vectors were quicker
                raise InputError(f"the store holds vectors of dim {self._layout.dim}, not {layout.dim}")
            self._replace([batch])

    def set_metadata(self, ids: Sequence[str], metadatas: Sequence[Metadata]) -> None:
        """Replace the metadata of documents; see ``Store.set_metadata``."""
        if len(_check_ids(ids)) != len(metadatas):
            raise InputError(f"{len(ids)} ids but {len(metadatas)} metadatas")
        notes = {name: json_copy(metadata, name) for name, metadata in zip(ids, metadatas, strict=True)}
        with self._writing:
            # Written anew, from their own codes: a search that is under way keeps the old.
            batches = [_copy_of(segment, positions) for segment, positions in self._by_segment(list(notes)).items()]
            for batch in batches:
                batch.metadatas = [notes[name] for name in batch.ids]
            self._replace(batches)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; see ``Store.delete``."""
        with self._writing:
            gone = self._by_segment(_check_ids(ids))
            names = [segment.ids[position] for segment, positions in gone.items() for position in positions]
            moves = dict[str, tuple[Segment, int]]()
            self._commit(self._compacted(_without(self._now(), gone), moves), moves, names)

    def _replace(self, batches: list[Batch]) -> None:
        """Store documents and forget those of the same ids, as one step for readers."""
        moves = dict[str, tuple[Segment, int]]()
        state = _without(self._now(), self._by_segment([name for batch in batches for name in batch.ids]))
        for batch in batches:
            state = self._appended(state, batch, moves)
        self._commit(self._compacted(state, moves), moves)

    def _commit(self, state: _State, moves: Mapping[str, tuple[Segment, int]], gone: Sequence[str] = ()) -> None:
        """Make a state the one that readers see."""
        with self._lock:
            self._now()  # it may have been closed meanwhile
            for name in gone:
                del self._places[name]
            self._places.update(moves)
            self._state = state

    def _appended(self, state: _State, batch: Batch, moves: dict[str, tuple[Segment, int]]) -> _State:
        views, count = list(state.views), len(batch.ids)
        while batch.ids:
            if not views or views[-1].free < batch.lengths[0]:
                views.append(View(self._new_segment(state, batch.lengths[0]), torch.ones(0, dtype=torch.bool)))
            segment, position = views[-1].segment, len(views[-1])
            fitting, batch = batch.split(segment.free)
            segment.append(fitting)
            views[-1] = views[-1].grown(len(fitting.ids))
            moves.update((name, (segment, position + n)) for n, name in enumerate(fitting.ids))
        return _State(tuple(views), state.count + count)

    def _new_segment(self, state: _State, rows: int) -> Segment:
        assert self._layout is not None
        rows = max(rows, min(_MOST_ROWS, max(_FEWEST_ROWS, sum(view.rows for view in state.views))))
        return Segment(self._layout, self._room(rows, self._layout))

    def _room(self, rows: int, layout: Layout) -> dict[str, torch.Tensor]:
        """Memory on the device while the budget lasts, then on the host, pinned."""
        if self.device.type == "cpu":
            return layout.empty(rows, self.device)
        needed = rows * layout.bytes_per_token
        if self._device_bytes is None or needed <= self._device_bytes:
            self._device_bytes = None if self._device_bytes is None else self._device_bytes - needed
            return layout.empty(rows, self.device)
        return layout.empty(rows, "cpu", pin=True)

    def _compacted(self, state: _State, moves: dict[str, tuple[Segment, int]]) -> _State:
        """Give back the room of deleted documents where they take up much of a segment."""
        sparse = [view for view in state.views if view.deleted_rows > _COMPACT_ABOVE * view.rows]
        kept = _State(tuple(view for view in state.views if view not in sparse), state.count)
        for view in sparse:
            alive = view.alive.nonzero()[:, 0].tolist()
            if alive:
                kept = self._appended(kept, _copy_of(view.segment, alive), moves)
        return _State(kept.views, state.count)

    # ------------------------------------------------------------------------------------------------------ reading

    def get(self, ids: Sequence[str], *, embeddings: bool = False) -> list[StoredDocument]:
        """Look documents up; see ``Store.get``. Vectors come in ``dtype``, or in float32 from codes."""
        with self._lock:
            self._now()
            places = [self._places[name] for name in _check_ids(ids) if name in self._places]
        return [_document(segment, position, embeddings) for segment, position in places]

    def count(self) -> int:
        """Number of documents."""
        return self._now().count

    def iter_documents(self) -> Iterator[StoredDocument]:
        """All documents with their vectors, in no particular order; see ``Store.iter_documents``."""
        return _all_documents(self._now())

    def search(
        self,
        queries: TokenEmbeddings,
        k: int = 10,
        filter: Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        search: Search | None = None,
        candidates: int | None = None,
    ) -> list[list[Hit]]:
        """Find the documents that score highest; see ``Store.search``."""
        mode = self._check_search(search or self.search_default)
        wanted_candidates = _check_count("candidates", candidates) or self.candidates_default
        if _check_count("k", k) is None:
            raise InputError("k must be a whole number from 1, not None")
        state, wanted = self._wanted(filter, ids)
        chosen = sum(int(mask.sum()) for mask in wanted)
        if not len(queries) or not chosen:
            return [[] for _ in range(len(queries))]
        assert self._layout is not None
        if queries.dim != self._layout.dim:
            raise ShapeError(f"queries have dim {queries.dim}, the store holds vectors of dim {self._layout.dim}")
        if not torch.isfinite(queries.values).all():
            raise InputError("a query's vectors are not all finite")
        finder = _Finder(state, wanted, self._layout, queries.to(self.device, torch.float32))
        number = max(k, wanted_candidates or (max(20, 2 * k) if mode == "codes" else max(500, 5 * k)))
        exact = mode == "exact" or number >= chosen
        best = finder.exact(k) if exact else finder.approximate(number, mode)
        return [_hits(state, *row, k) for row in zip(best.scores.tolist(), best.places.tolist(), strict=True)]

    def _wanted(self, filter: Filter | None, ids: Sequence[str] | None) -> tuple[_State, list[torch.Tensor]]:
        """A state and, for each of its views, which documents may be found."""
        with self._lock:
            state = self._now()
            places = None if ids is None else self._by_segment(_check_ids(ids))
        wanted = [view.alive for view in state.views]
        if places is not None:
            wanted = [_only(view, places.get(view.segment, [])) for view in state.views]
        if filter is None:
            return state, wanted
        test = filter if callable(filter) else None
        conditions = () if callable(filter) else parse_filter(filter)

        def passes(segment: Segment, position: int) -> bool:
            if test is not None:
                return bool(test(_document(segment, position, False)))
            return matches(segment.metadatas[position], conditions)

        return state, [_filtered(view, mask, passes) for view, mask in zip(state.views, wanted, strict=True)]

    # -------------------------------------------------------------------------------------------------- persistence

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write everything to a folder, as one step; other threads may go on reading and writing.

        Only files that are new since the last time are written. What was there is replaced at the end, whole.

        Args:
            folder: Where; made if it is not there.

        Raises:
            StoreError: If it can't be written; what was there is as it was then.
        """
        with self._lock:
            state = self._now()
            layout, fingerprint = self._layout, self._fingerprint
        about = {
            "dtype": self._dtype,
            "nbits": self._nbits,
            "keep_originals": self._keep_originals,
            "search": self.search_default,
            "candidates": self.candidates_default,
            "fingerprint": None if fingerprint is None else fingerprint.as_json(),
        }
        write_index(Path(folder), Saved(layout, state.views, about))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        device_bytes: int | None = None,
        verify: bool = True,
    ) -> MemoryStore:
        """Open what was saved; on the CPU vectors are mapped, and read from disk when they are first searched.

        Args:
            folder: Where it was saved.
            device: Where vectors are kept and searched. None: the CPU.
            device_bytes: Most memory to take there. None: as in the constructor.
            verify: Whether the checksums of all files are compared, which reads them whole. Sizes are in any case.

        Returns:
            The store, with the settings it was saved with.

        Raises:
            StoreError: If there is no index, or a newer version of this package wrote it.
            DamagedIndexError: If a file is missing or damaged, naming it.
        """
        saved = read_index(Path(folder), verify=verify)
        about = dict(saved.about)
        fingerprint = about.pop("fingerprint")
        store = cls(**about, device=device, device_bytes=device_bytes)
        store._fingerprint = None if fingerprint is None else Fingerprint(**fingerprint)
        store._layout = saved.layout
        views = saved.views if store.device.type == "cpu" else tuple(map(store._brought_here, saved.views))
        store._state = _State(views, sum(int(view.alive.sum()) for view in views))
        for view in views:
            positions = view.alive.nonzero()[:, 0].tolist()
            store._places.update((view.segment.ids[position], (view.segment, position)) for position in positions)
        return store

    def _brought_here(self, view: View) -> View:
        """A view of a segment that was mapped, with its vectors on this store's device."""
        mapped = view.segment
        columns = self._room(mapped.capacity, mapped.layout)
        for name, tensor in mapped.columns.items():
            columns[name][: len(tensor)].copy_(tensor)
        moved = Segment(mapped.layout, columns, mapped.name)
        moved.register(mapped.ids, mapped.texts, mapped.metadatas, [b - a for a, b in pairwise(mapped.bounds)])
        return View(moved, view.alive, view.deleted_rows)

    # ---------------------------------------------------------------------------------------------------- lifecycle

    def close(self) -> None:
        """Free the memory; further calls are errors."""
        with self._lock:
            self._state = None
            self._places = {}
        super().close()

    def _now(self) -> _State:
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

    def _check_search(self, search: Search) -> Search:
        if search not in get_args(Search):
            raise InputError(f"search must be one of {', '.join(map(repr, get_args(Search)))}, not {search!r}")
        if search == "codes" and self._nbits is None:
            raise InputError("search='codes' needs codes: make the store with nbits=8, 4 or 2")
        return search

    def __repr__(self) -> str:
        form = self._dtype if self._nbits is None else f"nbits={self._nbits}"
        if self._state is None:
            return f"MemoryStore({form}, closed)"
        return f"MemoryStore({form}, documents={self.count()}, tokens={self.num_tokens}, device={str(self.device)!r})"


class _Finder:
    """One search, under way."""

    def __init__(self, state: _State, wanted: list[torch.Tensor], layout: Layout, queries: TokenEmbeddings) -> None:
        self._views, self._wanted, self._layout, self._queries = state.views, wanted, layout, queries
        self._ready = layout.ready(queries)

    def _best(self, width: int) -> Best:
        return Best(len(self._queries), width, self._queries.device)

    def exact(self, k: int) -> Best:
        """Score everything by the best vectors that are kept."""
        width = k + 16
        while True:
            best = self._best(width)
            scan(self._views, self._wanted, self._ready, best)
            if not best.edge_is_tied(k):
                return best
            width *= 8  # equal scores are ordered by id, so all of them must be there

    def approximate(self, candidates: int, mode: Search) -> Best:
        """Find candidates, then score those by the best vectors that are kept."""
        found, best = self._best(candidates), self._best(candidates)
        if mode == "codes":
            scan(self._views, self._wanted, self._ready, found, codes=True)
        else:
            small = Layout(self._layout.dim, nbits=8).ready(self._queries)
            scan(self._views, self._wanted, small, found, lambda view: view.segment.pooled(len(view)), codes=True)
        each = [self._layout.ready(self._queries[i : i + 1]) for i in range(len(self._queries))]
        rescore(self._views, each, found, best)
        return best


# --------------------------------------------------------------------------------------------------------- documents


def _document(segment: Segment, position: int, embeddings: bool) -> StoredDocument:
    vectors = None
    if embeddings:
        block = segment.block(position, position + 1)
        # A copy: the caller may do with it what they like, and must not keep a whole segment alive.
        vectors = segment.layout.decode(block.columns, block.lengths).clone()
    metadata = clone(segment.metadatas[position])
    return StoredDocument(segment.ids[position], segment.texts[position], metadata, vectors)


def _all_documents(state: _State) -> Iterator[StoredDocument]:
    for view in state.views:
        for position in view.alive.nonzero()[:, 0].tolist():
            yield _document(view.segment, position, True)


def _hits(state: _State, scores: list[float], places: list[int], k: int) -> list[Hit]:
    begins, hits = starts(state.views), []
    for score, place in zip(scores, places, strict=True):
        if score > float("-inf"):
            number = bisect_right(begins, place) - 1
            segment, position = state.views[number].segment, place - begins[number]
            hits.append((-score, segment.ids[position], segment, position))
    hits.sort(key=lambda hit: hit[:2])
    return [
        Hit(name, -negative, segment.texts[position], clone(segment.metadatas[position]))
        for negative, name, segment, position in hits[:k]
    ]


def _only(view: View, positions: list[int]) -> torch.Tensor:
    mask = torch.zeros(len(view), dtype=torch.bool)
    mask[positions] = True
    return mask & view.alive


def _filtered(view: View, wanted: torch.Tensor, passes: Any) -> torch.Tensor:
    mask = torch.zeros(len(view), dtype=torch.bool)
    mask[[position for position in wanted.nonzero()[:, 0].tolist() if passes(view.segment, position)]] = True
    return mask


def _without(state: _State, gone: Mapping[Segment, list[int]]) -> _State:
    views = [view.without(gone[view.segment]) if view.segment in gone else view for view in state.views]
    return _State(tuple(views), state.count - sum(map(len, gone.values())))


def _copy_of(segment: Segment, positions: list[int]) -> Batch:
    """Documents of a segment as a batch, their vectors in the form they are kept in."""
    block = gather(segment, positions)
    return Batch(
        [segment.ids[position] for position in positions],
        [segment.texts[position] for position in positions],
        [segment.metadatas[position] for position in positions],
        block.lengths.tolist(),
        block.columns,
    )


def _last_of_each(batch: Batch) -> Batch:
    """The batch with the last document of each id only."""
    last = {name: position for position, name in enumerate(batch.ids)}
    if len(last) == len(batch.ids):
        return batch
    whole = Segment(Layout(0), batch.columns)
    whole.register(batch.ids, batch.texts, batch.metadatas, batch.lengths)
    return _copy_of(whole, sorted(last.values()))


# ------------------------------------------------------------------------------------------------------------ checks


def _check_layout(dtype: object, nbits: object, keep_originals: bool) -> None:
    if dtype not in ("float16", "float32"):
        raise InputError(f"dtype must be 'float16' or 'float32', not {dtype!r}")
    if nbits not in (None, 8, 4, 2):
        raise InputError(f"nbits must be 8, 4, 2 or None for vectors as they are, not {nbits!r}")
    if keep_originals and nbits is None:
        raise InputError("keep_originals goes with nbits: without it vectors are kept as they are anyway")


def _check_count(name: str, value: int | None) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InputError(f"{name} must be a whole number from 1, not {value!r}")
    return value


def _budget(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return int(_DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])


def _check_ids(ids: Sequence[str]) -> Sequence[str]:
    if isinstance(ids, str):
        raise InputError(f"ids must be a list of strings, not the string {ids!r}")
    for name in ids:
        if not isinstance(name, str) or not name:
            raise InputError(f"an id must be a string that is not empty, not {name!r}")
    return ids


def _checked(
    ids: Sequence[str],
    embeddings: TokenEmbeddings,
    texts: Sequence[str | None] | None,
    metadatas: Sequence[Metadata | None] | None,
) -> tuple[list[str], list[str | None], list[dict[str, Any]]]:
    names = list(_check_ids(ids))
    bodies: list[str | None] = [None] * len(names) if texts is None else list(texts)
    notes = [None] * len(names) if metadatas is None else list(metadatas)
    for what, number in (("embeddings", len(embeddings)), ("texts", len(bodies)), ("metadatas", len(notes))):
        if number != len(names):
            raise InputError(f"{len(names)} ids but {number} {what}")
    for name, length, body in zip(names, embeddings.lengths, bodies, strict=True):
        if not length:
            raise InputError(f"document {name!r} has no vectors, so nothing can find it")
        if length * embeddings.dim > _MOST_FLOATS:
            raise InputError(
                f"document {name!r} has {length} vectors of {embeddings.dim}: more than {_MOST_FLOATS} numbers; "
                "split its text, or pool its vectors"
            )
        if body is not None and not isinstance(body, str):
            raise InputError(f"the text of document {name!r} must be a string, not {type(body).__name__}")
    return names, bodies, [json_copy(note, name) for name, note in zip(names, notes, strict=True)]
