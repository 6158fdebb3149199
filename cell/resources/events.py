"""Events: retrieve and list what has happened to transactions, monitors and settlements.

Newest first. A transaction that is created as posted has two events, `created` and `posted`; a
balance monitor's creation has one, named after the state it starts in. A list shows every event of
what was written before it was asked for; it waits for the index where that is not so far yet.
"""

from typing import Any, Final

from cell.answers import Answer, render
from cell.calls import Call, Route
from cell.errors import NotFound, Unavailable
from cell.event_reading import TIME_MAX_US, FoundEvent, Wanted, find_event, find_events
from cell.event_views import EventView, show
from cell.events import NAMES, EventKind, event_place
from cell.pagination import PAGING, Position, answer_page, parse_page
from cell.parameters import Kind, Parameter
from cell.query import Query
from cell.timestamps import parse_timestamp

INDEX_WAIT_S: Final = 2.0
"""How long a list waits for the index of events to reach what was written before."""


async def retrieve(call: Call) -> Answer:
    call.principal.require_readable()
    id = call.require_id("event")
    found = await find_event(call.parts.reader, call.tenant_id, id)
    if found is None:
        raise NotFound(f"no event {id}")
    return Answer(200, render(show(found)))


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "events", ())
    from_us, to_us = _times(query)
    after = None
    if page.after is not None:
        to_us = min(to_us, page.after.key)
        after = event_place(call.tenant_id, page.after.id)
    wanted = Wanted(
        kinds=_kinds(query),
        entity_id=query.uuid("entity_id"),
        from_us=from_us,
        to_us=to_us,
        after=after,
    )
    await _reach_head(call)
    found = await find_events(call.parts.reader, call.tenant_id, wanted, page.per_page + 1)
    return answer_page(page, found, show, _position)


def _kinds(query: Query) -> frozenset[EventKind]:
    """Those that match; none for names of which there are no events."""
    resource, event_name = query.text("resource"), query.text("event_name")
    return frozenset(
        kind
        for kind, name in NAMES.items()
        if resource in (None, name.resource) and event_name in (None, name.event_name)
    )


def _times(query: Query) -> tuple[int, int]:
    start, end = query.text("event_time_start"), query.text("event_time_end")
    return (
        0 if start is None else parse_timestamp(start, "event_time_start"),
        TIME_MAX_US if end is None else parse_timestamp(end, "event_time_end"),
    )


_HEAD: Final = """
SELECT h.last_seq, coalesce(w.seq, 0)
FROM tenant_heads h LEFT JOIN event_watermarks w ON w.tenant_id = h.tenant_id
WHERE h.tenant_id = %s
"""


async def _reach_head(call: Call) -> None:
    """Wait until all that is committed now is in the index."""
    rows: list[tuple[Any, ...]] = await call.fetch(_HEAD, (call.tenant_id,))
    head, indexed = rows[0]
    if indexed < head and not await call.parts.projector.reach(call.tenant_id, head, INDEX_WAIT_S):
        raise Unavailable("the index of events is not up to date yet; try again shortly")


def _position(found: FoundEvent) -> Position:
    return Position(key=found.record.at_us, id=found.id)


_PARAMETERS: Final = (
    Parameter("resource", Kind.TEXT),
    Parameter("event_name", Kind.TEXT),
    Parameter("entity_id", Kind.ID),
    Parameter("event_time_start", Kind.TIME),
    Parameter("event_time_end", Kind.TIME),
)
ROUTES: Final = (
    Route(
        "GET",
        "/api/events",
        list_page,
        "List events",
        list[EventView],
        parameters=(*PAGING, *_PARAMETERS),
    ),
    Route("GET", "/api/events/{id}", retrieve, "Retrieve an event", EventView),
)
