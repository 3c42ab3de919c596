"""Tables for the notebooks: texts in one piece, cut where they get long, and set from the left."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

_LEFT = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]


def table(rows: Sequence[Mapping[str, Any]], longest: int = 160, digits: int = 2) -> Styler:
    """Show rows, numbered from 1, so that the number of a ranked one is its place."""
    frame = pd.DataFrame(rows, index=range(1, len(rows) + 1)).map(lambda value: _cut(value, longest))
    shown = frame.style.set_table_styles(_LEFT).set_table_attributes('class="dataframe"')
    return shown.format(precision=digits, escape="html")


def _cut(value: Any, longest: int) -> Any:
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    return text if len(text) <= longest else f"{text[:longest].rstrip()} …"
