"""Follows a tenant's journal: applies to the target what the source has written since.

A record brings the after-images of the rows it changed. Rows say of which sequence they are, so
that an image is written only over an older one (R5); what is derived from entries is added up per
record, from the records that the kept sums do not have yet. The segment itself is inserted, or is
there with the same hash. All of a step is one database transaction, begun with the guard, which
takes the target from the position before exactly to the one after. Before its images are written,
each record is executed again on the target's rows, and must come to them.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg.errors import UniqueViolation

from cell.batch import Idempotency
from cell.journal import FORMAT, Record, chained_hash, decode_body
from cell.ledger.history import History
from cell.ledger.model import Effects, Row
from cell.rows import as_array
from cell.store import TO_SHIFTS_THERE
from cell.tables import ROW_TABLES, Table
from control_plane.move.cell_heads import Cell
from control_plane.move.heads import Position
from control_plane.move.reexecution import Differs, difference, highest_seq
from control_plane.move.rows import Importing, guard

SEGMENTS_PER_STEP = 64
BYTES_PER_STEP = 4 << 20
"""Of compressed bodies. A step is one database transaction of some tenths of a second."""


class Diverged(Exception):
    """The target's rows are no beginning of the source's journal: they must be copied again.

    As after a failover of the source to a replica that had not received everything.
    """


class SegmentRow(NamedTuple):
    """A row of the journal, as the source has it."""

    first_seq: int
    last_seq: int
    epoch: int
    format: int
    body: bytes
    prev_hash: bytes
    hash: bytes


# The running sum stops a step at its bound of bytes, but never before the first segment.
SEGMENTS: LiteralString = """
SELECT first_seq, last_seq, epoch, format, body, prev_hash, hash FROM (
    SELECT *, sum(octet_length(body)) OVER (ORDER BY first_seq) - octet_length(body) AS before
    FROM (SELECT * FROM journal WHERE tenant_id = %s AND last_seq > %s
          ORDER BY first_seq LIMIT %s) next
) bounded WHERE before < %s ORDER BY first_seq
"""


async def follow(source: Cell, target: Cell, job: Importing, position: Position) -> Position:
    """Apply the next segments behind the target's position, at most one step; where it is then.

    The same position means that there are none. Raises Diverged, Differs, ImportLost.
    """
    values = (job.tenant_id, position.seq, SEGMENTS_PER_STEP, BYTES_PER_STEP)
    cursor = await source.execute(SEGMENTS, values, binary=True)
    segments = [SegmentRow(*row) for row in await cursor.fetchall()]
    if not segments:
        return position
    _check_chain(segments, position)
    batches = [_records(job.tenant_id, segment) for segment in segments]
    after = Position(segments[-1].last_seq, segments[-1].hash)
    async with target.transaction():
        await guard(target, job, position, after, batches[-1][-1].at_us)
        await _insert_segments(target, job.tenant_id, segments)
        await _execute_and_apply(batches, target, job.tenant_id)
    return after


async def _execute_and_apply(
    batches: Sequence[Sequence[Record]], target: Cell, tenant_id: UUID
) -> None:
    """All batches at once, if each command comes to what is journaled on the rows as they are.

    Where one does not, it may stand on what another of these batches wrote, which the rows do not
    show yet: then one batch after another, as the source had it.
    """
    records = list(chain.from_iterable(batches))
    if await difference(target, tenant_id, records) is None:
        await _apply(records, target, tenant_id)
        return
    highest: int | None = None
    for batch in batches:
        found = await difference(target, tenant_id, batch)
        if found is not None:
            highest = highest or await highest_seq(target, tenant_id)
            # Rows of a later time say nothing about this one.
            if highest < batch[0].seq:
                raise Differs(found)
        await _apply(batch, target, tenant_id)


def _check_chain(segments: Sequence[SegmentRow], position: Position) -> None:
    """Does each one follow the one before, and the first one the target's last?"""
    seq, hash = position
    for segment in segments:
        if segment.first_seq != seq + 1 or segment.prev_hash != hash:
            raise Diverged(f"segment {segment.first_seq} does not follow sequence {seq}")
        if segment.hash != chained_hash(segment.prev_hash, segment.body):
            raise Diverged(f"the hash of segment {segment.first_seq} is not that of its body")
        seq, hash = segment.last_seq, segment.hash


def _records(tenant_id: UUID, segment: SegmentRow) -> tuple[Record, ...]:
    if segment.format != FORMAT:
        raise Diverged(f"segment {segment.first_seq} has format {segment.format}, not {FORMAT}")
    body = decode_body(segment.body)
    place = (str(tenant_id), segment.epoch, segment.first_seq, segment.last_seq)
    if (body.tenant_id, body.epoch, body.first_seq, body.last_seq) != place:
        raise Diverged(f"the body of segment {segment.first_seq} is of another place")
    return body.records


INSERT_SEGMENTS: LiteralString = """
INSERT INTO journal (tenant_id, first_seq, last_seq, epoch, format, body, prev_hash, hash)
SELECT %s, s.* FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::smallint[], %b::bytea[],
    %b::bytea[], %b::bytea[]) AS s
ON CONFLICT (tenant_id, first_seq) DO NOTHING
"""
SAME_SEGMENTS: LiteralString = """
SELECT count(*) FROM journal j
JOIN unnest(%s::bigint[], %b::bytea[]) AS s (first_seq, hash) USING (first_seq, hash)
WHERE j.tenant_id = %s
"""


