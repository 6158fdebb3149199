"""Method: the matrix that the OpenAPI document spans: every endpoint with an id of one's own, of
another tenant, and of nobody. What another tenant has must answer exactly as what nobody has: in
paths, filters, bodies, rows of bulk requests and cursors; status, headers and body compared to the
byte. All else about the request is good: with one's own id it succeeds.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from belongings import (
    BULK_ACTIONS,
    DOCUMENT,
    OPERATIONS,
    Belongings,
    body_places,
    concrete,
    replaced,
    row_operation,
)
from cell_process import Access, CellProcess, running_cell
from ledger_audit import assert_ledger_holds

from cell.openapi import PATH

UNKNOWN = "0190a000-0000-7000-8000-00000000dead"
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LISTS = [
    path
    for path, methods in DOCUMENT["paths"].items()
    if any(each["name"] == "after_cursor" for each in methods.get("get", {}).get("parameters", ()))
]
PATHS_WITH_IDS = [(method, path) for method, path in OPERATIONS if "{" in path]
BODIES_WITH_IDS = [operation for operation in OPERATIONS if body_places(*operation)]
BODIES_WITH_IDS_MIN = 10
"""Or the document does not say any more which texts are ids."""
NOTHING_HAS_ONE = ("ledger_account_payout_id",)
"""Ids of what there is not (yet): nobody has a good one."""
Pair = tuple[Belongings, Belongings]


def named(operation: tuple[str, str]) -> str:
    return " ".join(operation)


@pytest.fixture(scope="module")
def cell(
    make_cell_database: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CellProcess]:
    """With webhooks; nobody listens where they are sent, and they become dead letters at once."""
    settings = {
        "WEBHOOK_SECRET": "of the tests",
        "WEBHOOK_PRIVATE_TARGETS": "true",
        "WEBHOOK_ATTEMPTS_MAX": "1",
        "WEBHOOK_RETRY_MS": "20",
    }
    with make_cell_database() as database:
        with running_cell(database, tmp_path_factory.mktemp("cell"), **settings) as cell:
            yield cell
        assert_ledger_holds(database.superuser_dsn)


@pytest.fixture(scope="module")
def pair(cell: CellProcess) -> Iterator[Pair]:
    mine, other = cell.new_tenant(), cell.new_tenant()
    with mine.http() as first, other.http() as second:
        yield Belongings(first, "mine"), Belongings(second, "theirs")


def essence(answer: httpx.Response, *ids: str) -> tuple[Any, ...]:
    """All of an answer that could tell something, the ids that were asked for left out."""
    assert answer.status_code < 500
    text = answer.text
    for id in ids:
        text = text.replace(id, "ID")
    left_out = ("x-request-id", "date", "content-length")
    headers = {name: value for name, value in answer.headers.items() if name not in left_out}
    return answer.status_code, headers, text


def test_the_matrix_is_the_whole_document(pair: Pair) -> None:
    assert pair[0].http.get(PATH).raise_for_status().json() == DOCUMENT
    assert len(BODIES_WITH_IDS) >= BODIES_WITH_IDS_MIN


def test_lists_hold_ones_own_only(pair: Pair) -> None:
    """Asked before one's own bulk requests name what others have: results show what was sent."""
    mine, other = pair
    theirs = set()
    for path in LISTS:
        answer = other.http.get(other.list_path(path))
        theirs |= set(UUID.findall(answer.raise_for_status().text))
    assert theirs >= set(other.ids.values()) - {other.ids["ledger_account_statements"]}
    for path in LISTS:
        answer = mine.http.get(mine.list_path(path))
        assert not theirs & set(UUID.findall(answer.raise_for_status().text)), path


