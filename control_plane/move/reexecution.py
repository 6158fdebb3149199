"""Reconciliation in real time: what is followed is executed again, and must come to the same.

The rules get each record's command, stamp and, from the target, the state; they must return the
very rows that the source journaled. Whatever the target has differently, a damaged row or another
release's rules, shows at the first record that meets it, long before anything is fenced.
"""

from collections.abc import Sequence
from uuid import UUID

import msgspec

from cell.errors import ApiError
from cell.journal import Record
from cell.ledger.model import Effects, Stamp, TenantId
from cell.ledger.rules import apply
from cell.prefetch import Prefetch
from cell.rows import read_as_model
from cell.state import LedgerCache, TenantView
from cell.tables import ROW_TABLES
from control_plane.move.cell_heads import Cell


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
    for record in records:
        stamp = Stamp(record.seq, record.at_us, record.id_base)
        journaled = Effects(inserted=record.inserted, updated=record.updated)
        what = f"record {record.seq} ({type(record.command).__name__})"
        try:
            effects = apply(record.command, view, stamp)
        except ApiError as refusal:
            return f"{what} would be refused: {refusal}"
        except LookupError:
            return f"{what} needs a row that is not there"
        if effects != journaled:
            return f"{what} comes to other rows than those journaled"
        working_set.commit(effects)
    return None


_HOLDS_LATER_ROWS = "SELECT " + " OR ".join(
    f"EXISTS (SELECT FROM {table.name} WHERE tenant_id = %(tenant)s AND seq > %(seq)s)"
    for table in ROW_TABLES
)


async def holds_later_rows(target: Cell, tenant_id: UUID, seq: int) -> bool:
    """Are there rows beyond that sequence? So it is after a copy that was resumed, for a while."""
    values = {"tenant": tenant_id, "seq": seq}
    row = await (await target.execute(_HOLDS_LATER_ROWS.encode(), values)).fetchone()
    assert row is not None
    return bool(row[0])
