"""Method: raw HTTP to a cell process: credentials, paths, headers, bodies and errors that the SDK
would not send; and one endpoint that breaks, in process. What is bad input: `test_robustness`.
"""

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cell_process import Access, CellProcess

from cell.answers import Answer
from cell.api import TenantApi, split_path
from cell.calls import BODY_BYTES_MAX, Call, CellParts, Route, read_body
from cell.errors import InvalidRequest, OutcomeUnknown
from cell.ledger.commands import Command, CreateApiKey
from cell.ledger.model import TenantId
from cell.metrics import RequestMetrics
from cell.reads import Reader
from cell.resources import webhook_endpoints
from cell.routes import FIRST_ANSWERS, ROUTES
from cell.tenants import Directory

UNKNOWN = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def http(access: Access) -> Iterator[httpx.Client]:
    with access.http() as client:
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error, after checking its form."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["errors"]
    errors: dict[str, Any] = body["errors"]
    assert set(errors) <= {"code", "message", "parameter"}
    assert errors["code"]
    assert errors["message"]
    return errors


# Credentials


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic !!!",
        "Bearer abc",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b":key").decode(),
        "Basic " + base64.b64encode(UNKNOWN.encode() + b":").decode(),
        "Basic " + base64.b64encode(b"not-a-uuid:key").decode(),
        "Basic " + base64.b64encode(UNKNOWN.encode() + b":" + b"k" * 600).decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
    ],
)
def test_missing_or_malformed_credentials(served_cell: CellProcess, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    answer = httpx.get(
        f"{served_cell.base_url}/api/ping", headers=headers, trust_env=False, verify=False
    )
    assert answer.status_code == 401
    assert error_of(answer)["code"] == "invalid_key"
    assert answer.headers["www-authenticate"].startswith("Basic")


def test_refusals_are_the_same_to_the_byte(access: Access, served_cell: CellProcess) -> None:
    other = served_cell.new_tenant()
    with access.http() as http:
        answers = [
            http.get("/api/ledgers", auth=credentials)
            for credentials in (
                (access.organization_id, "wrong"),
                (str(uuid.uuid4()), access.api_key),
                (other.organization_id, access.api_key),
            )
        ]
    assert len({answer.content for answer in answers}) == 1


def test_credentials_are_asked_for_before_paths(served_cell: CellProcess) -> None:
    answer = httpx.get(f"{served_cell.base_url}/no/such/path", trust_env=False, verify=False)
    assert answer.status_code == 401


def test_scheme_in_any_case_and_organization_in_capitals(access: Access) -> None:
    pair = f"{access.organization_id.upper()}:{access.api_key}".encode()
    headers = {"authorization": "bASIC " + base64.b64encode(pair).decode()}
    answer = httpx.get(
        f"{access.base_url}/api/ping", headers=headers, trust_env=False, verify=False
    )
    assert answer.status_code == 200


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/",
        "/api/nothing",
        "/api/ping/x",
        "/api/ledgers/",
        f"/api/ledgers/{UNKNOWN}/",
        f"/api/ledgers/{UNKNOWN}/versions",
        "/apix/ping",
        "//api/ping",
        "/x/api/ping",
        "/unrouted",
    ],
)
def test_unknown_paths(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert error_of(answer)["code"] in ("not_found", "resource_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/ledgers", "GET, POST"),
        ("PUT", f"/api/ledgers/{UNKNOWN}", "DELETE, GET, PATCH"),
        ("DELETE", f"/api/ledger_transactions/{UNKNOWN}", "GET, PATCH"),
        ("POST", "/api/ping", "GET"),
        ("HEAD", "/api/ping", "GET"),
        ("OPTIONS", "/api/ping", "GET"),
        ("TRACE", "/api/ping", "GET"),
    ],
)
def test_wrong_methods(http: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("path", "shape", "ids"),
    [
        ("/api/ledgers", "ledgers", ()),
        ("/api/ledgers/7", "ledgers/{}", ("7",)),
        ("/api/ledgers/a%2Fb%20c", "ledgers/{}", ("a/b c",)),
        ("/api/ledgers/100%25", "ledgers/{}", ("100%",)),
        ("/api/a/1/b", "a/{}/b", ("1",)),
        ("/api/a/1/b/2", "a/{}/b/{}", ("1", "2")),
        ("/api/{}/1", "{}/{}", ("1",)),
        ("/other", "unrouted", ()),
    ],
)
def test_shapes(path: str, shape: str, ids: tuple[str, ...]) -> None:
    assert split_path(path) == (shape, ids)


