"""What cells answer, and what reaches the client.

Method: a well-behaved server for what should work, scripted sockets for what should not; an answer
is passed on whole, or recognisably broken off, and never given to another request.
"""

import hashlib
import threading

import pytest
from conftest import Platform
from router_cells import CellSide, EchoCell, answer_all
from router_clients import Client, request
from router_running import RunningRouter, wait_until


def test_hop_by_hop_headers_of_answers_end_at_the_router(client: Client) -> None:
    answer = client.ask(request(target="/status/200"))
    assert "connection" not in answer.headers and "x-private" not in answer.headers
    assert answer.headers["x-kept"] == "2"
    assert answer.headers["x-request-id"] != "no"


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_body(client: Client, status: int) -> None:
    answer = client.ask(request(target=f"/status/{status}"))
    assert answer.status == status
    assert ("content-length" in answer.headers) <= (status == 304)
    assert client.ask(request()).status == 200


@pytest.mark.parametrize("status", [400, 404, 409, 418, 422, 429, 500, 503])
def test_errors_of_the_cell_pass_unchanged(cell: EchoCell, client: Client, status: int) -> None:
    assert client.ask(request(target=f"/status/{status}")).status == status
    assert len(cell.seen) == 1


def test_large_answer_of_known_length(client: Client) -> None:
    answer = client.ask(request(target="/bytes/20000000"))
    assert answer.headers["content-length"] == "20000000"
    assert answer.body == b"b" * 20_000_000
    assert client.ask(request()).status == 200


def test_large_answer_in_chunks(client: Client) -> None:
    answer = client.ask(request(target="/stream/20000000"))
    assert answer.headers["transfer-encoding"] == "chunked"
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(b"s" * 20_000_000).digest()
    assert client.ask(request()).status == 200


