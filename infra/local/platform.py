"""Runs a plan: starts everything in order, waits until it serves, keeps it so, stops it in order.

Order of the start: databases (all at once), control plane (which migrates the cells), cells (all at
once), router, demo tenant. The stop goes the other way round, so that no process loses what it
stands on while requests are in flight.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import httpx
import msgspec
import psycopg
from psycopg import sql

from cell.schema import SCHEMA_VERSION, create_roles_and_database, schema_version
from control_plane.wire import CreatedTenant
from infra.errors import StartFailed, StartInterrupted
from infra.local.children import (
    CELLS_FILE,
    cell_child,
    control_plane_child,
    postgres_child,
    router_child,
)
from infra.local.credentials import publish_operator_token
from infra.local.demo import DemoMaker
from infra.local.plan import CATALOG_DATABASE, CATALOG_ROLE, CELL_DATABASE, CellPlan, Plan
from infra.local.ports import HOST
from infra.local.postgres import Postgres
from infra.local.private import write_private
from infra.local.processes import log_tail
from infra.local.supervisor import Child, ChildSpec

SCHEMA_S_MAX: Final = 60.0
"""How long the control plane may take to migrate a cell; large tables take a while."""
SCHEMA_POLL_S: Final = 0.05


class CellAddresses(msgspec.Struct, frozen=True):
    name: str
    zone: str
    api: str
    operator: str


class Ready(msgspec.Struct, frozen=True):
    """A platform that serves, as `up --json` prints it. Addresses are URLs."""

    router: str
    router_operator: str
    control_plane: str
    cells: list[CellAddresses]
    data_directory: str
    pid: int
    """Of the supervisor."""
    demo: CreatedTenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Where a run tells how it goes."""

    progress: Callable[[str], None]
    """A sentence on what is being done now."""
    ready: Callable[[Ready], None]
    """Called once, when everything serves."""


async def run_platform(
    plan: Plan, stop: asyncio.Event, reports: Reports, log: logging.Logger
) -> None:
    """Run until `stop` is set; returns when everything has ended.

    Raises StartInterrupted if that was before it was ready, and StartFailed, PostgresError or what
    else a child's start raises; nothing is left running then either. The caller holds the data
    directory's lock.
    """
    # trust_env: a proxy of the environment must see neither a token nor a key.
    async with httpx.AsyncClient(trust_env=False) as client:
        platform = Platform(plan, client, reports, log)
        stopping = asyncio.create_task(stop.wait(), name="stop")
        starting = asyncio.create_task(platform.start(), name="start")
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                raise StartInterrupted("the platform was told to stop before it was ready")
            reports.ready(starting.result())
            log.info("platform ready", extra={"router": plan.router_url})
            await platform.watch(stopping)
        finally:
            for task in (starting, stopping):
                task.cancel()
                # Its failure, if any, has been raised above.
                with suppress(asyncio.CancelledError, Exception):
                    await task
            # The terminal may be gone, and rich ends the process where it cannot write.
            with suppress(Exception, SystemExit):
                reports.progress("Stopping")
            await platform.stop()
            log.info("platform stopped")


class Platform:
    """The children of one plan, in the order in which they were started."""

    def __init__(
        self, plan: Plan, client: httpx.AsyncClient, reports: Reports, log: logging.Logger
    ) -> None:
        self._plan = plan
        self._client = client
        self._reports = reports
        self._log = log
        self._stages: list[list[Child]] = []

    async def start(self) -> Ready:
        plan, client = self._plan, self._client
        for name in plan.unlisted_cells:
            self._log.warning(
                "cell not started: the topology does not name it",
                extra={"cell": name, "topology": str(plan.topology_file)},
            )
        databases = [plan.catalog, *(cell.postgres for cell in plan.cells)]
        self._reports.progress(f"Starting {len(databases)} databases ({plan.binaries.version})")
        await all_of(asyncio.to_thread(postgres.initialize) for postgres in databases)
        await self._start_stage([postgres_child(postgres) for postgres in databases])
        await all_of([prepare_catalog(plan.catalog), *(prepare_cell(cell) for cell in plan.cells)])
        self._reports.progress("Starting the control plane")
        write_private(plan.data.secrets / CELLS_FILE, render_cells_file(plan))
        publish_operator_token(plan.control_url, plan.tokens)
        await self._start_stage([control_plane_child(plan, client)])
        await all_of(wait_for_schema(plan, cell) for cell in plan.cells)
        names = ", ".join(cell.name for cell in plan.cells)
        self._reports.progress(f"Starting the cells {names}")
        await self._start_stage([cell_child(plan, cell, client) for cell in plan.cells])
        self._reports.progress("Starting the router")
        await self._start_stage([router_child(plan, client)])
        self._reports.progress("Asking the API as the demo tenant")
        return await self._describe()

    async def _start_stage(self, specs: Sequence[ChildSpec]) -> None:
        stage = [Child(spec, self._log) for spec in specs]
        # Noted before the start: a stage that is interrupted half way is stopped like any other.
        self._stages.append(stage)
        await all_of(child.start() for child in stage)

    async def _describe(self) -> Ready:
        plan = self._plan
        maker = DemoMaker(
            data=plan.data,
            client=self._client,
            control_url=plan.control_url,
            operator_token=plan.tokens.operator,
            router_url=plan.router_url,
            cells=frozenset(cell.name for cell in plan.cells),
        )
        return Ready(
            router=plan.router_url,
            router_operator=f"http://{HOST}:{plan.router_operator_port}",
            control_plane=plan.control_url,
            cells=[
                CellAddresses(
                    name=cell.name,
                    zone=cell.spec.zone,
                    api=f"http://{cell.api_address}",
                    operator=f"http://{cell.operator_address}",
                )
                for cell in plan.cells
            ],
            data_directory=str(plan.data.root),
            pid=os.getpid(),
            demo=await maker.ensure(),
        )

    async def watch(self, stopping: asyncio.Task[bool]) -> None:
        """Return when `stopping` is done; raises should a child's keeper fail, which is a bug."""
        keepers = {child.keeper for stage in self._stages for child in stage}
        done, _ = await asyncio.wait({stopping, *keepers}, return_when=asyncio.FIRST_COMPLETED)
        for keeper in done - {stopping}:
            keeper.result()

    async def stop(self) -> None:
        for stage in reversed(self._stages):
            await asyncio.gather(*(child.stop() for child in stage))


