"""Method: each resource over HTTP against a cell process: what it takes, what it answers to the
last key, and what it refuses, beyond the acceptance scenarios.
"""

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cell_process import Access, CellProcess

LEDGER_KEYS = [
    "id", "object", "live_mode", "created_at", "updated_at", "discarded_at", "name", "description",
    "metadata",
]  # fmt: skip
ACCOUNT_KEYS = [
    "id", "object", "live_mode", "created_at", "updated_at", "discarded_at", "name", "description",
    "normal_balance", "balances", "lock_version", "ledger_id", "external_id", "ledgerable_id",
    "ledgerable_type", "metadata",
]  # fmt: skip
TRANSACTION_KEYS = [
    "id", "object", "live_mode", "created_at", "updated_at", "description", "status", "metadata",
    "effective_at", "effective_date", "ledger_entries", "posted_at", "ledger_id",
    "ledgerable_type", "ledgerable_id", "external_id", "reverses_ledger_transaction_id",
    "reversed_by_ledger_transaction_id", "partially_posts_ledger_transaction_id",
    "archived_reason",
]  # fmt: skip
ENTRY_KEYS = [
    "id", "object", "live_mode", "created_at", "updated_at", "discarded_at", "amount",
    "amount_string", "direction", "status", "effective_at", "ledger_account_id",
    "ledger_account_currency", "ledger_account_currency_exponent", "ledger_account_lock_version",
    "ledger_transaction_id", "metadata", "resulting_ledger_account_balances",
]  # fmt: skip
BALANCE_KEYS = [
    "amount", "amount_string", "credits", "credits_string", "debits", "debits_string", "currency",
    "currency_exponent",
]  # fmt: skip


class Api:
    """Requests in few words; `ok` for those that must succeed."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def ok(self, method: str, path: str, **options: Any) -> Any:
        answer = self.http.request(method, f"/api/{path}", **options)
        assert answer.status_code == (201 if method == "POST" else 200), answer.text
        return answer.json()

    def refused(self, status: int, method: str, path: str, **options: Any) -> Any:
        """The error."""
        answer = self.http.request(method, f"/api/{path}", **options)
        assert answer.status_code == status, answer.text
        return answer.json()["errors"]

    def ledger(self, **fields: Any) -> Any:
        return self.ok("POST", "ledgers", json={"name": "L", **fields})

    def account(self, ledger: str, **fields: Any) -> Any:
        body = {"name": "A", "normal_balance": "credit", "currency": "USD", "ledger_id": ledger}
        return self.ok("POST", "ledger_accounts", json={**body, **fields})

    def transaction(self, *entries: Any, **fields: Any) -> Any:
        return self.ok("POST", "ledger_transactions", json={"ledger_entries": entries, **fields})

    def ids(self, path: str, **parameters: Any) -> list[str]:
        return [item["id"] for item in self.ok("GET", path, params=parameters)]


@pytest.fixture
def api(access: Access) -> Iterator[Api]:
    with access.http() as http:
        yield Api(http)


@pytest.fixture
def ledger(api: Api) -> str:
    return str(api.ledger()["id"])


@pytest.fixture
def pair(api: Api, ledger: str) -> tuple[str, str]:
    """A debit-normal and a credit-normal account."""
    cash = api.account(ledger, name="CASH", normal_balance="debit")["id"]
    return cash, api.account(ledger, name="ALICE")["id"]


def debit(account: str, amount: int, **fields: Any) -> dict[str, Any]:
    return {"ledger_account_id": account, "direction": "debit", "amount": amount, **fields}


def credit(account: str, amount: int, **fields: Any) -> dict[str, Any]:
    return {"ledger_account_id": account, "direction": "credit", "amount": amount, **fields}


def unknown() -> str:
    return str(uuid.uuid4())


# Ledgers


def test_ledger_life(api: Api) -> None:
    made = api.ledger(description="d", metadata={"a": "1", "b": "", "c": None})
    assert list(made) == LEDGER_KEYS
    assert made["object"] == "ledger"
    assert made["live_mode"] is True
    assert made["metadata"] == {"a": "1"}
    assert made["created_at"] == made["updated_at"]
    path = f"ledgers/{made['id']}"
    assert api.ok("GET", path) == made

    changed = api.ok(
        "PATCH", path, json={"name": "M", "description": None, "metadata": {"b": "2", "a": ""}}
    )
    assert (changed["name"], changed["description"]) == ("M", None)
    assert changed["metadata"] == {"b": "2"}
    assert changed["updated_at"] > made["updated_at"]
    assert api.ok("PATCH", path, json={"name": "M"}) == changed
    assert api.ok("PATCH", path, json={}) == changed

    gone = api.ok("DELETE", path)
    assert gone["discarded_at"]
    assert api.ok("DELETE", path) == gone
    api.refused(404, "GET", path)
    api.refused(404, "PATCH", path, json={"name": "N"})
    assert made["id"] not in api.ids("ledgers")


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "resource", ["ledgers", "ledger_accounts", "ledger_transactions", "ledger_entries"]
)
def test_unknown_objects(api: Api, served_cell: CellProcess, resource: str, method: str) -> None:
    if (resource, method) in (("ledger_transactions", "DELETE"), ("ledger_entries", "DELETE")):
        return
    json = {"metadata": {"a": "b"}} if method == "PATCH" else None
    for id in (unknown(), "no-uuid", "🐈"):
        error = api.refused(404, method, f"{resource}/{id}", json=json)
        assert error["code"] == "resource_not_found"


def test_another_tenants_objects_are_unknown_to_the_byte(
    api: Api, pair: tuple[str, str], served_cell: CellProcess
) -> None:
    """The answer for a random id, with the other's id in its place."""
    moved = api.transaction(debit(pair[0], 1), credit(pair[1], 1), external_id="x")
    theirs = {
        "ledgers": moved["ledger_id"],
        "ledger_accounts": pair[0],
        "ledger_transactions": moved["id"],
        "ledger_entries": moved["ledger_entries"][0]["id"],
    }
    random = unknown()
    with served_cell.new_tenant().http() as http:
        for resource, id in theirs.items():
            found = http.get(f"/api/{resource}/{id}")
            assert found.status_code == 404
            reference = http.get(f"/api/{resource}/{random}")
            assert found.text == reference.text.replace(random, id)
        assert http.get("/api/ledger_transactions/x").status_code == 404
        for resource in theirs:
            assert http.get(f"/api/{resource}").json() == []
        own = Api(http).account(Api(http).ledger()["id"])["id"]
        body = {"ledger_entries": [debit(own, 1), credit(pair[1], 1)]}
        found = http.post("/api/ledger_transactions", json=body)
        body = {"ledger_entries": [debit(own, 1), credit(random, 1)]}
        reference = http.post("/api/ledger_transactions", json=body)
        assert found.status_code == 404
        assert found.text == reference.text.replace(random, pair[1])


