"""The sequencer's seam to Postgres: load what a batch needs, commit what it changed.

Two connections of the writer role, direct, never through a pooler: one writes batches, the other
prefetches for the next batch while one is being written. READ COMMITTED, always. A commit is one
database transaction: guard, journal segments, idempotency keys, rows.

Outcomes of `commit` other than success, all of which leave nothing of the batch behind unless said:
`WriterFenced`, `HeadsChanged`, `KeysTaken`, `BatchRefused`, and `OutcomeLost`: the connection broke
and the batch may or may not be committed; `reopen` and compare heads to know.
"""

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from secrets import randbelow
from typing import Any, Final, LiteralString

import msgspec
import psycopg

from cell.errors import CellError, WriterFenced
from cell.journal import FORMAT, Segment
from cell.ledger.history import History
from cell.ledger.model import Row, TenantId
from cell.postgres import connection_string
from cell.rows import TABLE_OF, as_array, read_as_model
from cell.schema import require_schema
from cell.tables import ROW_TABLES, Table

SEND_BUFFER_BYTES: Final = 4 << 20
"""A batch of a thousand transactions is a megabyte. What does not fit is sent when the event loop
comes round, which is deciding the next batch by then, while the database waits."""

STATEMENT_TIMEOUT_MS: Final = 20_000
"""A statement of a batch takes milliseconds; one that hangs must not hold the cell for ever."""

EPOCH_STEP_MAX: Final = 1 << 31
"""A writer that stays raises the epoch by a random step up to here; 64 bits hold four billion."""

GUARD_WRITER: Final = "CL001"
GUARD_HEADS: Final = "CL002"
EXPIRY_LOCK: Final = 0x636C_6578
"""Advisory lock, shared by whoever deletes idempotency keys. A mover that has pinned a tenant takes
it alone once: from then on nobody is deleting who has not seen the pin."""

GOODBYE_CLASSES: Final = ("57P", "08")
"""About the connection, which is over: they say nothing about the batch."""

PROGRAM_LIMIT_CLASS: Final = "54"
"""A value beyond what an index or a field can hold: the row's fault, though psycopg differs."""

_REFUSALS: Final = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError)


class HeadsChanged(CellError):
    """A tenant of the batch is not owned here at the epoch and position expected."""


class KeysTaken(CellError):
    """An idempotency key of the batch has been used before."""


class BatchRefused(CellError):
    """The database refuses a row of the batch (a constraint, a value it cannot hold)."""


class BatchFailed(CellError):
    """The database could not take the batch (disk full, a timeout); it was rolled back."""


class OutcomeLost(CellError):
    """The connection broke while the batch was being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A tenant's row of `tenant_heads`."""

    tenant_id: TenantId
    state: str
    epoch: int
    last_seq: int
    last_hash: bytes
    last_at_us: int
    moved_to: str | None = None


def head_from(row: Sequence[Any]) -> Head:
    """From `HEAD_COLUMNS`."""
    tenant_id, state, epoch, last_seq, last_hash, last_at_us, moved_to = row
    return Head(
        tenant_id=tenant_id,
        state=state,
        epoch=epoch,
        last_seq=last_seq,
        last_hash=bytes(last_hash),
        last_at_us=last_at_us,
        moved_to=moved_to,
    )


class KeyUse(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An idempotency key with the sequence of its effect."""

    tenant_id: TenantId
    digest: str
    at_us: int
    seq: int


@dataclass(slots=True, kw_only=True)
class BatchWrite:
    """All that one database transaction writes."""

    heads: list[tuple[Head, Head]] = field(default_factory=list)
    """Of each tenant: as expected, as it will be."""
    segments: list[Segment] = field(default_factory=list)
    inserted: dict[type[Row], dict[str, Row]] = field(default_factory=dict)
    """By table, then id: rows that are new, in their last state."""
    updated: dict[type[Row], dict[str, Row]] = field(default_factory=dict)
    history: History = field(default_factory=History)
    keys: list[KeyUse] = field(default_factory=list)
    expired_keys: list[tuple[TenantId, str]] = field(default_factory=list)
    """Idempotency keys past their time that this batch uses anew."""


_GUARD: Final = """
SELECT guard_batch(%s, %s::uuid[], %s::bigint[], %s::bigint[], %s::bigint[], %b::bytea[],
    %s::bigint[])
"""
_TAKE_WRITER: Final = """
UPDATE cell_head SET writer_epoch = writer_epoch + 1 RETURNING writer_epoch
"""
_KEEP_WRITER: Final = """
UPDATE cell_head SET writer_epoch = %s WHERE writer_epoch IN (%s, %s) RETURNING writer_epoch
"""
_ARE_JOURNALED: Final = """
SELECT EXISTS (SELECT FROM journal
    JOIN unnest(%s::uuid[], %s::bigint[], %b::bytea[]) AS s (tenant_id, first_seq, hash)
        USING (tenant_id, first_seq, hash))
"""
_INSERT_SEGMENTS: Final = """
INSERT INTO journal
    (tenant_id, first_seq, last_seq, epoch, format, body, prev_hash, hash)
SELECT t, f, l, e, %s, b, p, h
FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[], %s::bigint[], %b::bytea[], %b::bytea[],
    %b::bytea[]) AS s (t, f, l, e, b, p, h)
