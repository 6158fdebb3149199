"""Method: settlements as users meet them, driven by the official SDK with strict validation,
against a cell alone, and again through a router; knows nothing of what serves them but the fixture
`access`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from cell_process import Access
from modern_treasury import NotFoundError, UnprocessableEntityError
from modern_treasury.types import LedgerAccountSettlement
from test_scenarios import Books, credit, debit, new_books

FEBRUARY, MARCH = "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"


@pytest.fixture
def books(access: Access) -> Iterator[Books]:
    with access.sdk() as client:
        yield new_books(client)


def settle(books: Books, **fields: Any) -> LedgerAccountSettlement:
    return books.client.ledger_account_settlements.create(
        settled_ledger_account_id=books.alice, contra_ledger_account_id=books.cash, **fields
    )


def settled(books: Books, settlement: LedgerAccountSettlement) -> list[int]:
    """The amounts on ALICE that are in it, its own aside."""
    listed = books.client.ledger_entries.list(ledger_account_settlement_id=settlement.id)
    return sorted(
        entry.amount
        for entry in listed
        if entry.ledger_transaction_id != settlement.ledger_transaction_id
    )


def refused(call: Any, *arguments: Any, **fields: Any) -> Any:
    with pytest.raises(UnprocessableEntityError) as refusal:
        call(*arguments, **fields)
    return refusal.value.body["errors"].get("parameter")  # type: ignore[index]


def deposit(books: Books, amount: int, day: str, status: str = "posted") -> str:
    """The id of its entry on ALICE."""
    written = books.deposit(amount, effective_at=f"2024-{day}T12:00:00Z", status=status)
    return next(e.id for e in written.ledger_entries if e.ledger_account_id == books.alice)


# A24


def test_settlement(books: Books) -> None:
    settlements = books.client.ledger_account_settlements
    for amount, day in ((300, "01-10"), (200, "01-20"), (50, "02-03")):
        deposit(books, amount, day)
    deposit(books, 999, "01-15", "pending")
    first = settle(books, effective_at_upper_bound=FEBRUARY, description="payout")
    assert (first.status, first.amount, first.settlement_entry_direction) == (
        "pending",
        500,
        "debit",
    )
    assert (first.currency, first.currency_exponent) == ("USD", 2)
    assert settled(books, first) == [200, 300]
    written = books.client.ledger_transactions.retrieve(str(first.ledger_transaction_id))
    assert (written.status, written.description) == ("pending", "payout")
    assert {(e.ledger_account_id, e.direction, e.amount) for e in written.ledger_entries} == {
        (books.alice, "debit", 500),
        (books.cash, "credit", 500),
    }
    deposit(books, 70, "01-05")
    second = settle(books, effective_at_upper_bound=FEBRUARY)
    assert second.amount == 70

    posted = settlements.update(first.id, status="posted")
    assert posted.status == "posted"
    assert settlements.update(first.id, status="posted") == posted
    assert settlements.retrieve(first.id) == posted
    transaction = books.client.ledger_transactions.retrieve(str(first.ledger_transaction_id))
    assert transaction.status == "posted"
    assert books.balances(books.alice)[0] == 120
    assert refused(settlements.update, first.id, status="archived") == "status"

    archived = settlements.update(second.id, status="archived", metadata={"why": "late"})
    assert (archived.status, archived.metadata) == ("archived", {"why": "late"})
    assert settled(books, second) == []
    third = settle(books, effective_at_upper_bound=MARCH, status="posted")
    assert (third.status, third.amount) == ("posted", 120)
    assert settled(books, third) == [50, 70]
    assert books.balances(books.alice)[0] == 0
    assert refused(settle, books, effective_at_upper_bound=MARCH) == "settled_ledger_account_id"


def test_settlements_are_listed(books: Books) -> None:
    client, settlements = books.client, books.client.ledger_account_settlements
    for _ in range(3):
        deposit(books, 5, "01-01")
    first = settle(books, metadata={"k": "v"})
    books.write(debit(books.alice, 9), credit(books.bob, 9))
    second = settle(books, allow_either_direction=True)
    assert (second.amount, second.settlement_entry_direction) == (9, "credit")
    # The entry that a settlement has written is listed with those it gathered.
    own = client.ledger_entries.list(
        ledger_account_settlement_id=first.id, ledger_transaction_id=first.ledger_transaction_id
    )
    assert [(e.direction, e.amount, e.status) for e in own] == [("debit", 15, "pending")]
    for order_by in (
        {},
        {"order_by": {"effective_at": "asc"}},
        {"order_by": {"created_at": "asc"}},
    ):
        listed: Any = client.ledger_entries.list(
            ledger_account_settlement_id=first.id, per_page=1, **order_by
        )
        assert len({entry.id for entry in listed}) == 4
    transactions = client.ledger_transactions.list(ledger_account_settlement_id=second.id)
    assert len(list(transactions)) == 2

    def ids(**filters: Any) -> list[str]:
        return [each.id for each in settlements.list(**filters)]

    assert ids(ledger_id=books.ledger, per_page=1) == [second.id, first.id]
    assert ids(settled_ledger_account_id=books.alice) == [second.id, first.id]
    assert ids(settled_ledger_account_id=books.bob) == []
    assert ids(settlement_entry_direction="debit") == [first.id]
    assert ids(ledger_transaction_id=str(second.ledger_transaction_id)) == [second.id]
    assert ids(metadata={"k": "v"}) == ids(id=[first.id]) == [first.id]
    assert ids(created_at={"gt": first.created_at.isoformat()}) == [second.id]


def test_drafts_of_settlements(access: Access, books: Books) -> None:
    settlements = books.client.ledger_account_settlements
    entries = settlements.account_entries
    one, two, late = (deposit(books, n, "01-01") for n in (1, 20, 300))
    unposted = deposit(books, 9, "01-01", "pending")
    draft = settle(books, status="drafting")
    assert (draft.status, draft.amount, draft.ledger_transaction_id) == ("drafting", None, None)
    entries.update(draft.id, ledger_entry_ids=[one, two, one])
    entries.update(draft.id, ledger_entry_ids=[one])
    entries.update(draft.id, ledger_entry_ids=None)
    assert settled(books, draft) == [1, 20]
    for wrong in (unposted, draft.id, "no id"):
        parameter = refused(entries.update, draft.id, ledger_entry_ids=[wrong])
        assert parameter.startswith("ledger_entry_ids")
    entries.delete(draft.id, ledger_entry_ids=[one, late])
    assert settled(books, draft) == [20]
    with access.http() as http:
        path = f"/api/ledger_account_settlements/{draft.id}/ledger_entries"
        answer = http.request("DELETE", path, json={"ledger_entry_ids": None})
        assert (answer.status_code, answer.content) == (200, b"")
        assert http.request("DELETE", path, json={}).status_code == 422
    other = settle(books)
    assert other.amount == 301
    assert refused(entries.update, draft.id, ledger_entry_ids=[late]) == "ledger_entry_ids"
    posted = settlements.update(draft.id, status="posted")
    assert (posted.status, posted.amount) == ("posted", 20)
    assert refused(entries.delete, draft.id, ledger_entry_ids=[two]) == "status"


def test_settlements_are_refused(books: Books) -> None:
    create = books.client.ledger_account_settlements.create
    unknown = "00000000-0000-7000-8000-00000000ffff"
    accounts = {
        "settled_ledger_account_id": books.alice,
        "contra_ledger_account_id": books.cash,
    }
    for parameter in accounts:
        for wrong in (unknown, "x"):
            assert refused(create, **{**accounts, parameter: wrong}) == parameter
    assert refused(settle, books, status="archived") == "status"
    assert refused(settle, books, effective_at_upper_bound="soon") == "effective_at_upper_bound"
    deposit(books, 5, "01-01")
    settlement = settle(books)
    transactions = books.client.ledger_transactions
    for fields in ({"status": "posted"}, {"status": "archived"}, {"effective_at": MARCH}):
        id = str(settlement.ledger_transaction_id)
        assert refused(transactions.update, id, **fields) == "ledger_transaction"
    deposit(books, 6, "01-01")
    skipped = settle(books, skip_settlement_ledger_transaction=True)
    assert (skipped.amount, skipped.ledger_transaction_id) == (6, None)
    with pytest.raises(NotFoundError):
        books.client.ledger_account_settlements.retrieve(unknown)
    with pytest.raises(NotFoundError):
        books.client.ledger_account_settlements.update(unknown, status="posted")


def test_a_repeated_settlement_is_the_first(books: Books) -> None:
    deposit(books, 5, "01-01")
    first = settle(books, idempotency_key="once")
    again = settle(books, idempotency_key="once")
    assert again == first
