"""Method: what the hosted documentation's ledger tutorials do, request by request, by plain HTTP
as their examples are: a wallet that is filled, passed on and emptied; and a card whose purchase is
authorised, then posted for less. Fields of older examples that mean nothing any more are in it.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cell_process import Access


@pytest.fixture
def http(access: Access) -> Iterator[httpx.Client]:
    with access.http() as client:
        yield client


def create(http: httpx.Client, resource: str, **body: Any) -> dict[str, Any]:
    answer = http.post(f"/api/{resource}", json=body)
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    assert created["object"] == resource.removesuffix("s")
    return created


def open_books(http: httpx.Client, name: str, accounts: dict[str, str]) -> dict[str, str]:
    """Ids of the accounts, of the given normal balances."""
    ledger = create(http, "ledgers", name=name, description="What users own", currency="USD")
    assert ledger["metadata"] == {}
    return {
        account: create(
            http,
            "ledger_accounts",
            name=account,
            description=f"Tracks {account}",
            normal_balance=side,
            ledger_id=ledger["id"],
            currency="USD",
        )["id"]
        for account, side in accounts.items()
    }


def pay(
    http: httpx.Client, debited: str, credited: str, amount: int, **fields: Any
) -> dict[str, Any]:
    sides = (("debit", debited), ("credit", credited))
    entries = [
        {"amount": amount, "direction": direction, "ledger_account_id": account}
        for direction, account in sides
    ]
    return create(http, "ledger_transactions", ledger_entries=entries, **fields)


def balances(http: httpx.Client, account: str, **query: str) -> tuple[int, int, int]:
    """Posted, pending and available."""
    answer = http.get(f"/api/ledger_accounts/{account}", params=query)
    assert answer.status_code == 200, answer.text
    of = answer.json()["balances"]
    names = ("posted_balance", "pending_balance", "available_balance")
    return tuple(of[name]["amount"] for name in names)  # type: ignore[return-value]


def test_a_wallet_is_filled_passed_on_and_emptied(http: httpx.Client) -> None:
    sides = {"cash": "debit", "jane": "credit", "john": "credit"}
    books = open_books(http, "Wallets", sides)
    dated = {"status": "posted", "effective_date": "2020-08-27"}
    deposit = pay(http, books["cash"], books["jane"], 10_000, description="Jane deposits", **dated)
    assert deposit["effective_date"] == "2020-08-27"
    assert [entry["amount"] for entry in deposit["ledger_entries"]] == [10_000, 10_000]
    pay(http, books["jane"], books["john"], 1_000, description="Jane pays John", **dated)
    metadata = {"kind": "withdrawal", "user": "john"}
    withdrawn = pay(
        http, books["john"], books["cash"], 500, external_id="w-1", metadata=metadata, **dated
    )
    assert balances(http, books["jane"]) == (9_000,) * 3
    assert balances(http, books["john"]) == (500,) * 3
    assert balances(http, books["cash"]) == (9_500,) * 3
    day_before = {"balances[as_of_date]": "2020-08-26"}
    assert balances(http, books["cash"], **day_before) == (0, 0, 0)
    found = http.get("/api/ledger_transactions", params={"metadata[kind]": "withdrawal"}).json()
    assert [each["id"] for each in found] == [withdrawn["id"]]
    listed = http.get("/api/ledger_entries", params={"ledger_account_id": books["john"]}).json()
    assert {(entry["direction"], entry["amount"]) for entry in listed} == {
        ("credit", 1_000),
        ("debit", 500),
    }


def purchase(books: dict[str, str], amount: int) -> list[dict[str, Any]]:
    """Entries that the wallet must have the money for."""
    wallet = {"ledger_account_id": books["wallet"], "available_balance_amount": {"gte": 0}}
    return [
        {"amount": amount, "direction": "debit", **wallet},
        {"amount": amount, "direction": "credit", "ledger_account_id": books["issuer"]},
    ]


def test_a_card_purchase_is_authorised_then_posted_for_less(http: httpx.Client) -> None:
    books = open_books(http, "Cards", {"cash": "debit", "wallet": "credit", "issuer": "credit"})
    pay(http, books["cash"], books["wallet"], 10_000, status="posted")
    swipe = pay(http, books["wallet"], books["issuer"], 4_000, status="pending")
    assert balances(http, books["wallet"]) == (10_000, 6_000, 6_000)
    assert balances(http, books["issuer"]) == (0, 4_000, 0)
    settled = http.patch(
        f"/api/ledger_transactions/{swipe['id']}",
        json={"status": "posted", "ledger_entries": purchase(books, 3_500)},
    )
    assert settled.status_code == 200, settled.text
    assert settled.json()["status"] == "posted"
    assert balances(http, books["wallet"]) == (6_500,) * 3
    refused = http.post(
        "/api/ledger_transactions",
        json={"status": "pending", "ledger_entries": purchase(books, 6_501)},
    )
    assert refused.status_code == 422, refused.text
    pay(http, books["issuer"], books["cash"], 3_500, status="posted")
    assert balances(http, books["issuer"]) == (0, 0, 0)
    assert balances(http, books["cash"]) == (6_500,) * 3
