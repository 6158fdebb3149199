"""The loops. Method: single passes against real databases and a small cell, then the sentences."""

import asyncio
from typing import Any

import psycopg
import pytest

from cell.schema import SCHEMA_VERSION
from control_plane.app import ControlPlane
from control_plane.catalog import Catalog
from control_plane.cells import CellClient
from control_plane.reconcile import CellReconciler, Pass, backoff_s, repeat
from control_plane.routing import CellName
from control_plane.topology import parse_topology

TUNED = """\
cells:
  cell-a:
    vacuum: {journal: {autovacuum_vacuum_threshold: 777}}
    indexes: [{name: when, table: ledger_transactions, expression: effective_at_us DESC}]
"""


def reconciler(dsn: str, client: CellClient, catalog: Catalog, text: str = TUNED) -> CellReconciler:
    return CellReconciler(parse_topology(text, "cells.yaml").cells[0], dsn, client, catalog)


async def test_an_empty_database_gets_its_schema_and_its_tuning(
    empty_cell_dsn: str, cell_client: CellClient, catalog: Catalog
) -> None:
    loop = reconciler(empty_cell_dsn, cell_client, catalog)
    first = await loop.ensure()
    assert first.settled
    assert first.sentence.startswith(
        f"schema at version {SCHEMA_VERSION}; set autovacuum_vacuum_threshold = 777 on journal;"
        " built index custom_when_"
    )
    again = await loop.ensure()
    assert again.settled
    assert again.sentence == f"schema at version {SCHEMA_VERSION}; tuned as desired"


async def test_an_absent_postgres_is_said_and_tried_again(
    cell_client: CellClient, catalog: Catalog
) -> None:
    result = await reconciler("host=127.0.0.1 port=1", cell_client, catalog).ensure()
    assert not result.settled
    assert "schema of cell-a was not migrated" in result.sentence


async def test_a_newer_schema_is_said(
    cell_dsn: str, cell_client: CellClient, catalog: Catalog
) -> None:
    async with await psycopg.AsyncConnection.connect(cell_dsn) as connection:
        await connection.execute("INSERT INTO schema_migrations (version) VALUES (9000)")
    result = await reconciler(cell_dsn, cell_client, catalog).ensure()
    assert not result.settled
    assert "9000" in result.sentence


async def test_a_refused_index_is_not_settled(
    cell_dsn: str, cell_client: CellClient, catalog: Catalog
) -> None:
    text = "cells: {cell-a: {indexes: [{name: a, table: journal, expression: colour}]}}"
    result = await reconciler(cell_dsn, cell_client, catalog, text).ensure()
    assert not result.settled
    assert 'failed: index a (line 1 of cells.yaml): column "colour"' in result.sentence


async def test_a_cell_is_observed_with_its_rate(
    cell_client: CellClient, small_cell: Any, catalog: Catalog
) -> None:
    loop = reconciler("", cell_client, catalog)
    assert (await loop.observe()).sentence == "healthy"
    assert (loop.observed.healthy, loop.observed.commands_per_second) == (True, None)
    small_cell.commands_applied = 1000
    await loop.observe()
    assert loop.observed.commands_per_second is not None
    assert loop.observed.commands_per_second > 0
    assert (loop.observed.queue_depth, loop.observed.batch_ms_p99) == (5, 7.5)
    async with catalog.transaction() as tx:
        cursor = await tx.execute("SELECT observed FROM cells WHERE name = 'cell-a'")
        row = await cursor.fetchone()
    assert row is not None
    assert row["observed"]["healthy"] is True


async def test_an_unhealthy_and_an_absent_cell_are_observations(
    cell_client: CellClient, small_cell: Any, catalog: Catalog
) -> None:
    loop = reconciler("", cell_client, catalog)
    await loop.observe()
    small_cell.unhealthy = "its Postgres is away"
    assert (await loop.observe()).sentence == "its Postgres is away"
    assert loop.observed.tenants == 0, "it still answers"
    small_cell.unhealthy = None
    small_cell.token = "another token"
    assert "refused GET /operator/status (401)" in (await loop.observe()).sentence
    assert loop.observed.tenants is None


async def test_a_tenants_index_is_built_when_its_tenant_comes(
    plane: ControlPlane, cell_dsn: str
) -> None:
    loop = plane.fleet.reconcilers[CellName("cell-a")]
    first = await loop.ensure()
    assert "index region waits for tenant acme" in first.sentence
    assert first.settled
    # Wherever it is: it could not be moved to a cell that lacks its index.
    await plane.provisioning.create_tenant("acme", "cell-b", actor="test")
    assert "built index custom_region_" in (await loop.ensure()).sentence


async def test_passes_repeat_with_pauses_and_at_once_when_woken() -> None:
    woken, done = asyncio.Event(), asyncio.Queue[int]()
    passes = 0

    async def step() -> Pass:
        nonlocal passes
        passes += 1
        done.put_nowait(passes)
        if passes == 1:
            raise ValueError("a mistake must not end the loop")
        return Pass(sentence="done", settled=True)

    loop = asyncio.create_task(repeat("test", step, 3600, woken))
    async with asyncio.timeout(60):
        assert await done.get() == 1
        assert await done.get() == 2, "after the first pause"
        woken.set()
        assert await done.get() == 3, "woken, long before 3600 s"
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop


async def test_the_words_of_an_unhealthy_cell_go_before_our_own(
    cell_client: CellClient, small_cell: Any, catalog: Catalog
) -> None:
    small_cell.unhealthy = "its Postgres is away"
    small_cell.token = "another token"
    assert (await reconciler("", cell_client, catalog).observe()).sentence == "its Postgres is away"


def test_backoff_doubles_up_to_its_bound() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 7, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
    assert backoff_s(1000, 600.0) == 600.0
