"""What clients were told during a move is so afterwards; and a move with a mistake is found out.

Method: writes by one key after another through both cells, one of them in the middle of the pause,
and all of them once more when the move is over. Each planted mistake is one that such protocols are
known for; the checker, which knows nothing of it, must name a loss.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from cell_writing import all_of, execute, transfer
from move_history import History, Holding, problems_of
from moving import A, B, Platform, open_platform

from cell.batch import Applied, Replayed
from cell.errors import NotApplied
from control_plane.catalog import Catalog
from control_plane.move import register, rows, steps, tail, verify
from control_plane.move.cell_heads import read_head
from control_plane.move.hands import Hands, MoveIllegal
from control_plane.move.heads import Position
from control_plane.move.plan import Decision
from control_plane.move.register import Register
from control_plane.move.tail import SegmentRow

OLD_KEYS = 5


@pytest.fixture(autouse=True)
def patient_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may stand still for longer than a tenant may be fenced."""
    monkeypatch.setattr(steps, "FENCED_MS_MAX", 60_000)
    monkeypatch.setattr(steps, "FENCE_LOCK_MS_MAX", 20_000)
    monkeypatch.setattr(register, "LEASE_S", 600.0)
    monkeypatch.setattr(register, "PAUSE_LEASE_S", 300.0)


@dataclass
class Story:
    """The clients of one tenant, and the history of what they were told."""

    platform: Platform
    history: History = field(default_factory=History)

    async def write(self, cell: Any, key: str) -> None:
        """One attempt at that cell."""
        platform = self.platform
        (outcome,) = await all_of(
            platform.writers[cell].outcome(
                platform.tenant_id, transfer(*platform.accounts), key=key
            )
        )
        if isinstance(outcome, Applied):
            self.history.acknowledge(key, outcome.record.seq)
        elif isinstance(outcome, Replayed):
            self.history.acknowledge(key, outcome.seq)
        else:
            assert isinstance(outcome, NotApplied), outcome
            self.history.refused.add(key)

    async def move(self, before_decision: Callable[["Story"], Awaitable[Any]]) -> list[str]:
        """Move the tenant from A to B, with writes before, within and after; what is wrong then."""
        keys = [f"old-{number}" for number in range(OLD_KEYS)]
        for key in keys:
            await self.write(A, key)
        decide = Register.decide

        async def decide_later(own: Register, move: Any, decision: Any, cut: Any = None) -> Any:
            wanted = await before_decision(self)
            return await decide(own, move, wanted or decision, cut)

        move = await self.platform.plan(A, B, 1, 2)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Register, "decide", decide_later)
            # A mistake may be noticed by the mover as well: not what is asked here.
            with contextlib.suppress(MoveIllegal):
                await self.platform.run(move)
        for key in (*keys, "in the pause", "before the fence", "afterwards"):
            for cell in (B, A):
                if key in keys or key not in self.history.acknowledged:
                    await self.write(cell, key)
        return problems_of(self.history, {cell: await self.holding(cell) for cell in (A, B)})

    async def holding(self, cell: Any) -> Holding:
        query = (
            "SELECT first_seq, last_seq, epoch, format, body, prev_hash, hash FROM journal"
            " WHERE tenant_id = %s ORDER BY first_seq"
        )
        dsn = self.platform.databases[cell].superuser_dsn
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            cursor = await connection.execute(query, (self.platform.tenant_id,))
            segments = [SegmentRow(*row) for row in await cursor.fetchall()]
        return Holding(await self.platform.head(cell), segments)


@pytest.fixture
async def story(catalog: Catalog, cell_pair: tuple[Any, Any]) -> AsyncIterator[Story]:
    async with open_platform(catalog, cell_pair) as platform:
        yield Story(platform)


async def write_in_the_pause(story: Story) -> None:
    await story.write(A, "in the pause")


async def test_a_move_keeps_what_was_promised(story: Story) -> None:
    assert await story.move(write_in_the_pause) == []
    assert "in the pause" in story.history.refused
    assert len(story.history.acknowledged) == OLD_KEYS + 3


async def test_no_fence_is_found(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    async def pretend(hands: Hands, view: Any, change: Any) -> Any:
        hands.gate_is_open = False
        hands.decide_by_s = steps.time.monotonic() + 60
        return replace(view, source=replace(view.source, heading=change.wanted))

    monkeypatch.setattr(steps, "_fence", pretend)
    assert await story.move(write_in_the_pause) != []


async def test_a_position_read_before_the_fence_is_found(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence = steps._fence
    read: list[Position] = []

    async def read_and_fence(hands: Hands, view: Any, change: Any) -> Any:
        head = await read_head(hands.source, hands.move.tenant_id)
        assert head is not None
        read.append(head.position)
        await story.write(A, "before the fence")
        after = await fence(hands, view, change)
        return replace(after, source=replace(after.source, position=head.position))

    monkeypatch.setattr(steps, "_fence", read_and_fence)
    assert await story.move(write_in_the_pause) != []
    assert len(read) == 1


async def test_keys_that_were_left_behind_are_found(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write_none(*_: Any) -> None:
        return None

    moved = tuple(name for name in rows.TENANT_TABLES if name != "idempotency_keys")
    compared = tuple(name for name in verify.COMPARED_TABLES if name != "idempotency_keys")
    monkeypatch.setattr(rows, "TENANT_TABLES", moved)
    monkeypatch.setattr(verify, "COMPARED_TABLES", compared)
    monkeypatch.setattr(tail, "_write_keys", write_none)
    problems = await story.move(write_in_the_pause)
    assert "old-0 was applied 2 times" in problems


async def test_a_timer_that_unfences_is_found(story: Story) -> None:
    async def unfence(story: Story) -> None:
        execute(
            story.platform.databases[A].superuser_dsn,
            "UPDATE tenant_heads SET state = 'owned', epoch = 1 WHERE tenant_id = %s",
            story.platform.tenant_id,
        )
        await write_in_the_pause(story)

    assert await story.move(unfence) != []


async def test_an_activation_before_the_decision_is_found(story: Story) -> None:
    async def activate(story: Story) -> Decision:
        execute(
            story.platform.databases[B].superuser_dsn,
            "UPDATE tenant_heads SET state = 'owned' WHERE tenant_id = %s",
            story.platform.tenant_id,
        )
        await story.write(B, "in the pause")
        return Decision.ABORT

    assert await story.move(activate) != []
