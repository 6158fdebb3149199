"""Bulk requests: create, retrieve, list.

Answered once the rows are queued durably; each row is applied later, by itself, and its result is a
bulk result. A request holds at most ROWS_MAX rows (422) and BYTES_MAX bytes (413). Rows of the
ledger accounts and transactions of `bulk_items.COMMANDS`; anything else is 422.
"""

import asyncio
from typing import Annotated, Final

import msgspec

from cell import strict_json
from cell.answers import Answer, render
from cell.calls import Call, FirstAnswer, Route
from cell.errors import NotFound, TooLarge, Unprocessable
from cell.journal import Record
from cell.ledger.commands import BulkItem, Command, CreateBulkRequest
from cell.ledger.model import BulkRequest, BulkStatus
from cell.listing import Filters
from cell.pagination import PAGING, Position, answer_page, parse_page
from cell.parameters import Filter, Kind
from cell.resources.bulk_items import COMMANDS, ActionType, ResourceType, to_item
from cell.row_json import row_as_json, row_from_json
from cell.timestamps import render_timestamp
from cell.wellformed import Metadata, without_empty_values

ROWS_MAX: Final = 5000
BYTES_MAX: Final = 8 * 1024 * 1024
"""The whole request is one command: what bounds the time for which others wait behind it."""

_ROWS_PER_TURN: Final = 50
"""Rows turned into commands before other requests get the processor: about a millisecond."""


class CreateBody(msgspec.Struct, frozen=True):
    action_type: ActionType
    resource_type: ResourceType
    resources: Annotated[list[dict[str, object]], msgspec.Meta(min_length=1, max_length=ROWS_MAX)]
    metadata: Metadata = {}


class _Texts(msgspec.Struct, frozen=True):
    resources: list[msgspec.Raw]


class BulkRequestView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    action_type: str
    resource_type: str
    status: BulkStatus
    total_resource_count: int
    success_result_count: int
    failed_result_count: int
    metadata: dict[str, str]


def show(request: BulkRequest) -> BulkRequestView:
    return BulkRequestView(
        id=request.id,
        object="bulk_request",
        live_mode=True,
        created_at=render_timestamp(request.created_at_us),
        updated_at=render_timestamp(request.updated_at_us),
        action_type=request.action_type,
        resource_type=request.resource_type,
        status=request.status,
        total_resource_count=request.total_count,
        success_result_count=request.success_count,
        failed_result_count=request.failed_count,
        metadata=request.metadata,
    )


async def create(call: Call) -> Answer:
    text = await call.raw_body()
    if len(text) > BYTES_MAX:
        raise TooLarge(f"a bulk request has at most {BYTES_MAX} bytes")
    body = strict_json.decode(text, CreateBody)
    command = CreateBulkRequest(
        action_type=body.action_type,
        resource_type=body.resource_type,
        items=await _items(body, msgspec.json.decode(text, type=_Texts)),
        metadata=without_empty_values(body.metadata),
    )
    return await call.queue(command, len(command.items))


async def _items(body: CreateBody, texts: _Texts) -> tuple[BulkItem, ...]:
    to_command = COMMANDS.get((body.action_type, body.resource_type))
    if to_command is None:
        raise Unprocessable(
            f"{body.action_type} of a {body.resource_type} is not possible in bulk", "action_type"
        )
    items = []
    for row, text in zip(body.resources, texts.resources, strict=True):
        compact = msgspec.json.format(bytes(text), indent=-1).decode()
        items.append(to_item(row, compact, to_command))
        if len(items) % _ROWS_PER_TURN == 0:
            await asyncio.sleep(0)
    return tuple(items)


def answer_created(record: Record) -> bytes:
    request = record.inserted[0]
    assert isinstance(request, BulkRequest)
    return render(show(request))


_SHOWN: Final = row_as_json("r", BulkRequest)
_BY_ID: Final = f"SELECT {_SHOWN} FROM bulk_requests r WHERE r.tenant_id = %s AND r.id = %s"


async def retrieve(call: Call) -> Answer:
    id = call.require_id("bulk request")
    rows = await call.fetch(_BY_ID, (call.tenant_id, id))
    if not rows:
        raise NotFound(f"no bulk request {id}")
    return Answer(200, render(show(row_from_json(BulkRequest, rows[0][0]))))


FILTERS: Final = (
    Filter("status", Kind.CHOICE, "r.status", choices=BulkStatus),
    Filter("action_type", Kind.CHOICE, "r.action_type", choices=ActionType),
    Filter("resource_type", Kind.CHOICE, "r.resource_type", choices=ResourceType),
    # Only those that have any metadata are in its index.
    Filter("metadata", Kind.METADATA, "(r.metadata <> '{}' AND r.metadata @> %s::jsonb)"),
)


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "bulk_requests", ())
    filters = Filters(query, "r", call.tenant_id)
    filters.apply(FILTERS)
    statement, parameters = filters.select(page, shown=_SHOWN, source="bulk_requests r")
    rows = await call.fetch(statement, parameters)
    requests = [row_from_json(BulkRequest, row[0]) for row in rows]
    return answer_page(page, requests, show, _position)


def _position(request: BulkRequest) -> Position:
    return Position(key=0, id=request.id)


ROUTES: Final = (
    Route(
        "POST", "/api/bulk_requests", create, "Create a bulk request", BulkRequestView, CreateBody
    ),
    Route(
        "GET",
        "/api/bulk_requests",
        list_page,
        "List bulk requests",
        list[BulkRequestView],
        parameters=(*PAGING, *FILTERS),
    ),
    Route("GET", "/api/bulk_requests/{id}", retrieve, "Retrieve a bulk request", BulkRequestView),
)
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {CreateBulkRequest: answer_created}
