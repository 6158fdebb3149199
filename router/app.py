"""The router process: what it is made of, and how it starts and ends.

Ending is a drain: stop accepting, answer what is in flight and say that each answer is the last,
close idle connections a moment later, and cut what is left when the time is up.
"""

import asyncio
import logging
import os
import resource
import socket
import time
from typing import TYPE_CHECKING, Final

from control_plane.routing import CellName
from router.cell_pool import CellPool
from router.certificate import Certificate
from router.client_connection import ClientConnection
from router.client_edge import ClientEdge
from router.errors import ListenFailed, SettingsError
from router.forward import RequestForwarder
from router.operator_api import OperatorServer
from router.routing_table import Routes
from router.settings import PREFIX, Address, Settings
from router.table_follower import TableFollower

if TYPE_CHECKING:
    from router.spans import Spans

log = logging.getLogger(__name__)

SWEEP_S: Final = 0.1
"""How finely deadlines are kept."""
BACKLOG: Final = 1024
TLS_SHUTDOWN_S: Final = 1.0
"""How long a client may take to agree to the end of its TLS session."""


class Router:
    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError if the certificate cannot be used, or the extra is missing."""
        self.settings = settings
        self.serving_since = time.time()
        """What was before, it does not know."""
        self.routes = Routes(
            settings, self._open_pool, adopted=lambda: self.forwarder.hold.adopted()
        )
        self.follower = TableFollower(settings, self.routes)
        self.forwarder = RequestForwarder(settings, self.routes.route_of, self.follower.ask)
        self.spans = _open_spans(settings.otlp_url)
        self.edge = ClientEdge(settings, self.routes, self.forwarder, self.spans)
        self.certificate: Certificate | None = None
        if settings.tls_certificate is not None and settings.tls_key is not None:
            self.certificate = Certificate(settings.tls_certificate, settings.tls_key)

    def _open_pool(self, cell: CellName, address: Address) -> CellPool:
        return CellPool(cell, address, self.settings, self.forwarder)

    @property
    def unready(self) -> str | None:
        """Why no traffic should be sent here; None if it may."""
        if self.edge.draining:
            return "draining"
        if self.routes.version is None:
            return "no routing table was ever loaded"
        return None

    def listen(self) -> None:
        """Take both addresses; from here on clients can connect, though nobody answers yet.

        Raises ListenFailed.
        """
        self._operator_socket = _listen(self.settings.operator_listen)
        self._socket = _listen(self.settings.listen, shared=self.settings.shares_port)

    @property
    def address(self) -> Address:
        """Where clients are served, with the port the system chose if the settings say 0."""
        return Address(*self._socket.getsockname()[:2])

    @property
    def operator_address(self) -> Address:
        return Address(*self._operator_socket.getsockname()[:2])

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until told to stop, then drain. Requires `listen` before."""
        self.follower.start_from_disk()
        operator = OperatorServer(self)
        server = await self._open_server()
        log.info("listening", extra={"address": str(self.address)})
        operator_task = asyncio.create_task(
            operator.serve([self._operator_socket]), name="serve operators"
        )
        tasks = [
            asyncio.create_task(self.follower.run(), name="follow the routing table"),
            asyncio.create_task(self._sweep(), name="keep deadlines"),
        ]
        try:
            await _until(stop, [operator_task, *tasks])
            server.close()
            await self._drain()
        finally:
            operator.should_exit = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(operator_task, *tasks, return_exceptions=True)
            await self.follower.close()
            if self.spans is not None:
                self.spans.close()

    async def _open_server(self) -> asyncio.AbstractServer:
        secure = self.certificate
        return await asyncio.get_running_loop().create_server(
            lambda: ClientConnection(self.edge),
            sock=self._socket,
            backlog=BACKLOG,
            ssl=None if secure is None else secure.context,
            # A handshake is the beginning of a head.
            ssl_handshake_timeout=None if secure is None else self.settings.header_ms_max / 1000,
            ssl_shutdown_timeout=None if secure is None else TLS_SHUTDOWN_S,
        )

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = loop.time()
            self.edge.sweep(now_s)
            self.routes.sweep(now_s)
            self.forwarder.hold.sweep(now_s)
            self.follower.sweep()
            if self.certificate is not None:
                self.certificate.sweep(now_s)

    async def _drain(self) -> None:
        log.info("draining", extra={"connections": len(self.edge.connections)})
        self.edge.drain()
        try:
            async with asyncio.timeout(self.settings.drain_ms_max / 1000):
                await self.edge.drained.wait()
        except TimeoutError:
            log.warning("drain cut short", extra={"connections": len(self.edge.connections)})
            self.edge.abort()
        self.routes.abort()
        # One turn of the loop, in which the connections just broken off are closed.
        await asyncio.sleep(0)


def _open_spans(url: str | None) -> "Spans | None":
    """Raises SettingsError if the extra is not installed, or refuses what OTEL_ variables say."""
    if url is None:
        return None
    try:
        from router.spans import Spans

        return Spans(url)
    except ImportError as exc:
        raise SettingsError(
            f"{PREFIX}OTLP_URL needs the extra: pip install 'cloister[opentelemetry]' ({exc})"
        ) from exc
    except ValueError as exc:
        raise SettingsError(f"OpenTelemetry does not take its settings: {exc}") from exc


def _listen(address: Address, *, shared: bool = False) -> socket.socket:
    """Raises ListenFailed."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=shared)
    except OSError as exc:
        raise ListenFailed(
            f"cannot listen on {address}: {os.strerror(exc.errno) if exc.errno else exc}"
        ) from exc


async def _until(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for the event; raise what ended a task that never should."""
    stopped = asyncio.create_task(stop.wait(), name="wait for the stop")
    done, _ = await asyncio.wait((stopped, *tasks), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    for task in tasks:
        if task in done:
            task.result()
            raise RuntimeError(f"the task to {task.get_name()!r} ended by itself")


def raise_descriptor_limit() -> None:
    """As many open connections as the system allows this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
