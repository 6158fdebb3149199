"""Copying and following a tenant's rows. Method: two real databases of cells, written by the real
sequencer; whatever was interrupted, repeated or raced, the target's tables must hold the same rows
as the source's, and then pass the audit that executes the whole journal again.
"""

import itertools
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest
from cell_writing import Writing, execute, own_tenant, transfer, write
from every_table import fill_tenant
from ledger_audit import assert_ledger_holds
from psycopg import sql

from cell.ledger import commands
from cell.ledger.model import Status, TenantId
from cell.tables import COMPARED_TABLES, TENANT_TABLES
from control_plane.move import rows, tail, verify
from control_plane.move.cell_heads import Cell, change_head, connect, read_head
from control_plane.move.heads import START, Change, Heading, HeadState, Position, Side
from control_plane.move.key_ranges import KeyRange, next_range, read_shape, within
from control_plane.move.reexecution import Differs, difference
from control_plane.move.rows import Importing, ImportLost, Progress, copy_rows, delete_rows
from control_plane.move.tail import Diverged, follow
from control_plane.move.verify import compare_rows
from control_plane.routing import Epoch

MOVE = UUID(int=1)
IMPORTING = Heading(HeadState.IMPORTING, Epoch(2), MOVE)
CHUNKS_WITH_WRITES = 60


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_ROWS", 3)
    monkeypatch.setattr(rows, "CHUNK_SEGMENTS", 5)
    monkeypatch.setattr(rows, "DELETED_ROWS", 4)
    monkeypatch.setattr(tail, "SEGMENTS_PER_STEP", 7)
    monkeypatch.setattr(verify, "RANGE_ROWS", 2)
    monkeypatch.setattr(verify, "RANGE_SEGMENTS", 2)


@dataclass
class Pair:
    """A source with a tenant and a neighbour, a target with a neighbour, and hands on both."""

    databases: tuple[Any, Any]
    writer: Writing
    tenant_id: TenantId
    accounts: list[str]
    source: Cell
    target: Cell
    job: Importing

    async def write_some(self, source: random.Random) -> None:
        """Everything that changes rows in another way, in random order."""
        external_id = f"only one may have it {source.random()}"
        for _ in range(3):
            debited, credited = source.sample(self.accounts, 2)
            made = await self.writer.apply(
                self.tenant_id,
                transfer(debited, credited, status=Status.PENDING, external_id=external_id),
                key=str(source.random()),
            )
            update = commands.UpdateLedgerTransaction(
                id=made.inserted[0].id, status=Status.ARCHIVED, metadata={"k": "v"}
            )
            await self.writer.apply(self.tenant_id, update)
        backdated = transfer(*self.accounts[:2], effective_at_us=source.randrange(10**15))
        await self.writer.apply(self.tenant_id, backdated)
        pending = transfer(*self.accounts[:2], status=Status.PENDING, effective_at_us=0)
        made = await self.writer.apply(self.tenant_id, pending)
        entries = transfer(self.accounts[0], self.accounts[2]).entries
        edit = commands.UpdateLedgerTransaction(id=made.inserted[0].id, entries=entries)
        await self.writer.apply(self.tenant_id, edit)

    async def follow_to_the_end(self) -> Position:
        position = (await self.head()).position
        while (after := await follow(self.source, self.target, self.job, position)) != position:
            position = after
        return position

    async def head(self) -> Any:
        return await read_head(self.target, self.job.tenant_id)

    def contents(self, place: int, tenant_id: str) -> dict[str, list[Any]]:
        with psycopg.connect(self.databases[place].superuser_dsn) as connection:
            return {
                table: sorted(
                    map(
                        repr,
                        connection.execute(
                            f"SELECT * FROM {table} WHERE tenant_id = %s", (tenant_id,)
                        ),
                    )
                )
                for table in TENANT_TABLES
            }

    async def assert_same(self) -> None:
        assert (await self.head()).position == await self.source_position()
        assert self.contents(1, self.tenant_id) == self.contents(0, self.tenant_id)

    async def source_position(self) -> Position:
        head = await read_head(self.source, self.job.tenant_id)
        assert head is not None
        return head.position


