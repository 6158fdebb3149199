"""Moves in the catalog: their plans, the decision register, and the leases of movers.

The decision is one compare-and-set, in the database transaction that changes the placement. Nothing
here reads or changes a cell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from control_plane.catalog import Catalog, audit
from control_plane.errors import MoveInProgress, NotFound, PlacementChanged, WindowClosed
from control_plane.move.heads import Position
from control_plane.move.plan import Decision, Move
from control_plane.routing import CellName, Epoch, Placement
from control_plane.wire import PAUSING, WAITS_FOR_SHORT_PAUSE

LEASE_S = 10.0
"""Who does not renew it for so long is taken for dead, and another mover may go on."""
PAUSE_LEASE_S = 1.0
"""The same while the tenant's writes are paused."""


class Renewal(NamedTuple):
    """What a mover learns while it keeps its lease."""

    wants_abort: str | None
    """Why somebody wants the move aborted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRecord:
    """A row of `moves`."""

    move: Move
    slug: str
    decision: Decision | None
    wants_abort: str | None
    """Why the move is to be aborted, if it is not decided yet; None: it is to go on."""
    phase: str
    progress: Mapping[str, Any]
    created_at: datetime
    decided_at: datetime | None
    window_ends_at: datetime | None
    """Until then a move that was committed can be rolled back."""
    window_is_open: bool
    """By the catalog's clock, when the row was read."""
    cut: Position | None
    """Where the source's journal ended, once that is decided."""
    finished_at: datetime | None


# Nothing is written that anybody would read, but it is flushed like every commit.
FLUSHED: LiteralString = "SELECT pg_logical_emit_message(true, 'cloister rehearsal', '')"

COLUMNS: LiteralString = """
SELECT move_id, organization_id, source, target, epoch_old, epoch_new, follows, window_s,
    max_pause_ms, slug, decision, wants_abort, phase, progress, m.created_at, decided_at,
    cut_seq, cut_hash, window_ends_at, coalesce(window_ends_at > now(), false) AS window_is_open,
    finished_at
FROM moves m JOIN tenants t USING (organization_id)
"""


