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
from control_plane.move.heads import HeadState
from control_plane.move.plan import Decision
from control_plane.move.reclaim import Reclaimer
from control_plane.routing_feed import RoutingFeed
from control_plane.verify.service import Verifications

pytestmark = pytest.mark.faults


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
    platform.writers[A].sequencer.forget(None)


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
    """The window of its move leaves the rows that a backup would bring back."""
    move = await platform.plan(A, B, 1, 2, window_s=900)
    await platform.run(move)
    quarantine(platform)
    (told,) = await reclaimer.reclaim(A, actor="test")
    assert "a move of it is open" in str(told.refused_because)
    async with platform.register._catalog.transaction() as tx:
        await tx.execute("UPDATE moves SET finished_at = now(), phase = 'commit'")
    execute(
        platform.databases[B].superuser_dsn,
        "UPDATE tenant_heads SET move_id = NULL WHERE tenant_id = %s",
        platform.tenant_id,
    )
    assert platform.rows_at(A) > 0
    (told,) = await reclaimer.reclaim(A, actor="test")
    assert (told.placed_on, told.epoch, told.refused_because) == (B, None, None)
    await platform.assert_rests_at(B, 2)


async def test_a_cell_that_is_none(reclaimer: Reclaimer) -> None:
    with pytest.raises(NotFound):
        await reclaimer.reclaim("cell-z", actor="test")
