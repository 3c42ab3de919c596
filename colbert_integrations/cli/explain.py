"""explain: which words of a document matched a query; to read, as a page, as a heat map."""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

from ..errors import InputError, MissingExtraError
from ..explain import Explanation
from ..explain.html import to_html
from .opening import open_model
from .output import Output, writing
from .reading import form_of, read, refuse

__all__ = ["run"]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
</head>
<body>
<h1 style="font: 600 1.3em system-ui, sans-serif">{title}</h1>
{explanation}
</body>
</html>
"""


def run(args: argparse.Namespace, output: Output) -> int:
    """Explain a score.

    Args:
        args: What was asked.
        output: Where it is shown.

    Returns:
        0.

    Raises:
        InputError: If the document can't be read, a file can't be written, or a setting is invalid.
        CheckpointError: If the model can't be loaded.
        MissingExtraError: If a package that the model or a heat map needs is not installed.
    """
    text = _document(args.file) if args.text is None else args.text
    explanation = open_model(args).explain(args.query, text)
    if args.html is not None:
        _write_page(explanation, args.html)
        output.say(f"wrote {args.html}")
    if args.plot is not None:
        _write_plot(explanation, args.plot)
        output.say(f"wrote {args.plot}")
    if output.as_json:
        output.data(explanation.as_dict())
    else:
        output.show(explanation)
    return 0


def _document(file: str) -> str:
    texts = list(read(file, form_of(file, None), refuse))
    if len(texts) != 1:
        raise InputError(f"{file} has {len(texts)} documents, and one is explained: pass it by --text, or search")
    return texts[0].text


def _write_page(explanation: Explanation, file: str) -> None:
    page = _PAGE.format(title=escape(explanation.query), explanation=to_html(explanation))
    with writing(file):
        Path(file).write_text(page, encoding="utf-8")


def _write_plot(explanation: Explanation, file: str) -> None:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError("A heat map", "explain") from error
    if not Path(file).suffix:  # it would add one, and the file would have another name
        raise InputError(f"can't write {file}: give it a suffix such as .png, .svg or .pdf")
    pyplot.switch_backend("Agg")  # draws without a screen
    explanation.plot()
    try:
        with writing(file):
            pyplot.savefig(file)
    finally:
        pyplot.close()
