"""Ledger account categories: create, retrieve, update, list, delete; put things in, take them out.

A category's balances are the sums of its accounts' accumulators, an account reached by two routes
counted once, shown on the category's own normal side. They are added up at each read: ordinary
transactions know nothing of categories. `parent_ledger_account_category_id` asks for what is
directly under a category; `ledger_account_id` for all that hold the account, at any level.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from cell.answers import Answer, render
from cell.as_of import AS_OF_DATE, EFFECTIVE_AT, PARAMETER, parse_as_of
from cell.balance_sql import amount_sql
from cell.balance_views import LedgerBalances, show_balances
from cell.calls import Call, FirstAnswer, Route
from cell.errors import NotFound
from cell.journal import Record
from cell.ledger.balances import Accumulators
from cell.ledger.category_graph import PARENTS_MAX
from cell.ledger.commands import (
    AddLedgerAccountToCategory,
    Command,
    CreateLedgerAccountCategory,
    DeleteLedgerAccountCategory,
    NestLedgerAccountCategory,
    RemoveLedgerAccountFromCategory,
    UnnestLedgerAccountCategory,
    UpdateLedgerAccountCategory,
)
from cell.ledger.currencies import resolve_exponent
from cell.ledger.model import Direction, LedgerAccountCategory
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
    Metadata,
    Name,
    parse_category_ids,
    parse_uuid,
    require_clean_external_id,
    without_empty_values,
)

Category = tuple[LedgerAccountCategory, Accumulators]
"""With the sums over the accounts in it."""


class CreateBody(msgspec.Struct, frozen=True):
    name: Name
    ledger_id: Id
    normal_balance: Direction
    currency: str
    currency_exponent: int | None = None
    description: Description | None = None
    external_id: ExternalId | None = None
    ledger_account_category_ids: list[Id] | None = None
    metadata: Metadata = {}


class UpdateBody(msgspec.Struct, frozen=True):
    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    external_id: ExternalId | UnsetType | None = UNSET
    metadata: Metadata = {}


class LedgerAccountCategoryView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    discarded_at: str | None
    name: str
    description: str | None
    metadata: dict[str, str]
    ledger_id: str
    normal_balance: Direction
    external_id: str | None
    balances: LedgerBalances


def show(pair: Category) -> LedgerAccountCategoryView:
    category, sums = pair
    return LedgerAccountCategoryView(
        id=category.id,
        object="ledger_account_category",
        live_mode=True,
        created_at=render_timestamp(category.created_at_us),
        updated_at=render_timestamp(category.updated_at_us),
        discarded_at=render_timestamp_or_null(category.discarded_at_us),
        name=category.name,
        description=category.description,
        metadata=category.metadata,
        ledger_id=category.ledger_id,
        normal_balance=category.normal_balance,
        external_id=category.external_id,
        balances=show_balances(category, sums),
    )


async def create(call: Call) -> Answer:
    body = await call.body(CreateBody)
    require_clean_external_id(body.external_id)
    command = CreateLedgerAccountCategory(
        ledger_id=parse_uuid(body.ledger_id, "ledger_id"),
        name=body.name,
        normal_balance=body.normal_balance,
        currency=body.currency,
        currency_exponent=resolve_exponent(body.currency, body.currency_exponent),
        description=body.description,
        external_id=body.external_id,
        metadata=without_empty_values(body.metadata),
        category_ids=parse_category_ids(body.ledger_account_category_ids, PARENTS_MAX),
    )
    return await call.create(command)


def answer_created(record: Record) -> bytes:
    category = record.inserted[0]
    assert isinstance(category, LedgerAccountCategory)
    return render(show((category, Accumulators(0, 0, 0, 0))))


_SHOWN: Final = (
    f"{row_as_json('c', LedgerAccountCategory)},"
    " s.pending_debits, s.pending_credits, s.posted_debits, s.posted_credits"
)
_WITH_SUMS: Final = "CROSS JOIN LATERAL category_sums(c.tenant_id, c.id, %s::bigint) s"
"""Takes the time before which entries count, None for all."""

_LIVE: Final = """c.discarded_at_us IS NULL AND EXISTS (
    SELECT FROM ledgers l
    WHERE l.tenant_id = c.tenant_id AND l.id = c.ledger_id AND l.discarded_at_us IS NULL)
