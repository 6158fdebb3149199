"""What is to be done next for a move, decided from what was read. Pure and total.

`next_act` takes the move, its decision and the two heads, read as one snapshot, and returns the
one act that comes next, for whoever asks: the mover, a second mover that found the lease free, the
same one after a crash, an operator who wants the move aborted. There is no other memory: planning
again from any point at which somebody stopped goes on from there. Of a cell that does not answer
nothing is read; what the tenant is served by does not wait for it.

In the order of a move that is not aborted:

    pin        source  owned e        -> owned e, of this move
    prepare    target  none | moved   -> importing e'
    FILL               copy the snapshot, then follow the journal
    fence      source  owned e        -> fenced e'      the final position comes with it
    FILL               up to that position
    seal       target  importing e'   -> ready e'       only at exactly that position
    DECIDE             commit, in the catalog: the point of no return
    activate   target  ready e'       -> owned e'
    tombstone  source  fenced e'      -> moved e'
    SHADOW             the source follows the target, while the window for a rollback is open
    RETIRE     source  moved e'       -> moved e', of no move, its rows deleted
    release    target  owned e'       -> owned e', of no move
    FINISH             the tenant may be planned again

Abort mirrors what follows a commit: the source is the one that keeps the tenant (`return`), the
target the one that gets the tombstone (`bury`), is emptied and retired. Both are done even where
the move had not come so far yet: the epoch is raised under a fence that is still on its way, and a
tombstone is put where a `prepare` is still on its way, so that neither matches any more.

A rollback is a move like any other, in the other direction, planned in the same database
transaction that closes the move before it. Only its beginning differs: it takes both heads over
from that move, and the rows that the shadow still has; so nothing is copied, and all the rest
(comparing, the gate, the pause, an abort, a window of its own) is as ever. Where that move's mover
came first, and has begun to retire the shadow, the rows are copied again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from control_plane.move.heads import (
    START,
    Change,
    Head,
    Heading,
    HeadState,
    OutOfReach,
    Seen,
    Side,
)
from control_plane.routing import CellName, Epoch


class Decision(StrEnum):
    """The content of the catalog's decision register; it is written once."""

    COMMIT = "commit"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A move as it was planned. Nothing of it changes."""

    move_id: UUID
    tenant_id: UUID
    source: CellName
    target: CellName
    epoch_old: Epoch
    """At which the source owns the tenant."""
    epoch_new: Epoch
    """At which one of the two will, whatever is decided. Above every epoch ever seen."""
    follows: UUID | None = None
    """The move that this one rolls back; the source and the target are its, exchanged."""
    window_s: int = 0
    """For so long after a commit the source keeps its rows and follows, for a rollback."""
    max_pause_ms: int = 150
    """Nothing is fenced while a longer pause of writes is to be expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """Bring rows to the target until it stands where the source stands."""

    name: ClassVar[str] = "fill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decide:
    """Write the decision, if there is none yet."""

    name: ClassVar[str] = "decide"
    decision: Decision
    mismatch: str | None = field(default=None, compare=False)
    """What is wrong with the rows, where that is why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """Bring what was written at the target back to the source, which follows it."""

    name: ClassVar[str] = "shadow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Delete the tenant's rows in the cell that lost it; then the change."""

    name: ClassVar[str] = "retire"
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Close the move in the catalog."""

    name: ClassVar[str] = "finish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing can be done before a cell answers again."""

    name: ClassVar[str] = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Illegal:
    """The three contradict each other; nobody may act before a person has looked."""

    name: ClassVar[str] = "illegal"
    reason: str


Act = Change | Fill | Decide | Shadow | Retire | Finish | Wait | Illegal


def epoch_above(seen: Iterable[Epoch]) -> Epoch:
    """For a new move: above every epoch of the placement, the heads and earlier moves."""
    return Epoch(max(seen) + 1)


def expected_pause_ms(step_s: float, catalog_s: float) -> float:
    """How long writes would pause.

    The fence waits for a batch, the rest is followed, the target is sealed, and activated: each of
    the four is about a step of following, which reads at the source and commits at the target. The
    decision is as long as two database transactions of the catalog.
    """
    return (4 * step_s + 2 * catalog_s) * 1000


