"""A move, from where it stands to its end: looks, does what `plan.next_act` says, and so on.

Read it from top to bottom. It can stop after any line, and be begun again by anybody who holds the
lease: nothing is remembered but in the two cells and the catalog. Between two acts the heads are
not read again, since every change returns the head it leaves behind, and matches nothing where the
head was not as expected; then, and only then, this looks again.

The pause of the tenant's writes begins with the fence and ends with the activation. What lies in
between has a deadline: past it, the move is aborted, by the catalog and the source alone.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from psycopg import OperationalError
from psycopg.errors import DiskFull, LockNotAvailable

from cell.head_watch import CHANNEL
from control_plane.errors import CatalogUnavailable
from control_plane.move.cell_heads import Cell, change_head, read_head
from control_plane.move.hands import (
    HEAD_S_MAX,
    CellSilent,
    Hands,
    MoveIllegal,
    MoveStopped,
    View,
)
from control_plane.move.heads import (
    START,
    Change,
    Head,
    Heading,
    HeadState,
    OutOfReach,
    Position,
    Seen,
    Side,
)
from control_plane.move.notes import amounts, compared, shadow_compared
from control_plane.move.obstacles import obstacles
from control_plane.move.plan import (
    Act,
    Decide,
    Decision,
    Fill,
    Finish,
    Illegal,
    Retire,
    Shadow,
    Wait,
    expected_pause_ms,
    next_act,
)
from control_plane.move.reexecution import Differs
from control_plane.move.rows import (
    DONE,
    SNAPSHOT,
    Importing,
    ImportLost,
    Progress,
    copy_rows,
    delete_rows,
    read_progress,
)
from control_plane.move.tail import Diverged, follow
from control_plane.move.verify import Comparison, compare_rows
from control_plane.wire import CAN_BE_ROLLED_BACK, WAITS_FOR_SHORT_PAUSE

FENCED_MS_MAX = 400
"""From the fence to the decision; then the source is given back its tenant."""
FENCE_LOCK_MS_MAX = 80
"""How long a fence may wait for the batch in flight, and the batches behind it for the fence."""
FENCE_PAUSE_S = 0.5
"""After a fence that did not come through."""
VERIFIED_S_MAX = 30.0
"""A fence follows within that time of a full comparison, or within twice the time that it took, or
there is another one first: what was written meanwhile takes its time to be followed."""
ANNOUNCED_S = 0.1
"""So long before the pause the target's cell hears that the tenant is about to come."""
ANNOUNCED_S_MAX = 2.0
"""After so long it is told again: what it has read is far behind by then."""
CLOSE_SEQUENCES = 32
"""So few left to follow are nothing."""
SHADOW_VERIFIED_S_MAX = 60.0
"""While the window for a rollback is open, all rows are compared so often, the first time that long
after the activation: they have just been compared."""
NOTE_S = 0.5
"""How often the progress is written down while rows are copied."""
SURPRISES_MAX = 10
COPIES_MAX = 3

log = logging.getLogger(__name__)


async def run_move(hands: Hands) -> None:
    """Bring the move to its end, whichever that is; or up to where it can still be rolled back.

    Raises MoveStopped and psycopg.OperationalError, CatalogUnavailable for what may go better
    later, MoveIllegal for what will not.
    """
    surprises = 0
    view: View | None = None
    while True:
        view = view or await look(hands)
        decision = view.decision
        if _is_fenced(view):
            # Also where somebody else has fenced it, who is not there any more.
            hands.is_pausing = True
        wants = Decision.ABORT if _must_abort(hands, view) else Decision.COMMIT
        act = next_act(
            hands.move,
            decision,
            view.source,
            view.target,
            wants=wants,
            gate_is_open=hands.gate_is_open,
            window_is_open=view.window_is_open,
        )
        await hands.reach(f"before {act.name}")
        match act:
            case Finish():
                await hands.register.finish(hands.move.move_id)
                return
            case Shadow():
                await _shadow(hands, view)
                return
            case Wait():
                raise MoveStopped(_silence(hands))
            case Illegal(reason=reason):
                raise MoveIllegal(reason)
        try:
            view = await _do(hands, view, act)
        except (ImportLost, CellSilent):
            view = None
        except DiskFull as exc:
            if decision is not None:
                # Who serves is settled; the rest waits for room.
                raise
            # Going on would take from the target's tenants what they need to be written to.
            hands.abort_reason, view = f"a disk is full: {exc}", None
        except OperationalError as exc:
            # What remains to be done may need the other cell only.
            if not hands.lose_broken(exc):
                raise
            view = None
        await hands.reach(f"after {act.name}")
        surprises = 0 if view is not None else surprises + 1
        if surprises == SURPRISES_MAX:
            raise MoveStopped("heads and catalog go on changing under this mover")


