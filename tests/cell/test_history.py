"""Balances as of another time and version, in the database.

Method: a seeded history over many days, with a clock of its own: dated today, earlier, later,
before 1970; posted, archived, re-dated and rewritten, on the same day and on others. Then the
functions are asked about every version and every time at which something changes, and must answer
what adding up the entries one by one gives. The audit after the test compares the derived tables.
"""

import random
from collections.abc import Iterable
from typing import Any

import psycopg
import pytest
from cell_writing import CREDIT, DEBIT, Clock, all_of, draft, execute, rows, transfer, write

from cell.ledger import commands
from cell.ledger.history import DAY_US
from cell.ledger.model import Direction, LedgerEntry, Status, TenantId
from cell.schema import MIGRATIONS

HOUR_US = DAY_US // 24
STEPS_US = (1_000, HOUR_US, 9 * HOUR_US, 2 * DAY_US)
PENDING, POSTED, ARCHIVED = Status.PENDING, Status.POSTED, Status.ARCHIVED

_ENTRIES = """
SELECT status, direction, amount, effective_at_us, lock_version, discarded_lock_version
FROM ledger_entries WHERE tenant_id = %s AND ledger_account_id = %s
"""
_BEFORE = """
SELECT pending_debits::text, pending_credits::text, posted_debits::text, posted_credits::text
FROM unnest(%s::bigint[]) WITH ORDINALITY AS b (bound_us, place)
CROSS JOIN LATERAL balances_before(%s, %s, bound_us) ORDER BY place
"""
_AT_VERSION = _BEFORE.replace("balances_before", "balances_at_version")


class History:
    """Random commands of one tenant."""

    def __init__(self, tenant_id: TenantId, accounts: list[str], seed: int) -> None:
        self.tenant_id = tenant_id
        self.accounts = accounts
        self.draw = random.Random(seed)
        self.clock = Clock()
        self.pending: list[str] = []

    def effective_at_us(self) -> int | None:
        at_us = self.clock.now_us + self.draw.randrange(-4 * DAY_US, 4 * DAY_US)
        return self.draw.choice((None, None, at_us, at_us - at_us % DAY_US, -HOUR_US))

    def drafts(self) -> tuple[commands.EntryDraft, ...]:
        one, two = self.draw.sample(self.accounts, 2)
        amount = self.draw.choice((0, 1, 7, 10**30))
        return (
            draft(one, DEBIT, amount, effective_at_us=self.effective_at_us()),
            draft(two, CREDIT, amount),
        )

    def command(self) -> commands.Command:
        if self.pending and self.draw.random() < 0.5:
            id = self.pending.pop(self.draw.randrange(len(self.pending)))
            return self.draw.choice(
                (
                    commands.UpdateLedgerTransaction(id=id, status=POSTED),
                    commands.UpdateLedgerTransaction(id=id, status=ARCHIVED),
                    commands.UpdateLedgerTransaction(id=id, entries=self.drafts()),
                    commands.UpdateLedgerTransaction(id=id, entries=self.drafts(), status=POSTED),
                    commands.UpdateLedgerTransaction(id=id, effective_at_us=self.clock.now_us),
                )
            )
        status = self.draw.choice((PENDING, PENDING, POSTED, ARCHIVED))
        return commands.CreateLedgerTransaction(
            entries=self.drafts(), status=status, effective_at_us=self.effective_at_us()
        )

    def learn(self, record: Any) -> None:
        changed = (*record.inserted, *record.updated)
        self.pending += {
            row.ledger_transaction_id
            for row in changed
            if isinstance(row, LedgerEntry)
            and row.status is PENDING
            and row.discarded_at_us is None
        }


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_time_and_every_version(
    cell_database: Any, tenant_id: TenantId, seed: int
) -> None:
    history = History(tenant_id, [], seed)
    async with write(cell_database.writer_dsn, history.clock) as writer:
        history.accounts = await writer.accounts(tenant_id, 3)
        for _ in range(40):
            history.clock.now_us += history.draw.choice(STEPS_US)
            # Some of them share a batch.
            batch = [history.command() for _ in range(history.draw.choice((1, 1, 6)))]
            for record in await all_of(*(writer.apply(tenant_id, each) for each in batch)):
                history.learn(record)
    dsn = cell_database.superuser_dsn
    assert rows(dsn, "SELECT FROM ledger_account_day_shifts WHERE posted_debits <> 0")
    assert rows(dsn, "SELECT FROM ledger_account_bare_versions")
    for account in history.accounts:
        require_right(cell_database.reader_dsn, tenant_id, account)


