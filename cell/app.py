"""The cell process: what it is made of, how it starts, how it ends.

Start: take the ports, answer /healthz with the reason why not yet, wait for Postgres and its
schema, become the writer, serve tenants. End: stop accepting, finish what is in flight, drain the
sequencer, close connections. Being fenced by a later sequencer ends the process at once.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import uvicorn

from cell import schema
from cell.api import TenantApi
from cell.calls import CellParts
from cell.durable_queue import DurableQueue
from cell.errors import SchemaMismatch, SettingsInvalid, WriterFenced
from cell.event_views import render_webhook
from cell.head_watch import HeadWatch
from cell.ledger.model import TenantId
from cell.metrics import CellMetrics, RequestMetrics
from cell.newcomers import Newcomers
from cell.operator_api import OperatorApi
from cell.projector import Projector
from cell.provision import Provision
from cell.reads import Reader
from cell.resources import webhook_endpoints
from cell.restore_watch import RestoreWatch
from cell.routes import FIRST_ANSWERS, ROUTES
from cell.sequencer import Sequencer
from cell.sequencer_limits import SequencerLimits
from cell.settings import Address, Settings
from cell.settlement_worker import SettlementWorker
from cell.signature import Verifier
from cell.single_write import SingleWriteProtocol
from cell.store import Store
from cell.tenants import Directory
from cell.webhook_delivery import Deliverer
from cell.webhook_sending import WebhookPolicy, WebhookSender
from cell.wire import KEEP_ALIVE_CELL_S

BATCH_INTERVAL_S: Final = 0.004
"""Batches of several commands start at most so far apart: at 1,200 writes/s five share a batch,
where two would cost the cell and its Postgres more than the reads beside them."""

DRAIN_S_MAX: Final = 10
"""How long requests in flight may take to finish after SIGTERM."""

STOP_S_MAX: Final = 15.0
"""How long the sequencer may take to settle what is queued."""

RETRY_PAUSE_S: Final = 0.25
"""Between two looks at a Postgres that is not ready yet."""

HEADS_SETTLE_S: Final = 0.5
"""After a change of heads, before those look who work through all tenants."""
BACKLOG: Final = 1024
CONNECTIONS_MAX: Final = 2048
"""Connections open, and requests in flight, on one listener; more are answered 503."""

log = logging.getLogger("cell.app")


class Cell:
    """The parts of one cell, connected to each other."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.name
        self.operator_token = settings.operator_token
        self._waits_for: str | None = "starting"
        self._looking: asyncio.TimerHandle | None = None
        self.reader = Reader(
            settings.reader_dsn, pool_min=settings.pool_min, pool_max=settings.pool_max
        )
        self.directory = Directory(self.reader)
        self.provision = Provision(settings.writer_dsn)
        self.projector = Projector(
            settings.writer_dsn, lambda tenant_ids: self.deliverer.on_projected(tenant_ids)
        )
        self.restore_watch = RestoreWatch(settings.writer_dsn, settings.incarnation_file)
        self.sequencer = Sequencer(
            Store(settings.writer_dsn, examine=self.restore_watch.open),
            _limits(settings),
            on_applied=self.projector.feed,
        )
        self.newcomers = Newcomers(self.reader, self.sequencer.memory)
        self.sender = WebhookSender(_webhook_policy(settings), render_webhook)
        self.deliverer = Deliverer(settings.writer_dsn, self.reader, self.sequencer, self.sender)
        self.settlement_worker = SettlementWorker(settings.writer_dsn, self.sequencer)
        self.queue = DurableQueue(
            settings.writer_dsn,
            self.sequencer,
            batch_size=settings.sequencer_async_batch_size,
            linger_s=settings.sequencer_async_linger_ms / 1000,
        )
        self.head_watch = HeadWatch(settings.writer_dsn, self.look_at, self.restore_watch.open)
        requests = RequestMetrics()
        self.metrics = CellMetrics(requests, self.sequencer, self.queue)
        parts = CellParts(
            sequencer=self.sequencer,
            reader=self.reader,
            directory=self.directory,
            queue=self.queue,
            projector=self.projector,
            deliverer=self.deliverer,
            settlement_worker=self.settlement_worker,
            first_answers={
                **FIRST_ANSWERS,
                **webhook_endpoints.first_answers(settings.webhook_secret),
            },
        )
        key = settings.router_key
        self.tenant_api = TenantApi(
            parts,
            ROUTES,
            requests,
            Verifier(key) if key else None,
            connection=lambda: self.head_watch.connection,
        )
        self.operator_api = OperatorApi(self).application()

    @property
    def quarantined(self) -> int:
        """Tenants that nobody serves since the database was restored from a backup."""
        return self.restore_watch.quarantined

    @property
    def unready(self) -> str | None:
        """Why the cell cannot serve; None where it can."""
        if self._waits_for is not None:
            return self._waits_for
        status = self.sequencer.status
        if not status.connected:
            return f"the sequencer has no connection to Postgres: {status.last_error}"
        if self.head_watch.deaf_because is not None:
            return f"changes of tenants' heads are not heard: {self.head_watch.deaf_because}"
        return None

    async def open(self) -> None:
        """Wait for Postgres and the schema, then become the writer and connect.

        Raises SchemaMismatch where the schema is newer than this code.
        """
        await self.provision.open()
        while True:
            try:
                await self._prepare_schema()
                await self.sequencer.open()
                break
            except psycopg.OperationalError as exc:
                self._wait_because(f"Postgres does not answer: {exc}")
            except SchemaMismatch as exc:
                if await self._is_schema_newer():
                    raise
                self._wait_because(str(exc))
            await asyncio.sleep(RETRY_PAUSE_S)
        await self.reader.open()
        self._waits_for = None
        log.info("ready", extra={"writer_epoch": self.sequencer.status.writer_epoch})

    def look_at(self, tenant_id: TenantId | None) -> None:
        """A tenant's head has changed (None: perhaps any): forget it, and look what is due."""
        self.sequencer.memory.forget(tenant_id)
        if tenant_id is None:
            self.directory.forget(None)
        else:
            self.directory.look_at(tenant_id)
        if self._looking is None:
            # Both connect anew: not within the pause of whoever moves.
            loop = asyncio.get_running_loop()
            self._looking = loop.call_later(HEADS_SETTLE_S, self._look_for_work)
        if tenant_id is not None:
            self.newcomers.look_at(tenant_id)
            self.projector.look_at(tenant_id)
            self.queue.wake(tenant_id)

    def _look_for_work(self) -> None:
        self._looking = None
        self.deliverer.look_again()
        self.settlement_worker.wake()

    def stop(self) -> None:
        """Say that no new requests should come."""
        self._waits_for = "stopping"

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await self.sender.close()
        await self.reader.close()
        await self.provision.close()

    async def _prepare_schema(self) -> None:
        if self.settings.owner_dsn is not None:
            await schema.migrate(self.settings.owner_dsn)

    async def _is_schema_newer(self) -> bool:
        try:
            found = await schema.schema_version(self.settings.writer_dsn)
        except psycopg.OperationalError:
            return False
        return found is not None and found > schema.SCHEMA_VERSION

    def _wait_because(self, reason: str) -> None:
        if self._waits_for != reason:
            log.warning("not ready", extra={"reason": reason})
        self._waits_for = reason


