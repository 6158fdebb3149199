"""Databases of the engine benchmark: one template with accounts, a fresh copy of it for each run.

A fresh copy makes runs equal: the same table sizes, the same state of every index. After a run
the books are checked by SQL, a path that shares nothing with the sequencer.
"""

import asyncio
import uuid
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql

from benchmarks.errors import Wrong
from cell.ledger.commands import CreateLedger, CreateLedgerAccount
from cell.ledger.model import Direction, TenantId
from cell.schema import ROLES, create_roles_and_database, migrate
from cell.sequencer import Sequencer
from cell.sequencer_limits import SequencerLimits
from cell.store import Store
from infra.local.postgres import Postgres

TEMPLATE: Final = "engine_template"
ACCOUNTS: Final = 10_000
PATIENT: Final = SequencerLimits(
    queue_commands_max=1 << 20,
    queue_commands_per_tenant_max=1 << 20,
    queue_wait_s=60.0,
    answer_wait_s=60.0,
)
"""Whoever waits is in the figures anyhow, and the machine may stand still."""

INVARIANTS: Final = """
WITH per_account AS (
    SELECT ledger_account_id,
        sum(amount) FILTER (WHERE direction = 'debit') AS debits,
        sum(amount) FILTER (WHERE direction = 'credit') AS credits,
        count(*) AS versions
    FROM ledger_entries GROUP BY ledger_account_id
)
SELECT
    (SELECT coalesce(sum(CASE direction WHEN 'debit' THEN amount ELSE -amount END), 0)
     FROM ledger_entries),
    (SELECT count(*) FROM ledger_account_balances b
     LEFT JOIN per_account e ON e.ledger_account_id = b.ledger_account_id
     WHERE b.posted_debits <> coalesce(e.debits, 0) OR b.posted_credits <> coalesce(e.credits, 0)
        OR b.lock_version <> coalesce(e.versions, 0)),
    (SELECT count(*) FROM ledger_transactions),
    (SELECT count(*) FROM idempotency_keys),
    (SELECT sum(last_seq - first_seq + 1) FROM journal)
        - (SELECT count(*) FROM ledger_accounts) - (SELECT count(*) FROM ledgers),
    (SELECT count(*) FROM (
        SELECT prev_hash, lag(hash) OVER (ORDER BY first_seq) AS hash_before, first_seq,
            lag(last_seq) OVER (ORDER BY first_seq) AS seq_before
        FROM journal
     ) chain WHERE prev_hash <> hash_before OR first_seq <> seq_before + 1)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDatabases:
    postgres: Postgres
    tenant_id: TenantId
    accounts: list[str]

    def fresh(self, name: str) -> None:
        """Make the database anew, a copy of the template."""
        self.drop(name)
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}")
        with psycopg.connect(self.postgres.superuser_dsn(), autocommit=True) as connection:
            connection.execute(
                create.format(*(sql.Identifier(each) for each in (name, TEMPLATE, ROLES[0])))
            )

    def drop(self, name: str) -> None:
        with psycopg.connect(self.postgres.superuser_dsn(), autocommit=True) as connection:
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(drop.format(sql.Identifier(name)))

    def writer_dsn(self, name: str) -> str:
        return self.postgres.dsn("cloister_writer", name)

    def owner_dsn(self, name: str) -> str:
        return self.postgres.dsn("cloister_owner", name)


def make_template(postgres: Postgres) -> EngineDatabases:
    """Roles, schema, one tenant with a ledger and its accounts; repeatable on an instance."""
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        connection.execute(drop.format(sql.Identifier(TEMPLATE)))
    asyncio.run(create_roles_and_database(postgres.superuser_dsn(), TEMPLATE, postgres.passwords))
    asyncio.run(migrate(postgres.dsn("cloister_owner", TEMPLATE)))
    tenant_id = TenantId(str(uuid.uuid4()))
    writer_dsn = postgres.dsn("cloister_writer", TEMPLATE)
    with psycopg.connect(writer_dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenant_heads (tenant_id, state, epoch) VALUES (%s, 'owned', 1)",
            (tenant_id,),
        )
    accounts = asyncio.run(create_accounts(writer_dsn, tenant_id))
    with psycopg.connect(postgres.superuser_dsn(TEMPLATE), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
    return EngineDatabases(postgres=postgres, tenant_id=tenant_id, accounts=accounts)


async def create_accounts(writer_dsn: str, tenant_id: TenantId) -> list[str]:
    """A ledger and its accounts, by the sequencer itself; the accounts' ids."""
    sequencer = Sequencer(Store(writer_dsn), PATIENT)
    await sequencer.open()

    async def create(command: CreateLedger | CreateLedgerAccount) -> str:
        applied = await sequencer.submit(tenant_id, command)
        row = applied.record.inserted[0]  # type: ignore[union-attr]  # no key, no replay
        return row.id  # type: ignore[union-attr]

    async with asyncio.TaskGroup() as group:
        sequencing = group.create_task(sequencer.run(), name="sequencer")
        ledger = await create(CreateLedger(name="Benchmark"))
        async with asyncio.TaskGroup() as creating:
            tasks = [
                creating.create_task(
                    create(
                        CreateLedgerAccount(
                            ledger_id=ledger,
                            name=f"Account {number}",
                            normal_balance=Direction.CREDIT if number % 2 else Direction.DEBIT,
                            currency="USD",
                            currency_exponent=2,
                        )
                    )
                )
                for number in range(ACCOUNTS)
            ]
        sequencer.stop()
        await sequencing
    return [task.result() for task in tasks]


def check_books(dsn: str, acknowledged: int) -> None:
    """Raises Wrong unless everything acknowledged is there, once, and every balance is right."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(INVARIANTS).fetchone()
    assert row is not None
    total, differing, transactions, keys, journaled, broken_links = row
    if total != 0 or differing != 0 or broken_links != 0:
        raise Wrong(
            f"the books are wrong: debits minus credits are {total}, {differing} accounts differ"
            f" from their entries, {broken_links} links of the hash chain are broken"
        )
    if not transactions == keys == journaled == acknowledged:
        raise Wrong(
            f"{acknowledged} acknowledged, but {transactions} transactions, {keys} keys and"
            f" {journaled} journal records"
        )
