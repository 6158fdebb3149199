"""Events: what a journal record made happen, worked out from the record alone (pure).

Nothing is written for an event but the record itself. `events_of` gives the same events in the same
order whenever it is asked, and an event's id is made of its record's place, so that projecting a
journal again changes nothing. A resource adds its events by an entry in `EVENTS_OF_ROW`.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

from msgspec import UNSET

from cell.journal import Record
from cell.ledger.commands import (
    ContinueLedgerAccountSettlement,
    CreateLedgerAccountSettlement,
    UpdateLedgerAccountSettlement,
)
from cell.ledger.model import (
    BalanceMonitor,
    LedgerAccountSettlement,
    LedgerEntry,
    LedgerTransaction,
    Row,
    SettlementStatus,
    Status,
    TenantId,
)


class EventKind(IntEnum):
    """What can happen to what. The numbers are stored: they never change."""

    TRANSACTION_CREATED = 1
    TRANSACTION_POSTED = 2
    TRANSACTION_ARCHIVED = 3
    MONITOR_TRIGGERED = 4
    MONITOR_RESOLVED = 5
    SETTLEMENT_GATHERED = 6
    SETTLEMENT_POSTED = 7
    SETTLEMENT_ARCHIVED = 8


class KindName(NamedTuple):
    """A kind as the API names it."""

    resource: str
    event_name: str


NAMES: Final[dict[EventKind, KindName]] = {
    EventKind.TRANSACTION_CREATED: KindName("ledger_transaction", "created"),
    EventKind.TRANSACTION_POSTED: KindName("ledger_transaction", "posted"),
    EventKind.TRANSACTION_ARCHIVED: KindName("ledger_transaction", "archived"),
    EventKind.MONITOR_TRIGGERED: KindName("ledger_account_balance_monitor", "triggered"),
    EventKind.MONITOR_RESOLVED: KindName("ledger_account_balance_monitor", "resolved"),
    EventKind.SETTLEMENT_GATHERED: KindName("ledger_account_settlement", "finish_processing"),
    EventKind.SETTLEMENT_POSTED: KindName("ledger_account_settlement", "posted"),
    EventKind.SETTLEMENT_ARCHIVED: KindName("ledger_account_settlement", "finish_archiving"),
}


class Event(NamedTuple):
    """One event of a record."""

    kind: EventKind
    row: Any
    """The row it is about, as the record left it."""


KindsOfRow = Callable[[Any, Record, bool], tuple[EventKind, ...]]
"""What a record made of a row of one type; the flag says that the row is new."""


def _of_transaction(row: LedgerTransaction, record: Record, is_new: bool) -> tuple[EventKind, ...]:
    if is_new:
        return _OF_NEW_TRANSACTION[row.status]
    if row.posted_at_us == record.at_us:
        return (EventKind.TRANSACTION_POSTED,)
    # Only becoming archived rewrites the entries of one that is: later changes are of its metadata.
    if row.status is Status.ARCHIVED and any(
        type(entry) is LedgerEntry and entry.ledger_transaction_id == row.id
        for entry in record.inserted
    ):
        return (EventKind.TRANSACTION_ARCHIVED,)
    return ()


_OF_NEW_TRANSACTION: Final = {
    Status.PENDING: (EventKind.TRANSACTION_CREATED,),
    Status.POSTED: (EventKind.TRANSACTION_CREATED, EventKind.TRANSACTION_POSTED),
    Status.ARCHIVED: (EventKind.TRANSACTION_CREATED, EventKind.TRANSACTION_ARCHIVED),
}


def _of_monitor(row: BalanceMonitor, record: Record, is_new: bool) -> tuple[EventKind, ...]:
    """Its creation is an event, too: the state it starts in."""
    if row.state_since_us != record.at_us:
        return ()
    if row.is_triggered:
        return (EventKind.MONITOR_TRIGGERED,)
    return (EventKind.MONITOR_RESOLVED,)


def _of_settlement(
    row: LedgerAccountSettlement, record: Record, is_new: bool
) -> tuple[EventKind, ...]:
    """Gathering ends in a creation or in a step; the rest is asked for by a status.

    A status that was there already is not recorded as asked for.
    """
    command = record.command
    if row.updated_at_us != record.at_us:
        # A repeat, which changed nothing.
        return ()
    asked = command.status if isinstance(command, UpdateLedgerAccountSettlement) else UNSET
    gathers = isinstance(command, CreateLedgerAccountSettlement | ContinueLedgerAccountSettlement)
    match row.status:
        case SettlementStatus.PENDING if gathers:
            return (EventKind.SETTLEMENT_GATHERED,)
        case SettlementStatus.POSTED if gathers:
            return (EventKind.SETTLEMENT_GATHERED, EventKind.SETTLEMENT_POSTED)
        case SettlementStatus.POSTED if asked is SettlementStatus.POSTED:
            return (EventKind.SETTLEMENT_POSTED,)
        case SettlementStatus.ARCHIVED if gathers or asked is SettlementStatus.ARCHIVED:
            return (EventKind.SETTLEMENT_ARCHIVED,)
    return ()


EVENTS_OF_ROW: Final[dict[type[Row], KindsOfRow]] = {
    LedgerTransaction: _of_transaction,
    BalanceMonitor: _of_monitor,
    LedgerAccountSettlement: _of_settlement,
}


def events_of(record: Record) -> list[Event]:
    """The record's events; an event's place in the list is its ordinal."""
    found: list[Event] = []
    for is_new, rows in ((True, record.inserted), (False, record.updated)):
        for row in rows:
            kinds_of = EVENTS_OF_ROW.get(type(row))
            if kinds_of is not None:
                found += [Event(kind, row) for kind in kinds_of(row, record, is_new)]
    return found


class EventPlace(NamedTuple):
    """Where an event is: the place in the list of its record's events."""

    seq: int
    ordinal: int


