"""Ledger accounts: create, retrieve (by id or external id), update, list, delete.

Balances are the account's accumulators, never a sum over entries: a read costs the same however
many entries there are. One account is answered from the sequencer's memory where that holds it.
With `balances{}` they are as of another time or version (see `cell/as_of.py`), and cost a few times
as much; `lock_version` stays the current one, and amount filters are about current balances.
A deleted account, or one of a deleted ledger, is found no more; its entries stay readable.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, LiteralString

import msgspec
from msgspec import UNSET, UnsetType

from cell.answers import Answer, render
from cell.as_of import LOCK_VERSION, PARAMETER, TIMES, AsOf, parse_as_of, restricted_balances
from cell.balance_sql import amount_sql
from cell.balance_views import LedgerAccountBalances, show_account_balances
from cell.calls import Call, FirstAnswer, Route
from cell.category_filter import CATEGORY, in_category, restrict_to_category
from cell.errors import Conflict, NotFound, Unprocessable
from cell.journal import Record
from cell.ledger.category_graph import MEMBERSHIPS_MAX
from cell.ledger.commands import (
    Command,
    CreateLedgerAccount,
    DeleteLedgerAccount,
    UpdateLedgerAccount,
)
from cell.ledger.currencies import resolve_exponent
from cell.ledger.model import AccountBalances, Direction, LedgerAccount
from cell.list_reading import fetch_page
from cell.listing import Filters
from cell.pagination import PAGING, Position, answer_page, parse_page
from cell.parameters import Filter, Kind, Parameter
from cell.query import Query
from cell.row_json import row_as_json, row_from_json
from cell.timestamps import render_timestamp, render_timestamp_or_null
from cell.wellformed import (
    Description,
    ExternalId,
    Id,
    LedgerableId,
    Metadata,
    Name,
    as_uuid,
    parse_category_ids,
    parse_uuid,
    require_both_or_neither,
    require_clean_external_id,
    without_empty_values,
)

Account = tuple[LedgerAccount, AccountBalances]


class LedgerableType(StrEnum):
    """What an account may be linked to."""

    COUNTERPARTY = "counterparty"
    EXTERNAL_ACCOUNT = "external_account"
    INTERNAL_ACCOUNT = "internal_account"
    VIRTUAL_ACCOUNT = "virtual_account"


class CreateBody(msgspec.Struct, frozen=True):
    name: Name
    ledger_id: Id
    normal_balance: Direction
    currency: str
    currency_exponent: int | None = None
    description: Description | None = None
    external_id: ExternalId | None = None
    ledgerable_type: LedgerableType | None = None
    ledgerable_id: LedgerableId | None = None
    ledger_account_category_ids: list[Id] | None = None
    metadata: Metadata = {}


class UpdateBody(msgspec.Struct, frozen=True):
    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    external_id: ExternalId | UnsetType | None = UNSET
    metadata: Metadata = {}


class LedgerAccountView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    discarded_at: str | None
    name: str
    description: str | None
    normal_balance: Direction
    balances: LedgerAccountBalances
    lock_version: int
    ledger_id: str
    external_id: str | None
    ledgerable_id: str | None
    ledgerable_type: str | None
    metadata: dict[str, str]


def show(pair: Account, as_of: AsOf | None = None) -> LedgerAccountView:
    """The account; its balances are those it comes with, restricted already to `as_of`."""
    account, balances = pair
    return LedgerAccountView(
        id=account.id,
        object="ledger_account",
        live_mode=True,
        created_at=render_timestamp(account.created_at_us),
        updated_at=render_timestamp(account.updated_at_us),
        discarded_at=render_timestamp_or_null(account.discarded_at_us),
        name=account.name,
        description=account.description,
        normal_balance=account.normal_balance,
        balances=show_account_balances(account, balances, as_of),
        lock_version=balances.lock_version,
        ledger_id=account.ledger_id,
        external_id=account.external_id,
        ledgerable_id=account.ledgerable_id,
        ledgerable_type=account.ledgerable_type,
        metadata=account.metadata,
    )


async def create(call: Call) -> Answer:
    return await call.create(create_command(await call.body(CreateBody)))


def create_command(body: CreateBody) -> CreateLedgerAccount:
    require_clean_external_id(body.external_id)
    require_both_or_neither(body.ledgerable_type, body.ledgerable_id)
    return CreateLedgerAccount(
        ledger_id=parse_uuid(body.ledger_id, "ledger_id"),
        name=body.name,
        normal_balance=body.normal_balance,
        currency=body.currency,
        currency_exponent=resolve_exponent(body.currency, body.currency_exponent),
        description=body.description,
        external_id=body.external_id,
        ledgerable_type=body.ledgerable_type,
        ledgerable_id=body.ledgerable_id,
        metadata=without_empty_values(body.metadata),
        category_ids=parse_category_ids(body.ledger_account_category_ids, MEMBERSHIPS_MAX),
    )


def answer_created(record: Record) -> bytes:
    account, balances, *_ = record.inserted
    assert isinstance(account, LedgerAccount)
    assert isinstance(balances, AccountBalances)
    return render(show((account, balances)))


_ACCOUNT: Final = row_as_json("a", LedgerAccount)
_SHOWN: Final = f"{_ACCOUNT}, {row_as_json('b', AccountBalances)}"
_SHOWN_AS_OF: Final = f"{_ACCOUNT}, {row_as_json('p', AccountBalances)}"
_WITH_BALANCES: Final = (
    "JOIN ledger_account_balances b ON b.tenant_id = a.tenant_id AND b.ledger_account_id = a.id"
)
_SOURCE: Final = f"ledger_accounts a {_WITH_BALANCES}"
_ACCOUNTS: Final = f"SELECT {_SHOWN} FROM {_SOURCE}"
_ACCOUNTS_AS_OF: Final = f"SELECT {_SHOWN_AS_OF} FROM {_SOURCE}"
_LIVE: Final = """a.discarded_at_us IS NULL AND EXISTS (
    SELECT FROM ledgers l
    WHERE l.tenant_id = a.tenant_id AND l.id = a.ledger_id AND l.discarded_at_us IS NULL)
