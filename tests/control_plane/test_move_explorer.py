"""The protocol of a move, explored exhaustively with the functions that run it.

Method: breadth first over every state that two cells, a catalog and any number of movers can get
into during two moves of one tenant (there and back, once
more after an abort, or rolled back within the window of the first). In each state,
what `next_act` says for every wish (go on, fence now, abort), also to whom a cell does not answer,
is put on its way; what is on its way
may arrive now, later, or never: so there are zombies, helpers, crashes and repeats. Checked in all
states: one owner at the most, the owner holds exactly the acknowledged writes, no lease term goes
back, nobody is told that the three contradict each other, and the same function, asked again and
again with no fault in between, brings every interrupted move to its end.

Each variant switches one rule off, and must be caught. Not here, since they are not about planning:
R8 the position comes with the fencing statement (tests of the cell), R5 rows (tests of the copy).
"""

import hashlib
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from control_plane.move.heads import (
    EDGES,
    OUT_OF_REACH,
    START,
    Change,
    Head,
    Heading,
    HeadState,
    Position,
    Seen,
    Side,
    apply_change,
)
from control_plane.move.plan import (
    Act,
    Decide,
    Decision,
    Fill,
    Finish,
    Illegal,
    Move,
    Retire,
    Shadow,
    Wait,
    epoch_above,
    next_act,
)
from control_plane.routing import CellName, Epoch

WRITES_MAX = 2
STATES_MAX = 400_000
TENANT = UUID(int=9)
A, B = CellName("cell-a"), CellName("cell-b")

Write = tuple[int, int]
"""Its number, and the epoch at which it was accepted."""
Log = tuple[Write, ...]


class Cell(NamedTuple):
    head: Head | None
    log: Log


class Planned(NamedTuple):
    move: Move
    decision: Decision | None
    is_finished: bool


class Sent(NamedTuple):
    """A statement on its way; `what` says which."""

    move: UUID
    term: int
    what: Any


class Apply(NamedTuple):
    """Write after this position: at the target, or at the source that shadows it."""

    side: Side
    after: Position
    write: Write


class Wipe(NamedTuple):
    """Throw the import away: it went along another history (R9)."""


class Delete(NamedTuple):
    """The rows of the cell that lost the tenant."""

    side: Side


class World(NamedTuple):
    cells: tuple[Cell, Cell]
    placement: tuple[CellName, Epoch]
    moves: tuple[Planned, ...]
    acked: Log
    term: int


def begin() -> World:
    owner = Head(heading=Heading(HeadState.OWNED, Epoch(1), None), position=START)
    cells = (Cell(owner, ()), Cell(None, ()))
    return World(cells, (A, Epoch(1)), (), (), 1)


@lru_cache
def position_of(log: Log) -> Position:
    return Position(len(log), hashlib.sha256(repr(log).encode()).digest()) if log else START


State = tuple[int, int]
"""A world by its number, and what is on its way as a bit for each statement."""


