"""Reads one client's bytes into requests, strictly; the first thing it cannot accept is the last.

llhttp parses, `framing` judges the heads, here are the bounds on what is not complete yet. A
request is handed on when the whole of it has been read, so nothing that breaks off half-way reaches
a cell. Knows nothing of answers: the client's connection decides when a request's turn comes.
"""

import logging
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final

import httptools

from control_plane.routing import OrganizationId
from router import framing
from router.errors import (
    BodyTooLarge,
    HeadersTooLarge,
    MalformedRequest,
    MethodNotAllowed,
    Refusal,
    UriTooLong,
)
from router.exchange import Exchange
from router.framing import REQUEST_FIELDS, NotedField
from router.repetition import RepeatedRequest, read_repeated_request, repeatable_request

if TYPE_CHECKING:
    from router.client_connection import ClientConnection
    from router.client_edge import ClientEdge

log = logging.getLogger(__name__)

CHUNK_OVERHEAD_BYTES_MAX: Final = 64 * 1024
"""Of chunk sizes, extensions and trailers: in a row, as all trailers come, and in total beyond
eight times the body. One-byte chunks pass, a flood of extensions or trailers does not."""


REPEATED_BYTES_MAX: Final = framing.URI_BYTES_MAX
"""A larger piece is left to the parser, which checks every bound; a small one keeps them all."""
VAIN_MEMORIES_MAX: Final = 8
"""A client whose heads never come again is not worth remembering them."""


class Stage(Enum):
    """What the next byte from the client belongs to."""

    BETWEEN = "nothing yet"
    HEAD = "head"
    BODY = "body"
    ENDED = "nothing any more"


# Enum members are slow to reach through their class.
BETWEEN, HEAD, BODY, ENDED = Stage.BETWEEN, Stage.HEAD, Stage.BODY, Stage.ENDED


