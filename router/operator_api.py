"""The operator port: /healthz, /metrics, and why requests went where they went.

Apart from the data path, and never in its way. What names tenants is shown only to who has the
token that routers and the control plane share.
"""

import contextlib
import hmac
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from control_plane.explanation import TenantRoute
from control_plane.routing import OrganizationId
from router.metrics import RouterMetrics

if TYPE_CHECKING:
    from router.app import Router

REQUESTS_SHOWN_MAX: Final = 20
"""The last ones of a tenant."""


def operator_api(router: "Router") -> Starlette:
    metrics = RouterMetrics(router)
    token = f"Bearer {router.settings.token}".encode()

    def is_known(request: Request) -> bool:
        given = request.headers.get("authorization", "").encode()
        return hmac.compare_digest(given, token)

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

    async def show_request(request: Request) -> Response:
        if not is_known(request):
            return Response(status_code=401)
        return _shown(router.edge.recent.request(request.path_params["request_id"]))

    async def show_tenant(request: Request) -> Response:
        if not is_known(request):
            return Response(status_code=401)
        return _shown(tenant_route(router, OrganizationId(request.path_params["tenant"])))

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/metrics", render_metrics),
            Route("/requests/{request_id}", show_request),
            Route("/tenants/{tenant}", show_tenant),
        ]
    )


def tenant_route(router: "Router", tenant: OrganizationId) -> TenantRoute | None:
    """Where the tenant's next request would go; None: the table does not know it."""
    route, version = router.routes.route_of(tenant), router.routes.version
    if route is None or version is None:
        return None
    pool, traffic = route.pool, route.traffic
    latest = router.forwarder.hold.latest(tenant)
    return TenantRoute(
        cell=pool.cell,
        address=str(pool.address),
        epoch=route.epoch,
        routing_version=version,
        routing_is_fresh=router.routes.is_fresh,
        in_flight=traffic.in_flight,
        in_flight_max=traffic.in_flight_max,
        requests_per_s_max=traffic.rate,
        held=router.forwarder.hold.held(tenant),
        held_for_epoch=None if latest is None else latest.epoch,
        held_for_it=0 if latest is None else latest.requests,
        serving_since=router.serving_since,
        cell_is_tried=pool.breaker.is_closed,
        requests=list(islice(router.edge.recent.of_tenant(tenant), REQUESTS_SHOWN_MAX)),
    )


def _shown(found: msgspec.Struct | None) -> Response:
    if found is None:
        return Response(status_code=404)
    return Response(msgspec.json.encode(found), media_type="application/json")


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
