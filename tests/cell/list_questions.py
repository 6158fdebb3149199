"""What each list is asked: cases made of the parameters and orders that its route declares, with
values of rows that are there, as `list_plans.sql` writes them. For test_list_plans.
"""

import os
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from cell.calls import Route
from cell.ledger.transaction_versions import version_id
from cell.parameters import BALANCE_OPERATORS, OPERATORS, Kind, Parameter
from cell.routes import ROUTES
from cell.timestamps import render_timestamp

TRANSACTIONS = int(os.environ.get("CLOISTER_LIST_TRANSACTIONS", "20000"))
"""Of two entries each."""
FEW = 4_000
"""Of what tenants have thousands of; of accounts three times, of bulk results four times that."""

Asked = tuple[tuple[str, str], ...]


def made(kind: int, n: int) -> str:
    ms = 1718900000000 + n
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7000-8000-{(kind << 32) + n:012x}"


def written(n: int, ordinal: int = 0) -> str:
    ms = 1719000000000 + n * 10
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7000-8000-{ordinal:012x}"


def made_at(n: int) -> str:
    return render_timestamp((1718900000000 + n) * 1000)


def written_at(n: int) -> str:
    return render_timestamp((1719000000000 + n * 10) * 1000)


def dated_at(n: int) -> str:
    return render_timestamp(1600000000000000 + n * 1_200_000_000)


class Ends(NamedTuple):
    """For a range: what few rows are below, and what few are above."""

    low: str
    high: str


LAST_CHANGES = "2026-01-01T00:00:00Z"
MADE = Ends(made_at(20), made_at(FEW - 20))
WRITTEN = Ends(written_at(20), written_at(TRANSACTIONS - 20))

Value = str | Ends | tuple[str, ...]
VALUES: dict[str, dict[str, Value]] = {
    "": {
        "metadata": "rare",
        "ledger_id": made(1, 7),
        "created_at": MADE,
        "updated_at": Ends(MADE.low, LAST_CHANGES),
        "currency": "EUR",
        "effective_at": Ends(dated_at(20), dated_at(TRANSACTIONS - 20)),
        "effective_date": Ends(dated_at(100)[:10], dated_at(TRANSACTIONS - 100)[:10]),
        "ledger_account_statement_id": made(3, 1),
        "ledger_account_category_id": (made(4, 30), made(4, 1)),
        "balances": dated_at(500),
    },
    "/api/ledgers": {"id": made(1, 77)},
    "/api/ledger_accounts": {
        "id": made(2, 77),
        "name": "account 77",
        "external_id": "e-7",
        "created_at": Ends(MADE.low, made_at(3 * FEW - 20)),
        "pending_balance_amount": Ends("-701", "706"),
        "posted_balance_amount": Ends("-701", "706"),
        "available_balance_amount": Ends("-701", "706"),
    },
    "/api/ledger_account_categories": {
        "id": made(4, 77),
        "name": "category 77",
        "external_id": "c-7",
        "ledger_account_id": made(2, 5),
        "parent_ledger_account_category_id": made(4, 30),
        "pending_balance_amount": Ends("0", "7000"),
        "posted_balance_amount": Ends("0", "7000"),
        "available_balance_amount": Ends("0", "7000"),
    },
    "/api/ledger_transactions": {
        "id": written(77),
        "ledger_account_id": (made(2, 5), made(2, 3005)),
        "ledger_account_settlement_id": (made(6, 30), made(6, 1)),
        "external_id": "x-25",
        "ledgerable_id": "r-13",
        "reverses_ledger_transaction_id": written(3),
        "partially_posts_ledger_transaction_id": written(1),
        "posted_at": Ends(WRITTEN.low, LAST_CHANGES),
        "created_at": WRITTEN,
        "updated_at": Ends(written_at(19), LAST_CHANGES),
        "amount": Ends("20", str(TRANSACTIONS - 20)),
    },
    "/api/ledger_transaction_versions": {
        "ledger_transaction_id": written(5),
        "created_at": Ends(WRITTEN.low, LAST_CHANGES),
        "version": Ends("1", "2"),
    },
    "/api/ledger_transactions/{id}/versions": {
        "id": version_id(written(105), 1),
        "created_at": Ends(written_at(105), WRITTEN.low),
        "version": Ends("1", "0"),
    },
    "/api/ledger_entries": {
        "id": written(77, 1),
        "ledger_account_id": (made(2, 5), made(2, 3005), made(2, 3050), made(2, 21)),
        "ledger_transaction_id": written(77),
        "ledger_account_settlement_id": (made(6, 30), made(6, 1)),
        "ledger_account_payout_id": made(6, 30),
        "created_at": WRITTEN,
        "updated_at": Ends(written_at(19), LAST_CHANGES),
        "amount": Ends("6004", "9004"),
        "ledger_account_lock_version": Ends("6004", "9004"),
        "as_of_lock_version": "7000",
    },
    "/api/ledger_account_balance_monitors": {"id": made(5, 77), "ledger_account_id": made(2, 5)},
    "/api/ledger_account_settlements": {
        "id": made(6, 77),
        "settled_ledger_account_id": made(2, 5),
        "ledger_transaction_id": written(77),
    },
    "/api/bulk_results": {
        "request_id": made(7, 20),
        "entity_id": (written(77), made(8, 7)),
    },
    "/api/events": {
        "resource": "ledger_transaction",
        "event_name": "archived",
        "entity_id": written(77),
        "event_time_start": written_at(FEW - 20),
        "event_time_end": WRITTEN.low,
    },
}
"""By list, else for all of them, by parameter: what few rows have, and where there is more to say,
what many have. What has `choices` is asked for each of them."""

