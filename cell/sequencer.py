"""The sequencer: one task applies all commands of the cell one after another, in batches.

A batch is taken, its rows prefetched, its commands decided in memory by the pure rules, and all its
effects written in one database transaction, after whose commit, and not before, each caller is
answered. While one batch is being written and a full one already waits, the next is decided on top
of it; if the write fails, what was decided on top of it is thrown away and decided again.

What can go wrong, and what then:
- a rule forbids a command: it is refused, the others of the batch go on
- the database refuses a row: the batch is halved until the offender stands alone
- an idempotency key was used before: the batch is decided again with the keys looked up
- a tenant is not owned here any more: its commands are answered "not applied", the rest go on
- the connection breaks: connect again, compare heads, and either take the batch as committed or
  decide it again; caches are dropped
- another sequencer took over: this one stops for good (`WriterFenced`)
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg

from cell.admission import FairQueue
from cell.batch import (
    Applied,
    Batch,
    Idempotency,
    OnApplied,
    Outcome,
    Replayed,
    Submission,
    not_owned,
)
from cell.errors import (
    ApiError,
    CellError,
    Conflict,
    NotApplied,
    OutcomeUnknown,
    Unprocessable,
    WriterFenced,
)
from cell.ids import IdSource
from cell.key_expiry import KEY_LIFETIME_US, expire_keys
from cell.ledger.commands import Command
from cell.ledger.model import TenantId
from cell.memory import Memory
from cell.postgres import one_line
from cell.prefetch import Prefetch
from cell.sequencer_limits import SequencerLimits
from cell.sequencer_status import SequencerStatus
from cell.store import (
    BatchFailed,
    BatchRefused,
    Head,
    HeadsChanged,
    KeysTaken,
    KeyUse,
    OutcomeLost,
    Store,
)
from cell.wire import Verdict

ATTEMPTS_MAX: Final = 6
"""How often a batch is decided again because the world changed under it."""

BATCH_ENTRIES_MAX: Final = 20_000
"""A batch takes no more commands once they write so many entries: a third of a second's work.

