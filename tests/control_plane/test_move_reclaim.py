"""What becomes of tenants that a restored cell has quarantined.

Method: two real databases of cells and a real catalog; the quarantine is what a cell does at its
start (`cell/restore_watch.py`), put into the heads by hand.
"""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from cell_writing import execute, transfer
from moving import A, B, Platform, open_platform

from cell.batch import Applied
from cell.errors import NotApplied
from control_plane.catalog import Catalog
from control_plane.errors import NotFound
from control_plane.move import reclaim
from control_plane.move.hands import MoveStopped
from control_plane.move.heads import Heading, HeadState
from control_plane.move.plan import Decision
from control_plane.move.reclaim import Reclaimer
from control_plane.move.steps import run_move
from control_plane.routing import Epoch
from control_plane.routing_feed import RoutingFeed
from control_plane.verify.service import Verifications


@pytest.fixture
async def platform(catalog: Catalog, cell_pair: tuple[Any, Any]) -> AsyncIterator[Platform]:
    async with open_platform(catalog, cell_pair) as platform:
        yield platform


@pytest.fixture
def reclaimer(catalog: Catalog, platform: Platform) -> Reclaimer:
    databases = platform.databases
    verifications = Verifications(catalog, {c: d.auditor_dsn for c, d in databases.items()})
    dsns = {cell: database.mover_dsn for cell, database in databases.items()}
    return Reclaimer(catalog, RoutingFeed(catalog), verifications, dsns)


def quarantine(platform: Platform) -> None:
    execute(
        platform.databases[A].superuser_dsn,
        "UPDATE tenant_heads SET state = 'quarantined', move_id = NULL WHERE tenant_id = %s",
        platform.tenant_id,
    )
    platform.writers[A].sequencer.memory.forget(None)


async def test_a_tenant_placed_there_is_served_again(
    platform: Platform, reclaimer: Reclaimer
) -> None:
    quarantine(platform)
    with pytest.raises(NotApplied):
        await platform.writers[A].outcome(platform.tenant_id, transfer(*platform.accounts))
    (told,) = await reclaimer.reclaim(A, actor="test")
    assert (told.tenant, told.placed_on, told.epoch) == ("acme", A, 2)
    assert told.refused_because is None
    head = await platform.head(A)
    assert (head.heading.state, head.heading.epoch) == (HeadState.OWNED, 2)
    assert (await platform.register.seen(UUID(platform.tenant_id)))[:2] == (A, 2)
    done = await platform.writers[A].outcome(platform.tenant_id, transfer(*platform.accounts))
    assert isinstance(done, Applied)
    assert await reclaimer.reclaim(A, actor="test") == []
    # It can be moved as any other.
    record = await platform.run(await platform.plan(A, B, 2, 3))
    assert record.decision is Decision.COMMIT


async def test_a_wrong_ledger_stays_where_it_is(platform: Platform, reclaimer: Reclaimer) -> None:
    quarantine(platform)
    execute(
        platform.databases[A].superuser_dsn,
        "UPDATE ledger_account_balances SET posted_debits = posted_debits + 1"
        " WHERE ledger_account_id = %s",
        platform.accounts[0],
    )
    (told,) = await reclaimer.reclaim(A, actor="test")
    assert "ledger is wrong" in str(told.refused_because)
    assert (await platform.head(A)).heading.state is HeadState.QUARANTINED


async def test_old_rows_of_one_that_lives_elsewhere_are_deleted(
    platform: Platform, reclaimer: Reclaimer
) -> None:
    """The window of its move leaves the rows that a backup would bring back; it is closed."""
    move = await platform.plan(A, B, 1, 2, window_s=900)
    await platform.run(move)
    quarantine(platform)
    assert platform.rows_at(A) > 0
    (told,) = await reclaimer.reclaim(A, actor="test")
    assert (told.placed_on, told.epoch, told.refused_because) == (B, 3, None)
    assert (await platform.head(B)).heading == Heading(HeadState.OWNED, Epoch(3), None)
    assert (await platform.head(A)).heading.state is HeadState.MOVED
    assert platform.rows_at(A) == 0
    assert (await platform.register.read(move.move_id)).finished_at is not None
    assert await reclaimer.reclaim(B, actor="test") == []
    record = await platform.run(await platform.plan(B, A, 3, 4))
    assert record.decision is Decision.COMMIT


async def test_the_only_copy_and_the_longer_one_are_not_deleted(
    platform: Platform, reclaimer: Reclaimer
) -> None:
    await platform.run(await platform.plan(A, B, 1, 2, window_s=900))
    quarantine(platform)
    # The other database is older still: it has never heard of the tenant.
    heads = "UPDATE tenant_heads SET {} WHERE tenant_id = %s"
    at_b = platform.databases[B].superuser_dsn
    execute(at_b, heads.format("state = 'moved'"), platform.tenant_id)
    (told,) = await reclaimer.reclaim(A, actor="test")
    assert "does not have it" in str(told.refused_because)
    # Or it has less.
    execute(at_b, heads.format("state = 'owned', last_seq = last_seq - 1"), platform.tenant_id)
    (told,) = await reclaimer.reclaim(A, actor="test")
    assert "--accept-loss" in str(told.refused_because)
    assert platform.rows_at(A) > 0
    assert (await platform.head(A)).heading.state is HeadState.QUARANTINED
    execute(at_b, heads.format("last_seq = last_seq + 1"), platform.tenant_id)
    (told,) = await reclaimer.reclaim(A, accepts_loss=True, actor="test")
    assert (told.placed_on, told.refused_because) == (B, None)


async def test_what_was_left_half_done_is_finished(
    platform: Platform, reclaimer: Reclaimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    async def kill(*_: Any) -> None:
        raise Killed

    await platform.run(await platform.plan(A, B, 1, 2, window_s=900))
    quarantine(platform)
    with monkeypatch.context() as patched:
        patched.setattr(reclaim, "delete_rows", kill)
        with pytest.raises(Killed):
            await reclaimer.reclaim(A, actor="test")
    assert platform.rows_at(A) > 0
    (told,) = await reclaimer.reclaim(A, actor="test")
    assert told.refused_because is None
    assert platform.rows_at(A) == 0
    assert (await platform.head(A)).heading.move_id is None


async def test_a_restored_target_does_not_keep_the_source(
    platform: Platform, reclaimer: Reclaimer
) -> None:
    """The move is closed; the tenant, fenced already, is served where it is placed."""
    move = await platform.plan(A, B, 1, 2)
    hands = await platform.hands(move)

    async def stop(point: str) -> None:
        if point == "before seal":
            raise MoveStopped

    hands.reach = stop
    with pytest.raises(MoveStopped):
        await run_move(hands)
    execute(
        platform.databases[B].superuser_dsn,
        "UPDATE tenant_heads SET state = 'quarantined', move_id = NULL WHERE tenant_id = %s",
        platform.tenant_id,
    )
    (told,) = await reclaimer.reclaim(B, actor="test")
    assert (told.placed_on, told.epoch, told.refused_because) == (A, 3, None)
    assert (await platform.head(A)).heading == Heading(HeadState.OWNED, Epoch(3), None)
    assert platform.rows_at(B) == 0
    done = await platform.writers[A].outcome(platform.tenant_id, transfer(*platform.accounts))
    assert isinstance(done, Applied)


async def test_a_cell_that_is_none(reclaimer: Reclaimer) -> None:
    with pytest.raises(NotFound):
        await reclaimer.reclaim("cell-z", actor="test")
