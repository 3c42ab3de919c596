"""The on-disk formats, one row each: how the files of a family are told, and what they say.

Real repositories are hybrids, so a row decides only the family of rules (markers, lengths, expansion, skiplist);
where the backbone lies and where the projection is stored are looked up in the files whatever the family.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError
from .files import BGE_HEAD, METADATA, MODULES, ROOT_HEADS, ST_CONFIG, Files
from .json_types import expect_type, strings
from .loading_checks import check_arguments
from .module_checks import check_chain
from .spec import PoolingSpec

__all__ = ["FORMATS", "Format", "Values", "known_values"]

_PYLATE_KEYS = (
    "query_prefix",
    "document_prefix",
    "query_length",
    "document_length",
    "attend_to_expansion_tokens",
    "skiplist_words",
    "do_query_expansion",
)
_PUNCTUATION = tuple(string.punctuation)
_SUMS = "scores here are sums, as everywhere in this package"
_PROMPTS = {"query_prompt": "query", "document_prompt": "document"}

# Published checkpoints whose own files are known to be wrong or silent, by name. An entry beats the files, an explicit
# argument beats the entry. Sources: pylate issues 109, 125 and 148 for the two ModernColBERT (trained where
# FlashAttention dropped unattended expansion tokens, so without expansion; older revisions do not say so), pylate pull
# request 55 for Jina, whose authors confirm there that expansion is attended.
_JINA = {
    "query_token_id": "[QueryMarker]",
    "doc_token_id": "[DocumentMarker]",
    "attend_to_mask_tokens": True,
}
_KNOWN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "lightonai/GTE-ModernColBERT-v1": {"do_query_expansion": False},
        "lightonai/Reason-ModernColBERT": {"do_query_expansion": False},
        "jinaai/jina-colbert-v2": _JINA,
        "jinaai/jina-colbert-v2-96": _JINA,
        "jinaai/jina-colbert-v2-64": _JINA,
    }
)


@dataclass(frozen=True)
class Format:
    """A family of rules.

    Attributes:
        name: What ``spec.layout`` says.
        detect: Tells from the files whether they follow these rules; rows are tried in order.
        read: The attributes of the spec, and where each was read.
    """

    name: str
    detect: Callable[[Files], bool]
    read: Callable[[Files, Values], None]


class Values:
    """Attributes of a spec under construction, each with the file it came from.

    Args:
        known: What is known of this checkpoint beyond its files.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = known
        self.attributes: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []

    def set(self, attribute: str, value: Any, source: str) -> None:
        """Set an attribute and say where it came from."""
        self.attributes[attribute] = value
        self.sources[attribute] = source

    def pick(
        self, attribute: str, kind: type, candidates: list[tuple[Mapping[str, Any], str, str]], default: Any
    ) -> Any:
        """Take what is known, else the first key that is there; an empty string or list and False count, null does not.

        Args:
            attribute: Attribute of the spec.
            kind: Of what kind the value has to be.
            candidates: Mappings to look in, each with the key and the file's name.
            default: What the format's own library assumes where no file speaks.

        Returns:
            The value that was taken.

        Raises:
            CheckpointError: If it is of another kind.
        """
        for _, key, _ in candidates:
            if key in self._known:
                self.set(attribute, self._known[key], "known of this checkpoint")
                return self._known[key]
        for mapping, key, source in candidates:
            if mapping.get(key) is not None:
                value: Any = expect_type(mapping[key], kind, f"{source}: {key}")
                self.set(attribute, value, f"{source}: {key}")
                return value
        self.set(attribute, default, "default of the format")
        return default


def known_values(name: str) -> Mapping[str, Any]:
    """What is known of a published checkpoint beyond its files; empty for all others."""
    return _KNOWN.get(name, {})


def _is_native(files: Files) -> bool:
    return files.st_config.get("model_type") == "MultiVectorEncoder"


def _is_pylate(files: Files) -> bool:
    said = files.st_config.get("model_type") == "ColBERT" or any(key in files.st_config for key in _PYLATE_KEYS)
    return said or (bool(files.modules_of("Dense")) and not files.modules_of("Pooling"))


def _is_stanford(files: Files) -> bool:
    root = files.folder.weight_names(files.backbone)
    hinted = "HF_ColBERT" in (files.config.get("architectures") or ())
    return hinted or bool(files.metadata) or any(head in root for head in ROOT_HEADS)


def _is_bge(files: Files) -> bool:
    return files.folder.has(BGE_HEAD)


