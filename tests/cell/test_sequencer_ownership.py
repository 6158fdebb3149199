"""Who may write: sequencers that fence each other, tenants that come and go, tenants side by side.

Method: heads and epochs are changed under a running sequencer by SQL, as a move or a successor
does, also while a batch is held on its way; every caller's outcome must be the truth.
"""

import asyncio
import random
from typing import Any

import psycopg
import pytest
from cell_writing import (
    ALL_ROWS,
    API_KEY,
    CREDIT,
    DEADLINE_S,
    DEBIT,
    Writing,
    all_of,
    draft,
    execute,
    own_tenant,
    rows,
    transfer,
    until,
    write,
)
from postgres_proxy import Act, Held, Message, door_to

from cell.batch import Applied, Idempotency
from cell.errors import ApiError, NotApplied, NotFound, OutcomeUnknown, WriterFenced
from cell.ledger import commands
from cell.ledger.model import Status, TenantId
from cell.sequencer import Sequencer
from cell.sequencer_limits import SequencerLimits
from cell.store import Store
from cell.wire import Verdict

UNKNOWN_ID = "00000000-0000-7000-8000-00000000ffff"
PENDING, POSTED = Status.PENDING, Status.POSTED


def set_head(dsn: str, tenant_id: str, **columns: Any) -> None:
    for column, value in columns.items():
        update = f"UPDATE tenant_heads SET {column} = %s WHERE tenant_id = %s"
        execute(dsn, update, value, tenant_id)


def count(dsn: str, table: str, tenant_id: str) -> int:
    query = f"SELECT count(*) FROM {table} WHERE tenant_id = %s"
    return int(rows(dsn, query, tenant_id)[0][0])


# --- a second sequencer --------------------------------------------------------------------------


async def test_a_second_sequencer_fences_the_first(cell_database: Any, tenant_id: TenantId) -> None:
    dsn = cell_database.writer_dsn
    with pytest.raises(WriterFenced):
        async with write(dsn, batch_size=4) as first:
            accounts = await first.accounts(tenant_id, 2)
            async with write(dsn) as second:
                outcomes = await all_of(
                    *(first.outcome(tenant_id, transfer(*accounts), key=str(n)) for n in range(20))
                )
                kinds = {type(outcome) for outcome in outcomes}
                assert kinds <= {OutcomeUnknown, NotApplied}, outcomes
                assert count(dsn, "ledger_transactions", tenant_id) == 0
                assert isinstance((await all_of(first.running))[0], WriterFenced)
                assert not first.sequencer.status.connected
                with pytest.raises(NotApplied):
                    await first.outcome(tenant_id, transfer(*accounts))
                await second.apply(tenant_id, transfer(*accounts), key="0")
    assert count(dsn, "ledger_transactions", tenant_id) == 1


async def test_a_successor_under_load(cell_database: Any, tenant_id: TenantId) -> None:
    """What the first acknowledged is there for the second; nothing is there that neither did."""
    dsn = cell_database.writer_dsn
    told: dict[str, Any] = {}
    with pytest.raises(WriterFenced):
        async with write(dsn, batch_size=4) as first:
            accounts = await first.accounts(tenant_id, 4)

            async def load(client: int) -> None:
                number = 0
                outcome: Any = None
                while not isinstance(outcome, ApiError):
                    name = f"{client}-{number}"
                    command = transfer(*accounts[client % 3 : client % 3 + 2], external_id=name)
                    (outcome,) = await all_of(first.outcome(tenant_id, command))
                    told[name] = outcome
                    number += 1

            async with asyncio.TaskGroup() as group:
                for client in range(16):
                    group.create_task(load(client))
                await until(lambda: len(told) > 100, "some load")
                async with write(dsn) as second:
                    await second.apply(tenant_id, transfer(*accounts[:2], external_id="second"))
    there = {name for (name,) in rows(dsn, "SELECT external_id FROM ledger_transactions")}
    applied = {name for name, outcome in told.items() if isinstance(outcome, Applied)}
    unknown = {name for name, outcome in told.items() if isinstance(outcome, OutcomeUnknown)}
    assert applied | {"second"} <= there <= applied | unknown | {"second"}


