"""What clients send, and what reaches the cell.

Method: exact bytes to a real router; what it refuses must never be seen by the cell, and what it
forwards must be seen there once, in framing of the router's own.
"""

import json

import pytest
from router_cells import EchoCell
from router_clients import Client, basic, chunked, request
from router_running import RunningRouter, wait_until

H = b"Host: ledger.test\r\n"
AUTH = f"Authorization: {basic('tenant-a')}\r\n".encode()
TE = b"Transfer-Encoding: chunked\r\n"


def post(framing: bytes, rest: bytes = b"") -> bytes:
    return b"POST /api/x HTTP/1.1\r\n" + H + AUTH + framing + b"\r\n" + rest


def get(lines: bytes = b"", start: bytes = b"GET /api/x HTTP/1.1\r\n", host: bytes = H) -> bytes:
    return start + host + AUTH + lines + b"\r\n"


MALFORMED = {
    "content-length and transfer-encoding": post(b"Content-Length: 3\r\n" + TE, b"0\r\n\r\n"),
    "transfer-encoding and content-length": post(TE + b"Content-Length: 3\r\n", b"0\r\n\r\n"),
    "two equal lengths": post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"),
    "two lengths": post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"),
    "signed length": post(b"Content-Length: +5\r\n", b"abcde"),
    "list of lengths": post(b"Content-Length: 5,5\r\n", b"abcde"),
    "negative length": post(b"Content-Length: -1\r\n"),
    "length beyond 64 bits": post(b"Content-Length: 100000000000000000000\r\n"),
    "empty length": post(b"Content-Length:\r\n"),
    "hexadecimal length": post(b"Content-Length: 0x3\r\n", b"abc"),
    "length with a space inside": post(b"Content-Length: 1 0\r\n"),
    "chunk size with 0x": post(TE, b"0x5\r\nabcde\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": post(TE, b"fffffffffffffffff\r\nabcde\r\n0\r\n\r\n"),
    "negative chunk size": post(TE, b"-1\r\nabcde\r\n0\r\n\r\n"),
    "chunk size with a space": post(TE, b"5 \r\nabcde\r\n0\r\n\r\n"),
    "chunk longer than its size": post(TE, b"5\r\nabcdeXX0\r\n\r\n"),
    "chunks ended by LF": post(TE, b"5\nabcde\n0\n\n"),
    "chunk extension ended by LF": post(TE, b"5;a=b\nabcde\r\n0\r\n\r\n"),
    "chunk extension flood": post(TE, b"1;" + b"x" * 200_000 + b"\r\na\r\n"),
    "trailer with content-length": post(TE, b"1\r\na\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "trailer with transfer-encoding": post(
        TE, b"1\r\na\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "unknown coding": post(b"Transfer-Encoding: xchunked\r\n", b"1\r\na\r\n0\r\n\r\n"),
    "coding before chunked": post(b"Transfer-Encoding: gzip, chunked\r\n", b"1\r\na\r\n0\r\n\r\n"),
    "coding after chunked": post(b"Transfer-Encoding: chunked, gzip\r\n", b"1\r\na\r\n0\r\n\r\n"),
    "identity coding": post(b"Transfer-Encoding: identity\r\n"),
    "two codings": post(TE + TE, b"1\r\na\r\n0\r\n\r\n"),
    "coding behind a vertical tab": post(
        b"Transfer-Encoding: \x0bchunked\r\n", b"1\r\na\r\n0\r\n\r\n"
    ),
    "coding in a folded line": post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "coding in HTTP/1.0": b"POST /api/x HTTP/1.0\r\n" + H + AUTH + TE + b"\r\n" + b"0\r\n\r\n",
    "folded header": get(b"X: a\r\n b\r\n"),
    "folded header, tab": get(b"X: a\r\n\tb\r\n"),
    "bare CR": get(b"X: a\rY: b\r\n"),
    "bare LF": get(b"X: a\nY: b\r\n"),
    "LF only": b"GET /api/x HTTP/1.1\nHost: a\n\n",
    "NUL in a value": get(b"X: a\0b\r\n"),
    "NUL in a name": get(b"X\0: b\r\n"),
    "control character": get(b"X: a\x01b\r\n"),
    "DEL": get(b"X: a\x7fb\r\n"),
    "space before the colon": get(b"X : b\r\n"),
    "space before the first header": b"GET /api/x HTTP/1.1\r\n X: b\r\n" + H + AUTH + b"\r\n",
    "no colon": get(b"Xab\r\n"),
    "empty name": get(b": b\r\n"),
    "no Host": get(host=b""),
    "two Hosts": get(b"Host: other.test\r\n"),
    "two equal Hosts": get(b"Host: ledger.test\r\n"),
    "empty Host": get(host=b"Host: \r\n"),
    "Host with a path": get(host=b"Host: a/b\r\n"),
    "Host with user": get(host=b"Host: me@ledger.test\r\n"),
    "two Hosts in one": get(host=b"Host: a, b\r\n"),
    "two credentials": get(AUTH),
    "two idempotency keys": post(b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n"),
    "absolute form": get(start=b"GET http://other.test/api/x HTTP/1.1\r\n"),
    "asterisk form": get(start=b"GET * HTTP/1.1\r\n"),
    "dot segment": get(start=b"GET /api/../x HTTP/1.1\r\n"),
    "dot segment at the end": get(start=b"GET /api/.. HTTP/1.1\r\n"),
    "encoded dot segment": get(start=b"GET /api/%2e%2E/x HTTP/1.1\r\n"),
    "half encoded dot segment": get(start=b"GET /api/.%2e/x HTTP/1.1\r\n"),
    "single dot segment": get(start=b"GET /api/./x HTTP/1.1\r\n"),
    "encoded NUL": get(start=b"GET /api/%00 HTTP/1.1\r\n"),
    "broken escape": get(start=b"GET /api/%2 HTTP/1.1\r\n"),
    "escape of no digits": get(start=b"GET /api/%zz HTTP/1.1\r\n"),
    "backslash": get(start=b"GET /api\\x HTTP/1.1\r\n"),
    "fragment": get(start=b"GET /api/x#y HTTP/1.1\r\n"),
    "raw UTF-8 in the target": get(start=b"GET /\xc3\xa9 HTTP/1.1\r\n"),
    "space in the target": get(start=b"GET /a b HTTP/1.1\r\n"),
    "HTTP/0.9": b"GET /api/x\r\n\r\n",
    "HTTP/1.2": get(start=b"GET /api/x HTTP/1.2\r\n"),
    "HTTP/2.0": get(start=b"GET /api/x HTTP/2.0\r\n"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "upgrade": get(b"Connection: upgrade\r\nUpgrade: websocket\r\n"),
    "upgrade with a body": post(
        b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n", b"abc"
    ),
    "Connection lists Authorization": get(b"Connection: close, authorization\r\n"),
    "Connection lists Host": get(b"Connection: host\r\n"),
    "Connection lists the key": post(
        b"Idempotency-Key: a\r\nConnection: idempotency-key\r\nContent-Length: 0\r\n"
    ),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no HTTP": b"\r\n\r\nHELO ledger\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_is_refused_closed_and_never_forwarded(
    cell: EchoCell, client: Client, data: bytes
) -> None:
    answer = client.ask(data)
    assert answer.status in (400, 405)
    assert answer.code in ("malformed_request", "method_not_allowed")
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]
    assert client.is_closed()
    assert cell.seen == []


SHORT = {name: data for name, data in MALFORMED.items() if len(data) < 2_000}


@pytest.mark.parametrize("data", SHORT.values(), ids=SHORT.keys())
def test_malformed_is_refused_byte_by_byte(cell: EchoCell, client: Client, data: bytes) -> None:
    """Wherever the pieces break, the judgement is the same."""
    client.socket.setsockopt(6, 1, 1)
    try:
        for index in range(len(data)):
            client.send(data[index : index + 1])
    except ConnectionError:
        pass  # refused before the last byte
    assert client.answer().status in (400, 405)
    assert cell.seen == []


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "OPTIONS", "FOO", "get", "PROPFIND"])
def test_methods_that_are_no_part_of_the_api(cell: EchoCell, client: Client, method: str) -> None:
    target = "ledger.test:80" if method == "CONNECT" else "/api/x"
    answer = client.ask(request(method, target))
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]
    assert client.is_closed()
    assert cell.seen == []


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_methods_of_the_api_are_forwarded(cell: EchoCell, client: Client, method: str) -> None:
    answer = client.ask(request(method, "/api/x?metadata%5Bkey%5D=a+b&c", body=b'{"a":1}'))
    assert answer.status == (201 if method == "POST" else 200)
    assert answer.json == {
        "cell": "cell-a",
        "method": method,
        "target": "/api/x?metadata%5Bkey%5D=a+b&c",
        "body_bytes": 7,
    }
    assert cell.seen[0].body == b'{"a":1}'


def test_head_is_answered_without_body(client: Client) -> None:
    answer = client.ask(request("HEAD", "/bytes/1000"), bodiless=True)
    assert (answer.status, answer.headers["content-length"]) == (200, "1000")
    assert client.ask(request("GET", "/bytes/3")).body == b"bbb"
    refused = client.ask(request("HEAD", tenant=None), bodiless=True)
    assert (refused.status, client.ask(request()).status) == (401, 200)


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_what_the_cell_sees(cell: EchoCell, client: Client) -> None:
    """Hop-by-hop headers end here, ours cannot be forged, everything else passes."""
    headers = (
        "Accept: application/json\r\nX-Custom: one\r\nX-Custom: two\r\n"
        f"traceparent: {TRACE}\r\ntracestate: a=1\r\ntracestate: b=2\r\n"
        "Idempotency-Key: key-1\r\nContent-Type: application/json\r\n"
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
        "Trailer: X-T\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\n"
        "Cloister-Tenant: tenant-b\r\ncloister-epoch: 99\r\nCLOISTER-Anything: 1\r\n"
        "cloister_tenant: tenant-b\r\ncontent_length: 3\r\ntransfer_encoding: chunked\r\n"
        "X-Request-Id: mine\r\nX-Forwarded-For: 1.2.3.4\r\nX_Forwarded_Proto: https\r\n"
        "Forwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nExpect: 100-continue\r\n"
    )
    answer = client.ask(request("POST", "/api/x", headers=headers, body=b"{}"))
    assert answer.status == 201
    (seen,) = cell.seen
    assert seen.header("cloister-tenant") == "tenant-a"
    assert seen.header("cloister-epoch") == "1"
    assert seen.header("cloister-request-id") == answer.headers["x-request-id"]
    assert seen.header("content-length") == "2"
    assert seen.header("idempotency-key") == "key-1"
    assert seen.header("authorization") == basic("tenant-a")
    assert [value for name, value in seen.headers if name == "x-custom"] == ["one", "two"]
    assert seen.header("traceparent") == TRACE
    assert [value for name, value in seen.headers if name == "tracestate"] == ["a=1", "b=2"]
    assert {name for name, _ in seen.headers} == {
        *("host", "authorization", "accept", "x-custom", "idempotency-key", "content-type"),
        *("traceparent", "tracestate"),
        *(
            "content-length",
            "cloister-tenant",
            "cloister-epoch",
            "cloister-request-id",
            "cloister-deadline-ms",
        ),
    }


def test_chunked_body_arrives_with_a_length(cell: EchoCell, client: Client) -> None:
    head = request("POST", "/api/x", headers="Transfer-Encoding: chunked\r\n")
    trailer = b"3;ext=1\r\nabc\r\n0\r\nX-Trailer: 1\r\nCloister-Tenant: b\r\n\r\n"
    assert client.ask(head + chunked(b"abc", b"d" * 5000)).json["body_bytes"] == 5003
    assert client.ask(head + trailer).json["body_bytes"] == 3
    assert client.ask(head + chunked()).json["body_bytes"] == 0
    assert client.ask(request()).status == 200
    assert cell.seen[0].body == b"abc" + b"d" * 5000
    for seen in cell.seen:
        assert seen.header("transfer-encoding") is None
        assert seen.header("x-trailer") is None
    assert [seen.header("content-length") for seen in cell.seen] == ["5003", "3", "0", None]


def test_empty_body_keeps_its_declaration(cell: EchoCell, client: Client) -> None:
    client.ask(request("PUT", body=b""))
    client.ask(request("DELETE"))
    assert [seen.header("content-length") for seen in cell.seen] == ["0", None]


@pytest.mark.parametrize("target", ["/a%2Fb%20c", "/api//x", "/a..b/.well-known", "/?a=[b]&c=%00"])
def test_odd_targets_pass_unchanged(cell: EchoCell, client: Client, target: str) -> None:
    assert client.ask(request(target=target)).status == 200
    assert cell.seen[0].target == target


def test_http_1_0_is_answered_and_closed(cell: EchoCell, client: Client) -> None:
    answer = client.ask(b"GET /api/x HTTP/1.0\r\n" + AUTH + b"Connection: keep-alive\r\n\r\n")
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert client.is_closed()
    assert len(cell.seen) == 1


def test_http_1_0_gets_a_stream_without_chunks(router: RunningRouter) -> None:
    with Client(router.port) as client:
        client.send(b"GET /stream/1000000 HTTP/1.0\r\n" + AUTH + b"\r\n")
        _, headers = client.head()
        assert "transfer-encoding" not in headers
        assert len(client.rest()) == 1_000_000


def test_connection_close_is_kept(client: Client) -> None:
    answer = client.ask(request(headers="Connection: close\r\n"))
    assert answer.headers["connection"] == "close"
    assert client.is_closed()


# -- pipelining


def test_pipelined_requests_are_answered_in_order(cell: EchoCell, client: Client) -> None:
    count = 50
    client.send(
        b"".join(
            request(
                "POST" if i % 3 == 0 else "GET", f"/api/{i}", body=b"x" * i if i % 3 == 0 else None
            )
            for i in range(count)
        )
    )
    answers = [client.answer() for _ in range(count)]
    assert [answer.json["target"] for answer in answers] == [f"/api/{i}" for i in range(count)]
    assert len({answer.headers["x-request-id"] for answer in answers}) == count
    assert len(cell.seen) == count


def test_malformed_second_request_after_the_first_is_answered(
    cell: EchoCell, client: Client
) -> None:
    client.send(request(target="/api/first") + b"BAD\r\n\r\n" + request(target="/api/third"))
    assert client.answer().json["target"] == "/api/first"
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert client.is_closed()
    assert [seen.target for seen in cell.seen] == ["/api/first"]


def test_smuggled_request_in_a_body_stays_a_body(cell: EchoCell, client: Client) -> None:
    inner = request("DELETE", "/api/everything")
    assert client.ask(request("POST", "/api/x", body=inner)).json["body_bytes"] == len(inner)
    assert [seen.method for seen in cell.seen] == ["POST"]


def test_pipelining_without_end_is_refused(cell: EchoCell, client: Client) -> None:
    client.send(b"".join(request(target=f"/api/{i}") for i in range(500)))
    statuses = []
    while not statuses or statuses[-1] == 200:
        statuses.append(client.answer().status)
    assert statuses[-1] == 503
    assert len(cell.seen) == len(statuses) - 1 >= 64


def test_pipelined_after_a_refusal_that_keeps_the_connection(
    cell: EchoCell, client: Client
) -> None:
    client.send(
        request("POST", tenant="nobody", body=b"{}")
        + request(target="/api/2")
        + request(tenant=None)
        + request(target="/api/4")
    )
    assert [client.answer().status for _ in range(4)] == [401, 200, 401, 200]
    assert [seen.target for seen in cell.seen] == ["/api/2", "/api/4"]


# -- limits


def test_body_at_the_limit_and_above(cell: EchoCell, client: Client) -> None:
    assert client.ask(request("POST", body=b"x" * 100_000)).status == 201
    client.send(request("POST", headers="Content-Length: 100001\r\n"))
    answer = client.answer()
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert client.is_closed()
    assert len(cell.seen) == 1


def test_refusal_of_a_body_is_read_even_by_a_client_still_sending(client: Client) -> None:
    client.send(request("POST", headers="Content-Length: 5000000\r\n") + b"x" * 5_000_000)
    assert client.answer().status == 413


def test_chunked_body_above_the_limit(cell: EchoCell, client: Client) -> None:
    head = request("POST", headers="Transfer-Encoding: chunked\r\n")
    client.send(head + chunked(*[b"x" * 50_000] * 3)[:-5])
    assert client.answer().status == 413
    assert cell.seen == []


def test_huge_chunk_is_refused_long_before_its_end(cell: EchoCell, client: Client) -> None:
    head = request("POST", headers="Transfer-Encoding: chunked\r\n")
    client.send(head + b"7fffffffffffffff\r\n" + b"x" * 200_000)
    assert client.answer().status == 413
    assert cell.seen == []


def test_trailers_without_end_are_refused(cell: EchoCell, client: Client) -> None:
    head = request("POST", headers="Transfer-Encoding: chunked\r\n")
    client.send(head + chunked(b"x" * 90_000)[:-2] + b"X-Trailer: 1\r\n" * 40_000)
    assert client.answer().status == 400
    assert cell.seen == []


def test_one_byte_chunks_pass(cell: EchoCell, client: Client) -> None:
    head = request("POST", headers="Transfer-Encoding: chunked\r\n")
    assert client.ask(head + chunked(*[b"x"] * 60_000)).json["body_bytes"] == 60_000


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(headers="X-Long: " + "x" * 17_000 + "\r\n"), 431),
        (request(headers="".join(f"X-{i}: 1\r\n" for i in range(101))), 431),
        (request(headers="".join(f"Cloister-{i}: 1\r\n" for i in range(101))), 431),
        (request(headers="Cloister-X: " + "x" * 17_000 + "\r\n"), 431),
        (request(headers="X" * 17_000 + ": 1\r\n"), 431),
        (request(headers="X-Endless: " + "x" * 40_000)[:-4], 431),
        (request(target="/" + "x" * 8_192), 414),
        (request(target="/" + "x" * 30_000)[:9_000], 414),
        (request(target="/api/first") + request(target="/" + "x" * 8_192), 414),
        (request(target="/api/first") + request(headers="X: " + "x" * 17_000 + "\r\n"), 431),
    ],
)
def test_heads_above_the_limits(cell: EchoCell, client: Client, data: bytes, status: int) -> None:
    answer = client.ask(data)
    if answer.status == 200:
        answer = client.answer()
    assert answer.status == status
    assert answer.code in ("headers_too_large", "uri_too_long")
    assert client.is_closed()
    assert [seen.target for seen in cell.seen] in ([], ["/api/first"])


