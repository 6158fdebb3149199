"""The rules of settlements: tables in order of precedence, then random histories.

Method: in a bank in memory; Hypothesis draws histories of postings, settlements of few entries a
step, their ends and their drafts, and a naive reading of what a settlement is says after each what
must be in it: the posted entries of the account before the bound, that no living settlement has.
"""

from typing import Any

import pytest
from cell_writing import CREDIT, DEBIT, draft, transfer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_bank import (
    ARCHIVED,
    FORBIDDEN,
    OTHER,
    PENDING,
    POSTED,
    START_US,
    UNKNOWN_ID,
    Bank,
    entries,
)

from cell.errors import NotFound, Unprocessable
from cell.ledger import commands
from cell.ledger.model import (
    Effects,
    LedgerAccountSettlement,
    LedgerEntry,
    SettledAccount,
    SettlementEntry,
    SettlementStatus,
    Status,
)

DRAFTING, PROCESSING = SettlementStatus.DRAFTING, SettlementStatus.PROCESSING
FAR_US = START_US + 10**12
SETTLED = (Unprocessable, "settled_ledger_account_id")
CONTRA = (Unprocessable, "contra_ledger_account_id")
IDS = (Unprocessable, "ledger_entry_ids")
STATUS = (Unprocessable, "status")
DAYS = tuple(START_US + n * 1000 for n in range(-3, 3))


class SettlingBank(Bank):
    """Settles ALICE, which is credit-normal, against CASH."""

    def settle(self, **fields: Any) -> LedgerAccountSettlement:
        settlement = self.apply(self.command(**fields)).inserted[0]
        assert isinstance(settlement, LedgerAccountSettlement)
        return settlement

    def command(self, **fields: Any) -> commands.CreateLedgerAccountSettlement:
        given = {
            "settled_ledger_account_id": self.alice,
            "contra_ledger_account_id": self.cash,
            "entries_per_step": 100,
            "effective_at_upper_bound_us": FAR_US,
            **fields,
        }
        return commands.CreateLedgerAccountSettlement(**given)

    def change(self, settlement: LedgerAccountSettlement, **fields: Any) -> Effects:
        return self.apply(self.change_command(settlement, **fields))

    def change_command(self, settlement: LedgerAccountSettlement, **fields: Any) -> Any:
        given = {"id": settlement.id, "entries_per_step": 100, **fields}
        return commands.UpdateLedgerAccountSettlement(**given)

    def go_on(self, settlement: LedgerAccountSettlement, steps_max: int = 1000) -> int:
        """Until there is nothing left to do, or so many steps; how many it were."""
        for steps in range(steps_max):
            command = commands.ContinueLedgerAccountSettlement(id=settlement.id, entries_per_step=2)
            if self.is_unchanged(self.apply(command)):
                return steps
        return steps_max

    def now(self, settlement: LedgerAccountSettlement) -> LedgerAccountSettlement:
        row: Any = self.working_set.rows[LedgerAccountSettlement][settlement.id]
        return row

    def held(self, settlement: LedgerAccountSettlement) -> set[str]:
        """Without its own entry."""
        rows: Any = self.working_set.rows[SettlementEntry].values()
        return {row.id for row in rows if row.settlement_id == settlement.id and not row.is_own}

    def entry_of(self, transaction_id: str) -> LedgerEntry:
        """The live entry on ALICE."""
        return next(e for e in self.live(transaction_id) if e.ledger_account_id == self.alice)


@pytest.fixture
def bank() -> SettlingBank:
    return SettlingBank()


def test_what_is_gathered_and_what_is_written(bank: SettlingBank) -> None:
    first, second = bank.deposit(300), bank.deposit(200, effective_at_us=FAR_US - 1)
    late = bank.deposit(50, effective_at_us=FAR_US)
    bank.deposit(999, metadata={})
    refunded = bank.create(transfer(bank.alice, bank.cash, 999))
    bank.apply(transfer(bank.cash, bank.alice, 7, PENDING))
    bank.apply(transfer(bank.cash, bank.alice, 7, ARCHIVED))
    settlement = bank.settle(description="d", metadata={"k": "v"})
    assert (settlement.status, settlement.amount) == (SettlementStatus.PENDING, 500)
    assert settlement.settlement_entry_direction is DEBIT
    assert (settlement.gathered_credits, settlement.gathered_debits) == (1499, 999)
    assert bank.entry_of(refunded).id in bank.held(settlement)
    assert {bank.entry_of(id).id for id in (first, second)} < bank.held(settlement)
    assert bank.entry_of(late).id not in bank.held(settlement)
    transaction = bank.transaction(settlement.ledger_transaction_id)
    assert (transaction.status, transaction.description) == (PENDING, "d")
    written = {e.ledger_account_id: (e.direction, e.amount) for e in bank.live(transaction.id)}
    assert written == {bank.alice: (DEBIT, 500), bank.cash: (CREDIT, 500)}

    own = bank.entry_of(transaction.id).id
    bank.change(settlement, status=SettlementStatus.POSTED)
    assert bank.now(settlement).status is SettlementStatus.POSTED
    assert bank.transaction(transaction.id).status is POSTED
    assert bank.amounts(bank.alice)[0] == 50
    rows: Any = bank.working_set.rows[SettlementEntry]
    assert rows[own].is_own
    assert rows[bank.entry_of(transaction.id).id].is_own
    assert bank.is_unchanged(bank.change(settlement, status=SettlementStatus.POSTED))
    # Its own entry is of no other settlement, whatever the bound.
    assert bank.held(bank.settle(effective_at_upper_bound_us=2 * FAR_US)) == {
        bank.entry_of(late).id
    }