async def _do(hands: Hands, view: View, act: Act) -> View | None:
    """The view after the act; None where that is not known, and has to be looked at."""
    match act:
        case Fill():
            return await _fill(hands, view)
        case Change(name="prepare"):
            return await _prepare(hands, view, act)
        case Change(name="fence"):
            return await _fence(hands, view, act)
        case Change(name="seal"):
            return await _within_the_pause(hands, view, _change(hands, view, act))
        case Decide():
            return await _decide(hands, view, act)
        case Change(name="activate" | "return"):
            return await _serve_again(hands, view, act)
        case Change():
            return await _change(hands, view, act)
        case Retire(change=change):
            return await _retire(hands, view, change)
    raise AssertionError(act)


async def look(hands: Hands) -> View:
    """Heads and decision as they were at one moment: the headings are the same before and after.

    Positions go on while the source owns the tenant; nothing is decided by them before the fence.
    """
    for _ in range(SURPRISES_MAX):
        before = await _look_at_both(hands)
        record = await hands.register.read(hands.move.move_id)
        source, target = await _look_at_both(hands)
        if _headings(source, target) == _headings(*before):
            if record.wants_abort is not None:
                hands.abort_reason = record.wants_abort
            return View(
                decision=record.decision,
                source=source,
                target=target,
                window_is_open=record.window_is_open,
                progress=record.progress,
            )
    raise MoveStopped("the heads go on changing under this mover")


async def _look_at_both(hands: Hands) -> tuple[Seen, Seen]:
    return await hands.see(Side.SOURCE), await hands.see(Side.TARGET)


def _headings(*seen: Seen) -> list[Heading | OutOfReach | None]:
    return [each.heading if isinstance(each, Head) else each for each in seen]


def _is_fenced(view: View) -> bool:
    return isinstance(view.source, Head) and view.source.heading.state is HeadState.FENCED


def _silence(hands: Hands) -> str:
    each = (f"{hands.name(side)} does not answer: {why}" for side, why in hands.silent.items())
    return "; ".join(each)


def _must_abort(hands: Hands, view: View) -> bool:
    if view.decision is None and _is_fenced(view):
        hands.abort_reason = hands.abort_reason or _too_long(hands, view)
    return view.decision is None and hands.abort_reason is not None


def _abort_for(hands: Hands, difference: str) -> None:
    hands.differences = [difference]
    hands.abort_reason = f"rows differ: {difference}"


def _too_long(hands: Hands, view: View) -> str | None:
    """Why writes are not to be paused any longer, if they are not."""
    if hands.decide_by_s is None:
        # Found fenced by whoever was here before: from now on, it is this mover's pause; but not
        # again and again.
        hands.decide_by_s = time.monotonic() + FENCED_MS_MAX / 1000
        if hands.has_failed:
            return f"it failed in the pause: {view.progress.get('last_error')}"
    if isinstance(view.target, OutOfReach):
        return _silence(hands)
    if time.monotonic() > hands.decide_by_s:
        return f"no decision within {FENCED_MS_MAX} ms of the fence"
    return None


async def _change(hands: Hands, view: View, change: Change) -> View | None:
    """The view with the head that the change left; None where it matched nothing."""
    changing = change_head(hands.cell(change.side), hands.move.tenant_id, change, hands.term)
    head = await hands.in_time(change.side, changing, HEAD_S_MAX)
    if head is None:
        return None
    log.info("head changed", extra={"move": hands.move.move_id, "change": change.name})
    return replace(view, source=head) if change.side is Side.SOURCE else replace(view, target=head)


# Before the fence -------------------------------------------------------------------------------


