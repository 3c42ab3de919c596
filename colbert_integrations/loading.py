"""Loader: documents into a store, window by window. What is there already is not encoded again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from .cuts import CutDocuments
from .embeddings import TokenEmbeddings
from .errors import InputError
from .index import Store, StoredDocument, json_copy
from .model import ColBERT
from .stale import StaleVectors
from .worker import begin

__all__ = ["Loaded", "Loader", "Row"]

T = TypeVar("T")

# Maximum number of characters in the texts of a window: some 500,000 tokens, or 256 MB of vectors in 128 dimensions.
# And in each of its texts on average, so that a window of few texts is little work also where they are long.
_WINDOW_CHARACTERS, _TEXT_CHARACTERS = 2**21, 2**12


class Row(NamedTuple):
    """A document as somebody gave it, which may be anything."""

    text: Any
    id: Any = None
    metadata: Any = None


@dataclass(frozen=True)
class Loaded:
    """What became of a window of documents.

    Attributes:
        size: How many there were.
        ids: Of those that are stored now, in the order given.
        encoded: How many of them were encoded; the others were there with the same text, or replaced.
        replaced: Ids of those that gave way to a later one in the window, of the same id and with another text.
        failures: Why others are not stored, by id, or by ``number n`` where there is none.
    """

    size: int
    ids: list[str]
    encoded: int
    replaced: list[str]
    failures: dict[str, Exception]


@dataclass(frozen=True, slots=True)
class _Document:
    """A document on its way in."""

    id: str
    text: str
    metadata: Mapping[str, Any]


class _Piece(NamedTuple):
    """Documents with their vectors."""

    documents: list[_Document]
    encoded: TokenEmbeddings


class _Checked(NamedTuple):
    """Documents of a window.

    Attributes:
        size: How many were given.
        documents: Those that can be stored as far as one can tell, in order.
        failures: Why the others can't.
    """

    size: int
    documents: list[_Document]
    failures: dict[str, Exception]


class _Window(NamedTuple):
    """A window that is ready to be written.

    Attributes:
        checked: Its documents.
        moved: Those of them of which only the metadata is new.
        pieces: Those of them that were encoded.
        failures: Why some could not be.
    """

    checked: _Checked
    moved: list[_Document]
    pieces: list[_Piece]
    failures: dict[str, Exception]


class Loader:
    """Encodes documents and stores them; one bad document takes no other with it.

    Args:
        model: Encodes the texts.
        store: Keeps them.
        pool_factor: About 1 in ``pool_factor`` vectors of a document is kept.
        reencode: Whether what is there with the same text is encoded again.
        alike: Ids of documents known to be encoded with the current settings, for a store that also holds some encoded
            with others; shared by the loaders of an index, which add to it. None: start empty.
    """

    def __init__(
        self,
        model: ColBERT,
        store: Store,
        pool_factor: float = 1,
        *,
        reencode: bool = False,
        alike: set[str] | None = None,
    ) -> None:
        self._model, self._store, self._pool_factor, self._reencode = model, store, pool_factor, reencode
        self._stale = StaleVectors(store, model, pool_factor, set() if alike is None else alike)
        self._cuts = CutDocuments()

    def load(self, rows: Iterable[Row], window: int) -> Iterator[Loaded]:
        """Load documents, one window after another.

        Args:
            rows: The documents; a generator is read as far as a window needs.
            window: Maximum number of documents in a window.

        Yields:
            What became of each window.

        Raises:
            FingerprintError: If the store holds vectors of another model.
            StoreError: If the store can't be used; windows before are stored.
        """
        with self._cuts.all_pieces():
            for checked in self._checked(rows, window):
                yield self._write(self._prepare(checked))
        self._stale.end()

    def load_ahead(self, rows: Iterable[Row], window: int) -> Iterator[Loaded]:
        """Load documents as ``load`` does, the next window encoded while one is written by another thread.

        Args:
            rows: The documents.
            window: Maximum number of documents in a window; two are in memory.

        Yields:
            What became of each window.

        Raises:
            FingerprintError: If the store holds vectors of another model.
            StoreError: If the store can't be used; windows before are stored.
        """
        with self._cuts.all_pieces(), ThreadPoolExecutor(1, thread_name_prefix="colbert-load") as executor:
            writing, written = None, set[str]()
            try:
                for checked in self._checked(rows, window):
                    ids = {document.id for document in checked.documents}
                    if writing is not None and ids & written:
                        writing.result()  # only then is it known what the store has of them
                    prepared = self._prepare(checked)
                    if writing is not None:
                        yield writing.result()
                    writing, written = begin(executor, self._write, prepared), ids
                if writing is not None:
                    yield writing.result()
            finally:
                del writing  # with its error, whose traceback leads here: the window would stay until a collection
        self._stale.end()

    def _checked(self, rows: Iterable[Row], window: int) -> Iterator[_Checked]:
        self._stale.begin()
        first = 0
        for given in _windows(rows, window):
            yield _check(given, first)
            first += len(given)

    def _prepare(self, checked: _Checked) -> _Window:
        """Encode what is new of a window."""
        wanted = list({document.id: document for document in checked.documents}.values())
        names = [] if self._reencode else [document.id for document in wanted]
        there = {document.id: document for document in self._store.get(names)}
        same = [document for document in wanted if _text_of(there, document) == document.text]
        # As JSON: to Python 1 and True are equal.
        moved = [document for document in same if _json(there[document.id].metadata) != _json(document.metadata)]
        known = {document.id for document in same}
        self._stale.keeps(checked.size, known)
        pieces, refused = self._encode([document for document in wanted if document.id not in known])
        return _Window(checked, moved, pieces, refused)

    def _encode(self, documents: list[_Document]) -> tuple[list[_Piece], dict[str, Exception]]:
        def encode(part: slice) -> _Piece:
            some = documents[part]
            return _Piece(some, self._encode_texts([document.text for document in some]))

        return _in_halves(documents, encode)

    def _encode_texts(self, texts: list[str]) -> TokenEmbeddings:
        unique = list(dict.fromkeys(texts))
        with self._cuts.piece():
            encoded = self._model.encode_document(unique, pool_factor=self._pool_factor, show_progress=False)
        if len(unique) == len(texts):
            return encoded
        place = {text: position for position, text in enumerate(unique)}
        return TokenEmbeddings.from_list([encoded[place[text]] for text in texts])

    def _write(self, window: _Window) -> Loaded:
        refused = window.failures | _in_halves(window.moved, partial(self._move, window.moved))[1]
        for piece in window.pieces:
            refused |= _in_halves(piece.documents, partial(self._upsert, piece))[1]
        checked = window.checked
        ids = [document.id for document in checked.documents if document.id not in refused]
        encoded = sum(document.id not in refused for piece in window.pieces for document in piece.documents)
        last = {document.id: document.text for document in checked.documents if document.id not in refused}
        given = [(document.id, document.text) for document in checked.documents]
        replaced = [name for name, text in given if last.get(name, text) != text]
        return Loaded(checked.size, ids, encoded, replaced, checked.failures | refused)

    def _move(self, moved: list[_Document], part: slice) -> None:
        some = moved[part]
        # Where somebody else replaced a text meanwhile, what they wrote stands, as if it had come after this.
        self._store.set_metadata(*_columns(some), [document.text for document in some])

    def _upsert(self, piece: _Piece, part: slice) -> None:
        ids, metadatas = _columns(piece.documents[part])
        texts = [document.text for document in piece.documents[part]]
        self._stale.writes()
        self._store.upsert(ids, piece.encoded[part], texts, metadatas)
        self._stale.wrote(ids)


def _columns(documents: list[_Document]) -> tuple[list[str], list[Mapping[str, Any]]]:
    return [document.id for document in documents], [document.metadata for document in documents]


def _without_traceback(error: InputError) -> InputError:
    """An error without the calls that it went through, whose variables, vectors among them, it would keep in memory."""
    raised: BaseException | None = error
    while raised is not None:
        raised.__traceback__ = None
        raised = raised.__cause__ or raised.__context__
    return error


def _in_halves(
    documents: list[_Document], work: Callable[[slice], T], first: int = 0
) -> tuple[list[T], dict[str, Exception]]:
    """Work on documents together, halved until one that can't be worked on is alone: it takes no other with it.

    Args:
        documents: The documents.
        work: Works on a part of all of them.
        first: The place of the first of these among all.

    Returns:
        What came of the parts, and which documents were refused, by id, and why.
    """
    if not documents:
        return [], {}
    try:
        return [work(slice(first, first + len(documents)))], {}
    except InputError as error:
        if len(documents) == 1:
            return [], {documents[0].id: _without_traceback(error)}
    # No function within: it would hold itself, and by that the vectors until the next collection.
    middle = len(documents) // 2
    done, refused = _in_halves(documents[:middle], work, first)
    more, others = _in_halves(documents[middle:], work, first + middle)
    return done + more, refused | others


def _windows(rows: Iterable[Row], most: int) -> Iterator[list[Row]]:
    """Windows of neighbouring rows: at most so many, of about so many characters in all."""
    most_characters = min(_WINDOW_CHARACTERS, most * _TEXT_CHARACTERS)
    window, characters = list[Row](), 0
    for row in rows:
        window.append(row)
        characters += len(row.text) if isinstance(row.text, str) else 0
        if len(window) == most or characters >= most_characters:
            yield window
            window, characters = [], 0
    if window:
        yield window


def _check(rows: list[Row], first: int) -> _Checked:
    """Tell documents that can be stored from others; ``first`` is the number of the first of them."""
    documents, failures = list[_Document](), dict[str, Exception]()
    for number, row in enumerate(rows, first):
        name = row.id if isinstance(row.id, str) and row.id else f"number {number}"
        try:
            documents.append(_document(row, name))
        except InputError as error:
            failures[name] = error
    return _Checked(len(rows), documents, failures)


def _document(row: Row, name: str) -> _Document:
    """The document of a row; errors call it by its id, or else by its number."""
    if not isinstance(row.text, str):
        hint = "; a document that is a mapping has it under 'text'" if row.text is None else ""
        raise InputError(f"a text must be a string, not {type(row.text).__name__}{hint}")
    if row.id is not None and (not isinstance(row.id, str) or not row.id):
        raise InputError(f"an id must be a string that is not empty, not {row.id!r}")
    if row.id is not None and any("\ud800" <= letter <= "\udfff" for letter in row.id):  # no server can be asked for it
        raise InputError(f"the id {row.id!r} has half of a surrogate pair")
    metadata = json_copy(row.metadata, f"document {name}" if row.id is None else f"document {name!r}")
    return _Document(_content_id(row.text, metadata) if row.id is None else row.id, row.text, metadata)


def _content_id(text: str, metadata: Mapping[str, Any]) -> str:
    said = json.dumps([text, metadata], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _json(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True)


def _text_of(there: Mapping[str, StoredDocument], document: _Document) -> str | None:
    return there[document.id].text if document.id in there else None
