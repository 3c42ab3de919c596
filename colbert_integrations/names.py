"""Which argument somebody may have meant by a name that there is not: another library's word for it, or a slip."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

__all__ = ["likely_name"]

# What other libraries call what is called so here. The same word may stand for several: the first that there is counts.
_ELSEWHERE = {
    "model": {
        "model_name",
        "model_name_or_path",
        "model_path",
        "model_id",
        "checkpoint",
        "pretrained_model_name_or_path",
    },
    "top_n": {"top_k", "topk", "k", "n", "limit", "similarity_top_k"},
    "k": {"top_k", "topk", "top_n", "n", "limit", "similarity_top_k"},
    "query_length": {"query_maxlen", "max_query_length", "query_max_length", "max_query_len"},
    "document_length": {"doc_maxlen", "document_maxlen", "max_document_length", "max_doc_length", "doc_length"}
    | {"max_length", "max_seq_length"},
    "query_marker": {"query_token", "query_prefix"},
    "document_marker": {"document_token", "doc_token", "document_prefix"},
    "dtype": {"torch_dtype", "precision"},
    "score_threshold": {"threshold", "min_score", "similarity_cutoff", "cutoff", "similarity_threshold"},
    "normalize_scores": {"normalize", "normalise"},
    "filter": {"filters", "where", "search_filter"},
    "cache_dir": {"cache_folder"},
    "token": {"use_auth_token", "hf_token"},
}


def likely_name(unknown: str, known: Collection[str]) -> str | None:
    """Guess which name was meant.

    Args:
        unknown: A name that there is not.
        known: Those that there are.

    Returns:
        One of those that there are; None where none of them is likely.
    """
    theirs = (ours for ours, names in _ELSEWHERE.items() if unknown.lower() in names and ours in known)
    return next(theirs, None) or next(iter(get_close_matches(unknown, known, 1, cutoff=0.75)), None)