async def all_of(work: Iterable[Awaitable[object]]) -> None:
    """Do it all at once; the first failure cancels the rest and is raised as it is."""

    async def one(awaitable: Awaitable[object]) -> None:
        await awaitable

    try:
        async with asyncio.TaskGroup() as group:
            for awaitable in work:
                group.create_task(one(awaitable))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def prepare_catalog(catalog: Postgres) -> None:
    """Create the catalog's role and database where they do not exist; repeatable."""
    role, database = sql.Identifier(CATALOG_ROLE), sql.Identifier(CATALOG_DATABASE)
    password = sql.Literal(catalog.passwords[CATALOG_ROLE])
    async with await psycopg.AsyncConnection.connect(
        catalog.superuser_dsn(), autocommit=True
    ) as connection:
        known = await connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (CATALOG_ROLE,))
        verb = sql.SQL("ALTER" if known.rowcount else "CREATE")
        await connection.execute(
            sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, role, password)
        )
        known = await connection.execute(
            "SELECT FROM pg_database WHERE datname = %s", (CATALOG_DATABASE,)
        )
        if not known.rowcount:
            await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
        await connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))


async def prepare_cell(cell: CellPlan) -> None:
    await create_roles_and_database(
        cell.postgres.superuser_dsn(), CELL_DATABASE, cell.postgres.passwords
    )


def render_cells_file(plan: Plan) -> str:
    """The cells as the control plane reaches them, with every secret it needs for that."""
    document = {
        "topology_file": str(plan.topology_file),
        "cells": [
            {
                "name": cell.name,
                "zone": cell.spec.zone,
                "api_address": cell.api_address,
                "operator_address": cell.operator_address,
                "operator_token": cell.operator_token,
                "owner_dsn": cell.dsn("cloister_owner"),
                "auditor_dsn": cell.dsn("cloister_auditor"),
                "mover_dsn": cell.dsn("cloister_mover"),
            }
            for cell in plan.cells
        ],
        "router_address": f"{HOST}:{plan.router_port}",
        "router_operator_address": f"{HOST}:{plan.router_operator_port}",
    }
    return msgspec.json.encode(document).decode()


async def wait_for_schema(plan: Plan, cell: CellPlan) -> None:
    """Return when the control plane has migrated the cell: the cell refuses any other schema."""
    deadline = time.monotonic() + SCHEMA_S_MAX
    found: int | None = None
    while found != SCHEMA_VERSION:
        if found is not None and found > SCHEMA_VERSION:
            raise StartFailed(
                f"the database of {cell.name} has schema version {found}, this release knows"
                f" {SCHEMA_VERSION}. Remedy: run the release that wrote it, or a newer one"
            )
        if time.monotonic() > deadline:
            log = plan.data.log("control-plane")
            raise StartFailed(
                f"the control plane did not migrate {cell.name} within {SCHEMA_S_MAX:g} s; the end"
                f" of {log}:\n{log_tail(log)}"
            )
        await asyncio.sleep(SCHEMA_POLL_S)
        try:
            found = await schema_version(cell.dsn("cloister_owner"))
        except psycopg.OperationalError:
            # The database is being restarted; asked again until the deadline.
            continue
