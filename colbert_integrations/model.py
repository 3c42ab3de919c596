"""ColBERT: a checkpoint ready to use. Spec, encoder and MaxSim behind encode_query, encode_document, rank, explain."""

from __future__ import annotations

import gc
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar, overload
from weakref import WeakValueDictionary

import torch

from .cache import CacheInfo, DocumentCache
from .cancellation import current_cancellation
from .checkpoint import ColBERTSpec, HubOptions, SpecOverrides, WeightFiles, locate, model_digest, read_checkpoint
from .checks import check_pool_factor, check_text, check_threshold, is_list
from .devices import choose_device, choose_dtype, indexed_device
from .embeddings import TokenEmbeddings, check_tensor
from .encoder import (
    EncodeOptions,
    Encoder,
    Forward,
    LoadOptions,
    RemoteForward,
    Side,
    load_encoder,
)
from .errors import InputError, NonFiniteError
from .explain import Explanation
from .explain.explainer import explain_pairs
from .fingerprint import Fingerprint
from .observing import logged, record, timed
from .pooling import check_pooling, pool_tokens
from .ranking import RankedDocument, check_normalizable, check_top_n, ranked
from .scoring import maxsim
from .settings import DEFAULT_MODEL, Settings
from .single_flight import SingleFlight
from .worker import Worker

__all__ = ["ColBERT"]

# Tokens in a batch where the caller does not say. CPU: larger batches leave the caches and pad more. Other devices
# are kept busy only by many tokens at once.
_BATCH_TOKENS_CPU = 2048
_BATCH_TOKENS_OTHER = 32_768
# Async calls that run at once, each in a thread, where it waits for the batches that it shares with the others. With
# one thread nothing could be shared; each more may cost a pool of torch's own threads.
_ASYNC_THREADS = 32


P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


