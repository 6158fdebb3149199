"""Method: the scenarios of balances as of another time, and of statements, driven by the official
SDK with strict response validation; as `test_scenarios`, they ask nothing but the fixture `access`.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from cell_process import Access
from modern_treasury import NotFoundError, UnprocessableEntityError
from test_scenarios import Books, credit, debit, new_books


@pytest.fixture
def books(access: Access) -> Iterator[Books]:
    with access.sdk() as client:
        yield new_books(client)


def as_of(books: Books, account: str | None = None, /, **balances: Any) -> int:
    """Alice's posted balance."""
    found = books.client.ledger_accounts.retrieve(
        account or books.alice,
        balances=balances,  # type: ignore[arg-type]
    )
    return found.balances.posted_balance.amount


def test_a15_time_travel(books: Books) -> None:
    versions = []
    for amount, at in (
        (400, "2024-01-03T00:00:00Z"),
        (100, "2024-01-01T00:00:00Z"),
        (200, "2024-01-02T12:00:00Z"),
    ):
        books.deposit(amount, effective_at=at)
        versions.append(books.account(books.alice).lock_version)
    for day, amount in ((31, 0), (1, 100), (2, 300), (3, 700)):
        asked = date(2024, 1, day) if day < 31 else date(2023, 12, 31)
        assert as_of(books, as_of_date=asked) == amount
    noon = datetime(2024, 1, 2, 12, tzinfo=UTC)
    assert as_of(books, effective_at=noon) == 300
    assert as_of(books, effective_at=noon.replace(tzinfo=None)) == 300
    assert as_of(books, effective_at="2024-01-02 12:00:00") == 300
    assert as_of(books, effective_at=noon - timedelta(microseconds=1)) == 100
    assert as_of(books, as_of_date=noon) == 300, "a whole timestamp means its day"
    lower, upper = noon, datetime(2024, 1, 3, tzinfo=UTC)
    for bounds, amount in (((lower, upper), 200), ((None, upper), 300), ((upper, None), 400)):
        given = dict(zip(("lower", "upper"), bounds, strict=True))
        asked = {f"effective_at_{end}_bound": at for end, at in given.items() if at is not None}
        found = books.client.ledger_accounts.retrieve(books.alice, balances=asked).balances  # type: ignore[arg-type]
        assert found.posted_balance.amount == amount
        echoed = (found.effective_at_lower_bound, found.effective_at_upper_bound)
        assert echoed == bounds
    assert [as_of(books, as_of_lock_version=v) for v in versions] == [400, 500, 700]
    assert as_of(books, as_of_lock_version=0) == 0
    # On the debit-normal side, and in a list.
    assert as_of(books, books.cash, as_of_date="2024-01-02") == 300
    listed = books.client.ledger_accounts.list(
        ledger_id=books.ledger, balances={"effective_at": noon}
    )
    amounts = {account.id: account.balances.posted_balance.amount for account in listed}
    assert amounts == {books.alice: 300, books.cash: 300, books.bob: 0}
    assert books.balances(books.alice) == (700, 700, 700), "without balances{}: the current ones"
    assert books.account(books.alice).balances.effective_at_lower_bound is None


def test_what_status_and_dates_do_to_the_past(books: Books) -> None:
    """Pending and available, too; late writes change past times, and never past versions."""
    pending = books.write(
        debit(books.cash, 50),
        credit(books.alice, 50),
        status="pending",
        effective_at="2024-03-01T08:00:00Z",
    )
    asked: dict[str, Any] = {"as_of_date": "2024-03-01"}
    found = books.client.ledger_accounts.retrieve(books.alice, balances=asked).balances  # type: ignore[arg-type]
    amounts = (found.posted_balance, found.pending_balance, found.available_balance)
    assert [balance.amount for balance in amounts] == [0, 50, 0]
    books.client.ledger_transactions.update(pending.id, status="posted")
    assert as_of(books, as_of_date="2024-03-01") == 50
    assert as_of(books, as_of_lock_version=1) == 0, "it was pending then"
    # A version that only took an entry away.
    held = books.write(debit(books.cash, 7), credit(books.bob, 7), status="pending")
    books.client.ledger_transactions.update(
        held.id, ledger_entries=[debit(books.cash, 7), credit(books.alice, 7)]
    )
    for version, amount in ((0, 0), (1, 7), (2, 0)):
        asked = {"as_of_lock_version": version}
        bob = books.client.ledger_accounts.retrieve(books.bob, balances=asked)  # type: ignore[arg-type]
        assert bob.balances.pending_balance.amount == amount
        assert bob.lock_version == 2, "the current one"


