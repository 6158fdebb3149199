"""The durable queue: what was accepted and not yet applied, and the drainer that applies it.

The queue itself is the pending rows of `bulk_results`; here is what a cell's process knows of them.
Level-triggered: a survey finds the tenants that have pending rows and are owned here, after a start
as after a move; a request only makes the drainer look earlier. In flight is one batch at a time, in
shares across tenants, through the sequencer's fair queue like everybody's commands: a tenant that
queued a million rows delays other tenants no more than any tenant that writes.

What can go wrong with a row, and what then:
- a rule refuses it: applied as a failure, nothing is left to do
- the database refuses it: recorded as failed by a command of its own
- not applied (fenced, overloaded, stopping) or its outcome unknown: it is pending or settled; after
  a short pause its tenant is looked at once more, and if that is not owned here, by a later survey
"""

import asyncio
import contextlib
import logging
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import psycopg

from cell.batch import Applied, Replayed
from cell.errors import ApiError, NotApplied, OutcomeUnknown
from cell.ledger.commands import ApplyQueued, BulkError, Queueable, RefuseQueued
from cell.ledger.model import BulkResult, ResultStatus, TenantId
from cell.postgres import connection_string, one_line
from cell.rows import read_as_model
from cell.sequencer import Sequencer
from cell.waiting import wait_until_set
from cell.wire import Verdict

ROWS_PER_TENANT_MAX: Final = 100_000
"""Rows that may wait for one tenant; a request beyond is refused with 429."""

SURVEY_INTERVAL_S: Final = 1.0
"""How often the database is asked who has rows that wait: an index scan of as many steps."""

TENANTS_MAX: Final = 1000
"""Tenants with pending rows that one survey sees; the others are seen once these are drained."""

PAUSE_S: Final = 0.2
"""After a round in which a command was not applied: the cell is busy, or the tenant fenced."""

STATEMENT_MS_MAX: Final = 5000
BATCH_PER_TENANT_MIN: Final = 8
"""A share is never smaller: with very many tenants, some wait for the next round instead."""

BUCKETS_S: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

log = logging.getLogger("cell.durable_queue")


@dataclass(slots=True)
class QueueStatus:
    """What metrics see; counters since the start."""

    rows: dict[TenantId, int] = field(default_factory=dict)
    """Pending rows by tenant, as of the last survey and what is known to have changed since."""
    oldest_at_us: int | None = None
    """When the row was accepted that waits for longest, as of the last survey."""
    successful: int = 0
    failed: int = 0
    waits: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    """Rows by the time from acceptance to application, a count for each bucket."""
    waited_s: float = 0.0

    @property
    def depth(self) -> int:
        return sum(self.rows.values())

    @property
    def oldest_s(self) -> float:
        """Age of the row that waits for longest; 0 where none does."""
        if self.oldest_at_us is None or not self.rows:
            return 0.0
        return max(0.0, time.time() - self.oldest_at_us / 1e6)

    def change(self, tenant_id: TenantId, rows: int) -> None:
        left = self.rows.get(tenant_id, 0) + rows
        if left > 0:
            self.rows[tenant_id] = left
        else:
            self.rows.pop(tenant_id, None)

    def observe(self, tenant_id: TenantId, waited_s: float, *, is_success: bool) -> None:
        self.change(tenant_id, -1)
        if is_success:
            self.successful += 1
        else:
            self.failed += 1
        self.waits[bisect_left(BUCKETS_S, waited_s)] += 1
        self.waited_s += waited_s


class QueuedRow(msgspec.Struct, frozen=True):
    """A pending row, as the drainer reads it."""

    tenant_id: TenantId
    id: str
    request_id: str
    command: str
    created_at_us: int