@pytest.mark.parametrize("operation", PATHS_WITH_IDS, ids=named)
def test_ids_in_paths(pair: Pair, operation: tuple[str, str]) -> None:
    """Also of another resource: what is a ledger's id there is no account's here; and the names
    that another tenant gave. Where a path names two, the other one is one's own."""
    mine, other = pair
    method, path = operation
    own = mine.own_path_ids(method, path)
    body = mine.good_body(method, path, own) if "requestBody" in operation_of(operation) else None

    def ask(**ids: str) -> httpx.Response:
        return mine.http.request(method, path.format(**own | ids), json=body)

    for name in own:
        nobodys = ask(**{name: UNKNOWN})
        assert nobodys.status_code == 404
        for id in other.ids.values():
            assert essence(ask(**{name: id}), id) == essence(nobodys, UNKNOWN), name
        theirs, nobodys = ask(**{name: "theirs-account"}), ask(**{name: "nobody-there"})
        assert essence(theirs, "theirs-account") == essence(nobodys, "nobody-there")
        theirs, nobodys = ask(**{name: "theirs-transaction"}), ask(**{name: "nobodys-transaction"})
        assert essence(theirs, "theirs-transaction") == essence(nobodys, "nobodys-transaction")
    answer = ask()
    if path.endswith("/redeliver"):
        # It is found, and sent to where nobody listens.
        assert (answer.status_code, "did not take" in answer.text) == (422, True)
    else:
        assert answer.is_success, answer.text


def operation_of(operation: tuple[str, str]) -> Any:
    method, path = operation
    return DOCUMENT["paths"][path][method.lower()]


@pytest.mark.parametrize("operation", BODIES_WITH_IDS, ids=named)
def test_ids_in_bodies(pair: Pair, operation: tuple[str, str]) -> None:
    mine, other = pair
    method, path = operation
    own = mine.own_path_ids(method, path)
    good = mine.good_body(method, path, own)

    def ask(body: Any) -> httpx.Response:
        return mine.http.request(method, path.format(**own), json=body)

    for schema_place in body_places(method, path):
        places = list(concrete(good, schema_place))
        assert places, f"the good body shows no {schema_place}"
        for place in places:
            nobodys = ask(replaced(good, place, UNKNOWN))
            # What is taken out of a settlement may be gone from it already.
            assert nobodys.status_code in ((200,) if method == "DELETE" else (404, 422))
            for id in other.ids.values():
                theirs = ask(replaced(good, place, id))
                assert essence(theirs, id) == essence(nobodys, UNKNOWN), place
    answer = ask(good)
    assert answer.is_success, answer.text


def test_what_is_taken_out_of_a_settlement(pair: Pair) -> None:
    """What is not in it is taken out of no other one; that is answered as if it had been in it."""
    mine, other = pair

    def gathered(whose: Belongings, settlement: str) -> list[str]:
        params = {"ledger_account_settlement_id": settlement}
        return [each["id"] for each in whose.http.get("/api/ledger_entries", params=params).json()]

    theirs = gathered(other, other.settlement)
    assert theirs
    own, entry = mine.draft(), mine.loose_entry()
    path = f"/api/ledger_account_settlements/{own}/ledger_entries"
    mine.http.patch(path, json={"ledger_entry_ids": [entry]}).raise_for_status()
    mine.http.request("DELETE", path, json={"ledger_entry_ids": theirs}).raise_for_status()
    assert (gathered(other, other.settlement), gathered(mine, own)) == (theirs, [entry])
    mine.http.request("DELETE", path, json={"ledger_entry_ids": [entry]}).raise_for_status()
    assert gathered(mine, own) == []


@pytest.mark.parametrize("kind", BULK_ACTIONS, ids=named)
def test_ids_in_rows_of_bulk_requests(pair: Pair, kind: tuple[str, str]) -> None:
    mine, other = pair
    action, resource = kind
    good = mine.good_row(*kind)
    schema_places = [] if action == "create" else [("id",)]
    if action != "delete":
        schema_places += [
            place
            for place in body_places(*row_operation(action, resource))
            # Nothing with locks is done in bulk.
            if place[0] != "ledger_account_category_balance_locks"
        ]
    for schema_place in schema_places:
        places = list(concrete(good, schema_place))
        assert places, f"the good row shows no {schema_place}"
        for place in places:
            ids = (UNKNOWN, *other.ids.values())
            rows = [replaced(good, place, id) for id in ids]
            errors = outcomes(mine, kind, rows)
            assert {status for status, _ in errors} == {"failed"}
            told = {text.replace(id, "ID") for (_, text), id in zip(errors, ids, strict=True)}
            assert len(told) == 1, place
    ((status, text),) = outcomes(mine, kind, [good])
    assert status == "successful", text


