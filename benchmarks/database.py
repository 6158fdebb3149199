"""An embedded Postgres for a benchmark, as is or with every flush one millisecond slower.

Both kinds run on the same binaries with the same settings. `commit_ms` shows what a commit costs
on it: the check that the shim does what it says.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from benchmarks.errors import Wrong
from benchmarks.flush_shim import FLUSH_DELAY_US, compile_flush_shim, flush_delay_environment
from benchmarks.percentiles import median
from benchmarks.report import OUT
from control_plane.topology import PostgresSpec
from infra.local.binaries import find_binaries
from infra.local.postgres import Postgres

SIZING: Final = PostgresSpec(
    shared_buffers="512MB",
    max_connections=60,
    # Checkpoints come when we ask for them, before each run, so that none falls into one run only.
    parameters={"max_wal_size": "4GB", "checkpoint_timeout": "30min"},
)
COMMITS: Final = 200
COMMIT_ADDED_MS_MAX: Final = 2.0
"""A delay that adds more than this (or less than itself) is not the one we ask for."""


@contextmanager
def running_postgres(
    name: str,
    directory: Path,
    roles: tuple[str, ...] = (),
    *,
    slow_flush: bool,
    sizing: PostgresSpec = SIZING,
) -> Iterator[Postgres]:
    """A started instance below `directory`, stopped at the end; call from the main thread.

    Raises Skipped when `slow_flush` is asked for where no shim can be compiled.
    """
    shim = flush_delay_environment(compile_flush_shim(OUT)) if slow_flush else {}
    postgres = Postgres(
        name=name, directory=directory, binaries=find_binaries(), roles=roles, sizing=sizing
    )
    postgres.initialize()
    with environment(shim):
        postgres.start()
    try:
        require_fdatasync(postgres.superuser_dsn())
        yield postgres
    finally:
        postgres.stop()


@contextmanager
def environment(added: Mapping[str, str]) -> Iterator[None]:
    """Children started inside inherit the added variables; this process itself is not changed."""
    before = {key: os.environ.get(key) for key in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def require_fdatasync(dsn: str) -> None:
    """Commits must flush by calls that the shim sees, and must flush at all."""
    for setting, wanted in (
        ("wal_sync_method", "fdatasync"),
        ("fsync", "on"),
        ("synchronous_commit", "on"),
    ):
        with psycopg.connect(dsn, autocommit=True) as connection:
            row = connection.execute("SELECT current_setting(%s)", (setting,)).fetchone()
        if row is None or row[0] != wanted:
            raise Wrong(f"{setting} must be {wanted} for these figures, it is {row}")


def commit_ms(dsn: str) -> float:
    """Median time of one client's commit of one row."""
    times: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS commits (id bigserial PRIMARY KEY)")
        for _ in range(COMMITS):
            started = time.perf_counter()
            connection.execute("INSERT INTO commits DEFAULT VALUES", prepare=True)
            times.append(time.perf_counter() - started)
        connection.execute("DROP TABLE commits")
    return median(times) * 1e3


def require_delay(plain_ms: float, slow_ms: float) -> None:
    """Raises Wrong unless the slower flush adds about what it says to a commit."""
    added_ms = slow_ms - plain_ms
    if not FLUSH_DELAY_US / 1_000 <= added_ms <= COMMIT_ADDED_MS_MAX:
        raise Wrong(f"a commit takes {plain_ms:.2f} ms, with the slower flush {slow_ms:.2f} ms")


def checkpoint(superuser_dsn: str) -> None:
    """Before each run: every run then pays for its own full-page images, and none for others'."""
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
