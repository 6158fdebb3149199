"""One request and what has become of it, from its head to the last byte of its answer.

A plain mutable object, the one exception to frozen data here: it is made once per request on the
hot path, where a frozen dataclass costs more than the rest of the head's reading. Three parties
write to it, one after another: the client's connection while it reads the request, the forwarder
while it decides, the cell's connection while it carries it.
"""

from enum import StrEnum
from typing import TYPE_CHECKING

from control_plane.routing import Epoch
from router.errors import Refusal

if TYPE_CHECKING:
    from router.cell_connection import CellConnection
    from router.client_connection import ClientConnection
    from router.client_edge import ClientEdge
    from router.hold import Lane
    from router.limits import TenantTraffic
    from router.routing_table import Route
    from router.spans import RequestSpan


class Loss(StrEnum):
    """The ways in which a request can lose its answer."""

    CONNECT = "connect"
    """No connection could be opened; nothing was sent."""
    SILENT = "silent"
    """Closed after the request was sent, before the first byte of an answer."""
    BROKEN = "broken"
    """Closed in the middle of an answer."""
    UNUSABLE = "unusable"
    """The answer was no HTTP, or did not say where it ends."""


class Exchange:
    __slots__ = (
        "answering",
        "authorization",
        "awaits",
        "began_s",
        "body",
        "carrier",
        "client",
        "close",
        "done",
        "expects_continue",
        "exposed",
        "fields",
        "framed",
        "held_s",
        "holder",
        "hops",
        "http_10",
        "is_head",
        "key",
        "lane",
        "length",
        "method",
        "refusal",
        "repeatable",
        "request_id",
        "resends",
        "route",
        "said",
        "since_s",
        "span",
        "status",
        "target",
        "ticket",
        "traffic",
        "waiting_since_s",
    )

    def __init__(
        self, client: "ClientConnection", request_id: bytes, method: bytes, target: bytes
    ) -> None:
        self.client: ClientConnection | None = client
        """None once the client has hung up; the request is carried out all the same."""
        self.request_id = request_id
        self.method = method
        self.target = target
        self.is_head = method == b"HEAD"
        self.repeatable = self.is_head or method == b"GET"
        """A read, or a write with an idempotency key: sent twice it has the effect of once."""
        self.http_10 = False
        self.close = False
        """The client's connection ends after this answer."""
        self.authorization: bytes | None = None
        self.key: bytes | None = None
        """The idempotency key, if one was sent, if only an empty one."""
        self.framed = False
        """The request declared a body, if only an empty one."""
        self.length = 0
        """Declared content length; 0 for a chunked body."""
        self.expects_continue = False
        self.fields = b""
        """Header lines to forward, each with its leading CRLF; the idempotency key's is not
        among them."""
        self.body = b""
        self.holder: ClientEdge | None = None
        """Counts the body among those held, if there is one."""
        self.refusal: Refusal | None = None
        """Decided by the head alone; answered once the body is read and thrown away."""
        self.route: Route
        """Where it goes; set unless it is refused."""
        self.traffic: TenantTraffic | None = None
        """The tenant's, while it counts this request as in flight."""
        self.carrier: CellConnection | None = None
        """The connection that carries it now; None while it waits for one."""
        self.exposed = False
        """A cell may have executed it: sent at least once, and the answer was lost."""
        self.resends = 0
        self.hops = 0
        self.lane: Lane | None = None
        """Held, or let go by the hold and without an answer since; the lane wants to know."""
        self.awaits: Epoch
        """Epoch that the lane waits for; set while there is a lane."""
        self.ticket: int
        """Its place in the lane."""
        self.held_s = 0.0
        """When it was first held; 0 if it never was."""
        self.answering = False
        """Part of the answer has left; nothing but the rest of it, or a cut, may follow."""
        self.since_s = 0.0
        """When the sweep first saw it in its present stage; 0 before that."""
        self.waiting_since_s = 0.0
        """When it began to wait for a connection."""
        self.began_s = 0.0
        """When its turn came, if it is to be in the access log; else 0."""
        self.span: RequestSpan | None = None
        """From when its turn came, where requests are traced."""
        self.status = 0
        """Of its answer; 0 while there is none."""
        self.said: str | None = None
        """The router's own words, where it is the router that answers."""
        self.done = False
        """Answered, or given up; nobody may send it again."""

    def end(self) -> None:
        """Nothing more will be sent or answered; safe to repeat."""
        self.done = True
        self.rest()
        if self.lane is not None:
            self.lane.left(self)
        if self.span is not None:
            self.span.end(self)
        # Last, as a lane counts the bytes of what leaves it.
        if self.body and self.holder is not None:
            self.holder.unbuffer(len(self.body))
            self.body = b""

    def rest(self) -> None:
        """It is in flight no longer, at least for now."""
        if self.traffic is not None:
            self.traffic.in_flight -= 1
            self.traffic = None
