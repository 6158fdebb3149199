"""Heads that change under a running cell, as moves change them.

Method: the mover's own function on the real database, under load on the real sequencer and on a
cell process; what was acknowledged must be in the journal up to the fence, and what memory held of
a tenant must be gone from the answers as soon as its head says so.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest
from cell_process import Access, CellProcess
from cell_writing import (
    ALL_ROWS,
    Writing,
    all_of,
    execute,
    own_tenant,
    rows,
    transfer,
    until,
    write,
)

from cell.batch import Applied
from cell.head_watch import HeadWatch
from cell.ledger.model import TenantId
from cell.restore_watch import RestoreWatch
from cell.wire import Verdict

MOVE = "00000000-0000-7000-8000-000000000001"
CHANGE = """
SELECT last_seq FROM change_head(%s, 1, %s::head_state, %s, %s, NULL, NULL, %s::head_state, %s, %s,
    false, %s)
"""


def change(dsn: str, tenant_id: str, before: tuple[Any, ...], after: tuple[Any, ...]) -> int:
    """From one (state, epoch, move) to another; the head's last sequence."""
    moved_to = "cell-b" if after[0] == "moved" else None
    ((seq,),) = rows(dsn, CHANGE, tenant_id, *before, *after, moved_to)
    return int(seq)


OWNED, PINNED = ("owned", 1, None), ("owned", 1, MOVE)
FENCED, MOVED = ("fenced", 2, MOVE), ("moved", 2, MOVE)
IMPORTING, READY, BACK = ("importing", 3, MOVE), ("ready", 3, MOVE), ("owned", 3, MOVE)


@contextlib.asynccontextmanager
async def watched(database: Any, writing: Writing) -> AsyncIterator[list[TenantId | None]]:
    """The sequencer forgets as in a cell; what it was told is listed."""
    told: list[TenantId | None] = []

    def on_change(tenant_id: TenantId | None) -> None:
        told.append(tenant_id)
        writing.sequencer.memory.forget(tenant_id)

    unrestored = RestoreWatch(database.writer_dsn, None)
    running = asyncio.create_task(HeadWatch(database.writer_dsn, on_change, unrestored.open).run())
    try:
        await until(lambda: told == [None], "the watch listens")
        yield told
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("seed", range(3))
async def test_a_fence_that_races_batches_in_flight(cell_database: Any, seed: int) -> None:
    """Acknowledged is exactly what is in the journal up to the position that the fence returned."""
    chance = random.Random(seed)
    mover, dsn = cell_database.mover_dsn, cell_database.writer_dsn
    tenant_id, neighbour = own_tenant(dsn), own_tenant(dsn)
    answers: dict[TenantId, list[Any]] = {tenant_id: [], neighbour: []}
    async with (
        write(dsn, batch_size=chance.choice((2, 8, 100))) as writer,
        watched(cell_database, writer),
    ):
        accounts = {each: await writer.accounts(each, 2) for each in answers}
        is_over = asyncio.Event()

        async def client(of: TenantId, number: int) -> None:
            count = 0
            while not is_over.is_set():
                key = f"{number}-{count}"
                answers[of] += await all_of(writer.outcome(of, transfer(*accounts[of]), key=key))
                count += 1

        async with asyncio.TaskGroup() as group:
            for number in range(24):
                group.create_task(client((tenant_id, neighbour)[number % 2], number))
            await until(lambda: len(answers[tenant_id]) > chance.randrange(60), "load")
            await asyncio.to_thread(change, mover, tenant_id, OWNED, PINNED)
            await until(lambda: len(answers[tenant_id]) > 90, "load under the pin")
            last_seq = await asyncio.to_thread(change, mover, tenant_id, PINNED, FENCED)
            enough = len(answers[tenant_id]) + 30, len(answers[neighbour]) + 30
            await until(
                lambda: len(answers[tenant_id]) > enough[0] and len(answers[neighbour]) > enough[1],
                "load behind the fence",
            )
            is_over.set()
    applied = sorted(each.record.seq for each in answers[tenant_id] if isinstance(each, Applied))
    # Before the load: a ledger and two accounts.
    assert applied == list(range(4, last_seq + 1))
    refused = [each for each in answers[tenant_id] if not isinstance(each, Applied)]
    assert {(each.verdict, each.epoch) for each in refused} == {(Verdict.FENCED, 2)}
    journaled = "SELECT max(last_seq) FROM journal WHERE tenant_id = %s"
    assert rows(dsn, journaled, tenant_id) == [(last_seq,)]
    assert all(isinstance(each, Applied) for each in answers[neighbour])


