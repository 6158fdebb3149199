"""How tenants share the connections to a cell, however long one of them keeps what it has.

Method: the rule over numbers of tenants that all want everything; then a real router before a cell
that answers nothing, or answers that are not read.
"""

import pytest
from conftest import Platform
from router_clients import Client, request
from router_running import RunningRouter, wait_until
from test_bounds import Gate

from router.breaker import FAILURES_IN_A_ROW
from router.settings import Settings
from router.waiting import may_take

CONNECTIONS: int = Settings.__dataclass_fields__["cell_connections_max"].default


def taken(tenants: int, connections: int) -> list[int]:
    """What each has when all take in turn until none may."""
    carried = [0] * tenants
    while True:
        before = sum(carried)
        for index, each in enumerate(carried):
            carried[index] += may_take(each, connections - sum(carried))
        if sum(carried) == before:
            return carried


def test_a_lone_tenant_has_two_thirds() -> None:
    assert taken(1, CONNECTIONS) == [64]


@pytest.mark.parametrize("connections", [1, 2])
def test_too_few_to_share_are_not_shared(connections: int) -> None:
    assert taken(1, connections) == [connections]


@pytest.mark.parametrize("tenants", [1, 2, 3, 10, 40])
def test_something_is_left_for_the_next_and_shares_are_even(tenants: int) -> None:
    carried = taken(tenants, CONNECTIONS)
    assert sum(carried) < CONNECTIONS
    assert max(carried) - min(carried) <= 1
    assert may_take(0, CONNECTIONS - sum(carried))


# -- before a cell

WAITING = 'cloister_router_waiting{cell="cell-a"}'
IN_FLIGHT = 'cloister_router_in_flight{cell="cell-a"}'


def shared(platform: Platform, port: int, **settings: int) -> RunningRouter:
    platform.publish(1, {"tenant-a": ("cell-a", 1), "tenant-b": ("cell-a", 1)}, {"cell-a": port})
    return platform.router(cell_connections_max=6, **settings)


def crowd(platform: Platform, router: RunningRouter, count: int, data: bytes) -> list[Client]:
    """Of tenant-a: four are carried, the others wait."""
    clients = [platform.client(router) for _ in range(count)]
    for client in clients:
        client.send(data)
    wait_until(lambda: router.metric(WAITING) == count - 4, "those beyond the share to wait")
    assert router.metric(IN_FLIGHT) == 4
    return clients


def test_one_tenant_leaves_connections_to_others(platform: Platform) -> None:
    gate = Gate()
    router = shared(platform, platform.scripted_cell(gate).port, cell_wait_ms_max=60_000)
    clients = crowd(platform, router, 10, request())
    others = [platform.client(router) for _ in range(2)]
    for number, other in enumerate(others):
        other.send(request(tenant="tenant-b"))
        wait_until(lambda n=number: gate.requests == 5 + n, "the other's request to arrive")
    assert router.metric(WAITING) == 6
    gate.opened.set()
    assert {client.answer().status for client in [*clients, *others]} == {200}
    wait_until(lambda: router.metric(IN_FLIGHT) == 0, "the end")
    assert router.router.routes._traffic["tenant-a"].carried == 0  # type: ignore[index]


def test_others_are_served_though_all_places_to_wait_are_taken(platform: Platform) -> None:
    gate = Gate()
    settings = {"cell_waiters_max": 3, "cell_wait_ms_max": 60_000}
    router = shared(platform, platform.scripted_cell(gate).port, **settings)
    clients = crowd(platform, router, 7, request())
    opened = 'cloister_router_cell_connections{cell="cell-a"}'
    wait_until(lambda: router.metric(opened) == 6, "the connections left to be opened")
    for data in (request(), request("POST", body=b"{}")):
        assert platform.client(router).ask(data).code == "cell_overloaded"
    other = platform.client(router)
    other.send(request("POST", tenant="tenant-b", body=b"{}"))
    wait_until(lambda: gate.requests == 5, "the other's request to arrive")
    gate.opened.set()
    assert {client.answer().status for client in [*clients, other]} == {200}


def test_tenants_wait_in_turn(platform: Platform) -> None:
    """One connection, so that the cell sees the router's order."""
    gate = Gate()
    cell = platform.scripted_cell(gate)
    platform.publish(
        1, {"tenant-a": ("cell-a", 1), "tenant-b": ("cell-a", 1)}, {"cell-a": cell.port}
    )
    router = platform.router(cell_connections_max=1, cell_wait_ms_max=60_000)
    clients = []
    for number, tenant in enumerate(["tenant-a"] * 4 + ["tenant-b"]):
        client = platform.client(router)
        client.send(request(target=f"/{number}", tenant=tenant))
        wait_until(lambda n=number: router.metric(WAITING) == n, "those before it to wait")
        wait_until(lambda: router.metric(IN_FLIGHT) == 1, "the first")
        clients.append(client)
    gate.opened.set()
    assert {client.answer().status for client in clients} == {200}
    assert gate.targets == ["/0", "/1", "/4", "/2", "/3"]


def test_slow_readers_hold_up_no_other_tenant(platform: Platform) -> None:
    """Nor does the cell pass for one that failed: who waits in vain waits for the share."""
    _, port = platform.echo_cell()
    router = shared(platform, port, cell_wait_ms_max=100)
    slow = [platform.client(router) for _ in range(4)]
    for client in slow:
        client.send(request(target="/bytes/50000000"))
        client.head()
    for _ in range(FAILURES_IN_A_ROW + 1):
        assert platform.client(router).ask(request()).code == "cell_overloaded"
    assert router.metric('cloister_router_breaker_opened_total{cell="cell-a"}') == 0
    assert platform.client(router).ask(request(tenant="tenant-b")).status == 200
    for client in slow:
        client.socket.close()
    wait_until(lambda: router.metric(IN_FLIGHT) == 0, "the connections of those who left")
    assert platform.client(router).ask(request()).status == 200