def test_every_command_of_a_post_has_its_first_answer() -> None:
    posts = [route for route in ROUTES if route.method == "POST"]
    answered = {*FIRST_ANSWERS, *webhook_endpoints.first_answers(None)}
    at_once_or_queued = 2
    assert len(answered) == len(posts) - 1 + at_once_or_queued, (
        "a transaction is created in two ways"
    )
    assert answered <= set(Command.__args__)  # type: ignore[attr-defined]


# Headers


def test_request_id_is_the_routers(http: httpx.Client) -> None:
    answer = http.get("/api/ping", headers={"cloister-request-id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"


@pytest.mark.parametrize(
    "given", [None, "", "two words", "x" * 129, "é".encode().decode("latin-1")]
)
def test_request_id_is_made_where_none_can_be_used(http: httpx.Client, given: str | None) -> None:
    headers = {} if given is None else {"cloister-request-id": given.encode("latin-1")}
    made = {http.get("/api/ping", headers=headers).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", id) for id in made)


def test_errors_carry_the_request_id(http: httpx.Client) -> None:
    answer = http.get("/api/nothing", headers={"cloister-request-id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"


def test_idempotency_keys_of_the_longest_form(http: httpx.Client) -> None:
    headers = {"idempotency-key": "k k~!" * 51}
    first = http.post("/api/ledgers", json={"name": "n"}, headers=headers)
    again = http.post("/api/ledgers", json={"name": "n"}, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content


def test_without_an_idempotency_key_every_request_counts(http: httpx.Client) -> None:
    first, again = (http.post("/api/ledgers", json={"name": "n"}).json()["id"] for _ in range(2))
    assert first != again


# Bodies


def test_announced_body_over_the_limit(access: Access) -> None:
    answer = raw_request(
        access, b"content-length: %d\r\ncontent-type: application/json\r\n" % (BODY_BYTES_MAX + 1)
    )
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_chunked_body_over_the_limit(http: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(BODY_BYTES_MAX // 1_000_000 + 2):
            yield b" " * 1_000_000

    answer = http.post("/api/ledgers", content=body(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    error_of(answer)


def test_long_body_below_the_limit(http: httpx.Client) -> None:
    body = {"name": "n", "padding": "x" * (BODY_BYTES_MAX - 100)}
    assert http.post("/api/ledgers", json=body).status_code == 201


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_empty_body_where_one_is_needed(http: httpx.Client, method: str) -> None:
    ledger = http.post("/api/ledgers", json={"name": "n"}).json()["id"]
    path = "/api/ledgers" if method == "POST" else f"/api/ledgers/{ledger}"
    answer = http.request(method, path, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


def test_delete_as_the_sdk_sends_it(http: httpx.Client) -> None:
    ledger = http.post("/api/ledgers", json={"name": "n"}).json()["id"]
    headers = {"content-type": "application/json"}
    answer = http.request("DELETE", f"/api/ledgers/{ledger}", headers=headers)
    assert answer.status_code == 200
    assert answer.json()["discarded_at"]


async def test_body_that_comes_in_parts_and_one_that_stops_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Method: the reading alone, with the messages of a server that waits for its client."""
    parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    headers = {b"content-type": b"application/json"}
    reading = asyncio.create_task(read_body(headers, parts.get))
    for part, more in ((b'{"a"', True), (b": 1", True), (b"}", False)):
        await asyncio.sleep(0)
        parts.put_nowait({"type": "http.request", "body": part, "more_body": more})
    assert await reading == b'{"a": 1}'

    monkeypatch.setattr("cell.calls.BODY_S_MAX", 0.01)
    parts.put_nowait({"type": "http.request", "body": b'{"a"', "more_body": True})
    with pytest.raises(InvalidRequest, match="did not arrive within"):
        await read_body(headers, parts.get)


def raw_request(access: Access, headers: bytes) -> bytes:
    """POST /api/ledgers over a socket of our own, its head alone; what comes back first."""
    address = urlsplit(access.base_url)
    pair = base64.b64encode(f"{access.organization_id}:{access.api_key}".encode())
    head = b"POST /api/ledgers HTTP/1.1\r\nhost: x\r\nauthorization: Basic " + pair + b"\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(head + headers + b"\r\n")
        return connection.recv(65_536)


# Mistakes of ours


@contextlib.asynccontextmanager
async def broken_application(
    database: Any, writer: Any, tenant_id: TenantId, error: Exception, metrics: RequestMetrics
) -> AsyncIterator[httpx.AsyncClient]:
    """The real application over ASGI, with one endpoint, which raises the error."""

    async def broken(call: Call) -> Answer:
        raise error

    secret_sha256 = hashlib.sha256(b"secret").hexdigest()
    await writer.apply(tenant_id, CreateApiKey(id=str(uuid.uuid4()), secret_sha256=secret_sha256))
    reader = Reader(database.reader_dsn, pool_min=1, pool_max=1)
    await reader.open()
    parts = CellParts(
        sequencer=None,  # type: ignore[arg-type]
        reader=reader,
        directory=Directory(reader),
        projector=None,  # type: ignore[arg-type]
        deliverer=None,  # type: ignore[arg-type]
        settlement_worker=None,  # type: ignore[arg-type]
        queue=None,  # type: ignore[arg-type]
        first_answers={},
    )
    routes = [Route(method, "/api/broken/{id}", broken) for method in ("GET", "POST", "PATCH")]
    application = TenantApi(parts, routes, metrics)
    try:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(application),  # type: ignore[arg-type]
            base_url="http://cell",
            auth=(tenant_id, "secret"),
        ) as client:
            yield client
    finally:
        await reader.close()


async def test_unforeseen_error(
    cell_database: Any, writer: Any, tenant_id: TenantId, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, error = RequestMetrics(), ZeroDivisionError("secret detail")
    async with broken_application(cell_database, writer, tenant_id, error, metrics) as client:
        with caplog.at_level(logging.ERROR):
            answer = await client.get("/api/broken/7", headers={"cloister-request-id": "abc-123"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    error_of(answer)
    (line,) = [record for record in caplog.records if record.name == "cell.api"]
    assert line.request_id == "abc-123"  # type: ignore[attr-defined]
    assert line.exc_info
    samples = {
        tuple(sample.labels.values()): sample.value
        for metric in metrics.collect()
        for sample in metric.samples
        if sample.name == "cloister_cell_requests_total"
    }
    assert samples == {("GET", "broken/{}", "500"): 1}


@pytest.mark.parametrize("error", [OutcomeUnknown("not known yet"), ZeroDivisionError()])
async def test_what_may_be_done_already_is_repeated_only_where_that_does_no_harm(
    cell_database: Any, writer: Any, tenant_id: TenantId, error: Exception
) -> None:
    """SDKs repeat a 5xx by themselves unless told otherwise."""
    metrics, key = RequestMetrics(), {"idempotency-key": "k"}
    async with broken_application(cell_database, writer, tenant_id, error, metrics) as client:
        answers = [
            await client.request(method, "/api/broken/7", headers=headers)
            for method, headers in (("POST", {}), ("POST", key), ("PATCH", {}), ("GET", {}))
        ]
    assert {answer.status_code for answer in answers} <= {500, 503}
    told = [answer.headers["x-should-retry"] for answer in answers]
    assert told == ["false", "true", "true", "true"]
