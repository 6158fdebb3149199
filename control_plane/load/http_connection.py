"""One kept-alive HTTP/1.1 connection, one request at a time: small on purpose.

A load is tens of thousands of small requests from one process. The general client that the rest of
the control plane uses spends 1.8 ms of processor time on each, a multiple of what the platform
needs to answer it; this one spends less than a tenth. No redirects, no proxies, no cookies.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from control_plane.load.errors import LoadRefused

CONNECT_S_MAX = 5.0
BODY_BYTES_MAX = 64 << 20


class ConnectionLost(Exception):
    """The connection could not be made, or ended or timed out before the answer was complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where requests go."""

    host: str
    port: int
    is_tls: bool
    prefix: str
    """Path before every request's own; without a slash at its end."""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Raises LoadRefused for anything but an http or https URL with a host."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise LoadRefused(f"{url!r} is no address: {exc}") from exc
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise LoadRefused(f"{url!r} is no address; write it as http://host:port")
        is_tls = parts.scheme == "https"
        return cls(
            host=parts.hostname,
            port=port or (443 if is_tls else 80),
            is_tls=is_tls,
            prefix=parts.path.rstrip("/"),
        )

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(slots=True)
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    body: bytes = b""


class HttpConnection:
    """Connects when first used, and again after the connection ended. Not for concurrent use."""

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        self._address = address
        self._tls = ssl.create_default_context() if address.is_tls else None
        sent = {"host": address.authority, "accept": "application/json", **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self._exchange: _Exchange | None = None

    async def request(
        self,
        method: str,
        target: str,
        *,
        body: bytes = b"",
        idempotency_key: str | None = None,
        timeout_s: float,
    ) -> Answer:
        """The answer, of any status. Raises ConnectionLost; then nobody knows what was done."""
        head = f"{method} {self._address.prefix}{target} HTTP/1.1\r\n{self._head}"
        if idempotency_key is not None:
            head += f"idempotency-key: {idempotency_key}\r\n"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        try:
            async with asyncio.timeout(timeout_s):
                exchange = await self._connected()
                return await exchange.run(f"{head}\r\n".encode("latin-1") + body)
        except TimeoutError as exc:
            raise ConnectionLost(f"no answer within {timeout_s:.0f} s") from exc
        except OSError as exc:
            raise ConnectionLost(str(exc)) from exc
        finally:
            # An exchange that was cut short must not be followed by another on its connection.
            if self._exchange is not None and not self._exchange.is_reusable:
                self.close()

    async def _connected(self) -> "_Exchange":
        if self._exchange is not None and not self._exchange.is_reusable:
            self.close()  # the other side let go of it while it was idle
        if self._exchange is None:
            async with asyncio.timeout(CONNECT_S_MAX):
                _, self._exchange = await asyncio.get_running_loop().create_connection(
                    _Exchange, self._address.host, self._address.port, ssl=self._tls
                )
        return self._exchange

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None


class _Exchange(asyncio.Protocol):
    """The connection's callbacks; holds at most one answer in the making."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._waiter: asyncio.Future[Answer] | None = None
        self.is_reusable = True

    async def run(self, request: bytes) -> Answer:
        if self._transport is None or not self.is_reusable:
            raise ConnectionLost("the connection was closed")
        self._waiter = asyncio.get_running_loop().create_future()
        self.is_reusable = False
        self._transport.write(request)
        return await self._waiter

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transports are of the class that asyncio names.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(f"the answer is not HTTP: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection was closed" if exc is None else str(exc))

    def on_message_begin(self) -> None:
        self._answer, self._chunks, self._bytes = Answer(), [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._bytes += len(body)
        if self._bytes > BODY_BYTES_MAX:
            self._fail(f"the answer is above {BODY_BYTES_MAX} bytes")
            self.close()
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._waiter is None or self._waiter.done():
            return
        self._answer.status = self._parser.get_status_code()
        self._answer.body = b"".join(self._chunks)
        self.is_reusable = self._parser.should_keep_alive()
        self._waiter.set_result(self._answer)

    def _fail(self, reason: str) -> None:
        self.is_reusable = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionLost(reason))
