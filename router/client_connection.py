"""One client's connection: reads requests strictly and answers them in order.

A request is handed on only when the whole of it has been read, so nothing that breaks off half-way
reaches a cell. Requests that arrive while another is answered wait in order, a bounded number of
them. The first thing that cannot be understood ends the reading: what came before is answered,
then the refusal, then the connection closes.

Deadlines are not timers, which would cost more than the rest of a small request: a sweep looks at
every connection ten times a second, notes when it first saw it in its stage, and calls `expire`.
"""

import asyncio
import logging
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

import httptools

from router import framing
from router.errors import (
    BadRequest,
    BodyTooLarge,
    HeadersTooLarge,
    MalformedRequest,
    MethodNotAllowed,
    Refusal,
    RequestTimeout,
    RouterOverloaded,
    UriTooLong,
    render_refusal,
)
from router.exchange import Exchange
from router.framing import REQUEST_FIELDS, Noted, NotedField

if TYPE_CHECKING:
    from router.client_edge import ClientEdge

log = logging.getLogger(__name__)

PIPELINED_MAX: Final = 64
"""Requests of one connection waiting behind the one being answered."""
LINGER_MS_MAX: Final = 1_000
"""How long a refused client may go on sending into the void. Closing at once would reset the
connection, and the client could lose the refusal before reading it."""
BODY_BYTES_PER_S_MIN: Final = 32 * 1024
"""Each that many bytes received extend the deadline of the body by a second."""
CHUNK_OVERHEAD_BYTES_MAX: Final = 64 * 1024
"""Of chunk sizes, extensions and trailers, beyond eight times the body: one-byte chunks pass, a
flood of extensions does not."""


class Reading(Enum):
    """What the next byte from the client belongs to."""

    NOTHING = "nothing"
    """Between two requests."""
    HEAD = "head"
    BODY = "body"
    ENDED = "ended"
    """Nothing is read any more; bytes that still come are thrown away."""


# Enum members are slow to reach through their class.
NOTHING, HEAD, BODY, ENDED = Reading.NOTHING, Reading.HEAD, Reading.BODY, Reading.ENDED


