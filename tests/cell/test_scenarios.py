"""Method: the acceptance scenarios of the Ledgers API, driven by the official SDK with strict
response validation, each with a tenant and a ledger of its own. Knows nothing of what serves them
but the fixture `access`: the suite runs against a cell alone, and again through a router.
"""

import base64
import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cell_process import Access
from modern_treasury import (
    AuthenticationError,
    ConflictError,
    ModernTreasury,
    NotFoundError,
    UnprocessableEntityError,
)
from modern_treasury.types import LedgerAccount, LedgerTransaction

M = 10**36 - 1
"""The largest amount."""


@dataclass(frozen=True)
class Books:
    """A ledger with CASH (debit-normal), ALICE and BOB (credit-normal), in dollars, all zero."""

    client: ModernTreasury
    ledger: str
    cash: str
    alice: str
    bob: str

    def write(self, *entries: dict[str, Any], status: str = "posted", **fields: Any) -> Any:
        return self.client.ledger_transactions.create(
            ledger_entries=entries,  # type: ignore[arg-type]
            status=status,  # type: ignore[arg-type]
            **fields,
        )

    def deposit(self, amount: int, **fields: Any) -> LedgerTransaction:
        return self.write(debit(self.cash, amount), credit(self.alice, amount), **fields)

    def account(self, id: str) -> LedgerAccount:
        return self.client.ledger_accounts.retrieve(id)

    def balances(self, id: str) -> tuple[int, int, int]:
        """Posted, pending, available."""
        of = self.account(id).balances
        return of.posted_balance.amount, of.pending_balance.amount, of.available_balance.amount

    def transactions(self) -> list[LedgerTransaction]:
        return list(self.client.ledger_transactions.list(ledger_id=self.ledger))


def debit(account: str, amount: int | None = None, **fields: Any) -> dict[str, Any]:
    return entry(account, "debit", amount, fields)


def credit(account: str, amount: int | None = None, **fields: Any) -> dict[str, Any]:
    return entry(account, "credit", amount, fields)


def entry(
    account: str, direction: str, amount: int | None, fields: dict[str, Any]
) -> dict[str, Any]:
    amounts = {} if amount is None else {"amount": amount}
    return {"ledger_account_id": account, "direction": direction, **amounts, **fields}


@pytest.fixture
def client(access: Access) -> Iterator[ModernTreasury]:
    with access.sdk() as client:
        yield client


@pytest.fixture
def books(client: ModernTreasury) -> Books:
    return new_books(client)


def new_books(client: ModernTreasury) -> Books:
    ledger = client.ledgers.create(name="L").id

    def account(name: str, normal: Any) -> str:
        return client.ledger_accounts.create(
            name=name, ledger_id=ledger, normal_balance=normal, currency="USD"
        ).id

    return Books(
        client,
        ledger,
        account("CASH", "debit"),
        account("ALICE", "credit"),
        account("BOB", "credit"),
    )


@pytest.fixture
def attempts() -> list[httpx.Request]:
    return []


@pytest.fixture
def counting(access: Access, attempts: list[httpx.Request]) -> Callable[..., ModernTreasury]:
    """Makes clients whose requests, retries included, are kept in `attempts`."""

    def make(**options: Any) -> ModernTreasury:
        return access.sdk(on_request=attempts.append, **options)

    return make


# A01


def test_ping(client: ModernTreasury) -> None:
    assert client.ping().ping == "pong"


def test_wrong_key_is_told_at_once(
    counting: Callable[..., ModernTreasury], attempts: list[httpx.Request]
) -> None:
    with counting(api_key="wrong") as client, pytest.raises(AuthenticationError) as refused:
        client.ping()
    assert refused.value.status_code == 401
    assert len(attempts) == 1
    errors = refused.value.body["errors"]  # type: ignore[index]
    assert errors["code"] == "invalid_key"
    assert errors["message"]


def test_unknown_organization_is_told_in_the_same_words(access: Access) -> None:
    with access.http() as http:
        wrong_key = http.get("/api/ping", auth=(access.organization_id, "wrong"))
        unknown = http.get("/api/ping", auth=(str(uuid.uuid4()), access.api_key))
    assert wrong_key.status_code == unknown.status_code == 401
    assert wrong_key.json().keys() == unknown.json().keys()


def test_unknown_ledger_is_told_at_once(
    counting: Callable[..., ModernTreasury], attempts: list[httpx.Request]
) -> None:
    with counting() as client, pytest.raises(NotFoundError):
        client.ledgers.retrieve(str(uuid.uuid4()))
    assert len(attempts) == 1


