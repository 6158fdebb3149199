"""What the access log says of a request, and of how many.

Method: a router process, whose log is read as the lines of JSON it writes.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Platform
from router_cells import answer_all
from router_clients import Client, request
from router_running import router_process, wait_until
from test_hold import PATIENCE, Move, write


def lines(log: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [entry for entry in entries if entry["message"] == "request"]


def test_answered_and_refused_are_logged_without_secrets(platform: Platform) -> None:
    platform.route_all_to(platform.scripted_cell(answer_all).port)
    log, control_port = platform.directory / "log", platform.control_server.port
    logging = router_process(platform.directory, control_port, log=log, access_log_one_in=1)
    with logging as router, Client(router.port) as client:
        answered = client.ask(request("POST", "/api/x?metadata%5Ba%5D=private", body=b"{}"))
        refused = client.ask(request(tenant="nobody"))
        wait_until(lambda: len(lines(log)) == 2, "two lines")
    first, second = lines(log)
    assert first["request_id"] == answered.headers["x-request-id"]
    assert (first["method"], first["path"], first["status"]) == ("POST", "/api/x", 200)
    assert (first["tenant"], first["cell"], first["epoch"]) == ("tenant-a", "cell-a", 1)
    assert first["ms"] >= 0 and "held_ms" not in first and "resends" not in first
    assert (second["request_id"], second["status"]) == (refused.headers["x-request-id"], 401)
    assert "tenant" not in second
    assert "private" not in log.read_text() and "ck_secret" not in log.read_text()


def test_held_request_says_for_how_long_and_where_it_went(platform: Platform) -> None:
    move = Move(platform)
    log, control_port = platform.directory / "log", platform.control_server.port
    settings = {"access_log_one_in": 1, **PATIENCE}
    logging = router_process(platform.directory, control_port, log=log, **settings)
    with logging as router, Client(router.port) as client:
        client.send(write(1))
        wait_until(lambda: move.source.refused, "the request to be refused by the cell")
        move.switch()
        assert client.answer().status == 200
        wait_until(lambda: lines(log), "the line")
    (line,) = lines(log)
    assert (line["cell"], line["epoch"], line["hops"]) == ("cell-b", 2, 1)
    assert 0 < line["held_ms"] <= line["ms"] + 1


@pytest.mark.parametrize("settings", [{}, {"access_log_one_in": 1_000_000_000}], ids=str)
def test_others_are_not_logged(platform: Platform, settings: dict[str, int]) -> None:
    platform.route_all_to(platform.scripted_cell(answer_all).port)
    log, control_port = platform.directory / "log", platform.control_server.port
    logging = router_process(platform.directory, control_port, log=log, **settings)
    with logging as router, Client(router.port) as client:
        assert {client.ask(request()).status for _ in range(50)} == {200}
        router.process.terminate()
        router.process.communicate(timeout=60)
    assert lines(log) == []
