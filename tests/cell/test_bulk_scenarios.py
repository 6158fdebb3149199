"""Method: bulk requests and asynchronous ledger transactions, driven by the official SDK in strict
mode where its types allow it (they say that `request_params` has no nested values, and that every
result has an entity). Knows nothing of what serves it but the fixture `access`, as the scenarios.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from cell_process import DEADLINE_S, Access
from modern_treasury import ModernTreasury
from modern_treasury.types import BulkRequest, BulkResult, LedgerAccount, LedgerTransaction
from modern_treasury.types.bulk_result import EntityBulkError
from test_scenarios import Books, credit, debit, new_books

ASYNC = {"Prefer": "wait=5, Respond-Async; x=1"}


@pytest.fixture
def client(access: Access) -> Iterator[ModernTreasury]:
    with access.sdk() as client:
        yield client


@pytest.fixture
def lax(access: Access) -> Iterator[ModernTreasury]:
    with access.sdk(strict=False) as client:
        yield client


@pytest.fixture
def http(access: Access) -> Iterator[httpx.Client]:
    with access.http() as http:
        yield http


@pytest.fixture
def books(client: ModernTreasury) -> Books:
    return new_books(client)


def polled(look: Callable[[], Any], is_done: Callable[[Any], bool]) -> Any:
    """What is seen once it is done."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_done(seen := look()):
        assert time.monotonic() < deadline_s, seen
        time.sleep(0.02)
    return seen


def completed(client: ModernTreasury, id: str) -> BulkRequest:
    done: BulkRequest = polled(
        lambda: client.bulk_requests.retrieve(id), lambda request: request.status == "completed"
    )
    return done


def create(client: ModernTreasury, action: str, kind: str, *rows: Any, **fields: Any) -> Any:
    return client.bulk_requests.create(
        action_type=action,  # type: ignore[arg-type]
        resource_type=kind,  # type: ignore[arg-type]
        resources=rows,
        **fields,
    )


def results_of(client: ModernTreasury, request: BulkRequest) -> list[BulkResult]:
    """In the order of the rows."""
    return list(client.bulk_results.list(request_id=request.id, per_page=100))[::-1]


def errors_of(result: BulkResult) -> list[tuple[str | None, str | None]]:
    """Code and parameter."""
    assert isinstance(result.entity, EntityBulkError)
    assert (result.status, result.entity_type) == ("failed", "bulk_error")
    assert result.entity_id == result.entity.id
    assert all(error.message for error in result.entity.request_errors)
    return [(error.code, error.parameter) for error in result.entity.request_errors]


def posted(books: Books, amount: int, credited: int | None = None, **fields: Any) -> dict[str, Any]:
    """A row that creates a deposit, unbalanced where another amount is credited."""
    entries = [
        debit(books.cash, amount),
        credit(books.alice, amount if credited is None else credited),
    ]
    return {"status": "posted", "ledger_entries": entries, **fields}


# A25


def test_each_row_of_a_bulk_request_stands_alone(
    books: Books, client: ModernTreasury, lax: ModernTreasury
) -> None:
    rows = [posted(books, 100), posted(books, 100, 99), posted(books, 200, description="é 1")]
    made = create(client, "create", "ledger_transaction", *rows, metadata={"k": "v", "e": ""})
    assert (made.total_resource_count, made.status, made.metadata) == (3, "pending", {"k": "v"})
    request = completed(client, made.id)
    counts = (request.success_result_count, request.failed_result_count)
    assert (request.total_resource_count, *counts) == (3, 2, 1)
    assert request.created_at == made.created_at < request.updated_at
    first, second, third = results_of(client, request)
    for result, row in ((first, rows[0]), (third, rows[2])):
        assert (result.status, result.entity_type) == ("successful", "ledger_transaction")
        assert (result.request_id, result.request_type) == (request.id, "bulk_request")
        assert isinstance(result.entity, LedgerTransaction)
        assert result.entity == client.ledger_transactions.retrieve(result.entity_id)
        assert result.request_params == row
    assert errors_of(second) == [("parameter_invalid", "ledger_entries")]
    assert books.balances(books.alice) == (300, 300, 300)
    assert len(books.transactions()) == 2
    assert lax.bulk_results.retrieve(second.id) == second
    # Where its types allow it, the SDK checks a single result strictly.
    account = {"id": books.bob}
    request = completed(client, create(client, "delete", "ledger_account", account).id)
    (result,) = results_of(client, request)
    assert client.bulk_results.retrieve(result.id).request_params == account


