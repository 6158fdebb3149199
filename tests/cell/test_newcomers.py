"""Tenants that come: what is read of them beforehand, and when it may be taken for theirs.

Method: one sequencer writes, on a real database; a memory of its own hears of the tenant as that of
another cell would, whose database the mover writes just so.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from cell_writing import Writing, all_of, execute, read, transfer, until, write
from postgres_proxy import Held, door_to

from cell import newcomers
from cell.arrival import Arrival
from cell.errors import NotApplied
from cell.ledger.model import TenantId
from cell.memory import ARRIVALS_MAX, Memory
from cell.newcomers import Newcomers


@dataclass
class Coming:
    memory: Memory
    newcomers: Newcomers
    database: Any
    tenant_id: TenantId

    def becomes(self, state: str) -> None:
        """The head, as a mover changes it, and the notification."""
        execute(
            self.database.superuser_dsn,
            "UPDATE tenant_heads SET state = %s WHERE tenant_id = %s",
            state,
            self.tenant_id,
        )
        self.memory.forget(self.tenant_id)
        self.newcomers.look_at(self.tenant_id)

    async def expected(self, writer: Writing) -> Arrival:
        """What is expected of the tenant, once it is as of the journal's end."""
        last_seq = (await writer.sequencer._store.heads([self.tenant_id]))[self.tenant_id].last_seq

        def is_there() -> bool:
            arrival = self.memory.arrival(self.tenant_id)
            return arrival is not None and arrival.seq == last_seq

        await until(is_there, f"rows as of {last_seq}")
        arrival = self.memory.arrival(self.tenant_id)
        assert arrival is not None
        return arrival


@asynccontextmanager
async def coming(database: Any, tenant_id: TenantId) -> AsyncIterator[Coming]:
    async with read(database.reader_dsn) as reader:
        memory = Memory(1000)
        looking = Newcomers(reader, memory)
        running = asyncio.create_task(looking.run())
        try:
            yield Coming(memory, looking, database, tenant_id)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_what_comes_is_read_before_it_is_here_and_followed_by_the_journal(
    cell_database: Any, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcomers, "ENTRIES_MAX", 4)
    async with write(cell_database.writer_dsn) as writer:
        accounts = await writer.accounts(tenant_id, 6)
        for pair in zip(accounts[::2], accounts[1::2], strict=True):
            await writer.apply(tenant_id, transfer(*pair, 5))
        async with coming(cell_database, tenant_id) as each:
            each.newcomers.look_at(tenant_id)
            arrival = await each.expected(writer)
            assert set(arrival.accounts) == set(accounts[2:]), "those of the last entries"
            each.memory.forget(tenant_id)

            # Nothing is read anew: it would be more now.
            monkeypatch.setattr(newcomers, "ENTRIES_MAX", 1000)
            for _ in range(3):
                await writer.apply(tenant_id, transfer(accounts[5], accounts[0], 7))
            each.becomes("ready")
            arrival = await each.expected(writer)
            assert set(arrival.accounts) == set(accounts[2:])
            assert arrival.accounts[accounts[5]][1].posted_debits == 21
            assert each.memory.account(tenant_id, accounts[5]) is None, "it is not here yet"

            each.becomes("owned")
            await until(lambda: each.memory.head(tenant_id) is not None, "the head")
            for account_id in accounts[2:]:
                found = each.memory.account(tenant_id, account_id)
                assert found is not None
                assert found == writer.sequencer.memory.account(tenant_id, account_id)
                assert each.memory.ledger(tenant_id, found[0].ledger_id) is not None
            assert each.memory.account(tenant_id, accounts[0]) is None


@pytest.mark.parametrize("state", ["moved", "fenced"])
async def test_of_what_is_elsewhere_nothing_is_expected(
    cell_database: Any, tenant_id: TenantId, state: str
) -> None:
    async with write(cell_database.writer_dsn) as writer:
        await writer.apply(tenant_id, transfer(*await writer.accounts(tenant_id, 2), 5))
        async with coming(cell_database, tenant_id) as each:
            each.becomes(state)
            await until(lambda: not each.newcomers._waiting, "looked")
            each.becomes("owned")
            await until(lambda: each.memory.head(tenant_id) is not None, "the head")
            assert each.memory.arrival(tenant_id) is not None


