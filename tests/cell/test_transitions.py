"""The rules of a transaction's life: the state machine, edits, balance locks, lock versions.

Method: tables over a small bank in memory; every transition of the API reference (§6.1 to §6.4) is
walked, and what it leaves behind is looked at.
"""

from typing import Any

import pytest
from cell_writing import CREDIT, DEBIT, draft, transfer
from msgspec.structs import asdict, replace
from small_bank import (
    ARCHIVED,
    BAD_ENTRIES,
    BROKEN_LOCK,
    FORBIDDEN,
    PENDING,
    POSTED,
    Bank,
    entries,
    everything,
)

from cell.ledger import commands
from cell.ledger.commands import BalanceLock
from cell.ledger.model import Status


@pytest.fixture
def bank() -> Bank:
    return Bank()


# --- the state machine (§6.1, §6.2) --------------------------------------------------------------


@pytest.mark.parametrize("status", list(Status))
def test_creation_in_any_status(bank: Bank, status: Status) -> None:
    id = bank.create(transfer(bank.cash, bank.alice, 5, status))
    created = bank.transaction(id)
    assert created.version == 0
    assert created.posted_at_us == (bank.stamp.at_us if status is POSTED else None)
    assert {entry.status for entry in bank.live(id)} == {status}
    counts = status is not ARCHIVED
    assert bank.version(bank.alice) == counts
    assert bank.amounts(bank.alice)[1] == (5 if counts else 0)


TRANSITIONS = {
    (PENDING, PENDING): "nothing",
    (PENDING, POSTED): "change",
    (PENDING, ARCHIVED): "change",
    (POSTED, PENDING): "refused",
    (POSTED, POSTED): "nothing",
    (POSTED, ARCHIVED): "refused",
    (ARCHIVED, PENDING): "refused",
    (ARCHIVED, POSTED): "refused",
    (ARCHIVED, ARCHIVED): "nothing",
}


@pytest.mark.parametrize(("before", "after"), TRANSITIONS, ids=lambda s: str(s))
def test_transitions(bank: Bank, before: Status, after: Status) -> None:
    id = bank.create(transfer(bank.cash, bank.alice, 5, before))
    old = bank.live(id)
    versions = bank.version(bank.alice)
    change = commands.UpdateLedgerTransaction(id=id, status=after)
    expected = TRANSITIONS[before, after]
    if expected == "refused":
        assert bank.refused(change) == FORBIDDEN
        return
    effects = bank.apply(change)
    if expected == "nothing":
        assert bank.is_unchanged(effects)
        assert (bank.live(id), bank.version(bank.alice)) == (old, versions)
        return
    changed = bank.transaction(id)
    assert (changed.status, changed.version) == (after, 1)
    assert changed.posted_at_us == (bank.stamp.at_us if after is POSTED else None)
    new = bank.live(id)
    assert {entry.status for entry in new} == {after}
    assert not {entry.id for entry in new} & {entry.id for entry in old}
    assert bank.version(bank.alice) == versions + 1
    for entry in (bank.working_set.entries[each.id] for each in old):
        assert entry is not None
        assert (entry.discarded_lock_version, entry.discarded_at_us) == (2, bank.stamp.at_us)
    assert bank.amounts(bank.alice) == ((5, 5, 5) if after is POSTED else (0, 0, 0))


FIELDS: dict[str, Any] = {
    "description": "new",
    "external_id": "new",
    "ledgerable_type": "return",
    "ledgerable_id": "new",
    "effective_at_us": 5,
}


@pytest.mark.parametrize("status", [POSTED, ARCHIVED])
@pytest.mark.parametrize("field", [*FIELDS, "entries"])
def test_a_final_transaction_keeps_all_but_metadata(bank: Bank, field: str, status: Status) -> None:
    id = bank.create(transfer(bank.cash, bank.alice, 5, status))
    value = transfer(bank.cash, bank.alice, 5).entries if field == "entries" else FIELDS[field]
    change = commands.UpdateLedgerTransaction(id=id, metadata={"k": "v"}, **{field: value})
    assert bank.refused(change) == FORBIDDEN
    bank.update(id, metadata={"k": "v"})
    assert bank.transaction(id).metadata == {"k": "v"}
    assert bank.version(bank.alice) == (1 if status is POSTED else 0)


@pytest.mark.parametrize("status", [POSTED, ARCHIVED])
def test_what_a_final_transaction_is_already_may_be_sent_again(bank: Bank, status: Status) -> None:
    """A PATCH is repeated blindly by the SDK: the repeat finds its own work done."""
    given = {name: value for name, value in FIELDS.items() if name != "effective_at_us"}
    id = bank.create(transfer(bank.cash, bank.alice, 5, PENDING))
    change = {**given, "status": status, "effective_at_us": 5, "metadata": {"k": "v"}}
    bank.update(id, **change)
    before = everything(bank.working_set)
    assert bank.is_unchanged(bank.update(id, **change))
    assert everything(bank.working_set) == before


