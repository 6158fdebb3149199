"""The rules one by one: creation, balances, external ids, tenants, repeats.

Method: tables over a small bank in memory. Each refusal is provoked together with everything that
comes later in the documented order of precedence, so that a changed order shows. A repeat of what
is so already must change nothing.
"""

from typing import Any

import pytest
from cell_writing import CREDIT, DEBIT, draft, transfer
from msgspec import UNSET
from msgspec.structs import replace
from small_bank import (
    ARCHIVED,
    BAD_ENTRIES,
    BROKEN_LOCK,
    NOT_FOUND,
    OTHER,
    PENDING,
    POSTED,
    TAKEN,
    UNKNOWN_ID,
    Bank,
    entries,
    everything,
)

from cell.errors import ApiError, NotFound, Unprocessable
from cell.ledger import balances, commands, rules
from cell.ledger.commands import BalanceLock
from cell.ledger.entry_writing import ENTRIES_MAX
from cell.ledger.model import Status


@pytest.fixture
def bank() -> Bank:
    return Bank()


# --- creation: the ladder, each rung with everything below it broken, too ------------------------


def ladder(bank: Bank) -> list[tuple[str, Any, tuple[type, str]]]:
    """From the first rung to the last; every command breaks its rung and all that can be after."""
    bank.deposit(1, external_id="taken")
    worst = {
        "lock_version": 99,
        "posted_lock": BalanceLock(eq=10**40),
        "available_lock": BalanceLock(lt=-(10**40)),
    }
    bad = {"external_id": "taken"}
    debit = draft(bank.cash, DEBIT, 5, **worst)
    credit = draft(bank.alice, CREDIT, 5, **worst)
    unequal = draft(bank.alice, CREDIT, 6, **worst)
    too_many = [draft(UNKNOWN_ID, DEBIT, 1)] * ENTRIES_MAX + [draft(bank.cash, CREDIT, 1)]
    return [
        ("over 1,000 entries", entries(*too_many, **bad), BAD_ENTRIES),
        ("no entries", entries(**bad), BAD_ENTRIES),
        ("one side only", entries(debit, draft(UNKNOWN_ID, DEBIT, 5), **bad), BAD_ENTRIES),
        ("unknown account", entries(debit, draft(UNKNOWN_ID, CREDIT, 6), **bad), NOT_FOUND),
        ("another tenant's", entries(debit, draft(bank.foreign, CREDIT, 6), **bad), NOT_FOUND),
        ("discarded account", entries(debit, draft(bank.closed, CREDIT, 6), **bad), BAD_ENTRIES),
        ("two ledgers", entries(debit, draft(bank.elsewhere, CREDIT, 6), **bad), BAD_ENTRIES),
        ("unbalanced", entries(debit, unequal, **bad), BAD_ENTRIES),
        ("USD against EUR", entries(debit, draft(bank.euro, CREDIT, 5), **bad), BAD_ENTRIES),
        ("cents against mills", entries(debit, draft(bank.mills, CREDIT, 5), **bad), BAD_ENTRIES),
        ("external id taken", entries(debit, credit, **bad), TAKEN),
        ("lock_version", entries(debit, credit), BAD_ENTRIES),
        (
            "balance lock",
            entries(*(replace(e, lock_version=None, available_lock=None) for e in (debit, credit))),
            BROKEN_LOCK,
        ),
    ]


WORDS = {
    "over 1,000 entries": "1001 entries",
    "no entries": "at least one credit and one debit",
    "one side only": "at least one credit and one debit",
    "unknown account": f"no ledger account {UNKNOWN_ID}",
    "another tenant's": "no ledger account",
    "discarded account": "is discarded",
    "two ledgers": "belong to one ledger",
    "unbalanced": "debits minus credits is -1",
    "USD against EUR": "unbalanced in",
    "cents against mills": "unbalanced in USD",
    "external id taken": "external_id taken",
    "lock_version": "is at lock_version 1, not 99",
    "balance lock": "posted balance of ledger account",
}


@pytest.mark.parametrize("rung", WORDS)
@pytest.mark.parametrize("status", list(Status))
def test_the_first_broken_rung_is_the_answer(bank: Bank, rung: str, status: Status) -> None:
    command, expected = next((c, e) for name, c, e in ladder(bank) if name == rung)
    if rung == "external id taken" and status is ARCHIVED:
        # An archived transaction holds no external id: the next rung is the answer.
        expected = BAD_ENTRIES
        with pytest.raises(ApiError, match="lock_version"):
            bank.apply(replace(command, status=status))
    else:
        with pytest.raises(ApiError, match=WORDS[rung]):
            bank.apply(replace(command, status=status))
    assert bank.refused(replace(command, status=status)) == expected


