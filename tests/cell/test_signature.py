"""What a cell takes for a router's word. Method: signer and verifier on a clock of ours, then a
cell process that demands signatures.
"""

import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cell_process import Access, CellProcess, running_cell

from cell.errors import NotApplied, NotFromRouter
from cell.signature import (
    SENDERS_SWEPT,
    SIGNATURE_HEADER,
    SKEW_S,
    START_SKEW_S,
    WINDOW,
    Signer,
    Verifier,
    key_of_cell,
)

KEY = key_of_cell("the secret of the routers", "cell-a")
HEAD = (b"POST", b"/api/x", b"a=b", b"tenant", b"1", b"id", b"Basic x", b"key")


class Clock:
    def __init__(self) -> None:
        self.s = 1_000_000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(clock: Clock) -> Signer:
    return Signer(KEY, clock)


@pytest.fixture
def verifier(clock: Clock) -> Verifier:
    return Verifier(KEY, clock)


def takes(verifier: Verifier, signature: bytes | None, head: tuple[bytes, ...] = HEAD) -> bool:
    try:
        verifier.check(signature, *head)
    except (NotFromRouter, NotApplied):
        return False
    return True


def test_each_signature_is_good_once(signer: Signer, verifier: Verifier) -> None:
    signatures = [signer.sign(*HEAD) for _ in range(100)]
    random.Random(1).shuffle(signatures)
    assert all(takes(verifier, each) for each in signatures)
    assert not any(takes(verifier, each) for each in signatures)


@pytest.mark.parametrize("place", range(len(HEAD)))
def test_each_part_of_the_head_counts(signer: Signer, verifier: Verifier, place: int) -> None:
    signature = signer.sign(*HEAD)
    changed = (*HEAD[:place], HEAD[place] + b"0", *HEAD[place + 1 :])
    assert not takes(verifier, signature, changed)
    assert takes(verifier, signature)


@pytest.mark.parametrize(
    "signature", [None, b"", b"-", b"---", b"x" * 100, b"0-0-0-0", b"a-1-1-" + b"0" * 32]
)
def test_nonsense(verifier: Verifier, signature: bytes | None) -> None:
    assert not takes(verifier, signature)


def test_another_cell_has_another_key(clock: Clock, verifier: Verifier) -> None:
    other = Signer(key_of_cell("the secret of the routers", "cell-b"), clock)
    assert not takes(verifier, other.sign(*HEAD))
    with pytest.raises(ValueError):
        Verifier("ab", clock)


def test_what_is_too_old_or_too_early(clock: Clock, signer: Signer) -> None:
    before = signer.sign(*HEAD)
    clock.s += START_SKEW_S + 0.1
    verifier = Verifier(KEY, clock)
    assert not takes(verifier, before), "a cell that has just begun remembers nothing"
    late, early = signer.sign(*HEAD), Signer(KEY, lambda: clock.s + SKEW_S + 1).sign(*HEAD)
    assert not takes(verifier, early)
    clock.s += SKEW_S + 1
    assert not takes(verifier, late)
    assert takes(verifier, signer.sign(*HEAD))
    clock.s -= 10 * SKEW_S
    assert takes(verifier, signer.sign(*HEAD)), "a clock that was set back is the clock"


def test_a_count_far_behind_is_refused_as_if_used(signer: Signer, verifier: Verifier) -> None:
    first = signer.sign(*HEAD)
    kept = [signer.sign(*HEAD) for _ in range(WINDOW)]
    assert takes(verifier, kept[-1])
    assert not takes(verifier, first)
    assert takes(verifier, kept[0])
    leap = [signer.sign(*HEAD) for _ in range(3 * WINDOW)]
    assert takes(verifier, leap[-1])
    assert not takes(verifier, leap[-1])


def test_senders_are_forgotten_only_when_their_time_is_over(
    clock: Clock, signer: Signer, verifier: Verifier
) -> None:
    used = signer.sign(*HEAD)
    assert takes(verifier, used)
    for _ in range(2 * SENDERS_SWEPT):
        assert takes(verifier, Signer(KEY, clock).sign(*HEAD))
    assert not takes(verifier, used)
    clock.s += 2 * SKEW_S + 1
    assert takes(verifier, Signer(KEY, clock).sign(*HEAD))
    assert len(verifier._senders) == 1


@pytest.fixture(scope="module")
def cell(
    make_cell_database: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CellProcess]:
    with (
        make_cell_database() as database,
        running_cell(database, tmp_path_factory.mktemp("cell"), ROUTER_KEY=KEY) as running,
    ):
        yield running
        assert KEY not in running.log_file.read_text()


def test_a_cell_takes_signed_requests_only(cell: CellProcess) -> None:
    access = cell.new_tenant()
    with access.http() as http:
        assert http.get("/api/ping").status_code == 403
        signature = signed(http, access)
        headers = {SIGNATURE_HEADER: signature}
        assert http.get("/api/ping", headers=headers).status_code == 200
        again = http.get("/api/ping", headers=headers)
        assert (again.status_code, again.json()["errors"]["code"]) == (403, "forbidden")
        assert "used before" in again.json()["errors"]["message"]
        elsewhere = {SIGNATURE_HEADER: signed(http, access)}
        assert http.get("/api/ledgers", headers=elsewhere).status_code == 403


def signed(http: httpx.Client, access: Access) -> str:
    """A router's signature for this tenant's ping."""
    request = next(http.auth.sync_auth_flow(http.build_request("GET", "/api/ping")))  # type: ignore[union-attr]
    authorization = request.headers["authorization"].encode()
    head = (b"GET", b"/api/ping", b"", b"", b"", b"", authorization, b"")
    return Signer(KEY).sign(*head).decode()