_SURVEY: Final = """
WITH RECURSIVE waiting AS (
    (SELECT tenant_id, 1 AS n FROM bulk_results WHERE status = 'pending'
     ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT r.tenant_id FROM bulk_results r
            WHERE r.status = 'pending' AND r.tenant_id > w.tenant_id
            ORDER BY r.tenant_id LIMIT 1), w.n + 1
    FROM waiting w WHERE w.tenant_id IS NOT NULL AND w.n <= %(tenants_max)s
)
SELECT h.tenant_id,
    (SELECT count(*) FROM (SELECT FROM bulk_results r
        WHERE r.tenant_id = h.tenant_id AND r.status = 'pending' LIMIT %(rows_max)s) c),
    (SELECT r.created_at_us FROM bulk_results r
        WHERE r.tenant_id = h.tenant_id AND r.status = 'pending' ORDER BY r.id LIMIT 1)
FROM waiting w JOIN tenant_heads h ON h.tenant_id = w.tenant_id
WHERE h.state = 'owned'
"""
"""Steps from one tenant with pending rows to the next; those not owned here wait elsewhere."""

_NEXT_ROWS: Final = """
SELECT r.tenant_id, r.id, r.request_id, r.command, r.created_at_us
FROM unnest(%s::uuid[]) AS t (tenant_id)
JOIN tenant_heads h ON h.tenant_id = t.tenant_id AND h.state = 'owned'
CROSS JOIN LATERAL (
    SELECT * FROM bulk_results r WHERE r.tenant_id = t.tenant_id AND r.status = 'pending'
    ORDER BY r.id LIMIT %s) r
"""

Connection = psycopg.AsyncConnection[Any]


