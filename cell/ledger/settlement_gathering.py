"""Gathering and releasing a settlement's entries, a bounded number at a time (pure).

The posted entries of an account only ever grow in number and never change, and each comes with a
lock version above all before it. So an account is looked at once, in that order: each posted entry
gets a `SettlementEntry` row, held by the settlement that looked at it or, not before that one's
bound, open. What a settlement gathers is what is open and before its bound, then what nobody has
looked at yet. Both are ranges of an index, however many entries were settled before. Archiving
opens the rows again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec.structs import replace

from cell.ledger.model import (
    Direction,
    LedgerAccountSettlement,
    LedgerEntry,
    Row,
    SettledAccount,
    SettlementEntry,
    Stamp,
)
from cell.ledger.needs import Question
from cell.ledger.rules import State

Place = tuple[int, str]
"""A place in an account's entries: lock version and id; many entries can be of one version."""

_LAST_ID: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class OpenEntries(Question, frozen=True, tag="open_entries"):
    """The open rows of an account, by effective time: a tuple of `SettlementEntry`."""

    ledger_account_id: str
    entries_max: int


class UnexaminedEntries(Question, frozen=True, tag="unexamined_entries"):
    """The account's next entries that no settlement has looked at: an `Examination`."""

    ledger_account_id: str
    after: Place
    last_version: int
    entries_max: int
    """Of whatever status: a bound on what is read, not on what is found."""


class Examination(msgspec.Struct, frozen=True):
    found: tuple[SettlementEntry, ...]
    """The posted ones among them, as open rows yet to be written, in the order of their places."""
    examined: Place | None
    """The last one looked at; None when there are no more."""


class HeldEntries(Question, frozen=True, tag="held_entries"):
    """Rows that a settlement holds, its own entry aside: a tuple of `SettlementEntry`."""

    settlement_id: str
    entries_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The settlement after one step, with the rows of its entries that changed."""

    settlement: LedgerAccountSettlement
    inserted: tuple[Row, ...] = ()
    updated: tuple[Row, ...] = ()
    is_last: bool


Questions = tuple[OpenEntries, UnexaminedEntries]


def first_questions(ledger_account_id: str, state: State, entries_max: int) -> Questions:
    """Of a settlement that begins: after all that was looked at, up to what is there now."""
    account = state.row(SettledAccount, ledger_account_id)
    after = (0 if account is None else account.examined_version, _LAST_ID)
    last_version = state.balances(ledger_account_id).lock_version
    return (
        OpenEntries(ledger_account_id, entries_max),
        UnexaminedEntries(ledger_account_id, after, last_version, entries_max),
    )


def next_questions(settlement: LedgerAccountSettlement, entries_max: int) -> Questions:
    """Of one that goes on."""
    assert settlement.examined_version is not None
    assert settlement.examined_id is not None
    assert settlement.last_version is not None
    id = settlement.settled_ledger_account_id
    after = (settlement.examined_version, settlement.examined_id)
    return (
        OpenEntries(id, entries_max),
        UnexaminedEntries(id, after, settlement.last_version, entries_max),
    )


def gather(
    settlement: LedgerAccountSettlement,
    questions: Questions,
    state: State,
    stamp: Stamp,
) -> Step:
    """Take what is open, then look at what is new; two times `entries_max` rows at the most.

    Entries written after the settlement are for the next one: a busy account would keep this one
    gathering for ever.
    """
    bound_us = settlement.effective_at_upper_bound_us
    assert bound_us is not None
    open_question, new_question = questions
    opened: tuple[SettlementEntry, ...] = state.answer(open_question)
    examination: Examination = state.answer(new_question)
    taken = tuple(hold(row, settlement, stamp) for row in opened if row.effective_at_us < bound_us)
    new = tuple(
        hold(row, settlement, stamp)
        if row.effective_at_us < bound_us
        else replace(row, seq=stamp.seq)
        for row in examination.found
    )
    gathered = add(settlement, [row for row in (*taken, *new) if row.settlement_id is not None])
    is_last = examination.examined is None and len(taken) < open_question.entries_max
    if not is_last:
        # What was new may be at its end before what is open is.
        version, id = examination.examined or (new_question.last_version, _LAST_ID)
        gathered = replace(gathered, examined_version=version, examined_id=id)
        return Step(settlement=gathered, inserted=new, updated=taken, is_last=False)
    inserted, updated = _remember(settlement, new_question.last_version, state, stamp)
    return Step(
        settlement=replace(gathered, examined_version=None, examined_id=None),
        inserted=(*new, *inserted),
        updated=(*taken, *updated),
        is_last=True,
    )


def open_row_of(entry: LedgerEntry) -> SettlementEntry:
    """As it is looked at first; `hold` puts it into a settlement."""
    return SettlementEntry(
        tenant_id=entry.tenant_id,
        id=entry.id,
        ledger_account_id=entry.ledger_account_id,
        ledger_transaction_id=entry.ledger_transaction_id,
        settlement_id=None,
        direction=entry.direction,
        amount=entry.amount,
        effective_at_us=entry.effective_at_us,
        is_own=False,
        seq=entry.seq,
    )


def hold(
    row: SettlementEntry, settlement: LedgerAccountSettlement, stamp: Stamp
) -> SettlementEntry:
    return replace(row, settlement_id=settlement.id, seq=stamp.seq)


def _remember(
    settlement: LedgerAccountSettlement, version: int, state: State, stamp: Stamp
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The account is looked at up to this lock version: rows inserted, updated."""
    present = state.row(SettledAccount, settlement.settled_ledger_account_id)
    if present is None:
        account = SettledAccount(
            tenant_id=settlement.tenant_id,
            id=settlement.settled_ledger_account_id,
            examined_version=version,
            seq=stamp.seq,
        )
        return (account,), ()
    if present.examined_version >= version:
        # A later settlement was faster.
        return (), ()
    return (), (replace(present, examined_version=version, seq=stamp.seq),)


def release(
    settlement: LedgerAccountSettlement, question: HeldEntries, state: State, stamp: Stamp
) -> Step:
    """Open the rows of at most `entries_max` entries."""
    held: tuple[SettlementEntry, ...] = state.answer(question)
    return Step(
        settlement=subtract(settlement, held),
        updated=tuple(replace(row, settlement_id=None, seq=stamp.seq) for row in held),
        is_last=len(held) < question.entries_max,
    )


def add(
    settlement: LedgerAccountSettlement, rows: Sequence[SettlementEntry]
) -> LedgerAccountSettlement:
    """The settlement with the rows in its sums; so `subtract`."""
    return replace(
        settlement,
        gathered_debits=settlement.gathered_debits + _sum(rows, Direction.DEBIT),
        gathered_credits=settlement.gathered_credits + _sum(rows, Direction.CREDIT),
    )


def subtract(
    settlement: LedgerAccountSettlement, rows: Sequence[SettlementEntry]
) -> LedgerAccountSettlement:
    return replace(
        settlement,
        gathered_debits=settlement.gathered_debits - _sum(rows, Direction.DEBIT),
        gathered_credits=settlement.gathered_credits - _sum(rows, Direction.CREDIT),
    )


def _sum(rows: Sequence[SettlementEntry], direction: Direction) -> int:
    return sum(row.amount for row in rows if row.direction is direction)
