"""The projector: follows every tenant's journal and keeps the index of events behind it.

Fed with the records that the sequencer has just committed, it writes their index entries in batches
on a connection of its own, the watermark of each tenant in the same database transaction. What it
was not fed (before its start, or because its memory was full) it reads from the journal. It is no
sequencer: its role may write the index only. A second projector, of a process that should be dead,
writes the same rows, which changes nothing.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from cell.events import IndexEntry, index_entries
from cell.journal import Record, decode_body
from cell.ledger.model import TenantId
from cell.postgres import connection_string, one_line
from cell.rows import read_as_model
from cell.state import GenerationCache
from cell.waiting import wait_until_set

INTERVAL_S: Final = 0.1
"""Records are gathered so long: a hundred batches of the sequencer then share one write."""

FED_RECORDS_MAX: Final = 20_000
"""Records held in memory; what comes on top is read from the journal again."""

WATERMARKS_MAX: Final = 50_000
SEGMENTS_PER_STEP: Final = 32
"""Segments of one tenant read at once when catching up; then others have their turn."""

CATCH_UP_PAUSE_S: Final = 0.02
"""Between two steps: the sequencer's commands come first."""

RECORDS_PER_TURN: Final = 64
"""Records looked at before other tasks get the processor: about a tenth of a millisecond."""

BEHIND_MAX: Final = 10_000
"""Tenants found behind at the start; more are found when they are written to or asked for."""

RETRY_PAUSE_S: Final = 0.5
STATEMENT_TIMEOUT_MS: Final = 20_000

log = logging.getLogger("cell.projector")


class FedSegment(NamedTuple):
    """What one batch applied for one tenant."""

    tenant_id: TenantId
    records: Sequence[Record]


@dataclass(slots=True)
class _Progress:
    """Index entries not written yet, and how far each tenant will be with them."""

    entries: list[tuple[TenantId, IndexEntry]]
    watermarks: dict[TenantId, int]


Projected = Callable[[Iterable[TenantId]], None]


class Projector:
    """Keeps the index of events; `run` in a task of its own."""

    def __init__(self, writer_dsn: str, on_projected: Projected = lambda _: None) -> None:
        self._dsn = connection_string(
            writer_dsn,
            "projector",
            statement_timeout=STATEMENT_TIMEOUT_MS,
            # A commit that a crash takes back is projected again: nobody waits for the disk.
            synchronous_commit="off",
        )
        self._on_projected = on_projected
        self._fed: deque[FedSegment] = deque()
        self._fed_records = 0
        self._behind: dict[TenantId, None] = {}
        """Tenants whose journal has to be read, in the order of their turns."""
        self._watermarks: GenerationCache[TenantId, int] = GenerationCache(WATERMARKS_MAX)
        self._waiting: dict[TenantId, list[tuple[int, asyncio.Future[None]]]] = {}
        self._work = asyncio.Event()
        self._haste = asyncio.Event()

    def feed(self, tenant_id: TenantId, records: Sequence[Record]) -> None:
        """Records that were just committed, in order; costs the caller next to nothing."""
        if self._fed_records + len(records) > FED_RECORDS_MAX:
            self._behind[tenant_id] = None
        else:
            self._fed.append(FedSegment(tenant_id, records))
            self._fed_records += len(records)
        self._work.set()

    async def reach(self, tenant_id: TenantId, seq: int, wait_s: float) -> bool:
        """Wait until the tenant's journal is indexed up to `seq`; False if it was not in time."""
        if (self._watermarks.get(tenant_id) or 0) >= seq:
            return True
        reached = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant_id, []).append((seq, reached))
        self._work.set()
        self._haste.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await reached
                return True
        return False

    def look_at(self, tenant_id: TenantId) -> None:
        """The tenant may have moved here: read how far its index is, and its journal beyond."""
        self._watermarks.drop(tenant_id)
        self._behind[tenant_id] = None
        self._work.set()

    async def run(self) -> None:
        """Project until cancelled; whatever fails is tried again."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True
                ) as connection:
                    await self._follow(connection)
            except psycopg.Error as error:
                log.warning("projecting fails", extra={"error": one_line(error)})
            except Exception:
                log.exception("projecting fails")
            # What the database took back, if it crashed, is not known: ask it again.
            self._watermarks.clear()
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _follow(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("SET ROLE cloister_projector")
        read_as_model(connection)
        for (tenant_id,) in await _fetch(connection, _BEHIND, (BEHIND_MAX,)):
            self._behind[tenant_id] = None
        while True:
            self._work.clear()
            self._haste.clear()
            await self._take_turn(connection)
            self._forget_waiters_gone()
            if not self._fed and not self._behind:
                await self._work.wait()
            # A request that waits for its events cuts the pause short.
            await wait_until_set(self._haste, CATCH_UP_PAUSE_S if self._behind else INTERVAL_S)

    async def _take_turn(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Project what was fed, then one step of one tenant that is behind."""
        progress = await self._project_fed(connection)
        await self._write(connection, progress)
        for tenant_id, waiters in self._waiting.items():
            if any(seq > (self._watermarks.get(tenant_id) or 0) for seq, _ in waiters):
                self._behind[tenant_id] = None
        if self._behind:
            tenant_id = next(iter(self._behind))
            del self._behind[tenant_id]
            try:
                if not await self._catch_up(connection, tenant_id):
                    # Others have their turn first.
                    self._behind[tenant_id] = None
            except (ValueError, AssertionError):
                # Its journal cannot be read; it is tried again when somebody asks, and the other
                # tenants go on.
                log.exception("a journal cannot be projected", extra={"tenant": tenant_id})

    async def _project_fed(self, connection: psycopg.AsyncConnection[Any]) -> _Progress:
        fed, self._fed = list(self._fed), deque()
        self._fed_records = 0
        await self._know_watermarks(connection, {segment.tenant_id for segment in fed})
        progress = _Progress([], {})
        turn = 0
        for tenant_id, records in fed:
            reached = progress.watermarks.get(tenant_id) or self._watermarks.get(tenant_id) or 0
            first_seq, last_seq = records[0].seq, records[-1].seq
            if tenant_id in self._behind or first_seq > reached + 1:
                self._behind[tenant_id] = None
            elif last_seq > reached:
                progress.entries += [(tenant_id, entry) for entry in index_entries(records)]
                progress.watermarks[tenant_id] = last_seq
                turn += len(records)
                if turn >= RECORDS_PER_TURN:
                    turn = 0
                    await asyncio.sleep(0)
        return progress

    async def _know_watermarks(
        self, connection: psycopg.AsyncConnection[Any], tenant_ids: set[TenantId]
    ) -> None:
        unknown = [each for each in tenant_ids if self._watermarks.get(each) is None]
        if unknown:
            found = dict(await _fetch(connection, _WATERMARKS, (unknown,)))
            for tenant_id in unknown:
                self._note(tenant_id, found.get(tenant_id, 0))

    async def _catch_up(
        self, connection: psycopg.AsyncConnection[Any], tenant_id: TenantId
    ) -> bool:
        """Project some segments after the tenant's watermark; True if those were the last."""
        await self._know_watermarks(connection, {tenant_id})
        reached = self._watermarks.get(tenant_id) or 0
        found = await _fetch(connection, _SEGMENTS, (tenant_id, reached, SEGMENTS_PER_STEP))
        progress = _Progress([], {})
        for (body,) in found:
            records = decode_body(bytes(body)).records
            assert records[0].seq == reached + 1, "the journal is dense"
            reached = records[-1].seq
            progress.entries += [(tenant_id, entry) for entry in index_entries(records)]
            progress.watermarks[tenant_id] = reached
            await asyncio.sleep(0)
        await self._write(connection, progress)
        return len(found) < SEGMENTS_PER_STEP

    async def _write(self, connection: psycopg.AsyncConnection[Any], progress: _Progress) -> None:
        if not progress.watermarks:
            return
        entries, watermarks = progress.entries, progress.watermarks
        await connection.execute(
            _WRITE,
            (
                [tenant_id for tenant_id, _ in entries],
                [entry.topic for _, entry in entries],
                [entry.at_us for _, entry in entries],
                [entry.seq for _, entry in entries],
                list(watermarks.keys()),
                list(watermarks.values()),
            ),
            prepare=True,
        )
        for tenant_id, seq in watermarks.items():
            self._note(tenant_id, seq)
        self._on_projected(watermarks)

    def _note(self, tenant_id: TenantId, seq: int) -> None:
        """The index holds the tenant's journal up to `seq`, whoever wrote it."""
        self._watermarks.put(tenant_id, seq)
        for wanted, reached in self._waiting.get(tenant_id, ()):
            if wanted <= seq and not reached.done():
                reached.set_result(None)

    def _forget_waiters_gone(self) -> None:
        """Those who were told, and those who gave up."""
        for tenant_id in list(self._waiting):
            left = [each for each in self._waiting[tenant_id] if not each[1].done()]
            if left:
                self._waiting[tenant_id] = left
            else:
                del self._waiting[tenant_id]