def test_deleting_a_ledger_hides_its_accounts(api: Api, pair: tuple[str, str]) -> None:
    moved = api.transaction(debit(pair[0], 1), credit(pair[1], 1), status="posted")
    api.account(moved["ledger_id"], name="E", external_id="e")
    api.ok("GET", f"ledger_accounts/{pair[0]}")
    api.ok("DELETE", f"ledgers/{moved['ledger_id']}")

    for name in (*pair, "e"):
        api.refused(404, "GET", f"ledger_accounts/{name}")
    assert api.ids("ledger_accounts") == []
    api.refused(
        422,
        "POST",
        "ledger_transactions",
        json={"ledger_entries": [debit(pair[0], 1), credit(pair[1], 1)]},
    )
    # What was written stays readable.
    assert api.ok("GET", f"ledger_transactions/{moved['id']}") == moved
    assert len(api.ids("ledger_entries")) == 2


# Ledger accounts


def test_account_life(api: Api, ledger: str) -> None:
    made = api.account(
        ledger,
        description="d",
        external_id="e",
        metadata={"a": "1"},
        ledgerable_type="counterparty",
        ledgerable_id="c-1",
    )
    assert list(made) == ACCOUNT_KEYS
    zero = {
        "amount": 0, "amount_string": "0", "credits": 0, "credits_string": "0", "debits": 0,
        "debits_string": "0", "currency": "USD", "currency_exponent": 2,
    }  # fmt: skip
    assert made["balances"] == {
        "pending_balance": zero,
        "posted_balance": zero,
        "available_balance": zero,
        "effective_at_lower_bound": None,
        "effective_at_upper_bound": None,
    }
    assert made["lock_version"] == 0
    path = f"ledger_accounts/{made['id']}"
    assert api.ok("GET", path) == made == api.ok("GET", "ledger_accounts/e")

    changed = api.ok(
        "PATCH", path, json={"name": "B", "external_id": None, "metadata": {"a": None}}
    )
    assert (changed["name"], changed["external_id"], changed["metadata"]) == ("B", None, {})
    assert (changed["lock_version"], changed["description"]) == (0, "d")
    assert api.ok("GET", path) == changed
    api.refused(404, "GET", "ledger_accounts/e")

    gone = api.ok("DELETE", path)
    assert gone["discarded_at"]
    assert gone["balances"] == made["balances"]
    assert api.ok("DELETE", path) == gone
    api.refused(404, "GET", path)
    assert api.ids("ledger_accounts") == []


