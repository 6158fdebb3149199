"""Which of the open moves a control plane works on next (pure)."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

from control_plane.move.movers import SHADOW_S, VISITS_MAX, next_to_begin
from control_plane.move.plan import Decision, Move
from control_plane.move.register import MoveRecord
from control_plane.routing import CellName, Epoch
from control_plane.wire import MOVES_AT_ONCE_MAX, PAUSING


def move(number: int) -> MoveRecord:
    return MoveRecord(
        move=Move(
            move_id=uuid4(),
            tenant_id=uuid4(),
            source=CellName("cell-a"),
            target=CellName("cell-b"),
            epoch_old=Epoch(1),
            epoch_new=Epoch(2),
        ),
        slug=f"tenant-{number}",
        decision=None,
        wants_abort=None,
        phase="planned",
        progress={},
        created_at=datetime.now(UTC),
        decided_at=None,
        window_ends_at=None,
        window_is_open=False,
        cut=None,
        finished_at=None,
    )


def shadow(number: int) -> MoveRecord:
    return replace(move(number), decision=Decision.COMMIT, window_is_open=True)


def begun(records: list[MoveRecord], due_s: dict[UUID, float], now_s: float) -> list[MoveRecord]:
    return next_to_begin(records, moving=0, visiting=0, pausing=(), due_s=due_s, now_s=now_s)


def test_moves_have_places_that_no_shadow_takes() -> None:
    shadows, moves = [shadow(n) for n in range(50)], [move(n) for n in range(6)]
    chosen = begun([*shadows, *moves], {}, 0.0)
    assert chosen[:MOVES_AT_ONCE_MAX] == moves[:MOVES_AT_ONCE_MAX]
    assert len(chosen) == MOVES_AT_ONCE_MAX + VISITS_MAX


def test_what_runs_already_takes_its_place() -> None:
    records = [*(move(n) for n in range(6)), *(shadow(n) for n in range(6))]
    chosen = next_to_begin(
        records,
        moving=MOVES_AT_ONCE_MAX - 1,
        visiting=VISITS_MAX + 1,
        pausing=(),
        due_s={},
        now_s=0.0,
    )
    assert chosen == records[:1]


def test_whose_writes_are_paused_waits_for_no_place() -> None:
    """Whether the catalog says so, of somebody who died, or an attempt of this one ended there."""
    moves = [move(n) for n in range(MOVES_AT_ONCE_MAX)]
    orphan, own = replace(move(8), phase=PAUSING), shadow(9)
    chosen = next_to_begin(
        [*moves, orphan, own],
        moving=MOVES_AT_ONCE_MAX,
        visiting=VISITS_MAX,
        pausing={own.move.move_id},
        due_s={},
        now_s=0.0,
    )
    assert chosen == [orphan, own]


def test_every_shadow_is_visited_in_turn() -> None:
    shadows = [shadow(n) for n in range(20)]
    visits: Counter[str] = Counter()
    due_s: dict[UUID, float] = {}
    for turn in range(100):
        now_s = turn * SHADOW_S
        for each in begun(shadows, due_s, now_s):
            visits[each.slug] += 1
            due_s[each.move.move_id] = now_s + SHADOW_S
    assert set(visits.values()) == {100 * VISITS_MAX // 20}


def test_what_was_put_off_is_not_begun() -> None:
    waiting, ready = move(0), move(1)
    assert begun([waiting, ready], {waiting.move.move_id: 5.0}, 4.0) == [ready]
