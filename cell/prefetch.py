"""What a batch's commands will ask for, and how it is read: a few set-based SELECTs at the most.

Rows are taken from the batch still being written, else from the cache, else from the database. That
order matters: the database shows the batch in flight as not yet there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from msgspec import UNSET

from cell.ledger import commands
from cell.ledger.model import (
    AccountBalances,
    ApiKey,
    Ledger,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    Row,
    TenantId,
)
from cell.rows import row_from
from cell.state import ExternalKey, LedgerCache, WorkingSet, held_external_id
from cell.tables import ROW_TABLES

Ids = set[tuple[TenantId, str]]
"""Ids asked for, each with the tenant that asks: a look-up never crosses tenants."""


@dataclass(slots=True)
class Needs:
    """Ids and external ids named by commands, by kind."""

    api_keys: Ids = field(default_factory=set)
    ledgers: Ids = field(default_factory=set)
    accounts: Ids = field(default_factory=set)
    transactions: Ids = field(default_factory=set)
    entries: Ids = field(default_factory=set)
    account_external_ids: set[ExternalKey] = field(default_factory=set)
    transaction_external_ids: set[ExternalKey] = field(default_factory=set)


@singledispatch
def note_needs(command: object, tenant_id: TenantId, needs: Needs) -> None:
    """Add to `needs` what `command` names."""
    raise AssertionError(f"unknown needs of {type(command).__name__}")


@note_needs.register
def _(command: commands.CreateLedgerTransaction, tenant_id: TenantId, needs: Needs) -> None:
    for draft in command.entries:
        needs.accounts.add((tenant_id, draft.ledger_account_id))
    if command.external_id is not None:
        needs.transaction_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _(command: commands.UpdateLedgerTransaction, tenant_id: TenantId, needs: Needs) -> None:
    needs.transactions.add((tenant_id, command.id))
    if command.entries is not UNSET:
        for draft in command.entries:
            needs.accounts.add((tenant_id, draft.ledger_account_id))
    if command.external_id is not UNSET and command.external_id is not None:
        needs.transaction_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _(command: commands.UpdateLedgerEntry, tenant_id: TenantId, needs: Needs) -> None:
    needs.entries.add((tenant_id, command.id))


@note_needs.register
def _(command: commands.CreateLedgerAccount, tenant_id: TenantId, needs: Needs) -> None:
    needs.ledgers.add((tenant_id, command.ledger_id))
    if command.external_id is not None:
        needs.account_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _(command: commands.UpdateLedgerAccount, tenant_id: TenantId, needs: Needs) -> None:
    needs.accounts.add((tenant_id, command.id))
    if command.external_id is not UNSET and command.external_id is not None:
        needs.account_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _(command: commands.DeleteLedgerAccount, tenant_id: TenantId, needs: Needs) -> None:
    needs.accounts.add((tenant_id, command.id))


@note_needs.register(commands.UpdateLedger | commands.DeleteLedger)
def _(
    command: commands.UpdateLedger | commands.DeleteLedger, tenant_id: TenantId, needs: Needs
) -> None:
    needs.ledgers.add((tenant_id, command.id))


@note_needs.register
def _(command: commands.CreateLedger, tenant_id: TenantId, needs: Needs) -> None:
    """A new ledger refers to nothing."""


@note_needs.register(commands.CreateApiKey | commands.RevokeApiKey)
def _(
    command: commands.CreateApiKey | commands.RevokeApiKey, tenant_id: TenantId, needs: Needs
) -> None:
    needs.api_keys.add((tenant_id, command.id))


class Prefetch:
    """Fills one working set."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        cache: LedgerCache,
        in_flight: WorkingSet | None,
    ) -> None:
        self._connection = connection
        self._cache = cache
        self._before = in_flight if in_flight is not None else WorkingSet()
        self._set = WorkingSet()

    async def fill(self, needs: Needs) -> WorkingSet:
        """The working set of commands with these needs; at most eight SELECTs, mostly none."""
        await self._api_keys(needs.api_keys)
        await self._entries(needs.entries)
        await self._transactions(
            needs.transactions
            | {
                (entry.tenant_id, entry.ledger_transaction_id)
                for entry in self._set.entries.values()
                if entry is not None
            }
        )
        await self._accounts(
            needs.accounts
            | {
                (entry.tenant_id, entry.ledger_account_id)
                for live in self._set.live_entries.values()
                for entry in live
            }
        )
        await self._ledgers(
            needs.ledgers
            | {
                (account.tenant_id, account.ledger_id)
                for account in self._set.accounts.values()
                if account is not None
            }
        )
        await self._holders(
            _ACCOUNT_HOLDERS,
            needs.account_external_ids,
            self._before.account_holders,
            self._before.accounts,
            self._set.account_holders,
        )
        await self._holders(
            _TRANSACTION_HOLDERS,
            needs.transaction_external_ids,
            self._before.transaction_holders,
            self._before.transactions,
            self._set.transaction_holders,
        )
        return self._set

    async def _api_keys(self, wanted: Ids) -> None:
        missing = _inherit(wanted, self._before.api_keys, self._set.api_keys)
        for row in await self._select(_API_KEYS, missing):
            self._set.api_keys[row[1]] = row_from(ApiKey, row)

    async def _entries(self, wanted: Ids) -> None:
        missing = _inherit(wanted, self._before.entries, self._set.entries)
        for row in await self._select(_ENTRIES, missing):
            self._set.entries[row[1]] = row_from(LedgerEntry, row)

    async def _transactions(self, wanted: Ids) -> None:
        working = self._set
        unknown = _inherit(wanted, self._before.transactions, working.transactions)
        for id, transaction in working.transactions.items():
            if transaction is not None:
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


AnyRow = TypeVar("AnyRow", bound=Row)


def _inherit(wanted: Ids, before: dict[str, AnyRow | None], into: dict[str, AnyRow | None]) -> Ids:
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


def _columns(alias: str, row_type: type[Row]) -> str:
    table = next(table for table in ROW_TABLES if table.row is row_type)
    return ", ".join(f"{alias}.{column}" for column in table.columns)


_ACCOUNT_COLUMNS: Final = len(LedgerAccount.__struct_fields__)
_WANTED: Final = "FROM unnest(%s::uuid[], %s::uuid[]) AS w (tenant_id, id)"
_API_KEYS: Final = f"""
SELECT {_columns("k", ApiKey)} {_WANTED}
JOIN api_keys k ON k.tenant_id = w.tenant_id AND k.id = w.id
"""
_LEDGERS: Final = f"""
SELECT {_columns("l", Ledger)} {_WANTED}
JOIN ledgers l ON l.tenant_id = w.tenant_id AND l.id = w.id
"""
_ACCOUNTS: Final = f"""
SELECT {_columns("a", LedgerAccount)}, {_columns("b", AccountBalances)} {_WANTED}
JOIN ledger_accounts a ON a.tenant_id = w.tenant_id AND a.id = w.id
JOIN ledger_account_balances b ON b.tenant_id = w.tenant_id AND b.ledger_account_id = w.id
"""
_TRANSACTIONS: Final = f"""
SELECT {_columns("t", LedgerTransaction)} {_WANTED}
JOIN ledger_transactions t ON t.tenant_id = w.tenant_id AND t.id = w.id
"""
_ENTRIES: Final = f"""
SELECT {_columns("e", LedgerEntry)} {_WANTED}
JOIN ledger_entries e ON e.tenant_id = w.tenant_id AND e.id = w.id
"""
_LIVE_ENTRIES: Final = f"""
SELECT {_columns("e", LedgerEntry)} {_WANTED}
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
