"""The fixtures that every other suite stands on."""

from typing import Any

import psycopg
import pytest


@pytest.mark.parametrize("role", ["owner", "writer", "reader", "auditor"])
async def test_every_role_of_a_cell_reaches_its_fresh_database(
    cell_database: Any, role: str
) -> None:
    dsn = getattr(cell_database, f"{role}_dsn")
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("select current_user, count(*) from schema_migrations")
        row = await cursor.fetchone()
    assert row is not None
    assert row[0] == f"cloister_{role}"
    assert row[1] >= 1