def test_ledger_without_name(access: Access) -> None:
    with access.http() as http:
        refused = http.post("/api/ledgers", json={"description": "nameless"})
    assert refused.status_code == 422
    assert refused.json()["errors"]["parameter"] == "name"
    assert refused.json()["errors"]["code"] == "parameter_missing"


# A02


def test_posted_deposit_and_normality(books: Books) -> None:
    deposit = books.deposit(10_000)

    assert deposit.status == "posted"
    assert deposit.posted_at is not None
    assert [entry.status for entry in deposit.ledger_entries] == ["posted", "posted"]
    assert {entry.amount_string for entry in deposit.ledger_entries} == {"10000"}
    cash, alice = books.account(books.cash).balances, books.account(books.alice).balances
    assert (cash.posted_balance.amount, cash.posted_balance.debits) == (10_000, 10_000)
    assert cash.posted_balance.credits == 0
    assert (alice.posted_balance.amount, alice.posted_balance.credits) == (10_000, 10_000)
    assert alice.posted_balance.debits == 0
    assert books.balances(books.cash) == books.balances(books.alice) == (10_000,) * 3
    assert alice.available_balance.currency_exponent == 2


def test_debit_of_a_credit_normal_account_is_negative(books: Books) -> None:
    books.deposit(10_000)
    books.write(debit(books.bob, 250), credit(books.cash, 250))

    bob = books.account(books.bob).balances.posted_balance
    assert (bob.amount, bob.amount_string, bob.debits) == (-250, "-250", 250)
    assert books.balances(books.cash)[0] == 9750


# A03


def test_pending_out_and_pending_in(books: Books) -> None:
    books.deposit(10_000)
    books.write(debit(books.alice, 3000), credit(books.cash, 3000), status="pending")
    assert books.balances(books.alice) == (10_000, 7000, 7000)
    assert books.balances(books.cash) == (10_000, 7000, 7000)

    books.write(debit(books.cash, 2500), credit(books.alice, 2500), status="pending")
    assert books.balances(books.alice) == (10_000, 9500, 7000)
    assert books.balances(books.cash) == (10_000, 9500, 7000)
    alice = books.account(books.alice).balances
    assert (alice.pending_balance.credits, alice.pending_balance.debits) == (12_500, 3000)
    assert (alice.available_balance.credits, alice.available_balance.debits) == (10_000, 3000)


# A07


def test_double_entry_is_enforced_without_side_effects(books: Books) -> None:
    other = new_books(books.client)
    unknown = str(uuid.uuid4())
    many = [debit(books.cash, 1) for _ in range(501)] + [credit(books.alice, 1)] * 500
    refused = {
        "unbalanced": [debit(books.cash, 100), credit(books.alice, 99)],
        "one entry": [debit(books.cash, 100)],
        "no credit": [debit(books.cash, 50), debit(books.alice, 50)],
        "nothing": [],
        "two ledgers": [debit(books.cash, 100), credit(other.alice, 100)],
        "1001 entries": many,
    }
    for what, entries in refused.items():
        with pytest.raises(UnprocessableEntityError):
            books.write(*entries)
            pytest.fail(what)
    with pytest.raises(NotFoundError):
        books.write(debit(books.cash, 100), credit(unknown, 100))

    for id in (books.cash, books.alice, books.bob, other.alice):
        assert books.balances(id) == (0, 0, 0)
        assert books.account(id).lock_version == 0
    assert books.transactions() == []


def test_a_thousand_entries_are_accepted(books: Books) -> None:
    entries = [debit(books.cash, 1)] * 500 + [credit(books.alice, 1)] * 500
    assert len(books.write(*entries).ledger_entries) == 1000
    assert books.balances(books.alice) == (500, 500, 500)


# A08


def test_currencies_balance_each_by_itself(books: Books) -> None:
    def account(name: str, normal: Any, **currency: Any) -> str:
        return books.client.ledger_accounts.create(
            name=name, ledger_id=books.ledger, normal_balance=normal, **currency
        ).id

    euros_in, euros_out = (account("E", side, currency="EUR") for side in ("debit", "credit"))
    books.write(
        debit(books.cash, 100),
        credit(books.alice, 100),
        debit(euros_in, 90),
        credit(euros_out, 90),
    )
    assert books.balances(euros_out) == (90, 90, 90)
    with pytest.raises(UnprocessableEntityError):
        books.write(debit(books.cash, 100), credit(euros_out, 100))
    eth = books.account(account("W", "credit", currency="ETH", currency_exponent=18))
    assert eth.balances.posted_balance.currency_exponent == 18
    for refused in ({"currency": "ETH", "currency_exponent": 31}, {"currency": "PTS"}):
        with pytest.raises(UnprocessableEntityError):
            account("X", "credit", **refused)


