"""A database that is an older state of itself quarantines what it has. Method: the real database
of a cell, its file, and the number of an older state put into the one or the other.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from cell_process import running_cell
from cell_writing import execute, own_tenant, rows

from cell import restore_watch
from cell.errors import SettingsInvalid
from cell.restore_watch import Known, RestoreWatch

STATES = ("owned", "fenced", "importing", "ready")
DEADLINE_S = 60.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "incarnation.json"


def read(file: Path) -> list[UUID]:
    return msgspec.json.decode(file.read_bytes(), type=Known).tokens


def write(file: Path, *tokens: UUID) -> None:
    file.write_bytes(msgspec.json.encode(Known(tokens=list(tokens))))


def states(database: Any) -> dict[str, int]:
    with psycopg.connect(database.superuser_dsn) as connection:
        query = "SELECT state::text, count(*) FROM tenant_heads GROUP BY 1"
        return dict(connection.execute(query).fetchall())


def token(database: Any) -> UUID:
    with psycopg.connect(database.superuser_dsn) as connection:
        row = connection.execute("SELECT token FROM cell_incarnation").fetchone()
    assert row is not None
    return UUID(str(row[0]))


def restore(database: Any) -> None:
    """Give it the number of an older state."""
    execute(database.superuser_dsn, "UPDATE cell_incarnation SET token = gen_random_uuid()")


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
    for _ in range(3):
        watch = RestoreWatch(cell_database.writer_dsn, file)
        await watch.open()
        assert (watch.quarantined, states(cell_database)) == (0, before)
        assert read(file)[-1] == token(cell_database)
    # Killed between the file and the database.
    write(file, token(cell_database), uuid4())
    await watch.open()
    assert states(cell_database) == before
    await RestoreWatch(cell_database.writer_dsn, None).open()


async def test_an_older_one_is_quarantined_once(cell_database: Any, file: Path) -> None:
    fill(cell_database)
    await RestoreWatch(cell_database.writer_dsn, file).open()
    restore(cell_database)
    watch = RestoreWatch(cell_database.writer_dsn, file)
    await watch.open()
    assert states(cell_database) == {"quarantined": len(STATES), "moved": 1}
    assert watch.quarantined == len(STATES)
    # It has been said; what an operator makes of it stands.
    execute(cell_database.superuser_dsn, "UPDATE tenant_heads SET state = 'owned'")
    again = RestoreWatch(cell_database.writer_dsn, file)
    await again.open()
    assert again.quarantined == 0


@contextlib.asynccontextmanager
async def running(watch: RestoreWatch) -> AsyncIterator[None]:
    task = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_numbers_are_drawn_while_anything_is_written(
    cell_database: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_watch, "DRAW_S", 0.01)
    watch = RestoreWatch(cell_database.writer_dsn, file)
    await watch.open()
    async with running(watch):
        for _ in range(3):
            before = token(cell_database)
            own_tenant(cell_database.writer_dsn)
            await until(lambda before=before: token(cell_database) != before)
        await until(lambda: token(cell_database) in read(file))


async def test_a_restore_under_a_running_cell_is_noticed(
    cell_database: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_watch, "DRAW_S", 0.01)
    fill(cell_database)
    watch = RestoreWatch(cell_database.writer_dsn, file)
    await watch.open()
    async with running(watch):
        restore(cell_database)
        await until(lambda: watch.quarantined)
    assert states(cell_database) == {"quarantined": len(STATES), "moved": 1}


LOSE_ALL = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND starts_with(application_name, 'cloister-')
"""
HELD_UP = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'cloister-restore'
    AND wait_event_type = 'Lock'
"""


def test_nothing_is_read_of_a_restored_one(cell_database: Any, file: Path, tmp_path: Path) -> None:
    """Method: every connection of a cell is lost, as it is where Postgres stops; the one that comes
    back is older, and the quarantine is held up while it is asked for what it has."""
    dsn = cell_database.superuser_dsn
    with (
        running_cell(cell_database, tmp_path, INCARNATION_FILE=str(file)) as cell,
        cell.new_tenant().http() as http,
    ):
        ledger = http.post("/api/ledgers", json={"name": "L"}).json()
        paths = ("ledgers", f"ledgers/{ledger['id']}", f"ledgers/{uuid4()}", "events")
        assert [http.get(f"/api/{path}").status_code for path in paths] == [200, 200, 404, 200]
        with psycopg.connect(dsn) as holder:
            holder.execute("SELECT FROM tenant_heads FOR UPDATE")
            restore(cell_database)
            execute(dsn, LOSE_ALL)
            wait_until(lambda: rows(dsn, HELD_UP), "the quarantine is held up")
            for path in paths * 3:
                answer = http.get(f"/api/{path}")
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), path
        told = "cloister-not-applied"
        wait_until(lambda: told in http.get("/api/ledgers").headers, "quarantined")
        for path in (paths[1], paths[2]):
            answer = http.get(f"/api/{path}")
            assert (answer.status_code, answer.headers[told]) == (503, "quarantined")


def wait_until(condition: Any, what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


@pytest.fixture
def broken(file: Path) -> Path:
    file.write_text("{}")
    return file


async def test_a_file_that_says_nothing_is_not_passed_over(
    cell_database: Any, broken: Path
) -> None:
    with pytest.raises(SettingsInvalid, match="was not restored"):
        await RestoreWatch(cell_database.writer_dsn, broken).open()
