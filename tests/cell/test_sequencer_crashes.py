"""Processes that are killed: the writer's between any two steps of a batch, and Postgres itself.

Method: a writer process (`crashing_writer.py`) works through a door that kills it with SIGKILL at
the n-th message between it and Postgres, for every n from the first to beyond the last, in both
ways of writing, so that Postgres gets exactly what was sent before; others are killed at random
times under load. Then a new sequencer goes on in this process, and the audit runs after each death.
Postgres is killed in an instance of its own, its sequencer left to itself.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cell_writing import DEADLINE_S, all_of, own_tenant, rows, until, write
from crashing_writer import command
from postgres_proxy import Act, Gate, Message, door_to, let_through

from cell.batch import Applied, Replayed
from cell.errors import NotApplied, OutcomeUnknown
from cell.ledger.model import TenantId
from cell.schema import ROLES, create_roles_and_database, migrate
from infra.local.binaries import find_binaries
from infra.local.postgres import Postgres

CLIENTS = 6
"""Commands of one batch."""
AUDIT_EVERY = 12
"""Deaths between two audits: what is wrong stays wrong."""

BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'cloister-sequencer'"
    " AND datname = current_database()"
)


class Writers:
    """Forks writer processes, one at a time, and reads what they acknowledge."""

    def __init__(self, process: asyncio.subprocess.Process, go: int, acks: asyncio.StreamReader):
        self.process = process
        self.go = go
        self.acks = acks
        self.acknowledged: set[str] = set()
        self.pid = 0

    async def start(self, **run: Any) -> None:
        """Returns when the writer has opened its sequencer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(run).encode() + b"\n")
        self.pid = int(await self.process.stdout.readline())
        assert await self.acks.readline() == b"ready\n"

    def let_go(self) -> None:
        os.write(self.go, b".")

    async def acknowledgement(self) -> None:
        """Wait for one."""
        async with asyncio.timeout(DEADLINE_S):
            line = await self.acks.readline()
        self.acknowledged.add(line.decode().strip())

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    async def death(self) -> int:
        """The signal it died of, or 0; everything it acknowledged is noted by then."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            status = int(await self.process.stdout.readline())
        os.write(self.end, b"end\n")
        while (line := await self.acks.readline()) != b"end\n":
            self.acknowledged.add(line.decode().strip())
        return os.waitstatus_to_exitcode(status)

    end = 0


@pytest.fixture
async def writers() -> AsyncIterator[Writers]:
    go_read, go_write = os.pipe()
    acks_read, acks_write = os.pipe()
    script = Path(__file__).with_name("crashing_writer.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        str(go_read),
        str(acks_write),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=(go_read, acks_write),
    )
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(acks_read, "rb")
    )
    writers = Writers(process, go_write, reader)
    writers.end = acks_write
    yield writers
    with contextlib.suppress(ProcessLookupError):
        if writers.pid:
            writers.kill()
    process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
    async with asyncio.timeout(DEADLINE_S):
        await process.wait()
    transport.close()
    for descriptor in (go_read, go_write, acks_write):
        os.close(descriptor)


def external_ids(dsn: str) -> Counter[str]:
    query = "SELECT external_id, count(*) FROM ledger_transactions GROUP BY 1"
    return Counter(dict(rows(dsn, query)))


async def go_on(
    database: Any, tenant_id: TenantId, accounts: list[str], names: list[str]
) -> list[Any]:
    """A new sequencer repeats the commands with their keys; the outcome of each."""
    async with write(database.writer_dsn) as writer:
        return await all_of(
            *(writer.outcome(tenant_id, command(accounts, name), key=name) for name in names)
        )


def killer(writers: Writers, number: int) -> Gate:
    """Kills the writer at its n-th message from now on, which is lost."""
    seen = 0

    async def gate(message: Message) -> Act:
        nonlocal seen
        seen += 1
        if seen > number:
            writers.kill()
            return Act.CUT
        return Act.PASS

    return gate


async def test_killed_at_every_message(
    cell_database: Any,
    tenant_id: TenantId,
    writers: Writers,
    assert_ledger_holds: Callable[[str], None],
) -> None:
    dsn = cell_database.writer_dsn
    expected: Counter[str] = Counter()
    committed_unheard = 0
    async with write(dsn) as writer:
        accounts = await writer.accounts(tenant_id, 4)
    async with door_to(dsn) as door:
        for number in range(1000):
            door.gate = let_through
            await writers.start(
                dsn=door.dsn(dsn),
                tenant_id=tenant_id,
                accounts=accounts,
                name=f"n{number}",
                batch_size=1000,
                clients=CLIENTS,
                each=1,
            )
            door.gate = killer(writers, number)
            writers.let_go()
            died_of = await writers.death()
            names = [f"n{number}-{client}-1" for client in range(CLIENTS)]
            committed_unheard += check_death(cell_database, writers, names)
            if number % AUDIT_EVERY == 0:
                assert_ledger_holds(cell_database.superuser_dsn)
            outcomes = await go_on(cell_database, tenant_id, accounts, names)
            assert all(isinstance(outcome, Applied | Replayed) for outcome in outcomes), outcomes
            expected.update(f"n{number}-{client}-{n}" for client in range(CLIENTS) for n in (0, 1))
            assert external_ids(cell_database.superuser_dsn) == expected
            if died_of == 0:
                break
            assert died_of == -signal.SIGKILL
    assert number > 5
    assert committed_unheard >= 1, "no death fell between the commit and its acknowledgement"


def check_death(database: Any, writers: Writers, names: list[str]) -> int:
    """Together or not at all, and never acknowledged without; whether it went unheard."""
    there = external_ids(database.superuser_dsn)
    present = {name for name in names if there[name]}
    assert present in (set(), set(names)), "a part of a batch"
    acknowledged = writers.acknowledged & set(names)
    assert acknowledged <= present, "acknowledged and not there"
    return bool(present) and not acknowledged


async def test_killed_at_random_times_under_load(
    cell_database: Any,
    tenant_id: TenantId,
    writers: Writers,
    assert_ledger_holds: Callable[[str], None],
) -> None:
    source = random.Random(1)
    dsn = cell_database.writer_dsn
    async with write(dsn) as writer:
        accounts = await writer.accounts(tenant_id, 4)
    for life in range(8):
        await writers.start(
            dsn=dsn,
            tenant_id=tenant_id,
            accounts=accounts,
            name=f"life{life}",
            batch_size=8,
            clients=24,
            each=1_000_000,
        )
        writers.let_go()
        if life % 2:
            # On a busy machine the time alone may pass before the first batch.
            await writers.acknowledgement()
        await asyncio.sleep(source.uniform(0.01, 0.15))
        writers.kill()
        assert await writers.death() == -signal.SIGKILL
        # What its backend had received it may still commit; then it notices that nobody listens.
        await until(
            lambda: not rows(cell_database.superuser_dsn, BACKENDS), "the backends have ended"
        )
        there = external_ids(cell_database.superuser_dsn)
        assert max(there.values(), default=1) == 1
        assert writers.acknowledged <= there.keys(), "acknowledged and not there"
        assert_ledger_holds(cell_database.superuser_dsn)
        # Each client had one command under way: repeated, it is there once.
        counts = Counter(name.rsplit("-", 1)[0] for name in there if name.startswith(f"life{life}"))
        last = [f"{client}-{max(0, count - 1)}" for client, count in counts.items()]
        after = [f"{client}-{count}" for client, count in counts.items()]
        outcomes = await go_on(cell_database, tenant_id, accounts, last + after)
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [Replayed] * len(last) + [Applied] * len(after)
    assert len(writers.acknowledged) >= 4


async def test_the_last_writer_killed_and_a_successor_at_once(
    cell_database: Any, tenant_id: TenantId, writers: Writers
) -> None:
    """The successor opens while the backends of the dead are still at work."""
    dsn = cell_database.writer_dsn
    async with write(dsn) as writer:
        accounts = await writer.accounts(tenant_id, 4)
    for life in range(5):
        await writers.start(
            dsn=dsn,
            tenant_id=tenant_id,
            accounts=accounts,
            name=f"life{life}",
            batch_size=50,
            clients=50,
            each=1_000_000,
        )
        writers.let_go()
        await asyncio.sleep(0.05)
        writers.kill()
        async with write(dsn) as writer:
            for number in range(5):
                name = f"successor{life}-{number}"
                await writer.apply(tenant_id, command(accounts, name), key=name)
        await writers.death()
        there = external_ids(cell_database.superuser_dsn)
        assert writers.acknowledged <= there.keys()
        assert {f"successor{life}-{number}" for number in range(5)} <= there.keys()


# --- Postgres ------------------------------------------------------------------------------------


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[tuple[Postgres, Callable[[], Any]]]:
    """An instance to be killed, and what starts it: in one thread, which it would not outlive."""
    instance = Postgres(
        name="crashes", directory=tmp_path / "instance", binaries=find_binaries(), roles=ROLES
    )
    instance.initialize()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(instance.start).result()
        yield instance, lambda: thread.submit(instance.start)
        instance.stop()


async def test_postgres_killed_under_load(
    own_postgres: Any, assert_ledger_holds: Callable[[str], None]
) -> None:
    """Three times the whole server, then a backend, which makes the server start anew."""
    instance, start = own_postgres
    await create_roles_and_database(instance.superuser_dsn(), "cell", instance.passwords)
    await migrate(instance.dsn("cloister_owner", "cell"))
    dsn = instance.dsn("cloister_writer", "cell")
    source = random.Random(7)
    tenant_id = own_tenant(dsn)
    told: dict[str, Any] = {}
    async with write(dsn, batch_size=8) as writer:
        accounts = await writer.accounts(tenant_id, 4)
        is_over = asyncio.Event()

        async def client(client: int) -> None:
            number = 0
            while not is_over.is_set():
                name = f"{client}-{number}"
                repeated = command(accounts, name)
                (told[name],) = await all_of(writer.outcome(tenant_id, repeated, key=name))
                number += 1

        def applied() -> int:
            return sum(isinstance(outcome, Applied) for outcome in told.values())

        async with asyncio.TaskGroup() as group:
            for number in range(24):
                group.create_task(client(number))
            for kill in range(4):
                before = applied()
                await until(lambda before=before: applied() > before + 50, "load goes on")
                await asyncio.sleep(source.uniform(0.0, 0.05))
                if kill < 3:
                    instance.kill()
                    await until(
                        lambda: not writer.sequencer.status.connected, "the loss is noticed"
                    )
                    await asyncio.wrap_future(start())
                else:
                    backend = """
                        SELECT pid FROM pg_stat_activity
                        WHERE application_name = 'cloister-sequencer' LIMIT 1"""
                    (pid,) = rows(instance.superuser_dsn(), backend)[0]
                    os.kill(pid, signal.SIGKILL)
            before = applied()
            await until(lambda: applied() > before + 50, "load goes on")
            is_over.set()
        unknown = [n for n, outcome in told.items() if isinstance(outcome, OutcomeUnknown)]
        for name in unknown:
            told[name] = await writer.outcome(tenant_id, command(accounts, name), key=name)
    there = external_ids(instance.superuser_dsn("cell"))
    assert max(there.values()) == 1
    for name, outcome in told.items():
        if isinstance(outcome, Applied | Replayed):
            assert there[name] == 1, name
        else:
            assert isinstance(outcome, NotApplied), outcome
            assert there[name] == 0, name
    assert set(there) <= set(told)
    assert_ledger_holds(instance.superuser_dsn("cell"))
