"""How much a tenant may ask: by rate, by requests in flight, changed while it asks; and what is
refused before its body is read.

Method: the bucket by hand-set times; then a real router with limits in its table.
"""

import pytest
from conftest import Platform
from router_cells import CellSide, answer_all
from router_clients import Client, basic, request
from router_running import RunningRouter, table, wait_until
from test_bounds import Gate

from control_plane.routing import RoutingTable, TenantLimits
from router.limits import SERVED_MAX, TenantTraffic


def limited(**limits: float) -> TenantTraffic:
    traffic = TenantTraffic(100)
    traffic.limit(TenantLimits(**limits), 100)  # type: ignore[arg-type]
    return traffic


def admitted(
    traffic: TenantTraffic, now_s: float, attempts: int, authorization: bytes = b"key"
) -> int:
    return sum(traffic.refusal(now_s, authorization) is None for _ in range(attempts))


def test_without_limits_everything_passes() -> None:
    traffic = TenantTraffic(100)
    assert traffic.is_free
    assert admitted(traffic, 0, 1_000) == 1_000


@pytest.mark.parametrize(
    ("limits", "at_once", "in_the_next_second"),
    [
        ({"requests_per_s": 10}, 10, 10),
        ({"requests_per_s": 10, "burst": 3}, 3, 3),
        ({"requests_per_s": 3, "burst": 10}, 10, 3),
        ({"requests_per_s": 0.5}, 1, 0),
    ],
    ids=str,
)
def test_rate(limits: dict[str, float], at_once: int, in_the_next_second: int) -> None:
    traffic = limited(**limits)
    assert admitted(traffic, 50, 100) == at_once
    assert admitted(traffic, 51, 100) == in_the_next_second


def test_rate_is_even_over_time() -> None:
    traffic = limited(requests_per_s=10, burst=1)
    admissions = sum(admitted(traffic, 50 + quarter / 4, 5) for quarter in range(100))
    assert admissions == 100  # one at a time is all that may come at once
    traffic = limited(requests_per_s=8, burst=2)
    assert sum(admitted(traffic, 50 + quarter / 4, 5) for quarter in range(100)) == 200


def test_clock_that_stands_gives_nothing() -> None:
    traffic = limited(requests_per_s=1, burst=2)
    assert admitted(traffic, 50, 5) == 2
    assert admitted(traffic, 49, 5) == 0


def test_lower_rate_counts_at_once_and_no_rate_frees() -> None:
    traffic = limited(requests_per_s=1_000)
    traffic.limit(TenantLimits(requests_per_s=2), 100)
    assert admitted(traffic, 50, 10) == 2
    traffic.limit(TenantLimits(), 100)
    assert traffic.is_free and traffic.in_flight_max == 100


def test_who_guesses_keys_spends_nothing_of_who_has_one() -> None:
    traffic = limited(requests_per_s=10)
    assert admitted(traffic, 50, 1) == 1
    traffic.answered(b"key", 200)
    assert sum(admitted(traffic, 50, 1, b"guess %d" % each) for each in range(100)) == 9
    assert admitted(traffic, 50, 100) == 9  # what was spent before it was known is charged to it


@pytest.mark.parametrize("status", [401, 404, 421, 429, 503])
def test_only_success_proves_credentials(status: int) -> None:
    """The cell may give other answers before it looks at them."""
    traffic = limited(requests_per_s=10)
    traffic.answered(b"guess", status)
    assert admitted(traffic, 50, 100, b"guess") == 10
    traffic.answered(b"key", 200)
    assert admitted(traffic, 50, 100) == 9


def test_revoked_key_spends_no_more() -> None:
    traffic = limited(requests_per_s=10)
    for key in (b"key", b"revoked"):
        traffic.answered(key, 200)
    traffic.answered(b"revoked", 401)
    assert admitted(traffic, 51, 100, b"revoked") == 10
    assert admitted(traffic, 51, 100) == 10


def test_credentials_remembered_are_bounded() -> None:
    traffic = limited(requests_per_s=10)
    for each in range(10 * SERVED_MAX):
        traffic.answered(b"key %d" % each, 200)
        assert len(traffic._served) <= SERVED_MAX


# -- before a router


def with_limits(version: int, port: int, **limits: float) -> RoutingTable:
    plain = table(version, {"tenant-a": ("cell-a", 1), "tenant-b": ("cell-a", 1)}, {"cell-a": port})
    given = {"tenant-a": TenantLimits(**limits)}  # type: ignore[arg-type]
    return RoutingTable(
        version=version,
        cells=plain.cells,
        tenants=plain.tenants,
        limits=given if limits else {},  # type: ignore[arg-type]
    )


def assert_too_many(client: Client, data: bytes) -> None:
    answer = client.ask(data)
    assert (answer.status, answer.code) == (429, "too_many_requests")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")


def test_rate_is_changed_while_running(platform: Platform) -> None:
    cell = platform.scripted_cell(answer_all)
    platform.control.table = with_limits(1, cell.port, requests_per_s=0.001, burst=3)
    router = platform.router()
    client = platform.client(router)
    for data in (request(), request("POST", body=b"{}"), request("POST", body=b"x" * 50_000)):
        assert client.ask(data).status == 200
    assert_too_many(client, request())
    assert_too_many(client, request("POST", body=b"{}"))
    assert platform.client(router).ask(request(tenant="tenant-b")).status == 200
    for version, limits, then in ((2, {"requests_per_s": 1_000_000.0}, 200), (3, {}, 200)):
        platform.control.table = with_limits(version, cell.port, **limits)
        wait_until(lambda v=version: router.router.routes.version == v, "the new limits")
        assert {client.ask(request()).status for _ in range(20)} == {then}
    refused = 'cloister_router_refusals_total{code="too_many_requests",status="429"}'
    assert router.metric(refused) == 2


