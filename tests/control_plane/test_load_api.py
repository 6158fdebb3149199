"""Method: a real server on a free port that answers from a script, and cuts connections; the client
must repeat what may be repeated, with the same idempotency key, and stop where it must."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from control_plane.load.api import (
    PAUSE_S_MAX,
    ApiClient,
    describe,
    pause_before_repeat,
)
from control_plane.load.errors import LoadRefused, PlatformUnreachable
from control_plane.load.http_connection import Address, Answer, ConnectionLost, HttpConnection

CREATED = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}"
CUT = b""
"""Close the connection without an answer."""


def refusal(status: int, *headers: str) -> bytes:
    body = b'{"errors":{"code":"conflict","message":"no","parameter":"p"}}'
    lines = [f"HTTP/1.1 {status} No", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Scripted:
    """Answers requests in order of arrival; the last answer is repeated for ever."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer == CUT:
                    return
                writer.write(answer)
                await writer.drain()
                if b"connection: close" in answer:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


Start = Callable[..., "asyncio.Future[Scripted]"]


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., object]]:
    servers: list[asyncio.Server] = []

    async def begin(*answers: bytes) -> Scripted:
        scripted = Scripted(*answers)
        server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
        servers.append(server)
        scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return scripted

    yield begin
    for server in servers:
        server.close()


def client(url: str, give_up_s: float = 20.0) -> ApiClient:
    return ApiClient(url, "org", "key", give_up_s)


async def post(of: ApiClient) -> Answer:
    return await of.call("POST", "/x", body={"a": 10**35}, idempotency_key="k1")


async def test_requests_carry_credentials_keys_and_exact_amounts(start: Start) -> None:
    server = await start(CREATED)
    answer = await client(server.url + "/base/").call(
        "POST", "/x", query={"a b": "ü"}, body={"a": 10**35}, idempotency_key="k1"
    )
    assert (answer.status, answer.body) == (201, b"{}")
    (request,) = server.requests
    assert request.startswith(b"POST /base/x?a+b=%C3%BC HTTP/1.1\r\n")
    assert b"authorization: Basic b3JnOmtleQ==\r\n" in request
    assert b"idempotency-key: k1\r\n" in request
    assert request.endswith(b'{"a":1' + b"0" * 35 + b"}")


async def test_a_connection_is_kept_and_made_again_when_it_ended(start: Start) -> None:
    closing = b"HTTP/1.1 201 Created\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    server = await start(CREATED, CREATED, closing, CREATED)
    calls = client(server.url)
    for _ in range(4):
        assert (await post(calls)).status == 201
    assert server.connections == 2
    calls.close()


@pytest.mark.parametrize(
    "first",
    [
        CUT,
        refusal(429, "retry-after-ms: 1"),
        refusal(503, "retry-after: 0"),
        refusal(409, "retry-after-ms: 1"),
        refusal(502),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart",
        b"what is this\r\n\r\n",
    ],
    ids=["cut", "429", "503", "409", "502", "partial", "no http"],
)
async def test_what_may_be_repeated_is_with_the_same_key(start: Start, first: bytes) -> None:
    if first.startswith(b"HTTP/1.1 200"):
        first += b"connection: close"  # the script's word for hanging up after it
    server = await start(first, CREATED)
    answer = await post(client(server.url))
    assert answer.status == 201
    assert len(server.requests) == 2
    assert server.requests[0] == server.requests[1]


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_refusal_is_an_answer(start: Start, status: int) -> None:
    server = await start(refusal(status))
    answer = await post(client(server.url))
    assert describe(answer) == f"{status} conflict: no (parameter p)"
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_end_the_load(start: Start, status: int) -> None:
    server = await start(refusal(status))
    with pytest.raises(LoadRefused, match="credentials"):
        await post(client(server.url))


async def test_the_deadline_ends_the_repeats_and_says_why(start: Start) -> None:
    server = await start(refusal(503, "retry-after: 3600"))
    with pytest.raises(PlatformUnreachable, match="503"):
        await post(client(server.url, give_up_s=1.0))
    assert len(server.requests) == 1  # an hour's pause does not fit, so it is not begun


async def test_an_address_where_nobody_listens(start: Start) -> None:
    with pytest.raises(PlatformUnreachable, match="for 1 s"):
        await post(client("http://127.0.0.1:1", give_up_s=1.0))


def test_it_works_on_the_loop_that_the_command_runs_on() -> None:
    async def exchange() -> int:
        scripted = Scripted(CUT, CREATED)
        server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
        calls = client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        answer = await post(calls)
        calls.close()
        server.close()
        return answer.status

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(exchange()) == 201


async def test_chunked_answers_are_read(start: Start) -> None:
    server = await start(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n"
    )
    assert (await client(server.url).call("GET", "/x")).body == b"[1,2]"


async def test_lists_are_followed_to_their_end(start: Start) -> None:
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-After-Cursor: c/1\r\n\r\n[1,2]"
    server = await start(page, b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[3]")
    assert [n async for n in client(server.url).listed("/x", {"q": "v"}, int)] == [1, 2, 3]
    assert b"GET /x?q=v&per_page=100&after_cursor=c%2F1 " in server.requests[1]


async def test_an_answer_that_was_given_up_is_never_taken_for_the_next() -> None:
    slow = asyncio.Event()
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        await reader.readuntil(b"\r\n\r\n")
        if number == 1:
            await slow.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % number)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = HttpConnection(Address.parse(f"http://127.0.0.1:{port}"), {})
    with pytest.raises(ConnectionLost, match="no answer within"):
        await connection.request("GET", "/1", timeout_s=0.05)
    slow.set()
    assert (await connection.request("GET", "/2", timeout_s=5)).body == b"2"
    connection.close()
    server.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:8080", "no address"),
        ("ftp://host", "no address"),
        ("http://", "no address"),
        ("http://host:99999", "no address"),
        ("http://[::1", "no address"),
    ],
)
def test_addresses_that_are_none(url: str, reason: str) -> None:
    with pytest.raises(LoadRefused, match=reason):
        Address.parse(url)


def test_addresses() -> None:
    assert Address.parse("https://host/").port == 443
    assert Address.parse("http://[::1]:80").authority == "[::1]:80"


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_pauses_grow_to_a_bound_and_honour_what_is_asked(chance: float) -> None:
    pauses = [pause_before_repeat(None, attempt, chance) for attempt in range(30)]
    assert pauses == sorted(pauses)
    assert max(pauses) <= PAUSE_S_MAX * 1.25
    for headers, seconds in (
        ({"retry-after": "3"}, 3.0),
        ({"retry-after-ms": "200", "retry-after": "9"}, 0.2),
    ):
        pause = pause_before_repeat(Answer(429, headers), 0, chance)
        assert seconds <= pause <= seconds * 1.25
    for unusable in ("-1", "nan", "inf", "tomorrow"):
        assert pause_before_repeat(Answer(429, {"retry-after": unusable}), 0, chance) < 1
