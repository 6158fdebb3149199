"""Balance monitors: create, retrieve, update, list, delete.

`triggered` is the condition evaluated on the account's balances as they are at the read. That it
begins or ceases to hold is an event (see `events.py`), made durable by the write that causes it;
the monitor's creation is one, too, named after the state it starts in. The condition is none of
what a PATCH changes; there it is ignored.
"""

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from cell.answers import Answer, render
from cell.balance_views import LedgerBalances, show_balances
from cell.calls import Call, FirstAnswer, Route
from cell.errors import NotFound
from cell.journal import Record
from cell.ledger.commands import (
    Command,
    CreateBalanceMonitor,
    DeleteBalanceMonitor,
    UpdateBalanceMonitor,
)
from cell.ledger.model import (
    AccountBalances,
    BalanceMonitor,
    LedgerAccount,
    MonitoredField,
    MonitorOperator,
)
from cell.ledger.monitors import is_triggered
from cell.list_reading import fetch_page
from cell.listing import Filters
from cell.pagination import PAGING, Position, answer_page, parse_page
from cell.parameters import Filter, Kind
from cell.row_json import row_as_json, row_from_json
from cell.timestamps import render_timestamp, render_timestamp_or_null
from cell.wellformed import (
    Description,
    Id,
    Metadata,
    parse_uuid,
    require_short_integer,
    without_empty_values,
)


class AlertCondition(msgspec.Struct, frozen=True):
    field: MonitoredField
    operator: MonitorOperator
    value: int


class CreateBody(msgspec.Struct, frozen=True):
    ledger_account_id: Id
    alert_condition: AlertCondition
    description: Description | None = None
    metadata: Metadata = {}


class UpdateBody(msgspec.Struct, frozen=True):
    description: Description | UnsetType | None = UNSET
    metadata: Metadata = {}


class BalanceState(msgspec.Struct, frozen=True, gc=False):
    balances: LedgerBalances
    ledger_account_lock_version: int
    triggered: bool


class MonitorView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    discarded_at: str | None
    ledger_account_id: str
    description: str | None
    metadata: dict[str, str]
    alert_condition: AlertCondition
    current_ledger_account_balance_state: BalanceState


Monitored = tuple[BalanceMonitor, LedgerAccount, AccountBalances]


def show(monitored: Monitored) -> MonitorView:
    monitor, account, balances = monitored
    state = BalanceState(
        show_balances(account, balances),
        balances.lock_version,
        is_triggered(monitor, balances, account.normal_balance),
    )
    return show_with_state(monitor, state)


def show_with_state(monitor: BalanceMonitor, state: BalanceState) -> MonitorView:
    return MonitorView(
        id=monitor.id,
        object="ledger_account_balance_monitor",
        live_mode=True,
        created_at=render_timestamp(monitor.created_at_us),
        updated_at=render_timestamp(monitor.updated_at_us),
        discarded_at=render_timestamp_or_null(monitor.discarded_at_us),
        ledger_account_id=monitor.ledger_account_id,
        description=monitor.description,
        metadata=monitor.metadata,
        alert_condition=AlertCondition(monitor.field, monitor.operator, monitor.value),
        current_ledger_account_balance_state=state,
    )


async def create(call: Call) -> Answer:
    body = await call.body(CreateBody)
    condition = body.alert_condition
    require_short_integer(condition.value, "alert_condition.value")
    command = CreateBalanceMonitor(
        ledger_account_id=parse_uuid(body.ledger_account_id, "ledger_account_id"),
        field=condition.field,
        operator=condition.operator,
        value=condition.value,
        description=body.description,
        metadata=without_empty_values(body.metadata),
    )
    return await call.create(command)


def answer_created(record: Record) -> bytes:
    (monitor,), (account, balances) = record.inserted, record.updated
    assert isinstance(monitor, BalanceMonitor)
    assert isinstance(account, LedgerAccount)
    assert isinstance(balances, AccountBalances)
    return render(show((monitor, account, balances)))