@pytest.mark.parametrize(
    "query",
    [
        "balances[effective_at]=2024-01-01&balances[as_of_date]=2024-01-01",
        "balances[effective_at]=2024-01-01&balances[effective_at_upper_bound]=2024-01-01",
        "balances[as_of_lock_version]=1&balances[effective_at_lower_bound]=2024-01-01",
        "balances[effective_at_lower_bound]=2024-01-02&balances[effective_at_upper_bound]=2024-01-01",
        "balances[as_of_lock_version]=4",
        "balances[as_of_lock_version]=-1",
        "balances[as_of_lock_version]=9999999999999999999",
        "balances[effective_at]=soon",
        "balances[as_of_date]=2024-13-01",
        "balances[when]=2024-01-01",
        "balances=2024-01-01",
    ],
)
def test_questions_that_make_no_sense(books: Books, access: Access, query: str) -> None:
    with access.http() as http:
        answer = http.get(f"/api/ledger_accounts/{books.alice}?{query}")
        listed = http.get(f"/api/ledger_accounts?{query}")
    for refusal in (answer, listed):
        assert refusal.status_code == 422, refusal.text
        assert refusal.json()["errors"]["parameter"] == "balances"


def test_a25_statement(books: Books) -> None:
    books.deposit(100, effective_at="2024-01-01T00:00:00Z")
    books.write(debit(books.alice, 40), credit(books.cash, 40), effective_at="2024-01-15T00:00:00Z")
    books.deposit(7, effective_at="2024-02-01T00:00:00Z")
    made = books.client.ledger_account_statements.create(
        ledger_account_id=books.alice,
        effective_at_lower_bound=datetime(2024, 1, 2, tzinfo=UTC),
        effective_at_upper_bound=datetime(2024, 2, 1, tzinfo=UTC),
        description="January",
        metadata={"k": "v"},
    )

    def balances() -> tuple[int, int]:
        found = books.client.ledger_account_statements.retrieve(made.id)
        assert found.model_dump() == made.model_dump()
        starting, ending = found.starting_balance, found.ending_balance
        return starting.posted_balance.amount, ending.posted_balance.amount

    assert balances() == (100, 60)
    assert made.ledger_account_lock_version == books.account(books.alice).lock_version == 3
    assert (made.ledger_account_normal_balance, made.ledger_id) == ("credit", books.ledger)
    entries = books.client.ledger_entries.list
    (only,) = entries(ledger_account_statement_id=made.id)
    assert (only.amount, only.direction) == (40, "debit")
    books.deposit(1000, effective_at="2024-01-20T00:00:00Z")
    assert balances() == (100, 60), "what is written later changes no statement"
    assert [entry.id for entry in entries(ledger_account_statement_id=made.id)] == [only.id]
    with pytest.raises(NotFoundError):
        books.client.ledger_account_statements.retrieve(books.alice)
    assert not list(entries(ledger_account_statement_id=books.alice))


