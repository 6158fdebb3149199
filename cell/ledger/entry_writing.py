"""Writing entries: the one way in which anything changes an account's balances (pure).

Creating a ledger transaction, editing, posting or archiving it, posting a part of it and reversing
it all come down to the same: some entries are discarded, others written, and the accounts' sums and
versions follow. In order of precedence:
1. at most 1,000 entries, at least one credit and one debit
2. every account known, not discarded, all of one ledger
3. debits equal credits per currency and exponent
4. (the caller's: the external id is free in the ledger)
5. each entry's `lock_version` is the account's version before the write
6. each balance lock holds on the balances after the whole write

An account's version grows by one per write, however many of its entries come and go. Entries are
never edited but discarded and written anew. Archived entries count nowhere, and a write that only
adds such moves no version.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from msgspec.structs import replace

from cell.errors import NotFound, Unprocessable
from cell.ids import derive_id
from cell.ledger.balance_locks import require_entry_locks
from cell.ledger.category_locks import Locking, require_category_locks
from cell.ledger.commands import EntryDraft
from cell.ledger.model import (
    AccountBalances,
    BalanceMonitor,
    Direction,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    Stamp,
    Status,
)
from cell.ledger.monitors import transitions
from cell.ledger.rules import State

ENTRIES_MAX: Final = 1000

_DEBIT: Final = Direction.DEBIT


class Written(NamedTuple):
    """The rows of one write."""

    entries: tuple[LedgerEntry, ...]
    """New, in the order in which they were put in."""
    discarded: tuple[LedgerEntry, ...]
    balances: tuple[AccountBalances | BalanceMonitor, ...]
    """Of every account touched, then the monitors whose state they change; none where the write
    counts nowhere."""


class EntryWriting:
    """One write: `take_out` what goes, `judge` what is asked for, `put_in` what comes, `finish`.

    The new entries get the ids of the command's ordinals 1, 2, … in the order of `put_in`.
    """

    __slots__ = (
        "_locking",
        "_monitored",
        "_new",
        "_old",
        "_parameter",
        "_stamp",
        "_state",
        "_touched",
    )

    def __init__(self, state: State, stamp: Stamp, parameter: str = "ledger_entries") -> None:
        """`parameter` is the field that the caller's entries came in, for refusals to name."""
        self._state = state
        self._stamp = stamp
        self._parameter = parameter
        self._touched: dict[str, _Accumulators] = {}
        self._monitored: list[LedgerAccount] = []
        self._locking: Locking | None = None
        self._old: tuple[LedgerEntry, ...] = ()
        self._new: list[tuple[LedgerTransaction, EntryDraft]] = []

    def take_out(self, entries: Sequence[LedgerEntry]) -> None:
        """Discard live entries; locks are judged on balances without them."""
        self._old += tuple(entries)
        for entry in entries:
            self._touch(entry.ledger_account_id).add(entry.direction, entry.status, -entry.amount)

    def judge(self, drafts: Sequence[EntryDraft]) -> str:
        """Rungs 1 to 3 for the entries of one transaction; the id of their ledger."""
        _require_two_sides(drafts, self._parameter)
        ledger_id = None
        sums: dict[tuple[str, int], int] = {}
        for draft in drafts:
            account = self._touch(draft.ledger_account_id).account
            if account.discarded_at_us is not None:
                raise Unprocessable(f"ledger account {account.id} is discarded", self._parameter)
            if ledger_id is None:
                ledger_id = account.ledger_id
                _require_open_ledger(self._state, ledger_id, self._parameter)
            elif account.ledger_id != ledger_id:
                raise Unprocessable(
                    "the entries of a ledger transaction belong to one ledger", self._parameter
                )
            unit = (account.currency, account.currency_exponent)
            signed = draft.amount if draft.direction is _DEBIT else -draft.amount
            sums[unit] = sums.get(unit, 0) + signed
        for (currency, _), difference in sums.items():
            if difference:
                raise Unprocessable(
                    f"unbalanced in {currency}: debits minus credits is {difference}",
                    self._parameter,
                )
        assert ledger_id is not None
        return ledger_id

    def put_in(self, transaction: LedgerTransaction, drafts: Sequence[EntryDraft]) -> None:
        """Rung 5, and these drafts become entries of the transaction, in its status."""
        status = transaction.status
        for draft in drafts:
            accumulators = self._touch(draft.ledger_account_id)
            if draft.lock_version is not None:
                _require_lock_version(draft, accumulators.before, self._parameter)
            accumulators.add(draft.direction, status, draft.amount)
            self._new.append((transaction, draft))

    def lock_categories(self, command: Locking) -> None:
        """Have the command's locks on categories judged, too."""
        self._locking = command

    def finish(self) -> Written:
        """Rung 6; the rows. Nothing may be taken out or put in afterwards."""
        stamp, touched = self._stamp, self._touched
        # Archived at its creation, a transaction never counted anywhere: no version moves.
        counts = bool(self._old) or any(
            transaction.status is not Status.ARCHIVED for transaction, _ in self._new
        )
        after = {
            account_id: accumulators.after(
                accumulators.before.lock_version + counts,
                stamp.seq if counts else accumulators.before.seq,
            )
            for account_id, accumulators in touched.items()
        }
        self._require_locks(after)
        entries = tuple(
            [
                _entry(
                    transaction,
                    draft,
                    touched[draft.ledger_account_id].account,
                    after[draft.ledger_account_id],
                    stamp,
                    ordinal,
                )
                for ordinal, (transaction, draft) in enumerate(self._new, 1)
            ]
        )
        discarded = tuple(
            [
                replace(
                    entry,
                    discarded_at_us=stamp.at_us,
                    discarded_lock_version=after[entry.ledger_account_id].lock_version,
                    updated_at_us=stamp.at_us,
                    seq=stamp.seq,
                )
                for entry in self._old
            ]
        )
        if not counts:
            return Written(entries, discarded, ())
        monitors = transitions(self._monitored, after, self._state, stamp)
        return Written(entries, discarded, (*after.values(), *monitors))

    def _require_locks(self, after: dict[str, AccountBalances]) -> None:
        """Rung 6, all of it: whatever is locked is judged here, on the whole write's balances.

        `after` has every account that the write touches; all others are as they were.
        """
        for _, draft in self._new:
            if draft.pending_lock or draft.posted_lock or draft.available_lock:
                account_id = draft.ledger_account_id
                require_entry_locks(
                    draft, after[account_id], self._touched[account_id].account, self._parameter
                )
        if self._locking is not None:
            touched = self._touched.values()
            ledger_id = next(iter(touched)).account.ledger_id
            changes = [(each.before, after[each.account.id]) for each in touched]
            require_category_locks(self._locking, ledger_id, changes, self._state)

    def _touch(self, account_id: str) -> "_Accumulators":
        present = self._touched.get(account_id)
        if present is not None:
            return present
        account = self._state.account(account_id)
        if account is None:
            raise NotFound(f"no ledger account {account_id}", self._parameter)
        if account.monitor_count:
            self._monitored.append(account)
        before = self._state.balances(account_id)
        present = self._touched[account_id] = _Accumulators(
            account,
            before,
            before.pending_debits,
            before.pending_credits,
            before.posted_debits,
            before.posted_credits,
        )
        return present


