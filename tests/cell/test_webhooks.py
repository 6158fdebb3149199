"""Webhooks: delivered in order, at least once, signed, and to nobody inside.

Method: a cell process with a receiver of ours, a real HTTP server whose answers the test decides;
the official SDK writes and checks signatures. Targets that are refused are tried on the sender.
"""

import json
import threading
from collections.abc import Iterator
from signal import SIGKILL
from typing import Any

import httpx
import psycopg
import pytest
from cell_process import DEADLINE_S, Access, CellProcess, running_cell
from ledger_audit import assert_ledger_holds
from test_scenarios import Books, new_books
from webhook_receiver import Receiver

from cell.errors import Unprocessable
from cell.ledger.model import TenantId
from cell.tables import TENANT_TABLES
from cell.webhook_sending import (
    WebhookPolicy,
    WebhookSender,
    is_public,
    parse_target,
    require_public_literal,
    signing_key,
)

SECRET = "the platform's secret of the tests"
ATTEMPTS_MAX = 6
UNNAMEABLE = ("http://a..b/", "http://.example.com/", "https://./", f"http://{'a' * 64}.example/")
"""Host names that cannot be looked up at all."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


@pytest.fixture(scope="module")
def cell(
    make_cell_database: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CellProcess]:
    settings = {
        "WEBHOOK_SECRET": SECRET,
        "WEBHOOK_PRIVATE_TARGETS": "true",
        "WEBHOOK_ATTEMPTS_MAX": str(ATTEMPTS_MAX),
        "WEBHOOK_RETRY_MS": "20",
    }
    with make_cell_database() as database:
        with running_cell(database, tmp_path_factory.mktemp("cell"), **settings) as running:
            yield running
        log = running.log_file.read_text()
        assert "Traceback" not in log, log
        assert "whsec_" not in log
        with psycopg.connect(database.superuser_dsn) as connection:
            for table in TENANT_TABLES:
                query = f"SELECT count(*) FROM {table} t WHERE t::text LIKE '%whsec_%'"
                assert connection.execute(query).fetchone() == (0,), table  # type: ignore[arg-type]
        assert_ledger_holds(database.superuser_dsn)


@pytest.fixture
def access(cell: CellProcess) -> Access:
    return cell.new_tenant()


@pytest.fixture
def books(access: Access) -> Iterator[Books]:
    with access.sdk() as client:
        yield new_books(client)


@pytest.fixture
def http(access: Access) -> Iterator[httpx.Client]:
    with access.http() as client:
        yield client


def endpoint_to(http: httpx.Client, url: str) -> dict[str, Any]:
    answer = http.post("/api/webhook_endpoints", json={"url": url})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def events_of(books: Books) -> list[Any]:
    """All of the tenant, the oldest first."""
    return list(books.client.events.list(per_page=100))[::-1]


def test_events_come_in_order_signed_and_after_failures(
    books: Books, http: httpx.Client, receiver: Receiver
) -> None:
    books.deposit(1)
    endpoint = endpoint_to(http, receiver.url)
    refusals = iter([500, 302, 404, *[200] * 1000])
    receiver.verdict = lambda body: next(refusals)
    for amount in range(2, 6):
        books.deposit(amount)
    events = events_of(books)[2:]
    receiver.wait_for(lambda: len(receiver.ids()) == len(events), "all delivered")
    assert receiver.refused == 3
    assert receiver.ids() == [event.id for event in events]
    for (_, signature, body), event in zip(receiver.received, events, strict=True):
        signed = {"headers": {"X-Signature": signature}, "key": endpoint["signing_key"]}
        assert books.client.webhooks.validate_signature(body.decode(), **signed)
        assert json.loads(body) == {"event": event.event_name, "data": event.data}
    http.delete(f"/api/webhook_endpoints/{endpoint['id']}").raise_for_status()


def test_endpoints_are_made_changed_and_deleted(
    access: Access, cell: CellProcess, http: httpx.Client, receiver: Receiver
) -> None:
    key = {"idempotency-key": "k"}
    body = {"url": receiver.url, "description": "d"}
    made, again = (http.post("/api/webhook_endpoints", json=body, headers=key) for _ in range(2))
    assert made.status_code == 201
    assert made.json() == again.json()
    shown = made.json()
    tenant_id = TenantId(access.organization_id)
    assert shown.pop("signing_key") == signing_key(SECRET, tenant_id, shown["id"])
    path = f"/api/webhook_endpoints/{shown['id']}"
    assert http.get(path).json() == shown
    assert http.get("/api/webhook_endpoints").json() == [shown]
    changed = http.patch(path, json={"description": None})
    assert (changed.status_code, changed.json()["description"]) == (200, None)
    for url in UNNAMEABLE:
        refused = http.patch(path, json={"url": url})
        assert (refused.status_code, refused.json()["errors"]["parameter"]) == (422, "url"), url
    assert http.get(path).json()["url"] == receiver.url
    with cell.new_tenant().http() as other:
        assert other.get(path).status_code == 404
        assert other.patch(path, json={"description": "x"}).status_code == 404
        assert other.get(f"{path}/dead_letters").status_code == 404
        assert other.get("/api/webhook_endpoints").json() == []
    assert http.delete(path).json()["discarded_at"] is not None
    assert http.delete(path).status_code == 200
    assert http.get(path).status_code == http.patch(path, json={}).status_code == 404
    shapes = ("ftp://h/", "http://", "http://u:p@h/", "x", "http://h/ x", "http://h:99999/")
    for url in (*shapes, *UNNAMEABLE):
        answer = http.post("/api/webhook_endpoints", json={"url": url})
        assert (answer.status_code, answer.json()["errors"]["parameter"]) == (422, "url"), url


def test_what_is_never_taken_becomes_a_dead_letter(
    books: Books, http: httpx.Client, receiver: Receiver
) -> None:
    endpoint = endpoint_to(http, receiver.url)
    receiver.verdict = lambda body: 500 if body["event"] == "posted" else 200
    books.deposit(1)
    created, posted = events_of(books)
    letters = f"/api/webhook_endpoints/{endpoint['id']}/dead_letters"
    receiver.wait_for(lambda: receiver.refused == ATTEMPTS_MAX, "given up")
    # The one behind it is not held up any longer.
    books.write(
        {"ledger_account_id": books.cash, "direction": "debit", "amount": 2},
        {"ledger_account_id": books.alice, "direction": "credit", "amount": 2},
        status="pending",
    )
    behind = events_of(books)[-1]
    receiver.wait_for(lambda: receiver.ids() == [created.id, behind.id], "the one behind")
    (letter,) = http.get(letters).json()
    assert (letter["event_id"], letter["attempts"]) == (posted.id, ATTEMPTS_MAX)
    assert letter["last_error"] == "answered 500"
    redeliver = f"{letters}/{letter['id']}/redeliver"
    assert http.post(redeliver).status_code == 422
    receiver.verdict = lambda body: 200
    taken = http.post(redeliver)
    assert (taken.status_code, taken.json()["id"]) == (201, letter["id"])
    assert receiver.ids()[-1] == posted.id
    assert http.get(letters).json() == []
    http.delete(f"/api/webhook_endpoints/{endpoint['id']}").raise_for_status()


def test_a_crash_repeats_some_and_loses_none(
    books: Books, cell: CellProcess, http: httpx.Client, receiver: Receiver
) -> None:
    endpoint_to(http, receiver.url)
    gate = threading.Semaphore(7)
    receiver.verdict = lambda body: 200 if gate.acquire(timeout=DEADLINE_S) else 500
    for amount in range(1, 9):
        books.deposit(amount)
    events = [event.id for event in events_of(books)]
    receiver.wait_for(lambda: len(receiver.received) == 7, "some delivered")
    assert cell.stop(SIGKILL) == -SIGKILL
    gate.release(1000)
    cell.start()
    cell.wait_until_healthy()
    receiver.wait_for(lambda: len(receiver.ids()) == len(events), "the rest delivered")
    assert receiver.ids() == events


# --- whom they may reach -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1"),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1"),
    ],
)
def test_addresses_that_are_refused(address: str) -> None:
    assert not is_public(address)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(Unprocessable):
        require_public_literal(parse_target(f"http://{host}:8080/x"))


def test_addresses_that_are_taken() -> None:
    for address in ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"):
        assert is_public(address)
    require_public_literal(parse_target("https://example.com:8443/x?y"))
    for host in ("example.com.", f"{'a' * 63}.example", "[::1]"):
        parse_target(f"http://{host}/")


async def test_names_are_judged_by_their_addresses(receiver: Receiver) -> None:
    policy = WebhookPolicy(secret=SECRET, private_targets=False, attempts_max=1, retry_s=1.0)
    sender = WebhookSender(policy, lambda found: b"{}")
    event: Any = type("Found", (), {"id": "id"})
    tenant_id = TenantId("00000000-0000-4000-8000-000000000001")
    try:
        for host in ("localhost", "127.0.0.1", "2130706433", "[::ffff:127.0.0.1]"):
            url = f"http://{host}:{receiver.server_port}/"
            refusal = await sender.send(tenant_id, "id", url, event)
            assert refusal is not None
            assert "TargetRefused" in refusal
        # Endpoints of before such URLs were refused: an attempt that failed like any other.
        for url in UNNAMEABLE:
            assert await sender.send(tenant_id, "id", url, event) is not None
    finally:
        await sender.close()
    assert not receiver.received
    assert not receiver.refused
