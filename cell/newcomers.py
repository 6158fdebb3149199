"""Reads what a tenant that is coming will be asked for first, so that memory has it in time.

A tenant that moves here comes with all its traffic at once. What it wrote to last it will most
likely read and write next. Its mover says when it is about to come, and each change of its head is
heard of: the first time its latest accounts are read, then what the journal has gained since.
"""

import asyncio
import logging
from typing import Final, LiteralString

from cell.arrival import Arrival
from cell.errors import Unavailable
from cell.journal import SegmentBody, decode_body
from cell.ledger.model import AccountBalances, Ledger, LedgerAccount, TenantId
from cell.memory import Memory
from cell.reads import Reader
from cell.rows import TABLE_OF, columns_of, row_from
from cell.store import HEAD_COLUMNS, Head, head_from

log = logging.getLogger("cell.newcomers")

WAITING_MAX: Final = 256
"""Tenants; of one more, reads miss what they miss."""
ENTRIES_MAX: Final = 10_000
"""The last so many are looked at: some milliseconds of a database."""
ACCOUNTS_MAX: Final = 4_096
SEQUENCES_MAX: Final = 8_192
SEGMENTS_MAX: Final = 512
"""Of the journal: a second of small batches. What is further behind is read anew."""
ROWS_PER_TURN: Final = 32
"""Made before other tasks get the processor: a fraction of a millisecond."""


class Newcomers:
    """`run` in a task of its own."""

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
                except Unavailable:
                    pass
                except Exception:
                    # Reads find the same, and bring what they need.
                    log.exception("a newcomer is not looked at")

    async def _look(self, tenant_id: TenantId) -> None:
        await self._reader.open_all()
        # Before anything is read: whatever changes from here on makes a head that was found void.
        changes = self._memory.changes
        known = self._memory.arrival(tenant_id)
        head, arrival = await self._follow(tenant_id, known) if known else (None, None)
        if arrival is None:
            head, arrival = await self._load(tenant_id)
        self._memory.expect(tenant_id, arrival)
        if head is not None and head.state == "owned":
            self._memory.learn({tenant_id: head}, changes)

    async def _follow(
        self, tenant_id: TenantId, known: Arrival
    ) -> tuple[Head | None, Arrival | None]:
        """The head, of a tenant that is coming or here; and what is known of it, brought to it."""
        parameters = (known.seq, known.seq, SEQUENCES_MAX, tenant_id, SEGMENTS_MAX)
        found = await self._reader.fetch_by_index(tenant_id, _HEAD_AND_JOURNAL, parameters)
        if not found:
            return None, None
        *head_row, prev_hash, _ = found[0]
        head = head_from(head_row)
        segments: list[SegmentBody] = []
        for *_, body in found:
            if body is not None:
                segments.append(decode_body(bytes(body)))
                await asyncio.sleep(0)
        begins_at = head.last_hash if prev_hash is None else bytes(prev_hash)
        return head, known.followed(begins_at, segments, head.last_seq, head.last_hash)

    async def _load(self, tenant_id: TenantId) -> tuple[Head | None, Arrival | None]:
        """Its head and its latest accounts, as of one moment."""
        parameters = (tenant_id, ENTRIES_MAX, ACCOUNTS_MAX, tenant_id)
        found = await self._reader.fetch_by_index(tenant_id, _ARRIVAL, parameters)
        if not found:
            return None, None
        accounts: dict[str, tuple[LedgerAccount, AccountBalances]] = {}
        ledgers: dict[str, Ledger] = {}
        for count, row in enumerate(found, 1):
            account = row_from(LedgerAccount, row[_OF_ACCOUNT])
            accounts[account.id] = (account, row_from(AccountBalances, row[_OF_BALANCES]))
            if account.ledger_id not in ledgers:
                ledgers[account.ledger_id] = row_from(Ledger, row[_OF_LEDGER])
            if count % ROWS_PER_TURN == 0:
                await asyncio.sleep(0)
        head = head_from(found[0][_OF_HEAD])
        arrival = Arrival(
            seq=head.last_seq, hash=head.last_hash, accounts=accounts, ledgers=ledgers
        )
        return head, arrival


# Until its rows are copied, a head is at the beginning: what is there of them is no state at all.
_IS_COMING: Final = "h.state IN ('importing', 'ready', 'owned') AND h.last_seq > 0"
_HEAD_AND_JOURNAL: Final[LiteralString] = f"""
SELECT {HEAD_COLUMNS}, j.prev_hash, j.body
FROM tenant_heads h LEFT JOIN journal j
    ON j.tenant_id = h.tenant_id AND j.first_seq > %s AND h.last_seq - %s <= %s
WHERE h.tenant_id = %s AND {_IS_COMING} ORDER BY j.first_seq LIMIT %s
"""
# In the order as written: by statistics that do not know the tenant yet, whole tables would be
# looked through. The amount is in no index, which would be read as a whole.
_ARRIVAL: Final = f"""
WITH latest AS MATERIALIZED (
    SELECT DISTINCT ledger_account_id AS id FROM (
        SELECT ledger_account_id, amount FROM ledger_entries
        WHERE tenant_id = %s ORDER BY id DESC LIMIT %s
    ) e LIMIT %s
)
SELECT {HEAD_COLUMNS}, {columns_of(LedgerAccount, "r")}, {columns_of(AccountBalances, "b")},
    {columns_of(Ledger, "l")}
FROM tenant_heads h CROSS JOIN latest
CROSS JOIN LATERAL (
    SELECT * FROM ledger_accounts a WHERE a.tenant_id = h.tenant_id AND a.id = latest.id OFFSET 0
) r CROSS JOIN LATERAL (
    SELECT * FROM ledger_account_balances a
    WHERE a.tenant_id = h.tenant_id AND a.ledger_account_id = latest.id OFFSET 0
) b CROSS JOIN LATERAL (
    SELECT * FROM ledgers a WHERE a.tenant_id = h.tenant_id AND a.id = r.ledger_id OFFSET 0
) l
WHERE h.tenant_id = %s AND {_IS_COMING}
"""


def _slices(*widths: int) -> list[slice]:
    ends = [sum(widths[: place + 1]) for place in range(len(widths))]
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


_OF_HEAD, _OF_ACCOUNT, _OF_BALANCES, _OF_LEDGER = _slices(
    HEAD_COLUMNS.count(",") + 1,
    *(len(TABLE_OF[each].columns) for each in (LedgerAccount, AccountBalances, Ledger)),
)
