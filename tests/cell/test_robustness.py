"""Method: bad and odd input over raw HTTP, one case each: a status and the parameter it is about,
never a 5xx, nothing written. Asks nothing but the fixture `access`, so that the same table holds
for a cell and for a router before it.

What is no matter of content has its own tests: framing, headers and paths in `tests/router`,
credentials and media types in `test_api`, races and repeats in `test_scenarios`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from cell_process import Access

UNKNOWN = "00000000-0000-7000-8000-000000000000"
TRANSACTIONS = "/api/ledger_transactions"
AMOUNT = "ledger_entries[0].amount"
AMOUNT_STRING = "ledger_entries[0].amount_string"


@dataclass(frozen=True)
class Books:
    http: httpx.Client
    ledger: str
    cash: str
    alice: str
    euro: str

    def balances(self) -> dict[str, Any]:
        accounts = self.http.get("/api/ledger_accounts").raise_for_status().json()
        return {account["id"]: account["balances"] for account in accounts}

    def entries(self, debit: str = "1", credit: str = "1", key: str = "amount") -> str:
        """The JSON of two entries; amounts are raw text."""
        return ", ".join(
            f'{{"ledger_account_id": "{id}", "direction": "{direction}", "{key}": {amount}}}'
            for id, direction, amount in (
                (self.cash, "debit", debit),
                (self.alice, "credit", credit),
            )
        )

    def post(self, body: str | bytes, path: str = TRANSACTIONS) -> httpx.Response:
        content = body.encode() if isinstance(body, str) else body
        return self.http.post(path, content=content, headers={"content-type": "application/json"})

    def write(self, debit: str, credit: str | None = None, key: str = "amount") -> httpx.Response:
        entries = self.entries(debit, debit if credit is None else credit, key)
        return self.post(f'{{"status": "posted", "ledger_entries": [{entries}]}}')


@pytest.fixture
def books(access: Access) -> Iterator[Books]:
    with access.http() as http:
        ledger = http.post("/api/ledgers", json={"name": "n"}).json()["id"]
        ids = [
            http.post(
                "/api/ledger_accounts",
                json={
                    "ledger_id": ledger,
                    "name": "a",
                    "normal_balance": normal,
                    "currency": currency,
                },
            ).json()["id"]
            for normal, currency in (("debit", "USD"), ("credit", "USD"), ("credit", "EUR"))
        ]
        yield Books(http, ledger, *ids)


def refused(answer: httpx.Response, status: int, parameter: str | None = None) -> None:
    assert answer.status_code == status, answer.text[:300]
    errors = answer.json()["errors"]
    assert errors["code"]
    assert errors["message"]
    if parameter is not None:
        assert errors.get("parameter") == parameter, errors


AMOUNTS: list[tuple[str, int]] = [
    ("0", 201),
    ("9223372036854775808", 201),
    (str(10**36 - 1), 201),
    ("-1", 422),
    (str(10**36), 422),
    (str(10**40), 422),
    ("9" * 5000, 400),
    ("1.5", 422),
    ("1.0", 422),
    ("1e2", 422),
    ("true", 422),
    ("null", 422),
    ("[]", 422),
    ('"1"', 422),
    ("007", 400),
    ("+1", 400),
    ("0x10", 400),
    ("NaN", 400),
    ("Infinity", 400),
    ("-Infinity", 400),
    ("-0", 400),
    ("1e400", 400),
    ("1_000", 400),
    ("'1'", 400),
]
AMOUNT_STRINGS = ["", "1_000", " 7 ", "0x10", "١٢", "-1", "+1", "1.0", "1e2", "9" * 37, "\\n1"]


def test_amounts(books: Books) -> None:
    """One tenant for all: its balances must be the sum of what was accepted, to the digit."""
    total = 0
    for amount, status in AMOUNTS:
        answer = books.write(amount)
        if status == 201:
            assert answer.status_code == 201, (amount, answer.text)
            assert answer.json()["ledger_entries"][0]["amount"] == int(amount)
            total += int(amount)
        else:
            refused(answer, status, AMOUNT if status == 422 else None)
    for text in AMOUNT_STRINGS:
        refused(books.write(f'"{text}"', key="amount_string"), 422, AMOUNT_STRING)
    # The balance has 37 digits.
    assert books.write(str(10**36 - 1)).status_code == 201
    total += 10**36 - 1
    balances = books.balances()
    for id in (books.cash, books.alice):
        assert balances[id]["posted_balance"]["amount"] == total
        assert balances[id]["posted_balance"]["amount_string"] == str(total)


def test_entries_that_make_no_transaction(books: Books) -> None:
    before = books.balances()
    one = f'{{"ledger_account_id": "{books.cash}", "direction": "debit", "amount": 1}}'
    euro = one.replace(books.cash, books.euro).replace("debit", "credit")
    for entries, status, parameter in [
        (books.entries("1", "2"), 422, "ledger_entries"),
        (f"{one}, {euro}", 422, "ledger_entries"),
        (one, 422, "ledger_entries"),
        (f"{one}, {one}", 422, "ledger_entries"),
        ("", 422, "ledger_entries"),
        (", ".join([one] * 1001), 422, "ledger_entries"),
        (books.entries().replace(books.alice, UNKNOWN), 404, None),
        (books.entries().replace(books.alice, "x"), 422, "ledger_entries[1].ledger_account_id"),
        (books.entries().replace("credit", "CREDIT"), 422, "ledger_entries[1].direction"),
        (one.replace("}", ', "amount": 2}'), 400, "amount"),
        ("null, null", 422, None),
    ]:
        refused(books.post(f'{{"ledger_entries": [{entries}]}}'), status, parameter)
    for body in (
        "{}",
        '{"ledger_entries": null}',
        '{"ledger_entries": {}}',
        '{"ledger_entries": "x"}',
    ):
        refused(books.post(body), 422, "ledger_entries")
    # The same account on both sides is none of them.
    both = books.entries().replace(books.alice, books.cash)
    assert books.post(f'{{"ledger_entries": [{both}]}}').status_code == 201
    refused(books.http.get(f"{TRANSACTIONS}/{UNKNOWN}"), 404)
    assert len(books.http.get(TRANSACTIONS).json()) == 1
    changed = books.balances()
    assert changed.pop(books.cash)["posted_balance"] == before.pop(books.cash)["posted_balance"]
    assert changed == before


BODIES: list[tuple[str, bytes, int, str | None]] = [
    ("trailing bytes", b'{"name": "n"} x', 400, None),
    ("two documents", b'{"name": "n"}{"name": "n"}', 400, None),
    ("comment", b'{"name": "n"} // c', 400, None),
    ("single quotes", b"{'name': 'n'}", 400, None),
    ("trailing comma", b'{"name": "n",}', 400, None),
    ("nothing", b"", 400, None),
    ("spaces", b"   ", 400, None),
    ("null", b"null", 422, None),
    ("array", b"[]", 422, None),
    ("text", b'"n"', 422, None),
    ("byte order mark", b'\xef\xbb\xbf{"name": "n"}', 400, None),
    ("UTF-16", '{"name": "n"}'.encode("utf-16"), 400, None),
    ("invalid UTF-8", b'{"name": "\xff"}', 400, None),
    ("overlong UTF-8", b'{"name": "\xc0\xaf"}', 400, None),
    ("surrogate in UTF-8", b'{"name": "\xed\xa0\x80"}', 400, None),
    ("lone surrogate", b'{"name": "\\ud800"}', 400, None),
    ("NUL escaped", b'{"name": "\\u0000"}', 400, None),
    ("NUL in a key", b'{"name": "n", "metadata": {"\\u0000": "v"}}', 400, None),
    ("NUL raw", b'{"name": "\x00"}', 400, None),
    ("raw line feed", b'{"name": "a\nb"}', 400, None),
    ("duplicate key", b'{"name": "a", "name": "a"}', 400, "name"),
    ("duplicate escaped", b'{"name": "a", "n\\u0061me": "a"}', 400, "name"),
    (
        "duplicate deep",
        b'{"name": "a", "metadata": {"k": "1", "k": "2"}}',
        400,
        "k",
    ),
    ("33 levels", b'{"name": "n", "x": ' + b"[" * 32 + b"]" * 32 + b"}", 400, None),
    ("100,000 levels", b"[" * 100_000, 400, None),
    ("a million commas", b"[" + b"0," * 1_000_000 + b"0]", 413, None),
    (
        "metadata of 10^5 keys",
        b"{%s}" % b",".join(b'"%d":"v"' % n for n in range(10**5)),
        422,
        "name",
    ),
    ("a misspelled field", b'{"nam": "n"}', 422, "name"),
]


def test_bodies(books: Books) -> None:
    for name, body, status, parameter in BODIES:
        answer = books.post(body, "/api/ledgers")
        assert answer.status_code == status, (name, answer.text[:300])
        refused(answer, status, parameter)
    assert len(books.http.get("/api/ledgers").json()) == 1


def test_bodies_that_are_odd_and_good(books: Books) -> None:
    deep = '{"name": "n", "x": ' + "[" * 31 + "]" * 31 + "}"
    for body in (deep, '{"name": "n", "unknown": 1.5e300}', '{"name": "\\ud83d\\ude00"}'):
        assert books.post(body, "/api/ledgers").status_code == 201


def test_fields(books: Books) -> None:
    account = {
        "ledger_id": books.ledger,
        "name": "a",
        "normal_balance": "debit",
        "currency": "USD",
    }
    for change, status, parameter in [
        ({"currency": "PTS"}, 422, "currency_exponent"),
        ({"currency": "PTS", "currency_exponent": 31}, 422, "currency_exponent"),
        ({"currency": "PTS", "currency_exponent": -1}, 422, "currency_exponent"),
        ({"currency_exponent": 3}, 422, "currency_exponent"),
        ({"currency": ""}, 422, "currency"),
        ({"normal_balance": "both"}, 422, "normal_balance"),
        ({"ledger_id": UNKNOWN}, 404, None),
        ({"ledger_id": "x"}, 422, "ledger_id"),
        ({"external_id": ""}, 422, "external_id"),
        ({"external_id": "e" * 181}, 422, "external_id"),
        ({"external_id": "a\u0001b"}, 422, "external_id"),
        ({"ledgerable_type": "counterparty"}, 422, "ledgerable_id"),
        ({"ledgerable_id": "x"}, 422, "ledgerable_type"),
        ({"metadata": {"k": 1}}, 422, "metadata"),
        ({"metadata": {str(n): "v" for n in range(201)}}, 422, "metadata"),
    ]:
        refused(books.http.post("/api/ledger_accounts", json=account | change), status, parameter)
    entries = json.loads(f"[{books.entries()}]")
    for at in ("0000-01-01", "10000-01-01", str(10**18), "2024-02-30", "2024-01-01T00:00:60Z",
               "2024-01-01T25:00:00Z", "now", "", "0001-01-01T00:00:00+01:00"):  # fmt: skip
        body = {"ledger_entries": entries, "effective_at": at}
        refused(books.http.post(TRANSACTIONS, json=body), 422, "effective_at")
    for at in ("9999-12-31T23:59:59.999999Z", "0001-01-01", "2024-01-01T00:00:00"):
        body = {"ledger_entries": entries, "effective_at": at}
        written = books.http.post(TRANSACTIONS, json=body)
        assert written.status_code == 201
        assert written.json()["effective_at"].startswith(at[:10])


def test_queries(books: Books) -> None:
    get = books.http.get
    for query, status, parameter in [
        ("per_page=0", 422, "per_page"),
        ("per_page=-1", 422, "per_page"),
        ("per_page=1.5", 422, "per_page"),
        ("per_page=", 422, "per_page"),
        ("per_page=%D9%A1", 422, "per_page"),
        ("after_cursor=x", 400, "after_cursor"),
        ("after_cursor=" + "A" * 40, 400, "after_cursor"),
        ("after_cursor=" + UNKNOWN, 400, "after_cursor"),
        ("order_by[created_at]=up", 422, "order_by"),
        ("order_by[name]=asc", 422, "order_by"),
        ("order_by[created_at]=asc&order_by[effective_at]=asc", 422, "order_by"),
        ("effective_at[gte]=soon", 422, "effective_at"),
        ("effective_at[between]=2024-01-01", 422, "effective_at"),
        ("effective_at=2024-01-01", 422, "effective_at"),
        ("amount[gt]=" + "9" * 61, 422, "amount"),
        ("amount[gt]=1e3", 422, "amount"),
        ("id[]=x", 422, "id"),
        ("status=open", 422, "status"),
        ("status%00=posted", 422, None),
        ("external_id=%00", 422, "external_id"),
        ("external_id=%ff", 400, None),
        ("metadata[k", 422, "metadata"),
        ("metadata[k]=1&metadata[k]=2", 422, "metadata"),
        ("&".join(["x=1"] * 1001), 400, None),
    ]:
        refused(get(f"{TRANSACTIONS}?{query}"), status, parameter)
    for query in (
        "per_page=1000000000",
        "per_page=" + "9" * 400,
        "amount[gt]=-" + "9" * 60,
        "effective_at[gte]=0001-01-01",
        "external_id=%27%3B--",
        "metadata[%27]=%25s",
    ):
        assert get(f"{TRANSACTIONS}?{query}").status_code == 200
    assert get(f"{TRANSACTIONS}?per_page=1000000000").headers["x-per-page"] == "100"
