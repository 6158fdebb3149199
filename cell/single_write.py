"""An answer in one write: uvicorn writes head and body apart, two system calls and two packets.

The server's protocol, but for its transport: that one keeps the head of an answer back until what
follows it, which the same turn of the loop brings.
"""

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_BEGIN = b"HTTP/1.1 "
_INTERIM = b"HTTP/1.1 1"
_END = b"\r\n\r\n"


class SingleWriteProtocol(HttpToolsProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast(Any, HeadKeeper(transport)))

    def on_response_complete(self) -> None:
        # The answer to HEAD ends with its head.
        cast(Any, self.transport).flush()
        super().on_response_complete()


class HeadKeeper:
    """The transport, with a `write` that joins an answer's head to its body."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""
        self._write = transport.write

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(_BEGIN) and data.endswith(_END) and not data.startswith(_INTERIM):
            self._head = data
            return
        self._write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write a head that nothing has followed."""
        if self._head:
            self._write(self._head)
            self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
