"""The API through the router, beside an empty handler through the same router.

The platform is real (`cloister up`, one cell). The empty handler stands behind a router process of
its own with the same settings; arms run in turn, so that whatever does not run, rests. Processor
time per request is given for each part of the platform: it says where the time goes.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.books import Books, make_books, read_hot_kind, read_kind, write_kind
from benchmarks.http_load import Load, LoadResult, run_load
from benchmarks.http_requests import Kind
from benchmarks.machine import examine_machine
from benchmarks.percentiles import Latency, median
from benchmarks.platform_process import Batches, Platform, cloister, running_platform
from benchmarks.report import Cell, Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort, interleave, median_ratio
from benchmarks.router import require_success, router_server
from benchmarks.routing_server import RoutingServer
from benchmarks.server_process import Server, free_address, python_module

CONNECTIONS: Final = 64
SECONDS: Final = 6.0
SECONDS_QUICK: Final = 1.0
WARMUP_S: Final = 1.0

MIX_CONNECTIONS: Final = 256
MIX_WRITES: Final = 1_200
MIX_READS: Final = 3_600
MIX_READS_OF_TRANSACTIONS: Final = 900
"""Of the reads, so many are of transactions; the others are of accounts."""
MIX_SECONDS: Final = 60.0
MIX_SECONDS_QUICK: Final = 3.0

FORMS: Final = ("bare", "starlette")
EMPTY: Final = "empty, bare"
"""The yardstick: the form in which a cell's own data path is written, which is the faster one."""
TO_EMPTY_MIN: Final = 0.35
HOT_MIN: Final = 0.95
HOT_READ_MIN: Final = 0.9
SUSTAINED_MIN: Final = 0.99
"""Answers within the minute relative to what was offered in it."""
WRITE_P90_MS_MAX: Final = 25.0
READ_P90_MS_MAX: Final = 10.0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One closed loop of one arm."""

    arm: str
    rate: float
    latency: Latency
    batch_mean: float | None
    """Commands per database transaction; None where the cell wrote nothing."""
    cpu_us: dict[str, float]
    """Processor time per request of each part that worked on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    address: str
    kind: Callable[[], Kind]
    """Called for each run: idempotency keys must never repeat."""
    cpu_s: Callable[[], Mapping[str, float]]
    batches: Callable[[], Batches] | None = None


def run_api(progress: Progress, effort: Effort) -> Report:
    """Measure the mix, then single requests beside the empty handler; the books are verified."""
    machine = examine_machine()
    seconds = SECONDS_QUICK if effort.quick else SECONDS
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-bench-")))
        progress("starting the platform")
        platform = stack.enter_context(running_platform(directory))
        progress("creating the ledger")
        books = make_books(platform)
        organization = platform.tenant.organization_id
        empty = {
            form: stack.enter_context(running_empty(directory, organization, form))
            for form in FORMS
        }
        # First: what it reads is then in the cell's memory still, as what was written lately is.
        mix_s = MIX_SECONDS_QUICK if effort.quick else MIX_SECONDS
        progress(f"{MIX_WRITES} writes/s and {MIX_READS} reads/s for {mix_s:g} s")
        mix, mix_cpu = run_mix(platform, books, mix_s)
        arms = all_arms(platform, books, empty)
        measures = {name: partial(measure, name, arm, seconds) for name, arm in arms.items()}
        rounds = effort.times()
        runs = interleave(measures, rounds, progress)
        progress("verifying every balance")
        cloister(platform.environment, "verify", platform.tenant.tenant, "--json")
    return Report(
        name="api",
        quick=effort.quick,
        at=now_utc(),
        rounds=rounds,
        machine=machine,
        tables=[rate_table(runs), mix_table(mix, mix_cpu, mix_s)],
        checks=[*rate_checks(runs), *mix_checks(mix)],
        runs=[msgspec.to_builtins(run) for results in runs.values() for run in results]
        + [msgspec.to_builtins(mix)],
    )


