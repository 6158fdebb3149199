"""One run of the sequencer without HTTP, in a process of its own, on uvloop as in a cell.

First, every account is touched once, by a few large transactions: in a cell that has run for a
while the accounts in use are in memory. Then callers submit prebuilt commands, each with an
idempotency key of its own, and submit the next when theirs is committed; three batches' worth of
callers keep every batch full. What the callers cost is in the figures: they share the sequencer's
processor, as a cell's request handlers do.

Runs as `python -m benchmarks.engine_run`: `EngineLoad` in JSON on stdin, `EngineRun` on stdout.
"""

import asyncio
import itertools
import random
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import msgspec
import psycopg
import uvloop

from benchmarks.engine_database import PATIENT
from benchmarks.errors import Refused, Wrong
from benchmarks.server_process import cpu_seconds
from cell.batch import Applied, Idempotency, Replayed
from cell.collector import calm_collector
from cell.errors import NotApplied, OutcomeUnknown
from cell.ledger.commands import CreateLedgerTransaction, EntryDraft
from cell.ledger.model import Direction, Status, TenantId
from cell.sequencer import Sequencer
from cell.store import Store

COMMANDS: Final = 20_000
"""Different commands that a run goes round through."""
TOUCHING: Final = 20
"""Transactions that touch every account once before anything is measured."""
BATCHES_WAITING: Final = 3
CALLERS_MIN: Final = 4
AMOUNT_MAX: Final = 1_000
EXTRA_S_MAX: Final = 120.0
RATE_MIN: Final = 1_000
"""Transactions per second below which a run of a given length is given up."""
EXIT_REFUSED: Final = 75
SEED: Final = 20_260_101
PAST_US: Final = (1_400_000_000_000_000, 1_715_000_000_000_000)
"""2014 to 2024."""


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    writer_dsn: str
    tenant_id: TenantId
    accounts: Sequence[str]
    hot: bool
    """Whether the first account is in every transaction."""
    batch_size: int
    seconds: float
    warmup_s: float
    transactions: int | None = None
    """Stop the measured time at so many transactions instead of after `seconds`."""
    cache_accounts: int = 50_000
    is_backdated: bool = False
    """Whether each transaction is dated on some day of the past ten years."""


class EngineRun(msgspec.Struct, frozen=True, kw_only=True):
    acknowledged: int
    """Of the whole process, warm-up and drain included: so many must be in the database."""
    seconds: float
    """The measured time."""
    rate: float
    """Transactions per second, durable and acknowledged, in the measured time."""
    batch_mean: float
    """Commands per database transaction in the measured time."""
    python_us: float
    """Processor time of this process per transaction."""
    backend_us: float
    """Processor time of the two Postgres backends per transaction."""
    memory_mib: float
    """Most memory this process ever held."""


def run_engine(load: EngineLoad) -> EngineRun:
    """Run the load in a process of its own.

    Raises Wrong with the process's words if it fails, Refused when it is not done in time.
    """
    deadline_s = load.warmup_s + load.seconds + EXTRA_S_MAX
    if load.transactions is not None:
        deadline_s += load.transactions / RATE_MIN
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.engine_run"],
            input=msgspec.json.encode(load),
            capture_output=True,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise Refused(f"the engine's run was not done after {deadline_s:.0f} s") from exc
    if done.returncode == EXIT_REFUSED:
        raise Refused(f"the engine had to refuse: {done.stderr.decode()[-500:]}")
    if done.returncode != 0:
        raise Wrong(f"the engine failed: {done.stderr.decode()[-4000:]}")
    return msgspec.json.decode(done.stdout, type=EngineRun)