async def _prepare(hands: Hands, view: View, change: Change) -> View | None:
    """Nothing is copied between two databases of different shape, or to one not to rely on."""
    found = await obstacles(hands.source, hands.target, hands.move.tenant_id)
    if found:
        hands.abort_reason = "; ".join(found)
        return view
    await hands.note("prepare")
    return await _change(hands, view, change)


async def _fill(hands: Hands, view: View) -> View | None:
    """One step closer to the source. Without a fence: copy, follow, compare, open the gate."""
    assert isinstance(view.source, Head) and isinstance(view.target, Head)
    if view.source.heading.state is HeadState.FENCED:
        await hands.reach("before drain")
        return await _within_the_pause(hands, view, _follow(hands, view))
    try:
        if not await _is_copied(hands, view.target):
            await _copy(hands, view.target)
            return None
        began_s = time.monotonic()
        followed = await _follow(hands, view)
        step_s = time.monotonic() - began_s
        if not await _is_close(hands, view, followed):
            return followed
        if not _is_verified(hands):
            await hands.reach("before compare")
            return await _compare(hands, followed)
        if time.monotonic() > hands.announced_until_s:
            return await _announce(hands, followed)
        await hands.reach("before gate")
        return await _open_gate(hands, followed, step_s)
    except Differs as exc:
        _abort_for(hands, str(exc))
        return view
    except Diverged as exc:
        await _begin_again(hands, view.target, str(exc))
        return None


async def _is_copied(hands: Hands, target: Head) -> bool:
    """A position beyond the start is reached with the last chunk only; or it is a shadow's."""
    if target.position != START:
        return True
    progress = await read_progress(hands.target, hands.job(target))
    return progress is not None and progress.table == DONE


async def _is_close(hands: Hands, before: View, after: View) -> bool:
    """Is next to nothing left, or, under load, as little as there can be?

    What is written during a step is left for the next one, which is shorter in turn, until two are
    alike. A step has bounds of its own, so that how much it brought says nothing by itself.
    """
    assert isinstance(before.target, Head) and isinstance(after.target, Head)
    source = await read_head(hands.source, hands.move.tenant_id)
    if source is None:
        return False
    brought = after.target.position.seq - before.target.position.seq
    left = source.position.seq - after.target.position.seq
    if left > CLOSE_SEQUENCES and time.monotonic() - hands.noted_at_s > NOTE_S:
        await hands.note("follow", sequences_behind=left)
    return left <= CLOSE_SEQUENCES or left <= brought <= 2 * left


async def _announce(hands: Hands, view: View) -> View:
    """Give the target's cell the time to read what the tenant will be asked for first."""
    await hands.target.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(hands.move.tenant_id)))
    await asyncio.sleep(ANNOUNCED_S)
    hands.announced_until_s = time.monotonic() + ANNOUNCED_S_MAX
    return view


async def _open_gate(hands: Hands, view: View, step_s: float) -> View | None:
    """Fence next, if what came last says that the pause would be a short one."""
    began_s = time.monotonic()
    # A short one: if this mover does not live to see the end of the pause, another one is to soon.
    hands.is_pausing = True
    renewal = await hands.register.renew_lease(hands.move.move_id, hands.term, is_pausing=True)
    if renewal is None:
        return None
    catalog_s = time.monotonic() - began_s
    expected_ms = round(expected_pause_ms(step_s, catalog_s), 1)
    hands.gate_is_open = expected_ms <= hands.move.max_pause_ms
    hands.expected_pause_ms = expected_ms
    hands.is_pausing = hands.gate_is_open
    if not hands.gate_is_open and time.monotonic() - hands.noted_at_s > NOTE_S:
        gate = f"a pause of {expected_ms:.0f} ms is expected, {hands.move.max_pause_ms} are allowed"
        await hands.note(WAITS_FOR_SHORT_PAUSE, gate=gate)
    return view