async def _fetch(
    connection: psycopg.AsyncConnection[Any],
    statement: LiteralString,
    parameters: Sequence[object],
) -> list[tuple[Any, ...]]:
    return await (await connection.execute(statement, parameters, prepare=True)).fetchall()


_BEHIND: Final = """
SELECT h.tenant_id FROM tenant_heads h LEFT JOIN event_watermarks w USING (tenant_id)
WHERE h.state = 'owned' AND h.last_seq > coalesce(w.seq, 0) LIMIT %s
"""
_WATERMARKS: Final = "SELECT tenant_id, seq FROM event_watermarks WHERE tenant_id = ANY(%s::uuid[])"
# Only of tenants that are here: where one is being imported, its mover writes the index.
_SEGMENTS: Final = """
SELECT j.body FROM journal j JOIN tenant_heads h USING (tenant_id)
WHERE j.tenant_id = %s AND j.first_seq > %s AND h.state IN ('owned', 'fenced')
ORDER BY j.first_seq LIMIT %s
"""
# A watermark only grows: it says that everything up to it is there, whoever wrote it.
_WRITE: Final = """
WITH entries (tenant_id, topic, at_us, seq) AS (
    SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::bigint[], %s::bigint[])
), reached (tenant_id, seq) AS (
    SELECT * FROM unnest(%s::uuid[], %s::bigint[])
), here AS (
    SELECT h.tenant_id FROM tenant_heads h JOIN reached r USING (tenant_id)
    WHERE h.state IN ('owned', 'fenced')
), written AS (
    INSERT INTO event_index (tenant_id, topic, at_us, seq)
    SELECT e.tenant_id, e.topic, e.at_us, e.seq FROM entries e JOIN here USING (tenant_id)
    ON CONFLICT DO NOTHING
)
INSERT INTO event_watermarks AS w (tenant_id, seq)
SELECT r.tenant_id, r.seq FROM reached r JOIN here USING (tenant_id)
ON CONFLICT (tenant_id) DO UPDATE SET seq = greatest(w.seq, excluded.seq)
"""
