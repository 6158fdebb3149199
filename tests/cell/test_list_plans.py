"""Method: one tenant with many rows beside another, written by SQL with its planner statistics;
every list is asked with each of its parameters, for a value that few rows have, and in each order.
What is asserted is the work of the plan that really ran: how many rows it looked at.

The tenant has 40,000 entries, and in `make faults` a million: a plan that looks at all of them is
told from one that does not all the same, and the larger one takes minutes to fill.
"""

import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlencode

import psycopg
import pytest

from cell.calls import Call, CellParts, Route
from cell.ledger.model import TenantId
from cell.parameters import Kind, Parameter
from cell.reads import Reader
from cell.routes import ROUTES
from cell.tenants import Principal, Standing

TENANT = TenantId("00000000-0000-4000-8000-00000000000a")
TRANSACTIONS = int(os.environ.get("CLOISTER_LIST_TRANSACTIONS", "20000"))
"""Of two entries each."""
LOOKED_AT_MAX = 5_000
"""Rows a page of 25 may look at; block ranges of 32 pages hold about 1,000 each."""

WALKED = {
    ("/api/ledger_accounts", "normal_balance"),
    ("/api/ledger_accounts", "pending_balance_amount"),
    ("/api/ledger_accounts", "posted_balance_amount"),
    ("/api/ledger_accounts", "available_balance_amount"),
    ("/api/ledger_transactions", "amount"),
    ("/api/ledger_entries", "amount"),
    ("/api/ledger_entries", "direction"),
    ("/api/ledger_entries", "ledger_account_lock_version"),
    ("/api/ledger_entries", "effective_date"),
}
"""What no index answers alone: it would have to be written with every entry, or take from balances
that they are updated in place. The list is then walked in its order until the page is full; beside
a ledger, an account, a transaction or a time that is short. So is a range of effective times, which
has an index, but in the order of those times: it is asked in that order. An entry's effective_date
is its transaction's, which is not in the entry."""

FILL = Path(__file__).with_name("list_plans.sql").read_text()


@pytest.fixture(scope="module")
def library(make_cell_database: Any) -> Iterator[Any]:
    with make_cell_database() as database:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
            for tenant, count in ((TENANT, TRANSACTIONS), (TENANT[:-1] + "b", 2_000)):
                values = {"tenant": tenant, "count": count}
                with connection.transaction():
                    for statement in FILL.split(";\n"):
                        connection.execute(statement, values)
            connection.execute("VACUUM ANALYZE")
        yield database


class ExplainingReader(Reader):
    """Reads as any reader does, and keeps the plan of each statement."""

    plans: list[Any]

    async def fetch(self, tenant_id: TenantId, statement: LiteralString, parameters: Any) -> Any:
        explained = await super().fetch(
            tenant_id, f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters
        )
        self.plans.append(explained[0][0][0]["Plan"])
        return await super().fetch(tenant_id, statement, parameters)


@pytest.fixture
async def reader(library: Any) -> AsyncIterator[ExplainingReader]:
    reader = ExplainingReader(library.reader_dsn, pool_min=1, pool_max=1)
    await reader.open()
    reader.plans = []
    yield reader
    await reader.close()


def transaction(n: int) -> str:
    ms = 1719000000000 + n * 10
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7000-8000-000000000000"


