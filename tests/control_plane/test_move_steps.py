"""Whole moves between two real databases of cells, decided in a real catalog.

Method: clients go on writing through both cells' sequencers as routers would let them; the mover is
stopped at every line where it can be, and another one goes on. Afterwards what was acknowledged,
and nothing else, is in the journal of the owner, which the audit then executes again.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest
from cell_writing import all_of, execute, transfer
from ledger_audit import assert_ledger_holds
from moving import A, B, Platform, open_platform

from cell.batch import Applied
from control_plane.catalog import Catalog
from control_plane.errors import MoveDecided, MoveInProgress, PlacementRefused, WindowClosed
from control_plane.move import obstacles, register, steps, tail
from control_plane.move.cell_heads import Cell, connect, read_head
from control_plane.move.hands import Hands, MoveIllegal, MoveStopped, View
from control_plane.move.heads import HeadState
from control_plane.move.movers import Movers
from control_plane.move.plan import Decision, Move
from control_plane.move.register import MoveRecord, Register
from control_plane.move.steps import run_move
from control_plane.routing_feed import RoutingFeed
from control_plane.verify.service import Verifications

ROLLBACKS = 5


@pytest.fixture(autouse=True)
def patient_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may stand still for longer than a tenant may be fenced."""
    monkeypatch.setattr(steps, "FENCED_MS_MAX", 60_000)
    monkeypatch.setattr(steps, "FENCE_LOCK_MS_MAX", 20_000)
    monkeypatch.setattr(register, "LEASE_S", 600.0)
    monkeypatch.setattr(register, "PAUSE_LEASE_S", 300.0)


@pytest.fixture
async def platform(catalog: Catalog, cell_pair: tuple[Any, Any]) -> AsyncIterator[Platform]:
    async with open_platform(catalog, cell_pair) as platform:
        yield platform
    for database in cell_pair:
        assert_ledger_holds(database.superuser_dsn)


async def test_there_and_back_under_load(platform: Platform) -> None:
    told: dict[str, int] = {}
    is_over = asyncio.Event()
    before = (await platform.head(A)).position.seq
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(platform.client(number, told, is_over))
        try:
            first = await platform.run(await platform.plan(A, B, 1, 2))
            second = await platform.run(await platform.plan(B, A, 2, 3))
        finally:
            is_over.set()
    for record in (first, second):
        assert record.decision is Decision.COMMIT
        assert record.phase == "commit"
        assert record.finished_at is not None
        assert record.progress["pause_ms"] > 0
        assert record.progress["differences"] == []
    await platform.assert_rests_at(A, 3)
    # Every acknowledged write once, and no other; the audit looks at the rest.
    assert sorted(told.values()) == list(range(before + 1, before + 1 + len(told)))
    assert len(told) > 10
    # A key that was used at the other cell is known here.
    key, seq = next(iter(told.items()))
    again = await platform.writers[A].outcome(
        platform.tenant_id, transfer(*platform.accounts), key=key
    )
    assert getattr(again, "seq", None) == seq


