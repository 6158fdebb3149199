"""A running router, in a thread or in a process, and the control plane it follows."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from control_plane.routing import RoutingChange, RoutingTable
from router.app import Router
from router.settings import Address, Settings

DEADLINE_S = 60.0
TOKEN = "router-token"


ENDINGS: list[Callable[[], None]] = []
"""Of servers told to stop; each takes a tick or two, so they are waited for together, at the end of
a module."""


def await_endings() -> None:
    while ENDINGS:
        ENDINGS.pop()()


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until the condition holds; fails with what was waited for."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def table(
    version: int, tenants: Mapping[str, tuple[str, int]], cells: Mapping[str, int | str]
) -> RoutingTable:
    return whole(version, tenants, cells).apply_to(None)


def whole(
    version: int, tenants: Mapping[str, tuple[str, int]], cells: Mapping[str, int | str]
) -> RoutingChange:
    """A whole table, as it is told: from tenant → (cell, epoch) and cell → port."""
    return msgspec.convert(
        {
            "version": version,
            "cells": {
                name: {"address": at if isinstance(at, str) else f"127.0.0.1:{at}"}
                for name, at in cells.items()
            },
            "tenants": {
                tenant: {"cell": cell, "epoch": epoch} for tenant, (cell, epoch) in tenants.items()
            },
        },
        RoutingChange,
    )


class ControlPlane:
    """Speaks the routing table's long poll, as the real one does."""

    def __init__(self) -> None:
        self.table: RoutingTable | RoutingChange | None = None
        self.polls = 0
        self.asked_after: list[str | None] = []
        self.asked_marks: list[str | None] = []
        self.ignores_after = False
        """Offers its table whatever the router has: a control plane restored from a backup."""
        self.holds_news = False
        """A poll that is held ends without news: only one that asks to be answered at once brings
        them."""
        self.app = Starlette(routes=[Route("/v1/routing-table", self._routing_table)])

    async def _routing_table(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response(status_code=401)
        self.polls += 1
        self.asked_after.append(request.query_params.get("after"))
        self.asked_marks.append(request.query_params.get("mark"))
        after = int(request.query_params.get("after", "0"))
        wait_ms = int(request.query_params.get("wait_ms", "0"))
        end = time.monotonic() + wait_ms / 1000
        while True:
            current = None if wait_ms and self.holds_news else self.table
            if current is not None and (current.version > after or self.ignores_after):
                return Response(msgspec.json.encode(current), media_type="application/json")
            if time.monotonic() >= end or await request.is_disconnected():
                return Response(status_code=304)
            await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRouter:
    """A router in a thread, on its own uvloop."""

    router: Router
    port: int
    operator_port: int
    stop: Callable[[], None]
    """Begin to drain, as SIGTERM does."""
    thread: threading.Thread

    def get(self, path: str) -> tuple[int, bytes]:
        return http_get(self.operator_port, path)

    def metric(self, line_start: str) -> float:
        """The value of the one line of /metrics that starts so."""
        _, body = self.get("/metrics")
        lines = [line for line in body.decode().splitlines() if line.startswith(line_start + " ")]
        assert len(lines) == 1, f"{line_start}: {lines}"
        return float(lines[0].rsplit(" ", 1)[1])


def http_get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read()


def environment(directory: Path, control_port: int, **settings: Any) -> dict[str, str]:
    """What a router is started with; settings by field name."""
    values = {
        "listen": "127.0.0.1:0",
        "operator_listen": "127.0.0.1:0",
        "control_url": f"http://127.0.0.1:{control_port}",
        "token": TOKEN,
        "table_file": directory / "routing-table",
        "poll_wait_ms": 2_000,
        **settings,
    }
    return {f"CLOISTER_ROUTER_{name.upper()}": str(value) for name, value in values.items()}


@contextmanager
def running_router(directory: Path, control_port: int, **settings: Any) -> Iterator[RunningRouter]:
    router = Router(Settings.from_environment(environment(directory, control_port, **settings)))
    router.listen()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    failures: list[BaseException] = []

    async def serve() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        await router.serve(stop)

    def run() -> None:
        try:
            uvloop.run(serve())
        except BaseException as exc:
            failures.append(exc)

    port, operator_port = router.address.port, router.operator_address.port
    thread = threading.Thread(target=run, name="router")
    thread.start()
    wait_until(lambda: loops, "the router's loop")

    def stop() -> None:
        loop, event = loops[0]
        if thread.is_alive():
            loop.call_soon_threadsafe(event.set)

    def ended() -> None:
        thread.join(DEADLINE_S + 5)
        assert not thread.is_alive(), "the router does not end"
        assert not failures, failures

    try:
        yield RunningRouter(
            router=router, port=port, operator_port=operator_port, stop=stop, thread=thread
        )
    finally:
        stop()
        ENDINGS.append(ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterProcess:
    process: subprocess.Popen[str]
    port: int
    operator_port: int

    def is_ready(self) -> bool:
        try:
            return http_get(self.operator_port, "/healthz")[0] == 200
        except OSError:
            return False


@contextmanager
def router_process(
    directory: Path, control_port: int, *, log: Path | None = None, **settings: Any
) -> Iterator[RouterProcess]:
    """`python -m router`, as the supervisor starts it; ready when this yields.

    Its log goes to the file, or else to a pipe, which holds no more than a few hundred lines.
    """
    operator_port = free_port()
    settings = {"listen": f"127.0.0.1:{free_port()}", **settings}
    port = Address.parse(settings["listen"]).port
    settings["operator_listen"] = f"127.0.0.1:{operator_port}"
    with start_router(environment(directory, control_port, **settings), log) as process:
        running = RouterProcess(process=process, port=port, operator_port=operator_port)
        try:
            wait_until(running.is_ready, "the router to be ready")
            yield running
        finally:
            process.kill()


def start_router(variables: Mapping[str, str], log: Path | None = None) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CLOISTER_")}
    with ExitStack() as files:
        return subprocess.Popen(
            [sys.executable, "-m", "router"],
            env=inherited | dict(variables),
            cwd=Path(__file__).resolve().parents[2],
            stderr=subprocess.PIPE if log is None else files.enter_context(log.open("a")),
            text=True,
        )