def test_the_default_bound_is_the_time_of_the_write(bank: SettlingBank) -> None:
    bank.deposit(1)
    bank.deposit(2, effective_at_us=bank.stamp.at_us + 3)
    settlement = bank.settle(effective_at_upper_bound_us=None)
    assert settlement.effective_at_upper_bound_us == bank.stamp.at_us == settlement.created_at_us
    assert settlement.amount == 1


@pytest.mark.parametrize("net", [-5, 0, 5])
@pytest.mark.parametrize("normal", [CREDIT, DEBIT])
def test_directions(bank: SettlingBank, net: int, normal: Any) -> None:
    account = bank.account(bank.main, normal_balance=normal)
    up, down = (CREDIT, DEBIT) if normal is CREDIT else (DEBIT, CREDIT)
    for direction, amount in ((up, 7 + net), (down, 7)):
        other = DEBIT if direction is CREDIT else CREDIT
        drafts = (draft(account, direction, amount), draft(bank.bob, other, amount))
        bank.apply(entries(*drafts, status=POSTED))
    fields = {"settled_ledger_account_id": account, "status": SettlementStatus.POSTED}
    if net <= 0:
        assert bank.refused(bank.command(**fields)) == SETTLED
    settlement = bank.settle(**fields, allows_either_direction=True)
    assert settlement.settlement_entry_direction is (up if net < 0 else down)
    assert settlement.amount == abs(net)
    assert bank.amounts(account)[0] == 0


def test_refusals_in_order(bank: SettlingBank) -> None:
    def refused(**fields: Any) -> Any:
        return bank.refused(bank.command(**fields))

    for unknown in (UNKNOWN_ID, bank.closed, bank.foreign):
        assert refused(settled_ledger_account_id=unknown, contra_ledger_account_id=unknown) == (
            SETTLED
        )
        assert refused(contra_ledger_account_id=unknown) == CONTRA
    for other in (bank.alice, bank.elsewhere, bank.euro, bank.mills):
        assert refused(contra_ledger_account_id=other) == CONTRA
    assert refused() == SETTLED
    assert refused(allows_either_direction=True) == SETTLED, "nothing is there at all"
    for _ in range(2):
        bank.deposit(10**36 - 1)
    assert refused() == SETTLED
    skipping = bank.settle(skips_transaction=True, status=SettlementStatus.POSTED)
    assert (skipping.amount, skipping.ledger_transaction_id) == (2 * (10**36 - 1), None)


def test_the_state_machine(bank: SettlingBank) -> None:
    bank.deposit(5)
    pending = bank.settle()
    skips = (Unprocessable, "skip_settlement_ledger_transaction")
    assert bank.refused(bank.change_command(pending, skips_transaction=True)) == skips
    bank.change(pending, description="x", metadata={"k": "v"}, skips_transaction=False)
    assert (bank.now(pending).description, bank.now(pending).metadata) == ("x", {"k": "v"})
    bank.change(pending, status=SettlementStatus.ARCHIVED)
    assert bank.now(pending).status is SettlementStatus.ARCHIVED
    assert bank.transaction(pending.ledger_transaction_id).status is ARCHIVED
    assert not bank.held(pending)
    assert bank.is_unchanged(bank.change(pending, status=SettlementStatus.ARCHIVED))
    posting = bank.change_command(pending, status=SettlementStatus.POSTED)
    assert bank.refused(posting) == STATUS
    assert bank.refused(posting, OTHER) == (NotFound, None)

    posted = bank.settle(status=SettlementStatus.POSTED)
    assert bank.refused(bank.change_command(posted, status=SettlementStatus.ARCHIVED)) == STATUS
    bank.change(posted, description=None)
    assert bank.go_on(posted) == 0