RARE: dict[str, str] = {
    "id[]": transaction(77),
    "ledger_id": "0190a000-0000-7000-8000-000000000007",
    "ledger_account_id": "0190a001-0000-7000-8000-000000000005",
    "ledger_transaction_id": transaction(77),
    "ledger_account_category_id": transaction(0),
    "ledger_account_settlement_id": transaction(0),
    "ledger_account_payout_id": transaction(0),
    "ledger_account_statement_id": transaction(0),
    "reverses_ledger_transaction_id": transaction(0),
    "partially_posts_ledger_transaction_id": transaction(0),
    "name[]": "account 77",
    "currency": "EUR",
    "external_id": "x-25",
    "ledgerable_id": "r-3",
    "ledgerable_type": "return",
    "status[]": "pending",
    "metadata[k]": "100-0",
    "effective_at[lt]": "2020-09-13T12:40:00Z",
    "effective_at[gt]": "2024-01-01",
    "effective_date[lt]": "2020-09-14",
    "effective_date[gt]": "2024-01-01",
    "created_at[gt]": "2024-06-21T20:08:10Z",
    "created_at[lt]": "2024-06-21T20:00:10Z",
    "updated_at[gt]": "2024-06-21T20:08:10Z",
    "updated_at[lt]": "2024-06-21T20:00:10Z",
    "posted_at[gt]": "2024-06-21T20:08:10Z",
    "posted_at[lt]": "2024-06-21T20:00:10Z",
}
"""A value for each parameter that few rows have, or none."""

LISTS = [route for route in ROUTES if route.path in {path for path, _ in WALKED}
         and route.method == "GET"]  # fmt: skip


def questions(parameter: Parameter) -> list[tuple[str, str]]:
    if parameter.kind is Kind.ORDER:
        return [
            (f"order_by[{field}]", way) for field in parameter.choices for way in ("asc", "desc")
        ]
    return [(k, v) for k, v in RARE.items() if k.partition("[")[0] == parameter.name]


def asked_in_order(parameter: Parameter, asked: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """The question, and the order that its index has."""
    in_order = parameter.name.startswith("effective_")
    return (asked, ("order_by[effective_at]", "desc")) if in_order else (asked,)


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        pytest.param(route, asked_in_order(parameter, asked), id=f"{route.path} {'='.join(asked)}")
        for route in LISTS
        for parameter in route.parameters
        for asked in questions(parameter)
        if (route.path, parameter.name) not in WALKED
    ],
)
async def test_no_list_scans_a_table(
    reader: ExplainingReader, route: Route, asked: tuple[tuple[str, str], ...]
) -> None:
    assert await rows_looked_at(reader, route, *asked) <= LOOKED_AT_MAX, shown(reader)


async def rows_looked_at(reader: ExplainingReader, route: Route, *asked: tuple[str, str]) -> int:
    nothing: Any = dict.fromkeys(field.name for field in fields(CellParts))
    parts = CellParts(**nothing | {"reader": reader})
    principal = Principal(
        tenant_id=TENANT,
        api_key_id="",
        standing=Standing(state="owned", epoch=1, moved_to=None),
    )
    call = Call(parts, principal, (), {}, urlencode(asked).encode(), None, 0.0)  # type: ignore[arg-type]
    answer = await route.endpoint(call)
    assert answer.status == 200
    return sum(scanned(plan) for plan in reader.plans)


def scanned(node: Any) -> int:
    """Rows all scans of a plan looked at, taken or not."""
    looked_at = 0
    if "Scan" in node["Node Type"] and "Plans" not in node:
        per_loop = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        looked_at = int(
            (per_loop + node.get("Rows Removed by Index Recheck", 0)) * node["Actual Loops"]
        )
    if node["Node Type"] == "Bitmap Heap Scan":
        per_loop = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        looked_at = int(
            (per_loop + node.get("Rows Removed by Index Recheck", 0)) * node["Actual Loops"]
        )
        return looked_at
    return looked_at + sum(scanned(part) for part in node.get("Plans", ()))


def shown(reader: ExplainingReader) -> str:
    return json.dumps(reader.plans, indent=1)[:6000]


def test_every_parameter_is_asked_or_walked() -> None:
    # What says how much of a page is shown, and what is about one account.
    plain = {"per_page", "after_cursor", "show_balances", "show_deleted", "balances"}
    plain |= {"as_of_lock_version"}
    for route in LISTS:
        for parameter in route.parameters:
            asked = questions(parameter) or (route.path, parameter.name) in WALKED
            assert asked or parameter.name in plain, (route.path, parameter.name)