async def _copy(hands: Hands, target: Head) -> None:
    hands.copies += 1
    await hands.note("copy")
    started_s = time.monotonic()

    async def on_progress(progress: Progress) -> None:
        await hands.reach("while copying")
        if time.monotonic() - hands.noted_at_s > NOTE_S:
            # For people only: a catalog that is away is no reason to break off a long copy.
            with contextlib.suppress(CatalogUnavailable):
                await hands.note("copy", table=progress.table, **amounts(progress, started_s))

    copied = await copy_rows(hands.source, hands.target, hands.job(target), on_progress)
    await hands.note("follow", **amounts(copied, started_s))


async def _follow(hands: Hands, view: View) -> View:
    """Apply the next step of the journal, if there is one."""
    assert isinstance(view.target, Head)
    position = await follow(
        hands.source, hands.target, hands.job(view.target), view.target.position
    )
    if position == view.target.position:
        return view
    target = replace(view.target, position=position, term=hands.term)
    return replace(view, target=target)


def _is_verified(hands: Hands) -> bool:
    return hands.verified_until_s is not None and time.monotonic() < hands.verified_until_s


async def _compare(hands: Hands, view: View) -> View:
    """Compare every row at one sequence; rows that differ abort the move."""
    assert isinstance(view.target, Head)
    await hands.note("compare")
    began_s = time.monotonic()
    job = hands.job(view.target)
    position, found = await _compare_at_snapshot(
        hands.source, hands.target, job, view.target.position
    )
    if found.differences:
        hands.abort_reason = f"rows differ: {'; '.join(found.differences[:5])}"
    took_s = time.monotonic() - began_s
    hands.verified_until_s = time.monotonic() + max(VERIFIED_S_MAX, 2 * took_s)
    await hands.note("follow", **compared(position, found))
    return replace(view, target=replace(view.target, position=position, term=hands.term))


async def _compare_at_snapshot(
    leader: Cell, follower: Cell, job: Importing, position: Position
) -> tuple[Position, Comparison]:
    """Bring the follower from its position exactly to a snapshot of the leader, and compare."""
    await leader.execute(SNAPSHOT)
    try:
        position = await _follow_to_the_end(leader, follower, job, position)
        await follower.execute(SNAPSHOT)
        try:
            return position, await compare_rows(leader, follower, job.tenant_id)
        finally:
            await follower.rollback()
    finally:
        await leader.rollback()


async def _follow_to_the_end(
    leader: Cell, follower: Cell, job: Importing, position: Position
) -> Position:
    """Apply all that the leader has, as far as its database transaction sees."""
    before = None
    while position != before:
        before, position = position, await follow(leader, follower, job, position)
    return position


async def _begin_again(hands: Hands, target: Head, reason: str) -> None:
    """R9: rows that went along another history are thrown away, and it is said."""
    log.error("import diverged", extra={"move": hands.move.move_id, "reason": reason})
    if hands.copies >= COPIES_MAX:
        hands.abort_reason = f"copied {hands.copies} times: {reason}"
        return
    found = await read_head(hands.target, hands.move.tenant_id)
    if found is not None and found.heading == target.heading:
        await delete_rows(hands.target, hands.job(found), found.position)
    hands.verified_until_s = None
    await hands.note("copy", diverged=reason)


# The pause --------------------------------------------------------------------------------------


async def _fence(hands: Hands, view: View, change: Change) -> View | None:
    """No write of the tenant from here on; the source's position is the final one."""
    hands.gate_is_open = False
    began_s = time.monotonic()
    try:
        fencing = change_head(
            hands.source,
            hands.move.tenant_id,
            change,
            hands.term,
            lock_ms_max=FENCE_LOCK_MS_MAX,
        )
        # Whether it came through where nothing is heard of it, the next attempt reads.
        head = await hands.in_time(Side.SOURCE, fencing, FENCED_MS_MAX / 1000)
    except LockNotAvailable:
        hands.is_pausing = False
        gate = f"a batch took more than {FENCE_LOCK_MS_MAX} ms"
        await hands.note(WAITS_FOR_SHORT_PAUSE, gate=gate)
        await asyncio.sleep(FENCE_PAUSE_S)
        return view
    if head is None:
        return None
    hands.fenced_at_s, hands.decide_by_s = began_s, began_s + FENCED_MS_MAX / 1000
    return replace(view, source=head)