def test_metadata_of_an_archived_transaction_whose_external_id_is_in_use_again(bank: Bank) -> None:
    archived = bank.create(transfer(bank.cash, bank.alice, 5, ARCHIVED, external_id="x"))
    bank.create(transfer(bank.cash, bank.alice, 5, POSTED, external_id="x"))
    bank.update(archived, metadata={"k": "v"})
    assert bank.transaction(archived).metadata == {"k": "v"}


def test_status_entries_and_all_else_in_one_update(bank: Bank) -> None:
    id = bank.create(transfer(bank.cash, bank.alice, 5, PENDING))
    drafts = transfer(bank.cash, bank.bob, 8).entries
    bank.update(id, status=POSTED, entries=drafts, description="d", metadata={"k": "v"})
    assert bank.transaction(id).version == 1
    assert (bank.amounts(bank.alice), bank.amounts(bank.bob)) == ((0, 0, 0), (8, 8, 8))
    assert [bank.version(each) for each in (bank.cash, bank.alice, bank.bob)] == [2, 2, 1]


def test_entry_metadata_survives_a_status_change_but_no_replacement(bank: Bank) -> None:
    """Scenario A19."""
    marked = tuple(
        replace(each, metadata={"a": "1"}) for each in transfer(bank.cash, bank.alice).entries
    )
    id = bank.create(entries(*marked))
    bank.update(id, effective_at_us=3)
    assert [entry.metadata for entry in bank.live(id)] == [{"a": "1"}] * 2
    bank.update(id, entries=transfer(bank.cash, bank.alice, 500).entries)
    assert [entry.metadata for entry in bank.live(id)] == [{}] * 2
    assert bank.amounts(bank.alice) == (0, 500, 0)
    assert bank.transaction(id).version == 2


def test_entries_with_a_date_of_their_own_keep_it(bank: Bank) -> None:
    drafts = transfer(bank.cash, bank.alice).entries
    id = bank.create(entries(replace(drafts[0], effective_at_us=7), drafts[1]))
    bank.update(id, effective_at_us=3)
    assert [entry.effective_at_us for entry in bank.live(id)] == [7, 3]
    bank.update(id, status=POSTED)
    assert [entry.effective_at_us for entry in bank.live(id)] == [7, 3]


def test_dates_default_to_the_time_of_the_write(bank: Bank) -> None:
    id = bank.create(transfer(bank.cash, bank.alice))
    at_us = bank.stamp.at_us
    assert bank.transaction(id).effective_at_us == at_us
    assert {entry.effective_at_us for entry in bank.live(id)} == {at_us}


# --- balance locks (§6.3) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lock", "holds"),
    [
        ({"eq": 7}, True),
        ({"eq": 6}, False),
        ({"gt": 7}, False),
        ({"gt": 6}, True),
        ({"gte": 7}, True),
        ({"gte": 8}, False),
        ({"lt": 7}, False),
        ({"lt": 8}, True),
        ({"lte": 7}, True),
        ({"lte": 6}, False),
        ({"gte": 7, "lt": 8}, True),
        ({"gte": 7, "eq": 6}, False),
        ({}, True),
        ({"gt": 0, "gte": 0, "lt": 9, "lte": 9, "eq": 7}, True),
    ],
)
@pytest.mark.parametrize("kind", ["pending_lock", "posted_lock", "available_lock"])
def test_all_conditions_of_a_lock_hold_afterwards(
    bank: Bank, kind: str, lock: dict[str, int], holds: bool
) -> None:
    bank.deposit(4)
    drafts = transfer(bank.cash, bank.alice, 3).entries
    locked = replace(drafts[1], **{kind: BalanceLock(**lock)})
    command = entries(drafts[0], locked, status=POSTED)
    if holds:
        bank.apply(command)
    else:
        assert bank.refused(command) == BROKEN_LOCK


def test_locks_are_on_the_normal_side(bank: Bank) -> None:
    drafts = transfer(bank.cash, bank.alice, 3).entries
    both = [replace(each, posted_lock=BalanceLock(eq=3)) for each in drafts]
    bank.apply(entries(*both, status=POSTED))
    back = transfer(bank.bob, bank.cash, 1).entries
    overdrawn = [replace(back[0], posted_lock=BalanceLock(eq=-1)), back[1]]
    bank.apply(entries(*overdrawn, status=POSTED))


