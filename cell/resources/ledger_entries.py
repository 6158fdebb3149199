"""Ledger entries: retrieve, update (metadata only), list; and how an entry is shown.

Entries are written with their transaction. A discarded one, replaced or of an earlier status, can
still be retrieved, and is listed with `show_deleted`. With `as_of_lock_version` the entries that an
account had at that version are listed, and with `ledger_account_statement_id` those of a statement,
in the state in which they were then: one discarded later is shown as not discarded.
"""

from typing import Final, LiteralString

import msgspec
from msgspec.structs import replace

from cell.answers import Answer, render
from cell.as_of import LOCK_VERSION, parse_lock_version
from cell.balance_views import LedgerBalances, show_resulting_balances
from cell.calls import Call, Route
from cell.category_filter import CATEGORY, in_category, restrict_to_category
from cell.errors import NotFound, Unprocessable
from cell.ledger.commands import UpdateLedgerEntry
from cell.ledger.model import Direction, LedgerEntry, Status
from cell.list_reading import fetch_page
from cell.listing import ORDERS, Filters
from cell.pagination import PAGING, Page, Position, answer_page, order_by, parse_page
from cell.parameters import Filter, Kind, Parameter
from cell.query import Query
from cell.resources import ledger_account_statements
from cell.resources.ledger_account_statements import OF_STATEMENT
from cell.row_json import row_as_json, row_from_json
from cell.timestamps import render_timestamp, render_timestamp_or_null
from cell.wellformed import Metadata


class UpdateBody(msgspec.Struct, frozen=True):
    metadata: Metadata = {}


class LedgerEntryView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    discarded_at: str | None
    amount: int
    amount_string: str
    direction: Direction
    status: Status
    effective_at: str
    ledger_account_id: str
    ledger_account_currency: str
    ledger_account_currency_exponent: int
    ledger_account_lock_version: int | None
    ledger_transaction_id: str
    metadata: dict[str, str]
    resulting_ledger_account_balances: LedgerBalances | None


def show(entry: LedgerEntry, *, with_balances: bool) -> LedgerEntryView:
    """The entry; `with_balances` shows the resulting balances where its writer asked for them."""
    shows_balances = with_balances and entry.shows_resulting_balances
    # In the view's order: by keywords it takes five times as long, and a page has a hundred.
    return LedgerEntryView(
        entry.id,
        "ledger_entry",
        True,
        render_timestamp(entry.created_at_us),
        render_timestamp(entry.updated_at_us),
        render_timestamp_or_null(entry.discarded_at_us),
        entry.amount,
        str(entry.amount),
        entry.direction,
        entry.status,
        render_timestamp(entry.effective_at_us),
        entry.ledger_account_id,
        entry.currency,
        entry.currency_exponent,
        entry.lock_version,
        entry.ledger_transaction_id,
        entry.metadata,
        show_resulting_balances(entry) if shows_balances else None,
    )


_SHOWN: Final = row_as_json("e", LedgerEntry)
_RETRIEVE: Final = f"SELECT {_SHOWN} FROM ledger_entries e WHERE e.tenant_id = %s AND e.id = %s"


async def retrieve(call: Call) -> Answer:
    with_balances = call.query().flag(SHOW_BALANCES.name)
    id = call.require_id("ledger entry")
    rows = await call.fetch(_RETRIEVE, (call.tenant_id, id))
    if not rows:
        raise NotFound(f"no ledger entry {id}")
    entry = row_from_json(LedgerEntry, rows[0][0])
    return Answer(200, render(show(entry, with_balances=with_balances)))


async def update(call: Call) -> Answer:
    id = call.require_id("ledger entry")
    body = await call.body(UpdateBody)
    record = await call.apply(UpdateLedgerEntry(id=id, metadata=body.metadata))
    entry = record.updated[0]
    assert isinstance(entry, LedgerEntry)
    return Answer(200, render(show(entry, with_balances=False)))