@contextmanager
def running_empty(directory: Path, organization: str, form: str) -> Iterator[tuple[Server, Server]]:
    """The router in front of the empty handler, and the empty handler."""
    with ExitStack() as stack:
        address = free_address()
        command = python_module("benchmarks.empty_app", form, address)
        app = stack.enter_context(Server(form, command, address=address, directory=directory))
        routing = stack.enter_context(RoutingServer(app.address, [organization]))
        yield stack.enter_context(router_server(f"{form}-router", directory, routing)), app


def all_arms(
    platform: Platform, books: Books, empty: Mapping[str, tuple[Server, Server]]
) -> dict[str, Arm]:
    ledger = partial(Arm, address=platform.router, cpu_s=platform.cpu_s, batches=platform.batches)
    write = partial(write_kind, books, "post", hot=False)
    read = partial(read_kind, books, "get", "ledger_accounts")
    arms = {
        "POST uniform": ledger(kind=write),
        "POST hot": ledger(kind=partial(write_kind, books, "post", hot=True)),
        "GET account": ledger(kind=read),
        # By far the most entries: a balance must cost the same however many there are.
        "GET hot account": ledger(kind=partial(read_hot_kind, books, "get")),
    }
    for form, (router, app) in empty.items():
        behind = partial(Arm, address=router.address, cpu_s=partial(empty_cpu_s, router, app))
        arms[f"POST empty, {form}"] = behind(kind=write)
        arms[f"GET empty, {form}"] = behind(kind=read)
    return arms


def empty_cpu_s(router: Server, app: Server) -> Mapping[str, float]:
    return {"router": router.cpu_s(), "empty": app.cpu_s()}


def measure(name: str, arm: Arm, seconds: float) -> Run:
    """One closed loop. Raises Wrong on any answer but the expected one."""
    before, batches_before = arm.cpu_s(), arm.batches() if arm.batches else None
    result = run_load(
        Load(
            address=arm.address,
            kinds=[arm.kind()],
            connections=CONNECTIONS,
            seconds=seconds,
            warmup_s=WARMUP_S,
        )
    )
    require_success(result, name)
    batch_mean = None
    if arm.batches is not None and batches_before is not None:
        batch_mean = arm.batches().mean_since(batches_before)
    return Run(
        arm=name,
        batch_mean=batch_mean,
        rate=result.rate,
        latency=result.kinds[0].latency,
        cpu_us=cost_us(before, arm.cpu_s(), result) | {"generator": result.generator_us},
    )


def cost_us(
    before: Mapping[str, float], after: Mapping[str, float], result: LoadResult
) -> dict[str, float]:
    """Processor microseconds per answer, over the warm-up too on both sides of the division."""
    answers = sum(sum(kind.statuses.values()) for kind in result.kinds)
    return {
        part: round((used - before.get(part, 0.0)) / answers * 1e6, 1)
        for part, used in sorted(after.items())
    }


def run_mix(
    platform: Platform, books: Books, seconds: float
) -> tuple[LoadResult, Mapping[str, float]]:
    """The fixed load of writes and reads, arriving at random."""
    kinds = [
        write_kind(books, "POST transaction", hot=False, weight=MIX_WRITES),
        read_kind(books, "GET account", "ledger_accounts", MIX_READS - MIX_READS_OF_TRANSACTIONS),
        read_kind(books, "GET transaction", "ledger_transactions", MIX_READS_OF_TRANSACTIONS),
    ]
    before = platform.cpu_s()
    result = run_load(
        Load(
            address=platform.router,
            kinds=kinds,
            connections=MIX_CONNECTIONS,
            seconds=seconds,
            warmup_s=WARMUP_S,
            rate=MIX_WRITES + MIX_READS,
        )
    )
    cost = cost_us(before, platform.cpu_s(), result) | {"generator": result.generator_us}
    return result, cost