@pytest.mark.parametrize("rung", WORDS)
def test_replacing_entries_climbs_the_same_ladder(bank: Bank, rung: str) -> None:
    pending = bank.create(transfer(bank.cash, bank.alice, 7, PENDING))
    command, expected = next((c, e) for name, c, e in ladder(bank) if name == rung)
    external_id = UNSET if command.external_id is None else command.external_id
    change = commands.UpdateLedgerTransaction(
        id=pending, entries=command.entries, external_id=external_id, status=POSTED
    )
    assert bank.refused(change) == expected


def test_a_replacement_stays_in_the_transactions_ledger(bank: Bank) -> None:
    pending = bank.create(transfer(bank.cash, bank.alice, 7, PENDING))
    third = bank.account(bank.second)
    moved = transfer(bank.elsewhere, third, 7).entries
    assert bank.refused(commands.UpdateLedgerTransaction(id=pending, entries=moved)) == BAD_ENTRIES


def test_a_thousand_entries_are_allowed(bank: Bank) -> None:
    half = ENTRIES_MAX // 2
    drafts = [draft(bank.cash, DEBIT, 1)] * half + [draft(bank.alice, CREDIT, 1)] * half
    id = bank.create(entries(*drafts, status=POSTED))
    assert len(bank.live(id)) == ENTRIES_MAX
    assert bank.amounts(bank.alice) == (half, half, half)
    assert bank.version(bank.alice) == 1


def test_entries_of_a_discarded_ledger_are_refused(bank: Bank) -> None:
    bank.apply(commands.DeleteLedger(id=bank.main))
    assert bank.refused(transfer(bank.cash, bank.alice)) == BAD_ENTRIES


def test_what_is_pending_in_a_discarded_ledger_or_account_can_still_be_settled(bank: Bank) -> None:
    pending = [bank.create(transfer(bank.cash, bank.bob, 5, PENDING)) for _ in range(2)]
    bank.apply(commands.DeleteLedgerAccount(id=bank.bob))
    bank.update(pending[0], status=POSTED)
    bank.apply(commands.DeleteLedger(id=bank.main))
    bank.update(pending[1], status=ARCHIVED)
    assert bank.amounts(bank.bob) == (5, 5, 5)


@pytest.mark.parametrize(("debits", "credits"), [((0,), (0,)), ((10**36 - 1,), (10**36 - 1,))])
def test_amounts_at_both_ends(bank: Bank, debits: Any, credits: Any) -> None:
    for _ in range(2):
        bank.create(transfer(bank.cash, bank.alice, debits[0], POSTED))
    assert bank.amounts(bank.alice) == (2 * credits[0],) * 3


def test_several_currencies_balance_each_by_itself(bank: Bank) -> None:
    euro = bank.account(bank.main, currency="EUR")
    both = entries(
        draft(bank.cash, DEBIT, 100),
        draft(bank.euro, DEBIT, 90),
        draft(bank.alice, CREDIT, 100),
        draft(euro, CREDIT, 90),
    )
    bank.create(both)
    crossed = replace(both, entries=(*both.entries[:2], draft(bank.alice, CREDIT, 90)))
    crossed = replace(crossed, entries=(*crossed.entries, draft(euro, CREDIT, 100)))
    assert bank.refused(crossed) == BAD_ENTRIES


def test_one_account_on_both_sides(bank: Bank) -> None:
    id = bank.create(entries(draft(bank.alice, DEBIT, 3), draft(bank.alice, CREDIT, 3)))
    after = bank.balances(bank.alice)
    assert (after.pending_debits, after.pending_credits, after.lock_version) == (3, 3, 1)
    assert [entry.lock_version for entry in bank.live(id)] == [1, 1]


# --- balances (§2.3) -----------------------------------------------------------------------------