class ColBERT:
    """A ColBERT checkpoint, loaded and ready: encodes queries and documents and ranks by MaxSim.

    ``score(q, d) = sum_s max_t <q_s, d_t>`` over the token vectors of query and document.

    Safe to share between threads; calls at the same time share batches. Weights are loaded when it is made, freed by
    ``close`` and loaded again by the next call. Pickles and copies carry settings, never weights. A call that needs
    weights that are not in memory loads them first, and may raise what the constructor raises. With ``forward=`` on
    servers it may raise ``RemoteError``.

    Args:
        model: A folder, a repository on the hub, or ``"bundled/all-MiniLM-L6-v2"``.
        device: Such as ``"cpu"``, ``"cuda:1"``, ``"mps"``. None: the first available of CUDA, MPS and CPU.
        dtype: Of weights and forward pass: ``"float32"``, ``"bfloat16"``, ``"float16"``, or on a CPU ``"int8"``, for
            the linear layers of BERT, RoBERTa and ModernBERT. None: float32 on the CPU and MPS, bfloat16 (or else
            float16) on CUDA. Vectors and scores are float32 in any case.
        query_length: Maximum number of tokens in a query, markers included. None: as the checkpoint says.
        document_length: Maximum number of tokens in a document or window. None: as the checkpoint says.
        long_documents: ``"window"``: overlapping windows, scored by the union of their vectors, which is MaxSim over
            the whole document; ``"truncate"``: the beginning only (or the end, where the checkpoint's tokenizer cuts
            the beginning), with a warning.
        forward: Runs the forward pass elsewhere, on token ids made here: a ``colbert_integrations.vllm.VLLMForward``,
            or any ``Forward``. Vectors come to ``device`` and are scored there. None: in this process.
        window_overlap: Tokens that neighbouring windows share. None: 64, or half a window if that is less.
        batch_tokens: Maximum number of tokens in a batch; padding counts, if there is any. None: 2,048 on a CPU, 32,768
            on other devices, and what ``forward`` prefers on servers.
        batch_size: Maximum number of texts or windows in a batch. None: only the tokens count.
        query_marker: Token after the first one of a query. None: as the checkpoint says; ``""``: none.
        document_marker: The same for documents.
        query_prompt: Text before every query. None: as the checkpoint says.
        document_prompt: Text before every document and window. None: as the checkpoint says.
        query_expansion: Whether queries are filled up with mask tokens. None: as the checkpoint says.
        attend_to_expansion_tokens: Whether the other tokens attend to the expansion tokens. None: as the checkpoint
            says.
        skiplist_words: Words in documents whose vectors are dropped; a word that is no token of the vocabulary drops
            nothing. None: as the checkpoint says.
        truncate_dim: Dimensions to keep, for heads trained for it (Matryoshka). None: all.
        projection_dim: For a plain encoder, dimension of a fixed orthonormal projection. None: none.
        allow_unprojected: Whether a plain encoder without a ColBERT head may be used; ``bundled/...`` implies it.
        attn_implementation: Attention backend of transformers. None: its own choice, for ModernBERT ``"sdpa"``.
        language: For X-MOD models, whose adapters to use. None: the checkpoint's default, if it names one.
        revision: Branch, tag or commit on the hub, not of code in another repository. None: the default branch.
        token: Hub access token. Never printed or pickled. None: the one stored on this machine.
        cache_dir: Where downloads are kept. None: the hub library's own place.
        local_files_only: Use only what was downloaded before.
        trust_remote_code: Whether code from the repository may run where transformers has no class of its own.
        cache_bytes: Maximum memory in bytes, on the model's device, for the vectors of documents that ``rank`` saw
            lately; they are not encoded again. ``close`` empties it. None or 0: none are kept.

    Raises:
        CheckpointError: If the checkpoint is not there, not whole, or of a kind that is not run; see ``errors``.
        InputError: If an argument is invalid, for itself or for this checkpoint.
        MissingExtraError: If a bundled model's package is not installed.

    Source:
        Khattab & Zaharia 2020, arXiv:2004.12832.

    Example:
        >>> with ColBERT("bundled/all-MiniLM-L6-v2", device="cpu") as model:
        ...     ranked = model.rank("how do planes fly", ["bread recipes", "the lift of a wing"])
        >>> [entry.index for entry in ranked]
        [1, 0]
    """

    # Weak, so that sharing keeps no weights alive that nobody uses.
    _shared: WeakValueDictionary[tuple[type, Settings, str], ColBERT] = WeakValueDictionary()
    _shared_lock = threading.Lock()

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        query_length: int | None = None,
        document_length: int | None = None,
        long_documents: Literal["window", "truncate"] = "window",
        forward: Forward | RemoteForward | None = None,
        *,
        window_overlap: int | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        query_marker: str | None = None,
        document_marker: str | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        query_expansion: bool | None = None,
        attend_to_expansion_tokens: bool | None = None,
        skiplist_words: Sequence[str] | None = None,
        truncate_dim: int | None = None,
        projection_dim: int | None = None,
        allow_unprojected: bool = False,
        attn_implementation: str | None = None,
        language: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        cache_bytes: int | None = None,
    ) -> None:
        # A copy: in Python 3.12 debuggers and coverage tools add to the original while it is gone through.
        given = {name: value for name, value in dict(locals()).items() if name not in ("self", "forward", "__class__")}
        if not (forward is None or callable(forward) or isinstance(forward, RemoteForward)):
            raise InputError(f"forward must be a function of sequences or a VLLMForward, not {type(forward).__name__}")
        self._start(Settings.of(given), forward)
        self._ready()

    def _start(self, settings: Settings, forward: Forward | RemoteForward | None) -> None:
        self.settings = settings
        self._forward = forward
        self._spec: ColBERTSpec | None = None
        self._encoder: Encoder | None = None
        self._weights: WeightFiles | None = None
        self._name = settings.model
        self._place = _place(settings.model)
        # For moments, never while something is loaded. A handler of signals may close what its own thread publishes.
        self._lock = threading.RLock()
        self._closed = 0
        self._loading, self._hashing = SingleFlight[Encoder](), SingleFlight[Fingerprint]()
        self._fingerprint: tuple[tuple[ColBERTSpec, WeightFiles], Fingerprint] | None = None
        self._worker = Worker(_ASYNC_THREADS)
        # One for each instance: its vectors belong to one spec.
        self._cache = DocumentCache(settings.cache_bytes)

    @classmethod
    def shared(cls, model: str | os.PathLike[str] = DEFAULT_MODEL, **settings: Any) -> ColBERT:
        """Get the shared instance with these settings; make it if there is none.

        Args:
            model: As in the constructor.
            **settings: Arguments of the constructor except ``forward``, by name.

        Returns:
            The same object for equal settings as long as something refers to it. Its weights are loaded by the first
            call that needs them, which may raise as the constructor does.

        Raises:
            InputError: If an argument is unknown or invalid.

        Example:
            >>> ColBERT.shared("bundled/all-MiniLM-L6-v2") is ColBERT.shared("bundled/all-MiniLM-L6-v2")
            True
        """
        wanted = Settings.of({"model": model, **settings})
        key = cls, wanted, _place(wanted.model)
        with cls._shared_lock:
            found = cls._shared.get(key)
            if found is None:
                found = cls.__new__(cls)
                found._start(wanted, None)
                cls._shared[key] = found
            elif wanted.token is not None and found._encoder is None:
                found.settings = wanted  # the same but for the token, which the load to come may need
        return found

    # -------------------------------------------------------------------------------------------------- encoding

    def encode_query(self, queries: str | Sequence[str], *, show_progress: bool | None = None) -> TokenEmbeddings:
        """Encode queries.

        Args:
            queries: One or more texts; an empty one is fine. Whether white space around a text counts is up to the
                checkpoint's tokenizer.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Returns:
            ``len(queries)`` entries, float32 on the model's device; one for a single string. Vectors have unit length
            unless the checkpoint does not normalise. Expansion tokens, where the checkpoint uses them, are included.

        Raises:
            InputError: If a query is not a string, not valid Unicode, or has a token for which the model has no
                embedding.
            MissingExtraError: If the checkpoint merges vectors of queries and scipy is not installed.
        """
        return self._encode(_texts(queries, "queries"), "query", show_progress)

    def encode_document(
        self, documents: str | Sequence[str], *, pool_factor: float = 1, show_progress: bool | None = None
    ) -> TokenEmbeddings:
        """Encode documents.

        Args:
            documents: One or more texts; empty ones are fine.
            pool_factor: About 1 in ``pool_factor`` vectors is kept, by merging similar ones; 1 keeps all.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Returns:
            ``len(documents)`` entries, float32 on the model's device; one for a single string. A document cut into
            windows is one entry with the vectors of all of them. Vectors have unit length unless the checkpoint does
            not normalise or vectors were merged.

        Raises:
            InputError: If a document is not a string, not valid Unicode, or has a token for which the model has no
                embedding, or ``pool_factor`` is below 1.
            MissingExtraError: If vectors are to be merged and scipy is not installed.
        """
        check_pool_factor(pool_factor)
        if pool_factor == 1:
            return self._encode(_texts(documents, "documents"), "document", show_progress)
        check_pooling()
        encoded = self._encode(_texts(documents, "documents"), "document", show_progress)
        return pool_tokens(encoded, pool_factor, normalized=self.spec.normalize)

    def _encode(self, texts: list[str], side: Side, show_progress: bool | None) -> TokenEmbeddings:
        with logged(_log, "encode", self.about):
            encoder = self._ready()
            return _pooled(encoder.encode(texts, side, show_progress=show_progress), side, encoder.spec)

    # --------------------------------------------------------------------------------------------------- ranking

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        *,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        known: Mapping[str, torch.Tensor] | None = None,
        explain: bool = False,
        show_progress: bool | None = False,
    ) -> list[RankedDocument]:
        """Order documents by how well they answer a query.

        ``score = sum_s max_t <q_s, d_t>``, divided by the number of query vectors if normalised.

        Args:
            query: The query.
            documents: The candidates, in any order; repeated ones are encoded once and all returned.
            top_n: Maximum number of documents to return, at least 1. None: all.
            normalize_scores: Whether scores are means over the query's vectors, clamped to 0..1, instead of sums.
            score_threshold: Lowest score to return, on the scale of the scores returned. None: no limit.
            known: Vectors of texts that this model encoded before, ``(num_tokens, dim)`` each; those texts are not
                encoded again. None: there are none.
            explain: Whether the documents that are returned are explained, as by ``explain``.
            show_progress: Whether to show a bar. None: on a terminal or in a notebook, for work over two seconds.

        Returns:
            The best documents, by descending sum, equal ones in the order given; empty for no documents. A document
            without vectors scores ``-inf`` (0 if normalised).

        Raises:
            InputError: If an argument is invalid, or the checkpoint's scores have no bounds to normalise by.
            NonFiniteError: If a score is not a number, naming the document.
            MissingExtraError: If the checkpoint merges vectors and scipy is not installed.

        Example:
            >>> model = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu")
            >>> best = model.rank("capital of France", ["Berlin", "Paris is the capital of France."], top_n=1)
            >>> best[0].index
            1
        """
        if isinstance(documents, str):
            raise InputError("documents must be a list of strings, not one string")
        texts = _texts(documents, "documents")
        with logged(_log, "rank", self.about):
            self._check_rank(query, texts, top_n, normalize_scores, score_threshold)
            if not texts:
                return []
            sums, query_vectors = self._sums(query, texts, known, show_progress)
            divisor = query_vectors if normalize_scores else None
            entries = ranked(sums, top_n, score_threshold, query_vectors=divisor)
            if not explain:
                return entries
            explanations = self.explain_pairs([(query, texts[entry.index]) for entry in entries])
            return [replace(entry, explanation=why) for entry, why in zip(entries, explanations, strict=True)]

    async def arank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        *,
        normalize_scores: bool = False,
        score_threshold: float | None = None,
        known: Mapping[str, torch.Tensor] | None = None,
        explain: bool = False,
        show_progress: bool | None = False,
    ) -> list[RankedDocument]:
        """Do what ``rank`` does without blocking the event loop; see there for the arguments.

        A cancelled call returns at once; what was not computed for it yet is dropped.
        """
        return await self.run_async(
            self.rank,
            query,
            documents,
            top_n,
            normalize_scores=normalize_scores,
            score_threshold=score_threshold,
            known=known,
            explain=explain,
            show_progress=show_progress,
        )

    @overload
    def explain(self, query: str, document: str) -> Explanation: ...  # type: ignore[overload-overlap]  # a string is a sequence of strings too; the first one counts

    @overload
    def explain(self, query: str, document: Sequence[str]) -> list[Explanation]: ...

    def explain(self, query: str, document: str | Sequence[str]) -> Explanation | list[Explanation]:
        """Show which document token each query token matched.

        Where the checkpoint merges vectors, tokens are compared as before that, and ``Explanation.pooled`` is true.

        Args:
            query: The query.
            document: The document, or several, which are encoded together.

        Returns:
            The score and the matches as data that can be printed, shown and drawn; a list of them for several.

        Raises:
            InputError: If an argument is not a string, not valid Unicode, or has a token for which the model has no
                embedding.
            NonFiniteError: If a score is not a number, naming the document.

        Example:
            >>> model = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu")
            >>> explanation = model.explain("how do planes fly", "Why the wings of a plane lift it")
            >>> explanation.shares[0].token  # print(explanation) shows all
            Token(text='plane', start=19, stop=24)
        """
        check_text("query", query)
        several = not isinstance(document, str)
        if several and not is_list(document):
            raise InputError(f"document must be a string or a list of strings, not {type(document).__name__}")
        texts = _texts(document, "document")
        with logged(_log, "explain", self.about):
            explanations = self._explained([(query, text) for text in texts], tell_of_cuts=True)
        return explanations if several else explanations[0]

    def explain_pairs(self, pairs: Iterable[tuple[str, str]]) -> list[Explanation]:
        """Explain what was scored already, without a warning of texts that are too long: that was given then.

        Args:
            pairs: Queries and documents.

        Returns:
            An explanation of each pair, in order; each text is encoded once, all together.

        Raises:
            InputError: If an item is not a pair of strings, or a text is not valid Unicode or has a token for which the
                model has no embedding.
            NonFiniteError: If a score is not a number.
        """
        return self._explained(_pairs(pairs), tell_of_cuts=False)

    def _explained(self, pairs: Sequence[tuple[str, str]], *, tell_of_cuts: bool) -> list[Explanation]:
        if not pairs:
            return []
        encoder = self._ready()
        explanations = explain_pairs(encoder, pairs, tell_of_cuts=tell_of_cuts)
        _check_finite(explanation.score for explanation in explanations)
        return explanations

    def _check_rank(
        self, query: str, texts: list[str], top_n: int | None, normalize_scores: bool, score_threshold: float | None
    ) -> None:
        check_text("query", query)
        check_top_n(top_n)
        check_threshold(score_threshold)
        if normalize_scores and texts:
            check_normalizable(self.spec)

    def _sums(
        self, query: str, texts: list[str], known: Mapping[str, torch.Tensor] | None, show_progress: bool | None
    ) -> tuple[list[float], int]:
        """The MaxSim of each text, and how many vectors the query has."""
        # Equal texts must get equal scores, or the order of ties would hang on how they were batched.
        unique = list(dict.fromkeys(texts))
        given = _known_of(known, unique, self.spec.dim)
        cache = self._cache  # before the encoder: close replaces them in the other order
        cached = cache.find([text for text in unique if text not in given])
        there = {**given, **cached}
        missing = [text for text in unique if text not in there]
        record(documents_ranked=len(texts), documents_cached=len(cached), documents_known=len(given))
        encoder = self._ready()
        encoded = encoder.encode(missing, "document", query=query, show_progress=show_progress)
        query_embeddings = _pooled(encoded[:1], "query", encoder.spec)
        fresh = _pooled(encoded[1:], "document", encoder.spec)
        with timed("score_s"):
            sums = maxsim(query_embeddings, _joined(unique, there, fresh))[0].tolist()
        by_text = dict(zip(unique, sums, strict=True))
        _check_finite(by_text[text] for text in texts)
        cache.keep(missing, fresh)
        return [by_text[text] for text in texts], query_embeddings.lengths[0]

    # ------------------------------------------------------------------------------------------------- lifecycle

    @property
    def spec(self) -> ColBERTSpec:
        """What the checkpoint says of itself, overrides applied; print it for a load report."""
        if self._spec is None:
            self._ready()
        assert self._spec is not None
        return self._spec

    @property
    def loaded(self) -> bool:
        """Whether the model is ready: its weights in memory, unless servers have them."""
        return self._encoder is not None

    @property
    def device(self) -> torch.device:
        """Where the model runs; with servers, where vectors are scored and what they can't encode is encoded."""
        return choose_device(self.settings.device)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights and forward pass here; servers have their own."""
        return choose_dtype(self.settings.dtype, self.device)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.spec.dim

    @property
    def num_parameters(self) -> int | None:
        """Number of parameters of backbone and projection; None where another engine runs the model."""
        return self._ready().num_parameters

    @property
    def fingerprint(self) -> Fingerprint:
        """Identity of the vectors this model makes; the weight files are read whole, once."""
        if self._encoder is None and (self._weights is None or self._weights.changed()):
            self._ready()
        made = self._fingerprint
        # What was loaded again after close() may be other weights.
        return made[1] if made is not None and made[0] == self._spec_and_weights() else self._hashing.run(self._hash)

    def _spec_and_weights(self) -> tuple[ColBERTSpec, WeightFiles]:
        with self._lock:
            assert self._spec is not None
            assert self._weights is not None
            return self._spec, self._weights

    def _hash(self) -> Fingerprint:
        loaded = spec, weights = self._spec_and_weights()
        found = Fingerprint(
            model_digest(spec, weights), self._name, spec.dim, {**self.settings.changed(), "model": self._name}
        )
        self._fingerprint = loaded, found
        return found

    def about(self) -> dict[str, str]:
        """What logs and traces say of it: its name, and once it was loaded, device and data type."""
        about = {"colbert.model": self.settings.model}
        if self._spec is not None:  # before, these may be impossible, and saying so is up to the call that loads
            about |= {"colbert.device": str(self.device), "colbert.dtype": str(self.dtype).removeprefix("torch.")}
        return about

    def cache_info(self) -> CacheInfo:
        """What the cache of documents has done since the model was made or closed, and what it holds."""
        return self._cache.info()

    def close(self) -> None:
        """Free the weights, the cache, the worker threads and connections to servers; the next call makes them again.

        Calls that are running finish with the weights and connections that they have.
        """
        with self._lock:
            self._closed += 1
            self._encoder = None
            self._loading = SingleFlight[Encoder]()  # who comes from now on gets what is in the files from now on
            self._cache = DocumentCache(self.settings.cache_bytes)
        self._worker.close()
        if isinstance(self._forward, RemoteForward):
            self._forward.close()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    async def run_async(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in one of this model's own worker threads, with the caller's context variables.

        Where the caller is cancelled, what the function waits for is dropped: encoding, requests to a store. There are
        32 threads: functions that wait for other async calls of this model should not take all of them.

        Args:
            function: What to run.
            *args: Its arguments.
            **kwargs: Its arguments by name.

        Returns:
            What it returns.
        """
        return await self._worker.run(function, *args, **kwargs)

    def _ready(self) -> Encoder:
        encoder = self._encoder
        if encoder is not None:
            return encoder
        current_cancellation().check()
        with timed("load_s"):
            return self._loading.run(self._load_once)

    def _load_once(self) -> Encoder:
        start, closed, encoder = perf_counter(), self._closed, self._encoder
        if encoder is not None:
            return encoder
        encoder, weights, name = self._load()
        with self._lock:
            current = self._closed == closed  # else it is for the calls alone that have waited for it
            if current or self._spec is None:
                self._spec, self._weights, self._name = encoder.spec, weights, name
            if current:
                self._encoder = encoder
        self._log_load(encoder.spec.layout, perf_counter() - start)
        return encoder

    def _log_load(self, layout: str, seconds: float) -> None:
        about = self.about()
        extra = {"colbert.call": "load", "colbert.total_s": seconds, "colbert.layout": layout, **about}
        named = (about["colbert.model"], seconds, layout, about["colbert.device"], about["colbert.dtype"])
        _log.info("loaded %s in %.6g s: layout=%s device=%s dtype=%s", *named, extra=extra)

    def _load(self) -> tuple[Encoder, WeightFiles, str]:
        settings = self.settings
        hub, overrides = _part_of(settings, HubOptions), _part_of(settings, SpecOverrides)
        found = locate(self._place, hub)
        folder = Path(os.path.abspath(found))
        weights = WeightFiles.of(folder)  # as they are before they are read
        checkpoint = read_checkpoint(
            settings.model,
            found,
            overrides,
            allow_unprojected=settings.allow_unprojected or settings.model.startswith("bundled/"),
            projection_dim=settings.projection_dim,
        )
        load = LoadOptions(indexed_device(self.device), self.dtype, settings.attn_implementation, hub)
        encoder = load_encoder(checkpoint, load, self._encode_options(), self._forward)
        # An index remembers where a model lies, and may be opened from another folder.
        return encoder, weights, str(folder) if found == Path(self._place) else settings.model

    def _encode_options(self) -> EncodeOptions:
        settings = self.settings
        default = _BATCH_TOKENS_CPU if self.device.type == "cpu" else _BATCH_TOKENS_OTHER
        if isinstance(self._forward, RemoteForward):
            default = self._forward.batch_tokens
        batch_tokens = settings.batch_tokens or default
        return EncodeOptions(settings.long_documents, settings.window_overlap, batch_tokens, settings.batch_size)

    def __enter__(self) -> ColBERT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __copy__(self) -> ColBERT:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ColBERT:
        return self

    def __reduce__(self) -> tuple[Callable[..., ColBERT], tuple[dict[str, Any], Forward | RemoteForward | None]]:
        return _restore, (self.settings.changed(), self._forward)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        shown = f"ColBERT({self.settings.model!r}, device={str(self.device)!r}, dtype={dtype!r}"
        shown += f", forward={self._forward!r}" if isinstance(self._forward, RemoteForward) else ""
        if self._spec is None:
            return f"{shown}, loaded=False)"
        spec = self._spec
        lengths = f"query_length={spec.query_length}, document_length={spec.document_length}"
        return f"{shown}, layout={spec.layout!r}, {lengths}, loaded={self.loaded})"


