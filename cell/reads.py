"""Reads: the pool of reader connections, one tenant at a time.

The role is subject to row-level security; each read names its tenant first, in the same database
transaction, and without that sees no rows. Nothing of a read outlives its transaction, so that a
pooler in transaction mode may stand between. Lists and whatever the sequencer's memory does not
hold are read here; the sequencer itself has its own connections.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg.errors import QueryCanceled
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from cell.errors import Unavailable
from cell.journal import SEGMENT_OF_SEQ, Record, record_of
from cell.ledger.model import TenantId
from cell.postgres import connection_string, one_line
from cell.rows import read_as_model

POOL_WAIT_S_MAX: Final = 2.0
"""How long a read waits for a connection."""

WAITING_MAX: Final = 256
"""Reads that may wait for a connection; one more is refused at once."""

READ_S_MAX: Final = 12.0
"""A read that Postgres has not answered after that time is given up; above the statement's own."""

STATEMENT_MS_MAX: Final = 10_000
RECONNECT_S_MAX: Final = 5.0
CLOSE_S_MAX: Final = 5.0
ROWS_PER_TURN: Final = 256
ATTEMPTS_MAX: Final = 3
"""Connections tried for one read."""

_SCOPE: Final = (
    "SELECT set_config('cloister.tenant_id', %s, true), set_config('statement_timeout', "
    f"'{STATEMENT_MS_MAX}', true)"
)
_NAMED_SCOPE: Final = _SCOPE.replace("%s", "%(scope)s")
_SCOPE_WITHOUT_SORT: Final = f"{_SCOPE}, set_config('enable_sort', 'off', true)"
_SCOPE_WITHOUT_SCAN: Final = f"{_SCOPE}, set_config('enable_seqscan', 'off', true)"

log = logging.getLogger("cell.reads")

Connection = psycopg.AsyncConnection[Any]


class Reader:
    """Reads rows of one tenant. Raises Unavailable where the database cannot be read in time."""

    def __init__(self, reader_dsn: str, *, pool_min: int, pool_max: int) -> None:
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            connection_string(reader_dsn, "reader"),
            min_size=pool_min,
            max_size=pool_max,
            max_waiting=WAITING_MAX,
            timeout=POOL_WAIT_S_MAX,
            reconnect_timeout=RECONNECT_S_MAX,
            configure=_configure,
            open=False,
            name="reader",
        )

    async def open(self) -> None:
        await self._pool.open()

    async def open_all(self) -> None:
        """Have all connections open before reads come that many at once: that takes longer than to
        answer them."""
        missing = self._pool.max_size - self._pool.get_stats()["pool_size"]
        if missing > 0:
            # The pool opens as many as its minimum grows by, however many there are.
            smallest = min(self._pool.max_size, self._pool.min_size + missing)
            await self._pool.resize(smallest, self._pool.max_size)

    async def close(self) -> None:
        await self._pool.close(CLOSE_S_MAX)

    async def fetch(
        self, tenant_id: TenantId, statement: LiteralString, parameters: Sequence[object]
    ) -> list[tuple[Any, ...]]:
        """All rows of one statement, which sees one snapshot."""
        return await self._fetch(f"{_SCOPE};\n{statement}", (tenant_id, *parameters))

    async def fetch_by_index(
        self, tenant_id: TenantId, statement: LiteralString, parameters: Sequence[object]
    ) -> list[tuple[Any, ...]]:
        """As `fetch`, by the index that gives its order, also where statistics do not know the
        tenant yet, and would have few rows sorted that are many."""
        statements: LiteralString = f"{_SCOPE_WITHOUT_SORT};\n{statement}"
        return await self._fetch(statements, (tenant_id, *parameters))

    async def fetch_by_match(
        self, tenant_id: TenantId, statement: LiteralString, parameters: Sequence[object]
    ) -> list[tuple[Any, ...]]:
        """As `fetch`, by indexes even where so much of a table matches that to read all of it, the
        rows of all other tenants, too, would seem cheaper."""
        statements: LiteralString = f"{_SCOPE_WITHOUT_SCAN};\n{statement}"
        return await self._fetch(statements, (tenant_id, *parameters))

    async def fetch_named(
        self, tenant_id: TenantId, statement: LiteralString, parameters: Mapping[str, object]
    ) -> list[tuple[Any, ...]]:
        """As `fetch`, the parameters by name."""
        return await self._fetch(
            f"{_NAMED_SCOPE};\n{statement}", {**parameters, "scope": tenant_id}
        )

    async def _fetch(
        self, statements: LiteralString, parameters: Sequence[object] | Mapping[str, object]
    ) -> list[tuple[Any, ...]]:
        async def work(connection: Connection) -> list[tuple[Any, ...]]:
            # Both statements go in one message of the simple protocol, which is one transaction.
            # psycopg puts the parameters in as escaped literals. A pipeline of the extended
            # protocol does the same with nine system calls, and takes twice the time.
            cursor = psycopg.AsyncClientCursor(connection)
            await cursor.execute(statements, parameters)
            cursor.nextset()
            rows = await cursor.fetchmany(ROWS_PER_TURN)
            while len(rows) < cursor.rowcount:
                # Made into objects a few at a time: others are waiting for the processor.
                await asyncio.sleep(0)
                rows += await cursor.fetchmany(ROWS_PER_TURN)
            return rows

        return await self._attempt(work)

    async def record(self, tenant_id: TenantId, seq: int) -> Record:
        """The journal's record at a sequence that is known to be committed. Raises LookupError."""
        rows = await self.fetch(tenant_id, SEGMENT_OF_SEQ, (tenant_id, seq))
        if not rows:
            raise LookupError(f"the journal of tenant {tenant_id} has no sequence {seq}")
        return record_of(rows[0][0], seq)

    async def _attempt(
        self, work: Callable[[Connection], Awaitable[list[tuple[Any, ...]]]]
    ) -> list[tuple[Any, ...]]:
        attempt = 1
        while True:
            try:
                async with asyncio.timeout(READ_S_MAX), self._pool.connection() as connection:
                    return await work(connection)
            except (TimeoutError, PoolTimeout, TooManyRequests, QueryCanceled) as exc:
                log.warning("read given up", extra={"error": one_line(exc)})
                raise Unavailable("the read took too long; try again shortly") from exc
            except psycopg.OperationalError as exc:
                if attempt == ATTEMPTS_MAX:
                    log.warning("reads fail", extra={"error": one_line(exc)})
                    raise Unavailable("the database cannot be read now") from exc
                # Reads change nothing, so that they may be repeated. The pool has dropped the
                # connection that broke; the others may have died with the same Postgres.
                await self._drop_dead_connections()
                attempt += 1

    async def _drop_dead_connections(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POOL_WAIT_S_MAX):
                await self._pool.check()


async def _configure(connection: Connection) -> None:
    # No statement may be prepared on a server that a pooler can exchange for another.
    connection.prepare_threshold = None
    await connection.set_autocommit(True)
    read_as_model(connection)