"""
_INSERT_KEYS: Final = """
INSERT INTO idempotency_keys (tenant_id, digest, created_at_us, seq)
SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::bigint[], %s::bigint[])
"""
TO_SHIFTS_THERE: Final = """
ON CONFLICT (tenant_id, ledger_account_id, day) DO UPDATE SET
    pending_debits = s.pending_debits + excluded.pending_debits,
    pending_credits = s.pending_credits + excluded.pending_credits,
    posted_debits = s.posted_debits + excluded.posted_debits,
    posted_credits = s.posted_credits + excluded.posted_credits,
    seq = excluded.seq
"""
"""Added to what `ledger_account_day_shifts AS s` has of the day."""

_ADD_SHIFTS: Final = f"""
INSERT INTO ledger_account_day_shifts AS s
SELECT * FROM unnest(%s::ledger_account_day_shifts[])
{TO_SHIFTS_THERE}"""
_INSERT_BARE_VERSIONS: Final = """
INSERT INTO ledger_account_bare_versions
SELECT * FROM unnest(%s::ledger_account_bare_versions[])
"""
_DELETE_KEYS: Final = """
DELETE FROM idempotency_keys k USING unnest(%s::uuid[], %s::uuid[]) AS e (tenant_id, digest)
WHERE k.tenant_id = e.tenant_id AND k.digest = e.digest
"""
HEAD_COLUMNS: Final = (
    "h.tenant_id, h.state, h.epoch, h.last_seq, h.last_hash, h.last_at_us, h.moved_to"
)
"""What `head_from` reads, of `tenant_heads h`."""
_HEADS: Final = f"SELECT {HEAD_COLUMNS} FROM tenant_heads h WHERE h.tenant_id = ANY(%s::uuid[])"
_KEY_USES: Final = """
SELECT k.tenant_id, k.digest, k.created_at_us, k.seq
FROM unnest(%s::uuid[], %s::uuid[]) AS q (tenant_id, digest)
JOIN idempotency_keys k ON k.tenant_id = q.tenant_id AND k.digest = q.digest
"""
_HOLD_EXPIRY: Final = "SELECT pg_advisory_xact_lock_shared(%s)"
_EXPIRE_KEYS: Final = """
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys k WHERE created_at_us < %s AND NOT EXISTS (
        SELECT FROM tenant_heads h WHERE h.tenant_id = k.tenant_id AND h.move_id IS NOT NULL)
    LIMIT %s))
