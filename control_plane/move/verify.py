"""Is the target what the source is? Compared in the databases themselves, without a lock.

Three questions, the first before anything is copied: do both databases have the same shape; do all
rows agree at one common sequence; and which rows do not. The row's own text is the encoding that is
compared: it is canonical within one major version of Postgres, which is part of the shape. What the
cells work out for themselves (the index of events) is not compared.
"""

import operator
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import sql

from cell.tables import COMPARED_TABLES, TENANT_TABLES
from control_plane.move.cell_heads import Cell
from control_plane.move.key_ranges import KeyRange, Shape, next_range, read_shape, within
from control_plane.move.pace import Pace

NAMED_ROWS_MAX = 20
"""Of a table whose rows differ, so many are named."""
RANGE_ROWS = 1_000
"""Compared at once: some milliseconds of a processor, after which others get their turn."""
RANGE_SEGMENTS = 50
"""Of the journal, whose rows are many times as large."""

# Names of constraints and indexes are of no importance, what they say is. An index that is not
# unique is not part of the shape: it makes reads fast, and nothing wrong.
SHAPE: LiteralString = """
SELECT 'server', current_setting('server_version_num')::int / 10000 || ' ' ||
    current_setting('server_encoding')
UNION ALL
SELECT 'column', concat_ws(' ', a.attrelid::regclass, a.attnum, a.attname,
    format_type(a.atttypid, a.atttypmod), a.attnotnull, co.collname)
FROM pg_attribute a LEFT JOIN pg_collation co ON co.oid = a.attcollation
WHERE a.attrelid = ANY (%(tables)s::regclass[]) AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'constraint', c.conrelid::regclass || ' ' || pg_get_constraintdef(c.oid)
FROM pg_constraint c WHERE c.conrelid = ANY (%(tables)s::regclass[])
UNION ALL
SELECT 'unique index', regexp_replace(pg_get_indexdef(i.indexrelid), '^.* ON ', '')
FROM pg_index i WHERE i.indrelid = ANY (%(tables)s::regclass[]) AND i.indisunique
UNION ALL
SELECT 'type', t.typname || ' ' || string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder)
FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid GROUP BY t.typname
UNION ALL
SELECT 'schema', max(version)::text FROM schema_migrations
"""


async def shape_differences(source: Cell, target: Cell) -> list[str]:
    """What one of the two databases has and the other has not; empty where rows can be moved."""
    shapes = []
    for cell in (source, target):
        cursor = await cell.execute(SHAPE, {"tables": list(TENANT_TABLES)})
        shapes.append({f"{kind} {text}" for kind, text in await cursor.fetchall()})
    only_source = [f"only at the source: {line}" for line in sorted(shapes[0] - shapes[1])]
    only_target = [f"only at the target: {line}" for line in sorted(shapes[1] - shapes[0])]
    return only_source + only_target


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDigest:
    """What a table holds of a tenant, whatever the order of its rows."""

    rows: int
    digest: str
    """Sums of the two halves of the MD5 of every row."""


Digests = dict[str, TableDigest]


class _Sums(NamedTuple):
    """Of some rows of a table."""

    rows: int = 0
    left: int = 0
    right: int = 0

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums(*map(operator.add, self, other))

    def digest(self) -> TableDigest:
        return TableDigest(rows=self.rows, digest=f"{self.left} {self.right}")


SUMS: LiteralString = """
SELECT count(*), coalesce(sum(('x' || left(d, 16))::bit(64)::bigint), 0),
    coalesce(sum(('x' || right(d, 16))::bit(64)::bigint), 0)
FROM (SELECT md5(t::text) AS d FROM {} t WHERE {}) r
"""


async def _sums(cell: Cell, tenant_id: UUID, shape: Shape, keys: KeyRange) -> _Sums:
    query = sql.SQL(SUMS).format(sql.Identifier(shape.table), within(tenant_id, shape, keys))
    row = await (await cell.execute(query)).fetchone()
    assert row is not None
    return _Sums(*map(int, row))


TRIAL_BALANCE: LiteralString = """
SELECT a.currency, sum(b.posted_debits)::text, sum(b.posted_credits)::text
FROM ledger_account_balances b JOIN ledger_accounts a
    ON a.tenant_id = b.tenant_id AND a.id = b.ledger_account_id
WHERE b.tenant_id = %s GROUP BY a.currency ORDER BY a.currency
"""

TrialBalance = dict[str, tuple[str, str]]
"""Posted debits and credits of each currency, in its smallest unit, as decimal digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two snapshots of one tenant at one sequence: the source's first, the target's second."""

    digests: tuple[Digests, Digests]
    trial_balances: tuple[TrialBalance, TrialBalance]
    differences: list[str]
    """Rows that differ, at most NAMED_ROWS_MAX of each table; empty where all agree."""


async def compare_rows(source: Cell, target: Cell, tenant_id: UUID) -> Comparison:
    """Compare the snapshots that the caller has begun in both, piece by piece, with rests."""
    digests: tuple[Digests, Digests] = ({}, {})
    differences: list[str] = []
    pace = Pace()
    for table in COMPARED_TABLES:
        sums, named = await _compare_table(source, target, tenant_id, table, pace)
        for side, found in zip(digests, sums, strict=True):
            side[table] = found.digest()
        differences += named
    balances = [await _trial_balance(cell, tenant_id) for cell in (source, target)]
    return Comparison(
        digests=digests, trial_balances=(balances[0], balances[1]), differences=differences
    )


async def _compare_table(
    source: Cell, target: Cell, tenant_id: UUID, table: str, pace: Pace
) -> tuple[tuple[_Sums, _Sums], list[str]]:
    """The sums of both sides, and the first rows that differ, by name."""
    shape = await read_shape(source, table)
    rows = RANGE_SEGMENTS if table == "journal" else RANGE_ROWS
    total = (_Sums(), _Sums())
    differences: list[str] = []
    keys = KeyRange(None, None)
    while True:
        keys = await next_range(source, tenant_id, shape, keys.up_to, rows)
        # One after the other: both databases may be on one machine, which serves tenants meanwhile.
        found = [await _sums(cell, tenant_id, shape, keys) for cell in (source, target)]
        total = (total[0].plus(found[0]), total[1].plus(found[1]))
        if found[0] != found[1] and len(differences) < NAMED_ROWS_MAX:
            differences += await _name_rows(source, target, tenant_id, shape, keys)
        if keys.up_to is None:
            return total, differences[:NAMED_ROWS_MAX]
        await pace.rest()


async def _trial_balance(cell: Cell, tenant_id: UUID) -> TrialBalance:
    cursor = await cell.execute(TRIAL_BALANCE, (tenant_id,))
    return {currency: (debits, credits) for currency, debits, credits in await cursor.fetchall()}


NAMES: LiteralString = "SELECT md5(t::text), left(t::text, 200) FROM {} t WHERE {}"


async def _name_rows(
    source: Cell, target: Cell, tenant_id: UUID, shape: Shape, keys: KeyRange
) -> list[str]:
    """Of a range known to differ: the digests of its rows are brought together here."""
    query = sql.SQL(NAMES).format(sql.Identifier(shape.table), within(tenant_id, shape, keys))
    sides: list[dict[str, str]] = []
    for cell in (source, target):
        cursor: Any = await cell.execute(query)
        sides.append(dict(await cursor.fetchall()))
    ways = (("source", sides[0], sides[1]), ("target", sides[1], sides[0]))
    return sorted(
        f"{shape.table}, only at the {name}: {rows[digest]}"
        for name, rows, others in ways
        for digest in rows.keys() - others.keys()
    )
