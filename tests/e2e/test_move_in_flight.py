"""What a tenant's client has under way comes through moves to another cell and back unharmed.

Method: the official SDK, in strict mode, begins everything that outlives a request; the tenant is
moved there and back, each time with a copy; then everything is brought to its end.
"""

from typing import Any

import httpx
import pytest
from test_bulk_scenarios import completed, create, posted
from test_move import move
from test_scenarios import credit, debit, new_books
from webhook_receiver import Receiver

pytestmark = pytest.mark.faults

DEPOSITS = 12
PER_PAGE = 4
BULK_ROWS = 300


def test_what_is_under_way_comes_through(platform: Any) -> None:
    tenant = platform.create_tenant("in-flight")
    cells = ["cell-b", "cell-a"] if tenant.cell == "cell-a" else ["cell-a", "cell-b"]
    with tenant.client() as client, raw_http(tenant) as http, Receiver() as receiver:
        books = new_books(client)
        http.post("/api/webhook_endpoints", json={"url": receiver.url}).raise_for_status()
        deposited = [books.deposit(number + 1).id for number in range(DEPOSITS)]
        entries = [debit(books.cash, 7), credit(books.alice, 7)]
        once: Any = {"ledger_entries": entries, "idempotency_key": "from before the moves"}
        done_once = client.ledger_transactions.create(status="posted", **once)
        pending = client.ledger_transactions.create(status="pending", ledger_entries=entries)
        page = client.ledger_transactions.list(per_page=PER_PAGE)
        before = [pending.id, done_once.id, *reversed(deposited)]
        walked = [each.id for each in page.items]
        rows = [posted(books, 1) for _ in range(BULK_ROWS)]
        for cell in cells:
            bulk = create(client, "create", "ledger_transaction", *rows)
            report = move(platform, "in-flight", cell, "--rollback-window", "0")
            assert (report["decision"], report["rows"] > 0) == ("commit", True)
            again = client.ledger_transactions.create(status="posted", **once)
            assert (again.id, again.created_at) == (done_once.id, done_once.created_at)
            page = page.get_next_page()
            walked += [each.id for each in page.items]
            request = completed(client, bulk.id)
            assert (request.success_result_count, request.failed_result_count) == (BULK_ROWS, 0)
        while page.has_next_page():
            page = page.get_next_page()
            walked += [each.id for each in page.items]
        assert walked == before
        assert client.ledger_transactions.update(pending.id, status="posted").status == "posted"
        total = sum(range(DEPOSITS + 1)) + 2 * 7 + len(cells) * BULK_ROWS
        assert books.balances(books.alice) == (total, total, total)
        events = list(client.events.list(per_page=100))[::-1]
        first = next(
            place for place, event in enumerate(events) if event.data["id"] == deposited[0]
        )
        expected = [event.id for event in events[first:]]
        receiver.wait_for(lambda: set(expected) <= set(receiver.ids()), "every event delivered")
        assert [id for id in receiver.ids() if id in set(expected)] == expected
    report = tenant.verify()
    assert report["ok"], report


def raw_http(tenant: Any) -> httpx.Client:
    """For what the SDK does not know."""
    return httpx.Client(
        base_url=tenant.platform.ready["router"],
        auth=(tenant.organization_id, tenant.api_key),
        trust_env=False,
        timeout=60,
    )