def next_act(
    move: Move,
    decision: Decision | None,
    source: Seen,
    target: Seen,
    *,
    wants: Decision = Decision.COMMIT,
    gate_is_open: bool = False,
    window_is_open: bool = False,
) -> Act:
    """The next act of the move.

    `wants` counts only while nothing is decided. `gate_is_open` says that a fence now would be a
    short one; without it the target is filled and nothing is fenced. `window_is_open` says that the
    move may still be rolled back; without it the source gives up its rows.
    """
    if source is None:
        return Illegal(reason=f"{move.source} has no head of the tenant")
    if isinstance(source, OutOfReach) or isinstance(target, OutOfReach):
        return _do_without(move, decision, source, target, wants)
    if decision is Decision.COMMIT:
        return _go_forward(move, source, target, window_is_open)
    if decision is Decision.ABORT:
        return _go_back(move, source, target)
    if wants is Decision.ABORT:
        return Decide(decision=Decision.ABORT)
    return _approach(move, source, target, gate_is_open)


def _do_without(
    move: Move, decision: Decision | None, source: Seen, target: Seen, wants: Decision
) -> Act:
    """A cell does not answer. What the tenant is served by needs only the catalog and the other.

    The decision alone makes that safe: by it the silent one does not own the tenant and never will,
    and whatever is still on its way there does not match. All the rest waits.
    """
    steps = _Changes(move)
    if decision is None and wants is Decision.ABORT:
        return Decide(decision=Decision.ABORT)
    at_source, at_target = (
        head.heading if isinstance(head, Head) else None for head in (source, target)
    )
    may_return = at_source in (*steps.unpinned, steps.pinned, steps.fenced)
    if decision is Decision.ABORT and at_source is not None and may_return:
        return steps.give_back(at_source)
    if decision is Decision.COMMIT and at_target == steps.ready:
        return steps.activate
    return Wait()


def _approach(move: Move, source: Head, target: Head | None, gate_is_open: bool) -> Act:
    """Nothing is decided, and all is well so far."""
    steps = _Changes(move)
    at_source, at_target = source.heading, target.heading if target else None
    if at_source in steps.unpinned and steps.may_receive(at_target):
        return steps.pin(at_source)
    if at_source == steps.pinned and steps.may_receive(at_target):
        return steps.prepare(at_target)
    if target is not None and at_source == steps.pinned and at_target == steps.importing:
        # A target that was filled beyond the source, or along another history, shows when it is
        # filled: nothing is fenced before that has succeeded.
        return steps.fence if gate_is_open else Fill()
    if target is not None and at_source == steps.fenced and at_target == steps.importing:
        if target.position == source.position:
            return steps.seal(source)
        if target.position.seq >= source.position.seq:
            return Decide(decision=Decision.ABORT, mismatch=_mismatch(source, target))
        return Fill()
    if target is not None and at_source == steps.fenced and at_target == steps.ready:
        if target.position == source.position:
            return Decide(decision=Decision.COMMIT)
        return Decide(decision=Decision.ABORT, mismatch=_mismatch(source, target))
    return _illegal("undecided", source, target)


def _mismatch(source: Head, target: Head) -> str:
    """Of two journals that should be one, at the cut."""
    ends = (f"{head.position.seq} {head.position.hash.hex()[:16]}" for head in (source, target))
    return "the journals end at {} at the source and at {} at the target".format(*ends)


def _go_forward(move: Move, source: Head, target: Head | None, window_is_open: bool) -> Act:
    """The decision is commit: the target owns the tenant, as soon as it knows."""
    steps = _Changes(move)
    at_source, at_target = source.heading, target.heading if target else None
    if at_source == steps.fenced and at_target == steps.ready:
        return steps.activate
    if at_source == steps.fenced and at_target == steps.kept:
        return steps.tombstone
    if at_source == steps.lost and at_target == steps.kept:
        if window_is_open:
            return Shadow()
        return Retire(change=steps.retire(Side.SOURCE))
    if at_source == steps.retired and at_target == steps.kept:
        return steps.release(Side.TARGET)
    if at_source == steps.retired and at_target == steps.released:
        return Finish()
    return _illegal("commit", source, target)


