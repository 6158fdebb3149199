"""Method: what the hosted documentation's guides to ledgers show, field by field as their examples
have them, ids and names aside, driven by the official SDK in strict mode: locks, balance alerts,
nested categories, settlements, earlier states, statements and bulk requests; and what the README of
the SDK says of its options, raw answers and endpoints that it does not know. The two quickstarts by
plain HTTP are in `test_tutorial_scenarios.py`. Asks nothing but `access`, as the scenarios.
"""

# ruff: noqa: F811  # arguments of tests are named after the fixtures they import

from typing import Any

import httpx
import pytest
from modern_treasury import UnprocessableEntityError
from modern_treasury.types import LedgerTransaction
from test_bulk_scenarios import completed
from test_scenarios import Books, books, client  # noqa: F401  # fixtures


def payment(books: Books, amount: int, **lock: Any) -> list[dict[str, Any]]:
    """From ALICE, a user whose balance is credit-normal."""
    return [
        {"amount": amount, "direction": "debit", "ledger_account_id": books.alice, **lock},
        {"amount": amount, "direction": "credit", "ledger_account_id": books.cash},
    ]


# "Handle concurrency"


def test_a_payment_is_locked_on_what_is_left(books: Books) -> None:
    create: Any = books.client.ledger_transactions.create
    example = {
        # Without a zone, as the guide has it.
        "effective_at": "2022-01-01T00:00:00.000",
        "status": "pending",
        "ledger_entries": payment(books, 100, available_balance_amount={"gte": 0}),
    }
    with pytest.raises(UnprocessableEntityError):
        create(**example)
    books.deposit(100)
    paid = create(**example)
    assert (paid.status, paid.effective_at.isoformat()) == ("pending", "2022-01-01T00:00:00+00:00")
    with pytest.raises(UnprocessableEntityError):
        create(**example)
    assert books.balances(books.alice) == (100, 0, 0)


def test_a_payment_is_locked_on_the_version_that_was_read(books: Books) -> None:
    """Read the account, decide by its balances, write; whoever comes second reads again."""
    books.deposit(100)
    create: Any = books.client.ledger_transactions.create
    seen = books.account(books.alice)
    assert seen.balances.available_balance.amount == 100
    locked = payment(books, 60, lock_version=seen.lock_version)
    first = create(status="posted", ledger_entries=locked)
    with pytest.raises(UnprocessableEntityError) as refused:
        create(status="posted", ledger_entries=locked)
    assert refused.value.body["errors"]["parameter"] == "ledger_entries"  # type: ignore[index]
    again = books.account(books.alice)
    assert again.lock_version == first.ledger_entries[0].ledger_account_lock_version
    assert again.balances.available_balance.amount == 40


# "Balance alerts"


def test_an_alert_when_the_available_balance_goes_below_zero(books: Books) -> None:
    monitors = books.client.ledger_account_balance_monitors
    made = monitors.create(
        alert_condition={"field": "available_balance_amount", "operator": "less_than", "value": 0},
        description="Available balance went below 0",
        ledger_account_id=books.alice,
        metadata={},
    )
    assert not made.current_ledger_account_balance_state.triggered
    overdraft = payment(books, 1)
    books.write(*overdraft)
    state = monitors.retrieve(made.id).current_ledger_account_balance_state
    assert (state.triggered, state.balances.available_balance.amount) == (True, -1)
    books.deposit(1)
    events = books.client.events.list(resource="ledger_account_balance_monitor")
    # The first tells the state at the creation.
    assert [event.event_name for event in events] == ["resolved", "triggered", "resolved"]
    # One page of the guide says `condition` where it explains an `operator`.
    slip: Any = {"field": "available_balance_amount", "condition": "less_than", "value": 0}
    with pytest.raises(UnprocessableEntityError):
        monitors.create(alert_condition=slip, ledger_account_id=books.alice)


# "Nesting accounts"


