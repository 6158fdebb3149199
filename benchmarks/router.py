"""The router beside HAProxy, in front of the same backend: one that costs nothing, and a cell.

HAProxy runs with one thread in http mode, connections kept alive on both sides, reused freely
towards the backend. It is told to do nothing else; the router parses credentials, looks the tenant
up, signs and adds its headers all the same. Generator, proxy and backend share the processors
and nothing is pinned: with two processors, pinning would leave a proxy's rate to the neighbours on
the other one. So each run also reports the proxy's own processor time per request, and how
much of one processor it used: a rate below full use is limited by something else.

Latencies are taken on all three paths at the same moments, by light open loops that run beside one
another: a cell's own latencies change by more, from one second to the next, than a proxy adds.
"""

import base64
import random
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Final

import msgspec

from benchmarks.books import read_kind, write_kind
from benchmarks.cell_alone import running_cell
from benchmarks.errors import Refused, Wrong
from benchmarks.http_load import Load, LoadResult, RunningLoad, run_load
from benchmarks.http_requests import Kind, OneOf, Part, Text, Unique, get, post
from benchmarks.machine import examine_machine
from benchmarks.percentiles import Latency, median
from benchmarks.report import Cell, Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort, interleave, median_ratio
from benchmarks.routing_server import RoutingServer
from benchmarks.server_process import Server, free_address, python_module

CONNECTIONS: Final = 64
SECONDS: Final = 4.0
SECONDS_QUICK: Final = 0.7
WARMUP_S: Final = 0.5
LIGHT_RATE: Final = 200.0
"""A second, on each path: so little that nothing saturates, and latencies are of the path, not of a
queue."""
LIGHT_CONNECTIONS: Final = 8
LIGHT_SECONDS: Final = 20.0
NOTHING: Final = "a fixed answer"
CELL: Final = "a cell"
TO_HAPROXY_MIN: Final = {CELL: 0.8, NOTHING: 0.6}
"""By what is behind both."""
ADDED_P50_MAX: Final = 2.0
ADDED_P99_MAX: Final = 3.0
"""The goals: requests per second, and latency added to the direct path, relative to HAProxy's."""
BEYOND: Final = 999.0
API_KEY: Final = "ck_" + "k" * 43
ACCOUNTS: Final = 2_000
BODY_HEAD: Final = (
    '{"status":"posted","description":"Transfer between two accounts","ledger_entries":['
    '{"ledger_account_id":"019aa1f2-8a5c-7c3e-9d4b-6f1e2d3c4b5a","direction":"debit","amount":1250},'
    '{"ledger_account_id":"'
)
BODY_TAIL: Final = '","direction":"credit","amount":1250}]}'

HAPROXY_CONFIGURATION: Final = """\
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  option http-keep-alive
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend front
  bind {listen}
  default_backend back
backend back
  http-reuse always
  server backend {backend}
"""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one path."""

    backend: str
    path: str
    """direct, router or haproxy."""
    kind: str
    rate: float
    latency: Latency
    proxy_us: float | None
    """The proxy's processor time per request, in microseconds; only where it worked alone."""
    proxy_cores: float | None
    """How much of one processor the proxy used."""
    generator_us: float
    is_light: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    name: str
    address: str
    organization: str
    kinds: Mapping[str, Callable[[], Kind]]
    """By name; drawn anew for each run, as a cell answers a repeated key from its journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to a backend: where requests go, and the proxy there, if any."""

    backend: Backend
    path: str
    address: str
    proxy: Server | None = None


