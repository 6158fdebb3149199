"""The control plane's HTTP API: routes, authentication, JSON in and out.

Decides nothing: tenants and keys are `provisioning.py`, cells `fleet.py`, routing
`routing_feed.py`, verification `verify/`. Errors of the package become
`{"errors": {"code", "message", "parameter"?}}` in one place. The request path of tenants never
comes here.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from control_plane.catalog import Catalog, Tenant
from control_plane.errors import (
    BodyTooLarge,
    CatalogUnavailable,
    ControlPlaneError,
    NotFound,
    RequestMalformed,
)
from control_plane.explaining import Explanations
from control_plane.fleet import Fleet
from control_plane.move.certificate import certificate_of
from control_plane.move.movers import Movers
from control_plane.move.reclaim import Reclaimer
from control_plane.move.reconciliation import Reconciler
from control_plane.move.register import MoveRecord
from control_plane.provisioning import Provisioning
from control_plane.routing_feed import WAIT_MS_MAX, Known, RoutingFeed
from control_plane.tokens import Role, Tokens
from control_plane.verify.service import Verifications
from control_plane.wire import (
    CONTRADICTION,
    WAITS_FOR_SHORT_PAUSE,
    CreatedKey,
    CreatedTenant,
    ErrorAnswer,
    ErrorBody,
    ListedKey,
    ListedTenant,
    MoveReport,
    NewLimits,
    NewMove,
    NewTenant,
    ReclaimWish,
    RevokedKey,
)

BODY_BYTES_MAX = 64 << 10
BODY_S_MAX = 10.0
MOVES_LISTED_MAX = 100
STOPPED_PHASES = ("waiting", CONTRADICTION)
"""Of a move that nobody works on until its next attempt."""
RETRY_AFTER_S = 1
ACTOR = "operator"
"""Who the audit rows name: there is one operator token, so that is all that is known."""

REQUEST_ID = re.compile(r"[0-9a-f-]{1,64}")

log = logging.getLogger(__name__)

_BodyT = TypeVar("_BodyT")
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(slots=True, kw_only=True)
class ControlPlane:
    """The parts the routes need. `reason` changes while the process starts."""

    catalog: Catalog
    feed: RoutingFeed
    fleet: Fleet
    provisioning: Provisioning
    verifications: Verifications
    movers: Movers
    reconciler: Reconciler
    reclaimer: Reclaimer
    explanations: Explanations
    tokens: Tokens
    unready: str | None = "starting"
    """Why requests cannot be served yet; None when they can."""


def create_app(plane: ControlPlane) -> Starlette:
    """The ASGI application; `__main__.py` serves it."""
    api = Api(plane)
    operator, anyone = api.only(Role.OPERATOR), api.only(Role.OPERATOR, Role.ROUTER)
    tenant, key = "/v1/tenants/{slug}", "/v1/tenants/{slug}/keys/{key_id}"
    return Starlette(
        routes=[
            Route("/healthz", api.healthz, methods=["GET"]),
            Route("/v1/routing-table", anyone(api.routing_table), methods=["GET"]),
            Route("/v1/status", operator(api.status), methods=["GET"]),
            Route("/v1/tenants", operator(api.create_tenant), methods=["POST"]),
            Route("/v1/tenants", operator(api.list_tenants), methods=["GET"]),
            Route(tenant, operator(api.show_tenant), methods=["GET"]),
            Route(f"{tenant}/keys", operator(api.create_key), methods=["POST"]),
            Route(f"{tenant}/keys", operator(api.list_keys), methods=["GET"]),
            Route(key, operator(api.revoke_key), methods=["DELETE"]),
            Route(f"{tenant}/verify", operator(api.verify), methods=["POST"]),
            Route(f"{tenant}/limits", operator(api.limit_tenant), methods=["PUT"]),
            Route(f"{tenant}/reconcile", operator(api.reconcile), methods=["POST"]),
            Route("/v1/cells/{cell}/reclaim", operator(api.reclaim), methods=["POST"]),
            Route(
                "/v1/explanations/requests/{request_id}",
                operator(api.explain_request),
                methods=["GET"],
            ),
            Route("/v1/explanations/tenants/{slug}", operator(api.explain_tenant), methods=["GET"]),
            Route("/v1/moves", operator(api.create_move), methods=["POST"]),
            Route("/v1/moves", operator(api.list_moves), methods=["GET"]),
            Route("/v1/moves/rehearsals", operator(api.rehearse_move), methods=["POST"]),
            Route("/v1/moves/{move_id}", operator(api.show_move), methods=["GET"]),
            Route("/v1/moves/{move_id}/abort", operator(api.abort_move), methods=["POST"]),
            Route("/v1/moves/{move_id}/rollback", operator(api.roll_back_move), methods=["POST"]),
            Route("/v1/moves/{move_id}/certificate", operator(api.certify_move), methods=["GET"]),
            Route("/v1/moves/{move_id}/finish", operator(api.finish_move), methods=["POST"]),
        ],
        exception_handlers={
            ControlPlaneError: _answer_error,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_disconnect,
            Exception: _answer_mistake,
        },
    )


class Api:
    """One method for each route."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def only(self, *roles: Role) -> Callable[[Handler], Handler]:
        """Lets a route be called with the tokens of these roles only, and not before it can be."""

        def restrict(handler: Handler) -> Handler:
            async def restricted(request: Request) -> Response:
                self._plane.tokens.require(request.headers.get("authorization"), *roles)
                if self._plane.unready is not None:
                    # The catalog may have no tables yet; nothing below is written for that.
                    raise CatalogUnavailable(f"not ready: {self._plane.unready}")
                return await handler(request)

            return restricted

        return restrict

    async def healthz(self, request: Request) -> Response:
        reason = self._plane.unready
        if reason is not None:
            return _json({"status": "unhealthy", "reason": reason}, 503)
        return _json({"status": "ok"})

    async def routing_table(self, request: Request) -> Response:
        after = _integer(request, "after", default=0, maximum=2**63 - 1)
        wait_ms = _integer(request, "wait_ms", default=0, maximum=WAIT_MS_MAX)
        known = Known(version=after, mark=request.query_params.get("mark", ""))
        news = await self._plane.feed.newer(known, wait_ms / 1000)
        if news is None:
            return Response(status_code=304)
        return Response(news.content, media_type="application/json")

    async def status(self, request: Request) -> Response:
        version = self._plane.feed.version or 0
        return _json(await self._plane.fleet.status(version))

    async def create_tenant(self, request: Request) -> Response:
        wanted = await _body(request, NewTenant)
        new = await self._plane.provisioning.create_tenant(
            wanted.slug, wanted.cell, actor=ACTOR, is_caller_gone=request.is_disconnected
        )
        self._plane.fleet.wake(new.tenant.home)
        # Routers learn now rather than within REREAD_S. The key is shown only in this answer: a
        # catalog that is away from one moment to the next must not cost it.
        with contextlib.suppress(CatalogUnavailable):
            await self._plane.feed.refresh()
        created = CreatedTenant(
            tenant=new.tenant.slug,
            organization_id=new.tenant.organization_id,
            api_key=new.secret,
            cell=new.tenant.home,
        )
        return _json(created, 201)

    async def list_tenants(self, request: Request) -> Response:
        return _json([_listed(tenant) for tenant in await self._plane.catalog.tenants()])

    async def show_tenant(self, request: Request) -> Response:
        return _json(_listed(await self._plane.catalog.tenant(request.path_params["slug"])))

    async def create_key(self, request: Request) -> Response:
        slug = request.path_params["slug"]
        new = await self._plane.provisioning.create_key(slug, actor=ACTOR)
        created = CreatedKey(
            tenant=new.tenant.slug,
            organization_id=new.tenant.organization_id,
            key_id=new.key_id,
            api_key=new.secret,
        )
        return _json(created, 201)

    async def limit_tenant(self, request: Request) -> Response:
        limits = await _body(request, NewLimits)
        slug = request.path_params["slug"]
        await self._plane.catalog.limit_tenant(slug, limits, actor=ACTOR)
        with contextlib.suppress(CatalogUnavailable):
            await self._plane.feed.refresh()
        return _json(limits)

    async def list_keys(self, request: Request) -> Response:
        keys = [
            ListedKey(
                key_id=key.key_id,
                state=key.state,
                created_at=key.created_at,
                revoked_at=key.revoked_at,
            )
            for key in await self._plane.provisioning.list_keys(request.path_params["slug"])
        ]
        return _json(keys)

    async def revoke_key(self, request: Request) -> Response:
        slug, text = request.path_params["slug"], request.path_params["key_id"]
        try:
            key_id = UUID(text)
        except ValueError as exc:
            raise NotFound(f"tenant {slug!r} has no key {text[:80]!r}", parameter="key_id") from exc
        await self._plane.provisioning.revoke_key(slug, key_id, actor=ACTOR)
        return _json(RevokedKey(tenant=slug, key_id=key_id, state="revoked"))

    async def verify(self, request: Request) -> Response:
        slug = request.path_params["slug"]
        return _json(await self._plane.verifications.verify(slug, request.is_disconnected))

    async def reconcile(self, request: Request) -> Response:
        slug = request.path_params["slug"]
        return _json(await self._plane.reconciler.reconcile(slug, request.is_disconnected))

    async def reclaim(self, request: Request) -> Response:
        cell, wish = request.path_params["cell"], await _body(request, ReclaimWish)
        told = await self._plane.reclaimer.reclaim(
            cell, accepts_loss=wish.accepts_loss, actor=ACTOR
        )
        return _json(told)

    async def explain_request(self, request: Request) -> Response:
        request_id = request.path_params["request_id"]
        if not REQUEST_ID.fullmatch(request_id):
            raise NotFound(f"{request_id[:80]!r} is no id of a request", parameter="request")
        return _json(await self._plane.explanations.request(request_id))

    async def explain_tenant(self, request: Request) -> Response:
        return _json(await self._plane.explanations.tenant(request.path_params["slug"]))

    async def create_move(self, request: Request) -> Response:
        wanted = await _body(request, NewMove)
        record = await self._plane.movers.plan(
            wanted.tenant,
            wanted.cell,
            actor=ACTOR,
            window_s=wanted.window_s,
            max_pause_ms=wanted.max_pause_ms,
        )
        return _json(_move_report(record), 201)

    async def rehearse_move(self, request: Request) -> Response:
        wanted = await _body(request, NewMove)
        status = await self._plane.fleet.status(self._plane.feed.version or 0)
        rehearsal = await self._plane.movers.rehearse(
            wanted.tenant,
            wanted.cell,
            batch_ms_p99={cell.name: cell.batch_ms_p99 for cell in status.cells},
            max_pause_ms=wanted.max_pause_ms,
        )
        return _json(rehearsal)

    async def list_moves(self, request: Request) -> Response:
        records = await self._plane.movers.register.latest(MOVES_LISTED_MAX)
        return _json([_move_report(record) for record in records])

    async def show_move(self, request: Request) -> Response:
        record = await self._plane.movers.register.read(_move_id(request))
        held = await self._plane.explanations.requests_held(record)
        return _json(_move_report(record, requests_held=held))

    async def abort_move(self, request: Request) -> Response:
        return _json(_move_report(await self._plane.movers.abort(_move_id(request))))

    async def roll_back_move(self, request: Request) -> Response:
        record = await self._plane.movers.rollback(_move_id(request), actor=ACTOR)
        return _json(_move_report(record), 201)

    async def certify_move(self, request: Request) -> Response:
        record = await self._plane.movers.register.read(_move_id(request))
        return _json(certificate_of(record))

    async def finish_move(self, request: Request) -> Response:
        record = await self._plane.movers.finish(_move_id(request), actor=ACTOR)
        return _json(_move_report(record))


