"""Brings the latest accounts of a tenant that has just come to memory, before reads miss them.

A tenant that moves here comes with all its traffic at once. What it wrote to last it will most
likely read and write next; its next batches bring those accounts as if reads had missed them. The
first that is heard of it is that its rows are to come, which leaves the time to connect.
"""

import asyncio
import logging
from typing import Final, LiteralString

from cell.errors import Unavailable
from cell.ledger.model import TenantId
from cell.memory import Memory
from cell.reads import Reader

log = logging.getLogger("cell.newcomers")

WAITING_MAX: Final = 256
"""Tenants; of one more, reads miss what they miss."""
ENTRIES_MAX: Final = 10_000
"""The last so many are looked at: some milliseconds of a database."""

_LATEST: Final[LiteralString] = """
SELECT DISTINCT ledger_account_id::text FROM (
    SELECT ledger_account_id FROM ledger_entries WHERE tenant_id = %s
        AND EXISTS (SELECT FROM tenant_heads WHERE tenant_id = %s AND state IN ('ready', 'owned'))
    ORDER BY id DESC LIMIT %s
) latest
"""


class Newcomers:
    def __init__(self, reader: Reader, memory: Memory) -> None:
        self._reader = reader
        self._memory = memory
        self._waiting: dict[TenantId, None] = {}
        self._work = asyncio.Event()

    def look_at(self, tenant_id: TenantId) -> None:
        """The tenant's head has changed: it may be here now, or in a moment."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting[tenant_id] = None
            self._work.set()

    async def run(self) -> None:
        """Look until cancelled, one tenant after another."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                tenant_id = next(iter(self._waiting))
                del self._waiting[tenant_id]
                try:
                    await self._look(tenant_id)
                except Exception:
                    # Reads find the same, and bring what they need.
                    log.exception("a newcomer is not looked at")

    async def _look(self, tenant_id: TenantId) -> None:
        await self._reader.open_all()
        parameters = (tenant_id, tenant_id, ENTRIES_MAX)
        try:
            found = await self._reader.fetch(tenant_id, _LATEST, parameters)
        except Unavailable:
            return
        for (account_id,) in found:
            self._memory.note_missed(tenant_id, account_id)