class Callers:
    """The callers of one run, and how many of their commands were acknowledged."""

    def __init__(self, sequencer: Sequencer, load: EngineLoad) -> None:
        self.sequencer = sequencer
        self.tenant_id = load.tenant_id
        self.count = max(CALLERS_MIN, BATCHES_WAITING * load.batch_size)
        self.commands = itertools.cycle(commands(load))
        self.attempts = attempts()
        self.acknowledged = 0
        self.are_stopping = False
        self.outstanding = 0
        self.settled = asyncio.Event()
        """Set when the callers have stopped and the last of them has its answer."""
        self.mark: asyncio.Event | None = None
        """Set by the next acknowledgement."""
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails with the first command that does: there is no figure then."""

    def start(self) -> None:
        """Have every caller send its first command; each goes on by itself."""
        for _ in range(self.count):
            self.outstanding += 1
            self.send()

    def send(self) -> None:
        answer = self.sequencer.enqueue(self.tenant_id, next(self.commands), next(self.attempts))
        answer.add_done_callback(self.go_on)

    def go_on(self, answer: "asyncio.Future[Applied | Replayed]") -> None:
        """A caller has its answer; a callback costs the run less than a task that waits."""
        failure = answer.exception()
        if failure is not None:
            if not self.broken.done():
                self.broken.set_exception(failure)
            return
        self.acknowledged += 1
        if self.mark is not None:
            self.mark.set()
        if not self.are_stopping:
            self.send()
            return
        self.outstanding -= 1
        if not self.outstanding:
            self.settled.set()

    async def watch(self) -> None:
        """Raises what the first command that failed was told."""
        await self.broken

    async def touch_accounts(self, accounts: Sequence[str]) -> None:
        """Bring every account into the sequencer's memory, as good as untimed."""
        size = -(-len(accounts) // TOUCHING)
        for start in range(0, len(accounts), size):
            some = accounts[start : start + size]
            middle = len(some) // 2
            sides = ((Direction.DEBIT, some[:middle]), (Direction.CREDIT, some[middle:]))
            entries = tuple(
                EntryDraft(ledger_account_id=account, direction=direction, amount=1)
                for direction, side in sides
                for account in side
            )
            command = CreateLedgerTransaction(entries=entries, status=Status.POSTED)
            await self.sequencer.submit(self.tenant_id, command, next(self.attempts))
            self.acknowledged += 1

    async def next_batch(self) -> None:
        """Return when a batch has just been acknowledged, all of it: the bounds of the measured
        time are then between two batches, not somewhere within one."""
        self.mark = asyncio.Event()
        await self.mark.wait()
        self.mark = None


async def measure(load: EngineLoad) -> EngineRun:
    store = Store(load.writer_dsn)
    limits = replace(PATIENT, batch_size=load.batch_size, cache_accounts=load.cache_accounts)
    sequencer = Sequencer(store, limits)
    await sequencer.open()
    backends = await backend_pids(load.writer_dsn)
    callers = Callers(sequencer, load)
    async with asyncio.TaskGroup() as group:
        sequencing = group.create_task(sequencer.run(), name="sequencer")
        watching = group.create_task(callers.watch(), name="watch the callers")
        await callers.touch_accounts(load.accounts)
        callers.start()
        await asyncio.sleep(load.warmup_s)
        await callers.next_batch()
        before = Snapshot.of(callers, backends)
        await until_measured(callers, load)
        after = Snapshot.of(callers, backends)
        callers.are_stopping = True
        await callers.settled.wait()
        watching.cancel()
        sequencer.stop()
        await sequencing
    return summary(before, after, callers.acknowledged)


async def until_measured(callers: Callers, load: EngineLoad) -> None:
    if load.transactions is None:
        await asyncio.sleep(load.seconds)
        await callers.next_batch()
        return
    goal = callers.acknowledged + load.transactions
    while callers.acknowledged < goal:
        await callers.next_batch()


class Snapshot(msgspec.Struct, frozen=True):
    at_s: float
    acknowledged: int
    batches: int
    python_s: float
    backend_s: float

    @classmethod
    def of(cls, callers: Callers, backends: Sequence[int]) -> "Snapshot":
        return cls(
            time.perf_counter(),
            callers.acknowledged,
            callers.sequencer.status.batches,
            time.process_time(),
            sum(cpu_seconds(pid) for pid in backends),
        )


def summary(before: Snapshot, after: Snapshot, acknowledged: int) -> EngineRun:
    count = after.acknowledged - before.acknowledged
    seconds = after.at_s - before.at_s
    return EngineRun(
        acknowledged=acknowledged,
        seconds=seconds,
        rate=count / seconds,
        batch_mean=count / max(1, after.batches - before.batches),
        python_us=(after.python_s - before.python_s) / max(1, count) * 1e6,
        backend_us=(after.backend_s - before.backend_s) / max(1, count) * 1e6,
        memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


async def backend_pids(dsn: str) -> list[int]:
    """The server processes of the sequencer's connections."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'cloister-sequencer'"
            " AND datname = current_database()"
        )
        return [int(row[0]) for row in await cursor.fetchall()]


def commands(load: EngineLoad) -> list[CreateLedgerTransaction]:
    """Transactions of two entries between different accounts, as often in either direction."""
    draw = random.Random(SEED)
    hot, others = load.accounts[0], load.accounts[1:]
    made: list[CreateLedgerTransaction] = []
    for _ in range(COMMANDS):
        pair = [hot, draw.choice(others)] if load.hot else draw.sample(load.accounts, 2)
        draw.shuffle(pair)
        amount = draw.randint(1, AMOUNT_MAX)
        entries = (
            EntryDraft(ledger_account_id=pair[0], direction=Direction.DEBIT, amount=amount),
            EntryDraft(ledger_account_id=pair[1], direction=Direction.CREDIT, amount=amount),
        )
        made.append(
            CreateLedgerTransaction(
                entries=entries,
                status=Status.POSTED,
                description="transfer",
                effective_at_us=draw.randrange(*PAST_US) if load.is_backdated else None,
            )
        )
    return made


def attempts() -> Iterator[Idempotency]:
    """A new idempotency key each time."""
    prefix = uuid.uuid4().hex
    for number in itertools.count():
        yield Idempotency(api_key_id=prefix, key=f"{prefix}-{number}")


def main() -> None:
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineLoad)
    calm_collector()
    refusal: BaseException | None = None
    try:
        sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(measure(load))))
    except* (NotApplied, OutcomeUnknown) as group:
        refusal = group.exceptions[0]
    if refusal is not None:
        print(refusal, file=sys.stderr)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
