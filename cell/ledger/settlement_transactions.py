"""Which ledger transactions are a settlement's (pure), and what nobody else may do to them.

A settlement and its transaction change together or not at all, so that a caller who wants to post,
archive or rewrite the transaction is sent to the settlement. To ask for that with each update of
any transaction would cost all of them: the id of a settlement's transaction carries a mark.
"""

from typing import Final

from cell.errors import Unprocessable
from cell.ids import derive_id
from cell.ledger.model import LedgerAccountSettlement, TenantId
from cell.ledger.needs import Needs, Relation
from cell.ledger.rules import State

_OF_TRANSACTION: Final = Relation(LedgerAccountSettlement, by="ledger_transaction_id", unless=None)
_MARK: Final = 1 << 44
"""Makes the first digit of an id's last group 1, which is 0 in the ids of nearly all other rows."""


def settlement_transaction_id(id_base: str) -> str:
    """The id of the transaction that a settlement's command creates; its entries count up from it.

    It has the command's time, not the settlement's, which may be older: lists are in order of ids.
    """
    return derive_id(id_base, _MARK)


def note_settlement(transaction_id: str, tenant_id: TenantId, needs: Needs) -> None:
    """Ask for the settlement whose transaction this is, if it can be one's."""
    if _is_marked(transaction_id):
        needs.relation(_OF_TRANSACTION, tenant_id, transaction_id)


def require_no_settlement(transaction_id: str, state: State) -> None:
    """Raise Unprocessable if the transaction is a settlement's; `note_settlement` came before."""
    if not _is_marked(transaction_id):
        return
    for settlement in state.related(_OF_TRANSACTION, transaction_id):
        raise Unprocessable(
            f"the ledger transaction belongs to ledger account settlement {settlement.id}: "
            "post or archive that",
            "ledger_transaction",
        )


def _is_marked(id: str) -> bool:
    return id[24:25] not in ("0", "")
