"""Fixtures of the control plane's tests: databases, small cells, and a whole control plane.

A small cell is a real HTTP server that speaks the operator API of a cell: what it was told can be
looked at, and it can be told to fail. Tests of the whole path use the real `python -m cell`.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
import uvicorn
from psycopg import sql
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cell import schema
from cell.tables import TENANT_TABLES
from control_plane import catalog as catalog_module
from control_plane import cells, fleet
from control_plane.app import ControlPlane
from control_plane.catalog import Catalog
from control_plane.cells import CellClient, open_client
from control_plane.migrations import migrate
from control_plane.move import cell_heads
from control_plane.routing import CellName
from control_plane.server import open_control_plane
from control_plane.settings import Address, CellEndpoint, CellsFile, Settings
from control_plane.topology import Topology, parse_topology
from infra.local.postgres import Postgres

# How the modules beside these tests, and beside the cell's, are found.
sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "cell"))

from serving import Served


def create_database(postgres: Postgres, name: str, owner: str) -> None:
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} OWNER {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(owner)))


def empty_database(dsn: str) -> str:
    """Takes everything out of a database of ours; far cheaper than a new one for each test."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return dsn


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine stands still for longer than an operator would wait."""
    monkeypatch.setattr(cells, "REQUEST_S_MAX", 60.0)
    for module in (cells, fleet):
        monkeypatch.setattr(module, "OBSERVATION_S_MAX", 20.0)
    monkeypatch.setattr(catalog_module, "STATEMENT_MS_MAX", 60_000)
    monkeypatch.setattr(catalog_module, "LOCK_MS_MAX", 30_000)
    monkeypatch.setattr(catalog_module, "CONNECTION_WAIT_S_MAX", 60.0)
    for module in (catalog_module, cell_heads):
        monkeypatch.setattr(module, "CONNECT_S_MAX", 60)


@pytest.fixture(scope="session")
def catalog_database(postgres: Postgres) -> str:
    create_database(postgres, "control_plane_catalog", "postgres")
    return postgres.superuser_dsn("control_plane_catalog")


@pytest.fixture
def catalog_dsn(catalog_database: str) -> str:
    """An empty database for a catalog."""
    return empty_database(catalog_database)


@pytest.fixture(scope="session")
def owned_database(postgres: Postgres) -> str:
    name = "control_plane_cell"
    roles = schema.create_roles_and_database(postgres.superuser_dsn(), name, postgres.passwords)
    asyncio.run(roles)
    return postgres.dsn("cloister_owner", name)


@pytest.fixture
def empty_cell_dsn(owned_database: str) -> str:
    """A cell's database with its roles and without its schema, as the owner reaches it."""
    return empty_database(owned_database)


@pytest.fixture
async def cell_dsn(empty_cell_dsn: str) -> str:
    """A cell's database with its schema, as the owner reaches it."""
    await schema.migrate(empty_cell_dsn)
    return empty_cell_dsn


@pytest.fixture(scope="session")
def migrated_database(postgres: Postgres) -> str:
    name = "control_plane_migrated"
    create_database(postgres, name, "postgres")
    asyncio.run(migrate(postgres.superuser_dsn(name)))
    return postgres.superuser_dsn(name)


@pytest.fixture
def migrated_dsn(migrated_database: str) -> str:
    """A catalog with its tables and nothing in them."""
    with psycopg.connect(migrated_database) as connection:
        connection.execute(
            "DELETE FROM moves; DELETE FROM api_keys; DELETE FROM placements;"
            " DELETE FROM tenants; DELETE FROM cells;"
            " DELETE FROM audit; UPDATE routing_version SET version = 1"
        )
    return migrated_database


@pytest.fixture
async def catalog(migrated_dsn: str) -> AsyncIterator[Catalog]:
    """A catalog with the cells cell-a and cell-b, both open."""
    async with Catalog(migrated_dsn) as catalog:
        await catalog.ensure_cells(
            [
                {
                    "name": name,
                    "zone": "local-1",
                    "api_address": f"127.0.0.1:{port}",
                    "accepts_tenants": True,
                }
                for name, port in (("cell-a", 8101), ("cell-b", 8102))
            ]
        )
        yield catalog


@dataclass
class SmallCell:
    """What the server answers from, and what it was told."""

    name: str = "cell-a"
    token: str = "operator-token-of-the-cell"
    address: str = ""
    unhealthy: str | None = None
    commands_applied: int = 0
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    revoked: set[tuple[str, str]] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    refuse: Callable[[Request], Response | None] = lambda request: None
    """Asked first; its answer, if any, is the answer."""
    hang: threading.Event | None = None
    """Every request waits for it, if it is there."""


