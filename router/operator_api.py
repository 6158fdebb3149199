"""The operator port: /healthz and /metrics. Apart from the data path, and never in its way."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.metrics import RouterMetrics

if TYPE_CHECKING:
    from router.app import Router


def operator_api(router: "Router") -> Starlette:
    metrics = RouterMetrics(router)

    async def healthz(request: Request) -> Response:
        reason = router.unready
        state = {
            "routing_version": router.routes.version,
            "routing_fresh": router.routes.is_fresh,
            "tenants": router.routes.tenants,
        }
        if reason is None:
            return JSONResponse({"status": "ok"} | state)
        return JSONResponse({"status": "unhealthy", "reason": reason} | state, status_code=503)

    async def render_metrics(request: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", render_metrics)])


class OperatorServer(uvicorn.Server):
    """A uvicorn that leaves the process's signals to the router's drain."""

    def __init__(self, router: "Router") -> None:
        super().__init__(
            uvicorn.Config(
                operator_api(router),
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="warning",
                timeout_graceful_shutdown=1,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