Else one tenant's transactions of a thousand entries each would keep all others waiting.
"""

HALF_MIN: Final = 16
"""A batch may be so large in any case: two smaller ones cost more than they gain by overlapping."""

SWEEP_INTERVAL_S: Final = 0.5
RECONNECT_PAUSE_S: Final = 0.1
DECIDED_PER_TURN: Final = 32
"""Commands decided before other tasks get the processor: about a millisecond."""

log = logging.getLogger("cell.sequencer")


@dataclass(slots=True)
class _InFlight:
    """A batch that is being written."""

    batch: Batch
    submissions: list[Submission]
    write: "asyncio.Task[None]"


class Sequencer:
    """The single writer of a cell's database."""

    def __init__(
        self,
        store: Store,
        limits: SequencerLimits,
        now_us: Callable[[], int] | None = None,
        on_applied: OnApplied = lambda *_: None,
    ) -> None:
        self.status = SequencerStatus()
        self.memory = Memory(limits.cache_accounts)
        self._store = store
        self._limits = limits
        self._on_applied = on_applied
        self._now_us = now_us or (lambda: time.time_ns() // 1000)
        self._queue: FairQueue[Submission] = FairQueue(
            items_max=limits.queue_commands_max,
            items_per_tenant_max=limits.queue_commands_per_tenant_max,
            weigh=lambda submission: submission.command.weight(),
            is_alone=lambda submission: submission.command.is_exclusive(),
        )
        self._ids = IdSource()
        self._claimed: set[tuple[TenantId, str]] = set()
        self._taken: list[Submission] = []
        self._written: list[Submission] = []
        """Submissions taken last, and those being written: owed an answer whatever happens."""
        self._write_task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._is_over = False
        self._size_before = 0
        self._started_before_s = 0.0
        """Commands of the batch taken last, and when: monotonic."""

    async def submit(
        self,
        tenant_id: TenantId,
        command: Command,
        idempotency: Idempotency | None = None,
        wait_s: float = math.inf,
    ) -> Applied | Replayed:
        """Have the command applied, durably; returns after the commit, starts none after `wait_s`.

        Raises what the rules raise (Unprocessable, NotFound), NotApplied when nothing was queued or
        done, Conflict while the same idempotency key is in flight, OutcomeUnknown after
        `answer_wait_s`. A caller that is cancelled does not take its command back.
        """
        return await self.enqueue(tenant_id, command, idempotency, wait_s)

    def enqueue(
        self,
        tenant_id: TenantId,
        command: Command,
        idempotency: Idempotency | None = None,
        wait_s: float = math.inf,
    ) -> "asyncio.Future[Applied | Replayed]":
        """As `submit`, for callers with many commands: queue it now, its outcome comes later."""
        answer: asyncio.Future[Applied | Replayed] = asyncio.get_running_loop().create_future()
        if self._is_stopping or self._is_over:
            raise NotApplied(Verdict.OVERLOADED, "the cell is stopping")
        digest = None
        if idempotency is not None:
            digest = idempotency.digest()
            known = self.memory.key_use(tenant_id, digest)
            if known is not None and self._now_us() - known.at_us < KEY_LIFETIME_US:
                answer.set_result(Replayed(seq=known.seq))
                return answer
            if (tenant_id, digest) in self._claimed:
                raise Conflict("a request with this idempotency key is in flight", retryable=True)
        submission = Submission(
            tenant_id=tenant_id,
            command=command,
            idempotency=idempotency,
            digest=digest,
            queued_at_s=time.monotonic(),
            start_by_s=time.monotonic() + min(self._limits.queue_wait_s, wait_s),
            answer=answer,
        )
        self._queue.put(tenant_id, submission)
        if digest is not None:
            self._claimed.add((tenant_id, digest))
        return answer

    @property
    def queue_depth(self) -> int:
        return len(self._queue)

    async def open(self) -> None:
        """Become the writer of the database; any sequencer before is fenced from here on."""
        await self._store.open()
        self.status.writer_epoch = self._store.writer_epoch
        self.status.connected = True

    async def run(self) -> None:
        """Apply commands until `stop`, then drain the queue and return.

        Raises WriterFenced when another sequencer took over: the process must stop.
        """
        keepers = [
            asyncio.create_task(self._keep_deadlines(), name="keep deadlines"),
            asyncio.create_task(expire_keys(self._store, self._now_us), name="expire keys"),
        ]
        in_flight: _InFlight | None = None
        try:
            while await self._work_waits(in_flight):
                if in_flight is not None and self._is_settled_first(in_flight):
                    if await self._is_written(in_flight):
                        self._settle(in_flight.batch)
                    in_flight = None
                    continue
                in_flight = await self._advance(in_flight)
        finally:
            self._is_over = True
            for keeper in keepers:
                keeper.cancel()
            self._abandon()
            await self._end_write()
            self.status.connected = False
            await self._store.close()

    async def _advance(self, before: _InFlight | None) -> _InFlight | None:
        """Take a batch, decide it on top of the one before, and start to write it."""
        submissions = self._take(before)
        if before is not None and self._asks_the_database(submissions, before):
            # Which does not show a batch in flight.
            if await self._is_written(before):
                self._settle(before.batch)
            before = None
        submissions = await self._refuse_strangers(submissions, before)
        batch = await self._decide_or_none(submissions, before)
        if before is not None and not await self._is_written(before):
            # What it was decided upon is void.
            before = batch = None
        in_flight = None
        try:
            if batch is not None:
                in_flight = self._start_write(batch, submissions)
                # Let it reach the database, which works on it while the one before is answered.
                await asyncio.sleep(0)
        finally:
            # It is committed: its callers are told so, also where this task is cancelled here.
            if before is not None:
                self._settle(before.batch)
        if batch is None:
            await self._apply(submissions)
        return in_flight

    def _asks_the_database(self, submissions: list[Submission], before: _InFlight) -> bool:
        """An exclusive command does; and so are to be the heads that memory was made to forget
        while a batch was in flight: on top of one another, batches would never remember them."""
        shared = before.batch.heads.keys() & {submission.tenant_id for submission in submissions}
        is_alone = bool(submissions) and submissions[0].command.is_exclusive()
        return is_alone or any(self.memory.head(tenant_id) is None for tenant_id in shared)

    async def _end_write(self) -> None:
        """Nobody waits for it any more; but its connection is closed only when it is over."""
        if self._write_task is not None:
            self._write_task.cancel()
            await asyncio.gather(self._write_task, return_exceptions=True)

    def stop(self) -> None:
        """Take no more commands; `run` returns when those queued are settled."""
        self._is_stopping = True
        self._queue.wake()

    async def _work_waits(self, in_flight: _InFlight | None) -> bool:
        """Wait for something to do; False once stopping and nothing is left."""
        if in_flight is not None:
            # A batch on top of one that is being written pays only when it is full: a small one
            # would have grown while it waited.
            while not in_flight.write.done() and not self._is_full():
                await self._queue.reach(self._limits.batch_size)
            return True
        while not len(self._queue):
            if self._is_stopping:
                return False
            await self._queue.reach(1)
        wait_s = max(self._limits.linger_s, self._due_in_s())
        if wait_s > 0.0:
            await self._gather(wait_s)
        return True

    async def _gather(self, wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not self._is_full() and not self._is_stopping:
                    await self._queue.reach(self._limits.batch_size)

    def _is_full(self) -> bool:
        return len(self._queue) >= self._limits.batch_size

    def _due_in_s(self) -> float:
        """How long the next batch is to wait for company; 0 or less: it is due.

        A batch costs both processors about as much as ten commands, however few it holds. One
        caller at a time never waits; several gain more from company than from haste.
        """
        if self._size_before < 2:
            return 0.0
        due_s = self._started_before_s + self._limits.interval_after_s(self.status.batch_s)
        return due_s - time.monotonic()

    def _is_settled_first(self, in_flight: _InFlight) -> bool:
        """Answer the batch in flight before the next is decided, or have that one written first?

        Written first, it keeps the database busy while the answers are made.
        """
        if not in_flight.write.done() or self._is_full():
            return False
        return not len(self._queue) or self._due_in_s() > 0.0

    def _take(self, before: _InFlight | None) -> list[Submission]:
        """The next batch: at most half of what is under way, if that is some.

        While one half is written the other is answered, and comes back. All at once, the database
        would wait for the answers, and these for the database.
        """
        under_way = len(self._queue) + (len(before.submissions) if before is not None else 0)
        commands_max = min(self._limits.batch_size, max(HALF_MIN, (under_way + 1) // 2))
        taken = self._queue.take(commands_max, BATCH_ENTRIES_MAX)
        late = [submission for submission in taken if self._has_waited_too_long(submission)]
        self._refuse_late(late)
        self._taken = [submission for submission in taken if submission not in late]
        self._size_before, self._started_before_s = len(taken), time.monotonic()
        return self._taken

    def _has_waited_too_long(self, submission: Submission) -> bool:
        return time.monotonic() > submission.start_by_s

    def _refuse_late(self, late: Sequence[Submission]) -> None:
        for submission in late:
            refusal = NotApplied(Verdict.OVERLOADED, "waited too long in the queue; not started")
            self._answer(submission, refusal)

    async def _refuse_strangers(
        self, submissions: list[Submission], in_flight: _InFlight | None
    ) -> list[Submission]:
        """Those of tenants that are owned here, as far as is known. The others are told at once: a
        move waits for them, and the batch that is about to be decided has nothing of theirs."""
        try:
            heads = await self._find_heads(submissions, in_flight.batch if in_flight else None)
        except Exception:
            # Deciding meets that, too, and knows what is to be done.
            return submissions
        owned = {tenant_id for tenant_id, head in heads.items() if head.state == "owned"}
        for submission in submissions:
            if submission.tenant_id not in owned:
                self._answer(submission, not_owned(heads.get(submission.tenant_id)))
        self._taken = [each for each in submissions if each.tenant_id in owned]
        return self._taken

    async def _decide_or_none(
        self, submissions: list[Submission], in_flight: _InFlight | None
    ) -> Batch | None:
        try:
            return await self._decide(submissions, in_flight.batch if in_flight else None)
        except _RETRIED:
            return None

    async def _decide(
        self, submissions: Sequence[Submission], below: Batch | None, looks_up_keys: bool = False
    ) -> Batch:
        """Decide the commands on top of the batch in flight, if there is one."""
        try:
            heads = await self._find_heads(submissions, below)
            before = below.working_set if below else None
            prefetch = Prefetch(self._store.prefetcher, self.memory.rows, before)
            # Of owned tenants only: while others are imported their rows are half there, and the
            # next batch, which may own them, takes what this one has read.
            owned = {id for id, head in heads.items() if head.state == "owned"}
            commands = [(s.tenant_id, s.command) for s in submissions if s.tenant_id in owned]
            batch = Batch(await prefetch.fill(commands), heads, self._ids.draw)
            used = await self._find_keys(submissions) if looks_up_keys else {}
            for count, submission in enumerate(submissions, 1):
                self._decide_one(batch, submission, used)
                if count % DECIDED_PER_TURN == 0:
                    await asyncio.sleep(0)
            if not looks_up_keys:
                await self._recall_applied(batch)
            batch.seal()
        except psycopg.OperationalError as error:
            raise OutcomeLost(str(error)) from error
        except (psycopg.Error, UnicodeError) as error:
            # UnicodeError: half a surrogate pair, which neither journal nor Postgres can hold.
            raise BatchRefused(str(error)) from error
        except CellError:
            raise
        except Exception as error:
            # A mistake of ours that one command meets: it is cornered, and the others go on.
            log.exception("a batch cannot be decided")
            raise BatchRefused(one_line(error)) from error
        return batch

    async def _recall_applied(self, batch: Batch) -> None:
        """Give those refused only because they were applied before their first answer again.

        A key used before shows when it is inserted; a refused command inserts none, so its key is
        looked up here.
        """
        refused = batch.refused_with_key()
        if not refused:
            return
        now_us = self._now_us()
        uses = await self._find_keys(refused)
        batch.replace_outcomes(
            {
                (use.tenant_id, use.digest): Replayed(seq=use.seq)
                for use in uses.values()
                if now_us - use.at_us < KEY_LIFETIME_US
            }
        )

    def _decide_one(
        self, batch: Batch, submission: Submission, used: dict[tuple[TenantId, str], KeyUse]
    ) -> None:
        now_us = self._now_us()
        if submission.digest is not None and used:
            use = used.get((submission.tenant_id, submission.digest))
            if use is not None and now_us - use.at_us < KEY_LIFETIME_US:
                batch.answer(submission, Replayed(seq=use.seq))
                return
            if use is not None:
                batch.use_anew(submission.tenant_id, submission.digest)
        batch.decide(submission, now_us)

    async def _find_heads(
        self, submissions: Sequence[Submission], below: Batch | None
    ) -> dict[TenantId, Head]:
        known = below.heads if below else {}
        heads: dict[TenantId, Head] = {}
        missing: list[TenantId] = []
        for tenant_id in {s.tenant_id for s in submissions}:
            head = known.get(tenant_id) or self.memory.head(tenant_id)
            if head is not None and head.state == "owned":
                heads[tenant_id] = head
            else:
                missing.append(tenant_id)
        if missing:
            changes = self.memory.changes
            found = await self._store.heads(missing)
            heads |= found
            self.memory.learn(found, changes)
        return heads

    async def _find_keys(
        self, submissions: Sequence[Submission]
    ) -> dict[tuple[TenantId, str], KeyUse]:
        keys = [(s.tenant_id, s.digest) for s in submissions if s.digest is not None]
        uses = await self._store.key_uses(keys)
        return {(use.tenant_id, use.digest): use for use in uses}

    def _start_write(self, batch: Batch, submissions: list[Submission]) -> _InFlight:
        self._written = submissions
        self._write_task = write = asyncio.create_task(self._write(batch), name="write batch")
        write.add_done_callback(lambda _: self._queue.wake())
        return _InFlight(batch, submissions, write)

    async def _write(self, batch: Batch) -> None:
        started_s = time.perf_counter()
        if batch.sealed.heads:
            await self._store.commit(batch.sealed)
        self.status.batch_times_s.append(time.perf_counter() - started_s)

    async def _is_written(self, in_flight: _InFlight) -> bool:
        """Wait for the write; True if it is committed and the batch is to be settled.

        False when it could not be written as it was: its submissions are answered then, and what
        was decided on top of it is void.
        """
        try:
            await in_flight.write
        except _RETRIED as error:
            await self._retry(in_flight.submissions, in_flight.batch, error, 1)
            return False
        return True

    async def _apply(
        self, submissions: list[Submission], attempt: int = 1, looks_up_keys: bool = False
    ) -> None:
        """Decide and write with nothing in flight; settles every submission, come what may."""
        batch: Batch | None = None
        try:
            batch = await self._decide(submissions, None, looks_up_keys)
            await self._write(batch)
        except _RETRIED as error:
            await self._retry(submissions, batch, error, attempt)
        else:
            self._settle(batch)

    async def _retry(
        self, submissions: list[Submission], batch: Batch | None, error: Exception, attempt: int
    ) -> None:
        """Go on after a write that failed; answers every submission."""
        if not isinstance(error, HeadsChanged):
            # Every move's fence is met like that, which is no failure.
            self.status.last_error = f"{type(error).__name__}: {error}".strip()
            log.warning("batch failed", extra={"error": self.status.last_error, "attempt": attempt})
        if isinstance(error, OutcomeLost) and await self._recover(batch):
            assert batch is not None
            self._settle(batch)
        elif isinstance(error, BatchFailed) or attempt >= ATTEMPTS_MAX:
            for submission in submissions:
                refusal = NotApplied(Verdict.OVERLOADED, "the database cannot take writes now")
                self._answer(submission, refusal)
        elif isinstance(error, BatchRefused):
            await self._halve(submissions, error, attempt)
        else:
            if isinstance(error, HeadsChanged) and batch is not None:
                await self._look_at_heads(batch)
            await self._apply(submissions, attempt + 1, isinstance(error, KeysTaken))

    async def _look_at_heads(self, batch: Batch) -> None:
        """One of the batch's tenants is not owned here, or not as memory has it: find out which."""
        try:
            self.memory.compare(batch.heads, await self._store.heads(list(batch.heads)))
        except psycopg.Error:
            # The next attempt meets that, too.
            self.memory.forget()

    async def _halve(self, submissions: list[Submission], error: Exception, attempt: int) -> None:
        """Corner the command that the database refuses; the others succeed."""
        if len(submissions) == 1:
            log.error("command cannot be stored", extra={"error": str(error)})
            refusal = Unprocessable("a value of this request cannot be stored")
            self._answer(submissions[0], refusal)
            return
        middle = len(submissions) // 2
        for half in (submissions[:middle], submissions[middle:]):
            await self._apply(half, attempt=1, looks_up_keys=True)

    async def _recover(self, batch: Batch | None) -> bool:
        """Connect again and stay the writer; True if the batch had been committed.

        Waits for Postgres as long as it takes: nothing can be applied without it.
        """
        self.status.connected = False
        while True:
            try:
                await self._store.reopen()
                break
            except psycopg.OperationalError as error:
                self.status.last_error = str(error).strip()
            if self._is_stopping:
                raise WriterFenced("stopping while the database is away")
            await asyncio.sleep(RECONNECT_PAUSE_S)
        self.status.connected = True
        self.status.writer_epoch = self._store.writer_epoch
        self.memory.forget()
        return batch is not None and await self._is_committed(batch)

    async def _is_committed(self, batch: Batch) -> bool:
        try:
            return await self._store.is_committed(batch.sealed)
        except psycopg.OperationalError:
            return await self._recover(batch)

    def _settle(self, batch: Batch) -> None:
        """The batch is durable: remember it and answer everyone."""
        self.memory.absorb(batch)
        self.status.batches += 1
        for tenant_id, records in batch.records():
            self._on_applied(tenant_id, records)
        for submission, outcome in batch.outcomes:
            self._answer(submission, outcome)

    def _answer(self, submission: Submission, outcome: Outcome) -> None:
        if submission.digest is not None:
            self._claimed.discard((submission.tenant_id, submission.digest))
        if isinstance(outcome, ApiError):
            self.status.commands_refused += 1
        else:
            self.status.commands_applied += 1
        # Done already: its caller has gone. The command stands all the same.
        if submission.answer.done():
            return
        if isinstance(outcome, ApiError):
            submission.answer.set_exception(outcome)
        else:
            submission.answer.set_result(outcome)

    def _abandon(self) -> None:
        """The sequencer ends: what was not started was not applied, what was in flight is open."""
        for submission in self._queue.take(len(self._queue)):
            self._answer(submission, NotApplied(Verdict.OVERLOADED, "the cell is stopping"))
        for submission in (*self._taken, *self._written):
            if not submission.answer.done():
                self._answer(submission, OutcomeUnknown("the cell stopped while writing"))

    async def _keep_deadlines(self) -> None:
        """Answer those whose time is up; one sweep costs less than a timer for every command."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self._refuse_late(self._queue.remove(self._has_waited_too_long))
            oldest_s = time.monotonic() - self._limits.answer_wait_s
            for submission in (*self._taken, *self._written):
                if submission.queued_at_s < oldest_s and not submission.answer.done():
                    message = "the outcome is not known yet; repeat with the same idempotency key"
                    submission.answer.set_exception(OutcomeUnknown(message))


_RETRIED: Final = (HeadsChanged, KeysTaken, BatchRefused, BatchFailed, OutcomeLost)
