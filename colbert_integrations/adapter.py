"""What the adapters of both frameworks share: their fields, and the way from these to one shared ColBERT.

Both frameworks are built on pydantic; nothing else of either is known here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import fields as dataclass_fields
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from .errors import InputError
from .names import likely_name
from .settings import DEFAULT_MODEL, Settings

if TYPE_CHECKING:  # at run time only once a text is ranked: the model's room imports torch
    from .colbert_index import ColBERTIndex
    from .model import ColBERT
    from .ranking import RankedDocument

__all__ = [
    "EXPLANATION",
    "ModelFields",
    "RerankerFields",
    "check_index",
    "check_items",
    "check_query",
    "class_name",
    "copied",
    "is_explanation",
]

EXPLANATION = "explanation"
"""The metadata key under which explanations are returned, as ``Explanation.as_dict`` makes them."""

T = TypeVar("T")


class ModelFields(BaseModel):
    """Fields that say which model, and the ``ColBERT`` that everybody with the same settings shares.

    Filling them in is cheap: weights are loaded by the first call that needs them. Pickles, copies and dictionaries
    hold settings, never weights.
    """

    # Errors without the input: a refused token would be printed with it.
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    if TYPE_CHECKING:
        model: str | os.PathLike[str] | ColBERT = DEFAULT_MODEL
    else:
        model: str = DEFAULT_MODEL
        """Name or path of a checkpoint. A ``ColBERT`` is accepted too, and used as it is."""

    device: str | None = None
    """Such as ``"cpu"`` or ``"cuda:1"``. None: the first that is there of CUDA, MPS, CPU."""

    dtype: str | None = None
    """``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"``. None: float32 on the CPU, half precision on CUDA."""

    query_length: int | None = None
    """Maximum number of tokens in a query. None: as the checkpoint says."""

    document_length: int | None = None
    """Maximum number of tokens in a document or window. None: as the checkpoint says."""

    long_documents: Literal["window", "truncate"] = "window"
    """``"window"`` scores a long document whole; ``"truncate"`` its beginning, with a warning."""

    window_overlap: int | None = None
    """Tokens that neighbouring windows share. None: 64, or half a window if that is less."""

    batch_size: int | None = None
    """Maximum number of texts in a batch. None: a budget of tokens decides."""

    colbert_options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of ``ColBERT``, by name; not ``token``, which would be written out with the settings."""

    _colbert: ColBERT | None = PrivateAttr(default=None)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # Functions are shared: a method's copy would copy its owner, which may hold locks and connections.
        memo = {} if memo is None else memo
        memo.update({id(value): value for value in vars(self).values() if callable(value)})
        return super().__deepcopy__(memo)

    @field_validator("device", "dtype", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """A device or data type of torch, as ``ColBERT`` takes it, by its name."""
        return str(given).removeprefix("torch.") if type(given).__module__ == "torch" else given

    @model_validator(mode="wrap")
    @classmethod
    def _accept_colbert(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        given = data.get("model") if isinstance(data, dict) else None
        if _is_colbert(given):
            made = cls._made(cls._with_fields_of(given, data), handler)
            made._colbert = given
        else:
            made = cls._made({**data, "model": os.fspath(given)} if isinstance(given, os.PathLike) else data, handler)
        made._settings()  # impossible settings are an error now, not at the first query
        return made

    @classmethod
    def _made(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill the fields in; of unknown ones say what may have been meant, which pydantic does not."""
        try:
            return handler(data)
        except ValidationError as error:
            places = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
            unknown = [str(place[0]) for place in places if len(place) == 1]  # others are within a field's own value
            if not unknown:
                raise
            said = "; ".join(f"{name!r}{_meant(name, cls.model_fields)}" for name in unknown)
            raise InputError(f"{cls.__name__} has no field {said}") from None

    @classmethod
    def _with_fields_of(cls, model: ColBERT, data: dict[str, Any]) -> dict[str, Any]:
        """The fields with the settings of a model that was given; refuse others beside it."""
        changed = model.settings.changed()
        own = {name: changed.pop(name) for name in _MODEL_FIELDS & changed.keys()} | {"colbert_options": changed}
        asked = {name: data[name] for name in _MODEL_FIELDS - {"model"} if data.get(name) is not None}
        options = asked.pop("colbert_options", {})
        asked |= options if isinstance(options, Mapping) else {}
        # In one form: "auto" and None, a path and its name ask for the same.
        wanted = Settings.of({**asked, "model": model.settings.model})
        other = sorted(name for name in asked if getattr(wanted, name) != getattr(model.settings, name))
        if other:
            raise InputError(f"{', '.join(other)} belong to the ColBERT that model or index brings: set them there")
        return {**data, **own}

    @property
    def colbert(self) -> ColBERT:
        """The model, shared by everything with the same settings; its weights are loaded by the first call."""
        settings = self._settings()
        if self._colbert is None or self._colbert.settings != settings:
            from .model import ColBERT

            self._colbert = ColBERT.shared(**settings.changed())
        return self._colbert

    @property
    def _model_name(self) -> str:
        """What the field holds, whatever was passed for it."""
        return str(self.model)

    def about(self) -> dict[str, str]:
        """What traces say of the model: its name, and once it was loaded, device and data type."""
        # Where there is no ColBERT yet nothing was loaded, and making it would import torch.
        return {"colbert.model": self._model_name} if self._colbert is None else self._colbert.about()

    def close(self) -> None:
        """Free the model's weights; the next call loads them again."""
        self.colbert.close()

    def _check_settings_of(self, index: ColBERTIndex) -> None:
        """Refuse settings that were changed after an index had brought its model."""
        if self._settings() != index.model.settings:
            raise InputError(
                f"the model's settings can't be changed: an index has its own. Make a new {type(self).__name__}"
            )

    def _settings(self) -> Settings:
        if "token" in self.colbert_options:
            raise InputError("colbert_options may not hold a token: log in to the hub, or pass a ColBERT as model")
        own = {name: getattr(self, name) for name in _MODEL_FIELDS - {"colbert_options"}}
        twice = sorted(set(own) & set(self.colbert_options))
        if twice:
            raise InputError(f"{', '.join(twice)} are fields of their own, not for colbert_options")
        return Settings.of({**own, **self.colbert_options})

    async def _run_async(self, function: Callable[..., T], *args: Any) -> T:
        # The first use of a model imports torch, which takes seconds.
        colbert = await asyncio.to_thread(getattr, self, "colbert") if self._colbert is None else self.colbert
        return await colbert.run_async(function, *args)