@dataclass(slots=True)
class _Accumulators:
    """An account's sums while entries are being written to it."""

    account: LedgerAccount
    before: AccountBalances
    pending_debits: int
    pending_credits: int
    posted_debits: int
    posted_credits: int

    def add(self, direction: Direction, status: Status, amount: int) -> None:
        if status is Status.POSTED:
            if direction is _DEBIT:
                self.posted_debits += amount
            else:
                self.posted_credits += amount
        elif status is Status.PENDING:
            if direction is _DEBIT:
                self.pending_debits += amount
            else:
                self.pending_credits += amount

    def after(self, lock_version: int, seq: int) -> AccountBalances:
        return AccountBalances(
            tenant_id=self.before.tenant_id,
            ledger_account_id=self.before.ledger_account_id,
            pending_debits=self.pending_debits,
            pending_credits=self.pending_credits,
            posted_debits=self.posted_debits,
            posted_credits=self.posted_credits,
            lock_version=lock_version,
            seq=seq,
        )


def drafts_of(
    entries: Sequence[LedgerEntry], transaction: LedgerTransaction
) -> tuple[EntryDraft, ...]:
    """A transaction's entries once more; those dated as the transaction are dated as its next."""
    return tuple(
        EntryDraft(
            ledger_account_id=entry.ledger_account_id,
            direction=entry.direction,
            amount=entry.amount,
            effective_at_us=own_date(entry, transaction),
            metadata=entry.metadata,
        )
        for entry in entries
    )


def own_date(entry: LedgerEntry, transaction: LedgerTransaction) -> int | None:
    """The entry's date where it differs from its transaction's."""
    dated_alike = entry.effective_at_us == transaction.effective_at_us
    return None if dated_alike else entry.effective_at_us


def _require_two_sides(drafts: Sequence[EntryDraft], parameter: str) -> None:
    if len(drafts) > ENTRIES_MAX:
        raise Unprocessable(
            f"{len(drafts)} entries; a ledger transaction has at most {ENTRIES_MAX}",
            parameter,
        )
    sides = {draft.direction for draft in drafts}
    if len(sides) < 2:
        raise Unprocessable(
            "a ledger transaction needs at least one credit and one debit", parameter
        )


def _require_open_ledger(state: State, ledger_id: str, parameter: str) -> None:
    ledger = state.ledger(ledger_id)
    if ledger is None or ledger.discarded_at_us is not None:
        raise Unprocessable(f"ledger {ledger_id} is discarded", parameter)


def _require_lock_version(draft: EntryDraft, before: AccountBalances, parameter: str) -> None:
    if draft.lock_version != before.lock_version:
        raise Unprocessable(
            f"ledger account {draft.ledger_account_id} is at lock_version {before.lock_version}, "
            f"not {draft.lock_version}",
            parameter,
        )


def _entry(
    transaction: LedgerTransaction,
    draft: EntryDraft,
    account: LedgerAccount,
    resulting: AccountBalances,
    stamp: Stamp,
    ordinal: int,
) -> LedgerEntry:
    effective_at_us = draft.effective_at_us
    if effective_at_us is None:
        effective_at_us = transaction.effective_at_us
    return LedgerEntry(
        tenant_id=transaction.tenant_id,
        id=derive_id(stamp.id_base, ordinal),
        ledger_transaction_id=transaction.id,
        ledger_account_id=account.id,
        direction=draft.direction,
        status=transaction.status,
        amount=draft.amount,
        currency=account.currency,
        currency_exponent=account.currency_exponent,
        normal_balance=account.normal_balance,
        lock_version=resulting.lock_version,
        resulting_pending_debits=resulting.pending_debits,
        resulting_pending_credits=resulting.pending_credits,
        resulting_posted_debits=resulting.posted_debits,
        resulting_posted_credits=resulting.posted_credits,
        shows_resulting_balances=draft.shows_resulting_balances,
        metadata=draft.metadata,
        effective_at_us=effective_at_us,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        discarded_at_us=None,
        discarded_lock_version=None,
        seq=stamp.seq,
    )