_OF_TRANSACTION_DATED: Final = """EXISTS (
    SELECT FROM ledger_transactions t
    WHERE t.tenant_id = e.tenant_id AND t.id = e.ledger_transaction_id
        AND t.effective_at_us {op} %s)"""
SHOW_BALANCES: Final = Parameter("show_balances", Kind.FLAG)
SHOW_DELETED: Final = Parameter("show_deleted", Kind.FLAG)
OF_SETTLEMENT: Final = (
    Parameter("ledger_account_settlement_id", Kind.ID),
    Parameter("ledger_account_payout_id", Kind.ID),
)
AT_VERSION: Final = Parameter(LOCK_VERSION, Kind.INTEGER)
FILTERS: Final = (
    Filter("id", Kind.IDS, "e.id"),
    Filter("ledger_account_id", Kind.ID, "e.ledger_account_id", in_order_of=ORDERS),
    Filter("ledger_transaction_id", Kind.ID, "e.ledger_transaction_id"),
    Filter("direction", Kind.CHOICE, "e.direction", choices=Direction, in_order_of=None),
    Filter("status", Kind.CHOICES, "e.status = ANY(%s::transaction_status[])", choices=Status),
    Filter("amount", Kind.INTEGERS, "e.amount", in_order_of=None),
    Filter("ledger_account_lock_version", Kind.INTEGERS, "e.lock_version", in_order_of=None),
    Filter("effective_at", Kind.TIMES, "e.effective_at_us", in_order_of=("effective_at",)),
    Filter("created_at", Kind.TIMES, "e.created_at_us", ids="e.id"),
    Filter("updated_at", Kind.TIMES, "e.updated_at_us", since_creation="e.id", in_order_of=()),
    Filter("effective_date", Kind.DAYS, _OF_TRANSACTION_DATED, in_order_of=()),
    Filter(
        "metadata",
        Kind.METADATA,
        "e.metadata @> %s::jsonb AND e.metadata <> '{}'",
        in_order_of=(),
    ),
)

_IN_CATEGORY: Final = in_category("e.ledger_account_id")


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "ledger_entries", ORDERS)
    with_balances = query.flag(SHOW_BALANCES.name)
    filters = _filters(query, call.tenant_id)
    _of_settlement(filters, page)
    at_version = await _restrict_to_version(call, filters)
    rows = await fetch_page(
        call,
        filters,
        page,
        shown=_SHOWN,
        source="ledger_entries e",
        effective_at="e.effective_at_us",
        along=_along_account(filters, page),
        is_narrow=_is_narrow(query),
    )
    entries = [as_of_version(row_from_json(LedgerEntry, row), at_version) for (row,) in rows]
    return answer_page(
        page, entries, lambda entry: show(entry, with_balances=with_balances), _position
    )


_OF_STATEMENT: Final = """e.ledger_account_id = %s
    AND e.effective_at_us >= %s::bigint AND e.effective_at_us < %s::bigint"""


async def _restrict_to_version(call: Call, filters: Filters) -> int | None:
    """Only live entries, unless asked otherwise: now, or at the account's version returned."""
    query = filters.query
    statement_id = query.uuid(OF_STATEMENT.name)
    version_text = query.text(AT_VERSION.name)
    version = None if version_text is None else parse_lock_version(version_text, LOCK_VERSION)
    if version is not None and statement_id is not None:
        raise Unprocessable(f"a statement has its own {LOCK_VERSION}", LOCK_VERSION)
    if version is not None and query.text("ledger_account_id") is None:
        raise Unprocessable(
            f"{LOCK_VERSION} needs ledger_account_id", "ledger_account_id", "parameter_missing"
        )
    if statement_id is not None:
        statement = await ledger_account_statements.find(call, statement_id)
        if statement is None:
            filters.add("false")
            return None
        of = (statement.ledger_account_id, statement.lower_bound_us, statement.upper_bound_us)
        filters.add(_OF_STATEMENT, *of, in_order_of=("effective_at",))
        # One archived from the beginning has the account's version, however late it came.
        filters.add("e.created_at_us < %s::bigint", statement.created_at_us)
        version = statement.lock_version
    shows_deleted = query.flag(SHOW_DELETED.name)
    if version is not None:
        filters.add("e.lock_version <= %s::bigint", version)
    if version is not None and not shows_deleted:
        filters.add("coalesce(e.discarded_lock_version > %s::bigint, true)", version)
    elif not shows_deleted:
        filters.add("e.discarded_at_us IS NULL")
    return version


