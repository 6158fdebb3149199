"""Lists out of millions of entries while the cell is written to.

The platform is real (`cloister up`, one cell). The entries are put into its tables by SQL, as if
they had been written over a year: making five million through the API would take an hour. That
leaves the tenant's journal and balances without them, so that nothing is verified here. Then pages
of one account's entries, newest first, of one month, are asked for while transactions are written.
"""

import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
import psycopg

from benchmarks.books import Books, make_books, write_kind
from benchmarks.http_load import Load, LoadResult, run_load
from benchmarks.http_requests import Kind, OneOf, Text, get
from benchmarks.machine import examine_machine
from benchmarks.platform_process import CELL, Platform, running_platform, superuser_dsn
from benchmarks.report import Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort
from infra.local.plan import CELL_DATABASE

ENTRIES: Final = 5_000_000
ENTRIES_QUICK: Final = 50_000
CHUNK: Final = 250_000
"""Entries of one statement, so that there is a word of progress now and then."""
PER_PAGE: Final = 100
WRITES: Final = 1_000
LISTS: Final = 100
CONNECTIONS: Final = 128
SECONDS: Final = 60.0
SECONDS_QUICK: Final = 3.0
WARMUP_S: Final = 30.0
"""After so much was written at once, nothing of it is in the database's memory, and whatever is
written to first is logged as a whole page."""
WARMUP_S_QUICK: Final = 1.0
P99_MS_MAX: Final = 20.0
SUSTAINED_MIN: Final = 0.99

SHARED_BUFFERS: Final = "4GB"
"""What the tenant's entries and their indexes take: a cell is sized for the tenants it holds."""

MONTHS: Final = [(f"2025-{month:02}-01", f"2025-{month + 1:02}-01") for month in range(1, 12)]

FILL: Final = """
INSERT INTO ledger_entries
SELECT a.tenant_id,
    (lpad(to_hex((1735689600000 + n * step) >> 16), 8, '0') || '-'
        || lpad(to_hex((1735689600000 + n * step) & 65535), 4, '0')
        || '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
    gen_random_uuid(), a.id, (CASE n %% 2 WHEN 0 THEN 'debit' ELSE 'credit' END)::balance_direction,
    'posted', 1250, a.currency, a.currency_exponent, a.normal_balance, 0, 0, 0, 0, 0, false, '{}',
    (1735689600000 + n * step) * 1000, (1735689600000 + n * step) * 1000,
    (1735689600000 + n * step) * 1000, NULL, NULL, 1
FROM generate_series(%(first)s::bigint, %(last)s) n,
    (SELECT 31536000000 / %(entries)s::bigint AS step) spread,
    LATERAL (SELECT * FROM ledger_accounts WHERE tenant_id = %(tenant)s
        AND id = (%(accounts)s::uuid[])[1 + n %% cardinality(%(accounts)s::uuid[])]) a
"""


def run_lists(progress: Progress, effort: Effort) -> Report:
    """Fill one tenant, then list and write at fixed rates."""
    machine = examine_machine()
    entries, seconds, warmup_s = (
        (ENTRIES_QUICK, SECONDS_QUICK, WARMUP_S_QUICK)
        if effort.quick
        else (ENTRIES, SECONDS, WARMUP_S)
    )
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as name:
        directory = Path(name)
        progress("starting the platform")
        with running_platform(directory, shared_buffers=SHARED_BUFFERS) as platform:
            progress("creating the ledger")
            books = make_books(platform)
            fill(cell_dsn(directory), platform, books, entries, progress)
            progress(f"{LISTS} lists/s and {WRITES} writes/s for {seconds:g} s")
            result = run_load(
                Load(
                    address=platform.router,
                    kinds=[
                        list_kind(books),
                        write_kind(books, "POST transaction", hot=False, weight=WRITES),
                    ],
                    connections=CONNECTIONS,
                    seconds=seconds,
                    warmup_s=warmup_s,
                    rate=LISTS + WRITES,
                )
            )
    return Report(
        name="lists",
        quick=effort.quick,
        at=now_utc(),
        machine=machine,
        tables=[table(result, entries, seconds)],
        checks=checks(result),
        runs=[msgspec.to_builtins(result)],
    )


def cell_dsn(directory: Path) -> str:
    """Of the superuser, in the cell's database."""
    return superuser_dsn(CELL, directory / "data" / "cells" / CELL, CELL_DATABASE)


def fill(dsn: str, platform: Platform, books: Books, entries: int, progress: Progress) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for first in range(0, entries, CHUNK):
            progress(f"{first:,} of {entries:,} entries")
            last = min(first + CHUNK, entries) - 1
            values = {"first": first, "last": last, "entries": entries}
            tenant = {"tenant": platform.tenant.organization_id, "accounts": books.accounts}
            connection.execute(FILL, values | tenant)
        progress("gathering statistics")
        connection.execute("VACUUM ANALYZE")
        # Else the minutes after so much was written at once would be measured.
        connection.execute("CHECKPOINT")


def list_kind(books: Books) -> Kind:
    """Pages of one account after the other, each of another month."""
    bounds = [
        f"{account}&{quote('effective_at[gte]')}={since}&{quote('effective_at[lt]')}={until}"
        for number, account in enumerate(books.accounts)
        for since, until in [MONTHS[number % len(MONTHS)]]
    ]
    asked = f"/api/ledger_entries?per_page={PER_PAGE}&ledger_account_id="
    path: list[Text | OneOf] = [Text(asked), OneOf(bounds)]
    return get("GET a page of entries", path, books.headers, LISTS)


def table(result: LoadResult, entries: int, seconds: float) -> Table:
    return Table(
        title=f"Pages of {PER_PAGE} out of {entries:,} entries, by account and month, beside"
        f" {WRITES:,} writes/s for {seconds:g} s, open loop",
        columns=("request", "answers/s", "p50 ms", "p90 ms", "p99 ms", "max ms"),
        rows=[
            (
                kind.name,
                round(kind.rate),
                kind.latency.p50_ms,
                kind.latency.p90_ms,
                kind.latency.p99_ms,
                kind.latency.max_ms,
            )
            for kind in result.kinds
        ],
        notes=(f"Offered {result.offered or 0:,.0f}/s, answered {result.rate:,.0f}/s.",),
    )


def checks(result: LoadResult) -> list[Check]:
    lists, _ = result.kinds
    return [
        Check(
            what="requests without the answer expected",
            value=result.failures,
            goal=0,
            at_most=True,
        ),
        Check(
            what="answers per second relative to the offered ones",
            value=result.rate / (result.offered or 1.0),
            goal=SUSTAINED_MIN,
        ),
        Check(
            what="p99 of a page in ms",
            value=lists.latency.p99_ms,
            goal=P99_MS_MAX,
            at_most=True,
        ),
    ]
