"""Reads a tenant's journal in order and in bounded memory: checks the chain, keeps the images.

The after-images go into temporary tables of the verification's own session, where SQL compares them
with the tenant's tables. Rows are written here by the driver, not by the code that the cell writes
with: a mistake there must not be made twice.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from cell.batch import Idempotency
from cell.journal import FORMAT, SegmentBody, decode_body
from cell.ledger.model import Row
from cell.tables import ROW_TABLES, Table
from control_plane.verify.report import Findings

FETCHED_BYTES_MAX: Final = 8 << 20
SEGMENTS_PER_FETCH_MAX: Final = 500
ROWS_PER_COPY_MAX: Final = 20_000

CHAIN = "journal_chain"
PLACE = "journal_place"
IMAGES = "journal_images"

Connection = psycopg.Connection[Any]


class Head(NamedTuple):
    """The tenant's head, as the snapshot has it."""

    epoch: int
    last_seq: int
    last_hash: bytes
    last_at_us: int


class SegmentRow(NamedTuple):
    first_seq: int
    last_seq: int
    epoch: int
    format: int
    body: bytes
    prev_hash: bytes
    hash: bytes
    computed: bytes
    """sha256(prev_hash || body), by Postgres."""


def image_table(table: Table) -> str:
    """Name of the temporary table with the after-images of `table`."""
    return f"image_of_{table.name}"


KEYS_TABLE: Final = "image_of_idempotency_keys"


def create_image_tables(connection: Connection) -> None:
    """Before the snapshot: a read-only database transaction may fill temporary tables only."""
    # Without the tables' constraints: what breaks them is to be reported, not to stop the reading.
    for table in ROW_TABLES:
        connection.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} AS SELECT * FROM {} WITH NO DATA").format(
                sql.Identifier("pg_temp", image_table(table)), sql.Identifier(table.name)
            )
        )
    connection.execute(
        sql.SQL("CREATE TEMPORARY TABLE {} (digest uuid, created_at_us bigint, seq bigint)").format(
            sql.Identifier("pg_temp", KEYS_TABLE)
        )
    )


_SEGMENTS: Final = """
SELECT first_seq, last_seq, epoch, format, body, prev_hash, hash, sha256(prev_hash || body)
FROM journal WHERE tenant_id = %s ORDER BY first_seq
"""