def as_of_version(entry: LedgerEntry, version: int | None) -> LedgerEntry:
    """The entry as it was at its account's version: perhaps not discarded yet."""
    discarded = entry.discarded_lock_version
    if version is None or discarded is None or discarded <= version:
        return entry
    return replace(entry, discarded_at_us=None, discarded_lock_version=None)


def _filters(query: Query, tenant_id: str) -> Filters:
    filters = Filters(query, "e", tenant_id)
    filters.apply(FILTERS)
    restrict_to_category(filters, tenant_id, _IN_CATEGORY)
    return filters


_FROM_VERSION: Final = """e.lock_version {op} (
    SELECT c.lock_version FROM ledger_entries c WHERE c.tenant_id = %s AND c.id = %s)"""


def _along_account(filters: Filters, page: Page) -> LiteralString:
    """Of one account, entries are in the order of its versions, and have an index in that order.

    Every entry has the version that its account was at when it was written, so that none of an
    earlier version has a later id. Else an account that has rested for long would be looked for
    among all newer entries of the tenant, or a busy one's entries be sorted for each page.
    """
    if filters.query.text("ledger_account_id") is None or page.order.by == "effective_at":
        return ""
    if page.after is not None:
        beyond: LiteralString = "<=" if page.order.is_descending else ">="
        filters.add(_FROM_VERSION.replace("{op}", beyond), page.tenant_id, page.after.id)
    return "e.lock_version"


def _is_narrow(query: Query) -> bool:
    """Is an account asked for its entries between two times, as of a month?"""
    asked = query.mapping("effective_at").keys()
    has_both = bool(asked & {"gt", "gte"}) and bool(asked & {"lt", "lte"})
    return has_both and query.text("ledger_account_id") is not None


_HELD: Final = """e.id IN (
    SELECT m.id FROM settlement_entries m
    WHERE m.tenant_id = e.tenant_id AND m.settlement_id = %s"""


def _of_settlement(filters: Filters, page: Page) -> None:
    """What a settlement has gathered, and its own entry; by the old name of the filter, too."""
    for parameter in OF_SETTLEMENT:
        id = filters.query.uuid(parameter.name)
        if id is None:
            continue
        if page.after is None or page.order.by == "effective_at":
            filters.add(f"{_HELD})", id, in_order_of=("created_at",))
        else:
            # Said of the settlement's rows as well, which would else be read from the first one on.
            beyond: LiteralString = "<" if page.order.is_descending else ">"
            filters.add(f"{_HELD} AND m.id {beyond} %s)", id, page.after.id)


def _position(entry: LedgerEntry) -> Position:
    return Position(key=entry.effective_at_us, id=entry.id)


ROUTES: Final = (
    Route(
        "GET",
        "/api/ledger_entries",
        list_page,
        "List ledger entries",
        list[LedgerEntryView],
        parameters=(
            *PAGING,
            order_by(ORDERS),
            SHOW_BALANCES,
            SHOW_DELETED,
            AT_VERSION,
            CATEGORY,
            OF_STATEMENT,
            *OF_SETTLEMENT,
            *FILTERS,
        ),
    ),
    Route(
        "GET",
        "/api/ledger_entries/{id}",
        retrieve,
        "Retrieve a ledger entry",
        LedgerEntryView,
        parameters=(SHOW_BALANCES,),
    ),
    Route(
        "PATCH",
        "/api/ledger_entries/{id}",
        update,
        "Update a ledger entry's metadata",
        LedgerEntryView,
        UpdateBody,
    ),
)
