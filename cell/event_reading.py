"""Reading events: from the index to the journal's segments to the events themselves.

The index says which segments to read; what is in them is worked out from their records, and only
then do all filters apply. Serves the event list (newest first) and webhooks (oldest first).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, LiteralString, NamedTuple

from cell.events import (
    Event,
    EventKind,
    EventPlace,
    event_id,
    event_place,
    events_of,
    topic_of,
)
from cell.journal import Record, decode_body
from cell.ledger.model import TenantId
from cell.reads import Reader

TIME_MAX_US: Final = (1 << 63) - 1
SEGMENTS_PER_FETCH: Final = 8
PLACES_BEYOND: Final = 2
"""At either end of the times asked for there may be a segment with no event between them."""


class FoundEvent(NamedTuple):
    id: str
    place: EventPlace
    event: Event
    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events, in which direction."""

    kinds: frozenset[EventKind] = frozenset(EventKind)
    entity_id: str | None = None
    from_us: int = 0
    """Inclusive, as `to_us`."""
    to_us: int = TIME_MAX_US
    after: EventPlace | None = None
    """Only events beyond this one, in the direction."""
    newest_first: bool = True

    def takes(self, event: Event, place: EventPlace, at_us: int) -> bool:
        return (
            event.kind in self.kinds
            and self.from_us <= at_us <= self.to_us
            and (self.entity_id is None or event.row.id == self.entity_id)
            and (self.after is None or self._is_beyond(place, self.after))
        )

    def _is_beyond(self, place: EventPlace, other: EventPlace) -> bool:
        return place < other if self.newest_first else place > other


async def find_events(
    reader: Reader, tenant_id: TenantId, wanted: Wanted, limit: int
) -> list[FoundEvent]:
    """At most `limit` events, in order; fewer only if there are no more in the index."""
    found: list[FoundEvent] = []
    if not wanted.kinds:
        return found
    seen: set[int] = set()
    while True:
        places = await _find_places(reader, tenant_id, wanted, limit + PLACES_BEYOND)
        for start in range(0, len(places), SEGMENTS_PER_FETCH):
            seqs = [seq for _, seq in places[start : start + SEGMENTS_PER_FETCH]]
            for records in await _read_segments(reader, tenant_id, seqs, wanted.newest_first):
                # Several entries of an entity may lead to one segment.
                if records[0].seq not in seen:
                    seen.add(records[0].seq)
                    found += _events_in(records, tenant_id, wanted)
            if len(found) >= limit:
                return found[:limit]
        if len(places) < limit + PLACES_BEYOND:
            return found
        # Not all segments that the entity is in hold an event of the kinds wanted.
        last_us = places[-1][0]
        wanted = (
            replace(wanted, to_us=last_us - 1)
            if wanted.newest_first
            else replace(wanted, from_us=last_us + 1)
        )


async def find_event(reader: Reader, tenant_id: TenantId, id: str) -> FoundEvent | None:
    """The event of an id; needs no index, as the id says where it is."""
    place = event_place(tenant_id, id)
    if place is None:
        return None
    try:
        record = await reader.record(tenant_id, place.seq)
    except LookupError:
        return None
    events = events_of(record)
    if place.ordinal >= len(events):
        return None
    return FoundEvent(id, place, events[place.ordinal], record)


def _events_in(
    records: Sequence[Record], tenant_id: TenantId, wanted: Wanted
) -> Iterator[FoundEvent]:
    for record in reversed(records) if wanted.newest_first else records:
        if not wanted.from_us <= record.at_us <= wanted.to_us:
            continue
        events = list(enumerate(events_of(record)))
        for ordinal, event in reversed(events) if wanted.newest_first else events:
            place = EventPlace(record.seq, ordinal)
            if wanted.takes(event, place, record.at_us):
                yield FoundEvent(event_id(tenant_id, place), place, event, record)


async def _find_places(
    reader: Reader, tenant_id: TenantId, wanted: Wanted, limit: int
) -> list[tuple[Any, ...]]:
    """(time, sequence) of index entries, one for each segment to read or more, in order."""
    if wanted.entity_id is None:
        topics = [topic_of(kind) for kind in wanted.kinds]
    else:
        topics = [wanted.entity_id]
    created = topic_of(EventKind.TRANSACTION_CREATED)
    parameters = {
        "tenant_id": tenant_id,
        "topics": topics,
        "entity_id": wanted.entity_id,
        "created": created,
        "from_us": wanted.from_us,
        "to_us": wanted.to_us,
        "limit": limit,
    }
    statement = _NEWEST_PLACES if wanted.newest_first else _OLDEST_PLACES
    return await reader.fetch_named(tenant_id, statement, parameters)


def _places(direction: LiteralString) -> LiteralString:
    # The segment in which the times asked for begin has its entry before them: hence from there.
    # Each kind is a walk of its own along the key, so that a rare one is found at once.
    # GREATEST, for nothing that holds a COALESCE is leakproof, and the walk would go on beyond it.
    # A transaction's creation has no entry of its own: see `index_entries`.
    return f"""
    SELECT DISTINCT at_us, seq FROM (
        SELECT found.at_us, found.seq FROM unnest(%(topics)s::uuid[]) AS t (topic), LATERAL (
            SELECT e.at_us, e.seq FROM event_index e
            WHERE e.tenant_id = %(tenant_id)s AND e.topic = t.topic
                AND e.at_us <= %(to_us)s AND e.at_us >= greatest(0, (
                    SELECT max(b.at_us) FROM event_index b
                    WHERE b.tenant_id = %(tenant_id)s AND b.topic = t.topic
                        AND b.at_us <= %(from_us)s))
            ORDER BY e.at_us {direction} LIMIT %(limit)s) found
        UNION ALL
        SELECT found.at_us, found.seq FROM ledger_transactions t, LATERAL (
            SELECT e.at_us, e.seq FROM event_index e
            WHERE e.tenant_id = %(tenant_id)s AND e.topic = %(created)s
                AND e.at_us <= t.created_at_us
            ORDER BY e.at_us DESC LIMIT 1) found
        WHERE t.tenant_id = %(tenant_id)s AND t.id = %(entity_id)s
            AND t.created_at_us BETWEEN %(from_us)s AND %(to_us)s
    ) places
    ORDER BY at_us {direction} LIMIT %(limit)s
    """


_NEWEST_PLACES: Final = _places("DESC")
_OLDEST_PLACES: Final = _places("ASC")
_SEGMENTS: Final = """
SELECT DISTINCT ON (j.first_seq) j.body FROM unnest(%(seqs)s::bigint[]) AS w (seq), LATERAL (
    SELECT first_seq, body FROM journal
    WHERE tenant_id = %(tenant_id)s AND first_seq <= w.seq ORDER BY first_seq DESC LIMIT 1) j
ORDER BY j.first_seq
"""


async def _read_segments(
    reader: Reader, tenant_id: TenantId, seqs: Sequence[int], newest_first: bool
) -> list[tuple[Record, ...]]:
    parameters = {"tenant_id": tenant_id, "seqs": list(seqs)}
    rows = await reader.fetch_named(tenant_id, _SEGMENTS, parameters)
    segments = [decode_body(bytes(body)).records for (body,) in rows]
    return segments[::-1] if newest_first else segments
