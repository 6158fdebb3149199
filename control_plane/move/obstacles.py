"""What forbids a move before it has begun: databases of two shapes, or one not to be relied on."""

import time
from typing import LiteralString
from uuid import UUID

from control_plane.move.cell_heads import Cell
from control_plane.move.verify import shape_differences
from control_plane.tuning import INDEX_PREFIX

SKEW_S_MAX = 0.2
"""Times grow in any case, whatever the clocks do; but balances as of a time are asked by them."""
CLOCK_SAMPLES = 5

# A commit that these do not let reach the disk could be lost after the source has let go.
UNSAFE: LiteralString = """
SELECT name FROM pg_settings
WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off' ORDER BY name
"""
CLOCK: LiteralString = "SELECT extract(epoch FROM clock_timestamp())::float8"
OWN_INDEXES: LiteralString = """
SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
WHERE starts_with(i.relname, %s) AND x.indisvalid
    AND position(%s IN pg_get_expr(x.indpred, x.indrelid)) > 0
"""


async def obstacles(source: Cell, target: Cell, tenant_id: UUID) -> list[str]:
    """Why the tenant must not be moved from the one to the other; empty where it may."""
    differences = await shape_differences(source, target)
    found = [f"the databases differ: {'; '.join(differences[:5])}"] if differences else []
    for name, cell in (("source", source), ("target", target)):
        unsafe = [row[0] for row in await (await cell.execute(UNSAFE)).fetchall()]
        found += [f"{setting} is off at the {name}" for setting in unsafe]
    skew_s = await _skew_s(source, target)
    if skew_s > SKEW_S_MAX:
        found.append(f"the clocks of the two are {skew_s:.1f} s apart, {SKEW_S_MAX} are allowed")
    missing = await _own_indexes(source, tenant_id) - await _own_indexes(target, tenant_id)
    if missing:
        found.append(
            f"the target lacks the tenant's own indexes {', '.join(sorted(missing))}:"
            " name them for that cell in cells.yaml, too"
        )
    return found


async def _skew_s(source: Cell, target: Cell) -> float:
    """By how much the clocks are apart at least; how long the answers took is not held against
    them."""
    offsets = [await _offset_s(cell) for cell in (source, target)]
    (least, most), (other_least, other_most) = offsets
    return max(0.0, least - other_most, other_least - most)


async def _offset_s(cell: Cell) -> tuple[float, float]:
    """Bounds of how far the clock is ahead of ours: it was read after we asked, and before we
    heard."""
    least, most = -float("inf"), float("inf")
    for _ in range(CLOCK_SAMPLES):
        asked_s = time.time()
        row = await (await cell.execute(CLOCK)).fetchone()
        heard_s = time.time()
        assert row is not None
        least, most = max(least, row[0] - heard_s), min(most, row[0] - asked_s)
    return least, most


async def _own_indexes(cell: Cell, tenant_id: UUID) -> set[str]:
    """Those from cells.yaml that hold this tenant's rows only."""
    cursor = await cell.execute(OWN_INDEXES, (INDEX_PREFIX, str(tenant_id)))
    return {row[0] for row in await cursor.fetchall()}
