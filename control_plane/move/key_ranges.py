"""A tenant's rows of one table, in ranges of the primary key: bounded pieces of any amount of work.

Names and keys are put into the text, since COPY takes no parameters. The names are the database's
own, quoted as such; the keys are quoted by the driver.
"""

from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg import sql

from control_plane.move.cell_heads import Cell

Key = tuple[str, ...]
"""The values of a key's columns after the tenant's, as text."""


class Shape(NamedTuple):
    """A table's columns, and those of its key after the tenant, with their types."""

    table: str
    columns: list[str]
    key: list[tuple[str, str]]


SHAPE: LiteralString = """
SELECT
    (SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute
     WHERE attrelid = i.indrelid AND attnum > 0 AND NOT attisdropped),
    (SELECT coalesce(array_agg(ARRAY[attname::text, format_type(atttypid, NULL)] ORDER BY k.place)
        FILTER (WHERE attname <> 'tenant_id'), '{}')
     FROM unnest(i.indkey::int[]) WITH ORDINALITY AS k (attnum, place)
     JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum)
FROM pg_index i WHERE i.indrelid = %s::regclass AND i.indisprimary
"""


async def read_shape(cell: Cell, table: str) -> Shape:
    row = await (await cell.execute(SHAPE, (table,))).fetchone()
    assert row is not None, "every table has a primary key"
    return Shape(table, row[0], [(name, kind) for name, kind in row[1]])


class KeyRange(NamedTuple):
    """Rows behind the one key, up to and with the other; None: from the beginning, to the end."""

    after: Key | None
    up_to: Key | None


NTH_KEY: LiteralString = """
SELECT {} FROM (SELECT {} FROM {} WHERE {} ORDER BY {} OFFSET {} LIMIT 1) k
"""


async def next_range(
    cell: Cell, tenant_id: UUID, shape: Shape, after: Key | None, rows: int
) -> KeyRange:
    """The next `rows` rows behind the key; to the end, where what is left is less than that."""
    if not shape.key:
        return KeyRange(None, None)
    # Ordered in a query of its own: the name of a column means its text where that is selected.
    query = sql.SQL(NTH_KEY).format(
        sql.SQL(", ").join(
            sql.SQL("{}::text").format(sql.Identifier(name)) for name, _ in shape.key
        ),
        _key(shape),
        sql.Identifier(shape.table),
        within(tenant_id, shape, KeyRange(after, None)),
        _key(shape),
        sql.Literal(rows - 1),
    )
    row = await (await cell.execute(query)).fetchone()
    return KeyRange(after, None if row is None else tuple(row))


def within(tenant_id: UUID, shape: Shape, keys: KeyRange) -> sql.Composed:
    """The condition that a row is the tenant's, and within the range."""
    parts = [sql.SQL("tenant_id = {}::uuid").format(sql.Literal(str(tenant_id)))]
    for sign, values in ((sql.SQL(">"), keys.after), (sql.SQL("<="), keys.up_to)):
        if values is not None:
            literals = [
                sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(kind))
                for value, (_, kind) in zip(values, shape.key, strict=True)
            ]
            compared = sql.SQL("({}) {} ({})").format(
                _key(shape), sign, sql.SQL(", ").join(literals)
            )
            parts.append(compared)
    return sql.SQL(" AND ").join(parts)


def _key(shape: Shape) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name, _ in shape.key)
