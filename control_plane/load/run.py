"""One run of a load: a reader in front of a bounded queue, workers behind it.

The order of rows does not matter (entries commute), so workers post as they can. A run can end at
any moment, between any two requests: the next one goes on from the checkpoint, or from the start.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from control_plane.load.api import GIVE_UP_S_MAX, ApiClient
from control_plane.load.checkpoint import (
    Checkpoint,
    Frontier,
    checkpoint_path,
    read_checkpoint,
    write_checkpoint,
)
from control_plane.load.errors import RowRejected, SourceUnreadable
from control_plane.load.mapping import Mapping
from control_plane.load.mapping_file import require_columns
from control_plane.load.plan import PlannedTransaction, plan_row
from control_plane.load.rejects import RejectFile
from control_plane.load.source import Record, Source, open_source
from control_plane.load.target import Outcome, Target, open_target

CONCURRENCY = 32
"""Default: requests in flight."""

OUTSTANDING_ROWS_MAX = 20_000
"""Rows read ahead of the first unsettled one: one stuck row bounds the memory, not the file."""

CHECKPOINT_S = 0.25
ROWS_BETWEEN_YIELDS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    file: Path
    mapping: Mapping
    base_url: str
    organization_id: str
    api_key: str
    reject_path: Path
    state_folder: Path
    concurrency: int = CONCURRENCY
    give_up_s: float = GIVE_UP_S_MAX
    resumes: bool = True
    """False: do not look at the checkpoint of an earlier run."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did; `rows` is the sum of the next three."""

    rows: int
    loaded: int
    already_loaded: int
    rejected: int
    seconds: float
    reject_file: str | None


@dataclass(slots=True)
class Tally:
    loaded: int = 0
    already_loaded: int = 0
    rejected: int = 0
    file_bytes: int = 0
    """Of the file as it is stored, read so far."""

    @property
    def rows(self) -> int:
        return self.loaded + self.already_loaded + self.rejected


class LoadRun:
    """Call `run` once; `stop` ends it early, `tally` tells where it is meanwhile."""

    def __init__(
        self, options: LoadOptions, on_resume: Callable[[int], None] = lambda lines: None
    ) -> None:
        self.tally = Tally()
        self.is_stopped = False
        self.rejects = RejectFile(options.reject_path, options.mapping.format.encoding)
        self._options = options
        self._on_resume = on_resume
        self._started = time.monotonic()
        self._queue: asyncio.Queue[tuple[Record, PlannedTransaction] | None] = asyncio.Queue(
            2 * options.concurrency
        )
        self._frontier = Frontier(None)
        self._frontier_moved = asyncio.Event()
        self._checkpoint_path = checkpoint_path(
            options.state_folder, options.organization_id, options.mapping.dataset, options.file
        )
        self._checkpoint_due = 0.0

    def stop(self) -> None:
        """Read no further rows; those in flight are finished and the checkpoint is written."""
        self.is_stopped = True
        self._frontier_moved.set()

    def file_size(self) -> int:
        """Bytes of the file as it is stored; 0 if that cannot be told."""
        try:
            return self._options.file.stat().st_size
        except OSError:
            return 0

    async def run(self) -> None:
        """Load the file. Raises LoadError if it had to end early; `summary` is valid either way."""
        options = self._options
        client = ApiClient(
            options.base_url, options.organization_id, options.api_key, options.give_up_s
        )
        try:
            with open_source(options.file, options.mapping.format) as source:
                require_columns(options.mapping, source.header, str(options.file))
            target = await open_target(client, options.mapping)
            resumed = await self._believed_checkpoint(target)
            self._frontier = Frontier(resumed)
            with open_source(options.file, options.mapping.format) as source:
                try:
                    await self._work(source, target, resumed)
                finally:
                    self._write_checkpoint(target)
        finally:
            client.close()
            self.rejects.close()

    def summary(self) -> Summary:
        return Summary(
            rows=self.tally.rows,
            loaded=self.tally.loaded,
            already_loaded=self.tally.already_loaded,
            rejected=self.tally.rejected,
            seconds=round(time.monotonic() - self._started, 3),
            reject_file=str(self.rejects.path) if self.rejects.count else None,
        )

    async def _believed_checkpoint(self, target: Target) -> Checkpoint | None:
        if not self._options.resumes:
            return None
        checkpoint = read_checkpoint(
            self._checkpoint_path, target.ledger_id, self._options.mapping.digest
        )
        if checkpoint is None or not checkpoint.lines:
            return None
        with open_source(self._options.file, self._options.mapping.format) as source:
            if not _begins_with(source, checkpoint):
                return None
        if not await target.holds_transactions(checkpoint.sample):
            return None
        self._on_resume(checkpoint.lines)
        return checkpoint

    async def _work(self, source: Source, target: Target, resumed: Checkpoint | None) -> None:
        unreadable: SourceUnreadable | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                for index in range(self._options.concurrency):
                    tasks.create_task(self._post_rows(target), name=f"load-worker-{index}")
                try:
                    await self._read_rows(source, resumed)
                except SourceUnreadable as exc:
                    unreadable = exc  # the rows read before it are still to be posted
                for _ in range(self._options.concurrency):
                    await self._queue.put(None)
        except BaseExceptionGroup as group:
            # The workers fail for one reason, one after another; the first says it.
            raise group.exceptions[0] from None
        if unreadable is not None:
            raise unreadable

    async def _read_rows(self, source: Source, resumed: Checkpoint | None) -> None:
        settled_lines = resumed.lines if resumed else 0
        tried_again = frozenset(resumed.rejected_lines) if resumed else frozenset()
        for index, record in enumerate(source.records()):
            if index % ROWS_BETWEEN_YIELDS == 0:
                await asyncio.sleep(0)
            while self._frontier.outstanding >= OUTSTANDING_ROWS_MAX and not self.is_stopped:
                self._frontier_moved.clear()
                await self._frontier_moved.wait()
            if self.is_stopped:
                return
            self.tally.file_bytes = record.file_bytes
            if record.last_line <= settled_lines and record.first_line not in tried_again:
                self.tally.already_loaded += 1
                continue
            self._frontier.begin(record)
            try:
                planned = plan_row(self._options.mapping, source.row(record))
            except RowRejected as exc:
                self._reject(record, exc)
            else:
                await self._queue.put((record, planned))

    async def _post_rows(self, target: Target) -> None:
        while (item := await self._queue.get()) is not None:
            record, planned = item
            try:
                outcome = await target.post(planned)
            except RowRejected as exc:
                self._reject(record, exc)
                continue
            if outcome is Outcome.LOADED:
                self.tally.loaded += 1
            else:
                self.tally.already_loaded += 1
            self._frontier.settle(record, planned.external_id)
            self._frontier_moved.set()
            if time.monotonic() >= self._checkpoint_due:
                self._write_checkpoint(target)

    def _reject(self, record: Record, reason: RowRejected) -> None:
        self.rejects.add(record.first_line, str(reason), record.raw)
        self.tally.rejected += 1
        self._frontier.settle(record, None)
        self._frontier_moved.set()

    def _write_checkpoint(self, target: Target) -> None:
        self._checkpoint_due = time.monotonic() + CHECKPOINT_S
        write_checkpoint(
            self._checkpoint_path,
            self._frontier.checkpoint(target.ledger_id, self._options.mapping.digest),
        )


def _begins_with(source: Source, checkpoint: Checkpoint) -> bool:
    for record in source.records():
        if record.last_line >= checkpoint.lines:
            return (
                record.last_line == checkpoint.lines
                and record.prefix.hex() == checkpoint.prefix_sha256
            )
    return False
