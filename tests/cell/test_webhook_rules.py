"""What is recorded of webhooks: never back, given up once, no more endpoints than there may be.

Method: commands through a sequencer on a real database; the audit executes them again.
"""

import asyncio
from typing import Any

import pytest
from cell_writing import Writing, rows

from cell.errors import NotFound, Unprocessable
from cell.events import EventPlace, event_id
from cell.ledger import commands
from cell.ledger.model import TenantId
from cell.ledger.webhooks import ENDPOINTS_MAX

CREATE = commands.CreateWebhookEndpoint(url="https://example.com")


def delivery(id: str, seq: int, ordinal: int = 0, **fields: Any) -> commands.RecordWebhookDelivery:
    place = {"delivered_seq": seq, "delivered_ordinal": ordinal, "delivered_at_us": seq}
    return commands.RecordWebhookDelivery(id=id, **place, **fields)


async def test_an_endpoint_never_goes_back(
    writer: Writing, tenant_id: TenantId, cell_database: Any
) -> None:
    endpoint = (await writer.apply(tenant_id, CREATE)).inserted[0]
    event = event_id(tenant_id, EventPlace(50, 2))
    recorded = (
        delivery(endpoint.id, 50),
        delivery(endpoint.id, 50, attempts=3, failing_since_us=7, last_error="answered 500"),
        delivery(endpoint.id, 49),
        delivery(endpoint.id, 50, 2, attempts=4, last_error="x", dead_event_id=event),
        delivery(endpoint.id, 50, 2, attempts=4, last_error="x", dead_event_id=event),
        delivery(endpoint.id, 50, 1),
    )
    found = [await writer.apply(tenant_id, command) for command in recorded]
    places = [
        (row.delivered_seq, row.delivered_ordinal, row.attempts)
        for row in (record.updated[0] for record in found)
    ]
    assert places == [(50, 0, 0), (50, 0, 3), (50, 0, 3), (50, 2, 0), (50, 2, 0), (50, 2, 0)]
    letters = rows(
        cell_database.superuser_dsn,
        "SELECT id::text, event_id::text, attempts, last_error FROM webhook_dead_letters",
    )
    letter = found[3].inserted[0]
    assert letters == [(letter.id, event, 4, "x")]
    redelivered = [
        (await writer.apply(tenant_id, commands.RecordWebhookRedelivery(id=letter.id))).updated[0]
        for _ in range(2)
    ]
    assert redelivered[0] == redelivered[1]
    await writer.apply(tenant_id, commands.DeleteWebhookEndpoint(id=endpoint.id))
    with pytest.raises(NotFound):
        await writer.apply(tenant_id, delivery(endpoint.id, 60))


async def test_a_tenant_has_so_many_endpoints(writer: Writing, tenant_id: TenantId) -> None:
    made = await asyncio.gather(
        *(writer.apply(tenant_id, CREATE) for _ in range(ENDPOINTS_MAX + 1)),
        return_exceptions=True,
    )
    assert [isinstance(each, Unprocessable) for each in made] == [False] * ENDPOINTS_MAX + [True]
    first = made[0]
    assert not isinstance(first, BaseException)
    await writer.apply(tenant_id, commands.DeleteWebhookEndpoint(id=first.inserted[0].id))
    await writer.apply(tenant_id, CREATE)
