"""The durable queue: every row that was accepted is applied once, or fails once, come what may.

Method: bulk requests of commands put into a real database by a sequencer, drained in the same
process while tenants are fenced, moved and busy; and a cell's process killed in the middle of 2,000
rows. What became of the rows is read from the tables; the audit afterwards executes all of it anew.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cell_process import DEADLINE_S, running_cell
from cell_writing import Writing, draft, execute, own_tenant, rows, transfer, until, write

from cell.durable_queue import DurableQueue
from cell.errors import NotApplied
from cell.ledger import commands
from cell.ledger.model import BulkRequest, Direction, TenantId
from cell.metrics import CellMetrics, RequestMetrics
from cell.wire import Verdict

Row = commands.Queueable

STATUSES = """
SELECT status, count(*) FROM bulk_results WHERE tenant_id = %s GROUP BY 1 ORDER BY 1
"""


async def queue(writer: Writing, tenant_id: TenantId, *queued: Row) -> str:
    """Put the commands into the durable queue; the id of their request."""
    items = [commands.BulkItem(request_params="{}", command=command) for command in queued]
    request = commands.CreateBulkRequest(
        action_type="create", resource_type="ledger_transaction", items=tuple(items)
    )
    return str((await writer.apply(tenant_id, request)).inserted[0].id)


@contextlib.asynccontextmanager
async def draining(dsn: str, writer: Writing, batch_size: int = 20) -> AsyncIterator[DurableQueue]:
    durable = DurableQueue(dsn, writer.sequencer, batch_size=batch_size, linger_s=0.01)
    drainer = asyncio.create_task(durable.drain(), name="drain")
    try:
        yield durable
    finally:
        drainer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await drainer


def statuses(dsn: str, tenant_id: TenantId) -> dict[str, int]:
    return dict(rows(dsn, STATUSES, tenant_id))


def unbalanced(debited: str, credited: str) -> commands.CreateLedgerTransaction:
    entries = (draft(debited, Direction.DEBIT, 2), draft(credited, Direction.CREDIT, 1))
    return commands.CreateLedgerTransaction(entries=entries)


async def test_rows_are_applied_in_order_and_counted(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    pair = await writer.accounts(tenant_id, 2)
    queued = [transfer(*pair, description=f"{n:03}") for n in range(97)]
    # The database cannot hold the second one, which no rule forbids.
    poison = transfer(*pair, effective_at_us=1 << 63)
    request = await queue(writer, tenant_id, unbalanced(*pair), poison, *queued)
    async with draining(dsn, writer) as durable:
        durable.wake(tenant_id)
        await until(lambda: durable.status.successful == 97, "drained")
        await until(lambda: durable.status.depth == 0 == durable.status.oldest_s, "surveyed")
        metrics = CellMetrics(RequestMetrics(), writer.sequencer, durable).render().decode()
    counts = "SELECT status, success_count, failed_count FROM bulk_requests WHERE id = %s"
    assert rows(dsn, counts, request) == [("completed", 97, 2)]
    found = rows(dsn, "SELECT description FROM ledger_transactions ORDER BY id")
    assert [name for (name,) in found] == [command.description for command in queued]
    errors = (
        "SELECT error_code, error_message FROM bulk_results WHERE status = 'failed' ORDER BY id"
    )
    (unequal, refused) = rows(dsn, errors)
    assert unequal == ("parameter_invalid", "unbalanced in USD: debits minus credits is 1")
    assert refused == ("parameter_invalid", "a value of this request cannot be stored")
    for line in (
        'cloister_cell_async_rows_total{status="successful"} 97.0',
        'cloister_cell_async_rows_total{status="failed"} 2.0',
        "cloister_cell_async_queue_depth 0.0",
        "cloister_cell_async_queue_oldest_seconds 0.0",
        "cloister_cell_async_wait_seconds_count 99.0",
    ):
        assert line in metrics.splitlines()


async def test_a_settled_row_is_not_applied_again(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    pair = await writer.accounts(tenant_id, 2)
    request_id = await queue(writer, tenant_id, transfer(*pair), unbalanced(*pair))
    found = rows(cell_database.writer_dsn, "SELECT id::text FROM bulk_results ORDER BY id")
    error = commands.BulkError(code="c", message="m")
    for (id,), inner in zip(found, (transfer(*pair), unbalanced(*pair)), strict=True):
        again = [
            commands.ApplyQueued(id=id, request_id=request_id, inner=inner),
            commands.RefuseQueued(id=id, request_id=request_id, error=error),
        ]
        records = [await writer.apply(tenant_id, command) for command in (*again, *again)]
        assert records[0].updated
        assert all(record.updated[0].seq == records[0].seq for record in records)
    (done,) = [row for row in records[0].updated if isinstance(row, BulkRequest)]
    assert (done.status, done.success_count, done.failed_count) == ("completed", 1, 1)
    assert len(rows(cell_database.writer_dsn, "SELECT * FROM ledger_transactions")) == 1


async def test_tenants_that_are_not_owned_wait(cell_database: Any, writer: Writing) -> None:
    dsn = cell_database.writer_dsn
    fenced, moved, owned = tenants = [own_tenant(dsn) for _ in range(3)]
    for tenant_id in tenants:
        pair = await writer.accounts(tenant_id, 2)
        await queue(writer, tenant_id, *[transfer(*pair)] * 30)
    state = "UPDATE tenant_heads SET state = %s, epoch = epoch + 1 WHERE tenant_id = %s"
    execute(dsn, state, "fenced", fenced)
    execute(dsn, state, "moved", moved)
    async with draining(dsn, writer) as durable:
        # Asked to look, as by a request just before the fence went up.
        durable.wake(fenced)
        await until(lambda: durable.status.successful == 30, "one is drained")
        await until(lambda: durable.status.depth == 0, "nothing waits for this cell")
        assert statuses(dsn, owned) == {"successful": 30}
        assert statuses(dsn, fenced) == statuses(dsn, moved) == {"pending": 30}
        execute(dsn, state, "owned", fenced)
        await until(lambda: durable.status.successful == 60, "fenced is drained")
    assert statuses(dsn, fenced) == {"successful": 30}
    assert statuses(dsn, moved) == {"pending": 30}


async def test_a_long_queue_delays_no_other_tenant(cell_database: Any) -> None:
    """Method: a sequencer whose own queue is shorter than the drainer's batch, too."""
    dsn = cell_database.writer_dsn
    async with write(dsn, queue_commands_per_tenant_max=15) as writer:
        long, short = tenants = [own_tenant(dsn) for _ in range(2)]
        for tenant_id, count in zip(tenants, (100, 3), strict=True):
            pair = await writer.accounts(tenant_id, 2)
            await queue(writer, tenant_id, *[transfer(*pair)] * count)
        async with draining(dsn, writer, batch_size=40) as durable:
            await until(lambda: durable.status.successful == 103, "drained")
    settled = "SELECT max(updated_at_us), min(updated_at_us) FROM bulk_results WHERE tenant_id = %s"
    ((last, _),) = rows(dsn, settled, short)
    ((end, _),) = rows(dsn, settled, long)
    assert last < end