def outcomes(mine: Belongings, kind: tuple[str, str], rows: list[Any]) -> list[tuple[str, str]]:
    """Of each row its status, and of what failed the errors."""
    request = mine.post("/api/bulk_requests", mine.bulk_body(*kind, *rows))
    found = {
        json.dumps(result["request_params"], sort_keys=True): (
            result["status"],
            json.dumps(result["entity"].get("request_errors")),
        )
        for result in mine.results(request)
    }
    return [found[json.dumps(row, sort_keys=True)] for row in rows]


@pytest.mark.parametrize("path", LISTS)
def test_ids_in_filters(pair: Pair, path: str) -> None:
    mine, other = pair
    own_path = mine.list_path(path)
    for parameter in DOCUMENT["paths"][path]["get"]["parameters"]:
        schema = parameter["schema"].get("items", parameter["schema"])
        name = parameter["name"]
        if schema.get("format") != "uuid":
            continue

        def ask(id: str, name: str = name) -> httpx.Response:
            return mine.http.get(own_path, params={name: id})

        nobodys = ask(UNKNOWN)
        for id in other.ids.values():
            assert essence(ask(id), id) == essence(nobodys, UNKNOWN), name
        if name not in NOTHING_HAS_ONE:
            found = ask(mine.filters(own_path)[name.removesuffix("[]")])
            assert found.status_code == 200
            assert found.json(), name


def test_names_that_another_tenant_gave(pair: Pair) -> None:
    """External ids: in paths one's own only, in filters too, and free to be given once more."""
    mine, other = pair
    for path, methods, mine_id, their_id in (
        ("/api/ledger_accounts", ["GET"], mine.cash, other.cash),
        ("/api/ledger_transactions", ["GET", "PATCH"], mine.posted, other.posted),
    ):
        what = path.removeprefix("/api/ledger_").removesuffix("s")
        for method in methods:
            found = mine.http.request(method, f"{path}/mine-{what}", json={"metadata": {"k": "v"}})
            assert (found.status_code, found.json()["id"]) == (200, mine_id)
        theirs, nobodys = (
            mine.http.get(path, params={"external_id": f"{owner}-{what}"})
            for owner in ("theirs", "nobodys")
        )
        assert essence(theirs) == essence(nobodys)
        assert len(mine.http.get(path, params={"external_id": f"mine-{what}"}).json()) == 1
        body = mine.good_body("POST", path, {})
        again = mine.http.post(path, json=body | {"external_id": f"mine-{what}"})
        assert again.status_code == 422
        free = mine.http.post(path, json=body | {"external_id": f"theirs-{what}"})
        assert free.status_code == 201
        for owner, id in ((mine, free.json()["id"]), (other, their_id)):
            assert owner.http.get(f"{path}/theirs-{what}").json()["id"] == id


def test_cursors(pair: Pair) -> None:
    mine, other = pair
    Belongings(other.http, "more of theirs")
    with_cursors = 0
    for path in LISTS:
        page = {"per_page": 1}
        cursor = other.http.get(other.list_path(path), params=page).headers.get("x-after-cursor")
        if cursor is None:
            continue
        with_cursors += 1
        own_path = mine.list_path(path)
        theirs, nobodys = (
            mine.http.get(own_path, params={"after_cursor": asked})
            for asked in (cursor, "A" * len(cursor))
        )
        assert theirs.status_code == 400
        assert essence(theirs) == essence(nobodys), path
    assert with_cursors == len(LISTS)


def test_idempotency_keys(pair: Pair) -> None:
    mine, other = pair
    headers = {"idempotency-key": "the-same"}
    first = mine.http.post("/api/ledgers", json={"name": "mine"}, headers=headers)
    second = other.http.post("/api/ledgers", json={"name": "theirs"}, headers=headers)
    assert (first.json()["name"], second.json()["name"]) == ("mine", "theirs")


def test_keys_of_another(cell: CellProcess) -> None:
    mine, other = cell.new_tenant(), cell.new_tenant()
    crossed = Access(
        base_url=mine.base_url,
        organization_id=mine.organization_id,
        api_key=other.api_key,
        other_api_key="",
    )
    with crossed.http() as http:
        for method, path in OPERATIONS:
            asked = re.sub(r"{\w+}", UNKNOWN, path)
            assert http.request(method, asked).status_code == 401
