"""A database that is an older state of itself quarantines what it has. Method: the real database
of a cell, and the file that says how far it had come.
"""

from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from cell_writing import execute, own_tenant

from cell.errors import SettingsInvalid
from cell.restore_watch import LogPosition, RestoreWatch

STATES = ("owned", "fenced", "importing", "ready")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "position"


def states(database: Any) -> dict[str, int]:
    with psycopg.connect(database.superuser_dsn) as connection:
        query = "SELECT state::text, count(*) FROM tenant_heads GROUP BY 1"
        return dict(connection.execute(query).fetchall())


def read(file: Path) -> LogPosition:
    return msgspec.json.decode(file.read_bytes(), type=LogPosition)


def write(file: Path, position: LogPosition) -> None:
    file.write_bytes(msgspec.json.encode(position))


def fill(database: Any) -> None:
    for state in (*STATES, "moved"):
        tenant = own_tenant(database.writer_dsn)
        execute(
            database.superuser_dsn,
            "UPDATE tenant_heads SET state = %s::head_state WHERE tenant_id = %s",
            state,
            tenant,
        )


async def test_a_database_that_went_on_is_left_alone(cell_database: Any, file: Path) -> None:
    fill(cell_database)
    before = states(cell_database)
    for _ in range(2):
        watch = RestoreWatch(cell_database.writer_dsn, file)
        await watch.open()
        assert (watch.quarantined, states(cell_database)) == (0, before)
    position = read(file)
    fill(cell_database)
    await watch.open()
    assert read(file).lsn > position.lsn
    await RestoreWatch(cell_database.writer_dsn, None).open()


@pytest.mark.parametrize("kind", ["older", "another"])
async def test_an_older_or_another_one_is_quarantined(
    cell_database: Any, file: Path, kind: str
) -> None:
    fill(cell_database)
    await RestoreWatch(cell_database.writer_dsn, file).open()
    seen = read(file)
    changed = {"older": {"lsn": seen.lsn + (1 << 40)}, "another": {"system": "1"}}[kind]
    write(file, msgspec.structs.replace(seen, **changed))
    watch = RestoreWatch(cell_database.writer_dsn, file)
    await watch.open()
    assert states(cell_database) == {"quarantined": len(STATES), "moved": 1}
    assert watch.quarantined == len(STATES)
    # It has been said; what an operator makes of it stands.
    execute(cell_database.superuser_dsn, "UPDATE tenant_heads SET state = 'owned'")
    again = RestoreWatch(cell_database.writer_dsn, file)
    await again.open()
    assert again.quarantined == 0


@pytest.fixture
def broken(file: Path) -> Path:
    file.write_text("{}")
    return file


async def test_a_file_that_says_nothing_is_not_passed_over(
    cell_database: Any, broken: Path
) -> None:
    with pytest.raises(SettingsInvalid, match="was not restored"):
        await RestoreWatch(cell_database.writer_dsn, broken).open()
