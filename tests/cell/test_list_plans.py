"""Method: one tenant with many rows beside two others, written by SQL with its planner statistics;
every list is asked with each of its parameters and orders, for values that are there, and for the
page after the first one.
What is asserted is the work of the plans that really ran: that none reads a table from one end to
the other, how many rows they looked at, and how many blocks, which functions read, too.

The tenant has 40,000 entries, and in `make faults` a million: a plan that looks at all of them is
told from one that does not all the same, and the larger one takes minutes to fill.
"""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from journal_samples import SAMPLES, TRANSACTION
from list_questions import (
    FEW,
    IDS,
    MATCHED_BY_MANY,
    NONE_MATCH,
    TRANSACTIONS,
    Asked,
    questions,
    written,
)
from msgspec.structs import replace

from cell.calls import Call, CellParts, Route
from cell.events import index_entries
from cell.journal import seal_segment
from cell.ledger.model import Status, TenantId
from cell.pagination import CURSOR_HEADER
from cell.reads import Reader
from cell.tenants import Principal, Standing

TENANT = TenantId("00000000-0000-4000-8000-00000000000a")
LOOKED_AT_MAX = 1_500
"""Rows that a list may look at for a page of 25: the 500 that it is walked for what may be
anywhere, with what is joined to each, and some for each of the twenty or so that match."""

RANGES_MAX = 10_000
"""For times of change, in whose index are ranges of 32 pages, each of a thousand rows or two: those
of the two rows that were changed long after their neighbours, and the last one."""

OF_RANGES = {
    ("/api/ledger_transactions", "updated_at"),
    ("/api/ledger_transactions", "posted_at"),
    ("/api/ledger_entries", "updated_at"),
    ("/api/ledger_transaction_versions", "created_at"),
}
PER_MATCH_MAX = 6
"""Of what is matched by many, and not in the list's order: they are all looked up."""

BLOCKS_MAX = 8_000
"""Of 8 KiB; a row costs three or four of an index, and an account's balances as of a time fifty."""

FILL = Path(__file__).with_name("list_plans.sql").read_text()


@pytest.fixture(scope="module")
def library(make_cell_database: Any) -> Iterator[Any]:
    with make_cell_database() as database:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
            for place, count, few in (("a", TRANSACTIONS, FEW), ("b", 2_000, 500), ("c", 500, 100)):
                values = {"tenant": TENANT[:-1] + place, "count": count, "few": few}
                with connection.transaction():
                    for statement in FILL.split(";\n"):
                        connection.execute(statement, values)
            _write_events(connection)
            # As cells.yaml has it.
            connection.execute(f"ALTER DATABASE {database.name} SET random_page_cost = 1.1")
            connection.execute("VACUUM ANALYZE")
        yield database


def _write_events(connection: psycopg.Connection) -> None:
    """The journal of the tenant's first transactions, one a segment, and its index."""
    segments, entries, previous = [], [], bytes(32)
    for n in range(1, FEW + 1):
        status = {1: Status.PENDING, 2: Status.ARCHIVED}.get(n % 5000, Status.POSTED)
        at_us = (1719000000000 + n * 10) * 1000
        row = replace(TRANSACTION, tenant_id=TENANT, id=written(n), status=status, seq=n)
        row = replace(row, created_at_us=at_us, updated_at_us=at_us)
        record = replace(SAMPLES[0], seq=n, at_us=at_us, inserted=(row,), updated=())
        segment = seal_segment(TENANT, 1, (record,), previous)
        previous = segment.hash
        segments.append((n, n, segment.body, segment.prev_hash, segment.hash))
        entries += [(entry.topic, entry.at_us, entry.seq) for entry in index_entries((record,))]
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO journal VALUES ('{TENANT}', %s, %s, 1, 1, %s, %s, %s)", segments
        )
        cursor.executemany(f"INSERT INTO event_index VALUES ('{TENANT}', %s, %s, %s)", entries)