class ClientConnection(asyncio.Protocol):
    __slots__ = (
        "_body",
        "_body_bytes",
        "_congested",
        "_current",
        "_edge",
        "_exchange",
        "_field_of",
        "_half_closed",
        "_last_words",
        "_limits",
        "_message_bytes",
        "_noted",
        "_parser",
        "_passed",
        "_read_bytes",
        "_reading",
        "_since_s",
        "_target",
        "_transport",
        "_waiting",
    )

    def __init__(self, edge: "ClientEdge") -> None:
        self._edge = edge
        self._limits = edge.settings
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpRequestParser(self)
        self._field_of = REQUEST_FIELDS.known.get
        self._current: Exchange | None = None
        """Being answered."""
        self._waiting: deque[Exchange] = deque()
        """Read, and to be answered after the current one."""
        self._last_words: BadRequest | RouterOverloaded | None = None
        """To be said when everything before has been answered."""
        self._congested = False
        """The client does not take its answers as fast as they come."""
        self._half_closed = False
        """The client will send nothing more."""

        self._reading = NOTHING
        self._since_s = 0.0
        """When the sweep first saw this stage of reading; 0 before that."""
        self._read_bytes = 0
        """Size of the piece being parsed."""
        self._message_bytes = 0
        """Of the message being read, in earlier pieces."""
        self._target = b""
        self._passed: list[bytes] = []
        self._noted: list[NotedField] = []
        self._exchange: Exchange | None = None
        """Being read; from the end of its head to the end of its body."""
        self._body: list[bytes] = []
        self._body_bytes = 0

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._edge.admit(self):
            self._say_last_words(RouterOverloaded("too many connections"))
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.leave(self)
        self._reading = ENDED
        if self._current is not None:
            # The request was received whole: it is carried out, only nobody hears of it.
            self._current.client = None
            self._forget(self._current)
            if self._current.carrier is not None and self._congested:
                self._current.carrier.resume_reading()
            self._current = None
        for exchange in self._waiting:
            self._forget(exchange)
        self._waiting.clear()
        self._drop_body()

    def eof_received(self) -> bool:
        if self._current is None:
            return False
        # The client has said everything but may still listen: answer what came whole.
        self._reading = ENDED
        self._half_closed = True
        self._drop_body()
        return True

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        if self._current is not None:
            if self._current.carrier is not None:
                self._current.carrier.resume_reading()
        else:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        if self._reading is ENDED:
            return
        self._read_bytes = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            if self._reading is not ENDED:
                self._end_reading(self._why(exc, data))
            return
        if self._reading is NOTHING:
            self._message_bytes = 0
        elif self._reading is not ENDED:
            self._check_unfinished()

    def _check_unfinished(self) -> None:
        """Bound what is not complete yet, and therefore has not been checked by its callbacks."""
        self._message_bytes += self._read_bytes
        refusal: BadRequest | None = None
        if self._reading is HEAD:
            if len(self._target) > framing.URI_BYTES_MAX:
                refusal = UriTooLong(f"the target exceeds {framing.URI_BYTES_MAX} bytes")
            elif self._message_bytes > framing.HEADER_BYTES_MAX + framing.URI_BYTES_MAX:
                refusal = HeadersTooLarge("the header section exceeds the limit")
        elif self._message_bytes > CHUNK_OVERHEAD_BYTES_MAX + 8 * self._body_bytes:
            refusal = MalformedRequest("more chunk framing than body")
        if refusal is not None:
            self._end_reading(refusal)

    def _why(self, error: httptools.HttpParserError, data: bytes) -> BadRequest | RouterOverloaded:
        """The refusal one of our callbacks raised, else what the parser disliked, in our words."""
        cause = error.__context__
        if isinstance(cause, BadRequest | RouterOverloaded):
            return cause
        if cause is not None:
            log.error("reading a request failed", exc_info=cause)
        by_method = isinstance(error, httptools.HttpParserInvalidMethodError)
        if by_method and framing.has_unknown_method(data):
            return MethodNotAllowed("no method of this API")
        return MalformedRequest(f"malformed HTTP: {error}")

    # -- httptools callbacks; what they raise comes out of feed_data

    def on_message_begin(self) -> None:
        if self._reading is ENDED:
            raise EOFError("this connection ends with the answer before")
        self._reading = HEAD
        self._since_s = 0.0

    def on_url(self, url: bytes) -> None:
        self._target = self._target + url if self._target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        field = self._field_of(name)
        if field is None:
            field = REQUEST_FIELDS.learn(name)
        if field.__class__ is bytes:
            self._passed.append(field)
            self._passed.append(value)
        else:
            self._noted.append((cast(Noted, field), name, value))

    def on_headers_complete(self) -> None:
        parser, edge = self._parser, self._edge
        self._exchange = exchange = Exchange(
            self, edge.next_request_id(), parser.get_method(), self._target
        )
        self._check_sizes()
        framing.read_request_head(exchange, parser.get_http_version(), self._noted, self._passed)
        if parser.should_upgrade():
            raise MalformedRequest("no other protocol is spoken here")
        if exchange.length > self._limits.body_bytes_max:
            raise BodyTooLarge(f"the body exceeds {self._limits.body_bytes_max} bytes")
        exchange.close = exchange.http_10 or not parser.should_keep_alive()
        try:
            exchange.route = edge.routes.resolve(exchange.authorization)
        except Refusal as refusal:
            exchange.refusal = refusal
        self._reading = BODY
        self._target = b""
        self._passed.clear()
        self._noted.clear()
        if exchange.expects_continue:
            self._encourage()

    def _check_sizes(self) -> None:
        if len(self._target) > framing.URI_BYTES_MAX:
            raise UriTooLong(f"the target exceeds {framing.URI_BYTES_MAX} bytes")
        if len(self._passed) // 2 + len(self._noted) > framing.HEADERS_MAX:
            raise HeadersTooLarge(f"more than {framing.HEADERS_MAX} headers")
        if self._message_bytes + self._read_bytes > framing.HEADER_BYTES_MAX:
            framing.check_head_size(self._noted, self._passed)

    def _encourage(self) -> None:
        """Ask for the body, or refuse before it is sent."""
        exchange = self._exchange
        assert exchange is not None, "the body of no request"
        if exchange.refusal is not None:
            # The client waits for a word before it sends the body, so there is none to skip.
            exchange.close = True
            self.on_message_complete()
            self._reading = ENDED
        elif self._current is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            exchange.expects_continue = False

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes_max:
            raise BodyTooLarge(f"the body exceeds {self._limits.body_bytes_max} bytes")
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
            body.clear()
        if exchange.framed:
            self._body_bytes = 0
            # Trailers came by way of on_header; they end here.
            self._passed.clear()
            self._noted.clear()
        self._reading = NOTHING
        self._since_s = 0.0
        self._message_bytes = -self._read_bytes
        if self._current is None and not self._congested:
            self._begin(exchange)
        else:
            self._queue(exchange)

    def _queue(self, exchange: Exchange) -> None:
        if len(self._waiting) >= PIPELINED_MAX:
            self._forget(exchange)
            raise RouterOverloaded(f"more than {PIPELINED_MAX} pipelined requests")
        self._waiting.append(exchange)
        self._transport.pause_reading()

    # -- answering in order

    def _begin(self, exchange: Exchange) -> None:
        self._current = exchange
        if exchange.refusal is not None:
            self.refuse(exchange, exchange.refusal)
        else:
            self._edge.forwarder.forward(exchange)

    def answer(self, exchange: Exchange, answer: bytes, *, close: bool) -> None:
        """All of the answer, or all that was left of it."""
        exchange.done = True
        exchange.client = None
        self._transport.write(answer)
        self._forget(exchange)
        self._current = None
        if close:
            self._close()
        elif self._reading is not NOTHING or self._waiting:
            self._go_on()
        else:
            self._since_s = 0.0

    def answer_part(self, part: bytes) -> None:
        self._transport.write(part)

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer with the router's own words; requires that no part of an answer has left."""
        assert not exchange.answering, "an answer has begun; it can only be cut"
        self._edge.count_refusal(refusal)
        close = exchange.close or refusal.closes or self._edge.draining
        answer = render_refusal(
            refusal, exchange.request_id, close=close, bodiless=exchange.is_head
        )
        self.answer(exchange, answer, close=close)

    def cut(self, exchange: Exchange) -> None:
        """Close without a word: the answer has begun and cannot be finished."""
        exchange.done = True
        self._transport.abort()

    def is_congested(self) -> bool:
        return self._congested

    def is_draining(self) -> bool:
        return self._edge.draining

    def _go_on(self) -> None:
        """With nothing being answered: the next in the queue, or the last words."""
        if self._current is not None or self._congested:
            return
        if self._waiting:
            exchange = self._waiting.popleft()
            if not self._waiting:
                self._transport.resume_reading()
            self._begin(exchange)
        elif self._last_words is not None:
            self._say_last_words(self._last_words)
        elif self._reading is ENDED:
            self._close()
        elif self._exchange is not None and self._exchange.expects_continue:
            self._encourage()

    # -- ending

    def _end_reading(self, last_words: BadRequest | RouterOverloaded) -> None:
        """Read no more; refuse once everything before it is answered."""
        self._reading = ENDED
        self._last_words = last_words
        self._drop_body()
        if self._current is None and not self._waiting:
            self._say_last_words(last_words)

    def _say_last_words(self, last_words: BadRequest | RouterOverloaded) -> None:
        self._last_words = None
        self._edge.count_refusal(last_words)
        self._transport.write(
            render_refusal(last_words, self._edge.next_request_id(), close=True, bodiless=False)
        )
        if self._half_closed:
            self._close()
            return
        # Reading goes on, into the void, until the client closes or the sweep has waited enough.
        self._since_s = 0.0
        self._transport.write_eof()
        self._transport.resume_reading()

    def _close(self) -> None:
        self._reading = ENDED
        for exchange in self._waiting:
            self._forget(exchange)
        self._waiting.clear()
        self._transport.close()

    def close_if_idle(self) -> None:
        """For a drain: nothing was asked, so nothing is lost."""
        if self._current is None and not self._waiting and self._reading is NOTHING:
            self._close()

    def abort(self) -> None:
        self._transport.abort()

    def _drop_body(self) -> None:
        self._exchange = None
        if self._body:
            self._edge.unbuffer(sum(map(len, self._body)))
            self._body.clear()

    def _forget(self, exchange: Exchange) -> None:
        if exchange.body:
            self._edge.unbuffer(len(exchange.body))

    # -- deadlines

    def sweep(self, now_s: float) -> None:
        """Note new stages, and end those that have lasted too long."""
        exchange = self._current
        if exchange is not None:
            limits = self._limits
            limit_ms = limits.answer_ms_max if exchange.answering else limits.request_ms_max
            if not exchange.since_s:
                exchange.since_s = now_s
            elif now_s - exchange.since_s > limit_ms / 1000:
                self._edge.forwarder.expire(exchange)
                return
        if not self._since_s:
            self._since_s = now_s
        elif now_s - self._since_s > self._stage_ms_max() / 1000:
            self._expire_reading()

    def _stage_ms_max(self) -> float:
        if self._reading is HEAD:
            return self._limits.header_ms_max
        if self._reading is BODY:
            return self._limits.body_ms_max + self._body_bytes * 1000 / BODY_BYTES_PER_S_MIN
        return self._limits.idle_ms_max if self._reading is NOTHING else LINGER_MS_MAX

    def _expire_reading(self) -> None:
        if self._reading is HEAD or self._reading is BODY:
            self._end_reading(RequestTimeout(f"the request's {self._reading.value} took too long"))
        elif self._current is None and not self._waiting:
            self._close()
