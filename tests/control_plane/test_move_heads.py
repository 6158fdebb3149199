"""Heads in real databases. Method: every change that a move can make, on every head that it may
find, must come to the same in the database as in the pure functions that the explorer drives.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import LockNotAvailable

from control_plane.move.cell_heads import change_head, connect, read_head
from control_plane.move.heads import (
    EDGES,
    START,
    Change,
    Head,
    Heading,
    HeadState,
    Position,
    Side,
    apply_change,
)
from control_plane.move.plan import Decision, Move, Retire, next_act
from control_plane.routing import CellName, Epoch

HASH = bytes(range(32))
MOVE = Move(
    move_id=UUID(int=1),
    tenant_id=UUID(int=9),
    source=CellName("cell-a"),
    target=CellName("cell-b"),
    epoch_old=Epoch(1),
    epoch_new=Epoch(2),
)


@pytest.fixture
def database(lasting_cell_database: Any) -> Any:
    yield lasting_cell_database
    with psycopg.connect(lasting_cell_database.superuser_dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE tenant_heads, import_progress")


@pytest.fixture
async def cell(database: Any) -> AsyncIterator[Any]:
    async with await connect(database.mover_dsn) as connection:
        yield connection


HEADS: list[Head] = [
    Head(heading=Heading(state, Epoch(epoch), move_id), position=position, term=term)
    for state in HeadState
    for epoch in (1, 2, 3)
    for move_id in (None, UUID(int=1), UUID(int=2))
    for position in (START, Position(5, HASH))
    for term in (1, 3)
]


def changes_of_a_move() -> list[Change]:
    found: dict[str, Change] = {}
    heads = [h for h in HEADS if h.term == 1 and h.heading.move_id != UUID(int=2)]
    heads = [h for h in heads if h.position == START]
    for decision in (None, *Decision):
        for source in heads:
            for target in (None, *heads):
                for gate_is_open in (False, True):
                    act = next_act(MOVE, decision, source, target, gate_is_open=gate_is_open)
                    change = act.change if isinstance(act, Retire) else act
                    if isinstance(change, Change):
                        found[repr(change)] = change
    return list(found.values())


async def put(database: Any, tenant_id: UUID, head: Head | None) -> None:
    async with await psycopg.AsyncConnection.connect(
        database.superuser_dsn, autocommit=True
    ) as connection:
        await connection.execute("DELETE FROM tenant_heads WHERE tenant_id = %s", (tenant_id,))
        if head is not None:
            await connection.execute(
                "INSERT INTO tenant_heads (tenant_id, state, epoch, move_id, last_seq, last_hash,"
                " mover_term) VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (tenant_id, *head.heading, *head.position, head.term),
            )


async def test_the_database_changes_heads_as_the_explorer_does(database: Any, cell: Any) -> None:
    changes = changes_of_a_move()
    assert len({change.name for change in changes}) == 10
    put_head = (
        "INSERT INTO tenant_heads (tenant_id, state, epoch, move_id, last_seq, last_hash,"
        " mover_term) VALUES (%s, %s, %s, %s, %s, %s, %s)"
    )
    # The states and epochs of a change that does not fit say enough: one of each of those.
    async with await psycopg.AsyncConnection.connect(
        database.superuser_dsn, autocommit=True
    ) as owner:
        for change in changes:
            tenants: dict[UUID, Head | None] = {uuid4(): head for head in (None, *HEADS)}
            async with owner.cursor() as cursor:
                await cursor.executemany(
                    put_head,
                    [
                        (tenant_id, *head.heading, *head.position, head.term)
                        for tenant_id, head in tenants.items()
                        if head is not None and is_near(change, head)
                    ],
                )
            for tenant_id, head in tenants.items():
                if head is not None and not is_near(change, head):
                    continue
                expected = apply_change(change, head, 2)
                assert await change_head(cell, tenant_id, change, 2) == expected
                found = await read_head(cell, tenant_id)
                assert found == (head if expected is None else expected)


def is_near(change: Change, head: Head) -> bool:
    """Whether all but one part of what the change expects is there; the rest is taken on trust."""
    if change.position is None and head.position != START:
        return False
    if change.expected is None:
        return head.heading.epoch == 2 and head.term == 1
    same = [a == b for a, b in zip(change.expected, head.heading, strict=True)]
    return sum(same) >= 2


async def test_the_edges_are_the_databases(cell: Any) -> None:
    for old in (None, *HeadState):
        for new in HeadState:
            query = "SELECT may_become(%s::head_state, %s::head_state)"
            row = await (await cell.execute(query, (old, new))).fetchone()
            assert row == ((old, new) in EDGES,), (old, new)


async def test_an_edge_that_is_none_is_refused(cell: Any) -> None:
    for expected, wanted in (
        (Heading(HeadState.MOVED, Epoch(2), None), Heading(HeadState.OWNED, Epoch(3), None)),
        (Heading(HeadState.OWNED, Epoch(2), None), Heading(HeadState.FENCED, Epoch(1), None)),
    ):
        change = Change(name="no", side=Side.SOURCE, expected=expected, wanted=wanted)
        with pytest.raises(psycopg.Error) as refusal:
            await change_head(cell, uuid4(), change, 1)
        assert refusal.value.sqlstate == "CL004"


FENCE = Change(
    name="fence",
    side=Side.SOURCE,
    expected=Heading(HeadState.OWNED, Epoch(1), MOVE.move_id),
    wanted=Heading(HeadState.FENCED, Epoch(2), MOVE.move_id),
)
UNPINNED = Heading(HeadState.OWNED, Epoch(1), None)
PINNED = Head(heading=Heading(HeadState.OWNED, Epoch(1), MOVE.move_id), position=START)


async def test_a_fence_returns_the_position_of_the_batch_it_waited_for(
    database: Any, cell: Any
) -> None:
    tenant_id = uuid4()
    await put(database, tenant_id, PINNED)
    async with await psycopg.AsyncConnection.connect(database.superuser_dsn) as batch:
        advance = "UPDATE tenant_heads SET last_seq = 7, last_hash = %s WHERE tenant_id = %s"
        await batch.execute(advance, (HASH, tenant_id))
        with pytest.raises(LockNotAvailable):
            await change_head(cell, tenant_id, FENCE, 1, lock_ms_max=50)
        assert await read_head(cell, tenant_id) == PINNED
        fencing = asyncio.create_task(change_head(cell, tenant_id, FENCE, 1))
        async with await psycopg.AsyncConnection.connect(
            database.superuser_dsn, autocommit=True
        ) as observer:
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            async with asyncio.timeout(60):
                while (await (await observer.execute(waits)).fetchone()) == (0,):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # the database has no event for it
        await batch.commit()
        fenced = await fencing
    assert fenced is not None
    assert fenced.position == Position(7, HASH)
    assert fenced.heading == FENCE.wanted


async def test_whoever_listens_is_told_where_memory_may_be_wrong(database: Any, cell: Any) -> None:
    """Not of a pin, nor of a fence, after which all is still as it was."""
    tenant_id = uuid4()
    await put(database, tenant_id, PINNED)
    lost = Heading(HeadState.MOVED, Epoch(2), MOVE.move_id)
    unheard = [
        Change(name="unpin", side=Side.SOURCE, expected=PINNED.heading, wanted=UNPINNED),
        Change(name="pin", side=Side.SOURCE, expected=UNPINNED, wanted=PINNED.heading),
        FENCE,
    ]
    tombstone = Change(name="tombstone", side=Side.SOURCE, expected=FENCE.wanted, wanted=lost)
    async with await psycopg.AsyncConnection.connect(
        database.writer_dsn, autocommit=True
    ) as listener:
        await listener.execute("LISTEN cloister_heads")
        assert await change_head(cell, uuid4(), FENCE, 1) is None
        for change in unheard:
            assert await change_head(cell, tenant_id, change, 1) is not None
        await cell.execute("SELECT pg_notify('cloister_heads', 'now')")
        assert await change_head(cell, tenant_id, tombstone, 1) is not None
        assert await change_head(cell, tenant_id, tombstone, 1) is None
        await cell.execute("SELECT pg_notify('cloister_heads', 'end')")
        heard = [n.payload async for n in listener.notifies(timeout=30, stop_after=3)]
    assert heard == ["now", str(tenant_id), "end"]


GUARD = "SELECT guard_import(%s, %s, %s::head_state, %s, %s, %s, %s, %s, %s, 4)"


@pytest.mark.parametrize(
    ("case", "given"),
    [
        ("as it is", {}),
        ("an older term", {"term": 1}),
        ("another state", {"state": "ready"}),
        ("another epoch", {"epoch": 3}),
        ("another move", {"move": UUID(int=2)}),
        ("another position", {"seq": 1}),
        ("another history", {"hash": HASH}),
    ],
)
@pytest.mark.parametrize("state", ["importing", "moved", "ready", "owned", "fenced"])
async def test_rows_are_written_only_where_they_may_be(
    database: Any, cell: Any, state: str, case: str, given: dict[str, Any]
) -> None:
    tenant_id = uuid4()
    heading = Heading(HeadState(state), Epoch(2), MOVE.move_id)
    before = Head(heading=heading, position=START, term=2)
    await put(database, tenant_id, before)
    expected = {
        "term": 2,
        "state": state,
        "epoch": 2,
        "move": MOVE.move_id,
        "seq": START.seq,
        "hash": START.hash,
    } | given
    values = (tenant_id, *expected.values(), 9, HASH)
    if case == "as it is" and state in ("importing", "moved"):
        await cell.execute(GUARD, values)
        found = await read_head(cell, tenant_id)
        assert found is not None
        assert found.position == Position(9, HASH)
        return
    with pytest.raises(psycopg.Error) as refusal:
        await cell.execute(GUARD, values)
    assert refusal.value.sqlstate == "CL003"
    assert await read_head(cell, tenant_id) == before
