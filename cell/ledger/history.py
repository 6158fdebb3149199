"""What is kept beside the entries of an account so that its past is read fast, derived from them.

As of a version: the accumulators are those that the version's entries carry, or, where a write only
discarded entries of the account, those of a `BareVersion`.

As of a time, seen now: the sums of the live entries dated before it. At a midnight these are nearly
what the accumulators were when the day ended; they are off by the entries that were written, or
discarded, on another day than the one they are dated. A *shift* says by how much they are off from
its day on: an entry that comes shifts the day it is dated by its amount, and the day it is written
by as much less; one that goes does the opposite. So the shifts of an account sum up to zero, and a
ledger whose entries are dated as they are written has none. The functions of
`sql/0008_pre_history.sql` read them.

Whoever writes entries (the sequencer; a move's target) keeps these, in the same database
transaction. Pure.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cell.ledger.model import (
    AccountBalances,
    Direction,
    Effects,
    LedgerEntry,
    Status,
    TenantId,
)

DAY_US: Final = 86_400_000_000


class BareVersion(NamedTuple):
    """A version of an account that no entry shows; the columns of its table, in order."""

    tenant_id: TenantId
    ledger_account_id: str
    lock_version: int
    pending_debits: int
    pending_credits: int
    posted_debits: int
    posted_credits: int
    created_at_us: int
    seq: int


Place = tuple[TenantId, str, int]
"""Tenant, account and UTC day (days since 1970) of a shift."""

Shift = list[int]
"""By how much: pending debits, pending credits, posted debits, posted credits; then the seq."""


@dataclass(slots=True)
class History:
    """What some commands add to the derived tables."""

    shifts: dict[Place, Shift] = field(default_factory=dict)
    """To be added to what is there."""
    bare_versions: list[BareVersion] = field(default_factory=list)

    def add(self, effects: Effects, at_us: int) -> None:
        """Take in the effects of the command applied at `at_us`; no other has that time."""
        for row in effects.inserted:
            if type(row) is LedgerEntry and row.effective_at_us != row.created_at_us:
                self._shift(row, row.created_at_us, 1, row.seq)
        gone = [
            row
            for row in effects.updated
            if type(row) is LedgerEntry and row.discarded_at_us == at_us
        ]
        if gone:
            for row in gone:
                self._shift(row, at_us, -1, row.seq)
            self._note_bare_versions(effects, gone, at_us)

    def _shift(self, entry: LedgerEntry, written_us: int, sign: int, seq: int) -> None:
        dated, written = entry.effective_at_us // DAY_US, written_us // DAY_US
        if dated == written or entry.status is Status.ARCHIVED:
            return
        sums = 2 * (entry.status is Status.POSTED) + (entry.direction is Direction.CREDIT)
        for day, amount in ((dated, sign * entry.amount), (written, -sign * entry.amount)):
            place = (entry.tenant_id, entry.ledger_account_id, day)
            shift = self.shifts.setdefault(place, [0, 0, 0, 0, 0])
            shift[sums] += amount
            shift[4] = seq

    def _note_bare_versions(self, effects: Effects, gone: list[LedgerEntry], at_us: int) -> None:
        shown = {row.ledger_account_id for row in effects.inserted if type(row) is LedgerEntry}
        bare = {row.ledger_account_id for row in gone} - shown
        for row in effects.updated:
            if type(row) is AccountBalances and row.ledger_account_id in bare:
                self.bare_versions.append(_bare_version(row, at_us))


def _bare_version(row: AccountBalances, at_us: int) -> BareVersion:
    return BareVersion(
        tenant_id=row.tenant_id,
        ledger_account_id=row.ledger_account_id,
        lock_version=row.lock_version,
        pending_debits=row.pending_debits,
        pending_credits=row.pending_credits,
        posted_debits=row.posted_debits,
        posted_credits=row.posted_credits,
        created_at_us=at_us,
        seq=row.seq,
    )