def rate_table(runs: Mapping[str, Sequence[Run]]) -> Table:
    rows: list[Sequence[Cell]] = []
    for name, results in runs.items():
        rate = median(run.rate for run in results)
        empty = median(run.rate for run in runs[f"{name.split()[0]} {EMPTY}"])
        rows.append(
            (
                name,
                round(rate),
                round(rate / empty, 2),
                round(median(run.latency.p50_ms for run in results), 1),
                round(median(run.latency.p99_ms for run in results), 1),
                mean_batch(results),
                describe_cost([run.cpu_us for run in results]),
            )
        )
    return Table(
        title=f"Requests per second, {CONNECTIONS} connections, closed loop",
        columns=(
            "request",
            "requests/s",
            "to empty",
            "p50 ms",
            "p99 ms",
            "batch",
            "processor µs/request",
        ),
        rows=rows,
        notes=(f"The yardstick is the {EMPTY} handler. Batch: commands per database transaction.",),
    )


def mean_batch(results: Sequence[Run]) -> float | None:
    batches = [run.batch_mean for run in results if run.batch_mean is not None]
    return round(median(batches), 1) if batches else None


def describe_cost(costs: Sequence[Mapping[str, float]]) -> str:
    """The parts that matter, the dearest first."""
    parts = {part: median(cost.get(part, 0.0) for cost in costs) for part in costs[0]}
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {cost:.0f}" for part, cost in ordered if cost >= 1)


def mix_table(mix: LoadResult, cost: Mapping[str, float], seconds: float) -> Table:
    rows: list[Sequence[Cell]] = [
        (
            kind.name,
            round(kind.rate),
            kind.latency.p50_ms,
            kind.latency.p90_ms,
            kind.latency.p99_ms,
            kind.latency.max_ms,
        )
        for kind in mix.kinds
    ]
    return Table(
        title=f"{MIX_WRITES:,} writes/s and {MIX_READS:,} reads/s for {seconds:g} s, open loop",
        columns=("request", "answers/s", "p50 ms", "p90 ms", "p99 ms", "max ms"),
        rows=rows,
        notes=(
            f"Offered {mix.offered or 0:,.0f}/s, answered {mix.rate:,.0f}/s; {mix.late} requests"
            f" left late, at most {mix.waiting_max} waited for one of {MIX_CONNECTIONS}"
            f" connections. Processor µs per request: {describe_cost([cost])}.",
        ),
    )


def rate_checks(runs: Mapping[str, Sequence[Run]]) -> list[Check]:
    rates = {name: [run.rate for run in results] for name, results in runs.items()}
    return [
        Check(
            what="single-transaction POSTs per second relative to the empty handler's",
            value=median_ratio(rates["POST uniform"], rates[f"POST {EMPTY}"]),
            goal=TO_EMPTY_MIN,
        ),
        Check(
            what="hot POSTs per second relative to uniform",
            value=median_ratio(rates["POST hot"], rates["POST uniform"]),
            goal=HOT_MIN,
        ),
        Check(
            what="GETs of the account with most entries relative to those of any account",
            value=median_ratio(rates["GET hot account"], rates["GET account"]),
            goal=HOT_READ_MIN,
        ),
    ]


def mix_checks(mix: LoadResult) -> list[Check]:
    writes, *reads = mix.kinds
    return [
        Check(
            what="the mix: requests without the answer expected",
            value=mix.failures,
            goal=0,
            at_most=True,
        ),
        Check(
            what="the mix: answers per second relative to the offered ones",
            value=mix.rate / (mix.offered or 1.0),
            goal=SUSTAINED_MIN,
        ),
        Check(
            what="the mix: p90 of writes in ms",
            value=writes.latency.p90_ms,
            goal=WRITE_P90_MS_MAX,
            at_most=True,
        ),
        Check(
            what="the mix: p90 of reads in ms, the slower kind",
            value=max(kind.latency.p90_ms for kind in reads),
            goal=READ_P90_MS_MAX,
            at_most=True,
        ),
    ]
