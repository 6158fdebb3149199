"""Timestamps at the edge: text of ISO 8601 to microseconds since 1970 UTC, and back.

Read are `T` or a space, `Z`, `±hh:mm` or no zone (UTC), no to six digits of a fraction, or a date
alone (its midnight): what the SDKs send, which includes Python's `str(datetime)`. Years are 1 to
9999; anything else is Unprocessable with the parameter's name. Written is always the same form.
"""

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final

from cell.errors import Unprocessable

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US
TEXTS_MAX: Final = 256
"""Times whose text is remembered: a transaction and its entries mostly have one and the same."""

DAYS_MAX: Final = 4096
"""Days whose text is remembered: of a list of ten years, all."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DATE: Final = date(1970, 1, 1)
_EARLIEST_US: Final = (date.min - _EPOCH_DATE).days * DAY_US
_LATEST_US: Final = ((date.max - _EPOCH_DATE).days + 1) * DAY_US - 1
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIMESTAMP: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(Z|[+-]\d\d:\d\d)?", re.ASCII
)
_MINUTES: Final = tuple(f"T{minute // 60:02}:{minute % 60:02}:" for minute in range(24 * 60))
_SECONDS: Final = tuple(f"{second:02}." for second in range(60))


def parse_timestamp(text: str, parameter: str) -> int:
    """Microseconds since 1970 UTC."""
    shape = _TIMESTAMP.fullmatch(text)
    if shape is None:
        return parse_date(text, parameter)
    try:
        moment = datetime.fromisoformat(text if shape[1] else text + "Z")
        since = moment - _EPOCH
    except (ValueError, OverflowError) as exc:
        raise _unreadable(text, parameter) from exc
    at_us = (since.days * 86_400 + since.seconds) * SECOND_US + since.microseconds
    # An offset can lead out of the calendar: 0001-01-01T00:00:00+01:00 is in the year 0.
    if not _EARLIEST_US <= at_us <= _LATEST_US:
        raise _unreadable(text, parameter)
    return at_us


def parse_date(text: str, parameter: str) -> int:
    """Microseconds since 1970 of the date's midnight, UTC."""
    if _DATE.fullmatch(text) is None:
        raise _unreadable(text, parameter)
    try:
        return (date.fromisoformat(text) - _EPOCH_DATE).days * DAY_US
    except ValueError as exc:
        raise _unreadable(text, parameter) from exc


def parse_day(text: str, parameter: str) -> int:
    """Microseconds since 1970 of the midnight, UTC, of the day on which that date or time is."""
    at_us = parse_timestamp(text, parameter)
    return at_us - at_us % DAY_US


def _unreadable(text: str, parameter: str) -> Unprocessable:
    shown = text if len(text) <= 40 else text[:40] + "…"
    return Unprocessable(
        f"{parameter}: {shown!r} is no ISO 8601 time between the years 1 and 9999", parameter
    )


@lru_cache(maxsize=TEXTS_MAX)
def render_timestamp(at_us: int) -> str:
    """`2024-01-02T03:04:05.678901Z`."""
    second, fraction = divmod(at_us, SECOND_US)
    day, second = divmod(second, 86_400)
    # By tables: a list shows hundreds of times, and to format their parts takes thrice as long.
    return f"{_day(day)}{_MINUTES[second // 60]}{_SECONDS[second % 60]}{fraction:06}Z"


def render_timestamp_or_null(at_us: int | None) -> str | None:
    return None if at_us is None else render_timestamp(at_us)


def render_date(at_us: int) -> str:
    """`2024-01-02`: the UTC day."""
    return _day(at_us // DAY_US)


@lru_cache(maxsize=DAYS_MAX)
def _day(day: int) -> str:
    """Not by strftime, whose %Y does not pad the years before 1000 everywhere."""
    return (_EPOCH_DATE + timedelta(days=day)).isoformat()