# A09


def test_zero_amounts(books: Books) -> None:
    books.deposit(0)
    assert books.balances(books.alice) == (0, 0, 0)


def test_negative_amounts(books: Books) -> None:
    with pytest.raises(UnprocessableEntityError, match="non-negative"):
        books.deposit(-1)


def test_largest_amounts_add_up_exactly(books: Books) -> None:
    books.deposit(M)
    books.deposit(M)
    posted = books.account(books.alice).balances.posted_balance
    assert posted.amount == 2 * M == 1999999999999999999999999999999999998
    assert posted.amount_string == "1999999999999999999999999999999999998"
    with pytest.raises(UnprocessableEntityError):
        books.deposit(M + 1)


def test_amount_as_text(books: Books) -> None:
    written = books.write(
        debit(books.cash, amount_string="1000"), credit(books.alice, amount_string="1000")
    )
    assert [entry.amount for entry in written.ledger_entries] == [1000, 1000]
    agreeing = {"amount_string": "5"}
    books.write(debit(books.cash, 5, **agreeing), credit(books.alice, 5, **agreeing))
    with pytest.raises(UnprocessableEntityError):
        books.write(debit(books.cash, 5, amount_string="6"), credit(books.alice, 5))


# A10


def test_balance_lock(books: Books) -> None:
    def spend(amount: int, status: str = "posted", **lock: Any) -> Any:
        return books.write(
            debit(books.alice, amount, **lock), credit(books.cash, amount), status=status
        )

    floor = {"available_balance_amount": {"gte": 0}}
    books.deposit(7000)
    spend(7000, "pending", **floor)
    assert books.balances(books.alice) == (7000, 0, 0)
    before = books.account(books.alice)
    with pytest.raises(UnprocessableEntityError):
        spend(1, **floor)
    assert books.account(books.alice) == before
    assert len(books.transactions()) == 2

    spend(1)
    assert books.balances(books.alice)[2] == -1
    spend(0, available_balance_amount={"gte": -1, "lt": 0})
    with pytest.raises(UnprocessableEntityError):
        spend(0, available_balance_amount={"gte": -1, "eq": 0})


# A11


@pytest.mark.parametrize(("amount", "is_accepted"), [(200, True), (500, False)])
def test_locks_judge_the_whole_transaction(books: Books, amount: int, is_accepted: bool) -> None:
    entries = (
        credit(books.alice, 500, posted_balance_amount={"eq": amount}),
        debit(books.cash, 500),
        debit(books.alice, 300),
        credit(books.cash, 300),
    )
    if is_accepted:
        books.write(*entries)
        assert books.balances(books.alice)[0] == 200
    else:
        with pytest.raises(UnprocessableEntityError):
            books.write(*entries)


def test_locks_count_the_future(books: Books) -> None:
    books.deposit(100, effective_at=datetime(2099, 1, 1, tzinfo=UTC))
    lock = {"posted_balance_amount": {"gte": 0}}
    books.write(debit(books.alice, 100, **lock), credit(books.cash, 100))
    assert books.balances(books.alice) == (0, 0, 0)


# A12


def test_lock_version(books: Books) -> None:
    books.deposit(1000)
    version = books.account(books.alice).lock_version
    assert version == 1
    locked = debit(books.alice, 10, lock_version=version), credit(books.cash, 10)
    written = books.write(*locked).ledger_entries[0].ledger_account_lock_version
    assert written == books.account(books.alice).lock_version == 2

    with pytest.raises(UnprocessableEntityError) as refused:
        books.write(*locked)
    assert refused.value.body["errors"]["code"] == "parameter_invalid"  # type: ignore[index]
    assert refused.value.body["errors"]["parameter"] == "ledger_entries"  # type: ignore[index]


def test_lock_version_in_a_race(books: Books) -> None:
    books.deposit(1000)
    locked = debit(books.alice, 10, lock_version=1), credit(books.cash, 10)
    outcomes = at_once(10, lambda: books.write(*locked))
    assert sorted(outcomes) == [201] + [422] * 9


# A13


