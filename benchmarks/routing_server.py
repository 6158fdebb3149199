"""A tiny control plane for a router alone: serves one fixed routing table, over real HTTP.

It speaks the part of the control plane's contract that routers use (`GET /v1/routing-table` with
`after` and `wait_ms`), so that a router can be measured in front of any backend.
"""

import contextlib
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

import msgspec

from benchmarks.server_process import HOST
from control_plane.routing import (
    CellAddress,
    CellName,
    Epoch,
    OrganizationId,
    Placement,
    RoutingTable,
)

CELL: Final = CellName("bench")
WAIT_S_MAX: Final = 30.0


class RoutingServer:
    """A context manager; every organization given lives on the one backend."""

    def __init__(self, backend: str, organizations: list[str]) -> None:
        placement = Placement(cell=CELL, epoch=Epoch(1))
        self.table = RoutingTable(
            version=1,
            cells={CELL: CellAddress(address=backend)},
            tenants={OrganizationId(name): placement for name in organizations},
        )
        self.token = secrets.token_urlsafe(32)
        self.stopping = threading.Event()
        self.server = ThreadingHTTPServer((HOST, 0), self.handler())
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, name="routing-server")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        body = msgspec.json.encode(self.table)
        version, token, stopping = self.table.version, self.token, self.stopping

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.headers.get("authorization") != f"Bearer {token}":
                    return self.answer(401, b"")
                query = parse_qs(urlsplit(self.path).query)
                if int(query.get("after", ["0"])[0]) < version:
                    return self.answer(200, body)
                stopping.wait(min(int(query.get("wait_ms", ["0"])[0]) / 1_000, WAIT_S_MAX))
                return self.answer(304, b"")

            def answer(self, status: int, content: bytes) -> None:
                # A router that was stopped while its poll was held is gone by now.
                with contextlib.suppress(ConnectionError):
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, format: str, *arguments: object) -> None:
                """The standard library logs every request to stderr; here nobody reads that."""

        return Handler
