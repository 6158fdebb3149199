"""COPY of the very same rows: what one connection can write at most, deciding nothing.

The rows that a run of the engine wrote (transactions, entries, idempotency keys, journal segments)
are dumped, the tables truncated, and the rows copied back into the same tables with the same
indexes, in database transactions that hold what the engine's held. The engine does more: it checks
rules, updates balances, guards the tenant's head, and answers each caller.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from benchmarks.errors import Wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """One table that the engine only appends to."""

    table: LiteralString
    order: LiteralString
    """The column whose value says which batch a row belongs to."""


TABLES: Final = (
    Copied(table="journal", order="last_seq"),
    Copied(table="ledger_transactions", order="seq"),
    Copied(table="ledger_entries", order="seq"),
    Copied(table="idempotency_keys", order="seq"),
)

STATEMENTS: Final = [
    sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(copied.table)) for copied in TABLES
]
TRUNCATE: Final = sql.SQL("TRUNCATE {}").format(
    sql.SQL(", ").join(sql.Identifier(copied.table) for copied in TABLES)
)


def run_copy(superuser_dsn: str, skipped: int) -> float:
    """Ledger transactions per second of copying back what the engine wrote; the rows stay.

    The first `skipped` transactions are of another kind; they are copied, but not measured.
    """
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        bounds, first = batch_bounds(connection, skipped)
        blocks = [dump(connection, copied, bounds) for copied in TABLES]
        batches = list(zip(*blocks, strict=True))
        before = count_rows(connection)
        connection.execute(TRUNCATE)
        connection.execute("CHECKPOINT")
        # The set-up's rows come first, outside the measured time.
        copy_batches(connection, batches[:first])
        seconds = copy_batches(connection, batches[first:])
        after = count_rows(connection)
    if before != after:
        raise Wrong(f"the copy holds {after} rows, the engine had written {before}")
    return (after["ledger_transactions"] - skipped) / seconds


def batch_bounds(connection: psycopg.Connection, skipped: int) -> tuple[list[int], int]:
    """The last sequence of each batch, in order, and the first batch to measure."""
    rows = connection.execute(
        "SELECT last_seq, last_seq < (SELECT min(seq) FROM ledger_transactions) + %s"
        " FROM journal ORDER BY last_seq",
        (skipped,),
    ).fetchall()
    return [int(row[0]) for row in rows], sum(row[1] for row in rows)


def dump(connection: psycopg.Connection, copied: Copied, bounds: Sequence[int]) -> list[bytes]:
    """The table's rows as text for COPY, one block per batch."""
    query = sql.SQL("COPY (SELECT {order}, t.* FROM {table} t ORDER BY {order}) TO STDOUT").format(
        order=sql.Identifier(copied.order), table=sql.Identifier(copied.table)
    )
    blocks: list[list[bytes]] = [[] for _ in bounds]
    batch = 0
    with connection.cursor().copy(query) as copy:
        for line in copy:
            seq, _, row = bytes(line).partition(b"\t")
            while int(seq) > bounds[batch]:
                batch += 1
            blocks[batch].append(row)
    return [b"".join(rows) for rows in blocks]


def copy_batches(connection: psycopg.Connection, batches: Sequence[tuple[bytes, ...]]) -> float:
    """Seconds it took; a batch is one database transaction of one COPY per table."""
    cursor = connection.cursor()
    started = time.perf_counter()
    for batch in batches:
        with connection.transaction():
            for statement, block in zip(STATEMENTS, batch, strict=True):
                if block:
                    with cursor.copy(statement) as copy:
                        copy.write(block)
    return time.perf_counter() - started


def count_rows(connection: psycopg.Connection) -> dict[str, int]:
    counts: dict[str, int] = {}
    for copied in TABLES:
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(copied.table))
        row = connection.execute(query).fetchone()
        assert row is not None
        counts[copied.table] = int(row[0])
    return counts
