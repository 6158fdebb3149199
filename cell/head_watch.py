"""Tells the cell at once when a move has changed a tenant's head in its database.

Whoever changes a head by `change_head` notifies everyone who listens, with the commit. Memory is
never needed to be right for writes (every batch passes the guard), but reads are answered from it:
without this, a cell would go on showing a tenant that has moved away. What was said while nobody
listened is not repeated, so after every connection, and after every loss of one, all is forgotten.

Another state of the database, such as one restored from a backup, comes with the loss of every
connection. So this one also tells which reads are of the state that the cell has looked at.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import psycopg

from cell.errors import CellError
from cell.ledger.model import TenantId
from cell.postgres import connection_string, one_line

CHANNEL: Final = "cloister_heads"
RETRY_PAUSE_S: Final = 0.1
PROBE_S: Final = 5.0
"""A connection that is silent is asked so often whether it is still one."""

PROBE_S_MAX: Final = 5.0

log = logging.getLogger("cell.heads")


class HeadWatch:
    """Listens for as long as the cell serves; `run` in a task of its own."""

    def __init__(
        self,
        writer_dsn: str,
        on_change: Callable[[TenantId | None], None],
        examine: Callable[[], Awaitable[None]],
    ) -> None:
        """`on_change` gets the tenant; None: any tenant's head may have changed unheard.

        `examine`: to be done before anything is read of a database just connected to.
        """
        self._dsn = connection_string(writer_dsn, "heads")
        self._on_change = on_change
        self._examine = examine
        self._connections = 0
        self.deaf_because: str | None = "it has not connected yet"
        """Why nothing would be heard now; None while it listens."""

    @property
    def connection(self) -> int | None:
        """Which one it listens by, as a number; None while it hears nothing.

        What is read while this stays the same is of one state of the database, an examined one.
        """
        return self._connections if self.deaf_because is None else None

    async def run(self) -> None:
        """Listen until cancelled; connects again as often as it takes."""
        while True:
            try:
                await self._listen()
            except (psycopg.Error, CellError, OSError) as error:
                if self.deaf_because is None:
                    log.warning("heads are not watched", extra={"error": one_line(error)})
                self.deaf_because = one_line(error)
            self._on_change(None)
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _listen(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            # Connected before, so that what is examined is not older than what is listened to.
            await self._examine()
            # What happened before the first notification can be heard.
            self._on_change(None)
            self._connections += 1
            self.deaf_because = None
            while True:
                async for notification in connection.notifies(timeout=PROBE_S):
                    self._on_change(TenantId(notification.payload))
                await _probe(connection)


async def _probe(connection: psycopg.AsyncConnection[Any]) -> None:
    async with asyncio.timeout(PROBE_S_MAX):
        await connection.execute("SELECT 1")
