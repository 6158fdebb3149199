"""What one tenant has: one object at least of each resource, related in every way there is; a good
body for each operation that takes one; and where, by the OpenAPI document, a body names an id.
"""

import json
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import httpx
from cell_process import DEADLINE_S

from cell.openapi import describe
from cell.resources.bulk_items import COMMANDS
from cell.routes import ROUTES

DOCUMENT: Any = describe(ROUTES)
OPERATIONS = [
    (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
]
BULK = "/api/bulk_requests"
BULK_ACTIONS = [(str(action), str(resource)) for action, resource in COMMANDS]
KINDS = {
    "ledger_account_id": "ledger_accounts",
    "sub_category_id": "ledger_account_categories",
    "dead_letter_id": "dead_letters",
}
"""Of the names in paths; `id` is of the resource in front of it."""
JANUARY = {
    "effective_at_lower_bound": "2024-01-01T00:00:00Z",
    "effective_at_upper_bound": "2024-02-01T00:00:00Z",
}
CONDITION = {"field": "posted_balance_amount", "operator": "less_than", "value": 0}

Place = tuple[str | int, ...]


class Belongings:
    """Of one tenant; `label` makes its external ids its own."""

    def __init__(self, http: httpx.Client, label: str) -> None:
        self.http = http
        self.label = label
        self.ledger = self.post("/api/ledgers", {"name": "n"})
        self.cash = self.account("debit", external_id=f"{label}-account")
        self.alice = self.account("credit")
        self.parent, self.category = (self.category_of(self.ledger) for _ in range(2))
        below = f"/api/ledger_account_categories/{self.parent}/ledger_account_categories"
        http.put(f"{below}/{self.category}").raise_for_status()
        link = f"/api/ledger_account_categories/{self.category}/ledger_accounts"
        http.put(f"{link}/{self.alice}").raise_for_status()
        endpoint = self.post("/api/webhook_endpoints", {"url": "http://127.0.0.1:9/hook"})
        january = {"external_id": f"{label}-transaction", "effective_at": "2024-01-15"}
        self.posted = self.transaction(**january)
        path = f"/api/ledger_transactions/{self.posted}"
        http.patch(path, json={"status": "posted"}).raise_for_status()
        self.reversed = self.transaction(status="posted")
        self.reversal = self.post(f"/api/ledger_transactions/{self.reversed}/reversal", {})
        self.parted = self.transaction()
        self.post(f"/api/ledger_transactions/{self.parted}/partial_post", self.part())
        monitor = {"ledger_account_id": self.alice, "alert_condition": CONDITION}
        self.post("/api/ledger_account_balance_monitors", monitor)
        statement = self.post(
            "/api/ledger_account_statements", {"ledger_account_id": self.alice, **JANUARY}
        )
        settled = {"settled_ledger_account_id": self.alice, "contra_ledger_account_id": self.cash}
        self.settlement = self.post("/api/ledger_account_settlements", settled)
        self.bulk = self.post(
            BULK,
            {
                "action_type": "create",
                "resource_type": "ledger_transaction",
                "resources": [{"ledger_entries": self.entries()}],
            },
        )
        self.result = self.results(self.bulk)[0]
        self.ids = {
            "dead_letters": self.first(f"/api/webhook_endpoints/{endpoint}/dead_letters"),
            "ledger_account_statements": statement,
            "ledger_account_settlements": self.settlement,
            "webhook_endpoints": endpoint,
        }
        """One of each resource, by the name that it has in paths."""
        for path in DOCUMENT["paths"]:
            resource = path.removeprefix("/api/")
            if resource not in self.ids and f"{path}/{{id}}" in DOCUMENT["paths"]:
                self.ids[resource] = self.first(path)
        self.ids["ledger_transactions"] = self.posted
        self.ids["ledger_accounts"] = self.alice
        self.ids["ledger_account_categories"] = self.category

    def post(self, path: str, body: Any) -> str:
        """The id of what is created."""
        answer = self.http.post(path, json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def first(self, path: str) -> str:
        """The id of the first of a list, as soon as there is any."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not (page := self.http.get(path).raise_for_status().json()):
            assert time.monotonic() < deadline_s, f"nothing in {path}"
        return str(page[0]["id"])

    def results(self, bulk_request: str) -> list[Any]:
        """Of a bulk request, once it is done."""
        deadline_s = time.monotonic() + DEADLINE_S
        path = f"{BULK}/{bulk_request}"
        while self.http.get(path).raise_for_status().json()["status"] != "completed":
            assert time.monotonic() < deadline_s, "still not completed"
        params: dict[str, str | int] = {"request_id": bulk_request, "per_page": 100}
        results: list[Any] = self.http.get("/api/bulk_results", params=params).json()
        return results

    # One more of something

    def account(self, normal_balance: str = "credit", **fields: Any) -> str:
        return self.post("/api/ledger_accounts", self.account_body(normal_balance) | fields)

    def account_body(self, normal_balance: str = "credit") -> dict[str, Any]:
        named = {"ledger_id": self.ledger, "name": "n", "currency": "USD"}
        return named | {"normal_balance": normal_balance}

    def category_of(self, ledger: str) -> str:
        body = {"ledger_id": ledger, "name": "n", "normal_balance": "credit", "currency": "USD"}
        return self.post("/api/ledger_account_categories", body)

    def transaction(self, **fields: Any) -> str:
        return self.post("/api/ledger_transactions", {"ledger_entries": self.entries(), **fields})

    def entries(self, amount: int = 5) -> list[Any]:
        return [
            {"ledger_account_id": id, "direction": direction, "amount": amount}
            for id, direction in ((self.cash, "debit"), (self.alice, "credit"))
        ]

    def part(self) -> Any:
        return {"posted_ledger_entries": self.entries(2)}

    def loose_entry(self) -> str:
        """A posted entry of the settled account that is in no settlement."""
        transaction = self.transaction(status="posted")
        params = {"ledger_transaction_id": transaction, "ledger_account_id": self.alice}
        return str(self.http.get("/api/ledger_entries", params=params).json()[0]["id"])

    def fresh(self, resource: str, method: str, path: str) -> str:
        """One of the resource that the operation can be done to; one is as good as another where
        nothing can be done to it but reading."""
        match resource:
            case "ledgers":
                return self.post("/api/ledgers", {"name": "fresh"})
            case "ledger_accounts":
                return self.account()
            case "ledger_account_categories":
                return self.category_of(self.ledger)
            case "ledger_transactions":
                return self.transaction(
                    status="posted" if path.endswith("/reversal") else "pending"
                )
            case "ledger_account_balance_monitors":
                body = {"ledger_account_id": self.alice, "alert_condition": CONDITION}
                return self.post("/api/ledger_account_balance_monitors", body)
            case "webhook_endpoints" if method in ("PATCH", "DELETE"):
                return self.post("/api/webhook_endpoints", {"url": "http://127.0.0.1:9/more"})
            case "ledger_account_settlements" if method in ("PATCH", "DELETE"):
                return self.draft()
        return self.ids[resource]

    def draft(self, *entries: str) -> str:
        body = {
            "settled_ledger_account_id": self.alice,
            "contra_ledger_account_id": self.cash,
            "status": "drafting",
        }
        return self.post("/api/ledger_account_settlements", body)

    def own_path_ids(self, method: str, path: str) -> dict[str, str]:
        """For each name in the braces of a path; in such a state that the operation succeeds."""
        segments = path.split("/")
        found = {}
        for place, segment in enumerate(segments):
            if segment.startswith("{"):
                name = segment.strip("{}")
                resource = KINDS.get(name) or segments[place - 1]
                found[name] = self.fresh(resource, method, path)
        if method == "DELETE" and len(found) == 2:
            self.http.put(path.format(**found)).raise_for_status()
        return found

    def good_body(self, method: str, path: str, path_ids: dict[str, str]) -> Any:
        """One that succeeds, with every id in it that a body of this operation can name."""
        lock = {
            "ledger_account_category_id": self.category,
            "posted_balance_amount": {"gte": 0},
        }
        transaction = {
            "ledger_entries": self.entries(),
            "ledger_account_category_balance_locks": [lock],
        }
        linked = self.account_body() | {"ledger_account_category_ids": [self.category]}
        match method, path.removeprefix("/api/"):
            case "POST", "ledgers":
                return {"name": "n"}
            case "POST", "ledger_accounts" | "ledger_account_categories":
                return linked
            case ("POST", "ledger_transactions") | ("PATCH", "ledger_transactions/{id}"):
                return transaction
            case "POST", "ledger_transactions/{id}/partial_post":
                return self.part()
            case "POST", "ledger_account_balance_monitors":
                return {"ledger_account_id": self.alice, "alert_condition": CONDITION}
            case "POST", "ledger_account_statements":
                return {"ledger_account_id": self.alice, **JANUARY}
            case "POST", "webhook_endpoints":
                return {"url": "http://127.0.0.1:9/another"}
            case "POST", "ledger_account_settlements":
                return {
                    "settled_ledger_account_id": self.alice,
                    "contra_ledger_account_id": self.cash,
                    "status": "drafting",
                }
            case _, "ledger_account_settlements/{id}/ledger_entries":
                body = {"ledger_entry_ids": [self.loose_entry()]}
                if method == "DELETE":
                    self.http.patch(path.format(**path_ids), json=body).raise_for_status()
                return body
            case "POST", "bulk_requests":
                return self.bulk_body("delete", "ledger_account", {"id": self.account()})
        return {}

    def bulk_body(self, action: str, resource: str, *rows: Any) -> Any:
        return {"action_type": action, "resource_type": resource, "resources": list(rows)}

    def good_row(self, action: str, resource: str) -> Any:
        """Of a bulk request."""
        kind = f"{resource}s"
        named = {} if action == "create" else {"id": self.fresh(kind, "PATCH", "")}
        if action == "delete":
            return named
        method, path = row_operation(action, resource)
        body = self.good_body(method, path, {})
        # Nothing with locks is done in bulk.
        body.pop("ledger_account_category_balance_locks", None)
        return named | body

    # Lists

    def list_path(self, path: str) -> str:
        """Of a list that holds something, if it is that of an object's."""
        return path.format(id=self.ids.get(path.split("/")[2]))

    def filters(self, path: str) -> dict[str, str]:
        """An id that finds something, for the parameters of a list that are called so."""
        bulk = path == "/api/bulk_results"
        return {
            "id": self.first(path),
            "ledger_id": self.ledger,
            "ledger_account_id": self.alice,
            "settled_ledger_account_id": self.alice,
            "ledger_account_category_id": self.category,
            "parent_ledger_account_category_id": self.parent,
            "ledger_account_settlement_id": self.settlement,
            "ledger_account_statement_id": self.ids["ledger_account_statements"],
            "ledger_transaction_id": self.settlement_transaction,
            "reverses_ledger_transaction_id": self.reversed,
            "partially_posts_ledger_transaction_id": self.parted,
            "request_id": self.bulk,
            "entity_id": self.result["entity_id"] if bulk else self.posted,
        }

    @cached_property
    def settlement_transaction(self) -> str:
        path = f"/api/ledger_account_settlements/{self.settlement}"
        deadline_s = time.monotonic() + DEADLINE_S
        while (found := self.http.get(path).json())["status"] == "processing":
            assert time.monotonic() < deadline_s, "still processing"
        return str(found["ledger_transaction_id"])


def row_operation(action: str, resource: str) -> tuple[str, str]:
    """The operation whose body a row of a bulk request has."""
    path = f"/api/{resource}s"
    return ("POST", path) if action == "create" else ("PATCH", path + "/{id}")


def body_places(method: str, path: str) -> list[Place]:
    """Where a body of the operation can name an id; an index stands for every one."""
    operation = DOCUMENT["paths"][path][method.lower()]
    if "requestBody" not in operation:
        return []
    return list(_places(operation["requestBody"]["content"]["application/json"]["schema"], ()))


def _places(schema: Any, at: Place) -> Iterator[Place]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from _places(DOCUMENT["components"]["schemas"][name], at)
    for one in schema.get("anyOf", ()):
        yield from _places(one, at)
    if "items" in schema:
        yield from _places(schema["items"], (*at, 0))
    for name, of_name in schema.get("properties", {}).items():
        yield from _places(of_name, (*at, name))
    if schema.get("format") == "uuid":
        yield at


def concrete(value: Any, place: Place) -> Iterator[Place]:
    """The places in a body that a place of its schema stands for."""
    if not place:
        yield ()
        return
    step, rest = place[0], place[1:]
    if isinstance(step, int):
        steps: list[str | int] = list(range(len(value)))
    else:
        steps = [step] if step in value else []
    for each in steps:
        for further in concrete(value[each], rest):
            yield (each, *further)


def replaced(body: Any, place: Place, id: str) -> Any:
    """A copy of the body with another id there."""
    copy = json.loads(json.dumps(body))
    inner = copy
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = id
    return copy
