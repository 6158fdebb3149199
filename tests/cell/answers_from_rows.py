"""The questions of exclusive commands, answered in plain words from all rows there are."""

from functools import singledispatch
from typing import Any

from cell.ledger.balances import Accumulators
from cell.ledger.categories import LevelsBelow
from cell.ledger.category_locks import CategoryNow, LockedCategory
from cell.ledger.model import (
    CategoryMember,
    CategoryNesting,
    Direction,
    LedgerAccountCategory,
    SettlementEntry,
    Status,
)
from cell.ledger.settlement_gathering import (
    Examination,
    HeldEntries,
    OpenEntries,
    UnexaminedEntries,
    open_row_of,
)
from cell.ledger.statements import BalancesBefore
from cell.state import WorkingSet


@singledispatch
def answer_from_rows(question: object, tenant_id: str, rows: WorkingSet) -> Any:
    raise AssertionError(f"no answer to {type(question).__name__}")


def live(kind: Any, tenant_id: str, rows: WorkingSet) -> list[Any]:
    found: Any = rows.rows[kind].values()
    return [
        row
        for row in found
        if row is not None and row.tenant_id == tenant_id and row.discarded_at_us is None
    ]


@answer_from_rows.register
def _levels_below(question: LevelsBelow, tenant_id: str, rows: WorkingSet) -> int:
    return levels_below(question.category_id, tenant_id, rows)


def levels_below(category_id: str, tenant_id: str, rows: WorkingSet) -> int:
    categories = {row.id for row in live(LedgerAccountCategory, tenant_id, rows)}
    below = [
        nesting.sub_category_id
        for nesting in live(CategoryNesting, tenant_id, rows)
        if nesting.category_id == category_id and nesting.sub_category_id in categories
    ]
    return max((1 + levels_below(id, tenant_id, rows) for id in below), default=0)


@answer_from_rows.register
def _locked_category(question: LockedCategory, tenant_id: str, rows: WorkingSet) -> CategoryNow:
    inside = accounts_in(question.category_id, tenant_id, rows)
    balances = [rows.balances[id] for id in inside]
    sums = Accumulators(
        *(sum(getattr(each, name) for each in balances) for name in Accumulators._fields)
    )
    entries = rows.live_entries.get(question.transaction_id or "", ())
    asked = {*question.account_ids, *(entry.ledger_account_id for entry in entries)}
    return CategoryNow(sums, frozenset(asked & inside))


def accounts_in(category_id: str, tenant_id: str, rows: WorkingSet) -> set[str]:
    if category_id not in {row.id for row in live(LedgerAccountCategory, tenant_id, rows)}:
        return set()
    members = live(CategoryMember, tenant_id, rows)
    found = {row.ledger_account_id for row in members if row.category_id == category_id}
    for nesting in live(CategoryNesting, tenant_id, rows):
        if nesting.category_id == category_id:
            found |= accounts_in(nesting.sub_category_id, tenant_id, rows)
    return found


@answer_from_rows.register
def _open_entries(question: OpenEntries, tenant_id: str, rows: WorkingSet) -> Any:
    found = [
        row
        for row in _settlement_entries(tenant_id, rows)
        if row.settlement_id is None and row.ledger_account_id == question.ledger_account_id
    ]
    found.sort(key=lambda row: (row.effective_at_us, row.id))
    return tuple(found[: question.entries_max])


@answer_from_rows.register
def _held_entries(question: HeldEntries, tenant_id: str, rows: WorkingSet) -> Any:
    found = [
        row
        for row in _settlement_entries(tenant_id, rows)
        if row.settlement_id == question.settlement_id and not row.is_own
    ]
    return tuple(sorted(found, key=lambda row: row.id)[: question.entries_max])


@answer_from_rows.register
def _unexamined_entries(question: UnexaminedEntries, tenant_id: str, rows: WorkingSet) -> Any:
    known = {row.id for row in _settlement_entries(tenant_id, rows)}
    entries = sorted(
        (
            entry
            for entry in rows.entries.values()
            if entry is not None
            and (entry.tenant_id, entry.ledger_account_id)
            == (tenant_id, question.ledger_account_id)
            and question.after < (entry.lock_version, entry.id)
            and entry.lock_version <= question.last_version
        ),
        key=lambda entry: (entry.lock_version, entry.id),
    )[: question.entries_max]
    found = tuple(
        open_row_of(entry)
        for entry in entries
        if entry.status is Status.POSTED and entry.discarded_at_us is None and entry.id not in known
    )
    has_more = len(entries) == question.entries_max
    last = (entries[-1].lock_version, entries[-1].id) if has_more else None
    return Examination(found=found, examined=last)


def _settlement_entries(tenant_id: str, rows: WorkingSet) -> list[Any]:
    found: Any = rows.rows[SettlementEntry].values()
    return [row for row in found if row is not None and row.tenant_id == tenant_id]


@answer_from_rows.register
def _balances_before(question: BalancesBefore, tenant_id: str, rows: WorkingSet) -> Accumulators:
    sums = {(status, direction): 0 for status in Status for direction in Direction}
    for entry in rows.entries.values():
        if (
            entry is not None
            and (entry.tenant_id, entry.ledger_account_id)
            == (tenant_id, question.ledger_account_id)
            and entry.discarded_at_us is None
            and entry.effective_at_us < question.bound_us
        ):
            sums[entry.status, entry.direction] += entry.amount
    return Accumulators(
        sums[Status.PENDING, Direction.DEBIT],
        sums[Status.PENDING, Direction.CREDIT],
        sums[Status.POSTED, Direction.DEBIT],
        sums[Status.POSTED, Direction.CREDIT],
    )