async def test_the_queue_of_a_tenant_is_bounded(
    cell_database: Any, writer: Writing, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cell.durable_queue.ROWS_PER_TENANT_MAX", 10)
    durable = DurableQueue(cell_database.writer_dsn, writer.sequencer, batch_size=1, linger_s=0)
    with durable.room(tenant_id, 6):
        pass
    with pytest.raises(ZeroDivisionError), durable.room(tenant_id, 4):
        raise ZeroDivisionError
    with pytest.raises(NotApplied) as refused, durable.room(tenant_id, 5):
        pass
    assert refused.value.verdict is Verdict.OVERLOADED
    with durable.room(own_tenant(cell_database.writer_dsn), 10):
        pass
    assert durable.status.depth == 16


def test_killed_in_the_middle(cell_database: Any, tmp_path: Path) -> None:
    """Every row exactly once, after a kill -9 with some rows settled and others in flight."""
    dsn = cell_database.writer_dsn
    count = 2000
    small = {"SEQUENCER_ASYNC_BATCH_SIZE": "40"}
    with running_cell(cell_database, tmp_path, **small) as cell:
        with cell.new_tenant().http() as http:
            ledger = http.post("/api/ledgers", json={"name": "L"}).json()["id"]
            account = {"name": "A", "currency": "USD", "ledger_id": ledger}
            debited, credited = (
                http.post("/api/ledger_accounts", json={**account, "normal_balance": side})
                .json()["id"]
                for side in ("debit", "credit")
            )  # fmt: skip
            resources = [
                {
                    "external_id": f"row {n}",
                    "ledger_entries": [
                        {"ledger_account_id": debited, "direction": "debit", "amount": 1},
                        # Each tenth is unbalanced.
                        {
                            "ledger_account_id": credited,
                            "direction": "credit",
                            "amount": 1 + (n % 10 == 0),
                        },
                    ],
                }
                for n in range(count)
            ]
            body = {
                "action_type": "create",
                "resource_type": "ledger_transaction",
                "resources": resources,
            }
            made = http.post("/api/bulk_requests", json=body)
            assert made.status_code == 201, made.text
        wait_for(dsn, lambda settled: settled > 100)
        cell.process.kill()
        cell.process.wait()
    settled = "SELECT count(*) FROM bulk_results WHERE status <> 'pending'"
    ((before,),) = rows(dsn, settled)
    assert 100 < before < count
    with running_cell(cell_database, tmp_path):
        wait_for(dsn, lambda settled: settled == count)
    found = rows(dsn, "SELECT status, success_count, failed_count FROM bulk_requests")
    assert found == [("completed", count * 9 // 10, count // 10)]
    names = rows(dsn, "SELECT external_id FROM ledger_transactions ORDER BY id")
    assert [name for (name,) in names] == [f"row {n}" for n in range(count) if n % 10]
    unmatched = """SELECT r.id FROM bulk_results r FULL JOIN ledger_transactions t
        ON t.tenant_id = r.tenant_id AND t.id = r.entity_id
        WHERE (t.id IS NULL) <> (r.status = 'failed')
            OR t.external_id <> r.request_params::jsonb ->> 'external_id'"""
    assert rows(dsn, unmatched) == []


def wait_for(dsn: str, is_enough: Any) -> None:
    query = "SELECT count(*) FROM bulk_results WHERE status <> 'pending'"
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_enough(rows(dsn, query)[0][0]):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
