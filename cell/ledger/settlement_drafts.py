"""What a caller puts into a draft settlement, and takes out of it (pure).

In order of precedence: the settlement known and `drafting`; each entry to add known, of the settled
account, posted, held by no other settlement. Both may be repeated: what is in is not added again,
what is not in is not taken out.
"""

from typing import Final

from msgspec.structs import replace

from cell.errors import Unprocessable
from cell.ledger.commands import ChangeSettlementEntries
from cell.ledger.model import (
    Effects,
    LedgerAccountSettlement,
    LedgerEntry,
    SettlementEntry,
    SettlementStatus,
    Stamp,
    Status,
    TenantId,
)
from cell.ledger.needs import Needs, note_needs
from cell.ledger.rules import State, apply
from cell.ledger.settlement_gathering import add, hold, open_row_of, subtract
from cell.ledger.settlements import require_settlement, written_at

_AT: Final = "ledger_entry_ids"


@note_needs.register
def _needs(command: ChangeSettlementEntries, tenant_id: TenantId, needs: Needs) -> None:
    needs.row(LedgerAccountSettlement, tenant_id, command.id)
    for id in (*command.added, *command.removed):
        needs.row(SettlementEntry, tenant_id, id)
    needs.entries |= {(tenant_id, id) for id in command.added}


@apply.register
def _change(command: ChangeSettlementEntries, state: State, stamp: Stamp) -> Effects:
    settlement = require_settlement(command.id, state)
    if settlement.status is not SettlementStatus.DRAFTING:
        raise Unprocessable(
            f"a ledger account settlement that is {settlement.status} keeps its entries", "status"
        )
    inserted: dict[str, SettlementEntry] = {}
    updated: dict[str, SettlementEntry] = {}
    for id in command.added:
        row = state.row(SettlementEntry, id)
        if row is None:
            inserted[id] = hold(open_row_of(_addable(id, settlement, state)), settlement, stamp)
        elif row.settlement_id is None:
            _addable(id, settlement, state)
            updated[id] = hold(row, settlement, stamp)
        elif row.settlement_id != settlement.id:
            raise Unprocessable(f"ledger entry {id} is in another settlement", _AT)
    added = (*inserted.values(), *updated.values())
    removed = {
        id: replace(row, settlement_id=None, seq=stamp.seq)
        for id in command.removed
        if (row := state.row(SettlementEntry, id)) and row.settlement_id == settlement.id
    }
    if not added and not removed:
        return Effects(updated=(settlement,))
    changed = subtract(add(settlement, added), tuple(removed.values()))
    return Effects(
        inserted=tuple(inserted.values()),
        updated=(written_at(changed, stamp), *updated.values(), *removed.values()),
    )


def _addable(id: str, settlement: LedgerAccountSettlement, state: State) -> LedgerEntry:
    entry = state.entry(id)
    if entry is None:
        raise Unprocessable(f"no ledger entry {id}", _AT)
    if entry.ledger_account_id != settlement.settled_ledger_account_id:
        raise Unprocessable(f"ledger entry {id} is of another account than the settled one", _AT)
    if entry.status is not Status.POSTED or entry.discarded_at_us is not None:
        raise Unprocessable(f"ledger entry {id} is not posted", _AT)
    return entry
