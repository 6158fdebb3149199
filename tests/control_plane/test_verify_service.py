"""Method: a real catalog and a real cell database; another session's lock makes a verification
wait, so that it can be counted, stopped, given up and cancelled while it runs."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest

from control_plane.catalog import Catalog
from control_plane.errors import CellUnavailable, NotFound
from control_plane.routing import CellName, Epoch
from control_plane.verify.errors import VerificationBusy, VerificationStopped
from control_plane.verify.report import Job
from control_plane.verify.service import CONCURRENT_MAX, Verifications

TENANT = UUID("0190aaaa-0000-7000-8000-000000000001")
CELL = CellName("cell-a")


async def stays() -> bool:
    return False


async def leaves() -> bool:
    return True


@pytest.fixture
async def verifications(catalog: Catalog, cell_database: Any) -> Verifications:
    """Of one tenant, acme, that has written nothing yet; beta is still being created."""
    for slug in ("acme", "beta"):
        attempt = uuid4()
        tenant = await catalog.begin_tenant(
            slug,
            organization_id=TENANT if slug == "acme" else uuid4(),
            cell=CELL,
            attempt=attempt,
        )
        if slug == "acme":
            await catalog.complete_tenant(
                tenant, attempt=attempt, epoch=Epoch(1), key_id=uuid4(), actor="test"
            )
    with psycopg.connect(cell_database.writer_dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenant_heads (tenant_id, state, epoch) VALUES (%s, 'owned', 1)", (TENANT,)
        )
    return Verifications(catalog, {CELL: cell_database.auditor_dsn})


@contextmanager
def locked(cell_database: Any) -> Iterator[None]:
    """The cell's entries cannot be read meanwhile."""
    with psycopg.connect(cell_database.superuser_dsn) as connection:
        connection.execute("LOCK TABLE ledger_entries IN ACCESS EXCLUSIVE MODE")
        yield


def sessions(cell_database: Any) -> int:
    """Of the auditor, in the cell's database."""
    with psycopg.connect(cell_database.superuser_dsn) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = %s AND usename = 'cloister_auditor'",
            (cell_database.name,),
        ).fetchone()
    assert row is not None
    return int(row[0])


async def until_sessions(cell_database: Any, count: int) -> None:
    deadline = time.monotonic() + 10
    while sessions(cell_database) != count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture
async def waiting(
    verifications: Verifications, cell_database: Any
) -> AsyncIterator[list["asyncio.Task[Any]"]]:
    """As many verifications as may run at once, all of them waiting."""
    with locked(cell_database):
        tasks = [
            asyncio.create_task(verifications.verify("acme", stays)) for _ in range(CONCURRENT_MAX)
        ]
        await until_sessions(cell_database, CONCURRENT_MAX)
        yield tasks
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_a_tenant_that_wrote_nothing_verifies(verifications: Verifications) -> None:
    report = await verifications.verify("acme", stays)
    assert report.ok
    assert (report.tenant, report.cell, report.last_seq) == ("acme", CELL, 0)


async def test_tenants_that_are_not_there(verifications: Verifications) -> None:
    for slug in ("nobody", "beta"):
        with pytest.raises(NotFound, match=slug):
            await verifications.verify(slug, stays)


async def test_a_cell_that_nobody_runs(verifications: Verifications, catalog: Catalog) -> None:
    with pytest.raises(CellUnavailable, match="does not run cell-a"):
        await Verifications(catalog, {}).verify("acme", stays)


async def test_too_many_at_once_are_refused(
    verifications: Verifications, waiting: list["asyncio.Task[Any]"], cell_database: Any
) -> None:
    with pytest.raises(VerificationBusy):
        await verifications.verify("acme", stays)
    waiting[0].cancel()
    await until_sessions(cell_database, CONCURRENT_MAX - 1)


async def test_a_caller_that_left_ends_it(verifications: Verifications, cell_database: Any) -> None:
    with locked(cell_database), pytest.raises(VerificationStopped, match="caller has gone"):
        await verifications.verify("acme", leaves)
    await until_sessions(cell_database, 0)


async def test_cancelling_ends_it_and_its_session(
    waiting: list["asyncio.Task[Any]"], cell_database: Any
) -> None:
    started = time.monotonic()
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert all(task.cancelled() for task in waiting)
    assert time.monotonic() - started < 20
    await until_sessions(cell_database, 0)


async def test_a_database_that_is_away(
    catalog: Catalog, cell_database: Any, verifications: Verifications
) -> None:
    nowhere = cell_database.auditor_dsn.replace("host=", "host=/nowhere")
    with pytest.raises(CellUnavailable, match="database of cell-a"):
        await Verifications(catalog, {CELL: nowhere}).verify("acme", stays)


async def test_one_that_is_killed_has_no_result(
    verifications: Verifications, cell_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = asyncio.create_subprocess_exec
    begun: list[asyncio.subprocess.Process] = []

    async def beginning(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        begun.append(await begin(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", beginning)
    with locked(cell_database):
        verifying = asyncio.create_task(verifications.verify("acme", stays))
        await until_sessions(cell_database, 1)
        begun[0].kill()
        with pytest.raises(VerificationStopped, match="without a result"):
            await verifying


async def test_it_ends_with_whoever_asked_for_it(
    verifications: Verifications, cell_database: Any
) -> None:
    """Killed as it may be, a control plane leaves none behind."""
    job = Job(dsn=cell_database.auditor_dsn, tenant_id=str(TENANT), tenant="acme", cell=CELL)
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'control_plane.verify'],"
        " stdin=subprocess.PIPE, start_new_session=True)\n"
        "child.stdin.write(sys.stdin.buffer.readline()); child.stdin.flush()\n"
        "time.sleep(60)\n"
    )
    with locked(cell_database):
        asking = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdin=asyncio.subprocess.PIPE
        )
        assert asking.stdin is not None
        asking.stdin.write(msgspec.json.encode(job) + b"\n")
        await until_sessions(cell_database, 1)
        asking.kill()
        await asking.wait()
        await until_sessions(cell_database, 0)
