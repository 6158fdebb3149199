"""The rules of webhook endpoints (pure): where a tenant's events go, and how far they have come.

What was delivered is journaled like everything else, so that it moves with its tenant and so that
only the tenant's owner can say it. A delivery that is said late or twice does not put an endpoint
back.
"""

from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from cell.errors import NotFound, Unprocessable
from cell.ledger.commands import (
    CreateWebhookEndpoint,
    DeleteWebhookEndpoint,
    RecordWebhookDelivery,
    RecordWebhookRedelivery,
    UpdateWebhookEndpoint,
)
from cell.ledger.model import Effects, Stamp, TenantId, WebhookDeadLetter, WebhookEndpoint
from cell.ledger.needs import Needs, Relation, note_needs
from cell.ledger.rules import State, apply

ENDPOINTS_OF_TENANT: Final = Relation(WebhookEndpoint, by="tenant_id")
ENDPOINTS_MAX: Final = 16
"""Live webhook endpoints of a tenant: each event goes to all of them."""

PAST_EVERY_EVENT: Final = 1 << 20
"""An ordinal above those of all events of one record."""


@note_needs.register
def _needs_of_new(command: CreateWebhookEndpoint, tenant_id: TenantId, needs: Needs) -> None:
    needs.relation(ENDPOINTS_OF_TENANT, tenant_id, tenant_id)


@apply.register
def _create(command: CreateWebhookEndpoint, state: State, stamp: Stamp) -> Effects:
    if len(state.related(ENDPOINTS_OF_TENANT, state.tenant_id)) >= ENDPOINTS_MAX:
        raise Unprocessable(f"a tenant has at most {ENDPOINTS_MAX} webhook endpoints", "url")
    endpoint = WebhookEndpoint(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        url=command.url,
        description=command.description,
        # What happened before is none of its business.
        delivered_seq=stamp.seq,
        delivered_ordinal=PAST_EVERY_EVENT,
        delivered_at_us=stamp.at_us,
        attempts=0,
        failing_since_us=None,
        last_error=None,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        discarded_at_us=None,
        seq=stamp.seq,
    )
    return Effects(inserted=(endpoint,))


@note_needs.register(UpdateWebhookEndpoint | DeleteWebhookEndpoint | RecordWebhookDelivery)
def _needs_of_endpoint(
    command: UpdateWebhookEndpoint | DeleteWebhookEndpoint | RecordWebhookDelivery,
    tenant_id: TenantId,
    needs: Needs,
) -> None:
    needs.row(WebhookEndpoint, tenant_id, command.id)


def _live_endpoint(state: State, id: str) -> WebhookEndpoint:
    endpoint = state.row(WebhookEndpoint, id)
    if endpoint is None or endpoint.discarded_at_us is not None:
        raise NotFound(f"no webhook endpoint {id}")
    return endpoint


@apply.register
def _update(command: UpdateWebhookEndpoint, state: State, stamp: Stamp) -> Effects:
    endpoint = _live_endpoint(state, command.id)
    changed = replace(
        endpoint,
        url=endpoint.url if command.url is UNSET else command.url,
        description=endpoint.description if command.description is UNSET else command.description,
    )
    if changed == endpoint:
        return Effects(updated=(endpoint,))
    return Effects(updated=(replace(changed, updated_at_us=stamp.at_us, seq=stamp.seq),))


@apply.register
def _delete(command: DeleteWebhookEndpoint, state: State, stamp: Stamp) -> Effects:
    endpoint = state.row(WebhookEndpoint, command.id)
    if endpoint is None:
        raise NotFound(f"no webhook endpoint {command.id}")
    if endpoint.discarded_at_us is not None:
        return Effects(updated=(endpoint,))
    gone = replace(endpoint, discarded_at_us=stamp.at_us, updated_at_us=stamp.at_us, seq=stamp.seq)
    return Effects(updated=(gone,))


@apply.register
def _record_delivery(command: RecordWebhookDelivery, state: State, stamp: Stamp) -> Effects:
    endpoint = _live_endpoint(state, command.id)
    present = (endpoint.delivered_seq, endpoint.delivered_ordinal)
    place = (command.delivered_seq, command.delivered_ordinal)
    # An event is given up once, also if its caller could not tell whether that was recorded.
    if place < present or (place == present and command.dead_event_id is not None):
        return Effects(updated=(endpoint,))
    moved = replace(
        endpoint,
        delivered_seq=command.delivered_seq,
        delivered_ordinal=command.delivered_ordinal,
        delivered_at_us=command.delivered_at_us,
        attempts=command.attempts,
        failing_since_us=command.failing_since_us,
        last_error=command.last_error,
        seq=stamp.seq,
    )
    if command.dead_event_id is None:
        return Effects(updated=(moved,))
    letter = WebhookDeadLetter(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        webhook_endpoint_id=endpoint.id,
        event_id=command.dead_event_id,
        attempts=command.attempts,
        last_error=command.last_error,
        created_at_us=stamp.at_us,
        redelivered_at_us=None,
        seq=stamp.seq,
    )
    # The next event starts afresh.
    moved = replace(moved, attempts=0, failing_since_us=None)
    return Effects(inserted=(letter,), updated=(moved,))


@note_needs.register
def _needs_of_letter(command: RecordWebhookRedelivery, tenant_id: TenantId, needs: Needs) -> None:
    needs.row(WebhookDeadLetter, tenant_id, command.id)


@apply.register
def _record_redelivery(command: RecordWebhookRedelivery, state: State, stamp: Stamp) -> Effects:
    letter = state.row(WebhookDeadLetter, command.id)
    if letter is None:
        raise NotFound(f"no dead letter {command.id}")
    if letter.redelivered_at_us is not None:
        return Effects(updated=(letter,))
    return Effects(updated=(replace(letter, redelivered_at_us=stamp.at_us, seq=stamp.seq),))