def require_right(dsn: str, tenant_id: TenantId, account: str) -> None:
    """As the reader, that is under row-level security."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT set_config('cloister.tenant_id', %s, true)", (tenant_id,))
        entries = connection.execute(_ENTRIES, (tenant_id, account)).fetchall()
        times = {entry[3] for entry in entries}
        midnights = {at_us - at_us % DAY_US + DAY_US for at_us in times}
        halves = {at_us + DAY_US // 2 + 1 for at_us in midnights}
        bounds = sorted({t + after for t in times | midnights | halves for after in (0, 1)})
        found = connection.execute(_BEFORE, (bounds, tenant_id, account)).fetchall()
        live = [entry for entry in entries if entry[5] is None]
        for bound, sums in zip(bounds, found, strict=True):
            assert sums == added(entry for entry in live if entry[3] < bound), bound
        versions = list(range(max(entry[4] for entry in entries) + 3))
        found = connection.execute(_AT_VERSION, (versions, tenant_id, account)).fetchall()
        for version, sums in zip(versions, found, strict=True):
            present = (e for e in entries if e[4] <= version and (e[5] is None or e[5] > version))
            assert sums == added(present), version
        connection.execute("SELECT set_config('cloister.tenant_id', %s, true)", (account,))
        hidden = connection.execute(_BEFORE, ([bounds[-1]], tenant_id, account)).fetchall()
        assert hidden == [("0", "0", "0", "0")], "another tenant sees nothing"


def added(entries: Iterable[tuple[Any, ...]]) -> tuple[str, ...]:
    sums = {(status, direction): 0 for status in Status for direction in Direction}
    for status, direction, amount, *_ in entries:
        sums[status, direction] += int(amount)
    shown = ((PENDING, DEBIT), (PENDING, CREDIT), (POSTED, DEBIT), (POSTED, CREDIT))
    return tuple(str(sums[place]) for place in shown)


async def test_what_is_dated_as_it_is_written_costs_nothing(
    cell_database: Any, tenant_id: TenantId
) -> None:
    clock = Clock()
    async with write(cell_database.writer_dsn, clock) as writer:
        cash, alice = await writer.accounts(tenant_id, 2)
        for status in Status:
            created = await writer.apply(tenant_id, transfer(cash, alice, 5, status))
        clock.now_us += DAY_US
        created = await writer.apply(tenant_id, transfer(cash, alice, 5, PENDING))
        clock.now_us += HOUR_US
        post = commands.UpdateLedgerTransaction(id=created.inserted[0].id, status=POSTED)
        await writer.apply(tenant_id, post)
        for table in ("ledger_account_day_shifts", "ledger_account_bare_versions"):
            assert rows(cell_database.superuser_dsn, f"SELECT * FROM {table}") == []
        # Posted on another day than it was written: two days of each account.
        created = await writer.apply(tenant_id, transfer(cash, alice, 5, PENDING))
        clock.now_us += DAY_US
        post = commands.UpdateLedgerTransaction(id=created.inserted[0].id, status=POSTED)
        await writer.apply(tenant_id, post)
    shifts = rows(cell_database.superuser_dsn, "SELECT * FROM ledger_account_day_shifts")
    assert len(shifts) == 4


async def test_the_migration_derives_the_shifts_of_what_is_there(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """The same statement as in the migration, on a history the writer has kept the shifts of."""
    history = History(tenant_id, [], 3)
    async with write(cell_database.writer_dsn, history.clock) as writer:
        history.accounts = await writer.accounts(tenant_id, 2)
        for _ in range(30):
            history.clock.now_us += history.draw.choice(STEPS_US)
            history.learn(await writer.apply(tenant_id, history.command()))
    filling = "INSERT INTO ledger_account_day_shifts"
    (text,) = (text for _, text in MIGRATIONS if filling in text)
    start = text.index(filling)
    execute(cell_database.superuser_dsn, "DELETE FROM ledger_account_day_shifts")
    execute(cell_database.superuser_dsn, text[start : text.index(";", start)])
