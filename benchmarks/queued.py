"""Transactions with `Prefer: respond-async`: how soon what was accepted is applied.

An open loop of them through the router at a fixed rate, alone, and again beside immediate writes of
another tenant. When it has ended, the queue is waited for to be empty; what it kept waiting is read
from the histogram of the cell's own metrics, which is what an operator goes by. It counts from the
acceptance of a row to its application, of every row, those of the warm-up too.
"""

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.books import Books, make_books, write_kind
from benchmarks.errors import NotReady, Wrong
from benchmarks.http_load import Load, LoadResult, run_load
from benchmarks.http_requests import Kind
from benchmarks.machine import examine_machine
from benchmarks.percentiles import median
from benchmarks.platform_process import Platform, cloister, counter, running_platform
from benchmarks.report import Cell, Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort, interleave
from benchmarks.router import require_success

OTHER: Final = "other"
"""The tenant whose writes are immediate."""
CONNECTIONS: Final = 256
"""More than are ever under way at these rates: none of them waits for another."""
QUEUED_RATE: Final = 500.0
IMMEDIATE_RATE: Final = 1_000.0
"""With the queued ones, each of which is two writes, more than half of what the cell can do."""
SECONDS: Final = 30.0
SECONDS_QUICK: Final = 2.0
WARMUP_S: Final = 1.0
EMPTY_S_MAX: Final = 120.0
"""Until the queue is empty, above the goal for all rows."""
POLL_S: Final = 0.1

WITHIN_S: Final = ("0.1", "1.0", "60.0")
"""Bounds of the histogram's buckets, as its text spells them."""
SOON, IN_THE_END = "1.0", "60.0"
SOON_MIN: Final = 0.9
IN_THE_END_MIN: Final = 1.0

_ROWS: Final = "cloister_cell_async_rows_total"
_DEPTH: Final = "cloister_cell_async_queue_depth"
_WAIT: Final = "cloister_cell_async_wait_seconds"


class Applied(msgspec.Struct, frozen=True):
    """Counters of a cell's durable queue since its start."""

    rows: int
    failed: int
    within: Mapping[str, int]
    """Rows by the most that they have waited, in seconds as text."""

    def since(self, before: "Applied") -> "Applied":
        within = {bound: count - before.within[bound] for bound, count in self.within.items()}
        return Applied(self.rows - before.rows, self.failed - before.failed, within)

    def share(self, bound: str) -> float:
        return self.within[bound] / self.rows


class Run(msgspec.Struct, frozen=True, kw_only=True):
    load: LoadResult
    applied: Applied


def run_queued(progress: Progress, effort: Effort) -> Report:
    machine = examine_machine()
    seconds = SECONDS_QUICK if effort.quick else SECONDS
    rounds = effort.times()
    with (
        tempfile.TemporaryDirectory(prefix="cloister-bench-") as name,
        running_platform(Path(name)) as platform,
    ):
        progress("creating the ledgers")
        books = make_books(platform)
        others = make_books(platform, platform.create_tenant(OTHER))
        arms = {
            "alone": partial(measure, platform, books, None, seconds),
            f"beside {IMMEDIATE_RATE:,.0f} immediate writes/s": partial(
                measure, platform, books, others, seconds
            ),
        }
        runs = interleave(arms, rounds, progress)
        for slug in (platform.tenant.tenant, OTHER):
            progress(f"verifying {slug}")
            cloister(platform.environment, "verify", slug, "--json")
    return Report(
        name="queued",
        quick=effort.quick,
        at=now_utc(),
        machine=machine,
        rounds=rounds,
        tables=[table(runs)],
        checks=checks(runs),
        runs=[msgspec.to_builtins(run) for results in runs.values() for run in results],
    )


def queued_kind(books: Books) -> Kind:
    preferring = replace(books, headers={**books.headers, "prefer": "respond-async"})
    kind = write_kind(preferring, "queued", hot=False, weight=QUEUED_RATE)
    return msgspec.structs.replace(kind, expect=202)


def measure(platform: Platform, books: Books, others: Books | None, seconds: float) -> Run:
    """One open loop, until all that it queued is applied. Raises Wrong on any other outcome."""
    # Made for each run: their idempotency keys would be those of the run before.
    kinds = [queued_kind(books)]
    if others is not None:
        kinds.append(write_kind(others, "immediate", hot=False, weight=IMMEDIATE_RATE))
    before = read_applied(platform)
    load = run_load(
        Load(
            address=platform.router,
            kinds=kinds,
            connections=CONNECTIONS,
            seconds=seconds,
            warmup_s=WARMUP_S,
            rate=sum(kind.weight for kind in kinds),
        )
    )
    require_success(load, "queued")
    applied = wait_until_applied(platform, before, load.kinds[0].statuses["202"])
    if applied.failed:
        raise Wrong(f"{applied.failed} rows of the queue failed")
    return Run(load=load, applied=applied)


def wait_until_applied(platform: Platform, before: Applied, accepted: int) -> Applied:
    """What was applied of exactly that many rows."""
    deadline_s = time.monotonic() + EMPTY_S_MAX
    while True:
        applied = read_applied(platform).since(before)
        if applied.rows >= accepted and counter(platform.cell_metrics(), _DEPTH) == 0:
            break
        if time.monotonic() > deadline_s:
            raise NotReady(f"{accepted} rows accepted, {applied.rows} applied")
        time.sleep(POLL_S)
    if applied.rows != accepted:
        raise Wrong(f"{accepted} rows accepted, {applied.rows} applied")
    return applied


def read_applied(platform: Platform) -> Applied:
    text = platform.cell_metrics()

    def count(name: str) -> int:
        return counter(text, re.escape(name))

    return Applied(
        rows=count(f"{_WAIT}_count"),
        failed=count(f'{_ROWS}{{status="failed"}}'),
        within={bound: count(f'{_WAIT}_bucket{{le="{bound}"}}') for bound in WITHIN_S},
    )


def table(runs: Mapping[str, Sequence[Run]]) -> Table:
    rows: list[Sequence[Cell]] = []
    for name, results in runs.items():
        queued = [run.load.kinds[0] for run in results]
        rows.append(
            (
                name,
                round(median(kind.rate for kind in queued)),
                round(median(kind.latency.p50_ms for kind in queued), 1),
                round(median(kind.latency.p99_ms for kind in queued), 1),
                *(percent(results, bound) for bound in WITHIN_S),
            )
        )
    return Table(
        title=f"{QUEUED_RATE:,.0f} queued transactions a second",
        columns=(
            "",
            "accepted/s",
            "202 p50 ms",
            "202 p99 ms",
            *(f"applied within {float(bound):g} s" for bound in WITHIN_S),
        ),
        rows=rows,
    )


def percent(results: Sequence[Run], bound: str) -> str:
    return f"{median(run.applied.share(bound) for run in results):.2%}"


def checks(runs: Mapping[str, Sequence[Run]]) -> list[Check]:
    return [
        Check(
            what=f"share applied within {float(bound):g} s, {name}",
            value=median(run.applied.share(bound) for run in results),
            goal=goal,
        )
        for name, results in runs.items()
        for bound, goal in ((SOON, SOON_MIN), (IN_THE_END, IN_THE_END_MIN))
    ]
