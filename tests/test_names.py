"""Guesses at names that there are not."""

from __future__ import annotations

from dataclasses import fields

import pytest

from colbert_integrations.langchain import ColBERTReranker, ColBERTRetriever
from colbert_integrations.names import _ELSEWHERE, likely_name
from colbert_integrations.settings import Settings


@pytest.mark.parametrize(
    ("unknown", "known", "meant"),
    [
        ("top_k", {"k", "model"}, "k"),
        ("top_k", {"top_n", "model"}, "top_n"),
        ("TOP_K", {"top_n"}, "top_n"),
        ("top_k", {"model"}, None),
        ("batchsize", {"batch_size", "batch_tokens"}, "batch_size"),
        ("max_length", {"query_length", "document_length"}, "document_length"),
        ("zebra", {"model", "device", "dtype"}, None),
        ("model", set(), None),
    ],
)
def test_the_likely_name_is_one_that_there_is(unknown: str, known: set[str], meant: str | None) -> None:
    assert likely_name(unknown, known) == meant


def test_the_words_of_others_stand_for_names_of_ours_and_are_none() -> None:
    ours = {item.name for item in fields(Settings)} | {*ColBERTReranker.model_fields, *ColBERTRetriever.model_fields}
    assert set(_ELSEWHERE) <= ours
    assert not {name for names in _ELSEWHERE.values() for name in names} & (ours - {"k", "top_n"})
