"""Encoder: texts to TokenEmbeddings, in batches by a token budget, order kept, long documents in windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.nn.functional import normalize

from ..checkpoint import ColBERTSpec
from ..cuts import NOUNS, warn_of_cuts
from ..devices import no_autocast, send
from ..embeddings import TokenEmbeddings
from ..errors import ColBERTError, InputError
from ..observing import record, timed
from ..progress import progress_bar
from ..worker import begin
from .batching import window_starts
from .forward import Forward
from .merging import Merger
from .remote import Connection, LazyForward, Spreader
from .tokens import Side, TextTokens, Tokenizer, TokenSequence

__all__ = ["EncodeOptions", "Encoder"]

# Texts tokenised at once: enough to find neighbours of like length, few enough that a corpus of millions stays flat
# in memory.
_TEXTS_AT_ONCE = 4096
_DEFAULT_OVERLAP = 64


@dataclass(frozen=True)
class EncodeOptions:
    """How texts are encoded; nothing here changes what a vector is, windows aside.

    Attributes:
        long_documents: ``"window"``: overlapping windows over the whole text; ``"truncate"``: its beginning, or its
            end where the checkpoint's tokenizer cuts the beginning.
        window_overlap: Tokens that neighbouring windows share. None: 64, or half a window if that is less.
        batch_tokens: Maximum number of tokens in a batch; padding counts, where the forward pass pads.
        batch_size: Maximum number of texts or windows in a batch. None: only the tokens count.
    """

    long_documents: Literal["window", "truncate"] = "window"
    window_overlap: int | None = None
    batch_tokens: int = 2048
    batch_size: int | None = None


@dataclass(frozen=True)
class _Piece:
    """Texts that are encoded together: the sequences of each, what to count of them, and how long this took."""

    sequences: list[list[TokenSequence]]
    counts: Counter[str]
    seconds: float


_NOTHING = _Piece([], Counter(), 0.0)


class Encoder:
    """Texts to token embeddings.

    Calls at the same time share batches; see ``Merger``. A forward pass runs one batch at a time, since a device runs
    them one after another anyway and two would need twice the memory.

    Args:
        tokenizer: Makes token sequences, by the checkpoint's rules.
        forward: Runs the model on them. Where it has an attribute ``packed`` that is true, it does not pad, and a
            batch is counted by the sequences' own tokens; in any case those of equal length come next to each other.
        options: Batches and windows.
        connection: Servers that run what they can instead; ``forward`` is a ``LazyForward`` then. None: there are none.

    Raises:
        InputError: If a length leaves no room for text, beside a prompt or not, or windows would not advance.
    """

    def __init__(
        self, tokenizer: Tokenizer, forward: Forward, options: EncodeOptions, connection: Connection | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.spec = tokenizer.spec
        self._forward = forward
        self._options = options
        self._by_windows = options.long_documents == "window"
        for side in get_args(Side):
            self._check_room(side)
        self._overlap = self._choose_overlap()
        run = _BatchRunner(forward, self.spec)
        self._no_vectors = run.no_vectors
        packed = getattr(forward, "packed", False)
        batches = options.batch_tokens, options.batch_size
        self._merge: Merger | Spreader = Merger(run, *batches, packed=packed)
        if connection is not None:
            assert isinstance(forward, LazyForward)
            self._merge = Spreader(connection, forward, self._merge, run.finish, *batches)

    @property
    def num_parameters(self) -> int | None:
        """Number of parameters of the model; None where another engine runs it."""
        return getattr(self._forward, "num_parameters", None)

    def _check_room(self, side: Side) -> None:
        """Refuse a length that a prompt fills: all texts would have the same vectors."""
        capacity, prompt = self.tokenizer.capacity(side), len(self.tokenizer.prompt_ids(side))
        if capacity is None or self._reads_behind(prompt, side, capacity):
            return
        length = self.spec.query_length if side == "query" else self.spec.document_length
        assert length is not None
        raise InputError(
            f"{side}_length={length} leaves no room for text beside a prompt of {prompt} tokens: it must be at least "
            f"{length - capacity + prompt + 1}"
        )

    def _reads_behind(self, prompt: int, side: Side, capacity: int) -> bool:
        """Whether a text is read behind a prompt of so many tokens; a cut may take the beginning instead."""
        by_windows = side == "document" and self._by_windows
        start = 0 if by_windows else self.tokenizer.start_of_cut(prompt + 1, capacity)
        return start + capacity > prompt

    def _choose_overlap(self) -> int:
        size, overlap = self._window_size(), self._options.window_overlap
        if size is None or overlap is None:
            return min(_DEFAULT_OVERLAP, (size or 2 * _DEFAULT_OVERLAP) // 2)
        if not 0 <= overlap < size:
            raise InputError(
                f"window_overlap must be from 0 to {size - 1}, the tokens of text in a window less one, not {overlap}"
            )
        return overlap

    def _window_size(self) -> int | None:
        """Tokens of text that every window has room for; None where nothing limits it."""
        capacity = self.tokenizer.capacity("document")
        if capacity is None or not self._by_windows:
            return capacity
        return capacity - len(self.tokenizer.prompt_ids("document"))

    def encode(
        self,
        texts: Sequence[str],
        side: Side,
        *,
        query: str | None = None,
        show_progress: bool | None = False,
        tell_of_cuts: bool = True,
    ) -> TokenEmbeddings:
        """Encode texts.

        Args:
            texts: The texts.
            side: Which rules they follow, those of queries or of documents.
            query: A query to encode in the same batches, one forward pass less than on its own. None: none.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.
            tell_of_cuts: Whether texts that are too long are counted and warned of; not where that was done before.

        Returns:
            Unit vectors (where the checkpoint normalises), float32, on the model's device; an entry for the query, if
            there is one, and then ``len(texts)`` entries.

        Raises:
            InputError: If a text is not valid Unicode, or has a token for which the model has no embedding.
        """
        asked = _NOTHING if query is None else self._piece([query], "query", tell_of_cuts)
        parts, counts = [], Counter[str]()
        with progress_bar(len(asked.sequences) + len(texts), show_progress, f"Encoding {NOUNS[side]}") as bar:
            for piece in _joined(asked, self._pieces(texts, side, tell_of_cuts)):
                record(tokenize_s=piece.seconds)
                parts.append(self._encode_sequences(piece.sequences, bar))
                record(**piece.counts)  # now, since the next one may fail
                counts += piece.counts
        self._warn_of_cuts(counts, "query")
        self._warn_of_cuts(counts, "document")
        return TokenEmbeddings.concat(parts)

    def _pieces(self, texts: Sequence[str], side: Side, tell_of_cuts: bool) -> Iterator[_Piece]:
        """Tokenise texts piece by piece, each in another thread while the one before is encoded."""
        starts = range(0, len(texts), _TEXTS_AT_ONCE)
        pieces = (self._piece(texts[start : start + _TEXTS_AT_ONCE], side, tell_of_cuts) for start in starts)
        return pieces if len(starts) < 2 else _ahead(pieces)

    def _piece(self, texts: Sequence[str], side: Side, tell_of_cuts: bool) -> _Piece:
        start, nouns = perf_counter(), NOUNS[side]
        tokens = self.tokenizer.tokens(texts, side)
        sequences, cut = [self.sequences(text, side) for text in tokens], self._count_cut(tokens, side)
        self.tokenizer.check_embedded(texts, side, sequences)
        counts = Counter({f"{nouns}_encoded": len(texts), f"{nouns}_cut": cut if tell_of_cuts else 0})
        return _Piece(sequences, counts, perf_counter() - start)

    def sequences(self, tokens: TextTokens, side: Side) -> list[TokenSequence]:
        """The sequences that a text is encoded as: one, or its windows.

        Args:
            tokens: Tokens of the text.
            side: Query or document.

        Returns:
            At least one sequence, in order.
        """
        capacity = self.tokenizer.capacity(side)
        if capacity is None or len(tokens.ids) <= capacity:
            return [self.tokenizer.sequence(tokens.ids, side)]
        if side == "query" or not self._by_windows:
            start = self.tokenizer.start_of_cut(len(tokens.ids), capacity)
            return [self.tokenizer.sequence(tokens.ids[start : start + capacity], side, start)]
        prompt = self.tokenizer.prompt_length(tokens.ids)
        size = capacity - prompt
        starts = window_starts(len(tokens.ids) - prompt, size, self._overlap)
        return [self.tokenizer.window(tokens.ids, prompt + start, size) for start in starts]

    def _count_cut(self, tokens: list[TextTokens], side: Side) -> int:
        capacity = self.tokenizer.capacity(side)
        if capacity is None or (side == "document" and self._by_windows):
            return 0
        return sum(len(text.ids) > capacity for text in tokens)

    def _warn_of_cuts(self, counts: Counter[str], side: Side) -> None:
        nouns = NOUNS[side]
        length = self.spec.query_length if side == "query" else self.spec.document_length
        warn_of_cuts(counts[f"{nouns}_encoded"], counts[f"{nouns}_cut"], side, length)

    def _encode_sequences(self, sequences: list[list[TokenSequence]], bar: Any) -> TokenEmbeddings:
        """Encode the sequences of each text and join them, ``(kept tokens, dim)`` for all texts."""
        flat = [sequence for windows in sequences for sequence in windows]
        vectors: list[torch.Tensor | None] = [None] * len(flat)
        owner = [text for text, windows in enumerate(sequences) for _ in windows]
        left = [len(windows) for windows in sequences]

        def deliver(position: int, matrix: torch.Tensor) -> None:
            vectors[position] = matrix
            left[owner[position]] -= 1
            bar.update(left[owner[position]] == 0)

        counts = [sum(len(sequence.kept) for sequence in windows) for windows in sequences]
        offsets = torch.tensor([0, *counts], dtype=torch.int64, device="cpu").cumsum(0)
        with timed("encode_s"):
            batches = self._merge(flat, deliver)
            values = torch.cat([matrix for matrix in vectors if matrix is not None] or [self._no_vectors])
            joined = TokenEmbeddings(values, offsets)  # waits for a GPU, where offsets go too
        windows = sum(len(windows) for windows in sequences if len(windows) > 1)
        record(tokens_encoded=sum(len(sequence.ids) for sequence in flat), batches=batches, windows=windows)
        return joined


class _BatchRunner:
    """Token sequences to the vectors that count, one batch at a time."""

    def __init__(self, forward: Forward, spec: ColBERTSpec) -> None:
        self._forward = forward
        self._spec = spec
        # Of a plain encoder, whose configuration may call its width by any name, any is taken.
        self._width = spec.projection[-1].out_features if spec.projection else None
        self._device = torch.device(getattr(forward, "device", None) or "cpu")
        # What a text without tokens gives; a forward pass elsewhere need not have a device.
        self.no_vectors = torch.empty(0, spec.dim, dtype=torch.float32, device=self._device)

    def __call__(self, sequences: list[TokenSequence]) -> list[torch.Tensor]:
        """Encode one batch; halve it where the GPU's memory does not suffice."""
        if not any(sequence.ids for sequence in sequences):
            # An empty text, and a tokenizer that adds nothing to it.
            return [self.no_vectors] * len(sequences)
        try:
            with no_autocast(self._device):
                return self.finish(self._forward(sequences), sequences)  # forward: (tokens, dim)
        except torch.OutOfMemoryError:
            if len(sequences) == 1:
                raise
        # Outside the handler, whose traceback would keep the failed batch's tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(sequences) // 2
        return self(sequences[:middle]) + self(sequences[middle:])

    @torch.no_grad()
    def finish(self, vectors: torch.Tensor, sequences: list[TokenSequence]) -> list[torch.Tensor]:
        """Keep what counts, cut dimensions, normalise: one ``(kept, dim)`` float32 matrix per sequence."""
        _check_vectors(vectors, sequences, self._width)
        chosen = vectors[send(_kept_rows(sequences), vectors.device)].float()  # (kept, dim)
        if self._spec.truncate_dim is not None:
            chosen = chosen[:, : self._spec.truncate_dim]  # before normalising, so that what is left is unit again
        if self._spec.normalize:
            chosen = normalize(chosen, dim=-1)
        return list(torch.split(chosen, [len(sequence.kept) for sequence in sequences]))