def run_router(progress: Progress, effort: Effort) -> Report:
    """Measure the direct path, the router and HAProxy (where installed), interleaved."""
    machine = examine_machine()
    seconds = SECONDS_QUICK if effort.quick else SECONDS
    skipped = [] if shutil.which("haproxy") else ["no haproxy on PATH: no ratio to it"]
    organization = str(uuid.uuid4())
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-bench-")))
        progress("starting the backends and what is in front of them")
        backends = (
            stack.enter_context(fixed_answer(directory, organization)),
            stack.enter_context(ledger_cell(directory)),
        )
        ways = [
            way for each in backends for way in stack.enter_context(running_ways(directory, each))
        ]
        full: dict[str, Callable[[], Sequence[Run]]] = {
            f"{kind} {way.path} to {way.backend.name}": partial(measure, way, kind, seconds)
            for way in ways
            for kind in way.backend.kinds
        }
        light: dict[str, Callable[[], Sequence[Run]]] = {
            f"{kind} to {backend.name}, all paths at once": partial(
                measure_light, [way for way in ways if way.backend is backend], kind, effort.quick
            )
            for backend in backends
            for kind in backend.kinds
        }
        rounds = interleave(full | light, effort.times(), progress)
    runs = list(chain.from_iterable(chain.from_iterable(rounds.values())))
    return Report(
        name="router",
        quick=effort.quick,
        at=now_utc(),
        rounds=effort.times(),
        machine=machine,
        tables=[rate_table(Runs(runs)), latency_table(Runs(runs))],
        checks=checks(Runs(runs)),
        skipped=skipped,
        runs=[msgspec.to_builtins(run) for run in runs],
    )


@contextmanager
def fixed_answer(directory: Path, organization: str) -> Iterator[Backend]:
    address = free_address()
    command = python_module("benchmarks.fast_backend", address)
    with Server("backend", command, address=address, directory=directory) as server:
        read, write = request_kinds(organization)
        kinds = {"get": lambda: read, "post": lambda: write}
        yield Backend(name=NOTHING, address=server.address, organization=organization, kinds=kinds)


@contextmanager
def ledger_cell(directory: Path) -> Iterator[Backend]:
    with running_cell(directory) as cell:
        kinds = {
            "get": partial(read_kind, cell.books, "get", "ledger_accounts"),
            "post": partial(write_kind, cell.books, "post", hot=False),
        }
        yield Backend(
            name=CELL, address=cell.server.address, organization=cell.organization, kinds=kinds
        )


@contextmanager
def running_ways(directory: Path, backend: Backend) -> Iterator[list[Way]]:
    """Everything in front of the backend, running."""
    with ExitStack() as stack:
        ways = [Way(backend=backend, path="direct", address=backend.address)]
        routing = stack.enter_context(RoutingServer(backend.address, [backend.organization]))
        proxies = [("router", router_server(f"router-{backend.name}", directory, routing))]
        if haproxy := shutil.which("haproxy"):
            name = f"haproxy-{backend.name}"
            proxies.append(("haproxy", haproxy_server(name, haproxy, directory, backend.address)))
        for path, server in proxies:
            proxy = stack.enter_context(server)
            ways.append(Way(backend=backend, path=path, address=proxy.address, proxy=proxy))
        yield ways


def router_server(name: str, directory: Path, routing: RoutingServer) -> Server:
    """A router as the platform starts it, in front of a fixed routing table."""
    listen, operator = free_address(), free_address()
    return Server(
        name,
        python_module("router"),
        address=listen,
        directory=directory,
        environment={
            "CLOISTER_ROUTER_LISTEN": listen,
            "CLOISTER_ROUTER_OPERATOR_LISTEN": operator,
            "CLOISTER_ROUTER_CONTROL_URL": routing.url,
            "CLOISTER_ROUTER_TOKEN": routing.token,
            # As every platform's router does, it signs what it sends.
            "CLOISTER_ROUTER_SIGNING_SECRET": routing.token,
            "CLOISTER_ROUTER_TABLE_FILE": str(directory / f"{name}-table.json"),
        },
        health_url=f"http://{operator}/healthz",
    )


def haproxy_server(name: str, binary: str, directory: Path, backend: str) -> Server:
    listen = free_address()
    configuration = directory / f"{name}.cfg"
    configuration.write_text(HAPROXY_CONFIGURATION.format(listen=listen, backend=backend))
    command = [binary, "-f", str(configuration), "-db", "-q"]
    return Server(name, command, address=listen, directory=directory)


