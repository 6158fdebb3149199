"""Connections that break: every submission gets one outcome, and it is the truth.

Method: a door (`postgres_proxy.py`) between the sequencer and a real Postgres cuts the connection
at a chosen message, also after the commit and before its answer; backends are terminated at random
moments under load, with a seed. Afterwards the tables are compared with what the callers were told;
the audit of every test does the rest.
"""

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from cell_writing import Writing, all_of, execute, own_tenant, rows, transfer, until, write
from postgres_proxy import Act, Held, Message, Once, door_to, fatal
from psycopg import sql

from cell.batch import Applied, Replayed
from cell.errors import Conflict, NotApplied, OutcomeUnknown, WriterFenced
from cell.ledger.model import TenantId
from cell.wire import Verdict

BATCH = 12
"""Commands submitted at once."""
ALL = -1
"""Turns of the event loop: until everybody has an answer."""
TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = 'cloister-sequencer' AND datname = current_database()
"""


def external_ids(dsn: str) -> Counter[str]:
    """How often each transaction is there."""
    query = "SELECT external_id, count(*) FROM ledger_transactions GROUP BY 1"
    return Counter(dict(rows(dsn, query)))


async def submit_some(
    writer: Writing, tenant_id: TenantId, accounts: list[str], name: str, count: int = BATCH
) -> list[Any]:
    return await all_of(
        *(
            writer.outcome(
                tenant_id, transfer(*accounts, external_id=f"{name}-{n}"), key=f"{name}-{n}"
            )
            for n in range(count)
        )
    )


# --- one cut -------------------------------------------------------------------------------------


async def cut_once(database: Any, tenant_id: TenantId, gate: Once, words: bytes = b"") -> None:
    """A batch meets the gate: its callers learn that it is applied, and it is, once."""
    dsn = database.writer_dsn
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        door.gate, door.last_words = gate, words
        outcomes = await submit_some(writer, tenant_id, accounts, "cut")
        assert gate.has_acted
        assert all(isinstance(outcome, Applied) for outcome in outcomes), outcomes
        again = await submit_some(writer, tenant_id, accounts, "cut")
        assert [each.seq for each in again] == [each.record.seq for each in outcomes]
    expected = {f"cut-{n}": 1 for n in range(BATCH)}
    assert external_ids(database.superuser_dsn) == expected


async def test_a_commit_whose_answer_is_lost(cell_database: Any, tenant_id: TenantId) -> None:
    await cut_once(cell_database, tenant_id, Once(Act.CUT, lambda message: message.confirms))


async def test_memory_is_read_again_after_an_unknown_outcome(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """All of it: heads may have changed unheard, so that even what is proved may be another's."""
    dsn = cell_database.writer_dsn
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 4)
        await submit_some(writer, tenant_id, accounts[2:], "before", 1)
        known = writer.sequencer.memory.account
        assert known(tenant_id, accounts[2]) is not None
        door.gate = Once(Act.CUT, lambda message: message.confirms)
        await submit_some(writer, tenant_id, accounts[:2], "cut", 1)
        assert [known(tenant_id, account) for account in accounts] == [None] * 4
        await submit_some(writer, tenant_id, accounts[:2], "after", 1)
        await submit_some(writer, tenant_id, accounts[2:], "after that", 1)
        for account in (accounts[0], accounts[2]):
            assert known(tenant_id, account)[1].posted_debits == 2  # type: ignore[index]  # known


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "08006", "XX000"])
async def test_a_server_that_says_goodbye_after_the_commit(
    cell_database: Any, tenant_id: TenantId, sqlstate: str
) -> None:
    """Its words are about the connection, not about the batch: that is committed."""
    gate = Once(Act.CUT, lambda message: message.confirms)
    await cut_once(cell_database, tenant_id, gate, fatal(sqlstate, "terminating connection"))


@pytest.mark.parametrize("sqlstate", ["57P01", "57P03", "XX000"])
async def test_a_server_that_says_goodbye_before_the_batch(
    cell_database: Any, tenant_id: TenantId, sqlstate: str
) -> None:
    """The cut at Sync: what was sent before it was executed and is rolled back."""
    gate = Once(Act.CUT, lambda message: message.kind == b"S" and not message.from_server)
    words = fatal(sqlstate, "terminating connection due to administrator command")
    await cut_once(cell_database, tenant_id, gate, words)