def test_balances_of_accounts_by_categories_in_categories(books: Books) -> None:
    categories = books.client.ledger_account_categories
    assets, bank = (
        categories.create(
            name=name, currency="USD", normal_balance="debit", ledger_id=books.ledger
        ).id
        for name in ("Assets", "Bank accounts")
    )
    checking = books.client.ledger_accounts.create(
        name="Checking",
        currency="USD",
        normal_balance="debit",
        ledger_id=books.ledger,
        ledger_account_category_ids=[bank],
    ).id
    categories.add_nested_category(bank, id=assets)
    categories.add_ledger_account(books.cash, id=assets)
    books.deposit(100)
    books.client.ledger_transactions.create(
        status="posted",
        effective_at="2022-01-01T00:00:00Z",
        ledger_entries=[
            {"amount": 40, "direction": "debit", "ledger_account_id": checking},
            {"amount": 40, "direction": "credit", "ledger_account_id": books.cash},
        ],
    )

    def posted(category: str, **of: Any) -> int:
        return categories.retrieve(category, **of).balances.posted_balance.amount

    assert (posted(assets), posted(bank)) == (100, 40)
    assert posted(bank, balances={"as_of_date": "2021-12-31"}) == 0
    in_bank: Any = {"ledger_account_category_id": bank}
    assert [each.id for each in books.client.ledger_accounts.list(**in_bank)] == [checking]
    parents = categories.list(ledger_account_id=checking)
    assert {each.id for each in parents} == {assets, bank}
    categories.remove_nested_category(bank, id=assets)
    assert (posted(assets), posted(bank)) == (60, 40)


# "Ledger account settlements overview"


def test_a_supplier_is_paid_each_month_what_came_late_with_the_next(books: Books) -> None:
    """ALICE is what a marketplace owes to a supplier; January is paid in February."""
    settlements, transactions = (
        books.client.ledger_account_settlements,
        books.client.ledger_transactions,
    )
    books.deposit(1000, effective_at="2023-01-10T00:00:00Z")
    books.deposit(500, effective_at="2023-02-10T00:00:00Z")

    def settle(bound: str) -> Any:
        made = settlements.create(
            settled_ledger_account_id=books.alice,
            contra_ledger_account_id=books.cash,
            effective_at_upper_bound=bound,
            status="pending",
        )
        assert (made.status, made.settlement_entry_direction) == ("pending", "debit")
        return made

    january = settle("2023-02-01T00:00:00Z")
    assert january.amount == 1000
    assert transactions.retrieve(january.ledger_transaction_id).status == "pending"
    # It was paid out: the settlement is posted, and its transaction with it.
    assert settlements.update(january.id, status="posted").status == "posted"
    assert transactions.retrieve(january.ledger_transaction_id).status == "posted"

    books.deposit(30, effective_at="2023-01-31T00:00:00Z")
    february = settle("2023-03-01T00:00:00Z")
    assert february.amount == 530
    listed = books.client.ledger_entries.list(ledger_account_settlement_id=february.id)
    assert sorted(each.amount for each in listed if each.direction == "credit") == [30, 500]
    # The payment failed: its entries are free for the one after.
    assert settlements.update(february.id, status="archived").status == "archived"
    assert settle("2023-03-01T00:00:00Z").amount == 530
    events = books.client.events.list(entity_id=february.id)
    assert [each.event_name for each in events] == ["finish_archiving", "finish_processing"]


# "Verify prior ledger states"


