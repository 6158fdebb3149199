"""Webhook endpoints: where a tenant's events are sent; create, retrieve, update, list, delete.

Not in the SDKs. The key that deliveries are signed with is shown by the creation's answer only.
Events are sent in order and at least once, those after the endpoint's creation. What was given up
is a dead letter: listed below its endpoint until it is sent again, on request, and taken.
"""

from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from cell.answers import Answer, render
from cell.calls import Call, FirstAnswer, Route
from cell.errors import NotFound, Unprocessable
from cell.event_reading import find_event
from cell.journal import Record
from cell.ledger.commands import (
    Command,
    CreateWebhookEndpoint,
    DeleteWebhookEndpoint,
    RecordWebhookRedelivery,
    UpdateWebhookEndpoint,
)
from cell.ledger.model import WebhookDeadLetter, WebhookEndpoint
from cell.listing import Filters
from cell.pagination import PAGING, Position, answer_page, parse_page
from cell.row_json import row_as_json, row_from_json
from cell.timestamps import render_timestamp, render_timestamp_or_null
from cell.webhook_sending import parse_target, require_public_literal, signing_key
from cell.wellformed import Description, as_uuid

NOT_SET_UP: Final = "webhooks are not set up here: the cell has no webhook secret"


class CreateBody(msgspec.Struct, frozen=True):
    url: str
    description: Description | None = None


class UpdateBody(msgspec.Struct, frozen=True):
    url: str | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET


class EndpointView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    discarded_at: str | None
    url: str
    description: str | None
    failed_attempts: int
    """Of the event that is to be delivered next."""
    failing_since: str | None
    last_error: str | None


class CreatedEndpointView(EndpointView, frozen=True, gc=False, kw_only=True):
    signing_key: str
    """Not shown again."""


class DeadLetterView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    webhook_endpoint_id: str
    event_id: str
    attempts: int
    last_error: str | None
    redelivered_at: str | None


def show(endpoint: WebhookEndpoint) -> EndpointView:
    return EndpointView(**_fields(endpoint))


def _fields(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "live_mode": True,
        "created_at": render_timestamp(endpoint.created_at_us),
        "updated_at": render_timestamp(endpoint.updated_at_us),
        "discarded_at": render_timestamp_or_null(endpoint.discarded_at_us),
        "url": endpoint.url,
        "description": endpoint.description,
        "failed_attempts": endpoint.attempts,
        "failing_since": render_timestamp_or_null(endpoint.failing_since_us),
        "last_error": endpoint.last_error,
    }


def show_letter(letter: WebhookDeadLetter) -> DeadLetterView:
    return DeadLetterView(
        id=letter.id,
        object="webhook_dead_letter",
        live_mode=True,
        created_at=render_timestamp(letter.created_at_us),
        updated_at=render_timestamp(letter.redelivered_at_us or letter.created_at_us),
        webhook_endpoint_id=letter.webhook_endpoint_id,
        event_id=letter.event_id,
        attempts=letter.attempts,
        last_error=letter.last_error,
        redelivered_at=render_timestamp_or_null(letter.redelivered_at_us),
    )


async def create(call: Call) -> Answer:
    body = await call.body(CreateBody)
    if call.parts.deliverer.sender.policy.secret is None:
        raise Unprocessable(NOT_SET_UP)
    _require_target(call, body.url)
    answer = await call.create(CreateWebhookEndpoint(url=body.url, description=body.description))
    call.parts.deliverer.look_again()
    return answer


def _require_target(call: Call, url: str) -> None:
    """Names are resolved when something is sent; here only what can be seen is judged."""
    parts = parse_target(url)
    if not call.parts.deliverer.sender.policy.private_targets:
        require_public_literal(parts)


def first_answers(secret: str | None) -> dict[type[Command], FirstAnswer]:
    """With the key, which is in no record: a repeat shows it again, nobody else ever sees it."""

    def answer_created(record: Record) -> bytes:
        endpoint = record.inserted[0]
        assert isinstance(endpoint, WebhookEndpoint)
        if secret is None:
            raise Unprocessable(NOT_SET_UP)
        key = signing_key(secret, endpoint.tenant_id, endpoint.id)
        return render(CreatedEndpointView(**_fields(endpoint), signing_key=key))

    return {CreateWebhookEndpoint: answer_created, RecordWebhookRedelivery: _answer_redelivered}


_SHOWN: Final = row_as_json("w", WebhookEndpoint)
_BY_ID: Final = f"""
SELECT {_SHOWN} FROM webhook_endpoints w
WHERE w.tenant_id = %s AND w.id = %s AND w.discarded_at_us IS NULL
"""


async def retrieve(call: Call) -> Answer:
    return Answer(200, render(show(await _find(call))))


