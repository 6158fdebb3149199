"""The rules of ledger transactions (pure): creation, the state machine, edits, locks, versions.

Writing a transaction's entries, in order of precedence:
1. at most 1,000 entries, at least one credit and one debit
2. every account known, not discarded, all of one ledger
3. debits equal credits per currency and exponent
4. the external id free in the ledger
5. each entry's `lock_version` is the account's version before the write
6. each balance lock holds on the account's balances after the whole transaction

An account's version grows by one per transaction write; entries are never edited but discarded and
written anew. Archived entries count nowhere and move no version.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from cell.errors import NotFound, Unprocessable
from cell.ids import derive_id
from cell.ledger import balances
from cell.ledger.commands import (
    BalanceLock,
    CreateLedgerTransaction,
    EntryDraft,
    UpdateLedgerTransaction,
)
from cell.ledger.model import (
    AccountBalances,
    Direction,
    Effects,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    Stamp,
    Status,
    TenantId,
)
from cell.ledger.needs import Needs, note_needs
from cell.ledger.rules import State, apply, merged_metadata

ENTRIES_MAX: Final = 1000

_DEBIT: Final = Direction.DEBIT
_CREDIT: Final = Direction.CREDIT


@dataclass(slots=True)
class _Accumulators:
    """An account's sums while a transaction is being written to it."""

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


@note_needs.register
def _needs_of_new(command: CreateLedgerTransaction, tenant_id: TenantId, needs: Needs) -> None:
    for draft in command.entries:
        needs.accounts.add((tenant_id, draft.ledger_account_id))
    if command.external_id is not None:
        needs.transaction_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _needs_of_update(command: UpdateLedgerTransaction, tenant_id: TenantId, needs: Needs) -> None:
    needs.transactions.add((tenant_id, command.id))
    if command.entries is not UNSET:
        for draft in command.entries:
            needs.accounts.add((tenant_id, draft.ledger_account_id))
    if command.external_id is not UNSET and command.external_id is not None:
        needs.transaction_external_ids.add((tenant_id, command.external_id))


@apply.register
def _create(command: CreateLedgerTransaction, state: State, stamp: Stamp) -> Effects:
    drafts = command.entries
    touched: dict[str, _Accumulators] = {}
    ledger_id = _judge_entries(drafts, state, touched)
    if command.status is not Status.ARCHIVED:
        require_free_external_id(state, ledger_id, command.external_id, None)
    effective_at_us = command.effective_at_us
    if effective_at_us is None:
        effective_at_us = stamp.at_us
    transaction = LedgerTransaction(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        ledger_id=ledger_id,
        status=command.status,
        description=command.description,
        external_id=command.external_id,
        ledgerable_type=command.ledgerable_type,
        ledgerable_id=command.ledgerable_id,
        reverses_id=None,
        reversed_by_id=None,
        partially_posts_id=None,
        archived_reason=None,
        metadata=command.metadata,
        effective_at_us=effective_at_us,
        posted_at_us=stamp.at_us if command.status is Status.POSTED else None,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        version=0,
        seq=stamp.seq,
    )
    after, entries = _write_entries(transaction, drafts, touched, stamp)
    if command.status is Status.ARCHIVED:
        return Effects(inserted=(transaction, *entries))
    return Effects(inserted=(transaction, *entries), updated=tuple(after.values()))


@apply.register
def _update(command: UpdateLedgerTransaction, state: State, stamp: Stamp) -> Effects:
    present = state.transaction(command.id)
    if present is None:
        raise NotFound(f"no ledger transaction {command.id}")
    changed = _with_changes(present, command, stamp)
    if present.status is not Status.PENDING:
        _require_only_metadata_changed(present, changed, command)
    rewrites = (
        command.entries is not UNSET
        or changed.status is not present.status
        or changed.effective_at_us != present.effective_at_us
    )
    if changed == present and not rewrites:
        return Effects(updated=(present,))
    changed = replace(
        changed, version=present.version + 1, updated_at_us=stamp.at_us, seq=stamp.seq
    )
    if not rewrites:
        _require_free_new_external_id(state, present, changed)
        return Effects(updated=(changed,))
    return _rewrite_entries(present, changed, command, state, stamp)


