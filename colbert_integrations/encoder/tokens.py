"""Token sequences from texts: stateless tokenisation, then truncation, windows, markers and expansion by id.

Hugging Face's fast tokenizers keep truncation and padding as settings of one shared object; two threads that ask for
different ones get silently wrong ids. So both are switched off once, at load, and done here on plain lists.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, takewhile
from typing import Any, Literal

from ..checkpoint import ColBERTSpec
from ..errors import InputError, MissingWeightsError, UnsupportedCheckpointError

# What a tokenizer's digest is made of. Nothing rare: of such, libraries change their minds from version to version.
_FIXED_TEXTS = (
    "The Quick brown fox's 12,345 jumps -- isn't it (well-known)? e-mail: a.b@c.org!",
    "  Two  spaces,\ta tab\nand lines.\n\nÜber Straße, café, naïve, señor; Москва, Ελλάδα, 東京で, 中文。",
    "def f(x_1: int) -> str:  # antidisestablishmentarianism\n    return f'{x_1:>4}' * 2",
)

__all__ = ["Side", "TextTokens", "TokenSequence", "Tokenizer"]

# Layouts whose own libraries give the model what the tokenizer says of types; colbert-ai does not.
_HANDING_TYPES_ON = ("pylate", "sentence-transformers")

Side = Literal["query", "document"]
Span = tuple[int, int]


@dataclass(frozen=True)
class TokenSequence:
    """One row of a batch, before padding.

    Attributes:
        ids: Token ids, with special tokens, marker and expansion.
        attended: How many tokens the others may attend to; the rest is expansion that nobody sees.
        kept: Positions in ``ids`` whose vectors count.
        origins: For each position in ``ids``, which token of the text it holds; None for special tokens, the marker
            and expansion.
        unseen_first: How many tokens that nobody sees stand before those that are attended to; the others follow them.
    """

    ids: list[int]
    attended: int
    kept: list[int]
    origins: list[int | None]
    unseen_first: int = 0


@dataclass(frozen=True)
class TextTokens:
    """Tokens of one text, without special tokens.

    Attributes:
        ids: Token ids.
        spans: For each token, where it lies in the text as the caller gave it, ``(start, stop)`` in characters;
            None where that was not asked for or the tokenizer can't tell.
    """

    ids: list[int]
    spans: list[Span | None] | None = None


class Tokenizer:
    """A checkpoint's tokenizer, and the rules by which its tokens become sequences.

    Args:
        tokenizer: A Hugging Face tokenizer that nobody else uses.
        spec: The spec as the checkpoint says it.
        rows: Number of ids for which the model has an embedding. None: not known.

    Raises:
        MissingWeightsError: If a PyLate checkpoint's marker, or a needed expansion token, is not in the vocabulary.
    """

    def __init__(self, tokenizer: Any, spec: ColBERTSpec, rows: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._lock = threading.Lock()
        self._cuts_beginning = getattr(tokenizer, "truncation_side", "right") == "left"
        # sentence-transformers swaps padding for expansion, so it stands where the tokenizer pads; with "min" it fills
        # up afterwards, at the end. PyLate's markers would be lost among padding in front: nothing was trained so.
        left = getattr(tokenizer, "padding_side", "right") == "left" and spec.layout == "sentence-transformers"
        self._fills_beginning = left and spec.query_expansion == "fixed"
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        # PyLate lower-cases a text before it is tokenised; sentence-transformers does so within the tokenizer, where an
        # added token such as a marker in a prompt still matches.
        self._lowers_texts = spec.lowercase and spec.layout != "sentence-transformers"
        if spec.lowercase and not self._lowers_texts:
            _lower_within(tokenizer)
        if spec.layout == "pylate":
            # PyLate adds its markers to the tokenizer, so a marker spelt out in a text is the marker.
            known = tokenizer.get_vocab()
            tokenizer.add_tokens([m for m in (spec.query_marker, spec.document_marker) if m and m in known])
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._without_embedding = frozenset(i for i in self._vocabulary.values() if rows is not None and i >= rows)
        self.prefix_ids, self.suffix_ids = self._special_ids(spec)
        self.spec = self._resolve(spec)
        # colbert-ai tells padding by its id, also where a text spells it out: in a document it gives no vector, in a
        # query it is the mask token.
        self._padding: int | None = tokenizer.pad_token_id if spec.layout == "stanford" else None
        self._skipped = frozenset(self.spec.skiplist_ids) | ({self._padding} - {None})
        self._added = frozenset(tokenizer.get_added_vocab().values())
        self._prompt_ids = self.prompt_ids("document")

    # ------------------------------------------------------------------------------------------------- reading

    def tokens(self, texts: Sequence[str], side: Side, *, with_spans: bool = False) -> list[TextTokens]:
        """Tokenise texts, without special tokens and without cutting.

        Args:
            texts: The texts as the caller gave them.
            side: Whose prompt goes before them.
            with_spans: Whether to say where in the text each token lies.

        Returns:
            One entry per text.

        Raises:
            InputError: If a text can't be encoded, such as one with half a surrogate pair.
        """
        prepared = [self.prepare(text, side) for text in texts]
        try:
            if self._backend is None:
                return [TextTokens(self._slow_ids(text)) for text in prepared]
            if not with_spans:
                encoded = self._backend.encode_batch_fast(prepared, add_special_tokens=False)
                return [TextTokens(encoding.ids) for encoding in encoded]
            encoded = self._backend.encode_batch(prepared, add_special_tokens=False)
        except (TypeError, UnicodeError) as error:
            raise InputError(_not_unicode(texts)) from error
        except Exception as error:
            if type(error) is not Exception:  # the tokenizers library has no class for its own
                raise
            raise InputError(f"the tokenizer of {self.spec.name} can't read the text: {error}") from error
        shifts = [_Shift(text, self._prompt(side), self.spec.strip, self._lowers_texts) for text in texts]
        return [
            TextTokens(encoding.ids, [shift(span) for span in encoding.offsets])
            for encoding, shift in zip(encoded, shifts, strict=True)
        ]

    def check_embedded(self, texts: Sequence[str], side: Side, sequences: Sequence[Sequence[TokenSequence]]) -> None:
        """Refuse ids beyond the model's table, which on a GPU would end every later call of the process too.

        Args:
            texts: Texts as the caller gave them.
            side: Query or document.
            sequences: What is to be encoded of each.

        Raises:
            InputError: If one of them has a token for which the model has no embedding.
        """
        if not self._without_embedding:
            return
        for text, some in zip(texts, sequences, strict=True):
            found = self._without_embedding.intersection(chain.from_iterable(each.ids for each in some))
            if found:
                raise InputError(
                    f"the {side} {text[:40]!r} has {self.text_of(min(found))!r} in it, a token that was added to the "
                    f"tokenizer of {self.spec.name} and for which the model has no embedding: take it out of the text"
                )

    def prepare(self, text: str, side: Side) -> str:
        """A text as it is tokenised.

        Args:
            text: The text as the caller gave it.
            side: Whose prompt goes before it.

        Returns:
            The text with its prompt, stripped and lower-cased where the checkpoint's library does that to the text.
        """
        prepared = self._prompt(side) + text
        prepared = prepared.strip() if self.spec.strip else prepared
        return prepared.lower() if self._lowers_texts else prepared

    def _prompt(self, side: Side) -> str:
        return self.spec.query_prompt if side == "query" else self.spec.document_prompt

    def text_of(self, token_id: int) -> str:
        """The token as the vocabulary spells it."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    def _slow_ids(self, text: str) -> list[int]:
        text.encode()  # raises what a fast tokenizer does; one in Python takes half a surrogate pair for a character
        # Tokenizers in Python keep caches; nothing says that they may be shared.
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _special_ids(self, spec: ColBERTSpec) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before and after a text."""
        encoded = self._tokenizer("a", return_special_tokens_mask=True, verbose=False)
        if spec.layout in _HANDING_TYPES_ON and any(encoded.get("token_type_ids") or []):
            raise UnsupportedCheckpointError(
                f"the tokenizer of {spec.name} gives tokens other types than 0, which are not handed to the model here"
            )
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        if all(special):
            return ids, []
        first, last = special.index(0), len(special) - special[::-1].index(0)
        return ids[:first], ids[last:]

    # ------------------------------------------------------------------------------------------------ resolving

    def _resolve(self, spec: ColBERTSpec) -> ColBERTSpec:
        notes = list(spec.notes)
        expands = spec.query_expansion != "none"
        resolved = replace(
            spec,
            query_marker_id=self._marker_id(spec.query_marker, spec, notes),
            document_marker_id=self._marker_id(spec.document_marker, spec, notes),
            expansion_token_id=self._expansion_id(spec) if expands else None,
            skiplist_ids=self._skiplist_ids(spec),
            tokenizer_digest=self._digest(),
        )
        if not self.prefix_ids and (spec.query_marker or spec.document_marker):
            notes.append("the tokenizer puts nothing before a text, so markers follow its first token, as in PyLate")
        if self._cuts_beginning:
            notes.append("a text that is too long loses its beginning, as the tokenizer's truncation_side says")
        if self._without_embedding:
            count = len(self._without_embedding)
            notes.append(
                f"the model has no embedding for {count} of the tokenizer's tokens: texts with them are refused"
            )
        if self._fills_beginning:
            notes.append("expansion stands before a query, as the tokenizer's padding_side says")
        return replace(resolved, notes=tuple(notes))

    def _digest(self) -> str:
        """Hash the ids that some fixed texts get, and those put around a text."""
        said = json.dumps([self.prefix_ids, *map(self._fixed_ids, _FIXED_TEXTS), self.suffix_ids])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def _fixed_ids(self, text: str) -> list[int] | None:
        try:
            return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except Exception:  # the tokenizers library's own, of one that knows no token for what it does not know
            return None

    def _marker_id(self, marker: str, spec: ColBERTSpec, notes: list[str]) -> int | None:
        if not marker:
            return None
        if marker in self._vocabulary:
            return self._vocabulary[marker]
        unknown: int | None = self._tokenizer.unk_token_id
        if spec.layout == "stanford" and unknown is not None:
            # colbert-ai looks the marker up the same way, so this is what such a checkpoint was trained with.
            notes.append(f"marker {marker!r} is not in the vocabulary; it is the unknown token, as in colbert-ai")
            return unknown
        raise MissingWeightsError(
            f"{spec.name} marks texts with {marker!r}, which is not in its vocabulary: its embedding would be random. "
            "Check that the tokenizer's files belong to the checkpoint, or pass query_marker= and document_marker="
        )

    def _expansion_id(self, spec: ColBERTSpec) -> int:
        if spec.expansion_token is not None and spec.expansion_token in self._vocabulary:
            return self._vocabulary[spec.expansion_token]
        fallbacks = (self._tokenizer.mask_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id)
        found = next((token for token in fallbacks if token is not None), None)
        if spec.expansion_token is not None or found is None:
            raise MissingWeightsError(
                f"{spec.name} expands queries with {spec.expansion_token or 'a mask or end token'!r}, which is not in "
                "its vocabulary; pass query_expansion=False to do without"
            )
        return int(found)

    def _skiplist_ids(self, spec: ColBERTSpec) -> tuple[int, ...]:
        if spec.skiplist_rule == "first_piece":
            pieces = [self._tokenizer(word, add_special_tokens=False)["input_ids"] for word in spec.skiplist_words]
            return tuple(sorted({piece[0] for piece in pieces if piece}))
        # A word that is not in the vocabulary would stand for the unknown token and delete every one of those.
        return tuple(sorted({self._vocabulary[word] for word in spec.skiplist_words if word in self._vocabulary}))

    # ------------------------------------------------------------------------------------------------ sequences

    def capacity(self, side: Side) -> int | None:
        """Maximum number of tokens of text that fit in one sequence.

        Args:
            side: Query or document.

        Returns:
            The number, at least 1; None where nothing limits it.

        Raises:
            InputError: If the length leaves no room for text.
        """
        length = self.spec.query_length if side == "query" else self.spec.document_length
        if length is None:
            return None
        overhead = len(self.prefix_ids) + len(self.suffix_ids) + (self._side_marker(side) is not None)
        if length <= overhead:
            raise InputError(
                f"{side}_length={length} leaves no room for text: {overhead} tokens are special or markers, so it "
                f"must be at least {overhead + 1}"
            )
        return length - overhead

    def start_of_cut(self, count: int, capacity: int) -> int:
        """Where a text begins to be read that is cut to one sequence.

        Args:
            count: Number of its tokens.
            capacity: How many of them are read.

        Returns:
            Position of the first one that is; 0 unless the checkpoint's tokenizer cuts the beginning.
        """
        return max(0, count - capacity) if self._cuts_beginning else 0

    def sequence(self, content: Sequence[int], side: Side, start: int = 0) -> TokenSequence:
        """Dress tokens of text as the model was trained to see them.

        Args:
            content: Tokens of text, no more than ``capacity(side)``.
            side: Query or document.
            start: Position of the first token in its text, where this is a window of it.

        Returns:
            The sequence, with special tokens, marker, expansion, and the positions whose vectors count.
        """
        if side == "query" and self._padding in content and self.spec.expansion_token_id is not None:
            content = [self.spec.expansion_token_id if token == self._padding else token for token in content]
        ids = [*self.prefix_ids, *content, *self.suffix_ids]
        tail = len(self.suffix_ids)
        origins = [*[None] * len(self.prefix_ids), *range(start, start + len(content)), *[None] * tail]
        marker = self._side_marker(side)
        if marker is not None:
            ids.insert(1, marker)  # by id and after the first token, never as text in front of it
            origins.insert(1, None)
        sequence = TokenSequence(ids, len(ids), self._kept(ids, origins, side), origins)
        return self._expanded(sequence) if side == "query" else sequence

    def _expanded(self, query: TokenSequence) -> TokenSequence:
        """A query filled up with expansion tokens, as far as it has room for them."""
        token, missing = self.spec.expansion_token_id, self.spec.expansion_length - len(query.ids)
        if token is None or missing <= 0:
            return query
        lead, tail = (missing, 0) if self._fills_beginning else (0, missing)
        first = 0 if self._fills_beginning else len(query.ids)
        skips = "query" in self.spec.skiplist_tasks and token in self._skipped
        attends = self.spec.attend_to_expansion_tokens
        return TokenSequence(
            [*[token] * lead, *query.ids, *[token] * tail],
            query.attended + missing * attends,
            sorted([*(position + lead for position in query.kept), *(() if skips else range(first, first + missing))]),
            [*[None] * lead, *query.origins, *[None] * tail],
            0 if attends else lead,
        )

    @property
    def hides_beginnings(self) -> bool:
        """Whether queries begin with expansion tokens that nobody sees."""
        return self._fills_beginning and not self.spec.attend_to_expansion_tokens

    def prompt_ids(self, side: Side) -> list[int]:
        """Tokenise the prompt alone.

        Args:
            side: Whose prompt.

        Returns:
            Token ids, without special tokens; empty where there is no prompt.
        """
        return self.tokens([""], side)[0].ids if self._prompt(side) else []

    def prompt_length(self, ids: Sequence[int]) -> int:
        """Count the tokens of the prompt at the head of a document.

        Args:
            ids: Tokens of the document.

        Returns:
            The number. A token that holds the end of the prompt and the beginning of the text counts as text: whatever
            follows the prompt elsewhere in the text, it is not that.
        """
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(self._prompt_ids, ids, strict=False))
        return sum(1 for _ in alike)

    def window(self, ids: Sequence[int], start: int, size: int) -> TokenSequence:
        """Dress part of a document as a document, with the prompt at its head.

        Args:
            ids: Tokens of the whole document, those of its prompt first.
            start: Position of the first token of the part, behind the prompt.
            size: Tokens of the part; with those of the prompt no more than ``capacity("document")``.

        Returns:
            The sequence. The prompt's words give vectors in the first window only, markers in all of them: in the
            native layout of sentence-transformers the marker is part of the prompt.
        """
        prompt = self.prompt_length(ids)
        skip = start - prompt
        sequence = self.sequence([*ids[:prompt], *ids[start : start + size]], "document", skip)
        if not prompt or not skip:
            return sequence
        origins = [o if o is None or o >= start else o - skip for o in sequence.origins]
        spoken = [o is None or o >= start or id_ in self._added for o, id_ in zip(origins, sequence.ids, strict=True)]
        return replace(sequence, kept=[p for p in sequence.kept if spoken[p]], origins=origins)

    def _side_marker(self, side: Side) -> int | None:
        return self.spec.query_marker_id if side == "query" else self.spec.document_marker_id

    def _kept(self, ids: list[int], origins: list[int | None], side: Side) -> list[int]:
        kept = list(range(len(ids)))
        if self.spec.dropped_tokens == "first":
            kept = kept[1:]
        elif self.spec.dropped_tokens == "special":
            # A text without tokens keeps its special ones: a document without vectors could not be ranked.
            kept = [position for position in kept if origins[position] is not None] or kept
        if side in self.spec.skiplist_tasks and self._skipped:
            kept = [position for position in kept if ids[position] not in self._skipped]
        return kept


class _Shift:
    """From characters of the prepared text back to characters of the text as it was given."""

    def __init__(self, text: str, prompt: str, strips: bool, lowers: bool) -> None:
        whole = prompt + text
        stripped = len(whole) - len(whole.lstrip()) if strips else 0
        self._offset = stripped - len(prompt)
        self._length = len(text)
        # Lower-casing can lengthen a character ("İ"), so positions after it move.
        widths = [len(character.lower()) for character in whole] if lowers else []
        self._origin = _origins(widths[stripped:]) if any(width != 1 for width in widths) else None

    def __call__(self, span: Span) -> Span | None:
        start, stop = span
        if self._origin is not None:
            start, stop = self._origin[start], self._origin[stop - 1] + 1 if stop > start else self._origin[start]
        start, stop = max(0, start + self._offset), min(self._length, stop + self._offset)
        return (start, stop) if stop > start else None


def _lower_within(tokenizer: Any) -> None:
    """Make a tokenizer lower-case what it is given, the way sentence-transformers does."""
    if not tokenizer.is_fast:
        try:
            tokenizer.do_lower_case = True
        except AttributeError:  # some have it as a property, of a tokenizer inside
            tokenizer.basic_tokenizer.do_lower_case = True
        return
    from tokenizers import normalizers

    own: Any = tokenizer.backend_tokenizer.normalizer
    several = isinstance(own, normalizers.Sequence)
    parts = list(own) if several else [own] * (own is not None)
    if not any(isinstance(part, normalizers.Lowercase) for part in parts):
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])
        # So that markers are looked for as the normalizer leaves them (tokenizers before 0.23).
        backend.add_tokens(list(backend.get_added_tokens_decoder().values()))


def _origins(widths: list[int]) -> list[int]:
    ends = list(accumulate(widths))
    origin = [index for index, width in enumerate(widths) for _ in range(width)]
    return origin + [len(ends)]


def _not_unicode(texts: Sequence[str]) -> str:
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeError as error:
            return f"text {index} is not valid Unicode: {error}. Decode it with errors='replace' where it is read"
    return "a text can't be tokenised"
