"""Method: the design's table of bad and odd input, every row, asked of a cell as routers reach it
and through a real router before it: the status and code that the row asks for, never a 5xx, the
same answer both ways, and nothing written by what was refused. Afterwards the cell is audited.

A row that is one request stands in `robustness_rows`; the others are functions here, with the
number of the row in their names. Row 55 is in `tests/e2e`, where tenants can move.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest
from cell_process import Access, running_cell
from ledger_audit import assert_ledger_holds
from robustness_rows import (
    ACCOUNTS,
    BRACKETS,
    CASES,
    COMMAS,
    LARGEST,
    LEDGERS,
    MANY_KEYS,
    TRANSACTIONS,
    Case,
    both,
    entry,
    of,
)
from router_clients import Client, request
from router_running import RunningRouter, wait_until
from test_moving_heads import BACK, FENCED, IMPORTING, MOVED, OWNED, PINNED, READY, change
from test_requests import AUTH, MALFORMED
from two_ways import Way, Ways, essence, two_ways

CPU_MS_MAX = 50
"""Of the cell, beyond what it costs to read so many bytes."""
TICK_MS = 10
"""The kernel counts in these."""


@pytest.fixture(scope="module")
def ways(make_cell_database: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    directory = tmp_path_factory.mktemp("ways")
    with make_cell_database() as database:
        with (
            running_cell(database, directory) as cell,
            two_ways(cell, directory, database) as ways,
        ):
            yield ways
        assert_ledger_holds(database.superuser_dsn)


@pytest.fixture
def one_tenant(ways: Ways) -> Iterator[tuple[Way, Way]]:
    """A new tenant both ways."""
    with ways.of_new_tenant() as both_ways:
        yield both_ways


@pytest.mark.parametrize("case", CASES, ids=str)
def test_row(ways: Ways, case: Case) -> None:
    direct = checked(ways.direct, case, case.expected_code)
    routed = checked(ways.routed, case, case.expected_through_router)
    if case.routers_code is None:
        assert essence(direct) == essence(routed)


def checked(way: Way, case: Case, code: str) -> httpx.Response:
    before = way.position()
    answer = way.ask(case.method, case.path, case.body, **case.headers)
    case.check(answer, code)
    if case.status >= 400:
        assert way.position() == before
    return answer


def test_05_balances_of_more_digits_than_amounts(ways: Ways) -> None:
    found = []
    for way in ways.both:
        before = way.posted("alice")
        for _ in range(2):
            assert way.ask("POST", TRANSACTIONS, of(both(str(LARGEST)))).status_code == 201
        shown = way.ask("GET", f"{ACCOUNTS}/@alice").json()["balances"]["posted_balance"]
        assert shown["amount"] == before + 2 * LARGEST
        assert shown["amount_string"] == str(before + 2 * LARGEST)
        assert len(shown["amount_string"]) == 37
        found.append(shown["amount"])
    # All that was accepted before this was the same, too.
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", TRANSACTIONS, of(both(to="@name"))),
        ("GET", f"{ACCOUNTS}/@name", None),
        ("PATCH", f"{ACCOUNTS}/@name", '{"name": "mine"}'),
        ("GET", f"{TRANSACTIONS}?ledger_account_id=@name", None),
    ],
    ids=["entry", "read", "update", "filter"],
)
def test_15_25_the_same_answer_to_the_byte(
    ways: Ways, method: str, path: str, body: str | None
) -> None:
    """What another tenant has, and what nobody has; every kind of id is in `test_isolation`."""
    for way in ways.both:
        theirs, nobodys = (
            way.ask(method, path.replace("@name", name), body and body.replace("@name", name))
            for name in ("@their-alice", "@unknown")
        )
        assert theirs.content.replace(way.ids["their-alice"].encode(), b"") == (
            nobodys.content.replace(way.ids["unknown"].encode(), b"")
        )
        assert essence(theirs) == essence(nobodys)


# Races


def at_once(count: int, ask: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    """The answers to requests that start together."""
    start = Barrier(count)

    def attempt(number: int) -> httpx.Response:
        start.wait(60)
        return ask(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(attempt, range(count)))


@pytest.mark.parametrize("place", [0, 1], ids=["direct", "routed"])
def test_19_a_race_of_100_for_what_33_can_have(one_tenant: tuple[Way, Way], place: int) -> None:
    way = one_tenant[place]
    assert way.posted("alice") == 100
    lock = '3, "posted_balance_amount": {"gte": 0}'
    spend = of(f"{entry('@alice', amount=lock)}, {entry('@cash', 'credit', '3')}")
    answers = at_once(100, lambda _: way.ask("POST", TRANSACTIONS, spend))
    assert sorted(answer.status_code for answer in answers) == [201] * 33 + [422] * 67
    assert way.posted("alice") == way.posted("cash") == 1


@pytest.mark.parametrize("place", [0, 1], ids=["direct", "routed"])
def test_50_of_many_reversals_and_partial_posts_one_wins(
    one_tenant: tuple[Way, Way], place: int
) -> None:
    way = one_tenant[place]
    part = f'{{"posted_ledger_entries": [{both("60")}]}}'
    for path, body in (("@posted/reversal", "{}"), ("@held/partial_post", part)):
        once = partial(way.ask, "POST", f"{TRANSACTIONS}/{path}", body)
        answers = at_once(20, lambda _, once=once: once())
        assert sorted(answer.status_code for answer in answers) == [201] + [422] * 19
        assert once().status_code == 422
    assert way.posted("alice") == 100 - 100 + 60


# Idempotency keys


def test_20_21_a_key_that_comes_again(one_tenant: tuple[Way, Way]) -> None:
    """With the same body or another, on the same route or another, whichever way."""
    direct, routed = one_tenant
    for first, second, key in ((direct, routed, "k1"), (routed, direct, "k2")):
        before = first.position()
        given = first.ask("POST", TRANSACTIONS, of(both("7")), idempotency_key=key)
        assert given.status_code == 201
        for way in (first, second):
            for path, body in (
                (TRANSACTIONS, of(both("7"))),
                (TRANSACTIONS, of(both("8"))),
                (TRANSACTIONS, of(both("7", "8"))),
                (LEDGERS, '{"name": "n"}'),
            ):
                again = way.ask("POST", path, body, idempotency_key=key)
                assert again.content == given.content
                assert essence(again) == essence(given)
        assert first.position() == before + 1


def test_20_a_failure_is_not_kept(one_tenant: tuple[Way, Way]) -> None:
    for way in one_tenant:
        for amount, status in (("8", 422), ("7", 201)):
            body = of(both("7", amount))
            key = f"failed {way.access.base_url}"
            assert way.ask("POST", TRANSACTIONS, body, idempotency_key=key).status_code == status


def test_22_50_at_once_on_3_routers(ways: Ways, one_tenant: tuple[Way, Way]) -> None:
    direct, routed = one_tenant
    with contextlib.ExitStack() as parts:
        doors = [routed.http]
        for _ in range(2):
            router = parts.enter_context(ways.routing.router())
            access = ways.routing.through(router, direct.access)
            doors.append(parts.enter_context(access.http()))
        before = direct.position()
        body = direct.filled(of(both("5")))
        headers = {"content-type": "application/json", "idempotency-key": "the one"}
        answers = at_once(
            50, lambda n: doors[n % 3].post(TRANSACTIONS, content=body, headers=headers)
        )
        after = direct.position()
    assert after == before + 1
    created = [answer.content for answer in answers if answer.status_code == 201]
    assert len(set(created)) == 1
    in_flight = [answer for answer in answers if answer.status_code != 201]
    for answer in in_flight:
        assert answer.status_code == 409
        assert answer.headers["x-should-retry"] == "true"
    again = direct.ask("POST", TRANSACTIONS, body, idempotency_key="the one")
    assert again.content == created[0]


def test_23_keys_of_another_api_key_and_of_another_tenant(
    ways: Ways, one_tenant: tuple[Way, Way]
) -> None:
    for way in one_tenant:
        key = {"idempotency_key": f"shared {way.access.base_url}"}
        answers = [way.ask("POST", LEDGERS, '{"name": "n"}', **key)]
        way.http.auth = (way.access.organization_id, way.access.other_api_key)
        answers.append(way.ask("POST", LEDGERS, '{"name": "n"}', **key))
        answers += [other.ask("POST", LEDGERS, '{"name": "n"}', **key) for other in ways.both]
        assert [answer.status_code for answer in answers] == [201] * 4
        assert len({answer.json()["id"] for answer in answers}) == 4


# Content


def test_27_29_text_is_kept_to_the_byte_and_found(ways: Ways) -> None:
    metadata = {
        "__proto__": "x",
        "$where": "'; DROP TABLE ledgers; --",
        "a.b": "\u202eevil\u200b",
        'quote"\\': "e\u0301 vs \u00e9",
        "%s %(x)s": "{0}\x01\t\n",
        "😀": "\ufeff",
    }
    name = "\x7f\u0085\u2028e\u0301\u00e9\u202e"
    for way in ways.both:
        id = way.made(LEDGERS, {"name": name, "metadata": metadata})
        found = way.http.get(f"{LEDGERS}/{id}").json()
        assert (found["name"], found["metadata"]) == (name, metadata)
        for key, value in metadata.items():
            listed = way.http.get(LEDGERS, params={f"metadata[{key}]": value}).json()
            assert [each["id"] for each in listed] == [id]
            others = way.http.get(LEDGERS, params={f"metadata[{key}]": value + "x"}).json()
            assert others == []


@pytest.mark.parametrize(
    ("body", "status"),
    [(BRACKETS, 400), (COMMAS, 413), (MANY_KEYS, 413)],
    ids=["levels", "commas", "keys"],
)
def test_31_is_refused_before_it_costs_much(ways: Ways, body: bytes, status: int) -> None:
    for way in ways.both:
        read_ms = cpu_ms(ways, lambda way=way: way.ask("POST", LEDGERS, body, content_type="a/b"))
        parse_ms = cpu_ms(ways, lambda way=way: way.ask("POST", LEDGERS, body))
        assert way.ask("POST", LEDGERS, body).status_code == status
        assert parse_ms <= read_ms + CPU_MS_MAX


def cpu_ms(ways: Ways, ask: Callable[[], object]) -> int:
    """Time of the cell's processor, the least of three: it works for others meanwhile."""
    stat = Path(f"/proc/{ways.cell.process.pid}/stat")

    def spent_ms() -> int:
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_MS

    times_ms = []
    for _ in range(3):
        before_ms = spent_ms()
        ask()
        times_ms.append(spent_ms() - before_ms)
    return min(times_ms)


