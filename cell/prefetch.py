"""What a batch's commands will ask for, and how it is read: a few set-based SELECTs at the most.

Rows are taken from the batch still being written, else from the cache, else from the database. That
order matters: the database shows the batch in flight as not yet there.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, LiteralString

from cell.ledger.commands import Command
from cell.ledger.model import (
    AccountBalances,
    Ledger,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    Row,
    TenantId,
)
from cell.ledger.monitors import MONITORS_OF_ACCOUNT
from cell.ledger.needs import FURTHER_NEEDS, ExternalKey, Ids, Needs, Relation, note_needs
from cell.questions import ask
from cell.rows import TABLE_OF, Reader, columns_of, row_from
from cell.state import LedgerCache, TenantView, WorkingSet, held_external_id

_NONE: Final = Needs()


class Prefetch:
    """Fills one working set."""

    def __init__(
        self,
        connection: Reader,
        cache: LedgerCache,
        in_flight: WorkingSet | None,
    ) -> None:
        self._connection = connection
        self._cache = cache
        self._before = in_flight if in_flight is not None else WorkingSet()
        self._set = WorkingSet()
        self._asked: dict[object, Ids] = {}
        """What was asked for so far, by kind."""

    async def fill(self, commands: Sequence[tuple[TenantId, Command]]) -> WorkingSet:
        """The working set of these commands, and what reads of their tenants have missed in memory:
        a few SELECTs at the most, mostly none."""
        needs = Needs(accounts=self._cache.missed.take({tenant_id for tenant_id, _ in commands}))
        for tenant_id, command in commands:
            note_needs(command, tenant_id, needs)
        await self._fill(needs)
        further = [
            (TenantView(tenant_id, self._set), command, FURTHER_NEEDS[type(command)])
            for tenant_id, command in commands
            if type(command) in FURTHER_NEEDS
        ]
        while further:
            needs = Needs()
            for view, command, note_further in further:
                note_further(command, view, needs)
            if needs == _NONE or not await self._fill(needs):
                break
        return self._set

    async def _fill(self, needs: Needs) -> bool:
        """Read what was not read before; False when there was no such thing."""
        asked_before = sum(map(len, self._asked.values()))
        await self._entries(self._unread(LedgerEntry, needs.entries))
        await self._transactions(
            self._unread(
                LedgerTransaction,
                needs.transactions
                | {
                    (entry.tenant_id, entry.ledger_transaction_id)
                    for entry in self._set.entries.values()
                    if entry is not None
                },
            )
        )
        await self._accounts(
            self._unread(
                LedgerAccount,
                needs.accounts
                | {
                    (entry.tenant_id, entry.ledger_account_id)
                    for live in self._set.live_entries.values()
                    for entry in live
                },
            )
        )
        await self._ledgers(
            self._unread(
                Ledger,
                needs.ledgers
                | {
                    (account.tenant_id, account.ledger_id)
                    for account in self._set.accounts.values()
                    if account is not None
                },
            )
        )
        await self._holders(
            _ACCOUNT_HOLDERS,
            self._unread("account holders", needs.account_external_ids),
            self._before.account_holders,
            self._before.accounts,
            self._set.account_holders,
        )
        await self._holders(
            _TRANSACTION_HOLDERS,
            self._unread("transaction holders", needs.transaction_external_ids),
            self._before.transaction_holders,
            self._before.transactions,
            self._set.transaction_holders,
        )
        for kind, ids in needs.rows.items():
            await self._rows(kind, self._unread(kind, ids))
        for account in self._set.accounts.values():
            if account is not None and account.monitor_count:
                needs.relation(MONITORS_OF_ACCOUNT, account.tenant_id, account.id)
        for relation, keys in needs.related.items():
            await self._related(relation, self._unread(relation, keys))
        for tenant_id, question in needs.questions:
            if self._unread(question, {(tenant_id, "")}):
                answer = await ask(question, self._connection, tenant_id)
                self._set.answers[(tenant_id, question)] = answer
        return sum(map(len, self._asked.values())) > asked_before

    def _unread(self, kind: object, wanted: Ids) -> Ids:
        """Those not asked for before; they count as asked for from here on."""
        asked = self._asked.get(kind)
        if asked is None:
            self._asked[kind] = wanted
            return wanted
        unread = wanted - asked
        self._asked[kind] = asked | unread
        return unread

    async def _rows(self, kind: type[Row], wanted: Ids) -> None:
        into = self._set.rows.setdefault(kind, {})
        missing: Ids = _inherit(wanted, self._before.rows.get(kind, {}), into)
        for row in await self._select(_rows_statement(kind), missing):
            into[row[1]] = row_from(kind, row)

    async def _related(self, relation: Relation, wanted: Ids) -> None:
        groups = self._set.related.setdefault(relation, {})
        before = self._before.related.get(relation, {})
        missing = {key for key in wanted if key not in before}
        for key in wanted:
            groups[key] = dict(before.get(key, ()))
        for values in await self._select(_related_statement(relation), missing):
            row: Any = row_from(relation.row, values)
            groups[(row.tenant_id, relation.key_of(row) or "")][row.id] = row
        # The database does not show yet what the batch in flight has changed.
        for row in self._before.rows.get(relation.row, {}).values():
            if row is not None:
                for key in missing:
                    groups[key].pop(row.id, None)
                key_now = (row.tenant_id, relation.key_of(row) or "")
                if key_now in missing:
                    groups[key_now][row.id] = row
        known = self._set.rows.setdefault(relation.row, {})
        for key in wanted:
            known.update(groups[key])

    async def _entries(self, wanted: Ids) -> None:
        missing = _inherit(wanted, self._before.entries, self._set.entries)
        for row in await self._select(_ENTRIES, missing):
            self._set.entries[row[1]] = row_from(LedgerEntry, row)

    async def _transactions(self, wanted: Ids) -> None:
        working = self._set
        unknown = _inherit(wanted, self._before.transactions, working.transactions)
        for _, id in wanted - unknown:
            # Only a batch that had read the entries, or wrote them, knows a transaction.
            self._keep_live(id, self._before.live_entries[id])
        missing: Ids = set()
        for tenant_id, id in unknown:
            cached = self._cache.transaction(tenant_id, id)
            if cached is not None:
                working.transactions[id] = cached[0]
                self._keep_live(id, cached[1])
            else:
                missing.add((tenant_id, id))
        for row in await self._select(_TRANSACTIONS, missing):
            working.transactions[row[1]] = row_from(LedgerTransaction, row)
            working.live_entries[row[1]] = ()
        live: dict[str, list[LedgerEntry]] = {}
        for row in await self._select(_LIVE_ENTRIES, missing):
            entry = row_from(LedgerEntry, row)
            live.setdefault(entry.ledger_transaction_id, []).append(entry)
        for transaction_id, entries in live.items():
            self._keep_live(transaction_id, tuple(entries))

    def _keep_live(self, transaction_id: str, entries: tuple[LedgerEntry, ...]) -> None:
        self._set.live_entries[transaction_id] = entries
        for entry in entries:
            self._set.entries[entry.id] = entry

    async def _accounts(self, wanted: Ids) -> None:
        before, working = self._before, self._set
        missing: Ids = set()
        for tenant_id, id in wanted:
            account = before.accounts.get(id)
            if account is not None and account.tenant_id == tenant_id:
                working.accounts[id] = account
                working.balances[id] = before.balances[id]
                continue
            cached = self._cache.account(tenant_id, id)
            if cached is not None:
                working.accounts[id], working.balances[id] = cached
            else:
                working.accounts.setdefault(id, None)
                missing.add((tenant_id, id))
        for row in await self._select(_ACCOUNTS, missing):
            working.accounts[row[1]] = row_from(LedgerAccount, row[:_ACCOUNT_COLUMNS])
            working.balances[row[1]] = row_from(AccountBalances, row[_ACCOUNT_COLUMNS:])

    async def _ledgers(self, wanted: Ids) -> None:
        working = self._set
        unknown = _inherit(wanted, self._before.ledgers, working.ledgers)
        missing: Ids = set()
        for tenant_id, id in unknown:
            cached = self._cache.ledger(tenant_id, id)
            if cached is not None:
                working.ledgers[id] = cached
            else:
                missing.add((tenant_id, id))
        for row in await self._select(_LEDGERS, missing):
            working.ledgers[row[1]] = row_from(Ledger, row)

    async def _holders(
        self,
        statement: LiteralString,
        wanted: Iterable[ExternalKey],
        before: dict[ExternalKey, dict[str, str]],
        rows_before: Mapping[str, LedgerTransaction | LedgerAccount | None],
        holders: dict[ExternalKey, dict[str, str]],
    ) -> None:
        missing: list[ExternalKey] = []
        for key in wanted:
            holders[key] = dict(before.get(key, ()))
            if key not in before:
                missing.append(key)
        if not missing:
            return
        parameters = ([key[0] for key in missing], [key[1] for key in missing])
        cursor = await self._connection.execute(statement, parameters, prepare=True)
        for tenant_id, external_id, ledger_id, id in await cursor.fetchall():
            # The batch in flight may have set it free, which takes no naming of it.
            row = rows_before.get(id)
            if row is None or held_external_id(row) == external_id:
                holders[(tenant_id, external_id)][ledger_id] = id

    async def _select(self, statement: LiteralString, ids: Ids) -> Sequence[tuple[Any, ...]]:
        if not ids:
            return ()
        parameters = ([key[0] for key in ids], [key[1] for key in ids])
        cursor = await self._connection.execute(statement, parameters, prepare=True)
        return await cursor.fetchall()


def _inherit(wanted: Ids, before: Mapping[str, Any], into: dict[str, Any]) -> Ids:
    """Take over what the batch in flight knows to exist; the rest is returned, None for now."""
    missing: Ids = set()
    for tenant_id, id in wanted:
        row = before.get(id)
        if row is not None and row.tenant_id == tenant_id:
            into[id] = row
        else:
            # Not a plain assignment: two tenants may name one id, and one of them may own it.
            into.setdefault(id, None)
            missing.add((tenant_id, id))
    return missing


@lru_cache
def _rows_statement(kind: type[Row]) -> LiteralString:
    table = TABLE_OF[kind]
    return f"""
    SELECT {columns_of(kind, "r")} {_WANTED}
    JOIN {table.name} r ON r.tenant_id = w.tenant_id AND r.{table.key} = w.id
    """


@lru_cache
def _related_statement(relation: Relation) -> LiteralString:
    counts = "" if relation.unless is None else f"WHERE r.{relation.unless} IS NULL"
    wanted = _WANTED_TEXTS if relation.is_text else _WANTED
    return f"""
    SELECT {columns_of(relation.row, "r")} {wanted}
    JOIN {TABLE_OF[relation.row].name} r ON r.tenant_id = w.tenant_id AND r.{relation.by} = w.id
    {counts} ORDER BY r.id
    """


_ACCOUNT_COLUMNS: Final = len(LedgerAccount.__struct_fields__)
_WANTED: Final = "FROM unnest(%s::uuid[], %s::uuid[]) AS w (tenant_id, id)"
_WANTED_TEXTS: Final = "FROM unnest(%s::uuid[], %s::text[]) AS w (tenant_id, id)"
_LEDGERS: Final = f"""
SELECT {columns_of(Ledger, "l")} {_WANTED}
JOIN ledgers l ON l.tenant_id = w.tenant_id AND l.id = w.id
"""
_ACCOUNTS: Final = f"""
SELECT {columns_of(LedgerAccount, "a")}, {columns_of(AccountBalances, "b")} {_WANTED}
JOIN ledger_accounts a ON a.tenant_id = w.tenant_id AND a.id = w.id
JOIN ledger_account_balances b ON b.tenant_id = w.tenant_id AND b.ledger_account_id = w.id
"""
_TRANSACTIONS: Final = f"""
SELECT {columns_of(LedgerTransaction, "t")} {_WANTED}
JOIN ledger_transactions t ON t.tenant_id = w.tenant_id AND t.id = w.id
"""
_ENTRIES: Final = f"""
SELECT {columns_of(LedgerEntry, "e")} {_WANTED}
JOIN ledger_entries e ON e.tenant_id = w.tenant_id AND e.id = w.id
"""
_LIVE_ENTRIES: Final = f"""
SELECT {columns_of(LedgerEntry, "e")} {_WANTED}
JOIN ledger_entries e ON e.tenant_id = w.tenant_id AND e.ledger_transaction_id = w.id
WHERE e.discarded_at_us IS NULL ORDER BY e.id
"""
_ACCOUNT_HOLDERS: Final = """
SELECT a.tenant_id, a.external_id, a.ledger_id, a.id
FROM unnest(%s::uuid[], %s::text[]) AS w (tenant_id, external_id)
JOIN ledger_accounts a ON a.tenant_id = w.tenant_id AND a.external_id = w.external_id
WHERE a.discarded_at_us IS NULL
"""
_TRANSACTION_HOLDERS: Final = """
SELECT t.tenant_id, t.external_id, t.ledger_id, t.id
FROM unnest(%s::uuid[], %s::text[]) AS w (tenant_id, external_id)
JOIN ledger_transactions t ON t.tenant_id = w.tenant_id AND t.external_id = w.external_id
WHERE t.status <> 'archived'
"""
