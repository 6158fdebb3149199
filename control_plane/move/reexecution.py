"""Reconciliation in real time: what is followed is executed again, and must come to the same.

The rules get each record's command, stamp and, from the target, the state; they must return the
very rows that the source journaled. Whatever the target has differently, a damaged row or another
release's rules, shows at the first record that meets it, long before anything is fenced.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import msgspec

from cell.errors import ApiError
from cell.journal import Record
from cell.ledger.model import Row, Stamp, TenantId
from cell.ledger.rules import apply
from cell.prefetch import Prefetch
from cell.rows import TABLE_OF, read_as_model
from cell.state import LedgerCache, TenantView
from cell.tables import DERIVED_TABLES, ROW_TABLES
from control_plane.move.cell_heads import Cell

EXECUTED_PER_TURN = 32
"""Records after which other moves, and the leases of all, get the processor."""


class Differs(Exception):
    """The target's rows and rules do not come to what the source wrote."""


async def difference(target: Cell, tenant_id: UUID, records: Sequence[Record]) -> str | None:
    """The first record that comes to something else on the rows as they are; None: all agree."""
    tenant = TenantId(str(tenant_id))
    cursor = target.cursor()
    read_as_model(cursor)
    commands = [(tenant, record.command) for record in records]
    try:
        working_set = await Prefetch(cursor, LedgerCache(0), None).fill(commands)
    except msgspec.ValidationError as exc:
        return f"what records {records[0].seq} to {records[-1].seq} need cannot be read: {exc}"
    view = TenantView(tenant, working_set)
    for count, record in enumerate(records, 1):
        stamp = Stamp(record.seq, record.at_us, record.id_base)
        what = f"record {record.seq} ({type(record.command).__name__})"
        try:
            effects = apply(record.command, view, stamp)
        except ApiError as refusal:
            return f"{what} would be refused: {refusal}"
        except LookupError:
            return f"{what} needs a row that is not there"
        is_same = _by_row(effects.inserted) == _by_row(record.inserted) and _by_row(
            effects.updated
        ) == _by_row(record.updated)
        if not is_same:
            return f"{what} comes to other rows than those journaled"
        working_set.commit(effects)
        if count % EXECUTED_PER_TURN == 0:
            await asyncio.sleep(0)
    return None


def _by_row(rows: Sequence[Row]) -> dict[object, Row]:
    """Without their order: rows read afresh come in another one than those of a batch in flight."""
    return {(type(row), getattr(row, TABLE_OF[type(row)].key)): row for row in rows}


_HIGHEST_SEQ = " UNION ALL ".join(
    f"SELECT max(seq) AS seq FROM {name} WHERE tenant_id = %(tenant)s"
    for name in (*(table.name for table in ROW_TABLES), *DERIVED_TABLES)
)


async def highest_seq(target: Cell, tenant_id: UUID) -> int:
    """Of all rows there. Beyond the position it is after a copy that was resumed, for a while.

    Looks at every row: for rare occasions.
    """
    query = f"SELECT coalesce(max(seq), 0) FROM ({_HIGHEST_SEQ}) found"
    row = await (await target.execute(query.encode(), {"tenant": tenant_id})).fetchone()
    assert row is not None
    return int(row[0])
