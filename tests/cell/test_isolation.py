"""Method: the matrix that the OpenAPI document spans: every endpoint with an id of one's own, of
another tenant, and of nobody. What another tenant has must answer exactly as what nobody has:
in paths, filters, bodies and cursors; status, headers and body compared to the byte.
"""

import json
import re
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import httpx
import pytest
from cell_process import DEADLINE_S, Access, CellProcess, running_cell
from ledger_audit import assert_ledger_holds

from cell.openapi import PATH

UNKNOWN = "0190a000-0000-7000-8000-00000000dead"
BULK = "/api/bulk_requests"
RESOURCES_MIN = 11
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Belongings:
    """One object at least of each resource, of one tenant."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.document: Any = http.get(PATH).raise_for_status().json()
        self.bodies: dict[str, Any] = {}
        """A good body by the operation's path and method."""
        ledger = self.post("/api/ledgers", {"name": "n"})["id"]
        accounts = [
            self.post(
                "/api/ledger_accounts",
                {
                    "ledger_id": ledger,
                    "name": normal,
                    "normal_balance": normal,
                    "currency": "USD",
                    "external_id": f"account-{normal}",
                },
            )["id"]
            for normal in ("credit", "debit")
        ]
        entries = [
            {"ledger_account_id": id, "direction": direction, "amount": 5}
            for id, direction in zip(accounts, ("credit", "debit"), strict=True)
        ]
        self.post("/api/ledger_transactions", {"ledger_entries": entries, "external_id": "mine"})
        category = self.post(
            "/api/ledger_account_categories",
            {"ledger_id": ledger, "name": "n", "normal_balance": "credit", "currency": "USD"},
        )["id"]
        http.put(
            f"/api/ledger_account_categories/{category}/ledger_accounts/{accounts[0]}"
        ).raise_for_status()
        condition = {"field": "posted_balance_amount", "operator": "less_than", "value": 0}
        self.post(
            "/api/ledger_account_balance_monitors",
            {"ledger_account_id": accounts[0], "alert_condition": condition},
        )
        self.post(
            "/api/ledger_account_settlements",
            {
                "settled_ledger_account_id": accounts[0],
                "contra_ledger_account_id": accounts[1],
                "status": "drafting",
            },
        )
        self.post(
            "/api/ledger_account_statements",
            {
                "ledger_account_id": accounts[0],
                "effective_at_lower_bound": "2024-01-01T00:00:00Z",
                "effective_at_upper_bound": "2024-02-01T00:00:00Z",
            },
        )
        self.post("/api/webhook_endpoints", {"url": "http://127.0.0.1:9/hook"})
        self.post(
            BULK,
            {
                "action_type": "create",
                "resource_type": "ledger_transaction",
                "resources": [{"ledger_entries": entries}],
            },
        )

    def post(self, path: str, body: Any) -> Any:
        self.bodies[path] = body
        answer = self.http.post(path, json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def named_in(self, path: str) -> dict[str, str]:
        """An id of one's own for each name in braces, of the resource in front of it."""
        own = self.ids
        return {
            name: own.get(f"/api/{resource}", UNKNOWN)
            for resource, name in re.findall(r"(\w+)/{(\w+)}", path)
        }

    def lists(self) -> Iterator[tuple[str, Any]]:
        """Path and description of each list."""
        for path, operations in self.document["paths"].items():
            if "{" not in path and "get" in operations:
                parameters = operations["get"]["parameters"]
                if any(parameter["name"] == "after_cursor" for parameter in parameters):
                    yield path, parameters

    @cached_property
    def ids(self) -> dict[str, str]:
        """An id of each list that holds anything, by its path."""
        pages = {path: self.http.get(path).json() for path, _ in self.lists()}
        return {path: page[0]["id"] for path, page in pages.items() if page}

    def near(self, path: str, text: str) -> set[str]:
        """Ids of the resource of a path, and of those that are named in a text."""
        return {
            id
            for resource, id in self.ids.items()
            if path.startswith(resource) or re.sub("(ie)?s$", "", resource[5:]) in text
        }


@pytest.fixture(scope="module")
def cell(
    make_cell_database: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CellProcess]:
    """With webhooks; nobody listens where they are sent."""
    settings = {"WEBHOOK_SECRET": "of the tests", "WEBHOOK_PRIVATE_TARGETS": "true"}
    with make_cell_database() as database:
        with running_cell(database, tmp_path_factory.mktemp("cell"), **settings) as cell:
            yield cell
        assert_ledger_holds(database.superuser_dsn)


@pytest.fixture(scope="module")
def pair(cell: CellProcess) -> Iterator[tuple[Belongings, Belongings]]:
    mine, other = cell.new_tenant(), cell.new_tenant()
    with mine.http() as first, other.http() as second:
        yield Belongings(first), Belongings(second)


def essence(answer: httpx.Response, *ids: str) -> tuple[Any, ...]:
    """All of an answer that could tell something, the ids that were asked for left out."""
    assert answer.status_code < 500
    text = answer.text
    for id in ids:
        text = text.replace(id, "ID")
    left_out = ("x-request-id", "date", "content-length")
    headers = {name: value for name, value in answer.headers.items() if name not in left_out}
    return answer.status_code, headers, text


def test_ids_in_paths(pair: tuple[Belongings, Belongings]) -> None:
    """Also of another resource: what is a ledger's id there is no account's here. Where a path
    names two, the other one is one's own."""
    mine, other = pair
    for path, operations in mine.document["paths"].items():
        others = mine.named_in(path)
        for name in others:
            for method, operation in operations.items():
                body = {} if "requestBody" in operation else None
                for id in other.near(path, name):
                    theirs, nobodys = (
                        mine.http.request(method, path.format(**others | {name: asked}), json=body)
                        for asked in (id, UNKNOWN)
                    )
                    assert essence(theirs, id) == essence(nobodys, UNKNOWN), (method, path)


def test_own_ids(pair: tuple[Belongings, Belongings]) -> None:
    mine, _ = pair
    ids = mine.ids
    assert len(ids) >= RESOURCES_MIN
    for path, parameters in mine.lists():
        if f"{path}/{{id}}" in mine.document["paths"]:
            found = mine.http.get(f"{path}/{ids[path]}")
            assert found.status_code == 200, path
            assert found.json()["id"] == ids[path]
        if any(parameter["name"] == "id[]" for parameter in parameters):
            listed = mine.http.get(path, params={"id[]": ids[path]}).json()
            assert ids[path] in [item["id"] for item in listed]


def test_other_names_in_paths(pair: tuple[Belongings, Belongings]) -> None:
    mine, other = pair
    body = other.bodies["/api/ledger_accounts"] | {"external_id": "only-theirs"}
    other.http.post("/api/ledger_accounts", json=body).raise_for_status()
    for method in ("GET", "PATCH", "DELETE"):
        theirs, nobodys = (
            mine.http.request(method, f"/api/ledger_accounts/{name}", json={})
            for name in ("only-theirs", "nobody-here")
        )
        assert essence(theirs, "only-theirs") == essence(nobodys, "nobody-here")


def test_ids_in_filters(pair: tuple[Belongings, Belongings]) -> None:
    mine, other = pair
    for path, parameters in mine.lists():
        for parameter in parameters:
            schema = parameter["schema"].get("items", parameter["schema"])
            if schema.get("format") != "uuid":
                continue
            for id in other.near(path, parameter["name"]):
                theirs, nobodys = (
                    mine.http.get(path, params={parameter["name"]: asked})
                    for asked in (id, UNKNOWN)
                )
                assert essence(theirs, id) == essence(nobodys, UNKNOWN), (path, parameter["name"])


def test_lists_hold_ones_own_only(pair: tuple[Belongings, Belongings]) -> None:
    mine, other = pair
    theirs = set(
        UUID.findall(json.dumps([other.http.get(path).json() for path, _ in other.lists()]))
    )
    for path, _ in mine.lists():
        assert not theirs & set(UUID.findall(mine.http.get(path).text)), path


def test_ids_in_bodies(pair: tuple[Belongings, Belongings]) -> None:
    mine, other = pair
    for path, body in mine.bodies.items():
        if path == BULK:
            # Accepted, whatever its rows say: see `test_rows_of_bulk_requests`.
            continue
        text = json.dumps(body)
        for own in set(UUID.findall(text)):
            for id in other.near(path, text):
                theirs, nobodys = (
                    mine.http.post(path, json=json.loads(text.replace(own, asked)))
                    for asked in (id, UNKNOWN)
                )
                assert essence(theirs, id) == essence(nobodys, UNKNOWN), (path, own)
                assert theirs.status_code in (404, 422)


def test_rows_of_bulk_requests(pair: tuple[Belongings, Belongings]) -> None:
    mine, other = pair
    text = json.dumps(mine.bodies[BULK])
    own = set(UUID.findall(text))
    ids = (*other.near(BULK, text), UNKNOWN)
    asked = [text.replace(each, id) for each in own for id in ids]
    errors = set()
    for body in asked:
        created = mine.http.post(BULK, json=json.loads(body)).raise_for_status().json()
        errors.add(failure(mine.http, created["id"]))
    assert len(errors) == 1


def failure(http: httpx.Client, request_id: str) -> str:
    """Why the one row of the bulk request failed, but for the id that it names."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        params = {"request_id": request_id}
        (result,) = http.get("/api/bulk_results", params=params).raise_for_status().json()
        if result["status"] != "pending":
            assert result["status"] == "failed"
            return UUID.sub("ID", json.dumps(result["entity"]["request_errors"]))
        time.sleep(0.02)
    raise AssertionError("still pending")


def test_cursors(pair: tuple[Belongings, Belongings]) -> None:
    mine, other = pair
    for _ in range(2):
        for each in pair:
            for path in each.bodies:
                fresh = {k: v for k, v in each.bodies[path].items() if k != "external_id"}
                each.http.post(path, json=fresh).raise_for_status()
    for path, _ in mine.lists():
        cursor = other.http.get(path, params={"per_page": 1}).headers.get("x-after-cursor")
        if cursor is None:
            assert path not in other.bodies
            continue
        theirs, nobodys = (
            mine.http.get(path, params={"after_cursor": asked})
            for asked in (cursor, "A" * len(cursor))
        )
        assert theirs.status_code == 400
        assert essence(theirs) == essence(nobodys), path


def test_idempotency_keys(pair: tuple[Belongings, Belongings]) -> None:
    mine, other = pair
    headers = {"idempotency-key": "the-same"}
    first = mine.http.post("/api/ledgers", json={"name": "mine"}, headers=headers)
    second = other.http.post("/api/ledgers", json={"name": "theirs"}, headers=headers)
    assert (first.json()["name"], second.json()["name"]) == ("mine", "theirs")


def test_keys_of_another(cell: CellProcess, pair: tuple[Belongings, Belongings]) -> None:
    mine, other = cell.new_tenant(), cell.new_tenant()
    crossed = Access(
        base_url=mine.base_url,
        organization_id=mine.organization_id,
        api_key=other.api_key,
        other_api_key="",
    )
    with crossed.http() as http:
        for path, operations in pair[0].document["paths"].items():
            for method in operations:
                asked = re.sub(r"{\w+}", UNKNOWN, path)
                assert http.request(method, asked).status_code == 401