def request_kinds(organization: str) -> Sequence[Kind]:
    """The requests a ledger gets: an account read, a transaction with two entries."""
    accounts = [str(uuid.uuid4()) for _ in range(ACCOUNTS)]
    credentials = base64.b64encode(f"{organization}:{API_KEY}".encode()).decode()
    headers = {"host": "ledger.example", "authorization": f"Basic {credentials}"}
    read = get("get", [Text("/api/ledger_accounts/"), OneOf(accounts)], headers)
    sent: list[tuple[str, list[Part]]] = [(key, [Text(value)]) for key, value in headers.items()]
    write = post(
        "post",
        "/api/ledger_transactions",
        [*sent, ("idempotency-key", [Text("bench-"), Unique()])],
        [Text(BODY_HEAD), OneOf(accounts), Text(BODY_TAIL)],
    )
    return [read, write]


def measure(way: Way, kind: str, seconds: float) -> list[Run]:
    """One closed loop. Raises Wrong on any answer but the expected one."""
    before_s = way.proxy.cpu_s() if way.proxy else 0.0
    result = run_load(
        Load(
            address=way.address,
            kinds=[way.backend.kinds[kind]()],
            connections=CONNECTIONS,
            seconds=seconds,
            warmup_s=WARMUP_S,
        )
    )
    require_success(result, f"{kind}, {way.path}")
    proxy_us = None
    if way.proxy is not None:
        # Over the warm-up too, on both sides of the division.
        answers = sum(sum(each.statuses.values()) for each in result.kinds)
        proxy_us = (way.proxy.cpu_s() - before_s) / answers * 1e6
    return [run_of(way, kind, result, proxy_us=proxy_us)]


def measure_light(ways: Sequence[Way], kind: str, quick: bool) -> list[Run]:
    """An open loop on each path, all at once. Raises Wrong on any answer but the expected one."""
    with ExitStack() as stack:
        loads = [
            stack.enter_context(
                RunningLoad(
                    Load(
                        address=way.address,
                        kinds=[way.backend.kinds[kind]()],
                        connections=LIGHT_CONNECTIONS,
                        seconds=SECONDS_QUICK if quick else LIGHT_SECONDS,
                        warmup_s=WARMUP_S,
                        rate=LIGHT_RATE,
                        # By one schedule they would meet in the same batches of the cell.
                        seed=random.getrandbits(32),
                    )
                )
            )
            for way in ways
        ]
        results = [load.result() for load in loads]
    for way, result in zip(ways, results, strict=True):
        require_success(result, f"{kind}, {way.path}")
    return [
        run_of(way, kind, result, is_light=True) for way, result in zip(ways, results, strict=True)
    ]


def run_of(
    way: Way,
    kind: str,
    result: LoadResult,
    *,
    proxy_us: float | None = None,
    is_light: bool = False,
) -> Run:
    return Run(
        backend=way.backend.name,
        path=way.path,
        kind=kind,
        rate=result.rate,
        latency=result.kinds[0].latency,
        proxy_us=proxy_us,
        proxy_cores=None if proxy_us is None else proxy_us * result.rate / 1e6,
        generator_us=result.generator_us,
        is_light=is_light,
    )


def require_success(result: LoadResult, what: str) -> None:
    if result.failures:
        seen = {kind.name: kind.statuses | {"lost": kind.lost} for kind in result.kinds}
        error = Refused if result.refused == result.failures else Wrong
        raise error(f"{what}: {result.failures} requests failed; answers {seen}")


