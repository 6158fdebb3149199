"""The worker that brings settlements to their end which one command was not enough for.

Level-triggered: it looks in the database for what is `processing` or `archiving` and asks the
sequencer for the next step of each, until there is none. It holds no state: whatever stops it, the
next look finds what is left, in this process or the next one, in this cell or the one the tenant
has moved to.
"""

import asyncio
import logging
import time
from typing import Any, Final

import psycopg

from cell.errors import ApiError
from cell.ledger.commands import ContinueLedgerAccountSettlement
from cell.ledger.model import TenantId
from cell.postgres import connection_string, one_line
from cell.rows import read_as_model
from cell.sequencer import Sequencer
from cell.waiting import wait_until_set

ENTRIES_PER_STEP: Final = 5000
"""Entries that one command looks at; it keeps all others of the cell waiting meanwhile."""

SETTLEMENTS_PER_LOOK: Final = 100
LOOK_INTERVAL_S: Final = 5.0
"""Between two looks when nobody wakes it: a tenant may have moved here."""

STATEMENT_MS_MAX: Final = 5000

_UNFINISHED: Final = """
SELECT s.tenant_id, s.id FROM ledger_account_settlements s
JOIN tenant_heads h ON h.tenant_id = s.tenant_id
WHERE s.status IN ('processing', 'archiving') AND h.state = 'owned' ORDER BY s.id LIMIT %s
"""

log = logging.getLogger("cell.settlements")


class SettlementWorker:
    """Runs beside the sequencer for as long as the cell serves."""

    def __init__(self, writer_dsn: str, sequencer: Sequencer) -> None:
        self._dsn = connection_string(writer_dsn, "settlements", statement_timeout=STATEMENT_MS_MAX)
        self._sequencer = sequencer
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled; whatever fails is tried again at the next look."""
        while True:
            self._woken.clear()
            try:
                while await self._take_steps():
                    pass
            except psycopg.Error as exc:
                log.warning("settlements wait", extra={"error": one_line(exc)})
            except Exception:
                # A mistake of ours: settlements stand still, which is no reason for all to.
                log.exception("settlements fail")
            await wait_until_set(self._woken, LOOK_INTERVAL_S)

    async def _take_steps(self) -> bool:
        """One step of each that is unfinished, oldest first; False when none could be taken."""
        steps = 0
        for tenant_id, id in await self._unfinished():
            started_s = time.monotonic()
            command = ContinueLedgerAccountSettlement(id=id, entries_per_step=ENTRIES_PER_STEP)
            try:
                await self._sequencer.submit(tenant_id, command)
                steps += 1
            except ApiError as exc:
                fields = {"tenant": tenant_id, "settlement": id, "error": one_line(exc)}
                log.warning("settlement waits", extra=fields)
            # As long as a step has kept the others waiting, so long it is theirs.
            await asyncio.sleep(time.monotonic() - started_s)
        return steps > 0

    async def _unfinished(self) -> list[tuple[TenantId, str]]:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            read_as_model(connection)
            cursor: psycopg.AsyncCursor[Any] = await connection.execute(
                _UNFINISHED, (SETTLEMENTS_PER_LOOK,)
            )
            return [(TenantId(row[0]), row[1]) for row in await cursor.fetchall()]
