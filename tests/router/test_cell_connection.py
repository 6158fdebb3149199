"""The short cut for answers whose heads repeat changes nothing but the time it takes.

Method: a property. Whatever a cell answers, a connection of a pool that has seen other answers
before passes on exactly what one of a new pool passes on.
"""

import asyncio
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_running import environment, whole

from control_plane.routing import OrganizationId
from router.app import Router
from router.breaker import FAILURES_IN_A_ROW
from router.cell_connection import CellConnection
from router.errors import Refusal
from router.exchange import Exchange
from router.settings import Settings

REQUEST_ID = b"abc-1"


class Wire:
    """A transport that remembers only whether it was closed."""

    closed = False

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed


class Listener:
    """A client's connection that remembers what it was given."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def answer(self, exchange: Exchange, answer: bytes, *, close: bool) -> None:
        self.heard.append((answer, close))

    def answer_part(self, part: bytes) -> None:
        self.heard.append(part)

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        self.heard.append(type(refusal))

    def cut(self) -> None:
        self.heard.append("cut")

    def is_congested(self) -> bool:
        return False


@pytest.fixture(scope="module")
def idle_router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    directory: Path = tmp_path_factory.mktemp("answers")
    return Router(Settings.from_environment(environment(directory, 1)))


def forget(router: Router, version: int) -> None:
    """A new address, and with it a new pool, which remembers nothing."""
    address = f"host-{version}:1"
    assert router.routes.adopt(whole(version, {"a": ("cell-a", 1)}, {"cell-a": address})) is None


def passed_on(router: Router, method: bytes, data: bytes) -> tuple[list[object], bool]:
    """What the client hears, and whether the connection is kept."""
    pool = router.routes.pools[0]
    connection, wire, client = CellConnection(pool), Wire(), Listener()
    connection.connection_made(cast(asyncio.BaseTransport, wire))
    exchange = Exchange(client, REQUEST_ID, method, b"/")  # type: ignore[arg-type]  # a stand-in
    route = router.routes.route_of(OrganizationId("a"))
    assert route is not None
    exchange.route = route
    pool.submit(exchange)
    connection.data_received(data)
    kept = not wire.closed
    connection.connection_lost(None)
    return client.heard, kept


LINES = ["HTTP/1.1 200 OK", "HTTP/1.1 201 Created", "HTTP/1.1 404 Not Found", "HTTP/1.1 204 No"]
HEADERS = [
    "content-length: 3",
    "Content-Length:0",
    "content-length: 4",
    "content-length: 03",
    "content-length: 3 ",
    "content-length: x",
    "transfer-encoding: chunked",
    f"x-request-id: {REQUEST_ID.decode()}",
    "x-request-id: another",
    "date: Mon, 01 Jan 2024 00:00:00 GMT",
    "date: Mon, 01 Jan 2024 00:00:01 GMT",
    "content-type: application/json",
    "connection: close",
    "connection: x-hop",
    "x-hop: 1",
    "cloister-epoch: 2",
    "x: \xe9",
    "x : 1",
    "content_length: 3",
]
usual = st.builds(
    lambda length, more: [HEADERS[9], f"content-length: {length}", HEADERS[7], *more],
    st.sampled_from(["3", "3", "4", "03", "0"]),
    st.sampled_from([[], [HEADERS[11]]]),
)
answers = st.builds(
    lambda line, headers, body: "\r\n".join([line, *headers, "", body]).encode("latin-1"),
    st.sampled_from(LINES[:1]) | st.sampled_from(LINES),
    usual | usual | st.lists(st.sampled_from(HEADERS), max_size=5),
    st.sampled_from(["abc", "abc", "abcd", "", "3\r\nabc\r\n0\r\n\r\n", "abc\r\n\r\n"]),
)


@settings(max_examples=300)
@given(
    # Not so many that the losses among them open the pool's breaker to the last.
    st.lists(
        st.tuples(st.sampled_from([b"GET", b"GET", b"HEAD"]), answers),
        min_size=2,
        max_size=FAILURES_IN_A_ROW,
    )
)
def test_answers_after_others_are_passed_on_as_if_alone(
    idle_router: Router, told: list[tuple[bytes, bytes]]
) -> None:
    version = (idle_router.routes.version or 0) + 1
    forget(idle_router, version)
    together = [passed_on(idle_router, *each) for each in told]
    for number, each in enumerate(told):
        forget(idle_router, version + number + 1)
        assert passed_on(idle_router, *each) == together[number]


def test_short_cut_is_taken(idle_router: Router) -> None:
    """Or the property would prove nothing."""
    forget(idle_router, (idle_router.routes.version or 0) + 1)
    pool = idle_router.routes.pools[0]
    for length in (3, 4):
        body = "x" * length
        data = f"HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nx-request-id: abc-1\r\n\r\n{body}"
        heard, kept = passed_on(idle_router, b"GET", data.encode())
        assert kept and len(heard) == 1
    assert list(pool.repeated) == [b"HTTP/1.1 200"]
    assert pool.vain_memories == 0


async def test_connection_given_up_when_it_is_made_takes_no_request(idle_router: Router) -> None:
    """Its time was up, and the task that opens it is cancelled, but has not noticed yet."""
    forget(idle_router, (idle_router.routes.version or 0) + 1)
    pool, wire = idle_router.routes.pools[0], Wire()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0) as patience:
            try:
                await asyncio.Event().wait()
            finally:
                connection = CellConnection(pool, patience)
                connection.connection_made(cast(asyncio.BaseTransport, wire))
    assert wire.closed
    assert pool.open_connections == 0


async def test_connection_once_made_is_not_given_up(idle_router: Router) -> None:
    forget(idle_router, (idle_router.routes.version or 0) + 1)
    pool, wire = idle_router.routes.pools[0], Wire()
    async with asyncio.timeout(60) as patience:
        CellConnection(pool, patience).connection_made(cast(asyncio.BaseTransport, wire))
        await asyncio.sleep(0)
        assert patience.when() is None
    assert not wire.closed
    assert pool.open_connections == 1
