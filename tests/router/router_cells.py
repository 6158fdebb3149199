"""Cells to route to: a well-behaved HTTP server that remembers what it saw, and scripted ones.

The scripted ones are plain sockets in threads, so that a test can answer with any bytes at all, or
with none, and break off at any point.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from router_running import ENDINGS, wait_until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request as a cell saw it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The only value of this name; fails if there are more."""
        values = [value for seen, value in self.headers if seen == name]
        assert len(values) <= 1, f"{name} more than once: {values}"
        return values[0] if values else None


class EchoCell:
    """Answers 200 (201 to POST) with what it saw; some paths have answers of their own.

    /bytes/N: N bytes of known length. /stream/N: N bytes in chunks. /status/N: that status.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[Seen] = []
        paths = [
            Route("/bytes/{size:int}", self._bytes),
            Route("/stream/{size:int}", self._stream),
            Route("/status/{status:int}", self._status),
            Route("/{path:path}", self._echo, methods=METHODS),
        ]
        self.app = Starlette(routes=paths)

    async def _echo(self, request: Request) -> Response:
        seen = await self._remember(request)
        answer: dict[str, Any] = {
            "cell": self.name,
            "method": seen.method,
            "target": seen.target,
            "body_bytes": len(seen.body),
        }
        return JSONResponse(answer, status_code=201 if seen.method == "POST" else 200)

    async def _bytes(self, request: Request) -> Response:
        await self._remember(request)
        return Response(b"b" * int(request.path_params["size"]), media_type="text/plain")

    async def _stream(self, request: Request) -> Response:
        await self._remember(request)
        left = int(request.path_params["size"])

        async def pieces() -> Any:
            nonlocal left
            while left:
                piece = min(left, 65536)
                left -= piece
                yield b"s" * piece

        return StreamingResponse(pieces(), media_type="text/plain")

    async def _status(self, request: Request) -> Response:
        await self._remember(request)
        headers = {"connection": "x-private", "x-private": "1", "x-kept": "2", "x-request-id": "no"}
        return Response(status_code=int(request.path_params["status"]), headers=headers)

    async def _remember(self, request: Request) -> Seen:
        query = request.scope["query_string"]
        seen = Seen(
            method=request.method,
            target=(request.scope["raw_path"] + (b"?" + query if query else b"")).decode("ascii"),
            headers=[
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in request.scope["headers"]
            ],
            body=await request.body(),
        )
        self.seen.append(seen)
        return seen


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    port: int
    server: uvicorn.Server


@contextmanager
def serving(app: Starlette, port: int = 0, **options: Any) -> Iterator[Served]:
    """The app on a real server in a thread of its own."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
        **options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()

    def ended() -> None:
        thread.join(10)
        assert not thread.is_alive(), "a server does not end"

    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the server to start")
        yield Served(port=server.servers[0].sockets[0].getsockname()[1], server=server)
    finally:
        server.should_exit = server.force_exit = True
        ENDINGS.append(ended)


Script = Callable[["CellSide"], None]


@dataclass(slots=True)
class CellSide:
    """The cell's end of one connection, for a script to speak on."""

    socket: socket.socket
    number: int
    """Counts the cell's connections from 0."""
    _unread: bytes = b""

    def request(self) -> Seen | None:
        """The next request, with its body; None once the router has closed."""
        while b"\r\n\r\n" not in self._unread:
            if not self._receive():
                return None
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        headers = [(n, v) for n, _, v in (f.partition(": ") for f in fields)]
        size = int(dict(headers).get("content-length", "0"))
        while len(self._unread) < size:
            if not self._receive():
                return None
        body, self._unread = self._unread[:size], self._unread[size:]
        return Seen(method=method, target=target, headers=headers, body=body)

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, status: int = 200, headers: str = "", body: bytes = b'{"ok":true}') -> None:
        head = f"HTTP/1.1 {status} Said\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        self.say(head.encode() + body)

    def reset(self) -> None:
        """Close so that the router's side fails rather than ends."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()

    def _receive(self) -> bool:
        try:
            piece = self.socket.recv(65536)
        except (ConnectionError, TimeoutError, OSError):
            return False
        self._unread += piece
        return bool(piece)


def answer_all(side: CellSide, **answer: Any) -> None:
    """A script: answers every request alike."""
    while side.request() is not None:
        side.answer(**answer)


@dataclass(slots=True)
class ScriptedCell:
    """Runs its script for every connection, in a thread for each."""

    script: Script
    port: int = 0
    requests: int = 0
    sides: list[CellSide] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _listener: socket.socket | None = None

    @property
    def connections(self) -> int:
        return len(self.sides)

    def refuse(self) -> None:
        """Accept no more connections; those there are stay."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @contextmanager
    def listening(self) -> Iterator["ScriptedCell"]:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        accepting = threading.Thread(target=self._accept, args=(listener,), name="cell")
        accepting.start()
        try:
            yield self
        finally:
            with suppress(OSError):
                self.refuse()
            accepting.join(10)
            for side in self.sides:
                with suppress(OSError):
                    side.socket.shutdown(socket.SHUT_RDWR)
            for thread in self._threads:
                thread.join(10)
                assert not thread.is_alive(), "a script does not end"

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            accepted.settimeout(20)
            side = CellSide(accepted, len(self.sides))
            self.sides.append(side)
            thread = threading.Thread(target=self._run, args=(side,), name="script")
            self._threads.append(thread)
            thread.start()

    def _run(self, side: CellSide) -> None:
        with side.socket, suppress(BrokenPipeError, ConnectionResetError):
            self.script(side)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()