class ExplainingReader(Reader):
    """Reads as any reader does, and keeps the plan of each statement."""

    plans: list[Any]

    async def _fetch(self, statements: Any, parameters: Any) -> Any:
        scope, _, statement = statements.partition(";\n")
        explained = await super()._fetch(
            f"{scope};\nEXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
        )
        self.plans.append(explained[0][0][0]["Plan"])
        return await super()._fetch(statements, parameters)


@pytest.fixture
async def reader(library: Any) -> AsyncIterator[ExplainingReader]:
    reader = ExplainingReader(library.reader_dsn, pool_min=1, pool_max=1)
    await reader.open()
    reader.plans = []
    yield reader
    await reader.close()


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        pytest.param(route, asked, id=f"{route.path}?{urlencode(asked, safe='[]:')}")
        for route, asked in questions()
    ],
)
async def test_no_list_scans_a_table(reader: ExplainingReader, route: Route, asked: Asked) -> None:
    rows, cursor = await _ask(reader, route, asked)
    assert rows or (route.path, asked[0][0]) in NONE_MATCH
    _assert_little_was_read(reader, route, asked)
    if cursor is not None:
        reader.plans = []
        await _ask(reader, route, (*asked, ("after_cursor", cursor)))
        _assert_little_was_read(reader, route, asked)


def _assert_little_was_read(reader: ExplainingReader, route: Route, asked: Asked) -> None:
    looked_at = sum(rows_looked_at(plan) for plan in reader.plans)
    blocks = sum(blocks_of(plan) for plan in reader.plans)
    of_ranges = any((route.path, name.partition("[")[0]) in OF_RANGES for name, _ in asked)
    matching = sum(MATCHED_BY_MANY.get(value, 0) for _, value in asked)
    allowed = (RANGES_MAX if of_ranges else LOOKED_AT_MAX) + PER_MATCH_MAX * matching
    assert not [name for plan in reader.plans for name in tables_scanned(plan)], shown(reader)
    assert looked_at <= allowed, shown(reader)
    assert blocks <= BLOCKS_MAX + PER_MATCH_MAX * matching, shown(reader)


async def _ask(
    reader: ExplainingReader, route: Route, asked: Asked
) -> tuple[list[Any], str | None]:
    """The page, and the cursor of the next one."""
    nothing: Any = dict.fromkeys(field.name for field in fields(CellParts))
    parts = CellParts(**nothing | {"reader": reader})
    principal = Principal(
        tenant_id=TENANT,
        api_key_id="",
        standing=Standing(state="owned", epoch=1, moved_to=None),
    )
    ids = IDS.get(route.path, ())
    call = Call(parts, principal, ids, {}, urlencode(asked).encode(), None, 0.0)  # type: ignore[arg-type]
    answer = await route.endpoint(call)
    assert answer.status == 200
    cursor = dict(answer.headers).get(CURSOR_HEADER)
    return json.loads(answer.body), None if cursor is None else cursor.decode()


def rows_looked_at(node: Any) -> int:
    """Rows of tables that a plan looked at, taken or not."""
    looked_at = 0
    if "Relation Name" in node:
        removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
        per_loop = node["Actual Rows"] + sum(node.get(key, 0) for key in removed)
        looked_at = round(per_loop * node["Actual Loops"])
    return looked_at + sum(rows_looked_at(part) for part in node.get("Plans", ()))


def tables_scanned(node: Any) -> list[str]:
    """Tables that a plan read from one end to the other, but for those of a single block."""
    is_scan = node["Node Type"] == "Seq Scan" and blocks_of(node) > node["Actual Loops"]
    found = [node["Relation Name"]] if is_scan else []
    return found + [name for part in node.get("Plans", ()) for name in tables_scanned(part)]


def blocks_of(node: Any) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


def shown(reader: ExplainingReader) -> str:
    return json.dumps(reader.plans, indent=1)[:20_000]
