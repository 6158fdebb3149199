"""Reads and changes a tenant's head in the database of a cell, as the role cloister_mover.

Every statement stands alone, on a connection in autocommit and READ COMMITTED: a fence that waits
for a batch in flight then judges, and returns, the head as that batch left it (R8).
"""

from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from control_plane.move.heads import Change, Head, Heading, HeadState, Position
from control_plane.routing import Epoch

CONNECT_S_MAX = 5
KEEPALIVE_S = 5
SILENCE_MS_MAX = 15_000
"""What was sent is acknowledged within that time, or the connection is over."""
STATEMENT_MS_MAX = 300_000
"""To find the highest sequence of a large tenant takes a minute; what hangs is not waited for."""

Cell = AsyncConnection[Any]


async def connect(mover_dsn: str) -> Cell:
    """A connection to a cell's database; the caller closes it."""
    options = (
        f"-c statement_timeout={STATEMENT_MS_MAX} -c default_transaction_isolation=read\\ committed"
        # What is put in order here has an index in that order. Of a tenant that has just come there
        # are no statistics yet, so that to sort all that is left of it would look cheap.
        " -c enable_sort=off -c enable_incremental_sort=off"
    )
    dsn = make_conninfo(
        mover_dsn,
        options=options,
        application_name="cloister-mover",
        connect_timeout=CONNECT_S_MAX,
        # Of a machine that is gone nothing is heard; the connection ends all the same.
        keepalives_idle=KEEPALIVE_S,
        keepalives_interval=KEEPALIVE_S,
        keepalives_count=3,
        tcp_user_timeout=SILENCE_MS_MAX,
    )
    return await AsyncConnection.connect(dsn, autocommit=True)


READ: LiteralString = """
SELECT state::text, epoch, move_id, last_seq, last_hash, mover_term, moved_to
FROM tenant_heads WHERE tenant_id = %s
"""


async def read_head(cell: Cell, tenant_id: UUID) -> Head | None:
    row = await (await cell.execute(READ, (tenant_id,))).fetchone()
    return None if row is None else _head(row)


CHANGE: LiteralString = """
SELECT state::text, epoch, move_id, last_seq, last_hash, mover_term, moved_to
FROM change_head(%s, %s, %s::head_state, %s, %s, %s, %s, %s::head_state, %s, %s, %s, %s)
"""

LIMIT_WAIT: LiteralString = "SELECT set_config('lock_timeout', %s, true)"


async def change_head(
    cell: Cell, tenant_id: UUID, change: Change, term: int, *, lock_ms_max: int | None = None
) -> Head | None:
    """Make the change; the head afterwards, or None where it matched nothing.

    `lock_ms_max` bounds the wait for a batch in flight: LockNotAvailable, and nothing was done.
    """
    expected = change.expected or (None, None, None)
    position = change.position or (None, None)
    values = (tenant_id, term, *expected, *position, *change.wanted)
    if lock_ms_max is None:
        cursor = await cell.execute(CHANGE, (*values, change.is_emptied, change.moved_to))
        row = await cursor.fetchone()
    else:
        async with cell.transaction():
            await cell.execute(LIMIT_WAIT, (f"{lock_ms_max}ms",))
            cursor = await cell.execute(CHANGE, (*values, change.is_emptied, change.moved_to))
            row = await cursor.fetchone()
    return None if row is None else _head(row)


def _head(row: tuple[Any, ...]) -> Head:
    state, epoch, move_id, seq, hash, term, moved_to = row
    return Head(
        heading=Heading(HeadState(state), Epoch(epoch), move_id),
        position=Position(seq, bytes(hash)),
        term=term,
        moved_to=moved_to,
    )
