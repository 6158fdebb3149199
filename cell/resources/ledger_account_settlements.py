"""Ledger account settlements: create, retrieve, update, list; the entries of a draft.

A settlement gathers the posted entries of the settled account that were written before it, are
effective before its bound, and are in no other settlement that is not archived; it offsets them by
a ledger transaction against the contra account. Up to ENTRIES_PER_STEP unsettled entries are
gathered at once, and the answer is final; with more it says `processing` (or `archiving`) and the
cell goes on in the background. What finds, that late, nothing to settle archives itself.

Recommendations of ours where the hosted API does not say: without `allow_either_direction` a net
that is not positive is refused; a settlement can be posted from `pending` or `drafting` only, and
archived unless it is posted; while it is pending, its ledger transaction is posted, archived and
rewritten through it alone. Its own entry on the settled account is listed with those it gathered.
"""

from enum import StrEnum
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from cell.answers import Answer, render
from cell.calls import Call, FirstAnswer, Route
from cell.errors import NotFound, Unprocessable
from cell.journal import Record
from cell.ledger.commands import (
    ChangeSettlementEntries,
    Command,
    CreateLedgerAccountSettlement,
    UpdateLedgerAccountSettlement,
)
from cell.ledger.model import Direction, LedgerAccountSettlement, SettlementStatus
from cell.list_reading import fetch_page
from cell.listing import Filters
from cell.pagination import PAGING, Position, answer_page, parse_page
from cell.parameters import Filter, Kind
from cell.row_json import row_as_json, row_from_json
from cell.settlement_worker import ENTRIES_PER_STEP
from cell.timestamps import parse_timestamp, render_timestamp, render_timestamp_or_null
from cell.wellformed import Description, Id, Metadata, parse_uuid, without_empty_values

ENTRY_IDS_MAX: Final = 1000
"""Entries put into a draft, or taken out of it, by one request."""


class FirstStatus(StrEnum):
    """What a new settlement is to become."""

    PENDING = "pending"
    POSTED = "posted"
    DRAFTING = "drafting"


class FinalStatus(StrEnum):
    """What a settlement can be made."""

    POSTED = "posted"
    ARCHIVED = "archived"


class CreateBody(msgspec.Struct, frozen=True):
    settled_ledger_account_id: Id
    contra_ledger_account_id: Id
    status: FirstStatus | None = None
    effective_at_upper_bound: str | None = None
    allow_either_direction: bool | None = None
    skip_settlement_ledger_transaction: bool | None = None
    description: Description | None = None
    metadata: Metadata = {}


class UpdateBody(msgspec.Struct, frozen=True):
    status: FinalStatus | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    skip_settlement_ledger_transaction: bool | UnsetType | None = UNSET
    metadata: Metadata = {}


class EntriesBody(msgspec.Struct, frozen=True):
    ledger_entry_ids: list[Id] | None


class LedgerAccountSettlementView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    ledger_id: str
    description: str | None
    status: SettlementStatus
    settled_ledger_account_id: str
    contra_ledger_account_id: str
    effective_at_upper_bound: str | None
    ledger_transaction_id: str | None
    amount: int | None
    settlement_entry_direction: Direction | None
    currency: str
    currency_exponent: int | None
    metadata: dict[str, str]


def show(settlement: LedgerAccountSettlement) -> LedgerAccountSettlementView:
    return LedgerAccountSettlementView(
        id=settlement.id,
        object="ledger_account_settlement",
        live_mode=True,
        created_at=render_timestamp(settlement.created_at_us),
        updated_at=render_timestamp(settlement.updated_at_us),
        ledger_id=settlement.ledger_id,
        description=settlement.description,
        status=settlement.status,
        settled_ledger_account_id=settlement.settled_ledger_account_id,
        contra_ledger_account_id=settlement.contra_ledger_account_id,
        effective_at_upper_bound=render_timestamp_or_null(settlement.effective_at_upper_bound_us),
        ledger_transaction_id=settlement.ledger_transaction_id,
        amount=settlement.amount,
        settlement_entry_direction=settlement.settlement_entry_direction,
        currency=settlement.currency,
        currency_exponent=settlement.currency_exponent,
        metadata=settlement.metadata,
    )


async def create(call: Call) -> Answer:
    body = await call.body(CreateBody)
    bound = body.effective_at_upper_bound
    command = CreateLedgerAccountSettlement(
        settled_ledger_account_id=parse_uuid(
            body.settled_ledger_account_id, "settled_ledger_account_id"
        ),
        contra_ledger_account_id=parse_uuid(
            body.contra_ledger_account_id, "contra_ledger_account_id"
        ),
        entries_per_step=ENTRIES_PER_STEP,
        status=SettlementStatus(body.status or FirstStatus.PENDING),
        effective_at_upper_bound_us=(
            None if bound is None else parse_timestamp(bound, "effective_at_upper_bound")
        ),
        allows_either_direction=bool(body.allow_either_direction),
        skips_transaction=bool(body.skip_settlement_ledger_transaction),
        description=body.description,
        metadata=without_empty_values(body.metadata),
    )
    answer = await call.create(command)
    # Whether there is more to do is for the worker to see: it looks at what is unfinished.
    call.parts.settlement_worker.wake()
    return answer


