"""The requests answered last, for the operator who asks why one went where it went.

What is kept is written for every request and read for hardly any: a tuple each, put into words only
when it is asked for. No body, query or credential is among it.
"""

import time
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from control_plane.explanation import AnsweredRequest
from control_plane.routing import OrganizationId
from router.exchange import Exchange

if TYPE_CHECKING:
    from router.routing_table import Routes


PATH_BYTES_MAX: Final = 200


class RecentRequests:
    """Bounded: the oldest give way."""

    def __init__(self, count_max: int, routes: "Routes") -> None:
        self._kept: deque[tuple[Any, ...]] = deque(maxlen=count_max)
        self._routes = routes

    def keep(self, exchange: Exchange) -> None:
        """Once the last of its answer is about to leave."""
        self._kept.append(
            (
                exchange.request_id,
                exchange.method,
                exchange.target.partition(b"?")[0][:PATH_BYTES_MAX],
                exchange.status,
                monotonic(),
                # Of some refusals there is none.
                getattr(exchange, "route", None),
                self._routes.version,
                exchange.resends,
                exchange.hops,
                exchange.held_s,
                exchange.said,
                exchange.exposed,
            )
        )

    def request(self, request_id: str) -> AnsweredRequest | None:
        """None: it was never here, or too long ago."""
        wanted = request_id.encode()
        return next((_told(kept) for kept in reversed(self._kept) if kept[0] == wanted), None)

    def of_tenant(self, tenant: OrganizationId) -> Iterator[AnsweredRequest]:
        """Newest first."""
        for kept in reversed(self._kept):
            route = kept[5]
            if route is not None and route.tenant == tenant:
                yield _told(kept)


def _told(kept: tuple[Any, ...]) -> AnsweredRequest:
    request_id, method, path, status, at_s, route, version = kept[:7]
    resends, hops, held_s, said, exposed = kept[7:]
    return AnsweredRequest(
        request_id=request_id.decode(),
        method=method.decode(),
        path=path.decode("ascii", "replace"),
        status=status,
        answered_at=round(time.time() - (monotonic() - at_s), 3),
        organization_id=None if route is None else route.tenant,
        cell=None if route is None else route.pool.cell,
        epoch=None if route is None else route.epoch,
        routing_version=version,
        resends=resends,
        followed=hops,
        held_ms=round((at_s - held_s) * 1000) if held_s else None,
        refused_because=said,
        may_be_executed=exposed,
    )
