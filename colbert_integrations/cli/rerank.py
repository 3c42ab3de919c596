"""rerank: texts from files, ranked by how well they answer a query."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from typing import Any

from ..errors import InputError
from ..model import ColBERT
from ..ranking import RankedDocument
from .failures import Failures
from .listing import show_result
from .opening import open_model
from .output import Output
from .reading import Failed, Form, Text, form_of, read, warn_of_whole_files

__all__ = ["run"]


def run(args: argparse.Namespace, output: Output) -> int:
    """Rank texts and show them.

    Args:
        args: What was asked.
        output: Where it is shown.

    Returns:
        1 if some texts could not be read, else 0.

    Raises:
        InputError: If none could be read, or an argument is invalid.
        CheckpointError: If the model can't be loaded.
        MissingExtraError: If a package that the model needs is not installed.
    """
    warn_of_whole_files(args.files, args.form, output)
    with Failures(output) as failures:
        texts = [text for file in args.files for text in _texts(file, args.form, failures.add)]
        failures.tell()
        if failures.count and not texts:
            raise InputError("nothing to rank: none of the texts could be read")
    model = open_model(args)
    ranked = model.rank(
        args.query,
        [text.text for text in texts],
        args.top_n,
        normalize_scores=args.normalize,
        score_threshold=args.threshold,
        explain=args.explain,
        show_progress=output.show_progress,
    )
    if output.as_json:
        output.data(_data(args.query, model, texts, ranked, args.explain))
    else:
        _show(output, texts, ranked)
    return 1 if failures.count else 0


def _texts(file: str, form: Form | None, failed: Failed) -> Iterator[Text]:
    if os.path.isdir(file):
        failed(file, f"is a folder: name its files, such as {os.path.join(file, '*')}, or index it and search")
        return
    yield from read(file, form_of(file, form), failed)


def _show(output: Output, texts: list[Text], ranked: list[RankedDocument]) -> None:
    for rank, entry in enumerate(ranked, 1):
        text = texts[entry.index]
        show_result(output, rank, entry.score, text.place, text.text, entry.explanation, words=True)
    if not ranked:
        output.say("nothing to show")


def _data(
    query: str, model: ColBERT, texts: list[Text], ranked: list[RankedDocument], explained: bool
) -> dict[str, Any]:
    results = []
    for rank, entry in enumerate(ranked, 1):
        text = texts[entry.index]
        # A document without vectors scores minus infinity, which JSON does not have.
        score = entry.score if math.isfinite(entry.score) else None
        result: dict[str, Any] = {
            "rank": rank,
            "score": score,
            "index": entry.index,
            "source": text.source,
            "line": text.line,
            "id": text.id,
            "text": text.text,
        }
        if explained:
            result["explanation"] = None if entry.explanation is None else entry.explanation.as_dict()
        results.append(result)
    return {"query": query, "model": model.settings.model, "results": results}
