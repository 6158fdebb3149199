"""A batch: commands decided one after another on one working set, and what that writes (pure).

Nothing here awaits, reads a clock or touches the database: the sequencer brings the rows, the time
and the ids, and writes `seal()`.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from cell.errors import ApiError, NotApplied
from cell.journal import Record, seal_segment
from cell.ledger.commands import Command
from cell.ledger.model import AccountBalances, Effects, Row, Stamp, TenantId
from cell.ledger.rules import apply
from cell.state import TenantView, WorkingSet
from cell.store import BatchWrite, Head, KeyUse
from cell.wire import Verdict


class Idempotency(msgspec.Struct, frozen=True, kw_only=True):
    """The caller's name for one attempt, scoped by the API key it came with."""

    api_key_id: str
    key: str

    def digest(self) -> str:
        """128 bits that stand for both, in the form of a UUID."""
        text = f"{self.api_key_id}\0{self.key}".encode()
        digest = hashlib.blake2b(text, digest_size=16).hexdigest()
        return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}"


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """The command's record is committed (or, where it changed nothing, describes what is)."""

    record: Record


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """The idempotency key was applied before, at this tenant sequence."""

    seq: int


Outcome = Applied | Replayed | ApiError
OnApplied = Callable[[TenantId, Sequence[Record]], None]
"""Told of a tenant's records right after their commit, in order. Must not raise or take long."""


class Submission(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A command on its way, and who waits for its outcome."""

    tenant_id: TenantId
    command: Command
    idempotency: Idempotency | None
    digest: str | None
    """Of the idempotency key; None exactly when there is no key."""
    queued_at_s: float
    """Monotonic; so the next."""
    start_by_s: float
    """What has not been started by then is not started."""
    answer: "asyncio.Future[Applied | Replayed]"


@dataclass(slots=True)
class _Progress:
    """One tenant's head while the batch is being decided."""

    before: Head
    view: TenantView
    seq: int
    at_us: int
    records: list[Record] = field(default_factory=list)


_NOT_OWNED: Final = {
    "fenced": (Verdict.FENCED, "the tenant is being moved; nothing was done"),
    "moved": (Verdict.MOVED, "the tenant has moved to another cell"),
    "quarantined": (Verdict.QUARANTINED, "the tenant's cell was restored from a backup"),
}


class Batch:
    """Decides submissions in order; every one has an outcome once `decide` returned for it."""

    def __init__(
        self, working_set: WorkingSet, heads: dict[TenantId, Head], draw_id: Callable[[int], str]
    ) -> None:
        self.working_set = working_set
        self.outcomes: list[tuple[Submission, Outcome]] = []
        self.heads = heads
        """Before `seal`: as found. Afterwards: as they will be once the batch is committed."""
        self._draw_id = draw_id
        self._progress: dict[TenantId, _Progress] = {}
        self.sealed = BatchWrite()
        """What to write; complete once `seal` returned."""

    def decide(self, submission: Submission, now_us: int) -> None:
        """Judge one command and make its effects visible to the next one."""
        progress = self._progress.get(submission.tenant_id)
        if progress is None:
            head = self.heads.get(submission.tenant_id)
            if head is None or head.state != "owned":
                self.outcomes.append((submission, not_owned(head)))
                return
            view = TenantView(submission.tenant_id, self.working_set)
            progress = _Progress(head, view, head.last_seq, head.last_at_us)
            self._progress[submission.tenant_id] = progress
        # Strictly increasing, whatever the clock does.
        at_us = max(now_us, progress.at_us + 1)
        stamp = Stamp(progress.seq + 1, at_us, self._draw_id(at_us))
        try:
            effects = apply(submission.command, progress.view, stamp)
        except ApiError as refusal:
            self.outcomes.append((submission, refusal))
            return
        record = _record(submission, stamp, effects)
        self.outcomes.append((submission, Applied(record=record)))
        main = (effects.inserted or effects.updated)[0]
        if main.seq == stamp.seq:
            progress.seq, progress.at_us = stamp.seq, at_us
            progress.records.append(record)
            self._keep(submission, stamp, effects)

    def answer(self, submission: Submission, outcome: Outcome) -> None:
        """Settle a submission without deciding it."""
        self.outcomes.append((submission, outcome))

    def refused_with_key(self) -> list[Submission]:
        """Those that a rule refused although they carry an idempotency key."""
        return [
            submission
            for submission, outcome in self.outcomes
            if submission.digest is not None
            and isinstance(outcome, ApiError)
            and not isinstance(outcome, NotApplied)
        ]

    def replace_outcomes(self, replayed: dict[tuple[TenantId, str], Replayed]) -> None:
        """Settle the refused submissions of these idempotency keys otherwise."""
        self.outcomes = [
            (submission, replayed.get((submission.tenant_id, submission.digest or ""), outcome))
            if isinstance(outcome, ApiError)
            else (submission, outcome)
            for submission, outcome in self.outcomes
        ]

    def use_anew(self, tenant_id: TenantId, digest: str) -> None:
        """The idempotency key is past its time: its old use gives way to this batch's."""
        self.sealed.expired_keys.append((tenant_id, digest))

    def _keep(self, submission: Submission, stamp: Stamp, effects: Effects) -> None:
        self.working_set.apply(effects)
        write = self.sealed
        write.history.add(effects, stamp.at_us)
        for row in effects.inserted:
            write.inserted.setdefault(type(row), {})[_row_id(row)] = row
        for row in effects.updated:
            new = write.inserted.get(type(row))
            id = _row_id(row)
            if new is not None and id in new:
                new[id] = row
            else:
                write.updated.setdefault(type(row), {})[id] = row
        if submission.digest is not None:
            write.keys.append(
                KeyUse(
                    tenant_id=submission.tenant_id,
                    digest=submission.digest,
                    at_us=stamp.at_us,
                    seq=stamp.seq,
                )
            )

    def records(self) -> list[tuple[TenantId, list[Record]]]:
        """What each tenant's segment holds."""
        return [(id, each.records) for id, each in self._progress.items() if each.records]

    def seal(self) -> None:
        """Complete what to write.

        A tenant whose commands were all refused is guarded all the same: only the owner may refuse.
        """
        write = self.sealed
        for tenant_id, progress in self._progress.items():
            before = after = progress.before
            if progress.records:
                segment = seal_segment(tenant_id, before.epoch, progress.records, before.last_hash)
                write.segments.append(segment)
                after = replace(
                    before,
                    last_seq=progress.seq,
                    last_hash=segment.hash,
                    last_at_us=progress.at_us,
                )
            write.heads.append((before, after))
            self.heads[tenant_id] = after


def not_owned(head: Head | None) -> NotApplied:
    """The verdict for a tenant that this cell may not write."""
    if head is None:
        return NotApplied(Verdict.NOT_OWNER, "this cell does not hold the tenant")
    default = (Verdict.NOT_OWNER, "this cell does not own the tenant yet")
    verdict, message = _NOT_OWNED.get(head.state, default)
    return NotApplied(verdict, message, head.epoch, head.moved_to)


def _record(submission: Submission, stamp: Stamp, effects: Effects) -> Record:
    idempotency = submission.idempotency
    return Record(
        seq=stamp.seq,
        at_us=stamp.at_us,
        id_base=stamp.id_base,
        api_key_id=idempotency.api_key_id if idempotency else None,
        idempotency_key=idempotency.key if idempotency else None,
        command=effects.recorded_as or submission.command,
        inserted=effects.inserted,
        updated=effects.updated,
    )


def _row_id(row: Row) -> str:
    return row.ledger_account_id if type(row) is AccountBalances else row.id  # type: ignore[union-attr]