def _read_stanford(files: Files, values: Values) -> None:
    meta = files.metadata
    values.pick("query_marker", str, [(meta, "query_token_id", METADATA)], "[unused0]")
    values.pick("document_marker", str, [(meta, "doc_token_id", METADATA)], "[unused1]")
    length = values.pick("query_length", int, [(meta, "query_maxlen", METADATA)], 32)
    values.pick("document_length", int, [(meta, "doc_maxlen", METADATA)], 220)
    values.set("query_expansion", "fixed", "always so in this format")
    values.set("expansion_length", length, values.sources["query_length"])
    values.pick("attend_to_expansion_tokens", bool, [(meta, "attend_to_mask_tokens", METADATA)], False)
    masked = values.pick("skiplist_words", bool, [(meta, "mask_punctuation", METADATA)], True)
    values.attributes["skiplist_words"] = _PUNCTUATION if masked else ()
    values.set("skiplist_rule", "first_piece", "always so in this format")
    if meta.get("similarity") == "l2":
        values.notes.append("trained with l2 similarity; scores here are dot products, which rank unit vectors alike")
    if files.has_fused_attention and not values.attributes["attend_to_expansion_tokens"]:
        # Not set right as where the name says so: a model that was trained further from Jina's has the same files.
        values.notes.append(
            "looks like a copy of jinaai/jina-colbert-v2, which was trained otherwise than its files say: if so, "
            "pass attend_to_expansion_tokens=True, query_marker='[QueryMarker]' and document_marker='[DocumentMarker]'"
        )
    _read_matryoshka(files, values)


def _read_pylate(files: Files, values: Values) -> None:
    check_arguments(files)
    st, meta = files.st_config, files.metadata

    def both(st_key: str, meta_key: str) -> list[tuple[Mapping[str, Any], str, str]]:
        return [(st, st_key, ST_CONFIG), (meta, meta_key, METADATA)]

    values.pick("query_marker", str, both("query_prefix", "query_token_id"), "[Q] ")
    values.pick("document_marker", str, both("document_prefix", "doc_token_id"), "[D] ")
    length = values.pick("query_length", int, both("query_length", "query_maxlen"), 32)
    values.pick("document_length", int, both("document_length", "doc_maxlen"), 180)
    expands = values.pick("query_expansion", bool, [(st, "do_query_expansion", ST_CONFIG)], True)
    values.attributes["query_expansion"] = "fixed" if expands else "none"
    values.set("expansion_length", length, values.sources["query_length"])
    values.pick("attend_to_expansion_tokens", bool, both("attend_to_expansion_tokens", "attend_to_mask_tokens"), False)
    skipped = values.pick("skiplist_words", list, [(st, "skiplist_words", ST_CONFIG)], None)
    if skipped is None:
        masked = values.pick("skiplist_words", bool, [(meta, "mask_punctuation", METADATA)], True)
        skipped = list(_PUNCTUATION) if masked else []
    values.attributes["skiplist_words"] = strings(skipped, f"{ST_CONFIG}: skiplist_words")
    _read_pylate_prompts(files, values)
    values.set("strip", True, "always so in this format")
    _read_lowercase(files, values)
    _read_matryoshka(files, values)


def _read_native(files: Files, values: Values) -> None:
    check_chain(files)
    check_arguments(files)
    source = files.transformer_file
    transformer = files.folder.mapping(source)
    limit = [(transformer, "max_seq_length", source)]
    values.pick("query_length", int, [(transformer, "query_length", source), *limit], None)
    values.pick("document_length", int, [(transformer, "document_length", source), *limit], None)
    _read_native_expansion(transformer, values, f"{source}: query_expansion")
    _read_mask(files, values)
    _read_prompts(files, values)
    # The markers are part of the prompts here, as text that the tokenizer knows as one token.
    values.set("normalize", bool(files.modules_of("Normalize")), MODULES)
    _read_lowercase(files, values)
    _read_matryoshka(files, values)
    _read_native_pooling(files, values)
    if files.st_config.get("similarity_fn_name") == "meanmaxsim":
        values.notes.append(f"its own scores are means over query tokens; {_SUMS}")


def _read_native_expansion(transformer: Mapping[str, Any], values: Values, source: str) -> None:
    expansion = expect_type(transformer.get("query_expansion") or {}, dict, source)
    if not expansion:
        return
    if expansion.get("strategy") not in ("fixed", "min"):
        raise CheckpointError(f"query_expansion strategy {expansion.get('strategy')!r} is neither 'fixed' nor 'min'")
    length = expect_type(expansion.get("length"), int, f"{source}.length")
    values.set("query_expansion", expansion["strategy"], source)
    values.set("expansion_length", length, source)
    token = expansion.get("token")
    values.set("expansion_token", None if token is None else expect_type(token, str, f"{source}.token"), source)
    attends = expect_type(expansion.get("attend") or False, bool, f"{source}.attend")
    values.set("attend_to_expansion_tokens", attends, source)
    # Not max_seq_length: sentence-transformers cuts a query there, and then fills it up.
    longest = transformer.get("query_length")
    if expansion["strategy"] == "fixed" or (longest is not None and longest < length):
        values.set("query_length", length, source)


def _tasks(said: str | list[str] | None, where: str) -> tuple[str, ...]:
    """The sides that something holds for: one by its name, or a list, of which an empty one means none."""
    if said is None:
        return ("document",)
    return (said,) if isinstance(said, str) else strings(said, where)