"""
_RETRIEVE: Final = f"""
SELECT {_SHOWN} FROM ledger_account_categories c {_WITH_SUMS}
WHERE c.tenant_id = %s AND c.id = %s AND {_LIVE}
"""


async def retrieve(call: Call) -> Answer:
    """The accounts that are in it now, whatever was in it then."""
    before_us = _parse_before(call.query(), (EFFECTIVE_AT, AS_OF_DATE))
    id = call.require_id("ledger account or ledger account category", 0)
    rows = await call.fetch(_RETRIEVE, (before_us, call.tenant_id, id))
    if not rows:
        raise NotFound(f"no ledger account category {id}")
    return Answer(200, render(show(_category(rows[0]))))


def _parse_before(query: Query, keys: tuple[str, ...]) -> int | None:
    as_of = parse_as_of(query, keys)
    return None if as_of is None else as_of.before_us


def _category(row: Sequence[Any]) -> Category:
    return row_from_json(LedgerAccountCategory, row[0]), Accumulators(*row[1:])


async def update(call: Call) -> Answer:
    id = call.require_id("ledger account or ledger account category", 0)
    body = await call.body(UpdateBody)
    require_clean_external_id(body.external_id)
    command = UpdateLedgerAccountCategory(
        id=id,
        name=body.name,
        description=body.description,
        external_id=body.external_id,
        metadata=body.metadata,
    )
    return await _answer_changed(call, await call.apply(command))


async def delete(call: Call) -> Answer:
    """What was in the category is in it no more, but otherwise untouched; so its sums are zero."""
    command = DeleteLedgerAccountCategory(
        id=call.require_id("ledger account or ledger account category", 0)
    )
    return await _answer_changed(call, await call.apply(command))


_SUMS: Final = """
SELECT pending_debits, pending_credits, posted_debits, posted_credits FROM category_sums(%s, %s)
"""


async def _answer_changed(call: Call, record: Record) -> Answer:
    """The category as changed, with the sums as they are now: they were not part of it."""
    category = record.updated[0]
    assert isinstance(category, LedgerAccountCategory)
    ((*sums,),) = await call.fetch(_SUMS, (call.tenant_id, category.id))
    return Answer(200, render(show((category, Accumulators(*sums)))))


async def add_ledger_account(call: Call) -> Answer:
    command = AddLedgerAccountToCategory(
        category_id=call.require_id("ledger account or ledger account category", 0),
        ledger_account_id=call.require_id("ledger account or ledger account category", 1),
    )
    return await _answer_empty(call, command)


async def remove_ledger_account(call: Call) -> Answer:
    command = RemoveLedgerAccountFromCategory(
        category_id=call.require_id("ledger account or ledger account category", 0),
        ledger_account_id=call.require_id("ledger account or ledger account category", 1),
    )
    return await _answer_empty(call, command)


async def add_nested_category(call: Call) -> Answer:
    command = NestLedgerAccountCategory(
        category_id=call.require_id("ledger account or ledger account category", 0),
        sub_category_id=call.require_id("ledger account or ledger account category", 1),
    )
    return await _answer_empty(call, command)


async def remove_nested_category(call: Call) -> Answer:
    command = UnnestLedgerAccountCategory(
        category_id=call.require_id("ledger account or ledger account category", 0),
        sub_category_id=call.require_id("ledger account or ledger account category", 1),
    )
    return await _answer_empty(call, command)


async def _answer_empty(call: Call, command: Command) -> Answer:
    await call.apply(command)
    return Answer(200, b"")


_OF_SUMS: Final = "FROM category_sums(c.tenant_id, c.id) s)"
_PENDING: Final = f"(SELECT {amount_sql('pending', 'c', 's')} {_OF_SUMS}"
_POSTED: Final = f"(SELECT {amount_sql('posted', 'c', 's')} {_OF_SUMS}"
_AVAILABLE: Final = f"(SELECT {amount_sql('available', 'c', 's')} {_OF_SUMS}"
_UNDER: Final = """EXISTS (
    SELECT FROM category_nestings n
    JOIN ledger_account_categories p ON p.tenant_id = n.tenant_id AND p.id = n.category_id
        AND p.discarded_at_us IS NULL
    WHERE n.tenant_id = c.tenant_id AND n.sub_category_id = c.id AND n.category_id = %s
        AND n.discarded_at_us IS NULL)
