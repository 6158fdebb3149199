"""Method: every filter of every list over HTTP, each with a value that matches some rows and one
that matches none; then pages while rows are being written.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cell_process import Access, CellProcess

PERIODS = ["2023-01-01T00:00:00Z", "2023-01-01T12:00:00Z", "2023-01-02T00:00:00Z", "2024-06-01"]


class Library:
    """One tenant with a known content, read only."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.ledger = self.create("ledgers", name="Main", metadata={"k": "v", "n": "1"})
        self.other = self.create("ledgers", name="Other")
        self.cash = self.account("cash", "debit", external_id="e-cash", metadata={"k": "v"})
        self.alice = self.account("alice", "credit")
        self.euro_in = self.account("in", "debit", currency="EUR")
        self.euro_out = self.account("out", "credit", currency="EUR")
        self.small = self.transaction(5, PERIODS[0], "pending", external_id="t-1")
        self.posted = self.transaction(20, PERIODS[1], "posted", metadata={"k": "v", "n": "1"})
        self.mixed = self.transaction(
            7, PERIODS[2], "posted", ledgerable_type="return", ledgerable_id="r-1", euros=100
        )
        self.archived = self.transaction(9, PERIODS[3], "archived")
        self.transactions = [self.small, self.posted, self.mixed, self.archived]

    def create(self, resource: str, **body: Any) -> Any:
        answer = self.http.post(f"/api/{resource}", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def account(self, name: str, normal: str, **fields: Any) -> Any:
        body = {"ledger_id": self.ledger["id"], "currency": "USD", **fields}
        return self.create("ledger_accounts", name=name, normal_balance=normal, **body)

    def transaction(
        self, amount: int, effective_at: str, status: str, euros: int = 0, **fields: Any
    ) -> Any:
        pairs = [(self.cash, self.alice, amount), (self.euro_in, self.euro_out, euros)]
        entries = [
            {"ledger_account_id": account["id"], "direction": direction, "amount": value}
            for debited, credited, value in pairs
            for account, direction in ((debited, "debit"), (credited, "credit"))
            if value
        ]
        return self.create(
            "ledger_transactions",
            ledger_entries=entries,
            status=status,
            effective_at=effective_at,
            **fields,
        )

    def ids(self, resource: str, *pairs: tuple[str, Any]) -> list[str]:
        answer = self.http.get(f"/api/{resource}", params=[*pairs, ("per_page", "100")])
        assert answer.status_code == 200, answer.text
        return [item["id"] for item in answer.json()]


@pytest.fixture(scope="module")
def library(served_cell: CellProcess) -> Iterator[Library]:
    with served_cell.new_tenant().http() as http:
        yield Library(http)


def test_ledgers(library: Library) -> None:
    main, other = library.ledger["id"], library.other["id"]
    created = library.ledger["created_at"]
    for pairs, expected in [
        ([], [other, main]),
        ([("id[]", main)], [main]),
        ([("id[]", main), ("id[]", other), ("id[]", library.cash["id"])], [other, main]),
        ([("metadata[k]", "v")], [main]),
        ([("metadata[k]", "v"), ("metadata[n]", "1")], [main]),
        ([("metadata[k]", "v"), ("metadata[n]", "2")], []),
        ([("metadata[k]", "")], []),
        ([("updated_at[lte]", created)], [main]),
        ([("updated_at[gt]", created)], [other]),
        ([("created_at[eq]", created)], [main]),
        ([("something", "else")], [other, main]),
    ]:
        assert library.ids("ledgers", *pairs) == expected, pairs


def test_accounts(library: Library) -> None:
    cash, alice = library.cash["id"], library.alice["id"]
    euros = [library.euro_out["id"], library.euro_in["id"]]
    everything = [*euros, alice, cash]
    for pairs, expected in [
        ([], everything),
        ([("id[]", cash), ("id[]", alice)], [alice, cash]),
        ([("name[]", "cash"), ("name[]", "nobody")], [cash]),
        ([("name", "cash")], [cash]),
        ([("ledger_id", library.ledger["id"])], everything),
        ([("ledger_id", library.other["id"])], []),
        ([("external_id", "e-cash")], [cash]),
        ([("external_id", "e-")], []),
        ([("currency", "EUR")], euros),
        ([("currency", "EUR"), ("normal_balance", "debit")], euros[1:]),
        ([("metadata[k]", "v")], [cash]),
        ([("created_at[gt]", library.cash["created_at"])], [*euros, alice]),
        ([("updated_at[lte]", library.cash["created_at"])], [cash]),
        # Posted 27 and pending 5 more, on the accounts in dollars.
        ([("posted_balance_amount[eq]", "27")], [alice, cash]),
        ([("pending_balance_amount[gte]", "32"), ("currency", "USD")], [alice, cash]),
        ([("available_balance_amount[eq]", "27")], [alice, cash]),
        ([("posted_balance_amount[gt]", "27"), ("posted_balance_amount[lt]", "101")], euros),
        ([("posted_balance_amount[not_eq]", "100")], [alice, cash]),
        ([("posted_balance_amount[lt]", "-1" + "0" * 40)], []),
    ]:
        assert library.ids("ledger_accounts", *pairs) == expected, pairs


def test_available_balances_count_outflows_only(library: Library, access: Access) -> None:
    """Not in the shared library: it would change the balances there."""
    with access.http() as http:
        own = Library(http)
        outflow = [
            {"ledger_account_id": own.alice["id"], "direction": "debit", "amount": 2},
            {"ledger_account_id": own.cash["id"], "direction": "credit", "amount": 2},
        ]
        own.create("ledger_transactions", ledger_entries=outflow)
        both = [own.alice["id"], own.cash["id"]]
        assert own.ids("ledger_accounts", ("available_balance_amount[eq]", "25")) == both
        assert own.ids("ledger_accounts", ("pending_balance_amount[eq]", "30")) == both
        for account in (own.alice, own.cash):
            shown = http.get(f"/api/ledger_accounts/{account['id']}").json()["balances"]
            assert shown["available_balance"]["amount"] == 25
            assert shown["pending_balance"]["amount"] == 30


def test_transactions(library: Library) -> None:
    small, posted, mixed, archived = (t["id"] for t in library.transactions)
    newest_first = [archived, mixed, posted, small]
    for pairs, expected in [
        ([], newest_first),
        ([("id[]", small), ("id[]", mixed)], [mixed, small]),
        ([("ledger_id", library.ledger["id"])], newest_first),
        ([("ledger_id", library.other["id"])], []),
        ([("ledger_account_id", library.cash["id"])], newest_first),
        ([("ledger_account_id", library.euro_out["id"])], [mixed]),
        ([("external_id", "t-1")], [small]),
        ([("external_id", "t-2")], []),
        ([("status", "pending")], [small]),
        ([("status[]", "pending"), ("status[]", "archived")], [archived, small]),
        ([("ledgerable_type", "return"), ("ledgerable_id", "r-1")], [mixed]),
        ([("ledgerable_id", "r-2")], []),
        ([("reverses_ledger_transaction_id", small)], []),
        ([("partially_posts_ledger_transaction_id", small)], []),
        ([("metadata[n]", "1"), ("metadata[k]", "v")], [posted]),
        # An amount is the total of debits in any of the currencies.
        ([("amount[gte]", "20")], [mixed, posted]),
        ([("amount[eq]", "7")], [mixed]),
        ([("amount[gt]", "7"), ("amount[lt]", "100")], [archived, posted]),
        ([("amount[gt]", "100")], []),
        ([("effective_at[lt]", "2023-01-01 12:00:00+00:00")], [small]),
        ([("effective_at[eq]", "2023-01-01T13:00:00+01:00")], [posted]),
        ([("effective_date[eq]", "2023-01-01")], [posted, small]),
        ([("effective_date[gt]", "2023-01-01"), ("effective_date[lt]", "2024-06-01")], [mixed]),
        ([("effective_date[lte]", "2023-01-01")], [posted, small]),
        ([("effective_date[gte]", "2023-01-02")], [archived, mixed]),
        ([("posted_at[gte]", library.posted["posted_at"])], [mixed, posted]),
        ([("posted_at[lt]", library.posted["posted_at"])], []),
        ([("created_at[gt]", library.posted["created_at"])], [archived, mixed]),
        ([("updated_at[lte]", library.posted["created_at"])], [posted, small]),
        ([("order_by[created_at]", "asc")], newest_first[::-1]),
        ([("order_by[effective_at]", "desc")], newest_first),
        ([("order_by[effective_at]", "asc"), ("status", "posted")], [posted, mixed]),
    ]:
        assert library.ids("ledger_transactions", *pairs) == expected, pairs


def test_entries(library: Library) -> None:
    small, posted, mixed, archived = (
        [entry["id"] for entry in transaction["ledger_entries"]]
        for transaction in library.transactions
    )
    oldest_first = [*small, *posted, *mixed, *archived]
    ascending = ("order_by[created_at]", "asc")
    version = ("ledger_account_lock_version[gte]", "3")
    for pairs, expected in [
        ([], oldest_first),
        ([("id[]", small[1]), ("id[]", mixed[0])], [small[1], mixed[0]]),
        (
            [("ledger_account_id", library.alice["id"])],
            [e[1] for e in (small, posted, mixed, archived)],
        ),
        ([("ledger_transaction_id", library.mixed["id"])], mixed),
        ([("ledger_transaction_id", library.cash["id"])], []),
        ([("direction", "debit"), ("ledger_transaction_id", library.mixed["id"])], mixed[::2]),
        ([("status", "pending")], small),
        ([("status[]", "pending"), ("status[]", "posted")], [*small, *posted, *mixed]),
        ([("amount[gte]", "20")], [*posted, *mixed[2:]]),
        ([("effective_at[lte]", "2023-01-01")], small),
        ([("effective_date[eq]", "2023-01-01")], [*small, *posted]),
        ([("effective_date[gt]", "2023-01-01"), ("status", "posted")], mixed),
        ([("created_at[gt]", library.mixed["created_at"])], archived),
        ([("updated_at[lt]", library.posted["created_at"])], small),
        ([("ledger_account_id", library.cash["id"]), version], [mixed[0], archived[0]]),
        ([("metadata[a]", "b")], []),
        ([("show_deleted", "true")], oldest_first),
        ([("show_deleted", "false")], oldest_first),
    ]:
        assert library.ids("ledger_entries", *pairs, ascending) == expected, pairs
    assert library.ids("ledger_entries") == oldest_first[::-1]
    by_time = library.ids("ledger_entries", ("order_by[effective_at]", "asc"))
    assert by_time == oldest_first


@pytest.mark.parametrize(
    ("resource", "parameter", "value"),
    [
        ("ledgers", "id[]", "x"),
        ("ledgers", "per_page", "0"),
        ("ledgers", "updated_at[between]", "2024-01-01"),
        ("ledger_accounts", "ledger_id", "x"),
        ("ledger_accounts", "normal_balance", "up"),
        ("ledger_accounts", "balances[as_of_date]", "soon"),
        ("ledger_accounts", "ledger_account_category_id", "x"),
        ("ledger_accounts", "posted_balance_amount[gt]", "1.5"),
        ("ledger_transactions", "status[]", "open"),
        ("ledger_transactions", "order_by[posted_at]", "asc"),
        ("ledger_transactions", "ledger_account_settlement_id", "x"),
        ("ledger_transactions", "amount[not_eq]", "5"),
        ("ledger_transactions", "effective_date[gt]", "soon"),
        ("ledger_entries", "as_of_lock_version", "x"),
        ("ledger_entries", "show_deleted", "yes"),
        ("ledger_entries", "ledger_account_statement_id", "x"),
        (f"ledger_accounts/{'0' * 8}", "balances[effective_at]", "soon"),
    ],
)
def test_refused_parameters(library: Library, resource: str, parameter: str, value: str) -> None:
    answer = library.http.get(f"/api/{resource}", params={parameter: value})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]["parameter"] == parameter.partition("[")[0]


