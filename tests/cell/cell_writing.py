"""Sequencers on real databases and commands in few words, for the cell's tests."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from cell.batch import Applied, Idempotency, Replayed
from cell.ledger import commands
from cell.ledger.model import Direction, Status, TenantId
from cell.reads import Reader
from cell.sequencer import Sequencer
from cell.sequencer_limits import SequencerLimits
from cell.store import Store

DEADLINE_S = 120.0
LOCK_TIMEOUT = "-c lock_timeout=10s"
"""A test that waits for itself, with the event loop in its own hands, must not do so for ever."""
API_KEY = str(uuid.UUID(int=7))
ALL_ROWS = (
    "tenant_heads, journal, ledgers, ledger_accounts, ledger_account_balances,"
    " ledger_transactions, ledger_entries, idempotency_keys"
)
"""Tables to empty after rows were changed behind the cell's back, as no audit would pass them."""
DEBIT, CREDIT = Direction.DEBIT, Direction.CREDIT


@dataclass
class Clock:
    """Microseconds since 1970; stands still until it is moved."""

    now_us: int = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.now_us


@dataclass
class Writing:
    """A sequencer that runs in a task."""

    sequencer: Sequencer
    running: "asyncio.Task[None]"

    async def outcome(
        self,
        tenant_id: TenantId,
        command: commands.Command,
        key: str | None = None,
        api_key: str = API_KEY,
    ) -> Applied | Replayed:
        idempotency = None if key is None else Idempotency(api_key_id=api_key, key=key)
        async with asyncio.timeout(DEADLINE_S):
            return await self.sequencer.submit(tenant_id, command, idempotency)

    async def apply(self, *submission: Any, **options: Any) -> Any:
        """The record of the command; as `outcome`."""
        outcome = await self.outcome(*submission, **options)
        assert isinstance(outcome, Applied), outcome
        return outcome.record

    async def ledger(self, tenant_id: TenantId, name: str = "Main") -> str:
        record = await self.apply(tenant_id, commands.CreateLedger(name=name))
        return str(record.inserted[0].id)

    async def account(self, tenant_id: TenantId, ledger_id: str, **fields: Any) -> str:
        given = {"name": "Account", "normal_balance": CREDIT, "currency": "USD", **fields}
        command = commands.CreateLedgerAccount(
            **{"ledger_id": ledger_id, "currency_exponent": 2, **given}
        )
        return str((await self.apply(tenant_id, command)).inserted[0].id)

    async def category(self, tenant_id: TenantId, ledger_id: str, **fields: Any) -> str:
        given = {"name": "Category", "normal_balance": CREDIT, "currency": "USD", **fields}
        command = commands.CreateLedgerAccountCategory(
            **{"ledger_id": ledger_id, "currency_exponent": 2, **given}
        )
        return str((await self.apply(tenant_id, command)).inserted[0].id)

    async def accounts(self, tenant_id: TenantId, count: int, ledger_id: str = "") -> list[str]:
        """Ids of new accounts, of a new ledger unless one is given."""
        ledger_id = ledger_id or await self.ledger(tenant_id)
        names = [f"Account {number}" for number in range(count)]
        return await asyncio.gather(*(self.account(tenant_id, ledger_id, name=n) for n in names))


@contextlib.asynccontextmanager
async def write(
    dsn: str, now_us: Callable[[], int] | None = None, **limits: Any
) -> AsyncIterator[Writing]:
    """A sequencer on the database that runs for as long as the block; then it drains and stops.

    However slow the machine is, no command waits too long, unless a test is about that.
    """
    patient = {"queue_wait_s": DEADLINE_S, "answer_wait_s": DEADLINE_S}
    sequencer = Sequencer(Store(dsn), SequencerLimits(**patient | limits), now_us)
    await sequencer.open()
    running = asyncio.create_task(sequencer.run(), name="sequencer")
    try:
        yield Writing(sequencer, running)
    finally:
        sequencer.stop()
        async with asyncio.timeout(DEADLINE_S):
            await running


@contextlib.asynccontextmanager
async def read(dsn: str) -> AsyncIterator[Reader]:
    reader = Reader(dsn, pool_min=1, pool_max=1)
    await reader.open()
    try:
        yield reader
    finally:
        await reader.close()


async def all_of(*waiting: Awaitable[Any]) -> list[Any]:
    """The outcome of each, refusals among them; started at once, in order."""
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.gather(*waiting, return_exceptions=True)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110  # conditions of any kind, with a deadline
                await asyncio.sleep(0.002)
    except TimeoutError as error:
        raise AssertionError(f"not within {DEADLINE_S} s: {what}") from error


def own_tenant(dsn: str, tenant_id: str | None = None, epoch: int = 1) -> TenantId:
    """A tenant that the cell owns, as the control plane would have it provisioned."""
    tenant_id = tenant_id or str(uuid.uuid4())
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenant_heads (tenant_id, state, epoch) VALUES (%s, 'owned', %s)",
            (tenant_id, epoch),
        )
    return TenantId(tenant_id)


def draft(account_id: str, direction: Direction, amount: int = 1, **fields: Any) -> Any:
    return commands.EntryDraft(
        ledger_account_id=account_id, direction=direction, amount=amount, **fields
    )


def transfer(
    debited: str, credited: str, amount: int = 1, status: Status = Status.POSTED, **fields: Any
) -> commands.CreateLedgerTransaction:
    entries = (draft(debited, DEBIT, amount), draft(credited, CREDIT, amount))
    return commands.CreateLedgerTransaction(entries=entries, status=status, **fields)


def rows(dsn: str, query: Any, *parameters: Any) -> list[tuple[Any, ...]]:
    """What SQL sees."""
    with psycopg.connect(dsn, autocommit=True, options=LOCK_TIMEOUT) as connection:
        return connection.execute(query, parameters).fetchall()


def execute(dsn: str, statement: Any, *parameters: Any) -> None:
    with psycopg.connect(dsn, autocommit=True, options=LOCK_TIMEOUT) as connection:
        connection.execute(statement, parameters)
