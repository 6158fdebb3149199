"""The engine's rate on a database that holds five million entries, beside that on a fresh one.

Both on one instance, whose buffers hold the indexes of either: an account's entries and idempotency
keys come in random order, and what is in no buffer costs a read, and a write of what gives way.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.database import SIZING, checkpoint, running_postgres
from benchmarks.engine import AS_IS, BATCH, FULL, QUICK, Result, Setting, engine_load, median_rate
from benchmarks.engine_database import EngineDatabases, check_books, make_template
from benchmarks.engine_run import EngineLoad, run_engine
from benchmarks.machine import examine_machine
from benchmarks.report import Cell, Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort, interleave
from cell.schema import ROLES
from infra.local.postgres import Postgres

TRANSACTIONS: Final = 2_500_000
"""Five million entries."""
TRANSACTIONS_QUICK: Final = 10_000
SHARED_BUFFERS: Final = "2GB"
WARMUP_S: Final = 5.0
"""By then every page has been written since the checkpoint before the run, which has it logged
whole: once in minutes, where checkpoints come by themselves."""
GROWN_MIN: Final = 0.9

Results = Mapping[str, Sequence[Result]]


def run_growth(progress: Progress, effort: Effort) -> Report:
    """Fill a database through the sequencer, then measure it beside fresh ones, interleaved."""
    machine = examine_machine()
    setting, count = (QUICK, TRANSACTIONS_QUICK) if effort.quick else (FULL, TRANSACTIONS)
    rounds = effort.times()
    sizing = replace(SIZING, shared_buffers=SHARED_BUFFERS)
    with (
        tempfile.TemporaryDirectory(prefix="cloister-bench-") as name,
        running_postgres("growth", Path(name), ROLES, slow_flush=False, sizing=sizing) as postgres,
    ):
        results = measure_growth(postgres, setting, count, rounds, progress)
    return Report(
        name="growth",
        quick=effort.quick,
        at=now_utc(),
        rounds=rounds,
        machine=machine,
        tables=[growth_table(results, count)],
        checks=[grown_check(results)],
        runs=[msgspec.to_builtins(result) for of_arm in results.values() for result in of_arm],
    )


def measure_growth(
    postgres: Postgres, setting: Setting, count: int, rounds: int, progress: Progress
) -> Results:
    """The rate on a database with many entries beside the rate on a fresh one, interleaved."""
    databases = make_template(postgres)
    databases.fresh("grown")
    progress(f"writing {2 * count:,} entries")
    load = growth_load(databases, "grown", setting)
    growing = run_engine(msgspec.structs.replace(load, transactions=count))
    acknowledged = growing.acknowledged

    def run_grown() -> Result:
        nonlocal acknowledged
        checkpoint(postgres.superuser_dsn("grown"))
        run = run_engine(load)
        acknowledged += run.acknowledged
        return Result(arm="grown", flush=AS_IS, rate=run.rate, engine=run)

    def run_fresh() -> Result:
        databases.fresh("fresh")
        checkpoint(postgres.superuser_dsn("fresh"))
        run = run_engine(growth_load(databases, "fresh", setting))
        return Result(arm="fresh", flush=AS_IS, rate=run.rate, engine=run)

    results = interleave({"fresh": run_fresh, "grown": run_grown}, rounds, progress)
    check_books(postgres.superuser_dsn("grown"), acknowledged)
    for name in ("grown", "fresh"):
        databases.drop(name)
    growth = Result(arm="growing", flush=AS_IS, rate=growing.rate, engine=growing)
    return {"growing": [growth], **results}


def growth_load(databases: EngineDatabases, name: str, setting: Setting) -> EngineLoad:
    load = engine_load(databases, name, setting, BATCH, "uniform")
    return msgspec.structs.replace(load, warmup_s=WARMUP_S)


def growth_table(results: Results, count: int) -> Table:
    rows: list[Sequence[Cell]] = []
    for name, label in (
        ("fresh", "fresh database"),
        ("growing", f"while writing {2 * count:,} entries"),
        ("grown", f"with {2 * count:,} entries"),
    ):
        runs = [result.engine for result in results[name] if result.engine is not None]
        memory = max(run.memory_mib for run in runs)
        rows.append((label, round(median_rate(results[name])), round(memory)))
    return Table(
        title=f"Batch {BATCH:,}, uniform, flush {AS_IS}, {SHARED_BUFFERS} of shared buffers",
        columns=("", "transactions/s", "most memory, MiB"),
        rows=rows,
    )


def grown_check(results: Results) -> Check:
    return Check(
        what="write rate with five million entries relative to a fresh database",
        value=median_rate(results["grown"]) / median_rate(results["fresh"]),
        goal=GROWN_MIN,
    )
