"""A client that says exactly the bytes a test gives it, and reads answers strictly."""

import base64
import json
import socket
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 60.0


def basic(tenant: str, key: str = "ck_secret") -> str:
    return "Basic " + base64.b64encode(f"{tenant}:{key}".encode()).decode()


def request(
    method: str = "GET",
    target: str = "/api/ping",
    *,
    tenant: str | None = "tenant-a",
    headers: str = "",
    body: bytes | None = None,
) -> bytes:
    """The bytes of a well-formed request; `headers` are whole lines, each with its CRLF."""
    lines = f"{method} {target} HTTP/1.1\r\nHost: ledger.test\r\n"
    if tenant is not None:
        lines += f"Authorization: {basic(tenant)}\r\n"
    if body is not None:
        lines += f"Content-Length: {len(body)}\r\n"
    return f"{lines}{headers}\r\n".encode("latin-1") + (body or b"")


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error in the API's form; fails on any other body."""
        errors = self.json["errors"]
        assert set(errors) == {"code", "message"}
        assert self.headers["content-type"] == "application/json"
        code: str = errors["code"]
        return code


class Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._unread = bytearray()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes, *, bodiless: bool = False) -> Answer:
        self.send(data)
        return self.answer(bodiless=bodiless)

    def answer(self, *, bodiless: bool = False) -> Answer:
        """The next answer; interim ones are skipped."""
        while True:
            status, headers = self.head()
            if status >= 200:
                break
        if bodiless or status in (204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = self._chunks()
        elif "content-length" in headers:
            body = self.read(int(headers["content-length"]))
        else:
            body = self.rest()
        return Answer(status=status, headers=headers, body=body)

    def head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self._unread:
            self._receive()
        head = self.read(self._unread.index(b"\r\n\r\n") + 4)[:-4]
        line, *fields = head.decode("latin-1").split("\r\n")
        version, status, _ = (line + " ").split(" ", 2)
        assert version == "HTTP/1.1", line
        pairs = [field.split(": ", 1) for field in fields]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), f"a header twice: {head!r}"
        return int(status), headers

    def read(self, size: int) -> bytes:
        while len(self._unread) < size:
            self._receive()
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def rest(self) -> bytes:
        """All until the server closes in good order."""
        while piece := self.socket.recv(65536):
            self._unread += piece
        return self.read(len(self._unread))

    def is_closed(self) -> bool:
        """Waits for the server's end, in good order or by a reset; False if it says more."""
        try:
            return not self._unread and self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def reset(self) -> None:
        """Hang up for good; a mere end might be that of a client that still listens."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()

    def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            while b"\r\n" not in self._unread:
                self._receive()
            size = self.read(self._unread.index(b"\r\n") + 2)
            chunk = self.read(int(size, 16) + 2)
            assert chunk.endswith(b"\r\n")
            if chunk == b"\r\n":
                return bytes(body)
            body += chunk[:-2]

    def _receive(self) -> None:
        piece = self.socket.recv(65536)
        if not piece:
            raise EOFError(f"closed after {bytes(self._unread[:200])!r}")
        self._unread += piece
