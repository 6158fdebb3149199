"""Twice the load that the platform can carry, for ten minutes: what is served, refused, and after.

Beside a platform that is served as fast as it goes for just as long, each from empty tables: what
the growth of tables and checkpoints cost in ten minutes, they cost both. The overload is an open
loop at twice the closed loop's first rate, of two tenants, so that it meets the bounds of the cell
and not only those of one tenant. Generator, router, cell and database share the machine's
processors: what refusing costs, and asking twice as often, is in the figures.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

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


class Outcome(NamedTuple):
    long: LoadResult
    after: LoadResult
    """The closed loop, as soon as the long run has ended."""


def run_overload(progress: Progress, effort: Effort) -> Report:
    machine = examine_machine()
    seconds = SECONDS_QUICK if effort.quick else SECONDS
    peak_s = SECONDS_PEAK_QUICK if effort.quick else SECONDS_PEAK
    with running_books(progress) as (router, books):
        progress("as fast as it goes")
        first = run_load(closed(router, books, peak_s))
        progress(f"as fast as it goes, for {seconds:g} s")
        capacity = run_both(closed(router, books, seconds), closed(router, books, peak_s))
    rate = TIMES * first.rate
    with running_books(progress) as (router, books):
        progress(f"{rate:,.0f} writes/s for {seconds:g} s")
        overload = run_both(opened(router, books, rate, seconds), closed(router, books, peak_s))
    results = (first, *capacity, *overload)
    for result in results:
        require_clean(result)
    return Report(
        name="overload",
        quick=effort.quick,
        at=now_utc(),
        machine=machine,
        tables=[table(first, capacity, overload)],
        checks=checks(capacity, overload),
        runs=[msgspec.to_builtins(result) for result in results],
    )


@contextmanager
def running_books(progress: Progress) -> Iterator[tuple[str, list[Books]]]:
    """A platform's router, and the books of two tenants, which are verified at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="cloister-bench-") as name,
        running_platform(Path(name)) as platform,
    ):
        progress("creating the ledgers")
        first, *others = TENANTS
        books = [make_books(platform)]
        books += [make_books(platform, platform.create_tenant(slug)) for slug in others]
        yield platform.router, books
        for slug in (first, *others):
            progress(f"verifying {slug}")
            cloister(platform.environment, "verify", slug, "--json")


def run_both(long: Load, after: Load) -> Outcome:
    return Outcome(run_load(long), run_load(after))


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


def table(first: LoadResult, capacity: Outcome, overload: Outcome) -> Table:
    runs = {
        "as fast as it goes, at first": first,
        "as fast as it goes": capacity.long,
        "then": capacity.after,
        "overload": overload.long,
        "then, as fast as it goes": overload.after,
    }
    rows = []
    for name, result in runs.items():
        latencies = [kind.latency for kind in result.kinds]
        rows.append(
            (
                name,
                round(result.seconds),
                result.offered and round(result.offered),
                round(served(result)),
                round(result.refused / (result.seconds + WARMUP_S)),
                max(each.p50_ms for each in latencies),
                max(each.p99_ms for each in latencies),
                refused_p99_ms(result) or None,
            )
        )
    return Table(
        title="Writes per second",
        columns=(
            "",
            "seconds",
            "offered/s",
            "served/s",
            "refused/s",
            "served p50 ms",
            "served p99 ms",
            "refused p99 ms",
        ),
        rows=rows,
    )


def checks(capacity: Outcome, overload: Outcome) -> list[Check]:
    return [
        Check(
            what="served per second in overload relative to the capacity",
            value=served(overload.long) / served(capacity.long),
            goal=GOODPUT_MIN,
        ),
        Check(
            what="ms until a refusal, p99",
            value=refused_p99_ms(overload.long),
            goal=REFUSED_MS_MAX,
            at_most=True,
        ),
        Check(
            what="served per second in the ten seconds after relative to the capacity then",
            value=served(overload.after) / served(capacity.after),
            goal=GOODPUT_MIN,
        ),
    ]
