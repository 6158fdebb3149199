"""Provisioning: the heads of tenants in this cell, for the operator API.

A head is made here once, owned from the start; everything that changes it afterwards is the
sequencer's or a move's. Uses the writer role on connections of its own, few and only while needed.
"""

import asyncio
from typing import Any, Final, LiteralString

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool

from cell.errors import Unavailable
from cell.ledger.model import TenantId
from cell.postgres import connection_string
from cell.rows import read_as_model

CONNECTIONS_MAX: Final = 2
REQUEST_S_MAX: Final = 4.0
STATEMENT_MS_MAX: Final = 3000
CLOSE_S_MAX: Final = 2.0


class TenantHead(msgspec.Struct, frozen=True):
    """A tenant's head as operators see it."""

    organization_id: str
    state: str
    epoch: int
    last_seq: int


_INSERT: Final = """
INSERT INTO tenant_heads (tenant_id, state, epoch) VALUES (%s, 'owned', %s)
ON CONFLICT (tenant_id) DO NOTHING
"""
_SELECT: Final = "SELECT tenant_id, state, epoch, last_seq FROM tenant_heads WHERE tenant_id = %s"
_COUNT: Final = "SELECT count(*) FROM tenant_heads WHERE state = 'owned'"


class Provision:
    """Tenant heads. Raises Unavailable where the database does not answer in time."""

    def __init__(self, writer_dsn: str) -> None:
        dsn = connection_string(writer_dsn, "provision", statement_timeout=STATEMENT_MS_MAX)
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
            dsn,
            kwargs={"autocommit": True},
            min_size=0,
            max_size=CONNECTIONS_MAX,
            timeout=REQUEST_S_MAX,
            configure=_configure,
            # An idle connection may have died with its Postgres; operators are in no hurry.
            check=AsyncConnectionPool.check_connection,
            open=False,
            name="provision",
        )

    async def open(self) -> None:
        await self._pool.open()

    async def close(self) -> None:
        await self._pool.close(CLOSE_S_MAX)

    async def put_tenant(self, tenant_id: TenantId, epoch: int) -> TenantHead:
        """The tenant's head: made now, owned at the epoch, or the one that is there already."""
        await self._run(_INSERT, (tenant_id, epoch))
        head = await self.tenant(tenant_id)
        assert head is not None, "heads are never deleted"
        return head

    async def tenant(self, tenant_id: TenantId) -> TenantHead | None:
        row = await self._run(_SELECT, (tenant_id,))
        return None if row is None else TenantHead(*row)

    async def count_tenants(self) -> int:
        """Tenants this cell owns."""
        row = await self._run(_COUNT, ())
        return int(row[0]) if row else 0

    async def _run(
        self, statement: LiteralString, parameters: tuple[object, ...]
    ) -> tuple[Any, ...] | None:
        try:
            async with asyncio.timeout(REQUEST_S_MAX), self._pool.connection() as connection:
                cursor = await connection.execute(statement, parameters)
                return await cursor.fetchone() if cursor.description else None
        except (TimeoutError, psycopg.OperationalError) as exc:
            raise Unavailable("the database does not answer now") from exc


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    read_as_model(connection)
