"""Fixtures of the control plane's tests: databases, small cells, and a whole control plane.

A small cell is a real HTTP server that speaks the operator API of a cell: what it was told can be
looked at, and it can be told to fail. Tests of the whole path use the real `python -m cell`.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from psycopg import sql
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cell import schema
from control_plane.app import ControlPlane
from control_plane.catalog import Catalog
from control_plane.cells import CellClient, open_client
from control_plane.migrations import migrate
from control_plane.routing import CellName
from control_plane.server import open_control_plane
from control_plane.settings import Address, CellEndpoint, CellsFile, Settings
from control_plane.topology import Topology, parse_topology
from infra.local.postgres import Postgres


def create_database(postgres: Postgres, name: str, owner: str) -> None:
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} OWNER {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(owner)))


def empty_database(dsn: str) -> str:
    """Takes everything out of a database of ours; far cheaper than a new one for each test."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return dsn


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


@pytest.fixture
async def catalog(catalog_dsn: str) -> AsyncIterator[Catalog]:
    """A migrated catalog with the cells cell-a and cell-b, both open."""
    await migrate(catalog_dsn)
    async with Catalog(catalog_dsn) as catalog:
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
    hang: asyncio.Event | None = None
    """Every request waits for it, if it is there."""


def application(cell: SmallCell) -> Starlette:
    async def healthz(request: Request) -> Response:
        if cell.unhealthy:
            return JSONResponse({"status": "unhealthy", "reason": cell.unhealthy}, 503)
        return JSONResponse({"status": "ok", "cell": cell.name})

    async def status(request: Request) -> Response:
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
        organization_id, body = request.path_params["id"], await request.json()
        head = {
            "organization_id": organization_id,
            "state": "owned",
            "epoch": body["epoch"],
            "last_seq": 0,
        }
        return JSONResponse(cell.heads.setdefault(organization_id, head))

    async def get_tenant(request: Request) -> Response:
        head = cell.heads.get(request.path_params["id"])
        return JSONResponse(head) if head else JSONResponse({"errors": {}}, 404)

    async def put_key(request: Request) -> Response:
        key = (request.path_params["id"], request.path_params["key_id"])
        cell.keys[key] = (await request.json())["sha256"]
        return JSONResponse({})

    async def delete_key(request: Request) -> Response:
        cell.revoked.add((request.path_params["id"], request.path_params["key_id"]))
        return JSONResponse({})

    def guarded(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guard(request: Request) -> Response:
            cell.requests.append(f"{request.method} {request.url.path}")
            if cell.hang is not None:
                await cell.hang.wait()
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


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def run_small_cell(name: str) -> AsyncIterator[SmallCell]:
    """Serves on a free port for as long as the block lasts."""
    cell = SmallCell(name=name)
    listener = socket.create_server(("127.0.0.1", 0))
    cell.address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        application(cell), lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield cell
    finally:
        if cell.hang is not None:
            cell.hang.set()
        server.should_exit = True
        await serving
        listener.close()


@pytest.fixture
async def small_cell() -> AsyncIterator[SmallCell]:
    async with run_small_cell("cell-a") as cell:
        yield cell


@pytest.fixture
async def other_cell() -> AsyncIterator[SmallCell]:
    async with run_small_cell("cell-b") as cell:
        yield cell


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


@pytest.fixture
def settings(catalog_dsn: str) -> Settings:
    return Settings(
        listen=Address(host="127.0.0.1", port=0),
        catalog_dsn=catalog_dsn,
        operator_token=OPERATOR_TOKEN,
        router_token=ROUTER_TOKEN,
        cells_file=Path("/unused"),
    )


@pytest.fixture
async def plane(settings: Settings, cells_file: CellsFile) -> AsyncIterator[ControlPlane]:
    """A control plane over a real catalog and two small cells, observed once; no loop runs."""
    topology: Topology = parse_topology(TOPOLOGY, "cells.yaml")
    async with open_control_plane(settings, cells_file, topology) as plane:
        await migrate(settings.catalog_dsn)
        await plane.fleet.record_cells()
        await plane.feed.refresh()
        for reconciler in plane.fleet.reconcilers.values():
            await reconciler.observe()
        plane.unready = None
        yield plane
