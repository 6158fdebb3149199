"""Rows between Postgres and the model: how they are read, and how they are written as text.

Written are composite arrays, for INSERT and UPDATE alike. COPY costs Postgres a tenth less, but a
round trip for each table, which waits for its turn in an event loop that is deciding commands.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec
import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.types.json import set_json_loads

from cell.ledger.model import Row
from cell.tables import ROW_TABLES, Table

AnyRow = TypeVar("AnyRow", bound=Row)

Reader = psycopg.AsyncConnection[Any] | psycopg.AsyncCursor[Any]
"""What statements are executed with; a cursor has ways of reading of its own."""

TABLE_OF: Final[dict[Any, Table]] = {table.row: table for table in ROW_TABLES}
_json = msgspec.json.Encoder()


class _TextLoader(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


class _IntegerLoader(Loader):
    """Numeric columns hold whole numbers only; `int` keeps every digit."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


def read_as_model(reader: Reader) -> None:
    """Make it return ids as text, numerics as int, JSON as dict."""
    reader.adapters.register_loader("uuid", _TextLoader)
    reader.adapters.register_loader("numeric", _IntegerLoader)
    set_json_loads(msgspec.json.decode, reader)


def columns_of(row_type: type[Row], alias: str) -> str:
    """What `row_from` reads, of a table that a statement calls `alias`."""
    return ", ".join(f"{alias}.{column}" for column in TABLE_OF[row_type].columns)


def row_from(row_type: type[AnyRow], values: Sequence[Any]) -> AnyRow:
    """The row whose columns, in the table's order, were read as `values`."""
    # One call into C that checks every type: by keywords it took sixty times as long.
    return msgspec.convert((TABLE_OF[row_type].tag, *values), row_type)


def as_array(rows: Sequence[Row], table: Table) -> str:
    """A text literal of type `table[]`."""
    text = _json.encode(rows).decode()
    # The JSON of a row without escapes and nested objects is nearly the text of a composite, at a
    # tenth of the cost: no text can contain what separates rows, as its quotes would be escaped. An
    # absent value is nothing at all there, so that no text may hold the word for it.
    if "\\" in text or _has_objects(rows, table) or _has_null_in_text(rows, table):
        elements = (
            '"(' + line.replace("\\", "\\\\").replace('"', '\\"') + ')"'
            for line in _lines(rows, table)
        )
        return "{" + ",".join(elements) + "}"
    inner = text[len(f'[["{table.tag}",') : -2].replace(",null", ",").replace('"', '\\"')
    return '{"(' + inner.replace(f'],[\\"{table.tag}\\",', ')","(') + ')"}'


def _has_objects(rows: Iterable[Row], table: Table) -> bool:
    """Other than empty ones."""
    return any(getattr(row, column) for column in table.objects for row in rows)


def _has_null_in_text(rows: Iterable[Row], table: Table) -> bool:
    return any(
        "null" in value
        for column in table.free_text
        for row in rows
        if (value := getattr(row, column)) is not None
    )


def _lines(rows: Iterable[Row], table: Table) -> Iterable[str]:
    quoted = [name in table.free_text for name in table.columns]
    for row in rows:
        yield ",".join(
            [
                _cell(value, is_quoted)
                for value, is_quoted in zip(msgspec.structs.astuple(row), quoted, strict=True)
            ]
        )


def _cell(value: Any, is_quoted: bool) -> str:
    kind = value.__class__
    if kind is str:
        return _quote(value) if is_quoted else value
    if value is None:
        return ""
    if kind is dict:
        return _quote(_json.encode(value).decode()) if value else "{}"
    return str(value)


def _quote(text: str) -> str:
    """Text between double quotes, as composites read it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