def test_versions_of_a_statement_are_those_it_was_made_of(books: Books) -> None:
    client, dated = books.client, "2024-01-15T00:00:00Z"
    edited = books.deposit(100, effective_at=dated, status="pending").id
    client.ledger_transactions.update(edited, description="second")
    other = books.deposit(7, effective_at="2024-02-01T00:00:00Z").id
    statement = client.ledger_account_statements.create(
        ledger_account_id=books.alice,
        effective_at_lower_bound=datetime(2024, 1, 1, tzinfo=UTC),
        effective_at_upper_bound=datetime(2024, 2, 1, tzinfo=UTC),
    )

    def versions(statement_id: str) -> list[tuple[str, int, str]]:
        listed = client.ledger_transactions.versions.list(ledger_account_statement_id=statement_id)
        return [(each.ledger_transaction_id, each.version, each.status) for each in listed]

    assert versions(statement.id) == [(edited, 1, "pending")]
    client.ledger_transactions.update(edited, status="posted")
    client.ledger_transactions.update(other, metadata={"k": "v"})
    books.deposit(9, effective_at=dated)
    assert versions(statement.id) == [(edited, 1, "pending")]
    with pytest.raises(NotFoundError) as unknown:
        versions(books.alice)
    assert "ledger_account_statement_id" in str(unknown.value)


def test_a_category_as_of_a_time(books: Books) -> None:
    books.deposit(100, effective_at="2024-01-01T00:00:00Z")
    books.deposit(7, effective_at="2024-01-02T12:00:00Z")
    categories = books.client.ledger_account_categories
    category = categories.create(
        ledger_id=books.ledger, name="C", normal_balance="credit", currency="USD"
    ).id
    categories.add_ledger_account(books.alice, id=category)

    def posted(**balances: Any) -> int:
        return categories.retrieve(category, balances=balances).balances.posted_balance.amount

    assert posted() == 107
    assert posted(as_of_date="2024-01-01") == 100
    assert posted(as_of_date="2024-01-02") == 107
    assert posted(effective_at="2024-01-02T11:59:59.999999Z") == 100
    assert posted(effective_at="2024-01-02T12:00:00Z") == 107
    assert posted(effective_at="2023-12-31T00:00:00Z") == 0
    (listed,) = categories.list(id=[category], balances={"effective_at": "2024-01-01T00:00:00Z"})
    assert listed.balances.posted_balance.amount == 100


def test_statements_that_make_no_sense(books: Books) -> None:
    first, second = "2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z"
    for account, lower, upper, parameter in (
        (books.ledger, first, second, "ledger_account_id"),
        (books.alice, second, first, "effective_at_lower_bound"),
        (books.alice, "soon", second, "effective_at_lower_bound"),
        ("alice", first, second, "ledger_account_id"),
    ):
        with pytest.raises(UnprocessableEntityError) as refusal:
            books.client.ledger_account_statements.create(
                ledger_account_id=account,
                effective_at_lower_bound=lower,
                effective_at_upper_bound=upper,
            )
        assert refusal.value.body["errors"]["parameter"] == parameter  # type: ignore[index]


def test_entries_as_of_a_lock_version(books: Books, access: Access) -> None:
    pending = books.write(debit(books.cash, 5), credit(books.alice, 5), status="pending")
    books.deposit(9)
    books.client.ledger_transactions.update(pending.id, status="posted")

    def present(version: int) -> list[tuple[int, str, bool]]:
        found = books.client.ledger_entries.list(
            ledger_account_id=books.alice, as_of_lock_version=version
        )
        return sorted((e.amount, e.status, e.discarded_at is None) for e in found)

    assert present(0) == []
    assert present(1) == [(5, "pending", True)]
    assert present(2) == [(5, "pending", True), (9, "posted", True)]
    assert present(3) == [(5, "posted", True), (9, "posted", True)]
    with access.http() as http:
        for query, parameter in (
            ("as_of_lock_version=1", "ledger_account_id"),
            (f"as_of_lock_version=x&ledger_account_id={books.alice}", "as_of_lock_version"),
        ):
            refusal = http.get(f"/api/ledger_entries?{query}")
            assert refusal.status_code == 422
            assert refusal.json()["errors"]["parameter"] == parameter