_SHOWN: Final = ", ".join(
    (
        row_as_json("m", BalanceMonitor),
        row_as_json("a", LedgerAccount),
        row_as_json("b", AccountBalances),
    )
)
_JOINED: Final = """
JOIN ledger_accounts a ON a.tenant_id = m.tenant_id AND a.id = m.ledger_account_id
JOIN ledger_account_balances b ON b.tenant_id = m.tenant_id
    AND b.ledger_account_id = m.ledger_account_id
"""
_SOURCE: Final = "ledger_account_balance_monitors m"
_BY_ID: Final = f"SELECT {_SHOWN} FROM {_SOURCE} {_JOINED} WHERE m.tenant_id = %s AND m.id = %s"
_LIVE: Final = "m.discarded_at_us IS NULL"


async def retrieve(call: Call) -> Answer:
    id = call.require_id("ledger account balance monitor")
    rows = await call.fetch(f"{_BY_ID} AND {_LIVE}", (call.tenant_id, id))
    if not rows:
        raise NotFound(f"no ledger account balance monitor {id}")
    return Answer(200, render(show(_monitored(rows[0]))))


def _monitored(row: tuple[str, ...]) -> Monitored:
    return (
        row_from_json(BalanceMonitor, row[0]),
        row_from_json(LedgerAccount, row[1]),
        row_from_json(AccountBalances, row[2]),
    )


async def update(call: Call) -> Answer:
    id = call.require_id("ledger account balance monitor")
    body = await call.body(UpdateBody)
    command = UpdateBalanceMonitor(id=id, description=body.description, metadata=body.metadata)
    return await _answer_changed(call, await call.apply(command))


async def delete(call: Call) -> Answer:
    return await _answer_changed(
        call,
        await call.apply(
            DeleteBalanceMonitor(id=call.require_id("ledger account balance monitor"))
        ),
    )


async def _answer_changed(call: Call, record: Record) -> Answer:
    """The monitor as changed, with its account as it is now: that was not part of it."""
    monitor = record.updated[0]
    assert isinstance(monitor, BalanceMonitor)
    rows = await call.fetch(_BY_ID, (call.tenant_id, monitor.id))
    _, account, balances = _monitored(rows[0])
    return Answer(200, render(show((monitor, account, balances))))


FILTERS: Final = (
    Filter("id", Kind.IDS, "m.id"),
    Filter("ledger_account_id", Kind.ID, "m.ledger_account_id"),
    Filter(
        "metadata",
        Kind.METADATA,
        "m.metadata @> %s::jsonb AND m.metadata <> '{}'",
        in_order_of=(),
    ),
)


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "ledger_account_balance_monitors", ())
    filters = Filters(query, "m", call.tenant_id)
    filters.add(_LIVE)
    filters.apply(FILTERS)
    rows = await fetch_page(call, filters, page, shown=_SHOWN, source=_SOURCE, joined=_JOINED)
    monitors = [_monitored(row) for row in rows]
    return answer_page(page, monitors, show, _position)


def _position(monitored: Monitored) -> Position:
    return Position(key=0, id=monitored[0].id)


_PATH: Final = "/api/ledger_account_balance_monitors"
ROUTES: Final = (
    Route("POST", _PATH, create, "Create a balance monitor", MonitorView, CreateBody),
    Route(
        "GET",
        _PATH,
        list_page,
        "List balance monitors",
        list[MonitorView],
        parameters=(*PAGING, *FILTERS),
    ),
    Route("GET", _PATH + "/{id}", retrieve, "Retrieve a balance monitor", MonitorView),
    Route("PATCH", _PATH + "/{id}", update, "Update a balance monitor", MonitorView, UpdateBody),
    Route("DELETE", _PATH + "/{id}", delete, "Delete a balance monitor", MonitorView),
)
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {CreateBalanceMonitor: answer_created}
