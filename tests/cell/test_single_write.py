"""Heads are joined to their bodies, nothing else is held back. Method: what reaches the socket."""

from typing import Any

import pytest

from cell.single_write import HeadKeeper

HEAD = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n"
FLUSH = object()
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Socket:
    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.seen.append(data)

    def close(self) -> None:
        self.seen.append(b"closed")

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ([HEAD, b"{}"], [HEAD + b"{}"]),
        ([HEAD, b""], [HEAD]),
        ([HEAD, b"{}", HEAD, b"[]"], [HEAD + b"{}", HEAD + b"[]"]),
        ([CONTINUE, HEAD, b"{}"], [CONTINUE, HEAD + b"{}"]),
        ([HEAD, b"a", b"b"], [HEAD + b"a", b"b"]),
        ([HEAD, HEAD, b"x"], [HEAD + HEAD, b"x"]),
        ([b"{}\r\n\r\n"], [b"{}\r\n\r\n"]),
        ([HEAD, None], [HEAD, b"closed"]),
        ([HEAD, FLUSH, HEAD, b"{}"], [HEAD, HEAD + b"{}"]),
        ([FLUSH, HEAD, b"{}", FLUSH], [HEAD + b"{}"]),
        ([None], [b"closed"]),
    ],
)
def test_what_reaches_the_socket(written: list[Any], seen: list[bytes]) -> None:
    socket = Socket()
    keeper = HeadKeeper(socket)
    for data in written:
        if data is None:
            keeper.close()
        elif data is FLUSH:
            keeper.flush()
        else:
            keeper.write(data)
    assert socket.seen == seen
    assert keeper.is_closing() is False