def test_heads_below_the_limits(client: Client) -> None:
    assert client.ask(request(headers="X-Long: " + "x" * 15_000 + "\r\n")).status == 200
    many = "".join(f"X-{i}: 1\r\n" for i in range(98))
    assert client.ask(request(headers=many)).status == 200
    assert client.ask(request(target="/" + "x" * 8_000)).status == 200


# -- Expect


def test_expectation_is_met_then_the_request_forwarded(cell: EchoCell, client: Client) -> None:
    client.send(request("POST", headers="Expect: 100-continue\r\nContent-Length: 3\r\n"))
    assert client.head()[0] == 100
    assert cell.seen == []
    assert client.ask(b"abc").json["body_bytes"] == 3


def test_expectation_behind_another_request_waits_its_turn(client: Client) -> None:
    client.send(
        request(target="/api/first")
        + request("POST", headers="Expect: 100-continue\r\nContent-Length: 3\r\n")
    )
    assert client.answer().json["target"] == "/api/first"
    assert client.head()[0] == 100
    assert client.ask(b"abc").status == 201


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("POST", headers="Expect: 100-continue\r\nContent-Length: 100001\r\n"), 413),
        (request("POST", headers="Expect: gold\r\nContent-Length: 3\r\n"), 417),
        (
            request("POST", tenant="x", headers="Expect: 100-continue\r\nContent-Length: 3\r\n"),
            401,
        ),
    ],
)
def test_unwelcome_body_is_refused_before_it_is_sent(
    cell: EchoCell, client: Client, data: bytes, status: int
) -> None:
    answer = client.ask(data)
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert client.is_closed()
    assert cell.seen == []


