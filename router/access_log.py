"""The access log: one line for some of the requests, saying where each went and how long it took.

No query, body or credential is in it. What happened to a request that lost its answer is logged
where that was decided, sampled or not.
"""

import logging
import random
from time import monotonic

from router.exchange import Exchange

log = logging.getLogger(__name__)


class AccessLog:
    def __init__(self, one_in: int) -> None:
        """0 logs nothing."""
        self.is_on = one_in > 0
        self._chance = 1 / one_in if one_in else 0.0

    def begin(self, exchange: Exchange) -> None:
        """Choose whether the request will be logged."""
        if random.random() < self._chance:
            exchange.began_s = monotonic()

    def write(self, exchange: Exchange) -> None:
        """Of a request that was chosen, when the last of its answer leaves."""
        now_s = monotonic()
        fields: dict[str, object] = {
            "request_id": exchange.request_id.decode(),
            "method": exchange.method.decode(),
            "path": exchange.target.partition(b"?")[0].decode("ascii", "replace"),
            "status": exchange.status,
            "ms": round((now_s - exchange.began_s) * 1000, 1),
        }
        if exchange.refusal is None:
            route = exchange.route
            fields |= {"tenant": route.tenant, "cell": route.pool.cell, "epoch": route.epoch}
        if exchange.held_s:
            fields |= {"held_ms": round((now_s - exchange.held_s) * 1000), "hops": exchange.hops}
        if exchange.resends:
            fields["resends"] = exchange.resends
        log.info("request", extra=fields)
