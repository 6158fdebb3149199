"""Method: rows of every kind, written by a sequencer with values at the edges of their types, read
back as JSON and compared with the journal's own.
"""

from typing import Any

import psycopg
import pytest
from cell_writing import CREDIT, DEBIT, Writing, draft, rows

from cell.ledger import commands
from cell.ledger.model import LedgerEntry, Row, Status, TenantId
from cell.row_json import row_as_json, row_from_json, rows_as_json, rows_from_json
from cell.tables import ROW_TABLES, Table

ODD = "quote\" back\\slash, comma\tand\nline; {brace} \u2028 \x7f é 😀 'null' %s"


@pytest.fixture
async def written(writer: Writing, tenant_id: TenantId) -> list[Row]:
    """Rows as the journal has them, each in its last state."""
    metadata = {ODD: ODD, "": "empty key", "k": "v"}
    ledger = await writer.ledger(tenant_id, ODD)
    a, b = [
        await writer.account(tenant_id, ledger, name=ODD, external_id=name, metadata=metadata)
        for name in (ODD, "null")
    ]
    largest = 10**36 - 1
    entries = [
        draft(a, DEBIT, largest, metadata=metadata, shows_resulting_balances=True),
        draft(b, CREDIT, largest, effective_at_us=-62_135_596_800_000_000),
        draft(a, DEBIT, 0),
    ]
    create = commands.CreateLedgerTransaction(
        entries=tuple(entries), description=ODD, external_id=ODD, metadata=metadata
    )
    key = commands.CreateApiKey(id=ledger, secret_sha256="0f" * 32)
    made = await writer.apply(tenant_id, create)
    id = made.inserted[0].id
    posted = commands.UpdateLedgerTransaction(id=id, status=Status.POSTED)
    records = [made, await writer.apply(tenant_id, key), await writer.apply(tenant_id, posted)]
    latest: dict[tuple[str, str], Row] = {}
    for record in records:
        for row in (*record.inserted, *record.updated):
            latest[type(row).__name__, key_of(row)] = row
    return list(latest.values())


def key_of(row: Row) -> str:
    return str(getattr(row, table_of(row).key))


def table_of(row: Row) -> Table:
    return next(table for table in ROW_TABLES if table.row is type(row))


def test_rows_are_the_journals(cell_database: Any, written: list[Row]) -> None:
    assert {type(row).__name__ for row in written} >= {
        "ApiKey",
        "AccountBalances",
        "LedgerTransaction",
        "LedgerEntry",
    }
    for row in written:
        table = table_of(row)
        query: Any = (
            f"SELECT {row_as_json('x', table.row)} FROM {table.name} x WHERE {table.key} = %s"
        )
        ((text,),) = rows(cell_database.writer_dsn, query, key_of(row))
        assert row_from_json(table.row, text) == row


def test_rows_together(cell_database: Any, written: list[Row]) -> None:
    entries = sorted((row for row in written if isinstance(row, LedgerEntry)), key=key_of)
    assert len(entries) == 6
    query: Any = f"SELECT {rows_as_json('e', LedgerEntry)} FROM ledger_entries e WHERE %s"
    with psycopg.connect(cell_database.writer_dsn) as connection:
        for wanted, expected in ((True, entries), (False, [])):
            ((text,),) = connection.execute(query, (wanted,)).fetchall()
            assert list(rows_from_json(LedgerEntry, text)) == expected
