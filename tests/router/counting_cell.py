"""A cell in a process of its own, so that it can be stopped, killed and started again.

`python counting_cell.py PORT`: answers every request with its own number; `GET /count` is answered
with how many came before it and is not counted.
"""

import asyncio
import json
import sys
from typing import cast

import httptools


class Counting(asyncio.Protocol):
    requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.target = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_message_complete(self) -> None:
        if self.target != b"/count":
            Counting.requests += 1
        body = json.dumps({"requests": Counting.requests}).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(body) + body)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