"""
FILTERS: Final = (
    Filter("id", Kind.IDS, "c.id"),
    Filter("name", Kind.TEXTS, "c.name"),
    Filter("ledger_id", Kind.ID, "c.ledger_id"),
    Filter("external_id", Kind.TEXT, "c.external_id"),
    Filter("currency", Kind.TEXT, "c.currency"),
    Filter(
        "metadata",
        Kind.METADATA,
        "c.metadata @> %s::jsonb AND c.metadata <> '{}'",
        in_order_of=(),
    ),
    Filter("parent_ledger_account_category_id", Kind.ID, _UNDER),
    Filter("pending_balance_amount", Kind.BALANCES, _PENDING, in_order_of=None),
    Filter("posted_balance_amount", Kind.BALANCES, _POSTED, in_order_of=None),
    Filter("available_balance_amount", Kind.BALANCES, _AVAILABLE, in_order_of=None),
)
ACCOUNT: Final = Parameter("ledger_account_id", Kind.ID)
_HOLDS: Final = "c.id = ANY(categories_holding(%s, %s))"


async def list_page(call: Call) -> Answer:
    query = call.query()
    page = parse_page(query, call.tenant_id, "ledger_account_categories", ())
    before_us = _parse_before(query, (EFFECTIVE_AT,))
    rows = await fetch_page(
        call,
        _filters(query, call.tenant_id),
        page,
        shown=_SHOWN,
        source="ledger_account_categories c",
        joined=_WITH_SUMS,
        of_joined=(before_us,),
    )
    categories = [_category(row) for row in rows]
    return answer_page(page, categories, show, _position)


def _filters(query: Query, tenant_id: str) -> Filters:
    filters = Filters(query, "c", tenant_id)
    filters.add(_LIVE)
    filters.apply(FILTERS)
    account_id = query.uuid(ACCOUNT.name)
    if account_id is not None:
        filters.add(_HOLDS, tenant_id, account_id)
    return filters


def _position(pair: Category) -> Position:
    return Position(key=0, id=pair[0].id)


def _as_of(*keys: str) -> Parameter:
    return Parameter(PARAMETER, Kind.KEYED_TIMES, choices=keys)


_ALL: Final = "/api/ledger_account_categories"
_ONE: Final = _ALL + "/{id}"
_ACCOUNT_IN_IT: Final = _ONE + "/ledger_accounts/{ledger_account_id}"
_CATEGORY_IN_IT: Final = _ONE + "/ledger_account_categories/{sub_category_id}"
_View: Final = LedgerAccountCategoryView
ROUTES: Final = (
    Route("POST", _ALL, create, "Create a category", _View, CreateBody, errors=(404,)),
    Route(
        "GET",
        _ALL,
        list_page,
        "List categories",
        list[LedgerAccountCategoryView],
        parameters=(*PAGING, ACCOUNT, _as_of(EFFECTIVE_AT), *FILTERS),
    ),
    Route(
        "GET",
        _ONE,
        retrieve,
        "Retrieve a category",
        _View,
        parameters=(_as_of(EFFECTIVE_AT, AS_OF_DATE),),
    ),
    Route("PATCH", _ONE, update, "Update a category", _View, UpdateBody),
    Route("DELETE", _ONE, delete, "Delete a category", _View),
    Route("PUT", _ACCOUNT_IN_IT, add_ledger_account, "Add a ledger account to a category"),
    Route(
        "DELETE",
        _ACCOUNT_IN_IT,
        remove_ledger_account,
        "Remove a ledger account from a category",
    ),
    Route("PUT", _CATEGORY_IN_IT, add_nested_category, "Nest a category under another one"),
    Route(
        "DELETE",
        _CATEGORY_IN_IT,
        remove_nested_category,
        "Remove a category from under another one",
    ),
)
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {
    CreateLedgerAccountCategory: answer_created
}
