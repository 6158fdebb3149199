"""Method: the operator listener of a cell process, as the control plane calls it, and what each
change means to a tenant's requests a moment later.
"""

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cell_process import CellProcess
from prometheus_client.parser import text_string_to_metric_families

from cell.schema import SCHEMA_VERSION

UNKNOWN = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def operator(served_cell: CellProcess) -> Iterator[httpx.Client]:
    with served_cell.operator() as client:
        yield client


def sha256(secret: str) -> dict[str, str]:
    return {"sha256": hashlib.sha256(secret.encode()).hexdigest()}


@pytest.fixture
def tenant(operator: httpx.Client) -> str:
    organization_id = str(uuid.uuid4())
    assert operator.put(f"/operator/tenants/{organization_id}", json={}).status_code == 200
    return organization_id


def ping(cell: CellProcess, tenant: str, secret: str) -> int:
    url = f"{cell.base_url}/api/ping"
    return httpx.get(url, auth=(tenant, secret), trust_env=False, verify=False).status_code


def test_health(operator: httpx.Client) -> None:
    answer = operator.get("/healthz", headers={"authorization": ""})
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "cell": "cell-test"}


def test_status(operator: httpx.Client, tenant: str) -> None:
    status = operator.get("/operator/status").json()
    assert status["cell"] == "cell-test"
    assert status["schema_version"] == SCHEMA_VERSION
    assert status["writer_epoch"] >= 1
    assert status["tenants"] >= 1
    assert status["queue_depth"] == 0
    assert status["last_error"] is None
    assert {"commands_applied", "batch_ms_p99"} <= set(status)


def test_metrics(operator: httpx.Client, served_cell: CellProcess, tenant: str) -> None:
    ping(served_cell, tenant, "wrong")
    answer = operator.get("/metrics", headers={"authorization": ""})
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    names = {name for name, *_ in samples}
    assert {
        "cloister_cell_requests_total",
        "cloister_cell_request_seconds_bucket",
        "cloister_cell_commands_applied_total",
        "cloister_cell_queue_depth",
        "cloister_cell_writer_epoch",
    } <= names
    refused = [
        value
        for (name, *labels), value in samples.items()
        if name == "cloister_cell_requests_total" and ("status", "401") in labels
    ]
    assert sum(refused) >= 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/operator/status"),
        ("PUT", f"/operator/tenants/{UNKNOWN}"),
        ("GET", f"/operator/tenants/{UNKNOWN}"),
        ("PUT", f"/operator/tenants/{UNKNOWN}/keys/{UNKNOWN}"),
        ("DELETE", f"/operator/tenants/{UNKNOWN}/keys/{UNKNOWN}"),
    ],
)
@pytest.mark.parametrize("token", [None, "Bearer wrong", "Bearer ", "Basic b3A6b3A=", "Bearer é"])
def test_token(served_cell: CellProcess, method: str, path: str, token: str | None) -> None:
    headers = {} if token is None else {"authorization": token.strip().encode()}
    url = f"http://127.0.0.1:{served_cell.operator_port}{path}"
    answer = httpx.request(method, url, headers=headers, trust_env=False, verify=False)
    assert answer.status_code == 401
    assert answer.json()["errors"]["code"] == "invalid_key"


def test_operator_paths_are_not_on_the_tenants_listener(served_cell: CellProcess) -> None:
    access = served_cell.new_tenant()
    with access.http() as http:
        for path in ("/healthz", "/metrics", "/operator/status"):
            assert http.get(path).status_code == 404


def test_tenant_is_made_once(operator: httpx.Client) -> None:
    organization_id = str(uuid.uuid4())
    path = f"/operator/tenants/{organization_id}"
    assert operator.get(path).status_code == 404
    made = operator.put(path, json={"epoch": 3})
    assert made.status_code == 200
    head = {"organization_id": organization_id, "state": "owned", "epoch": 3, "last_seq": 0}
    assert made.json() == head
    assert operator.put(path, json={"epoch": 3}).json() == head
    assert operator.put(path, json={"epoch": 9}).json() == head
    assert operator.get(path).json() == head


def test_keys(operator: httpx.Client, served_cell: CellProcess, tenant: str) -> None:
    assert ping(served_cell, tenant, "one") == 401
    first, second = (f"/operator/tenants/{tenant}/keys/{uuid.uuid4()}" for _ in range(2))
    for _ in range(2):
        assert operator.put(first, json=sha256("one")).status_code == 200
        assert ping(served_cell, tenant, "one") == 200
    assert operator.put(second, json=sha256("two")).status_code == 200
    assert ping(served_cell, tenant, "two") == 200
    assert operator.get(f"/operator/tenants/{tenant}").json()["last_seq"] == 2

    for _ in range(2):
        assert operator.delete(first).status_code == 200
        assert ping(served_cell, tenant, "one") == 401
    assert ping(served_cell, tenant, "two") == 200
    # A revoked key stays revoked.
    operator.put(first, json=sha256("one"))
    assert ping(served_cell, tenant, "one") == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/operator/tenants/no-uuid", {}, 422),
        ("PUT", "/operator/tenants/{tenant}", {"epoch": 0}, 422),
        ("PUT", "/operator/tenants/{tenant}", {"epoch": "1"}, 422),
        ("PUT", "/operator/tenants/{tenant}/keys/no-uuid", sha256("x"), 422),
        ("PUT", "/operator/tenants/{tenant}/keys/" + UNKNOWN, {}, 422),
        ("PUT", "/operator/tenants/{tenant}/keys/" + UNKNOWN, {"sha256": "secret"}, 422),
        ("PUT", "/operator/tenants/{unknown}/keys/" + UNKNOWN, sha256("x"), 421),
        ("DELETE", "/operator/tenants/{tenant}/keys/" + UNKNOWN, None, 404),
        ("DELETE", "/operator/tenants/{unknown}/keys/" + UNKNOWN, None, 421),
        ("GET", "/operator/nothing", None, 404),
    ],
)
def test_refused(
    operator: httpx.Client, tenant: str, method: str, path: str, body: Any, status: int
) -> None:
    path = path.format(tenant=tenant, unknown=uuid.uuid4())
    assert operator.request(method, path, json=body).status_code == status
    assert operator.get(f"/operator/tenants/{tenant}").json()["last_seq"] == 0


def test_key_with_another_secret(operator: httpx.Client, tenant: str) -> None:
    path = f"/operator/tenants/{tenant}/keys/{uuid.uuid4()}"
    operator.put(path, json=sha256("one"))
    assert operator.put(path, json=sha256("two")).status_code == 422