@pytest.mark.faults
async def test_a_cut_at_every_message(cell_database: Any, tenant_id: TenantId) -> None:
    """From the first byte of a batch to after its last, both directions, both connections."""
    dsn = cell_database.writer_dsn
    expected: Counter[str] = Counter()
    cuts = 0
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        while True:
            door.gate = gate = Once(Act.CUT, number=cuts)
            outcomes = await submit_some(writer, tenant_id, accounts, f"cut{cuts}")
            assert all(isinstance(outcome, Applied) for outcome in outcomes), (cuts, outcomes)
            expected.update(f"cut{cuts}-{n}" for n in range(BATCH))
            if not gate.has_acted:
                break
            cuts += 1
    assert cuts > 10
    assert external_ids(cell_database.superuser_dsn) == expected


@pytest.mark.faults
async def test_a_second_cut_at_every_message_of_the_recovery(
    cell_database: Any, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first batch is lost, and then the way back is cut as well.

    Also where the epoch was raised and nobody heard of it: that is not another sequencer's work.
    """
    monkeypatch.setattr("cell.sequencer.RECONNECT_PAUSE_S", 0.001)
    dsn = cell_database.writer_dsn
    expected: Counter[str] = Counter()
    cuts = 0
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        while True:
            lost = Once(Act.CUT, lambda message: message.confirms)
            later = Once(Act.CUT, number=cuts)

            async def gate(message: Message, lost: Once = lost, later: Once = later) -> Act:
                return await (later if lost.has_acted else lost)(message)

            door.gate = gate
            outcomes = await submit_some(writer, tenant_id, accounts, f"cut{cuts}", 2)
            assert all(isinstance(outcome, Applied) for outcome in outcomes), (cuts, outcomes)
            expected.update(f"cut{cuts}-{n}" for n in range(2))
            if not later.has_acted:
                break
            cuts += 1
    assert cuts > 20
    assert external_ids(cell_database.superuser_dsn) == expected


async def test_a_server_that_is_away_for_a_while(cell_database: Any, tenant_id: TenantId) -> None:
    dsn = cell_database.writer_dsn
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        gone = Held()
        attempts = Counter[bytes]()

        async def away(message: Message) -> Act:
            attempts[message.kind] += 1
            return Act.PASS if gone.opened.is_set() else Act.CUT

        door.gate = away
        waiting = asyncio.create_task(submit_some(writer, tenant_id, accounts, "away"))
        await until(lambda: sum(attempts.values()) > 4, "several attempts")
        assert not writer.sequencer.status.connected
        assert writer.sequencer.status.last_error
        gone.opened.set()
        assert all(isinstance(outcome, Applied) for outcome in await waiting)
        assert writer.sequencer.status.connected
        assert len(writer.sequencer.status.batch_times_s) > 0


# --- time that runs out --------------------------------------------------------------------------


async def test_what_is_not_answered_in_time(
    cell_database: Any, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In flight: unknown, and later known. Still queued: not applied, and never started."""
    monkeypatch.setattr("cell.sequencer.SWEEP_INTERVAL_S", 0.02)
    dsn = cell_database.writer_dsn
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        patient = writer.sequencer._limits
        writer.sequencer._limits = replace(patient, queue_wait_s=0.4, answer_wait_s=0.4)
        door.gate = held = Held()
        flying = asyncio.create_task(submit_some(writer, tenant_id, accounts, "flying", 1))
        await until(lambda: held.waiting == 1, "a batch in flight")
        queued = await submit_some(writer, tenant_id, accounts, "queued", 3)
        assert [type(outcome) for outcome in await flying] == [OutcomeUnknown]
        assert all(type(outcome) is NotApplied for outcome in queued), queued
        assert {outcome.verdict for outcome in queued} == {Verdict.OVERLOADED}
        (repeat,) = await submit_some(writer, tenant_id, accounts, "flying", 1)
        assert isinstance(repeat, Conflict)
        assert repeat.retryable
        writer.sequencer._limits = patient
        held.opened.set()
        again = await submit_some(writer, tenant_id, accounts, "queued", 3)
        assert all(isinstance(outcome, Applied) for outcome in again)
        (repeat,) = await submit_some(writer, tenant_id, accounts, "flying", 1)
        assert isinstance(repeat, Replayed)
    expected = {"flying-0": 1, **{f"queued-{n}": 1 for n in range(3)}}
    assert external_ids(cell_database.superuser_dsn) == expected


async def test_a_statement_that_takes_too_long_is_rolled_back(
    cell_database: Any, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cell.store.STATEMENT_TIMEOUT_MS", 3000)
    async with write(cell_database.writer_dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        with psycopg.connect(cell_database.superuser_dsn) as blocker:
            blocker.execute("SELECT 1 FROM tenant_heads FOR UPDATE")
            outcomes = await submit_some(writer, tenant_id, accounts, "late")
            blocker.rollback()
        assert all(type(outcome) is NotApplied for outcome in outcomes), outcomes
        assert external_ids(cell_database.superuser_dsn) == {}
        outcomes = await submit_some(writer, tenant_id, accounts, "late")
        assert all(isinstance(outcome, Applied) for outcome in outcomes)


@pytest.mark.parametrize("sqlstate", ["53100", "53200", "40P01", "XX000"])
async def test_a_database_that_cannot_take_a_batch_now(
    cell_database: Any, tenant_id: TenantId, sqlstate: str
) -> None:
    """Disk full, out of memory, a deadlock, a bug: nobody's command is at fault."""
    dsn = cell_database.superuser_dsn
    fail = f"""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON ledger_entries EXECUTE FUNCTION fail()"""
    async with write(cell_database.writer_dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        execute(dsn, fail)
        try:
            outcomes = await submit_some(writer, tenant_id, accounts, "now")
        finally:
            execute(dsn, "DROP FUNCTION fail CASCADE")
        assert all(type(outcome) is NotApplied for outcome in outcomes), outcomes
        assert external_ids(dsn) == {}
        outcomes = await submit_some(writer, tenant_id, accounts, "now")
        assert all(isinstance(outcome, Applied) for outcome in outcomes)


async def test_it_works_at_its_own_isolation_level(cell_database: Any, tenant_id: TenantId) -> None:
    """Whatever somebody has set for the database: the guard has to see what is committed."""
    dsn = cell_database.superuser_dsn
    name = sql.Identifier(cell_database.name)
    level = sql.SQL("ALTER DATABASE {} SET default_transaction_isolation TO 'repeatable read'")
    reset = sql.SQL("ALTER DATABASE {} RESET default_transaction_isolation")
    execute(dsn, level.format(name))
    try:
        async with write(cell_database.writer_dsn) as writer:
            accounts = await writer.accounts(tenant_id, 2)
            levels = "SELECT current_setting('default_transaction_isolation')"
            assert rows(dsn, levels) == [("repeatable read",)]
            cursor = await writer.sequencer._store.prefetcher.execute(levels)
            assert await cursor.fetchone() == ("read committed",)
            outcomes = await submit_some(writer, tenant_id, accounts, "some")
            assert all(isinstance(outcome, Applied) for outcome in outcomes)
    finally:
        execute(dsn, reset.format(name))


async def test_a_caller_that_goes_away_does_not_take_its_command_back(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        patient = writer.sequencer._limits
        writer.sequencer._limits = replace(patient, queue_wait_s=0.4, answer_wait_s=0.4)
        door.gate = held = Held()
        flying = asyncio.create_task(submit_some(writer, tenant_id, accounts, "flying", 1))
        await until(lambda: held.waiting == 1, "a batch in flight")
        queued = asyncio.create_task(submit_some(writer, tenant_id, accounts, "queued", 2))
        await until(lambda: writer.sequencer.queue_depth == 2, "two commands queued")
        flying.cancel()
        queued.cancel()
        await asyncio.gather(flying, queued, return_exceptions=True)
        held.opened.set()
        await until(lambda: writer.sequencer.status.commands_applied == 6, "all are applied")
        again = await submit_some(writer, tenant_id, accounts, "queued", 2)
        assert all(isinstance(outcome, Replayed) for outcome in again), again
    assert set(external_ids(cell_database.superuser_dsn)) == {"flying-0", "queued-0", "queued-1"}


# --- the sequencer is cancelled, or stopped ------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("batch_size", [3, 100])
async def test_cancelled_at_any_turn_it_owes_nobody_an_answer(
    cell_database: Any, tenant_id: TenantId, batch_size: int
) -> None:
    """So many turns of the event loop after a commit: every caller gets one true outcome."""
    dsn = cell_database.writer_dsn
    told: dict[str, Any] = {}
    async with door_to(dsn) as door:
        for turns in (*range(24), *range(24, 120, 6), ALL):
            with contextlib.suppress(asyncio.CancelledError):
                async with write(door.dsn(dsn), batch_size=batch_size) as writer:
                    accounts = await writer.accounts(tenant_id, 2)
                    door.gate = held = Held()
                    names = [f"turn{turns}", f"later{turns}"]
                    waiting = [
                        asyncio.create_task(submit_some(writer, tenant_id, accounts, name, 4))
                        for name in names
                    ]
                    await until(lambda held=held: held.waiting == 1, "a batch in flight")
                    held.opened.set()
                    if turns == ALL:
                        await asyncio.wait(waiting)
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    writer.running.cancel()
                    for name, outcomes in zip(names, await all_of(*waiting), strict=True):
                        told |= {f"{name}-{n}": outcome for n, outcome in enumerate(outcomes)}
    assert_truth(cell_database, told)
    kinds = Counter(type(outcome) for outcome in told.values())
    assert {Applied, OutcomeUnknown} <= kinds.keys(), kinds


def assert_truth(database: Any, told: dict[str, Any]) -> None:
    """Applied means once, not applied means never, unknown means one or the other."""
    there = external_ids(database.superuser_dsn)
    assert set(there) <= set(told)
    for name, outcome in told.items():
        if isinstance(outcome, Applied | Replayed):
            assert there[name] == 1, (name, outcome)
        elif isinstance(outcome, OutcomeUnknown):
            assert there[name] in (0, 1)
        else:
            assert isinstance(outcome, NotApplied | Conflict), (name, outcome)
            assert there[name] == 0, (name, outcome)


async def test_stopping_settles_what_is_queued_and_takes_no_more(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        door.gate = held = Held()
        flying = asyncio.create_task(submit_some(writer, tenant_id, accounts, "flying", 2))
        await until(lambda: held.waiting == 1, "a batch in flight")
        queued = asyncio.create_task(submit_some(writer, tenant_id, accounts, "queued", 5))
        await until(lambda: writer.sequencer.queue_depth == 5, "five commands queued")
        writer.sequencer.stop()
        (late,) = await submit_some(writer, tenant_id, accounts, "late", 1)
        assert isinstance(late, NotApplied)
        held.opened.set()
        outcomes = await flying + await queued
        assert all(isinstance(outcome, Applied) for outcome in outcomes), outcomes
        await writer.running
        assert not writer.sequencer.status.connected


async def test_stopping_while_the_database_is_away(cell_database: Any, tenant_id: TenantId) -> None:
    """It cannot drain: who waits is told that the outcome is unknown."""
    dsn = cell_database.writer_dsn
    async with door_to(dsn) as door:
        with pytest.raises(WriterFenced, match="stopping"):
            async with write(door.dsn(dsn)) as writer:
                accounts = await writer.accounts(tenant_id, 2)
                lost = Once(Act.CUT, lambda message: message.confirms)

                async def gate(message: Message) -> Act:
                    return Act.CUT if lost.has_acted else await lost(message)

                door.gate = gate
                waiting = asyncio.create_task(submit_some(writer, tenant_id, accounts, "lost", 2))
                await until(lambda: not writer.sequencer.status.connected, "the loss is noticed")
                writer.sequencer.stop()
                outcomes = await waiting
                assert all(isinstance(outcome, OutcomeUnknown) for outcome in outcomes)


# --- terminated backends under load --------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_backends_terminated_at_random_moments(cell_database: Any, seed: int) -> None:
    """Several tenants, unique keys; unknown outcomes are asked again with the same key."""
    source = random.Random(seed)
    dsn = cell_database.writer_dsn
    tenants = [own_tenant(dsn) for _ in range(3)]
    told: dict[str, Any] = {}
    async with write(dsn, batch_size=16) as writer:
        accounts = {tenant_id: await writer.accounts(tenant_id, 4) for tenant_id in tenants}
        is_over = asyncio.Event()

        async def load(client: int) -> None:
            tenant_id = tenants[client % len(tenants)]
            number = 0
            while not is_over.is_set():
                name = f"{client}-{number}"
                pair = source.sample(accounts[tenant_id], 2)
                command = transfer(*pair, external_id=name)
                (told[name],) = await all_of(writer.outcome(tenant_id, command, key=name))
                number += 1

        async with asyncio.TaskGroup() as group:
            for client in range(48):
                group.create_task(load(client))
            for _ in range(12):
                # By what was done, not by time: a busy machine has as much to lose.
                goal = len(told) + source.randint(10, 40)
                await until(lambda goal=goal: len(told) >= goal, "progress")
                await asyncio.to_thread(execute, cell_database.superuser_dsn, TERMINATE)
            is_over.set()
        assert_truth(cell_database, told)
        assert not [o for o in told.values() if isinstance(o, Conflict)]
        unknown = [name for name, o in told.items() if isinstance(o, OutcomeUnknown)]
        for name in unknown:
            tenant_id = tenants[int(name.split("-")[0]) % len(tenants)]
            command = transfer(*accounts[tenant_id][:2], external_id=name)
            told[name] = await writer.outcome(tenant_id, command, key=name)
    assert_truth(cell_database, told)
    assert sum(isinstance(outcome, Applied) for outcome in told.values()) > 50
