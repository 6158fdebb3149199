"""A backend as fast as Python allows, so that the proxy in front of it is the bottleneck.

One process, asyncio.Protocol on httptools and uvloop: a fixed answer the moment a request is
complete, 201 to POST and 200 to GET. Run as `python -m benchmarks.fast_backend HOST:PORT [CPU]`.
"""

import asyncio
import os
import signal
import sys
from typing import Final, cast

import httptools
import uvloop

from benchmarks.empty_app import BODY

HEAD: Final = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)
OK: Final = b"HTTP/1.1 200 OK\r\n" + HEAD + BODY
CREATED: Final = b"HTTP/1.1 201 Created\r\n" + HEAD + BODY
BACKLOG: Final = 2_048


class Backend(asyncio.Protocol):
    __slots__ = ("parser", "transport")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(CREATED if self.parser.get_method() == b"POST" else OK)


async def serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with await loop.create_server(Backend, host, port, backlog=BACKLOG):
        await stop.wait()


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    if len(sys.argv) > 2:
        os.sched_setaffinity(0, {int(sys.argv[2])})
    uvloop.run(serve(host, int(port)))


if __name__ == "__main__":
    main()
