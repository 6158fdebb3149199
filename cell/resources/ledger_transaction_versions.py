"""Versions of ledger transactions: what each was from its creation to each of its changes; list.

The versions that are over have rows; the last one is read from the transaction itself. Both are
read newest first, by their transactions' creation and then by number, and merged.

A change is whatever changes the transaction itself: a PATCH, a partial post, a reversal that begins
or ceases to name it. A change of an entry's metadata is none; a version that is over shows what the
metadata was when it ended, the last version what it is now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, LiteralString

import msgspec

from cell.answers import Answer
from cell.balance_views import LedgerBalances
from cell.calls import Call, Route
from cell.errors import NotFound
from cell.ledger.model import Direction, LedgerEntry, LedgerTransactionVersion, Status
from cell.ledger.transaction_versions import version_id, version_of
from cell.listing import Filters, Reading
from cell.pagination import PAGING, Page, Position, answer_page, parse_page
from cell.parameters import Filter, Kind, Parameter
from cell.query import Query
from cell.resources import ledger_account_statements
from cell.resources.ledger_account_statements import OF_STATEMENT
from cell.row_json import row_as_json, row_from_json, rows_as_json, rows_from_json
from cell.tables import ROW_TABLES
from cell.timestamps import render_date, render_timestamp, render_timestamp_or_null

Version = tuple[LedgerTransactionVersion, Sequence[LedgerEntry]]
"""With its entries, in the order in which they were asked for."""


class VersionEntryView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
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


class VersionView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    ledger_transaction_id: str
    version: int
    description: str | None
    status: Status
    metadata: dict[str, str]
    effective_at: str
    effective_date: str
    ledger_entries: list[VersionEntryView]
    posted_at: str | None
    ledger_id: str
    ledgerable_type: str | None
    ledgerable_id: str | None
    external_id: str | None
    reverses_ledger_transaction_id: str | None
    reversed_by_ledger_transaction_id: str | None
    partially_posts_ledger_transaction_id: str | None
    archived_reason: str | None


def show(version: Version) -> VersionView:
    of, entries = version
    return VersionView(
        id=of.id,
        object="ledger_transaction_version",
        live_mode=True,
        created_at=render_timestamp(of.created_at_us),
        ledger_transaction_id=of.ledger_transaction_id,
        version=of.version,
        description=of.description,
        status=of.status,
        metadata=of.metadata,
        effective_at=render_timestamp(of.effective_at_us),
        effective_date=render_date(of.effective_at_us),
        ledger_entries=[_show_entry(entry) for entry in entries],
        posted_at=render_timestamp_or_null(of.posted_at_us),
        ledger_id=of.ledger_id,
        ledgerable_type=of.ledgerable_type,
        ledgerable_id=of.ledgerable_id,
        external_id=of.external_id,
        reverses_ledger_transaction_id=of.reverses_id,
        reversed_by_ledger_transaction_id=of.reversed_by_id,
        partially_posts_ledger_transaction_id=of.partially_posts_id,
        archived_reason=of.archived_reason,
    )


def _show_entry(entry: LedgerEntry) -> VersionEntryView:
    return VersionEntryView(
        id=entry.id,
        object="ledger_entry",
        live_mode=True,
        created_at=render_timestamp(entry.created_at_us),
        amount=entry.amount,
        amount_string=str(entry.amount),
        direction=entry.direction,
        status=entry.status,
        effective_at=render_timestamp(entry.effective_at_us),
        ledger_account_id=entry.ledger_account_id,
        ledger_account_currency=entry.currency,
        ledger_account_currency_exponent=entry.currency_exponent,
        ledger_account_lock_version=entry.lock_version,
        ledger_transaction_id=entry.ledger_transaction_id,
        metadata=entry.metadata,
        resulting_ledger_account_balances=None,
    )


IDS: Final = Parameter("id", Kind.IDS)
OF_TRANSACTION: Final = Parameter("ledger_transaction_id", Kind.ID)
_VERSIONS_MAX: Final = (1 << 31) - 1
"""What the column of versions can hold."""

_NUMBERED: Final[LiteralString] = "version {op} greatest(-1, least(%s::numeric, 2147483647))::int"
"""Compared as an integer, which an index can do for readers."""

FILTERS: Final = (
    Filter("version", Kind.INTEGERS, "v." + _NUMBERED),
    Filter("created_at", Kind.TIMES, "v.created_at_us", since_creation="v.id"),
)
_FILTERS_OF_LAST: Final = (
    Filter("version", Kind.INTEGERS, "t." + _NUMBERED),
    Filter("created_at", Kind.TIMES, "t.updated_at_us", since_creation="t.id", in_order_of=()),
)
"""The same of a transaction, which is its own last version, and began as such at its change."""


async def list_page(call: Call) -> Answer:
    query = call.query()
    return await _answer(call, query, query.uuid("ledger_transaction_id"), ids=[])


async def list_page_of_transaction(call: Call) -> Answer:
    query = call.query()
    transaction_id = call.require_id("ledger transaction")
    return await _answer(call, query, transaction_id, query.uuids("id"))


async def _answer(
    call: Call, query: Query, transaction_id: str | None, ids: Sequence[str]
) -> Answer:
    page = parse_page(query, call.tenant_id, f"versions {transaction_id}", ())
    over = _filters_of_over(query, page, transaction_id, ids)
    last = _filters_of_last(query, page, transaction_id, ids)
    dated = await _restrict_to_statement(call, over, last)
    is_far = dated is None and transaction_id is None and await _is_far(call, last, page)
    statement, parameters = _merged(over, last, page, dated, is_far=is_far)
    read = call.fetch_by_match if is_far else call.fetch
    rows = await read(statement, parameters)
    if not rows and transaction_id is not None:
        await _require_known(call, transaction_id)
    versions = [_read(*row) for row in rows]
    return answer_page(page, versions, show, _position)


async def _restrict_to_statement(
    call: Call, over: Filters, last: Filters
) -> tuple[object, ...] | None:
    """Only what was current when the statement was made, of the transactions that it is about;
    the parameters of `_DATED`.

    Raises NotFound where there is no such statement, as for an unknown transaction.
    """
    statement_id = over.query.uuid(OF_STATEMENT.name)
    if statement_id is None:
        return None
    of = await ledger_account_statements.find(call, statement_id)
    if of is None:
        raise NotFound(f"no ledger account statement {statement_id}", OF_STATEMENT.name)
    # The sequence of a version that is over is that of the change which ended it.
    over.add("v.created_at_us < %s::bigint AND v.seq > %s::bigint", of.created_at_us, of.seq)
    last.add("t.seq < %s::bigint", of.seq)
    bounds = (of.ledger_account_id, of.lower_bound_us, of.upper_bound_us)
    return (call.tenant_id, *bounds, of.lock_version, of.lock_version)


_KNOWN: Final = "SELECT 1 FROM ledger_transactions WHERE tenant_id = %s AND id = %s"


async def _require_known(call: Call, transaction_id: str) -> None:
    if not await call.fetch(_KNOWN, (call.tenant_id, transaction_id)):
        raise NotFound(f"no ledger transaction {transaction_id}", "ledger_transaction_id")


def _filters_of_over(
    query: Query, page: Page, transaction_id: str | None, ids: Sequence[str]
) -> Filters:
    """Which rows of versions count, found by the order of their ids."""
    filters = Filters(query, "v", page.tenant_id)
    filters.apply(FILTERS)
    if transaction_id is not None:
        first, end = version_id(transaction_id, 0), version_id(transaction_id, _VERSIONS_MAX)
        filters.add("v.id BETWEEN %s::uuid AND %s::uuid", first, end)
    if ids:
        filters.add("v.id = ANY(%s::uuid[])", ids)
    if page.after is not None:
        filters.add("v.id < %s::uuid", version_id(page.after.id, page.after.key))
    return filters


def _filters_of_last(
    query: Query, page: Page, transaction_id: str | None, ids: Sequence[str]
) -> Filters:
    """The same of transactions, each of which is its own last version."""
    filters = Filters(query, "t", page.tenant_id)
    filters.apply(_FILTERS_OF_LAST)
    if transaction_id is None:
        _restrict_to_numbered(filters)
    else:
        filters.add("t.id = %s", transaction_id)
    if transaction_id is not None and ids:
        versions = [version_of(id, transaction_id) for id in ids]
        wanted = [version for version in versions if 0 <= version <= _VERSIONS_MAX]
        filters.add("t.version = ANY(%s::int[])", wanted)
    if page.after is not None:
        filters.add("(t.id, t.version) < (%s::uuid, %s::int)", page.after.id, page.after.key)
    return filters


_HAS_VERSION: Final = """t.id IN (
    SELECT v.ledger_transaction_id FROM ledger_transaction_versions v
    WHERE v.tenant_id = %s AND v.version = %s::int)"""


def _restrict_to_numbered(filters: Filters) -> None:
    """Which are at a number or above it, by the version before, which is over and in an index:
    the number of a transaction itself is in none. Below a number are nearly all."""
    for operator, text in filters.query.mapping("version").items():
        first = int(text) + (operator == "gt")
        if operator in ("gt", "gte", "eq") and 0 < first <= _VERSIONS_MAX:
            filters.add(_HAS_VERSION, filters.tenant_id, first - 1)


_TABLE: Final = next(table for table in ROW_TABLES if table.row is LedgerTransactionVersion)
_LAST_COLUMNS: Final[Mapping[str, LiteralString]] = {
    "ledger_transaction_id": "t.id",
    "entry_metadata": "'{}'::jsonb",
    "created_at_us": "t.updated_at_us",
}
"""What a version's column is in its transaction, where it has another name there."""

