"""No request reaches a cell that the router did not count, and none in other boundaries.

Method: a case list from RFC 9112 beside the plainer one of `test_requests`: each malformed message
behind good requests and before another one, broken into pieces at odd places. The cell must have
seen those that came before, nothing else, and as many as the router counts as answered.
"""

import random
from contextlib import suppress

import pytest
from router_cells import EchoCell
from router_clients import Client, basic, chunked, request
from router_running import RunningRouter
from test_requests import AUTH, MALFORMED, TE, H, get, post

SEED = 20_261_121
BURIED = request("DELETE", "/api/buried")

ODD = {
    # 2.2: message parsing
    "whitespace before the request line": b" " + request(),
    "tab before the request line": b"\t" + request(),
    "bare CR after the request line": b"GET /api/x HTTP/1.1\r" + H + AUTH + b"\r\n",
    "bare CR between headers": get(b"X: a\rContent-Length: 9\r\n"),
    "bare CR before the end": b"GET /api/x HTTP/1.1\r\n" + H + AUTH + b"\r\r\n",
    "LF before the end": b"GET /api/x HTTP/1.1\r\n" + H + AUTH + b"\n",
    "header line without a name but a space": get(b" \r\n"),
    "NUL before the headers": b"GET /api/x HTTP/1.1\r\n\0" + H + AUTH + b"\r\n",
    "NUL after the target": get(start=b"GET /api/x\0 HTTP/1.1\r\n"),
    # 3: request line
    "tab in the request line": get(start=b"GET\t/api/x\tHTTP/1.1\r\n"),
    "space after the version": get(start=b"GET /api/x HTTP/1.1 \r\n"),
    "two versions": get(start=b"GET /api/x HTTP/1.1 HTTP/1.1\r\n"),
    "version of three digits": get(start=b"GET /api/x HTTP/1.10\r\n"),
    "version with a leading zero": get(start=b"GET /api/x HTTP/01.1\r\n"),
    "version in lower case": get(start=b"GET /api/x http/1.1\r\n"),
    "method with a colon": get(start=b"GET: /api/x HTTP/1.1\r\n"),
    "absolute form to ourselves": get(start=b"GET http://ledger.test/api/x HTTP/1.1\r\n"),
    "authority form": get(start=b"GET ledger.test:80 HTTP/1.1\r\n"),
    # 5: field syntax
    "tab before the colon of a length": post(b"Content-Length\t: 3\r\n", b"abc"),
    "space before the colon of a coding": post(b"Transfer-Encoding : chunked\r\n", chunked(b"a")),
    "length folded": post(b"Content-Length:\r\n 3\r\n", b"abc"),
    "length folded after its value": post(b"Content-Length: 3\r\n 0\r\n", b"abc"),
    "coding folded after its value": post(b"Transfer-Encoding: chunked\r\n , x\r\n", chunked()),
    "name with a quote": get(b'"X": b\r\n'),
    "name with a parenthesis": get(b"X(Y): b\r\n"),
    "name in UTF-8": get("Ünter: b\r\n".encode()),
    # 6: message body
    "coding and length zero": post(TE + b"Content-Length: 0\r\n", chunked()),
    "coding in two headers": post(b"Transfer-Encoding: gzip\r\n" + TE, chunked()),
    "coding twice in one": post(b"Transfer-Encoding: chunked, chunked\r\n", chunked()),
    "coding in quotes": post(b'Transfer-Encoding: "chunked"\r\n', chunked()),
    "coding with a parameter": post(b"Transfer-Encoding: chunked;q=1\r\n", chunked()),
    "coding empty": post(b"Transfer-Encoding:\r\n", chunked()),
    "coding with a NUL": post(b"Transfer-Encoding: chunked\0\r\n", chunked()),
    "coding with a bare CR": post(b"Transfer-Encoding: chunked\r \r\n", chunked()),
    "length with letters": post(b"Content-Length: 3a\r\n", b"abc"),
    "length as a float": post(b"Content-Length: 3.0\r\n", b"abc"),
    "length with an underscore": post(b"Content-Length: 1_0\r\n", b"a" * 10),
    "length in other digits": post("Content-Length: ٣\r\n".encode(), b"abc"),
    "length twice in one": post(b"Content-Length: 3, 3\r\n", b"abc"),
    "length of no value but a comma": post(b"Content-Length: ,\r\n"),
    "length beyond 64 bits by wrapping": post(b"Content-Length: 18446744073709551619\r\n", b"abc"),
    # 7: chunks
    "chunk size empty": post(TE, b"\r\nabc\r\n0\r\n\r\n"),
    "chunk size of a letter beyond f": post(TE, b"g\r\nabc\r\n0\r\n\r\n"),
    "chunk size with a plus": post(TE, b"+3\r\nabc\r\n0\r\n\r\n"),
    "chunk size with an underscore": post(TE, b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n"),
    "chunk size by wrapping": post(TE, b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
    "chunk size behind a tab": post(TE, b"\t3\r\nabc\r\n0\r\n\r\n"),
    "chunk size before a bare CR": post(TE, b"3\rabc\r\n0\r\n\r\n"),
    "chunk without its end": post(TE, b"3\r\nabc0\r\n\r\n"),
    "chunk ended by a bare CR": post(TE, b"3\r\nabc\r0\r\n\r\n"),
    "chunk ended by LF": post(TE, b"3\r\nabc\n0\r\n\r\n"),
    "chunk extension with a bare CR": post(TE, b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "chunk extension with a NUL": post(TE, b"3;a=\0\r\nabc\r\n0\r\n\r\n"),
    "last chunk of many zeros, then LF": post(TE, b"000\n\n"),
    "trailer folded": post(TE, b"0\r\nX: a\r\n b\r\n\r\n"),
    "trailer without a colon": post(TE, b"0\r\nXab\r\n\r\n"),
    "trailer ended by LF": post(TE, b"0\r\nX: a\n\r\n"),
}

CASES = {name: data for name, data in (MALFORMED | ODD).items() if len(data) < 2_000}
"""Longer ones would only be slower."""

assert not MALFORMED.keys() & ODD.keys()


def answered(router: RunningRouter) -> int:
    """Requests the router counts as answered by the cell."""
    return sum(router.router.routes.pools[0].answers)


def say(client: Client, pieces: list[bytes]) -> None:
    with suppress(ConnectionError):  # refused before the last piece
        for piece in pieces:
            client.send(piece)


def answers(client: Client) -> list[int]:
    """Statuses until the router closes."""
    statuses = []
    with suppress(EOFError, ConnectionError):
        while True:
            statuses.append(client.answer().status)
    return statuses


def broken(data: bytes, chance: random.Random) -> list[bytes]:
    """In up to six pieces."""
    cuts = sorted(chance.randrange(1, len(data)) for _ in range(chance.randrange(6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


@pytest.mark.parametrize("data", ODD.values(), ids=ODD.keys())
def test_odd_is_refused_and_never_forwarded(cell: EchoCell, client: Client, data: bytes) -> None:
    say(client, [data + BURIED])
    statuses = answers(client)
    assert statuses in ([400], [405])
    assert cell.seen == []


@pytest.mark.parametrize("data", CASES.values(), ids=CASES.keys())
def test_what_the_cell_saw_is_what_the_router_counted(
    cell: EchoCell, router: RunningRouter, data: bytes
) -> None:
    chance = random.Random(SEED)
    before = answered(router)
    good = [
        request("POST", "/api/1", body=b"abc"),
        request("POST", "/api/2", headers="Transfer-Encoding: chunked\r\n") + chunked(b"ab", b"c"),
    ]
    for _ in range(3):
        with Client(router.port) as client:
            client.socket.setsockopt(6, 1, 1)
            say(client, broken(b"".join(good) + data + BURIED, chance))
            statuses = answers(client)
        assert statuses[:2] == [201, 201] and len(statuses) == 3
        assert statuses[2] in (400, 405)
    assert [seen.target for seen in cell.seen] == ["/api/1", "/api/2"] * 3
    assert {seen.body for seen in cell.seen} == {b"abc"}
    assert answered(router) - before == len(cell.seen)


def test_spaces_before_the_target_are_not_passed_on(cell: EchoCell, client: Client) -> None:
    """RFC 9112, 3: one may read words by the white space between them. The cell gets one space."""
    data = get(start=b"GET   /api/x HTTP/1.1\r\n")
    assert [client.ask(data).status for _ in range(2)] == [200, 200]
    assert [(seen.method, seen.target) for seen in cell.seen] == [("GET", "/api/x")] * 2


FORGED = (
    "Cloister-Tenant: tenant-b\r\nCloister-Tenant: tenant-c\r\nCLOISTER-TENANT: tenant-d\r\n"
    "cloister-epoch: 99\r\nCloister-Epoch: 100\r\ncloister_epoch: 101\r\nCloister_Tenant: x\r\n"
    "Cloister-Deadline-Ms: 1\r\ncloister-signature: 1-1-1-1\r\nCloister_Signature: x\r\n"
    "cloister-request-id: mine\r\nX-Request-Id: mine\r\nx_request_id: mine\r\n"
    "Cloister-Not-Applied: moved\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n"
    "X_Forwarded_For: 1.2.3.4\r\nX-Forwarded-Host: h\r\nX-Forwarded-Proto: https\r\n"
    "Forwarded: for=1.2.3.4\r\nX-Real-Ip: 1.2.3.4\r\nX_Real_Ip: 1.2.3.4\r\nVia: 1.1 me\r\n"
)


@pytest.mark.parametrize(
    "listed",
    [
        "",
        "Connection: cloister-tenant, cloister-epoch, cloister-request-id\r\n",
        "Connection: Cloister-Tenant\r\nConnection: keep-alive,\tCLOISTER-EPOCH ,\r\n",
        "Connection: x-forwarded-for, x-request-id, transfer-encoding\r\n",
    ],
    ids=["not listed", "listed", "listed in two", "forwarding listed"],
)
@pytest.mark.parametrize("times", [1, 3])
def test_headers_of_the_platform_cannot_be_forged(
    cell: EchoCell, client: Client, listed: str, times: int
) -> None:
    """Nor made to be dropped by listing them; also not by a head met before."""
    for _ in range(times):
        answer = client.ask(request("POST", "/api/x", headers=FORGED + listed, body=b"{}"))
        assert answer.status == 201
    seen = cell.seen[-1]
    assert seen.header("cloister-tenant") == "tenant-a"
    assert seen.header("cloister-epoch") == "1"
    assert int(seen.header("cloister-deadline-ms") or 0) > 1
    assert seen.header("cloister-request-id") == answer.headers["x-request-id"]
    assert {name for name, _ in seen.headers} == {
        *("host", "authorization", "content-length"),
        *("cloister-tenant", "cloister-epoch", "cloister-request-id", "cloister-deadline-ms"),
    }
    assert seen.header("authorization") == basic("tenant-a")