async def _insert_segments(target: Cell, tenant_id: UUID, segments: Sequence[SegmentRow]) -> None:
    columns = [list(column) for column in zip(*segments, strict=True)]
    inserted = await target.execute(INSERT_SEGMENTS, (tenant_id, *columns))
    if inserted.rowcount == len(segments):
        return
    cursor = await target.execute(SAME_SEGMENTS, (columns[0], columns[-1], tenant_id))
    if await cursor.fetchone() != (len(segments),):
        raise Diverged("the target holds other segments of the same sequences")


async def _apply(records: Sequence[Record], target: Cell, tenant_id: UUID) -> None:
    """The records' effects: each row once in its last image, or else one record after another.

    Where rows hand on something that only one may have (an external id), the last images can meet
    an earlier holder that is written a moment later; in the source's own order they cannot.
    """
    try:
        async with target.transaction():
            await _write_images(records, target)
    except UniqueViolation:
        await _apply_one_by_one(records, target)
    await _write_history(records, target)
    await _write_keys(records, target, tenant_id)


async def _apply_one_by_one(records: Sequence[Record], target: Cell) -> None:
    try:
        for record in records:
            await _write_images([record], target)
    except UniqueViolation as exc:
        # Rows of a later snapshot, of a copy that was resumed, are there already.
        raise Diverged(f"rows of a later time are in the way: {exc.diag.constraint_name}") from exc


def _upsert(table: Table) -> str:
    changed = [column for column in table.columns if column not in ("tenant_id", table.key)]
    images = ", ".join(f"excluded.{column}" for column in changed)
    return (
        f"INSERT INTO {table.name} AS t SELECT * FROM unnest(%s::{table.name}[]) "
        f"ON CONFLICT (tenant_id, {table.key}) DO UPDATE SET ({', '.join(changed)}) = "
        f"ROW ({images}) WHERE t.seq < excluded.seq"
    )


# Plain text, of the table list's own names.
UPSERTS = {table.row: (table, _upsert(table)) for table in ROW_TABLES}


async def _write_images(records: Sequence[Record], target: Cell) -> None:
    last: dict[type[Row], dict[str, Row]] = {}
    for record in records:
        for row in (*record.inserted, *record.updated):
            rows = last.setdefault(type(row), {})
            key = getattr(row, UPSERTS[type(row)][0].key)
            # Taken out first, so that rows are in the order of their last image.
            rows.pop(key, None)
            rows[key] = row
    for row_type, (table, statement) in UPSERTS.items():
        if row_type in last:
            images: Any = as_array(list(last[row_type].values()), table)
            await target.execute(statement.encode(), (images,))


ADD_SHIFTS: LiteralString = f"""
INSERT INTO ledger_account_day_shifts AS s
SELECT d.tenant_id, d.ledger_account_id, d.day, sum(d.pending_debits), sum(d.pending_credits),
    sum(d.posted_debits), sum(d.posted_credits), max(d.seq)
FROM unnest(%s::ledger_account_day_shifts[]) AS d
LEFT JOIN ledger_account_day_shifts k USING (tenant_id, ledger_account_id, day)
WHERE k.seq IS NULL OR k.seq < d.seq
GROUP BY 1, 2, 3
{TO_SHIFTS_THERE}"""
INSERT_BARE_VERSIONS: LiteralString = """
INSERT INTO ledger_account_bare_versions
SELECT * FROM unnest(%s::ledger_account_bare_versions[]) ON CONFLICT DO NOTHING
"""


async def _write_history(records: Sequence[Record], target: Cell) -> None:
    shifts: list[tuple[object, ...]] = []
    bare_versions: list[tuple[object, ...]] = []
    for record in records:
        # One record after another: the sums of the target may have some of them already.
        history = History()
        history.add(Effects(inserted=record.inserted, updated=record.updated), record.at_us)
        shifts += [(*place, *shift) for place, shift in history.shifts.items()]
        bare_versions += history.bare_versions
    if shifts:
        await target.execute(ADD_SHIFTS, (_composites(shifts),))
    if bare_versions:
        await target.execute(INSERT_BARE_VERSIONS, (_composites(bare_versions),))


def _composites(rows: Sequence[tuple[object, ...]]) -> str:
    """An array literal of rows that hold ids and numbers only."""
    return '{"(' + ')","('.join([",".join(map(str, row)) for row in rows]) + ')"}'


WRITE_KEYS: LiteralString = """
INSERT INTO idempotency_keys AS k (tenant_id, digest, created_at_us, seq)
SELECT %s, u.* FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[]) AS u
ON CONFLICT (tenant_id, digest) DO UPDATE
SET created_at_us = excluded.created_at_us, seq = excluded.seq WHERE k.seq < excluded.seq
"""


async def _write_keys(records: Sequence[Record], target: Cell, tenant_id: UUID) -> None:
    uses: dict[str, Record] = {}
    for record in records:
        if record.idempotency_key is not None:
            assert record.api_key_id is not None, "a key is scoped by its API key"
            key = Idempotency(api_key_id=record.api_key_id, key=record.idempotency_key)
            uses[key.digest()] = record
    if uses:
        times = [record.at_us for record in uses.values()]
        seqs = [record.seq for record in uses.values()]
        await target.execute(WRITE_KEYS, (tenant_id, list(uses), times, seqs))