async def test_what_is_too_far_behind_is_read_anew(
    cell_database: Any, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcomers, "SEGMENTS_MAX", 2)
    async with write(cell_database.writer_dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        await writer.apply(tenant_id, transfer(*accounts, 5))
        async with coming(cell_database, tenant_id) as each:
            each.newcomers.look_at(tenant_id)
            await each.expected(writer)
            for _ in range(3):
                await writer.apply(tenant_id, transfer(*accounts, 5))
            each.newcomers.look_at(tenant_id)
            arrival = await each.expected(writer)
            assert arrival.accounts[accounts[0]][1].posted_debits == 20


async def test_a_head_read_before_a_batch_was_answered_is_not_learnt_after_it(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """A notification in between makes memory forget the head that the batch would have brought on:
    what was read before would be taken for the present, without a write that was acknowledged."""
    dsn = cell_database.writer_dsn
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        await writer.apply(tenant_id, transfer(*accounts, 5))
        memory = writer.sequencer.memory
        async with read(cell_database.reader_dsn) as reader:
            _, arrival = await Newcomers(reader, memory)._load(tenant_id)
        assert arrival is not None
        before = await writer.sequencer._store.heads([tenant_id])

        door.gate = held = Held()
        writing = asyncio.create_task(writer.outcome(tenant_id, transfer(*accounts, 5)))
        await until(lambda: held.waiting > 0, "a batch that is committed, and not answered")
        memory.forget(tenant_id)
        changes = memory.changes
        memory.expect(tenant_id, arrival)
        held.opened.set()
        await writing
        memory.learn(before, changes)
        assert memory.account(tenant_id, accounts[0]) is None

        await writer.apply(tenant_id, transfer(*accounts, 5))
        found = memory.account(tenant_id, accounts[0])
        assert found is not None
        assert found[1].posted_debits == 15


async def test_rows_as_of_another_position_are_not_taken_over(
    cell_database: Any, tenant_id: TenantId
) -> None:
    async with write(cell_database.writer_dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        await writer.apply(tenant_id, transfer(*accounts, 5))
        async with read(cell_database.reader_dsn) as reader:
            memory = Memory(1000)
            _, arrival = await Newcomers(reader, memory)._load(tenant_id)
        assert arrival is not None
        await writer.apply(tenant_id, transfer(*accounts, 5))
        heads = await writer.sequencer._store.heads([tenant_id])
        memory.expect(tenant_id, arrival)
        memory.learn(heads, memory.changes)
        assert memory.head(tenant_id) == heads[tenant_id]
        assert memory.account(tenant_id, accounts[0]) is None
        assert arrival.followed(arrival.hash, [], arrival.seq + 1, b"") is None


async def test_another_history_is_not_followed(cell_database: Any, tenant_id: TenantId) -> None:
    """The tenant lost what was read of it, and went on from before with the same sequences."""
    async with write(cell_database.writer_dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        await writer.apply(tenant_id, transfer(*accounts, 5))
        async with coming(cell_database, tenant_id) as each:
            each.newcomers.look_at(tenant_id)
            arrival = await each.expected(writer)
            lost = Arrival(
                seq=arrival.seq, hash=b"lost", accounts=arrival.accounts, ledgers=arrival.ledgers
            )
            for count in (0, 1):
                each.memory.expect(tenant_id, lost)
                for _ in range(count):
                    await writer.apply(tenant_id, transfer(*accounts, 5))
                each.newcomers.look_at(tenant_id)
                await until(lambda: each.memory.arrival(tenant_id) is not lost, "read anew")
                found = await each.expected(writer)
                assert found.accounts[accounts[0]] == writer.sequencer.memory.account(
                    tenant_id, accounts[0]
                )


async def test_a_head_read_while_it_was_owned_is_not_learnt_once_it_is_fenced(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    async with write(dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        memory = writer.sequencer.memory
        changes = memory.changes
        before = await writer.sequencer._store.heads([tenant_id])
        await writer.apply(tenant_id, transfer(*accounts, 5))
        execute(
            dsn,
            "UPDATE tenant_heads SET state = 'fenced', epoch = epoch + 1 WHERE tenant_id = %s",
            tenant_id,
        )
        assert isinstance(
            (await all_of(writer.outcome(tenant_id, transfer(*accounts, 5))))[0], NotApplied
        )
        memory.learn(before, changes)
        found = memory.account(tenant_id, accounts[0])
        assert found is not None
        assert found[1].posted_debits == 5


async def test_what_was_forgotten_under_overlapping_batches_is_remembered_again(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        memory = writer.sequencer.memory
        door.gate = held = Held()
        writes = [asyncio.create_task(writer.outcome(tenant_id, transfer(*accounts, 1)))]
        await until(lambda: held.waiting > 0, "a batch in flight")
        memory.forget(tenant_id)
        writes += [
            asyncio.create_task(writer.outcome(tenant_id, transfer(*accounts, 1)))
            for _ in range(40)
        ]
        await until(lambda: writer.sequencer.queue_depth == 40, "all wait")
        held.opened.set()
        await all_of(*writes)
        found = memory.account(tenant_id, accounts[0])
        assert found is not None
        assert found[1].posted_debits == 41


def test_few_are_expected_at_once() -> None:
    memory = Memory(1000)
    arrival = Arrival(seq=1, hash=b"", accounts={}, ledgers={})
    tenants = [TenantId(f"t{number}") for number in range(ARRIVALS_MAX + 1)]
    for tenant_id in tenants:
        memory.expect(tenant_id, arrival)
    assert [memory.arrival(each) is None for each in tenants] == [True] + [False] * ARRIVALS_MAX