def _limits(settings: Settings) -> SequencerLimits:
    return SequencerLimits(
        batch_size=settings.sequencer_batch_size,
        linger_s=settings.sequencer_linger_ms / 1000,
        interval_s=BATCH_INTERVAL_S,
        queue_commands_max=settings.sequencer_queue_commands_max,
        queue_commands_per_tenant_max=settings.sequencer_queue_commands_per_tenant_max,
        cache_accounts=settings.sequencer_cache_accounts,
    )


def _webhook_policy(settings: Settings) -> WebhookPolicy:
    return WebhookPolicy(
        secret=settings.webhook_secret,
        private_targets=settings.webhook_private_targets,
        attempts_max=settings.webhook_attempts_max,
        retry_s=settings.webhook_retry_ms / 1000,
    )


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises SettingsInvalid where a port is taken, SchemaMismatch where the schema is newer than this
    code, WriterFenced when another sequencer took over.
    """
    tenants = [_bind(settings.listen, "CLOISTER_CELL_LISTEN")]
    if settings.socket is not None:
        # Whoever has the address above is the cell of this name: the path is ours now.
        tenants.append(_bind_path(settings.socket, "CLOISTER_CELL_SOCKET"))
    operators = _bind(settings.operator_listen, "CLOISTER_CELL_OPERATOR_LISTEN")
    cell = Cell(settings)
    operator_server = _server(cell.operator_api)
    operating = asyncio.create_task(
        operator_server.serve(sockets=[operators]), name="operator listener"
    )
    with _stop_event() as stop:
        try:
            if await _finishes_before(stop, cell.open()):
                await _serve_tenants(cell, tenants, stop)
        finally:
            await cell.close()
            operator_server.should_exit = True
            await operating
            for listener in tenants:
                listener.close()


async def _serve_tenants(cell: Cell, listeners: list[socket.socket], stop: asyncio.Event) -> None:
    server = _server(cell.tenant_api)
    serving = asyncio.create_task(server.serve(sockets=listeners), name="tenant listener")
    sequencing = asyncio.create_task(cell.sequencer.run(), name="sequencer")
    followers = [
        asyncio.create_task(cell.head_watch.run(), name="watch heads"),
        asyncio.create_task(cell.restore_watch.run(), name="watch for restores"),
        asyncio.create_task(cell.newcomers.run(), name="newcomers"),
        asyncio.create_task(cell.projector.run(), name="projector"),
        asyncio.create_task(cell.deliverer.run(), name="webhooks"),
        asyncio.create_task(cell.settlement_worker.run(), name="settlement worker"),
        asyncio.create_task(cell.queue.drain(), name="drain the durable queue"),
    ]
    stopping = asyncio.create_task(stop.wait(), name="wait for a signal")
    try:
        await asyncio.wait((serving, sequencing, stopping), return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        cell.stop()
        # Requests in flight first: the sequencer must still be there to settle them. It cannot
        # while Postgres is away; then they are told at once.
        if not cell.sequencer.status.connected:
            cell.sequencer.stop()
        server.should_exit = True
        await serving
    finally:
        stopping.cancel()
        for follower in followers:
            follower.cancel()
        cell.sequencer.stop()
        async with asyncio.timeout(STOP_S_MAX):
            await _end(sequencing, stop)
            # What they have in flight is settled by the sequencer, the rest by the next process.
            await asyncio.gather(*followers, return_exceptions=True)


async def _end(sequencing: "asyncio.Task[None]", stop: asyncio.Event) -> None:
    try:
        await sequencing
    except WriterFenced:
        # After the signal nobody needs to know whether it is fenced or cannot tell.
        if not stop.is_set():
            raise


async def _finishes_before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """True once the work is done; False where the signal came first and the work was cancelled."""
    working = asyncio.create_task(work, name="start")
    stopping = asyncio.create_task(stop.wait(), name="wait for a signal")
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        working.result()
        return True
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working
    return False


@contextlib.contextmanager
def _stop_event() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not uvicorn's: it raises the signal again at the end, and the exit code would be -15."""
        yield


def _server(application: Any) -> _Server:
    return _Server(
        uvicorn.Config(
            application,
            interface="asgi3",
            http=SingleWriteProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_CELL_S,
            timeout_graceful_shutdown=DRAIN_S_MAX,
        )
    )


def _bind(address: Address, variable: str) -> socket.socket:
    """A socket with the address, not listening yet; raises SettingsInvalid."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as exc:
        bound.close()
        raise SettingsInvalid(
            f"{variable}: cannot listen on {address}: {exc.strerror or exc}"
        ) from exc
    return bound


def _bind_path(path: Path, variable: str) -> socket.socket:
    """A Unix socket at the path, for our user alone, not listening yet; raises SettingsInvalid."""
    bound = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            path.unlink()
        # Nobody may connect to it between its creation and a change of its mode.
        mask = os.umask(0o177)
        try:
            bound.bind(os.fspath(path))
        finally:
            os.umask(mask)
    except OSError as exc:
        bound.close()
        raise SettingsInvalid(
            f"{variable}: cannot listen on {path}: {exc.strerror or exc}"
        ) from exc
    return bound
