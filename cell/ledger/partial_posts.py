"""The rules of partial posts (pure): a part of a pending transaction becomes a posted one.

In order of precedence: the transaction is there; it is pending; for each of its entries there is
one of the same account and direction, of a lesser amount; then the rungs of `entry_writing.py`,
whose locks are judged on the balances after both have been written.

The pending transaction keeps the rest, in new entries. Both are one write: an account's version
grows by one.

A part of a pending reversal undoes a part of the original, for good: it names the original, and
with the first part the original names that part instead of the reversal. So it does not become
free when the rest is archived: a reversal of the whole would undo the part twice.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from cell.errors import NotFound, Unprocessable
from cell.ledger.commands import EntryDraft, PartiallyPostLedgerTransaction
from cell.ledger.entry_writing import EntryWriting, own_date
from cell.ledger.model import (
    Direction,
    Effects,
    LedgerEntry,
    LedgerTransaction,
    Row,
    Stamp,
    Status,
    TenantId,
)
from cell.ledger.needs import FURTHER_NEEDS, Needs, note_needs
from cell.ledger.rules import State, apply
from cell.ledger.settlement_transactions import note_settlement, require_no_settlement
from cell.ledger.transaction_versions import name_in_original, next_version

_ENTRIES: Final = "posted_ledger_entries"


@note_needs.register
def _needs_of_part(
    command: PartiallyPostLedgerTransaction, tenant_id: TenantId, needs: Needs
) -> None:
    # Its entries name the accounts of the pending one's, or are refused.
    needs.transactions.add((tenant_id, command.id))
    note_settlement(command.id, tenant_id, needs)


def _further_needs_of_part(
    command: PartiallyPostLedgerTransaction, state: State, needs: Needs
) -> None:
    """What a reversal is to undo."""
    pending = state.transaction(command.id)
    if pending is not None and pending.reverses_id is not None:
        needs.transactions.add((state.tenant_id, pending.reverses_id))


FURTHER_NEEDS[PartiallyPostLedgerTransaction] = _further_needs_of_part


@apply.register
def _post_partially(command: PartiallyPostLedgerTransaction, state: State, stamp: Stamp) -> Effects:
    pending = state.transaction(command.id)
    if pending is None:
        raise NotFound(f"no ledger transaction {command.id}")
    if pending.status is not Status.PENDING:
        raise Unprocessable(
            f"only a pending ledger transaction can be posted in part, not one that is "
            f"{pending.status}",
            "ledger_transaction",
        )
    require_no_settlement(pending.id, state)
    present = state.live_entries(pending.id)
    rest = _rest(pending, present, command.entries)
    writing = EntryWriting(state, stamp, _ENTRIES)
    writing.take_out(present)
    writing.judge(command.entries)
    part = _part(command, pending, stamp)
    writing.put_in(part, command.entries)
    changed, before = next_version(pending, pending, present, stamp)
    writing.put_in(changed, rest)
    written = writing.finish()
    inserted: tuple[Row, ...] = (part, *written.entries, before)
    updated: tuple[Row, ...] = (changed, *written.discarded, *written.balances)
    # With the first part that is posted of it the original names that part.
    held = name_in_original(pending, part.id, state, stamp)
    if held is not None:
        inserted, updated = (*inserted, held[1]), (*updated, held[0])
    return Effects(inserted=inserted, updated=updated)


def _part(
    command: PartiallyPostLedgerTransaction, pending: LedgerTransaction, stamp: Stamp
) -> LedgerTransaction:
    effective_at_us = command.effective_at_us
    return LedgerTransaction(
        tenant_id=pending.tenant_id,
        id=stamp.id_base,
        ledger_id=pending.ledger_id,
        status=Status.POSTED,
        description=command.description,
        external_id=None,
        ledgerable_type=None,
        ledgerable_id=None,
        reverses_id=pending.reverses_id,
        reversed_by_id=None,
        partially_posts_id=pending.id,
        archived_reason=None,
        metadata=command.metadata,
        effective_at_us=stamp.at_us if effective_at_us is None else effective_at_us,
        posted_at_us=stamp.at_us,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        version=0,
        seq=stamp.seq,
    )


def _rest(
    pending: LedgerTransaction, present: Sequence[LedgerEntry], posted: Sequence[EntryDraft]
) -> tuple[EntryDraft, ...]:
    """What stays pending of each entry; several of one account and side are met in their order."""
    amounts: dict[tuple[str, Direction], deque[int]] = {}
    for draft in posted:
        amounts.setdefault((draft.ledger_account_id, draft.direction), deque()).append(draft.amount)
    rest = []
    for entry in present:
        of_side = amounts.get((entry.ledger_account_id, entry.direction))
        if not of_side:
            raise Unprocessable(
                f"no posted entry for the {entry.direction} of {entry.ledger_account_id}; there "
                "must be one for each entry of the pending ledger transaction",
                _ENTRIES,
            )
        amount = of_side.popleft()
        if amount >= entry.amount:
            raise Unprocessable(
                f"the posted {entry.direction} of {entry.ledger_account_id} is {amount}, which is "
                f"not less than the pending {entry.amount}",
                _ENTRIES,
            )
        rest.append(
            EntryDraft(
                ledger_account_id=entry.ledger_account_id,
                direction=entry.direction,
                amount=entry.amount - amount,
                effective_at_us=own_date(entry, pending),
                metadata=entry.metadata,
            )
        )
    for (account_id, direction), left in amounts.items():
        if left:
            raise Unprocessable(
                f"the pending ledger transaction has no {direction} of {account_id} to post",
                _ENTRIES,
            )
    return tuple(rest)
