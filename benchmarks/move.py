"""Moves: what tenants and their neighbours see of them, for tenants of several sizes.

Open-loop load on the tenant that moves and on a neighbour on its first cell; before each move a run
without one. The pause of writes is the longest gap between two acknowledged writes, less the one of
the run without a move: the schedule and the machine have gaps of their own. That run is shorter,
which can only make the pause look longer. The yardstick of copying pipes COPY to COPY of the same
tables, whole, into the same database, under the same load, and takes it back.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection, sql

from benchmarks.books import Books, make_books, read_kind, write_kind
from benchmarks.errors import Wrong
from benchmarks.http_load import KindResult, Load, LoadResult, RunningLoad, run_load
from benchmarks.machine import examine_machine
from benchmarks.percentiles import latency, median
from benchmarks.platform_process import Platform, Tenant, cloister, running_platform
from benchmarks.report import Cell, Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort
from cell.tables import TENANT_TABLES
from control_plane.move.rows import BLOCK_BYTES

CELLS: Final = ("cell-a", "cell-b")
MOVES: Final = {1_000: 20, 100_000: 20, 1_000_000: 5}
"""By the tenant's transactions. A million under load take a quarter of an hour on two cores."""
MOVES_QUICK: Final = {1_000: 2}
WRITES: Final = 300
READS: Final = 900
"""A second, of each of the two tenants."""
CONNECTIONS: Final = 64
WARMUP_S: Final = 1.0
BESIDE_S: Final = 2.0
"""Load before and after a move is in the same run."""
QUIET_S: Final = 10.0
"""Of load without a move."""
MOVE_S_MAX: Final = 1_800.0
GROWN_MAX: Final = 1.5
"""One that has become so many times as large is replaced by a new one: it is written to, too."""
FILL_S: Final = 10.0
FILL_S_MIN: Final = 0.2
FILL_RATE: Final = 4_000
"""Transactions a second, about."""
FILL_CONNECTIONS: Final = 64
MAX_PAUSE_MS: Final = 150


class MoveRun(msgspec.Struct, frozen=True, kw_only=True):
    """One move, and what the clients saw of it."""

    transactions: int
    """The nominal number, by which runs are put together."""
    transactions_before: int
    move_s: float
    failed: int
    refused: int
    """Answers 429 and 503, of those that failed."""
    gap_ms: float
    gap_without_ms: float
    mover_pause_ms: float
    """From the fence to the moment when writes were taken again."""
    neighbour_p99_ms: float
    neighbour_p99_without_ms: float
    copied_bytes: int
    copy_s: float

    @property
    def pause_ms(self) -> float:
        return max(0.0, self.gap_ms - self.gap_without_ms)


class Moved(msgspec.Struct, frozen=True):
    """Of what `cloister move --json` prints last."""

    move_id: str
    decision: str | None
    reason: str | None
    bytes: int | None
    copy_seconds: float | None
    pause_ms: float | None


def run_moves(progress: Progress, effort: Effort) -> Report:
    machine = examine_machine()
    moves = MOVES_QUICK if effort.quick else MOVES
    runs: list[MoveRun] = []
    piped: dict[int, float] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-bench-")))
        progress("starting the platform")
        platform = stack.enter_context(running_platform(directory, CELLS))
        neighbour = make_books(platform)
        for size, usual in moves.items():
            times = effort.rounds or usual
            moving: Moving | None = None
            for number in range(times):
                if moving is None or moving.transactions > GROWN_MAX * size:
                    progress(f"a tenant of {size:,} transactions")
                    moving = Moving.create(platform, f"moves-{size}-{number}", size)
                if size not in piped:
                    progress(f"{size:,} transactions: COPY to COPY")
                    piped[size] = moving.pipe(neighbour)
                progress(f"{size:,} transactions: move {number + 1} of {times}")
                runs.append(moving.measure(neighbour, size))
            assert moving is not None
            for slug in (moving.tenant.tenant, platform.tenant.tenant):
                cloister(platform.environment, "verify", slug, "--json")
    return Report(
        name="move",
        quick=effort.quick,
        at=now_utc(),
        machine=machine,
        tables=[table_of(runs, piped)],
        checks=checks_of(runs, piped),
        runs=[msgspec.to_builtins(run) for run in runs],
    )


