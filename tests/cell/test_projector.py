"""The projector: nothing is missed, nothing is doubled, whoever projects it and how often.

Method: a sequencer and projectors on a real database; afterwards the index is compared with one
worked out here from the whole journal. Waits are the projector's own `reach`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cell_writing import DEADLINE_S, Writing, execute, rows, transfer

from cell import projector as projector_module
from cell.events import EventPlace, event_id, event_place, events_of, index_entries
from cell.journal import decode_body
from cell.ledger.model import TenantId
from cell.projector import Projector


@contextlib.asynccontextmanager
async def projecting(dsn: str) -> AsyncIterator[Projector]:
    projector = Projector(dsn)
    running = asyncio.create_task(projector.run())
    try:
        yield projector
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def reach(projector: Projector, tenant_id: TenantId, seq: int) -> None:
    assert await projector.reach(tenant_id, seq, DEADLINE_S)


def assert_index_is_complete(database: Any, head: int) -> None:
    journal = rows(
        database.superuser_dsn,
        "SELECT tenant_id::text, body FROM journal ORDER BY tenant_id, first_seq",
    )
    expected = [
        (tenant_id, *entry)
        for tenant_id, body in journal
        for entry in index_entries(decode_body(bytes(body)).records)
    ]
    found = rows(
        database.superuser_dsn, "SELECT tenant_id::text, topic::text, at_us, seq FROM event_index"
    )
    assert sorted(found) == sorted(expected)
    assert rows(database.superuser_dsn, "SELECT seq FROM event_watermarks") == [(head,)]


async def test_what_was_not_fed_is_read_from_the_journal(
    writer: Writing, tenant_id: TenantId, cell_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector_module, "SEGMENTS_PER_STEP", 2)
    cash, alice = await writer.accounts(tenant_id, 2)
    records = [await writer.apply(tenant_id, transfer(cash, alice)) for _ in range(5)]
    async with projecting(cell_database.writer_dsn) as first:
        await reach(first, tenant_id, records[-1].seq)
        assert_index_is_complete(cell_database, records[-1].seq)
        # Fed from here on; a gap in what it was fed sends it back to the journal.
        for fed in (True, False, True):
            record = await writer.apply(tenant_id, transfer(cash, alice))
            if fed:
                first.feed(tenant_id, [record])
        await reach(first, tenant_id, record.seq)
        assert_index_is_complete(cell_database, record.seq)
        # What is fed once more, or late, changes nothing; what no memory holds is read.
        monkeypatch.setattr(projector_module, "FED_RECORDS_MAX", 1)
        last = [await writer.apply(tenant_id, transfer(cash, alice)) for _ in range(3)]
        for record in (*records, *last):
            first.feed(tenant_id, [record])
        async with projecting(cell_database.writer_dsn) as second:
            await asyncio.gather(*(reach(each, tenant_id, record.seq) for each in (first, second)))
    assert_index_is_complete(cell_database, record.seq)
    # From nothing, the same again.
    execute(cell_database.superuser_dsn, "TRUNCATE event_index, event_watermarks")
    async with projecting(cell_database.writer_dsn) as third:
        await reach(third, tenant_id, record.seq)
    assert_index_is_complete(cell_database, record.seq)


async def test_a_lost_connection_costs_time_only(
    writer: Writing, tenant_id: TenantId, cell_database: Any
) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    async with projecting(cell_database.writer_dsn) as projector:
        for _ in range(3):
            record = await writer.apply(tenant_id, transfer(cash, alice))
            projector.feed(tenant_id, [record])
            execute(
                cell_database.superuser_dsn,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'cloister-projector'",
            )
            await reach(projector, tenant_id, record.seq)
    assert_index_is_complete(cell_database, record.seq)


async def test_ids_name_their_place_and_their_tenant(writer: Writing, tenant_id: TenantId) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    record = await writer.apply(tenant_id, transfer(cash, alice))
    other = TenantId("00000000-0000-4000-8000-000000000001")
    for ordinal in (*range(len(events_of(record))), 255, 256, (1 << 20) - 1):
        id = event_id(tenant_id, EventPlace(record.seq, ordinal))
        assert event_place(tenant_id, id) == (record.seq, ordinal)
        assert event_place(other, id) is None
        assert id[14] == "8"
    assert event_place(tenant_id, alice) is None
