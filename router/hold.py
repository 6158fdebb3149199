"""Requests that a cell refused because their tenant is moving: held, then sent to the owner.

A refused request joins its tenant's lane. A lane opens when the routing table brings an epoch high
enough, or when the request tried in between was served after all: a fence that was lifted shows
itself even while the control plane is away. An open lane lets its requests go in the order they
came, a few at a time. One that is refused again takes its old place, and the lane closes.

Bounded per tenant, in total, in bytes and in time; what is beyond gets a 503 that is safe to
repeat, since whatever is held was refused with the promise that nothing was done.
"""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from cell.wire import Verdict
from control_plane.routing import Epoch, OrganizationId
from router.errors import Refusal, TenantMoving
from router.exchange import Exchange
from router.settings import Settings

if TYPE_CHECKING:
    from router.routing_table import Route

log = logging.getLogger(__name__)

HOPS_MAX: Final = 2
"""Moves followed for one request; a third in one deadline means the table cannot be trusted."""
LET_GO_MAX: Final = 8
"""Requests of one lane under way at a time: the new owner's caches are still cold."""
REMEMBERED_MAX: Final = 1_000
"""Tenants of which it is known how many requests were held."""
TRY_PAUSE_S: Final = (0.01, 0.16)
"""Before a closed lane's first request is tried again: at first, and doubling up to. The first is
about what a target takes from the decision to serving."""


class Sender(Protocol):
    """What the hold needs of the forwarder."""

    def forward(self, exchange: Exchange) -> None: ...

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None: ...


@dataclass(slots=True)
class HoldCounts:
    """Totals since the start."""

    held: int = 0
    """Requests that began to be held, each once."""
    served: int = 0
    """Of those, answered by a cell in the end."""
    full: int = 0
    """Refused because a bound in number or bytes was reached."""
    late: int = 0
    """Given up because they were held for too long."""
    followed: int = 0
    """Requests sent on at a higher epoch."""
    wait_s: float = 0.0
    """From the first refusal to the cell's answer, over all served."""


def awaited_epoch(routed_by: Epoch, told: Epoch | None) -> Epoch:
    """The lowest epoch at which the request can succeed by what the cell said of the tenant."""
    return Epoch(max(routed_by + 1, told or 0))


def may_follow(known: Epoch, routed_by: Epoch, hops: int) -> bool:
    """Only forward: a route of the same epoch or a lower one is the one that was just refused."""
    return known > routed_by and hops < HOPS_MAX


class Held(NamedTuple):
    """How many requests of a tenant waited for an epoch."""

    epoch: Epoch
    requests: int


class Lane:
    """One tenant's held requests, and those let go that have no answer yet."""

    __slots__ = (
        "began_s",
        "hold",
        "is_open",
        "pause_s",
        "taken",
        "tenant",
        "timer",
        "under_way",
        "waiting",
    )

    def __init__(self, hold: "Hold", tenant: OrganizationId) -> None:
        self.hold = hold
        self.tenant = tenant
        self.waiting: list[tuple[int, Exchange]] = []
        """A heap by ticket; holds requests that are done until it is next looked at."""
        self.under_way: set[Exchange] = set()
        self.is_open = False
        self.pause_s = TRY_PAUSE_S[0]
        self.timer: asyncio.TimerHandle | None = None
        self.began_s = monotonic()
        self.taken = 0
        """Requests held in it, each once."""

    def served(self, exchange: Exchange) -> None:
        """A cell answered a request that was let go."""
        self.hold.served(self, exchange)

    def left(self, exchange: Exchange) -> None:
        """The request ended in any other way: refused, expired, or cut."""
        self.hold.left(self, exchange)


