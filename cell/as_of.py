"""Balances as of another time: `balances{}` of a request, and the SQL that computes them.

`effective_at` (entries up to a time, inclusive), `as_of_date` (up to the end of a UTC day), the
bounds `effective_at_lower_bound` (inclusive) and `effective_at_upper_bound` (exclusive; either may
be left open), and `as_of_lock_version` (the balances as they stood at that version). Only one of
these four at a time. Entries count in the status they have now, except as of a version.

SQL for many accounts at once, in any statement with the columns `tenant_id` and an account's id:
`CROSS JOIN LATERAL balances_before(m.tenant_id, m.ledger_account_id, %s::bigint) p`; see
`sql/0008_pre_history.sql`.
"""

from dataclasses import dataclass
from typing import Final, LiteralString

from cell.errors import Unprocessable
from cell.query import Query
from cell.timestamps import DAY_US, parse_day, parse_timestamp

EFFECTIVE_AT: Final = "effective_at"
AS_OF_DATE: Final = "as_of_date"
LOWER_BOUND: Final = "effective_at_lower_bound"
UPPER_BOUND: Final = "effective_at_upper_bound"
LOCK_VERSION: Final = "as_of_lock_version"
TIMES: Final = (EFFECTIVE_AT, AS_OF_DATE, LOWER_BOUND, UPPER_BOUND)
"""The keys that are about times."""

PARAMETER: Final = "balances"
VERSION_DIGITS_MAX: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class AsOf:
    """What the balances are restricted to."""

    from_us: int | None = None
    """Inclusive; None: from the first entry on."""
    before_us: int | None = None
    """Exclusive; None: to the last entry."""
    lock_version: int | None = None
    shows_bounds: bool = False
    """Whether the caller gave the bounds, and so finds them in the answer."""


def parse_as_of(query: Query, keys: tuple[str, ...]) -> AsOf | None:
    """The restriction asked for, None for none; `keys` are those which the endpoint takes."""
    asked = query.mapping(PARAMETER)
    if not asked:
        return None
    for key in asked:
        if key not in keys:
            raise Unprocessable(f"balances takes {', '.join(keys)}, not {key!r}", PARAMETER)
    if len(asked) > 1 and not asked.keys() <= {LOWER_BOUND, UPPER_BOUND}:
        raise Unprocessable(f"balances: {' and '.join(asked)} exclude each other", PARAMETER)
    ((key, text), *_) = asked.items()
    if key == EFFECTIVE_AT:
        return AsOf(before_us=parse_timestamp(text, PARAMETER) + 1)
    if key == AS_OF_DATE:
        # A caller's datetime arrives as a full timestamp; its UTC day is meant.
        return AsOf(before_us=parse_day(text, PARAMETER) + DAY_US)
    if key == LOCK_VERSION:
        return AsOf(lock_version=parse_lock_version(text, PARAMETER))
    return _between(asked)


def _between(asked: dict[str, str]) -> AsOf:
    from_us, before_us = (
        parse_timestamp(asked[key], PARAMETER) if key in asked else None
        for key in (LOWER_BOUND, UPPER_BOUND)
    )
    if from_us is not None and before_us is not None and from_us > before_us:
        raise Unprocessable(f"{LOWER_BOUND} is after {UPPER_BOUND}", PARAMETER)
    return AsOf(from_us=from_us, before_us=before_us, shows_bounds=True)


def parse_lock_version(text: str, parameter: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= VERSION_DIGITS_MAX:
        return int(text)
    raise Unprocessable(f"{parameter}: {text[:80]!r} is not a lock version", parameter)


_ACCUMULATORS: Final = ("pending_debits", "pending_credits", "posted_debits", "posted_credits")
_BEFORE: Final = "balances_before(b.tenant_id, b.ledger_account_id, %s::bigint)"
_AT_VERSION: Final = "balances_at_version(b.tenant_id, b.ledger_account_id, %s::bigint)"


def restricted_balances(as_of: AsOf) -> tuple[LiteralString, list[object]]:
    """A join to `ledger_account_balances b` that gives its row once more, restricted, as `p`."""
    if as_of.lock_version is not None:
        return _join(_AT_VERSION + " u", ""), [as_of.lock_version]
    if as_of.from_us is None:
        return _join(_BEFORE + " u", ""), [as_of.before_us]
    if as_of.before_us is None:
        # Up to the last entry: those are the accumulators themselves.
        return _join("(SELECT b.*) u", f", {_BEFORE} l"), [as_of.from_us]
    return _join(_BEFORE + " u", f", {_BEFORE} l"), [as_of.before_us, as_of.from_us]


def _join(upper: LiteralString, lower: LiteralString) -> LiteralString:
    sums: LiteralString = ", ".join(
        f"u.{name} - l.{name} AS {name}" if lower else f"u.{name}" for name in _ACCUMULATORS
    )
    return f"""CROSS JOIN LATERAL (
        SELECT b.tenant_id, b.ledger_account_id, {sums}, b.lock_version, b.seq
        FROM {upper}{lower}
    ) p"""
