"""The table of bad and odd input, as far as a row of it is one request: each with its status, its
code and the parameter it is about. `@name` in a path or body is the id of something in the books.

Rows have the numbers of the design's table; what is no single request is in `test_robustness`.
"""

import gzip
import json
from dataclasses import dataclass, field
from typing import Any

import httpx

TRANSACTIONS = "/api/ledger_transactions"
ACCOUNTS = "/api/ledger_accounts"
LEDGERS = "/api/ledgers"
ENTRIES = "ledger_entries"
TRANSACTION = "ledger_transaction"
SECOND = "ledger_entries[1]"
AMOUNT = "ledger_entries[0].amount"
AMOUNT_STRING = "ledger_entries[0].amount_string"
LARGEST = 10**36 - 1
CODES = {
    400: "parameter_invalid",
    404: "resource_not_found",
    405: "not_found",
    413: "parameter_invalid",
    415: "header_invalid",
    422: "parameter_invalid",
}
"""What an error is called unless a case says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    row: int
    name: str
    method: str
    path: str
    body: str | bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int
    parameter: str | None = None
    code: str | None = None
    routers_code: str | None = None
    """Where the router itself refuses what the cell would refuse with the same status."""
    shows: str = ""
    """Text that the answer must hold."""

    def __str__(self) -> str:
        return f"{self.row:02}-{self.name}"

    @property
    def expected_code(self) -> str:
        return self.code or CODES.get(self.status, "")

    @property
    def expected_through_router(self) -> str:
        return self.routers_code or self.expected_code

    def check(self, answer: httpx.Response, code: str) -> None:
        """Assert that it is answered so."""
        assert answer.status_code == self.status, answer.text[:300]
        assert self.shows in answer.text
        # To HEAD no body is answered.
        if self.status >= 400 and self.method != "HEAD":
            errors = answer.json()["errors"]
            assert (errors["code"], errors.get("parameter")) == (code, self.parameter)
            assert errors["message"]


def entry(
    account: str = "@cash", direction: str = "debit", amount: str = "1", key: str = "amount"
) -> str:
    """The JSON of an entry; the amount is raw text."""
    named = f'"ledger_account_id": "{account}", "direction": "{direction}"'
    return f'{{{named}, "{key}": {amount}}}'


def both(
    debit: str = "1", credit: str | None = None, key: str = "amount", to: str = "@alice"
) -> str:
    other = debit if credit is None else credit
    return entry(amount=debit, key=key) + ", " + entry(to, "credit", other, key)


def of(entries: str, more: str = "") -> str:
    return f'{{"status": "posted", "ledger_entries": [{entries}]{more}}}'


def post(
    row: int, name: str, body: str | bytes, status: int, parameter: str | None = None, **more: Any
) -> Case:
    path = more.pop("path", TRANSACTIONS)
    fields: dict[str, Any] = {"body": body, "status": status, "parameter": parameter, **more}
    return Case(row=row, name=name, method="POST", path=path, **fields)


def get(row: int, query: str, status: int, parameter: str | None = None, **more: Any) -> Case:
    path = more.pop("path", TRANSACTIONS) + query
    name = more.pop("name", query.lstrip("?/")[:40])
    fields: dict[str, Any] = {"status": status, "parameter": parameter, **more}
    return Case(row=row, name=name, method="GET", path=path, **fields)


def account(
    row: int, name: str, change: dict[str, Any], status: int, *about: Any, **more: Any
) -> Case:
    whole = {"ledger_id": "@ledger", "name": "a", "normal_balance": "debit", "currency": "USD"}
    return post(row, name, json.dumps(whole | change), status, *about, path=ACCOUNTS, **more)


def ledger(row: int, name: str, body: str | bytes, status: int, *about: Any, **more: Any) -> Case:
    return post(row, name, body, status, *about, path=LEDGERS, **more)


def amount(row: int, text: str, status: int, name: str = "") -> Case:
    about = {422: AMOUNT, 201: None, 400: None}[status]
    shows = f'"amount":{text},"amount_string":"{text}"' if status == 201 else ""
    return post(row, name or text, of(both(text)), status, about, shows=shows)


def amount_string(row: int, text: str, name: str = "") -> Case:
    body = of(both(f'"{text}"', key="amount_string"))
    return post(row, name or f"text-{text}", body, 422, AMOUNT_STRING)


AMOUNTS = [
    amount(1, "-1", 422),
    amount_string(1, "-1"),
    amount(2, "0", 201),
    amount(3, "9223372036854775808", 201),
    amount(3, "99999999999999999999", 201),
    amount(4, str(LARGEST), 201, "36 digits"),
    amount(4, str(10**36), 422, "37 digits"),
    amount(4, str(10**40), 422, "41 digits"),
    amount(4, "9" * 5000, 400, "5000 digits"),
    amount_string(4, "9" * 37, "text of 37 digits"),
    amount(6, "1.5", 422),
    amount(6, "1.0", 422),
    amount(6, "1e2", 422),
    amount(6, "007", 400),
    amount(6, "+1", 400),
    amount(6, "0x10", 400),
    amount(6, "1_000", 400),
    amount_string(6, "1.0"),
    amount_string(6, "1e2"),
    amount_string(6, "+1"),
    amount(7, '"1"', 422),
    amount(7, "'1'", 400),
    amount_string(7, "1_000"),
    amount_string(7, " 7 ", "text with spaces"),
    amount_string(7, "0x10"),
    amount_string(7, "١٢", "Arabic digits"),
    amount_string(7, "", "no text"),
    amount_string(7, "\\n1", "line feed"),
    amount(8, "true", 422),
    amount(8, "null", 422),
    amount(8, "[]", 422),
    amount(10, "NaN", 400),
    amount(10, "Infinity", 400),
    amount(10, "-Infinity", 400),
    amount(10, "-0", 400),
    amount(10, "1e400", 400),
]

RULES = [
    post(11, "unbalanced", of(both("1", "3")), 422, ENTRIES,
         shows="unbalanced in USD: debits minus credits is -2"),
    post(11, "debits only", of(f"{entry()}, {entry()}"), 422, ENTRIES),
    post(12, "dollars against euros", of(both(to="@euro")), 422, ENTRIES,
         shows="unbalanced in USD: debits minus credits is 1"),
    post(13, "one entry", of(entry()), 422, ENTRIES),
    post(13, "no entry", of(""), 422, ENTRIES),
    post(13, "1001 entries", of(", ".join([both()] * 500 + [entry()])), 422, ENTRIES),
    post(14, "one account on both sides", of(both(to="@cash")), 201),
    post(15, "unknown account", of(both(to="@unknown")), 404, ENTRIES),
    post(15, "account of another tenant", of(both(to="@their-alice")), 404, ENTRIES),
    post(15, "no id at all", of(both(to="x")), 422, f"{SECOND}.ledger_account_id"),
    # The API knows no frozen account; a closed one is a discarded one.
    post(16, "closed account", of(both(to="@closed")), 422, ENTRIES, shows="is discarded"),
    account(17, "currency without an exponent", {"currency": "PTS"}, 422, "currency_exponent",
            code="parameter_missing"),
    account(17, "exponent 31", {"currency": "PTS", "currency_exponent": 31}, 422,
            "currency_exponent"),
    account(17, "exponent -1", {"currency": "PTS", "currency_exponent": -1}, 422,
            "currency_exponent"),
    account(17, "no currency", {"currency": ""}, 422, "currency"),
    account(18, "dollars of another exponent", {"currency_exponent": 3}, 422,
            "currency_exponent"),
    Case(row=18, name="euros among dollars", method="PUT", status=422,
         path="/api/ledger_account_categories/@category/ledger_accounts/@euro",
         parameter="ledger_account_id"),
    account(15, "unknown ledger", {"ledger_id": "@unknown"}, 404, "ledger_id"),
    account(15, "ledger of another tenant", {"ledger_id": "@their-ledger"}, 404, "ledger_id"),
    account(15, "no id of a ledger", {"ledger_id": "x"}, 422, "ledger_id"),
    post(19, "lock that does not hold",
         of(entry("@alice", amount='1, "posted_balance_amount": {"lt": 0}') + ", "
            + entry("@cash", "credit")), 422, ENTRIES),
    *(
        Case(row=25, name=f"{method} {what} of another tenant", method=method, status=404,
             path=f"/api/{path}/@their-{what}", body=body, parameter=parameter if body else None)
        for path, what, parameter in (
            ("ledgers", "ledger", "ledger_id"), ("ledger_accounts", "alice", None),
            ("ledger_transactions", "held", None), ("ledger_account_categories", "category", None),
        )
        for method, body in (("GET", None), ("PATCH", '{"metadata": {"k": "v"}}'))
    ),
    get(25, "?ledger_id=@their-ledger", 200, shows="[]", name="filter by another tenant's ledger"),
]  # fmt: skip


def key_case(name: str, key: str) -> Case:
    body = '{"name": "n"}'
    headers = {"idempotency_key": key}
    return ledger(24, name, body, 422, "Idempotency-Key", code="header_invalid", headers=headers)


KEYS = [
    key_case("256 characters", "k" * 256),
    key_case("empty", ""),
    key_case("tab", "a\tb"),
    key_case("non-ASCII", "é"),
]

METADATA = [
    account(26, "201 keys", {"metadata": {str(n): "v" for n in range(201)}}, 422, "metadata"),
    account(26, "99,000 keys", {"metadata": {str(n): "v" for n in range(99_000)}}, 422, "metadata"),
    # No body has so many values, wherever they are: it is not even looked at.
    account(26, "100,000 keys", {"metadata": {str(n): "v" for n in range(10**5)}}, 413),
    account(26, "long key", {"metadata": {"k" * 256: "v"}}, 422, "metadata"),
    account(26, "long value", {"metadata": {"k": "v" * 1001}}, 422, "metadata"),
    account(27, "number as a value", {"metadata": {"k": 1}}, 422, "metadata"),
    account(27, "empty key", {"metadata": {"": "v"}}, 422, "metadata"),
    get(27, "?metadata[%27]=%25s", 200, shows="[]"),
    get(27, "?metadata[k", 422, "metadata"),
    get(27, "?metadata[k]=1&metadata[k]=2", 422, "metadata"),
]

TEXTS = [
    ledger(28, "invalid UTF-8", b'{"name": "\xff"}', 400),
    ledger(28, "overlong UTF-8", b'{"name": "\xc0\xaf"}', 400),
    ledger(28, "surrogate in UTF-8", b'{"name": "\xed\xa0\x80"}', 400),
    ledger(28, "lone surrogate", b'{"name": "\\ud800"}', 400),
    ledger(28, "UTF-16", '{"name": "n"}'.encode("utf-16"), 400),
    ledger(28, "byte order mark", b'\xef\xbb\xbf{"name": "n"}', 400),
    ledger(28, "surrogate pair", '{"name": "\\ud83d\\ude00"}', 201, shows="😀"),
    get(28, "?external_id=%ff", 400),
    get(28, "/%ff", 400, path=ACCOUNTS),
    get(28, "/%c0%80", 400, path=ACCOUNTS),
    ledger(29, "NUL escaped", b'{"name": "\\u0000"}', 400),
    ledger(29, "NUL in a key", b'{"name": "n", "metadata": {"\\u0000": "v"}}', 400),
    ledger(29, "NUL raw", b'{"name": "\x00"}', 400),
    ledger(29, "raw line feed", b'{"name": "a\nb"}', 400),
    account(29, "control character in an id", {"external_id": "a\u0001b"}, 422, "external_id"),
    account(29, "empty external id", {"external_id": ""}, 422, "external_id"),
    account(29, "long external id", {"external_id": "e" * 181}, 422, "external_id"),
    get(29, "?external_id=%00", 422, "external_id"),
    get(29, "?external_id=%27%3B--", 200, shows="[]"),
    get(29, "?status%00=posted", 422, "status"),
]

COMMAS = b"[" + b"0," * 1_000_000 + b"0]"
MANY_KEYS = b"{%s}" % b",".join(b'"%d":"v"' % n for n in range(10**6))
BRACKETS = b"[" * 100_000

JSONS = [
    ledger(30, "duplicate key", b'{"name": "a", "name": "a"}', 400, "name"),
    ledger(30, "duplicate escaped", b'{"name": "a", "n\\u0061me": "a"}', 400, "name"),
    ledger(30, "duplicate deep", b'{"name": "a", "metadata": {"k": "1", "k": "2"}}', 400, "k"),
    post(30, "two amounts", of(both('1, "amount": 1')), 400, "amount"),
    ledger(31, "33 levels", b'{"name": "n", "x": ' + b"[" * 32 + b"]" * 32 + b"}", 400),
    ledger(31, "32 levels", b'{"name": "n", "x": ' + b"[" * 31 + b"]" * 31 + b"}", 201),
    ledger(31, "100,000 levels", BRACKETS, 400),
    ledger(31, "a million commas", COMMAS, 413),
    ledger(31, "a million keys", MANY_KEYS, 413),
    get(31, "?" + "&".join(["x=1"] * 1001), 400, name="1001 parameters"),
    ledger(32, "misspelled field", b'{"nam": "n"}', 422, "name", code="parameter_missing"),
    ledger(32, "nothing in it", b"{}", 422, "name", code="parameter_missing"),
    ledger(32, "unknown field", '{"name": "n", "unknown": 1.5e300}', 201),
    post(32, "no entries", "{}", 422, ENTRIES, code="parameter_missing"),
    post(32, "entries null", '{"ledger_entries": null}', 422, ENTRIES),
    post(32, "entries an object", '{"ledger_entries": {}}', 422, ENTRIES),
    post(32, "entries of null", of("null, null"), 422, "ledger_entries[0]"),
    post(32, "misspelled amount", of(both(key="amout")), 422, AMOUNT, code="parameter_missing"),
    post(32, "direction in capitals", of(both().replace("credit", "CREDIT")), 422,
         f"{SECOND}.direction"),
    ledger(32, "name a number", '{"name": 1}', 422, "name"),
    ledger(32, "name empty", '{"name": ""}', 422, "name"),
    ledger(32, "description too long", json.dumps({"name": "n", "description": "d" * 1001}), 422,
           "description"),
    ledger(32, "name too long", json.dumps({"name": "n" * 1001}), 422, "name"),
    account(32, "unknown normal balance", {"normal_balance": "both"}, 422, "normal_balance"),
    account(32, "half a ledgerable", {"ledgerable_type": "counterparty"}, 422, "ledgerable_id",
            code="parameter_missing"),
    account(32, "the other half", {"ledgerable_id": "x"}, 422, "ledgerable_type",
            code="parameter_missing"),
    ledger(33, "trailing bytes", b'{"name": "n"} x', 400),
    ledger(33, "two documents", b'{"name": "n"}{"name": "n"}', 400),
    ledger(33, "comment", b'{"name": "n"} // c', 400),
    ledger(33, "single quotes", b"{'name': 'n'}", 400),
    ledger(33, "trailing comma", b'{"name": "n",}', 400),
    ledger(33, "half an object", b"{", 400),
    ledger(33, "no bytes", b"", 400),
    ledger(33, "spaces", b"   ", 400),
    ledger(33, "null", b"null", 422),
    ledger(33, "array", b"[]", 422),
    ledger(33, "text", b'"n"', 422),
]  # fmt: skip

NAMED = b'{"name": "n"}'
BOMB = gzip.compress(b'{"name": "' + b"n" * 10_000_000 + b'"}')
assert len(BOMB) < 10_000_000 / 900


def typed(row: int, name: str, status: int, body: bytes = NAMED, **headers: str) -> Case:
    about = {"content_type": "Content-Type", "content_encoding": "Content-Encoding"}
    parameter = about[list(headers)[-1]] if status == 415 else None
    return ledger(row, name, body, status, parameter, headers=headers)


HEADERS = [
    *(
        typed(34, kind or "none", status, content_type=kind)
        for kind, status in (
            ("", 415),
            ("text/plain", 415),
            ("application/x-www-form-urlencoded", 415),
            ("application/json; charset=latin-1", 415),
            ("application/json; charset=utf-8", 201),
            ("Application/JSON;charset=UTF-8", 201),
        )
    ),
    Case(row=34, name="JSON's on an empty PUT", method="PUT", body=b"", status=200,
         path="/api/ledger_account_categories/@category/ledger_accounts/@alice"),
    Case(row=34, name="JSON's on an empty DELETE", method="DELETE", body=b"", status=200,
         path="/api/ledger_account_categories/@category/ledger_accounts/@alice"),
    typed(35, "gzip", 415, gzip.compress(NAMED), content_encoding="gzip"),
    typed(35, "gzip bomb", 415, BOMB, content_encoding="gzip"),
    typed(35, "gzip unsaid", 400, gzip.compress(NAMED)),
    typed(35, "identity", 201, content_encoding="identity"),
    get(41, "/%00", 400, path=ACCOUNTS, routers_code="malformed_request"),
    get(41, "/a%00b", 400, path=ACCOUNTS, routers_code="malformed_request"),
    *(
        get(42, "/@alice", 200, path=ACCOUNTS, name=f"{name}: DELETE", headers={name: "DELETE"},
            shows='"discarded_at":null')
        for name in ("x-http-method-override", "x-http-method", "x-method-override")
    ),
    Case(row=42, name="HEAD", method="HEAD", path=f"{ACCOUNTS}/@alice", status=405),
    Case(row=42, name="PUT on an account", method="PUT", path=f"{ACCOUNTS}/@alice", status=405),
    Case(row=42, name="DELETE of a transaction", method="DELETE", status=405,
         path=f"{TRANSACTIONS}/@posted"),
    *(
        get(52, "/@their-alice", 404, path=ACCOUNTS, name=name, headers={name: "cell-b"})
        for name in ("x-tenant", "x-cell", "x-epoch", "cloister-tenant", "cloister-epoch",
                     "cloister-not-applied", "x-forwarded-for", "x-organization-id")
    ),
    get(52, "/@alice", 200, path=ACCOUNTS, name="other epoch", headers={"cloister-epoch": "99"}),
]  # fmt: skip


def at(name: str, text: str, status: int = 422) -> Case:
    about = "effective_at" if status == 422 else None
    shows = f'"effective_at":"{text[:10]}T' if status == 201 else ""
    return post(47, name, of(both(), f', "effective_at": "{text}"'), status, about, shows=shows)


QUERIES = [
    at("year 0", "0000-01-01"),
    at("year 10000", "10000-01-01"),
    at("10^18", str(10**18)),
    at("no such day", "2024-02-30"),
    at("leap second", "2024-01-01T00:00:60Z"),
    at("hour 25", "2024-01-01T25:00:00Z"),
    at("word", "now"),
    at("no text", ""),
    at("before all time", "0001-01-01T00:00:00+01:00"),
    at("end of time", "9999-12-31T23:59:59.999999Z", 201),
    at("begin of time", "0001-01-01", 201),
    at("no zone", "2024-01-01T00:00:00", 201),
    get(47, "?effective_at[gte]=soon", 422, "effective_at"),
    get(47, "?effective_at[between]=2024-01-01", 422, "effective_at"),
    get(47, "?effective_at=2024-01-01", 422, "effective_at"),
    get(47, "?effective_at[gte]=0001-01-01&per_page=1", 200),
    get(48, "?after_cursor=x", 400, "after_cursor"),
    get(48, "?after_cursor=" + "A" * 40, 400, "after_cursor"),
    get(48, "?after_cursor=@unknown", 400, "after_cursor"),
    get(48, "?order_by[created_at]=up", 422, "order_by"),
    get(48, "?order_by[name]=asc", 422, "order_by"),
    get(48, "?order_by[created_at]=asc&order_by[effective_at]=asc", 422, "order_by"),
    get(48, "/@alice?balances[as_of_lock_version]=x", 422, "balances", path=ACCOUNTS),
    get(48, "/@alice?balances[as_of_lock_version]=-1", 422, "balances", path=ACCOUNTS),
    get(49, "?per_page=0", 422, "per_page"),
    get(49, "?per_page=-1", 422, "per_page"),
    get(49, "?per_page=1.5", 422, "per_page"),
    get(49, "?per_page=", 422, "per_page"),
    get(49, "?per_page=%D9%A1", 422, "per_page"),
    get(49, "?amount[gt]=" + "9" * 61, 422, "amount"),
    get(49, "?amount[gt]=1e3", 422, "amount"),
    get(49, "?amount[gt]=-" + "9" * 60, 200),
    get(49, "?id[]=x", 422, "id"),
    get(49, "?status=open", 422, "status"),
]


def part(name: str, entries: str, of_transaction: str = "held") -> Case:
    path = f"{TRANSACTIONS}/@{of_transaction}/partial_post"
    about = "posted_ledger_entries" if of_transaction == "held" else TRANSACTION
    return post(50, name, f'{{"posted_ledger_entries": [{entries}]}}', 422, about, path=path)


ONCE_ONLY = [
    part("partial post of the whole hold", both("100")),
    part("partial post beyond the hold", both("101")),
    part("partial post of one side", entry(amount="50")),
    part("partial post that does not balance", both("50", "60")),
    part("partial post of what is posted", both("50"), "posted"),
    part("partial post of what is archived", both("50"), "archived"),
    *(
        post(50, f"reversal of what is {status}", "{}", 422, TRANSACTION,
             path=f"{TRANSACTIONS}/@{status}/reversal")
        for status in ("held", "archived")
    ),
    *(
        Case(row=50, name=f"{what} {word}", method="PATCH", path=f"{TRANSACTIONS}/@{what}",
             body=f'{{"status": "{word}"}}', status=422, parameter=TRANSACTION)
        for what, word in (("posted", "archived"), ("posted", "pending"), ("archived", "posted"))
    ),
]  # fmt: skip

CASES = [
    *AMOUNTS, *RULES, *KEYS, *METADATA, *TEXTS, *JSONS, *HEADERS, *QUERIES, *ONCE_ONLY,
]  # fmt: skip