def answer_created(record: Record) -> bytes:
    settlement = record.inserted[0]
    assert isinstance(settlement, LedgerAccountSettlement)
    return render(show(settlement))


_SHOWN: Final = row_as_json("s", LedgerAccountSettlement)
_BY_ID: Final = (
    f"SELECT {_SHOWN} FROM ledger_account_settlements s WHERE s.tenant_id = %s AND s.id = %s"
)


async def retrieve(call: Call) -> Answer:
    id = call.require_id("ledger account settlement")
    rows = await call.fetch(_BY_ID, (call.tenant_id, id))
    if not rows:
        raise NotFound(f"no ledger account settlement {id}")
    return Answer(200, render(show(row_from_json(LedgerAccountSettlement, rows[0][0]))))


async def update(call: Call) -> Answer:
    body = await call.body(UpdateBody)
    skips = body.skip_settlement_ledger_transaction
    command = UpdateLedgerAccountSettlement(
        id=call.require_id("ledger account settlement"),
        entries_per_step=ENTRIES_PER_STEP,
        status=UNSET if body.status is UNSET else SettlementStatus(body.status),
        description=body.description,
        skips_transaction=UNSET if skips is None else skips,
        metadata=body.metadata,
    )
    record = await call.apply(command)
    if command.is_exclusive():
        call.parts.settlement_worker.wake()
    settlement = record.updated[0]
    assert isinstance(settlement, LedgerAccountSettlement)
    return Answer(200, render(show(settlement)))


async def add_entries(call: Call) -> Answer:
    ids = await _entry_ids(call)
    await call.apply(
        ChangeSettlementEntries(id=call.require_id("ledger account settlement"), added=ids)
    )
    return Answer(200, b"")


async def remove_entries(call: Call) -> Answer:
    ids = await _entry_ids(call)
    await call.apply(
        ChangeSettlementEntries(id=call.require_id("ledger account settlement"), removed=ids)
    )
    return Answer(200, b"")


async def _entry_ids(call: Call) -> tuple[str, ...]:
    """The ids of the body, each once."""
    body = await call.body(EntriesBody)
    ids = body.ledger_entry_ids or []
    at = "ledger_entry_ids"
    if len(ids) > ENTRY_IDS_MAX:
        raise Unprocessable(f"{at}: {len(ids)} ids, at most {ENTRY_IDS_MAX}", at)
    return tuple(dict.fromkeys(parse_uuid(id, f"{at}[{n}]") for n, id in enumerate(ids)))


FILTERS: Final = (
    Filter("id", Kind.IDS, "s.id"),
    Filter("settled_ledger_account_id", Kind.ID, "s.settled_ledger_account_id"),
    Filter(
        "settlement_entry_direction",
        Kind.CHOICE,
        "s.settlement_entry_direction",
        choices=Direction,
    ),
    Filter("ledger_transaction_id", Kind.ID, "s.ledger_transaction_id"),
    Filter("ledger_id", Kind.ID, "s.ledger_id"),
    Filter("created_at", Kind.TIMES, "s.created_at_us", ids="s.id"),
    Filter("updated_at", Kind.TIMES, "s.updated_at_us", since_creation="s.id", in_order_of=()),
    Filter(
        "metadata",
        Kind.METADATA,
        "s.metadata @> %s::jsonb AND s.metadata <> '{}'",
        in_order_of=(),
    ),
)


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "ledger_account_settlements", ())
    filters = Filters(query, "s", call.tenant_id)
    filters.apply(FILTERS)
    rows = await fetch_page(
        call, filters, page, shown=_SHOWN, source="ledger_account_settlements s"
    )
    found = [row_from_json(LedgerAccountSettlement, row) for (row,) in rows]
    return answer_page(page, found, show, _position)


def _position(settlement: LedgerAccountSettlement) -> Position:
    return Position(key=0, id=settlement.id)


_PATH: Final = "/api/ledger_account_settlements"
ROUTES: Final = (
    Route(
        "POST",
        _PATH,
        create,
        "Create a ledger account settlement",
        LedgerAccountSettlementView,
        CreateBody,
    ),
    Route(
        "GET",
        _PATH,
        list_page,
        "List ledger account settlements",
        list[LedgerAccountSettlementView],
        parameters=(*PAGING, *FILTERS),
    ),
    Route(
        "GET",
        f"{_PATH}/{{id}}",
        retrieve,
        "Retrieve a ledger account settlement",
        LedgerAccountSettlementView,
    ),
    Route(
        "PATCH",
        f"{_PATH}/{{id}}",
        update,
        "Update, post or archive a ledger account settlement",
        LedgerAccountSettlementView,
        UpdateBody,
    ),
    Route(
        "PATCH",
        f"{_PATH}/{{id}}/ledger_entries",
        add_entries,
        "Put ledger entries into a draft settlement",
        body=EntriesBody,
    ),
    Route(
        "DELETE",
        f"{_PATH}/{{id}}/ledger_entries",
        remove_entries,
        "Take ledger entries out of a draft settlement",
        body=EntriesBody,
    ),
)
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {
    CreateLedgerAccountSettlement: answer_created
}
