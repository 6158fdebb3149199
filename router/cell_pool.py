"""The kept-alive connections to one cell, and the bounded queue of requests waiting for one.

A request takes an idle connection at once, the one used last, so that the surplus of a burst grows
old and is closed. Otherwise it waits while connections are opened, as many as wait and the bound
allows; also where its tenant has its share of them (`waiting`): the next tenant then finds them
open. Waiting is bounded in number and time. Every step is synchronous; only opening a connection
awaits, in a task of its own.
"""

import asyncio
import contextlib
import logging
import os
import random
from collections import Counter
from time import monotonic
from typing import Final, Protocol

from cell.signature import Signer, key_of_cell
from cell.wire import Verdict
from control_plane.routing import CellName, Epoch
from router.breaker import Breaker
from router.cell_connection import CellConnection
from router.errors import CellOverloaded, CellUnreachable, Refusal
from router.exchange import Exchange, Loss
from router.limits import TenantTraffic
from router.repetition import RepeatedAnswer
from router.settings import Address, Settings
from router.waiting import WaitingRequests, may_take

log = logging.getLogger(__name__)

ORPHANED_MS_MAX: Final = 60_000
"""How long an answer that nobody waits for any more may occupy a connection."""

RESENDS_PER_S_MIN: Final = 3
"""Resends per second that a cell without traffic may cause."""

CELL_FAILED: Final = "the tenant's cell failed a moment ago; nothing was executed"

VAIN_MEMORIES_MAX: Final = 8
"""Heads of answers kept in a second without meeting one again; more would cost without gain."""


class Forwarder(Protocol):
    """What a pool reports to."""

    draining: bool
    """Every answer is to be the last of its client's connection."""

    def lost(self, exchange: Exchange, loss: Loss) -> None: ...

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None: ...

    def not_applied(self, exchange: Exchange, verdict: Verdict, told: Epoch | None) -> None: ...


