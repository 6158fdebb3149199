"""The router process: what it is made of, and how it starts and ends.

Ending is a drain: stop accepting, answer what is in flight and say that each answer is the last,
close idle connections a moment later, and cut what is left when the time is up.
"""

import asyncio
import logging
import resource
import signal
import socket
from typing import Final

from control_plane.routing import CellName
from router.cell_pool import CellPool
from router.client_connection import ClientConnection
from router.client_edge import ClientEdge
from router.errors import ListenFailed
from router.forward import RequestForwarder
from router.operator_api import OperatorServer
from router.routing_table import Routes
from router.settings import Address, Settings
from router.table_follower import TableFollower

log = logging.getLogger(__name__)

SWEEP_S: Final = 0.1
"""How finely deadlines are kept."""
BACKLOG: Final = 1024


class Router:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.routes = Routes(self._open_pool)
        self.follower = TableFollower(settings, self.routes)
        self.forwarder = RequestForwarder(self.routes.route_of, self.follower.refresh)
        self.edge = ClientEdge(settings, self.routes, self.forwarder)

    def _open_pool(self, cell: CellName, address: Address) -> CellPool:
        return CellPool(cell, address, self.settings, self.forwarder)

    @property
    def unready(self) -> str | None:
        """Why no traffic should be sent here; None if it may."""
        if self.edge.draining:
            return "draining"
        if self.routes.version < 0:
            return "no routing table was ever loaded"
        return None

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, stop.set)
        self.follower.start_from_disk()
        operator = OperatorServer(self)
        operator_socket = _listen(self.settings.operator_listen)
        server = await loop.create_server(
            lambda: ClientConnection(self.edge), sock=_listen(self.settings.listen), backlog=BACKLOG
        )
        tasks = [
            asyncio.create_task(self.follower.run(), name="follow the routing table"),
            asyncio.create_task(self._sweep(), name="sweep"),
            asyncio.create_task(operator.serve([operator_socket]), name="operator port"),
        ]
        log.info("listening", extra={"address": str(self.settings.listen)})
        try:
            await self._until(stop, tasks)
            server.close()
            await self._drain()
        finally:
            operator.should_exit = True
            await _end(tasks[2:], cancel=False)
            await _end(tasks[:2], cancel=True)
            await self.follower.close()

    async def _until(self, stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
        """Wait for the signal; raise what ended a task that never should."""
        stopped = asyncio.create_task(stop.wait(), name="wait for a signal")
        done, _ = await asyncio.wait((stopped, *tasks), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in done - {stopped}:
            task.result()
            raise RuntimeError(f"the task to {task.get_name()!r} ended by itself")

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = loop.time()
            self.edge.sweep(now_s)
            self.routes.sweep(now_s)
            self.follower.sweep()

    async def _drain(self) -> None:
        log.info("draining", extra={"connections": len(self.edge.connections)})
        self.edge.drain()
        try:
            async with asyncio.timeout(self.settings.drain_ms_max / 1000):
                await self.edge.drained.wait()
        except TimeoutError:
            log.warning("drain cut short", extra={"connections": len(self.edge.connections)})
            self.edge.abort()
        for pool in self.routes.pools:
            pool.close()


def _listen(address: Address) -> socket.socket:
    """Raises ListenFailed."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as exc:
        raise ListenFailed(f"cannot listen on {address}: {exc.strerror or exc}") from exc


async def _end(tasks: list[asyncio.Task[None]], *, cancel: bool) -> None:
    for task in tasks:
        if cancel:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def raise_descriptor_limit() -> None:
    """As many open connections as the system allows this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
