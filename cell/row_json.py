"""Rows read as JSON: Postgres writes a row as the very array the journal holds, msgspec reads it.

One call into C for a whole row, or for all entries of a transaction. Read column by column, a page
of 25 transactions with their 50 entries takes two thousand values, and three times as long; and
while a page is being read, no command is applied.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from cell.ledger.model import Row
from cell.tables import ROW_TABLES

AnyRow = TypeVar("AnyRow", bound=Row)

_TABLES: Final[dict[Any, Any]] = {table.row: table for table in ROW_TABLES}
_DECODERS: Final[dict[Any, Any]] = {
    table.row: msgspec.json.Decoder(table.row) for table in ROW_TABLES
}
_ARRAY_DECODERS: Final[dict[Any, Any]] = {
    table.row: msgspec.json.Decoder(list[table.row])  # type: ignore[name-defined]
    for table in ROW_TABLES
}


def row_as_json(alias: str, row_type: type[Row]) -> str:
    """A SELECT's expression for a row of the table under the alias."""
    return f"{_array(alias, row_type)}::text"


def rows_as_json(alias: str, row_type: type[Row]) -> str:
    """An aggregate for all rows under the alias, in the order of their ids; null for none."""
    return f"json_agg({_array(alias, row_type)} ORDER BY {alias}.id)::text"


def _array(alias: str, row_type: type[Row]) -> str:
    table = _TABLES[row_type]
    columns = ", ".join(f"{alias}.{column}" for column in table.columns)
    return f"json_build_array('{table.tag}', {columns})"


def row_from_json(row_type: type[AnyRow], text: str) -> AnyRow:
    row: AnyRow = _DECODERS[row_type].decode(text)
    return row


def rows_from_json(row_type: type[AnyRow], text: str | None) -> Sequence[AnyRow]:
    if text is None:
        return ()
    rows: list[AnyRow] = _ARRAY_DECODERS[row_type].decode(text)
    return rows