class CellPool:
    def __init__(
        self, cell: CellName, address: Address, settings: Settings, forwarder: Forwarder
    ) -> None:
        self.cell = cell
        self.address = address
        self.forwarder = forwarder
        secret = settings.signing_secret
        self.signer = None if secret is None else Signer(key_of_cell(secret, cell))
        self._settings = settings
        sockets = settings.cell_sockets
        self._socket = None if sockets is None else sockets / f"{cell}.sock"
        self._connections: set[CellConnection] = set()
        self._idle: list[CellConnection] = []
        self._waiting = WaitingRequests()
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False
        self._reachable = True
        """As of the last attempt; only to log each change once."""
        self.answers = [0] * 10
        """Complete answers, by the first digit of the status."""
        self.losses: Counter[Loss] = Counter()
        self.resends = 0
        """Requests sent or tried again, in total."""
        self._resends_left = RESENDS_PER_S_MIN
        self._answers_before = 0
        self._answers_swept = 0
        """As of the last sweep."""
        self._answered_s = 0.0
        """When a sweep last found more of them."""
        self._budgeted_s = 0.0
        self.repeated: dict[bytes, RepeatedAnswer] = {}
        """Heads of this cell's answers, by the bytes up to the status."""
        self.vain_memories = 0
        """Heads remembered in this second since one was last met again."""
        self.shed = 0
        """Requests refused because no connection came free in time."""
        self.breaker = Breaker()
        self.refused = 0
        """Requests refused because the breaker was open."""

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        return len(self._connections) - len(self._idle)

    @property
    def waiting(self) -> int:
        return self._waiting.count

    def deadline_ms(self, exchange: Exchange) -> int:
        """For how long somebody still waits for its answer."""
        whole_ms = self._settings.request_ms_max
        if not exchange.since_s:
            return whole_ms
        return max(1, whole_ms - int((monotonic() - exchange.since_s) * 1000))

    def submit(self, exchange: Exchange) -> None:
        """Send the exchange as soon as a connection is free, or refuse it."""
        breaker = self.breaker
        if not breaker.is_closed and not breaker.admits(monotonic(), random.random()):
            self.refused += 1
            self.forwarder.refuse(exchange, CellUnreachable(CELL_FAILED))
            return
        idle = self._idle
        may = may_take(exchange.route.traffic.carried, self._left())
        while idle and may:
            connection = idle.pop()
            # Found closed with nothing sent yet: the next one is as good.
            if not connection.is_closing():
                connection.send(exchange)
                return
        if self._is_full():
            self._shed(exchange, "too many requests wait for this cell")
            return
        exchange.waiting_since_s = monotonic()
        self._waiting.add(exchange)
        self._open_for_waiters()

    def _left(self) -> int:
        """Connections that carry nothing, or are not opened yet."""
        return self._settings.cell_connections_max - len(self._connections) + len(self._idle)

    def _is_full(self) -> bool:
        # Those for whom a connection is being opened, or can be, do not count.
        openable = self._settings.cell_connections_max - len(self._connections)
        return self._waiting.count >= self._settings.cell_waiters_max + openable

    def refusal(self, traffic: TenantTraffic) -> Refusal | None:
        """Why a request of this tenant submitted now would be refused, if that is known already."""
        if not self.breaker.is_closed and not self.breaker.is_tried(monotonic()):
            return CellUnreachable(CELL_FAILED)
        if self._is_full() and not (self._idle and may_take(traffic.carried, self._left())):
            return CellOverloaded("too many requests wait for this cell")
        return None

    def withdraw(self, exchange: Exchange) -> None:
        """The exchange waits no longer, if it did."""
        self._waiting.remove(exchange)

    def may_resend(self) -> bool:
        """Take one resend out of this second's budget, if any is left.

        A tenth of the last second's answers: so a cell that comes back meets hardly more than its
        usual load.
        """
        if self._resends_left < 1:
            return False
        self._resends_left -= 1
        self.resends += 1
        return True

    def may_remember(self) -> bool:
        """Whether another answer's head is worth keeping; their dates change every second."""
        self.vain_memories += 1
        return self.vain_memories <= VAIN_MEMORIES_MAX

    def sweep(self, now_s: float) -> None:
        """Let go of connections idle for too long and of requests that waited too long."""
        if now_s - self._budgeted_s >= 1:
            answers = sum(self.answers)
            self._resends_left = max(RESENDS_PER_S_MIN, (answers - self._answers_before) // 10)
            self._answers_before, self._budgeted_s = answers, now_s
            self.vain_memories = 0
            if self.breaker.tick(answers, now_s, random.random()):
                self._log_opened()
        wait_s = self._settings.cell_wait_ms_max / 1000
        answers = sum(self.answers)
        if answers != self._answers_swept:
            self._answers_swept, self._answered_s = answers, now_s
        for exchange in self._waiting.take_late(now_s - wait_s):
            self._shed(exchange, "no connection to this cell came free in time")
            if now_s - self._answered_s > wait_s and not self._is_all_answered():
                # One that answers others has more to do than it can, but has not failed.
                self.failed()
        if self._closed and not self._waiting.count:
            self.close()
        for connection in tuple(self._connections):
            self._sweep_connection(connection, now_s)

    def _is_all_answered(self) -> bool:
        """What the cell has is answered, and only waits for those who read the answers."""
        return self.in_flight > 0 and not any(each.owes() for each in self._connections)

    def _sweep_connection(self, connection: CellConnection, now_s: float) -> None:
        is_idle = connection.is_idle()
        if not is_idle and not connection.is_orphaned():
            return
        limit_ms = self._settings.cell_idle_ms_max if is_idle else ORPHANED_MS_MAX
        if not connection.since_s:
            connection.since_s = now_s
        elif now_s - connection.since_s > limit_ms / 1000:
            self.not_idle(connection)
            connection.close()

    def close(self) -> None:
        """The cell is gone from the table: serve what is in flight or waits, keep nothing."""
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def abort(self) -> None:
        """Break off everything; for the end of the process."""
        for task in self._opening:
            task.cancel()
        for connection in tuple(self._connections):
            connection.close()

    # -- how the cell does

    def failed(self) -> None:
        """A connection was not opened, an answer lost or late, or a request waited in vain."""
        if self.breaker.failed(monotonic(), random.random()):
            self._log_opened()

    def answered(self) -> None:
        """Called of answers while there is doubt whether there are any."""
        was_closed = self.breaker.is_closed
        self.breaker.answered()
        if not was_closed:
            log.info("breaker closed", extra={"cell": self.cell})

    def _log_opened(self) -> None:
        fields = {"cell": self.cell, "in_flight": self.in_flight, "waiting": self.waiting}
        log.warning("breaker opened", extra=fields)

    # -- what connections report

    def connected(self, connection: CellConnection) -> None:
        if not connection.settle():
            return
        self._connections.add(connection)
        if not self._reachable:
            self._reachable = True
            log.info("cell reachable again", extra={"cell": self.cell})
        self.release(connection)

    def release(self, connection: CellConnection) -> None:
        """The connection is free: for whose turn it is, else for later."""
        waiting = self._waiting
        # It is one of those left, but not yet among the idle ones.
        exchange = waiting.take(self._left() + 1) if waiting.count else None
        if exchange is not None:
            connection.send(exchange)
        elif self._closed and not waiting.count:
            connection.close()
        else:
            connection.since_s = 0.0
            self._idle.append(connection)

    def not_idle(self, connection: CellConnection) -> None:
        """Nobody may take the connection any more."""
        if connection in self._idle:
            self._idle.remove(connection)

    def disconnected(self, connection: CellConnection) -> None:
        self._connections.discard(connection)
        self.not_idle(connection)
        if self._idle and self._waiting.count:
            # There is one more left now, which may be enough for a tenant that has its share.
            idle = self._idle.pop()
            if not idle.is_closing():
                self.release(idle)
        # A waiter that found every connection taken may open one in its place.
        self._open_for_waiters()

    # -- opening

    def _open_for_waiters(self) -> None:
        while (
            len(self._opening) < self._waiting.count
            and len(self._connections) + len(self._opening) < self._settings.cell_connections_max
        ):
            task = asyncio.get_running_loop().create_task(
                self._open(), name=f"connect to {self.cell}"
            )
            self._opening.add(task)
            task.add_done_callback(self._opened)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._settings.cell_connect_ms_max / 1000) as patience:

            def protocol() -> CellConnection:
                return CellConnection(self, patience)

            if self._socket is not None:
                # Not there, or left behind: the cell may be on another machine by now.
                with contextlib.suppress(OSError):
                    await loop.create_unix_connection(protocol, os.fspath(self._socket))
                    return
            await loop.create_connection(protocol, self.address.host, self.address.port)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._bear_failure(error)
        # Also after a success: a request that came while this task was about to end counted on it,
        # but the connection had gone to another one already.
        self._open_for_waiters()

    def _bear_failure(self, error: BaseException) -> None:
        if self._reachable:
            self._reachable = False
            log.warning(
                "cell unreachable", extra={"cell": self.cell, "reason": str(error) or repr(error)}
            )
        # One attempt was made for each waiter; the next in turn bears the failure, unless another
        # connection came free and served it meanwhile. Whatever its tenant has: attempts that
        # nobody bears would be repeated for as long as anybody waits.
        if self._waiting.count > len(self._opening):
            exchange = self._waiting.take(self._settings.cell_connections_max)
            if exchange is not None:
                self.forwarder.lost(exchange, Loss.CONNECT)

    def _shed(self, exchange: Exchange, message: str) -> None:
        self.shed += 1
        self.forwarder.refuse(exchange, CellOverloaded(message))