# -- clients that leave


@pytest.mark.parametrize("cut", [b"POST /a", request("POST", body=b"x" * 100)[:-1]])
def test_request_broken_off_is_not_forwarded(
    cell: EchoCell, router: RunningRouter, cut: bytes
) -> None:
    with Client(router.port) as client:
        client.send(cut)
        client.socket.shutdown(1)
        assert client.is_closed()
    assert cell.seen == []
    wait_until(lambda: router.router.edge.buffered_bytes == 0, "the body to be let go")


def test_half_closed_client_is_still_answered(cell: EchoCell, client: Client) -> None:
    client.send(request("POST", "/api/1", body=b"abc") + request(target="/api/2") + b"GET /3 HT")
    client.socket.shutdown(1)
    assert [client.answer().json["target"] for _ in range(2)] == ["/api/1", "/api/2"]
    assert client.is_closed()


def test_half_closed_client_is_told_of_the_malformed_end(client: Client) -> None:
    client.send(request() + b"BAD\r\n")
    client.socket.shutdown(1)
    assert [client.answer().status, client.answer().status] == [200, 400]
    assert client.is_closed()


def test_client_that_hangs_up_after_sending_has_posted(
    cell: EchoCell, router: RunningRouter
) -> None:
    with Client(router.port) as client:
        client.send(request("POST", "/api/posted", body=b"abc"))
    wait_until(lambda: cell.seen, "the cell to see the request")
    assert cell.seen[0].target == "/api/posted"


def test_error_bodies_are_json_of_the_api(client: Client) -> None:
    answer = client.ask(request(tenant=None))
    assert json.loads(answer.body) == {
        "errors": {"code": "invalid_key", "message": "HTTP Basic credentials are required"}
    }
