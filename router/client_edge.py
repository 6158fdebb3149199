"""What all client connections share: bounds, counters, the sweep of deadlines, the drain."""

import asyncio
import os
from collections import Counter
from typing import TYPE_CHECKING, Final

from router.access_log import AccessLog
from router.client_connection import ClientConnection
from router.errors import Refusal, RouterOverloaded
from router.recent import RecentRequests
from router.settings import Settings

if TYPE_CHECKING:
    from router.forward import RequestForwarder
    from router.routing_table import Routes
    from router.spans import Spans

DRAIN_GRACE_S: Final = 0.25
"""An idle connection outlives the start of a drain by this much: a request already on its way is
answered rather than reset."""


class ClientEdge:
    def __init__(
        self,
        settings: Settings,
        routes: "Routes",
        forwarder: "RequestForwarder",
        spans: "Spans | None" = None,
    ) -> None:
        self.settings = settings
        self.routes = routes
        self.forwarder = forwarder
        self.access_log = AccessLog(settings.access_log_one_in)
        self.spans = spans
        self.recent = RecentRequests(settings.recent_requests_max, routes)
        self.draining = False
        self.drained = asyncio.Event()
        """While draining: the last connection is gone."""
        self._draining_since_s = 0.0
        self.connections: set[ClientConnection] = set()
        self.buffered_bytes = 0
        """Of request bodies held, from their first byte until nobody will send them any more, also
        where the client has hung up."""
        self.refusals: Counter[type[Refusal]] = Counter()
        # Unique over all routers and restarts by the random part, cheap by the counting one.
        self._id_prefix = os.urandom(6).hex().encode()
        self._ids = 0

    def next_request_id(self) -> bytes:
        self._ids += 1
        return b"%b-%x" % (self._id_prefix, self._ids)

    @property
    def requests(self) -> int:
        """Request ids handed out: requests read as far as the end of their head, or refused."""
        return self._ids

    def admit(self, connection: ClientConnection) -> bool:
        if len(self.connections) >= self.settings.connections_max:
            return False
        self.connections.add(connection)
        return True

    def leave(self, connection: ClientConnection) -> None:
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self.drained.set()

    def buffer(self, size: int) -> None:
        """Account for bytes about to be held; raises RouterOverloaded instead."""
        self.check_room(size)
        self.buffered_bytes += size

    def check_room(self, size: int) -> None:
        """Raises RouterOverloaded if so many bytes could not be held."""
        if self.buffered_bytes + size > self.settings.buffered_bytes_max:
            raise RouterOverloaded("too many bytes of requests are held")

    def unbuffer(self, size: int) -> None:
        self.buffered_bytes -= size
        assert self.buffered_bytes >= 0, "more bytes let go than were held"

    def count_refusal(self, refusal: Refusal) -> None:
        self.refusals[type(refusal)] += 1

    def sweep(self, now_s: float) -> None:
        for connection in tuple(self.connections):
            connection.sweep(now_s)
        if self.draining:
            self._draining_since_s = self._draining_since_s or now_s
            if now_s - self._draining_since_s > DRAIN_GRACE_S:
                for connection in tuple(self.connections):
                    connection.close_if_idle()

    def drain(self) -> None:
        """From now on every answer is the last of its connection."""
        self.draining = self.forwarder.draining = True
        if not self.connections:
            self.drained.set()

    def abort(self) -> None:
        for connection in tuple(self.connections):
            connection.abort()