PLAIN = {"per_page", "after_cursor"}
BESIDE: dict[tuple[str, str], Asked] = {
    ("/api/ledger_entries", "as_of_lock_version"): (("ledger_account_id", made(2, 5)),)
}
"""What a parameter cannot do without."""

WALKED: dict[tuple[str, str], Asked] = {
    ("/api/ledger_accounts", "pending_balance_amount"): (("ledger_id", made(1, 7)),),
    ("/api/ledger_accounts", "posted_balance_amount"): (("ledger_id", made(1, 7)),),
    ("/api/ledger_accounts", "available_balance_amount"): (("ledger_id", made(1, 7)),),
    ("/api/ledger_account_categories", "pending_balance_amount"): (("ledger_id", made(1, 7)),),
    ("/api/ledger_account_categories", "posted_balance_amount"): (("ledger_id", made(1, 7)),),
    ("/api/ledger_account_categories", "available_balance_amount"): (("ledger_id", made(1, 7)),),
    ("/api/ledger_transactions", "amount"): (("ledger_id", made(1, 7)),),
    ("/api/ledger_entries", "amount"): (("ledger_account_id", made(2, 5)),),
    ("/api/ledger_entries", "ledger_account_lock_version"): (("ledger_account_id", made(2, 5)),),
}
"""What no index answers alone, and what is asked beside it, which makes the list short.

Balances are updated in place, which no index of them would allow; a category's are sums, and so is
the amount of a transaction. An index of the amounts of entries would be written with every entry;
of a lock version nobody asks but of an account, whose entries are in the order of them."""

NONE_MATCH = {
    ("/api/ledger_transactions/{id}/versions", "created_at[lt]"),
    ("/api/ledger_account_categories", "pending_balance_amount[lt]"),
    ("/api/ledger_account_categories", "posted_balance_amount[lt]"),
    ("/api/ledger_account_categories", "available_balance_amount[lt]"),
}

