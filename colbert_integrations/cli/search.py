"""search: the documents of an index that answer a query best."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ..explain.wording import visible
from ..index import Hit, parse_filter
from .listing import show_result
from .opening import open_index
from .output import Output
from .reading import Text, form_of, read, refuse

__all__ = ["run"]

# Queries that are searched together.
_AT_ONCE = 64


def run(args: argparse.Namespace, output: Output) -> int:
    """Search and show what was found.

    Args:
        args: What was asked.
        output: Where it is shown.

    Returns:
        0.

    Raises:
        InputError: If queries can't be read, or an argument is invalid.
        FilterError: If the filter uses a key, operator or value that filters do not support.
        StoreError: If there is no index, or it can't be read.
        FingerprintError: If it holds vectors of another model.
        CheckpointError: If the model can't be loaded.
        MissingExtraError: If a package that the model or the store needs is not installed.
    """
    if args.filter is not None:
        parse_filter(args.filter)  # before the model is loaded
    queries = iter([Text(args.query, "")]) if args.queries is None else _queries(args.queries)
    with open_index(args) as index:
        while some := list(islice(queries, _AT_ONCE)):
            found = index.search(
                [query.text for query in some],
                args.top_n,
                args.filter,
                search=args.search,
                normalize_scores=args.normalize,
                score_threshold=args.threshold,
                explain=args.explain or not args.no_passages,
                show_progress=output.show_progress,
            )
            for query, hits in zip(some, found, strict=True):
                if output.as_json:
                    output.data(_data(query, hits, args))
                else:
                    _show(output, query.text, hits, args)
    return 0


def _queries(file: str) -> Iterator[Text]:
    """The lines of a file, or what its JSON lines have as their text."""
    return read(file, form_of(file, "lines"), refuse)


def _show(output: Output, query: str, hits: list[Hit], args: argparse.Namespace) -> None:
    if args.queries is not None:
        output.line((visible(query), "bold underline"))
    for rank, hit in enumerate(hits, 1):
        show_result(
            output, rank, hit.score, hit.id, hit.text, hit.explanation, metadata=hit.metadata, words=args.explain
        )
    if not hits:
        output.say("nothing found")


def _data(query: Text, hits: list[Hit], args: argparse.Namespace) -> dict[str, Any]:
    data: dict[str, Any] = {"query": query.text} if args.queries is None else {"id": query.id, "query": query.text}
    return {**data, "hits": [_hit(rank, hit, args.explain) for rank, hit in enumerate(hits, 1)]}


def _hit(rank: int, hit: Hit, explained: bool) -> dict[str, Any]:
    said = None if hit.explanation is None else hit.explanation.as_dict()
    data = {"rank": rank, "score": hit.score, "id": hit.id, "text": hit.text, "metadata": hit.metadata}
    data["passage"] = None if said is None else said["passage"]
    return {**data, "explanation": said} if explained else data
