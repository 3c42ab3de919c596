"""What tests of dates share: points in time in each form that filters take, beside Python's own."""

from __future__ import annotations

import operator
from datetime import datetime, timedelta, timezone
from typing import TypeAlias

from hypothesis import strategies as st

SIGNS = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}

Moment: TypeAlias = "tuple[str, datetime]"
"""How a point in time is written, and which it is."""

# Few, so that many are equal or close to each other.
DAYS = [datetime(1969, 12, 31), datetime(2024, 1, 31), datetime(2024, 2, 1), datetime(1, 1, 2), datetime(9999, 12, 30)]
STEPS = [
    timedelta(),
    timedelta(hours=1),
    timedelta(minutes=330),
    timedelta(microseconds=1),
    timedelta(milliseconds=-500),
]
ZONES = {"": 0, "Z": 0, "+00:00": 0, "-00:00": 0, "+01:00": 60, "+01": 60, "+0530": 330, "-0330": -210, "-23:59": -1439}


@st.composite
def moments(draw: st.DrawFn) -> Moment:
    """A point in time, and one of the ways to write it."""
    local = draw(st.sampled_from(DAYS)) + draw(st.sampled_from(STEPS))
    zone, mark = draw(st.sampled_from([*ZONES])), draw(st.sampled_from("T "))
    text = local.isoformat(mark, "microseconds")
    if draw(st.booleans()):
        text = text.rstrip("0").rstrip(".") if local.microsecond else text[: -len(".000000")]
        if not zone and not local.microsecond and not local.second and draw(st.booleans()):
            text = text[:10] if (local.hour, local.minute) == (0, 0) else text[:16].replace("T", " ")
    return text + zone, local.replace(tzinfo=timezone(timedelta(minutes=ZONES[zone])))