def test_rows_that_need_an_immediate_answer_fail(books: Books, client: ModernTreasury) -> None:
    refused = {
        "ledger_entries[0].lock_version": {"lock_version": 0},
        "ledger_entries[0].pending_balance_amount": {"pending_balance_amount": {"gte": 0}},
        "ledger_entries[0].posted_balance_amount": {"posted_balance_amount": {"gte": 0}},
        "ledger_entries[0].available_balance_amount": {"available_balance_amount": {"eq": 1}},
        "ledger_entries[0].show_resulting_ledger_account_balances": {
            "show_resulting_ledger_account_balances": True
        },
    }
    rows = [
        {"ledger_entries": [debit(books.cash, 1, **fields), credit(books.alice, 1)]}
        for fields in refused.values()
    ]
    category_lock = {
        "ledger_account_category_id": str(uuid.uuid4()),
        "pending_balance_amount": {"gte": 0},
    }
    rows += [
        posted(books, 1, archive_on_balance_lock_failure=True),
        posted(books, 1, ledger_account_category_balance_locks=[category_lock]),
        posted(books, -1),
        {"status": "posted"},
    ]
    request = create(client, "create", "ledger_transaction", *rows)
    # Nothing is left to apply, so that it is complete at once.
    assert (request.status, request.failed_result_count) == ("completed", 9)
    assert [errors_of(result) for result in results_of(client, request)] == [
        *([("parameter_invalid", parameter)] for parameter in refused),
        [("parameter_invalid", "archive_on_balance_lock_failure")],
        [("parameter_invalid", "ledger_account_category_balance_locks")],
        [("parameter_invalid", "ledger_entries[0].amount")],
        [("parameter_missing", "ledger_entries")],
    ]
    assert books.transactions() == []


def test_bulk_updates_and_deletes(
    books: Books, client: ModernTreasury, lax: ModernTreasury
) -> None:
    unknown = str(uuid.uuid4())
    account = {"normal_balance": "credit", "currency": "USD", "ledger_id": books.ledger}
    request = completed(
        client,
        create(
            client, "create", "ledger_account", {"name": "C", **account}, {"name": "", **account}
        ).id,
    )
    carol, nameless = results_of(client, request)
    assert isinstance(carol.entity, LedgerAccount)
    assert errors_of(nameless) == [("parameter_invalid", "name")]
    assert (carol.entity.name, carol.entity.lock_version) == ("C", 0)

    rows = [{"id": carol.entity.id, "name": "Carol"}, {"id": unknown, "name": "x"}, {"name": "x"}]
    request = completed(client, create(client, "update", "ledger_account", *rows).id)
    changed, missing, anonymous = results_of(client, request)
    assert isinstance(changed.entity, LedgerAccount)
    assert changed.entity.name == "Carol"
    assert errors_of(missing) == [("resource_not_found", None)]
    assert errors_of(anonymous) == [("parameter_missing", "id")]

    pending = books.write(debit(books.cash, 5), credit(books.bob, 5), status="pending").id
    rows = [{"id": pending, "status": "posted"}, {"id": pending, "status": "archived"}]
    request = completed(client, create(client, "update", "ledger_transaction", *rows).id)
    done, refused = results_of(client, request)
    assert isinstance(done.entity, LedgerTransaction)
    assert done.entity.status == "posted"
    assert errors_of(refused) == [("parameter_invalid", "ledger_transaction")]
    assert books.balances(books.bob) == (5, 5, 5)

    # The second time it changes nothing, and is a success all the same.
    rows = [{"id": carol.entity.id}, {"id": carol.entity.id}]
    request = completed(client, create(client, "delete", "ledger_account", *rows).id)
    for result in results_of(client, request):
        assert isinstance(result.entity, LedgerAccount)
        assert result.entity.discarded_at is not None
    # A result shows the object as it is now.
    assert lax.bulk_results.retrieve(changed.id).entity.discarded_at is not None


def test_what_is_no_bulk_request(books: Books, http: httpx.Client) -> None:
    def refused(status: int, parameter: str | None, **changes: Any) -> None:
        body = {
            "action_type": "create",
            "resource_type": "ledger_transaction",
            "resources": [posted(books, 1)],
            **changes,
        }
        answer = http.post("/api/bulk_requests", json=body)
        assert (answer.status_code, answer.json()["errors"].get("parameter")) == (status, parameter)

    refused(422, "action_type", action_type="delete")
    refused(422, "action_type", action_type="upsert")
    refused(422, "resource_type", resource_type="payment_order")
    refused(422, "resources", resources=[])
    refused(422, "resources", resources=[{}] * 5001)
    refused(422, "resources[1]", resources=[{}, "x"])
    refused(413, None, resources=[{"x": "y" * (8 * 1024 * 1024)}])
    assert http.get("/api/bulk_requests").json() == []