def test_slow_reader_holds_back_the_cell(platform: Platform) -> None:
    """An answer waits in the cell, not in the router's memory."""
    size = 200_000_000
    said = threading.Event()

    def script(side: CellSide) -> None:
        while side.request() is not None:
            side.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            for _ in range(size // 1_000_000):
                side.say(b"x" * 1_000_000)
            said.set()

    platform.route_all_to(platform.scripted_cell(script).port)
    router = platform.router()
    client = platform.client(router)
    client.send(request())
    assert client.head()[0] == 200
    # What the router and the systems' buffers take is little beside the answer.
    assert not said.wait(0.3)
    assert sum(len(client.read(1_000_000)) for _ in range(200)) == size
    assert said.wait(5)


def test_slow_reader_delays_nobody_else(platform: Platform) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router()
    slow, quick = platform.client(router), platform.client(router)
    slow.send(request(target="/bytes/50000000"))
    slow.head()
    for _ in range(50):
        assert quick.ask(request()).status == 200
    assert len(slow.read(50_000_000)) == 50_000_000


def test_reader_that_never_reads_is_cut(platform: Platform) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router(answer_ms_max=300)
    client = platform.client(router)
    client.send(request(target="/bytes/50000000"))
    wait_until(lambda: not router.router.edge.connections, "the client to be cut")
    wait_until(lambda: router.metric('cloister_router_in_flight{cell="cell-a"}') == 0, "the end")


def test_client_that_hangs_up_in_an_answer_frees_the_cell(platform: Platform) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router()
    with Client(router.port) as client:
        client.send(request(target="/bytes/50000000"))
        client.head()
    wait_until(lambda: router.metric('cloister_router_in_flight{cell="cell-a"}') == 0, "the end")


def test_interim_answers_are_swallowed(platform: Platform) -> None:
    def script(side: CellSide) -> None:
        while side.request() is not None:
            side.say(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
            side.answer(headers="x-last: 1\r\n")

    platform.route_all_to(platform.scripted_cell(script).port)
    client = platform.client(platform.router())
    for _ in range(2):
        client.send(request())
        status, headers = client.head()
        assert status == 200
        assert "link" not in headers and headers["x-last"] == "1"
        assert client.read(11) == b'{"ok":true}'


def test_answer_in_single_bytes(platform: Platform) -> None:
    def script(side: CellSide) -> None:
        side.socket.setsockopt(6, 1, 1)
        while side.request() is not None:
            for (
                byte
            ) in b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n":
                side.say(bytes((byte,)))

    platform.route_all_to(platform.scripted_cell(script).port)
    client = platform.client(platform.router())
    assert [client.ask(request()).body for _ in range(3)] == [b"abc"] * 3


UNUSABLE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9\r\n",
    "without framing": b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end",
    "HTTP/1.0 without framing": b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "length and chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "gzip coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nxx",
    "switching protocols": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "NUL": b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000,
}


@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_answer_is_502_and_its_connection_is_dropped(
    platform: Platform, answer: bytes
) -> None:
    def script(side: CellSide) -> None:
        if side.number:
            answer_all(side)
        elif side.request() is not None:
            side.say(answer)
            side.request()

    cell = platform.scripted_cell(script)
    platform.route_all_to(cell.port)
    router = platform.router()
    client = platform.client(router)
    lost = client.ask(request("POST", body=b"{}"))
    assert (lost.status, lost.code) == (502, "outcome_unknown")
    assert lost.headers["x-should-retry"] == "false"
    assert client.ask(request()).status == 200
    assert cell.connections == 2
    assert router.metric('cloister_router_losses_total{cause="unusable",cell="cell-a"}') == 1


def test_bytes_after_an_answer_reach_no_other_request(platform: Platform) -> None:
    """The second answer, sent unasked, would be given to whoever asks next."""

    def script(side: CellSide) -> None:
        while (seen := side.request()) is not None:
            body = b'{"for":"%b"}' % seen.target.encode()
            once = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            side.say(once + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")

    cell = platform.scripted_cell(script)
    platform.route_all_to(cell.port)
    client = platform.client(platform.router())
    for index in range(5):
        assert client.ask(request(target=f"/{index}")).json == {"for": f"/{index}"}
    assert cell.connections == 5


def test_body_after_the_answer_to_head_reaches_no_other_request(platform: Platform) -> None:
    def script(side: CellSide) -> None:
        while side.request() is not None:
            side.answer(body=b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")

    cell = platform.scripted_cell(script)
    platform.route_all_to(cell.port)
    client = platform.client(platform.router())
    assert client.ask(request("HEAD"), bodiless=True).status == 200
    assert client.ask(request()).body.startswith(b"HTTP/1.1")
    assert cell.connections == 2


def test_bytes_on_an_idle_connection_close_it(platform: Platform) -> None:
    def script(side: CellSide) -> None:
        if side.number:
            answer_all(side)
            return
        side.request()
        side.answer()
        idle.wait(5)
        side.say(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")
        closed.append(side.request())

    idle, closed = threading.Event(), list[object]()
    cell = platform.scripted_cell(script)
    platform.route_all_to(cell.port)
    client = platform.client(platform.router())
    assert client.ask(request()).json == {"ok": True}
    idle.set()
    wait_until(lambda: closed == [None], "the router to close")
    assert client.ask(request()).json == {"ok": True}
    assert cell.connections == 2


def test_answer_broken_off_is_recognisably_so(platform: Platform) -> None:
    """Part of it has left already: the client must not take it for the whole."""

    def script(side: CellSide) -> None:
        seen = side.request()
        if seen is None:
            return
        if seen.target == "/known":
            side.say(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 500_000)
        else:
            chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
            side.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk)
        half.wait(5)

    half = threading.Event()
    platform.route_all_to(platform.scripted_cell(script).port)
    router = platform.router()
    for target in ("/known", "/chunks"):
        half.clear()
        client = platform.client(router)
        client.send(request(target=target))
        client.head()
        client.read(50_000)
        half.set()
        with pytest.raises((EOFError, ConnectionError)):
            client.read(1_000_000)
    assert router.metric('cloister_router_losses_total{cause="broken",cell="cell-a"}') == 2


def test_answer_before_the_body_is_read(platform: Platform) -> None:
    """A cell may refuse early; the connection, half a request in it, is not used again."""

    def script(side: CellSide) -> None:
        if side.number:
            answer_all(side)
            return
        side.socket.recv(1000)
        side.answer(413)
        done.wait(5)

    done = threading.Event()
    cell = platform.scripted_cell(script)
    platform.route_all_to(cell.port)
    client = platform.client(platform.router())
    assert client.ask(request("POST", body=b"x" * 20_000_000)).status == 413
    assert client.ask(request()).status == 200
    assert cell.connections == 2
    done.set()


def test_cell_that_closes_after_each_answer(platform: Platform) -> None:
    def script(side: CellSide) -> None:
        side.request()
        side.answer(headers="connection: close\r\n")

    cell = platform.scripted_cell(script)
    platform.route_all_to(cell.port)
    client = platform.client(platform.router())
    for _ in range(5):
        answer = client.ask(request("POST", body=b"{}"))
        assert answer.status == 200 and "connection" not in answer.headers
    assert cell.connections == 5


def test_answers_are_counted_by_class(router: RunningRouter, client: Client) -> None:
    def count(status: str) -> float:
        return router.metric(f'cloister_router_answers_total{{cell="cell-a",status="{status}"}}')

    before = count("2xx"), count("4xx")
    client.ask(request())
    client.ask(request(target="/status/422"))
    assert (count("2xx"), count("4xx")) == (before[0] + 1, before[1] + 1)
