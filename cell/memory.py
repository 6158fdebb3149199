"""What the sequencer remembers between batches, of the tenants that this cell owns.

As far as memory knows: heads change in the database, by whoever moves a tenant, and only the guard
of a batch knows for sure. A head that has changed makes all rows of its tenant void, and no others.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from cell.arrival import Arrival
from cell.batch import Applied, Batch
from cell.ledger.model import AccountBalances, Ledger, LedgerAccount, LedgerTransaction, TenantId
from cell.state import GenerationCache, LedgerCache, TransactionWithEntries
from cell.store import Head, KeyUse

RECENT_KEYS_MAX: Final = 100_000
ARRIVALS_MAX: Final = 8
"""Tenants that come at once; of more, the one that was expected first is forgotten."""


class Memory:
    def __init__(self, accounts_max: int) -> None:
        self.rows = LedgerCache(accounts_max)
        self._heads: dict[TenantId, Head] = {}
        """Of tenants that are owned, or fenced: those are read, and not written."""
        self._recent_keys: GenerationCache[tuple[TenantId, str], KeyUse] = GenerationCache(
            RECENT_KEYS_MAX
        )
        self._arrivals: dict[TenantId, Arrival] = {}
        self.changes = 0
        """Grows when a head that was read before, by whomever, may not be so any more."""

    def __len__(self) -> int:
        """Accounts."""
        return len(self.rows)

    def account(
        self, tenant_id: TenantId, account_id: str
    ) -> tuple[LedgerAccount, AccountBalances] | None:
        """The account as last committed, where memory holds it and this cell has the tenant."""
        return self.rows.account(tenant_id, account_id) if tenant_id in self._heads else None

    def note_missed(self, tenant_id: TenantId, account_id: str) -> None:
        """The account is there, but `account` had none: it is to be brought to memory."""
        self.rows.missed.note(tenant_id, account_id)

    def ledger(self, tenant_id: TenantId, ledger_id: str) -> Ledger | None:
        """The ledger as last committed; as `account`."""
        return self.rows.ledger(tenant_id, ledger_id) if tenant_id in self._heads else None

    def transaction(
        self, tenant_id: TenantId, transaction_id: str
    ) -> TransactionWithEntries | None:
        """The transaction with its live entries as last committed; as `account`."""
        return (
            self.rows.transaction(tenant_id, transaction_id) if tenant_id in self._heads else None
        )

    def key_use(self, tenant_id: TenantId, digest: str) -> KeyUse | None:
        # Of an owned tenant only: elsewhere the record may be gone from this cell.
        return self._recent_keys.get((tenant_id, digest)) if self._owns(tenant_id) else None

    def head(self, tenant_id: TenantId) -> Head | None:
        """Of a tenant that is owned."""
        return self._heads.get(tenant_id) if self._owns(tenant_id) else None

    def _owns(self, tenant_id: TenantId, epoch: int | None = None) -> bool:
        head = self._heads.get(tenant_id)
        return head is not None and head.state == "owned" and epoch in (None, head.epoch)

    def expect(self, tenant_id: TenantId, arrival: Arrival | None) -> None:
        """Rows of a tenant that is coming: taken over if it comes just as they are."""
        self._arrivals.pop(tenant_id, None)
        if arrival is None:
            return
        if len(self._arrivals) >= ARRIVALS_MAX:
            del self._arrivals[next(iter(self._arrivals))]
        self._arrivals[tenant_id] = arrival

    def arrival(self, tenant_id: TenantId) -> Arrival | None:
        """What was expected of the tenant last."""
        return self._arrivals.get(tenant_id)

    def learn(self, heads: Mapping[TenantId, Head], changes: int) -> None:
        """Heads as read in the database, when `changes` was so much before.

        Only ownership is learnt: whether it has come (back) is asked again each time.
        """
        if changes != self.changes:
            # What says so may have come sooner than what was read before it.
            return
        for tenant_id, head in heads.items():
            if head.state != "owned" or self._owns(tenant_id):
                continue
            known, arrival = self._heads.get(tenant_id), self._arrivals.get(tenant_id)
            if known is not None and _position(known) != _position(head):
                # It was away, and another cell has written.
                self.rows.forget(tenant_id)
            self._heads[tenant_id] = head
            if arrival is not None and arrival.position == _position(head):
                self.rows.adopt(tenant_id, arrival.accounts, arrival.ledgers)

    def absorb(self, batch: Batch) -> None:
        """Take over what a batch has committed, and what it had read."""
        # Of tenants owned since before the batch: others are written elsewhere by now, or were
        # then, and what was read of them to no purpose would be taken for theirs when they come.
        written_on = {before.tenant_id: before for before, _ in batch.sealed.heads}
        remembered: dict[TenantId, Head] = {}
        for id, head in batch.heads.items():
            known = self._heads.get(id)
            if head.state != "owned":
                continue
            if (
                known is not None
                and self._owns(id, head.epoch)
                and _position(known) in (_position(written_on.get(id, head)), _position(head))
            ):
                remembered[id] = head
            else:
                # Nobody may take for the present what was read before this batch.
                self.changes += 1
        self.rows.absorb(batch.working_set, remembered)
        self._heads |= remembered
        for use in batch.sealed.keys:
            self._recent_keys.put((use.tenant_id, use.digest), use)
        for _, outcome in batch.outcomes:
            if isinstance(outcome, Applied) and outcome.record.inserted:
                main = outcome.record.inserted[0]
                if isinstance(main, LedgerTransaction) and main.tenant_id in remembered:
                    self.rows.absorb_created(main, outcome.record.inserted)

    def forget(self, tenant_id: TenantId | None = None) -> None:
        """The head of the tenant (None: of any) has changed, as somebody in the database says.

        A batch on its way is not waited for: what it leaves in memory when it is settled is only
        of tenants whose heads were not forgotten meanwhile.
        """
        self.changes += 1
        if tenant_id is None:
            for memory in (self.rows, self._heads, self._recent_keys, self._arrivals):
                memory.clear()
        elif self._heads.pop(tenant_id, None) is not None:
            self.rows.forget(tenant_id)

    def compare(self, tenants: Iterable[TenantId], found: Mapping[TenantId, Head]) -> None:
        """Forget those of the tenants whose heads, as found in the database, are others.

        What is fenced where memory has it stays: it is as the last batch left it.
        """
        for tenant_id in tenants:
            known, head = self._heads.get(tenant_id), found.get(tenant_id)
            if head is None or known is None or _position(head) != _position(known):
                self.forget(tenant_id)
            elif head.state == "fenced":
                # Who has read it before, while it was owned, is not to say so any more.
                self.changes += 1
                self._heads[tenant_id] = head
            elif head != known:
                self.forget(tenant_id)


def _position(head: Head) -> tuple[int, bytes]:
    return head.last_seq, head.last_hash