class Explorer:
    """All states from the beginning on; `switched_off` names the one rule that does not hold."""

    def __init__(self, switched_off: str = "", moves: int = 2, takeovers: int = 0) -> None:
        self.off = switched_off
        self.moves_max = moves
        self.takeovers_max = takeovers
        self.worlds: list[World] = []
        self.numbers: dict[World, int] = {}
        self.statements: list[Sent] = []
        self.places: dict[Sent, int] = {}
        self.known: dict[int, tuple[list[tuple[str, int]], int]] = {}
        self.arrivals: dict[int, tuple[int, list[tuple[int, int]]]] = {}

    # What may happen next ------------------------------------------------------------------------

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield from self.writes(world)
        yield from self.plans(world)
        if world.moves and world.term <= self.takeovers_max:
            yield "take over", world._replace(term=world.term + 1)
        yield from self.accidents(world)

    def writes(self, world: World) -> Iterator[tuple[str, World]]:
        for place, (head, log) in enumerate(world.cells):
            is_owner = head is not None and head.heading.state is HeadState.OWNED
            if head is not None and is_owner and len(world.acked) < WRITES_MAX:
                write = (len(world.acked), int(head.heading.epoch))
                after = world._replace(acked=(*world.acked, write))
                yield f"write at {place}", put_log(after, place, (*log, write))

    def plans(self, world: World) -> Iterator[tuple[str, World]]:
        if len(world.moves) == self.moves_max:
            return
        early = self.off == "R7 planned after finish"
        is_open = any(
            not p.is_finished and not (early and p.decision is not None) for p in world.moves
        )
        if not is_open:
            yield "plan", self.plan(world, None)
        if world.moves and (self.off == "rolled back in the window" or self.has_window(world)):
            last = world.moves[-1]
            if last.decision is Decision.COMMIT and not last.is_finished:
                closed = replaced(
                    world.moves, len(world.moves) - 1, last._replace(is_finished=True)
                )
                yield "roll back", self.plan(world._replace(moves=closed), last.move.move_id)

    def has_window(self, world: World) -> bool:
        """Was the last move seen to have come so far that it can be rolled back?"""
        move = world.moves[-1].move
        source, target = (world.cells[place].head for place in places(move))
        return (
            source is not None
            and target is not None
            and (source.heading.state, source.heading.epoch) == (HeadState.MOVED, move.epoch_new)
            and (target.heading.state, target.heading.epoch) == (HeadState.OWNED, move.epoch_new)
        )

    def plan(self, world: World, follows: UUID | None) -> World:
        source, epoch = world.placement
        seen = [epoch, *(p.move.epoch_new for p in world.moves)]
        seen += [cell.head.heading.epoch for cell in world.cells if cell.head]
        move = Move(
            move_id=UUID(int=4 * len(world.moves) + 2 * (follows is not None) + (source == B)),
            tenant_id=TENANT,
            source=source,
            target=B if source == A else A,
            epoch_old=epoch,
            epoch_new=epoch if self.off == "R11 epochs grow" else epoch_above(seen),
            follows=follows,
        )
        return world._replace(moves=(*world.moves, Planned(move, None, False)))

    def sends(self, world: World, number: int) -> set[Sent]:
        """What anybody who looks now may send, whatever he wants."""
        planned = world.moves[number]
        source, target = (world.cells[place] for place in places(planned.move))
        acts = {
            next_act(
                planned.move,
                planned.decision,
                *seen,
                wants=wants,
                gate_is_open=gate_is_open,
                window_is_open=window_is_open,
            )
            for seen in what_is_seen(source.head, target.head)
            for wants in Decision
            for gate_is_open in (False, True)
            for window_is_open in (False, True)
        }
        sent = set()
        for act in acts:
            if isinstance(act, Illegal):
                raise Caught(f"contradiction: {act.reason}")
            for what in statements(act, source, target):
                sent.add(Sent(planned.move.move_id, world.term, what))
        return sent

    # How it arrives ------------------------------------------------------------------------------

    def arrive(self, world: World, sent: Sent) -> World | None:
        """The world after it, or None where it matches nothing."""
        number = number_of(sent, world)
        planned = world.moves[number]
        places_of = dict(zip(Side, places(planned.move), strict=True))
        match sent.what:
            case Decide(decision=decision):
                return self.decide(world, number, decision)
            case Finish():
                return self.finish(world, number)
            case Change(side=side):
                return self.change(world, places_of[side], sent)
            case Apply(side=side, after=after, write=write):
                return self.write_rows(world, places_of[side], sent, after, write)
            case Wipe():
                return self.write_rows(world, places_of[Side.TARGET], sent, None, None)
            case Delete(side=side):
                return self.delete(world, places_of[side], sent)
        raise AssertionError(sent)

    def decide(self, world: World, number: int, decision: Decision) -> World | None:
        planned = world.moves[number]
        twice = self.off == "R4 decided once" and not planned.is_finished
        if (planned.decision is not None and not twice) or planned.decision is decision:
            return None
        move = planned.move
        cell = move.target if decision is Decision.COMMIT else move.source
        moves = replaced(world.moves, number, planned._replace(decision=decision))
        return world._replace(moves=moves, placement=(cell, move.epoch_new))

    def finish(self, world: World, number: int) -> World | None:
        planned = world.moves[number]
        if planned.is_finished:
            return None
        moves = replaced(world.moves, number, planned._replace(is_finished=True))
        return world._replace(moves=moves)

    def change(self, world: World, place: int, sent: Sent) -> World | None:
        head, log = world.cells[place]
        change: Change = sent.what
        assert (change.expected.state if change.expected else None, change.wanted.state) in EDGES
        found = head
        if head is not None and change.expected is not None:
            if self.off == "R2 statements name the epoch and the move":
                same = head.heading.state is change.expected.state
                found = head if not same else with_heading(head, change.expected)
            if self.off == "R2 statements carry the term":
                found = Head(**{f: getattr(head, f) for f in head.__slots__} | {"term": 0})
        if self.off == "R6 the seal asks for the position" and change.position and head:
            change = Change(
                **{f: getattr(change, f) for f in change.__slots__} | {"position": head.position}
            )
        after = apply_change(change, found, sent.term)
        if after is None or after == head:
            return None
        return put(world, place, Cell(after, log))

    def write_rows(
        self, world: World, place: int, sent: Sent, after: Position | None, write: Write | None
    ) -> World | None:
        head, log = world.cells[place]
        move = world.moves[number_of(sent, world)].move
        is_shadow = isinstance(sent.what, Apply) and sent.what.side is Side.SOURCE
        allowed = {HeadState.MOVED if is_shadow else HeadState.IMPORTING}
        if self.off == "R6 rows only while importing":
            allowed |= {HeadState.READY, HeadState.OWNED, HeadState.MOVED}
        if head is None or head.heading.state not in allowed or head.term > sent.term:
            return None
        if (head.heading.epoch, head.heading.move_id) != (move.epoch_new, move.move_id):
            return None
        if write is None:
            return put_log(world, place, (), sent.term)
        if head.position != after:
            return None
        return put_log(world, place, (*log, write), sent.term)

    def delete(self, world: World, place: int, sent: Sent) -> World | None:
        head, log = world.cells[place]
        move = world.moves[number_of(sent, world)].move
        if head is None or not log or head.term > sent.term:
            return None
        if head.heading != Heading(HeadState.MOVED, move.epoch_new, move.move_id):
            return None
        return put_log(world, place, (), sent.term)

    # What must never happen, and does where a rule is switched off --------------------------------

    def accidents(self, world: World) -> Iterator[tuple[str, World]]:
        for planned in world.moves:
            move = planned.move
            source, target = places(move)
            head, log = world.cells[source]
            there = world.cells[target].head
            back = Heading(HeadState.OWNED, move.epoch_old, None)
            state = head.heading.state if head and head.heading.move_id == move.move_id else None
            if head is not None and self.goes_back(state, log):
                yield "back", put(world, source, Cell(with_heading(head, back), log))
            ready = Heading(HeadState.READY, move.epoch_new, move.move_id)
            is_ready = there is not None and there.heading == ready
            if is_ready and self.off == "R1 activated after the decision":
                owned = ready._replace(state=HeadState.OWNED)
                mine = world.cells[target]._replace(head=with_heading(there, owned))
                yield "activate early", put(world, target, mine)

    def goes_back(self, state: HeadState | None, log: Log) -> bool:
        """May the source own the tenant again at its old epoch, without having been told to?"""
        if state is HeadState.FENCED:
            return self.off in ("R1 no timer un-fences", "R9 a failover keeps fences")
        return (
            state is HeadState.MOVED
            and self.off == "R10 a restored cell owns nothing"
            and log != ()
        )

    # The search ----------------------------------------------------------------------------------

    def explore(self) -> int:
        """How many states there are. Raises Caught, with the way there.

        A state is a world and the set of statements that are on their way in it: what anybody who
        ever looked may have sent. Not to look, or to send nothing, is the same as to send what
        never arrives. Both are numbered, so that what follows from each is worked out once.
        """
        first = (self.number_of(begin()), 0)
        before: dict[State, tuple[State, str] | None] = {first: None}
        waiting = deque([first])
        while waiting:
            state = waiting.popleft()
            try:
                for name, after in self.next_states(state):
                    if after not in before:
                        before[after] = (state, name)
                        waiting.append(after)
            except Caught as caught:
                raise Caught(f"{caught} after {way_to(state, before)}") from caught
            assert len(before) < STATES_MAX, "the search does not end"
        return len(before)

    def next_states(self, state: State) -> Iterator[tuple[str, State]]:
        number, on_their_way = state
        if number not in self.known:
            self.known[number] = self.look_at(self.worlds[number])
        steps, seen = self.known[number]
        on_their_way |= seen
        for name, after in steps:
            yield name, (after, on_their_way)
        for place, after in self.arrivals_at(number):
            if on_their_way >> place & 1:
                yield str(self.statements[place]), (after, on_their_way)

    def look_at(self, world: World) -> tuple[list[tuple[str, int]], int]:
        """Check the world; the steps that it takes by itself, and what looking at it sends."""
        check(world)
        self.run_to_the_end(world)
        seen = 0
        for number, planned in enumerate(world.moves):
            if not planned.is_finished:
                for sent in self.sends(world, number):
                    if sent not in self.places:
                        self.places[sent] = len(self.statements)
                        self.statements.append(sent)
                    seen |= 1 << self.places[sent]
        return [(name, self.number_of(after)) for name, after in self.steps(world)], seen

    def arrivals_at(self, number: int) -> list[tuple[int, int]]:
        """Of the statements there are so far, those with an effect on the world, and which."""
        tried, effects = self.arrivals.get(number, (0, []))
        world = self.worlds[number]
        for place in range(tried, len(self.statements)):
            sent = self.statements[place]
            is_planned = sent.move in [planned.move.move_id for planned in world.moves]
            after = self.arrive(world, sent) if is_planned else None
            if after is not None:
                check_terms(world, after)
                effects.append((place, self.number_of(after)))
        self.arrivals[number] = (len(self.statements), effects)
        return effects

    def number_of(self, world: World) -> int:
        number = self.numbers.setdefault(world, len(self.worlds))
        if number == len(self.worlds):
            self.worlds.append(world)
        return number

    def run_to_the_end(self, world: World) -> None:
        """Nothing is lost on its way any more: the planned acts alone close every open move."""
        for wants in Decision:
            self.run_with(world._replace(term=world.term + 1), wants)

    def run_with(self, world: World, wants: Decision) -> None:
        for number in range(len(world.moves)):
            for _ in range(40):
                if world.moves[number].is_finished:
                    break
                world = self.act_once(world, number, wants)
            else:
                raise Caught(f"move {number} does not end")
            check(world)
        owners = [c for c in world.cells if c.head and c.head.heading.state is HeadState.OWNED]
        left = [c for c in world.cells if c.head and c.head.heading.move_id is not None]
        if len(owners) != 1 or left or any(c.log for c in world.cells if c not in owners):
            raise Caught(f"leftovers: {world.cells}")

    def act_once(self, world: World, number: int, wants: Decision) -> World:
        planned = world.moves[number]
        source, target = (world.cells[place] for place in places(planned.move))
        is_filled = target.head is not None and source.head is not None
        gate_is_open = is_filled and source.log == target.log
        act = next_act(
            planned.move,
            planned.decision,
            source.head,
            target.head,
            wants=wants,
            gate_is_open=gate_is_open,
        )
        if isinstance(act, Illegal):
            raise Caught(f"contradiction: {act.reason}")
        what = statements(act, source, target)[0]
        after = self.arrive(world, Sent(planned.move.move_id, world.term, what))
        if after is None:
            raise Caught(f"{what} has no effect, though it is the next act")
        return after