@dataclass(slots=True, kw_only=True)
class Moving:
    """A tenant that moves from one cell to the other and back, and grows by what is written."""

    platform: Platform
    tenant: Tenant
    books: Books
    cell: str
    transactions: int

    @classmethod
    def create(cls, platform: Platform, slug: str, transactions: int) -> "Moving":
        tenant = platform.create_tenant(slug)
        books = make_books(platform, tenant)
        written = fill(platform, books, transactions)
        return cls(
            platform=platform, tenant=tenant, books=books, cell=tenant.cell, transactions=written
        )

    def pipe(self, neighbour: Books) -> float:
        """The yardstick, under the same load: bytes per second."""
        with loading_both(self.platform, (self.books, neighbour), MOVE_S_MAX) as loads:
            time.sleep(WARMUP_S + BESIDE_S)
            rate = asyncio.run(pipe(self.platform, self.tenant))
            stop(loads)
            self.transactions += acknowledged(loads[0].result())
        return rate

    def measure(self, neighbour: Books, size: int) -> MoveRun:
        """A run without a move, and one with it."""
        both = (self.books, neighbour)
        with loading_both(self.platform, both, QUIET_S) as loads:
            quiet, quiet_beside = (load.result() for load in loads)
        self.transactions += acknowledged(quiet)
        before = self.transactions
        target = next(cell for cell in CELLS if cell != self.cell)
        with loading_both(self.platform, both, MOVE_S_MAX) as loads:
            time.sleep(WARMUP_S + BESIDE_S)
            began_s = time.monotonic()
            moved = move(self.platform, self.tenant, target)
            move_s = time.monotonic() - began_s
            time.sleep(BESIDE_S)
            stop(loads)
            during, beside = (load.result() for load in loads)
        cloister(self.platform.environment, "moves", "finish", moved.move_id)
        self.cell = target
        self.transactions += acknowledged(during)
        return MoveRun(
            transactions=size,
            transactions_before=before,
            move_s=round(move_s, 1),
            failed=during.failures + beside.failures,
            refused=during.refused + beside.refused,
            gap_ms=writes(during).longest_gap_ms,
            gap_without_ms=writes(quiet).longest_gap_ms,
            mover_pause_ms=moved.pause_ms or 0.0,
            neighbour_p99_ms=writes(beside).latency.p99_ms,
            neighbour_p99_without_ms=writes(quiet_beside).latency.p99_ms,
            copied_bytes=moved.bytes or 0,
            copy_s=moved.copy_seconds or 0.0,
        )


def stop(loads: Sequence[RunningLoad]) -> None:
    """Raises Wrong where one has ended by itself: what came after it was without load."""
    for load in loads:
        if load.process.poll() is not None:
            raise Wrong("the load ended before what was to be measured under it")
        load.stop()


def acknowledged(result: LoadResult) -> int:
    """Writes, in the warm-up too."""
    return writes(result).statuses.get("201", 0)


def fill(platform: Platform, books: Books, transactions: int) -> int:
    """Write about as many transactions through the router; how many it were."""
    written = 0
    while written < transactions:
        result = run_load(
            Load(
                address=platform.router,
                kinds=[write_kind(books, "fill", hot=False)],
                connections=FILL_CONNECTIONS,
                seconds=min(FILL_S, max(FILL_S_MIN, (transactions - written) / FILL_RATE)),
                warmup_s=0.0,
            )
        )
        written += result.kinds[0].statuses.get("201", 0)
    return written


@contextmanager
def loading_both(
    platform: Platform, books: tuple[Books, Books], seconds: float
) -> Iterator[list[RunningLoad]]:
    """Open-loop load of both tenants at once, the one that moves first."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                RunningLoad(
                    Load(
                        address=platform.router,
                        kinds=[
                            write_kind(each, "writes", hot=False, weight=WRITES),
                            read_kind(each, "reads", "ledger_accounts", READS),
                        ],
                        connections=CONNECTIONS,
                        seconds=seconds,
                        warmup_s=WARMUP_S,
                        rate=WRITES + READS,
                        seed=random.getrandbits(32),
                    )
                )
            )
            for each in books
        ]


def move(platform: Platform, tenant: Tenant, cell: str) -> Moved:
    """Raises NotReady where it was aborted."""
    options = ["--max-pause-ms", str(MAX_PAUSE_MS), "--json"]
    text = cloister(platform.environment, "move", tenant.tenant, cell, *options)
    return msgspec.json.decode(text.splitlines()[-1], type=Moved)


def writes(result: LoadResult) -> KindResult:
    return next(kind for kind in result.kinds if kind.name == "writes")


async def pipe(platform: Platform, tenant: Tenant) -> float:
    """Bytes per second of COPY to COPY of all the tenant's tables, taken back at the end."""
    source, target = [await AsyncConnection.connect(platform.mover_dsn(cell)) for cell in CELLS]
    total = 0
    async with source, target:
        began_s = time.perf_counter()
        for table in TENANT_TABLES:
            total += await pipe_table(source, target, table, tenant.organization_id)
        seconds = time.perf_counter() - began_s
        await target.rollback()
    return total / seconds