def _place(model: str) -> str:
    """Where a model is: of a folder the one that it is now; by the time of a load the program may be elsewhere."""
    return os.path.abspath(model) if os.path.isdir(model) else model


def _part_of(settings: Settings, kind: type[T]) -> T:
    """Those settings that a dataclass has fields for, by their names."""
    return kind(**{item.name: getattr(settings, item.name) for item in fields(kind)})  # type: ignore[arg-type]


def _pooled(encoded: TokenEmbeddings, side: Side, spec: ColBERTSpec) -> TokenEmbeddings:
    """Vectors merged as the checkpoint says, which for most is not at all."""
    pooling = spec.pooling
    if pooling is None or side not in pooling.tasks:
        return encoded
    return pool_tokens(
        encoded,
        pooling.pool_factor,
        num_protected_tokens=pooling.num_protected_tokens,
        normalize=pooling.normalize,
    )


def _joined(
    texts: list[str], known: Mapping[str, torch.Tensor], encoded: TokenEmbeddings
) -> TokenEmbeddings | list[torch.Tensor]:
    """Vectors of texts, in order: those that are known, and the others freshly encoded. ``maxsim`` needs no copy."""
    if len(encoded) == len(texts):
        return encoded
    fresh = iter(encoded)
    return [known[text].to(encoded.values) if text in known else next(fresh) for text in texts]