def _listed(tenant: Tenant) -> ListedTenant:
    return ListedTenant(
        tenant=tenant.slug,
        organization_id=tenant.organization_id,
        cell=tenant.home,
        epoch=tenant.epoch,
        state=tenant.state,
        created_at=tenant.created_at,
        limits=tenant.limits,
    )


def _move_id(request: Request) -> UUID:
    text = request.path_params["move_id"]
    try:
        return UUID(text)
    except ValueError as exc:
        raise NotFound(f"there is no move {text[:80]!r}", parameter="move") from exc


def _move_report(record: MoveRecord, *, requests_held: int | None = None) -> MoveReport:
    progress = record.progress
    waits = None
    if record.phase in STOPPED_PHASES:
        waits = progress.get("last_error")
    elif record.phase == WAITS_FOR_SHORT_PAUSE:
        waits = progress.get("gate")
    elif record.phase == "follow" and record.decision is None:
        waits = progress.get("fence")
    return MoveReport(
        move_id=record.move.move_id,
        tenant=record.slug,
        source=record.move.source,
        target=record.move.target,
        epoch_old=record.move.epoch_old,
        epoch_new=record.move.epoch_new,
        phase=record.phase,
        decision=record.decision,
        rows=progress.get("rows"),
        bytes=progress.get("bytes"),
        copy_seconds=progress.get("copy_seconds"),
        rows_per_s=progress.get("rows_per_s"),
        bytes_per_s=progress.get("bytes_per_s"),
        rows_left=progress.get("rows_left"),
        eta_s=progress.get("copy_eta_s") if record.phase == "copy" else None,
        sequences_behind=progress.get("sequences_behind"),
        pause_ms=progress.get("pause_ms"),
        requests_held=requests_held,
        expected_pause_ms=progress.get("expected_pause_ms"),
        reason=progress.get("aborted_because") or waits,
        follows=record.move.follows,
        window_ends_at=record.window_ends_at,
        differences=[*progress.get("differences", ()), *progress.get("shadow_differences", ())],
        created_at=record.created_at,
        decided_at=record.decided_at,
        finished_at=record.finished_at,
    )