class Register:
    """The moves of one catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # Epochs of earlier moves count too: an aborted one may have raised a head to it.
    SEEN: LiteralString = """
    SELECT p.cell, p.epoch, coalesce(max(m.epoch_new), 0) AS moved
    FROM placements p LEFT JOIN moves m USING (organization_id)
    WHERE p.organization_id = %s GROUP BY p.cell, p.epoch
    """

    async def seen(self, tenant_id: UUID) -> tuple[CellName, Epoch, Epoch]:
        """The tenant's cell and epoch, and the highest epoch of any of its moves."""
        async with self._catalog.transaction() as tx:
            row = await (await tx.execute(self.SEEN, (tenant_id,))).fetchone()
        if row is None:
            raise NotFound("the tenant has no placement", parameter="tenant")
        return CellName(row["cell"]), Epoch(row["epoch"]), Epoch(row["moved"])

    # Only if the placement is still the one that was planned from.
    PLAN: LiteralString = """
    INSERT INTO moves (move_id, organization_id, source, target, epoch_old, epoch_new, follows,
        window_s, max_pause_ms)
    SELECT %(move_id)s, organization_id, cell, %(target)s, epoch, %(epoch_new)s, %(follows)s,
        %(window_s)s, %(max_pause_ms)s FROM placements
    WHERE organization_id = %(tenant)s AND cell = %(source)s AND epoch = %(epoch_old)s
    """
    CLOSE: LiteralString = """
    UPDATE moves SET finished_at = now(), phase = 'rolled back', lease_until = '-infinity'
    WHERE move_id = %s AND decision = 'commit' AND finished_at IS NULL
    """

    async def plan(self, move: Move, *, actor: str) -> None:
        """Record a new move; one that rolls another back closes that one with it.

        Raises MoveInProgress, PlacementChanged, WindowClosed.
        """
        values = {
            "move_id": move.move_id,
            "tenant": move.tenant_id,
            "source": move.source,
            "target": move.target,
            "epoch_old": move.epoch_old,
            "epoch_new": move.epoch_new,
            "follows": move.follows,
            "window_s": move.window_s,
            "max_pause_ms": move.max_pause_ms,
        }
        try:
            async with self._catalog.transaction() as tx:
                if move.follows is not None:
                    closed = await tx.execute(self.CLOSE, (move.follows,))
                    if closed.rowcount == 0:
                        raise WindowClosed(f"move {move.follows} cannot be rolled back any more")
                if (await tx.execute(self.PLAN, values)).rowcount == 0:
                    raise PlacementChanged(f"tenant {move.tenant_id} was placed anew meanwhile")
                detail = {"move": str(move.move_id), "from": move.source, "to": move.target}
                if move.follows is not None:
                    detail["rolls_back"] = str(move.follows)
                await audit(tx, actor, "move.plan", str(move.tenant_id), detail)
        except UniqueViolation as exc:
            raise MoveInProgress("the tenant is being moved already", parameter="tenant") from exc

    async def measure(self) -> None:
        """One database transaction that is flushed, for who wants to know how long that takes."""
        async with self._catalog.transaction() as tx:
            await tx.execute(FLUSHED)

    ONE: LiteralString = COLUMNS + "WHERE move_id = %s"
    OPEN_OF: LiteralString = COLUMNS + "WHERE organization_id = %s AND finished_at IS NULL"
    LATEST: LiteralString = COLUMNS + "ORDER BY m.created_at DESC, move_id LIMIT %s"
    OPEN: LiteralString = COLUMNS + "WHERE finished_at IS NULL ORDER BY m.created_at, move_id"

    async def read(self, move_id: UUID) -> MoveRecord:
        """Raises NotFound."""
        async with self._catalog.transaction() as tx:
            row = await (await tx.execute(self.ONE, (move_id,))).fetchone()
        if row is None:
            raise NotFound(f"there is no move {move_id}", parameter="move")
        return _record(row)

    async def open_move_of(self, tenant_id: UUID) -> MoveRecord | None:
        async with self._catalog.transaction() as tx:
            row = await (await tx.execute(self.OPEN_OF, (tenant_id,))).fetchone()
        return None if row is None else _record(row)

    async def latest(self, count: int) -> list[MoveRecord]:
        async with self._catalog.transaction() as tx:
            return [_record(row) async for row in await tx.execute(self.LATEST, (count,))]

    BETWEEN: LiteralString = """
    SELECT move_id FROM moves
    WHERE organization_id = %s AND created_at <= %s AND coalesce(finished_at, 'infinity') >= %s
    ORDER BY created_at, move_id
    """

    async def moves_between(self, tenant_id: UUID, since: datetime, until: datetime) -> list[UUID]:
        """The tenant's moves that were under way at some time between the two, oldest first."""
        async with self._catalog.transaction() as tx:
            cursor = await tx.execute(self.BETWEEN, (tenant_id, until, since))
            return [row["move_id"] async for row in cursor]

    async def open_moves(self) -> list[MoveRecord]:
        async with self._catalog.transaction() as tx:
            return [_record(row) async for row in await tx.execute(self.OPEN)]

    # A term is never given twice, so that two who hold one after the other are told apart.
    TAKE: LiteralString = """
    UPDATE moves SET lease_holder = %(holder)s, lease_term = nextval('mover_terms'),
        lease_until = now() + make_interval(secs => %(seconds)s)
    WHERE move_id = %(move)s AND finished_at IS NULL AND lease_until < now()
    RETURNING lease_term
    """
    # Also when its time is over: as long as nobody took it, nobody else is at work.
    RENEW: LiteralString = """
    UPDATE moves SET lease_until = now() + make_interval(secs => %(seconds)s),
        phase = CASE WHEN %(is_pausing)s AND decision IS NULL AND phase <> %(at_gate)s
            THEN %(pausing)s ELSE phase END
    WHERE move_id = %(move)s AND lease_term = %(term)s AND finished_at IS NULL
    RETURNING wants_abort
    """
    LET_GO: LiteralString = """
    UPDATE moves SET lease_until = '-infinity' WHERE move_id = %s AND lease_term = %s
    """

    async def take_lease(self, move_id: UUID, holder: UUID) -> int | None:
        """The term, if the lease was free."""
        values = {"move": move_id, "holder": holder, "seconds": LEASE_S}
        async with self._catalog.transaction() as tx:
            row = await (await tx.execute(self.TAKE, values)).fetchone()
        return None if row is None else int(row["lease_term"])

    async def renew_lease(
        self, move_id: UUID, term: int, *, is_pausing: bool = False
    ) -> Renewal | None:
        """None: it is over, and whoever held it must stop."""
        seconds = PAUSE_LEASE_S if is_pausing else LEASE_S
        values = {
            "move": move_id,
            "term": term,
            "seconds": seconds,
            "is_pausing": is_pausing,
            "pausing": PAUSING,
            "at_gate": WAITS_FOR_SHORT_PAUSE,
        }
        async with self._catalog.transaction() as tx:
            row = await (await tx.execute(self.RENEW, values)).fetchone()
        return None if row is None else Renewal(row["wants_abort"])

    async def let_go(self, move_id: UUID, term: int) -> None:
        async with self._catalog.transaction() as tx:
            await tx.execute(self.LET_GO, (move_id, term))

    ASK_ABORT: LiteralString = """
    UPDATE moves SET wants_abort = coalesce(wants_abort, %s)
    WHERE move_id = %s AND decision IS NULL
    """

    async def ask_abort(self, move_id: UUID, reason: str) -> bool:
        """Have whoever works on the move decide to abort it; False: it is decided already."""
        async with self._catalog.transaction() as tx:
            return (await tx.execute(self.ASK_ABORT, (reason, move_id))).rowcount == 1

    DECIDE: LiteralString = """
    UPDATE moves SET decision = %(decision)s, decided_at = now(), cut_seq = %(cut_seq)s,
        cut_hash = %(cut_hash)s,
        window_ends_at = CASE WHEN %(decision)s = 'commit' AND window_s > 0
            THEN now() + make_interval(secs => window_s) END
    WHERE move_id = %(move)s AND decision IS NULL
    """

    async def decide(self, move: Move, decision: Decision, cut: Position | None = None) -> Decision:
        """Write the decision and the placement, unless there is a decision; the one there is.

        `cut` is the position of the source, if it is fenced.
        This is the point of no return: see `steps.py`. Raises PlacementChanged, with nothing
        written, where the placement is not the one the move began with.
        """
        winner = move.target if decision is Decision.COMMIT else move.source
        async with self._catalog.transaction() as tx:
            seq, hash = cut or (None, None)
            values = {
                "decision": decision,
                "move": move.move_id,
                "cut_seq": seq,
                "cut_hash": hash,
            }
            if (await tx.execute(self.DECIDE, values)).rowcount == 1:
                await self._catalog.change_placement(
                    tx,
                    move.tenant_id,
                    expected=Placement(move.source, move.epoch_old),
                    wanted=Placement(winner, move.epoch_new),
                )
                detail = {"move": str(move.move_id), "decision": decision, "cell": winner}
                await audit(tx, "mover", "move.decide", str(move.tenant_id), detail)
                return decision
        found = (await self.read(move.move_id)).decision
        assert found is not None, "a decision is never taken back"
        return found

    CLOSE_OPEN: LiteralString = """
    UPDATE moves SET decision = coalesce(decision, 'abort'),
        decided_at = coalesce(decided_at, now()), finished_at = now(),
        phase = 'closed by an operator', lease_until = '-infinity', lease_term = %s
    WHERE organization_id = %s AND finished_at IS NULL RETURNING move_id
    """

    async def close_open_move(self, tenant_id: UUID, *, actor: str) -> int:
        """End the tenant's open move, if there is one, whatever its heads are; a term above that of
        whoever was at work on it."""
        async with self._catalog.transaction() as tx:
            row = await (await tx.execute("SELECT nextval('mover_terms') AS term")).fetchone()
            assert row is not None
            cursor = await tx.execute(self.CLOSE_OPEN, (row["term"], tenant_id))
            for closed in await cursor.fetchall():
                detail = {"move": str(closed["move_id"])}
                await audit(tx, actor, "move.close", str(tenant_id), detail)
        return int(row["term"])

    END_WINDOW: LiteralString = """
    UPDATE moves SET window_ends_at = now()
    WHERE move_id = %s AND decision = 'commit' AND finished_at IS NULL
    """

    async def end_window(self, move_id: UUID, *, actor: str) -> bool:
        """Have the move finished at once; False: it is not decided so, or finished already."""
        async with self._catalog.transaction() as tx:
            ended = (await tx.execute(self.END_WINDOW, (move_id,))).rowcount == 1
            if ended:
                await audit(tx, actor, "move.end_window", str(move_id), {})
            return ended

    ASK_COMPARE: LiteralString = """
    UPDATE moves SET progress = progress - 'shadow_compared_at_s'
    WHERE move_id = %s AND finished_at IS NULL
    """

    async def ask_compare(self, move_id: UUID) -> None:
        """Have the next visit in the window compare the shadow, whenever that was done last."""
        async with self._catalog.transaction() as tx:
            await tx.execute(self.ASK_COMPARE, (move_id,))

    NOTE: LiteralString = """
    UPDATE moves SET phase = %s, progress = progress || %s
    WHERE move_id = %s AND lease_term = %s AND finished_at IS NULL
    """

    async def note(
        self, move_id: UUID, term: int, phase: str, progress: Mapping[str, object]
    ) -> None:
        """For people: where the move is. Written by who holds the lease, or not at all."""
        async with self._catalog.transaction() as tx:
            await tx.execute(self.NOTE, (phase, Jsonb(dict(progress)), move_id, term))

    FINISH: LiteralString = """
    UPDATE moves SET finished_at = now(), phase = decision, lease_until = '-infinity'
    WHERE move_id = %s AND decision IS NOT NULL AND finished_at IS NULL
    """

    async def finish(self, move_id: UUID) -> None:
        """The tenant may be planned again. Safe to repeat."""
        async with self._catalog.transaction() as tx:
            await tx.execute(self.FINISH, (move_id,))


def _record(row: Mapping[str, Any]) -> MoveRecord:
    move = Move(
        move_id=row["move_id"],
        tenant_id=row["organization_id"],
        source=CellName(row["source"]),
        target=CellName(row["target"]),
        epoch_old=Epoch(row["epoch_old"]),
        epoch_new=Epoch(row["epoch_new"]),
        follows=row["follows"],
        window_s=row["window_s"],
        max_pause_ms=row["max_pause_ms"],
    )
    return MoveRecord(
        move=move,
        slug=row["slug"],
        decision=None if row["decision"] is None else Decision(row["decision"]),
        wants_abort=row["wants_abort"],
        phase=row["phase"],
        progress=row["progress"],
        created_at=row["created_at"],
        decided_at=row["decided_at"],
        window_ends_at=row["window_ends_at"],
        window_is_open=row["window_is_open"],
        cut=None if row["cut_seq"] is None else Position(row["cut_seq"], bytes(row["cut_hash"])),
        finished_at=row["finished_at"],
    )