async def _within_the_pause(
    hands: Hands, view: View, act: Coroutine[Any, Any, View | None]
) -> View | None:
    """The act, if it comes to its end in time; else the view as it was, and an abort."""
    assert hands.decide_by_s is not None, "only what is fenced has a deadline"
    try:
        return await hands.in_time(Side.TARGET, act, hands.decide_by_s - time.monotonic())
    except CellSilent:
        hands.abort_reason = f"no decision within {FENCED_MS_MAX} ms of the fence"
    except (Diverged, Differs) as exc:
        _abort_for(hands, str(exc))
    return view


async def _decide(hands: Hands, view: View, act: Decide) -> View:
    source = view.source if _is_fenced(view) else None
    cut = source.position if isinstance(source, Head) else None
    if act.mismatch is not None:
        _abort_for(hands, act.mismatch)
    # The point of no return: whoever is first writes the decision, for all.
    decided = await hands.register.decide(hands.move, act.decision, cut)
    if decided is Decision.ABORT:
        found = {"differences": hands.differences} if hands.differences else {}
        await hands.note("abort", aborted_because=hands.abort_reason, **found)
    is_committed = decided is Decision.COMMIT
    return replace(view, decision=decided, window_is_open=is_committed and hands.move.window_s > 0)


async def _serve_again(hands: Hands, view: View, change: Change) -> View | None:
    """The end of the pause: the target is activated, or the tenant is returned to its source."""
    after = await _change(hands, view, change)
    if after is not None:
        hands.is_pausing = False
        served_s = time.monotonic()
        # Only now: a router that knew earlier would send to a cell that does not know yet.
        await hands.on_owned()
        if hands.decide_by_s is not None:
            notes: dict[str, object] = {
                "expected_pause_ms": hands.expected_pause_ms,
                **shadow_compared([]),
            }
            if hands.fenced_at_s is not None:
                notes["pause_ms"] = round((served_s - hands.fenced_at_s) * 1000, 1)
            await hands.note("serve again", **notes)
            after = replace(after, progress={**after.progress, **notes})
    return after


# After the decision -----------------------------------------------------------------------------


async def _shadow(hands: Hands, view: View) -> None:
    """One visit while the move can be rolled back: the source comes to where the target is."""
    assert isinstance(view.source, Head) and isinstance(view.target, Head)
    await _recompute(hands, view)
    job = hands.job(view.source)
    ways = (hands.target, hands.source, job, view.source.position)
    notes: dict[str, object] = {}
    differences: list[str] = []
    try:
        if time.time() - view.progress.get("shadow_compared_at_s", 0.0) < SHADOW_VERIFIED_S_MAX:
            position = await _follow_to_the_end(*ways)
        else:
            position, found = await _compare_at_snapshot(*ways)
            differences = found.differences[:20]
            notes = shadow_compared(differences)
        notes["shadow_seq"] = position.seq
    except (Differs, Diverged) as exc:
        differences = [str(exc)]
        notes = shadow_compared(differences)
    if differences:
        log.error("shadow differs", extra={"move": hands.move.move_id, "rows": differences})
    await hands.note(CAN_BE_ROLLED_BACK, **notes)


async def _recompute(hands: Hands, view: View) -> None:
    """The target's ledger is recomputed from its journal, once. Raises MoveIllegal."""
    if "recomputed" in view.progress:
        return
    await hands.note("recompute")
    report = await hands.fold()
    if not report.ok:
        wrong = [f"{each.check}: {each.message}" for each in report.differences]
        await hands.note("recompute", wrong=wrong[:20])
        raise MoveIllegal(f"the ledger at the target is wrong: {'; '.join(wrong[:5])}")
    counts = ("accounts", "entries", "transactions", "segments", "last_seq")
    await hands.note("recompute", recomputed={name: getattr(report, name) for name in counts})


async def _retire(hands: Hands, view: View, change: Change) -> View | None:
    """Delete the rows of the cell that lost the tenant; the target's ledger is recomputed first."""
    at_source = change.side is Side.SOURCE
    head = view.source if at_source else view.target
    assert isinstance(head, Head), "a cell that lost the tenant has a tombstone"
    if at_source:
        await _recompute(hands, view)
    await hands.note("clean up")
    await delete_rows(hands.cell(change.side), hands.job(head), head.position)
    return await _change(hands, view, change)