def test_48_cursors_of_another_tenant_and_versions_to_come(ways: Ways) -> None:
    answers = []
    for way, other in (ways.both, ways.both[::-1]):
        cursor = other.http.get(TRANSACTIONS, params={"per_page": 1}).headers["x-after-cursor"]
        for tampered in (cursor, cursor[:-1], cursor[1:], cursor + "A", cursor[::-1]):
            answer = way.http.get(TRANSACTIONS, params={"after_cursor": tampered})
            assert answer.status_code == 400
            assert answer.json()["errors"]["parameter"] == "after_cursor"
        query = "balances[as_of_lock_version]=99999"
        answers.append(way.ask("GET", f"{ACCOUNTS}/@alice?{query}"))
    assert answers[0].status_code == 422
    assert essence(answers[0]) == essence(answers[1])


@pytest.mark.parametrize("per_page", ["1000000000", "9" * 400], ids=["10^9", "400 digits"])
def test_49_pages_are_no_longer_than_100(ways: Ways, per_page: str) -> None:
    answers = [way.ask("GET", f"{TRANSACTIONS}?per_page={per_page}") for way in ways.both]
    assert [answer.headers["x-per-page"] for answer in answers] == ["100", "100"]
    assert essence(answers[0]) == essence(answers[1])


# HTTP itself. A cell is reached by routers only, which send none of this: asked directly, it need
# but not fail and not write.