def test_a_lock_judges_the_whole_transaction(bank: Bank) -> None:
    """Scenario A11."""
    for bound, holds in ((500, False), (200, True)):
        command = entries(
            draft(bank.alice, CREDIT, 500, posted_lock=BalanceLock(eq=bound)),
            draft(bank.cash, DEBIT, 500),
            draft(bank.alice, DEBIT, 300),
            draft(bank.cash, CREDIT, 300),
            status=POSTED,
        )
        if holds:
            bank.apply(command)
        else:
            assert bank.refused(command) == BROKEN_LOCK


def test_locks_of_a_replacement_take_out_what_was_there_before(bank: Bank) -> None:
    bank.deposit(100)
    id = bank.create(transfer(bank.alice, bank.cash, 100, PENDING))
    assert bank.amounts(bank.alice) == (100, 0, 0)
    drafts = transfer(bank.alice, bank.cash, 100).entries
    for bound, holds in ((1, False), (0, True)):
        locked = (replace(drafts[0], available_lock=BalanceLock(gte=bound)), drafts[1])
        change = commands.UpdateLedgerTransaction(id=id, entries=locked)
        if holds:
            bank.apply(change)
        else:
            assert bank.refused(change) == BROKEN_LOCK


def test_a_change_of_status_has_no_locks(bank: Bank) -> None:
    drafts = transfer(bank.alice, bank.cash, 5).entries
    pending = entries(replace(drafts[0], posted_lock=BalanceLock(gte=0)), drafts[1])
    id = bank.create(pending)
    bank.update(id, status=POSTED)
    assert bank.amounts(bank.alice) == (-5, -5, -5)


def test_a_lock_that_is_broken_already_stays_broken_though_things_improve(bank: Bank) -> None:
    bank.create(transfer(bank.alice, bank.cash, 5, POSTED))
    drafts = transfer(bank.cash, bank.alice, 1).entries
    locked = replace(drafts[1], posted_lock=BalanceLock(gte=0))
    assert bank.refused(entries(drafts[0], locked, status=POSTED)) == BROKEN_LOCK


# --- lock_version (§6.4) -------------------------------------------------------------------------


def test_lock_version_is_the_version_before_the_write(bank: Bank) -> None:
    """Scenario A12."""
    bank.deposit(1000)
    drafts = transfer(bank.alice, bank.cash, 10).entries
    command = entries(replace(drafts[0], lock_version=1), drafts[1], status=POSTED)
    id = bank.create(command)
    assert {entry.lock_version for entry in bank.live(id)} == {2}
    assert bank.version(bank.alice) == 2
    assert bank.refused(command) == BAD_ENTRIES
    for version in (0, 3):
        wrong = replace(drafts[0], lock_version=version)
        assert bank.refused(entries(wrong, drafts[1])) == BAD_ENTRIES


def test_every_entry_of_an_account_states_the_version_before(bank: Bank) -> None:
    drafts = [draft(bank.alice, side, 1, lock_version=0) for side in (DEBIT, CREDIT, CREDIT, DEBIT)]
    bank.create(entries(*drafts))
    assert bank.version(bank.alice) == 1


VERSION_STEPS = [
    ("metadata", {"metadata": {"k": "v"}}, 0),
    ("description", {"description": "d"}, 0),
    ("external id", {"external_id": "e"}, 0),
    ("effective at", {"effective_at_us": 9}, 1),
    ("posted", {"status": POSTED}, 1),
    ("archived", {"status": ARCHIVED}, 1),
]


@pytest.mark.parametrize(("name", "change", "grows"), VERSION_STEPS, ids=lambda v: str(v))
def test_what_moves_an_accounts_version(
    bank: Bank, name: str, change: dict[str, Any], grows: int
) -> None:
    id = bank.create(transfer(bank.cash, bank.alice, 5, PENDING))
    old = bank.live(id)
    bank.update(id, **change)
    assert bank.version(bank.alice) == 1 + grows
    assert bank.transaction(id).version == 1
    assert (bank.live(id) == old) == (not grows)


def test_resulting_balances_are_those_after_the_whole_transaction(bank: Bank) -> None:
    """Scenario A14."""
    bank.deposit(1000)
    drafts = transfer(bank.alice, bank.cash, 400).entries
    id = bank.create(
        entries(replace(drafts[0], shows_resulting_balances=True), drafts[1], status=POSTED)
    )
    bank.deposit(50)
    shown, hidden = bank.live(id)
    assert (shown.shows_resulting_balances, hidden.shows_resulting_balances) == (True, False)
    resulting = {name[10:]: v for name, v in asdict(shown).items() if name.startswith("resulting_")}
    assert resulting == {
        "pending_debits": 0,
        "pending_credits": 0,
        "posted_debits": 400,
        "posted_credits": 1000,
    }