async def test_a_successor_waits_for_the_batch_in_flight(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """Held behind its guard, at a row whose key somebody else is about to use."""
    dsn = cell_database.writer_dsn
    digest = Idempotency(api_key_id=API_KEY, key="held").digest()
    use = (
        "INSERT INTO idempotency_keys (tenant_id, digest, created_at_us, seq) VALUES (%s, %s, 1, 1)"
    )

    def waiting() -> int:
        return len(rows(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted"))

    with pytest.raises(WriterFenced):
        async with write(dsn) as first:
            accounts = await first.accounts(tenant_id, 2)
            with psycopg.connect(cell_database.superuser_dsn) as holder:
                holder.execute(use, (tenant_id, digest))
                flying = asyncio.create_task(
                    first.outcome(tenant_id, transfer(*accounts), key="held")
                )
                await until(lambda: waiting() == 1, "the batch waits")
                successor = Store(dsn)
                opening = asyncio.create_task(successor.open())
                await until(lambda: waiting() == 2, "the successor waits")
                assert not opening.done()
                holder.rollback()
            assert isinstance(await flying, Applied)
            await opening
            await successor.close()
            late = await all_of(first.outcome(tenant_id, transfer(*accounts)))
            assert isinstance(late[0], OutcomeUnknown)
    assert count(dsn, "ledger_transactions", tenant_id) == 1


async def test_a_sequencer_that_lost_its_connection_and_its_place(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """The successor came while it was away: it must not take the database back."""
    dsn = cell_database.writer_dsn
    async with door_to(dsn) as door:
        with pytest.raises(WriterFenced):
            async with write(door.dsn(dsn)) as first:
                accounts = await first.accounts(tenant_id, 2)

                async def away(message: Message) -> Act:
                    return Act.CUT

                door.gate = away
                waiting = asyncio.create_task(first.outcome(tenant_id, transfer(*accounts)))
                await until(lambda: not first.sequencer.status.connected, "the loss is noticed")
                async with write(dsn) as second:
                    await second.apply(tenant_id, transfer(*accounts))
                    door.gate = Held()
                    assert isinstance((await all_of(waiting))[0], OutcomeUnknown)
                    assert isinstance((await all_of(first.running))[0], WriterFenced)
                    await second.apply(tenant_id, transfer(*accounts))
    assert count(dsn, "ledger_transactions", tenant_id) == 2


async def test_what_is_committed_is_known_though_its_tenant_has_moved_on(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """The confirmation is lost; before the writer is back, the old cell follows the new one."""
    dsn = cell_database.writer_dsn
    neighbour = own_tenant(dsn)
    committed, cut = asyncio.Event(), asyncio.Event()

    async def gate(message: Message) -> Act:
        if message.confirms and not cut.is_set():
            committed.set()
            await cut.wait()
            return Act.CUT
        return Act.PASS

    async with door_to(dsn) as door, write(door.dsn(dsn), batch_size=2) as writer:
        accounts = {each: await writer.accounts(each, 2) for each in (tenant_id, neighbour)}
        door.gate = gate
        writing = [
            asyncio.create_task(writer.outcome(each, transfer(*accounts[each])))
            for each in accounts
        ]
        await asyncio.wait_for(committed.wait(), DEADLINE_S)
        set_head(dsn, tenant_id, state="moved", epoch=2, last_seq=99, last_hash=bytes(32))
        cut.set()
        outcomes = await all_of(*writing)
        assert [isinstance(outcome, Applied) for outcome in outcomes] == [True, True]
        (refused,) = await all_of(writer.outcome(tenant_id, transfer(*accounts[tenant_id])))
        assert isinstance(refused, NotApplied)
    execute(cell_database.superuser_dsn, f"TRUNCATE {ALL_ROWS}")


async def test_each_start_has_a_higher_epoch(cell_database: Any) -> None:
    epochs = []
    for _ in range(3):
        sequencer = Sequencer(Store(cell_database.writer_dsn), SequencerLimits())
        await sequencer.open()
        epochs.append(sequencer.status.writer_epoch)
        running = asyncio.create_task(sequencer.run())
        sequencer.stop()
        await running
    assert epochs == sorted(set(epochs))


# --- tenants that are fenced, moved, not here ----------------------------------------------------


async def test_rows_read_while_a_tenant_was_imported_are_no_rows_of_its_owner(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """The tenant arrives between two batches, the second decided on top of the first in flight."""
    dsn = cell_database.writer_dsn
    neighbour = own_tenant(dsn)
    async with door_to(dsn) as door, write(door.dsn(dsn), batch_size=2) as writer:
        accounts = {each: await writer.accounts(each, 2) for each in (tenant_id, neighbour)}
        await writer.apply(tenant_id, transfer(*accounts[tenant_id]))
        set_head(dsn, tenant_id, state="importing")
        writer.sequencer.memory.forget(tenant_id)
        door.gate = held = Held()
        before = [
            asyncio.create_task(writer.outcome(each, transfer(*accounts[each])))
            for each in (neighbour, tenant_id)
        ]
        await until(lambda: held.waiting > 0, "the first batch is being written")
        # What follows from the source, then the activation.
        execute(
            cell_database.superuser_dsn,
            "UPDATE ledger_account_balances SET lock_version = lock_version + 5"
            " WHERE tenant_id = %s",
            tenant_id,
        )
        set_head(dsn, tenant_id, state="owned", epoch=2)
        after = [
            asyncio.create_task(writer.outcome(tenant_id, transfer(*accounts[tenant_id])))
            for _ in range(2)
        ]
        await until(lambda: writer.sequencer.queue_depth == 0, "the second is being decided")
        held.opened.set()
        applied, refused = await all_of(*before)
        assert isinstance(applied, Applied)
        assert isinstance(refused, NotApplied)
        outcomes = await all_of(*after)
        assert [isinstance(outcome, Applied) for outcome in outcomes] == [True, True]
    versions = "SELECT lock_version FROM ledger_account_balances WHERE tenant_id = %s"
    assert rows(dsn, versions, tenant_id) == [(8,), (8,)]
    # Entries of the versions in between were never written.
    execute(cell_database.superuser_dsn, f"TRUNCATE {ALL_ROWS}")


STATES = [
    ("fenced", Verdict.FENCED),
    ("moved", Verdict.MOVED),
    ("importing", Verdict.NOT_OWNER),
    ("ready", Verdict.NOT_OWNER),
    ("quarantined", Verdict.QUARANTINED),
]


@pytest.mark.parametrize(("state", "verdict"), STATES)
async def test_a_tenant_that_is_not_owned_and_its_neighbours(
    cell_database: Any, writer: Writing, tenant_id: TenantId, state: str, verdict: Verdict
) -> None:
    dsn = cell_database.writer_dsn
    tenants = [tenant_id, own_tenant(dsn), own_tenant(dsn)]
    accounts = {each: await writer.accounts(each, 3) for each in tenants}
    memory = writer.sequencer.memory

    async def one_each(key: str) -> list[Any]:
        return await all_of(
            *(
                writer.outcome(each, transfer(*accounts[each][:2]), key=f"{key}-{n}")
                for n in range(5)
                for each in tenants
            )
        )

    set_head(dsn, tenants[1], state=state, moved_to="cell-b" if state == "moved" else None)
    for key in ("first", "second"):
        outcomes = await one_each(key)
        for number, outcome in enumerate(outcomes):
            if number % 3 == 1:
                assert isinstance(outcome, NotApplied)
                assert (outcome.verdict, outcome.epoch) == (verdict, 1)
                assert outcome.moved_to == ("cell-b" if state == "moved" else None)
            else:
                assert isinstance(outcome, Applied), outcome
    assert count(dsn, "ledger_transactions", tenants[1]) == 0
    # Memory answers for it no longer, unless it is only fenced; for the others, also what no batch
    # has touched since.
    held = [memory.account(each, accounts[each][2]) is not None for each in tenants]
    assert held == [True, state == "fenced", True]
    assert writer.sequencer.status.last_error is None, "a move is no failure"

    set_head(dsn, tenants[1], state="owned", moved_to=None)
    outcomes = await one_each("second")
    # Their keys were not claimed by what was not applied.
    assert [type(outcome) is Applied for outcome in outcomes] == [False, True, False] * 5
    assert count(dsn, "ledger_transactions", tenants[1]) == 5


@pytest.mark.parametrize("commands_each", [1, 40])
async def test_a_tenant_fenced_while_its_batch_is_on_the_way(
    cell_database: Any, tenant_id: TenantId, commands_each: int
) -> None:
    dsn = cell_database.writer_dsn
    other = own_tenant(dsn)
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = {each: await writer.accounts(each, 2) for each in (tenant_id, other)}
        is_open, stopped = asyncio.Event(), asyncio.Event()

        async def gate(message: Message) -> Act:
            if not stopped.is_set():
                stopped.set()
                await is_open.wait()
            return Act.PASS

        door.gate = gate
        waiting = asyncio.create_task(
            all_of(
                *(
                    writer.outcome(each, transfer(*accounts[each]), key=str(n))
                    for each in (tenant_id, other)
                    for n in range(commands_each)
                )
            )
        )
        # At its very first message: once the guard has run, a fence waits for the commit.
        await stopped.wait()
        set_head(dsn, tenant_id, state="fenced")
        is_open.set()
        outcomes = await waiting
        mine, others = outcomes[:commands_each], outcomes[commands_each:]
        assert {outcome.verdict for outcome in mine} == {Verdict.FENCED}
        assert all(isinstance(outcome, Applied) for outcome in others), others
        set_head(dsn, tenant_id, state="owned")
        outcome = await writer.outcome(tenant_id, transfer(*accounts[tenant_id]), key="0")
        assert isinstance(outcome, Applied)


@pytest.mark.parametrize("batch_size", [4, 100])
async def test_fences_go_up_and_down_under_load(cell_database: Any, batch_size: int) -> None:
    """As moves that are cancelled: whatever is not applied is nowhere, all else is there once."""
    source = random.Random(batch_size)
    dsn = cell_database.writer_dsn
    tenants = [own_tenant(dsn) for _ in range(3)]
    told: dict[str, Any] = {}
    async with write(dsn, batch_size=batch_size) as writer:
        accounts = {each: await writer.accounts(each, 2) for each in tenants}
        is_over = asyncio.Event()

        async def client(number: int) -> None:
            tenant_id = tenants[number % 3]
            count = 0
            while not is_over.is_set():
                name = f"{number}-{count}"
                command = transfer(*accounts[tenant_id], external_id=name)
                (told[name],) = await all_of(writer.outcome(tenant_id, command, key=name))
                count += 1

        async with asyncio.TaskGroup() as group:
            for number in range(30):
                group.create_task(client(number))
            for turn in range(20):
                enough = len(told) + 40
                await until(lambda enough=enough: len(told) > enough, "load goes on")
                tenant_id = source.choice(tenants)
                changes = (
                    {"state": "fenced"},
                    {"state": "owned"},
                    {"state": "owned", "epoch": 2 + turn},
                )
                await asyncio.to_thread(set_head, dsn, tenant_id, **source.choice(changes))
            is_over.set()
    there = dict(rows(dsn, "SELECT external_id, count(*) FROM ledger_transactions GROUP BY 1"))
    assert there == {name: 1 for name, each in told.items() if isinstance(each, Applied)}
    refused = [outcome for outcome in told.values() if not isinstance(outcome, Applied)]
    assert {(type(each), each.verdict) for each in refused} == {(NotApplied, Verdict.FENCED)}


async def test_an_epoch_raised_under_the_sequencer(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    """As when the tenant had moved away and back."""
    dsn = cell_database.writer_dsn
    accounts = await writer.accounts(tenant_id, 2)
    set_head(dsn, tenant_id, epoch=4)
    outcomes = await all_of(*(writer.outcome(tenant_id, transfer(*accounts)) for _ in range(3)))
    assert all(isinstance(outcome, Applied) for outcome in outcomes)
    epochs = "SELECT epoch FROM journal WHERE tenant_id = %s ORDER BY first_seq DESC LIMIT 1"
    assert rows(dsn, epochs, tenant_id) == [(4,)]
    set_head(dsn, tenant_id, state="fenced", epoch=5)
    with pytest.raises(NotApplied) as refusal:
        await writer.outcome(tenant_id, transfer(*accounts))
    assert refusal.value.epoch == 5


async def test_what_others_wrote_meanwhile_is_read_again(
    cell_database: Any, tenant_id: TenantId
) -> None:
    """Moved away, written elsewhere and back: memory of all before is worthless.

    The other cell is a second sequencer on the same database, whose writer epoch is then given
    back, so that the first goes on as if it had never been away.
    """
    dsn = cell_database.writer_dsn
    async with write(dsn) as first:
        cash, alice = await first.accounts(tenant_id, 2)
        pending = await first.apply(tenant_id, transfer(cash, alice, 1, PENDING))
        epoch = first.sequencer.status.writer_epoch
        async with write(dsn) as elsewhere:
            post = commands.UpdateLedgerTransaction(id=pending.inserted[0].id, status=POSTED)
            await elsewhere.apply(tenant_id, post)
            await elsewhere.apply(tenant_id, transfer(cash, alice, 5))
        set_head(dsn, tenant_id, epoch=3)
        execute(cell_database.superuser_dsn, "UPDATE cell_head SET writer_epoch = %s", epoch)
        locked = (
            draft(cash, DEBIT, 1, posted_lock=commands.BalanceLock(eq=-7)),
            draft(alice, CREDIT, 1, lock_version=3),
        )
        await first.apply(
            tenant_id, commands.CreateLedgerTransaction(entries=locked, status=POSTED)
        )
        archive = commands.UpdateLedgerTransaction(id=pending.inserted[0].id, status="archived")
        (refusal,) = await all_of(first.outcome(tenant_id, archive))
        assert isinstance(refusal, ApiError)
        assert refusal.parameter == "ledger_transaction"


async def test_an_unknown_tenant_is_not_ours_until_it_is(
    cell_database: Any, writer: Writing
) -> None:
    dsn = cell_database.writer_dsn
    stranger = TenantId(UNKNOWN_ID)
    create = commands.CreateLedger(name="x")
    for _ in range(2):
        with pytest.raises(NotApplied) as refusal:
            await writer.outcome(stranger, create)
        assert (refusal.value.verdict, refusal.value.epoch) == (Verdict.NOT_OWNER, None)
    own_tenant(dsn, stranger)
    await writer.apply(stranger, create)
    execute(cell_database.superuser_dsn, "DELETE FROM ledgers")
    execute(cell_database.superuser_dsn, "DELETE FROM journal")
    execute(cell_database.superuser_dsn, "DELETE FROM tenant_heads")
    with pytest.raises(NotApplied):
        await writer.outcome(stranger, create)


async def test_only_the_owner_refuses(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    """A refusal from stale memory would be a lie when the tenant lives elsewhere by now."""
    accounts = await writer.accounts(tenant_id, 2)
    set_head(cell_database.writer_dsn, tenant_id, state="moved", moved_to="cell-b")
    unbalanced = commands.CreateLedgerTransaction(
        entries=(draft(accounts[0], DEBIT, 1), draft(accounts[1], CREDIT, 2))
    )
    with pytest.raises(NotApplied) as refusal:
        await writer.outcome(tenant_id, unbalanced)
    assert refusal.value.verdict is Verdict.MOVED


# --- tenants side by side ------------------------------------------------------------------------


async def test_another_tenants_ids_answer_exactly_like_unknown_ones(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    """Whether the rows are in memory, in the database only, or in the very same batch."""
    dsn = cell_database.writer_dsn
    other = own_tenant(dsn)
    ledger = await writer.ledger(tenant_id)
    cash, alice = await writer.accounts(tenant_id, 2, ledger)
    spare = await writer.account(tenant_id, ledger, external_id="taken")
    created = await writer.apply(tenant_id, transfer(cash, alice, 5, PENDING, external_id="taken"))
    transaction, entry = created.inserted[0].id, created.inserted[1].id
    key = "00000000-0000-7000-8000-00000000aaaa"
    await writer.apply(tenant_id, commands.CreateApiKey(id=key, secret_sha256="a" * 64))
    own_cash, own_alice = await writer.accounts(other, 2)

    def naming(ids: dict[str, str]) -> list[Any]:
        account = ids["account"]
        return [
            commands.UpdateLedger(id=ids["ledger"], name="x"),
            commands.DeleteLedger(id=ids["ledger"]),
            commands.CreateLedgerAccount(
                ledger_id=ids["ledger"],
                name="x",
                normal_balance=DEBIT,
                currency="USD",
                currency_exponent=2,
                external_id="taken",
            ),
            commands.UpdateLedgerAccount(id=account, name="x", external_id="taken"),
            commands.DeleteLedgerAccount(id=account),
            transfer(own_cash, account),
            transfer(account, account),
            commands.UpdateLedgerTransaction(id=ids["transaction"], status=POSTED),
            commands.UpdateLedgerTransaction(id=ids["transaction"], external_id="taken"),
            commands.UpdateLedgerTransaction(
                id=ids["transaction"], entries=transfer(own_cash, own_alice).entries
            ),
            commands.UpdateLedgerEntry(id=ids["entry"], metadata={"k": "v"}),
            commands.RevokeApiKey(id=ids["key"]),
        ]

    theirs = {
        "ledger": ledger,
        "account": spare,
        "transaction": transaction,
        "entry": entry,
        "key": key,
    }
    nobodys = dict.fromkeys(theirs, UNKNOWN_ID)

    def words(outcome: Any) -> Any:
        assert isinstance(outcome, NotFound), outcome
        message = outcome.message
        for id in theirs.values():
            message = message.replace(id, UNKNOWN_ID)
        return type(outcome), message, outcome.parameter, outcome.code, outcome.retryable

    expected = [words(await outcome_of(writer, other, command)) for command in naming(nobodys)]
    in_memory = [words(await outcome_of(writer, other, command)) for command in naming(theirs)]
    assert in_memory == expected
    # In one batch with the owner's own commands on the same rows, before and after.
    owners = [
        commands.UpdateLedger(id=ledger, name="mine"),
        commands.UpdateLedgerAccount(id=spare, name="mine"),
        commands.UpdateLedgerTransaction(id=transaction, description="mine"),
        commands.UpdateLedgerEntry(id=entry, metadata={"mine": "1"}),
        commands.CreateApiKey(id=key, secret_sha256="a" * 64),
    ]
    for mine_first in (True, False):
        mine = [(tenant_id, command) for command in owners]
        foreign = [(other, command) for command in naming(theirs)]
        both = mine + foreign if mine_first else foreign + mine
        outcomes = await all_of(*(writer.outcome(*submission) for submission in both))
        answers = outcomes[len(mine) :] if mine_first else outcomes[: len(foreign)]
        assert [words(outcome) for outcome in answers] == expected
        own_answers = outcomes[: len(mine)] if mine_first else outcomes[len(foreign) :]
        assert all(isinstance(outcome, Applied) for outcome in own_answers), own_answers
    async with write(dsn) as fresh:
        from_database = [words(await outcome_of(fresh, other, each)) for each in naming(theirs)]
    assert from_database == expected
    # The external ids of one are free for the other.
    async with write(dsn) as fresh:
        own_ledger = await fresh.ledger(other)
        await fresh.account(other, own_ledger, external_id="taken")
        await fresh.apply(other, transfer(own_cash, own_alice, external_id="taken"))


async def outcome_of(writer: Writing, tenant_id: TenantId, command: Any) -> Any:
    (outcome,) = await all_of(writer.outcome(tenant_id, command))
    return outcome


async def test_who_is_elsewhere_is_told_before_the_others_are_written(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    other = own_tenant(dsn)
    async with door_to(dsn) as door, write(door.dsn(dsn)) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        theirs = await writer.accounts(other, 2)
        writer.sequencer.memory.forget(other)
        execute(dsn, "UPDATE tenant_heads SET state = 'moved' WHERE tenant_id = %s", other)
        door.gate = first = Held()
        writes = [asyncio.create_task(writer.outcome(tenant_id, transfer(*accounts, 1)))]
        await until(lambda: first.waiting > 0, "a batch in flight")
        writes.append(asyncio.create_task(writer.outcome(tenant_id, transfer(*accounts, 2))))
        refused = asyncio.create_task(writer.outcome(other, transfer(*theirs, 1)))
        await until(lambda: writer.sequencer.queue_depth == 2, "both wait")
        door.gate = second = Held()
        first.opened.set()
        try:
            assert isinstance((await all_of(refused))[0], NotApplied)
            assert not writes[1].done()
        finally:
            second.opened.set()
        assert [type(each) for each in await all_of(*writes)] == [Applied, Applied]
