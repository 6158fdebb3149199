"""The children of a platform: what each is run with, and how it is asked whether it works.

Every process gets the variables of its own settings and no other's, so that a router never holds
the operator token and a cell knows of no other cell.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx
import psycopg
from psycopg.conninfo import make_conninfo

from cell.signature import key_of_cell
from infra.local.plan import CATALOG_DATABASE, CATALOG_ROLE, CELL_DATABASE, CellPlan, Plan
from infra.local.ports import HOST
from infra.local.postgres import (
    FAST_STOP_S_MAX,
    IMMEDIATE_STOP_S_MAX,
    POLL_S,
    START_S_MAX,
    Postgres,
    is_unused,
)
from infra.local.processes import tethered
from infra.local.supervisor import ChildSpec

OWN_PREFIX: Final = "CLOISTER_"
LIBPQ_PREFIX: Final = "PG"
CONNECT_S_MAX: Final = 2.0
HEALTH_S_MAX: Final = 2.0
CELLS_FILE: Final = "cells.json"
"""Below secrets/: the cells as the control plane reaches them."""


def inherited(own_prefix: str | None = None) -> dict[str, str]:
    """Our environment for a child: without the variables of libpq, which would change
    connections behind our back, and of the platform, but for those with the child's own prefix.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((OWN_PREFIX, LIBPQ_PREFIX))
        or (own_prefix is not None and name.startswith(own_prefix))
    }


def postgres_child(postgres: Postgres) -> ChildSpec:
    async def prepare() -> None:
        started = time.monotonic()
        # No event tells that another process is gone.
        while not is_unused(postgres.data, time.monotonic() - started):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        postgres.prepare()

    async def is_healthy() -> bool:
        try:
            async with (
                asyncio.timeout(CONNECT_S_MAX),
                await psycopg.AsyncConnection.connect(postgres.superuser_dsn()),
            ):
                return True
        except (psycopg.OperationalError, TimeoutError):
            return False

    return ChildSpec(
        name=f"{postgres.name} postgres",
        command=postgres.command,
        environment=inherited(),
        directory=postgres.directory,
        log=postgres.log,
        prepare=prepare,
        is_healthy=is_healthy,
        stop=(
            (signal.SIGINT, FAST_STOP_S_MAX),
            (signal.SIGQUIT, IMMEDIATE_STOP_S_MAX),
            (signal.SIGKILL, IMMEDIATE_STOP_S_MAX),
        ),
        start_s_max=START_S_MAX,
    )


def control_plane_child(plan: Plan, client: httpx.AsyncClient) -> ChildSpec:
    environment = {
        "CLOISTER_CONTROL_LISTEN": f"{HOST}:{plan.control_port}",
        "CLOISTER_CONTROL_CATALOG_DSN": plan.catalog.dsn(CATALOG_ROLE, CATALOG_DATABASE),
        "CLOISTER_CONTROL_OPERATOR_TOKEN": plan.tokens.operator,
        "CLOISTER_CONTROL_ROUTER_TOKEN": plan.tokens.router,
        "CLOISTER_CONTROL_CELLS_FILE": str(plan.data.secrets / CELLS_FILE),
    }
    return python_child(
        plan,
        name="control plane",
        package="control_plane",
        log=plan.data.log("control-plane"),
        environment=inherited("CLOISTER_CONTROL_") | environment,
        health_url=f"{plan.control_url}/healthz",
        client=client,
    )


def cell_child(plan: Plan, cell: CellPlan, client: httpx.AsyncClient) -> ChildSpec:
    environment = {
        **cell.spec.environment(),
        "CLOISTER_CELL_NAME": cell.name,
        "CLOISTER_CELL_LISTEN": cell.api_address,
        "CLOISTER_CELL_SOCKET": "" if cell.socket is None else str(cell.socket),
        "CLOISTER_CELL_OPERATOR_LISTEN": cell.operator_address,
        "CLOISTER_CELL_OPERATOR_TOKEN": cell.operator_token,
        "CLOISTER_CELL_WRITER_DSN": cell.dsn("cloister_writer"),
        "CLOISTER_CELL_READER_DSN": reader_dsn(cell),
        "CLOISTER_CELL_WEBHOOK_SECRET": plan.tokens.webhooks,
        "CLOISTER_CELL_INCARNATION_FILE": str(plan.data.incarnations / f"{cell.name}.json"),
        "CLOISTER_CELL_ROUTER_KEY": key_of_cell(plan.tokens.signing, cell.name),
    }
    return python_child(
        plan,
        name=cell.name,
        package="cell",
        log=plan.data.log(f"{cell.name}.cell"),
        environment=inherited("CLOISTER_CELL_") | environment,
        health_url=f"http://{cell.operator_address}/healthz",
        client=client,
    )


def reader_dsn(cell: CellPlan) -> str:
    """The readers' way to the database: straight, or through the cell's PgBouncer."""
    pgbouncer = cell.spec.pool.pgbouncer
    if pgbouncer is None:
        return cell.dsn("cloister_reader")
    host, _, port = pgbouncer.rpartition(":")
    return make_conninfo(
        host=host.strip("[]"),
        port=port,
        user="cloister_reader",
        password=cell.postgres.passwords["cloister_reader"],
        dbname=CELL_DATABASE,
    )


def router_child(plan: Plan, client: httpx.AsyncClient) -> ChildSpec:
    operator_listen = f"{HOST}:{plan.router_operator_port}"
    environment = {
        "CLOISTER_ROUTER_LISTEN": f"{HOST}:{plan.router_port}",
        "CLOISTER_ROUTER_OPERATOR_LISTEN": operator_listen,
        "CLOISTER_ROUTER_CELL_SOCKETS": str(plan.data.sockets),
        "CLOISTER_ROUTER_CONTROL_URL": plan.control_url,
        "CLOISTER_ROUTER_TOKEN": plan.tokens.router,
        "CLOISTER_ROUTER_SIGNING_SECRET": plan.tokens.signing,
        "CLOISTER_ROUTER_TABLE_FILE": str(plan.data.router / "routing-table.json"),
    }
    return python_child(
        plan,
        name="router",
        package="router",
        log=plan.data.log("router"),
        environment=inherited("CLOISTER_ROUTER_") | environment,
        health_url=f"http://{operator_listen}/healthz",
        client=client,
    )


def python_child(
    plan: Plan,
    *,
    name: str,
    package: str,
    log: Path,
    environment: Mapping[str, str],
    health_url: str,
    client: httpx.AsyncClient,
) -> ChildSpec:
    """A process of ours: `python -m package`, killed at once should the supervisor be killed.

    They hold nothing that a sudden end could damage, and a supervisor that starts again at once
    must find their ports free.
    """

    async def is_healthy() -> bool:
        try:
            answer = await client.get(health_url, timeout=HEALTH_S_MAX)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    # -P: the working directory must not be searched for packages.
    command = [sys.executable, "-P", "-m", package]
    return ChildSpec(
        name=name,
        command=lambda: tethered(signal.SIGKILL, command),
        environment=environment,
        directory=plan.data.root,
        log=log,
        is_healthy=is_healthy,
    )