class JournalReading:
    """One pass over a tenant's journal; `read` does it all."""

    def __init__(
        self,
        connection: Connection,
        tenant_id: str,
        head: Head,
        findings: Findings,
        on_segments: Callable[[int, int], None],
    ) -> None:
        self.segments = 0
        self.is_complete = True
        """Every segment was there and could be read, so that the images are all there are."""
        self._connection = connection
        self._tenant_id = tenant_id
        self._head = head
        self._findings = findings
        self._on_segments = on_segments
        self._images = _Images(connection, findings)
        self._seq = 0
        self._hash: bytes | None = None
        self._epoch = 0
        self._at_us = 0

    def read(self) -> None:
        self._hash = self._connection.execute("SELECT sha256('')").fetchone()[0]  # type: ignore[index]
        with self._connection.cursor(name="segments", binary=True) as cursor:
            cursor.execute(_SEGMENTS, (self._tenant_id,))
            count = 1
            while fetched := cursor.fetchmany(count):
                for values in fetched:
                    self._read_segment(SegmentRow(*values))
                self._images.flush(rows_min=ROWS_PER_COPY_MAX)
                self._on_segments(self.segments, self._seq)
                largest = max(len(values[4]) for values in fetched)
                count = max(1, min(SEGMENTS_PER_FETCH_MAX, FETCHED_BYTES_MAX // (largest + 1)))
        self._images.flush(rows_min=1)
        self._compare_head()

    def _read_segment(self, segment: SegmentRow) -> None:
        self.segments += 1
        where = f"segment {segment.first_seq} to {segment.last_seq}"
        if segment.first_seq != self._seq + 1:
            self.is_complete = False
            missing = f"sequences {self._seq + 1} to {segment.first_seq - 1} are missing"
            overlap = f"{where} overlaps the one before"
            message = missing if segment.first_seq > self._seq else overlap
            self._findings.note(CHAIN, message, self._seq + 1, segment.first_seq)
        if segment.prev_hash != self._hash:
            expected = None if self._hash is None else self._hash.hex()
            message = f"{where} does not follow the hash of the one before"
            self._findings.note(CHAIN, message, expected, segment.prev_hash.hex())
        if segment.hash != segment.computed:
            message = f"{where}: the hash is not that of its body"
            self._findings.note(CHAIN, message, segment.computed.hex(), segment.hash.hex())
        if segment.epoch < self._epoch:
            self._findings.note(PLACE, f"{where}: the epoch went back", self._epoch, segment.epoch)
        self._seq, self._hash, self._epoch = segment.last_seq, segment.hash, segment.epoch
        self._read_body(segment, where)

    def _read_body(self, segment: SegmentRow, where: str) -> None:
        if segment.format != FORMAT:
            self.is_complete = False
            self._findings.note(PLACE, f"{where}: unknown format", FORMAT, segment.format)
            return
        try:
            body = decode_body(segment.body)
        except ValueError as exc:
            self.is_complete = False
            self._findings.note(PLACE, f"{where}: the body cannot be read: {exc}")
            return
        expected = (self._tenant_id, segment.epoch, segment.first_seq, segment.last_seq)
        found = (body.tenant_id, body.epoch, body.first_seq, body.last_seq)
        if found != expected:
            self._findings.note(PLACE, f"{where}: the body is of another place", expected, found)
        self._read_records(body, where)

    def _read_records(self, body: SegmentBody, where: str) -> None:
        seqs = [record.seq for record in body.records]
        if seqs != list(range(body.first_seq, body.last_seq + 1)):
            self._findings.note(PLACE, f"{where}: the records' sequences are not dense")
        for record in body.records:
            if record.at_us <= self._at_us:
                message = f"{where}: the time of sequence {record.seq} is not after the one before"
                self._findings.note(PLACE, message, f"> {self._at_us}", record.at_us)
            self._at_us = record.at_us
            for row in (*record.inserted, *record.updated):
                self._images.add(row)
            if record.api_key_id is not None and record.idempotency_key is not None:
                key = Idempotency(api_key_id=record.api_key_id, key=record.idempotency_key)
                self._images.add_key(key.digest(), record.at_us, record.seq)

    def _compare_head(self) -> None:
        head = self._head
        for name, expected, found in (
            ("last sequence", self._seq, head.last_seq),
            ("last hash", self._hash.hex() if self._hash else None, head.last_hash.hex()),
            ("last time", self._at_us, head.last_at_us),
        ):
            if expected != found:
                message = f"the journal's {name} is not the head's"
                self._findings.note(CHAIN, message, expected, found)
                self.is_complete = self.is_complete and name != "last sequence"


class _Images:
    """After-images on their way into the temporary tables; of each row only the last one."""

    def __init__(self, connection: Connection, findings: Findings) -> None:
        self._connection = connection
        self._findings = findings
        self._tables = {table.row: table for table in ROW_TABLES}
        self._rows: dict[Table, dict[str, Row]] = {table: {} for table in ROW_TABLES}
        self._keys: list[tuple[str, int, int]] = []
        self._count = 0

    def add(self, row: Row) -> None:
        table = self._tables[type(row)]
        self._rows[table][getattr(row, table.key)] = row
        self._count += 1
        if self._count >= 2 * ROWS_PER_COPY_MAX:  # one segment can hold very many rows
            self.flush(rows_min=1)

    def add_key(self, digest: str, at_us: int, seq: int) -> None:
        self._keys.append((digest, at_us, seq))

    def flush(self, rows_min: int) -> None:
        if self._count < rows_min:
            return
        for table, rows in self._rows.items():
            values = [_values(row) for row in rows.values()]
            self._copy(image_table(table), values)
            rows.clear()
        self._copy(KEYS_TABLE, self._keys)
        self._keys.clear()
        self._count = 0

    def _copy(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        statement = sql.SQL("COPY {} FROM STDIN").format(sql.Identifier("pg_temp", table))
        try:
            # The nested database transaction keeps the snapshot if a value is refused.
            with (
                self._connection.transaction(),
                self._connection.cursor() as cursor,
                cursor.copy(statement) as copy,
            ):
                for row in rows:
                    copy.write_row(row)
        except psycopg.DataError as exc:
            message = f"the journal holds values that {table} cannot: {exc.diag.message_primary}"
            self._findings.note(IMAGES, message)


def _values(row: Row) -> tuple[Any, ...]:
    values = msgspec.structs.astuple(row)
    return tuple(Jsonb(value) if isinstance(value, dict) else value for value in values)
