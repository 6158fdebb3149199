"""What a move would be like, measured without moving anything (`cloister move --dry-run`)."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import LiteralString
from uuid import UUID

from psycopg import sql

from cell.tables import COMPARED_TABLES
from control_plane.move.cell_heads import Cell, read_head
from control_plane.move.obstacles import obstacles
from control_plane.move.plan import expected_pause_ms
from control_plane.move.register import FLUSHED, Register
from control_plane.wire import MoveRehearsal

SAMPLES = 9
"""Of each of the round trips that the pause consists of; their median counts."""

JOURNAL_BYTES: LiteralString = """
SELECT coalesce(sum(octet_length(body)), 0) FROM journal WHERE tenant_id = %s
"""


async def rehearse(
    source: Cell,
    target: Cell,
    register: Register,
    tenant_id: UUID,
    *,
    places: tuple[str, str, str],
    batch_ms_p99: float | None,
    max_pause_ms: int,
) -> MoveRehearsal:
    """`places` are the tenant's slug, its cell and the other one."""
    tenant, source_name, target_name = places
    found = await obstacles(source, target, tenant_id)
    rows, journal_bytes = await _amounts(source, tenant_id)
    read_s = await _median_s(partial(read_head, source, tenant_id))
    commits_s = [await _median_s(partial(cell.execute, FLUSHED)) for cell in (source, target)]
    commit_s = max(commits_s)
    catalog_s = await _median_s(register.measure)
    expected_ms = expected_pause_ms(read_s + commit_s, catalog_s) + (batch_ms_p99 or 0.0)
    refused = None
    if found:
        refused = "; ".join(found)
    elif expected_ms > max_pause_ms:
        refused = f"a pause of {expected_ms:.0f} ms is expected, {max_pause_ms} are allowed"
    return MoveRehearsal(
        tenant=tenant,
        source=source_name,
        target=target_name,
        rows=rows,
        journal_bytes=journal_bytes,
        batch_ms_p99=batch_ms_p99,
        read_ms=round(read_s * 1000, 2),
        commit_ms=round(commit_s * 1000, 2),
        catalog_ms=round(catalog_s * 1000, 2),
        expected_pause_ms=round(expected_ms, 1),
        max_pause_ms=max_pause_ms,
        refused=refused,
    )


async def _amounts(source: Cell, tenant_id: UUID) -> tuple[int, int]:
    """Rows of all tables, and the bytes of the journal's bodies."""
    rows = 0
    for table in COMPARED_TABLES:
        query = sql.SQL("SELECT count(*) FROM {} WHERE tenant_id = %s").format(
            sql.Identifier(table)
        )
        counted = await (await source.execute(query, (tenant_id,))).fetchone()
        rows += counted[0] if counted else 0
    summed = await (await source.execute(JOURNAL_BYTES, (tenant_id,))).fetchone()
    return rows, int(summed[0]) if summed else 0


async def _median_s(call: Callable[[], Awaitable[object]]) -> float:
    samples = []
    for _ in range(SAMPLES):
        began_s = time.perf_counter()
        await call()
        samples.append(time.perf_counter() - began_s)
        # What runs beside it is to be in some of the samples, and not in all.
        await asyncio.sleep(0.01)
    return statistics.median(samples)
