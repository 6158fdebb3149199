"""What happens to a request between the client's connection and the cell's.

The decision is pure (`after_loss`); the forwarder acts on it. A request is sent a
second time only where that cannot do harm, at most once, and within its deadline:

- no connection could be opened: nothing was sent, tried again after a short pause;
- the connection closed before the first byte of an answer: the cell may have executed it, so only
  a read or a request with an idempotency key is sent again, to the same cell;
- the cell promises that it executed nothing because the tenant is moving: held, and sent to the
  owner (`hold`).

Everything else is the client's to repeat. Once a request may have been executed, no later refusal
may promise that it was not.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

from cell.wire import Verdict
from control_plane.routing import Epoch, OrganizationId
from router.errors import (
    AnswerLate,
    AnswerLost,
    CellOverloaded,
    CellUnreachable,
    NotApplied,
    Refusal,
    TenantMoving,
)
from router.exchange import Exchange, Loss
from router.hold import Hold
from router.settings import Settings

if TYPE_CHECKING:
    from router.routing_table import Route

log = logging.getLogger(__name__)

RESENDS_MAX: Final = 1
RECONNECT_PAUSE_S: Final = (0.025, 0.25)
"""Before the second attempt to connect, evenly random: many requests lose a cell at once."""


class Next(Enum):
    """What to do about a request that lost its answer."""

    RESEND = "resend"
    RESEND_LATER = "resend later"
    UNREACHABLE = "unreachable"
    """Nothing was sent: refuse, with the promise that nothing was executed."""
    UNKNOWN = "unknown"
    """Refuse, saying that the outcome is unknown."""
    CUT = "cut"
    """Part of the answer has left; only the connection's end can say that it is not whole."""


def after_loss(
    loss: Loss, *, answering: bool, repeatable: bool, exposed: bool, may_resend: Callable[[], bool]
) -> Next:
    """`may_resend` is asked last, as it spends from a budget."""
    if answering:
        return Next.CUT
    if loss is Loss.CONNECT:
        if may_resend():
            return Next.RESEND_LATER
        return Next.UNKNOWN if exposed else Next.UNREACHABLE
    if loss is Loss.SILENT and repeatable and may_resend():
        return Next.RESEND
    return Next.UNKNOWN


class RequestForwarder:
    def __init__(
        self,
        settings: Settings,
        route_of: Callable[[OrganizationId], "Route | None"],
        ask: Callable[[], None],
    ) -> None:
        self.draining = False
        self.hold = Hold(settings, route_of, ask, self)

    def accept(self, exchange: Exchange) -> None:
        """Forward a request just received, unless too many of its tenant are in flight."""
        traffic = exchange.route.traffic
        if traffic.in_flight < traffic.in_flight_max:
            self.forward(exchange)
        else:
            self.refuse(exchange, traffic.full())

    def forward(self, exchange: Exchange) -> None:
        route = exchange.route
        exchange.traffic = route.traffic
        route.traffic.in_flight += 1
        route.pool.submit(exchange)

    def lost(self, exchange: Exchange, loss: Loss) -> None:
        """The request has no answer, and no connection carries it any more."""
        pool = exchange.route.pool
        pool.losses[loss] += 1
        pool.failed()
        if exchange.done:
            return
        exchange.exposed |= loss is not Loss.CONNECT
        match after_loss(
            loss,
            answering=exchange.answering,
            repeatable=exchange.repeatable,
            exposed=exchange.exposed,
            may_resend=lambda: exchange.resends < RESENDS_MAX and pool.may_resend(),
        ):
            case Next.CUT:
                self._cut(exchange)
            case Next.RESEND:
                self._resend(exchange)
            case Next.RESEND_LATER:
                pause_s = random.uniform(*RECONNECT_PAUSE_S)
                asyncio.get_running_loop().call_later(pause_s, self._resend, exchange)
            case Next.UNREACHABLE:
                self.refuse(exchange, CellUnreachable("the tenant's cell cannot be reached"))
            case Next.UNKNOWN:
                self.refuse(exchange, _answer_lost(exchange))

    def _resend(self, exchange: Exchange) -> None:
        # It may have met its deadline during the pause; answered once, it is never sent again.
        if not exchange.done:
            exchange.resends += 1
            exchange.route.pool.submit(exchange)

    def _cut(self, exchange: Exchange) -> None:
        exchange.end()
        if exchange.client is not None:
            exchange.client.cut()

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer with our own words, never promising more than is known."""
        if isinstance(refusal, NotApplied) and exchange.exposed:
            refusal = _answer_lost(exchange)
        if refusal.status in (502, 504):
            log.warning(
                "outcome unknown",
                extra={
                    "tenant": exchange.route.tenant,
                    "cell": exchange.route.pool.cell,
                    "request_id": exchange.request_id.decode(),
                    "status": refusal.status,
                },
            )
        if exchange.client is not None:
            exchange.client.refuse(exchange, refusal)
        else:
            exchange.end()

    def expire(self, exchange: Exchange) -> None:
        """The deadline has passed, wherever the request is now."""
        carrier = exchange.carrier
        exchange.route.pool.withdraw(exchange)
        if carrier is not None:
            carrier.abandon()
            exchange.exposed = True
            if not exchange.answering:
                # Else it is the client that takes its time.
                exchange.route.pool.failed()
        if exchange.answering:
            self._cut(exchange)
        elif exchange.exposed:
            message = "the cell did not answer in time; the request may have been executed"
            self.refuse(exchange, AnswerLate(message, repeatable=_client_may_repeat(exchange)))
        elif exchange.held_s:
            self.refuse(
                exchange, TenantMoving("the tenant moved for too long; nothing was executed")
            )
        else:
            self.refuse(exchange, CellOverloaded("the request did not get through in time"))

    def not_applied(self, exchange: Exchange, verdict: Verdict, told: Epoch | None) -> None:
        """The cell promises that it executed nothing, as the tenant is moving."""
        if not exchange.done:
            self.hold.take(exchange, verdict, told)


def _answer_lost(exchange: Exchange) -> AnswerLost:
    return AnswerLost(
        "the cell's answer was lost; the request may have been executed",
        repeatable=_client_may_repeat(exchange),
    )


def _client_may_repeat(exchange: Exchange) -> bool:
    """Beyond what the router itself repeats: in this API only POST creates something anew."""
    return exchange.repeatable or exchange.method != b"POST"
