"""A small bank in memory for tests of the rules: commands in, and what has become of the rows."""

from typing import Any

import pytest
from cell_writing import CREDIT, DEBIT, transfer
from complete_state import CompleteWorkingSet

from cell.errors import ApiError, BalanceLockBroken, NotFound, Unprocessable
from cell.ids import IdSource
from cell.ledger import balances, commands, rules
from cell.ledger.model import AccountBalances, Effects, Stamp, Status, TenantId
from cell.state import TenantView, WorkingSet

TENANT = TenantId("00000000-0000-4000-8000-000000000001")
OTHER = TenantId("00000000-0000-4000-8000-000000000002")
UNKNOWN_ID = "00000000-0000-7000-8000-00000000ffff"
START_US = 1_700_000_000_000_000
PENDING, POSTED, ARCHIVED = Status.PENDING, Status.POSTED, Status.ARCHIVED

NOT_FOUND = (NotFound, "ledger_entries")
BAD_ENTRIES = (Unprocessable, "ledger_entries")
BROKEN_LOCK = (BalanceLockBroken, "ledger_entries")
TAKEN = (Unprocessable, "external_id")
FORBIDDEN = (Unprocessable, "ledger_transaction")


class Book:
    """A ledger in memory, and what has been done to it."""

    def __init__(self) -> None:
        self.working_set = CompleteWorkingSet()
        self.ids = IdSource(random_bytes=bytes)
        self.stamp = Stamp(0, START_US, "")

    def apply(self, command: Any, tenant_id: TenantId = TENANT) -> Effects:
        at_us = self.stamp.at_us + 1
        self.stamp = Stamp(self.stamp.seq + 1, at_us, self.ids.draw(at_us))
        effects = rules.apply(command, TenantView(tenant_id, self.working_set), self.stamp)
        if not self.is_unchanged(effects):
            self.working_set.commit(effects)
        return effects

    def is_unchanged(self, effects: Effects) -> bool:
        return (effects.inserted or effects.updated)[0].seq != self.stamp.seq

    def create(self, command: Any, tenant_id: TenantId = TENANT) -> str:
        return str(self.apply(command, tenant_id).inserted[0].id)

    def ledger(self, tenant_id: TenantId = TENANT) -> str:
        return self.create(commands.CreateLedger(name="Main"), tenant_id)

    def account(self, ledger_id: str, tenant_id: TenantId = TENANT, **fields: Any) -> str:
        given = {"normal_balance": CREDIT, "currency": "USD", "currency_exponent": 2, **fields}
        command = commands.CreateLedgerAccount(ledger_id=ledger_id, name="A", **given)
        return self.create(command, tenant_id)

    def balances(self, account_id: str) -> AccountBalances:
        return self.working_set.balances[account_id]

    def version(self, account_id: str) -> int:
        return self.balances(account_id).lock_version

    def transaction(self, id: str) -> Any:
        return self.working_set.transactions[id]

    def live(self, id: str) -> Any:
        return self.working_set.live_entries[id]

    def amounts(self, account_id: str) -> tuple[int, int, int]:
        """Posted, pending, available."""
        account = self.working_set.accounts[account_id]
        assert account is not None
        of = (self.balances(account_id), account.normal_balance)
        kinds = (balances.posted, balances.pending, balances.available)
        return tuple(kind(*of).amount for kind in kinds)

    def refused(self, command: Any, tenant_id: TenantId = TENANT) -> tuple[type, str | None]:
        before = everything(self.working_set)
        with pytest.raises(ApiError) as refusal:
            self.apply(command, tenant_id)
        assert everything(self.working_set) == before, "a refusal left something behind"
        return type(refusal.value), refusal.value.parameter


def everything(working_set: WorkingSet) -> Any:
    kinds = ("ledgers", "accounts", "balances", "transactions", "entries", "live_entries")
    rows = {kind: dict(rows) for kind, rows in working_set.rows.items() if rows}
    return {kind: dict(getattr(working_set, kind)) for kind in kinds} | rows


class Bank(Book):
    """CASH (debit-normal), ALICE and BOB (credit-normal) in USD; a second ledger; EUR."""

    def __init__(self) -> None:
        super().__init__()
        self.main = self.ledger()
        self.cash = self.account(self.main, normal_balance=DEBIT)
        self.alice = self.account(self.main)
        self.bob = self.account(self.main)
        self.euro = self.account(self.main, currency="EUR")
        self.mills = self.account(self.main, currency_exponent=3)
        self.closed = self.account(self.main)
        self.apply(commands.DeleteLedgerAccount(id=self.closed))
        self.second = self.ledger()
        self.elsewhere = self.account(self.second)
        self.foreign = self.account(self.ledger(OTHER), OTHER)

    def deposit(self, amount: int, **fields: Any) -> str:
        return self.create(transfer(self.cash, self.alice, amount, POSTED, **fields))

    def update(self, id: str, **fields: Any) -> Effects:
        return self.apply(commands.UpdateLedgerTransaction(id=id, **fields))


def entries(*drafts: Any, **fields: Any) -> commands.CreateLedgerTransaction:
    return commands.CreateLedgerTransaction(entries=drafts, **fields)
