"""Accounts that reads did not find in memory: the next batches of their tenant bring them there.

Only a batch may: it reads under its tenant's guard, and knows what the batch in flight changes.
What a read has seen may be older than a batch that was committed meanwhile. A tenant that nobody
writes to is read from the database, which then has the time.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Final

from cell.ledger.model import TenantId
from cell.ledger.needs import Ids

TENANTS_MAX: Final = 256
"""Beyond, the one that has waited longest is forgotten."""
ACCOUNTS_MAX: Final = 4_096
"""Of one tenant; beyond, they are missed again."""
BROUGHT_MAX: Final = 64
"""By one batch, of one tenant: callers wait for it. With 1,024 the first batches of a tenant that
had just moved took 100 ms longer, with 256 about 15."""


class Missed:
    def __init__(self) -> None:
        self._accounts: dict[TenantId, dict[str, None]] = {}

    def note(self, tenant_id: TenantId, account_id: str) -> None:
        """The account was there, but not in memory."""
        missed = self._accounts.get(tenant_id)
        if missed is None:
            if len(self._accounts) >= TENANTS_MAX:
                # The first: one that nobody writes to would keep its place for ever.
                del self._accounts[next(iter(self._accounts))]
            missed = self._accounts[tenant_id] = {}
        if len(missed) < ACCOUNTS_MAX:
            missed[account_id] = None

    def take(self, tenants: Iterable[TenantId]) -> Ids:
        """What a batch of these tenants is to bring."""
        taken: Ids = set()
        for tenant_id in tenants if self._accounts else ():
            missed = self._accounts.get(tenant_id)
            if missed is not None:
                for account_id in list(islice(missed, BROUGHT_MAX)):
                    del missed[account_id]
                    taken.add((tenant_id, account_id))
                if not missed:
                    del self._accounts[tenant_id]
        return taken