_OVER: Final = ", ".join(f"v.{column}" for column in _TABLE.columns)
_LAST: Final = ", ".join(
    f"{_LAST_COLUMNS.get(column, f't.{column}')} AS {column}" for column in _TABLE.columns
)
_ENTRIES_AT_THE_TIME: Final = f"""
SELECT {rows_as_json("e", LedgerEntry)} FROM ledger_entries e
WHERE e.tenant_id = m.tenant_id AND e.ledger_transaction_id = m.ledger_transaction_id
    AND e.created_at_us <= m.created_at_us
    AND (e.discarded_at_us IS NULL OR e.discarded_at_us > m.created_at_us)
"""
"""Whatever is written at one time is one command's: times of a tenant never repeat."""

_ORDER: Final = "ORDER BY m.ledger_transaction_id DESC, m.version DESC"


async def _is_far(call: Call, last: Filters, page: Page) -> bool:
    """Are those that match too far from where the page begins to be walked to?

    See `listing.Reading`. Of versions that are over, none is without an index.
    """
    if not last.is_scattered(page):
        return False
    # The filters begin after the cursor already.
    statement, parameters = last.select(
        replace(page, after=None),
        shown="t.id",
        source="ledger_transactions t",
        reading=Reading.NEAR,
    )
    return len(await call.fetch(statement, parameters)) <= page.per_page