FRAMING = {
    36: ["content-length and transfer-encoding", "transfer-encoding and content-length"],
    37: [
        *("two equal lengths", "two lengths", "signed length", "list of lengths"),
        *("negative length", "length beyond 64 bits", "empty length", "hexadecimal length"),
    ],
    38: [
        *("chunk size with 0x", "chunk size beyond 64 bits", "negative chunk size"),
        *("chunk longer than its size", "chunks ended by LF", "chunk extension flood"),
        *("trailer with content-length", "trailer with transfer-encoding"),
    ],
    39: [
        *("unknown coding", "coding behind a vertical tab", "coding in a folded line"),
        *("two codings", "folded header", "bare CR", "bare LF", "NUL in a value"),
    ],
    41: [
        *("no Host", "two Hosts", "absolute form", "dot segment", "encoded dot segment"),
        *("half encoded dot segment", "encoded NUL"),
    ],
}


def raw(row: int, name: str, data: bytes, status: int, code: str) -> Any:
    return pytest.param(data, status, code, id=f"{row}-{name}")


HEADS = [
    raw(24, "newline in a key", request("POST", headers="Idempotency-Key: a\nb\r\n", body=b"{}"),
        400, "malformed_request"),
    *(raw(row, name, MALFORMED[name], 400, "malformed_request")
      for row, names in FRAMING.items() for name in names),
    raw(40, "header of 17,000 bytes", request(headers="X: " + "x" * 17_000 + "\r\n"), 431,
        "headers_too_large"),
    raw(40, "101 headers", request(headers="".join(f"X-{i}: 1\r\n" for i in range(101))), 431,
        "headers_too_large"),
    raw(40, "URI of 8193 bytes", request(target="/" + "x" * 8_192), 414, "uri_too_long"),
    *(raw(42, method, request(method, "ledger.test:80" if method == "CONNECT" else "/api/ping"),
          405, "method_not_allowed") for method in ("TRACE", "CONNECT", "OPTIONS", "FOO", "get")),
    raw(43, "body too large",
        request("POST", headers="Expect: 100-continue\r\nContent-Length: 27000000\r\n"), 413,
        "body_too_large"),
    raw(43, "other expectation",
        request("POST", headers="Expect: gold\r\nContent-Length: 3\r\n"), 417,
        "expectation_failed"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status", "code"), HEADS)
def test_raw(ways: Ways, data: bytes, status: int, code: str) -> None:
    """The router refuses, closes the connection, and tells no cell."""
    before = [way.position() for way in ways.both]
    answered = ways.answered()
    with ways.routed.raw() as client:
        answer = client.ask(of_tenant(ways.routed, data))
        assert (answer.status, answer.code) == (status, code)
        assert client.is_closed()
    assert ways.answered() == answered
    with ways.direct.raw() as client:
        assert b"HTTP/1.1 5" not in said_in_vain(client, of_tenant(ways.direct, data))
    assert [way.position() for way in ways.both] == before


def of_tenant(way: Way, data: bytes) -> bytes:
    """A request as the router's tests have it, to something that can be written to."""
    credentials = b"Authorization: " + way.authorization + b"\r\n"
    return data.replace(AUTH, credentials).replace(b"/api/x", LEDGERS.encode())


def said_in_vain(client: Client, data: bytes) -> bytes:
    """All that is answered to what is sent, until the server has seen the end of it."""
    with contextlib.suppress(ConnectionError):
        client.send(data)
        client.socket.shutdown(socket.SHUT_WR)
        return client.rest()
    return b""


def post_of(way: Way, key: str, body: bytes = b'{"name": "n"}', *, announced: int = 0) -> bytes:
    """A whole request that makes a ledger, unless more is announced than comes."""
    headers = f"Content-Type: application/json\r\nIdempotency-Key: {key}\r\n"
    head = request("POST", "/api/x", headers=headers, body=b"x" * (announced or len(body)))
    return of_tenant(way, head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body)


def test_44_pipelined_requests_the_second_malformed(ways: Ways) -> None:
    before = [way.position() for way in ways.both]
    with ways.routed.raw() as client:
        client.send(post_of(ways.routed, "first") + b"BAD\r\n\r\n" + post_of(ways.routed, "third"))
        assert [client.answer().status for _ in range(2)] == [201, 400]
        assert client.is_closed()
    # A router sends the next request when the one before is answered.
    with ways.direct.raw() as client:
        assert client.ask(post_of(ways.direct, "first")).status == 201
        assert client.ask(b"BAD\r\n\r\n" + post_of(ways.direct, "third")).status == 400
        assert client.is_closed()
    assert [way.position() for way in ways.both] == [seq + 1 for seq in before]


@pytest.mark.parametrize("ending", ["half-close", "close", "reset"])
def test_45_a_body_that_ends_early(ways: Ways, ending: str) -> None:
    for way in ways.both:
        before = way.position()
        with way.raw() as client:
            half = post_of(way, ending, b'{"name": "half"}', announced=100)
            if ending == "half-close":
                assert b"HTTP/1.1 2" not in said_in_vain(client, half)
            else:
                client.send(half)
                if ending == "reset":
                    client.reset()
        assert way.ask("GET", "/api/ping").status_code == 200
        assert way.position() == before


def test_46_a_client_that_leaves_after_sending_has_posted(ways: Ways) -> None:
    for way in ways.both:
        before = way.position()
        with way.raw() as client:
            client.send(post_of(way, "left"))
        answers = [way.ask("POST", LEDGERS, '{"name": "other"}', idempotency_key="left")]
        # The first may be in flight still, or not begun: then this one is the first.
        while answers[-1].status_code == 409:
            answers.append(way.ask("POST", LEDGERS, '{"name": "n"}', idempotency_key="left"))
        answers.append(way.ask("POST", LEDGERS, '{"name": "n"}', idempotency_key="left"))
        assert [answer.status_code for answer in answers[-2:]] == [201, 201]
        assert answers[-1].content == answers[-2].content
        assert way.position() == before + 1


# Moves


@pytest.fixture
def impatient(ways: Ways) -> Iterator[RunningRouter]:
    """A router that holds requests for a moment only."""
    with ways.routing.router(hold_ms_max=200) as router:
        yield router


NAMED = '{"name": "n"}'


@contextlib.contextmanager
def held_by(ways: Ways, way: Way) -> Iterator[Callable[[], httpx.Response]]:
    """A write that the router holds, and what gives its answer."""
    hold = ways.router.router.forwarder.hold
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(way.ask, "POST", LEDGERS, NAMED)
        wait_until(lambda: hold.held(way.access.organization_id) == 1, "the request to be held")
        yield lambda: answer.result(60)


def is_given_up(ways: Ways, router: RunningRouter, access: Access) -> bool:
    """Does the router refuse a write that is held for too long, with the promise kept?"""
    with ways.routing.through(router, access).http() as http:
        answer = http.post(LEDGERS, json={"name": "n"})
    headers = (answer.headers["x-should-retry"], answer.headers["retry-after"])
    code = answer.json()["errors"]["code"]
    return (answer.status_code, code, headers) == (503, "not_applied", ("true", "1"))


def test_53_an_epoch_that_is_over(
    ways: Ways, one_tenant: tuple[Way, Way], impatient: RunningRouter
) -> None:
    direct, routed = one_tenant
    access, mover = direct.access, ways.database.mover_dsn
    for before, after in ((OWNED, PINNED), (PINNED, FENCED), (FENCED, MOVED)):
        change(mover, access.organization_id, before, after)
    position = direct.position()
    for ask in (("POST", LEDGERS, NAMED), ("GET", LEDGERS)):
        wait_until(lambda ask=ask: direct.ask(*ask).status_code == 421, "the cell to know")
        headers = direct.ask(*ask).headers
        assert headers["cloister-not-applied"] == "moved"
        assert (headers["cloister-moved-to"], headers["cloister-epoch"]) == ("cell-b", "2")
    assert is_given_up(ways, impatient, access)
    with held_by(ways, routed) as answer:
        assert direct.position() == position
        for before, after in ((MOVED, IMPORTING), (IMPORTING, READY), (READY, BACK)):
            change(mover, access.organization_id, before, after)
        ways.routing.place(access, epoch=3)
        assert answer().status_code == 201
    assert direct.position() == position + 1


def test_54_while_frozen(ways: Ways, one_tenant: tuple[Way, Way], impatient: RunningRouter) -> None:
    direct, routed = one_tenant
    access, mover = direct.access, ways.database.mover_dsn
    for before, after in ((OWNED, PINNED), (PINNED, FENCED)):
        change(mover, access.organization_id, before, after)
    position = direct.position()
    refused = direct.ask("POST", LEDGERS, NAMED)
    assert (refused.status_code, refused.headers["cloister-not-applied"]) == (503, "fenced")
    assert (refused.headers["cloister-epoch"], refused.headers["retry-after"]) == ("2", "1")
    assert is_given_up(ways, impatient, access)
    reads = [way.ask("GET", f"{ACCOUNTS}/@alice") for way in one_tenant]
    assert {answer.status_code for answer in reads} == {200}
    assert essence(reads[0]) == essence(reads[1])
    with held_by(ways, routed) as answer:
        assert direct.position() == position
        change(mover, access.organization_id, FENCED, ("owned", *FENCED[1:]))
        assert answer().status_code == 201
    assert direct.position() == position + 1