class Runs:
    """What was measured: every run of one path, in the order of rounds."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._by_arm: dict[tuple[bool, str, str, str], list[Run]] = {}
        for run in runs:
            arm = (run.is_light, run.backend, run.kind, run.path)
            self._by_arm.setdefault(arm, []).append(run)

    def full(self, backend: str, kind: str, path: str) -> list[Run]:
        return self._by_arm.get((False, backend, kind, path), [])

    def light(self, backend: str, kind: str, path: str) -> list[Run]:
        return self._by_arm.get((True, backend, kind, path), [])

    def arms(self) -> Iterator[tuple[str, str, str]]:
        return (arm[1:] for arm in self._by_arm if not arm[0])

    def added(self, backend: str, kind: str, path: str) -> tuple[float, float]:
        """What the path adds to p50 and p99, in ms: the mean of the differences to the direct path
        at the same moments."""
        pairs = list(
            zip(self.light(backend, kind, path), self.light(backend, kind, "direct"), strict=True)
        )
        return (
            fmean(run.latency.p50_ms - direct.latency.p50_ms for run, direct in pairs),
            fmean(run.latency.p99_ms - direct.latency.p99_ms for run, direct in pairs),
        )


def rate_table(runs: Runs) -> Table:
    rows: list[Sequence[Cell]] = []
    for backend, kind, path in runs.arms():
        results = runs.full(backend, kind, path)
        haproxy = runs.full(backend, kind, "haproxy")
        rate = median(run.rate for run in results)
        ratio = rate / median(run.rate for run in haproxy) if haproxy else None
        cost = [run.proxy_us for run in results if run.proxy_us is not None]
        cores = [run.proxy_cores for run in results if run.proxy_cores is not None]
        proxy = (round(median(cost), 1), round(median(cores), 2)) if cost else (None, None)
        rows.append((backend, kind.upper(), path, round(rate), ratio and round(ratio, 2), *proxy))
    return Table(
        title=f"Requests per second, {CONNECTIONS} connections, closed loop",
        columns=(
            "in front of",
            "request",
            "path",
            "requests/s",
            "to HAProxy",
            "proxy µs/request",
            "proxy cores",
        ),
        rows=rows,
        notes=("One processor used fully is 1.0; a proxy below that waited for its neighbours.",),
    )


def latency_table(runs: Runs) -> Table:
    rows: list[Sequence[Cell]] = []
    for backend, kind, path in runs.arms():
        results = runs.light(backend, kind, path)
        p50 = median(run.latency.p50_ms for run in results)
        p99 = median(run.latency.p99_ms for run in results)
        added = (round(each, 3) for each in runs.added(backend, kind, path))
        rows.append((backend, kind.upper(), path, round(p50, 3), round(p99, 3), *added))
    return Table(
        title=f"Latency in ms, {LIGHT_RATE:g} requests/s on each path at the same time",
        columns=("in front of", "request", "path", "p50", "p99", "p50 added", "p99 added"),
        rows=rows,
        notes=("Up to 1 ms of each latency is the generators' clock; of what is added, nothing.",),
    )


def checks(runs: Runs) -> list[Check]:
    found: list[Check] = []
    for kind in ("get", "post"):
        for backend, goal in TO_HAPROXY_MIN.items():
            haproxy = runs.full(backend, kind, "haproxy")
            if not haproxy:
                continue
            router = runs.full(backend, kind, "router")
            ratio = median_ratio([run.rate for run in router], [run.rate for run in haproxy])
            what = f"router's {kind.upper()}s per second relative to HAProxy's, to {backend}"
            found.append(Check(what=what, value=ratio, goal=goal))
            found += latency_checks(runs, backend, kind)
    return found


def latency_checks(runs: Runs, backend: str, kind: str) -> list[Check]:
    """What the router adds to the direct path relative to what HAProxy adds."""
    router, haproxy = (runs.added(backend, kind, path) for path in ("router", "haproxy"))
    return [
        Check(
            what=f"{kind.upper()}s to {backend}: {name} added by the router relative to HAProxy's",
            value=relative(router[at], haproxy[at]),
            goal=goal,
            at_most=True,
        )
        for at, (name, goal) in enumerate((("p50", ADDED_P50_MAX), ("p99", ADDED_P99_MAX)))
    ]


def relative(added_ms: float, yardstick_ms: float) -> float:
    """Nothing relative to anything is 0; something relative to nothing is BEYOND every goal."""
    if added_ms <= 0:
        return 0.0
    return added_ms / yardstick_ms if yardstick_ms > 0 else BEYOND