async def pipe_table(
    source: AsyncConnection[Any], target: AsyncConnection[Any], table: str, tenant_id: str
) -> int:
    reads = sql.SQL("COPY (SELECT * FROM {} WHERE tenant_id = {}) TO STDOUT (FORMAT binary)")
    writes_to = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(table))
    count = 0
    async with source.cursor() as reading, target.cursor() as writing:
        statement = reads.format(sql.Identifier(table), sql.Literal(tenant_id))
        async with reading.copy(statement) as read, writing.copy(writes_to) as written:
            # A row at a time arrives; the mover does not send them so, either.
            block = bytearray()
            async for row in read:
                count += len(row)
                block += row
                if len(block) >= BLOCK_BYTES:
                    await written.write(bytes(block))
                    block.clear()
            await written.write(bytes(block))
    return count


def table_of(runs: Sequence[MoveRun], piped: Mapping[int, float]) -> Table:
    rows: list[Sequence[Cell]] = []
    for size in dict.fromkeys(run.transactions for run in runs):
        mine = [run for run in runs if run.transactions == size]
        pauses = latency(run.pause_ms / 1e3 for run in mine)
        movers = latency(run.mover_pause_ms / 1e3 for run in mine)
        rows.append(
            (
                f"{size:,}",
                f"{round(median(run.transactions_before for run in mine)):,}",
                len(mine),
                sum(run.failed for run in mine),
                pauses.p50_ms,
                pauses.max_ms,
                round(median(run.gap_ms for run in mine), 1),
                round(median(run.gap_without_ms for run in mine), 1),
                movers.p50_ms,
                movers.max_ms,
                round(neighbour_ratio(mine), 2),
                round(median(run.move_s for run in mine)),
                round(copy_rate(mine) / 1e6, 1),
                round(copy_rate(mine) / piped[size], 2),
            )
        )
    return Table(
        title=f"Moves under {WRITES} writes/s and {READS} reads/s, and as much on a neighbour",
        columns=(
            "transactions",
            "when it moves",
            "moves",
            "failed requests",
            "pause p50 ms",
            "longest",
            "gap p50",
            "gap without a move p50",
            "seen by the mover p50",
            "longest",
            "neighbour's p99, to without",
            "a move takes s",
            "copied MB/s",
            "to COPY to COPY",
        ),
        rows=rows,
    )


def neighbour_ratio(runs: Sequence[MoveRun]) -> float:
    """Of the medians."""
    without = median(run.neighbour_p99_without_ms for run in runs)
    return median(run.neighbour_p99_ms for run in runs) / without if without else 0.0


def copy_rate(runs: Sequence[MoveRun]) -> float:
    """Bytes per second, under load."""
    return median(run.copied_bytes / run.copy_s if run.copy_s else 0.0 for run in runs)


def checks_of(runs: Sequence[MoveRun], piped: Mapping[int, float]) -> list[Check]:
    pauses = latency(run.pause_ms / 1e3 for run in runs)
    sizes = {run.transactions for run in runs}
    beside = max(neighbour_ratio([run for run in runs if run.transactions == n]) for n in sizes)
    largest = max(piped)
    ratio = copy_rate([run for run in runs if run.transactions == largest]) / piped[largest]
    return [
        Check(
            what="requests that failed in all moves",
            value=sum(run.failed for run in runs),
            goal=0,
            at_most=True,
        ),
        Check(what="pause of writes, p50 in ms", value=pauses.p50_ms, goal=60, at_most=True),
        Check(what="pause of writes, p99 in ms", value=pauses.p99_ms, goal=150, at_most=True),
        Check(
            what="neighbour's p99 of writes relative to none moving, the worst size",
            value=round(beside, 2),
            goal=1.5,
            at_most=True,
        ),
        Check(
            what="copy rate of the largest tenant relative to COPY piped to COPY",
            value=round(ratio, 2),
            goal=0.5,
        ),
    ]
