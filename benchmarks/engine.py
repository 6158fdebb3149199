"""The sequencer without HTTP, beside COPY of the very same rows and the usual solution.

Each round runs, on one Postgres, the usual solution (uniform, hot) and then, for each batch size,
the engine (uniform, hot) on a fresh database, its books checked, and COPY of what it wrote. All of
it twice: with flushes as they are, and one millisecond slower.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import psycopg

from benchmarks.copy_yardstick import run_copy
from benchmarks.database import checkpoint, commit_ms, require_delay, running_postgres
from benchmarks.engine_database import EngineDatabases, check_books, make_template
from benchmarks.engine_run import TOUCHING, EngineLoad, EngineRun, run_engine
from benchmarks.errors import Skipped
from benchmarks.flush_shim import compile_flush_shim
from benchmarks.machine import examine_machine
from benchmarks.percentiles import median
from benchmarks.report import OUT, Cell, Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort, interleave
from benchmarks.usual import run_usual
from cell.schema import ROLES
from infra.local.postgres import Postgres

BATCHES: Final = (1, 10, 100, 1_000, 2_000)
BATCH: Final = 1_000
"""The batch size of the goals."""
SECONDS: Final = 3.0
SECONDS_QUICK: Final = 0.6
WARMUP_S: Final = 0.5
WARMUP_S_QUICK: Final = 0.3
MIXES: Final = ("uniform", "hot")

TO_COPY_MIN: Final = 0.5
HOT_MIN: Final = 0.95
SLOW_HOT_TO_USUAL_MIN: Final = 30.0

AS_IS: Final = "as is"
SLOW: Final = "+1 ms"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One arm of one round."""

    arm: str
    flush: str
    rate: float
    engine: EngineRun | None = None
    copy_rate: float | None = None
    """COPY of the rows this very run wrote."""


