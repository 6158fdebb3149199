"""Ledgers: create, retrieve, update, list, delete.

A deleted ledger keeps its rows, but is found no more, nor are its accounts; its transactions and
entries stay readable.
"""

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from cell.answers import Answer, render
from cell.calls import Call, FirstAnswer, Route
from cell.errors import NotFound
from cell.journal import Record
from cell.ledger.commands import Command, CreateLedger, DeleteLedger, UpdateLedger
from cell.ledger.model import Ledger
from cell.list_reading import fetch_page
from cell.listing import Filters
from cell.pagination import PAGING, Position, answer_page, parse_page
from cell.parameters import Filter, Kind
from cell.row_json import row_as_json, row_from_json
from cell.timestamps import render_timestamp, render_timestamp_or_null
from cell.wellformed import Description, Metadata, Name, without_empty_values


class CreateBody(msgspec.Struct, frozen=True):
    name: Name
    description: Description | None = None
    metadata: Metadata = {}


class UpdateBody(msgspec.Struct, frozen=True):
    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    metadata: Metadata = {}


class LedgerView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    discarded_at: str | None
    name: str
    description: str | None
    metadata: dict[str, str]


def show(ledger: Ledger) -> LedgerView:
    return LedgerView(
        id=ledger.id,
        object="ledger",
        live_mode=True,
        created_at=render_timestamp(ledger.created_at_us),
        updated_at=render_timestamp(ledger.updated_at_us),
        discarded_at=render_timestamp_or_null(ledger.discarded_at_us),
        name=ledger.name,
        description=ledger.description,
        metadata=ledger.metadata,
    )


async def create(call: Call) -> Answer:
    body = await call.body(CreateBody)
    command = CreateLedger(
        name=body.name,
        description=body.description,
        metadata=without_empty_values(body.metadata),
    )
    return await call.create(command)


def answer_created(record: Record) -> bytes:
    return render(show(_main_row(record)))


def _main_row(record: Record) -> Ledger:
    row = (record.inserted or record.updated)[0]
    assert isinstance(row, Ledger)
    return row


_SHOWN: Final = row_as_json("l", Ledger)
_RETRIEVE: Final = f"""
SELECT {_SHOWN} FROM ledgers l
WHERE l.tenant_id = %s AND l.id = %s AND l.discarded_at_us IS NULL
"""


async def retrieve(call: Call) -> Answer:
    id = call.require_id("ledger")
    rows = await call.fetch(_RETRIEVE, (call.tenant_id, id))
    if not rows:
        raise NotFound(f"no ledger {id}")
    return Answer(200, render(show(row_from_json(Ledger, rows[0][0]))))


async def update(call: Call) -> Answer:
    id = call.require_id("ledger")
    body = await call.body(UpdateBody)
    command = UpdateLedger(
        id=id, name=body.name, description=body.description, metadata=body.metadata
    )
    return Answer(200, render(show(_main_row(await call.apply(command)))))


async def delete(call: Call) -> Answer:
    command = DeleteLedger(id=call.require_id("ledger"))
    return Answer(200, render(show(_main_row(await call.apply(command)))))


FILTERS: Final = (
    Filter("id", Kind.IDS, "l.id"),
    Filter(
        "metadata",
        Kind.METADATA,
        "l.metadata @> %s::jsonb AND l.metadata <> '{}'",
        in_order_of=(),
    ),
    Filter("created_at", Kind.TIMES, "l.created_at_us", ids="l.id"),
    Filter("updated_at", Kind.TIMES, "l.updated_at_us", since_creation="l.id", in_order_of=()),
)


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "ledgers", ())
    filters = Filters(query, "l", call.tenant_id)
    filters.add("l.discarded_at_us IS NULL")
    filters.apply(FILTERS)
    rows = await fetch_page(call, filters, page, shown=_SHOWN, source="ledgers l")
    ledgers = [row_from_json(Ledger, row) for (row,) in rows]
    return answer_page(page, ledgers, show, _position)


def _position(ledger: Ledger) -> Position:
    return Position(key=0, id=ledger.id)


ROUTES: Final = (
    Route("POST", "/api/ledgers", create, "Create a ledger", LedgerView, CreateBody),
    Route(
        "GET",
        "/api/ledgers",
        list_page,
        "List ledgers",
        list[LedgerView],
        parameters=(*PAGING, *FILTERS),
    ),
    Route("GET", "/api/ledgers/{id}", retrieve, "Retrieve a ledger", LedgerView),
    Route("PATCH", "/api/ledgers/{id}", update, "Update a ledger", LedgerView, UpdateBody),
    Route("DELETE", "/api/ledgers/{id}", delete, "Delete a ledger", LedgerView),
)
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {CreateLedger: answer_created}