def test_balances_in_the_answers_to_changes(api: Api, pair: tuple[str, str]) -> None:
    api.transaction(debit(pair[0], 70), credit(pair[1], 70), status="posted")
    path = f"ledger_accounts/{pair[1]}"
    for answer in (api.ok("PATCH", path, json={"name": "B"}), api.ok("DELETE", path)):
        assert answer["balances"]["posted_balance"]["amount"] == 70
        assert answer["lock_version"] == 1


@pytest.mark.parametrize(
    ("fields", "status", "parameter"),
    [
        ({"name": None}, 422, "name"),
        ({"ledger_id": "x"}, 422, "ledger_id"),
        ({"ledger_id": str(uuid.uuid4())}, 404, "ledger_id"),
        ({"normal_balance": "Credit"}, 422, "normal_balance"),
        ({"currency": ""}, 422, "currency"),
        ({"currency": "USD", "currency_exponent": 3}, 422, "currency_exponent"),
        ({"currency": "PTS"}, 422, "currency_exponent"),
        ({"currency": "PTS", "currency_exponent": 31}, 422, "currency_exponent"),
        ({"currency": "PTS", "currency_exponent": "2"}, 422, "currency_exponent"),
        ({"external_id": ""}, 422, "external_id"),
        ({"external_id": "e" * 181}, 422, "external_id"),
        ({"external_id": "a\nb"}, 422, "external_id"),
        ({"external_id": "taken"}, 422, "external_id"),
        ({"ledgerable_type": "counterparty"}, 422, "ledgerable_id"),
        ({"ledgerable_id": "x"}, 422, "ledgerable_type"),
        ({"ledgerable_type": "x", "ledgerable_id": "x"}, 422, "ledgerable_type"),
        ({"ledger_account_category_ids": ["x"]}, 422, "ledger_account_category_ids"),
        ({"ledger_account_category_ids": [str(uuid.uuid4())]}, 404, "ledger_account_category_ids"),
    ],
)
def test_refused_accounts(
    api: Api, ledger: str, fields: dict[str, Any], status: int, parameter: str
) -> None:
    api.account(ledger, external_id="taken")
    body = {"name": "A", "normal_balance": "credit", "currency": "USD", "ledger_id": ledger}
    error = api.refused(status, "POST", "ledger_accounts", json={**body, **fields})
    assert error.get("parameter") == parameter
    assert len(api.ids("ledger_accounts")) == 1


@pytest.mark.parametrize("missing", ["name", "ledger_id", "normal_balance", "currency"])
def test_accounts_lacking_a_field(api: Api, ledger: str, missing: str) -> None:
    body = {"name": "A", "normal_balance": "credit", "currency": "USD", "ledger_id": ledger}
    del body[missing]
    error = api.refused(422, "POST", "ledger_accounts", json=body)
    assert (error["code"], error["parameter"]) == ("parameter_missing", missing)


def test_currencies_with_exponents(api: Api, ledger: str) -> None:
    eth = api.account(ledger, currency="ETH", currency_exponent=18)
    assert eth["balances"]["posted_balance"]["currency_exponent"] == 18
    yen = api.account(ledger, currency="JPY", currency_exponent=None)
    assert yen["balances"]["posted_balance"]["currency_exponent"] == 0


def test_external_id_of_accounts_in_two_ledgers(api: Api, ledger: str) -> None:
    api.account(ledger, external_id="e")
    api.account(api.ledger()["id"], external_id="e")
    answer = api.http.get("/api/ledger_accounts/e")
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["errors"]["code"] == "conflict"


# Ledger transactions


