"""A tenant's rows in the cell that does not own it: copied there, and deleted from there.

`copy_rows` reads one snapshot of the source and pipes it, table by table and chunk by chunk, as the
binary COPY of one database into the binary COPY of the other: no value is ever looked at here. Each
chunk is committed in the target together with how far the copy has come, under the guard of the
head; so a copy that was interrupted, by whatever, goes on behind its last chunk. It then reads a
later snapshot: what has changed in between comes a second time with the journal, which is followed
from the position of the first one, and every row says of which sequence it is.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg import sql

from cell.store import EXPIRY_LOCK
from cell.tables import TENANT_TABLES
from control_plane.move.cell_heads import Cell
from control_plane.move.heads import START, Heading, Position
from control_plane.move.key_ranges import Key, KeyRange, Shape, next_range, read_shape, within
from control_plane.move.pace import Pace

CHUNK_ROWS = 20_000
"""A chunk of them takes about a second: what an interruption costs, and what a seal waits for."""
CHUNK_SEGMENTS = 500
"""Of the journal, whose rows are thousands of times as large."""
BLOCK_BYTES = 1 << 15
DELETED_ROWS = 2_000

DONE = ""
"""The name of the table after the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importing:
    """Whose rows, and under which guard they are written."""

    tenant_id: UUID
    heading: Heading
    """Of the head: importing, or moved where the rows are deleted or follow in reverse."""
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a copy has come."""

    snapshot: Position
    """Of the first snapshot, from which on the journal is to be followed."""
    snapshot_at_us: int
    table: str
    """The table at which it goes on; DONE when none is left."""
    after_key: Key | None = None
    """The last row's key in it; None: at its beginning."""
    rows: int = 0
    bytes: int = 0
    rows_before: int = 0
    """Of the rows, those that were copied by earlier attempts; the next line likewise."""
    bytes_before: int = 0
    rows_left: int | None = None
    """About, by the statistics of the source's database; None: not asked yet."""


class ImportLost(Exception):
    """The guard refuses: the import is somebody else's, or stands elsewhere, by now."""


OnProgress = Callable[[Progress], Awaitable[None]]


async def unnoticed(_: Progress) -> None:
    """For whoever does not ask how far a copy has come."""


GUARD: LiteralString = "SELECT guard_import(%s, %s, %s::head_state, %s, %s, %s, %s, %s, %s, %s)"


async def guard(
    target: Cell, job: Importing, before: Position, after: Position, after_at_us: int
) -> None:
    """The first statement of every database transaction that writes here. Raises ImportLost."""
    values = (job.tenant_id, job.term, *job.heading, *before, *after, after_at_us)
    try:
        await target.execute(GUARD, values)
    except psycopg.Error as exc:
        if exc.sqlstate == "CL003":
            raise ImportLost(str(exc)) from exc
        raise


# Copying ----------------------------------------------------------------------------------------

EXPIRY_BARRIER: LiteralString = "SELECT pg_advisory_lock(%s), pg_advisory_unlock(%s)"
SNAPSHOT: LiteralString = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
HEAD: LiteralString = """
SELECT last_seq, last_hash, last_at_us FROM tenant_heads WHERE tenant_id = %s
"""


async def copy_rows(
    source: Cell, target: Cell, job: Importing, on_progress: OnProgress = unnoticed
) -> Progress:
    """Copy all of the tenant's rows, or what is left of them; the target then stands at the
    position of the first snapshot.

    The source must be pinned. Safe to repeat. Raises ImportLost.
    """
    # Whoever deletes idempotency keys now may not have seen the pin; nobody after this has not.
    await source.execute(EXPIRY_BARRIER, (EXPIRY_LOCK, EXPIRY_LOCK))
    await source.execute(SNAPSHOT)
    try:
        row = await (await source.execute(HEAD, (job.tenant_id,))).fetchone()
        assert row is not None, "a pinned tenant has a head"
        found = Progress(
            snapshot=Position(row[0], bytes(row[1])),
            snapshot_at_us=row[2],
            table=TENANT_TABLES[0],
        )
        progress = await _begin(target, job, found)
        left = await _estimates(source, job.tenant_id, progress.table)
        progress = replace(progress, rows_left=sum(left.values()))
        await on_progress(progress)
        while progress.table != DONE:
            table, before = progress.table, progress.rows
            shape = await read_shape(source, table)
            progress = await _copy_chunk(source, target, job, shape, progress)
            # A table that is done has no rows left, whatever was estimated.
            copied = progress.rows - before
            left[table] = max(0, left[table] - copied) if progress.table == table else 0
            progress = replace(progress, rows_left=sum(left.values()))
            await on_progress(progress)
        return progress
    finally:
        await source.rollback()


# To count them would read them all, for a number that only people look at.
ESTIMATE: LiteralString = "EXPLAIN (FORMAT JSON) SELECT FROM {} WHERE tenant_id = {}"


async def _estimates(source: Cell, tenant_id: UUID, first: str) -> dict[str, int]:
    """About how many rows the tenant has, in that table and each of those after it."""
    tables = () if first == DONE else TENANT_TABLES[TENANT_TABLES.index(first) :]
    found: dict[str, int] = {}
    for table in tables:
        query = sql.SQL(ESTIMATE).format(sql.Identifier(table), sql.Literal(tenant_id))
        row = await (await source.execute(query)).fetchone()
        assert row is not None
        found[table] = int(row[0][0]["Plan"]["Plan Rows"])
    return found


