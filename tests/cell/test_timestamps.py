"""Method: tables of texts, readable and not; and every moment reads back as it was written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.errors import Unprocessable
from cell.timestamps import (
    DAY_US,
    parse_date,
    parse_timestamp,
    render_date,
    render_timestamp,
    render_timestamp_or_null,
)

DAY = 1_704_153_600_000_000
"""2024-01-02T00:00:00Z."""


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("2024-01-02T00:00:00Z", DAY),
        ("2024-01-02T00:00:00.000001Z", DAY + 1),
        ("2024-01-02T00:00:00.6Z", DAY + 600_000),
        ("2024-01-02T00:00:00.678901+00:00", DAY + 678_901),
        ("2024-01-02 00:00:00.678901+00:00", DAY + 678_901),
        ("2024-01-02 00:00:00", DAY),
        ("2024-01-02T00:00:00", DAY),
        ("2024-01-02T02:00:00+02:00", DAY),
        ("2024-01-01T18:30:00-05:30", DAY),
        ("2024-01-02", DAY),
        ("1970-01-01", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("0001-01-01", -62_135_596_800_000_000),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
    ],
)
def test_readable(text: str, at_us: int) -> None:
    assert parse_timestamp(text, "effective_at") == at_us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1704153600",
        "1e18",
        "20240102",
        "2024-W01-1",
        "2024-1-2",
        "2024-01-02T00",
        "2024-01-02T00:00",
        "2024-01-02t00:00:00z",
        "2024-01-02T00:00:00.Z",
        "2024-01-02T00:00:00.1234567Z",
        "2024-01-02T00:00:00+0200",
        "2024-01-02T00:00:00+24:00",
        "2024-01-02T24:00:00Z",
        "2024-01-02T00:00:60Z",
        "2024-02-30",
        "2023-02-29T00:00:00Z",
        "0000-01-01",
        "10000-01-01",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        " 2024-01-02",
        "2024-01-02\n",
        "\u0662024-01-02",
    ],
)
def test_unreadable(text: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        parse_timestamp(text, "effective_at")
    assert refused.value.parameter == "effective_at"


@pytest.mark.parametrize("text", ["2024-01-02T00:00:00Z", "2024-02-30", ""])
def test_a_date_is_a_date_alone(text: str) -> None:
    with pytest.raises(Unprocessable):
        parse_date(text, "effective_date")


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_what_is_written_reads_back(at_us: int) -> None:
    text = render_timestamp(at_us)
    assert len(text) == len("2024-01-02T03:04:05.678901Z")
    assert parse_timestamp(text, "p") == at_us
    assert parse_date(render_date(at_us), "p") == at_us - at_us % DAY_US


def test_null() -> None:
    assert render_timestamp_or_null(None) is None
    assert render_timestamp_or_null(0) == "1970-01-01T00:00:00.000000Z"
