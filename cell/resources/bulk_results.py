"""Bulk results: retrieve, list; and the answer to what was queued with `Prefer: respond-async`.

A ledger transaction posted with that preference is judged, queued durably as a bulk request of one
row, and answered 202 with its pending bulk result, whose place is the Location to poll; the result
itself says the rest. `entity` is the complete object as it is now; while a result is pending it has
none, and `entity`, `entity_id` and `entity_type` are null. `request_params` is the row as the
caller sent it, nested values included.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from cell.answers import Answer, render
from cell.calls import Call, FirstAnswer, Route
from cell.errors import NotFound
from cell.journal import Record
from cell.ledger.commands import Command, QueueLedgerTransaction
from cell.ledger.model import BulkResult, ResultStatus
from cell.listing import Filters
from cell.pagination import PAGING, Position, answer_page, parse_page
from cell.parameters import Filter, Kind, Parameter
from cell.resources import ledger_accounts, ledger_transactions
from cell.resources.bulk_items import ResourceType
from cell.row_json import row_as_json, row_from_json
from cell.timestamps import render_timestamp

_BULK_ERROR: Final = "bulk_error"


class EntityType(StrEnum):
    LEDGER_ACCOUNT = "ledger_account"
    LEDGER_TRANSACTION = "ledger_transaction"
    BULK_ERROR = "bulk_error"


class RequestType(StrEnum):
    BULK_REQUEST = "bulk_request"


class RequestErrorView(msgspec.Struct, frozen=True, gc=False):
    code: str
    message: str
    parameter: str | None


class BulkErrorView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    request_errors: list[RequestErrorView]


class BulkResultView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    request_id: str
    request_type: str
    status: ResultStatus
    request_params: msgspec.Raw
    entity_id: str | None
    entity_type: str | None
    entity: Any


def show(result: BulkResult, entity: object) -> BulkResultView:
    """The result; `entity` is what a successful one has written."""
    entity_id, entity_type = result.entity_id, None
    if result.status is ResultStatus.FAILED:
        # Its error is nothing without it, and so has its id.
        entity, entity_id, entity_type = _show_error(result), result.id, _BULK_ERROR
    elif result.status is ResultStatus.SUCCESSFUL:
        entity_type = result.resource_type
    return BulkResultView(
        id=result.id,
        object="bulk_result",
        live_mode=True,
        created_at=render_timestamp(result.created_at_us),
        updated_at=render_timestamp(result.updated_at_us),
        request_id=result.request_id,
        request_type="bulk_request",
        status=result.status,
        request_params=msgspec.Raw(result.request_params.encode()),
        entity_id=entity_id,
        entity_type=entity_type,
        entity=entity,
    )


def _show_error(result: BulkResult) -> BulkErrorView:
    assert result.error_code is not None
    assert result.error_message is not None
    error = RequestErrorView(result.error_code, result.error_message, result.error_parameter)
    return BulkErrorView(
        id=result.id,
        object=_BULK_ERROR,
        live_mode=True,
        created_at=render_timestamp(result.created_at_us),
        updated_at=render_timestamp(result.updated_at_us),
        request_errors=[error],
    )


def answer_queued(record: Record) -> Answer:
    result = record.inserted[1]
    assert isinstance(result, BulkResult)
    headers = (
        (b"location", f"/api/bulk_results/{result.id}".encode()),
        (b"preference-applied", b"respond-async"),
    )
    return Answer(202, render(show(result, None)), headers)


_SHOWN: Final = row_as_json("r", BulkResult)
_BY_ID: Final = f"SELECT {_SHOWN} FROM bulk_results r WHERE r.tenant_id = %s AND r.id = %s"


async def retrieve(call: Call) -> Answer:
    id = call.require_id("bulk result")
    rows = await call.fetch(_BY_ID, (call.tenant_id, id))
    if not rows:
        raise NotFound(f"no bulk result {id}")
    result = row_from_json(BulkResult, rows[0][0])
    entities = await _entities(call, [result])
    return Answer(200, render(show(result, entities.get(result.id))))


FILTERS: Final = (
    Filter("request_id", Kind.ID, "r.request_id"),
    Filter("status", Kind.CHOICE, "r.status", choices=ResultStatus),
    # Said in two halves, each of which an index can answer.
    Filter("entity_id", Kind.ID, "(r.entity_id = %s OR r.id = %s AND r.status = 'failed')"),
)
REQUEST_TYPE: Final = Parameter("request_type", Kind.CHOICE, choices=RequestType)
ENTITY_TYPE: Final = Parameter("entity_type", Kind.CHOICE, choices=EntityType)


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "bulk_results", ())
    filters = Filters(query, "r", call.tenant_id)
    filters.apply(FILTERS)
    # There is but one.
    query.choice(REQUEST_TYPE.name, RequestType)
    entity_type = query.choice(ENTITY_TYPE.name, EntityType)
    if entity_type == EntityType.BULK_ERROR:
        filters.add("r.status = 'failed'")
    elif entity_type is not None:
        filters.add("r.status = 'successful' AND r.resource_type = %s", entity_type)
    statement, parameters = filters.select(page, shown=_SHOWN, source="bulk_results r")
    results = [row_from_json(BulkResult, row[0]) for row in await call.fetch(statement, parameters)]
    entities = await _entities(call, results)
    return answer_page(
        page, results, lambda result: show(result, entities.get(result.id)), _position
    )


async def _entities(call: Call, results: Sequence[BulkResult]) -> dict[str, object]:
    """What the successful ones have written, by the result's id."""
    found: dict[str, object] = {}
    for resource_type, show_many in (
        (ResourceType.LEDGER_ACCOUNT, ledger_accounts.show_many),
        (ResourceType.LEDGER_TRANSACTION, ledger_transactions.show_many),
    ):
        wanted = {
            result.id: result.entity_id
            for result in results
            if result.entity_id is not None and result.resource_type == resource_type
        }
        if wanted:
            views = await show_many(call, sorted(set(wanted.values())))
            found |= {id: views[entity_id] for id, entity_id in wanted.items()}
    return found


def _position(result: BulkResult) -> Position:
    return Position(key=0, id=result.id)


ROUTES: Final = (
    Route(
        "GET",
        "/api/bulk_results",
        list_page,
        "List bulk results",
        list[BulkResultView],
        parameters=(*PAGING, REQUEST_TYPE, ENTITY_TYPE, *FILTERS),
    ),
    Route("GET", "/api/bulk_results/{id}", retrieve, "Retrieve a bulk result", BulkResultView),
)
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {QueueLedgerTransaction: answer_queued}
