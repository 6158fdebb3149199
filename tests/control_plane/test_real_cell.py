"""The control plane and a real cell, as processes. Method: the tenant's own requests decide."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

OPERATOR = {"authorization": "Bearer operator-token-of-the-platform"}
CELL_TOKEN = "operator-token-of-the-real-cell"


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def wait_until(condition: Callable[[], bool], seconds_max: float = 120.0) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.02)


@pytest.fixture
def real_cell(postgres: Any, cell_dsn: str) -> Iterator[dict[str, str]]:
    """`python -m cell` on the database that `control_process` calls the one of cell-a."""
    database = "control_plane_cell"
    environment = {
        "PATH": os.environ["PATH"],
        "CLOISTER_CELL_NAME": "cell-a",
        "CLOISTER_CELL_LISTEN": free_address(),
        "CLOISTER_CELL_OPERATOR_LISTEN": free_address(),
        "CLOISTER_CELL_OPERATOR_TOKEN": CELL_TOKEN,
        "CLOISTER_CELL_WRITER_DSN": postgres.dsn("cloister_writer", database),
        "CLOISTER_CELL_READER_DSN": postgres.dsn("cloister_reader", database),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cell"], env=environment, stderr=subprocess.DEVNULL
    )

    def is_healthy() -> bool:
        url = f"http://{environment['CLOISTER_CELL_OPERATOR_LISTEN']}/healthz"
        try:
            return httpx.get(url, trust_env=False, verify=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(is_healthy)
        yield environment
    finally:
        process.terminate()
        try:
            assert process.wait(15) == 0
        finally:
            process.kill()


@pytest.fixture
def platform(control_process: Any, real_cell: dict[str, str], cells_file: Any) -> Iterator[Any]:
    """The control plane with the real cell as cell-a; cell-b stays a small one."""
    path = Path(control_process.environment["CLOISTER_CONTROL_CELLS_FILE"])
    configured = msgspec.json.decode(path.read_bytes())
    configured["cells"][0] |= {
        "api_address": real_cell["CLOISTER_CELL_LISTEN"],
        "operator_address": real_cell["CLOISTER_CELL_OPERATOR_LISTEN"],
        "operator_token": CELL_TOKEN,
    }
    path.write_bytes(msgspec.json.encode(configured))
    control_process.start_ready()
    yield control_process
    assert control_process.end()[0] == 0


def test_a_tenant_works_at_its_cell_until_its_key_is_revoked(
    platform: Any, real_cell: dict[str, str]
) -> None:
    def control(method: str, path: str, **body: str) -> Any:
        response = httpx.request(
            method,
            f"{platform.url}{path}",
            headers=OPERATOR,
            json=body or None,
            trust_env=False,
            verify=False,
            timeout=60,
        )
        assert response.status_code < 300, response.text
        return response.json()

    created = control("POST", "/v1/tenants", slug="acme", cell="cell-a")
    tenant = created["organization_id"]

    def status_with(api_key: str) -> int:
        url = f"http://{real_cell['CLOISTER_CELL_LISTEN']}/api/ledgers"
        return httpx.get(
            url, auth=(tenant, api_key), trust_env=False, verify=False, timeout=60
        ).status_code

    assert status_with(created["api_key"]) == 200
    further = control("POST", "/v1/tenants/acme/keys")
    assert status_with(further["api_key"]) == 200
    control("DELETE", f"/v1/tenants/acme/keys/{further['key_id']}")
    assert status_with(further["api_key"]) == 401
    assert status_with(created["api_key"]) == 200

    ledger = httpx.post(
        f"http://{real_cell['CLOISTER_CELL_LISTEN']}/api/ledgers",
        json={"name": "Bank"},
        auth=(tenant, created["api_key"]),
        trust_env=False,
        verify=False,
        timeout=60,
    )
    assert ledger.status_code in (200, 201)

    def reports() -> Any:
        return control("GET", "/v1/status")["cells"][0]

    wait_until(lambda: reports()["healthy"] and reports()["commands_per_second"] is not None)
    report = reports()
    assert (report["name"], report["tenants"], report["reason"]) == ("cell-a", 1, None)
    assert report["writer_epoch"] >= 1
    assert report["reconciled"], report["reconcile_sentence"]