class Caught(Exception):
    """A rule was broken."""


def statements(act: Act, source: Cell, target: Cell) -> list[Any]:
    """What an act may send, the usual first. Whoever fills may also begin again, at any time."""
    if isinstance(act, Wait):
        return []
    if isinstance(act, Fill):
        return next_write(Side.TARGET, source, target) + ([Wipe()] if target.log else [])
    if isinstance(act, Shadow):
        return next_write(Side.SOURCE, target, source)
    if isinstance(act, Retire):
        rows = source.log if act.change.side is Side.SOURCE else target.log
        return [Delete(act.change.side)] if rows else [act.change]
    return [act]


def what_is_seen(source: Head | None, target: Head | None) -> list[tuple[Seen, Seen]]:
    """By whoever looks; a cell may not answer."""
    return [
        (source, target),
        (source, OUT_OF_REACH),
        (OUT_OF_REACH, target),
        (OUT_OF_REACH, OUT_OF_REACH),
    ]


def next_write(side: Side, leader: Cell, follower: Cell) -> list[Any]:
    assert follower.head is not None
    count = len(follower.log)
    if follower.log != leader.log[:count] or count == len(leader.log):
        return []
    return [Apply(side, follower.head.position, leader.log[count])]


def check(world: World) -> None:
    owners = [c for c in world.cells if c.head and c.head.heading.state is HeadState.OWNED]
    if len(owners) > 1:
        raise Caught("two owners")
    if owners and owners[0].log != world.acked:
        raise Caught("the owner does not hold exactly the acknowledged writes")
    for planned in world.moves:
        if planned.decision is not None and not planned.is_finished:
            cell = planned.move.target if planned.decision is Decision.COMMIT else None
            other = world.cells[0 if cell == B else 1]
            state = other.head.heading.state if other.head else None
            if cell is not None and state is HeadState.OWNED:
                raise Caught("an owner that the catalog has decided against")


