"""The operator API of the cell, for the control plane: health, metrics, tenants and their keys.

On a listener of its own, never reachable by tenants. `/healthz` and `/metrics` are open; everything
else needs the operator's bearer token. Every change is idempotent.
"""

import hmac
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cell import strict_json
from cell.answers import Answer, answer_error, answer_failure, render
from cell.calls import read_body
from cell.errors import ApiError, NotFound, Unauthenticated, Unprocessable
from cell.ledger.commands import Command, CreateApiKey, RevokeApiKey
from cell.ledger.model import TenantId
from cell.metrics import CellMetrics
from cell.provision import Provision
from cell.schema import SCHEMA_VERSION
from cell.sequencer import Sequencer
from cell.tenants import Directory
from cell.wellformed import parse_uuid

_SHA256: Final = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger("cell.operator")


class OperatedCell(Protocol):
    """What the operator API asks of the cell."""

    @property
    def name(self) -> str: ...
    @property
    def operator_token(self) -> str: ...
    @property
    def unready(self) -> str | None:
        """Why the cell cannot serve; None where it can."""

    @property
    def quarantined(self) -> int: ...
    @property
    def sequencer(self) -> Sequencer: ...
    @property
    def directory(self) -> Directory: ...
    @property
    def provision(self) -> Provision: ...
    @property
    def metrics(self) -> CellMetrics: ...


class TenantBody(msgspec.Struct, frozen=True):
    epoch: Annotated[int, msgspec.Meta(ge=1, le=2**62)] = 1


class KeyBody(msgspec.Struct, frozen=True):
    sha256: str


class OperatorApi:
    """The endpoints; see `routes`."""

    def __init__(self, cell: OperatedCell) -> None:
        self._cell = cell

    def application(self) -> Starlette:
        tenant = "/operator/tenants/{organization_id}"
        key = tenant + "/keys/{key_id}"
        return Starlette(
            routes=[
                Route("/healthz", self.healthz, methods=["GET"]),
                Route("/metrics", self.show_metrics, methods=["GET"]),
                Route("/operator/status", self._guarded(self.status), methods=["GET"]),
                Route(tenant, self._guarded(self.put_tenant), methods=["PUT"]),
                Route(tenant, self._guarded(self.get_tenant), methods=["GET"]),
                Route(key, self._guarded(self.put_key), methods=["PUT"]),
                Route(key, self._guarded(self.delete_key), methods=["DELETE"]),
            ]
        )

    async def healthz(self, request: Request) -> Response:
        reason = self._cell.unready
        if reason is not None:
            return _respond(Answer(503, render({"status": "unhealthy", "reason": reason})))
        return _respond(Answer(200, render({"status": "ok", "cell": self._cell.name})))

    async def show_metrics(self, request: Request) -> Response:
        text = self._cell.metrics.render()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status(self, request: Request) -> Answer:
        status = self._cell.sequencer.status
        content = {
            "cell": self._cell.name,
            "schema_version": SCHEMA_VERSION,
            "writer_epoch": status.writer_epoch,
            "tenants": await self._cell.provision.count_tenants(),
            "commands_applied": status.commands_applied,
            "commands_refused": status.commands_refused,
            "queue_depth": self._cell.sequencer.queue_depth,
            "batch_ms_p99": status.batch_ms_p99,
            "last_error": status.last_error,
            "quarantined": self._cell.quarantined,
        }
        return Answer(200, render(content))

    async def put_tenant(self, request: Request) -> Answer:
        tenant_id = _tenant_id(request)
        body = await _body(request, TenantBody)
        head = await self._cell.provision.put_tenant(tenant_id, body.epoch)
        self._cell.directory.forget(tenant_id)
        return Answer(200, render(head))

    async def get_tenant(self, request: Request) -> Answer:
        tenant_id = _tenant_id(request)
        head = await self._cell.provision.tenant(tenant_id)
        if head is None:
            raise NotFound(f"no tenant {tenant_id}")
        return Answer(200, render(head))

    async def put_key(self, request: Request) -> Answer:
        key_id = parse_uuid(request.path_params["key_id"], "key_id")
        body = await _body(request, KeyBody)
        if _SHA256.fullmatch(body.sha256) is None:
            raise Unprocessable("sha256 is 64 hexadecimal digits in lower case", "sha256")
        return await self._change_key(
            request, CreateApiKey(id=key_id, secret_sha256=body.sha256), key_id
        )

    async def delete_key(self, request: Request) -> Answer:
        key_id = parse_uuid(request.path_params["key_id"], "key_id")
        return await self._change_key(request, RevokeApiKey(id=key_id), key_id)

    async def _change_key(self, request: Request, command: Command, key_id: str) -> Answer:
        tenant_id = _tenant_id(request)
        await self._cell.sequencer.submit(tenant_id, command, None)
        self._cell.directory.forget(tenant_id)
        is_revoked = isinstance(command, RevokeApiKey)
        content = {"organization_id": tenant_id, "key_id": key_id, "revoked": is_revoked}
        return Answer(200, render(content))

    def _guarded(
        self, endpoint: Callable[[Request], Awaitable[Answer]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint for who has the token, its errors as answers."""

        async def guarded(request: Request) -> Response:
            try:
                self._require_token(request)
                return _respond(await endpoint(request))
            except ApiError as error:
                return _respond(answer_error(error, repeatable=True))
            except Exception:
                log.exception("operator request failed", extra={"path": request.url.path})
                return _respond(answer_failure(repeatable=True))

        return guarded

    def _require_token(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        expected = self._cell.operator_token.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode(), expected):
            raise Unauthenticated("the operator token is missing or wrong")


def _tenant_id(request: Request) -> TenantId:
    return TenantId(parse_uuid(request.path_params["organization_id"], "organization_id"))


async def _body(request: Request, kind: type[strict_json.Body]) -> strict_json.Body:
    body = await read_body(dict(request.headers.raw), request.receive)
    return strict_json.decode(body, kind)


def _respond(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers, media_type="application/json")