def application(server: "SmallServer") -> Starlette:
    async def healthz(request: Request) -> Response:
        cell = server.cell
        if cell.unhealthy:
            return JSONResponse({"status": "unhealthy", "reason": cell.unhealthy}, 503)
        return JSONResponse({"status": "ok", "cell": cell.name})

    async def status(request: Request) -> Response:
        cell = server.cell
        return JSONResponse(
            {
                "cell": cell.name,
                "schema_version": 1,
                "writer_epoch": 3,
                "tenants": len(cell.heads),
                "commands_applied": cell.commands_applied,
                "queue_depth": 5,
                "batch_ms_p99": 7.5,
                "last_error": None,
                "something_newer": True,
            }
        )

    async def put_tenant(request: Request) -> Response:
        cell = server.cell
        organization_id, body = request.path_params["id"], await request.json()
        head = {
            "organization_id": organization_id,
            "state": "owned",
            "epoch": body["epoch"],
            "last_seq": 0,
        }
        return JSONResponse(cell.heads.setdefault(organization_id, head))

    async def get_tenant(request: Request) -> Response:
        cell = server.cell
        head = cell.heads.get(request.path_params["id"])
        return JSONResponse(head) if head else JSONResponse({"errors": {}}, 404)

    async def put_key(request: Request) -> Response:
        cell = server.cell
        key = (request.path_params["id"], request.path_params["key_id"])
        cell.keys[key] = (await request.json())["sha256"]
        return JSONResponse({})

    async def delete_key(request: Request) -> Response:
        cell = server.cell
        cell.revoked.add((request.path_params["id"], request.path_params["key_id"]))
        return JSONResponse({})

    def guarded(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guard(request: Request) -> Response:
            cell = server.cell
            cell.requests.append(f"{request.method} {request.url.path}")
            if cell.hang is not None:
                await asyncio.to_thread(cell.hang.wait, 10)
            refusal = cell.refuse(request)
            if refusal is not None:
                return refusal
            open_route = request.url.path == "/healthz"
            if not open_route and request.headers.get("authorization") != f"Bearer {cell.token}":
                return JSONResponse({"errors": {"code": "unauthenticated"}}, 401)
            return await handler(request)

        return guard

    tenant = "/operator/tenants/{id}"
    return Starlette(
        routes=[
            Route("/healthz", guarded(healthz)),
            Route("/operator/status", guarded(status)),
            Route(tenant, guarded(put_tenant), methods=["PUT"]),
            Route(tenant, guarded(get_tenant), methods=["GET"]),
            Route(f"{tenant}/keys/{{key_id}}", guarded(put_key), methods=["PUT"]),
            Route(f"{tenant}/keys/{{key_id}}", guarded(delete_key), methods=["DELETE"]),
        ]
    )


class QuietServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the test run's own."""
        yield


class SmallServer:
    """Serves the operator API of one cell from a thread; each test puts a fresh cell into it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cell = self.fresh_cell()
        config = uvicorn.Config(
            application(self), lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
        self._server = QuietServer(config)
        self._thread = threading.Thread(target=self._serve, name=f"small {name}")
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def fresh_cell(self) -> SmallCell:
        self.cell = SmallCell(name=self.name, address=self.address)
        return self.cell

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()


@pytest.fixture(scope="session")
def small_servers() -> Iterator[tuple[SmallServer, SmallServer]]:
    servers = (SmallServer("cell-a"), SmallServer("cell-b"))
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def small_cell(small_servers: tuple[SmallServer, SmallServer]) -> Iterator[SmallCell]:
    cell = small_servers[0].fresh_cell()
    yield cell
    if cell.hang is not None:
        cell.hang.set()


@pytest.fixture
def other_cell(small_servers: tuple[SmallServer, SmallServer]) -> SmallCell:
    return small_servers[1].fresh_cell()


@pytest.fixture
async def http_client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_client() as client:
        yield client


@pytest.fixture
def cell_client(http_client: httpx.AsyncClient, small_cell: SmallCell) -> CellClient:
    return client_of(http_client, small_cell)


def client_of(client: httpx.AsyncClient, cell: SmallCell) -> CellClient:
    return CellClient(
        client, name=CellName(cell.name), operator_address=cell.address, token=cell.token
    )


OPERATOR_TOKEN = "operator-token-of-the-platform"
ROUTER_TOKEN = "router-token-of-the-platform"
TOPOLOGY = """\
cells:
  cell-a:
    zone: zone-1
    vacuum: {journal: {autovacuum_vacuum_threshold: 777}}
    indexes:
      - {name: region, table: ledger_accounts, expression: "(metadata->>'region')", tenant: acme}
  cell-b: {zone: zone-2}
"""


def endpoint(cell: SmallCell, owner_dsn: str, zone: str) -> CellEndpoint:
    return CellEndpoint(
        name=cell.name,
        zone=zone,
        api_address=f"127.0.0.1:{8101 if cell.name == 'cell-a' else 8102}",
        operator_address=cell.address,
        operator_token=cell.token,
        owner_dsn=owner_dsn,
        auditor_dsn="",
        mover_dsn="",
    )


@pytest.fixture
def cells_file(small_cell: SmallCell, other_cell: SmallCell, owned_database: str) -> CellsFile:
    """Two small cells, the first with a real database. The router is cell-a's listener."""
    return CellsFile(
        topology_file=None,
        cells=(
            endpoint(small_cell, owned_database, "zone-1"),
            endpoint(other_cell, "host=127.0.0.1 port=1", "zone-2"),
        ),
        router_address="127.0.0.1:8080",
        router_operator_address=small_cell.address,
    )


@dataclass(slots=True, kw_only=True)
class RunningControlPlane:
    """`python -m control_plane` as a process of its own."""

    environment: dict[str, str]
    url: str
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "control_plane"],
            env={"PATH": os.environ["PATH"], **self.environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def health(self) -> tuple[int, str]:
        """Status and reason of /healthz; 0 while nobody listens."""
        try:
            response = httpx.get(f"{self.url}/healthz", trust_env=False, verify=False)
        except httpx.TransportError as exc:
            return 0, str(exc)
        return response.status_code, response.json().get("reason", "")

    def wait_until(self, condition: Callable[[], bool], seconds_max: float = 120.0) -> None:
        deadline = time.monotonic() + seconds_max
        while not condition():
            assert self.process is not None
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "not within the deadline"
            time.sleep(0.02)

    def start_ready(self) -> None:
        self.start()
        self.wait_until(lambda: self.health()[0] == 200)

    def end(self, number: int = signal.SIGTERM, seconds_max: float = 60.0) -> tuple[int, str]:
        """Exit code and everything it wrote."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            written = self.process.communicate(timeout=seconds_max)[1]
        finally:
            self.process.kill()
        return self.process.returncode, written


@pytest.fixture
def control_process(
    tmp_path: Path, cells_file: CellsFile, catalog_dsn: str, empty_cell_dsn: str
) -> Iterator[RunningControlPlane]:
    """Configured for two small cells, the first with an empty database; not started."""
    topology = tmp_path / "cells.yaml"
    topology.write_text(TOPOLOGY)
    path = tmp_path / "cells.json"
    path.touch(0o600)
    path.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(cells_file, topology_file=str(topology)))
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = RunningControlPlane(
        url=f"http://127.0.0.1:{port}",
        environment={
            "CLOISTER_CONTROL_LISTEN": f"127.0.0.1:{port}",
            "CLOISTER_CONTROL_CATALOG_DSN": catalog_dsn,
            "CLOISTER_CONTROL_OPERATOR_TOKEN": OPERATOR_TOKEN,
            "CLOISTER_CONTROL_ROUTER_TOKEN": ROUTER_TOKEN,
            "CLOISTER_CONTROL_CELLS_FILE": str(path),
        },
    )
    yield running
    if running.process is not None:
        running.end(signal.SIGKILL)


@pytest.fixture
def settings(migrated_dsn: str) -> Settings:
    return Settings(
        listen=Address(host="127.0.0.1", port=0),
        catalog_dsn=migrated_dsn,
        operator_token=OPERATOR_TOKEN,
        router_token=ROUTER_TOKEN,
        cells_file=Path("/unused"),
    )


@pytest.fixture
async def plane(settings: Settings, cells_file: CellsFile) -> AsyncIterator[ControlPlane]:
    """A control plane over a real catalog and two small cells, observed once; no loop runs."""
    topology: Topology = parse_topology(TOPOLOGY, "cells.yaml")
    async with open_control_plane(settings, cells_file, topology) as plane:
        await plane.fleet.record_cells()
        await plane.feed.refresh()
        for reconciler in plane.fleet.reconcilers.values():
            await reconciler.observe()
        plane.unready = None
        yield plane


@pytest.fixture(scope="module")
def lasting_pair(make_cell_database: Any) -> Iterator[tuple[Any, Any]]:
    """Two databases of cells for the tests of a module; see `cell_pair`."""
    with make_cell_database() as source, make_cell_database() as target:
        yield source, target


FILLED = " UNION ALL ".join(
    f"SELECT '{name}' WHERE EXISTS (SELECT FROM {name})"
    for name in ("tenant_heads", "import_progress", *TENANT_TABLES)
)


@pytest.fixture
def cell_pair(lasting_pair: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Two databases of cells with nothing in them."""
    yield lasting_pair
    for database in lasting_pair:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
            tables = [name for (name,) in connection.execute(FILLED)]
            if tables:
                connection.execute(f"TRUNCATE {', '.join(tables)}")


@pytest.fixture
def served(
    control_process: RunningControlPlane,
    cell_pair: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Served:
    """A control plane over two real databases of cells, and the environment of its commands; not
    started."""
    monkeypatch.setenv("CLOISTER_TOKEN", OPERATOR_TOKEN)
    monkeypatch.setenv("CLOISTER_CONTROL_URL", control_process.url)
    monkeypatch.setenv("COLUMNS", "200")
    served = Served(control_process, cell_pair, tmp_path)
    asyncio.run(migrate(served.catalog_dsn))
    with psycopg.connect(served.catalog_dsn) as connection:
        connection.execute(
            "INSERT INTO cells (name, zone, api_address, accepts_tenants) VALUES"
            " ('cell-a', 'zone-1', '127.0.0.1:8101', true),"
            " ('cell-b', 'zone-1', '127.0.0.1:8102', true)"
        )
    return served