def test_concurrent_spend(books: Books) -> None:
    books.deposit(1000)
    spend = (
        debit(books.alice, 100, available_balance_amount={"gte": 0}),
        credit(books.cash, 100),
    )
    outcomes = at_once(20, lambda: books.write(*spend))
    assert sorted(outcomes) == [201] * 10 + [422] * 10
    assert books.balances(books.alice) == (0, 0, 0)
    assert books.balances(books.cash) == (0, 0, 0)
    entries = list(books.client.ledger_entries.list(per_page=100))
    for direction in ("debit", "credit"):
        assert sum(e.amount for e in entries if e.direction == direction) == 2000


def at_once(count: int, request: Callable[[], Any]) -> list[int]:
    """Status of each of `count` requests that start together."""
    start = threading.Barrier(count)

    def attempt(_: int) -> int:
        start.wait()
        try:
            request()
        except UnprocessableEntityError as refused:
            return refused.status_code
        return 201

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(attempt, range(count)))


# A14


def test_resulting_balances(books: Books) -> None:
    books.deposit(1000)
    shown = {"show_resulting_ledger_account_balances": True}
    written = books.write(debit(books.alice, 400, **shown), credit(books.cash, 400))
    of_alice, of_cash = written.ledger_entries
    resulting = of_alice.resulting_ledger_account_balances
    assert resulting is not None
    assert resulting.posted_balance.amount == resulting.pending_balance.amount == 600
    assert resulting.available_balance.amount == 600
    assert (resulting.posted_balance.credits, resulting.posted_balance.debits) == (1000, 400)
    assert of_cash.resulting_ledger_account_balances is None

    books.deposit(50)
    retrieve = books.client.ledger_entries.retrieve
    assert retrieve(of_alice.id, show_balances=True).resulting_ledger_account_balances == resulting
    assert retrieve(of_alice.id).resulting_ledger_account_balances is None
    assert retrieve(of_cash.id, show_balances=True).resulting_ledger_account_balances is None


# A16


def test_external_ids_of_transactions(
    books: Books, counting: Callable[..., ModernTreasury], attempts: list[httpx.Request]
) -> None:
    transactions = books.client.ledger_transactions
    first = books.deposit(1, status="pending", external_id="o-1")
    with pytest.raises(UnprocessableEntityError) as refused:
        books.deposit(1, status="pending", external_id="o-1")
    assert refused.value.body["errors"]["parameter"] == "external_id"  # type: ignore[index]
    assert transactions.retrieve("o-1").id == first.id

    transactions.update(first.id, status="archived")
    with pytest.raises(NotFoundError):
        transactions.retrieve("o-1")
    second = books.deposit(1, external_id="o-1")
    assert transactions.retrieve("o-1").id == second.id

    new_books(books.client).deposit(1, external_id="o-1")
    with counting() as client, pytest.raises(ConflictError):
        client.ledger_transactions.retrieve("o-1")
    assert len(attempts) == 1


UUID_LIKE = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


@pytest.mark.parametrize("external_id", ["savings", "a/b c", "?#%&+=é", UUID_LIKE])
def test_external_ids_of_accounts(books: Books, external_id: str) -> None:
    account = books.client.ledger_accounts.create(
        name="S",
        ledger_id=books.ledger,
        normal_balance="credit",
        currency="USD",
        external_id=external_id,
    )
    assert books.client.ledger_accounts.retrieve(external_id) == account


# A17


def test_idempotency_key_gives_the_first_answer(access: Access, books: Books) -> None:
    first = books.deposit(10, idempotency_key="k")
    assert books.deposit(10, idempotency_key="k") == first
    assert len(books.transactions()) == 1


def test_idempotency_key_gives_the_same_bytes_on_any_route(access: Access, books: Books) -> None:
    body = {"ledger_entries": [debit(books.cash, 3), credit(books.alice, 3)]}
    ledgers_before = len(list(books.client.ledgers.list()))
    headers = {"Idempotency-Key": "k"}
    with access.http(headers=headers) as http:
        first = http.post("/api/ledger_transactions", json=body)
        again = http.post("/api/ledger_transactions", json=body)
        elsewhere = http.post("/api/ledgers", json={"name": "n"})
    assert first.status_code == again.status_code == elsewhere.status_code == 201
    assert first.content == again.content == elsewhere.content
    assert len(list(books.client.ledgers.list())) == ledgers_before


def test_failures_are_not_kept(books: Books) -> None:
    key = {"idempotency_key": "f"}
    with pytest.raises(UnprocessableEntityError):
        books.write(debit(books.cash, 5), credit(books.alice, 6), **key)
    assert books.deposit(5, **key).status == "posted"