def _check_vectors(vectors: object, sequences: list[TokenSequence], width: int | None) -> None:
    """Refuse what a forward pass of the user's own must not return: rows of other tokens would be scored."""
    tokens = sum(len(sequence.ids) for sequence in sequences)
    shape = tuple(getattr(vectors, "shape", ()))
    if not isinstance(vectors, torch.Tensor) or len(shape) != 2 or shape[0] != tokens or width not in (None, shape[1]):
        raise ColBERTError(  # no InputError, which would be taken for one of these texts, and others tried
            f"forward must return a tensor (tokens, dim), here ({tokens}, {width or 'any'}), "
            f"not {type(vectors).__name__} {shape}"
        )


def _kept_rows(sequences: list[TokenSequence]) -> np.ndarray:
    """Rows of the tokens that count, among those of all sequences one after another, ``(kept,)`` int64."""
    lengths = np.array([len(sequence.ids) for sequence in sequences])
    rows: np.ndarray = (lengths.cumsum() - lengths).repeat([len(sequence.kept) for sequence in sequences])
    rows += np.fromiter(chain.from_iterable(sequence.kept for sequence in sequences), np.int64, len(rows))
    return rows


def _joined(asked: _Piece, pieces: Iterator[_Piece]) -> Iterator[_Piece]:
    """The pieces, with other sequences put before those of the first; at least one piece."""
    first = next(pieces, _NOTHING)
    yield _Piece(asked.sequences + first.sequences, asked.counts + first.counts, asked.seconds + first.seconds)
    yield from pieces


def _ahead(pieces: Iterator[_Piece]) -> Iterator[_Piece]:
    """The same pieces, the next one made in a thread meanwhile; two are in memory at most."""
    with ThreadPoolExecutor(1, thread_name_prefix="colbert-tokens") as executor:
        coming = begin(executor, next, pieces, None)
        try:
            while (piece := coming.result()) is not None:
                coming = begin(executor, next, pieces, None)
                yield piece
        finally:
            del coming  # with its error, whose traceback leads here: all vectors would stay until a collection
