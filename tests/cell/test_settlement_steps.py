"""Settlements of more entries than one command looks at, on a real database.

Method: a cell process gathers 5,994 entries in the background and is killed as soon as it says so;
its successor goes on. So it is while they are released, and a second settlement must find the very
same entries. The audit after the test compares what each settlement has summed up with what it
holds. At the end the plans: what gathering reads are ranges of indexes.
"""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import httpx
import psycopg
from cell_process import DEADLINE_S, Access, running_cell
from cell_writing import CREDIT, DEBIT, all_of, draft, own_tenant, rows, transfer, until, write

from cell import questions
from cell.batch import Applied
from cell.ledger import commands
from cell.ledger.model import SettlementStatus, Status, TenantId

TRANSACTIONS, ENTRIES = 6, 999
"""Entries on the settled account, of each transaction, of one unit each."""
TOTAL = TRANSACTIONS * ENTRIES
KEY_ID = "00000000-0000-7000-8000-000000000001"
PATH = "/api/ledger_account_settlements"


async def fill(dsn: str, tenant_id: TenantId) -> dict[str, str]:
    """Write the entries; the body of a settlement of all of them."""
    async with write(dsn) as writer:
        digest = hashlib.sha256(b"secret").hexdigest()
        await writer.apply(tenant_id, commands.CreateApiKey(id=KEY_ID, secret_sha256=digest))
        ledger_id = await writer.ledger(tenant_id)
        accounts = []
        for normal in (CREDIT, DEBIT):
            command = commands.CreateLedgerAccount(
                ledger_id=ledger_id,
                name="A",
                normal_balance=normal,
                currency="USD",
                currency_exponent=2,
            )
            accounts.append((await writer.apply(tenant_id, command)).inserted[0].id)
        settled, contra = accounts
        drafts = (draft(contra, DEBIT, ENTRIES), *[draft(settled, CREDIT, 1)] * ENTRIES)
        for _ in range(TRANSACTIONS):
            written = commands.CreateLedgerTransaction(entries=drafts, status=Status.POSTED)
            await writer.apply(tenant_id, written)
    return {"settled_ledger_account_id": settled, "contra_ledger_account_id": contra}


