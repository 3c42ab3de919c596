"""Dates and times in filters: what counts as one, which every store has to agree on.

Metadata is JSON, so there they are strings of ISO 8601. Qdrant takes more of them than are taken here, and not the same
ones in each version of its server and its client; these are the forms that all of them take.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timezone
from functools import lru_cache

__all__ = ["instant"]

_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d"
_ISO = re.compile(
    rf"(\d{{4}}-\d\d-\d\d)(?: ({_TIME})|[T ]({_TIME}:[0-5]\d)(?:\.(\d{{1,6}}))?"
    r"(?:Z|([+-](?:[01]\d|2[0-3]))(?::?([0-5]\d))?)?)?",
    re.ASCII,
)


def instant(value: object) -> datetime | None:
    """The point in time that a value says, as Qdrant reads it: a date is its midnight, without an offset it is UTC.

    Args:
        value: A ``date``, a ``datetime``, or a string: a date, or a date and a time with or without an offset.

    Returns:
        That point in UTC; None if the value is anything else.

    Example:
        >>> instant("2024-01-31 09:30:00+01:00").isoformat()
        '2024-01-31T08:30:00+00:00'
        >>> instant("yesterday")
    """
    try:
        if isinstance(value, str):
            return _read(value)
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        return _in_utc(value) if isinstance(value, datetime) else None
    except (ValueError, OverflowError):  # there is no such day, or in UTC no such year
        return None


@lru_cache(2**14)  # the days of 44 years: documents share theirs
def _read(text: str) -> datetime | None:
    if (found := _ISO.fullmatch(text)) is None:
        return None
    day, minute, second, fraction, hours, minutes = found.groups("")
    # Spelled out, since Python 3.10 reads no shorter form.
    time = f"{second or (minute or '00:00') + ':00'}.{fraction:0<6}"
    return _in_utc(datetime.fromisoformat(f"{day}T{time}{hours or '+00'}:{minutes or '00'}"))


def _in_utc(moment: datetime) -> datetime:
    aware = moment.replace(tzinfo=timezone.utc) if moment.utcoffset() is None else moment
    return aware.astimezone(timezone.utc)
