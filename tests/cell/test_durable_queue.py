"""The durable queue: every row that was accepted is applied once, or fails once, come what may.

Method: bulk requests of commands put into a real database by a sequencer, drained in the same
process while tenants are fenced, moved and busy; and a cell's process killed in the middle of 2,000
rows. What became of the rows is read from the tables; the audit afterwards executes all of it anew.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
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
async def draining(
    dsn: str, writer: Writing, batch_size: int = 20, linger_s: float = 0.01
) -> AsyncIterator[DurableQueue]:
    durable = DurableQueue(dsn, writer.sequencer, batch_size=batch_size, linger_s=linger_s)
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


@pytest.fixture
def one_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is the first one, and no other in the time of a test."""
    monkeypatch.setattr("cell.durable_queue.SURVEY_INTERVAL_S", 3600.0)


@pytest.mark.usefixtures("one_survey")
async def test_what_had_no_room_does_not_wait_for_a_survey(
    cell_database: Any, writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = cell_database.writer_dsn
    tenants = [own_tenant(dsn) for _ in range(2)]
    busy = tenants[0]
    for tenant_id in tenants:
        pair = await writer.accounts(tenant_id, 2)
        await queue(writer, tenant_id, *[transfer(*pair)] * 12)
    enqueue = writer.sequencer.enqueue
    refusals = 0

    def refuse_the_busy(tenant_id: TenantId, *given: Any) -> Any:
        nonlocal refusals
        if tenant_id == busy and refusals < 3:
            refusals += 1
            raise NotApplied(Verdict.OVERLOADED, "no room")
        return enqueue(tenant_id, *given)

    monkeypatch.setattr(writer.sequencer, "enqueue", refuse_the_busy)
    async with draining(dsn, writer) as durable:
        # The busy one comes first in every round, and keeps the other from nothing.
        for tenant_id in tenants:
            durable.wake(tenant_id)
        await until(lambda: durable.status.successful == 24, "drained")
    assert refusals == 3
    settled = "SELECT max(updated_at_us) FROM bulk_results WHERE tenant_id = %s"
    (((of_busy,),), ((of_other,),)) = (rows(dsn, settled, each) for each in tenants)
    assert of_other < of_busy
    order = "SELECT id FROM bulk_results WHERE tenant_id = %s ORDER BY entity_id"
    ids = rows(dsn, order, busy)
    assert ids == sorted(ids)


@pytest.mark.usefixtures("one_survey")
async def test_the_first_row_waits_for_company(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    """Until there is a batch, however long that takes, or for no longer than is set."""
    dsn = cell_database.writer_dsn
    pair = await writer.accounts(tenant_id, 2)

    async def accept(durable: DurableQueue) -> None:
        with durable.room(tenant_id, 1):
            await queue(writer, tenant_id, transfer(*pair))
        durable.wake(tenant_id)

    async with draining(dsn, writer, batch_size=3, linger_s=3600.0) as durable:
        for _ in range(3):
            assert durable.status.successful == 0
            await accept(durable)
        await until(lambda: durable.status.successful == 3, "a batch is applied")
    for linger_s in (0.2, 0.0):
        async with draining(dsn, writer, batch_size=3, linger_s=linger_s) as durable:
            await accept(durable)
            await until(lambda: durable.status.successful == 1, "one is applied")
            assert durable.status.waited_s >= linger_s


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


BURST = 200


def test_metrics_say_how_many_were_applied_in_time(cell_database: Any, tmp_path: Path) -> None:
    """Method: a burst of `Prefer: respond-async` on an ordinary cell; what its histogram says."""
    with (
        running_cell(cell_database, tmp_path) as cell,
        cell.new_tenant().http(headers={"prefer": "respond-async"}) as http,
        cell.operator() as operator,
    ):
        ledger = http.post("/api/ledgers", json={"name": "L"}).json()["id"]
        account = {"name": "A", "currency": "USD", "ledger_id": ledger}
        made = [
            http.post("/api/ledger_accounts", json={**account, "normal_balance": side})
            for side in ("debit", "credit")
        ]
        entries = [
            {"ledger_account_id": one.json()["id"], "direction": side, "amount": 1}
            for one, side in zip(made, ("debit", "credit"), strict=True)
        ]

        def post(_: int) -> int:
            body = {"status": "posted", "ledger_entries": entries}
            return http.post("/api/ledger_transactions", json=body).status_code

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(post, range(BURST))) == {202}
        wait_for(cell_database.writer_dsn, lambda settled: settled == BURST)
        deadline_s = time.monotonic() + DEADLINE_S
        # Counted as soon as the drainer has heard of the commit.
        while applied(operator, "+Inf") < BURST:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        assert applied(operator, "60.0") == BURST
        assert 0.9 * BURST <= applied(operator, "1.0") <= BURST
        assert applied(operator, "0.025") <= applied(operator, "1.0")


def applied(operator: httpx.Client, within_s: str) -> float:
    """Rows applied within that time of their acceptance, by the cell's metrics."""
    name = f'cloister_cell_async_wait_seconds_bucket{{le="{within_s}"}}'
    (line,) = [line for line in operator.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(line.removeprefix(name))


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
