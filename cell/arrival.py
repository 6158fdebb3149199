"""The rows that a tenant brings along: read while it is coming, remembered once it is here.

They are as of a position in the tenant's journal, which tells by its hash what they must be. What
was written since is in the journal too, so that they are brought forward without being read again.
Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cell.journal import SegmentBody
from cell.ledger.model import AccountBalances, Ledger, LedgerAccount

AccountWithBalances = tuple[LedgerAccount, AccountBalances]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Some of a tenant's accounts, with their ledgers."""

    seq: int
    hash: bytes
    accounts: Mapping[str, AccountWithBalances]
    ledgers: Mapping[str, Ledger]

    @property
    def position(self) -> tuple[int, bytes]:
        return self.seq, self.hash

    def followed(
        self, begins_at: bytes, segments: Sequence[SegmentBody], seq: int, hash: bytes
    ) -> "Arrival | None":
        """The same rows at a later position, by the segments in between; None if these are not.

        `begins_at` is the hash before the first of them, or that of the position where there is
        none. It tells this history from another one with the same sequences; from there on the
        segments are chained.
        """
        if begins_at != self.hash:
            return None
        accounts, ledgers = dict(self.accounts), dict(self.ledgers)
        reached = self.seq
        for segment in segments:
            if segment.first_seq != reached + 1:
                return None
            reached = segment.last_seq
            for record in segment.records:
                for row in (*record.inserted, *record.updated):
                    if isinstance(row, AccountBalances):
                        known = accounts.get(row.ledger_account_id)
                        if known is not None:
                            accounts[row.ledger_account_id] = (known[0], row)
                    elif isinstance(row, LedgerAccount):
                        known = accounts.get(row.id)
                        if known is not None:
                            accounts[row.id] = (row, known[1])
                    elif isinstance(row, Ledger) and row.id in ledgers:
                        ledgers[row.id] = row
        if reached != seq:
            return None
        return Arrival(seq=seq, hash=hash, accounts=accounts, ledgers=ledgers)