def test_transaction_to_the_last_key(api: Api, pair: tuple[str, str]) -> None:
    made = api.transaction(
        debit(pair[0], 5, metadata={"leg": "1", "none": ""}),
        credit(pair[1], 5, effective_at="2020-02-02T00:00:00Z"),
        description="d",
        external_id="x",
        effective_at="2024-01-02T03:04:05.678901+02:00",
        ledgerable_type="payment_order",
        ledgerable_id="p-1",
        metadata={"a": "b", "c": None},
    )
    assert list(made) == TRANSACTION_KEYS
    assert made["status"] == "pending"
    assert made["posted_at"] is None
    assert made["effective_at"] == "2024-01-02T01:04:05.678901Z"
    assert made["effective_date"] == "2024-01-02"
    assert made["metadata"] == {"a": "b"}
    assert (made["ledgerable_type"], made["ledgerable_id"]) == ("payment_order", "p-1")
    first, second = made["ledger_entries"]
    assert list(first) == ENTRY_KEYS
    assert (first["direction"], second["direction"]) == ("debit", "credit")
    assert (first["effective_at"], first["metadata"]) == (made["effective_at"], {"leg": "1"})
    assert second["effective_at"] == "2020-02-02T00:00:00.000000Z"
    assert first["ledger_transaction_id"] == made["id"]
    assert api.ok("GET", f"ledger_transactions/{made['id']}") == made
    assert api.ok("GET", "ledger_transactions/x") == made
    assert api.ok("GET", "ledger_transactions") == [made]
    listed = api.ok("GET", "ledger_entries", params={"order_by[created_at]": "asc"})
    assert listed == [first, second]
    assert api.ok("GET", f"ledger_entries/{first['id']}") == first


def test_entries_keep_the_order_of_the_request(api: Api, pair: tuple[str, str]) -> None:
    entries = [(debit if n % 2 else credit)(pair[n % 3 == 0], n) for n in range(1, 41)]
    difference = sum(e["amount"] * (1 if e["direction"] == "debit" else -1) for e in entries)
    entries.append(debit(pair[0], -difference))
    made = api.transaction(*entries)
    assert [e["amount"] for e in made["ledger_entries"]] == [e["amount"] for e in entries]
    assert api.ok("GET", f"ledger_transactions/{made['id']}") == made


def test_effective_date_alone_is_its_midnight(api: Api, pair: tuple[str, str]) -> None:
    entries = debit(pair[0], 5), credit(pair[1], 5)
    made = api.transaction(*entries, effective_date="2024-03-01")
    assert made["effective_at"] == "2024-03-01T00:00:00.000000Z"
    both = api.transaction(
        *entries, effective_date="2024-03-01", effective_at="2024-04-01T12:00:00Z"
    )
    assert both["effective_date"] == "2024-04-01"


@pytest.mark.parametrize(
    ("entry", "parameter"),
    [
        ({"amount": -1}, "amount"),
        ({"amount": 10**36}, "amount"),
        ({"amount": 1.0}, "amount"),
        ({"amount": "1"}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": None}, "amount"),
        ({}, "amount"),
        ({"amount_string": ""}, "amount_string"),
        ({"amount_string": "1_000"}, "amount_string"),
        ({"amount_string": " 7 "}, "amount_string"),
        ({"amount_string": "0x10"}, "amount_string"),
        ({"amount_string": "-1"}, "amount_string"),
        ({"amount_string": "\u0661"}, "amount_string"),
        ({"amount_string": "1" * 37}, "amount_string"),
        ({"amount_string": 1}, "amount_string"),
        ({"amount": 5, "amount_string": "6"}, "amount_string"),
        ({"amount": 1, "direction": "up"}, "direction"),
        ({"amount": 1, "ledger_account_id": "x"}, "ledger_account_id"),
        ({"amount": 1, "effective_at": "tomorrow"}, "effective_at"),
        ({"amount": 1, "lock_version": "1"}, "lock_version"),
        ({"amount": 1, "metadata": {"a": 1}}, "metadata"),
        ({"amount": 1, "available_balance_amount": {"gte": "0"}}, "available_balance_amount.gte"),
        ({"amount": 1, "posted_balance_amount": {"not_eq": 0}}, "posted_balance_amount"),
    ],
)
def test_refused_entries(
    api: Api, pair: tuple[str, str], entry: dict[str, Any], parameter: str
) -> None:
    full = {"ledger_account_id": pair[0], "direction": "debit", **entry}
    body = {"ledger_entries": [credit(pair[1], 1), full]}
    error = api.refused(422, "POST", "ledger_transactions", json=body)
    assert error["parameter"] == f"ledger_entries[1].{parameter}"
    assert api.ids("ledger_transactions") == []


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"ledger_entries": None}, "ledger_entries"),
        ({"status": "open"}, "status"),
        ({"description": "d" * 1001}, "description"),
        ({"external_id": "e" * 181}, "external_id"),
        ({"external_id": "\u0007"}, "external_id"),
        ({"effective_at": "2024-13-01"}, "effective_at"),
        ({"effective_at": 1704164645}, "effective_at"),
        ({"effective_date": "2024-01-02T00:00:00Z"}, "effective_date"),
        ({"ledgerable_type": "counterparty", "ledgerable_id": "x"}, "ledgerable_type"),
        ({"ledgerable_id": "x"}, "ledgerable_type"),
        (
            {"ledger_account_category_balance_locks": [{}]},
            "ledger_account_category_balance_locks[0].ledger_account_category_id",
        ),
    ],
)
def test_refused_transactions(
    api: Api, pair: tuple[str, str], fields: dict[str, Any], parameter: str
) -> None:
    body = {"ledger_entries": [debit(pair[0], 1), credit(pair[1], 1)], **fields}
    error = api.refused(422, "POST", "ledger_transactions", json=body)
    assert error["parameter"] == parameter
    assert api.ids("ledger_transactions") == []


