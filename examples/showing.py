"""Tables for the notebooks: texts in one piece, cut where they get long, and set from the left."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

_LONGEST = 160
_LEFT = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]


def table(**columns: Sequence[Any]) -> Styler:
    """Show columns by their names, rows numbered from 1, so that the number of what is ranked is its place."""
    frame = pd.DataFrame({name.replace("_", " "): values for name, values in columns.items()}).map(_cut)
    frame.index += 1
    shown = frame.style.set_table_styles(_LEFT).set_table_attributes('class="dataframe"')
    return shown.format(precision=2, escape="html")


def _cut(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()} …"
