"""One client's connection: answers its requests in the order they came.

Requests that arrive while another is answered wait in order, a bounded number of them. When the
reader cannot accept what comes, all before it is answered, then the refusal, then the connection
closes.

Deadlines are not timers, which would cost more than the rest of a small request: a sweep looks at
every connection ten times a second, notes when it first saw it in its stage, and ends what has
lasted too long.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from router.errors import Refusal, RequestTimeout, RouterOverloaded, render_refusal
from router.exchange import Exchange
from router.request_reader import BETWEEN, BODY, ENDED, HEAD, RequestReader

if TYPE_CHECKING:
    from router.client_edge import ClientEdge

PIPELINED_MAX: Final = 64
"""Requests of one connection waiting behind the one being answered."""
LINGER_MS_MAX: Final = 1_000
"""How long a refused client may go on sending into the void. Closing at once would reset the
connection, and the client could lose the refusal before reading it."""
BODY_BYTES_PER_S_MIN: Final = 32 * 1024
"""A body that comes more slowly than this for the whole of its deadline is given up, however much
of it is there: what is held must not be held by waiting."""


class ClientConnection(asyncio.Protocol):
    __slots__ = (
        "_congested",
        "_current",
        "_edge",
        "_half_closed",
        "_last_words",
        "_limits",
        "_paced_bytes",
        "_reader",
        "_stuck_since_s",
        "_transport",
        "_waiting",
    )

    def __init__(self, edge: "ClientEdge") -> None:
        self._edge = edge
        self._limits = edge.settings
        self._reader = RequestReader(edge, self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._current: Exchange | None = None
        """Being answered."""
        self._waiting: deque[Exchange] = deque()
        """Received, and to be answered after the current one."""
        self._last_words: Refusal | None = None
        """To be said when everything before has been answered."""
        self._congested = False
        """The client does not take its answers as fast as they come."""
        self._half_closed = False
        """The client will send nothing more."""
        self._paced_bytes = 0
        """Of the body being read, when its deadline began anew."""
        self._stuck_since_s = 0.0
        """When the sweep first saw that the client does not take what it was sent; 0: it does."""

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._edge.admit(self):
            self._say_last_words(RouterOverloaded("too many connections"))
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.leave(self)
        self._reader.end()
        exchange, self._current = self._current, None
        if exchange is not None:
            # The request was received whole: it is carried out, only nobody hears of it.
            exchange.client = None
            if exchange.answering and exchange.carrier is not None:
                # Its effect is committed, as the cell has begun to answer; the rest is for nobody.
                exchange.carrier.close()
        self._forget_waiting()

    def eof_received(self) -> bool:
        if (self._current is None and not self._waiting) or not self._transport.can_write_eof():
            # Nothing is owed, or it is TLS, which knows no half-closed connections.
            return False
        # The client has said everything but may still listen: answer what came whole.
        self._half_closed = True
        self._reader.end()
        return True

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except Refusal as last_words:
            self._end_reading(last_words)

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        self._stuck_since_s = 0.0
        if self._current is None:
            self._go_on()
        elif self._current.carrier is not None:
            self._current.carrier.resume_reading()

    # -- what the reader hands on

    def is_free(self) -> bool:
        """A request received now would be forwarded at once."""
        return self._current is None and not self._congested

    def received(self, exchange: Exchange) -> None:
        """Forward the request, or queue it. Raises RouterOverloaded."""
        if self._current is None and not self._congested:
            self._begin(exchange)
            return
        if len(self._waiting) >= PIPELINED_MAX:
            exchange.end()
            raise RouterOverloaded(f"more than {PIPELINED_MAX} pipelined requests")
        self._waiting.append(exchange)
        self._transport.pause_reading()

    def encourage(self, exchange: Exchange) -> None:
        """The client asks whether to send the body: ask for it, or refuse before it is sent."""
        if self._current is not None or self._waiting:
            return
        exchange.expects_continue = False
        if exchange.refusal is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            # Whether the body follows all the same is unknowable now, so nothing after it is.
            exchange.close = True
            self._reader.finish_unread()

    # -- answering in order

    def _begin(self, exchange: Exchange) -> None:
        self._current = exchange
        if self._edge.access_log.is_on:
            self._edge.access_log.begin(exchange)
        if self._edge.spans is not None:
            self._edge.spans.begin(exchange)
        if exchange.refusal is None:
            self._edge.forwarder.accept(exchange)
        else:
            self.refuse(exchange, exchange.refusal)

    def answer(self, exchange: Exchange, answer: bytes, *, close: bool) -> None:
        """All of the answer, or all that was left of it."""
        if exchange.began_s:
            self._edge.access_log.write(exchange)
        self._edge.recent.keep(exchange)
        exchange.end()
        exchange.client = None
        self._transport.write(answer)
        self._current = None
        if close:
            self._close()
        elif self._reader.stage is not BETWEEN or self._waiting:
            self._go_on()
        else:
            self._reader.since_s = 0.0

    def answer_part(self, part: bytes) -> None:
        self._transport.write(part)

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer with the router's own words; requires that no part of an answer has left."""
        assert not exchange.answering, "an answer has begun; it can only be cut"
        self._edge.count_refusal(refusal)
        exchange.status, exchange.said = refusal.status, refusal.message
        close = exchange.close or refusal.closes or self._edge.draining
        answer = render_refusal(
            refusal, exchange.request_id, close=close, bodiless=exchange.is_head
        )
        self.answer(exchange, answer, close=close)

    def cut(self) -> None:
        """Close without a word: the answer has begun and cannot be finished."""
        self._transport.abort()

    def is_congested(self) -> bool:
        return self._congested

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
        elif self._reader.stage is ENDED:
            self._close()
        else:
            unencouraged = self._reader.unencouraged
            if unencouraged is not None:
                self.encourage(unencouraged)

    # -- ending

    def _end_reading(self, last_words: Refusal) -> None:
        """Read no more; refuse once everything before it is answered."""
        self._reader.end()
        self._last_words = last_words
        if self._current is None and not self._waiting:
            self._say_last_words(last_words)

    def _say_last_words(self, last_words: Refusal) -> None:
        self._last_words = None
        self._edge.count_refusal(last_words)
        self._transport.write(
            render_refusal(last_words, self._edge.next_request_id(), close=True, bodiless=False)
        )
        if self._half_closed or not self._transport.can_write_eof():
            self._close()
            return
        # Reading goes on, into the void, until the client closes or the sweep has waited enough.
        self._reader.since_s = 0.0
        self._transport.write_eof()
        self._transport.resume_reading()

    def _close(self) -> None:
        self._reader.end()
        self._forget_waiting()
        self._transport.close()

    def close_if_idle(self) -> None:
        """For a drain: nothing was asked, so nothing is lost."""
        if self._current is None and not self._waiting and self._reader.stage is BETWEEN:
            self._close()

    def abort(self) -> None:
        self._transport.abort()

    def _forget_waiting(self) -> None:
        for exchange in self._waiting:
            exchange.end()
        self._waiting.clear()

    # -- deadlines

    def sweep(self, now_s: float) -> None:
        """Note new stages, and end those that have lasted too long."""
        exchange, reader, limits = self._current, self._reader, self._limits
        if exchange is not None:
            limit_ms = limits.answer_ms_max if exchange.answering else limits.request_ms_max
            if not exchange.since_s:
                exchange.since_s = now_s
            elif now_s - exchange.since_s > limit_ms / 1000:
                self._edge.forwarder.expire(exchange)
                return
        if self._is_stuck(now_s):
            self.abort()
            return
        if self._waiting or reader.unencouraged is not None:
            # It is not the client that keeps the rest of its request back.
            reader.since_s = now_s
        elif not reader.since_s or self._is_body_on_its_way():
            reader.since_s = now_s
        elif now_s - reader.since_s > self._stage_ms_max() / 1000:
            self._expire_stage()

    def _is_stuck(self, now_s: float) -> bool:
        """The client leaves what it was sent unread; the kernel would wait for ever."""
        if not self._congested and not self._transport.is_closing():
            return False
        self._stuck_since_s = self._stuck_since_s or now_s
        return now_s - self._stuck_since_s > self._limits.answer_ms_max / 1000

    def _is_body_on_its_way(self) -> bool:
        """As much of it has come since its deadline began as is asked of the whole of it."""
        body_bytes = self._reader.body_bytes
        self._paced_bytes = min(self._paced_bytes, body_bytes)
        asked_bytes = BODY_BYTES_PER_S_MIN * self._limits.body_ms_max / 1000
        if self._reader.stage is not BODY or body_bytes - self._paced_bytes < asked_bytes:
            return False
        self._paced_bytes = body_bytes
        return True

    def _stage_ms_max(self) -> float:
        reader, limits = self._reader, self._limits
        if reader.stage is HEAD:
            return limits.header_ms_max
        if reader.stage is BODY:
            return limits.body_ms_max
        return limits.idle_ms_max if reader.stage is BETWEEN else LINGER_MS_MAX

    def _expire_stage(self) -> None:
        stage = self._reader.stage
        if stage is HEAD or stage is BODY:
            self._end_reading(RequestTimeout(f"the request's {stage.value} took too long"))
        elif self._current is None and not self._waiting:
            self._close()