@pytest.mark.faults
async def test_rolled_back_under_load_again_and_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rollback takes over from the move before it; nothing is copied but at the beginning."""
    monkeypatch.setattr(steps, "SHADOW_VERIFIED_S_MAX", 0.0)
    told: dict[str, int] = {}
    is_over = asyncio.Event()
    before = (await platform.head(A)).position.seq
    moves: list[Move] = []
    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(platform.client(number, told, is_over))
        try:
            for turn in range(ROLLBACKS + 1):
                source, target = (A, B) if turn % 2 == 0 else (B, A)
                last = moves[-1].move_id if moves else None
                move = await platform.plan(
                    source, target, turn + 1, turn + 2, window_s=900, follows=last
                )
                moves.append(move)
                record = await platform.run(move)
                assert record.decision is Decision.COMMIT, record
                assert record.window_is_open
                assert record.progress["shadow_differences"] == []
                assert ("rows" in record.progress) == (turn == 0)
                assert record.finished_at is None
        finally:
            is_over.set()
    # Another visit brings the shadow to the end; then the window is closed.
    assert (await platform.run(moves[-1])).progress["shadow_seq"] == before + len(told)
    assert await platform.register.end_window(moves[-1].move_id, actor="test")
    assert (await platform.run(moves[-1])).finished_at is not None
    owner = moves[-1].target
    await platform.assert_rests_at(owner, ROLLBACKS + 2)
    assert sorted(told.values()) == list(range(before + 1, before + 1 + len(told)))
    records = [await platform.register.read(move.move_id) for move in moves]
    assert [record.phase for record in records] == ["rolled back"] * ROLLBACKS + ["commit"]


async def test_an_aborted_rollback_leaves_the_tenant_where_it_is(platform: Platform) -> None:
    first = await platform.plan(A, B, 1, 2, window_s=900)
    await platform.run(first)
    back = await platform.plan(B, A, 2, 3, follows=first.move_id)
    assert await platform.register.ask_abort(back.move_id, "the test wants it")
    assert (await platform.run(back)).decision is Decision.ABORT
    await platform.assert_rests_at(B, 3)
    with pytest.raises(WindowClosed):
        await platform.plan(B, A, 3, 4, follows=first.move_id)


async def test_a_shadow_that_differs_is_seen_and_not_gone_back_to(platform: Platform) -> None:
    first = await platform.plan(A, B, 1, 2, window_s=900)
    await platform.run(first)
    execute(
        platform.databases[A].superuser_dsn,
        "UPDATE ledger_account_balances SET posted_debits = posted_debits + 1"
        " WHERE ledger_account_id = %s",
        platform.accounts[0],
    )
    async with platform.register._catalog.transaction() as tx:
        await tx.execute("UPDATE moves SET progress = progress - 'shadow_compared_at_s'")
    record = await platform.run(first)
    assert platform.accounts[0] in str(record.progress["shadow_differences"])
    back = await platform.plan(B, A, 2, 3, follows=first.move_id)
    record = await platform.run(back)
    assert record.decision is Decision.ABORT
    assert platform.accounts[0] in str(record.progress["aborted_because"])
    await platform.assert_rests_at(B, 3)


class Killed(Exception):
    """The mover is gone."""


@dataclass
class Killer:
    """Stops the mover at its n-th statement on a cell or the catalog, before or after it."""

    left: int
    is_after: bool

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def called(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.is_after:
                raise Killed
            result = await function(*arguments, **options)
            if self.left == 0:
                raise Killed
            return result

        return called


KILLED = ("change_head", "copy_rows", "delete_rows", "follow", "compare_rows")


@pytest.mark.parametrize("wants_abort", [False, True], ids=["committed", "aborted"])
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
async def test_whoever_comes_next_goes_on(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, is_after: bool, wants_abort: bool
) -> None:
    """The mover dies at one statement after another; each time another mover follows."""
    move = await platform.plan(A, B, 1, 2)
    originals = {name: getattr(steps, name) for name in KILLED}
    decide = Register.decide
    chance = random.Random(1)
    deaths = 0
    for statement in itertools.count(1):
        killer = Killer(statement if not is_after else 1 + statement // 2, is_after)
        for name, function in originals.items():
            monkeypatch.setattr(steps, name, killer.around(function))
        monkeypatch.setattr(Register, "decide", killer.around(decide))
        if wants_abort and deaths == 5:
            await platform.register.ask_abort(move.move_id, "the test wants it")
        try:
            await run_move(await platform.hands(move))
            break
        except Killed:
            deaths += 1
        for cell in (A, B):
            await platform.movers[cell].rollback()
            await all_of(
                platform.writers[cell].outcome(
                    platform.tenant_id, transfer(*platform.accounts, amount=chance.randrange(9))
                )
            )
        assert statement < 60
    record = await platform.register.read(move.move_id)
    assert record.finished_at is not None
    assert deaths > 5
    if wants_abort:
        assert record.decision is Decision.ABORT
        await platform.assert_rests_at(A, 2)
    else:
        assert record.decision is Decision.COMMIT
        await platform.assert_rests_at(B, 2)


async def test_rows_that_differ_stop_the_move(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One balance is corrupted at the target: it is named, and the source goes on as before."""
    copy_rows = steps.copy_rows

    async def copy_badly(source: Cell, target: Cell, job: Any, *rest: Any) -> Any:
        copied = await copy_rows(source, target, job, *rest)
        execute(
            platform.databases[B].superuser_dsn,
            "UPDATE ledger_account_balances SET posted_debits = posted_debits + 1"
            " WHERE ledger_account_id = %s",
            platform.accounts[0],
        )
        return copied

    monkeypatch.setattr(steps, "copy_rows", copy_badly)
    record = await platform.run(await platform.plan(A, B, 1, 2))
    assert record.decision is Decision.ABORT
    assert platform.accounts[0] in str(record.progress["aborted_because"])
    assert "ledger_account_balances" in str(record.progress["aborted_because"])
    assert "pause_ms" not in record.progress
    await platform.assert_rests_at(A, 2)
    done = await platform.writers[A].outcome(platform.tenant_id, transfer(*platform.accounts))
    assert isinstance(done, Applied)
    monkeypatch.setattr(steps, "copy_rows", copy_rows)
    record = await platform.run(await platform.plan(A, B, 2, 3))
    assert record.decision is Decision.COMMIT
    await platform.assert_rests_at(B, 3)


