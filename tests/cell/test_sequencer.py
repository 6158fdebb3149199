"""The sequencer on a real database: outcomes, idempotency, time, queue, memory.

Method: commands in, outcomes out, and what SQL finds afterwards; time is an injected clock. What
breaks, moves or is poisoned has test files of its own.
"""

import asyncio
from itertools import pairwise
from typing import Any

import msgspec
import psycopg
import pytest
from cell_writing import (
    API_KEY,
    CREDIT,
    DEBIT,
    Clock,
    Writing,
    all_of,
    draft,
    own_tenant,
    read,
    rows,
    transfer,
    until,
    write,
)
from msgspec.structs import replace
from postgres_proxy import Held, door_to

from cell.batch import Applied, Replayed
from cell.errors import Conflict, NotApplied, NotFound, Unprocessable
from cell.ledger import commands
from cell.ledger.model import AccountBalances, Status, TenantId
from cell.sequencer import KEY_LIFETIME_US
from cell.store import Store
from cell.wire import Verdict

OTHER_API_KEY = API_KEY[:-1] + "8"
HOUR_US = 3_600_000_000
PENDING, POSTED, ARCHIVED = Status.PENDING, Status.POSTED, Status.ARCHIVED


def last_seq(dsn: str, tenant_id: str) -> int:
    found = rows(dsn, "SELECT last_seq FROM tenant_heads WHERE tenant_id = %s", tenant_id)
    return int(found[0][0])


def balances(dsn: str, account: str) -> tuple[int, ...]:
    """Pending debits and credits, posted debits and credits, lock version."""
    query = """
        SELECT pending_debits, pending_credits, posted_debits, posted_credits, lock_version
        FROM ledger_account_balances WHERE ledger_account_id = %s"""
    return tuple(map(int, rows(dsn, query, account)[0]))


# --- outcomes ------------------------------------------------------------------------------------