def test_locks_without_conditions_are_none(api: Api, pair: tuple[str, str]) -> None:
    made = api.transaction(
        debit(pair[0], 1, available_balance_amount={}, lock_version=None),
        credit(pair[1], 1, posted_balance_amount=None),
        archive_on_balance_lock_failure=False,
        unknown_field={"any": ["thing"]},
    )
    assert made["status"] == "pending"


def test_posting_a_pending_transaction(api: Api, pair: tuple[str, str]) -> None:
    made = api.transaction(debit(pair[0], 5, metadata={"a": "1"}), credit(pair[1], 5))
    path = f"ledger_transactions/{made['id']}"
    posted = api.ok("PATCH", path, json={"status": "posted"})
    assert posted["status"] == "posted"
    assert posted["posted_at"]
    assert list(posted) == TRANSACTION_KEYS
    new, old = posted["ledger_entries"], made["ledger_entries"]
    assert {e["id"] for e in new}.isdisjoint(e["id"] for e in old)
    assert [e["status"] for e in new] == ["posted", "posted"]
    assert [e["ledger_account_lock_version"] for e in new] == [2, 2]
    assert new[0]["metadata"] == {"a": "1"}
    assert api.ok("GET", path) == posted
    assert api.ok("PATCH", path, json={"status": "posted"}) == posted
    assert len(api.ids("ledger_entries", ledger_transaction_id=made["id"])) == 2
    deleted = api.ids("ledger_entries", ledger_transaction_id=made["id"], show_deleted="true")
    assert len(deleted) == 4
    discarded = api.ok("GET", f"ledger_entries/{old[0]['id']}")
    assert discarded["discarded_at"]
    assert discarded["status"] == "pending"


LINK = {"ledgerable_type": "return", "ledgerable_id": "r-1"}


@pytest.mark.parametrize("name", LINK)
@pytest.mark.parametrize("value", ["return", None])
def test_half_a_link_is_never_left(
    api: Api, pair: tuple[str, str], name: str, value: str | None
) -> None:
    made = api.transaction(debit(pair[0], 5), credit(pair[1], 5), **LINK)
    path = f"ledger_transactions/{made['id']}"
    (other,) = LINK.keys() - {name}
    half = {name: value}
    for body in (half, {**half, other: None}) if value else (half, {**half, other: "return"}):
        missing = name if body.get(other) else other
        error = api.refused(422, "PATCH", path, json=body)
        assert (error["code"], error["parameter"]) == ("parameter_missing", missing)
    assert api.ok("GET", path) == made
    unlinked = api.ok("PATCH", path, json=dict.fromkeys(LINK))
    assert {unlinked[each] for each in LINK} == {None}