async def test_rows_are_not_compared_again_right_after_the_pause(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare_rows = steps.compare_rows
    compared = 0

    async def counting(*arguments: Any) -> Any:
        nonlocal compared
        compared += 1
        return await compare_rows(*arguments)

    monkeypatch.setattr(steps, "compare_rows", counting)
    move = await platform.plan(A, B, 1, 2, window_s=900)
    for _ in range(2):
        record = await platform.run(move)
        assert record.progress["shadow_seq"] is not None
    assert compared == 1
    monkeypatch.setattr(steps, "SHADOW_VERIFIED_S_MAX", 0.0)
    await platform.run(move)
    assert compared == 2


async def test_nothing_is_fenced_while_much_is_left_to_follow(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little a step may bring: what was written during a long comparison comes first."""
    monkeypatch.setattr(tail, "SEGMENTS_PER_STEP", 1)
    compare_rows = steps.compare_rows

    async def compare_slowly(*arguments: Any) -> Any:
        found = await compare_rows(*arguments)
        for _ in range(2 * steps.CLOSE_SEQUENCES):
            await platform.writers[A].apply(platform.tenant_id, transfer(*platform.accounts))
        return found

    monkeypatch.setattr(steps, "compare_rows", compare_slowly)
    move = await platform.plan(A, B, 1, 2)
    hands = await platform.hands(move)
    left: list[int] = []

    async def reach(point: str) -> None:
        if point == "before fence":
            heads = [await read_head(c, move.tenant_id) for c in (hands.source, hands.target)]
            left.append(heads[0].position.seq - heads[1].position.seq)  # type: ignore[union-attr]

    hands.reach = reach
    await run_move(hands)
    assert len(left) == 1
    assert 0 <= left[0] <= steps.CLOSE_SEQUENCES
    await platform.assert_rests_at(B, 2)


async def test_databases_of_another_shape_are_not_copied_between(platform: Platform) -> None:
    execute(platform.databases[B].superuser_dsn, "ALTER TABLE ledgers ADD COLUMN extra int")
    record = await platform.run(await platform.plan(A, B, 1, 2))
    assert record.decision is Decision.ABORT
    assert "only at the target: column ledgers" in str(record.progress["aborted_because"])
    await platform.assert_rests_at(A, 2)
    execute(platform.databases[B].superuser_dsn, "ALTER TABLE ledgers DROP COLUMN extra")


async def test_what_forbids_a_move(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    target = platform.databases[B]
    tenant_id = UUID(platform.tenant_id)

    async def found() -> str:
        """On connections that know what was set meanwhile."""
        async with (
            await connect(platform.databases[A].mover_dsn) as at_source,
            await connect(target.mover_dsn) as at_target,
        ):
            return "; ".join(await obstacles.obstacles(at_source, at_target, tenant_id))

    assert await found() == ""
    name = psycopg.conninfo.conninfo_to_dict(target.superuser_dsn)["dbname"]
    execute(target.superuser_dsn, f"ALTER DATABASE {name} SET synchronous_commit = off")
    assert await found() == "synchronous_commit is off at the target"
    execute(target.superuser_dsn, f"ALTER DATABASE {name} RESET synchronous_commit")
    own = f"CREATE INDEX custom_own_00000000 ON ledgers (name) WHERE tenant_id = '{tenant_id}'"
    execute(platform.databases[A].superuser_dsn, own)
    assert "own indexes custom_own_00000000" in await found()
    execute(target.superuser_dsn, own)
    assert await found() == ""
    for each in (A, B):
        execute(platform.databases[each].superuser_dsn, "DROP INDEX custom_own_00000000")
    ahead = f"{obstacles.CLOCK} + CASE current_database() WHEN '{name}' THEN 10 ELSE 0 END"
    monkeypatch.setattr(obstacles, "CLOCK", ahead)
    assert "the clocks of the two are" in await found()


async def test_a_target_that_hangs_costs_a_short_pause_only(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "FENCED_MS_MAX", 300)
    move = await platform.plan(A, B, 1, 2)
    async with await psycopg.AsyncConnection.connect(platform.databases[B].superuser_dsn) as holder:
        fence = steps._fence

        async def fence_and_hang(hands: Hands, *rest: Any) -> Any:
            await holder.execute("LOCK tenant_heads")
            return await fence(hands, *rest)

        monkeypatch.setattr(steps, "_fence", fence_and_hang)
        with pytest.raises(MoveStopped):
            await run_move(await platform.hands(move))
        # The source has its tenant back though the target has not answered yet.
        assert (await platform.head(A)).heading.state is HeadState.OWNED
        done = await platform.writers[A].outcome(platform.tenant_id, transfer(*platform.accounts))
        assert isinstance(done, Applied)
        await holder.rollback()
    monkeypatch.setattr(steps, "_fence", fence)
    platform.movers[B] = await connect(platform.databases[B].mover_dsn)
    try:
        record = await platform.run(move)
        assert record.decision is Decision.ABORT
        assert "300 ms" in str(record.progress["aborted_because"])
        await platform.assert_rests_at(A, 2)
    finally:
        await platform.movers[B].close()


async def test_whoever_dies_in_the_pause_is_soon_followed(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is short from before the fence until writes are taken again, and long after."""
    change_head = steps.change_head
    leases: dict[str, float] = {}

    async def note_lease(cell: Cell, tenant_id: UUID, change: Any, *rest: Any, **kind: Any) -> Any:
        async with platform.register._catalog.transaction() as tx:
            query = "SELECT lease_until - now() AS left FROM moves WHERE finished_at IS NULL"
            row = await (await tx.execute(query)).fetchone()
        assert row is not None
        leases[change.name] = row["left"].total_seconds()
        return await change_head(cell, tenant_id, change, *rest, **kind)

    monkeypatch.setattr(steps, "change_head", note_lease)
    await platform.run(await platform.plan(A, B, 1, 2))
    for name in ("fence", "seal", "activate"):
        assert leases[name] <= register.PAUSE_LEASE_S
    assert leases["prepare"] > register.PAUSE_LEASE_S


async def test_the_source_keeps_its_rows_until_the_target_is_recomputed(
    platform: Platform,
) -> None:
    move = await platform.plan(A, B, 1, 2)
    platform.wrong = ["off by one"]
    with pytest.raises(MoveIllegal, match="off by one"):
        await platform.run(move)
    assert (await platform.head(B)).heading.state is HeadState.OWNED
    assert platform.rows_at(A) > 0
    platform.wrong = []
    assert (await platform.run(move)).decision is Decision.COMMIT
    await platform.assert_rests_at(B, 2)


async def test_a_mover_whose_lease_is_over_changes_nothing(platform: Platform) -> None:
    """It sleeps after each act; meanwhile another one does the rest."""
    move = await platform.plan(A, B, 1, 2)
    zombie = await platform.hands(move)
    record = await platform.run(move)
    before = (await platform.head(A), await platform.head(B))
    assert record.decision is Decision.COMMIT
    view = View(decision=None, source=None, target=None)
    for act in zombie_acts(move):
        assert await steps._change(zombie, view, act) is None
    assert (await platform.head(A), await platform.head(B)) == before
    assert await platform.register.decide(move, Decision.ABORT) is Decision.COMMIT


def zombie_acts(move: Move) -> list[Any]:
    from control_plane.move.plan import _Changes

    changes = _Changes(move)
    return [
        changes.pin(changes.unpinned[0]),
        changes.prepare(None),
        changes.fence,
        changes.tombstone,
        changes.activate,
    ]


# Movers, as a control plane runs them -------------------------------------------------------------


def movers_of(platform: Platform, catalog: Catalog) -> Movers:
    auditors = {cell: database.auditor_dsn for cell, database in platform.databases.items()}
    dsns = {cell: database.mover_dsn for cell, database in platform.databases.items()}
    return Movers(catalog, RoutingFeed(catalog), Verifications(catalog, auditors), dsns)


async def finished(movers: Movers, move_id: UUID) -> MoveRecord:
    async with asyncio.timeout(300):
        while (record := await movers.register.read(move_id)).finished_at is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # as whoever waits for a move from outside
    return record


async def test_a_mover_that_ends_is_followed_by_another(
    platform: Platform, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two control planes; the one that works is stopped in the middle of the copy."""
    copy_rows = steps.copy_rows
    copying = asyncio.Event()

    async def copy_for_ever(*_: Any) -> None:
        copying.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(steps, "copy_rows", copy_for_ever)
    first, second = movers_of(platform, catalog), movers_of(platform, catalog)
    running = [asyncio.create_task(each.run()) for each in (first, second)]
    planned = await first.plan("acme", "cell-b", actor="test", max_pause_ms=60_000)
    with pytest.raises(MoveInProgress):
        await second.plan("acme", "cell-b", actor="test")
    async with asyncio.timeout(120):
        await copying.wait()
    holders = [each for each in (first, second) if each._running]
    monkeypatch.setattr(steps, "copy_rows", copy_rows)
    running[0 if first in holders else 1].cancel()
    record = await finished(second, planned.move.move_id)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert record.decision is Decision.COMMIT
    # The ledger was recomputed from its journal by the real verification.
    await platform.assert_rests_at(B, 2)
    with pytest.raises(MoveDecided):
        await second.abort(planned.move.move_id)


async def test_an_operator_aborts(
    platform: Platform, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While rows would be followed for ever: the gate never opens."""
    monkeypatch.setattr(steps, "_is_verified", lambda hands: False)
    movers = movers_of(platform, catalog)
    running = asyncio.create_task(movers.run())
    planned = await movers.plan("acme", "cell-b", actor="test")
    await movers.abort(planned.move.move_id)
    record = await finished(movers, planned.move.move_id)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert record.decision is Decision.ABORT
    await platform.assert_rests_at(A, 2)


async def test_moves_that_make_no_sense(platform: Platform, catalog: Catalog) -> None:
    movers = movers_of(platform, catalog)
    for cell in ("cell-a", "cell-z"):
        with pytest.raises(PlacementRefused):
            await movers.plan("acme", cell, actor="test")
