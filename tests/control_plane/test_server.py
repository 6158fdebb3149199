"""The process. Method: `python -m control_plane` on a real catalog; signals, bad settings."""

import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

OPERATOR = {"authorization": "Bearer operator-token-of-the-platform"}


def reloptions(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT reloptions FROM pg_class WHERE relname = 'journal'"
        ).fetchone()
    return list(row[0] or []) if row else []


def test_it_migrates_tunes_serves_and_keeps_what_it_was_told(
    control_process: Any, empty_cell_dsn: str
) -> None:
    control_process.start_ready()
    # The cell's database was empty: the schema and the tuning are the reconciler's work.
    control_process.wait_until(
        lambda: "autovacuum_vacuum_threshold=777" in reloptions(empty_cell_dsn)
    )
    created = httpx.post(
        f"{control_process.url}/v1/tenants",
        json={"slug": "acme", "cell": "cell-a"},
        headers=OPERATOR,
        trust_env=False,
        verify=False,
    )
    assert created.status_code == 201
    # The tenant's index was waiting for its tenant, and its creation wakes the loop.
    indexes = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'custom_region_%'"

    def is_built() -> bool:
        with psycopg.connect(empty_cell_dsn) as connection:
            return connection.execute(indexes).fetchone() == (1,)

    control_process.wait_until(is_built)
    code, _ = control_process.end(signal.SIGKILL)
    assert code == -signal.SIGKILL

    control_process.start_ready()
    listed = httpx.get(
        f"{control_process.url}/v1/tenants", headers=OPERATOR, trust_env=False, verify=False
    )
    assert [tenant["tenant"] for tenant in listed.json()] == ["acme"]
    code, log = control_process.end()
    assert code == 0
    assert created.json()["api_key"] not in log
    assert "operator-token" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_long_poll_at_once_and_the_process_with_0(
    control_process: Any, number: int
) -> None:
    control_process.start_ready()
    host, port = control_process.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as poll:
        request = (
            "GET /v1/routing-table?after=999&wait_ms=30000 HTTP/1.1\r\nhost: control\r\n"
            f"authorization: {OPERATOR['authorization']}\r\n\r\n"
        )
        poll.sendall(request.encode())
        # The poll arrived before this request, which is answered while the poll waits.
        assert control_process.health()[0] == 200
        started = time.monotonic()
        code, log = control_process.end(number)
        assert poll.recv(4096).startswith(b"HTTP/1.1 304 ")
    assert code == 0, log
    assert time.monotonic() - started < 25, "not at the end of the poll"


def test_a_catalog_that_is_away_is_waited_for(control_process: Any, postgres: Any) -> None:
    name = "control_plane_late"
    control_process.environment["CLOISTER_CONTROL_CATALOG_DSN"] = postgres.superuser_dsn(name)
    control_process.start()
    control_process.wait_until(lambda: control_process.health()[0] == 503)
    control_process.wait_until(lambda: "control_plane_late" in control_process.health()[1])
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        control_process.wait_until(lambda: control_process.health()[0] == 200)
        assert control_process.end()[0] == 0
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


def refused(control_process: Any) -> str:
    """The one line with which it stops."""
    control_process.start()
    code, written = control_process.process.wait(20), control_process.process.stderr.read()
    assert code == 2, written
    lines = [line for line in written.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, written
    return str(lines[0])


def test_a_missing_setting_stops_it(control_process: Any) -> None:
    del control_process.environment["CLOISTER_CONTROL_ROUTER_TOKEN"]
    assert refused(control_process) == "control plane: CLOISTER_CONTROL_ROUTER_TOKEN is not set"


def test_an_occupied_port_stops_it(control_process: Any, small_cell: Any) -> None:
    control_process.environment["CLOISTER_CONTROL_LISTEN"] = small_cell.address
    line = refused(control_process)
    assert f"cannot listen on {small_cell.address}: Address already in use" in line


def test_a_wrong_topology_stops_it_with_file_and_line(control_process: Any, tmp_path: Path) -> None:
    topology = tmp_path / "cells.yaml"
    topology.write_text("cells:\n  cell-a:\n    pols: {}\n")
    assert f"{topology}:3: cell-a has no key 'pols'" in refused(control_process)


def test_a_catalog_of_a_newer_release_stops_it(control_process: Any, catalog_dsn: str) -> None:
    control_process.start_ready()
    assert control_process.end()[0] == 0
    with psycopg.connect(catalog_dsn) as connection:
        connection.execute("INSERT INTO schema_migrations (version) VALUES (9000)")
    assert "the catalog has version 9000" in refused(control_process)
