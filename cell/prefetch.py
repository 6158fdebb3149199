"""What a batch's commands will ask for, and how it is read: a few set-based SELECTs at the most.

Rows are taken from the batch still being written, else from the cache, else from the database. That
order matters: the database shows the batch in flight as not yet there.
"""

from collections.abc import Iterable, Sequence
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
from cell.state import ExternalKey, LedgerCache, WorkingSet
from cell.tables import ROW_TABLES

Ids = dict[str, TenantId]
"""Ids asked for, with the tenant that asks: a look-up never crosses tenants."""


@dataclass(slots=True)
class Needs:
    """Ids and external ids named by commands, by kind."""

    api_keys: Ids = field(default_factory=dict)
    ledgers: Ids = field(default_factory=dict)
    accounts: Ids = field(default_factory=dict)
    transactions: Ids = field(default_factory=dict)
    entries: Ids = field(default_factory=dict)
    account_external_ids: set[ExternalKey] = field(default_factory=set)
    transaction_external_ids: set[ExternalKey] = field(default_factory=set)


@singledispatch
def note_needs(command: object, tenant_id: TenantId, needs: Needs) -> None:
    """Add to `needs` what `command` names."""
    raise AssertionError(f"unknown needs of {type(command).__name__}")


@note_needs.register
def _(command: commands.CreateLedgerTransaction, tenant_id: TenantId, needs: Needs) -> None:
    for draft in command.entries:
        needs.accounts[draft.ledger_account_id] = tenant_id
    if command.external_id is not None:
        needs.transaction_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _(command: commands.UpdateLedgerTransaction, tenant_id: TenantId, needs: Needs) -> None:
    needs.transactions[command.id] = tenant_id
    if command.entries is not UNSET:
        for draft in command.entries:
            needs.accounts[draft.ledger_account_id] = tenant_id
    if command.external_id is not UNSET and command.external_id is not None:
        needs.transaction_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _(command: commands.UpdateLedgerEntry, tenant_id: TenantId, needs: Needs) -> None:
    needs.entries[command.id] = tenant_id


@note_needs.register
def _(command: commands.CreateLedgerAccount, tenant_id: TenantId, needs: Needs) -> None:
    needs.ledgers[command.ledger_id] = tenant_id
    if command.external_id is not None:
        needs.account_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _(command: commands.UpdateLedgerAccount, tenant_id: TenantId, needs: Needs) -> None:
    needs.accounts[command.id] = tenant_id
    if command.external_id is not UNSET and command.external_id is not None:
        needs.account_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _(command: commands.DeleteLedgerAccount, tenant_id: TenantId, needs: Needs) -> None:
    needs.accounts[command.id] = tenant_id


@note_needs.register(commands.UpdateLedger | commands.DeleteLedger)
def _(
    command: commands.UpdateLedger | commands.DeleteLedger, tenant_id: TenantId, needs: Needs
) -> None:
    needs.ledgers[command.id] = tenant_id


@note_needs.register
def _(command: commands.CreateLedger, tenant_id: TenantId, needs: Needs) -> None:
    """A new ledger refers to nothing."""


@note_needs.register(commands.CreateApiKey | commands.RevokeApiKey)
def _(
    command: commands.CreateApiKey | commands.RevokeApiKey, tenant_id: TenantId, needs: Needs
) -> None:
    needs.api_keys[command.id] = tenant_id


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
        entries = await self._entries(needs.entries)
        transactions = needs.transactions | {
            e.ledger_transaction_id: e.tenant_id for e in entries if e is not None
        }
        await self._transactions(transactions)
        accounts = needs.accounts | {
            entry.ledger_account_id: entry.tenant_id
            for live in self._set.live_entries.values()
            for entry in live
        }
        await self._accounts(accounts)
        ledgers = needs.ledgers | {
            account.ledger_id: account.tenant_id
            for account in self._set.accounts.values()
            if account is not None
        }
        await self._ledgers(ledgers)
        await self._holders(
            _ACCOUNT_HOLDERS,
            needs.account_external_ids,
            self._before.account_holders,
            self._set.account_holders,
        )
        await self._holders(
            _TRANSACTION_HOLDERS,
            needs.transaction_external_ids,
            self._before.transaction_holders,
            self._set.transaction_holders,
        )
        return self._set

    async def _api_keys(self, wanted: Ids) -> None:
        missing = _inherit(wanted, self._before.api_keys, self._set.api_keys)
        for row in await self._select(_API_KEYS, missing):
            self._set.api_keys[row[1]] = row_from(ApiKey, row)

    async def _entries(self, wanted: Ids) -> list[LedgerEntry | None]:
        missing = _inherit(wanted, self._before.entries, self._set.entries)
        for row in await self._select(_ENTRIES, missing):
            self._set.entries[row[1]] = row_from(LedgerEntry, row)
        return [self._set.entries[id] for id in wanted]

    async def _transactions(self, wanted: Ids) -> None:
        before, working = self._before, self._set
        missing: Ids = {}
        for id, tenant_id in wanted.items():
            # A transaction written by the batch in flight is inherited with its entries.
            if before.transactions.get(id) is not None and id in before.live_entries:
                working.transactions[id] = before.transactions[id]
                self._keep_live(id, before.live_entries[id])
            else:
                working.transactions[id] = None
                missing[id] = tenant_id
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
        missing: Ids = {}
        for id, tenant_id in wanted.items():
            account = before.accounts.get(id)
            if account is not None:
                working.accounts[id] = account
                working.balances[id] = before.balances[id]
                continue
            cached = self._cache.account(tenant_id, id)
            if cached is not None:
                working.accounts[id], working.balances[id] = cached
            else:
                working.accounts[id] = None
                missing[id] = tenant_id
        for row in await self._select(_ACCOUNTS, missing):
            split = len(LedgerAccount.__struct_fields__)
            working.accounts[row[1]] = row_from(LedgerAccount, row[:split])
            working.balances[row[1]] = row_from(AccountBalances, row[split:])

    async def _ledgers(self, wanted: Ids) -> None:
        before, working = self._before, self._set
        missing: Ids = {}
        for id, tenant_id in wanted.items():
            known = before.ledgers.get(id) or self._cache.ledger(tenant_id, id)
            working.ledgers[id] = known
            if known is None:
                missing[id] = tenant_id
        for row in await self._select(_LEDGERS, missing):
            working.ledgers[row[1]] = row_from(Ledger, row)

    async def _holders(
        self,
        statement: LiteralString,
        wanted: Iterable[ExternalKey],
        before: dict[ExternalKey, dict[str, str]],
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
            holders[(tenant_id, external_id)][ledger_id] = id

    async def _select(self, statement: LiteralString, ids: Ids) -> Sequence[tuple[Any, ...]]:
        if not ids:
            return ()
        parameters = (list(ids.values()), list(ids))
        cursor = await self._connection.execute(statement, parameters, prepare=True)
        return await cursor.fetchall()


AnyRow = TypeVar("AnyRow", bound=Row)


def _inherit(wanted: Ids, before: dict[str, AnyRow | None], into: dict[str, AnyRow | None]) -> Ids:
    """Take over what the batch in flight knows to exist; the rest is returned, None for now."""
    missing: Ids = {}
    for id, tenant_id in wanted.items():
        into[id] = before.get(id)
        if into[id] is None:
            missing[id] = tenant_id
    return missing


def _columns(alias: str, row_type: type[Row]) -> str:
    table = next(table for table in ROW_TABLES if table.row is row_type)
    return ", ".join(f"{alias}.{column}" for column in table.columns)


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