def _integer(request: Request, name: str, *, default: int, maximum: int) -> int:
    text = request.query_params.get(name)
    # Empty is absent: HTTP clients write a value they do not have that way.
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise RequestMalformed(f"{name} is {text[:40]!r}, not a whole number", parameter=name)
    return min(int(text), maximum)


async def _body(request: Request, kind: type[_BodyT]) -> _BodyT:
    """The request's body, bounded in size and time. Raises BodyTooLarge, RequestMalformed."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            async for chunk in request.stream():
                content += chunk
                if len(content) > BODY_BYTES_MAX:
                    raise BodyTooLarge(f"the body is above {BODY_BYTES_MAX} bytes")
    except TimeoutError as exc:
        raise RequestMalformed(f"the body did not arrive within {BODY_S_MAX:g} s") from exc
    try:
        return msgspec.json.decode(bytes(content), type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RequestMalformed(f"the body is not what this route takes: {exc}") from exc


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _error(status: int, code: str, message: str, parameter: str | None = None) -> Response:
    body = ErrorBody(code=code, message=message, parameter=parameter)
    return _json(ErrorAnswer(errors=body), status)


async def _answer_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ControlPlaneError)
    if exc.status >= 500:
        log.warning("request failed", extra={"path": request.url.path, "reason": str(exc)})
    response = _error(exc.status, exc.code, str(exc), exc.parameter)
    if exc.retryable:
        response.headers["retry-after"] = str(RETRY_AFTER_S)
    if exc.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


async def _answer_http_error(request: Request, exc: Exception) -> Response:
    """Starlette's own: no such route, no such method."""
    assert isinstance(exc, HTTPException)
    code = "not_found" if exc.status_code == 404 else "request_malformed"
    message = f"there is no {request.method} {request.url.path}"
    response = _error(exc.status_code, code, message)
    response.headers.update(exc.headers or {})
    return response


async def _answer_disconnect(request: Request, exc: Exception) -> Response:
    """The caller hung up while sending; nobody reads this."""
    return Response(status_code=400)


async def _answer_mistake(request: Request, exc: Exception) -> Response:
    """Starlette raises the exception again after this answer, and the server logs it."""
    return _error(500, "internal", "the control plane made a mistake; see its log")
