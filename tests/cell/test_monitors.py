"""Monitors on the write path: transitions within a batch and over batches.

Method: a sequencer on a real database, commands queued at once so that they share a batch; after
the test the audit executes the journal again, and its rules must return the same transitions.
"""

import asyncio
from typing import Any

from cell_writing import Writing, rows, transfer

from cell.ledger import commands
from cell.ledger.model import BalanceMonitor, MonitoredField, MonitorOperator, Status, TenantId


def monitor(account_id: str, value: int = 100) -> commands.CreateBalanceMonitor:
    return commands.CreateBalanceMonitor(
        ledger_account_id=account_id,
        field=MonitoredField.AVAILABLE,
        operator=MonitorOperator.LESS_THAN,
        value=value,
    )


def states(record: Any) -> list[bool]:
    found = (*record.inserted, *record.updated)
    return [row.is_triggered for row in found if isinstance(row, BalanceMonitor)]


async def test_each_transition_is_written_with_its_cause_and_once(
    writer: Writing, tenant_id: TenantId
) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    # All in one batch or a few: what a command changes, the next one sees.
    queued = (
        transfer(cash, alice, 1),
        monitor(alice),
        transfer(cash, alice, 98),
        transfer(cash, alice, 1),
        transfer(cash, alice, 400),
        transfer(alice, cash, 401, Status.PENDING),
    )
    records = await asyncio.gather(*(writer.apply(tenant_id, c) for c in queued))
    assert [states(record) for record in records] == [[], [True], [], [False], [], [True]]
    made, pending = records[1], records[-1]
    archive = commands.UpdateLedgerTransaction(id=pending.inserted[0].id, status=Status.ARCHIVED)
    records = [await writer.apply(tenant_id, c) for c in (archive, archive)]
    assert [states(record) for record in records] == [[False], []]
    # Deleted, it is not asked any more, also not by the command right behind.
    delete = commands.DeleteBalanceMonitor(id=monitor_id(made))
    gone = await asyncio.gather(
        writer.apply(tenant_id, delete), writer.apply(tenant_id, transfer(alice, cash, 450))
    )
    assert [states(record) for record in gone] == [[False], []]


def monitor_id(record: Any) -> str:
    return next(row.id for row in record.inserted if isinstance(row, BalanceMonitor))


async def test_the_count_says_which_accounts_have_any(
    writer: Writing, tenant_id: TenantId, cell_database: Any
) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    one, two = await asyncio.gather(*(writer.apply(tenant_id, monitor(alice)) for _ in range(2)))
    count = "SELECT id::text, monitor_count FROM ledger_accounts"
    assert dict(rows(cell_database.superuser_dsn, count)) == {cash: 0, alice: 2}
    delete = commands.DeleteBalanceMonitor(id=one.inserted[0].id)
    await asyncio.gather(*(writer.apply(tenant_id, delete) for _ in range(2)))
    assert dict(rows(cell_database.superuser_dsn, count)) == {cash: 0, alice: 1}
    record = await writer.apply(tenant_id, transfer(cash, alice, 100))
    assert [row.id for row in record.updated if isinstance(row, BalanceMonitor)] == [
        two.inserted[0].id
    ]
