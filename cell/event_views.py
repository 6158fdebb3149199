"""Events as they are shown, in the event list and in webhooks: rendered from their records alone.

`data` is the object as the event left it. A resource adds its own to `DATA_OF_ROW`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from cell.answers import render
from cell.balance_views import LedgerBalances, show_balances, show_resulting_balances
from cell.event_reading import FoundEvent
from cell.events import NAMES
from cell.journal import Record
from cell.ledger.model import (
    AccountBalances,
    BalanceMonitor,
    LedgerAccount,
    LedgerAccountSettlement,
    LedgerEntry,
    LedgerTransaction,
    Row,
)
from cell.resources import ledger_account_balance_monitors as monitors
from cell.resources import ledger_account_settlements, ledger_transactions
from cell.timestamps import render_timestamp


class EventView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    resource: str
    event_name: str
    event_time: str
    entity_id: str
    data: Any


def show(found: FoundEvent) -> EventView:
    kind, row = found.event
    name = NAMES[kind]
    at = render_timestamp(found.record.at_us)
    return EventView(
        id=found.id,
        object="event",
        live_mode=True,
        created_at=at,
        updated_at=at,
        resource=name.resource,
        event_name=name.event_name,
        event_time=at,
        entity_id=row.id,
        data=show_data(found),
    )


class WebhookBody(msgspec.Struct, frozen=True):
    event: str
    data: Any


def render_webhook(found: FoundEvent) -> bytes:
    """The body of the webhook that tells of the event."""
    return render(WebhookBody(NAMES[found.event.kind].event_name, show_data(found)))


def show_data(found: FoundEvent) -> Any:
    """The object the event is about, as it was then."""
    row = found.event.row
    return DATA_OF_ROW[type(row)](row, found.record)


def _transaction(row: LedgerTransaction, record: Record) -> Any:
    # Whatever changes a transaction's status writes its entries anew.
    entries = [
        entry
        for entry in record.inserted
        if isinstance(entry, LedgerEntry) and entry.ledger_transaction_id == row.id
    ]
    return ledger_transactions.show(row, entries, with_balances=False)


def _monitor(row: BalanceMonitor, record: Record) -> Any:
    balances = next(
        each
        for each in record.updated
        if isinstance(each, AccountBalances) and each.ledger_account_id == row.ledger_account_id
    )
    state = monitors.BalanceState(
        _balances_of(row.ledger_account_id, balances, record),
        balances.lock_version,
        row.is_triggered,
    )
    return monitors.show_with_state(row, state)


def _balances_of(account_id: str, balances: AccountBalances, record: Record) -> LedgerBalances:
    """With the account's currency: of the account itself, or of its entry that changed them."""
    for each in (*record.updated, *record.inserted):
        if isinstance(each, LedgerAccount) and each.id == account_id:
            return show_balances(each, balances)
    entry = next(
        each
        for each in (*record.inserted, *record.updated)
        if isinstance(each, LedgerEntry) and each.ledger_account_id == account_id
    )
    # A discarded entry shows the balances of its own write; only what never changes is taken.
    return show_resulting_balances(
        msgspec.structs.replace(
            entry,
            resulting_pending_debits=balances.pending_debits,
            resulting_pending_credits=balances.pending_credits,
            resulting_posted_debits=balances.posted_debits,
            resulting_posted_credits=balances.posted_credits,
        )
    )


DATA_OF_ROW: Final[dict[type[Row], Callable[[Any, Record], Any]]] = {
    LedgerTransaction: _transaction,
    BalanceMonitor: _monitor,
    LedgerAccountSettlement: lambda row, _: ledger_account_settlements.show(row),
}
