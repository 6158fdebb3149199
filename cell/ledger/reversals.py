"""The rules of reversals (pure): a new transaction undoes a posted one, which stays as it is.

In order of precedence: the transaction is there; it is posted; no live reversal undoes it already;
then the rungs of a new transaction.

The two name each other. A reversal that is archived, at its creation or later, undoes nothing: it
still names its original, which does not name it and may be reversed again; unless a part of it was
posted before, see `partial_posts.py`.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from cell.errors import NotFound, Unprocessable
from cell.ledger.commands import CreateLedgerTransaction, EntryDraft, ReverseLedgerTransaction
from cell.ledger.entry_writing import own_date
from cell.ledger.model import (
    Effects,
    LedgerEntry,
    LedgerTransaction,
    Stamp,
    Status,
    TenantId,
)
from cell.ledger.needs import Needs, note_needs
from cell.ledger.rules import State, apply
from cell.ledger.transaction_versions import next_version


@note_needs.register
def _needs_of_reversal(
    command: ReverseLedgerTransaction, tenant_id: TenantId, needs: Needs
) -> None:
    needs.transactions.add((tenant_id, command.id))
    if command.external_id is not None:
        needs.transaction_external_ids.add((tenant_id, command.external_id))


@apply.register
def _reverse(command: ReverseLedgerTransaction, state: State, stamp: Stamp) -> Effects:
    original = state.transaction(command.id)
    if original is None:
        raise NotFound(f"no ledger transaction {command.id}")
    if original.status is not Status.POSTED:
        raise Unprocessable(
            f"only a posted ledger transaction can be reversed, not one that is {original.status}",
            "ledger_transaction",
        )
    if original.reversed_by_id is not None:
        raise Unprocessable(
            f"the ledger transaction is reversed by {original.reversed_by_id} already",
            "ledger_transaction",
        )
    undone = state.live_entries(original.id)
    created = apply(_as_new(command, original, undone), state, stamp)
    reversal, *entries = created.inserted
    assert isinstance(reversal, LedgerTransaction)
    inserted = (replace(reversal, reverses_id=original.id), *entries)
    if command.status is Status.ARCHIVED:
        return Effects(inserted=inserted)
    named, before = next_version(
        original, replace(original, reversed_by_id=reversal.id), undone, stamp
    )
    return Effects(inserted=(*inserted, before), updated=(named, *created.updated))


def _as_new(
    command: ReverseLedgerTransaction,
    original: LedgerTransaction,
    undone: Sequence[LedgerEntry],
) -> CreateLedgerTransaction:
    """The reversal as the transaction that anybody could have written."""
    effective_at_us = command.effective_at_us
    return CreateLedgerTransaction(
        entries=tuple(_opposite(entry, original, command) for entry in undone),
        status=command.status,
        description=command.description,
        effective_at_us=original.effective_at_us if effective_at_us is None else effective_at_us,
        external_id=command.external_id,
        ledgerable_type=command.ledgerable_type,
        ledgerable_id=command.ledgerable_id,
        metadata=command.metadata,
    )


def _opposite(
    entry: LedgerEntry, original: LedgerTransaction, command: ReverseLedgerTransaction
) -> EntryDraft:
    """Undoes the entry at its own date, unless the caller names another for the whole reversal."""
    dated_anew = command.effective_at_us is not None
    return EntryDraft(
        ledger_account_id=entry.ledger_account_id,
        direction=entry.direction.opposite,
        amount=entry.amount,
        effective_at_us=None if dated_anew else own_date(entry, original),
    )