# Prefer: respond-async


def test_asynchronous_transaction(
    books: Books, client: ModernTreasury, lax: ModernTreasury, http: httpx.Client
) -> None:
    def post(key: str, **changes: Any) -> httpx.Response:
        return http.post(
            "/api/ledger_transactions",
            json={**posted(books, 700), **changes},
            headers={**ASYNC, "Idempotency-Key": key},
        )

    queued = post("k")
    assert queued.status_code == 202, queued.text
    assert queued.headers["preference-applied"] == "respond-async"
    body = queued.json()
    assert (body["object"], body["status"], body["entity"]) == ("bulk_result", "pending", None)
    assert body["request_params"] == posted(books, 700)
    assert queued.headers["location"] == f"/api/bulk_results/{body['id']}"
    request = completed(client, body["request_id"])
    assert (request.success_result_count, request.total_resource_count) == (1, 1)
    result = http.get(queued.headers["location"]).json()
    assert (result["status"], result["entity_type"]) == ("successful", "ledger_transaction")
    assert client.ledger_transactions.retrieve(result["entity_id"]).status == "posted"
    # A repeat gives the same answer, and nothing is done twice.
    again = post("k")
    assert (again.status_code, again.content) == (202, queued.content)
    assert again.headers["location"] == queued.headers["location"]
    assert books.balances(books.alice) == (700, 700, 700)

    # What would be refused now is refused now, and its key stays free.
    assert post("f", ledger_entries=[debit(books.cash, 1)] * 2).status_code == 422
    unknown = [debit(str(uuid.uuid4()), 1), credit(books.alice, 1)]
    assert post("f", ledger_entries=unknown).status_code == 404
    locked = [debit(books.cash, 1, posted_balance_amount={"gte": 0}), credit(books.alice, 1)]
    answer = post("f", ledger_entries=locked)
    assert answer.status_code == 422
    assert answer.json()["errors"]["parameter"] == "ledger_entries[0].posted_balance_amount"
    assert len(lax.bulk_requests.list().items) == 1
    # By the SDK, which hands out the answer as it came.
    raw = client.ledger_transactions.with_raw_response.create(
        ledger_entries=posted(books, 1, 1)["ledger_entries"],
        idempotency_key="f",
        extra_headers=ASYNC,
    )
    assert raw.status_code == 202
    completed(client, raw.http_response.json()["request_id"])
    assert books.balances(books.alice) == (700, 701, 700)


def test_lists_of_bulk_requests_and_results(
    books: Books, client: ModernTreasury, access: Access
) -> None:
    good = posted(books, 1)
    mixed = create(client, "create", "ledger_transaction", good, posted(books, 1, 2), good)
    gone = create(client, "delete", "ledger_account", {"id": books.bob}, metadata={"m": "x y"})
    for request in (mixed, gone):
        completed(client, request.id)

    def requests(**filters: Any) -> list[str]:
        return [each.id for each in client.bulk_requests.list(per_page=1, **filters)]

    assert requests() == requests(status="completed") == [gone.id, mixed.id]
    assert requests(status="pending") == requests(status="processing") == []
    assert requests(action_type="create") == requests(resource_type="ledger_transaction")
    assert requests(action_type="delete", resource_type="ledger_account") == [gone.id]
    assert requests(metadata={"m": "x y"}) == [gone.id]
    assert requests(metadata={"m": "x"}) == requests(action_type="update") == []

    def results(**filters: Any) -> list[str]:
        return [each.id for each in client.bulk_results.list(per_page=1, **filters)]

    first, second, third = results(request_id=mixed.id)[::-1]
    (deleted,) = results(request_id=gone.id, request_type="bulk_request")
    assert results() == [deleted, third, second, first]
    assert results(status="successful") == [deleted, third, first]
    assert results(entity_type="bulk_error") == results(status="failed") == [second]
    assert results(entity_type="ledger_transaction") == [third, first]
    assert results(entity_id=books.bob) == [deleted]
    # A failure is an entity, too.
    assert results(entity_id=second) == [second]
    assert results(status="pending") == results(request_id=str(uuid.uuid4())) == []
    with access.http() as http:
        for path in ("requests", "results"):
            assert http.get(f"/api/bulk_{path}?status=done").status_code == 422
            assert http.get(f"/api/bulk_{path}/{uuid.uuid4()}").status_code == 404
            assert http.get(f"/api/bulk_{path}/x").status_code == 404
