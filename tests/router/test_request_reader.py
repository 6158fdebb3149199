"""The reader's short cut for repeated heads changes nothing but the time it takes.

Method: properties. Whatever is sent, in whatever pieces, a reader that has seen other requests
before reads exactly what a new reader reads.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_clients import basic
from router_running import environment, whole

from router.app import Router
from router.errors import MalformedRequest, MethodNotAllowed, Refusal
from router.exchange import Exchange
from router.framing import PLAIN_REQUEST_LINE, check_target
from router.request_reader import RequestReader, Stage
from router.settings import Settings


class Recorder:
    """Takes what a reader hands on, as a connection that is always free."""

    def __init__(self, router: Router) -> None:
        self.read: list[object] = []
        self.reader = RequestReader(router.edge, self)  # type: ignore[arg-type]  # a stand-in

    def is_free(self) -> bool:
        return True

    def received(self, exchange: Exchange) -> None:
        refused = exchange.refusal
        route = None if refused else (exchange.route.tenant, exchange.route.epoch)
        self.read.append(
            (
                *(exchange.method, exchange.target, exchange.fields, exchange.body, route),
                exchange.key,
                *(exchange.is_head, exchange.close, exchange.framed, exchange.repeatable),
                type(refused),
            )
        )

    def encourage(self, exchange: Exchange) -> None:
        self.read.append("encourage")

    def feed(self, data: bytes) -> None:
        try:
            self.reader.feed(data)
        except Refusal as refusal:
            self.reader.end()
            # Which of the two depends on how much of the method was in one piece.
            kind = type(refusal)
            self.read.append(MalformedRequest if kind is MethodNotAllowed else kind)


@pytest.fixture(scope="module")
def idle_router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    directory: Path = tmp_path_factory.mktemp("reader")
    router = Router(Settings.from_environment(environment(directory, 1)))
    router.routes.adopt(whole(1, {"a": ("cell-a", 1), "b": ("cell-a", 2)}, {"cell-a": 1}))
    return router


LINES = [
    "GET /api/x HTTP/1.1",
    "GET /api/y?z=%5B1 HTTP/1.1",
    "HEAD /api/x HTTP/1.1",
    "DELETE /api/x HTTP/1.1",
    "POST /api/x HTTP/1.1",
    "GET /api/x HTTP/1.0",
    "GET /api/%2e%2e/x HTTP/1.1",
    "GET /../x HTTP/1.1",
    "GET /a b HTTP/1.1",
    "GET  /x HTTP/1.1",
    "GET /x HTTP/1.1 ",
    "GET http://h/x HTTP/1.1",
    "GET /x HTTP/1.1\r\nX: 1",
    "",
]
HEADERS = [
    "Host: h",
    "Host: other",
    f"Authorization: {basic('a')}",
    f"Authorization: {basic('b')}",
    f"Authorization: {basic('nobody')}",
    "Connection: close",
    "Connection: x-hop",
    "X-Hop: 1",
    "Content-Length: 0",
    "Content-Length: 3",
    "content-length:\t3 ",
    "Content-Length: 03",
    "Content-Length: 13",
    "Transfer-Encoding: chunked",
    "Expect: 100-continue",
    "Idempotency-Key: k",
    "Idempotency-Key: another-key",
    "idempotency-key:k2",
    "Idempotency-Key: k e y ",
    "Idempotency-Key: \xe9",
    "Idempotency-Key:",
    "X-Idempotency-Key: k",
    "Content_Length: 3",
    "Upgrade: x",
    "Cloister-Tenant: b",
    "X: 1",
]
usual = st.just([HEADERS[0], HEADERS[2]])
keys = st.sampled_from(["k", "key-2", "", " ", "k e y", "\xe9", "a" * 300])
lengths = st.sampled_from(["3", "0", "03", "3 ", "+3", "4", "2", "0000000003", ""])
writes = st.builds(
    lambda key, length: [
        *(HEADERS[0], f"Idempotency-Key: {key}", HEADERS[2], f"Content-Length: {length}", "X: 1")
    ],
    keys,
    lengths | st.just("3"),
)
sections = (
    usual
    | writes
    | writes
    | st.lists(st.sampled_from(HEADERS), max_size=5).map(
        lambda more: [HEADERS[0], HEADERS[2], *more]
    )
    | st.lists(st.sampled_from(HEADERS), max_size=4)
)
bodies = st.sampled_from(
    ["", "", "", "abc", "abc", "abc", "3\r\nabc\r\n0\r\n\r\n", "\r\n", "\r\n\r\n"]
)
requests = st.builds(
    lambda line, section, body: "\r\n".join([line, *section, "", body]).encode("latin-1"),
    st.sampled_from(LINES[:5]) | st.sampled_from(LINES),
    sections,
    bodies,
)


@settings(max_examples=300)
@given(st.lists(requests, min_size=2, max_size=6))
def test_requests_read_one_after_another_are_read_as_if_alone(
    idle_router: Router, data: list[bytes]
) -> None:
    together = Recorder(idle_router)
    for piece in data:
        alone = Recorder(idle_router)
        already = len(together.read)
        together.feed(piece)
        alone.feed(piece)
        assert together.read[already:] == alone.read
        if together.reader.stage is not Stage.BETWEEN or ends_the_connection(alone.read):
            break


def ends_the_connection(read: list[object]) -> bool:
    return any(item == "encourage" or (isinstance(item, tuple) and item[7]) for item in read)


@settings(max_examples=300)
@given(
    st.lists(requests, min_size=1, max_size=4).map(b"".join),
    st.lists(st.integers(min_value=0, max_value=400), max_size=6),
)
def test_pieces_do_not_matter(idle_router: Router, data: bytes, cuts: list[int]) -> None:
    whole, pieces = Recorder(idle_router), Recorder(idle_router)
    whole.feed(data)
    ends = [*sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        pieces.feed(data[start:end])
    # What was refused ends the reading in both; what followed in the same piece is not compared.
    assert pieces.read == whole.read


def test_head_begun_in_an_earlier_piece_is_not_remembered(idle_router: Router) -> None:
    """Its end alone would otherwise pass for the whole, credentials included."""
    recorder = Recorder(idle_router)
    recorder.feed(f"GET /1 HTTP/1.1\r\nHost: h\r\nAuthorization: {basic('a')}\r\nX-A:".encode())
    recorder.feed(b"GET /2 HTTP/1.1\r\nX-B: 1\r\n\r\n")
    assert len(recorder.read) == 1
    recorder.feed(b"GET /3 HTTP/1.1\r\nX-B: 1\r\n\r\n")
    assert recorder.read[1:] and isinstance(recorder.read[1], type)


@pytest.mark.parametrize(
    ("first", "second", "is_read"),
    [
        (("GET", "", ""), ("GET", "", ""), True),
        (("GET", "", ""), ("DELETE", "", ""), False),
        (("POST", "1", "abc"), ("POST", "2", "abcdef"), True),
        (("POST", "1", "abc"), ("POST", "1", ""), True),
        (("POST", "1", "abc"), ("POST", "", "abc"), False),
        (("POST", "1", "abc"), ("PUT", "1", "abc"), False),
    ],
)
def test_short_cut_is_taken_where_it_can_be(
    idle_router: Router, first: tuple[str, str, str], second: tuple[str, str, str], is_read: bool
) -> None:
    """Or the properties above would prove nothing."""

    def data(method: str, key: str, body: str) -> bytes:
        lines = f"Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n" if key else ""
        head = f"{method} /x HTTP/1.1\r\nHost: h\r\nAuthorization: {basic('a')}\r\n{lines}\r\n"
        return (head + body).encode()

    reader = Recorder(idle_router).reader
    reader.feed(data(*first))
    assert list(reader._repeated) == [first[0][:2].encode()]
    head = reader._repeated.get(second[0][:2].encode())
    assert (head is not None and reader._read_repeated(head, data(*second))) is is_read


@settings(max_examples=300)
@given(st.from_regex(PLAIN_REQUEST_LINE, fullmatch=True))
def test_plain_request_lines_are_lines_the_parser_accepts(idle_router: Router, line: bytes) -> None:
    recorder = Recorder(idle_router)
    recorder.feed(line + f"\r\nHost: h\r\nAuthorization: {basic('a')}\r\n\r\n".encode())
    ((method, target, *_),) = recorder.read  # type: ignore[misc]  # a tuple, not a refusal
    assert b"%b %b HTTP/1.1" % (method, target) == line
    check_target(target)