def test_its_transaction_changes_through_it_alone(bank: SettlingBank) -> None:
    bank.deposit(5)
    settlement = bank.settle()
    id = str(settlement.ledger_transaction_id)
    drafts = transfer(bank.alice, bank.cash, 6).entries
    for fields in (
        {"status": POSTED},
        {"status": ARCHIVED},
        {"entries": drafts},
        {"effective_at_us": 1},
    ):
        assert bank.refused(commands.UpdateLedgerTransaction(id=id, **fields)) == FORBIDDEN
    bank.update(id, status=PENDING, description="mine", metadata={"k": "v"}, external_id="x")
    bank.change(settlement, status=SettlementStatus.POSTED)
    assert bank.is_unchanged(bank.update(id, status=POSTED))
    assert bank.transaction(id).external_id == "x"


def test_drafts(bank: SettlingBank) -> None:
    first, second = (bank.entry_of(bank.deposit(n)).id for n in (30, 4))
    unposted = bank.entry_of(bank.create(transfer(bank.cash, bank.alice, 9, PENDING))).id
    elsewhere = next(e.id for e in bank.live(bank.deposit(1)) if e.ledger_account_id == bank.cash)
    settlement = bank.settle(status=DRAFTING, effective_at_upper_bound_us=None)
    assert (settlement.amount, settlement.effective_at_upper_bound_us) == (None, None)

    def change(of: LedgerAccountSettlement = settlement, **fields: Any) -> Any:
        return commands.ChangeSettlementEntries(id=of.id, **fields)

    for wrong in (UNKNOWN_ID, elsewhere, unposted):
        assert bank.refused(change(added=(first, wrong))) == IDS
    posting = bank.change_command(settlement, status=SettlementStatus.POSTED)
    assert bank.refused(posting) == SETTLED, "it is empty"
    bank.apply(change(added=(first, second)))
    assert bank.is_unchanged(bank.apply(change(added=(second,), removed=(UNKNOWN_ID,))))
    rival = bank.settle(status=DRAFTING)
    assert bank.refused(change(rival, added=(second,))) == IDS
    bank.apply(change(removed=(first, elsewhere)))
    assert bank.settle().amount == 31, "what is free, but not the 4 of the draft"
    assert bank.refused(change(added=(first,))) == IDS
    bank.apply(posting)
    posted = bank.now(settlement)
    assert (posted.status, posted.amount) == (SettlementStatus.POSTED, 4)
    assert bank.refused(change(removed=(second,))) == STATUS
    bank.change(rival, status=SettlementStatus.ARCHIVED)
    assert bank.now(rival).status is SettlementStatus.ARCHIVED
    assert bank.refused(change(rival, added=())) == STATUS


def test_step_by_step(bank: SettlingBank) -> None:
    """What is written while it gathers is for the next one; a late end that fails archives it."""
    for _ in range(7):
        bank.deposit(10)
    settlement = bank.settle(entries_per_step=2)
    assert (settlement.status, settlement.amount) == (PROCESSING, None)
    posting = bank.change_command(settlement, status=SettlementStatus.POSTED)
    assert bank.refused(posting) == STATUS
    bank.deposit(1000)
    assert bank.go_on(settlement) > 2
    assert (bank.now(settlement).amount, len(bank.held(settlement))) == (70, 7)
    bank.change(settlement, status=SettlementStatus.ARCHIVED, entries_per_step=3)
    assert bank.now(settlement).status is SettlementStatus.ARCHIVING
    assert len(bank.held(settlement)) == 4
    assert bank.go_on(settlement) == 3
    assert bank.now(settlement).status is SettlementStatus.ARCHIVED

    bank.apply(transfer(bank.alice, bank.cash, 5000))
    hopeless = bank.settle(entries_per_step=2)
    bank.go_on(hopeless)
    assert (bank.now(hopeless).status, bank.now(hopeless).amount) == (
        SettlementStatus.ARCHIVED,
        None,
    )
    stopped = bank.settle(entries_per_step=2)
    bank.change(stopped, status=SettlementStatus.ARCHIVED)
    assert not bank.held(stopped)
    assert bank.settle(allows_either_direction=True).amount == 5000 - 1070


# --- random histories ---------------------------------------------------------------------------