@pytest.fixture
def databases(cell_pair: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    yield cell_pair
    for database in cell_pair:
        assert_ledger_holds(database.superuser_dsn)


@pytest.fixture
async def pair(databases: tuple[Any, Any]) -> AsyncIterator[Pair]:
    source, target = databases
    tenant_id, neighbour = own_tenant(source.writer_dsn), own_tenant(source.writer_dsn)
    async with (
        write(source.writer_dsn) as writer,
        await connect(source.mover_dsn) as at_source,
        await connect(target.mover_dsn) as at_target,
    ):
        for each in (tenant_id, neighbour):
            await fill_tenant(writer, each, source.superuser_dsn)
        made = await writer.accounts(tenant_id, 3)
        prepare = Change(name="prepare", side=Side.TARGET, expected=None, wanted=IMPORTING)
        assert await change_head(at_target, UUID(tenant_id), prepare, 1) is not None
        job = Importing(tenant_id=UUID(tenant_id), heading=IMPORTING, term=1)
        yield Pair(databases, writer, tenant_id, made, at_source, at_target, job)


async def test_a_copy_and_what_follows_are_the_source(pair: Pair) -> None:
    seen: list[Progress] = []

    async def see(progress: Progress) -> None:
        seen.append(progress)

    copied = await copy_rows(pair.source, pair.target, pair.job, see)
    await pair.assert_same()
    counts = {table: len(found) for table, found in pair.contents(0, pair.tenant_id).items()}
    assert all(counts.values()), counts
    assert copied.rows == sum(counts.values())
    assert seen[-1] == copied
    assert copied.bytes > 0
    # How many are left is an estimate, but in the end there are none.
    left = [progress.rows_left for progress in seen]
    assert left == sorted(left, reverse=True)  # type: ignore[type-var]
    assert left[0] > left[-1] == 0  # type: ignore[operator]
    chance = random.Random(1)
    for _ in range(5):
        await pair.write_some(chance)
        assert await pair.follow_to_the_end() == await pair.source_position()
    await pair.assert_same()


async def test_all_of_a_journal_is_executed_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followed from its beginning, with nothing copied: every kind of command comes to the same."""
    verdicts: list[str | None] = []

    async def listening(*arguments: Any) -> str | None:
        verdicts.append(await difference(*arguments))
        return verdicts[-1]

    monkeypatch.setattr(tail, "difference", listening)
    await pair.write_some(random.Random(3))
    assert await pair.follow_to_the_end() == await pair.source_position()
    assert None in verdicts
    there, here = (pair.contents(place, pair.tenant_id) for place in (0, 1))
    assert [here[table] == there[table] for table in COMPARED_TABLES] == [True] * len(
        COMPARED_TABLES
    )


async def test_a_damaged_row_shows_where_it_is_met(pair: Pair) -> None:
    await copy_rows(pair.source, pair.target, pair.job)
    position = (await pair.head()).position
    execute(
        pair.databases[1].superuser_dsn,
        "UPDATE ledger_account_balances SET posted_debits = posted_debits + 1"
        " WHERE ledger_account_id = %s",
        pair.accounts[0],
    )
    met_not = transfer(*pair.accounts[1:3])
    await pair.writer.apply(pair.tenant_id, met_not)
    position = await follow(pair.source, pair.target, pair.job, position)
    assert position == await pair.source_position()
    await pair.writer.apply(pair.tenant_id, transfer(*pair.accounts[:2]))
    with pytest.raises(Differs, match=f"record {position.seq + 1} "):
        await follow(pair.source, pair.target, pair.job, position)
    assert (await pair.head()).position == position
    execute(
        pair.databases[1].superuser_dsn,
        "UPDATE ledger_account_balances SET posted_debits = posted_debits - 1"
        " WHERE ledger_account_id = %s",
        pair.accounts[0],
    )
    await pair.follow_to_the_end()
    await pair.assert_same()


async def test_ranges_are_of_the_rows_asked_for_in_the_order_of_the_key(pair: Pair) -> None:
    """Numbers as numbers: a journal of more than ten segments shows the difference."""
    tenant_id = pair.job.tenant_id
    for _ in range(30):
        await pair.writer.apply(pair.tenant_id, transfer(*pair.accounts[:2]))
    for table in COMPARED_TABLES:
        shape = await read_shape(pair.source, table)
        count = len(pair.contents(0, pair.tenant_id)[table])
        sizes: list[int] = []
        keys = KeyRange(None, None)
        while not sizes or keys.up_to is not None:
            keys = await next_range(pair.source, tenant_id, shape, keys.up_to, 3)
            condition = within(tenant_id, shape, keys)
            query = sql.SQL("SELECT count(*) FROM {} WHERE {}")
            cursor = await pair.source.execute(query.format(sql.Identifier(table), condition))
            sizes += (await cursor.fetchone()) or ()
        assert sizes == [3] * (count // 3) + [count % 3], table


@pytest.mark.faults
async def test_rows_of_every_table_are_compared(pair: Pair) -> None:
    """The first, the last or one in between is missing on one side: it is named, nothing else."""
    await copy_rows(pair.source, pair.target, pair.job)
    tenant_id = pair.job.tenant_id
    found = await compare_rows(pair.source, pair.target, tenant_id)
    assert found.differences == []
    assert found.digests[0] == found.digests[1]
    contents = pair.contents(1, pair.tenant_id)
    counts = {table: len(contents[table]) for table in COMPARED_TABLES}
    assert {table: each.rows for table, each in found.digests[1].items()} == counts
    async with await connect(pair.databases[1].superuser_dsn) as damaged:
        await damaged.execute("SET session_replication_role = replica")
        for table, count in counts.items():
            for row in {0, count // 2, count - 1}:
                await damaged.execute("BEGIN")
                await damaged.execute(
                    f"DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table}"  # type: ignore[arg-type]
                    " WHERE tenant_id = %s ORDER BY ctid OFFSET %s LIMIT 1)",
                    (tenant_id, row),
                )
                at_source = await compare_rows(pair.source, damaged, tenant_id)
                at_target = await compare_rows(damaged, pair.source, tenant_id)
                await damaged.rollback()
                assert len(at_source.differences) == len(at_target.differences) == 1
                assert at_source.differences[0].startswith(f"{table}, only at the source: (")
                assert at_target.differences[0].startswith(f"{table}, only at the target: (")


async def test_a_copy_goes_on_behind_its_last_chunk(pair: Pair) -> None:
    """Interrupted after every single chunk, with writes in between."""
    chance = random.Random(2)
    chunks = 0

    class Interrupted(Exception):
        pass

    async def interrupt(progress: Progress) -> None:
        if progress.table != rows.DONE and next(turns):
            raise Interrupted

    while True:
        # The first report of each attempt is where it goes on, the second one a chunk later.
        turns = itertools.cycle((False, True))
        try:
            await copy_rows(pair.source, pair.target, pair.job, interrupt)
            break
        except Interrupted:
            chunks += 1
        # Not for ever: more is written each time than six chunks of three rows hold.
        if chunks % 6 == 0 and chunks <= CHUNKS_WITH_WRITES:
            await pair.write_some(chance)
    assert chunks > 30
    await pair.write_some(chance)
    await pair.follow_to_the_end()
    await pair.assert_same()


async def test_whoever_is_too_late_writes_nothing(pair: Pair) -> None:
    await copy_rows(pair.source, pair.target, pair.job)
    await pair.write_some(random.Random(3))
    position = (await pair.head()).position
    before = pair.contents(1, pair.tenant_id)
    newer = Importing(tenant_id=pair.job.tenant_id, heading=IMPORTING, term=2)
    reached = await follow(pair.source, pair.target, newer, position)
    assert reached != position
    for job, at in ((pair.job, reached), (newer, position)):
        with pytest.raises(ImportLost):
            await follow(pair.source, pair.target, job, at)
    assert (await pair.head()).position == reached
    assert pair.contents(1, pair.tenant_id) != before


async def test_an_import_that_is_sealed_stays_as_it_is(pair: Pair) -> None:
    await copy_rows(pair.source, pair.target, pair.job)
    position = (await pair.head()).position
    seal = Change(
        name="seal",
        side=Side.TARGET,
        expected=IMPORTING,
        wanted=IMPORTING._replace(state=HeadState.READY),
    )
    assert await change_head(pair.target, pair.job.tenant_id, seal, 1) is not None
    await pair.write_some(random.Random(4))
    before = pair.contents(1, pair.tenant_id)
    for attempt in (
        follow(pair.source, pair.target, pair.job, position),
        delete_rows(pair.target, pair.job, position),
    ):
        with pytest.raises(ImportLost):
            await attempt
    assert pair.contents(1, pair.tenant_id) == before


async def test_another_history_is_noticed_and_thrown_away(pair: Pair) -> None:
    await copy_rows(pair.source, pair.target, pair.job)
    position = (await pair.head()).position
    await pair.write_some(random.Random(5))
    other = Position(position.seq, b"another history, of 32 bytes....")
    with psycopg.connect(pair.databases[1].superuser_dsn) as connection:
        connection.execute("UPDATE tenant_heads SET last_hash = %s", (other.hash,))
    with pytest.raises(Diverged):
        await follow(pair.source, pair.target, pair.job, other)
    await delete_rows(pair.target, pair.job, other)
    assert not any(pair.contents(1, pair.tenant_id).values())
    await copy_rows(pair.source, pair.target, pair.job)
    await pair.follow_to_the_end()
    await pair.assert_same()


async def test_rows_are_deleted_of_the_tenant_only(pair: Pair) -> None:
    async with write(pair.databases[1].writer_dsn) as writer:
        neighbour = own_tenant(pair.databases[1].writer_dsn)
        await fill_tenant(writer, neighbour, pair.databases[1].superuser_dsn)
    before = pair.contents(1, neighbour)
    await copy_rows(pair.source, pair.target, pair.job)
    for at in ((await pair.head()).position, START):
        await delete_rows(pair.target, pair.job, at)
        assert not any(pair.contents(1, pair.tenant_id).values())
        assert pair.contents(1, neighbour) == before


async def test_keys_are_not_purged_under_a_move(pair: Pair) -> None:
    """Idempotency keys of the pinned tenant stay, whatever their age; a neighbour's go."""
    dsn = pair.databases[0].superuser_dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        update = "UPDATE tenant_heads SET move_id = %s WHERE tenant_id = %s"
        connection.execute(update, (MOVE, pair.tenant_id))
        kept = "SELECT * FROM idempotency_keys WHERE tenant_id = %s"
        mine = connection.execute(kept, (pair.tenant_id,)).fetchall()
        others = "SELECT * FROM idempotency_keys WHERE tenant_id <> %s"
        purged = connection.execute(others, (pair.tenant_id,)).fetchall()
        store = pair.writer.sequencer._store
        assert await store.expire_keys(2**62, 10_000) == len(purged) > 0
        assert connection.execute(kept, (pair.tenant_id,)).fetchall() == mine != []
        # The audit knows that their time was not over.
        put_back = "INSERT INTO idempotency_keys VALUES (%s, %s, %s, %s)"
        for values in purged:
            connection.execute(put_back, values)
