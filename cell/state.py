"""What the sequencer knows of the ledgers: a bounded cache, and the working set of a batch.

The cache holds committed rows only and is authoritative only while the guard holds; whoever finds
the guard broken or a commit's outcome unknown clears it. A batch's working set is complete:
whatever its commands may ask for was put there beforehand, an unknown object as None.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from cell.ledger.model import (
    AccountBalances,
    Effects,
    Ledger,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    Row,
    Status,
    TenantId,
)
from cell.ledger.needs import ExternalKey, Question, Relation
from cell.missed import Missed

AnyRow = TypeVar("AnyRow", bound=Row)
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Kept = TypeVar("Kept")


class GenerationCache(Generic[Key, Value]):
    """A bounded map that forgets what was not used for longest, in two generations.

    Cheaper than a linked list on every access: a value found in the old generation moves to the
    young one; when the young one is half the bound, it becomes the old one. What was old until then
    leaves one by one: to free ten thousand transactions at once would stop the cell for 0.1 s.
    """

    def __init__(self, entries_max: int) -> None:
        self._half = max(1, entries_max // 2)
        self._young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}
        self._leaving: dict[Key, Value] = {}
        """Nobody finds these any more. None is left when the young generation becomes the old one:
        it grows no faster than they leave."""

    def get(self, key: Key) -> Value | None:
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        self._young[key] = value
        if self._leaving:
            self._leaving.popitem()
        if len(self._young) >= self._half:
            self._leaving, self._old, self._young = self._old, self._young, {}

    def drop(self, key: Key) -> None:
        self._young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        self._young, self._old, self._leaving = {}, {}, {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


Holders = dict[str, str]
"""Of one external id: ledger id to the id of the object that holds it there."""


@dataclass(slots=True)
class WorkingSet:
    """Every row a batch may touch, as of its start plus what its commands have changed so far."""

    ledgers: dict[str, Ledger | None] = field(default_factory=dict)
    accounts: dict[str, LedgerAccount | None] = field(default_factory=dict)
    balances: dict[str, AccountBalances] = field(default_factory=dict)
    transactions: dict[str, LedgerTransaction | None] = field(default_factory=dict)
    entries: dict[str, LedgerEntry | None] = field(default_factory=dict)
    live_entries: dict[str, tuple[LedgerEntry, ...]] = field(default_factory=dict)
    account_holders: dict[ExternalKey, Holders] = field(default_factory=dict)
    transaction_holders: dict[ExternalKey, Holders] = field(default_factory=dict)
    rows: dict[type[Row], dict[str, Row | None]] = field(default_factory=dict)
    """Rows of all other tables, by id."""
    related: dict[Relation, dict[tuple[TenantId, str], dict[str, Row]]] = field(
        default_factory=dict
    )
    """Of those tables: relation, key, id."""
    answers: dict[tuple[TenantId, Question], object] = field(default_factory=dict)

    def apply(self, effects: Effects) -> None:
        """Make the rows of one command visible to the next one.

        A new transaction and its entries are left out: nobody knows their ids before the batch is
        committed, and then they are read from the database. Only its external id is known at once.
        Whoever is led to one by another row is exclusive.
        """
        for row in effects.inserted:
            if isinstance(row, LedgerTransaction):
                self._hold_transaction(row)
            elif not isinstance(row, LedgerEntry):
                self._put(row)
        rewritten = False
        for row in effects.updated:
            self._put(row)
            rewritten = rewritten or type(row) is LedgerEntry
        if rewritten:
            self._settle_entries(effects)

    def commit(self, effects: Effects) -> None:
        """As `apply`; and what is new is known from here on, as if read from the database."""
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

    def _put(self, row: Row) -> None:
        if isinstance(row, AccountBalances):
            self.balances[row.ledger_account_id] = row
        elif isinstance(row, LedgerEntry):
            self.entries[row.id] = row
        elif isinstance(row, LedgerTransaction):
            self._release(self.transaction_holders, self.transactions.get(row.id))
            self.transactions[row.id] = row
            self._hold_transaction(row)
        elif isinstance(row, LedgerAccount):
            self._release(self.account_holders, self.accounts.get(row.id))
            self.accounts[row.id] = row
            external_id = held_external_id(row)
            if external_id is not None:
                self._hold(self.account_holders, row, external_id)
        elif isinstance(row, Ledger):
            self.ledgers[row.id] = row
        else:
            self._put_other(row)

    def _put_other(self, row: Row) -> None:
        """A row of a table without a place of its own, in whatever relations were read."""
        changed: Any = row
        known = self.rows.setdefault(type(row), {})
        for relation, groups in self.related.items():
            if relation.row is not type(row):
                continue
            before = known.get(changed.id)
            key_before = relation.key_of(before) if before is not None else None
            if key_before is not None:
                groups.get((row.tenant_id, key_before), {}).pop(changed.id, None)
            group = groups.get((row.tenant_id, relation.key_of(row) or ""))
            if group is not None:
                group[changed.id] = row
        known[changed.id] = row

    def _hold_transaction(self, row: LedgerTransaction) -> None:
        external_id = held_external_id(row)
        if external_id is not None:
            self._hold(self.transaction_holders, row, external_id)

    @staticmethod
    def _hold(
        holders: dict[ExternalKey, Holders],
        row: LedgerTransaction | LedgerAccount,
        external_id: str,
    ) -> None:
        held = holders.get((row.tenant_id, external_id))
        # Holders that no command asked for stay unread: a part of them would pass for the whole.
        if held is not None:
            held[row.ledger_id] = row.id

    @staticmethod
    def _release(
        holders: dict[ExternalKey, Holders], row: LedgerTransaction | LedgerAccount | None
    ) -> None:
        if row is None or row.external_id is None:
            return
        held = holders.get((row.tenant_id, row.external_id))
        if held is not None and held.get(row.ledger_id) == row.id:
            del held[row.ledger_id]

    def _settle_entries(self, effects: Effects) -> None:
        """Keep the live entries of a transaction that was rewritten: the old, then the new."""
        changed = [row for row in effects.updated if isinstance(row, LedgerEntry)]
        inserted = [row for row in effects.inserted if isinstance(row, LedgerEntry)]
        self.entries.update((row.id, row) for row in inserted)
        for transaction_id in {row.ledger_transaction_id for row in changed}:
            present = (self.entries[e.id] for e in self.live_entries.get(transaction_id, ()))
            live = [e for e in present if e is not None and e.discarded_at_us is None]
            live += [e for e in inserted if e.ledger_transaction_id == transaction_id]
            self.live_entries[transaction_id] = tuple(live)


def held_external_id(row: LedgerTransaction | LedgerAccount) -> str | None:
    """The external id that nobody else of the ledger may take: none once archived or discarded."""
    if isinstance(row, LedgerTransaction):
        return None if row.status is Status.ARCHIVED else row.external_id
    return None if row.discarded_at_us is not None else row.external_id


class TenantView:
    """The working set as the rules see it: of one tenant only (implements `rules.State`).

    Ids are random, yet every look-up compares the row's tenant: another tenant's object is unknown.
    """

    __slots__ = ("_set", "tenant_id")

    def __init__(self, tenant_id: TenantId, working_set: WorkingSet) -> None:
        self.tenant_id = tenant_id
        self._set = working_set

    def row(self, kind: type[AnyRow], id: str) -> AnyRow | None:
        rows: Mapping[Any, Any] = self._set.rows
        row: AnyRow | None = rows[kind].get(id)
        return row if row is not None and row.tenant_id == self.tenant_id else None

    def related(self, relation: Relation, key: str) -> Sequence[Any]:
        return tuple(self._set.related[relation][(self.tenant_id, key)].values())

    def answer(self, question: Question) -> Any:
        return self._set.answers[(self.tenant_id, question)]

    def ledger(self, id: str) -> Ledger | None:
        row = self._set.ledgers.get(id)
        return row if row is not None and row.tenant_id == self.tenant_id else None

    def account(self, id: str) -> LedgerAccount | None:
        row = self._set.accounts.get(id)
        return row if row is not None and row.tenant_id == self.tenant_id else None

    def balances(self, account_id: str) -> AccountBalances:
        return self._set.balances[account_id]

    def transaction(self, id: str) -> LedgerTransaction | None:
        row = self._set.transactions.get(id)
        return row if row is not None and row.tenant_id == self.tenant_id else None

    def entry(self, id: str) -> LedgerEntry | None:
        row = self._set.entries.get(id)
        return row if row is not None and row.tenant_id == self.tenant_id else None

    def live_entries(self, transaction_id: str) -> tuple[LedgerEntry, ...]:
        return self._set.live_entries[transaction_id]

    def account_with_external_id(self, ledger_id: str, external_id: str) -> str | None:
        return self._set.account_holders[(self.tenant_id, external_id)].get(ledger_id)

    def transaction_with_external_id(self, ledger_id: str, external_id: str) -> str | None:
        return self._set.transaction_holders[(self.tenant_id, external_id)].get(ledger_id)


TransactionWithEntries = tuple[LedgerTransaction, tuple[LedgerEntry, ...]]
CACHED_ENTRIES_MAX: Final = 16
"""A transaction with more entries is not kept: a few giants would crowd out everything else."""


class LedgerCache:
    """Committed rows between batches: accounts with their balances, ledgers, late transactions.

    Holds at most `accounts_max` accounts, half as many transactions with their live entries, and a
    sixteenth as many ledgers.
    """

    def __init__(self, accounts_max: int) -> None:
        self._accounts: GenerationCache[
            str, tuple[object, tuple[LedgerAccount, AccountBalances]]
        ] = GenerationCache(accounts_max)
        self._transactions: GenerationCache[str, tuple[object, TransactionWithEntries]] = (
            GenerationCache(accounts_max // 2)
        )
        self._ledgers: GenerationCache[str, tuple[object, Ledger]] = GenerationCache(
            max(64, accounts_max // 16)
        )
        self._stays: dict[TenantId, object] = {}
        """Of each tenant, from its first row here until it is forgotten. Rows say of which stay
        they are: those of an earlier one are no longer found, and in time no longer kept."""
        self.missed = Missed()

    def account(
        self, tenant_id: TenantId, account_id: str
    ) -> tuple[LedgerAccount, AccountBalances] | None:
        return self._of_stay(tenant_id, self._accounts.get(account_id))

    def ledger(self, tenant_id: TenantId, ledger_id: str) -> Ledger | None:
        return self._of_stay(tenant_id, self._ledgers.get(ledger_id))

    def transaction(
        self, tenant_id: TenantId, transaction_id: str
    ) -> TransactionWithEntries | None:
        return self._of_stay(tenant_id, self._transactions.get(transaction_id))

    def _of_stay(self, tenant_id: TenantId, found: tuple[object, Kept] | None) -> Kept | None:
        if found is None or found[0] is not self._stays.get(tenant_id):
            return None
        return found[1]

    def _stay(self, tenant_id: TenantId) -> object:
        stay = self._stays.get(tenant_id)
        if stay is None:
            stay = self._stays[tenant_id] = object()
        return stay

    def absorb_created(self, transaction: LedgerTransaction, rows: Sequence[Row]) -> None:
        """Take over a transaction that a batch has created: its entries are among the rows."""
        id = transaction.id
        entries = tuple(
            [r for r in rows if isinstance(r, LedgerEntry) and r.ledger_transaction_id == id]
        )
        self._keep_transaction(transaction, entries)

    def absorb(self, working_set: WorkingSet, tenants: Collection[TenantId]) -> None:
        """Take over what a batch has committed, and what it had read, of these tenants."""
        for transaction_id, entries in working_set.live_entries.items():
            transaction = working_set.transactions[transaction_id]
            if transaction is not None and transaction.tenant_id in tenants:
                self._keep_transaction(transaction, entries)
        for account_id, account in working_set.accounts.items():
            if account is not None and account.tenant_id in tenants:
                kept = (account, working_set.balances[account_id])
                self._accounts.put(account_id, (self._stay(account.tenant_id), kept))
        for ledger_id, ledger in working_set.ledgers.items():
            if ledger is not None and ledger.tenant_id in tenants:
                self._ledgers.put(ledger_id, (self._stay(ledger.tenant_id), ledger))

    def adopt(
        self,
        tenant_id: TenantId,
        accounts: Mapping[str, tuple[LedgerAccount, AccountBalances]],
        ledgers: Mapping[str, Ledger],
    ) -> None:
        """Take over rows of the tenant that are as last committed."""
        stay = self._stay(tenant_id)
        for account_id, kept in accounts.items():
            self._accounts.put(account_id, (stay, kept))
        for ledger_id, ledger in ledgers.items():
            self._ledgers.put(ledger_id, (stay, ledger))

    def forget(self, tenant_id: TenantId) -> None:
        """All rows of the tenant: another cell may have changed them. Takes no longer for more."""
        self._stays.pop(tenant_id, None)

    def _keep_transaction(
        self, transaction: LedgerTransaction, entries: tuple[LedgerEntry, ...]
    ) -> None:
        if len(entries) <= CACHED_ENTRIES_MAX:
            stay = self._stay(transaction.tenant_id)
            self._transactions.put(transaction.id, (stay, (transaction, entries)))
        else:
            # What was kept of it before, with fewer entries, is not so any more.
            self._transactions.drop(transaction.id)

    def clear(self) -> None:
        self._accounts.clear()
        self._transactions.clear()
        self._ledgers.clear()
        self._stays.clear()

    def __len__(self) -> int:
        return len(self._accounts)