def check_terms(before: World, after: World) -> None:
    for old, new in zip(before.cells, after.cells, strict=True):
        if old.head and new.head and new.head.term < old.head.term:
            raise Caught("a statement of an older lease changed a head")


def way_to(state: State, before: dict[State, tuple[State, str] | None]) -> str:
    names = []
    while (step := before[state]) is not None:
        state, name = step
        names.append(name)
    return " / ".join(reversed(names))


def places(move: Move) -> tuple[int, int]:
    return (0, 1) if move.source == A else (1, 0)


def number_of(sent: Sent, world: World) -> int:
    return [planned.move.move_id for planned in world.moves].index(sent.move)


def put(world: World, place: int, cell: Cell) -> World:
    cells = (cell, world.cells[1]) if place == 0 else (world.cells[0], cell)
    return world._replace(cells=cells)


def put_log(world: World, place: int, log: Log, term: int | None = None) -> World:
    head = world.cells[place].head
    assert head is not None
    changed = Head(
        heading=head.heading,
        position=position_of(log),
        term=head.term if term is None else term,
        moved_to=head.moved_to,
    )
    return put(world, place, Cell(changed, log))


def with_heading(head: Head, heading: Heading) -> Head:
    return Head(heading=heading, position=head.position, term=head.term, moved_to=head.moved_to)