_SEQ_MAX: Final = (1 << 48) - 1
_ORDINAL_MAX: Final = (1 << 20) - 1
_CHECK_BITS: Final = 54


def event_id(tenant_id: TenantId, place: EventPlace) -> str:
    """The id of a tenant's event: a UUIDv8 that holds its place and a checksum with the tenant.

    From the top: 48 bits of sequence, the version, 12 bits of ordinal, the variant, 8 bits of
    ordinal, 54 bits of checksum.
    """
    seq, ordinal = place
    assert 0 < seq <= _SEQ_MAX
    assert 0 <= ordinal <= _ORDINAL_MAX
    digest = hashlib.blake2b(f"{tenant_id} {seq} {ordinal}".encode(), digest_size=8).digest()
    check = int.from_bytes(digest) >> (64 - _CHECK_BITS)
    number = seq << 80 | 8 << 76 | ordinal >> 8 << 64 | 2 << 62 | (ordinal & 0xFF) << 54 | check
    return str(uuid.UUID(int=number))


def event_place(tenant_id: TenantId, id: str) -> EventPlace | None:
    """The place that an id names; None if it is no id of an event of this tenant."""
    number = uuid.UUID(id).int
    ordinal = (number >> 64 & 0xFFF) << 8 | number >> 54 & 0xFF
    place = EventPlace(number >> 80, ordinal)
    return place if place.seq and event_id(tenant_id, place) == id else None


class IndexEntry(NamedTuple):
    """Where to look for the events of a topic: an entity, or a kind in one segment."""

    topic: str
    at_us: int
    """Time of the record at `seq`."""
    seq: int


def topic_of(kind: EventKind) -> str:
    """The kind in the form of an id; no entity has such a one."""
    return f"00000000-0000-0000-0000-{kind:012x}"


def index_entries(records: Sequence[Record]) -> Iterator[IndexEntry]:
    """The entries of one segment: one for each kind of event in it, one for each entity's event.

    The creation of a transaction has none of its own: where it is, is known by its created_at.
    Thousands of transactions created in one segment so cost two rows.
    """
    kinds: set[EventKind] = set()
    for record in records:
        born = record.inserted[0] if record.inserted else None
        indexed = born if type(born) is LedgerTransaction else None
        for kind, row in events_of(record):
            kinds.add(kind)
            if row is not indexed:
                # A record may hold several events of one entity, which stand together.
                indexed = row
                yield IndexEntry(row.id, record.at_us, record.seq)
    first = records[0]
    for kind in sorted(kinds):
        yield IndexEntry(topic_of(kind), first.at_us, first.seq)
