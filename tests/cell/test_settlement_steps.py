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
from cell_writing import CREDIT, DEBIT, draft, own_tenant, rows, write

from cell import questions
from cell.ledger import commands
from cell.ledger.model import Status, TenantId

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
