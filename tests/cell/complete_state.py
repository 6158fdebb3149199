"""A working set that knows every row there is: the state of re-executed journals and pure tests."""

from collections import defaultdict
from collections.abc import Iterator
from functools import singledispatch
from typing import Any

from cell.ledger.model import (
    Effects,
    LedgerEntry,
    LedgerTransaction,
    SettlementEntry,
    Status,
    TenantId,
)
from cell.ledger.needs import Question, Relation
from cell.ledger.settlement_gathering import (
    Examination,
    HeldEntries,
    OpenEntries,
    UnexaminedEntries,
    open_row_of,
)
from cell.state import WorkingSet


class _EveryKey(defaultdict[Any, Any]):
    """Holders of all external ids, known from the start: `get` makes what is missing, too."""

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]


class _EveryGroup:
    """The groups of one relation, worked out from all rows each time they are asked for."""

    def __init__(self, rows: dict[Any, dict[str, Any]], relation: Relation) -> None:
        self._rows = rows
        self._relation = relation

    def __getitem__(self, key: tuple[str, str]) -> dict[str, Any]:
        return {
            id: row
            for id, row in sorted(self._rows[self._relation.row].items())
            if row is not None and (row.tenant_id, self._relation.key_of(row)) == key
        }


class _EveryRelation:
    def __init__(self, rows: dict[Any, dict[str, Any]]) -> None:
        self._rows = rows

    def __getitem__(self, relation: Relation) -> _EveryGroup:
        return _EveryGroup(self._rows, relation)

    def items(self) -> Iterator[Any]:
        """None has to be kept up to date."""
        return iter(())


class _EveryAnswer:
    """The answers to all questions, worked out from all rows each time they are asked."""

    def __init__(self, working_set: "CompleteWorkingSet") -> None:
        self._working_set = working_set

    def __getitem__(self, asked: tuple[TenantId, Question]) -> Any:
        tenant_id, question = asked
        return answer(question, tenant_id, self._working_set)


@singledispatch
def answer(question: object, tenant_id: TenantId, working_set: WorkingSet) -> Any:
    raise AssertionError(f"no answer to {type(question).__name__}")


@answer.register
def _open_entries(question: OpenEntries, tenant_id: TenantId, working_set: WorkingSet) -> Any:
    found = [
        row
        for row in _settlement_entries(tenant_id, working_set)
        if row.settlement_id is None and row.ledger_account_id == question.ledger_account_id
    ]
    found.sort(key=lambda row: (row.effective_at_us, row.id))
    return tuple(found[: question.entries_max])


@answer.register
def _held_entries(question: HeldEntries, tenant_id: TenantId, working_set: WorkingSet) -> Any:
    found = [
        row
        for row in _settlement_entries(tenant_id, working_set)
        if row.settlement_id == question.settlement_id and not row.is_own
    ]
    return tuple(sorted(found, key=lambda row: row.id)[: question.entries_max])


@answer.register
def _unexamined_entries(
    question: UnexaminedEntries, tenant_id: TenantId, working_set: WorkingSet
) -> Any:
    known = {row.id for row in _settlement_entries(tenant_id, working_set)}
    entries = sorted(
        (
            entry
            for entry in working_set.entries.values()
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


def _settlement_entries(tenant_id: TenantId, working_set: WorkingSet) -> list[Any]:
    rows: Any = working_set.rows[SettlementEntry].values()
    return [row for row in rows if row is not None and row.tenant_id == tenant_id]


class CompleteWorkingSet(WorkingSet):
    def __init__(self) -> None:
        super().__init__(
            account_holders=_EveryKey(dict),
            transaction_holders=_EveryKey(dict),
            rows=defaultdict(dict),
        )
        every: Any = _EveryRelation(self.rows)
        self.related = every
        answers: Any = _EveryAnswer(self)
        self.answers = answers

    def commit(self, effects: Effects) -> None:
        """Apply the effects, then know the new transactions, too, as if read from the database."""
        self.apply(effects)
        for row in effects.inserted:
            if isinstance(row, LedgerTransaction):
                live = [
                    each
                    for each in effects.inserted
                    if isinstance(each, LedgerEntry) and each.ledger_transaction_id == row.id
                ]
                self.transactions[row.id] = row
                self.live_entries[row.id] = tuple(live)
                self.entries.update((entry.id, entry) for entry in live)