def _with_changes(
    present: LedgerTransaction, command: UpdateLedgerTransaction, stamp: Stamp
) -> LedgerTransaction:
    """`present` with the fields asked for; version, times and entries are the caller's."""
    status = present.status if command.status is UNSET else command.status
    if present.status is not Status.PENDING and status is not present.status:
        raise Unprocessable(
            f"a ledger transaction that is {present.status} cannot become {status}",
            "ledger_transaction",
        )
    posts = status is Status.POSTED and present.status is Status.PENDING

    return replace(
        present,
        status=status,
        posted_at_us=stamp.at_us if posts else present.posted_at_us,
        description=present.description if command.description is UNSET else command.description,
        effective_at_us=present.effective_at_us
        if command.effective_at_us is UNSET
        else command.effective_at_us,
        external_id=present.external_id if command.external_id is UNSET else command.external_id,
        ledgerable_type=present.ledgerable_type
        if command.ledgerable_type is UNSET
        else command.ledgerable_type,
        ledgerable_id=present.ledgerable_id
        if command.ledgerable_id is UNSET
        else command.ledgerable_id,
        metadata=merged_metadata(present.metadata, command.metadata),
    )


def _require_only_metadata_changed(
    present: LedgerTransaction, changed: LedgerTransaction, command: UpdateLedgerTransaction
) -> None:
    """A final transaction keeps all but its metadata; what is sent again unchanged passes."""
    if command.entries is UNSET and replace(changed, metadata=present.metadata) == present:
        return
    raise Unprocessable(
        f"only metadata can be changed on a ledger transaction that is {present.status}",
        "ledger_transaction",
    )


def _rewrite_entries(
    present: LedgerTransaction,
    changed: LedgerTransaction,
    command: UpdateLedgerTransaction,
    state: State,
    stamp: Stamp,
) -> Effects:
    """Discard the live entries of a pending transaction and write the ones asked for."""
    old = state.live_entries(present.id)
    touched: dict[str, _Accumulators] = {}
    # What the transaction itself did before comes out first: locks judge the balances as they
    # would be after the whole change.
    for entry in old:
        _touch(touched, entry.ledger_account_id, state).add(
            entry.direction, entry.status, -entry.amount
        )
    if command.entries is UNSET:
        drafts = _drafts_of(old, present, changed)
    else:
        drafts = command.entries
        if _judge_entries(drafts, state, touched) != present.ledger_id:
            raise Unprocessable(
                "the entries belong to another ledger than the transaction", "ledger_entries"
            )
    _require_free_new_external_id(state, present, changed)
    after, entries = _write_entries(changed, drafts, touched, stamp)
    discarded = tuple(
        replace(
            entry,
            discarded_at_us=stamp.at_us,
            discarded_lock_version=after[entry.ledger_account_id].lock_version,
            updated_at_us=stamp.at_us,
            seq=stamp.seq,
        )
        for entry in old
    )
    return Effects(inserted=entries, updated=(changed, *discarded, *after.values()))


def _drafts_of(
    entries: Sequence[LedgerEntry], present: LedgerTransaction, changed: LedgerTransaction
) -> tuple[EntryDraft, ...]:
    """The same entries once more; those dated as their transaction stay dated as it."""
    return tuple(
        EntryDraft(
            ledger_account_id=entry.ledger_account_id,
            direction=entry.direction,
            amount=entry.amount,
            effective_at_us=(
                None if entry.effective_at_us == present.effective_at_us else entry.effective_at_us
            ),
            metadata=entry.metadata,
        )
        for entry in entries
    )


def _judge_entries(
    drafts: Sequence[EntryDraft], state: State, touched: dict[str, _Accumulators]
) -> str:
    """Rungs 1 to 3; touches every account; returns the ledger's id."""
    if len(drafts) > ENTRIES_MAX:
        raise Unprocessable(
            f"{len(drafts)} entries; a ledger transaction has at most {ENTRIES_MAX}",
            "ledger_entries",
        )
    sides = {draft.direction for draft in drafts}
    if len(sides) < 2:
        raise Unprocessable(
            "a ledger transaction needs at least one credit and one debit", "ledger_entries"
        )
    ledger_id = None
    sums: dict[tuple[str, int], int] = {}
    for draft in drafts:
        account = _touch(touched, draft.ledger_account_id, state).account
        if account.discarded_at_us is not None:
            raise Unprocessable(f"ledger account {account.id} is discarded", "ledger_entries")
        if ledger_id is None:
            ledger_id = account.ledger_id
            _require_open_ledger(state, ledger_id)
        elif account.ledger_id != ledger_id:
            raise Unprocessable(
                "the entries of a ledger transaction belong to one ledger", "ledger_entries"
            )
        unit = (account.currency, account.currency_exponent)
        signed = draft.amount if draft.direction is _DEBIT else -draft.amount
        sums[unit] = sums.get(unit, 0) + signed
    for (currency, _), difference in sums.items():
        if difference:
            raise Unprocessable(
                f"unbalanced in {currency}: debits minus credits is {difference}",
                "ledger_entries",
            )
    assert ledger_id is not None
    return ledger_id