async def _find(call: Call) -> WebhookEndpoint:
    id = call.require_id("webhook endpoint")
    rows = await call.fetch(_BY_ID, (call.tenant_id, id))
    if not rows:
        raise NotFound(f"no webhook endpoint {id}")
    return row_from_json(WebhookEndpoint, rows[0][0])


async def update(call: Call) -> Answer:
    body = await call.body(UpdateBody)
    if body.url is not UNSET:
        _require_target(call, body.url)
    return await _change(
        call,
        UpdateWebhookEndpoint(
            id=call.require_id("webhook endpoint"), url=body.url, description=body.description
        ),
    )


async def delete(call: Call) -> Answer:
    return await _change(call, DeleteWebhookEndpoint(id=call.require_id("webhook endpoint")))


async def _change(call: Call, command: Command) -> Answer:
    endpoint = (await call.apply(command)).updated[0]
    assert isinstance(endpoint, WebhookEndpoint)
    call.parts.deliverer.look_again()
    return Answer(200, render(show(endpoint)))


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "webhook_endpoints", ())
    filters = Filters(query, "w", call.tenant_id)
    filters.add("w.discarded_at_us IS NULL")
    statement, parameters = filters.select(page, shown=_SHOWN, source="webhook_endpoints w")
    rows = await call.fetch(statement, parameters)
    endpoints = [row_from_json(WebhookEndpoint, row) for (row,) in rows]
    return answer_page(page, endpoints, show, _position)


def _position(row: WebhookEndpoint | WebhookDeadLetter) -> Position:
    return Position(key=0, id=row.id)


_LETTER_SHOWN: Final = row_as_json("d", WebhookDeadLetter)
_LETTER_BY_ID: Final = f"""
SELECT {_LETTER_SHOWN} FROM webhook_dead_letters d
WHERE d.tenant_id = %s AND d.webhook_endpoint_id = %s AND d.id = %s
"""


async def list_dead_letters(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "webhook_dead_letters", ())
    endpoint = await _find(call)
    filters = Filters(query, "d", call.tenant_id)
    filters.add("d.webhook_endpoint_id = %s", endpoint.id)
    filters.add("d.redelivered_at_us IS NULL")
    statement, parameters = filters.select(
        page, shown=_LETTER_SHOWN, source="webhook_dead_letters d"
    )
    rows = await call.fetch(statement, parameters)
    letters = [row_from_json(WebhookDeadLetter, row) for (row,) in rows]
    return answer_page(page, letters, show_letter, _position)


async def redeliver(call: Call) -> Answer:
    """Send the dead letter's event now; 201 if it was taken, else 422 says why not."""
    endpoint, id = await _find(call), as_uuid(call.ids[1])
    parameters = (call.tenant_id, endpoint.id, id)
    rows = await call.fetch(_LETTER_BY_ID, parameters) if id is not None else []
    if not rows:
        raise NotFound(f"no dead letter {call.ids[1]}")
    letter = row_from_json(WebhookDeadLetter, rows[0][0])
    found = await find_event(call.parts.reader, call.tenant_id, letter.event_id)
    assert found is not None, "a dead letter names an event of the journal"
    deliverer = call.parts.deliverer
    async with deliverer.sending:
        error = await deliverer.sender.send(call.tenant_id, endpoint.id, endpoint.url, found)
    if error is not None:
        raise Unprocessable(f"the endpoint did not take the event: {error}")
    return await call.create(RecordWebhookRedelivery(id=letter.id))


def _answer_redelivered(record: Record) -> bytes:
    letter = record.updated[0]
    assert isinstance(letter, WebhookDeadLetter)
    return render(show_letter(letter))


_PATH: Final = "/api/webhook_endpoints"
_LETTERS: Final = _PATH + "/{id}/dead_letters"
ROUTES: Final = (
    Route("POST", _PATH, create, "Create a webhook endpoint", CreatedEndpointView, CreateBody),
    Route("GET", _PATH, list_page, "List webhook endpoints", list[EndpointView], parameters=PAGING),
    Route("GET", _PATH + "/{id}", retrieve, "Retrieve a webhook endpoint", EndpointView),
    Route("PATCH", _PATH + "/{id}", update, "Update a webhook endpoint", EndpointView, UpdateBody),
    Route("DELETE", _PATH + "/{id}", delete, "Delete a webhook endpoint", EndpointView),
    Route(
        "GET",
        _LETTERS,
        list_dead_letters,
        "List what an endpoint did not take",
        list[DeadLetterView],
        parameters=PAGING,
    ),
    Route(
        "POST",
        _LETTERS + "/{dead_letter_id}/redeliver",
        redeliver,
        "Send a dead letter's event again",
        DeadLetterView,
    ),
)