def ended(http: httpx.Client, id: str) -> dict[str, Any]:
    """The settlement, once nothing is left to do."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        answer = http.get(f"{PATH}/{id}")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        if found["status"] not in ("processing", "archiving"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {DEADLINE_S} s: {found}")


def test_killed_between_its_steps(cell_database: Any, tmp_path: Path) -> None:
    dsn = cell_database.writer_dsn
    tenant_id = own_tenant(dsn)
    body = asyncio.run(fill(dsn, tenant_id))

    def client(base_url: str) -> httpx.Client:
        access = Access(
            base_url=base_url, organization_id=tenant_id, api_key="secret", other_api_key=""
        )
        return access.http()

    with running_cell(cell_database, tmp_path) as cell, client(cell.base_url) as http:
        created = http.post(PATH, json=body).json()
        assert (created["status"], created["amount"]) == ("processing", None)
        cell.process.kill()
        cell.process.wait()
    with running_cell(cell_database, tmp_path) as cell, client(cell.base_url) as http:
        gathered = ended(http, created["id"])
        assert (gathered["status"], gathered["amount"]) == ("pending", TOTAL)
        assert held(dsn) == [(created["id"], TOTAL)]
        archived = http.patch(f"{PATH}/{created['id']}", json={"status": "archived"}).json()
        assert archived["status"] == "archiving"
        cell.process.kill()
        cell.process.wait()
    with running_cell(cell_database, tmp_path) as cell, client(cell.base_url) as http:
        assert ended(http, created["id"])["status"] == "archived"
        assert held(dsn) == []
        second = http.post(PATH, json={**body, "status": "posted"}).json()
        gathered = ended(http, second["id"])
        assert (gathered["status"], gathered["amount"]) == ("posted", TOTAL)
        assert held(dsn) == [(second["id"], TOTAL)]
    assert_ranges_of_indexes(cell_database.superuser_dsn, tenant_id, gathered)


async def test_posted_just_behind_the_last_step(cell_database: Any) -> None:
    """The step is held where its rows are not committed; the change is taken meanwhile."""
    dsn = cell_database.writer_dsn
    tenant_id = own_tenant(dsn)
    async with write(dsn, batch_size=1) as writer:
        settled, contra = await writer.accounts(tenant_id, 2)
        for _ in range(3):
            await writer.apply(tenant_id, transfer(contra, settled))
        made = commands.CreateLedgerAccountSettlement(
            settled_ledger_account_id=settled, contra_ledger_account_id=contra, entries_per_step=2
        )
        settlement = (await writer.apply(tenant_id, made)).inserted[0]
        assert settlement.status is SettlementStatus.PROCESSING
        step = commands.ContinueLedgerAccountSettlement(id=settlement.id, entries_per_step=2)
        post = commands.UpdateLedgerAccountSettlement(
            id=settlement.id, entries_per_step=2, status=SettlementStatus.POSTED
        )
        with psycopg.connect(cell_database.superuser_dsn) as holder:
            holder.execute("LOCK TABLE journal IN SHARE MODE")
            taken = [writer.sequencer.enqueue(tenant_id, each) for each in (step, post)]
            await until(lambda: not writer.sequencer.queue_depth, "both are taken")
        stepped, posted = await all_of(*taken)
        assert isinstance(stepped, Applied)
        assert stepped.record.updated[0].status is SettlementStatus.PENDING  # type: ignore[union-attr]
        assert isinstance(posted, Applied)
        assert posted.record.updated[0].status is SettlementStatus.POSTED  # type: ignore[union-attr]


def held(dsn: str) -> list[tuple[Any, ...]]:
    """How many entries each settlement holds, its own aside."""
    query = (
        "SELECT settlement_id::text, count(*) FROM settlement_entries"
        " WHERE settlement_id IS NOT NULL AND NOT is_own GROUP BY 1"
    )
    return rows(dsn, query)


OTHER_SETTLEMENTS = """
INSERT INTO settlement_entries
SELECT tenant_id, gen_random_uuid(), gen_random_uuid(), ledger_transaction_id,
    ('00000000-0000-4000-8000-' || lpad((n % 100)::text, 12, '0'))::uuid, direction, amount,
    effective_at_us, is_own, seq
FROM (SELECT * FROM settlement_entries LIMIT 1) one, generate_series(1, 100000) n
"""


def assert_ranges_of_indexes(dsn: str, tenant_id: str, settlement: dict[str, Any]) -> None:
    account_id = settlement["settled_ledger_account_id"]
    zero = "00000000-0000-0000-0000-000000000000"
    asked: tuple[tuple[str, tuple[Any, ...], str], ...] = (
        (questions.OPEN, (tenant_id, account_id, 5000), "settlement_entries_open"),
        (questions.HELD, (tenant_id, settlement["id"], 5000), "settlement_entries_settlement"),
        (
            questions.UNEXAMINED,
            (tenant_id, account_id, TRANSACTIONS, zero, TRANSACTIONS + 1, 5000),
            "ledger_entries_account",
        ),
    )
    with psycopg.connect(dsn) as connection:
        # Beside many other settlements; taken back with the end of the block.
        connection.execute(OTHER_SETTLEMENTS)
        connection.execute("ANALYZE settlement_entries, ledger_entries")
        for statement, parameters, index in asked:
            explained = connection.execute(f"EXPLAIN {statement}", parameters)  # type: ignore[arg-type]
            plan = "\n".join(line for (line,) in explained)
            assert index in plan, plan
            assert "Seq Scan" not in plan, plan
        connection.rollback()