def _touch(touched: dict[str, _Accumulators], account_id: str, state: State) -> _Accumulators:
    present = touched.get(account_id)
    if present is not None:
        return present
    account = state.account(account_id)
    if account is None:
        raise NotFound(f"no ledger account {account_id}", "ledger_entries")
    before = state.balances(account_id)
    present = touched[account_id] = _Accumulators(
        account,
        before,
        before.pending_debits,
        before.pending_credits,
        before.posted_debits,
        before.posted_credits,
    )
    return present


def _require_open_ledger(state: State, ledger_id: str) -> None:
    ledger = state.ledger(ledger_id)
    if ledger is None or ledger.discarded_at_us is not None:
        raise Unprocessable(f"ledger {ledger_id} is discarded", "ledger_entries")


def require_free_external_id(
    state: State, ledger_id: str, external_id: str | None, own_id: str | None
) -> None:
    """Rung 4: one pending or posted transaction of a ledger may hold an external id."""
    if external_id is None:
        return
    holder = state.transaction_with_external_id(ledger_id, external_id)
    if holder is not None and holder != own_id:
        raise Unprocessable(
            f"external_id {external_id} is taken by another ledger transaction of the ledger",
            "external_id",
        )


def _require_free_new_external_id(
    state: State, present: LedgerTransaction, changed: LedgerTransaction
) -> None:
    """Rung 4 of an update: what it holds already is its own; archived, it holds nothing."""
    if changed.external_id != present.external_id and changed.status is not Status.ARCHIVED:
        require_free_external_id(state, present.ledger_id, changed.external_id, present.id)


def _write_entries(
    transaction: LedgerTransaction,
    drafts: Sequence[EntryDraft],
    touched: dict[str, _Accumulators],
    stamp: Stamp,
) -> tuple[dict[str, AccountBalances], tuple[LedgerEntry, ...]]:
    """Rungs 5 and 6; the accounts' balances afterwards and the new entries."""
    status = transaction.status
    for draft in drafts:
        accumulators = touched[draft.ledger_account_id]
        if draft.lock_version is not None:
            _require_lock_version(draft, accumulators.before)
        accumulators.add(draft.direction, status, draft.amount)
    # Archived at its creation, a transaction never counted anywhere: no version moves.
    counts = status is not Status.ARCHIVED or transaction.version > 0
    after = {
        account_id: accumulators.after(
            accumulators.before.lock_version + counts,
            stamp.seq if counts else accumulators.before.seq,
        )
        for account_id, accumulators in touched.items()
    }
    for draft in drafts:
        if draft.pending_lock or draft.posted_lock or draft.available_lock:
            _require_balance_locks(
                draft, after[draft.ledger_account_id], touched[draft.ledger_account_id].account
            )
    entries = tuple(
        _entry(transaction, draft, touched[draft.ledger_account_id].account, after, stamp, ordinal)
        for ordinal, draft in enumerate(drafts, 1)
    )
    return after, entries


def _entry(
    transaction: LedgerTransaction,
    draft: EntryDraft,
    account: LedgerAccount,
    after: dict[str, AccountBalances],
    stamp: Stamp,
    ordinal: int,
) -> LedgerEntry:
    resulting = after[account.id]
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


def _require_lock_version(draft: EntryDraft, before: AccountBalances) -> None:
    if draft.lock_version != before.lock_version:
        raise Unprocessable(
            f"ledger account {draft.ledger_account_id} is at lock_version {before.lock_version}, "
            f"not {draft.lock_version}",
            "ledger_entries",
        )


def _require_balance_locks(
    draft: EntryDraft, after: AccountBalances, account: LedgerAccount
) -> None:
    for name, lock, balance in (
        ("pending", draft.pending_lock, balances.pending),
        ("posted", draft.posted_lock, balances.posted),
        ("available", draft.available_lock, balances.available),
    ):
        if lock is None:
            continue
        amount = balance(after, account.normal_balance).amount
        broken = _broken_condition(lock, amount)
        if broken is not None:
            raise Unprocessable(
                f"the {name} balance of ledger account {account.id} would be {amount}, "
                f"not {broken}",
                "ledger_entries",
            )


_CONDITIONS: Final[tuple[tuple[str, Callable[[int, int], bool]], ...]] = (
    ("gt", int.__gt__),
    ("gte", int.__ge__),
    ("lt", int.__lt__),
    ("lte", int.__le__),
    ("eq", int.__eq__),
)


def _broken_condition(lock: BalanceLock, amount: int) -> str | None:
    for name, holds in _CONDITIONS:
        bound: int | None = getattr(lock, name)
        if bound is not None and not holds(amount, bound):
            return f"{name} {bound}"
    return None
