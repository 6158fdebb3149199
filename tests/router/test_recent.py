"""What a router can say of the requests it answered last, and to whom; and that it signs them.

Method: a real router; its operator port is asked as the control plane asks it.
"""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from conftest import Platform
from router_cells import answer_all
from router_clients import request
from router_running import TOKEN, RunningRouter, wait_until
from test_hold import PATIENCE, Move, write

from cell.errors import NotFromRouter
from cell.signature import SIGNATURE_HEADER, SIGNED_HEADERS, Verifier, key_of_cell


def ask(router: RunningRouter, path: str, token: str = TOKEN) -> tuple[int, Any]:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{router.operator_port}{path}",
        headers={"authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, None


def test_an_answered_and_a_refused_request(platform: Platform) -> None:
    platform.route_all_to(platform.scripted_cell(answer_all).port)
    router = platform.router()
    client = platform.client(router)
    answered = client.ask(request("POST", "/api/x?metadata%5Ba%5D=private", body=b"{}"))
    refused = client.ask(request(tenant="nobody"))
    status, told = ask(router, f"/requests/{answered.headers['x-request-id']}")
    assert status == 200
    assert (told["method"], told["path"], told["status"]) == ("POST", "/api/x", 200)
    placed = (told["organization_id"], told["cell"], told["epoch"], told["routing_version"])
    assert placed == ("tenant-a", "cell-a", 1, 1)
    assert (told["held_ms"], told["resends"], told["refused_because"]) == (None, 0, None)
    assert "private" not in str(told)
    _, told = ask(router, f"/requests/{refused.headers['x-request-id']}")
    assert (told["status"], told["cell"]) == (401, None)
    assert "unknown organization" in told["refused_because"]
    assert ask(router, "/requests/0-0")[0] == 404


def test_only_the_token_opens_it(platform: Platform) -> None:
    platform.route_all_to(platform.scripted_cell(answer_all).port)
    router = platform.router()
    for path in ("/requests/0-0", "/tenants/tenant-a"):
        assert ask(router, path, token="another")[0] == 401
        assert router.get(path)[0] == 401


def test_a_held_request_and_its_tenant(platform: Platform) -> None:
    move = Move(platform)
    router = platform.router(**PATIENCE)
    client = platform.client(router)
    client.send(write(1))
    wait_until(lambda: ask(router, "/tenants/tenant-a")[1]["held"] == 1, "the hold")
    move.switch()
    answer = client.answer()
    _, told = ask(router, f"/requests/{answer.headers['x-request-id']}")
    assert (told["cell"], told["epoch"], told["followed"]) == ("cell-b", 2, 1)
    assert told["held_ms"] > 0
    _, route = ask(router, "/tenants/tenant-a")
    assert (route["cell"], route["epoch"], route["held"]) == ("cell-b", 2, 0)
    assert (route["cell_is_tried"], route["routing_is_fresh"]) == (True, True)
    assert (route["held_for_epoch"], route["held_for_it"]) == (2, 1)
    assert route["serving_since"] <= told["answered_at"]
    assert ask(router, "/tenants/tenant-b")[1]["held_for_epoch"] is None
    assert route["requests"] == [told]
    assert ask(router, "/tenants/nobody")[0] == 404


def test_the_oldest_give_way(platform: Platform) -> None:
    platform.route_all_to(platform.scripted_cell(answer_all).port)
    router = platform.router(recent_requests_max=2)
    client = platform.client(router)
    ids = [client.ask(request()).headers["x-request-id"] for _ in range(3)]
    assert [ask(router, f"/requests/{id}")[0] for id in ids] == [404, 200, 200]


def test_what_is_sent_to_a_cell_is_signed_for_it(platform: Platform) -> None:
    cell, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router(signing_secret="of the routers")
    client = platform.client(router)
    # Again and again, as heads that repeat are read by comparison.
    for key in "klm":
        headers = f"Idempotency-Key: {key}\r\n"
        client.ask(request("POST", "/api/x?a=b", headers=headers, body=b"{}"))
        client.ask(request("GET", "/api/y"))
    verifier = Verifier(key_of_cell("of the routers", "cell-a"))
    for seen, place in zip(cell.seen, (("/api/x", "a=b"), ("/api/y", "")) * 3, strict=True):
        names = [name.decode() for name in SIGNED_HEADERS]
        head = [seen.method, *place, *(seen.header(name) or "" for name in names)]
        signature = (seen.header(SIGNATURE_HEADER) or "").encode()
        verifier.check(signature, *(part.encode() for part in head))
        with pytest.raises(NotFromRouter):
            verifier.check(signature, *(part.encode() for part in head))
