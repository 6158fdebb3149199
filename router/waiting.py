"""Who may take a connection to a cell, and who waits for one. Decides; the cell's pool acts.

A tenant may take one while it has less than `TIMES_LEFT` as many as are left for everybody. So
nothing is set aside while only one asks, up to two thirds of all; and however many tenants hold
theirs for long, by slow requests or by answers that they read slowly, some are left for the next
one. (Dynamic thresholds, Choudhury and Hahne 1998, there for the buffers of a switch.)

Those who wait are served tenant by tenant in turn, first come first served within each.
"""

from collections import deque
from typing import Final

from router.exchange import Exchange
from router.limits import TenantTraffic

TIMES_LEFT: Final = 2


def may_take(carried: int, left: int) -> bool:
    """Whether a tenant with so many connections may have one of those left.

    Whoever has none may while any is left: every tenant gets on.
    """
    return carried < TIMES_LEFT * left


class WaitingRequests:
    def __init__(self) -> None:
        self._of: dict[TenantTraffic, deque[Exchange]] = {}
        """In the order of their turns; none is empty."""
        self.count = 0

    def add(self, exchange: Exchange) -> None:
        self._of.setdefault(exchange.route.traffic, deque()).append(exchange)
        self.count += 1

    def take(self, left: int) -> Exchange | None:
        """The next of the first tenant that may have one of the connections left, if any may."""
        for tenant, waiting in self._of.items():
            if may_take(tenant.carried, left):
                exchange = waiting.popleft()
                self.count -= 1
                # Its next turn comes after everybody else's.
                del self._of[tenant]
                if waiting:
                    self._of[tenant] = waiting
                return exchange
        return None

    def take_late(self, since_s: float) -> list[Exchange]:
        """All that have waited since before then."""
        late = [
            exchange
            for waiting in self._of.values()
            for exchange in waiting
            if exchange.waiting_since_s < since_s
        ]
        for exchange in late:
            self.remove(exchange)
        return late

    def remove(self, exchange: Exchange) -> None:
        """It waits no longer, if it did."""
        waiting = self._of.get(exchange.route.traffic)
        if waiting is None or exchange not in waiting:
            return
        waiting.remove(exchange)
        self.count -= 1
        if not waiting:
            del self._of[exchange.route.traffic]
