"""Ledger transactions: create, retrieve, update, list, post in part, reverse.

Retrieving and updating take an id or an external id, which finds what is not archived.

A transaction is shown with its live entries, both read in one statement and so of one moment. What
a create or a rewrite answers is rendered from its journal record alone.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from cell import strict_json
from cell.answers import Answer, render
from cell.bulk_result_views import BulkResultView
from cell.calls import Call, FirstAnswer, Route
from cell.category_filter import CATEGORY, in_category, restrict_to_category
from cell.errors import Conflict, NotFound
from cell.journal import Record
from cell.ledger.commands import (
    Command,
    CreateLedgerTransaction,
    PartiallyPostLedgerTransaction,
    QueueLedgerTransaction,
    ReverseLedgerTransaction,
)
from cell.ledger.model import LedgerEntry, LedgerTransaction, Status
from cell.list_reading import fetch_page
from cell.listing import ORDERS, Filters
from cell.pagination import PAGING, Position, answer_page, order_by, parse_page
from cell.parameters import Filter, Kind, Parameter
from cell.query import Query
from cell.resources import ledger_entries
from cell.resources.ledger_entries import LedgerEntryView
from cell.resources.ledger_transaction_bodies import (
    CreateBody,
    LedgerableType,
    PartialPostBody,
    ReversalBody,
    UpdateBody,
    create_command,
    partial_post_command,
    require_deferrable,
    reversal_command,
    update_command,
)
from cell.row_json import row_as_json, row_from_json, rows_as_json, rows_from_json
from cell.timestamps import render_date, render_timestamp, render_timestamp_or_null
from cell.wellformed import as_uuid

Transaction = tuple[LedgerTransaction, Sequence[LedgerEntry]]
"""With its live entries, in the order in which they were asked for."""


class LedgerTransactionView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    description: str | None
    status: Status
    metadata: dict[str, str]
    effective_at: str
    effective_date: str
    ledger_entries: list[LedgerEntryView]
    posted_at: str | None
    ledger_id: str
    ledgerable_type: str | None
    ledgerable_id: str | None
    external_id: str | None
    reverses_ledger_transaction_id: str | None
    reversed_by_ledger_transaction_id: str | None
    partially_posts_ledger_transaction_id: str | None
    archived_reason: str | None


def show(
    transaction: LedgerTransaction, entries: Iterable[LedgerEntry], *, with_balances: bool
) -> LedgerTransactionView:
    """The transaction; resulting balances are for the one who wrote the entries, at that time."""
    return LedgerTransactionView(
        id=transaction.id,
        object="ledger_transaction",
        live_mode=True,
        created_at=render_timestamp(transaction.created_at_us),
        updated_at=render_timestamp(transaction.updated_at_us),
        description=transaction.description,
        status=transaction.status,
        metadata=transaction.metadata,
        effective_at=render_timestamp(transaction.effective_at_us),
        effective_date=render_date(transaction.effective_at_us),
        ledger_entries=[
            ledger_entries.show(entry, with_balances=with_balances) for entry in entries
        ],
        posted_at=render_timestamp_or_null(transaction.posted_at_us),
        ledger_id=transaction.ledger_id,
        ledgerable_type=transaction.ledgerable_type,
        ledgerable_id=transaction.ledgerable_id,
        external_id=transaction.external_id,
        reverses_ledger_transaction_id=transaction.reverses_id,
        reversed_by_ledger_transaction_id=transaction.reversed_by_id,
        partially_posts_ledger_transaction_id=transaction.partially_posts_id,
        archived_reason=transaction.archived_reason,
    )


async def create(call: Call) -> Answer:
    """With `Prefer: respond-async` answered once it is queued durably: see `bulk_result_views`."""
    text = await call.raw_body()
    body = strict_json.decode(text, CreateBody)
    command = create_command(body)
    if not call.prefers_async():
        return await call.create(command)
    require_deferrable(body)
    request_params = msgspec.json.format(text, indent=-1).decode()
    return await call.queue(QueueLedgerTransaction(request_params=request_params, inner=command), 1)


def answer_created(record: Record) -> bytes:
    transaction, *entries = record.inserted
    return render(show(transaction, entries, with_balances=True))  # type: ignore[arg-type]


async def post_partially(call: Call) -> Answer:
    body = await call.body(PartialPostBody)
    return await call.create(partial_post_command(call.require_id("ledger transaction"), body))


async def reverse(call: Call) -> Answer:
    body = await call.body(ReversalBody)
    return await call.create(reversal_command(call.require_id("ledger transaction"), body))


def answer_created_beside_another(record: Record) -> bytes:
    """The new transaction, whose record also has what became of the one it is about."""
    transaction = record.inserted[0]
    assert isinstance(transaction, LedgerTransaction)
    entries = [
        row
        for row in record.inserted
        if isinstance(row, LedgerEntry) and row.ledger_transaction_id == transaction.id
    ]
    return render(show(transaction, entries, with_balances=True))


_SHOWN: Final = f"""{row_as_json("t", LedgerTransaction)}, (
    SELECT {rows_as_json("e", LedgerEntry)} FROM ledger_entries e
    WHERE e.tenant_id = t.tenant_id AND e.ledger_transaction_id = t.id
        AND e.discarded_at_us IS NULL)