def test_earlier_states_of_a_transaction_and_of_an_account(books: Books) -> None:
    transactions, entries = books.client.ledger_transactions, books.client.ledger_entries
    pending = books.deposit(100, status="pending", description="first")
    replaced: Any = [
        {"amount": 70, "direction": "debit", "ledger_account_id": books.cash},
        {"amount": 70, "direction": "credit", "ledger_account_id": books.alice},
    ]
    transactions.update(pending.id, description="second", ledger_entries=replaced)
    transactions.update(pending.id, status="posted")
    versions = list(transactions.versions.list(ledger_transaction_id=pending.id))
    shown = [(v.version, v.status, v.description, v.ledger_entries[0].amount) for v in versions]
    assert shown == [
        (2, "posted", "second", 70),
        (1, "pending", "second", 70),
        (0, "pending", "first", 100),
    ]
    # The path of the guide is none of the SDK's methods; its README says how to ask such a one.
    path = f"/api/ledger_transactions/{pending.id}/versions"
    answer = books.client.get(path, cast_to=httpx.Response)
    assert [each["id"] for each in answer.json()] == [each.id for each in versions]

    for version, amounts in ((0, []), (1, [100]), (2, [70]), (3, [70])):
        balances: Any = {"as_of_lock_version": version}
        then = books.client.ledger_accounts.retrieve(books.alice, balances=balances).balances
        of_then = entries.list(ledger_account_id=books.alice, as_of_lock_version=version)
        assert [each.amount for each in of_then] == amounts
        assert then.pending_balance.amount == sum(amounts)


# "Ledger account statements"


def test_a_statement_of_a_month_with_its_entries(books: Books) -> None:
    for amount, time in (
        (10, "2023-01-31T23:59:59Z"),
        (20, "2023-02-01T00:00:00Z"),
        (40, "2023-02-28T23:59:59Z"),
        (80, "2023-03-01T00:00:00Z"),
    ):
        books.deposit(amount, effective_at=time)
    statement = books.client.ledger_account_statements.create(
        ledger_account_id=books.alice,
        effective_at_lower_bound="2023-02-01T00:00:00Z",  # type: ignore[arg-type]
        effective_at_upper_bound="2023-03-01T00:00:00Z",  # type: ignore[arg-type]
        description="February",
    )
    starting, ending = statement.starting_balance, statement.ending_balance
    assert (starting.posted_balance.amount, ending.posted_balance.amount) == (10, 70)
    assert (statement.ledger_account_normal_balance, statement.ledger_account_lock_version) == (
        "credit",
        4,
    )
    books.deposit(5, effective_at="2023-02-15T00:00:00Z")
    of_it: Any = {"ledger_account_statement_id": statement.id, "order_by": {"effective_at": "asc"}}
    assert [each.amount for each in books.client.ledger_entries.list(**of_it)] == [20, 40]
    found = books.client.ledger_account_statements.retrieve(statement.id)
    assert found.ending_balance.posted_balance.amount == 70


# "Bulk requests"


def test_transactions_are_created_in_bulk(books: Books) -> None:
    client = books.client
    made = client.bulk_requests.create(
        action_type="create",
        resource_type="ledger_transaction",
        resources=[
            {"status": "posted", "description": f"row {n}", "ledger_entries": payment(books, n)}  # type: ignore[typeddict-item]
            for n in range(10)
        ],
        metadata={"key": "value"},
    )
    assert (made.status, made.total_resource_count) == ("pending", 10)
    done = completed(client, made.id)
    assert (done.success_result_count, done.failed_result_count) == (10, 0)
    results = list(client.bulk_results.list(request_type="bulk_request", request_id=made.id))
    assert len(results) == 10
    for result in results:
        assert (result.status, result.entity_type) == ("successful", "ledger_transaction")
        assert isinstance(result.entity, LedgerTransaction)
    assert books.balances(books.alice)[0] == -sum(range(10))


# The SDK's README


def test_options_of_the_sdk(books: Books) -> None:
    client = books.client
    assert client.with_options(max_retries=5, timeout=60.0).ledgers.create(name="n").name == "n"
    raw = client.ledgers.with_raw_response.retrieve(books.ledger)
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse() == client.ledgers.retrieve(books.ledger)
    answer = client.post("/api/ledgers", cast_to=httpx.Response, body={"name": "by hand"})
    assert (answer.status_code, answer.json()["name"]) == (201, "by hand")
    ledger = client.ledgers.create(
        name="n", extra_headers={"X-My": "header"}, extra_query={}, extra_body={"unknown": 1}
    )
    assert not hasattr(ledger, "unknown")
    names = [each.name for each in client.ledgers.list(per_page=1)]
    page = client.ledgers.list(per_page=1)
    assert page.has_next_page()
    assert page.next_page_info() is not None
    assert len(names) == 4
