"""The rules of ledger transactions (pure): creation, the state machine, edits.

Partial posts and reversals are in modules of their own, as is the writing of entries, with the
order in which what is wrong with them is found (`entry_writing.py`).
"""

from collections.abc import Sequence
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from cell.errors import BalanceLockBroken, NotFound, Unprocessable
from cell.ledger.category_locks import note_category_locks, require_category_locks
from cell.ledger.commands import CreateLedgerTransaction, EntryDraft, UpdateLedgerTransaction
from cell.ledger.entry_writing import EntryWriting, drafts_of
from cell.ledger.model import (
    Effects,
    LedgerTransaction,
    LedgerTransactionVersion,
    Stamp,
    Status,
    TenantId,
)
from cell.ledger.needs import FURTHER_NEEDS, Needs, note_needs
from cell.ledger.rules import State, apply, merged_metadata
from cell.ledger.settlement_transactions import note_settlement, require_no_settlement
from cell.ledger.transaction_versions import name_in_original, next_version

ARCHIVED_BY_LOCK: Final = "balance_lock_failure"
"""The one reason why a transaction is archived that nobody archived."""


@note_needs.register
def _needs_of_new(command: CreateLedgerTransaction, tenant_id: TenantId, needs: Needs) -> None:
    for draft in command.entries:
        needs.accounts.add((tenant_id, draft.ledger_account_id))
    if command.external_id is not None:
        needs.transaction_external_ids.add((tenant_id, command.external_id))
    if command.category_locks:
        note_category_locks(command, tenant_id, needs)


@note_needs.register
def _needs_of_update(command: UpdateLedgerTransaction, tenant_id: TenantId, needs: Needs) -> None:
    needs.transactions.add((tenant_id, command.id))
    note_settlement(command.id, tenant_id, needs)
    if command.entries is not UNSET:
        for draft in command.entries:
            needs.accounts.add((tenant_id, draft.ledger_account_id))
    if command.external_id is not UNSET and command.external_id is not None:
        needs.transaction_external_ids.add((tenant_id, command.external_id))
    if command.category_locks:
        note_category_locks(command, tenant_id, needs)


def _further_needs_of_update(command: UpdateLedgerTransaction, state: State, needs: Needs) -> None:
    """A reversal that is archived lets go of its original."""
    if command.status is Status.ARCHIVED:
        present = state.transaction(command.id)
        if present is not None and present.reverses_id is not None:
            needs.transactions.add((state.tenant_id, present.reverses_id))


FURTHER_NEEDS[UpdateLedgerTransaction] = _further_needs_of_update


@apply.register
def _create(command: CreateLedgerTransaction, state: State, stamp: Stamp) -> Effects:
    try:
        return _write_new(command, state, stamp)
    except BalanceLockBroken:
        if not command.archives_on_broken_lock:
            raise
    recorded = replace(
        command,
        status=Status.ARCHIVED,
        entries=_without_locks(command.entries),
        category_locks=(),
    )
    return _write_new(recorded, state, stamp, ARCHIVED_BY_LOCK)


def _without_locks(drafts: Sequence[EntryDraft]) -> tuple[EntryDraft, ...]:
    return tuple(
        replace(draft, pending_lock=None, posted_lock=None, available_lock=None) for draft in drafts
    )


def _write_new(
    command: CreateLedgerTransaction,
    state: State,
    stamp: Stamp,
    archived_reason: str | None = None,
) -> Effects:
    writing = EntryWriting(state, stamp)
    ledger_id = writing.judge(command.entries)
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
        archived_reason=archived_reason,
        metadata=command.metadata,
        effective_at_us=effective_at_us,
        posted_at_us=stamp.at_us if command.status is Status.POSTED else None,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        version=0,
        seq=stamp.seq,
    )
    if command.category_locks:
        writing.lock_categories(command)
    writing.put_in(transaction, command.entries)
    written = writing.finish()
    return Effects(inserted=(transaction, *written.entries), updated=written.balances)


@apply.register
def _update(command: UpdateLedgerTransaction, state: State, stamp: Stamp) -> Effects:
    present = state.transaction(command.id)
    if present is not None and present.status is Status.PENDING:
        becomes_final = command.status not in (UNSET, Status.PENDING)
        rewrites = command.entries is not UNSET or command.effective_at_us is not UNSET
        if becomes_final or rewrites:
            require_no_settlement(command.id, state)
    return update_transaction(command, state, stamp)


def update_transaction(command: UpdateLedgerTransaction, state: State, stamp: Stamp) -> Effects:
    """The change itself, also of a settlement's transaction: its settlement is the one to ask."""
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
    if command.category_locks and not rewrites:
        require_category_locks(command, present.ledger_id, (), state)
    if changed == present and not rewrites:
        return Effects(updated=(present,))
    entries = state.live_entries(present.id)
    changed, before = next_version(present, changed, entries, stamp)
    if not rewrites:
        _require_free_new_external_id(state, present, changed)
        return Effects(updated=(changed,), inserted=(before,))
    rewritten = _rewrite_entries(present, changed, command, state, stamp)
    inserted, updated = (*rewritten.inserted, before), rewritten.updated
    free = _original_set_free(present, changed, state, stamp)
    if free is not None:
        inserted, updated = (*inserted, free[1]), (*updated, free[0])
    return Effects(inserted=inserted, updated=updated)


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
    writing = EntryWriting(state, stamp)
    # What the transaction itself did before comes out first: locks judge the balances as they
    # would be after the whole change.
    writing.take_out(old)
    if command.entries is UNSET:
        drafts = drafts_of(old, present)
    else:
        drafts = command.entries
        if writing.judge(drafts) != present.ledger_id:
            raise Unprocessable(
                "the entries belong to another ledger than the transaction", "ledger_entries"
            )
    _require_free_new_external_id(state, present, changed)
    if command.category_locks:
        writing.lock_categories(command)
    writing.put_in(changed, drafts)
    written = writing.finish()
    return Effects(
        inserted=written.entries, updated=(changed, *written.discarded, *written.balances)
    )


def _original_set_free(
    present: LedgerTransaction, changed: LedgerTransaction, state: State, stamp: Stamp
) -> tuple[LedgerTransaction, LedgerTransactionVersion] | None:
    """What a reversal that is archived was to undo: nothing names the reversal any more.

    None where a part of the reversal was posted: the original names that part and stays reversed.
    """
    if changed.status is not Status.ARCHIVED:
        return None
    return name_in_original(present, None, state, stamp)


def require_free_external_id(
    state: State, ledger_id: str, external_id: str | None, own_id: str | None
) -> None:
    """One pending or posted transaction of a ledger may hold an external id."""
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
    """What it holds already is its own; archived, it holds nothing."""
    if changed.external_id != present.external_id and changed.status is not Status.ARCHIVED:
        require_free_external_id(state, present.ledger_id, changed.external_id, present.id)