"""
_TRANSACTIONS: Final = f"SELECT {_SHOWN} FROM ledger_transactions t"
_BY_ID: Final = f"{_TRANSACTIONS} WHERE t.tenant_id = %s AND t.id = %s"
_BY_IDS: Final = f"{_TRANSACTIONS} WHERE t.tenant_id = %s AND t.id = ANY(%s::uuid[])"
_BY_EXTERNAL_ID: Final = f"""{_TRANSACTIONS}
WHERE t.tenant_id = %s AND t.external_id = %s AND t.status <> 'archived' LIMIT 2
"""


async def retrieve(call: Call) -> Answer:
    transaction, entries = await _find(call, call.ids[0])
    return Answer(200, render(show(transaction, entries, with_balances=False)))


async def show_many(call: Call, ids: Sequence[str]) -> dict[str, LedgerTransactionView]:
    """The transactions of these ids as they are now, by id."""
    found = _read(await call.fetch(_BY_IDS, (call.tenant_id, ids)))
    return {pair[0].id: show(*pair, with_balances=False) for pair in found}


async def _find(call: Call, name: str) -> Transaction:
    """The transaction of an id or, among those not archived, of an external id."""
    id = as_uuid(name)
    cached = call.cached_transaction(id) if id is not None else None
    if cached is not None:
        return cached
    found = _read(await call.fetch(_BY_ID, (call.tenant_id, id))) if id is not None else []
    return found[0] if found else await _find_by_external_id(call, name)


async def _find_by_external_id(call: Call, name: str) -> Transaction:
    found = _read(await call.fetch(_BY_EXTERNAL_ID, (call.tenant_id, name)))
    if not found:
        raise NotFound(f"no ledger transaction {name}")
    if len(found) > 1:
        raise Conflict(
            f"transactions of several ledgers have the external_id {name}", retryable=False
        )
    return found[0]


def _read(rows: Iterable[tuple[Any, ...]]) -> list[Transaction]:
    return [
        (row_from_json(LedgerTransaction, transaction), rows_from_json(LedgerEntry, entries))
        for transaction, entries in rows
    ]


async def update(call: Call) -> Answer:
    body = await call.body(UpdateBody)
    id = as_uuid(call.ids[0]) or await _id_of_external_id(call)
    try:
        record = await call.apply(update_command(id, body))
    except NotFound as unknown:
        # What has a parameter is about another object: an account of the new entries.
        if unknown.parameter is not None:
            raise
        # A caller's external id may have the form of a UUID, too.
        id = await _id_of_external_id(call)
        record = await call.apply(update_command(id, body))
    entries = [row for row in record.inserted if isinstance(row, LedgerEntry)]
    if not entries:
        # Its entries stayed as they were: shown is what is there now, of one moment.
        return await _answer_present(call, id)
    rows = (row for row in record.updated if isinstance(row, LedgerTransaction))
    return Answer(200, render(show(next(rows), entries, with_balances=True)))


async def _id_of_external_id(call: Call) -> str:
    return (await _find_by_external_id(call, call.ids[0]))[0].id


async def _answer_present(call: Call, id: str) -> Answer:
    ((transaction, entries),) = _read(await call.fetch(_BY_ID, (call.tenant_id, id)))
    return Answer(200, render(show(transaction, entries, with_balances=False)))


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "ledger_transactions", ORDERS)
    filters = _filters(query, call.tenant_id)
    rows = await fetch_page(
        call,
        filters,
        page,
        shown=_SHOWN,
        source="ledger_transactions t",
        effective_at="t.effective_at_us",
    )
    found = _read(rows)
    return answer_page(page, found, lambda pair: show(*pair, with_balances=False), _position)


_HAS_EXTERNAL_ID: Final = """(t.external_id = %s AND t.status <> 'archived'
    OR t.external_id = %s AND t.status = 'archived')"""
"""Said in two halves, each of which a partial index can answer."""

_LIVE_ENTRIES: Final = """SELECT FROM ledger_entries x
    WHERE x.tenant_id = t.tenant_id AND x.ledger_transaction_id = t.id
        AND x.discarded_at_us IS NULL"""
_HAS_ACCOUNT: Final = f"EXISTS ({_LIVE_ENTRIES} AND x.ledger_account_id = %s)"
_IN_CATEGORY: Final = f"EXISTS ({_LIVE_ENTRIES} AND {in_category('x.ledger_account_id')})"
_HAS_TOTAL: Final = (
    f"EXISTS ({_LIVE_ENTRIES} AND x.direction = 'debit'"
    " GROUP BY x.currency, x.currency_exponent HAVING "
)

_IS_SETTLED: Final = """t.id IN (
    SELECT m.ledger_transaction_id FROM settlement_entries m
    WHERE m.tenant_id = t.tenant_id AND m.settlement_id = %s)"""


FILTERS: Final = (
    Filter("id", Kind.IDS, "t.id"),
    Filter("ledger_id", Kind.ID, "t.ledger_id"),
    Filter("ledger_account_id", Kind.ID, _HAS_ACCOUNT, in_order_of=ORDERS),
    Filter("ledger_account_settlement_id", Kind.ID, _IS_SETTLED, in_order_of=()),
    Filter("external_id", Kind.TEXT, _HAS_EXTERNAL_ID),
    Filter("status", Kind.CHOICES, "t.status = ANY(%s::transaction_status[])", choices=Status),
    Filter("ledgerable_type", Kind.CHOICE, "t.ledgerable_type", choices=LedgerableType),
    Filter("ledgerable_id", Kind.TEXT, "t.ledgerable_id"),
    Filter("reverses_ledger_transaction_id", Kind.ID, "t.reverses_id"),
    Filter("partially_posts_ledger_transaction_id", Kind.ID, "t.partially_posts_id"),
    Filter("effective_at", Kind.TIMES, "t.effective_at_us", in_order_of=("effective_at",)),
    Filter("effective_date", Kind.DAYS, "t.effective_at_us", in_order_of=("effective_at",)),
    Filter("posted_at", Kind.TIMES, "t.posted_at_us", since_creation="t.id", in_order_of=()),
    Filter("created_at", Kind.TIMES, "t.created_at_us", ids="t.id"),
    Filter("updated_at", Kind.TIMES, "t.updated_at_us", since_creation="t.id", in_order_of=()),
    Filter(
        "metadata",
        Kind.METADATA,
        "t.metadata @> %s::jsonb AND t.metadata <> '{}'",
        in_order_of=(),
    ),
)
AMOUNT: Final = Parameter("amount", Kind.INTEGERS)


def _filters(query: Query, tenant_id: str) -> Filters:
    filters = Filters(query, "t", tenant_id)
    filters.apply(FILTERS)
    restrict_to_category(filters, tenant_id, _IN_CATEGORY)
    # A transaction's amount is the total of its debits, in any of its currencies.
    having, amounts = filters.having(AMOUNT.name, "sum(x.amount)")
    if amounts:
        filters.add(f"{_HAS_TOTAL}{having})", *amounts, in_order_of=None)
    return filters


def _position(pair: Transaction) -> Position:
    return Position(key=pair[0].effective_at_us, id=pair[0].id)


ROUTES: Final = (
    Route(
        "POST",
        "/api/ledger_transactions",
        create,
        "Create a ledger transaction",
        LedgerTransactionView,
        CreateBody,
        errors=(404,),
        deferred=BulkResultView,
    ),
    Route(
        "GET",
        "/api/ledger_transactions",
        list_page,
        "List ledger transactions",
        list[LedgerTransactionView],
        parameters=(*PAGING, order_by(ORDERS), AMOUNT, CATEGORY, *FILTERS),
    ),
    Route(
        "GET",
        "/api/ledger_transactions/{id}",
        retrieve,
        "Retrieve a ledger transaction by its id or its external id",
        LedgerTransactionView,
        errors=(409,),
    ),
    Route(
        "PATCH",
        "/api/ledger_transactions/{id}",
        update,
        "Update a ledger transaction by its id or its external id",
        LedgerTransactionView,
        UpdateBody,
        errors=(409,),
    ),
    Route(
        "POST",
        "/api/ledger_transactions/{id}/partial_post",
        post_partially,
        "Post a part of a pending ledger transaction",
        LedgerTransactionView,
        PartialPostBody,
    ),
    Route(
        "POST",
        "/api/ledger_transactions/{id}/reversal",
        reverse,
        "Reverse a posted ledger transaction",
        LedgerTransactionView,
        ReversalBody,
    ),
)
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {
    CreateLedgerTransaction: answer_created,
    PartiallyPostLedgerTransaction: answer_created_beside_another,
    ReverseLedgerTransaction: answer_created_beside_another,
}
