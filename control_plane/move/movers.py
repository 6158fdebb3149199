"""The movers of this control plane: plans moves on request, and brings every open one to its end.

Level-triggered: it looks in the catalog for moves that nobody holds the lease of, whoever began
them, takes the lease and runs the steps; what fails is let go and tried again, by this process or
another one, after a pause. Any number of control planes may do so at once.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Container, Iterable, Mapping
from uuid import UUID, uuid4

import psycopg

from control_plane.catalog import Catalog, TenantState
from control_plane.errors import (
    CatalogUnavailable,
    CellUnavailable,
    ControlPlaneError,
    MoveDecided,
    MoveInProgress,
    PlacementRefused,
    TenantProvisioning,
    WindowClosed,
)
from control_plane.move.cell_heads import connect, read_head
from control_plane.move.fail_points import NO_FAIL_POINTS, FailPoints
from control_plane.move.hands import Hands, MoveIllegal, MoveStopped
from control_plane.move.heads import Head, HeadState, Side
from control_plane.move.plan import Decision, Move, epoch_above
from control_plane.move.register import LEASE_S, PAUSE_LEASE_S, MoveRecord, Register
from control_plane.move.rehearsal import rehearse
from control_plane.move.steps import run_move
from control_plane.routing import CellName, Epoch
from control_plane.routing_feed import RoutingFeed
from control_plane.verify.service import Verifications, nobody_has_gone
from control_plane.wire import (
    CONTRADICTION,
    MOVES_AT_ONCE_MAX,
    PAUSING,
    WAITS_FOR_SHORT_PAUSE,
    MoveRehearsal,
)

LOOK_S = 0.5
"""Between two looks for open moves when nobody wakes it."""
RETRY_S = 0.2
RETRY_S_MAX = 30.0
RETRY_PAUSING_S_MAX = 1.0
"""The same of a move in whose pause the last attempt ended."""
SHADOW_S = 1.0
"""Between two visits to a move that can be rolled back."""
VISITS_MAX = 4
"""Visits at once to moves that can be rolled back."""

AT_PAUSE = (WAITS_FOR_SHORT_PAUSE, PAUSING)
"""Phases in which a mover may leave its tenant's writes paused."""

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another mover may be at work: this one stops at once."""


class Movers:
    """What the routes of moves need; `run` in a task of its own."""

    def __init__(
        self,
        catalog: Catalog,
        feed: RoutingFeed,
        verifications: Verifications,
        mover_dsns: Mapping[CellName, str],
        fail_points: FailPoints = NO_FAIL_POINTS,
    ) -> None:
        self.register = Register(catalog)
        self._catalog = catalog
        self._feed = feed
        self._verifications = verifications
        self._dsns = mover_dsns
        self._fail_points = fail_points
        self._holder = uuid4()
        self._woken = asyncio.Event()
        self._running: dict[UUID, asyncio.Task[None]] = {}
        self._visiting: set[UUID] = set()
        """Of those that run, the visits of shadows."""
        self._pausing: set[UUID] = set()
        """Of those that were put off, who left their tenant's writes paused."""
        self._failures: dict[UUID, int] = {}
        self._not_before_s: dict[UUID, float] = {}

    async def plan(
        self, slug: str, target: str, *, actor: str, window_s: int = 0, max_pause_ms: int = 150
    ) -> MoveRecord:
        """Begin to move the tenant; back to where it came from, it is a rollback if that is still
        possible. Raises NotFound, TenantProvisioning, PlacementRefused, MoveInProgress,
        PlacementChanged, CellUnavailable."""
        tenant = await self.movable(slug, target)
        last = await self.register.open_move_of(tenant)
        if last is not None:
            if last.window_is_open and last.move.source == target:
                return await self.rollback(last.move.move_id, actor=actor)
            raise MoveInProgress(_how_to_go_on(last), parameter="tenant")
        source, epoch, moved = await self.register.seen(tenant)
        move = Move(
            move_id=uuid4(),
            tenant_id=tenant,
            source=source,
            target=CellName(target),
            epoch_old=epoch,
            epoch_new=await self._new_epoch(tenant, (source, CellName(target)), [epoch, moved]),
            window_s=window_s,
            max_pause_ms=max_pause_ms,
        )
        return await self._record(move, actor)

    async def rehearse(
        self, slug: str, target: str, *, batch_ms_p99: Mapping[str, float | None], max_pause_ms: int
    ) -> MoveRehearsal:
        """What the move would be like; nothing is changed. Raises what `plan` does."""
        tenant = await self.movable(slug, target)
        source, _, _ = await self.register.seen(tenant)
        try:
            async with (
                await connect(self._dsns[source]) as at_source,
                await connect(self._dsns[CellName(target)]) as at_target,
            ):
                return await rehearse(
                    at_source,
                    at_target,
                    self.register,
                    tenant,
                    places=(slug, source, target),
                    batch_ms_p99=batch_ms_p99.get(source),
                    max_pause_ms=max_pause_ms,
                )
        except psycopg.Error as exc:
            raise CellUnavailable(f"{source} and {target} cannot be measured: {exc}") from exc

    async def movable(self, slug: str, target: str) -> UUID:
        """The tenant, if it can be moved to that cell at all. Raises NotFound, TenantProvisioning,
        PlacementRefused."""
        tenant = await self._catalog.tenant(slug)
        if tenant.state is not TenantState.ACTIVE or tenant.cell is None:
            raise TenantProvisioning(f"tenant {slug!r} is not placed yet", parameter="tenant")
        if target not in self._dsns:
            raise PlacementRefused(f"there is no cell {target!r}", parameter="cell")
        if target == tenant.cell:
            raise PlacementRefused(f"tenant {slug!r} is on {target} already", parameter="cell")
        return tenant.organization_id

    async def rollback(self, move_id: UUID, *, actor: str) -> MoveRecord:
        """Begin to bring the tenant back to where the move took it from. Raises NotFound,
        WindowClosed, CellUnavailable, PlacementChanged."""
        last = await self.register.read(move_id)
        if last.decision is not Decision.COMMIT or last.finished_at is not None:
            raise WindowClosed(_why_not_back(last), parameter="move")
        before = last.move
        tenant = before.tenant_id
        heads = [await self._head(cell, tenant) for cell in (before.source, before.target)]
        at = [(head.heading.state, head.heading.epoch) if head else None for head in heads]
        if at != [(HeadState.MOVED, before.epoch_new), (HeadState.OWNED, before.epoch_new)]:
            raise WindowClosed(f"move {move_id} is not yet at its end: try again in a moment")
        _, epoch, moved = await self.register.seen(tenant)
        move = Move(
            move_id=uuid4(),
            tenant_id=tenant,
            source=before.target,
            target=before.source,
            epoch_old=before.epoch_new,
            epoch_new=epoch_above([epoch, moved]),
            follows=move_id,
            window_s=before.window_s,
            max_pause_ms=before.max_pause_ms,
        )
        return await self._record(move, actor)

    async def _record(self, move: Move, actor: str) -> MoveRecord:
        await self.register.plan(move, actor=actor)
        self._woken.set()
        return await self.register.read(move.move_id)

    async def abort(self, move_id: UUID) -> MoveRecord:
        """Ask for the move to be aborted. Raises NotFound, MoveDecided."""
        await self.register.read(move_id)
        if not await self.register.ask_abort(move_id, "an operator asked for it"):
            raise MoveDecided(f"move {move_id} is decided already", parameter="move")
        return await self.register.read(move_id)

    async def finish(self, move_id: UUID, *, actor: str) -> MoveRecord:
        """End the window for a rollback now. Safe to repeat. Raises NotFound, WindowClosed."""
        record = await self.register.read(move_id)
        if record.finished_at is None and not await self.register.end_window(move_id, actor=actor):
            raise WindowClosed(f"move {move_id} is not committed", parameter="move")
        self._not_before_s.pop(move_id, None)
        self._woken.set()
        return await self.register.read(move_id)

    async def _new_epoch(
        self, tenant_id: UUID, cells: Iterable[CellName], seen: list[Epoch]
    ) -> Epoch:
        for cell in cells:
            head = await self._head(cell, tenant_id)
            if head is not None and head.heading.move_id is not None:
                # A move that was finished has let go of both heads.
                raise MoveInProgress(f"{cell} is not done with the tenant's last move yet")
            seen += [] if head is None else [head.heading.epoch]
        return epoch_above(seen)

    async def _head(self, cell: CellName, tenant_id: UUID) -> Head | None:
        try:
            async with await connect(self._dsns[cell]) as connection:
                return await read_head(connection, tenant_id)
        except (KeyError, psycopg.Error) as exc:
            raise CellUnavailable(f"the database of {cell} cannot be asked: {exc}") from exc

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                self._woken.clear()
                try:
                    records = await self.register.open_moves()
                    self._remember_only({record.move.move_id for record in records})
                    self._begin_due(records)
                except CatalogUnavailable as exc:
                    log.warning("moves wait for the catalog", extra={"reason": str(exc)})
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _remember_only(self, open_moves: set[UUID]) -> None:
        self._pausing &= open_moves
        for memory in (self._failures, self._not_before_s):
            for move_id in memory.keys() - open_moves - self._running.keys():
                del memory[move_id]

    def _begin_due(self, records: list[MoveRecord]) -> None:
        idle = (each for each in records if each.move.move_id not in self._running)
        begun = next_to_begin(
            idle,
            moving=len(self._running) - len(self._visiting),
            visiting=len(self._visiting),
            pausing=self._pausing,
            due_s=self._not_before_s,
            now_s=time.monotonic(),
        )
        for record in begun:
            self._begin(record)

    def _begin(self, record: MoveRecord) -> None:
        move_id = record.move.move_id
        task = asyncio.create_task(self._attempt(record), name=f"move {record.slug}")
        self._running[move_id] = task
        if record.window_is_open:
            self._visiting.add(move_id)

        def ended(_: asyncio.Task[None]) -> None:
            self._running.pop(move_id, None)
            self._visiting.discard(move_id)
            # Another one may have waited for the place.
            self._woken.set()

        task.add_done_callback(ended)

    async def _attempt(self, record: MoveRecord) -> None:
        """One attempt to bring the move to its end, under a lease of its own."""
        move_id = record.move.move_id
        try:
            term = await self.register.take_lease(move_id, self._holder)
            if term is None:
                # Whoever holds it is at work; the place is for others meanwhile.
                self._not_before_s[move_id] = time.monotonic() + LOOK_S
                return
            try:
                await self._work(record, term)
                self._failures.pop(move_id, None)
                self._not_before_s[move_id] = time.monotonic() + SHADOW_S
            except Exception as exc:
                await self._put_off(move_id, term, exc)
            finally:
                await self.register.let_go(move_id, term)
        except CatalogUnavailable as exc:
            log.warning("move waits for the catalog", extra={"move": move_id, "reason": str(exc)})

    async def _put_off(self, move_id: UUID, term: int, exc: Exception) -> None:
        failures = self._failures[move_id] = self._failures.get(move_id, 0) + 1
        longest_s = RETRY_PAUSING_S_MAX if move_id in self._pausing else RETRY_S_MAX
        pause_s = min(longest_s, RETRY_S * 2.0 ** min(failures - 1, 10))
        self._not_before_s[move_id] = time.monotonic() + pause_s
        expected = (MoveStopped, MoveIllegal, LeaseLost, psycopg.Error, ControlPlaneError)
        reason = f"{type(exc).__name__}: {exc}"
        if isinstance(exc, expected):
            log.warning("move put off", extra={"move": move_id, "reason": reason})
        else:
            log.exception("move failed", extra={"move": move_id})
        phase = CONTRADICTION if isinstance(exc, MoveIllegal) else "waiting"
        await self.register.note(move_id, term, phase, {"last_error": reason})

    async def _work(self, record: MoveRecord, term: int) -> None:
        move = record.move
        missing = {move.source, move.target} - self._dsns.keys()
        if missing:
            raise CellUnavailable(f"the provider does not run {', '.join(sorted(missing))}")
        async with contextlib.AsyncExitStack() as stack:
            hands = Hands(
                move=move,
                term=term,
                register=self.register,
                cells={},
                fold=lambda: self._verifications.verify(record.slug, nobody_has_gone),
                on_owned=self._feed.refresh,
                reach=self._fail_points.reach,
                has_failed=move.move_id in self._failures,
            )
            for side in Side:
                try:
                    hands.cells[side] = await connect(self._dsns[hands.name(side)])
                    stack.push_async_callback(hands.cells[side].close)
                except psycopg.OperationalError as exc:
                    # The other one may be all that is needed to have the tenant served.
                    hands.lose(side, str(exc))
            running = asyncio.create_task(run_move(hands), name="move steps")
            keeping = asyncio.create_task(self._keep_lease(hands), name="keep the lease")
            try:
                await asyncio.wait({running, keeping}, return_when=asyncio.FIRST_COMPLETED)
                if keeping.done():
                    keeping.result()
                await running
            finally:
                for task in (running, keeping):
                    task.cancel()
                await asyncio.gather(running, keeping, return_exceptions=True)
                self._pausing.discard(move.move_id)
                if hands.is_pausing:
                    self._pausing.add(move.move_id)

    async def _keep_lease(self, hands: Hands) -> None:
        """Until cancelled. Raises LeaseLost; tells the steps of an operator's wish to abort."""
        trusted_until_s = time.monotonic() + LEASE_S
        while True:
            await asyncio.sleep(PAUSE_LEASE_S / 4)
            asked_s = time.monotonic()
            try:
                renewal = await self.register.renew_lease(
                    hands.move.move_id, hands.term, is_pausing=hands.is_pausing
                )
                if renewal is None:
                    raise LeaseLost("the lease went to another mover")
                trusted_until_s = asked_s + LEASE_S
                hands.abort_reason = hands.abort_reason or renewal.wants_abort
            except CatalogUnavailable as exc:
                if time.monotonic() > trusted_until_s:
                    raise LeaseLost("the catalog is away for longer than the lease lasts") from exc


