"""What filters take for a date: each form by hand, what is none, and that Qdrant's client reads the same."""

from __future__ import annotations

import time
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from qdrant_client.local.datetime_utils import parse

from colbert_integrations.dates import instant
from colbert_integrations.index import matches, parse_filter
from moments import SIGNS, Moment, moments


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-31", utc(2024, 1, 31)),
        ("2024-02-29", utc(2024, 2, 29)),
        ("2024-01-31 09:30", utc(2024, 1, 31, 9, 30)),
        ("2024-01-31 09:30:15", utc(2024, 1, 31, 9, 30, 15)),
        ("2024-01-31T09:30:15", utc(2024, 1, 31, 9, 30, 15)),
        ("2024-01-31T09:30:15.5", utc(2024, 1, 31, 9, 30, 15, 500_000)),
        ("2024-01-31T09:30:15.000001", utc(2024, 1, 31, 9, 30, 15, 1)),
        ("2024-01-31T09:30:15Z", utc(2024, 1, 31, 9, 30, 15)),
        ("2024-01-31 09:30:15.25Z", utc(2024, 1, 31, 9, 30, 15, 250_000)),
        ("2024-01-31T00:30:15+01:00", utc(2024, 1, 30, 23, 30, 15)),
        ("2024-01-31T09:30:15-0530", utc(2024, 1, 31, 15, 0, 15)),
        ("2024-01-31 09:30:15.125+14", utc(2024, 1, 30, 19, 30, 15, 125_000)),
        ("1969-12-31T23:59:59.999999-00:00", utc(1969, 12, 31, 23, 59, 59, 999_999)),
        ("0001-01-01", utc(1, 1, 1)),
        ("9999-12-31T23:59:59.999999", utc(9999, 12, 31, 23, 59, 59, 999_999)),
    ],
)
def test_a_string_is_a_point_in_time(text: str, expected: datetime) -> None:
    found = instant(text)
    assert (found, found and found.utcoffset()) == (expected, timedelta())
    assert parse(text) == expected  # or Qdrant would find something else


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "2024",
            "20240131",
            "2024-01",
            "2024-1-31",
            "24-01-31",
            "+2024-01-31",
            "12024-01-31",
            "31.01.2024",
            "2024-W05",
        ),
        *(" 2024-01-31", "2024-01-31 ", "2024-01-31\n", "2024-01-31Z", "2024-01-31T", "2024-02-30", "2023-02-29"),
        *("2024-01-31T09", "2024-01-31T09:30", "2024-01-31 09:30Z", "2024-01-31T24:00:00", "2024-01-31T23:59:60"),
        *("2024-01-31t09:30:15", "2024-01-31T09:30:15z", "2024-01-31T09:30:15,5", "2024-01-31T09:30:15."),
        *("2024-01-31T09:30:15.1234567", "2024-01-31T09:30:15 +01:00", "2024-01-31T09:30:15+24:00"),
        *("2024-01-31T09:30:15+01:60", "2024-01-31T09:30:15+01:00:30", "2024-01-31T09:30:15 UTC", "٢٠٢٤-01-31"),
        *(
            "0000-01-01",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            20240131,
            1.5,
            True,
            None,
            ["2024-01-31"],
        ),
    ],
)
def test_anything_else_is_none(value: Any) -> None:
    assert instant(value) is None
    assert not matches(
        {"when": value if isinstance(value, str) else [value]}, parse_filter({"when": {"$gte": "0001-01-01"}})
    )


def test_pythons_and_numpys_own_are_points_in_time() -> None:
    east = timezone(timedelta(hours=5, minutes=53, seconds=28))
    for given_, expected in (
        (date(2024, 1, 31), utc(2024, 1, 31)),
        (datetime(2024, 1, 31, 9, 30), utc(2024, 1, 31, 9, 30)),
        (datetime(2024, 1, 31, 5, 53, 28, tzinfo=east), utc(2024, 1, 31)),
        (np.datetime64("2024-01-31"), utc(2024, 1, 31)),
        (np.datetime64("2024-01-31T09:30:00.123456789"), utc(2024, 1, 31, 9, 30, 0, 123_456)),
    ):
        (condition,) = parse_filter({"when": {"$gte": given_}})
        assert condition.value == expected
    assert instant(datetime.min.replace(tzinfo=east)) is None


@given(moments(), moments())
def test_they_are_ordered_as_python_orders_them(there: Moment, end: Moment) -> None:
    assert instant(there[0]) == there[1] == parse(there[0])
    for name, compare in SIGNS.items():
        expected = compare(there[1], end[1])
        for bound in end:
            for found in (there[0], ["soon", there[0], 5]):
                assert matches({"when": found}, parse_filter({"when": {name: bound}})) is expected


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs a system whose time zone a process can change")
def test_a_time_zone_that_knows_no_offset_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown(tzinfo):
        def utcoffset(self, moment: datetime | None) -> None:
            return None

    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "Asia/Tokyo")  # where the machine is does not count
            time.tzset()
            assert instant(datetime(2024, 1, 31, 9, 30, tzinfo=Unknown())) == utc(2024, 1, 31, 9, 30)
    finally:
        time.tzset()
