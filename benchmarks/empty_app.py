"""The empty handler: what HTTP in Python costs before any ledger work. The yardstick of `api`.

The same server and settings as a cell (uvicorn, uvloop, httptools, no access log) and about as many
bytes: a POST is read to its end and answered 201, a GET 200, each with a fixed JSON body as long as
a ledger transaction's. Run as `python -m benchmarks.empty_app HOST:PORT`.
"""

import sys
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cell.wire import KEEP_ALIVE_CELL_S

BODY_BYTES: Final = 1_300
BODY: Final = b'{"object":"empty","padding":"'.ljust(BODY_BYTES - 2, b".") + b'"}'
BACKLOG: Final = 2_048


async def respond(request: Request) -> Response:
    if request.method == "POST":
        await request.body()
        return Response(BODY, status_code=201, media_type="application/json")
    return Response(BODY, media_type="application/json")


app = Starlette(routes=[Route("/{path:path}", respond, methods=["GET", "POST"])])


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    uvicorn.run(
        app,
        host=host,
        port=int(port),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_CELL_S,
    )


if __name__ == "__main__":
    main()