READ_PROGRESS: LiteralString = """
SELECT snapshot_seq, snapshot_hash, snapshot_at_us, table_name, after_key, rows_copied,
    bytes_copied
FROM import_progress WHERE tenant_id = %s AND move_id = %s
"""
BEGIN_PROGRESS: LiteralString = """
INSERT INTO import_progress
    (tenant_id, move_id, snapshot_seq, snapshot_hash, snapshot_at_us, table_name)
VALUES (%s, %s, %s, %s, %s, %s)
"""


async def read_progress(target: Cell, job: Importing) -> Progress | None:
    cursor = await target.execute(READ_PROGRESS, (job.tenant_id, job.heading.move_id))
    row = await cursor.fetchone()
    if row is None:
        return None
    seq, hash, at_us, table, key, rows, bytes_copied = row
    return Progress(
        snapshot=Position(seq, bytes(hash)),
        snapshot_at_us=at_us,
        table=table,
        after_key=None if key is None else tuple(key),
        rows=rows,
        bytes=bytes_copied,
    )


async def _begin(target: Cell, job: Importing, found: Progress) -> Progress:
    """Where the copy goes on; at the beginning, with nothing of the tenant there, if it is new."""
    known = await read_progress(target, job)
    if known is not None:
        return replace(known, rows_before=known.rows, bytes_before=known.bytes)
    await delete_rows(target, job, START)
    async with target.transaction():
        await guard(target, job, START, START, 0)
        await target.execute(
            BEGIN_PROGRESS,
            (
                job.tenant_id,
                job.heading.move_id,
                *found.snapshot,
                found.snapshot_at_us,
                found.table,
            ),
        )
    return found


STORE_PROGRESS: LiteralString = """
UPDATE import_progress SET table_name = %s, after_key = %s, rows_copied = %s, bytes_copied = %s
WHERE tenant_id = %s AND move_id = %s
"""


async def _copy_chunk(
    source: Cell, target: Cell, job: Importing, shape: Shape, progress: Progress
) -> Progress:
    chunk = CHUNK_SEGMENTS if shape.table == "journal" else CHUNK_ROWS
    keys = await next_range(source, job.tenant_id, shape, progress.after_key, chunk)
    place = TENANT_TABLES.index(shape.table)
    following = (*TENANT_TABLES, DONE)[place + 1]
    after = replace(
        progress,
        table=following if keys.up_to is None else shape.table,
        after_key=keys.up_to,
    )
    reads, writes = _pipe_statements(job.tenant_id, shape, keys)
    async with target.transaction():
        is_last = after.table == DONE
        position = progress.snapshot if is_last else START
        await guard(target, job, START, position, progress.snapshot_at_us if is_last else 0)
        count = 0
        async with source.cursor() as reading, target.cursor() as writing:
            async with reading.copy(reads) as read, writing.copy(writes) as written:
                pace = Pace()
                # A row at a time arrives; to send each by itself would cost as much as to copy it.
                block = bytearray()
                async for row in read:
                    block += row
                    if len(block) >= BLOCK_BYTES:
                        count += len(block)
                        await written.write(bytes(block))
                        block.clear()
                        await pace.rest()
                count += len(block)
                await written.write(bytes(block))
            after = replace(
                after, rows=progress.rows + reading.rowcount, bytes=progress.bytes + count
            )
        await target.execute(
            STORE_PROGRESS,
            (
                after.table,
                None if after.after_key is None else list(after.after_key),
                after.rows,
                after.bytes,
                job.tenant_id,
                job.heading.move_id,
            ),
        )
    return after


def _pipe_statements(
    tenant_id: UUID, shape: Shape, keys: KeyRange
) -> tuple[sql.Composed, sql.Composed]:
    columns = sql.SQL(", ").join(map(sql.Identifier, shape.columns))
    reads = sql.SQL("COPY (SELECT {} FROM {} WHERE {}) TO STDOUT (FORMAT binary)").format(
        columns, sql.Identifier(shape.table), within(tenant_id, shape, keys)
    )
    writes = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(shape.table), columns
    )
    return reads, writes


# Deleting ---------------------------------------------------------------------------------------

FORGET_PROGRESS: LiteralString = "DELETE FROM import_progress WHERE tenant_id = %s"


async def delete_rows(target: Cell, job: Importing, at: Position) -> None:
    """Delete all rows of the tenant, a bounded number at a time, each time under the guard.

    The head's position goes to the beginning with the first of them: from then on, this is no
    copy of anything. Safe to repeat.
    """
    async with target.transaction():
        await guard(target, job, at, START, 0)
        await target.execute(FORGET_PROGRESS, (job.tenant_id,))
    pace = Pace()
    for table in reversed(TENANT_TABLES):
        await _delete_table(target, job, await read_shape(target, table), pace)


async def _delete_table(target: Cell, job: Importing, shape: Shape, pace: Pace) -> None:
    keys = KeyRange(None, None)
    while True:
        # Behind the last ones, so that what is deleted already is not looked at again.
        keys = await next_range(target, job.tenant_id, shape, keys.up_to, DELETED_ROWS)
        delete = sql.SQL("DELETE FROM {} WHERE {}").format(
            sql.Identifier(shape.table), within(job.tenant_id, shape, keys)
        )
        async with target.transaction():
            await guard(target, job, START, START, 0)
            await target.execute(delete)
        if keys.up_to is None:
            return
        await pace.rest()
