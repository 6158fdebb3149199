"""Verifies one tenant in its cell's database: one snapshot, two paths, every difference named.

Reads only, on one REPEATABLE READ snapshot, so it is right while traffic goes on, and takes no lock
that a writer would wait for. What it does hold back is vacuum, for as long as it runs; that and the
deadline bound it. Runs in the caller's thread: decoding a journal is work for the processor.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import psycopg

from cell.tables import ROW_TABLES
from control_plane.errors import CellUnavailable
from control_plane.verify import checks, history_checks
from control_plane.verify.errors import VerificationStopped
from control_plane.verify.journal_reading import Head, JournalReading, create_image_tables
from control_plane.verify.report import (
    VERIFICATION_S_MAX,
    Findings,
    OnProgress,
    Progress,
    VerificationReport,
)

CONNECT_S_MAX: Final = 10
LOCK_WAIT_MS_MAX: Final = 5_000

Connection = psycopg.Connection[Any]
Check = Callable[[Connection, str, Findings], None]

CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("balances", checks.compare_balances),
    ("lock versions", checks.compare_lock_versions),
    ("resulting balances", checks.compare_resulting_balances),
    ("ledger sums", checks.compare_ledger_sums),
    ("transaction sums", checks.compare_transaction_sums),
    ("belonging", checks.compare_belonging),
    ("day shifts", history_checks.compare_day_shifts),
    ("bare versions", history_checks.compare_bare_versions),
)
"""Those that need no journal."""


class Verification:
    """One verification; `run` it in a thread, `stop` it from another."""

    def __init__(
        self,
        auditor_dsn: str,
        *,
        tenant_id: str,
        tenant: str,
        cell: str,
        on_progress: OnProgress = lambda progress: None,
        seconds_max: float = VERIFICATION_S_MAX,
    ) -> None:
        self._dsn = auditor_dsn
        self._tenant_id = tenant_id
        self._tenant = tenant
        self._cell = cell
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._deadline = self._started + seconds_max
        self._stopped = threading.Event()
        self._connection: Connection | None = None
        self._findings = Findings()

    def stop(self) -> None:
        """End it soon, from any thread; `run` then raises VerificationStopped."""
        self._stopped.set()
        connection = self._connection
        if connection is not None:
            with suppress(psycopg.Error):  # it may just have ended by itself
                connection.cancel_safe(timeout=1)

    def run(self) -> VerificationReport:
        """The report. Raises CellUnavailable if the cell's database cannot be read to the end, or
        VerificationStopped."""
        try:
            with psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=CONNECT_S_MAX
            ) as connection:
                self._connection = connection
                try:
                    return self._run(connection)
                finally:
                    self._connection = None
        except psycopg.Error as exc:
            self._require_time(exc)
            raise CellUnavailable(
                f"the database of {self._cell} could not be verified: {exc}"
            ) from exc

    def _run(self, connection: Connection) -> VerificationReport:
        milliseconds = max(1, int((self._deadline - time.monotonic()) * 1000))
        connection.execute(
            "SELECT set_config('statement_timeout', %s, false)", (str(milliseconds),)
        )
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (str(LOCK_WAIT_MS_MAX),))
        connection.execute("SET work_mem = '64MB'")
        connection.execute("SET jit = off")
        # One processor is enough: the others serve tenants meanwhile.
        connection.execute("SET max_parallel_workers_per_gather = 0")
        # Without statistics yet, a fresh table looks tiny, and a nested loop over it takes hours.
        connection.execute("SET enable_nestloop = off")
        create_image_tables(connection)
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # The first statement takes the snapshot: head, tables and journal are of one moment.
        head = _read_head(connection, self._tenant_id)
        if head is None:
            self._findings.note("head", f"{self._cell} holds no such tenant")
            return self._report(connection, 0, 0)
        reading = JournalReading(
            connection, self._tenant_id, head, self._findings, self._segments_read
        )
        reading.read()
        self._compare(connection, reading.is_complete)
        return self._report(connection, reading.segments, head.last_seq)

    def _compare(self, connection: Connection, journal_is_complete: bool) -> None:
        for name, check in CHECKS:
            self._step(Progress(name))
            check(connection, self._tenant_id, self._findings)
        if not journal_is_complete:
            message = "not every segment could be read, so rows were not compared with the journal"
            self._findings.note("journal_images", message)
            return
        checks.analyze_images(connection)
        for table in ROW_TABLES:
            self._step(Progress(f"journal of {table.name}"))
            checks.compare_images(connection, self._tenant_id, table, self._findings)
        self._step(Progress("idempotency keys"))
        checks.compare_idempotency_keys(connection, self._tenant_id, self._findings)

    def _segments_read(self, segments: int, seq: int) -> None:
        self._step(Progress("journal", segments))

    def _step(self, progress: Progress) -> None:
        self._require_time(None)
        self._on_progress(progress)

    def _require_time(self, cause: Exception | None) -> None:
        if self._stopped.is_set():
            raise VerificationStopped(f"the verification of {self._tenant} was stopped") from cause
        if time.monotonic() >= self._deadline:
            seconds = time.monotonic() - self._started
            raise VerificationStopped(
                f"the verification of {self._tenant} was not done after {seconds:.0f} s"
            ) from cause

    def _report(self, connection: Connection, segments: int, last_seq: int) -> VerificationReport:
        accounts, entries, transactions = _count(connection, self._tenant_id)
        differences = self._findings.differences()
        return VerificationReport(
            tenant=self._tenant,
            cell=self._cell,
            ok=not differences,
            accounts=accounts,
            entries=entries,
            transactions=transactions,
            segments=segments,
            last_seq=last_seq,
            differences=differences,
            seconds=round(time.monotonic() - self._started, 3),
        )


_HEAD: Final = (
    "SELECT epoch, last_seq, last_hash, last_at_us FROM tenant_heads WHERE tenant_id = %s"
)


def _read_head(connection: Connection, tenant_id: str) -> Head | None:
    row = connection.execute(_HEAD, (tenant_id,)).fetchone()
    return Head(*row) if row else None


_COUNT: Final = """
SELECT (SELECT count(*) FROM ledger_accounts WHERE tenant_id = %(tenant)s),
    (SELECT count(*) FROM ledger_entries WHERE tenant_id = %(tenant)s),
    (SELECT count(*) FROM ledger_transactions WHERE tenant_id = %(tenant)s)
"""


def _count(connection: Connection, tenant_id: str) -> tuple[int, int, int]:
    row = connection.execute(_COUNT, {"tenant": tenant_id}).fetchone()
    assert row is not None, "an aggregate has one row"
    return row[0], row[1], row[2]