def test_idempotency_keys_belong_to_an_api_key(access: Access, books: Books) -> None:
    first = books.deposit(10, idempotency_key="k")
    with access.sdk(api_key=access.other_api_key) as other:
        second = Books(other, books.ledger, books.cash, books.alice, books.bob).deposit(
            10, idempotency_key="k"
        )
    assert first.id != second.id


def test_client_that_hangs_up_finds_its_effect(access: Access, books: Books) -> None:
    body = {"ledger_entries": [debit(books.cash, 3), credit(books.alice, 3)], "status": "posted"}
    send_and_hang_up(access, "/api/ledger_transactions", body, "h")
    with access.http(headers={"Idempotency-Key": "h"}) as http:
        # The first attempt may be in flight still: 409 says so, and the SDK would try again.
        while (answer := http.post("/api/ledger_transactions", json=body)).status_code == 409:
            assert answer.headers["x-should-retry"] == "true"
    assert answer.status_code == 201
    assert [transaction.id for transaction in books.transactions()] == [answer.json()["id"]]
    assert books.balances(books.alice) == (3, 3, 3)


def send_and_hang_up(access: Access, path: str, body: object, key: str) -> None:
    """A whole request without waiting for its answer."""
    address = urlsplit(access.base_url)
    credentials = base64.b64encode(f"{access.organization_id}:{access.api_key}".encode()).decode()
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Basic {credentials}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        f"Idempotency-Key: {key}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(head.encode() + content)


# A18


@pytest.fixture
def sixty(client: ModernTreasury) -> str:
    """A ledger with accounts a00 to a59."""
    ledger = client.ledgers.create(name="L").id
    for number in range(60):
        client.ledger_accounts.create(
            name=f"a{number:02}", ledger_id=ledger, normal_balance="credit", currency="USD"
        )
    return ledger


def test_pages(client: ModernTreasury, sixty: str) -> None:
    lists = client.ledger_accounts
    page = lists.list(ledger_id=sixty, per_page=25)
    sizes = [len(page.items)]
    assert page.per_page == 25
    while page.has_next_page():
        page = page.get_next_page()
        sizes.append(len(page.items))
    assert sizes == [25, 25, 10]
    assert not page.after_cursor
    assert len({account.id for account in lists.list(ledger_id=sixty, per_page=25)}) == 60
    assert len(lists.list(ledger_id=sixty).items) == 25
    assert len(lists.list(ledger_id=sixty, per_page=100).items) == 60


def test_last_page_has_no_cursor(access: Access, sixty: str) -> None:
    with access.http() as http:
        answer = http.get("/api/ledger_accounts", params={"ledger_id": sixty, "per_page": 60})
        assert len(answer.json()) == 60
        assert answer.headers["x-per-page"] == "60"
        assert "x-after-cursor" not in answer.headers


def test_filters(client: ModernTreasury, books: Books, sixty: str) -> None:
    lists = client.ledger_accounts
    by_name = list(lists.list(ledger_id=sixty, name=["a01", "a02"]))
    assert sorted(account.name for account in by_name) == ["a01", "a02"]
    three = [account.id for account in lists.list(ledger_id=sixty).items[:3]]
    assert {account.id for account in lists.list(id=three)} == set(three)
    for account in lists.list(id=three):
        assert lists.retrieve(account.id) == account

    labelled = client.ledger_accounts.create(
        name="x",
        ledger_id=sixty,
        normal_balance="credit",
        currency="USD",
        metadata={"Entity Type": "Loan Funding", "s": "CA"},
    )
    both = lists.list(metadata={"Entity Type": "Loan Funding", "s": "CA"})
    assert [account.id for account in both] == [labelled.id]
    assert not list(lists.list(metadata={"Entity Type": "Loan Funding", "s": "NY"}))

    books.deposit(5)
    touched = lists.list(ledger_id=books.ledger, posted_balance_amount={"not_eq": 0})
    assert {account.id for account in touched} == {books.cash, books.alice}


def test_times_of_python(client: ModernTreasury, sixty: str) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    lists = client.ledger_accounts
    assert len(lists.list(ledger_id=sixty, created_at={"gte": past}, per_page=100).items) == 60
    assert not lists.list(ledger_id=sixty, created_at={"lt": past}).items
    naive = past.replace(tzinfo=None)
    assert len(lists.list(ledger_id=sixty, created_at={"gt": naive}, per_page=100).items) == 60
