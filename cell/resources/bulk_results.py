"""Bulk results: retrieve, list. How one is shown is in `cell/bulk_result_views.py`."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from cell.answers import Answer, render
from cell.bulk_result_views import BulkResultView, answer_queued, show
from cell.calls import Call, FirstAnswer, Route
from cell.errors import NotFound
from cell.ledger.commands import Command, QueueLedgerTransaction
from cell.ledger.model import BulkResult, ResultStatus
from cell.listing import Filters
from cell.pagination import PAGING, Position, answer_page, parse_page
from cell.parameters import Filter, Kind, Parameter
from cell.resources import ledger_accounts, ledger_transactions
from cell.resources.bulk_items import ResourceType
from cell.row_json import row_as_json, row_from_json


class EntityType(StrEnum):
    LEDGER_ACCOUNT = "ledger_account"
    LEDGER_TRANSACTION = "ledger_transaction"
    BULK_ERROR = "bulk_error"


class RequestType(StrEnum):
    BULK_REQUEST = "bulk_request"


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