def _go_back(move: Move, source: Head, target: Head | None) -> Act:
    """The decision is abort: the source keeps the tenant, at the new epoch."""
    steps = _Changes(move)
    at_source, at_target = source.heading, target.heading if target else None
    target_is_in_hand = at_target in (steps.importing, steps.ready, steps.lost, steps.retired)
    if not target_is_in_hand and not steps.may_receive(at_target):
        return _illegal("abort", source, target)
    if at_source in (*steps.unpinned, steps.pinned, steps.fenced):
        return steps.give_back(at_source)
    if at_source == steps.kept:
        if at_target == steps.lost:
            return Retire(change=steps.retire(Side.TARGET))
        if at_target == steps.retired:
            return steps.release(Side.SOURCE)
        return steps.bury(at_target)
    if at_source == steps.released and at_target == steps.retired:
        return Finish()
    return _illegal("abort", source, target)


def _illegal(decided: str, source: Head, target: Head | None) -> Illegal:
    found = target.heading if target else None
    return Illegal(reason=f"{decided}, source {source.heading}, target {found}")


class _Changes:
    """The headings a move goes through, and the changes between them."""

    def __init__(self, move: Move) -> None:
        self._move = move
        new, id = move.epoch_new, move.move_id
        self.unpinned = [Heading(HeadState.OWNED, move.epoch_old, None)]
        self.shadow: Heading | None = None
        if move.follows is not None:
            self.unpinned.append(Heading(HeadState.OWNED, move.epoch_old, move.follows))
            self.shadow = Heading(HeadState.MOVED, move.epoch_old, move.follows)
        self.pinned = Heading(HeadState.OWNED, move.epoch_old, id)
        self.fenced = Heading(HeadState.FENCED, new, id)
        self.importing = Heading(HeadState.IMPORTING, new, id)
        self.ready = Heading(HeadState.READY, new, id)
        self.kept = Heading(HeadState.OWNED, new, id)
        self.released = Heading(HeadState.OWNED, new, None)
        self.lost = Heading(HeadState.MOVED, new, id)
        self.retired = Heading(HeadState.MOVED, new, None)

    def may_receive(self, target: Heading | None) -> bool:
        """May an import begin there: nothing, the tombstone of an earlier move that is finished, or
        the shadow that this move brings to light again."""
        if target is None or target == self.shadow:
            return True
        is_tombstone = target.state is HeadState.MOVED and target.move_id is None
        return is_tombstone and target.epoch < self._move.epoch_new

    def pin(self, found: Heading) -> Change:
        return _at_source("pin", found, self.pinned)

    def prepare(self, found: Heading | None) -> Change:
        return Change(
            name="prepare",
            side=Side.TARGET,
            expected=found,
            wanted=self.importing,
            is_emptied=found is None or found != self.shadow,
        )

    @property
    def fence(self) -> Change:
        return _at_source("fence", self.pinned, self.fenced)

    def seal(self, source: Head) -> Change:
        return Change(
            name="seal",
            side=Side.TARGET,
            expected=self.importing,
            wanted=self.ready,
            position=source.position,
        )

    @property
    def activate(self) -> Change:
        return Change(name="activate", side=Side.TARGET, expected=self.ready, wanted=self.kept)

    @property
    def tombstone(self) -> Change:
        return Change(
            name="tombstone",
            side=Side.SOURCE,
            expected=self.fenced,
            wanted=self.lost,
            moved_to=self._move.target,
        )

    def give_back(self, found: Heading) -> Change:
        return _at_source("return", found, self.kept)

    def bury(self, found: Heading | None) -> Change:
        return Change(
            name="bury",
            side=Side.TARGET,
            expected=found,
            wanted=self.lost,
            moved_to=self._move.source,
        )

    def retire(self, side: Side) -> Change:
        home = self._move.source if side is Side.TARGET else self._move.target
        return Change(
            name="retire",
            side=side,
            expected=self.lost,
            wanted=self.retired,
            # A row that came late, to a shadow that was emptied already, is not left behind.
            position=START,
            moved_to=home,
        )

    def release(self, side: Side) -> Change:
        return Change(name="release", side=side, expected=self.kept, wanted=self.released)


def _at_source(name: str, expected: Heading, wanted: Heading) -> Change:
    return Change(name=name, side=Side.SOURCE, expected=expected, wanted=wanted)