async def test_an_outcome_is_the_committed_record(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    record = await writer.apply(tenant_id, transfer(cash, alice, 5), key="k")
    async with read(cell_database.reader_dsn) as reader:
        assert await reader.record(tenant_id, record.seq) == record
    assert (record.api_key_id, record.idempotency_key) == (API_KEY, "k")
    assert last_seq(cell_database.superuser_dsn, tenant_id) == record.seq


async def test_a_refusal_leaves_nothing(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    before = last_seq(cell_database.superuser_dsn, tenant_id)
    unbalanced = commands.CreateLedgerTransaction(
        entries=(draft(cash, DEBIT, 5), draft(alice, CREDIT, 6))
    )
    with pytest.raises(Unprocessable):
        await writer.apply(tenant_id, unbalanced, key="k")
    with pytest.raises(NotFound):
        await writer.apply(tenant_id, transfer(cash, API_KEY))
    assert last_seq(cell_database.superuser_dsn, tenant_id) == before
    assert rows(cell_database.superuser_dsn, "SELECT * FROM idempotency_keys") == []
    assert balances(cell_database.superuser_dsn, cash) == (0, 0, 0, 0, 0)


async def test_a_change_of_nothing_is_answered_and_not_recorded(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    created = await writer.apply(tenant_id, transfer(cash, alice, 5, PENDING))
    post = commands.UpdateLedgerTransaction(id=created.inserted[0].id, status=POSTED)
    posted = await writer.apply(tenant_id, post)
    again = await writer.apply(tenant_id, post)
    assert again.updated[0] == posted.updated[0]
    assert last_seq(cell_database.superuser_dsn, tenant_id) == posted.seq
    both = await all_of(*(writer.outcome(tenant_id, post) for _ in range(3)))
    assert all(outcome.record.updated[0] == posted.updated[0] for outcome in both)


async def test_every_command_one_after_another_and_in_one_batch(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    """Each way of naming a row is prefetched for; the audit executes all of it again."""
    for at_once in (False, True):
        ledger = await writer.ledger(tenant_id)
        cash, alice, bob = await writer.accounts(tenant_id, 3, ledger)
        spare = await writer.account(tenant_id, ledger, external_id=f"spare {at_once}")
        pending = [
            (await writer.apply(tenant_id, transfer(cash, alice, 5, PENDING))).inserted
            for _ in range(4)
        ]
        entry = pending[3][1].id
        key = API_KEY if at_once else OTHER_API_KEY
        every: list[commands.Command] = [
            commands.CreateApiKey(id=key, secret_sha256="a" * 64),
            commands.RevokeApiKey(id=key),
            commands.UpdateLedger(id=ledger, name="x", metadata={"k": "v"}),
            commands.UpdateLedgerAccount(id=spare, name="x"),
            commands.UpdateLedgerAccount(id=bob, external_id=f"bob {at_once}"),
            commands.UpdateLedgerAccount(id=bob, metadata={"k": "v"}),
            commands.DeleteLedgerAccount(id=spare),
            commands.CreateLedgerAccount(
                ledger_id=ledger,
                name="x",
                normal_balance=DEBIT,
                currency="USD",
                currency_exponent=2,
                external_id=f"spare {at_once}",
            ),
            commands.UpdateLedgerTransaction(id=pending[0][0].id, status=POSTED),
            commands.UpdateLedgerTransaction(id=pending[1][0].id, status=ARCHIVED),
            commands.UpdateLedgerTransaction(
                id=pending[2][0].id, entries=transfer(cash, bob, 7).entries, external_id="x"
            ),
            commands.UpdateLedgerTransaction(id=pending[2][0].id, status=POSTED),
            commands.UpdateLedgerEntry(id=entry, metadata={"k": "v"}),
            commands.UpdateLedgerTransaction(id=pending[3][0].id, effective_at_us=7),
            commands.UpdateLedgerEntry(id=entry, metadata={"l": "v"}),
            transfer(alice, bob, 1),
            commands.DeleteLedger(id=ledger),
        ]
        if at_once:
            outcomes = await all_of(*(writer.outcome(tenant_id, command) for command in every))
        else:
            outcomes = [await writer.outcome(tenant_id, command) for command in every]
        assert all(isinstance(outcome, Applied) for outcome in outcomes), outcomes
        assert balances(cell_database.superuser_dsn, bob) == (0, 0, 0, 8, 3)


async def test_a_thousand_entries_and_the_largest_amounts(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    accounts = await writer.accounts(tenant_id, 10)
    most = 10**36 - 1
    drafts = [draft(accounts[n % 5], DEBIT, most) for n in range(500)]
    drafts += [draft(accounts[5 + n % 5], CREDIT, most) for n in range(500)]
    command = commands.CreateLedgerTransaction(entries=tuple(drafts), status=POSTED)
    await writer.apply(tenant_id, command)
    assert balances(cell_database.superuser_dsn, accounts[0]) == (0, 0, 100 * most, 0, 1)


# --- idempotency ---------------------------------------------------------------------------------


async def test_a_key_that_memory_knows(writer: Writing, tenant_id: TenantId) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    record = await writer.apply(tenant_id, transfer(cash, alice), key="k")
    # Another command with it is the same request, whatever it asks for.
    for command in (transfer(cash, alice), commands.CreateLedger(name="x")):
        assert await writer.outcome(tenant_id, command, key="k") == Replayed(seq=record.seq)


async def test_a_key_in_flight_is_a_conflict(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    command = transfer(cash, alice)
    first, second = await all_of(
        writer.outcome(tenant_id, command, key="k"), writer.outcome(tenant_id, command, key="k")
    )
    assert isinstance(second, Conflict)
    assert second.retryable
    again = await writer.outcome(tenant_id, command, key="k")
    assert again == Replayed(seq=first.record.seq)


async def test_keys_after_a_restart(cell_database: Any, tenant_id: TenantId) -> None:
    """Alone, and among many others of the same batch, known and new ones."""
    dsn = cell_database.writer_dsn
    async with write(dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        names = [str(number) for number in range(0, 60, 3)]
        first = {n: await writer.apply(tenant_id, transfer(*accounts), key=n) for n in names}
    async with write(dsn) as writer:
        again = await writer.outcome(tenant_id, transfer(*accounts), key="0")
        assert again == Replayed(seq=first["0"].seq)
    async with write(dsn) as writer:
        outcomes = await all_of(
            *(writer.outcome(tenant_id, transfer(*accounts), key=str(n)) for n in range(60))
        )
        for number, outcome in enumerate(outcomes):
            if str(number) in first:
                assert outcome == Replayed(seq=first[str(number)].seq)
            else:
                assert isinstance(outcome, Applied)
    assert balances(dsn, accounts[0])[2] == 60


async def test_a_repeat_that_the_rules_now_refuse_is_replayed(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """The first one took the external id; its repeat must not be told that it is taken."""
    dsn = cell_database.writer_dsn
    async with write(dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        command = msgspec.structs.replace(transfer(*accounts), external_id="only one")
        first = await writer.apply(tenant_id, command, key="first")
    async with write(dsn) as writer:
        assert await writer.outcome(tenant_id, command, key="first") == Replayed(seq=first.seq)
        with pytest.raises(Unprocessable):
            await writer.apply(tenant_id, command, key="second")


@pytest.mark.parametrize("others", [0, 20])
async def test_a_repeat_that_the_rules_would_refuse_by_now(
    cell_database: Any, tenant_id: TenantId, others: int
) -> None:
    """Its own first attempt is what is in its way: the external id, the version, the money."""
    dsn = cell_database.writer_dsn
    async with write(dsn) as writer:
        cash, alice = await writer.accounts(tenant_id, 2)
        debit, credit = transfer(cash, alice).entries
        attempts = {
            "external id": transfer(cash, alice, external_id="x"),
            "version": commands.CreateLedgerTransaction(
                entries=(replace(debit, lock_version=1), credit)
            ),
            "balance": commands.CreateLedgerTransaction(
                entries=(replace(debit, pending_lock=commands.BalanceLock(lte=3)), credit)
            ),
        }
        first = {
            name: await writer.apply(tenant_id, command, key=name)
            for name, command in attempts.items()
        }
        await writer.apply(tenant_id, commands.DeleteLedgerAccount(id=alice))
    async with write(dsn) as writer:
        pair = await writer.accounts(tenant_id, 2)
        outcomes = await all_of(
            *(writer.outcome(tenant_id, command, key=name) for name, command in attempts.items()),
            *(writer.outcome(tenant_id, transfer(*pair), key=str(n)) for n in range(others)),
        )
        assert outcomes[:3] == [Replayed(seq=record.seq) for record in first.values()]
        assert all(isinstance(outcome, Applied) for outcome in outcomes[3:])


async def test_a_failure_is_not_stored(writer: Writing, tenant_id: TenantId) -> None:
    cash, alice = await writer.accounts(tenant_id, 2)
    with pytest.raises(NotFound):
        await writer.apply(tenant_id, transfer(cash, API_KEY), key="k")
    assert isinstance(await writer.outcome(tenant_id, transfer(cash, alice), key="k"), Applied)


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_day_later_a_key_is_anew(
    cell_database: Any, tenant_id: TenantId, restarts: bool
) -> None:
    """Scenario A17, to the microsecond, with what memory knows and what only the table knows."""
    clock = Clock()
    dsn = cell_database.writer_dsn
    async with write(dsn, clock) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        old = await writer.apply(tenant_id, transfer(*accounts), key="old")
        clock.now_us = old.at_us + KEY_LIFETIME_US - 1
        again = await writer.outcome(tenant_id, transfer(*accounts), key="old")
        assert again == Replayed(seq=old.seq)
    async with write(dsn, clock) as writer:
        if not restarts:
            await writer.outcome(tenant_id, transfer(*accounts), key="old")
        clock.now_us = old.at_us + KEY_LIFETIME_US
        outcomes = await all_of(
            writer.outcome(tenant_id, transfer(*accounts), key="old"),
            writer.outcome(tenant_id, transfer(*accounts), key="young"),
        )
        assert all(isinstance(outcome, Applied) for outcome in outcomes), outcomes
        new = outcomes[0].record
        assert new.seq > old.seq
        clock.now_us += HOUR_US
        again = await writer.outcome(tenant_id, transfer(*accounts), key="old")
        assert again == Replayed(seq=new.seq)
    async with write(dsn, clock) as writer:
        again = await writer.outcome(tenant_id, transfer(*accounts), key="old")
        assert again == Replayed(seq=new.seq)
    assert balances(dsn, accounts[0])[2] == 3


async def test_old_keys_are_deleted_in_time(
    cell_database: Any, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cell.key_expiry.EXPIRE_INTERVAL_S", 0.02)
    monkeypatch.setattr("cell.key_expiry.EXPIRE_ROWS_MAX", 2)
    clock = Clock()
    dsn = cell_database.writer_dsn

    def keys() -> int:
        return int(rows(dsn, "SELECT count(*) FROM idempotency_keys")[0][0])

    async with write(dsn, clock) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        for number in range(5):
            clock.now_us += HOUR_US
            await writer.apply(tenant_id, transfer(*accounts), key=str(number))
        assert keys() == 5
        clock.now_us += KEY_LIFETIME_US - 3 * HOUR_US // 2
        await writer.apply(tenant_id, transfer(*accounts), key="new")
        await until(lambda: keys() == 3, "those past their time are gone")
        clock.now_us += KEY_LIFETIME_US + 1
        await writer.apply(tenant_id, transfer(*accounts), key="newer")
        await until(lambda: keys() == 1, "those past their time are gone")
        assert isinstance(await writer.outcome(tenant_id, transfer(*accounts), key="0"), Applied)


async def test_keys_belong_to_an_api_key_of_a_tenant(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    other = own_tenant(cell_database.writer_dsn)
    own = await writer.accounts(tenant_id, 2)
    others = await writer.accounts(other, 2)
    outcomes = await all_of(
        writer.outcome(tenant_id, transfer(*own), key="k"),
        writer.outcome(tenant_id, transfer(*own), key="k", api_key=OTHER_API_KEY),
        writer.outcome(other, transfer(*others), key="k"),
        writer.outcome(other, transfer(*others), key="k", api_key=OTHER_API_KEY),
    )
    assert all(isinstance(outcome, Applied) for outcome in outcomes)
    again = await writer.outcome(other, transfer(*others), key="k", api_key=OTHER_API_KEY)
    assert again == Replayed(seq=outcomes[3].record.seq)


@pytest.mark.parametrize("key", ["", " ", "k" * 10_000, "a\0b", "é💰", "'; --", '"\\'], ids=ascii)
async def test_keys_of_every_kind(
    cell_database: Any, writer: Writing, tenant_id: TenantId, key: str
) -> None:
    accounts = await writer.accounts(tenant_id, 2)
    record = await writer.apply(tenant_id, transfer(*accounts), key=key)
    assert record.idempotency_key == key
    again = await writer.outcome(tenant_id, transfer(*accounts), key=key)
    assert again == Replayed(seq=record.seq)


async def test_keys_that_could_be_taken_for_one_another(
    writer: Writing, tenant_id: TenantId
) -> None:
    accounts = await writer.accounts(tenant_id, 2)
    pairs = [("a", "b"), ("a\0", "b"), ("a", "\0b"), ("", "ab"), ("ab", ""), ("a\0b", "")]
    outcomes = [
        await writer.outcome(tenant_id, transfer(*accounts), key=key, api_key=api_key)
        for api_key, key in pairs[:1] + pairs[3:5]
    ]
    assert all(isinstance(outcome, Applied) for outcome in outcomes)


# --- time and ids --------------------------------------------------------------------------------


async def test_time_grows_whatever_the_clock_does(cell_database: Any, tenant_id: TenantId) -> None:
    """Backwards by an hour, standing still, over a restart: the audit looks at every timestamp."""
    clock = Clock()
    dsn = cell_database.writer_dsn
    records = []
    async with write(dsn, clock) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        for step_us in (0, 0, -HOUR_US, 5, -1, HOUR_US * 3, -HOUR_US * 2):
            clock.now_us += step_us
            outcomes = await all_of(
                *(writer.outcome(tenant_id, transfer(*accounts)) for _ in range(3))
            )
            records += [outcome.record for outcome in outcomes]
    clock.now_us -= HOUR_US
    async with write(dsn, clock) as writer:
        records.append(await writer.apply(tenant_id, transfer(*accounts)))
    assert all(a.at_us < b.at_us for a, b in pairwise(records))
    assert all(a.seq + 1 == b.seq for a, b in pairwise(records))
    # Ids follow the milliseconds; only a new process in the same millisecond may fall behind.
    assert all(a.id_base < b.id_base for a, b in pairwise(records[:-1]))
    assert len({row.id for record in records for row in record.inserted}) == 3 * len(records)


# --- the queue -----------------------------------------------------------------------------------


async def test_a_full_queue_refuses_before_anything_is_queued(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    other = own_tenant(dsn)
    limits = {"queue_commands_max": 8, "queue_commands_per_tenant_max": 5}
    async with door_to(dsn) as door, write(door.dsn(dsn), **limits) as writer:
        accounts = {each: await writer.accounts(each, 2) for each in (tenant_id, other)}
        door.gate = held = Held()
        first = asyncio.create_task(writer.outcome(tenant_id, transfer(*accounts[tenant_id])))
        await until(lambda: held.waiting == 1, "a batch in flight")
        waiting = asyncio.gather(
            *(
                writer.outcome(each, transfer(*accounts[each]), key=f"{number}")
                for each in (tenant_id, other)
                for number in range(7)
            ),
            return_exceptions=True,
        )
        await until(lambda: writer.sequencer.queue_depth == 8, "a full queue")
        held.opened.set()
        outcomes = [await first, *(await waiting)]
        kinds = [type(outcome) for outcome in outcomes[1:]]
        assert kinds == [Applied] * 5 + [NotApplied] * 2 + [Applied] * 3 + [NotApplied] * 4
        refused = [outcome for outcome in outcomes if isinstance(outcome, NotApplied)]
        assert {outcome.verdict for outcome in refused} == {Verdict.OVERLOADED}
        # A refused command has not claimed its key.
        again = await writer.outcome(tenant_id, transfer(*accounts[tenant_id]), key="6")
        assert isinstance(again, Applied)


async def test_a_quiet_tenant_does_not_wait_behind_a_busy_one(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    quiet = own_tenant(dsn)
    async with door_to(dsn) as door, write(door.dsn(dsn), batch_size=10) as writer:
        accounts = {each: await writer.accounts(each, 2) for each in (tenant_id, quiet)}
        door.gate = held = Held()
        done: list[str] = []

        async def submit(each: TenantId) -> None:
            await writer.outcome(each, transfer(*accounts[each]))
            done.append(each)

        async with asyncio.TaskGroup() as group:
            group.create_task(submit(tenant_id))
            await until(lambda: held.waiting == 1, "a batch in flight")
            for each in [tenant_id] * 100 + [quiet] * 5:
                group.create_task(submit(each))
            await until(lambda: writer.sequencer.queue_depth >= 90, "a long queue")
            held.opened.set()
        assert max(n for n, each in enumerate(done) if each == quiet) < 40


async def test_giants_of_one_tenant_do_not_delay_another(
    cell_database: Any, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is bounded by the entries it writes, too."""
    monkeypatch.setattr("cell.sequencer.BATCH_ENTRIES_MAX", 100)
    dsn = cell_database.writer_dsn
    quiet = own_tenant(dsn)
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        cash, alice = await writer.accounts(tenant_id, 2)
        others = await writer.accounts(quiet, 2)
        entries = (*[draft(cash, DEBIT)] * 25, *[draft(alice, CREDIT)] * 25)
        giant = commands.CreateLedgerTransaction(entries=entries)
        door.gate = held = Held()
        first = asyncio.create_task(writer.outcome(tenant_id, giant))
        await until(lambda: held.waiting == 1, "a batch in flight")
        giants = asyncio.gather(*(writer.outcome(tenant_id, giant) for _ in range(40)))
        small = asyncio.create_task(writer.outcome(quiet, transfer(*others)))
        await until(lambda: writer.sequencer.queue_depth == 41, "a queue of giants")
        held.opened.set()
        await small
        assert writer.sequencer.queue_depth > 30
        await asyncio.gather(first, giants)


async def test_it_waits_for_more_if_told_to(cell_database: Any, tenant_id: TenantId) -> None:
    dsn = cell_database.writer_dsn
    async with write(dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
    async with write(dsn, linger_s=10.0, batch_size=3) as writer:

        async def later(pause_s: float) -> Any:
            await asyncio.sleep(pause_s)
            return await writer.outcome(tenant_id, transfer(*accounts))

        await all_of(later(0.0), later(0.02), later(0.04))
        assert writer.sequencer.status.batches == 1


# --- memory --------------------------------------------------------------------------------------


async def test_memory_is_bounded_and_what_was_forgotten_is_read_again(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    async with write(dsn, cache_accounts=40, batch_size=50) as writer:
        accounts = await writer.accounts(tenant_id, 400)
        for round_number in range(3):
            outcomes = await all_of(
                *(
                    writer.outcome(tenant_id, transfer(accounts[n], accounts[n - 1]))
                    for n in range(len(accounts))
                )
            )
            assert all(isinstance(outcome, Applied) for outcome in outcomes)
            assert len(writer.sequencer.memory) <= 40, round_number
    wanted = [(3, 3, 6)] * 400
    query = "SELECT posted_debits, posted_credits, lock_version FROM ledger_account_balances"
    assert rows(dsn, query) == wanted


async def test_balances_are_read_again_at_the_start(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    async with write(dsn) as writer:
        cash, alice = await writer.accounts(tenant_id, 2)
        await writer.apply(tenant_id, transfer(cash, alice, 5))
        stale = writer.sequencer.memory.account(tenant_id, cash)
        assert stale is not None
        assert stale[1].posted_debits == 5
    async with write(dsn) as second:
        assert second.sequencer.memory.account(tenant_id, cash) is None
        locked = commands.EntryDraft(
            ledger_account_id=cash,
            direction=DEBIT,
            amount=2,
            lock_version=1,
            posted_lock=commands.BalanceLock(eq=-7),
        )
        await second.apply(
            tenant_id,
            commands.CreateLedgerTransaction(
                entries=(locked, draft(alice, CREDIT, 2)), status=POSTED
            ),
        )
        fresh = second.sequencer.memory.account(tenant_id, cash)
        assert fresh is not None
        assert isinstance(fresh[1], AccountBalances)
        assert (fresh[1].posted_debits, fresh[1].lock_version) == (7, 2)


async def test_what_memory_answers_is_what_is_committed(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """Never what a batch in flight will have done, and nothing for another tenant."""
    dsn = cell_database.writer_dsn
    other = own_tenant(dsn)
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        ledger = await writer.ledger(tenant_id)
        cash, alice = await writer.accounts(tenant_id, 2, ledger)
        await writer.accounts(other, 1)
        created = await writer.apply(tenant_id, transfer(cash, alice, 5, PENDING))
        id = created.inserted[0].id
        door.gate = held = Held()
        post = asyncio.create_task(
            writer.outcome(tenant_id, commands.UpdateLedgerTransaction(id=id, status=POSTED))
        )
        await until(lambda: held.waiting == 1, "a batch in flight")
        before = writer.sequencer.memory.account(tenant_id, cash)
        assert before is not None
        assert (before[1].pending_debits, before[1].posted_debits) == (5, 0)
        transaction = writer.sequencer.memory.transaction(tenant_id, id)
        assert transaction == (created.inserted[0], created.inserted[1:])
        held.opened.set()
        await post
        after = writer.sequencer.memory.account(tenant_id, cash)
        assert after is not None
        assert (after[1].pending_debits, after[1].posted_debits) == (0, 5)
        transaction = writer.sequencer.memory.transaction(tenant_id, id)
        assert transaction is not None
        assert [entry.status for entry in transaction[1]] == [POSTED, POSTED]
        assert writer.sequencer.memory.account(other, cash) is None
        assert writer.sequencer.memory.transaction(other, id) is None
        assert writer.sequencer.memory.ledger(other, ledger) is None


async def test_a_store_that_was_never_opened_takes_nothing(cell_database: Any) -> None:
    store = Store(cell_database.writer_dsn)
    with pytest.raises(psycopg.OperationalError):
        await store.heads([])