_DATED: Final = """WITH dated AS MATERIALIZED (
    SELECT DISTINCT e.ledger_transaction_id AS id FROM ledger_entries e
    WHERE e.tenant_id = %s AND e.ledger_account_id = %s AND e.effective_at_us >= %s::bigint
        AND e.effective_at_us < %s::bigint AND e.lock_version <= %s::bigint
        AND coalesce(e.discarded_lock_version > %s::bigint, true))"""
"""The transactions of a statement; what is found from them is not looked for among all others."""

_OVER_OF_DATED: Final = """dated d CROSS JOIN LATERAL (
    SELECT v.* FROM ledger_transaction_versions v
    WHERE v.tenant_id = %s AND v.ledger_transaction_id = d.id
        AND v.id BETWEEN d.id AND (left(d.id::text, 24) || 'ffffffffffff')::uuid
    OFFSET 0) v"""
"""A version's id begins as its transaction's: see `version_id`."""

_LAST_OF_DATED: Final = """dated d CROSS JOIN LATERAL (
    SELECT t.* FROM ledger_transactions t WHERE t.tenant_id = %s AND t.id = d.id OFFSET 0) t"""


def _merged(
    over: Filters,
    last: Filters,
    page: Page,
    dated: tuple[object, ...] | None,
    *,
    is_far: bool,
) -> tuple[LiteralString, list[object]]:
    """One row more than the page holds, each part read no further than that."""
    rows_max = page.per_page + 1
    over_where, over_parameters = over.where()
    last_where, last_parameters = last.where()
    first: LiteralString = ""
    over_from: LiteralString = "ledger_transaction_versions v"
    last_from: LiteralString = "ledger_transactions t"
    if dated is not None:
        first, over_from, last_from = _DATED, _OVER_OF_DATED, _LAST_OF_DATED
        over_parameters = [*dated, page.tenant_id, *over_parameters]
        last_parameters = [page.tenant_id, *last_parameters]
    elif is_far:
        # OFFSET: planned as if all were wanted, which they are, wherever they stand.
        last_from = f"(SELECT t.* FROM {last_from} WHERE {last_where} OFFSET 0) t"
        last_where = "true"
    statement: LiteralString = f"""{first}
    SELECT {row_as_json("m", LedgerTransactionVersion)}, m.is_last, ({_ENTRIES_AT_THE_TIME})
    FROM (
        (SELECT {_OVER}, false AS is_last FROM {over_from}
            WHERE {over_where} ORDER BY v.id DESC LIMIT %s)
        UNION ALL
        (SELECT {_LAST}, true AS is_last FROM {last_from}
            WHERE {last_where} ORDER BY t.id DESC LIMIT %s)
        ORDER BY ledger_transaction_id DESC, version DESC LIMIT %s
    ) m {_ORDER}"""
    return statement, [*over_parameters, rows_max, *last_parameters, rows_max, rows_max]


def _read(row: str, is_last: bool, entry_rows: str) -> Version:
    version = row_from_json(LedgerTransactionVersion, row)
    entries = rows_from_json(LedgerEntry, entry_rows)
    if is_last:
        # Read from the transaction, it has the transaction's id.
        id = version_id(version.ledger_transaction_id, version.version)
        return msgspec.structs.replace(version, id=id), entries
    was = version.entry_metadata
    return version, [
        msgspec.structs.replace(entry, metadata=was.get(entry.id, {})) for entry in entries
    ]


def _position(version: Version) -> Position:
    return Position(key=version[0].version, id=version[0].ledger_transaction_id)


ROUTES: Final = (
    Route(
        "GET",
        "/api/ledger_transaction_versions",
        list_page,
        "List versions of ledger transactions",
        list[VersionView],
        parameters=(*PAGING, OF_TRANSACTION, OF_STATEMENT, *FILTERS),
        errors=(404,),
    ),
    Route(
        "GET",
        "/api/ledger_transactions/{id}/versions",
        list_page_of_transaction,
        "List the versions of a ledger transaction",
        list[VersionView],
        parameters=(*PAGING, IDS, OF_STATEMENT, *FILTERS),
    ),
)
