"""Method: the table of bad and odd input once more (row 55), through the router of a platform while
the tenant is moved to the other cell and back, and while its cell is killed: the answers that are
given when nothing happens, and in the ledger afterwards what was accepted, nothing else.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

# The table lies beside the cell's tests, and a client of exact bytes beside the router's.
sys.path.append(str(Path(__file__).parents[1] / "router"))

from cell_process import Access
from robustness_rows import CASES, TRANSACTIONS, Case
from router_running import wait_until
from test_move import move
from two_ways import UNKNOWN, Way, open_books

KILLED_EVERY = 40
"""So many cases."""
NOT_ANSWERED = (502, 503, 504)
"""The router's, where the cell did not get the request or its answer was lost."""
TRANSACTIONS_OF_BOOKS = 3
"""Of `open_books`."""


@pytest.fixture(scope="module")
def theirs(platform: Any) -> dict[str, str]:
    """What another tenant has."""
    with way_of(platform.create_tenant("robust-neighbour")) as way:
        return {f"their-{name}": id for name, id in open_books(way).items()}


@contextlib.contextmanager
def way_of(tenant: Any) -> Iterator[Way]:
    access = Access(
        base_url=tenant.platform.ready["router"],
        organization_id=tenant.organization_id,
        api_key=tenant.api_key,
        other_api_key="",
    )
    with access.http() as http:
        yield Way(access, http)


@contextlib.contextmanager
def ledger_of(tenant: Any, theirs: dict[str, str]) -> Iterator[Callable[[Case], None]]:
    """What asks a case and checks its answer; afterwards the ledger is verified."""
    accepted, keys = 0, itertools.count()
    with way_of(tenant) as way:
        way.ids.update(open_books(way), unknown=UNKNOWN, **theirs)

        def check(case: Case) -> None:
            nonlocal accepted
            case.check(answer_of(way, case, f"case {next(keys)}"), case.expected_through_router)
            accepted += case.status == 201 and case.path == TRANSACTIONS

        yield check
    report = tenant.verify()
    assert report["ok"], report
    assert report["transactions"] == TRANSACTIONS_OF_BOOKS + accepted


def answer_of(way: Way, case: Case, key: str) -> httpx.Response:
    """As clients do: with a key, and again as long as the router cannot say what the cell says."""
    headers = ({"idempotency_key": key} if case.status == 201 else {}) | case.headers
    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        answers.append(way.ask(case.method, case.path, case.body, **headers))
        return answers[-1].status_code not in NOT_ANSWERED

    wait_until(is_answered, "the cell's answer")
    return answers[-1]


def test_55_while_the_tenant_moves_there_and_back(platform: Any, theirs: dict[str, str]) -> None:
    tenant = platform.create_tenant("robust-mover")
    target = "cell-b" if tenant.cell == "cell-a" else "cell-a"
    with ledger_of(tenant, theirs) as check, ThreadPoolExecutor(1) as thread:
        moves = thread.submit(moved, platform, tenant.slug, (target, tenant.cell))
        is_over = False
        while not is_over:
            is_over = moves.done()
            for case in CASES:
                check(case)
        assert moves.result() == ["commit", "commit"]


def moved(platform: Any, slug: str, cells: tuple[str, ...]) -> list[str]:
    """The decision of each move; each one copies."""
    return [move(platform, slug, cell, "--rollback-window", "0")["decision"] for cell in cells]


@pytest.mark.faults
def test_55_while_its_cell_is_killed(platform: Any, theirs: dict[str, str]) -> None:
    tenant = platform.create_tenant("robust-survivor")
    with ledger_of(tenant, theirs) as check:
        for number, case in enumerate(CASES):
            if number % KILLED_EVERY == 0:
                platform.kill_cell(tenant.cell)
            check(case)