"""
_BY_ID: Final = "WHERE a.tenant_id = %s AND a.id = %s"
_BY_IDS: Final = f"{_ACCOUNTS} WHERE a.tenant_id = %s AND a.id = ANY(%s::uuid[])"
_BY_EXTERNAL_ID: Final = f"WHERE a.tenant_id = %s AND a.external_id = %s AND {_LIVE} LIMIT 2"


async def retrieve(call: Call) -> Answer:
    as_of = parse_as_of(call.query(), (*TIMES, LOCK_VERSION))
    name = call.ids[0]
    id = as_uuid(name)
    accounts, parameters = _accounts_as_of(as_of)
    found = call.cached_live_account(id) if id is not None and as_of is None else None
    if found is None and id is not None:
        statement = f"{accounts} {_BY_ID} AND {_LIVE}"
        rows = await call.fetch(statement, (*parameters, call.tenant_id, id))
        found = _account(rows[0]) if rows else None
        if found is not None and as_of is None:
            call.parts.sequencer.memory.note_missed(call.tenant_id, id)
    if found is None:
        # A caller's external id may have the form of a UUID, too.
        found = await _find_by_external_id(call, name, accounts, parameters)
    _require_reached(found[1], as_of)
    return Answer(200, render(show(found, as_of)))


def _accounts_as_of(as_of: AsOf | None) -> tuple[LiteralString, list[object]]:
    """Accounts with their balances as of then: a SELECT without WHERE, and its parameters."""
    if as_of is None:
        return _ACCOUNTS, []
    joined, parameters = restricted_balances(as_of)
    return f"{_ACCOUNTS_AS_OF} {joined}", parameters


def _require_reached(balances: AccountBalances, as_of: AsOf | None) -> None:
    if as_of is None or as_of.lock_version is None:
        return
    if as_of.lock_version > balances.lock_version:
        raise Unprocessable(
            f"the ledger account is at lock_version {balances.lock_version}", PARAMETER
        )


async def _find_by_external_id(
    call: Call, external_id: str, accounts: LiteralString, parameters: list[object]
) -> Account:
    statement = f"{accounts} {_BY_EXTERNAL_ID}"
    rows = await call.fetch(statement, (*parameters, call.tenant_id, external_id))
    if not rows:
        raise NotFound(f"no ledger account {external_id}")
    if len(rows) > 1:
        raise Conflict(
            f"accounts of several ledgers have the external_id {external_id}", retryable=False
        )
    return _account(rows[0])


def _account(row: tuple[str, ...]) -> Account:
    return row_from_json(LedgerAccount, row[0]), row_from_json(AccountBalances, row[1])


async def show_many(call: Call, ids: Sequence[str]) -> dict[str, LedgerAccountView]:
    """The accounts of these ids as they are now, discarded ones among them, by id."""
    rows = await call.fetch(_BY_IDS, (call.tenant_id, ids))
    return {view.id: view for view in (show(_account(row)) for row in rows)}


async def update(call: Call) -> Answer:
    body = await call.body(UpdateBody)
    command = update_command(call.require_id("ledger account"), body)
    return await _answer_changed(call, await call.apply(command))


def update_command(id: str, body: UpdateBody) -> UpdateLedgerAccount:
    require_clean_external_id(body.external_id)
    return UpdateLedgerAccount(
        id=id,
        name=body.name,
        description=body.description,
        external_id=body.external_id,
        metadata=body.metadata,
    )


async def delete(call: Call) -> Answer:
    command = DeleteLedgerAccount(id=call.require_id("ledger account"))
    return await _answer_changed(call, await call.apply(command))


async def _answer_changed(call: Call, record: Record) -> Answer:
    """The account as changed, with its balances as they are now: they were not part of it."""
    account = record.updated[0]
    assert isinstance(account, LedgerAccount)
    found = call.cached_live_account(account.id)
    if found is None:
        rows = await call.fetch(f"{_ACCOUNTS} {_BY_ID}", (call.tenant_id, account.id))
        found = _account(rows[0])
    return Answer(200, render(show((account, found[1]))))


_PENDING: Final = amount_sql("pending", "a", "b")
_POSTED: Final = amount_sql("posted", "a", "b")
_AVAILABLE: Final = amount_sql("available", "a", "b")
_IN_CATEGORY: Final = in_category("a.id")


FILTERS: Final = (
    Filter("id", Kind.IDS, "a.id"),
    Filter("name", Kind.TEXTS, "a.name"),
    Filter("ledger_id", Kind.ID, "a.ledger_id"),
    Filter("external_id", Kind.TEXT, "a.external_id"),
    Filter("currency", Kind.TEXT, "a.currency"),
    Filter("normal_balance", Kind.CHOICE, "a.normal_balance", choices=Direction),
    Filter("pending_balance_amount", Kind.BALANCES, _PENDING, in_order_of=None),
    Filter("posted_balance_amount", Kind.BALANCES, _POSTED, in_order_of=None),
    Filter("available_balance_amount", Kind.BALANCES, _AVAILABLE, in_order_of=None),
    Filter("created_at", Kind.TIMES, "a.created_at_us", ids="a.id"),
    Filter("updated_at", Kind.TIMES, "a.updated_at_us", since_creation="a.id", in_order_of=()),
    Filter(
        "metadata",
        Kind.METADATA,
        "a.metadata @> %s::jsonb AND a.metadata <> '{}'",
        in_order_of=(),
    ),
)


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "ledger_accounts", ())
    as_of = parse_as_of(query, TIMES)
    joined, of_joined = restricted_balances(as_of) if as_of is not None else ("", [])
    rows = await fetch_page(
        call,
        _filters(query, call.tenant_id),
        page,
        shown=_SHOWN if as_of is None else _SHOWN_AS_OF,
        source="ledger_accounts a",
        beside=_WITH_BALANCES if _asks_for_balances(query) else "",
        joined=f"{_WITH_BALANCES} {joined}",
        of_joined=of_joined,
    )
    accounts = [_account(row) for row in rows]
    return answer_page(page, accounts, lambda pair: show(pair, as_of), _position)


def _asks_for_balances(query: Query) -> bool:
    return any(one.kind is Kind.BALANCES and query.mapping(one.name) for one in FILTERS)


def _filters(query: Query, tenant_id: str) -> Filters:
    filters = Filters(query, "a", tenant_id)
    filters.add(_LIVE)
    filters.apply(FILTERS)
    restrict_to_category(filters, tenant_id, _IN_CATEGORY)
    return filters


def _position(pair: Account) -> Position:
    return Position(key=0, id=pair[0].id)


ROUTES: Final = (
    Route(
        "POST",
        "/api/ledger_accounts",
        create,
        "Create a ledger account",
        LedgerAccountView,
        CreateBody,
        errors=(404,),
    ),
    Route(
        "GET",
        "/api/ledger_accounts",
        list_page,
        "List ledger accounts",
        list[LedgerAccountView],
        parameters=(
            *PAGING,
            CATEGORY,
            Parameter(PARAMETER, Kind.KEYED_TIMES, choices=TIMES),
            *FILTERS,
        ),
    ),
    Route(
        "GET",
        "/api/ledger_accounts/{id}",
        retrieve,
        "Retrieve a ledger account by its id or its external id",
        LedgerAccountView,
        parameters=(Parameter(PARAMETER, Kind.KEYED_TIMES, choices=(*TIMES, LOCK_VERSION)),),
        errors=(409,),
    ),
    Route(
        "PATCH",
        "/api/ledger_accounts/{id}",
        update,
        "Update a ledger account",
        LedgerAccountView,
        UpdateBody,
    ),
    Route(
        "DELETE",
        "/api/ledger_accounts/{id}",
        delete,
        "Delete a ledger account",
        LedgerAccountView,
    ),
)
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {CreateLedgerAccount: answer_created}
