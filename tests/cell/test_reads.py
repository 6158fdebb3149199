"""Method: a reader on a real database with two tenants: what it lets one see, how it types values,
and how it behaves while Postgres is slow, busy or gone.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from cell_writing import Writing, execute, own_tenant, rows, transfer, until

import cell.reads
from cell.errors import Unavailable
from cell.ledger.model import TenantId
from cell.reads import POOL_WAIT_S_MAX, STATEMENT_MS_MAX, Reader

LEDGERS = "SELECT id FROM ledgers"
POOL_MAX = 4


@pytest.fixture
async def reader(cell_database: Any) -> AsyncIterator[Reader]:
    reader = Reader(cell_database.reader_dsn, pool_min=POOL_MAX, pool_max=POOL_MAX)
    await reader.open()
    await reader._pool.wait(60.0)
    yield reader
    await reader.close()


@pytest.fixture
def other_tenant(cell_database: Any) -> TenantId:
    return own_tenant(cell_database.writer_dsn)


async def test_a_tenant_sees_its_own_rows_only(
    writer: Writing, reader: Reader, tenant_id: TenantId, other_tenant: TenantId
) -> None:
    """Row-level security alone: the statement names no tenant."""
    own, others = await writer.ledger(tenant_id), await writer.ledger(other_tenant)
    for _ in range(3):
        assert await reader.fetch(tenant_id, LEDGERS, ()) == [(own,)]
        assert await reader.fetch(other_tenant, LEDGERS, ()) == [(others,)]


async def test_nothing_of_a_read_stays_on_its_connection(
    writer: Writing, reader: Reader, tenant_id: TenantId
) -> None:
    await writer.ledger(tenant_id)
    assert await reader.fetch(tenant_id, LEDGERS, ())
    async with reader._pool.connection() as connection:
        row = await (await connection.execute("SHOW statement_timeout")).fetchone()
        assert row == ("0",)
        assert await (await connection.execute(LEDGERS)).fetchall() == []
        prepared = await connection.execute("SELECT * FROM pg_prepared_statements")
        assert await prepared.fetchall() == []


async def test_records_of_the_journal(
    writer: Writing, reader: Reader, tenant_id: TenantId, other_tenant: TenantId
) -> None:
    a, b = await writer.accounts(tenant_id, 2)
    written = await writer.apply(tenant_id, transfer(a, b, 7))
    assert await reader.record(tenant_id, written.seq) == written
    with pytest.raises(LookupError):
        await reader.record(tenant_id, written.seq + 1)
    with pytest.raises(LookupError):
        await reader.record(other_tenant, written.seq)


async def test_connections_that_died_are_replaced(
    cell_database: Any, writer: Writing, reader: Reader, tenant_id: TenantId
) -> None:
    own = await writer.ledger(tenant_id)
    nap = "SELECT pg_sleep(0.05)"
    await asyncio.gather(*(reader.fetch(tenant_id, nap, ()) for _ in range(POOL_MAX)))
    execute(
        cell_database.superuser_dsn,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'cloister-reader' AND datname = current_database()",
    )
    assert await reader.fetch(tenant_id, LEDGERS, ()) == [(own,)]


@pytest.mark.parametrize("pool_wait_s", [POOL_WAIT_S_MAX])
async def test_no_free_connection(reader: Reader, tenant_id: TenantId) -> None:
    long: Any = f"SELECT pg_sleep({POOL_WAIT_S_MAX + 6})"
    busy = [asyncio.create_task(reader.fetch(tenant_id, long, ())) for _ in range(POOL_MAX)]
    await until(lambda: not reader._pool.get_stats()["pool_available"], "every connection is lent")
    with pytest.raises(Unavailable):
        await reader.fetch(tenant_id, LEDGERS, ())
    await asyncio.gather(*busy)
    assert await reader.fetch(tenant_id, LEDGERS, ()) == []


async def test_caller_that_goes_away_frees_its_connection(
    reader: Reader, tenant_id: TenantId
) -> None:
    for _ in range(4):
        gone = asyncio.create_task(reader.fetch(tenant_id, "SELECT pg_sleep(60)", ()))
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
    assert await reader.fetch(tenant_id, LEDGERS, ()) == []


@pytest.mark.parametrize("pool_wait_s", [POOL_WAIT_S_MAX])
async def test_postgres_that_is_not_there(cell_database: Any, tenant_id: TenantId) -> None:
    elsewhere = psycopg.conninfo.make_conninfo(cell_database.reader_dsn, port=1)
    reader = Reader(elsewhere, pool_min=1, pool_max=1)
    await reader.open()
    try:
        with pytest.raises(Unavailable):
            await reader.fetch(tenant_id, LEDGERS, ())
    finally:
        await reader.close()


async def test_statement_that_takes_too_long(
    reader: Reader, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Method: ten seconds are shortened to one; that the limit is Postgres's own is the point."""
    scope = cell.reads._SCOPE.replace(f"'{STATEMENT_MS_MAX}'", "'1000'")
    monkeypatch.setattr("cell.reads._SCOPE", scope)
    with pytest.raises(Unavailable):
        await reader.fetch(tenant_id, "SELECT pg_sleep(5)", ())
    assert await reader.fetch(tenant_id, LEDGERS, ()) == []


async def test_all_connections_are_opened_before_they_are_needed(cell_database: Any) -> None:
    counting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename = 'cloister_reader'"
    )
    reader = Reader(cell_database.reader_dsn, pool_min=1, pool_max=POOL_MAX)
    await reader.open()
    try:
        for _ in range(2):
            await reader.open_all()
        await until(
            lambda: rows(cell_database.superuser_dsn, counting) == [(POOL_MAX,)], "all are open"
        )
    finally:
        await reader.close()
