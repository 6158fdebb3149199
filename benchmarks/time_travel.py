"""Balances as of another time: what a read costs beside a current one, and what writes pay for it.

Reads: two accounts of a million entries over ten years, read as a cell reads them. One has lived
those years, its entries dated as they were written; the other was imported in one day. Writes: the
engine, uniform, on databases without the index of effective times and with it, and with every
transaction dated on some day of the past years.
"""

import asyncio
import random
import tempfile
import time
import uuid
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, LiteralString

import msgspec
import psycopg

from benchmarks.database import checkpoint, commit_ms, running_postgres
from benchmarks.engine_database import EngineDatabases, check_books, make_template
from benchmarks.engine_run import EngineLoad, EngineRun, run_engine
from benchmarks.machine import examine_machine
from benchmarks.percentiles import median
from benchmarks.report import Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort, interleave
from cell.as_of import AsOf, restricted_balances
from cell.ledger.history import DAY_US
from cell.ledger.model import TenantId
from cell.reads import Reader
from cell.schema import MIGRATIONS, ROLES
from infra.local.postgres import Postgres

ENTRIES: Final = 1_000_000
ENTRIES_QUICK: Final = 20_000
READS: Final = 300
READS_QUICK: Final = 50
SECONDS: Final = 3.0
SECONDS_QUICK: Final = 0.6
BATCH: Final = 1_000
END_US: Final = 1_760_000_000_000_000
SPAN_US: Final = 10 * 365 * DAY_US
SEED: Final = 20_260_101

READ_MAX: Final = 5.0
WRITE_MIN: Final = 0.85

_FILL: Final = """
INSERT INTO ledger_entries
SELECT %(tenant)s, gen_random_uuid(), gen_random_uuid(), %(account)s,
    CASE n %% 2 WHEN 0 THEN 'debit' ELSE 'credit' END::balance_direction, 'posted', 1, 'USD', 2,
    'debit', n, 0, 0, n / 2, (n + 1) / 2, false, '{}', at_us, written_us, written_us, NULL, NULL, 1
FROM (
    SELECT n, %(end)s - %(span)s + n * (%(span)s / %(count)s) AS at_us,
        CASE WHEN %(imported)s THEN %(end)s + n
        ELSE %(end)s - %(span)s + n * (%(span)s / %(count)s) END AS written_us
    FROM generate_series(1::bigint, %(count)s::bigint) AS n
) AS entries
"""
_BALANCES: Final = """
UPDATE ledger_account_balances SET lock_version = %(count)s, posted_debits = %(count)s / 2,
    posted_credits = (%(count)s + 1) / 2
WHERE tenant_id = %(tenant)s AND ledger_account_id = %(account)s
"""
_CURRENT: Final = """
SELECT posted_debits FROM ledger_account_balances b WHERE tenant_id = %s AND ledger_account_id = %s
"""


class ReadCost(msgspec.Struct, frozen=True, kw_only=True):
    """Medians, in microseconds as the reader waits for them."""

    account: str
    current_us: float
    as_of_time_us: float
    as_of_date_us: float
    as_of_version_us: float


def run_time(progress: Progress, effort: Effort) -> Report:
    """Measure reads on large accounts, then writes."""
    machine = examine_machine()
    rounds = effort.times()
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as name:
        directory = Path(name) / "pg"
        with running_postgres("time", directory, ROLES, slow_flush=False) as postgres:
            commit_ms(postgres.superuser_dsn())
            progress("making ledger accounts")
            databases = make_template(postgres)
            reads = measure_reads(postgres, databases, progress, effort.quick)
            seconds = SECONDS_QUICK if effort.quick else SECONDS
            arms = {arm: partial(measure_writes, databases, seconds, arm) for arm in WRITE_ARMS}
            writes = interleave(arms, rounds, progress)
    slowest = max(max(r.as_of_time_us, r.as_of_date_us) / r.current_us for r in reads)
    rates = {arm: median(run.rate for run in runs) for arm, runs in writes.items()}
    return Report(
        name="time",
        quick=effort.quick,
        at=now_utc(),
        rounds=rounds,
        machine=machine,
        tables=[read_table(reads, effort.quick), write_table(writes)],
        checks=[
            Check(
                what="as-of read relative to a current read",
                value=slowest,
                goal=READ_MAX,
                at_most=True,
            ),
            Check(
                what="write rate with time travel relative to without",
                value=rates[WITH] / rates[WITHOUT],
                goal=WRITE_MIN,
            ),
        ],
        runs=[msgspec.to_builtins(each) for each in chain(reads, *writes.values())],
    )