class RerankerFields(ModelFields):
    """Fields of a reranker, and ranking by them."""

    normalize_scores: bool = True
    """Scores from 0 to 1: the mean over the query's vectors. False: the raw sum. Neither is a probability."""

    score_threshold: float | None = None
    """Lowest score that is returned, on the scale of the scores. None: no limit."""

    explain: bool = False
    """Whether each result says how its score came about, in a copy's metadata under ``explanation``."""

    index: Any = Field(default=None, exclude=True, repr=False)
    """A ``ColBERTIndex``: documents that it holds, by id and with the same text, are not encoded again. None: none."""

    @model_validator(mode="wrap")
    @classmethod
    def _model_of_index(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        index = data.get("index") if isinstance(data, dict) else None
        if index is None:
            return handler(data)
        return handler({**data, "model": check_index(index, data.get("model")).model})

    async def _run_async(self, function: Callable[..., T], *args: Any) -> T:
        # With an index it may wait for a server, and would hold up other users of the model in the model's threads.
        if self.index is not None:
            return await check_index(self.index).run_async(function, *args)
        return await super()._run_async(function, *args)

    def _rank(self, query: str, texts: list[str], ids: list[str | None], top_n: int | None) -> list[RankedDocument]:
        if not texts:
            return []
        query = check_query(query)
        options: dict[str, Any] = {
            "normalize_scores": self.normalize_scores,
            "score_threshold": self.score_threshold,
            "explain": self.explain,
        }
        if self.index is None:
            return self.colbert.rank(query, texts, top_n, **options)
        self._check_settings_of(self.index)
        return check_index(self.index).rank(query, texts, ids, top_n, **options)


def check_index(index: object, model: object = None, store: object = None) -> ColBERTIndex:
    """The index, if it is one, and what is passed with it is its own."""
    from .colbert_index import ColBERTIndex

    if not isinstance(index, ColBERTIndex):
        raise InputError(f"index must be a ColBERTIndex, not {type(index).__name__}")
    # Its name will do: a copy from the fields of another adapter has no more of it.
    if model is not None and model is not index.model and model != index.model.settings.model:
        raise InputError("index brings its own model: leave model out")
    if store is not None and store is not index.store:
        raise InputError("index brings its own store: leave store out")
    return index


def check_query(query: object) -> str:
    """The query, if it is a text, without the line ends that tools hand over and some tokenizers would count."""
    if not isinstance(query, str):
        raise InputError(f"query must be a string, not {type(query).__name__}")
    return query.strip()


def check_items(name: str, items: object) -> Sequence[Any]:
    """The items, if they are a list: a single text is a sequence too, of its characters."""
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise InputError(f"{name} must be a list, not {type(items).__name__}")
    return items


def class_name(item: object, wanted: str) -> str:
    """The class of what was passed, with its module where it is called as the one that is wanted."""
    found = type(item)
    return f"{found.__module__}.{found.__qualname__}" if found.__name__ == wanted else found.__name__


def is_explanation(value: object) -> bool:
    """Whether metadata is an explanation that an adapter put there, and not the user's own data under that key."""
    return isinstance(value, Mapping) and {"query", "document", "score", "matches", "shares"} <= value.keys()


_MODEL_FIELDS = frozenset(ModelFields.model_fields)
_COLBERT_OPTIONS = {item.name for item in dataclass_fields(Settings)} - _MODEL_FIELDS - {"token"}


def _meant(name: str, known: Collection[str]) -> str:
    """What may have been meant by a field that there is not."""
    if name in _COLBERT_OPTIONS:
        return f", an argument of ColBERT: pass colbert_options={{{name!r}: ...}}"
    if name == "token":
        return ": log in to the hub, or pass a ColBERT as model"
    likely = likely_name(name, known)
    return f" (is it {likely}?)" if likely else ""


def _is_colbert(model: object) -> TypeGuard[ColBERT]:
    if model is None or isinstance(model, str):
        return False
    from .model import ColBERT

    return isinstance(model, ColBERT)


def copied(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Copy metadata, so that changing a list in the copy leaves the original alone.

    Args:
        metadata: The metadata.

    Returns:
        The copy; a value that can't be copied all through is copied on its surface, or else the same.
    """
    return {key: _own_copy(value) for key, value in metadata.items()}


def _own_copy(value: Any) -> Any:
    for how in (deepcopy, copy):
        with suppress(Exception):  # a lock or an open file; classes raise what they like
            return how(value)
    return value