class DurableQueue:
    """Knows what waits, and applies it; one for each cell."""

    def __init__(
        self, writer_dsn: str, sequencer: Sequencer, *, batch_size: int, linger_s: float
    ) -> None:
        self.status = QueueStatus()
        self._dsn = connection_string(writer_dsn, "queue", statement_timeout=STATEMENT_MS_MAX)
        self._sequencer = sequencer
        self._batch_size = batch_size
        self._linger_s = linger_s
        self._due: dict[TenantId, None] = {}
        """Tenants that may have pending rows, in the order of their turns."""
        self._woken = asyncio.Event()
        self._surveyed_at_s = -SURVEY_INTERVAL_S
        self._decoder: msgspec.json.Decoder[Queueable] = msgspec.json.Decoder(Queueable)

    @contextlib.contextmanager
    def room(self, tenant_id: TenantId, rows: int) -> Iterator[None]:
        """Hold room for as many rows while they are queued; raises NotApplied where there is none.

        The bound is kept by what memory knows, which the next survey puts right.
        """
        if self.status.rows.get(tenant_id, 0) + rows > ROWS_PER_TENANT_MAX:
            message = f"{ROWS_PER_TENANT_MAX} rows of the tenant wait already; try again shortly"
            raise NotApplied(Verdict.OVERLOADED, message)
        self.status.change(tenant_id, rows)
        try:
            yield
        except BaseException:
            self.status.change(tenant_id, -rows)
            raise

    def wake(self, tenant_id: TenantId) -> None:
        """The tenant has queued something: look soon."""
        self._due[tenant_id] = None
        self._woken.set()

    async def drain(self) -> None:
        """Apply what is queued, now and from now on, until cancelled."""
        said = ""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True
                ) as connection:
                    read_as_model(connection)
                    while True:
                        await self._step(connection)
                        said = ""
            except psycopg.Error as error:
                # Tried again for as long as it takes, and said once.
                if str(error) != said:
                    said = str(error)
                    log.warning("the queue cannot be read", extra={"error": one_line(error)})
            except Exception:
                # A mistake of ours: the queue stands still, which is no reason for all to.
                log.exception("the queue stands still")
            await asyncio.sleep(PAUSE_S)

    async def _step(self, connection: Connection) -> None:
        await self._work_waits()
        if time.monotonic() - self._surveyed_at_s >= SURVEY_INTERVAL_S:
            await self._survey(connection)
        rows = await self._next_rows(connection)
        if rows and not await self._apply(rows):
            await asyncio.sleep(PAUSE_S)

    async def _work_waits(self) -> None:
        """Return when there is something to look for, or a survey is due."""
        if self._due and not self._woken.is_set():
            # A round has left some: no company is to be waited for.
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SURVEY_INTERVAL_S):
                await self._woken.wait()
            await self._linger()
        self._woken.clear()

    async def _linger(self) -> None:
        """Wait for company, at most as long as is set, unless a batch is there."""
        due_s = time.monotonic() + self._linger_s
        while self.status.depth < self._batch_size:
            left_s = due_s - time.monotonic()
            self._woken.clear()
            if left_s <= 0.0:
                return
            await wait_until_set(self._woken, left_s)

    async def _survey(self, connection: Connection) -> None:
        parameters = {"tenants_max": TENANTS_MAX, "rows_max": 2 * ROWS_PER_TENANT_MAX}
        found = await (await connection.execute(_SURVEY, parameters, prepare=True)).fetchall()
        self._surveyed_at_s = time.monotonic()
        self.status.rows = {tenant_id: rows for tenant_id, rows, _ in found}
        self.status.oldest_at_us = min((at_us for *_, at_us in found), default=None)
        self._due |= dict.fromkeys(tenant_id for tenant_id, *_ in found)

    async def _next_rows(self, connection: Connection) -> list[QueuedRow]:
        """The oldest rows of the tenants whose turn it is, at most a batch."""
        if not self._due:
            return []
        share = max(BATCH_PER_TENANT_MIN, self._batch_size // len(self._due))
        share = min(share, self._batch_size)
        tenants = list(self._due)[: self._batch_size // share]
        for tenant_id in tenants:
            # Before they are read: what is queued from here on makes it due again.
            del self._due[tenant_id]
        cursor = await connection.execute(_NEXT_ROWS, (tenants, share), prepare=True)
        rows = [QueuedRow(*row) for row in await cursor.fetchall()]
        counts: dict[TenantId, int] = {}
        for row in rows:
            counts[row.tenant_id] = counts.get(row.tenant_id, 0) + 1
        self._due |= {tenant_id: None for tenant_id, count in counts.items() if count == share}
        return rows

    async def _apply(self, rows: Sequence[QueuedRow]) -> bool:
        """Have the rows applied; False if any was not, so that there is no haste."""
        started: list[tuple[QueuedRow, asyncio.Future[Applied | Replayed]]] = []
        unsettled: dict[TenantId, None] = {}
        for row in rows:
            if row.tenant_id in unsettled:
                # Behind one of the same tenant that was refused: rows keep their order.
                continue
            inner = self._decoder.decode(row.command)
            command = ApplyQueued(id=row.id, request_id=row.request_id, inner=inner)
            try:
                started.append((row, self._sequencer.enqueue(row.tenant_id, command)))
            except NotApplied:
                # This tenant has no room, which says nothing of the others.
                unsettled[row.tenant_id] = None
        answers = (answer for _, answer in started)
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        for (row, _), outcome in zip(started, outcomes, strict=True):
            if not await self._note(row, outcome):
                unsettled[row.tenant_id] = None
        # A survey would find them again, but up to its whole interval later.
        self._due |= unsettled
        return not unsettled

    async def _note(self, row: QueuedRow, outcome: "Applied | Replayed | BaseException") -> bool:
        """Count the outcome; True if the row is settled."""
        if isinstance(outcome, Applied):
            self._observe(row, outcome)
            return True
        if isinstance(outcome, NotApplied | OutcomeUnknown):
            return False
        if not isinstance(outcome, ApiError):
            assert isinstance(outcome, BaseException)
            raise outcome
        # The rules would have made it a failure: this refusal is the database's.
        error = BulkError(code=outcome.code, message=outcome.message, parameter=outcome.parameter)
        refusal = RefuseQueued(id=row.id, request_id=row.request_id, error=error)
        try:
            self._observe(row, await self._sequencer.submit(row.tenant_id, refusal))
        except ApiError:
            return False
        return True

    def _observe(self, row: QueuedRow, outcome: "Applied | Replayed") -> None:
        assert isinstance(outcome, Applied), "only an idempotency key is replayed"
        at_us = outcome.record.at_us
        for changed in outcome.record.updated:
            # Settled before, by a command whose outcome was not known: counted nowhere.
            if isinstance(changed, BulkResult) and changed.updated_at_us == at_us:
                is_success = changed.status is ResultStatus.SUCCESSFUL
                waited_s = (at_us - row.created_at_us) / 1e6
                self.status.observe(row.tenant_id, waited_s, is_success=is_success)
