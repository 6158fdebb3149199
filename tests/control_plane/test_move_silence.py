"""Cells that do not answer while a tenant's writes are paused, and movers that fail then.

Method: two real databases and a real catalog; a mover's connection to one of the databases is
ended, or its statement waits for a lock, at the very moment at which only that cell is needed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from cell_writing import execute, transfer
from ledger_audit import assert_ledger_holds
from moving import A, B, Platform, open_platform

from cell.batch import Applied
from control_plane.catalog import Catalog
from control_plane.move import steps
from control_plane.move.cell_heads import connect
from control_plane.move.hands import MoveStopped
from control_plane.move.heads import HeadState
from control_plane.move.movers import LOOK_S, Movers
from control_plane.move.plan import Decision, Move
from control_plane.move.register import MoveRecord, Register
from control_plane.routing import CellName
from control_plane.routing_feed import RoutingFeed
from control_plane.verify.service import Verifications
from control_plane.wire import WAITS_FOR_SHORT_PAUSE

pytestmark = pytest.mark.faults

PAUSE_MS_MAX = 60_000
"""A busy machine may stand still for longer than a tenant may be fenced."""


@pytest.fixture(autouse=True)
def patient_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "FENCED_MS_MAX", PAUSE_MS_MAX)
    monkeypatch.setattr(steps, "FENCE_LOCK_MS_MAX", 20_000)


@pytest.fixture
async def platform(catalog: Catalog, cell_pair: tuple[Any, Any]) -> AsyncIterator[Platform]:
    async with open_platform(catalog, cell_pair) as platform:
        yield platform
        for cell in platform.movers.values():
            await cell.close()
    for database in cell_pair:
        assert_ledger_holds(database.superuser_dsn)


def end_connection(platform: Platform, cell: CellName) -> None:
    """As where the database, or its machine, is gone."""
    execute(
        platform.databases[cell].superuser_dsn,
        "SELECT pg_terminate_backend(%s, 10000)",
        platform.movers[cell].info.backend_pid,
    )


async def connect_anew(platform: Platform, cell: CellName) -> None:
    await platform.movers[cell].close()
    platform.movers[cell] = await connect(platform.databases[cell].mover_dsn)


def after(
    monkeypatch: pytest.MonkeyPatch, name: str, then: Callable[[], Awaitable[None] | None]
) -> None:
    """Have this happen once, right after that step."""
    step = getattr(steps, name)

    async def called(*arguments: Any) -> Any:
        result = await step(*arguments)
        monkeypatch.setattr(steps, name, step)
        happened = then()
        if happened is not None:
            await happened
        return result

    monkeypatch.setattr(steps, name, called)


async def assert_serves(platform: Platform, cell: CellName) -> None:
    done = await platform.writers[cell].outcome(platform.tenant_id, transfer(*platform.accounts))
    assert isinstance(done, Applied)


class Died(Exception):
    """The mover is gone."""


async def die() -> None:
    raise Died


async def fenced_by_a_dead_mover(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Move:
    move = await platform.plan(A, B, 1, 2)
    after(monkeypatch, "_fence", die)
    with pytest.raises(Died):
        await platform.run(move)
    assert (await platform.head(A)).heading.state is HeadState.FENCED
    return move


async def test_a_target_that_is_gone_gives_the_tenant_back_at_once(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await platform.plan(A, B, 1, 2)
    after(monkeypatch, "_fence", lambda: end_connection(platform, B))
    with pytest.raises(MoveStopped, match="cell-b does not answer"):
        await platform.run(move)
    await assert_serves(platform, A)
    await connect_anew(platform, B)
    record = await platform.run(move)
    assert record.decision is Decision.ABORT
    assert "cell-b does not answer" in record.progress["aborted_because"]
    await platform.assert_rests_at(A, 2)


async def test_a_target_that_cannot_be_reached_gives_back_what_was_found_fenced(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await fenced_by_a_dead_mover(platform, monkeypatch)
    hands = await platform.hands(move)
    del hands.cells[steps.Side.TARGET]
    hands.silent[steps.Side.TARGET] = "nobody listens"
    with pytest.raises(MoveStopped, match="nobody listens"):
        await steps.run_move(hands)
    await assert_serves(platform, A)
    assert (await platform.run(move)).decision is Decision.ABORT
    await platform.assert_rests_at(A, 2)


async def test_a_source_that_is_gone_does_not_keep_the_target_from_serving(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await platform.plan(A, B, 1, 2)
    after(monkeypatch, "_decide", lambda: end_connection(platform, A))
    with pytest.raises(MoveStopped, match="cell-a does not answer"):
        await platform.run(move)
    await assert_serves(platform, B)
    await connect_anew(platform, A)
    assert (await platform.run(move)).decision is Decision.COMMIT
    await platform.assert_rests_at(B, 2)


async def test_an_abort_needs_no_target(platform: Platform) -> None:
    move = await platform.plan(A, B, 1, 2)
    assert await platform.register.ask_abort(move.move_id, "the test wants it")
    end_connection(platform, B)
    with pytest.raises(MoveStopped):
        await platform.run(move)
    await assert_serves(platform, A)
    assert (await platform.register.read(move.move_id)).decision is Decision.ABORT
    await connect_anew(platform, B)
    await platform.run(move)
    await platform.assert_rests_at(A, 2)


async def test_a_fence_of_which_nothing_is_heard_is_read_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await platform.plan(A, B, 1, 2)
    dsn = platform.databases[A].superuser_dsn
    async with await psycopg.AsyncConnection.connect(dsn) as holder:

        async def hold() -> None:
            await holder.execute("LOCK tenant_heads")
            monkeypatch.setattr(steps, "FENCED_MS_MAX", 200)

        after(monkeypatch, "_open_gate", hold)
        with pytest.raises(MoveStopped, match="cell-a does not answer"):
            await platform.run(move)
        await holder.rollback()
    monkeypatch.setattr(steps, "FENCED_MS_MAX", PAUSE_MS_MAX)
    await connect_anew(platform, A)
    assert (await platform.run(move)).decision is Decision.COMMIT
    await platform.assert_rests_at(B, 2)


async def test_a_fence_that_waits_for_a_batch_is_put_off_and_says_so(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "FENCE_LOCK_MS_MAX", 50)
    move = await platform.plan(A, B, 1, 2)
    seen: list[MoveRecord] = []
    dsn = platform.databases[A].superuser_dsn
    async with await psycopg.AsyncConnection.connect(dsn) as batch:

        async def begin_batch() -> None:
            query = "SELECT 1 FROM tenant_heads WHERE tenant_id = %s FOR UPDATE"
            await batch.execute(query, (platform.tenant_id,))

        async def end_batch() -> None:
            seen.append(await platform.register.read(move.move_id))
            await batch.rollback()

        after(monkeypatch, "_open_gate", begin_batch)
        after(monkeypatch, "_fence", end_batch)
        assert (await platform.run(move)).decision is Decision.COMMIT
    assert [each.phase for each in seen] == [WAITS_FOR_SHORT_PAUSE]
    assert seen[0].progress["gate"] == "a batch took more than 50 ms"
    await platform.assert_rests_at(B, 2)


async def test_who_failed_in_the_pause_does_not_pause_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await fenced_by_a_dead_mover(platform, monkeypatch)
    await steps.run_move(await platform.hands(move, has_failed=True))
    record = await platform.register.read(move.move_id)
    assert record.decision is Decision.ABORT
    assert "failed in the pause" in record.progress["aborted_because"]
    await platform.assert_rests_at(A, 2)


async def test_nobody_claims_to_know_a_pause_that_another_began(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await fenced_by_a_dead_mover(platform, monkeypatch)
    record = await platform.run(move)
    assert record.decision is Decision.COMMIT
    assert "pause_ms" not in record.progress
    await platform.assert_rests_at(B, 2)


async def test_journals_that_differ_at_the_cut_are_named(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = await platform.plan(A, B, 1, 2)

    def damage() -> None:
        execute(
            platform.databases[B].superuser_dsn,
            "UPDATE tenant_heads SET last_hash = sha256('another') WHERE tenant_id = %s",
            platform.tenant_id,
        )

    after(monkeypatch, "_fence", damage)
    record = await platform.run(move)
    assert record.decision is Decision.ABORT
    assert "journals end at" in record.progress["differences"][0]
    await platform.assert_rests_at(A, 2)


async def test_who_finds_a_move_held_leaves_it_alone_for_a_while(
    platform: Platform, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second control plane, while the first one works."""
    move = await platform.plan(A, B, 1, 2)
    assert await platform.register.take_lease(move.move_id, uuid4()) is not None
    asked_s: list[float] = []
    is_enough = asyncio.Event()
    take_lease = Register.take_lease

    async def ask(register: Register, *rest: Any) -> int | None:
        asked_s.append(time.monotonic())
        if len(asked_s) == 3:
            is_enough.set()
        return await take_lease(register, *rest)

    monkeypatch.setattr(Register, "take_lease", ask)
    dsns = {cell: database.mover_dsn for cell, database in platform.databases.items()}
    movers = Movers(catalog, RoutingFeed(catalog), Verifications(catalog, {}), dsns)
    running = asyncio.create_task(movers.run())
    async with asyncio.timeout(120):
        await is_enough.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert asked_s[2] - asked_s[0] >= 2 * LOOK_S - 0.1
