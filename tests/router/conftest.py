"""Fixtures of the router's tests: a router between real sockets on both sides.

Method of the suite: a real router on uvloop, real HTTP servers or scripted sockets as cells, a real
HTTP server that speaks the control plane's long poll; clients that send exact bytes.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

# Tests are no package: this is how the modules beside them are found.
sys.path.insert(0, str(Path(__file__).parent))

from router_cells import EchoCell, ScriptedCell, serving
from router_clients import Client
from router_running import (
    ControlPlane,
    RunningRouter,
    await_endings,
    running_router,
    table,
    wait_until,
)


class Platform:
    """A control plane, cells, and routers between them and the test."""

    def __init__(self, directory: Path, parts: ExitStack) -> None:
        self.directory = directory
        self._parts = parts
        self.control = ControlPlane()
        self.control_server = parts.enter_context(serving(self.control.app))
        self._routers = 0

    def echo_cell(self, name: str = "cell-a", **options: Any) -> tuple[EchoCell, int]:
        cell = EchoCell(name)
        return cell, self._parts.enter_context(serving(cell.app, **options)).port

    def scripted_cell(self, script: Any) -> ScriptedCell:
        return self._parts.enter_context(ScriptedCell(script).listening())

    def publish(
        self, version: int, tenants: dict[str, tuple[str, int]], cells: dict[str, int | str]
    ) -> None:
        self.control.table = table(version, tenants, cells)

    def route_all_to(self, port: int, version: int = 1) -> None:
        """tenant-a lives at cell-a, at this port."""
        self.publish(version, {"tenant-a": ("cell-a", 1)}, {"cell-a": port})

    def router(self, *, ready: bool = True, **settings: Any) -> RunningRouter:
        self._routers += 1
        directory = self.directory / f"router-{self._routers}"
        directory.mkdir()
        running = self._parts.enter_context(
            running_router(directory, self.control_server.port, **settings)
        )
        if ready:
            wait_until(lambda: running.router.routes.is_fresh, "the routing table")
        return running

    def client(self, router: RunningRouter) -> Client:
        return self._parts.enter_context(Client(router.port))


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with ExitStack() as parts:
        yield Platform(tmp_path, parts)


@pytest.fixture(scope="module", autouse=True)
def _endings() -> Iterator[None]:
    yield
    await_endings()


@pytest.fixture(scope="module")
def lasting_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with ExitStack() as parts:
        yield Platform(tmp_path_factory.mktemp("platform"), parts)


@pytest.fixture(scope="module")
def echoing(lasting_platform: Platform) -> tuple[EchoCell, RunningRouter]:
    """One router with one well-behaved cell, shared by a module's tests; limits as shipped, but
    for small bodies."""
    cell, port = lasting_platform.echo_cell()
    lasting_platform.route_all_to(port)
    return cell, lasting_platform.router(body_bytes_max=100_000)


@pytest.fixture
def cell(echoing: tuple[EchoCell, RunningRouter]) -> EchoCell:
    echoing[0].seen.clear()
    return echoing[0]


@pytest.fixture
def router(echoing: tuple[EchoCell, RunningRouter]) -> RunningRouter:
    return echoing[1]


@pytest.fixture
def client(router: RunningRouter) -> Iterator[Client]:
    with Client(router.port) as connected:
        yield connected
