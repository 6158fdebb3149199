"""The questions of exclusive commands, answered in plain words from all rows there are."""

from functools import singledispatch
from typing import Any

from cell.ledger.balances import Accumulators
from cell.ledger.categories import LevelsBelow
from cell.ledger.category_locks import CategoryNow, LockedCategory
from cell.ledger.model import CategoryMember, CategoryNesting, LedgerAccountCategory
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
