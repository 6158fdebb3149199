"""The process: how it starts, says how it is, and ends.

Method: `python -m router` as the supervisor runs it, with real signals.
"""

import json
import select
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Platform
from router_cells import CellSide
from router_clients import Client, request
from router_running import (
    environment,
    free_port,
    http_get,
    router_process,
    start_router,
    table,
    wait_until,
)

from control_plane.routing import RoutingTable
from router.errors import SettingsError
from router.settings import Address, Settings

REQUIRED = {
    "CLOISTER_ROUTER_OPERATOR_LISTEN": "127.0.0.1:1",
    "CLOISTER_ROUTER_TOKEN": "secret",
    "CLOISTER_ROUTER_TABLE_FILE": "/x",
}


@pytest.mark.parametrize("missing", REQUIRED)
def test_missing_setting_is_named(missing: str) -> None:
    with pytest.raises(SettingsError, match=f"{missing} is not set"):
        Settings.from_environment({k: v for k, v in REQUIRED.items() if k != missing})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN", "8080"),
        ("LISTEN", "host:"),
        ("LISTEN", "host:port"),
        ("LISTEN", ":1"),
        ("LISTEN", "host:70000"),
        ("BODY_BYTES_MAX", "0"),
        ("BODY_BYTES_MAX", "-1"),
        ("REQUEST_MS_MAX", "1.5"),
        ("REQUEST_MS_MAX", "15s"),
        ("CONTROL_URL", "127.0.0.1:8081"),
        ("CELL_IDLE_MS_MAX", "75000"),
        ("SHARES_PORT", "yes"),
        ("TLS_KEY", "/some/file"),
    ],
)
def test_impossible_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"CLOISTER_ROUTER_{name}"):
        Settings.from_environment(REQUIRED | {f"CLOISTER_ROUTER_{name}": value})


def test_settings_are_read_and_the_token_is_not_shown() -> None:
    settings = Settings.from_environment(
        REQUIRED | {"CLOISTER_ROUTER_LISTEN": "[::1]:80", "CLOISTER_ROUTER_BODY_BYTES_MAX": "7"}
    )
    assert settings.listen == Address("::1", 80) and str(settings.listen) == "[::1]:80"
    assert settings.body_bytes_max == 7
    assert "secret" not in repr(settings)


def test_process_without_settings_stops_with_one_line() -> None:
    with start_router({}) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error == "router: CLOISTER_ROUTER_OPERATOR_LISTEN is not set\n"


@pytest.mark.parametrize("taken", ["listen", "operator_listen"])
def test_occupied_port_stops_with_one_line(tmp_path: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with start_router(environment(tmp_path, free_port(), **{taken: address})) as process:
            _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error == f"router: cannot listen on {address}: Address already in use\n"


def test_terminated_process_finishes_what_is_in_flight(platform: Platform) -> None:
    def script(side: CellSide) -> None:
        while (seen := side.request()) is not None:
            if seen.target == "/slow":
                reached.set()
                opened.wait(5)
            side.answer()

    reached, opened = threading.Event(), threading.Event()
    platform.route_all_to(platform.scripted_cell(script).port)
    with router_process(platform.directory, platform.control_server.port) as running:
        with Client(running.port) as slow, Client(running.port) as idle:
            assert idle.ask(request()).status == 200
            slow.send(request(target="/slow"))
            assert reached.wait(5)
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not running.is_ready(), "the drain")
            status, body = http_get(running.operator_port, "/healthz")
            assert (status, json.loads(body)["reason"]) == (503, "draining")
            with pytest.raises(ConnectionError):
                Client(running.port)
            assert idle.is_closed()
            opened.set()
            answer = slow.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        _, error = running.process.communicate(timeout=60)
        assert running.process.returncode == 0
    lines = [json.loads(line) for line in error.splitlines()]
    assert [line["message"] for line in lines][:2] == ["listening", "routing table adopted"]
    assert not [line for line in lines if line["level"] == "error"]


