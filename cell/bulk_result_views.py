"""How a bulk result is shown; and the answer to what was queued with `Prefer: respond-async`.

A ledger transaction posted with that preference is judged, queued durably as a bulk request of one
row, and answered 202 with its pending bulk result, whose place is the Location to poll; the result
itself says the rest. `entity` is the complete object as it is now; while a result is pending it has
none, and `entity`, `entity_id` and `entity_type` are null. `request_params` is the row as the
caller sent it, nested values included.
"""

from typing import Any, Final

import msgspec

from cell.answers import Answer, render
from cell.journal import Record
from cell.ledger.model import BulkResult, ResultStatus
from cell.timestamps import render_timestamp

_BULK_ERROR: Final = "bulk_error"


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