def _read_mask(files: Files, values: Values) -> None:
    """Which vectors count: of documents not those of the skiplist, of queries those of expansion that nobody sees."""
    masks = files.modules_of("MultiVectorMask")
    unseen = values.attributes.get("query_expansion") and not values.attributes["attend_to_expansion_tokens"]
    if unseen and not masks:
        raise CheckpointError(
            f"{files.name} expands queries and has no MultiVectorMask in {MODULES}, which is what counts the "
            "expansion: save it again with that module, or without query_expansion"
        )
    mask = files.folder.mapping(masks[0].config_file) if masks else {}
    if mask.get("keep_only_token_ids"):
        raise CheckpointError(f"{files.name} keeps only the vectors of given token ids, which is made for page images")
    words = strings(mask.get("skiplist_words") or [], "MultiVectorMask: skiplist_words")
    values.set("skiplist_words", words, "MultiVectorMask")
    tasks = _tasks(mask.get("skiplist_tasks"), "MultiVectorMask: skiplist_tasks")
    values.set("skiplist_tasks", tasks, "MultiVectorMask")


def _read_native_pooling(files: Files, values: Values) -> None:
    modules = files.modules_of("HierarchicalTokenPooling")
    if not modules:
        return
    config = files.folder.mapping(modules[0].config_file)
    tasks = _tasks(config.get("tasks"), f"{modules[0].path}: tasks")
    if not tasks:
        return
    where = modules[0].config_file
    factor = config.get("pool_factor", 1.0)
    # Kept as it is written: a 2 and a 2.0 have different fingerprints.
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor < math.inf:
        raise CheckpointError(f"{where}: pool_factor is {factor!r}, and has to be a number from 1")
    protected = config.get("num_protected_tokens")
    protected = 1 if protected is None else expect_type(protected, int, f"{where}: num_protected_tokens")
    if protected < 0:
        raise CheckpointError(f"{where}: num_protected_tokens is {protected}, and has to be at least 0")
    normalize = expect_type(config.get("normalize_embeddings") or False, bool, f"{where}: normalize_embeddings")
    pooling = PoolingSpec(factor, protected, normalize, tasks)
    values.set("pooling", pooling, modules[0].path)


def _read_bge(files: Files, values: Values) -> None:
    for attribute in ("query_length", "document_length"):
        values.set(attribute, 512, "default of the format")
    values.set("dropped_tokens", "first", "always so in this format")
    values.notes.append(f"BGE-M3 reports means over query tokens; {_SUMS}")


def _read_plain(files: Files, values: Values) -> None:
    # Measured on BEIR SciFact with all-MiniLM-L6-v2: nDCG@10 0.71 with these lengths and without special tokens.
    values.set("query_length", 64, "default of the format")
    values.set("document_length", 256, "default of the format")
    values.set("dropped_tokens", "special", "default of the format")
    values.notes.append("a plain encoder without a ColBERT head, used by its own token vectors")


def _read_prompts(files: Files, values: Values) -> None:
    source = f"{ST_CONFIG}: prompts"
    prompts = expect_type(files.st_config.get("prompts") or {}, dict, source)
    for attribute, key in _PROMPTS.items():
        values.set(attribute, expect_type(prompts.get(key) or "", str, f"{source}.{key}"), source)


def _read_pylate_prompts(files: Files, values: Values) -> None:
    _read_prompts(files, values)
    if any(values.attributes[attribute] for attribute in _PROMPTS):
        values.notes.append(
            "prompts are always applied here, by PyLate only with prompt_name=: if the model was trained without them, "
            "pass query_prompt='' and document_prompt=''"
        )
    # Of either side, as PyLate applies it where no other is asked for.
    source = f"{ST_CONFIG}: default_prompt_name"
    name = expect_type(files.st_config.get("default_prompt_name") or "", str, source)
    default = expect_type((files.st_config.get("prompts") or {}).get(name) or "", str, f"{ST_CONFIG}: prompts.{name}")
    for attribute in _PROMPTS:
        if default and not values.attributes[attribute]:
            values.set(attribute, default, source)


def _read_lowercase(files: Files, values: Values) -> None:
    file = files.transformer_file
    source = f"{file}: do_lower_case"
    lowercase = expect_type(files.folder.mapping(file).get("do_lower_case") or False, bool, source)
    values.set("lowercase", lowercase, source)


def _read_matryoshka(files: Files, values: Values) -> None:
    for mapping, key in ((files.config, "matryoshka_dimensions"), (files.st_config, "matryoshka_dims")):
        if mapping.get(key):
            dims = expect_type(mapping[key], list, key)
            values.set("matryoshka_dims", tuple(expect_type(dim, int, key) for dim in dims), key)


FORMATS = (
    Format("sentence-transformers", _is_native, _read_native),
    Format("pylate", _is_pylate, _read_pylate),
    Format("bge-m3", _is_bge, _read_bge),
    Format("stanford", _is_stanford, _read_stanford),
    Format("plain", lambda files: True, _read_plain),
)