@pytest.mark.parametrize("is_asked", [False, True], ids=["left alone", "asked meanwhile"])
async def test_memory_of_a_tenant_ends_with_its_head(
    cell_database: Any, writer: Writing, tenant_id: TenantId, is_asked: bool
) -> None:
    """And nothing comes back of what was read for commands that were refused meanwhile."""
    mover = cell_database.mover_dsn
    neighbour = own_tenant(cell_database.writer_dsn)
    async with watched(cell_database, writer) as told:
        accounts = {each: await writer.accounts(each, 2) for each in (tenant_id, neighbour)}
        for each in accounts:
            await writer.apply(each, transfer(*accounts[each]), key="one")

        def is_cached(of: TenantId) -> bool:
            return writer.sequencer.memory.account(of, accounts[of][0]) is not None

        for before, after in ((OWNED, PINNED), (PINNED, FENCED), (FENCED, MOVED)):
            # Neither a pin nor a fence changes what is read.
            assert is_cached(tenant_id)
            change(mover, tenant_id, before, after)
            if after == MOVED:
                await until(lambda: told[-1] == tenant_id, "told")
                assert not is_cached(tenant_id)
            if is_asked and after != PINNED:
                (refused,) = await all_of(writer.outcome(tenant_id, transfer(*accounts[tenant_id])))
                assert refused.verdict == after[0]
        assert is_cached(neighbour)
        # Elsewhere its balance changes; then it comes back, and nothing was refused meanwhile.
        execute(
            cell_database.superuser_dsn,
            "UPDATE ledger_account_balances SET lock_version = lock_version + 5"
            " WHERE tenant_id = %s",
            tenant_id,
        )
        for before, after in (
            (MOVED, IMPORTING),
            (IMPORTING, READY),
            (READY, BACK),
        ):
            change(mover, tenant_id, before, after)
        replayed = await writer.outcome(tenant_id, transfer(*accounts[tenant_id]), key="one")
        assert not isinstance(replayed, Applied)
        record = await writer.apply(tenant_id, transfer(*accounts[tenant_id]))
        assert [row.lock_version for row in record.updated] == [7, 7]
    execute(cell_database.superuser_dsn, f"TRUNCATE {ALL_ROWS}")


async def test_a_batch_on_its_way_brings_no_memory_back(
    cell_database: Any, tenant_id: TenantId
) -> None:
    async with write(cell_database.writer_dsn, batch_size=4) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        before = writer.sequencer.status.batches
        applying = [
            asyncio.create_task(writer.outcome(tenant_id, transfer(*accounts))) for _ in range(100)
        ]
        await until(lambda: writer.sequencer.status.batches > before + 3, "some are applied")
        writer.sequencer.memory.forget(tenant_id)
        assert writer.sequencer.memory.account(tenant_id, accounts[0]) is None
        await asyncio.gather(*applying)
    found = "SELECT lock_version FROM ledger_account_balances WHERE tenant_id = %s"
    assert rows(cell_database.writer_dsn, found, tenant_id) == [(100,), (100,)]


async def test_a_watch_that_was_cut_off_forgets_everything(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    cut = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'cloister-heads'
    """
    async with watched(cell_database, writer) as told:
        accounts = await writer.accounts(tenant_id, 2)
        assert writer.sequencer.memory.account(tenant_id, accounts[0]) is not None
        assert rows(cell_database.superuser_dsn, cut) == [(True,)]
        await until(lambda: len(told) >= 3, "it listens again")
        assert writer.sequencer.memory.account(tenant_id, accounts[0]) is None
        change(cell_database.mover_dsn, tenant_id, OWNED, PINNED)
        change(cell_database.mover_dsn, tenant_id, PINNED, FENCED)
        change(cell_database.mover_dsn, tenant_id, FENCED, MOVED)
        await until(lambda: told[-1] == tenant_id, "told")


def test_a_cell_answers_for_a_tenant_as_its_head_says(
    served_cell: CellProcess, access: Access, postgres: Any
) -> None:
    """Without any write, and though it had been asked a moment ago."""
    tenant_id = access.organization_id
    writer_dsn = served_cell.environment["CLOISTER_CELL_WRITER_DSN"]
    database = psycopg.conninfo.conninfo_to_dict(writer_dsn)["dbname"]
    mover = postgres.dsn("cloister_mover", database)
    with access.http() as http:
        ledger = http.post("/api/ledgers", json={"name": "Main"}).json()["id"]

        def read() -> httpx.Response:
            return http.get(f"/api/ledgers/{ledger}")

        def write_one() -> httpx.Response:
            return http.post("/api/ledgers", json={"name": "More"})

        def soon(status: int) -> httpx.Response:
            answer = read()
            for _ in range(1000):
                if answer.status_code == status:
                    break
                answer = read()
            assert answer.status_code == status, answer.text
            return answer

        assert read().status_code == 200
        change(mover, tenant_id, OWNED, PINNED)
        assert write_one().status_code == 201
        change(mover, tenant_id, PINNED, FENCED)
        assert read().status_code == 200
        refused = write_one()
        assert refused.headers["cloister-not-applied"] == "fenced"
        assert refused.headers["cloister-epoch"] == "2"
        change(mover, tenant_id, FENCED, MOVED)
        answer = soon(421)
        assert answer.headers["cloister-not-applied"] == "moved"
        assert answer.headers["cloister-moved-to"] == "cell-b"
        change(mover, tenant_id, MOVED, IMPORTING)
        answer = write_one()
        assert answer.headers["cloister-not-applied"] == "not_owner"
        change(mover, tenant_id, IMPORTING, READY)
        change(mover, tenant_id, READY, BACK)
        soon(200)
        assert write_one().status_code == 201


def test_a_change_that_is_not_expected_is_none(cell_database: Any, tenant_id: TenantId) -> None:
    with psycopg.connect(cell_database.mover_dsn) as mover:
        found = mover.execute(CHANGE, (tenant_id, *PINNED, *FENCED, None)).fetchall()
    assert found == []
