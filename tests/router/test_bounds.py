"""Every wait has an end and every queue a bound; what is refused is refused by name.

Method: limits set low, then reached; a clock is never mocked, so the waits are short but real.
"""

import socket
import threading
import time

import pytest
from conftest import Platform
from router_cells import CellSide, ScriptedCell, answer_all
from router_clients import Client, request
from router_running import DEADLINE_S, RunningRouter, wait_until


class Gate:
    """A cell that answers nothing until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.targets: list[str] = []
        """Of the requests, in the order they came."""

    @property
    def requests(self) -> int:
        return len(self.targets)

    def __call__(self, side: CellSide) -> None:
        while (seen := side.request()) is not None:
            self.targets.append(seen.target)
            self.opened.wait(10)
            side.answer()


def gated(platform: Platform, **settings: int) -> tuple[Gate, ScriptedCell, RunningRouter]:
    gate = Gate()
    cell = platform.scripted_cell(gate)
    platform.route_all_to(cell.port)
    return gate, cell, platform.router(**settings)


# -- of clients


def test_slow_head_is_408(platform: Platform) -> None:
    gate, _, router = gated(platform, header_ms_max=200)
    client = platform.client(router)
    client.send(b"GET / HT")
    answer = client.answer()
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert client.is_closed()
    assert gate.requests == 0


def test_trickling_head_is_408_all_the_same(platform: Platform) -> None:
    _, _, router = gated(platform, header_ms_max=300)
    client = platform.client(router)
    began = time.monotonic()
    client.send(b"GET / HTTP/1.1\r\n")
    client.socket.settimeout(0.02)
    is_answered = False
    while not is_answered:
        assert time.monotonic() - began < DEADLINE_S, "it trickles on"
        try:
            client.send(b"X: 1\r\n")
            client.head()
            is_answered = True
        except TimeoutError:
            continue
    assert time.monotonic() - began >= 0.3


def test_slow_body_is_408(platform: Platform) -> None:
    gate, _, router = gated(platform, body_ms_max=200)
    client = platform.client(router)
    client.send(request("POST", headers="Content-Length: 10\r\n") + b"12345")
    assert client.answer().status == 408
    assert client.is_closed()
    assert gate.requests == 0
    wait_until(lambda: router.router.edge.buffered_bytes == 0, "the body to be let go")


PIECE = b"8000\r\n" + b"x" * 32_768 + b"\r\n"


def test_body_that_keeps_coming_has_longer(platform: Platform) -> None:
    # The deadline is for a busy machine's pauses, too.
    gate, _, router = gated(platform, body_ms_max=5_000, cell_connect_ms_max=60_000)
    gate.opened.set()
    client = platform.client(router)
    client.send(request("POST", headers="Transfer-Encoding: chunked\r\n") + PIECE)
    began = time.monotonic()
    while time.monotonic() - began < 6:
        time.sleep(0.05)  # a sender of 640 KiB a second at most, not a wait for something
        client.send(PIECE)
    client.send(b"0\r\n\r\n")
    assert client.answer().status == 200


def test_large_body_that_stops_coming_is_408(platform: Platform) -> None:
    """However much of it is there: it would be held for as long as its sender likes."""
    gate, _, router = gated(platform, body_ms_max=300)
    client = platform.client(router)
    client.send(request("POST", headers="Transfer-Encoding: chunked\r\n") + 100 * PIECE)
    assert client.answer().status == 408
    assert gate.requests == 0
    wait_until(lambda: router.router.edge.buffered_bytes == 0, "the body to be let go")


@pytest.mark.parametrize("asked_before", [False, True])
def test_idle_connection_is_closed(platform: Platform, asked_before: bool) -> None:
    gate, _, router = gated(platform, idle_ms_max=200)
    gate.opened.set()
    client = platform.client(router)
    if asked_before:
        assert client.ask(request()).status == 200
    assert client.is_closed()


def test_waiting_for_an_answer_is_not_idleness(platform: Platform) -> None:
    gate, _, router = gated(platform, idle_ms_max=100, header_ms_max=100, body_ms_max=100)
    client = platform.client(router)
    client.send(request())
    threading.Timer(0.5, gate.opened.set).start()
    assert client.answer().status == 200


def test_refused_client_may_linger_but_not_for_long(platform: Platform) -> None:
    _, _, router = gated(platform)
    client = platform.client(router)
    assert client.ask(b"BAD\r\n\r\n").status == 400
    wait_until(lambda: not router.router.edge.connections, "the end of its patience")


def test_connections_above_the_cap_are_refused(platform: Platform) -> None:
    gate, _, router = gated(platform, connections_max=5)
    gate.opened.set()
    first = [platform.client(router) for _ in range(5)]
    assert all(client.ask(request()).status == 200 for client in first)
    with Client(router.port) as extra:
        answer = extra.answer()
        assert (answer.status, answer.code) == (503, "router_overloaded")
        assert answer.headers["retry-after"] == "1"
        assert extra.is_closed()
    first[0].socket.close()
    wait_until(lambda: len(router.router.edge.connections) == 4, "a place")
    assert platform.client(router).ask(request()).status == 200


def test_bodies_held_are_bounded(platform: Platform) -> None:
    gate, _, router = gated(platform, buffered_bytes_max=250_000)
    body = b"x" * 100_000
    held = [platform.client(router) for _ in range(2)]
    for client in held:
        client.send(request("POST", body=body))
    wait_until(lambda: gate.requests == 2, "two requests")
    assert router.metric("cloister_router_buffered_bytes") == 200_000
    refused = platform.client(router).ask(request("POST", body=body))
    assert (refused.status, refused.code) == (503, "router_overloaded")
    gate.opened.set()
    assert [client.answer().status for client in held] == [200, 200]
    assert router.metric("cloister_router_buffered_bytes") == 0
    assert platform.client(router).ask(request("POST", body=body)).status == 200


def test_bodies_of_clients_that_hung_up_are_held_until_they_are_carried_out(
    platform: Platform,
) -> None:
    gate, _, router = gated(
        platform, buffered_bytes_max=250_000, cell_connections_max=1, cell_wait_ms_max=60_000
    )
    body = b"x" * 100_000
    edge = router.router.edge
    counts = 'cloister_router_in_flight{cell="cell-a"}', 'cloister_router_waiting{cell="cell-a"}'
    for count in counts:
        with Client(router.port) as client:
            client.send(request("POST", body=body))
            wait_until(lambda count=count: router.metric(count) == 1, "the request")
            client.reset()
    wait_until(lambda: not edge.connections, "the clients to be gone")
    assert router.metric("cloister_router_buffered_bytes") == 200_000
    refused = platform.client(router).ask(request("POST", body=body))
    assert (refused.status, refused.code) == (503, "router_overloaded")
    gate.opened.set()
    wait_until(lambda: router.metric("cloister_router_buffered_bytes") == 0, "the bodies' end")


def test_thousand_connections_leave_nothing_behind(platform: Platform) -> None:
    gate, _, router = gated(platform)
    gate.opened.set()
    for index in range(1000):
        with Client(router.port) as client:
            if index % 3 == 0:
                client.send(request("POST", body=b"x" * 10)[: index % 200])
            elif index % 3 == 1:
                assert client.ask(request()).status == 200
    wait_until(lambda: router.metric("cloister_router_client_connections") == 0, "the last to go")
    wait_until(lambda: router.metric("cloister_router_buffered_bytes") == 0, "the last bodies")
    assert router.metric('cloister_router_cell_connections{cell="cell-a"}') <= 3


# -- of cells


def test_one_connection_is_enough_for_one_client(platform: Platform) -> None:
    gate, cell, router = gated(platform)
    gate.opened.set()
    client = platform.client(router)
    for _ in range(50):
        assert client.ask(request()).status == 200
    assert cell.connections == 1


def test_connections_to_a_cell_are_bounded_and_waiters_served(platform: Platform) -> None:
    gate, cell, router = gated(platform, cell_connections_max=4)
    clients = [platform.client(router) for _ in range(10)]
    for client in clients:
        client.send(request())
    wait_until(lambda: router.metric('cloister_router_waiting{cell="cell-a"}') == 7, "waiters")
    assert router.metric('cloister_router_in_flight{cell="cell-a"}') == 3
    gate.opened.set()
    assert [client.answer().status for client in clients] == [200] * 10
    assert cell.connections <= 4


def test_waiters_are_bounded_in_number(platform: Platform) -> None:
    gate, _, router = gated(platform, cell_connections_max=1, cell_waiters_max=2)
    clients = [platform.client(router) for _ in range(3)]
    for client in clients:
        client.send(request())
    wait_until(lambda: router.metric('cloister_router_waiting{cell="cell-a"}') == 2, "waiters")
    answer = platform.client(router).ask(request())
    assert (answer.status, answer.code) == (503, "cell_overloaded")
    assert answer.headers["retry-after"] == "1"
    gate.opened.set()
    assert [client.answer().status for client in clients] == [200] * 3


def test_waiters_are_bounded_in_time(platform: Platform) -> None:
    gate, _, router = gated(platform, cell_connections_max=1, cell_wait_ms_max=200)
    first, second = platform.client(router), platform.client(router)
    first.send(request())
    wait_until(lambda: gate.requests, "the first")
    began = time.monotonic()
    answer = second.ask(request())
    assert (answer.status, answer.code) == (503, "cell_overloaded")
    assert time.monotonic() - began >= 0.2
    gate.opened.set()
    assert first.answer().status == 200
    assert gate.requests == 1


def test_waiting_client_that_hangs_up_is_still_served(platform: Platform) -> None:
    gate, _, router = gated(platform, cell_connections_max=1)
    first = platform.client(router)
    first.send(request())
    wait_until(lambda: gate.requests, "the first")
    with Client(router.port) as second:
        second.send(request("POST", body=b"{}"))
        wait_until(lambda: router.metric('cloister_router_waiting{cell="cell-a"}'), "a waiter")
    gate.opened.set()
    wait_until(lambda: gate.requests == 2, "the second")


def test_cell_that_stands_still_holds_up_no_other(platform: Platform) -> None:
    gate = Gate()
    stuck, well = platform.scripted_cell(gate), platform.scripted_cell(answer_all)
    platform.publish(
        1,
        {"tenant-a": ("cell-a", 1), "tenant-b": ("cell-b", 1)},
        {"cell-a": stuck.port, "cell-b": well.port},
    )
    router = platform.router(cell_connections_max=2, cell_waiters_max=2, cell_wait_ms_max=100)
    for _ in range(10):
        platform.client(router).send(request())
    other = platform.client(router)
    for _ in range(100):
        assert other.ask(request(tenant="tenant-b")).status == 200
    gate.opened.set()


def test_idle_connections_to_a_cell_are_closed_by_the_router(platform: Platform) -> None:
    gate, cell, router = gated(platform, cell_idle_ms_max=200)
    gate.opened.set()
    client = platform.client(router)
    assert client.ask(request()).status == 200
    wait_until(
        lambda: router.metric('cloister_router_cell_connections{cell="cell-a"}') == 0, "the end"
    )
    assert client.ask(request()).status == 200
    assert cell.connections == 2


def test_cell_that_does_not_accept_is_given_up_in_time(platform: Platform) -> None:
    """A full backlog: the connection is neither opened nor refused."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        platform.route_all_to(port)
        router = platform.router(cell_connect_ms_max=100)
        answer = platform.client(router).ask(request())
        assert (answer.status, answer.code) == (503, "cell_unreachable")
        for filler in fillers:
            filler.close()