def test_wrong_keys_leave_the_rate_to_the_right_ones(platform: Platform) -> None:
    def script(side: CellSide) -> None:
        while (seen := side.request()) is not None:
            side.answer(200 if seen.header("authorization") == basic("tenant-a") else 401)

    cell = platform.scripted_cell(script)
    platform.control.table = with_limits(1, cell.port, requests_per_s=0.001, burst=5)
    router = platform.router()
    client, guesser = platform.client(router), platform.client(router)
    assert client.ask(request()).status == 200
    statuses = []
    for number in range(20):
        wrong = f"Authorization: {basic('tenant-a', f'ck_{number}')}\r\n"
        statuses.append(guesser.ask(request(tenant=None, headers=wrong)).status)
    assert statuses == [401] * 4 + [429] * 16
    assert [client.ask(request()).status for _ in range(4)] == [200] * 4
    assert_too_many(client, request())


def in_flight(platform: Platform, **limits: float) -> tuple[Gate, RunningRouter, list[Client]]:
    gate = Gate()
    cell = platform.scripted_cell(gate)
    platform.control.table = with_limits(1, cell.port, **limits)
    router = platform.router(tenant_in_flight_max=2)
    count = int(limits.get("in_flight", 2))
    clients = [platform.client(router) for _ in range(count)]
    for client in clients:
        client.send(request("POST", body=b"{}"))
    wait_until(lambda: gate.requests == count, "the first requests")
    return gate, router, clients


@pytest.mark.parametrize("limits", [{}, {"in_flight": 4}], ids=["default", "own"])
@pytest.mark.parametrize("data", [request(), request("POST", body=b"{}")], ids=["GET", "POST"])
def test_one_more_in_flight_is_refused(
    platform: Platform, limits: dict[str, float], data: bytes
) -> None:
    gate, router, clients = in_flight(platform, **limits)
    client = platform.client(router)
    assert_too_many(client, data)
    other = platform.client(router)
    other.send(request(tenant="tenant-b"))
    gate.opened.set()
    assert other.answer().status == 200
    assert {client.answer().status for client in clients} == {200}
    for _ in range(10):
        assert client.ask(data).status == 200


def test_places_come_back_however_a_request_ends(platform: Platform) -> None:
    """Answered, given up by the client, late, and with its cell gone."""
    gate, router, clients = in_flight(platform)
    clients[0].socket.close()
    clients[1].socket.close()
    gate.opened.set()
    traffic = router.router.routes._traffic["tenant-a"]  # type: ignore[index]
    wait_until(lambda: traffic.in_flight == 0, "the places of those who left")
    with platform.client(router) as client:
        assert client.ask(request()).status == 200
    platform.control.table = table(2, {"tenant-a": ("cell-a", 1)}, {"cell-a": 1})
    wait_until(lambda: router.router.routes.version == 2, "the table")
    for _ in range(4):
        assert platform.client(router).ask(request()).status == 503
    assert traffic.in_flight == 0


# -- refused by the head


@pytest.mark.parametrize("framing", ["Content-Length: 90000\r\n", "Transfer-Encoding: chunked\r\n"])
def test_body_of_a_refused_request_is_not_held(platform: Platform, framing: str) -> None:
    """It is read to its end all the same: the connection goes on."""
    gate, router, clients = in_flight(platform)
    client = platform.client(router)
    held = router.router.edge.buffered_bytes
    chunked = "chunked" in framing
    client.send(request("POST", headers=framing))
    client.send((b"15f90\r\n" if chunked else b"") + b"x" * 45_000)
    connections = router.router.edge.connections
    wait_until(
        lambda: any(c._reader.body_bytes >= 45_000 for c in tuple(connections)), "half of the body"
    )
    assert router.router.edge.buffered_bytes == held
    client.send(b"x" * 45_000 + (b"\r\n0\r\n\r\n" if chunked else b""))
    assert client.answer().status == 429
    gate.opened.set()
    assert [other.answer().status for other in clients] == [200, 200]
    assert client.ask(request()).status == 200


def test_expected_body_is_not_asked_for(platform: Platform) -> None:
    gate, router, _ = in_flight(platform)
    client = platform.client(router)
    headers = "Expect: 100-continue\r\nContent-Length: 9\r\n"
    assert client.ask(request("POST", headers=headers)).status == 429
    assert client.is_closed()
    gate.opened.set()


def test_body_for_which_there_is_no_room_is_refused_by_its_length(platform: Platform) -> None:
    gate = Gate()
    platform.route_all_to(platform.scripted_cell(gate).port)
    router = platform.router(buffered_bytes_max=100_000)
    client = platform.client(router)
    client.send(request("POST", headers="Content-Length: 100001\r\n"))
    answer = client.answer()
    assert (answer.status, answer.code) == (503, "router_overloaded")
    assert router.router.edge.buffered_bytes == 0