"""


def _update_statement(table: Table) -> str:
    changed = [column for column in table.columns if column not in ("tenant_id", table.key)]
    return (
        f"UPDATE {table.name} AS t SET ({', '.join(changed)}) = "
        f"ROW ({', '.join(f'v.{column}' for column in changed)}) "
        f"FROM unnest(%s::{table.name}[]) AS v "
        f"WHERE t.tenant_id = v.tenant_id AND t.{table.key} = v.{table.key}"
    )


# Plain text, of the table list's own names: psycopg remembers how it read a text, not a Composed.
_INSERT: Final = {
    t.row: f"INSERT INTO {t.name} SELECT * FROM unnest(%s::{t.name}[])" for t in ROW_TABLES
}
_UPDATE: Final = {t.row: _update_statement(t) for t in ROW_TABLES}


class Store:
    """The writer's two connections; one task uses each at a time."""

    def __init__(
        self, writer_dsn: str, examine: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """`examine`: to be done before anything is written to a database just connected to."""
        self._examine = examine
        self._dsn = connection_string(
            writer_dsn,
            "sequencer",
            statement_timeout=STATEMENT_TIMEOUT_MS,
            # Whatever is set for the role or the database: a batch that is one statement begins no
            # database transaction in which to say so.
            default_transaction_isolation="read committed",
        )
        self._writer: psycopg.AsyncConnection[Any] | None = None
        self._prefetcher: psycopg.AsyncConnection[Any] | None = None
        self.writer_epoch = 0
        self._next_epoch = 0

    async def open(self) -> None:
        """Connect and become the writer: any sequencer before is fenced from here on."""
        try:
            await self._connect()
            self.writer_epoch = await self._raise_epoch(_TAKE_WRITER, ())
        except BaseException:
            await self.close()
            raise

    async def reopen(self) -> None:
        """Connect again after a loss and stay the writer.

        Raising the epoch waits for the row lock of a batch that is still being committed by the
        lost connection's backend, so that the heads read afterwards are final. Raises WriterFenced
        when another sequencer took over meanwhile, OperationalError while Postgres is away.
        """
        await self.close()
        await self._connect()
        if self._next_epoch <= self.writer_epoch:
            # A number that nobody else would choose, the same for each attempt: should the answer
            # to this statement be lost, the next one knows its own work from a successor's.
            self._next_epoch = self.writer_epoch + 2 + randbelow(EPOCH_STEP_MAX)
        parameters = (self._next_epoch, self.writer_epoch, self._next_epoch)
        self.writer_epoch = await self._raise_epoch(_KEEP_WRITER, parameters)

    async def close(self) -> None:
        for connection in (self._writer, self._prefetcher):
            if connection is not None:
                await connection.close()
        self._writer = self._prefetcher = None

    async def _connect(self) -> None:
        if self._examine is not None:
            await self._examine()
        self._writer = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        _widen_send_buffer(self._writer)
        self._prefetcher = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        read_as_model(self._prefetcher)
        await require_schema(self._prefetcher)

    async def _raise_epoch(self, statement: LiteralString, parameters: Sequence[int]) -> int:
        assert self._writer is not None
        row = await (await self._writer.execute(statement, parameters)).fetchone()
        if row is None:
            raise WriterFenced(f"writer epoch {self.writer_epoch} is over: another one took over")
        return int(row[0])

    @property
    def prefetcher(self) -> psycopg.AsyncConnection[Any]:
        """For reads of the sequencer only."""
        if self._prefetcher is None:
            raise psycopg.OperationalError("the sequencer is not connected")
        return self._prefetcher

    async def heads(self, tenant_ids: Sequence[TenantId]) -> dict[TenantId, Head]:
        cursor = await self.prefetcher.execute(_HEADS, (list(tenant_ids),), prepare=True)
        return {row[0]: head_from(row) for row in await cursor.fetchall()}

    async def is_committed(self, batch: BatchWrite) -> bool:
        """Is it in the journal? One database transaction: all or none.

        Heads would not tell: where a tenant has moved away meanwhile, they go on with its journal.
        """
        places = [
            (segment.tenant_id, segment.first_seq, segment.hash) for segment in batch.segments
        ]
        columns = [list(column) for column in zip(*places, strict=True)] or [[], [], []]
        cursor = await self.prefetcher.execute(_ARE_JOURNALED, columns)
        return bool((await cursor.fetchall())[0][0])

    async def key_uses(self, keys: Sequence[tuple[TenantId, str]]) -> list[KeyUse]:
        """Those of the (tenant, digest) pairs that were used before."""
        cursor = await self.prefetcher.execute(_KEY_USES, _pairs(keys), prepare=True)
        found = await cursor.fetchall()
        return [KeyUse(tenant_id=t, digest=d, at_us=at, seq=s) for t, d, at, s in found]

    async def expire_keys(self, before_us: int, rows_max: int) -> int:
        """Delete at most `rows_max` idempotency keys older than `before_us`; how many it were.

        Those of a tenant that a move has a hand on stay, so that both cells have the same.
        """
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            # A statement of its own: it must be held before the next one takes its snapshot.
            await connection.execute(_HOLD_EXPIRY, (EXPIRY_LOCK,))
            return (await connection.execute(_EXPIRE_KEYS, (before_us, rows_max))).rowcount

    async def commit(self, batch: BatchWrite) -> None:
        """Write the batch in one database transaction, or raise as the module says."""
        if self._writer is None:
            raise OutcomeLost("the sequencer is not connected")
        try:
            await self._write(self._writer, batch)
        except psycopg.Error as error:
            raise await self._translated(self._writer, error) from error

    async def _write(self, writer: psycopg.AsyncConnection[Any], batch: BatchWrite) -> None:
        statement, parameters = self._one_statement(batch)
        if not batch.expired_keys:
            # One statement is a database transaction of its own: one round trip in all, and the
            # database needs nothing from this process until it has committed.
            await writer.execute(statement, parameters, prepare=True)
            return
        async with writer.transaction():
            # Not a part of the statement, whose parts all see what was there before it.
            await writer.execute(_DELETE_KEYS, _pairs(batch.expired_keys), prepare=True)
            await writer.execute(statement, parameters, prepare=True)

    def _one_statement(self, batch: BatchWrite) -> tuple[str, list[Any]]:
        """The guard and all rows, as one statement and its parameters."""
        parts: list[str] = []
        parameters: list[Any] = []
        if batch.segments:
            parts.append(_INSERT_SEGMENTS)
            parameters += _segment_parameters(batch.segments)
        if batch.keys:
            parts.append(_INSERT_KEYS)
            parameters += _key_parameters(batch.keys)
        for row_type, rows in batch.inserted.items():
            parts.append(_INSERT[row_type])
            parameters.append(as_array(list(rows.values()), TABLE_OF[row_type]))
        for row_type, rows in batch.updated.items():
            parts.append(_UPDATE[row_type])
            parameters.append(as_array(list(rows.values()), TABLE_OF[row_type]))
        if batch.history.shifts:
            parts.append(_ADD_SHIFTS)
            shifts = batch.history.shifts.items()
            parameters.append(_composites([(*place, *shift) for place, shift in shifts]))
        if batch.history.bare_versions:
            parts.append(_INSERT_BARE_VERSIONS)
            parameters.append(_composites(batch.history.bare_versions))
        # The guard stands last and acts first or last, it does not matter which: whatever it
        # refuses is rolled back with the whole statement.
        parameters += self._guard_parameters(batch.heads)
        return _joined(tuple(parts)), parameters

    def _guard_parameters(self, heads: Sequence[tuple[Head, Head]]) -> list[Any]:
        return [
            self.writer_epoch,
            [before.tenant_id for before, _ in heads],
            [before.epoch for before, _ in heads],
            [before.last_seq for before, _ in heads],
            [after.last_seq for _, after in heads],
            [after.last_hash for _, after in heads],
            [after.last_at_us for _, after in heads],
        ]

    async def _translated(
        self, writer: psycopg.AsyncConnection[Any], error: psycopg.Error
    ) -> CellError:
        """The error by meaning; leaves the connection outside any database transaction."""
        sqlstate = error.sqlstate or ""
        if writer.closed or writer.broken or sqlstate.startswith(GOODBYE_CLASSES):
            return OutcomeLost(str(error))
        try:
            await writer.rollback()
        except psycopg.Error:
            return OutcomeLost(str(error))
        if error.sqlstate == GUARD_WRITER:
            return WriterFenced(str(error))
        if error.sqlstate == GUARD_HEADS:
            return HeadsChanged(str(error))
        if error.diag.constraint_name == "idempotency_keys_pkey":
            return KeysTaken(str(error))
        if isinstance(error, _REFUSALS) or sqlstate.startswith(PROGRAM_LIMIT_CLASS):
            return BatchRefused(str(error))
        return BatchFailed(str(error))


def _widen_send_buffer(connection: psycopg.AsyncConnection[Any]) -> None:
    """As far as the system allows (`net.core.wmem_max`); TCP has a sense of its own for it."""
    with socket.socket(fileno=os.dup(connection.fileno())) as own:
        if own.family == socket.AF_UNIX:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


@lru_cache(maxsize=256)
def _joined(parts: tuple[str, ...]) -> str:
    """Statements that write, each as a part of one WITH, and the guard."""
    if not parts:
        return _GUARD
    named = ", ".join(f"p{number} AS ({part})" for number, part in enumerate(parts))
    return f"WITH {named} {_GUARD}"


def _segment_parameters(segments: Sequence[Segment]) -> list[Any]:
    return [
        FORMAT,
        [segment.tenant_id for segment in segments],
        [segment.first_seq for segment in segments],
        [segment.last_seq for segment in segments],
        [segment.epoch for segment in segments],
        [segment.body for segment in segments],
        [segment.prev_hash for segment in segments],
        [segment.hash for segment in segments],
    ]


def _key_parameters(keys: Sequence[KeyUse]) -> list[Any]:
    # Array literals of ids and numbers: nothing in them needs quotes.
    return [
        "{" + ",".join([key.tenant_id for key in keys]) + "}",
        "{" + ",".join([key.digest for key in keys]) + "}",
        "{" + ",".join([str(key.at_us) for key in keys]) + "}",
        "{" + ",".join([str(key.seq) for key in keys]) + "}",
    ]


def _composites(rows: Sequence[tuple[object, ...]]) -> str:
    """An array literal of rows that hold ids and numbers only."""
    return '{"(' + ')","('.join([",".join(map(str, row)) for row in rows]) + ')"}'


def _pairs(keys: Sequence[tuple[TenantId, str]]) -> tuple[list[TenantId], list[str]]:
    return [key[0] for key in keys], [key[1] for key in keys]