def test_the_three_balances_of_the_reference() -> None:
    """Scenarios A02 and A03."""
    bank = Bank()
    bank.deposit(10_000)
    assert bank.amounts(bank.cash) == bank.amounts(bank.alice) == (10_000,) * 3
    bank.create(transfer(bank.bob, bank.cash, 250, POSTED))
    assert bank.amounts(bank.bob) == (-250,) * 3
    assert bank.amounts(bank.cash) == (9_750,) * 3

    bank = Bank()
    bank.deposit(10_000)
    bank.create(transfer(bank.alice, bank.cash, 3_000, PENDING))
    assert bank.amounts(bank.alice) == bank.amounts(bank.cash) == (10_000, 7_000, 7_000)
    bank.create(transfer(bank.cash, bank.alice, 2_500, PENDING))
    assert bank.amounts(bank.alice) == bank.amounts(bank.cash) == (10_000, 9_500, 7_000)
    pending = balances.pending(bank.balances(bank.alice), CREDIT)
    assert (pending.credits, pending.debits) == (12_500, 3_000)
    available = balances.available(bank.balances(bank.alice), CREDIT)
    assert (available.credits, available.debits) == (10_000, 3_000)
    available = balances.available(bank.balances(bank.cash), DEBIT)
    assert (available.credits, available.debits) == (3_000, 10_000)


# --- external ids (§5.2, §5.4) -------------------------------------------------------------------


def test_external_ids_of_transactions(bank: Bank) -> None:
    """Scenario A16."""
    first = bank.create(transfer(bank.cash, bank.alice, 1, PENDING, external_id="o-1"))
    again = transfer(bank.cash, bank.alice, 1, PENDING, external_id="o-1")
    assert bank.refused(again) == TAKEN
    assert bank.refused(replace(again, status=POSTED)) == TAKEN
    bank.create(replace(again, status=ARCHIVED))
    bank.create(transfer(bank.elsewhere, bank.account(bank.second), 1, external_id="o-1"))
    bank.update(first, status=POSTED)
    assert bank.refused(again) == TAKEN

    other = bank.create(transfer(bank.cash, bank.alice, 1, PENDING))
    assert bank.refused(commands.UpdateLedgerTransaction(id=other, external_id="o-1")) == TAKEN
    bank.update(other, external_id="o-2")
    bank.update(other, external_id="o-2", description="its own is free for itself")
    bank.update(other, external_id=None)
    third = bank.create(transfer(bank.cash, bank.alice, 1, PENDING, external_id="o-2"))
    bank.update(third, status=ARCHIVED)
    bank.update(other, external_id="o-2")


def test_external_ids_of_accounts(bank: Bank) -> None:
    first = bank.account(bank.main, external_id="a")
    command = commands.CreateLedgerAccount(
        ledger_id=bank.main,
        name="A",
        normal_balance=CREDIT,
        currency="USD",
        currency_exponent=2,
        external_id="a",
    )
    assert bank.refused(command) == TAKEN
    bank.account(bank.second, external_id="a")
    update = commands.UpdateLedgerAccount(id=bank.alice, external_id="a")
    assert bank.refused(update) == TAKEN
    bank.apply(commands.UpdateLedgerAccount(id=first, name="its own is free", external_id="a"))
    bank.apply(commands.DeleteLedgerAccount(id=first))
    bank.apply(update)
    assert bank.refused(command) == TAKEN


# --- unknown, other tenants', discarded ----------------------------------------------------------


def named(kind: str, id: str) -> list[Any]:
    """Every command that names an object of the kind."""
    return {
        "ledger": [
            commands.UpdateLedger(id=id, name="x"),
            commands.CreateLedgerAccount(
                ledger_id=id, name="x", normal_balance=DEBIT, currency="X", currency_exponent=0
            ),
            commands.DeleteLedger(id=id),
        ],
        "account": [
            commands.UpdateLedgerAccount(id=id, name="x"),
            entries(draft(id, DEBIT), draft(id, CREDIT)),
            commands.DeleteLedgerAccount(id=id),
        ],
        "transaction": [
            commands.UpdateLedgerTransaction(id=id, status=POSTED),
            commands.UpdateLedgerTransaction(id=id, metadata={"k": "v"}),
        ],
        "entry": [commands.UpdateLedgerEntry(id=id, metadata={"k": "v"})],
        "api_key": [commands.RevokeApiKey(id=id)],
    }[kind]