def measure_reads(
    postgres: Postgres, databases: EngineDatabases, progress: Progress, quick: bool
) -> list[ReadCost]:
    databases.fresh("reads")
    count = ENTRIES_QUICK if quick else ENTRIES
    costs = []
    for account, name in zip(databases.accounts, ("lived", "imported"), strict=False):
        progress(f"writing {count:,} entries: {name}")
        values = {
            "tenant": databases.tenant_id,
            "account": account,
            "end": END_US,
            "span": SPAN_US,
            "count": count,
            "imported": name == "imported",
        }
        with psycopg.connect(postgres.superuser_dsn("reads"), autocommit=True) as connection:
            connection.execute(_FILL, values)
            connection.execute(_BALANCES, values)
            connection.execute("TRUNCATE ledger_account_day_shifts")
            connection.execute(shifts_statement())
            connection.execute("VACUUM ANALYZE")
        progress(f"reading: {name}")
        reads = READS_QUICK if quick else READS
        dsn = postgres.dsn("cloister_reader", "reads")
        costs.append(asyncio.run(read(dsn, databases.tenant_id, account, name, count, reads)))
    databases.drop("reads")
    return costs


def shifts_statement() -> str:
    """How the migration derives the shifts of what is there."""
    insert = "INSERT INTO ledger_account_day_shifts"
    text = next(text for _, text in MIGRATIONS if insert in text)
    start = text.index(insert)
    return text[start : text.index(";", start)]


async def read(
    dsn: str, tenant_id: TenantId, account: str, name: str, count: int, reads: int
) -> ReadCost:
    """Each kind of read in turn, so that a slow moment hits all alike."""
    draw = random.Random(SEED)
    reader = Reader(dsn, pool_min=1, pool_max=1)
    await reader.open()
    times: dict[str, list[float]] = {}
    try:
        for _ in range(reads):
            at_us = END_US - draw.randrange(SPAN_US)
            kinds = {
                "current": None,
                "time": AsOf(before_us=at_us),
                "date": AsOf(before_us=at_us - at_us % DAY_US),
                "version": AsOf(lock_version=draw.randrange(count)),
            }
            for kind, as_of in kinds.items():
                statement: LiteralString = _CURRENT
                parameters: list[object] = [tenant_id, account]
                if as_of is not None:
                    joined, restricted = restricted_balances(as_of)
                    statement = f"""SELECT p.posted_debits FROM ledger_account_balances b {joined}
                        WHERE b.tenant_id = %s AND b.ledger_account_id = %s"""
                    parameters = [*restricted, *parameters]
                started_s = time.perf_counter()
                await reader.fetch(tenant_id, statement, parameters)
                times.setdefault(kind, []).append((time.perf_counter() - started_s) * 1e6)
    finally:
        await reader.close()
    return ReadCost(
        account=name,
        current_us=median(times["current"]),
        as_of_time_us=median(times["time"]),
        as_of_date_us=median(times["date"]),
        as_of_version_us=median(times["version"]),
    )


WITHOUT: Final = "without the index of effective times"
WITH: Final = "with it, dated as written"
BACKDATED: Final = "with it, dated in the past"
WRITE_ARMS: Final = (WITHOUT, WITH, BACKDATED)


def measure_writes(databases: EngineDatabases, seconds: float, arm: str) -> EngineRun:
    name = f"writes_{uuid.uuid4().hex[:8]}"
    databases.fresh(name)
    superuser_dsn = databases.postgres.superuser_dsn(name)
    if arm == WITHOUT:
        with psycopg.connect(superuser_dsn, autocommit=True) as connection:
            connection.execute("DROP INDEX ledger_entries_effective")
    checkpoint(superuser_dsn)
    run = run_engine(
        EngineLoad(
            writer_dsn=databases.writer_dsn(name),
            tenant_id=databases.tenant_id,
            accounts=databases.accounts,
            hot=False,
            batch_size=BATCH,
            seconds=seconds,
            warmup_s=0.3,
            is_backdated=arm == BACKDATED,
        )
    )
    check_books(superuser_dsn, run.acknowledged)
    databases.drop(name)
    return run


def read_table(reads: Sequence[ReadCost], quick: bool) -> Table:
    count = ENTRIES_QUICK if quick else ENTRIES
    return Table(
        title=f"Microseconds per read, account of {count:,} entries over ten years",
        columns=("account", "current", "as of a time", "as of a date", "as of a version"),
        rows=[
            (
                cost.account,
                round(cost.current_us),
                round(cost.as_of_time_us),
                round(cost.as_of_date_us),
                round(cost.as_of_version_us),
            )
            for cost in reads
        ],
    )


def write_table(writes: dict[str, list[EngineRun]]) -> Table:
    base = median(run.rate for run in writes[WITHOUT])
    rows = []
    for arm, runs in writes.items():
        rate = median(run.rate for run in runs)
        python_us, backend_us = (
            round(median(getattr(run, name) for run in runs), 1)
            for name in ("python_us", "backend_us")
        )
        rows.append((arm, round(rate), round(rate / base, 2), python_us, backend_us))
    return Table(
        title=f"Writes, batch {BATCH}, uniform",
        columns=("", "transactions/s", "to without", "Python µs", "Postgres µs"),
        rows=rows,
    )
