"""The empty handler: what HTTP in Python costs before any ledger work. The yardstick of `api`.

The same server and settings as a cell (uvicorn, uvloop, httptools, no access log) and about as many
bytes: a POST is read to its end and answered 201, a GET 200, each with a fixed JSON body as long as
a ledger transaction's. In two forms: `bare`, against ASGI itself as a cell's data path is, and
`starlette`, as such handlers are usually written.

Run as `python -m benchmarks.empty_app (bare|starlette) HOST:PORT`.
"""

import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cell.wire import KEEP_ALIVE_CELL_S

BODY_BYTES: Final = 1_300
BODY: Final = b'{"object":"empty","padding":"'.ljust(BODY_BYTES - 2, b".") + b'"}'
HEADERS: Final = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % BODY_BYTES),
]
BACKLOG: Final = 1_024
CONNECTIONS_MAX: Final = 2_048


Messages = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def bare(scope: dict[str, Any], receive: Messages, send: Send) -> None:
    status = 200
    if scope["method"] == "POST":
        status = 201
        while (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.start", "status": status, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def respond(request: Request) -> Response:
    if request.method == "POST":
        await request.body()
        return Response(BODY, status_code=201, media_type="application/json")
    return Response(BODY, media_type="application/json")


starlette = Starlette(routes=[Route("/{path:path}", respond, methods=["GET", "POST"])])


def main() -> None:
    host, _, port = sys.argv[2].rpartition(":")
    app: Any = {"bare": bare, "starlette": starlette}[sys.argv[1]]
    uvicorn.run(
        app,
        interface="asgi3",
        host=host,
        port=int(port),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        log_level="warning",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_CELL_S,
    )


if __name__ == "__main__":
    main()