MATCHED_BY_MANY = {made(6, 1): TRANSACTIONS // 4}
"""Of values that are not rare, how many rows have them; no list is in the order of their index."""

TOGETHER: dict[str, list[Asked]] = {
    "/api/ledger_accounts": [
        (("metadata[k]", "rare"), ("posted_balance_amount[gt]", "0")),
        (("updated_at[gt]", LAST_CHANGES), ("ledger_id", made(1, 7))),
    ],
    "/api/ledger_account_categories": [
        (("metadata[k]", "rare"), ("posted_balance_amount[eq]", "0")),
    ],
    "/api/ledger_transactions": [
        (("effective_at[lt]", dated_at(20)), ("amount[gt]", "10")),
        (("effective_at[lt]", dated_at(20)), ("ledger_id", made(1, 7))),
        (("metadata[k]", "rare"), ("status", "posted"), ("ledger_id", made(1, 7))),
        (("effective_date[gte]", "2020-01-01"), ("status", "pending")),
    ],
    "/api/ledger_entries": [
        (("effective_at[gte]", dated_at(20)), ("ledger_account_id", made(2, 5))),
        (("effective_at[gte]", dated_at(20)), ("ledger_account_id", made(2, 3050))),
        (("status", "posted"), ("ledger_account_id", made(2, 3050))),
        (
            ("effective_at[gte]", dated_at(100)),
            ("effective_at[lt]", dated_at(200)),
            ("ledger_account_id", made(2, 21)),
        ),
        (("effective_date[gte]", "2020-01-01"), ("ledger_account_id", made(2, 5))),
        (("metadata[k]", "rare"), ("direction", "debit"), ("status", "posted")),
        (("ledger_account_statement_id", made(3, 1)), ("amount[lt]", "150")),
    ],
    "/api/ledger_transaction_versions": [
        (("version[eq]", "1"), ("created_at[gt]", written_at(TRANSACTIONS - 200))),
        (("version[eq]", "0"), ("ledger_account_statement_id", made(3, 1))),
    ],
}
"""Several parameters at once."""

IDS = {
    "/api/ledger_transactions/{id}/versions": (written(105),),
    "/api/webhook_endpoints/{id}/dead_letters": (made(9, 5),),
}
"""The variable segments of the paths."""

LISTS = [
    route
    for route in ROUTES
    if route.method == "GET" and any(one.name == "after_cursor" for one in route.parameters)
]


def questions() -> Iterator[tuple[Route, Asked]]:
    """Each list in each of its orders: alone, with each value of each parameter, with several."""
    for route in LISTS:
        orders = list(_orders(route))
        yield from ((route, order) for order in orders)
        for parameter in route.parameters:
            if parameter.name in PLAIN or parameter.kind is Kind.ORDER:
                continue
            key = (route.path, parameter.name)
            beside = BESIDE.get(key, WALKED.get(key, ()))
            for one, order in product(_asked(route, parameter), orders):
                yield route, (one, *beside, *order)
        for asked, order in product(TOGETHER.get(route.path, ()), orders):
            yield route, (*asked, *order)


def _orders(route: Route) -> Iterator[Asked]:
    yield ()
    for parameter in route.parameters:
        if parameter.kind is Kind.ORDER:
            for field, way in product(parameter.choices, ("asc", "desc")):
                yield ((f"order_by[{field}]", way),)


def _asked(route: Route, parameter: Parameter) -> Iterator[tuple[str, str]]:
    name = parameter.name
    match parameter.kind:
        case Kind.FLAG:
            yield name, "true"
        case Kind.CHOICE | Kind.CHOICES:
            yield from ((name, str(choice)) for choice in parameter.choices)
        case Kind.METADATA:
            yield f"{name}[k]", _text(route, parameter)
        case Kind.KEYED_TIMES:
            value = _text(route, parameter)
            yield from (
                (f"{name}[{key}]", value[:10] if key.endswith("date") else value)
                for key in parameter.choices
            )
        case Kind.TIMES | Kind.DAYS | Kind.INTEGERS | Kind.BALANCES:
            ends = _value(route, parameter)
            assert isinstance(ends, Ends), (route.path, name)
            operators = BALANCE_OPERATORS if parameter.kind is Kind.BALANCES else OPERATORS
            for operator in operators:
                is_high = operator in ("gt", "gte", "not_eq")
                yield f"{name}[{operator}]", ends.high if is_high else ends.low
        case _:
            value = _value(route, parameter)
            yield from ((name, one) for one in ((value,) if isinstance(value, str) else value))


def _value(route: Route, parameter: Parameter) -> Value:
    for values in (VALUES.get(route.path, {}), VALUES[""]):
        if parameter.name in values:
            return values[parameter.name]
    raise LookupError(f"{route.path} is not asked for {parameter.name}: give it a value")


def _text(route: Route, parameter: Parameter) -> str:
    value = _value(route, parameter)
    assert isinstance(value, str), (route.path, parameter.name)
    return value