def test_archiving_frees_the_balances(api: Api, pair: tuple[str, str]) -> None:
    made = api.transaction(debit(pair[0], 5), credit(pair[1], 5), external_id="x")
    archived = api.ok("PATCH", "ledger_transactions/x", json={"status": "archived"})
    assert (archived["id"], archived["status"]) == (made["id"], "archived")
    assert (archived["posted_at"], archived["archived_reason"]) == (None, None)
    account = api.ok("GET", f"ledger_accounts/{pair[1]}")
    assert account["balances"]["pending_balance"]["amount"] == 0
    assert api.ids("ledger_transactions", external_id="x") == [made["id"]]
    again = api.transaction(debit(pair[0], 5), credit(pair[1], 5), external_id="x")
    assert api.ids("ledger_transactions", external_id="x") == [again["id"], made["id"]]
    error = api.refused(
        422, "PATCH", f"ledger_transactions/{made['id']}", json={"status": "posted"}
    )
    assert error["parameter"] == "ledger_transaction"


def test_final_transactions_change_their_metadata_only(api: Api, pair: tuple[str, str]) -> None:
    made = api.transaction(debit(pair[0], 5), credit(pair[1], 5), status="posted")
    path = f"ledger_transactions/{made['id']}"
    for body in (
        {"status": "archived"},
        {"status": "pending"},
        {"description": "z"},
        {"external_id": "z"},
        {"effective_at": "2020-01-01T00:00:00Z"},
        {"ledger_entries": [debit(pair[0], 6), credit(pair[1], 6)]},
    ):
        assert api.refused(422, "PATCH", path, json=body)["parameter"] == "ledger_transaction"
    changed = api.ok("PATCH", path, json={"metadata": {"k": "v"}})
    assert changed["metadata"] == {"k": "v"}
    assert changed["ledger_entries"] == made["ledger_entries"]
    assert api.ok("GET", path) == changed


def test_editing_a_pending_transaction(api: Api, pair: tuple[str, str]) -> None:
    made = api.transaction(debit(pair[0], 300, metadata={"a": "1"}), credit(pair[1], 300))
    path = f"ledger_transactions/{made['id']}"
    shown = {"show_resulting_ledger_account_balances": True}
    edited = api.ok(
        "PATCH",
        path,
        json={
            "ledger_entries": [debit(pair[0], 500, **shown), credit(pair[1], 500)],
            "description": "d",
            "effective_at": "2020-01-01T00:00:00Z",
        },
    )
    assert [e["amount"] for e in edited["ledger_entries"]] == [500, 500]
    first, second = edited["ledger_entries"]
    assert first["metadata"] == {}
    assert (edited["description"], edited["effective_date"]) == ("d", "2020-01-01")
    resulting = first["resulting_ledger_account_balances"]
    assert list(resulting) == ["pending_balance", "posted_balance", "available_balance"]
    assert list(resulting["pending_balance"]) == BALANCE_KEYS
    assert resulting["pending_balance"]["amount"] == 500
    assert second["resulting_ledger_account_balances"] is None
    for entries in ([debit(pair[0], 5)], [debit(pair[0], 5), credit(pair[1], 6)]):
        api.refused(422, "PATCH", path, json={"ledger_entries": entries})
    assert api.ok("GET", path)["ledger_entries"][0]["amount"] == 500

    api.ok("PATCH", path, json={"metadata": {"x": "1"}})
    merged = api.ok("PATCH", path, json={"metadata": {"y": "2", "x": ""}})
    assert merged["metadata"] == {"y": "2"}
    assert merged["ledger_entries"][0]["id"] == first["id"]


@pytest.mark.parametrize("field", ["effective_at", "ledger_entries", "status"])
def test_null_is_no_change_that_can_be_made(api: Api, pair: tuple[str, str], field: str) -> None:
    made = api.transaction(debit(pair[0], 5), credit(pair[1], 5))
    path = f"ledger_transactions/{made['id']}"
    assert api.refused(422, "PATCH", path, json={field: None})["parameter"] == field


def test_entry_metadata(api: Api, pair: tuple[str, str]) -> None:
    made = api.transaction(debit(pair[0], 5, metadata={"a": "1"}), credit(pair[1], 5))
    entry = made["ledger_entries"][0]
    path = f"ledger_entries/{entry['id']}"
    changed = api.ok("PATCH", path, json={"metadata": {"b": "2", "a": None}, "amount": 7})
    assert changed == {**entry, "metadata": {"b": "2"}, "updated_at": changed["updated_at"]}
    assert changed["updated_at"] > entry["updated_at"]
    assert api.ok("GET", path) == changed