@pytest.mark.parametrize("order", ["created_at", "effective_at"])
@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("resource", ["ledger_transactions", "ledger_entries"])
def test_pages_hold_together_while_rows_are_written(
    served_cell: CellProcess, resource: str, order: str, direction: str
) -> None:
    """Whatever is written meanwhile, each row that was there comes once and in order."""
    with served_cell.new_tenant().http() as http:
        library = Library(http)
        moments = itertools.cycle(PERIODS)
        for _ in range(9):
            library.transaction(1, next(moments), "posted")
        parameters = {f"order_by[{order}]": direction, "per_page": "4"}
        before = library.ids(resource, (f"order_by[{order}]", direction))
        seen: list[str] = []
        while True:
            answer = http.get(f"/api/{resource}", params=parameters)
            seen += [item["id"] for item in answer.json()]
            cursor = answer.headers.get("x-after-cursor")
            if cursor is None:
                break
            parameters["after_cursor"] = cursor
            if len(seen) < 16:
                library.transaction(1, next(moments), "posted")
        assert len(seen) == len(set(seen))
        assert [id for id in seen if id in set(before)] == before


def test_a_cursor_is_no_way_to_another_tenants_rows(library: Library, access: Access) -> None:
    answer = library.http.get("/api/ledger_transactions", params={"per_page": 1})
    cursor = answer.headers["x-after-cursor"]
    with access.http() as http:
        refused = http.get("/api/ledger_transactions", params={"after_cursor": cursor})
    assert refused.status_code == 400
    assert refused.json()["errors"]["parameter"] == "after_cursor"