def _known_of(known: Mapping[str, torch.Tensor] | None, texts: Iterable[str], dim: int) -> dict[str, torch.Tensor]:
    """The vectors of these texts, checked; others are not looked at, since a mapping may read them from a disk."""
    if known is None:
        return {}
    if not isinstance(known, Mapping):
        raise InputError(f"known must map texts to their vectors, not be a {type(known).__name__}")
    found = {text: known[text] for text in texts if text in known}
    for text, matrix in found.items():
        if not isinstance(matrix, torch.Tensor) or matrix.ndim != 2 or matrix.shape[1] != dim:
            shape = tuple(getattr(matrix, "shape", ()))
            raise InputError(
                f"known must hold tensors (num_tokens, {dim}), not {type(matrix).__name__} of {shape} for {text[:60]!r}"
            )
        check_tensor(f"known[{text[:60]!r}]", matrix)
    return found


def _check_finite(scores: Iterable[float]) -> None:
    for index, score in enumerate(scores):
        if math.isnan(score) or score == math.inf:
            raise NonFiniteError(
                f"document {index} scores {score}: the model gave vectors that are not numbers. In half precision, try "
                "dtype='float32'"
            )


def _restore(settings: dict[str, Any], forward: Forward | RemoteForward | None) -> ColBERT:
    """Unpickle: the shared instance, or one of its own where the forward pass is."""
    if forward is None:
        return ColBERT.shared(**settings)
    model = ColBERT.__new__(ColBERT)
    model._start(Settings.of(settings), forward)
    return model


def _texts(texts: str | Iterable[str], name: str) -> list[str]:
    """The texts as a list, each of them checked, before any work is done."""
    if isinstance(texts, str):
        check_text(name, texts)
        return [texts]
    if not is_list(texts):
        raise InputError(f"{name} must be a list of strings, not {type(texts).__name__}")
    checked = list(texts)
    for index, text in enumerate(checked):
        check_text(f"{name}[{index}]", text)
    return checked


def _pairs(pairs: Iterable[Iterable[str]]) -> list[tuple[str, str]]:
    """The pairs as a list, each of them checked, before any work is done."""
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise InputError(f"pairs must be a list of queries with documents, not {type(pairs).__name__}")
    checked = list[tuple[str, str]]()
    for index, pair in enumerate(pairs):
        texts = _texts(pair, f"pairs[{index}]")
        if len(texts) != 2:
            raise InputError(f"pairs[{index}] must be a query and a document, not {pair!r}")
        checked.append((texts[0], texts[1]))
    return checked