def replaced(moves: tuple[Planned, ...], number: int, planned: Planned) -> tuple[Planned, ...]:
    return (*moves[:number], planned, *moves[number + 1 :])


@pytest.mark.parametrize(
    ("moves", "takeovers"), [(2, 0), (1, 1)], ids=["two moves", "a second mover"]
)
def test_every_interleaving_is_safe_and_ends_well(moves: int, takeovers: int) -> None:
    assert Explorer(moves=moves, takeovers=takeovers).explore() > 1_000


RULES = [
    "R1 no timer un-fences",
    "R1 activated after the decision",
    "R2 statements name the epoch and the move",
    "R2 statements carry the term",
    "R4 decided once",
    "R6 rows only while importing",
    "R7 planned after finish",
    "R9 a failover keeps fences",
    "R10 a restored cell owns nothing",
    "R11 epochs grow",
    "rolled back in the window",
]


@pytest.mark.parametrize("rule", RULES)
def test_without_the_rule_it_is_caught(rule: str) -> None:
    takeovers = 1 if rule == "R2 statements carry the term" else 0
    with pytest.raises(Caught):
        Explorer(rule, moves=2, takeovers=takeovers).explore()


def test_there_is_an_act_for_everything_that_may_be_found() -> None:
    move = Move(
        move_id=UUID(int=1),
        tenant_id=TENANT,
        source=A,
        target=B,
        epoch_old=Epoch(1),
        epoch_new=Epoch(2),
    )
    heads: list[Seen] = [None, OUT_OF_REACH] + [
        Head(heading=Heading(state, Epoch(epoch), move_id), position=START)
        for state in HeadState
        for epoch in (1, 2, 3)
        for move_id in (None, UUID(int=1))
    ]
    acts = {
        type(
            next_act(
                move,
                decision,
                source,
                target,
                wants=wants,
                gate_is_open=gate_is_open,
                window_is_open=gate_is_open,
            )
        )
        for decision in (None, *Decision)
        for source in heads
        for target in heads
        for wants in Decision
        for gate_is_open in (False, True)
    }
    assert acts == {Change, Fill, Decide, Shadow, Retire, Finish, Wait, Illegal}