class Hold:
    def __init__(
        self,
        settings: Settings,
        route_of: Callable[[OrganizationId], "Route | None"],
        ask: Callable[[], None],
        sender: Sender,
    ) -> None:
        """`ask` begins to fetch a newer table, at its own pace."""
        self._settings = settings
        self._route_of = route_of
        self._ask = ask
        self._sender = sender
        self._lanes: dict[OrganizationId, Lane] = {}
        self._tickets = itertools.count()
        self.waiting = 0
        """Requests held now."""
        self.waiting_bytes = 0
        """Of their bodies."""
        self.counts = HoldCounts()
        self._latest: dict[OrganizationId, Held] = {}
        """Of the tenants' last moves, for who asks about them; who moved first comes first."""

    @property
    def tenants(self) -> int:
        """Tenants of which requests are held, or were and are not answered yet."""
        return len(self._lanes)

    def take(self, exchange: Exchange, verdict: Verdict, told: Epoch | None) -> None:
        """Hold a request that a cell promises not to have executed, or refuse it.

        `told` is the tenant's epoch as the cell knows it.
        """
        tenant = exchange.route.tenant
        exchange.awaits = awaited_epoch(exchange.route.epoch, told)
        lane = self._lanes.get(tenant)
        if lane is None:
            lane = self._lanes[tenant] = Lane(self, tenant)
            fields = {"tenant": tenant, "cell": exchange.route.pool.cell, "verdict": verdict}
            log.info("holding", extra=fields | {"epoch": exchange.route.epoch})
        if exchange.lane is None and not self._admit(lane, exchange):
            return
        lane.under_way.discard(exchange)
        exchange.rest()
        heapq.heappush(lane.waiting, (exchange.ticket, exchange))
        self._count(exchange, 1)
        if self._is_awaited(exchange):
            self._open(lane)
        else:
            lane.is_open = False
            self._try_later(lane)
            self._ask()

    def _admit(self, lane: Lane, exchange: Exchange) -> bool:
        """Whether the bounds allow one more; if not, it is refused."""
        limits, size = self._settings, len(exchange.body)
        if len(lane.waiting) + len(lane.under_way) >= limits.hold_tenant_max:
            bound = "of this tenant"
        elif self.waiting >= limits.hold_max or self.waiting_bytes + size > limits.hold_bytes_max:
            bound = "in all"
        else:
            exchange.lane = lane
            exchange.ticket = next(self._tickets)
            exchange.held_s = monotonic()
            self.counts.held += 1
            lane.taken += 1
            self._remember(lane.tenant, exchange.awaits)
            return True
        self.counts.full += 1
        message = f"the tenant is moving, and too many requests {bound} wait; nothing was executed"
        self._sender.refuse(exchange, TenantMoving(message))
        self._forget_if_empty(lane)
        return False

    def _remember(self, tenant: OrganizationId, epoch: Epoch) -> None:
        before = self._latest.pop(tenant, None)
        is_same = before is not None and before.epoch == epoch
        self._latest[tenant] = Held(epoch, before.requests + 1 if before and is_same else 1)
        if len(self._latest) > REMEMBERED_MAX:
            del self._latest[next(iter(self._latest))]

    def latest(self, tenant: OrganizationId) -> Held | None:
        """The last epoch that requests of the tenant waited for, if they did lately."""
        return self._latest.get(tenant)

    def _count(self, exchange: Exchange, number: int) -> None:
        self.waiting += number
        self.waiting_bytes += number * len(exchange.body)

    # -- opening, letting go

    def adopted(self) -> None:
        """The routing table changed."""
        for lane in tuple(self._lanes.values()):
            first = _first(lane)
            if first is not None and self._is_awaited(first):
                self._open(lane)

    def _is_awaited(self, exchange: Exchange) -> bool:
        route = self._route_of(exchange.route.tenant)
        # A tenant that is gone from the table awaits nothing more: it is refused when let go.
        return route is None or route.epoch >= exchange.awaits

    def _open(self, lane: Lane) -> None:
        lane.is_open = True
        lane.pause_s = TRY_PAUSE_S[0]
        self._let_go(lane)

    def _let_go(self, lane: Lane) -> None:
        """Send on what an open lane may have under way; forget a lane that is done with."""
        while lane.is_open and len(lane.under_way) < LET_GO_MAX and _first(lane) is not None:
            self._send_first(lane)
        self._forget_if_empty(lane)

    def _send_first(self, lane: Lane) -> None:
        _, exchange = heapq.heappop(lane.waiting)
        self._count(exchange, -1)
        lane.under_way.add(exchange)
        route, before = self._route_of(lane.tenant), exchange.route
        if route is None or (
            route.epoch > before.epoch and not may_follow(route.epoch, before.epoch, exchange.hops)
        ):
            self._sender.refuse(
                exchange, TenantMoving("the tenant is moving; nothing was executed")
            )
            return
        if route.epoch > before.epoch:
            exchange.hops += 1
            self.counts.followed += 1
        exchange.route = route
        self._sender.forward(exchange)

    def _try_later(self, lane: Lane) -> None:
        """Try the first request again after a pause, unless one is being tried."""
        if lane.timer is None and not lane.under_way:
            loop = asyncio.get_running_loop()
            lane.timer = loop.call_later(lane.pause_s, self._try, lane)
            lane.pause_s = min(lane.pause_s * 2, TRY_PAUSE_S[1])

    def _try(self, lane: Lane) -> None:
        lane.timer = None
        if not lane.is_open and not lane.under_way and _first(lane) is not None:
            self._send_first(lane)
        self._forget_if_empty(lane)

    def _forget_if_empty(self, lane: Lane) -> None:
        # Asked of a lane forgotten before, too, whose tenant may have another one by now.
        if _first(lane) is not None or lane.under_way or self._lanes.get(lane.tenant) is not lane:
            return
        del self._lanes[lane.tenant]
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        held_ms = round((monotonic() - lane.began_s) * 1000)
        fields = {"tenant": lane.tenant, "requests": lane.taken, "ms": held_ms}
        log.info("no longer holding", extra=fields)

    # -- endings

    def served(self, lane: Lane, exchange: Exchange) -> None:
        exchange.lane = None
        lane.under_way.discard(exchange)
        self.counts.served += 1
        self.counts.wait_s += monotonic() - exchange.held_s
        lane.is_open = True
        lane.pause_s = TRY_PAUSE_S[0]
        # Later, as what is let go can end at once: a long lane would become a deep recursion.
        asyncio.get_running_loop().call_soon(self._let_go, lane)

    def left(self, lane: Lane, exchange: Exchange) -> None:
        exchange.lane = None
        if exchange in lane.under_way:
            lane.under_way.discard(exchange)
        else:
            # It is still in the heap, where its being done is noticed.
            self._count(exchange, -1)
        if not lane.is_open:
            self._try_later(lane)
        asyncio.get_running_loop().call_soon(self._let_go, lane)

    def held(self, tenant: OrganizationId) -> int:
        """Requests of the tenant that wait now."""
        lane = self._lanes.get(tenant)
        return 0 if lane is None else sum(not exchange.done for _, exchange in lane.waiting)

    def sweep(self, now_s: float) -> None:
        """Give up what is held for too long; ask for news while anything waits for them."""
        oldest_s = now_s - self._settings.hold_ms_max / 1000
        for lane in tuple(self._lanes.values()):
            for _, exchange in tuple(lane.waiting):
                if exchange.held_s < oldest_s and not exchange.done:
                    self.counts.late += 1
                    message = "the tenant is moving for longer than usual; nothing was executed"
                    self._sender.refuse(exchange, TenantMoving(message))
            lane.waiting = [held for held in lane.waiting if not held[1].done]
            heapq.heapify(lane.waiting)
            self._forget_if_empty(lane)
        if not all(lane.is_open for lane in self._lanes.values()):
            self._ask()


def _first(lane: Lane) -> Exchange | None:
    """Who waits longest, if anybody does."""
    while lane.waiting and lane.waiting[0][1].done:
        heapq.heappop(lane.waiting)
    return lane.waiting[0][1] if lane.waiting else None
