"""Method: the table of bad and odd input once more, through the router of a whole platform, while
the tenant is moved to the other cell and back (row 55): the same answers as when nothing moves, and
in the ledger afterwards what was accepted, nothing else.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

# The table lies beside the cell's tests, and a client of exact bytes beside the router's.
sys.path.append(str(Path(__file__).parents[1] / "router"))

from cell_process import DEADLINE_S, Access
from robustness_rows import CASES, TRANSACTIONS, Case
from test_move import move
from two_ways import UNKNOWN, Way, open_books


def test_55_while_the_tenant_moves_there_and_back(platform: Any) -> None:
    tenant, other = (platform.create_tenant(slug) for slug in ("robust", "robust-neighbour"))
    with way_of(other) as way:
        theirs = {f"their-{name}": id for name, id in open_books(way).items()}
    with way_of(tenant) as way, ThreadPoolExecutor(1) as thread:
        way.ids.update(open_books(way), unknown=UNKNOWN, **theirs)
        target = "cell-b" if tenant.cell == "cell-a" else "cell-a"
        moves = thread.submit(moved, platform, tenant.slug, (target, tenant.cell))
        rounds = 0
        while not moves.done() or rounds == 0:
            for case in CASES:
                case.check(answer_of(way, case), case.routers_code or case.expected_code)
            rounds += 1
        assert moves.result() == ["commit", "commit"]
    report = tenant.verify()
    assert report["ok"], report
    accepted = sum(
        case.status == 201 and case.path == TRANSACTIONS and case.method == "POST" for case in CASES
    )
    assert report["transactions"] == TRANSACTIONS_OF_BOOKS + rounds * accepted


TRANSACTIONS_OF_BOOKS = 3
"""Of `open_books`."""


def moved(platform: Any, slug: str, cells: tuple[str, ...]) -> list[str]:
    """The decision of each move; each one copies."""
    return [move(platform, slug, cell, "--rollback-window", "0")["decision"] for cell in cells]


def answer_of(way: Way, case: Case) -> httpx.Response:
    """As clients do: again, where nothing was done because the tenant is moving for long."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        answer = way.ask(case.method, case.path, case.body, **case.headers)
        if answer.status_code != 503 or time.monotonic() > deadline_s:
            return answer
        assert answer.json()["errors"]["code"] == "not_applied"


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