Results = Mapping[str, Sequence[Result]]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how often."""

    seconds: float
    warmup_s: float


FULL: Final = Setting(seconds=SECONDS, warmup_s=WARMUP_S)
QUICK: Final = Setting(seconds=SECONDS_QUICK, warmup_s=WARMUP_S_QUICK)


def run_engine_benchmark(progress: Progress, effort: Effort) -> Report:
    """Measure with flushes as they are, and with slower ones."""
    machine = examine_machine()
    setting = QUICK if effort.quick else FULL
    rounds = effort.times()
    skipped: list[str] = []
    slow: Results | None = None
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as name:
        directory = Path(name)
        with running_postgres("engine", directory / "pg", ROLES, slow_flush=False) as postgres:
            commit = commit_ms(postgres.superuser_dsn())
            as_is = measure_all(postgres, directory, AS_IS, setting, rounds, progress)
        try:
            compile_flush_shim(OUT)
            with running_postgres("engine", directory / "pg", ROLES, slow_flush=True) as postgres:
                slow_commit = commit_ms(postgres.superuser_dsn())
                require_delay(commit, slow_commit)
                slow = measure_all(postgres, directory, SLOW, setting, rounds, progress)
        except Skipped as reason:
            skipped.append(str(reason))
    tables = [rate_table(as_is, AS_IS, commit)]
    if slow is not None:
        tables.append(rate_table(slow, SLOW, slow_commit))
    tables.append(cost_table(as_is))
    every = [*as_is.values(), *(slow or {}).values()]
    return Report(
        name="engine",
        quick=effort.quick,
        at=now_utc(),
        rounds=rounds,
        machine=machine,
        tables=tables,
        checks=[*as_is_checks(as_is), *slow_checks(slow)],
        skipped=skipped,
        runs=[msgspec.to_builtins(result) for results in every for result in results],
    )


def measure_all(
    postgres: Postgres,
    directory: Path,
    flush: str,
    setting: Setting,
    rounds: int,
    progress: Progress,
) -> Results:
    """Every arm on one instance, interleaved."""
    progress(f"flush {flush}: making ledger accounts")
    databases = make_template(postgres)
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS usual WITH (FORCE)")
        connection.execute("CREATE DATABASE usual")
    arms: dict[str, Callable[[], Result]] = {}
    for mix in MIXES:
        arms[f"usual {mix}"] = partial(measure_usual, postgres, directory, flush, setting, mix)
    for batch in BATCHES:
        for mix in MIXES:
            arms[arm_name(batch, mix)] = partial(
                measure_engine, databases, flush, setting, batch, mix
            )
    return interleave(arms, rounds, lambda text: progress(f"flush {flush}, {text}"))


def arm_name(batch: int, mix: str) -> str:
    return f"engine {batch} {mix}"


def measure_usual(
    postgres: Postgres, directory: Path, flush: str, setting: Setting, mix: str
) -> Result:
    checkpoint(postgres.superuser_dsn())
    dsn = postgres.superuser_dsn("usual")
    rate = run_usual(dsn, directory, setting.seconds, hot=mix == "hot")
    return Result(arm=f"usual {mix}", flush=flush, rate=rate)


def measure_engine(
    databases: EngineDatabases, flush: str, setting: Setting, batch: int, mix: str
) -> Result:
    """The engine on a fresh database, then COPY of what it wrote."""
    name = "engine"
    databases.fresh(name)
    superuser_dsn = databases.postgres.superuser_dsn(name)
    checkpoint(superuser_dsn)
    run = run_engine(engine_load(databases, name, setting, batch, mix))
    check_books(superuser_dsn, run.acknowledged)
    copy_rate = run_copy(superuser_dsn, TOUCHING)
    databases.drop(name)
    arm = arm_name(batch, mix)
    return Result(arm=arm, flush=flush, rate=run.rate, engine=run, copy_rate=copy_rate)


def engine_load(
    databases: EngineDatabases, name: str, setting: Setting, batch: int, mix: str
) -> EngineLoad:
    return EngineLoad(
        writer_dsn=databases.writer_dsn(name),
        tenant_id=databases.tenant_id,
        accounts=databases.accounts,
        hot=mix == "hot",
        batch_size=batch,
        seconds=setting.seconds,
        warmup_s=setting.warmup_s,
    )


def median_rate(results: Sequence[Result]) -> float:
    return median(result.rate for result in results)


def median_copy_rate(results: Sequence[Result]) -> float:
    return median(result.copy_rate or 0.0 for result in results)


def rate_table(results: Results, flush: str, commit: float) -> Table:
    rows: list[Sequence[Cell]] = []
    for mix in MIXES:
        rate = median_rate(results[f"usual {mix}"])
        rows.append((f"usual solution, {mix}", 1, round(rate), None, 1.0, None))
    for batch in BATCHES:
        for mix in MIXES:
            of_arm = results[arm_name(batch, mix)]
            rate, copied = median_rate(of_arm), median_copy_rate(of_arm)
            usual = median_rate(results[f"usual {mix}"])
            to_uniform = rate / median_rate(results[arm_name(batch, "uniform")])
            ratios = (round(rate / copied, 2), round(rate / usual, 1))
            hot = round(to_uniform, 2) if mix == "hot" else None
            rows.append((f"engine, {mix}", batch, round(rate), *ratios, hot))
    return Table(
        title=f"Transactions per second, flush {flush} (one commit: {commit:.2f} ms)",
        columns=("", "batch", "transactions/s", "to COPY", "to usual", "hot to uniform"),
        rows=rows,
    )


def cost_table(results: Results) -> Table:
    """Where the time goes: processor time per transaction on both sides."""
    rows: list[Sequence[Cell]] = []
    for batch in BATCHES:
        of_arm = results[arm_name(batch, "uniform")]
        runs = [result.engine for result in of_arm if result.engine is not None]
        copied = median_copy_rate(of_arm)
        rows.append(
            (
                batch,
                round(median(run.batch_mean for run in runs)),
                round(median(run.python_us for run in runs), 1),
                round(median(run.backend_us for run in runs), 1),
                round(1e6 / median_rate(of_arm), 1),
                round(1e6 / copied, 1),
            )
        )
    return Table(
        title=f"Microseconds per transaction, uniform, flush {AS_IS}",
        columns=("batch", "mean batch", "Python", "Postgres backend", "engine", "COPY"),
        rows=rows,
        notes=("Python and backend are processor time, engine and COPY elapsed time.",),
    )


def as_is_checks(results: Results) -> list[Check]:
    uniform, hot = results[arm_name(BATCH, "uniform")], results[arm_name(BATCH, "hot")]
    return [
        Check(
            what=f"engine relative to COPY, batch {BATCH}, uniform",
            value=median_rate(uniform) / median_copy_rate(uniform),
            goal=TO_COPY_MIN,
        ),
        Check(
            what=f"engine hot relative to uniform, batch {BATCH}",
            value=median_rate(hot) / median_rate(uniform),
            goal=HOT_MIN,
        ),
    ]


def slow_checks(results: Results | None) -> list[Check]:
    if results is None:
        return []
    value = median_rate(results[arm_name(BATCH, "hot")]) / median_rate(results["usual hot"])
    what = f"engine hot relative to the usual solution's hot, flush {SLOW}, batch {BATCH}"
    return [Check(what=what, value=value, goal=SLOW_HOT_TO_USUAL_MIN)]