class RequestReader:
    __slots__ = (
        "_authorization",
        "_barren_bytes",
        "_body",
        "_body_bytes_before",
        "_client",
        "_edge",
        "_exchange",
        "_field_of",
        "_last",
        "_message_bytes",
        "_noted",
        "_parser",
        "_pass",
        "_passed",
        "_read_bytes",
        "_repeated",
        "_target",
        "_tenant",
        "_vain_memories",
        "body_bytes",
        "since_s",
        "stage",
    )

    def __init__(self, edge: "ClientEdge", client: "ClientConnection") -> None:
        self._edge = edge
        self._client = client
        self._parser = httptools.HttpRequestParser(self)
        self._field_of = REQUEST_FIELDS.known.get
        self.stage = BETWEEN
        self.since_s = 0.0
        """When the sweep first saw this stage; 0 before that."""

        self._read_bytes = 0
        """Size of the piece being parsed."""
        self._message_bytes = 0
        """Of the message being read, in earlier pieces."""
        self._target = b""
        self._passed: list[bytes] = []
        self._pass = self._passed.append
        self._noted: list[NotedField] = []
        self._exchange: Exchange | None = None
        """Being read; from the end of its head to the end of its body."""
        self._body: list[bytes] = []
        self.body_bytes = 0
        self._body_bytes_before = 0
        """As of the piece before."""
        self._barren_bytes = 0
        """Read in a row without a byte of body among them."""

        self._authorization: bytes | None = None
        """Of the last request that was routed, and whose it was."""
        self._tenant = OrganizationId("")
        self._last: Exchange | None = None
        """The request just read, until the piece that ended it is through."""
        self._repeated: dict[bytes, RepeatedRequest] = {}
        """Heads of this tenant's requests, by the two letters that tell the methods apart."""
        self._vain_memories = 0
        """Heads remembered since one was last met again."""

    def feed(self, data: bytes) -> None:
        """Read on, and hand on each request that is complete.

        Raises a Refusal for what cannot be read; the caller then ends the reading.
        """
        head = self._repeated.get(data[:2])
        if head is not None and self._read_repeated(head, data):
            return
        stage_before = self.stage
        if stage_before is ENDED:
            return
        self._read_bytes = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            if self.stage is not ENDED:
                raise self._why(exc, data, stage_before) from exc
        if self.stage is BETWEEN:
            self._message_bytes = 0
            if self._last is not None:
                self._remember(self._last, data, stage_before)
        elif self.stage is not ENDED:
            self._last = None
            self._check_unfinished()

    def end(self) -> None:
        """Read no more, and let go of what is half read."""
        self.stage = ENDED
        self.since_s = 0.0
        self._exchange = None
        if self._body:
            self._edge.unbuffer(sum(map(len, self._body)))
            self._body.clear()

    @property
    def unencouraged(self) -> Exchange | None:
        """The request being read, if its client waits to be asked for the body."""
        exchange = self._exchange
        return exchange if exchange is not None and exchange.expects_continue else None

    def finish_unread(self) -> None:
        """Hand on the request being read without its body, and read no more."""
        self.on_message_complete()
        self.end()

    # -- repeated heads

    def _remember(self, exchange: Exchange, data: bytes, stage_before: Stage) -> None:
        """Keep the head, if this piece was one request from its first byte to its last."""
        self._last = None
        if (
            stage_before is not BETWEEN
            or exchange.refusal is not None
            or exchange.close
            or exchange.expects_continue
            # Its fields are no longer those that came.
            or exchange.span is not None
            or self._vain_memories >= VAIN_MEMORIES_MAX
        ):
            return
        self._vain_memories += 1
        head = repeatable_request(data, exchange.fields)
        if head is not None and head.has_length is exchange.framed:
            self._repeated[data[:2]] = head

    def _read_repeated(self, head: RepeatedRequest, data: bytes) -> bool:
        """Hand on the request that this piece is, if its head is the one remembered."""
        if self.stage is not BETWEEN or not self._client.is_free():
            return False
        route = self._edge.routes.route_of(self._tenant)
        request = read_repeated_request(head, data)
        if request is None or route is None or len(data) > REPEATED_BYTES_MAX:
            return False
        if not route.traffic.is_free:
            return False
        method, target, key, body = request
        exchange = Exchange(self._client, self._edge.next_request_id(), method, target)
        exchange.fields = head.fields
        # What is remembered is of this connection's last credentials; they are signed, too.
        exchange.authorization = self._authorization
        exchange.route = route
        if key is not None:
            exchange.key = key
            exchange.repeatable |= method == b"POST"
        if head.has_length:
            exchange.framed = True
            self._edge.buffer(len(body))
            exchange.body, exchange.holder = body, self._edge
        self._vain_memories = 0
        self.since_s = 0.0
        self._client.received(exchange)
        return True

    # -- httptools callbacks; what they raise comes out of feed_data

    def on_message_begin(self) -> None:
        if self.stage is ENDED:
            raise EOFError("the connection ends with the answer before")
        self.stage = HEAD
        self.since_s = 0.0

    def on_url(self, url: bytes) -> None:
        self._target = self._target + url if self._target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        field = self._field_of(name)
        if field is None:
            field = REQUEST_FIELDS.learn(name)
        if isinstance(field, bytes):
            self._pass(field)
            self._pass(value)
        else:
            self._noted.append((field, name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        self._exchange = exchange = Exchange(
            self._client, self._edge.next_request_id(), parser.get_method(), self._target
        )
        if (
            self._read_bytes > framing.URI_BYTES_MAX
            or self._message_bytes > 0
            or len(self._passed) + len(self._noted) > framing.HEADERS_MAX
        ):
            self._check_sizes()
        framing.read_request_head(exchange, parser.get_http_version(), self._noted, self._passed)
        if parser.should_upgrade():
            raise MalformedRequest("no other protocol is spoken here")
        if exchange.length > self._edge.settings.body_bytes_max:
            raise self._body_too_large()
        exchange.close = exchange.http_10 or not parser.should_keep_alive()
        self._route(exchange)
        if exchange.refusal is None:
            self._admit(exchange)
        self.stage = BODY
        self._target = b""
        self._passed.clear()
        self._noted.clear()
        if exchange.expects_continue:
            self._client.encourage(exchange)

    def _check_sizes(self) -> None:
        """Exactly, where the bytes read so far do not prove that every bound is kept."""
        if len(self._target) > framing.URI_BYTES_MAX:
            raise UriTooLong(f"the target exceeds {framing.URI_BYTES_MAX} bytes")
        if len(self._passed) // 2 + len(self._noted) > framing.HEADERS_MAX:
            raise HeadersTooLarge(f"more than {framing.HEADERS_MAX} headers")
        framing.check_head_size(self._noted, self._passed)

    def _body_too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body exceeds {self._edge.settings.body_bytes_max} bytes")

    def _route(self, exchange: Exchange) -> None:
        routes, authorization = self._edge.routes, exchange.authorization
        if authorization is not None and authorization == self._authorization:
            route = routes.route_of(self._tenant)
            if route is not None:
                exchange.route = route
                return
        try:
            exchange.route = routes.resolve(authorization)
        except Refusal as refusal:
            exchange.refusal = refusal
        else:
            self._authorization = authorization
            self._tenant = exchange.route.tenant
            # What was remembered is another tenant's, or of another key.
            self._repeated.clear()

    def _admit(self, exchange: Exchange) -> None:
        """Refuse by the head alone what would be refused later, before its body is held."""
        route, edge = exchange.route, self._edge
        if not route.traffic.is_free:
            exchange.refusal = route.traffic.refusal(monotonic(), exchange.authorization)
        if exchange.refusal is None and exchange.framed:
            exchange.refusal = route.pool.refusal(route.traffic)
            if exchange.refusal is None and exchange.length:
                edge.check_room(exchange.length)

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        self.body_bytes += len(body)
        if self.body_bytes > self._edge.settings.body_bytes_max:
            raise self._body_too_large()
        # The body of a refused request is read only to find its end.
        if exchange.refusal is None:
            self._edge.buffer(len(body))
            self._body.append(body)

    def on_message_complete(self) -> None:
        exchange, body = self._exchange, self._body
        if exchange is None:
            return
        # Dropped here, or the last body would be held for as long as the connection idles.
        self._exchange = None
        if body:
            exchange.body = body[0] if len(body) == 1 else b"".join(body)
            exchange.holder = self._edge
            body.clear()
        if exchange.framed:
            self.body_bytes = self._body_bytes_before = self._barren_bytes = 0
            # Trailers came by way of on_header; they end here.
            self._passed.clear()
            self._noted.clear()
        self._last = exchange
        self.stage = BETWEEN
        self.since_s = 0.0
        # What is left of this piece belongs to the next message.
        self._message_bytes = -self._read_bytes
        self._client.received(exchange)

    # -- what cannot be accepted

    def _check_unfinished(self) -> None:
        """Bound what no callback has seen yet."""
        self._message_bytes += self._read_bytes
        if self.stage is BODY:
            self._check_unfinished_body()
        elif len(self._target) > framing.URI_BYTES_MAX:
            raise UriTooLong(f"the target exceeds {framing.URI_BYTES_MAX} bytes")
        elif self._message_bytes > framing.HEADER_BYTES_MAX + framing.URI_BYTES_MAX:
            raise HeadersTooLarge("the header section exceeds the limit")

    def _check_unfinished_body(self) -> None:
        if self.body_bytes > self._body_bytes_before:
            self._body_bytes_before, self._barren_bytes = self.body_bytes, 0
        else:
            self._barren_bytes += self._read_bytes
        if (
            self._barren_bytes > CHUNK_OVERHEAD_BYTES_MAX
            or self._message_bytes > CHUNK_OVERHEAD_BYTES_MAX + 8 * self.body_bytes
        ):
            raise MalformedRequest("more chunk framing than body")

    def _why(self, error: httptools.HttpParserError, data: bytes, stage_before: Stage) -> Refusal:
        """The refusal one of our callbacks raised, else what the parser disliked."""
        cause = error.__context__
        if isinstance(cause, Refusal):
            return cause
        if cause is not None:
            log.error("reading a request failed", exc_info=cause)
        by_method = isinstance(error, httptools.HttpParserInvalidMethodError)
        if by_method and stage_before is BETWEEN and framing.has_unknown_method(data):
            return MethodNotAllowed("no method of this API")
        return MalformedRequest(f"malformed HTTP: {error}")