class History(SettlingBank):
    """Checks each settlement against a naive reading of what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.settlements: list[LedgerAccountSettlement] = []
        self.drafted: dict[str, set[str]] = {}

    def free(self) -> list[LedgerEntry]:
        """Posted entries on ALICE in no living settlement."""
        own = {self.now(each).ledger_transaction_id for each in self.settlements}
        taken: set[str] = set().union(*map(self.held, self.settlements))
        return [
            entry
            for entry in self.working_set.entries.values()
            if entry is not None
            and entry.ledger_account_id == self.alice
            and entry.status is POSTED
            and entry.discarded_at_us is None
            and entry.ledger_transaction_id not in own
            and entry.id not in taken
        ]

    def post(self, a: int, b: int) -> None:
        sides = (self.cash, self.alice) if a % 3 else (self.alice, self.cash)
        status = (POSTED, POSTED, PENDING)[b % 3]
        self.apply(transfer(*sides, a % 10, status, effective_at_us=DAYS[b % len(DAYS)]))

    def post_pending(self, a: int, _b: int) -> None:
        own = {self.now(each).ledger_transaction_id for each in self.settlements}
        pending = [
            t.id
            for t in self.working_set.transactions.values()
            if t is not None and t.status is PENDING and t.id not in own
        ]
        if pending:
            self.update(pending[a % len(pending)], status=POSTED)

    def gather(self, a: int, b: int) -> None:
        bound = (None, *DAYS, FAR_US)[a % (len(DAYS) + 2)]
        command = self.command(
            entries_per_step=b % 4 + 1,
            effective_at_upper_bound_us=bound,
            allows_either_direction=bool(a % 2),
            status=SettlementStatus.POSTED if b % 5 == 0 else SettlementStatus.PENDING,
        )
        bound_us = self.stamp.at_us + 1 if bound is None else bound
        expected = [e for e in self.free() if e.effective_at_us < bound_us]
        net = sum(e.amount if e.direction is CREDIT else -e.amount for e in expected)
        try:
            settlement = self.settle(**_fields(command))
        except Unprocessable:
            assert net <= 0
            assert not command.allows_either_direction or not any(e.amount for e in expected)
            return
        self.settlements.append(settlement)
        while self.now(settlement).status is PROCESSING:
            self.post(a, b)
            self.go_on(settlement, 1)
        if self.now(settlement).amount is None:
            assert net <= 0
            self.go_on(settlement)
            assert self.now(settlement).status is SettlementStatus.ARCHIVED
            assert not self.held(settlement)
            return
        assert self.held(settlement) == {e.id for e in expected}
        assert self.now(settlement).amount == abs(net)
        assert (self.now(settlement).status.value) == command.status.value

    def end(self, a: int, b: int) -> None:
        if not self.settlements:
            return
        settlement = self.settlements[a % len(self.settlements)]
        status = SettlementStatus.POSTED if b % 3 == 0 else SettlementStatus.ARCHIVED
        before, held = self.now(settlement), self.held(settlement)
        try:
            self.change(settlement, status=status, entries_per_step=b % 3 + 1)
        except Unprocessable as refusal:
            assert refusal.parameter in ("status", "settled_ledger_account_id")
            return
        self.go_on(settlement)
        after = self.now(settlement)
        assert after.status is status
        if after.status is not before.status:
            assert self.held(settlement) == (held if status is SettlementStatus.POSTED else set())

    def draft(self, a: int, b: int) -> None:
        free = sorted(entry.id for entry in self.free())
        settlement = self.settle(status=DRAFTING)
        self.settlements.append(settlement)
        added = tuple(free[a % (len(free) + 1) :: 2])
        removed = added[: b % 3]
        for fields in ({"added": added}, {"removed": removed}):
            self.apply(commands.ChangeSettlementEntries(id=settlement.id, **fields))
        assert self.held(settlement) == set(added) - set(removed)

    def check(self) -> None:
        rows: Any = self.working_set.rows
        for settlement in map(self.now, self.settlements):
            held = [rows[SettlementEntry][id] for id in self.held(settlement)]
            credits = sum(row.amount for row in held if row.direction is CREDIT)
            debits = sum(row.amount for row in held if row.direction is DEBIT)
            assert (settlement.gathered_credits, settlement.gathered_debits) == (credits, debits)
            if settlement.ledger_transaction_id is not None:
                transaction = self.transaction(settlement.ledger_transaction_id)
                assert transaction.status == Status(settlement.status.value)
        account = rows[SettledAccount].get(self.alice)
        if account is not None:
            known = rows[SettlementEntry]
            for entry in self.free():
                assert entry.id in known or entry.lock_version > account.examined_version


def _fields(command: commands.CreateLedgerAccountSettlement) -> dict[str, Any]:
    return {name: getattr(command, name) for name in command.__struct_fields__}


STEPS = ("post", "post", "post", "post_pending", "gather", "gather", "end", "draft")


@settings(
    max_examples=60,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 63), st.integers(0, 63)),
        min_size=20,
        max_size=40,
    )
)
def test_every_history(steps: list[tuple[str, int, int]]) -> None:
    history = History()
    for name, a, b in steps:
        getattr(history, name)(a, b)
        history.check()