@pytest.mark.parametrize("kind", ["ledger", "account", "transaction", "entry", "api_key"])
def test_another_tenants_objects_answer_as_unknown_ones(bank: Bank, kind: str) -> None:
    id = bank.create(transfer(bank.cash, bank.alice, 1, PENDING))
    key = bank.create(commands.CreateApiKey(id=UNKNOWN_ID[:-4] + "0001", secret_sha256="a" * 64))
    own = {
        "ledger": bank.main,
        "account": bank.alice,
        "transaction": id,
        "entry": bank.live(id)[0].id,
        "api_key": key,
    }[kind]
    for theirs, nobodys in zip(named(kind, own), named(kind, UNKNOWN_ID), strict=True):
        words = []
        for command in (theirs, nobodys):
            with pytest.raises(NotFound) as refusal:
                bank.apply(command, OTHER)
            words.append((refusal.value.message.replace(own, UNKNOWN_ID), refusal.value.parameter))
        assert words[0] == words[1]
        bank.apply(theirs)


def test_discarded_ledgers_and_accounts_are_gone_for_writers(bank: Bank) -> None:
    account = commands.UpdateLedgerAccount(id=bank.closed, name="x")
    assert bank.refused(account) == (NotFound, None)
    bank.apply(commands.DeleteLedger(id=bank.second))
    assert bank.refused(commands.UpdateLedger(id=bank.second)) == (NotFound, "ledger_id")
    inside = commands.UpdateLedgerAccount(id=bank.elsewhere, name="x")
    assert bank.refused(inside) == (NotFound, "ledger_id")
    assert bank.refused(named("ledger", bank.second)[1]) == (NotFound, "ledger_id")


# --- repeats that change nothing, metadata, keys -------------------------------------------------


def test_repeats_change_nothing(bank: Bank) -> None:
    id = bank.create(transfer(bank.cash, bank.alice, 1, PENDING, external_id="e"))
    key = commands.CreateApiKey(id=UNKNOWN_ID, secret_sha256="a" * 64)
    for command in (
        key,
        key,
        commands.RevokeApiKey(id=UNKNOWN_ID),
        key,
        commands.UpdateLedger(id=bank.main, name="x", description="y", metadata={"k": "v"}),
        commands.UpdateLedgerAccount(id=bank.bob, name="x", external_id="y", metadata={"k": "v"}),
        commands.UpdateLedgerTransaction(id=id, description="x", external_id="e2"),
        commands.UpdateLedgerEntry(id=bank.live(id)[0].id, metadata={"k": "v"}),
        commands.UpdateLedgerTransaction(id=id, status=POSTED),
        commands.DeleteLedgerAccount(id=bank.bob),
        commands.DeleteLedger(id=bank.second),
    ):
        bank.apply(command)
        before = everything(bank.working_set)
        assert bank.is_unchanged(bank.apply(command)), command
        assert everything(bank.working_set) == before
    assert bank.refused(replace(key, secret_sha256="b" * 64)) == (Unprocessable, "id")


def test_replacing_entries_by_the_same_is_a_change(bank: Bank) -> None:
    """Entries have ids: a replacement is never the same set."""
    id = bank.create(transfer(bank.cash, bank.alice, 1, PENDING))
    old = {entry.id for entry in bank.live(id)}
    bank.update(id, entries=transfer(bank.cash, bank.alice, 1).entries)
    assert not old & {entry.id for entry in bank.live(id)}
    assert (bank.transaction(id).version, bank.version(bank.alice)) == (1, 2)


@pytest.mark.parametrize(
    ("present", "patch", "merged"),
    [
        ({}, {}, {}),
        ({"a": "1"}, {}, {"a": "1"}),
        ({"a": "1"}, {"b": "2"}, {"a": "1", "b": "2"}),
        ({"a": "1"}, {"a": "2"}, {"a": "2"}),
        ({"a": "1"}, {"a": ""}, {}),
        ({"a": "1"}, {"a": None, "b": ""}, {}),
        ({}, {"a": None}, {}),
    ],
)
def test_metadata_is_merged(
    present: dict[str, str], patch: dict[str, str | None], merged: dict[str, str]
) -> None:
    before = dict(present)
    assert rules.merged_metadata(present, patch) == merged
    assert present == before


def test_metadata_is_bounded(bank: Bank) -> None:
    keys: dict[str, str | None] = {str(n): "v" for n in range(rules.METADATA_KEYS_MAX)}
    bank.apply(commands.UpdateLedger(id=bank.main, metadata=keys))
    more = commands.UpdateLedger(id=bank.main, metadata={"one": "more"})
    assert bank.refused(more) == (Unprocessable, "metadata")
    bank.apply(commands.UpdateLedger(id=bank.main, metadata={"one": "more", "0": ""}))
