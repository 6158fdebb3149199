"""Method: what the hosted documentation leaves open, done as the README says, by the official SDK
in strict mode, as far as no other scenario shows it. Asks nothing but `access`.
"""

# ruff: noqa: F811  # arguments of tests are named after the fixtures they import

from typing import Any

import pytest
from modern_treasury import NotFoundError, UnprocessableEntityError
from test_scenarios import Books, books, client, credit, debit  # noqa: F401  # fixtures


def test_dates_beside_times(books: Books) -> None:
    alone = books.deposit(1, effective_date="2024-05-06")
    assert alone.effective_at.isoformat() == "2024-05-06T00:00:00+00:00"
    both = books.deposit(1, effective_date="2024-05-06", effective_at="2024-07-08T09:10:11")
    assert both.effective_at.isoformat() == "2024-07-08T09:10:11+00:00"
    assert both.effective_date.isoformat() == "2024-07-08"
    on_day: Any = {"effective_date": {"eq": "2024-07-08"}}
    found = books.client.ledger_transactions.list(**on_day)
    assert [each.id for each in found] == [both.id]


def test_what_a_deleted_account_leaves(books: Books) -> None:
    client = books.client
    posted, held, other = (
        books.deposit(amount, status=status)
        for amount, status in ((10, "posted"), (20, "pending"), (40, "pending"))
    )
    client.ledger_accounts.delete(books.alice)
    with pytest.raises(NotFoundError):
        books.account(books.alice)
    assert client.ledger_transactions.retrieve(posted.id) == posted
    entries = client.ledger_entries.list(ledger_account_id=books.alice)
    assert sorted(each.amount for each in entries) == [10, 20, 40]
    with pytest.raises(UnprocessableEntityError, match="discarded"):
        books.deposit(1)
    assert client.ledger_transactions.update(held.id, status="posted").status == "posted"
    client.ledgers.delete(books.ledger)
    assert client.ledger_transactions.update(other.id, status="archived").status == "archived"
    assert client.ledger_transactions.retrieve(posted.id).status == "posted"
    with pytest.raises(NotFoundError):
        books.account(books.cash)
    with pytest.raises(UnprocessableEntityError):
        books.write(debit(books.cash, 1), credit(books.bob, 1))


def test_what_counts_as_a_transactions_amount(books: Books) -> None:
    euros = [
        books.client.ledger_accounts.create(
            name="E", ledger_id=books.ledger, normal_balance=side, currency="EUR"
        ).id
        for side in ("debit", "credit")
    ]
    both = books.write(
        debit(books.cash, 30),
        debit(books.cash, 70),
        credit(books.alice, 100),
        debit(euros[0], 7),
        credit(euros[1], 7),
    )
    assert [each.amount for each in both.ledger_entries] == [30, 70, 100, 7, 7]

    def found(amount: int) -> list[str]:
        listed = books.client.ledger_transactions.list(amount={"eq": amount})
        return [each.id for each in listed]

    assert found(100) == found(7) == [both.id]
    assert found(30) == found(107) == []


def test_metadata_of_entries_and_of_reversals(books: Books) -> None:
    client = books.client
    noted = {"metadata": {"k": "v", "empty": ""}}
    held = books.write(
        debit(books.cash, 5, **noted), credit(books.alice, 5, **noted), status="pending"
    )
    first = held.ledger_entries[0]
    assert first.metadata == {"k": "v"}
    posted = client.ledger_transactions.update(held.id, status="posted")
    assert [each.metadata for each in posted.ledger_entries] == [{"k": "v"}] * 2
    assert client.ledger_entries.update(first.id, metadata={"k": "w"}).metadata == {"k": "w"}
    reversal = client.ledger_transactions.create_reversal(held.id)
    assert [each.metadata for each in reversal.ledger_entries] == [{}, {}]
