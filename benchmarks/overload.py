"""Twice the load that the platform can carry, for ten minutes: what is served, refused, and after.

The capacity is the closed loop's rate. The overload is an open loop at twice that rate, of two
tenants, so that it meets the bounds of the cell and not only those of one tenant. Generator,
router, cell and database share the machine's processors: what refusing costs is in the figures.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.books import Books, make_books, write_kind
from benchmarks.errors import Wrong
from benchmarks.http_load import REFUSALS, Load, LoadResult, run_load
from benchmarks.machine import examine_machine
from benchmarks.platform_process import cloister, running_platform
from benchmarks.report import Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort

TENANTS: Final = ("bench", "other")
CONNECTIONS: Final = 64
CONNECTIONS_OVERLOAD: Final = 1_000
"""More than the router ever lets through at once: none of them waits for another."""
TIMES: Final = 2.0
SECONDS: Final = 600.0
SECONDS_QUICK: Final = 3.0
SECONDS_PEAK: Final = 10.0
"""Before, and after: so soon it has to be as before."""
SECONDS_PEAK_QUICK: Final = 2.0
WARMUP_S: Final = 1.0

GOODPUT_MIN: Final = 0.9
REFUSED_MS_MAX: Final = 50.0


def run_overload(progress: Progress, effort: Effort) -> Report:
    machine = examine_machine()
    seconds = SECONDS_QUICK if effort.quick else SECONDS
    peak_s = SECONDS_PEAK_QUICK if effort.quick else SECONDS_PEAK
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as name:
        progress("starting the platform")
        with running_platform(Path(name)) as platform:
            progress("creating the ledgers")
            first, *others = TENANTS
            books = [make_books(platform)]
            books += [make_books(platform, platform.create_tenant(slug)) for slug in others]
            progress("as fast as it goes")
            before = run_load(closed(platform.router, books, peak_s))
            rate = TIMES * before.rate
            progress(f"{rate:,.0f} writes/s for {seconds:g} s")
            during = run_load(opened(platform.router, books, rate, seconds))
            progress("as fast as it goes, once more")
            after = run_load(closed(platform.router, books, peak_s))
            for slug in (first, *others):
                progress(f"verifying {slug}")
                cloister(platform.environment, "verify", slug, "--json")
    for result in (before, during, after):
        require_clean(result)
    return Report(
        name="overload",
        quick=effort.quick,
        at=now_utc(),
        machine=machine,
        tables=[table(before, during, after)],
        checks=checks(before, during, after),
        runs=[msgspec.to_builtins(result) for result in (before, during, after)],
    )


def closed(router: str, books: Sequence[Books], seconds: float) -> Load:
    return Load(
        address=router,
        kinds=[write_kind(each, "POST", hot=False) for each in books],
        connections=CONNECTIONS,
        seconds=seconds,
        warmup_s=WARMUP_S,
    )


def opened(router: str, books: Sequence[Books], rate: float, seconds: float) -> Load:
    load = closed(router, books, seconds)
    return msgspec.structs.replace(load, connections=CONNECTIONS_OVERLOAD, rate=rate)


def require_clean(result: LoadResult) -> None:
    """Every request was served or refused, none left without an answer."""
    known = {"201", *map(str, REFUSALS)}
    for kind in result.kinds:
        if kind.lost or kind.statuses.keys() - known:
            raise Wrong(f"{kind.name}: {kind.lost} lost, answers {kind.statuses}")


def served(result: LoadResult) -> float:
    """Per second; of answers of the open loop, the last seconds' come a little later."""
    return sum(kind.statuses.get("201", 0) for kind in result.kinds) / (result.seconds + WARMUP_S)


def refused_p99_ms(result: LoadResult) -> float:
    return max(kind.refusal_latency.p99_ms for kind in result.kinds)


def table(before: LoadResult, during: LoadResult, after: LoadResult) -> Table:
    rows = []
    for name, result in (("before", before), ("overload", during), ("after", after)):
        latencies = [kind.latency for kind in result.kinds]
        rows.append(
            (
                name,
                result.offered and round(result.offered),
                round(served(result)),
                round(result.refused / (result.seconds + WARMUP_S)),
                max(each.p50_ms for each in latencies),
                max(each.p99_ms for each in latencies),
                refused_p99_ms(result) or None,
            )
        )
    return Table(
        title=f"Writes per second; overload for {during.seconds:g} s",
        columns=(
            "",
            "offered/s",
            "served/s",
            "refused/s",
            "served p50 ms",
            "served p99 ms",
            "refused p99 ms",
        ),
        rows=rows,
    )


def checks(before: LoadResult, during: LoadResult, after: LoadResult) -> list[Check]:
    return [
        Check(
            what="served per second in overload relative to the capacity",
            value=served(during) / served(before),
            goal=GOODPUT_MIN,
        ),
        Check(
            what="ms until a refusal, p99",
            value=refused_p99_ms(during),
            goal=REFUSED_MS_MAX,
            at_most=True,
        ),
        Check(
            what="served per second in the ten seconds after relative to the capacity",
            value=served(after) / served(before),
            goal=GOODPUT_MIN,
        ),
    ]
