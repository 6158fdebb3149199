"""Rows between Postgres and the model: how they are read, and how they are written as text.

One text serves both ways of writing: a line of CSV for COPY, an element of a composite array for
INSERT and UPDATE. COPY is the faster for many rows, the array needs no round trip of its own.
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


def row_from(row_type: type[AnyRow], values: Sequence[Any]) -> AnyRow:
    """The row whose columns, in the table's order, were read as `values`."""
    # One call into C that checks every type: by keywords it took sixty times as long.
    return msgspec.convert((TABLE_OF[row_type].tag, *values), row_type)


COPY_OPTIONS: Final = r"(FORMAT csv, ESCAPE '\', NULL 'null')"


def as_csv(rows: Sequence[Row], table: Table) -> bytes:
    """Lines for COPY with COPY_OPTIONS."""
    text = _json.encode(rows)
    # The JSON of a row without escapes and nested objects is a line of CSV already, at a tenth of
    # the cost. No text can contain the separator: its quotes would be escaped.
    if b"\\" in text or _has_objects(rows, table):
        return ("\n".join(_lines(rows, table, null="null")) + "\n").encode()
    tag = f'["{table.tag}",'.encode()
    return text[len(tag) + 1 : -2].replace(b"]," + tag, b"\n") + b"\n"


def as_array(rows: Sequence[Row], table: Table) -> str:
    """A text literal of type `table[]`."""
    text = _json.encode(rows).decode()
    # As above; here an absent value is nothing at all, so that no text may hold the word for it.
    if "\\" in text or _has_objects(rows, table) or _has_null_in_text(rows, table):
        elements = (
            '"(' + line.replace("\\", "\\\\").replace('"', '\\"') + ')"'
            for line in _lines(rows, table, null="")
        )
        return "{" + ",".join(elements) + "}"
    tag = f'["{table.tag}",'
    lines = text[len(tag) + 1 : -2].replace("]," + tag, "\n").replace(",null", ",")
    return '{"(' + lines.replace('"', '\\"').replace("\n", ')","(') + ')"}'


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


def _lines(rows: Iterable[Row], table: Table, *, null: str) -> Iterable[str]:
    quoted = [name in table.free_text for name in table.columns]
    for row in rows:
        yield ",".join(
            [
                _cell(value, is_quoted, null)
                for value, is_quoted in zip(msgspec.structs.astuple(row), quoted, strict=True)
            ]
        )


def _cell(value: Any, is_quoted: bool, null: str) -> str:
    kind = value.__class__
    if kind is str:
        return _quote(value) if is_quoted else value
    if value is None:
        return null
    if kind is dict:
        return _quote(_json.encode(value).decode()) if value else "{}"
    return str(value)


def _quote(text: str) -> str:
    """Text between double quotes, as CSV with `\\` as its escape and composites both read it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
