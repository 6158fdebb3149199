"""Assembles the control plane and serves it until it is told to stop.

Order of a start: listen, answer /healthz with 503, migrate the catalog (retried until it is
there), record the cells, load the routing table, run the loops, answer /healthz with 200. Order of
a stop: end long polls, finish requests (at most DRAIN_S_MAX), cancel the loops, close connections.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from control_plane.app import ControlPlane, create_app
from control_plane.catalog import Catalog
from control_plane.cells import open_client
from control_plane.errors import CatalogUnavailable, SettingsInvalid
from control_plane.explaining import Explanations
from control_plane.fleet import Fleet
from control_plane.migrations import migrate
from control_plane.move.fail_points import FailPoints
from control_plane.move.movers import Movers
from control_plane.move.reclaim import Reclaimer
from control_plane.move.reconciliation import Reconciler
from control_plane.provisioning import Provisioning
from control_plane.reconcile import backoff_s
from control_plane.routing_feed import RoutingFeed
from control_plane.settings import Address, CellsFile, Settings
from control_plane.tokens import Tokens
from control_plane.topology_specs import Topology
from control_plane.verify.service import Verifications

CONCURRENT_REQUESTS_MAX = 512
KEEP_ALIVE_S = 75
DRAIN_S_MAX = 10
CATALOG_PAUSE_S_MAX = 2.0

log = logging.getLogger(__name__)


async def serve(settings: Settings, cells_file: CellsFile, topology: Topology) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises SettingsInvalid if the address is taken, and (in a group) CatalogTooNew.
    """
    listener = listen(settings.listen)
    async with open_control_plane(settings, cells_file, topology) as plane:
        server = Server(
            uvicorn.Config(
                create_app(plane),
                http="httptools",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=CONCURRENT_REQUESTS_MAX,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=DRAIN_S_MAX,
            )
        )
        with stopping_on_signals(server, plane):
            async with asyncio.TaskGroup() as tasks:
                loops = tasks.create_task(run_loops(plane, settings.catalog_dsn), name="loops")
                await server.serve(sockets=[listener])
                loops.cancel()


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not uvicorn's: it raises the signal again at the end, and the exit code would be -15."""
        yield


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises SettingsInvalid, naming the address."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=512)
    except OSError as exc:
        raise SettingsInvalid(
            f"CLOISTER_CONTROL_LISTEN: cannot listen on {address}: {exc.strerror}"
        ) from exc


@contextlib.asynccontextmanager
async def open_control_plane(
    settings: Settings, cells_file: CellsFile, topology: Topology
) -> AsyncIterator[ControlPlane]:
    """The parts, connected to each other; nothing runs yet."""
    async with open_client() as client, Catalog(settings.catalog_dsn) as catalog:
        fleet = Fleet(cells_file, topology, client, catalog)
        feed = RoutingFeed(catalog)
        verifications = Verifications(
            catalog, {cell.cell_name: cell.auditor_dsn for cell in cells_file.cells}
        )
        mover_dsns = {cell.cell_name: cell.mover_dsn for cell in cells_file.cells}
        yield ControlPlane(
            catalog=catalog,
            feed=feed,
            fleet=fleet,
            provisioning=Provisioning(
                catalog=catalog, cells=fleet.clients, candidates=fleet.candidates
            ),
            verifications=verifications,
            movers=Movers(
                catalog, feed, verifications, mover_dsns, FailPoints(settings.fail_points)
            ),
            reconciler=Reconciler(catalog, verifications, mover_dsns),
            reclaimer=Reclaimer(catalog, feed, verifications, mover_dsns),
            explanations=Explanations(
                catalog, client, cells_file.router_operator_address, settings.router_token
            ),
            tokens=Tokens(operator=settings.operator_token, router=settings.router_token),
        )


@contextlib.contextmanager
def stopping_on_signals(server: Server, plane: ControlPlane) -> Iterator[None]:
    """Lets SIGTERM and SIGINT end the server, and every long poll at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        log.info("stopping")
        server.should_exit = True
        plane.feed.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def run_loops(plane: ControlPlane, catalog_dsn: str) -> None:
    """Prepares the catalog, then reconciles until cancelled. Raises CatalogTooNew."""
    await prepare_catalog(plane, catalog_dsn)
    plane.unready = None
    log.info("ready", extra={"routing_version": plane.feed.version})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(plane.feed.watch(), name="watch routing version")
        tasks.create_task(plane.fleet.run(), name="reconcile")
        tasks.create_task(plane.movers.run(), name="movers")
        tasks.create_task(plane.reconciler.run(), name="reconcile tenants")


async def prepare_catalog(plane: ControlPlane, catalog_dsn: str) -> None:
    """Migrates, records the cells and loads the routing table; repeats it until it works."""
    failures = 0
    while True:
        try:
            await migrate(catalog_dsn)
            await plane.fleet.record_cells()
            await plane.feed.refresh()
            return
        except CatalogUnavailable as exc:
            failures += 1
            if plane.unready != str(exc):
                log.warning("the catalog is not ready", extra={"reason": str(exc)})
            plane.unready = str(exc)
        await asyncio.sleep(min(CATALOG_PAUSE_S_MAX, backoff_s(failures)))
