"""Method: the document as the cell serves it. Every route is in it, it is well-formed OpenAPI, and
what each endpoint really answers, to the last optional value, fits what is said of it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from cell_process import CellProcess

from cell.openapi import PATH, describe
from cell.parameters import Kind
from cell.routes import ROUTES

ASYNC = {"Prefer": "respond-async"}
UNKNOWN = "00000000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def http(served_cell: CellProcess) -> Iterator[httpx.Client]:
    with served_cell.new_tenant().http() as http:
        yield http


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> Any:
    return http.get(PATH).raise_for_status().json()


def test_every_route_is_described(document: Any) -> None:
    assert document == describe(ROUTES)
    described = {(path, method.upper()) for path, of in document["paths"].items() for method in of}
    assert described == {(route.path, route.method) for route in ROUTES}
    operations = [operation for of in document["paths"].values() for operation in of.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)


def test_the_readmes_table_is_true() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    rows = re.findall(r"^\| `(/api/\S+)` \| ([A-Z ]+) \|", text, re.MULTILINE)
    listed = {(path, method) for path, methods in rows for method in methods.split()}
    assert listed == {(route.path, route.method) for route in ROUTES}


def test_routes_say_what_they_read_and_answer() -> None:
    for route in ROUTES:
        at = (route.method, route.path)
        assert route.shows is not None or route.method not in ("GET", "POST"), at
        is_bare = route.path.endswith("/redeliver")
        assert is_bare or route.body is not None or route.method not in ("POST", "PATCH"), at
        names = [parameter.name for parameter in route.parameters]
        assert len(set(names)) == len(names), at


def test_schemas_are_well_formed(document: Any) -> None:
    for schema in document["components"]["schemas"].values():
        assert jsonschema_rs.meta.is_valid(schema), schema
    names = set(document["components"]["schemas"])
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in names


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (text for key, text in value.items() if key == "$ref")
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_one_of_several_values_is_described_too(document: Any) -> None:
    operation = document["paths"]["/api/ledger_transactions"]["get"]
    described = {parameter["name"]: parameter["schema"] for parameter in operation["parameters"]}
    assert described["status[]"]["items"]["enum"] == described["status"]["enum"]
    assert described["id[]"]["items"] == described["id"]
    for of in document["paths"].values():
        for operation in of.values():
            names = [(each["in"], each["name"]) for each in operation["parameters"]]
            assert len(set(names)) == len(names), operation["operationId"]


def test_ids_in_bodies_are_described_as_ids(document: Any) -> None:
    """All but those that callers choose; the tests of isolation ask at each such place."""
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Body"):
            for key, described in schema["properties"].items():
                is_ours = key not in ("external_id", "ledgerable_id")
                names_an_id = is_ours and key.endswith(("_id", "_ids"))
                assert ("'format': 'uuid'" in str(described)) is names_an_id, (name, key)


def test_views_are_closed(document: Any) -> None:
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("View") and name != "ErrorView":
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"])


def test_described_parameters_are_read(http: httpx.Client) -> None:
    """A value that none of them can take is refused, with the parameter's name."""
    for route in ROUTES:
        path = re.sub(r"{\w+}", UNKNOWN, route.path)
        for parameter in route.parameters:
            if parameter.kind in (Kind.TEXT, Kind.TEXTS):
                continue
            answer = http.get(path, params={parameter.name: "?"})
            assert answer.status_code == 422, (path, parameter, answer.text)
            assert answer.json()["errors"]["parameter"] == parameter.name


def test_real_answers_fit(http: httpx.Client, document: Any) -> None:
    answers = Answers(http, document)
    ledger = answers.get("POST", "/api/ledgers", {"name": "n", "metadata": {"k": "v"}})
    accounts = [
        answers.get(
            "POST",
            "/api/ledger_accounts",
            {
                "ledger_id": ledger["id"],
                "name": name,
                "normal_balance": name,
                "currency": "USD",
                "external_id": name,
            },
        )["id"]
        for name in ("credit", "debit")
    ]
    entries = [
        {"ledger_account_id": id, "direction": direction, "amount": 10**30}
        | {"show_resulting_ledger_account_balances": True}
        for id, direction in zip(accounts, ("credit", "debit"), strict=True)
    ]
    body = {"ledger_entries": entries, "external_id": "x", "description": "d"}
    transaction = answers.get("POST", "/api/ledger_transactions", body)
    path = "/api/ledger_transactions/{id}"
    answers.get("PATCH", path, {"status": "posted"}, id=transaction["id"])
    answers.get("GET", path, id="x")
    entry = transaction["ledger_entries"][0]["id"]
    answers.get("GET", "/api/ledger_entries/{id}", id=entry)
    answers.get("GET", "/api/ledger_entries/{id}?show_balances=true", id=entry)
    answers.get("PATCH", "/api/ledger_entries/{id}", {"metadata": {"a": "b"}}, id=entry)
    of_others(answers, ledger["id"], accounts, transaction["id"])
    account = "/api/ledger_accounts/{id}"
    answers.get("GET", account, id="credit")
    answers.get("PATCH", account, {"description": "d", "metadata": {"a": "b"}}, id=accounts[0])
    answers.get("GET", "/api/ledgers/{id}", id=ledger["id"])
    answers.get("PATCH", "/api/ledgers/{id}", {"name": "m"}, id=ledger["id"])
    for route in ROUTES:
        if route.method == "GET" and "{" not in route.path and route.path != PATH:
            answers.get("GET", route.path)
    answers.get("GET", "/api/ledger_entries?show_deleted=true&show_balances=true")
    answers.get("DELETE", account, id=accounts[0])
    answers.get("DELETE", "/api/ledgers/{id}", id=ledger["id"])
    for route in ROUTES:
        if "{id}" in route.path:
            ids = dict.fromkeys(re.findall(r"{(\w+)}", route.path), UNKNOWN)
            answers.get(route.method, route.path, route.body and {"metadata": {}}, **ids)
    answers.get("POST", "/api/ledgers", {"name": 1})


