"""One kept-alive connection to a cell: writes a request, reads its answer, passes it on.

Carries one exchange at a time and pipelines nothing: then an answer can belong to no other request
than the one just sent, and any byte beyond it ends the connection. Decides nothing about retries;
a broken exchange goes to the forwarder with the way it broke.

A small answer leaves in one piece. A large one is streamed: while the client's connection cannot
take more, reading from the cell pauses.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

import httptools

from cell.wire import Verdict
from router import framing
from router.exchange import Exchange, Loss
from router.framing import ANSWER_FIELDS, NotedField
from router.repetition import read_repeated_answer, repeatable_answer

if TYPE_CHECKING:
    from router.cell_pool import CellPool

log = logging.getLogger(__name__)

ONE_WRITE_BYTES_MAX: Final = 64 * 1024
"""Up to here head and body are joined for one write; above it the copy would cost more."""
ANSWER_HEAD_BYTES_MAX: Final = 64 * 1024


class CellConnection(asyncio.Protocol):
    __slots__ = (
        "_bodiless",
        "_body",
        "_chunked",
        "_complete",
        "_epoch",
        "_exchange",
        "_field_of",
        "_fields",
        "_head",
        "_head_bytes",
        "_heard",
        "_interim",
        "_keep_alive",
        "_length",
        "_noted",
        "_parser",
        "_pass",
        "_passed",
        "_patience",
        "_pool",
        "_status",
        "_transport",
        "_verdict",
        "since_s",
    )

    def __init__(self, pool: "CellPool", patience: asyncio.Timeout | None = None) -> None:
        """`patience` is with whoever opens it."""
        self._pool = pool
        self._patience = patience
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpResponseParser(self)
        self._field_of = ANSWER_FIELDS.known.get
        self._passed: list[bytes] = []
        self._pass = self._passed.append
        self._noted: list[NotedField] = []
        self._body: list[bytes] = []
        self._exchange: Exchange | None = None
        self.since_s = 0.0
        """When the sweep first saw it idle, or busy without a client; 0 before that."""

        # Of the answer being read. Reset between two answers:
        self._heard = False
        self._head: bytes | None = None
        """The head to pass on, from the end of the cell's head on."""
        self._complete = False
        # Set anew by each head:
        self._interim = False
        self._head_bytes = 0
        """Read so far while the head is not complete."""
        self._status = 0
        self._fields = b""
        """The lines to pass on."""
        self._keep_alive = False
        """The connection can carry another exchange."""
        self._length: bytes | None = None
        self._chunked = False
        self._bodiless = False
        self._verdict: bytes | None = None
        self._epoch: bytes | None = None
        """The tenant's, beside a verdict."""

    # -- what the pool and the forwarder ask for

    def settle(self) -> bool:
        """It is made, and will not be given up any more; False if it has been, just now.

        Opening it may be cancelled until the opener's task runs on. The loop then closes it without
        a word: a request on it would be answered by nobody, and its place be taken for good.
        """
        patience, self._patience = self._patience, None
        if patience is not None:
            if patience.expired():
                self._transport.abort()
                return False
            patience.reschedule(None)
        return True

    def send(self, exchange: Exchange) -> None:
        """Carry the exchange. Requires an idle connection that is not closing."""
        self._exchange = exchange
        exchange.carrier = self
        exchange.route.traffic.carried += 1
        self.since_s = 0.0
        head = framing.request_head(exchange, self._pool.deadline_ms(exchange), self._pool.signer)
        if len(exchange.body) <= ONE_WRITE_BYTES_MAX:
            self._transport.write(head + exchange.body)
        else:
            self._transport.writelines((head, exchange.body))

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def is_idle(self) -> bool:
        return self._exchange is None

    def owes(self) -> bool:
        """The cell has a request of which it has answered nothing."""
        return self._exchange is not None and not self._exchange.answering

    def is_orphaned(self) -> bool:
        """Busy, but nobody waits for the answer."""
        return self._exchange is not None and self._exchange.client is None

    def close(self) -> None:
        """Drop whatever is carried, without a word to anyone."""
        exchange = self.abandon()
        if exchange is not None:
            exchange.end()

    def abandon(self) -> Exchange | None:
        """Break off, and leave what was carried to the caller, who ends it."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.carrier = None
            exchange.route.traffic.carried -= 1
        self._transport.abort()
        return exchange

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self.abandon()
        # First out of the pool: the resend that may follow must not find this connection there.
        self._pool.disconnected(self)
        if exchange is not None:
            self._pool.forwarder.lost(exchange, Loss.BROKEN if self._heard else Loss.SILENT)

    def eof_received(self) -> bool:
        self._pool.not_idle(self)
        return False

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nothing was asked. Kept, these bytes would be read as the next request's answer.
            self._pool.not_idle(self)
            self._transport.abort()
            return
        heard_before, self._heard = self._heard, True
        if not heard_before and self._read_repeated(exchange, data):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._refuse_answer(exchange, str(exc.__context__ or exc))
            return
        if self._complete:
            if not heard_before:
                self._remember(exchange, data)
            self._finish(exchange)
        elif self._head is None:
            self._head_bytes += len(data)
            if self._head_bytes > ANSWER_HEAD_BYTES_MAX:
                self._refuse_answer(exchange, f"its head exceeds {ANSWER_HEAD_BYTES_MAX} bytes")
        elif self._verdict is None:
            self._stream(exchange)

    # -- repeated heads

    def _remember(self, exchange: Exchange, data: bytes) -> None:
        """Keep the head, if this piece was one plain answer from its first byte to its last."""
        if (
            self._keep_alive
            and self._length is not None
            and self._verdict is None
            and not self._bodiless
            and self._pool.may_remember()
        ):
            known = repeatable_answer(data, self._status, self._fields)
            if known is not None:
                self._pool.repeated[data[:12]] = known

    def _read_repeated(self, exchange: Exchange, data: bytes) -> bool:
        """Pass on the answer that this piece is, if its head is the one remembered."""
        known = self._pool.repeated.get(data[:12])
        if known is None or exchange.is_head:
            return False
        body = read_repeated_answer(known, data, exchange.request_id)
        if body is None:
            return False
        self._pool.vain_memories = 0
        self._status, self._verdict, self._keep_alive = known.status, None, True
        self._bodiless = False
        self._head = framing.answer_head(exchange, known.status, known.fields)
        self._body.append(body)
        self._finish(exchange)
        return True

    # -- httptools callbacks; what they raise comes out of feed_data as HttpParserError

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        field = self._field_of(name)
        if field is None:
            field = ANSWER_FIELDS.learn(name)
        if isinstance(field, bytes):
            self._pass(field)
            self._pass(value)
        else:
            self._noted.append((field, name, value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        exchange = self._exchange
        assert exchange is not None, "parsing without an exchange"
        status = self._parser.get_status_code()
        if status < 200:
            self._begin_interim(status)
            return
        self._head_bytes = 0
        self._status = status
        self._keep_alive = self._parser.should_keep_alive()
        self._note()
        self._fields = b"".join(self._passed)
        self._head = framing.answer_head(exchange, status, self._fields)
        self._passed.clear()
        self._bodiless = exchange.is_head or status == 204 or status == 304
        if self._bodiless:
            # The parser does not know what was asked and waits for the body that HEAD leaves out.
            self._complete = exchange.is_head
        elif self._length is None and not self._chunked:
            raise ValueError("an answer that ends with its connection could be cut unnoticed")

    def _begin_interim(self, status: int) -> None:
        if status == 101:
            raise ValueError("nobody asked to switch protocols")
        self._interim = True
        self._passed.clear()
        self._noted.clear()

    def _note(self) -> None:
        """Act upon the noted headers."""
        self._length, self._chunked, self._verdict, self._epoch = None, False, None, None
        for field, _, value in self._noted:
            if field is framing.CONTENT_LENGTH:
                self._length = value
            elif field is framing.TRANSFER_ENCODING:
                self._chunked = value.lower() == b"chunked"
            elif field is framing.CONNECTION:
                listed = framing.connection_tokens(value)
                if listed:
                    self._passed[:] = framing.without(self._passed, listed)
            elif field is framing.VERDICT and value in framing.MOVING_VERDICTS:
                self._verdict = value
            elif field is framing.EPOCH:
                self._epoch = value
        self._noted.clear()

    def on_body(self, body: bytes) -> None:
        if self._complete:
            self._keep_alive = False
        elif self._verdict is None:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self._complete = True

    # -- the answer

    def _finish(self, exchange: Exchange) -> None:
        client, pool, verdict = exchange.client, self._pool, self._verdict
        pool.answers[self._status // 100] += 1
        exchange.status = self._status
        if pool.breaker.doubted:
            pool.answered()
        close = exchange.close or pool.forwarder.draining
        answer = self._rest(exchange) if exchange.answering else self._whole(close)
        self._exchange = exchange.carrier = self._head = None
        traffic = exchange.route.traffic
        traffic.carried -= 1
        if traffic.rate is not None:
            traffic.answered(exchange.authorization, self._status)
        self._heard = self._complete = False
        # Before the client is answered: its next request, already waiting, can then use this
        # very connection.
        if self._keep_alive and not self._transport.is_closing() and not self._unsent(exchange):
            if exchange.is_head:
                self._parser = httptools.HttpResponseParser(self)
            pool.release(self)
        else:
            self._transport.close()
        if verdict is not None:
            pool.forwarder.not_applied(
                exchange, Verdict(verdict.decode()), framing.epoch_of(self._epoch)
            )
            return
        if exchange.lane is not None:
            exchange.lane.served(exchange)
        if client is not None:
            client.answer(exchange, answer, close=close)
        else:
            exchange.end()

    def _whole(self, close: bool) -> bytes:
        head = self._head
        assert head is not None, "a complete answer has a head"
        if self._bodiless:
            length = None if self._status == 204 else self._length
            return framing.bodiless_answer(head, length, close=close)
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        return framing.whole_answer(head, body, close=close)

    def _rest(self, exchange: Exchange) -> bytes:
        body = b"".join(self._body)
        self._body.clear()
        if self._length is not None or exchange.http_10:
            return body
        return (framing.chunk(body) if body else b"") + framing.LAST_CHUNK

    def _stream(self, exchange: Exchange) -> None:
        client = exchange.client
        if client is None:
            # Nobody reads it. Its effect is committed, as the cell has begun to answer.
            self.close()
            return
        body = b"".join(self._body)
        self._body.clear()
        chunked = self._length is None and not exchange.http_10
        part = (framing.chunk(body) if chunked else body) if body else b""
        if not exchange.answering:
            exchange.answering = True
            exchange.since_s = 0.0
            # Without chunks only the connection's end can tell an HTTP/1.0 client where it ends.
            exchange.close |= self._pool.forwarder.draining or (
                self._length is None and not chunked
            )
            part = self._streamed_head(exchange, chunked) + part
        client.answer_part(part)
        if client.is_congested():
            self._transport.pause_reading()

    def _streamed_head(self, exchange: Exchange, chunked: bool) -> bytes:
        assert self._head is not None, "streaming begins with a head"
        return framing.streamed_head(
            self._head, self._length, chunked=chunked, close=exchange.close
        )

    def _unsent(self, exchange: Exchange) -> bool:
        """The cell answered without having read the request to its end."""
        return (
            len(exchange.body) > ONE_WRITE_BYTES_MAX and self._transport.get_write_buffer_size() > 0
        )

    def _refuse_answer(self, exchange: Exchange, reason: str) -> None:
        log.warning(
            "answer unusable",
            extra={
                "cell": self._pool.cell,
                "request_id": exchange.request_id.decode(),
                "reason": reason,
            },
        )
        self.abandon()
        self._pool.forwarder.lost(exchange, Loss.UNUSABLE)