def next_to_begin(
    records: Iterable[MoveRecord],
    *,
    moving: int,
    visiting: int,
    pausing: Container[UUID],
    due_s: Mapping[UUID, float],
    now_s: float,
) -> list[MoveRecord]:
    """Of those that nobody works on, the ones to begin with so many moves and visits under way.

    Visits to moves that can be rolled back have places of their own, as there is no end of them;
    and whoever was visited longest ago goes first, or the oldest would take every place.
    """
    due = [each for each in records if due_s.get(each.move.move_id, 0.0) <= now_s]
    # Whoever died in their pause left tenants that nobody serves: they wait for no place.
    urgent = [each for each in due if each.phase in AT_PAUSE or each.move.move_id in pausing]
    others = [each for each in due if each not in urgent]
    moves = [each for each in others if not each.window_is_open]
    visits = [each for each in others if each.window_is_open]
    visits.sort(key=lambda each: due_s.get(each.move.move_id, 0.0))
    moves = moves[: max(0, MOVES_AT_ONCE_MAX - moving)]
    return urgent + moves + visits[: max(0, VISITS_MAX - visiting)]


def _how_to_go_on(last: MoveRecord) -> str:
    if not last.window_is_open:
        return f"the tenant is being moved to {last.move.target} already: {last.move.move_id}"
    return (
        f"the tenant's last move can still be rolled back, until {last.window_ends_at:%H:%M:%S}:"
        f" end that with `cloister moves finish {last.move.move_id}`"
    )


def _why_not_back(last: MoveRecord) -> str:
    if last.decision is None:
        return f"move {last.move.move_id} is not decided: `cloister moves abort` ends it"
    if last.decision is Decision.ABORT:
        return f"move {last.move.move_id} was aborted: the tenant never left {last.move.source}"
    return (
        f"move {last.move.move_id} is finished, its rows on {last.move.source} are gone: move the"
        " tenant there again"
    )