def test_idle_connection_is_answered_once_more_after_the_signal(platform: Platform) -> None:
    """The request crosses the signal: it is answered, and told that it was the last."""
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router()
    with Client(router.port) as client:
        client.ask(request())
        router.stop()
        wait_until(lambda: router.router.edge.draining, "the drain")
        answer = client.ask(request())
        assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_drain_ends_when_its_time_is_up(platform: Platform) -> None:
    def script(side: CellSide) -> None:
        side.request()
        side.request()

    cell = platform.scripted_cell(script)
    platform.route_all_to(cell.port)
    router = platform.router(drain_ms_max=300)
    client = platform.client(router)
    client.send(request())
    wait_until(lambda: cell.connections, "the request")
    router.stop()
    router.thread.join(5)
    assert not router.thread.is_alive()
    assert client.is_closed()


def test_killed_process_serves_again_from_disk(platform: Platform) -> None:
    """With the control plane dead; the copy on disk was whole at every moment."""
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    with router_process(platform.directory, platform.control_server.port) as running:
        wait_until((platform.directory / "routing-table").exists, "the disk copy")
        running.process.kill()
        running.process.communicate()
    with router_process(platform.directory, free_port()) as running, Client(running.port) as client:
        assert client.ask(request()).status == 200
        running.process.terminate()
        running.process.communicate(timeout=60)
        assert running.process.returncode == 0


def test_processes_that_share_a_port(platform: Platform) -> None:
    """Both serve it; when one drains, its clients are told so, and the other serves on."""
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    listen = f"127.0.0.1:{free_port()}"
    with ExitStack() as parts:
        routers = []
        for name in ("one", "two"):
            directory = platform.directory / name
            directory.mkdir()
            sharing = {"listen": listen, "shares_port": "true"}
            running = router_process(directory, platform.control_server.port, **sharing)
            routers.append(parts.enter_context(running))
        clients = [parts.enter_context(Client(routers[0].port)) for _ in range(40)]
        assert {client.ask(request()).status for client in clients} == {200}
        for router in routers:
            _, body = http_get(router.operator_port, "/metrics")
            assert b"cloister_router_client_connections 0.0" not in body
        routers[0].process.terminate()
        routers[0].process.communicate(timeout=60)
        left = [client for client in clients if not is_over(client)]
        assert 0 < len(left) < 40
        assert {client.ask(request()).status for client in left} == {200}
        with Client(routers[1].port) as another:
            assert another.ask(request()).status == 200


def is_over(client: Client) -> bool:
    """The server has closed: its end is there to be read."""
    readable, _, _ = select.select([client.socket], [], [], 0)
    return bool(readable)


def test_healthz_and_metrics(platform: Platform) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router()
    client = platform.client(router)
    client.ask(request())
    client.ask(request(tenant=None))
    client.send(b"BAD\r\n")
    status, body = router.get("/healthz")
    assert (status, json.loads(body)) == (
        200,
        {"status": "ok", "routing_version": 1, "routing_fresh": True, "tenants": 1},
    )
    for line, value in {
        'cloister_router_answers_total{cell="cell-a",status="2xx"}': 1,
        'cloister_router_refusals_total{code="invalid_key",status="401"}': 1,
        "cloister_router_routing_version": 1,
        "cloister_router_routing_tenants": 1,
        "cloister_router_routing_fresh": 1,
        "cloister_router_client_connections": 1,
        'cloister_router_cell_connections{cell="cell-a"}': 1,
        'cloister_router_in_flight{cell="cell-a"}': 0,
        'cloister_router_waiting{cell="cell-a"}': 0,
        'cloister_router_shed_total{cell="cell-a"}': 0,
        'cloister_router_resends_total{cell="cell-a"}': 0,
        "cloister_router_followed_total": 0,
        'cloister_router_polls_total{outcome="newer"}': 1,
    }.items():
        assert router.metric(line) == value, line
    assert router.metric("cloister_router_routing_age_seconds") < 30
    assert router.get("/nothing")[0] == 404


def test_hundred_thousand_tenants(platform: Platform) -> None:
    _, port = platform.echo_cell()
    tenants = {f"0190a5d8-0000-7000-8000-{i:012d}": ("cell-a", 1) for i in range(100_000)}
    big: RoutingTable = table(1, tenants, {"cell-a": port})
    platform.control.table = big
    router = platform.router()
    client = platform.client(router)
    assert client.ask(request(tenant="0190a5d8-0000-7000-8000-000000099999")).status == 200
    assert router.metric("cloister_router_routing_tenants") == 100_000