def of_others(answers: "Answers", ledger: str, accounts: list[str], transaction: str) -> None:
    """Good requests of the resources that are about accounts and transactions."""
    path = "/api/ledger_transactions/{id}"
    answers.get("POST", path + "/reversal", {"status": "pending"}, id=transaction)
    answers.get("GET", path + "/versions", id=transaction)
    entries = [
        {"ledger_account_id": id, "direction": direction, "amount": 9}
        for id, direction in zip(accounts, ("credit", "debit"), strict=True)
    ]
    pending = answers.get("POST", "/api/ledger_transactions", {"ledger_entries": entries})["id"]
    posted = [entry | {"amount": 4} for entry in entries]
    answers.get("POST", path + "/partial_post", {"posted_ledger_entries": posted}, id=pending)

    fields = {"ledger_id": ledger, "name": "n", "normal_balance": "debit", "currency": "USD"}
    top, below = (
        answers.get("POST", "/api/ledger_account_categories", fields)["id"] for _ in range(2)
    )
    category = "/api/ledger_account_categories/{id}"
    links = (
        (category + "/ledger_accounts/{ledger_account_id}", {"ledger_account_id": accounts[0]}),
        (category + "/ledger_account_categories/{sub_category_id}", {"sub_category_id": below}),
    )
    for link, ids in links:
        answers.get("PUT", link, id=top, **ids)
    answers.get("GET", category, id=top)
    answers.get("PATCH", category, {"name": "m"}, id=top)
    for link, ids in links:
        answers.get("DELETE", link, id=top, **ids)
    answers.get("DELETE", category, id=top)

    condition = {"field": "posted_balance_amount", "operator": "less_than", "value": 0}
    body = {"ledger_account_id": accounts[0], "alert_condition": condition}
    monitor = answers.get("POST", "/api/ledger_account_balance_monitors", body)["id"]
    for method, change in (("GET", None), ("PATCH", {"description": "d"}), ("DELETE", None)):
        answers.get(method, "/api/ledger_account_balance_monitors/{id}", change, id=monitor)
    (event, *_) = answers.get("GET", "/api/events")
    answers.get("GET", "/api/events/{id}", id=event["id"])

    body = {
        "settled_ledger_account_id": accounts[0],
        "contra_ledger_account_id": accounts[1],
        "allow_either_direction": True,
    }
    settlement = answers.get("POST", "/api/ledger_account_settlements", body)["id"]
    one = "/api/ledger_account_settlements/{id}"
    answers.get("GET", one, id=settlement)
    answers.get("PATCH", one, {"status": "posted"}, id=settlement)
    times = {f"effective_at_{end}_bound": "2024-01-01T00:00:00Z" for end in ("lower", "upper")}
    body = {"ledger_account_id": accounts[0], **times}
    statement = answers.get("POST", "/api/ledger_account_statements", body)["id"]
    answers.get("GET", "/api/ledger_account_statements/{id}", id=statement)
    rows: list[Any] = [{"ledger_entries": entries}, {}]
    body = {"action_type": "create", "resource_type": "ledger_transaction", "resources": rows}
    request = answers.get("POST", "/api/bulk_requests", body)["id"]
    answers.get("GET", "/api/bulk_requests/{id}", id=request)
    body = {"ledger_entries": entries}
    queued = answers.get("POST", "/api/ledger_transactions", body, headers=ASYNC)
    assert queued["object"] == "bulk_result"
    for result in answers.get("GET", "/api/bulk_results"):
        answers.get("GET", "/api/bulk_results/{id}", id=result["id"])


class Answers:
    """Real answers, each held against what the document says of it."""

    def __init__(self, http: httpx.Client, document: Any) -> None:
        self.http = http
        self.document = document

    def get(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        **ids: str,
    ) -> Any:
        address = path.format(**ids)
        operation = self.document["paths"][path.partition("?")[0]][method.lower()]
        read = {each["name"] for each in operation["parameters"] if each["in"] == "header"}
        assert set(headers or {}) <= read
        answer = self.http.request(method, address, json=body, headers=headers)
        described = operation["responses"]
        assert str(answer.status_code) in described, (method, address, answer.text)
        said = described[str(answer.status_code)]
        for name, header in said.get("headers", {}).items():
            assert not header.get("required") or name in answer.headers
        if "location" in answer.headers:
            assert self.http.get(answer.headers["location"]).json()["id"] == answer.json()["id"]
        if "content" not in said:
            assert answer.content == b""
            return None
        schema = said["content"][answer.headers["content-type"]]["schema"]
        whole = {"components": self.document["components"], "allOf": [schema]}
        jsonschema_rs.validate(whole, json.loads(answer.content))
        return answer.json()
